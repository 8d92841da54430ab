//! The containers' log files that a shim writes (`file://`): their end, their bound, their removal.
//!
//! The shim has its file open for appending and never opens it again, so a file is bounded by copying it aside and
//! truncating it in place (`log_watch.rs` says when); what is written between the two is lost. A container has `<deploy>.log` and, once it grew
//! too long, `<deploy>.log.1`.
//!
//! The folder is looked at anew each time ([`trust::folder`]), and no link in it is followed.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::os::fd::OwnedFd;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use rustix::fs::{AtFlags, Dir, Mode, OFlags};

use super::cli::log_file;
use super::parse::{LOG_MAX, last_lines};
use crate::core::job::is_deploy_id;
use crate::trust;

/// What is kept of a part where more would do harm, in bytes: the last lines.
pub(super) const SHORT_PART: u64 = 64 * 1024;

/// The logs that were looked at, by name, open. ext4 writes a file to the disk when a process that truncated it
/// closes it (its mount option auto_da_alloc), and the close waits for that: so they stay open, as long as they exist.
pub(super) type OpenLogs = BTreeMap<String, File>;

/// The last `most` lines of a deploy's output, and whether some were left out for their length.
///
/// # Errors
/// The file's, when there is none or it cannot be read.
pub fn tail(dir: &Path, deploy: &str, most: u32) -> io::Result<(Vec<String>, bool)> {
    let folder = trust::folder(dir)?;
    let name = file_name(deploy)?;
    let (mut bytes, mut more) = end_of(&folder, &name)?;
    if !more {
        // The older part, if there is one.
        if let Ok((older, older_more)) = end_of(&folder, &aside(&name)) {
            bytes.splice(0..0, older);
            more = older_more;
        }
    }
    let text = String::from_utf8_lossy(&bytes);
    // Where the beginning is missing, the first line is not whole.
    let lines: Vec<&str> = text.lines().skip(usize::from(more)).collect();
    let (lines, cut) = last_lines(&lines, most);
    let short = (lines.len() as u64) < u64::from(most);
    Ok((lines, cut || (more && short)))
}

/// The log of a deploy, opened for reading.
///
/// # Errors
/// The file's, when there is none or it cannot be read.
pub fn open_log(dir: &Path, deploy: &str) -> io::Result<File> {
    open(&trust::folder(dir)?, &file_name(deploy)?, OFlags::RDONLY)
}

/// Bounds both parts of each log in `folder` to `part` bytes: an older one that is longer goes.
///
/// # Errors
/// Of the first file that cannot be bounded; the others are.
pub(super) fn bound(folder: &OwnedFd, part: u64, held: &mut OpenLogs) -> io::Result<()> {
    held.retain(|_, file| file.metadata().is_ok_and(|found| found.nlink() > 0));
    for older in log_files(folder, ".log.1") {
        if open(folder, &older, OFlags::RDONLY).and_then(|file| file.metadata()).is_ok_and(|m| m.len() > part)
        {
            rustix::fs::unlinkat(folder, &older, AtFlags::empty())?;
        }
    }
    let mut result = Ok(());
    for name in log_files(folder, ".log") {
        let bounded = bound_one(folder, &name, part, held).map(drop);
        result = result.and(bounded);
    }
    result
}

/// Removes the files of every deploy that is not in `keep`. The caller must have seen a whole list of containers.
pub fn remove_others(dir: &Path, keep: &BTreeSet<String>) {
    let Ok(folder) = trust::folder(dir) else { return };
    for name in log_files(&folder, ".log").into_iter().chain(log_files(&folder, ".log.1")) {
        let deploy = name.strip_suffix(".1").unwrap_or(&name).strip_suffix(".log").unwrap_or(&name);
        if !keep.contains(deploy) {
            // It will be tried again.
            let _ = rustix::fs::unlinkat(&folder, &name, AtFlags::empty());
        }
    }
}

fn open(folder: &OwnedFd, name: &str, flags: OFlags) -> io::Result<File> {
    // Non-blocking: a pipe in the file's place must not block.
    let flags = flags | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let file = File::from(rustix::fs::openat(folder, name, flags, Mode::RUSR | Mode::WUSR)?);
    if file.metadata()?.is_file() { Ok(file) } else { Err(io::ErrorKind::InvalidInput.into()) }
}

fn end_of(folder: &OwnedFd, name: &str) -> io::Result<(Vec<u8>, bool)> {
    let mut file = open(folder, name, OFlags::RDONLY)?;
    let size = file.metadata()?.len();
    let from = size.saturating_sub(2 * LOG_MAX as u64);
    file.seek(SeekFrom::Start(from))?;
    let mut bytes = Vec::new();
    file.take(2 * LOG_MAX as u64).read_to_end(&mut bytes)?;
    Ok((bytes, from > 0))
}

/// Cuts the log `name` if it has more than `part` bytes, whose last become its older part; whether it did. A file that is not
/// named after a deploy belongs to somebody else.
///
/// # Errors
/// The file's.
pub(super) fn bound_one(folder: &OwnedFd, name: &str, part: u64, held: &mut OpenLogs) -> io::Result<bool> {
    if !is_log(name, ".log") {
        return Ok(false);
    }
    if !held.contains_key(name) {
        held.insert(name.to_owned(), open(folder, name, OFlags::RDWR)?);
    }
    let Some(mut from) = held.get(name) else { return Ok(false) };
    let size = from.metadata()?.len();
    if size <= part {
        return Ok(false);
    }
    // What grew far beyond its bound since the last look would grow by as much again while all of that is copied, and
    // its lines last no longer than that anyhow.
    let kept = if size > part + part / 8 { part.min(SHORT_PART) } else { part };
    from.seek(SeekFrom::Start(size.saturating_sub(kept)))?;
    let mut to = open(folder, &aside(name), OFlags::WRONLY | OFlags::CREATE)?;
    let copied = io::copy(&mut from.take(kept), &mut to).and_then(|copied| to.set_len(copied));
    // Truncated even where the copy failed (a full disk): else nothing would ever free it.
    from.set_len(0)?;
    copied.map(|_| true)
}

fn file_name(deploy: &str) -> io::Result<String> {
    let path = log_file(Path::new(""), deploy).ok_or(io::ErrorKind::InvalidInput)?;
    Ok(path.to_string_lossy().into_owned())
}

fn aside(name: &str) -> String {
    format!("{name}.1")
}

/// The files that are named after a deploy: whatever else is in the folder belongs to somebody else.
fn log_files(folder: &OwnedFd, ending: &str) -> Vec<String> {
    let Ok(entries) = Dir::read_from(folder) else { return Vec::new() };
    let name = |entry: rustix::fs::DirEntry| entry.file_name().to_str().ok().map(str::to_owned);
    entries.flatten().filter_map(name).filter(|name| is_log(name, ending)).collect()
}

fn is_log(name: &str, ending: &str) -> bool {
    name.strip_suffix(ending).is_some_and(is_deploy_id)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::{self, OpenOptions};
    use std::io::Write;
    use std::path::PathBuf;

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
        let handle = trust::folder(&dir).unwrap();
        let mut held = OpenLogs::new();
        let mut shim = OpenOptions::new().append(true).create(true).open(&path).unwrap();
        for i in 0..100 {
            writeln!(shim, "line {i:04}").unwrap();
        }
        bound(&handle, 505, &mut held).unwrap();
        let older = path.with_extension("log.1");
        assert_eq!((fs::metadata(&path).unwrap().len(), fs::metadata(&older).unwrap().len()), (0, 505));
        // The shim goes on at the file's new beginning.
        writeln!(shim, "line 0100").unwrap();
        assert_eq!(tail(&dir, first, 2).unwrap(), (vec!["line 0099".into(), "line 0100".into()], false));
        bound(&handle, 505, &mut held).unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"line 0100\n");
        fs::write(dir.join(format!("{second}.log")), "x").unwrap();
        // Somebody else's, whatever their size.
        for foreign in ["syslog.log", "syslog.log.1", "00000000000000D3.log", "d4.log"] {
            fs::write(dir.join(foreign), "x".repeat(1000)).unwrap();
        }
        bound(&handle, 505, &mut held).unwrap();
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
    fn links_are_neither_read_nor_written_through() {
        let dir = folder("links");
        let (precious, deploy) = (dir.join("precious"), "00000000000000d1");
        let log = dir.join(format!("{deploy}.log"));
        let untouched = || assert_eq!(fs::metadata(&precious).unwrap().len(), 1000);
        fs::write(&precious, "x".repeat(1000)).unwrap();
        std::os::unix::fs::symlink(&precious, &log).unwrap();
        let handle = trust::folder(&dir).unwrap();
        assert!(bound(&handle, 10, &mut OpenLogs::new()).is_err());
        assert!(tail(&dir, deploy, 1).is_err() && open_log(&dir, deploy).is_err());
        untouched();
        // In the place of the older part.
        fs::remove_file(&log).unwrap();
        fs::write(&log, "y".repeat(1000)).unwrap();
        std::os::unix::fs::symlink(&precious, log.with_extension("log.1")).unwrap();
        assert!(bound(&handle, 10, &mut OpenLogs::new()).is_err());
        untouched();
        // In the folder's.
        let link = dir.join("link");
        std::os::unix::fs::symlink(&dir, &link).unwrap();
        remove_others(&link, &BTreeSet::new());
        assert!(tail(&link, deploy, 1).is_err() && log.exists());
        fs::remove_dir_all(dir).unwrap();
    }

    #[test]
    fn a_long_file_gives_its_end() {
        let dir = folder("tail");
        fs::write(dir.join("00000000000000d1.log"), "0123456789abcde\n".repeat(100_000)).unwrap();
        let (lines, cut) = tail(&dir, "00000000000000d1", 1_000_000).unwrap();
        assert_eq!((lines.len(), cut), (LOG_MAX / 16, true));
        let (lines, cut) = tail(&dir, "00000000000000d1", 3).unwrap();
        assert_eq!((lines, cut), (vec!["0123456789abcde".to_owned(); 3], false));
        assert!(tail(&dir, "../d", 3).is_err());
        assert!(tail(&dir, "00000000000000d2", 3).is_err());
        fs::remove_dir_all(dir).unwrap();
    }
}
