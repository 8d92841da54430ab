//! The metrics file, replaced atomically for node_exporter's textfile collector. A thread writes it, because a disk can hang.

use std::fs;
use std::io;
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
    fs::write(&temporary, text)?;
    fs::rename(&temporary, path)
}
