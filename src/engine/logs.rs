//! The containers' log files that a shim writes (`file://`): their end, their bound, their removal.
//!
//! The shim has its file open for appending and never opens it again, so a file is bounded by copying it aside and
//! truncating it in place; what is written between the two is lost. A container has `<deploy>.log` and, once it grew
//! too long, `<deploy>.log.1`.

use std::collections::BTreeSet;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use super::cli::log_file;
use super::parse::{LOG_MAX, last_lines};
use crate::core::job::is_deploy_id;

/// The last `most` lines of a deploy's output, and whether some were left out for their length.
///
/// # Errors
/// The file's, when there is none or it cannot be read.
pub fn tail(dir: &Path, deploy: &str, most: u32) -> io::Result<(Vec<String>, bool)> {
    let path = log_file(dir, deploy).ok_or(io::ErrorKind::InvalidInput)?;
    let (mut bytes, mut more) = end_of(&path)?;
    if !more {
        // The older part, if there is one.
        if let Ok((older, older_more)) = end_of(&aside(&path)) {
            bytes.splice(0..0, older);
            more = older_more;
        }
    }
    let text = String::from_utf8_lossy(&bytes);
    // Where the beginning is missing, the first line is no whole one.
    let lines: Vec<&str> = text.lines().skip(usize::from(more)).collect();
    let (lines, cut) = last_lines(&lines, most);
    let short = (lines.len() as u64) < u64::from(most);
    Ok((lines, cut || (more && short)))
}

/// Bounds each file in `dir` to `max` bytes, and with its older part to twice that. Returns what could not be done.
pub fn bound(dir: &Path, max: u64) -> Vec<(PathBuf, io::Error)> {
    let mut failed = Vec::new();
    for path in log_files(dir, ".log") {
        if let Err(error) = bound_one(&path, max) {
            failed.push((path, error));
        }
    }
    failed
}

/// Removes the files of every deploy that is not in `keep`. The caller must have seen a whole list of containers.
pub fn remove_others(dir: &Path, keep: &BTreeSet<String>) {
    for path in log_files(dir, ".log").into_iter().chain(log_files(dir, ".log.1")) {
        let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        let deploy = name.strip_suffix(".1").unwrap_or(name).strip_suffix(".log").unwrap_or(name);
        if !keep.contains(deploy) {
            // It will be tried again.
            let _ = fs::remove_file(&path);
        }
    }
}

fn end_of(path: &Path) -> io::Result<(Vec<u8>, bool)> {
    let mut file = File::open(path)?;
    let size = file.metadata()?.len();
    let from = size.saturating_sub(2 * LOG_MAX as u64);
    file.seek(SeekFrom::Start(from))?;
    let mut bytes = Vec::new();
    file.take(2 * LOG_MAX as u64).read_to_end(&mut bytes)?;
    Ok((bytes, from > 0))
}

fn bound_one(path: &Path, max: u64) -> io::Result<()> {
    let size = fs::symlink_metadata(path)?.len();
    if size <= max {
        return Ok(());
    }
    let mut from = File::open(path)?;
    from.seek(SeekFrom::Start(size.saturating_sub(max)))?;
    let mut to = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(aside(path))?;
    let copied = io::copy(&mut from.take(max), &mut to);
    // Truncated even where the copy failed (a full disk): else nothing would ever free it.
    OpenOptions::new().write(true).open(path)?.set_len(0)?;
    copied.map(|_| ())
}

fn aside(path: &Path) -> PathBuf {
    path.with_extension("log.1")
}

/// The files that are named after a deploy: whatever else is in the folder belongs to somebody else.
fn log_files(dir: &Path, ending: &str) -> Vec<PathBuf> {
    let Ok(entries) = fs::read_dir(dir) else { return Vec::new() };
    let deploy = |name: &str| name.strip_suffix(ending).is_some_and(is_deploy_id);
    let ours = |path: &PathBuf| path.file_name().and_then(|n| n.to_str()).is_some_and(deploy);
    entries.flatten().map(|entry| entry.path()).filter(ours).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    fn folder(name: &str) -> PathBuf {
        let dir = std::env::temp_dir().join(format!("vectorlay-logs-{name}-{}", std::process::id()));
        fs::create_dir_all(&dir).unwrap();
        dir
    }

    #[test]
    fn grows_no_further_and_loses_no_line_that_is_kept() {
        let dir = folder("bound");
        let (first, second) = ("00000000000000d1", "00000000000000d2");
        let path = dir.join(format!("{first}.log"));
        let mut shim = OpenOptions::new().append(true).create(true).open(&path).unwrap();
        for i in 0..100 {
            writeln!(shim, "line {i:04}").unwrap();
        }
        assert!(bound(&dir, 505).is_empty());
        assert_eq!((fs::metadata(&path).unwrap().len(), fs::metadata(aside(&path)).unwrap().len()), (0, 505));
        // The shim goes on at the file's new beginning.
        writeln!(shim, "line 0100").unwrap();
        assert_eq!(tail(&dir, first, 2).unwrap(), (vec!["line 0099".into(), "line 0100".into()], false));
        assert!(bound(&dir, 505).is_empty());
        assert_eq!(fs::read(&path).unwrap(), b"line 0100\n");
        fs::write(dir.join(format!("{second}.log")), "x").unwrap();
        // Somebody else's, whatever their size.
        for foreign in ["syslog.log", "syslog.log.1", "00000000000000D3.log", "d4.log"] {
            fs::write(dir.join(foreign), "x".repeat(1000)).unwrap();
        }
        assert!(bound(&dir, 505).is_empty());
        remove_others(&dir, &BTreeSet::from([second.to_owned()]));
        let mut left: Vec<(String, u64)> = fs::read_dir(&dir)
            .unwrap()
            .flatten()
            .map(|file| (file.file_name().into_string().unwrap(), file.metadata().unwrap().len()))
            .collect();
        left.sort();
        let own = (format!("{second}.log"), 1);
        let foreign = ["00000000000000D3.log", "d4.log", "syslog.log", "syslog.log.1"];
        let mut expected: Vec<(String, u64)> = foreign.map(|name| (name.to_owned(), 1000)).to_vec();
        expected.push(own);
        expected.sort();
        assert_eq!(left, expected);
        fs::remove_dir_all(dir).unwrap();
    }

    #[test]
    fn a_long_file_gives_its_end() {
        let dir = folder("tail");
        fs::write(dir.join("d.log"), "0123456789abcde\n".repeat(100_000)).unwrap();
        let (lines, cut) = tail(&dir, "d", 1_000_000).unwrap();
        assert_eq!((lines.len(), cut), (LOG_MAX / 16, true));
        let (lines, cut) = tail(&dir, "d", 3).unwrap();
        assert_eq!((lines, cut), (vec!["0123456789abcde".to_owned(); 3], false));
        assert!(tail(&dir, "../d", 3).is_err());
        assert!(tail(&dir, "none", 3).is_err());
        fs::remove_dir_all(dir).unwrap();
    }
}
