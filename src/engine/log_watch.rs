//! Holds the containers' log files to their size, also while they grow fast: inotify(7) tells which one is written to, and
//! it is looked at again before the fastest writer can use up its room. A thread of its own does it, for a disk may hang.

use std::collections::BTreeSet;
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::thread::Builder;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags};
use rustix::fs::inotify::{self, CreateFlags, Reader, WatchFlags};

use super::logs::{self, OpenLogs};
use crate::trust;
use crate::wait::poll_until;

/// A log has two parts, each of which is held to this part of its size: the rest is for what is written before the next
/// look, and while a log is cut.
const PARTS: u64 = 4;
/// How often every file is looked at, whether or not it is known to have been written to.
const PASS_EVERY: Duration = Duration::from_secs(5);
/// The thread's nice value, where it may be set.
const URGENT: i32 = -10;
/// Events that are read at once, in bytes.
const EVENTS: usize = 16 * 1024;

/// What the files are held to.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Bytes of one container's log, its older part included; for a moment it may be twice that.
    pub size: u64,
    /// Free bytes of the file system below which 64 KiB of each part are kept; 0: never.
    pub min_free: u64,
}

impl Limits {
    /// `min_free` is kept free on the data path: logs on another file system take nothing of it.
    pub fn new(size: u64, min_free: u64, dir: &Path, data_path: &Path) -> Self {
        let device = |path: &Path| path.metadata().map(|found| found.dev()).ok();
        let same = device(dir).is_some_and(|dir| device(data_path) == Some(dir));
        Self { size, min_free: if same { min_free } else { 0 } }
    }

    /// The most bytes of one part now.
    fn part(&self, folder: &OwnedFd) -> u64 {
        let is_low = self.min_free > 0
            && rustix::fs::fstatvfs(folder)
                .is_ok_and(|found| found.f_bavail.saturating_mul(found.f_frsize) < self.min_free);
        let part = self.size / PARTS;
        if is_low { logs::SHORT_PART.min(part) } else { part }
    }

    /// The longest pause between two checks: what 2 GB/s write meanwhile is a quarter of the size.
    fn pause(&self) -> Duration {
        Duration::from_nanos(self.size / 8).min(Duration::from_millis(50))
    }
}

/// Starts the thread, which ends with the process.
///
/// # Errors
/// The kernel's, when it gives no thread.
pub fn start(dir: PathBuf, limits: Limits) -> io::Result<()> {
    let inotify = inotify::init(CreateFlags::NONBLOCK | CreateFlags::CLOEXEC);
    let inotify = inotify.inspect_err(|errno| {
        log::warn!(
            "logs can outgrow their size for some seconds: {errno}; raise fs.inotify.max_user_instances"
        );
    });
    let inotify = inotify.ok();
    Builder::new().name("logs".into()).spawn(move || {
        // Of this thread alone (setpriority(2)). On a busy host it would otherwise run when the log is too long already.
        let _ = rustix::process::setpriority_process(None, URGENT);
        let mut held = OpenLogs::new();
        loop {
            let due = Instant::now() + PASS_EVERY;
            match pass(&dir, inotify.as_ref(), &limits, &mut held) {
                Ok(folder) => {
                    while Instant::now() < due {
                        turn(&folder, inotify.as_ref(), &limits, &mut held, due);
                    }
                }
                Err(error) => {
                    log::warn!("cannot bound the logs in {}: {error}; make room on its disk", dir.display());
                    let _ = poll_until(&mut [], Some(due));
                }
            }
        }
    })?;
    Ok(())
}

/// Bounds every file, and watches the folder from now on.
fn pass(dir: &Path, inotify: Option<&OwnedFd>, limits: &Limits, held: &mut OpenLogs) -> io::Result<OwnedFd> {
    let folder = trust::folder(dir)?;
    if let Some(inotify) = inotify {
        // The folder may be another one by now; of the same one the kernel keeps one watch.
        inotify::add_watch(inotify, dir, WatchFlags::MODIFY | WatchFlags::ONLYDIR | WatchFlags::DONT_FOLLOW)?;
    }
    logs::bound(&folder, limits.part(&folder), held)?;
    Ok(folder)
}

/// Waits for a file to be written to, up to `due`, and bounds those that were.
fn turn(folder: &OwnedFd, inotify: Option<&OwnedFd>, limits: &Limits, held: &mut OpenLogs, due: Instant) {
    let Some(inotify) = inotify else {
        let _ = poll_until(&mut [], Some(due));
        return;
    };
    let mut fds = [PollFd::new(inotify, PollFlags::IN)];
    if poll_until(&mut fds, Some(due)).is_err() || fds[0].revents().is_empty() {
        return;
    }
    let mut buffer = [MaybeUninit::uninit(); EVENTS];
    let mut events = Reader::new(inotify, &mut buffer);
    let mut written = BTreeSet::new();
    while let Ok(event) = events.next() {
        written.extend(event.file_name().and_then(|name| name.to_str().ok()).map(str::to_owned));
    }
    let part = limits.part(folder);
    // What cannot be bounded is told by the next pass.
    let mut was_cut = false;
    for name in &written {
        was_cut |= logs::bound_one(folder, name, part, held).unwrap_or(false);
    }
    if !was_cut {
        let _ = poll_until(&mut [], Some(Instant::now() + limits.pause()));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::logs::SHORT_PART;
    use std::fs;
    use std::io::Write as _;

    const DEPLOY: &str = "00000000000000d1";

    #[test]
    fn what_is_written_to_is_bounded_at_once() {
        let dir = std::env::temp_dir().join(format!("vectorlay-log-watch-{}", std::process::id()));
        fs::create_dir_all(&dir).unwrap();
        let inotify = inotify::init(CreateFlags::NONBLOCK | CreateFlags::CLOEXEC).unwrap();
        let mut held = OpenLogs::new();
        let limits = Limits { size: 1 << 20, min_free: 0 };
        let folder = pass(&dir, Some(&inotify), &limits, &mut held).unwrap();
        let path = dir.join(format!("{DEPLOY}.log"));
        let size = |path: &Path| path.metadata().map_or(0, |found| found.len());
        let mut shim = fs::OpenOptions::new().append(true).create(true).open(&path).unwrap();
        for _ in 0..10 {
            shim.write_all(&[b'y'; 280_000]).unwrap();
            turn(&folder, Some(&inotify), &limits, &mut held, Instant::now() + Duration::from_secs(60));
            assert_eq!((size(&path), size(&path.with_extension("log.1"))), (0, limits.size / PARTS));
            shim.write_all(&[b'y'; 1_000_000]).unwrap();
            turn(&folder, Some(&inotify), &limits, &mut held, Instant::now() + Duration::from_secs(60));
            assert_eq!((size(&path), size(&path.with_extension("log.1"))), (0, SHORT_PART), "it grows fast");
        }
        shim.write_all(b"y\n").unwrap();
        turn(&folder, Some(&inotify), &limits, &mut held, Instant::now() + Duration::from_secs(60));
        assert_eq!(size(&path), 2);
        // A disk that is nearly full.
        shim.write_all(&[b'z'; 100_000]).unwrap();
        pass(&dir, None, &Limits { min_free: u64::MAX, ..limits }, &mut held).unwrap();
        assert_eq!((size(&path), size(&path.with_extension("log.1"))), (0, SHORT_PART));
        fs::write(path.with_extension("log.1"), [b'z'; 100_000]).unwrap();
        pass(&dir, None, &limits, &mut held).unwrap();
        assert_eq!(size(&path.with_extension("log.1")), 100_000);
        pass(&dir, None, &Limits { min_free: u64::MAX, ..limits }, &mut held).unwrap();
        assert_eq!(size(&path.with_extension("log.1")), 0, "the older part goes first");
        fs::remove_dir_all(dir).unwrap();
    }

    #[test]
    fn logs_on_another_file_system_take_nothing_of_the_data_path() {
        let kept = |data_path: &str| Limits::new(1, 7, Path::new("/proc"), Path::new(data_path)).min_free;
        assert_eq!((kept("/proc"), kept("/dev"), kept("/no/such")), (7, 0, 0));
    }
}
