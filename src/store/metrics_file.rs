//! The metrics file, replaced atomically for node_exporter's textfile collector. A thread writes it, because a disk can hang.

use std::fs::{self, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{SyncSender, sync_channel};
use std::thread::Builder;

/// The thread, seen from the main loop.
#[derive(Debug)]
pub struct MetricsFile(SyncSender<String>);

impl MetricsFile {
    /// # Errors
    /// The kernel's, when it gives no thread.
    pub fn start(path: PathBuf) -> io::Result<Self> {
        let (texts, received) = sync_channel::<String>(1);
        let mut failed = false;
        Builder::new().name("metrics".into()).spawn(move || {
            for text in received {
                let error = replace(&path, &text).err();
                if let Some(error) = &error
                    && !failed
                {
                    log::warn!("cannot write the metrics file {}: {error}", path.display());
                }
                failed = error.is_some();
            }
        })?;
        Ok(Self(texts))
    }

    /// Never blocks; while a disk hangs, metrics are dropped.
    pub fn write(&self, text: String) {
        let _ = self.0.try_send(text);
    }
}

fn replace(path: &Path, text: &str) -> io::Result<()> {
    // The collector reads every file whose name ends in .prom, so the temporary one must not.
    let temporary = path.with_extension("new");
    // The folder may be the collector's: what it put there (a link) is not written through.
    match fs::remove_file(&temporary) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        Ok(()) | Err(_) => {}
    }
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o644).open(&temporary)?;
    file.write_all(text.as_bytes())?;
    fs::rename(&temporary, path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_link_in_its_place_is_not_followed() {
        let folder = std::env::temp_dir().join(format!("vectorlay-metrics-{}", std::process::id()));
        fs::create_dir_all(&folder).unwrap();
        let (path, precious) = (folder.join("a.prom"), folder.join("precious"));
        fs::write(&precious, "precious").unwrap();
        for link in [folder.join("a.new"), path.clone()] {
            std::os::unix::fs::symlink(&precious, link).unwrap();
        }
        replace(&path, "x 1\n").unwrap();
        replace(&path, "x 2\n").unwrap();
        assert_eq!(fs::read_to_string(&precious).unwrap(), "precious");
        assert_eq!(fs::read_to_string(&path).unwrap(), "x 2\n");
        assert!(!path.is_symlink());
        fs::remove_dir_all(&folder).unwrap();
    }
}
