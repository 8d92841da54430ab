//! The containers' log files that a shim writes (`file://`): their end, their bound, their removal.
//!
//! The shim has its file open for appending and never opens it again, so a file is bounded by copying it aside and
//! truncating it in place; what is written between the two is lost. A container has `<deploy>.log` and, once it grew
//! too long, `<deploy>.log.1`.
//!
//! The folder is looked at anew each time ([`trust::folder`]), and no link in it is followed.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, Dir, Mode, OFlags};

use super::cli::log_file;
use super::parse::{LOG_MAX, last_lines};
use crate::core::job::is_deploy_id;
use crate::trust;

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

/// Bounds each file in `dir` to `max` bytes, and with its older part to twice that. Returns what could not be done.
pub fn bound(dir: &Path, max: u64) -> Vec<(PathBuf, io::Error)> {
    let folder = match trust::folder(dir) {
        Ok(folder) => folder,
        Err(error) => return vec![(dir.to_owned(), error)],
    };
    let bound = |name: String| bound_one(&folder, &name, max).err().map(|error| (dir.join(name), error));
    log_files(&folder, ".log").into_iter().filter_map(bound).collect()
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

fn bound_one(folder: &OwnedFd, name: &str, max: u64) -> io::Result<()> {
    let mut from = open(folder, name, OFlags::RDWR)?;
    let size = from.metadata()?.len();
    if size <= max {
        return Ok(());
    }
    from.seek(SeekFrom::Start(size.saturating_sub(max)))?;
    let mut to = open(folder, &aside(name), OFlags::WRONLY | OFlags::CREATE | OFlags::TRUNC)?;
    let copied = io::copy(&mut (&from).take(max), &mut to);
    // Truncated even where the copy failed (a full disk): else nothing would ever free it.
    from.set_len(0)?;
    copied.map(|_| ())
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
    let ours = |name: &String| name.strip_suffix(ending).is_some_and(is_deploy_id);
    entries.flatten().filter_map(name).filter(ours).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::{self, OpenOptions};
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
        let older = path.with_extension("log.1");
        assert_eq!((fs::metadata(&path).unwrap().len(), fs::metadata(&older).unwrap().len()), (0, 505));
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
    fn links_are_neither_read_nor_written_through() {
        let dir = folder("links");
        let (precious, deploy) = (dir.join("precious"), "00000000000000d1");
        let log = dir.join(format!("{deploy}.log"));
        let untouched = || assert_eq!(fs::metadata(&precious).unwrap().len(), 1000);
        fs::write(&precious, "x".repeat(1000)).unwrap();
        std::os::unix::fs::symlink(&precious, &log).unwrap();
        assert_eq!(bound(&dir, 10).len(), 1);
        assert!(tail(&dir, deploy, 1).is_err() && open_log(&dir, deploy).is_err());
        untouched();
        // In the place of the older part.
        fs::remove_file(&log).unwrap();
        fs::write(&log, "y".repeat(1000)).unwrap();
        std::os::unix::fs::symlink(&precious, log.with_extension("log.1")).unwrap();
        assert_eq!(bound(&dir, 10).len(), 1);
        untouched();
        // In the folder's.
        let link = dir.join("link");
        std::os::unix::fs::symlink(&dir, &link).unwrap();
        assert_eq!(bound(&link, 10).len(), 1);
        remove_others(&link, &BTreeSet::new());
        assert!(tail(&link, deploy, 1).is_err() && log.exists());
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
