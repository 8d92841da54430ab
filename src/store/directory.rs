//! The state directory: held by a lock, loaded at the start, and changed only so that a power cut at any moment
//! leaves each file as it was or as it was meant to be.
//!
//! ```text
//! create node.json.new → write → fsync → rename to node.json → fsync the directory
//! ```
//!
//! All work goes through the directory's descriptor: what is mounted over its path later does not mislead it.

use std::fmt;
use std::fs::{DirBuilder, File};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, FlockOperation, Mode, OFlags};
use rustix::io::Errno;

use super::identity;
use crate::core::identity::Identity;
use crate::core::persistence::{RecordFile, STATE_MAX};
use crate::types::Secret;

/// The most bytes of `node.json`.
const NODE_MAX: usize = 64 * 1024;
/// How many damaged copies of one file are kept.
const DAMAGED_MAX: u32 = 100;

/// The state directory, locked for as long as this value lives.
#[derive(Debug)]
pub struct Directory {
    handle: File,
    path: PathBuf,
    /// Damaged files that still stand in their own place, because they could not be renamed.
    in_the_way: Vec<RecordFile>,
}

/// What was found in a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Found<T> {
    /// There is none.
    Absent,
    /// Its content.
    Good(T),
    /// Its content makes no sense; it is kept aside. Says what is wrong and where it is now.
    Damaged(String),
}

impl Directory {
    /// Makes the directory if it is missing (mode 0700), takes its lock, and removes what a power cut left half
    /// written. Only the first two can fail: a full or read-only disk keeps nobody from starting.
    ///
    /// # Errors
    /// When it cannot be made or opened, belongs to someone else, or another process has the lock.
    pub fn open(path: &Path) -> Result<Self, Error> {
        let failed = |source| Error::Open { path: path.to_owned(), source };
        if let Some(parent) = path.parent() {
            DirBuilder::new().recursive(true).create(parent).map_err(failed)?;
        }
        match DirBuilder::new().mode(0o700).create(path) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(failed(error)),
            Ok(()) | Err(_) => {}
        }
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let handle =
            File::from(rustix::fs::open(path, flags, Mode::empty()).map_err(|errno| failed(errno.into()))?);
        let metadata = handle.metadata().map_err(failed)?;
        let (owner, we) = (metadata.uid(), rustix::process::geteuid().as_raw());
        if owner != we {
            return Err(Error::Owner { path: path.to_owned(), owner, we });
        }
        match rustix::fs::flock(&handle, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => {}
            Err(Errno::WOULDBLOCK) => {
                let holder = holder(metadata.dev(), metadata.ino());
                return Err(Error::Locked { path: path.to_owned(), holder });
            }
            Err(errno) => return Err(Error::Lock { path: path.to_owned(), source: errno.into() }),
        }
        if metadata.permissions().mode() & 0o077 != 0
            && let Err(errno) = rustix::fs::fchmod(&handle, Mode::RWXU)
        {
            log::warn!("others may look into {}, and that cannot be changed: {errno}", path.display());
        }
        let directory = Self { handle, path: path.to_owned(), in_the_way: Vec::new() };
        for file in [RecordFile::Node, RecordFile::State] {
            directory.remove(temporary(file));
        }
        Ok(directory)
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Reads `node.json`.
    ///
    /// # Errors
    /// When it is there but cannot be read. That must never lead to a new registration.
    pub fn load_identity(&mut self) -> Result<Found<Identity>, Error> {
        self.load(RecordFile::Node, identity::read)
    }

    /// Reads `state.json`: one JSON value, of whatever shape.
    ///
    /// # Errors
    /// When it is there but cannot be read.
    pub fn load_state(&mut self) -> Result<Found<String>, Error> {
        self.load(RecordFile::State, |text| {
            serde_json::from_str::<serde::de::IgnoredAny>(text)
                .map(|_| text.to_owned())
                .map_err(|error| format!("it is no JSON: {error}"))
        })
    }

    /// Keeps a file aside whose content turned out to make no sense, so that the next save does not destroy it.
    /// Says where it is now.
    pub fn set_aside(&mut self, file: RecordFile) -> String {
        match self.keep_aside(file) {
            Ok(kept) => format!("it is kept as {}", self.path.join(kept).display()),
            Err(error) => {
                if !self.in_the_way.contains(&file) {
                    self.in_the_way.push(file);
                }
                format!("it stays where it is, and nothing is saved over it: {error}")
            }
        }
    }

    /// Replaces `file` with `content`.
    ///
    /// # Errors
    /// When a step fails; what was there before is still there, whole.
    pub(super) fn save(&mut self, file: RecordFile, content: &Secret) -> Result<(), Error> {
        if self.in_the_way.contains(&file) {
            self.keep_aside(file)?;
            self.in_the_way.retain(|other| *other != file);
        }
        let most = most_bytes(file);
        if content.expose().len() > most {
            return Err(Error::TooLarge { path: self.path.join(file.name()), most });
        }
        let mut open = None;
        for step in SAVE {
            if let Err(source) = self.perform(*step, file, content, &mut open) {
                self.remove(temporary(file));
                return Err(Error::Save { path: self.path.join(file.name()), step: *step, source });
            }
        }
        Ok(())
    }

    fn perform(
        &self,
        step: Step,
        file: RecordFile,
        content: &Secret,
        open: &mut Option<File>,
    ) -> io::Result<()> {
        let opened = |open: &mut Option<File>| open.take().expect("a step after Create");
        match step {
            Step::Create => {
                let flags =
                    OFlags::WRONLY | OFlags::CREATE | OFlags::TRUNC | OFlags::NOFOLLOW | OFlags::CLOEXEC;
                let mode = Mode::RUSR | Mode::WUSR;
                *open = Some(rustix::fs::openat(&self.handle, temporary(file), flags, mode)?.into());
                Ok(())
            }
            Step::Write => {
                let mut temporary = opened(open);
                temporary.write_all(content.expose().as_bytes())?;
                *open = Some(temporary);
                Ok(())
            }
            Step::SyncFile => opened(open).sync_all(),
            Step::Rename => {
                Ok(rustix::fs::renameat(&self.handle, temporary(file), &self.handle, file.name())?)
            }
            Step::SyncDirectory => match rustix::fs::fsync(&self.handle) {
                // Some file systems have nothing to sync for a directory and say so (fsync(2)).
                Ok(()) | Err(Errno::INVAL) => Ok(()),
                Err(errno) => Err(errno.into()),
            },
        }
    }

    fn load<T>(
        &mut self,
        file: RecordFile,
        read: impl FnOnce(&str) -> Result<T, String>,
    ) -> Result<Found<T>, Error> {
        let most = most_bytes(file);
        let bytes = match self.read_bytes(file, most) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Found::Absent),
            Err(source) => return Err(Error::Unreadable { path: self.path.join(file.name()), source }),
        };
        let outcome = if bytes.len() > most {
            Err(format!("it has more than {most} bytes"))
        } else {
            std::str::from_utf8(&bytes).map_err(|_| "it is no UTF-8".to_owned()).and_then(read)
        };
        match outcome {
            Ok(content) => Ok(Found::Good(content)),
            Err(why) => {
                let kept = self.set_aside(file);
                let path = self.path.join(file.name());
                Ok(Found::Damaged(format!("{} is damaged: {why}; {kept}", path.display())))
            }
        }
    }

    /// At most one byte more than `most`.
    fn read_bytes(&self, file: RecordFile, most: usize) -> io::Result<Vec<u8>> {
        // Not blocking: a pipe in the file's place must not keep us waiting.
        let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let opened = File::from(rustix::fs::openat(&self.handle, file.name(), flags, Mode::empty())?);
        if !opened.metadata()?.is_file() {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "it is not a regular file"));
        }
        let mut bytes = Vec::new();
        opened.take(most as u64 + 1).read_to_end(&mut bytes)?;
        Ok(bytes)
    }

    /// Renames `file` to the first free `….damaged-<n>`. The lock keeps others from taking that name meanwhile.
    fn keep_aside(&self, file: RecordFile) -> Result<String, Error> {
        let failed = |source| Error::KeepAside { path: self.path.join(file.name()), source };
        for n in 1..=DAMAGED_MAX {
            let name = format!("{}.damaged-{n}", file.name());
            match rustix::fs::statat(&self.handle, &name, AtFlags::SYMLINK_NOFOLLOW) {
                Ok(_) => {}
                Err(Errno::NOENT) => {
                    rustix::fs::renameat(&self.handle, file.name(), &self.handle, &name)
                        .map_err(|errno| failed(errno.into()))?;
                    return Ok(name);
                }
                Err(errno) => return Err(failed(errno.into())),
            }
        }
        Err(failed(io::Error::new(io::ErrorKind::AlreadyExists, "there are 100 damaged copies already")))
    }

    /// Removes a file that nobody needs; that it stays does no harm either.
    fn remove(&self, name: &str) {
        let _ = rustix::fs::unlinkat(&self.handle, name, AtFlags::empty());
    }
}

/// What a file holds at most, in bytes.
const fn most_bytes(file: RecordFile) -> usize {
    match file {
        RecordFile::Node => NODE_MAX,
        RecordFile::State => STATE_MAX,
    }
}

/// One step of a save.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// Make the temporary file, empty.
    Create,
    /// Write the whole content to it.
    Write,
    /// Wait until the content is on the disk.
    SyncFile,
    /// Put it in the file's place.
    Rename,
    /// Wait until that is on the disk.
    SyncDirectory,
}

/// A save. The test `a_power_cut_leaves_old_or_new` replays it, cut off at each place.
pub(super) const SAVE: &[Step] =
    &[Step::Create, Step::Write, Step::SyncFile, Step::Rename, Step::SyncDirectory];

/// The temporary file's name. It is always the same one: the lock makes us the only writer.
pub(super) const fn temporary(file: RecordFile) -> &'static str {
    match file {
        RecordFile::Node => "node.json.new",
        RecordFile::State => "state.json.new",
    }
}

/// The process that has the lock on the file with this device and inode, if the kernel tells.
fn holder(dev: u64, ino: u64) -> Option<u32> {
    // It is made by the kernel and short; a machine with more locks than fit has its holder unnamed.
    const MOST: u64 = 1024 * 1024;
    let mut text = String::new();
    File::open("/proc/locks").ok()?.take(MOST).read_to_string(&mut text).ok()?;
    holder_in(&text, dev, ino)
}

/// Reads /proc/locks (proc_locks(5)): `1: FLOCK  ADVISORY  WRITE 708 08:01:263120 0 EOF`; the device's numbers are
/// hexadecimal, the inode's is decimal, and the process is 0 or less where it is in another PID namespace. Lines of
/// waiters have `->` for the second word.
fn holder_in(locks: &str, dev: u64, ino: u64) -> Option<u32> {
    let wanted = format!("{:02x}:{:02x}:{ino}", rustix::fs::major(dev), rustix::fs::minor(dev));
    locks.lines().find_map(|line| {
        let words: Vec<&str> = line.split_whitespace().collect();
        match words.as_slice() {
            [_, "FLOCK", _, _, pid, file, ..] if *file == wanted => pid.parse().ok().filter(|pid| *pid > 0),
            _ => None,
        }
    })
}

/// What went wrong with the state directory.
#[derive(Debug)]
pub enum Error {
    /// It cannot be made or opened.
    Open {
        /// The directory.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// It belongs to another user, who could change what is in it.
    Owner {
        /// The directory.
        path: PathBuf,
        /// Whose it is.
        owner: u32,
        /// Who this process is.
        we: u32,
    },
    /// Another process has its lock.
    Locked {
        /// The directory.
        path: PathBuf,
        /// That process, if it is known.
        holder: Option<u32>,
    },
    /// The lock cannot be taken, though nobody has it.
    Lock {
        /// The directory.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A file is there but cannot be read.
    Unreadable {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A damaged file cannot be renamed.
    KeepAside {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A file cannot be replaced.
    Save {
        /// The file.
        path: PathBuf,
        /// The step that failed.
        step: Step,
        /// Why.
        source: io::Error,
    },
    /// A file would be larger than what the next start reads.
    TooLarge {
        /// The file.
        path: PathBuf,
        /// The most bytes.
        most: usize,
    },
    /// The thread cannot be started.
    Thread {
        /// Why.
        source: io::Error,
    },
    /// The kernel gives no random bytes.
    Random {
        /// Why.
        source: io::Error,
    },
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Open { path, source } => {
                let path = path.display();
                write!(
                    f,
                    "opening the state directory {path}: {source}; {}, or set state_dir",
                    advice(source)
                )
            }
            Self::Owner { path, owner, we } => {
                let path = path.display();
                write!(
                    f,
                    "the state directory {path} belongs to user {owner}, not to user {we} who runs the "
                )?;
                write!(f, "agent; chown it, or set state_dir")
            }
            Self::Locked { path, holder } => {
                let path = path.display();
                write!(f, "another agent holds the lock on the state directory {path}")?;
                match holder {
                    Some(pid) => write!(f, ": stop process {pid}, or set another state_dir"),
                    None => write!(f, ": stop it (`fuser {path}` may name it), or set another state_dir"),
                }
            }
            Self::Lock { path, source } => {
                let path = path.display();
                write!(f, "taking the lock on the state directory {path}: {source}; ")?;
                write!(f, "set state_dir to a directory on a local disk")
            }
            Self::Unreadable { path, source } => {
                let path = path.display();
                write!(f, "reading {path}: {source}; {}, or move the file away", advice(source))
            }
            Self::KeepAside { path, source } => {
                let path = path.display();
                write!(
                    f,
                    "keeping the damaged {path} aside: {source}; {}, or move the file away",
                    advice(source)
                )
            }
            Self::Save { path, step, source } => {
                let what = match step {
                    Step::Create | Step::Write => "writing the new",
                    Step::SyncFile | Step::SyncDirectory => "syncing",
                    Step::Rename => "replacing",
                };
                write!(f, "{what} {}: {source}; {}", path.display(), advice(source))
            }
            Self::TooLarge { path, most } => {
                write!(f, "{} would have more than {most} bytes; report this as a bug", path.display())
            }
            Self::Thread { source } => {
                write!(f, "starting the thread store: {source}; raise the limit of tasks")
            }
            Self::Random { source } => write!(f, "reading /dev/urandom: {source}; mount /dev"),
        }
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::Open { source, .. }
            | Self::Lock { source, .. }
            | Self::Unreadable { source, .. }
            | Self::KeepAside { source, .. }
            | Self::Save { source, .. }
            | Self::Thread { source }
            | Self::Random { source } => Some(source),
            Self::Owner { .. } | Self::Locked { .. } | Self::TooLarge { .. } => None,
        }
    }
}

/// What to do about it.
fn advice(error: &io::Error) -> &'static str {
    match error.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => "free some space there",
        io::ErrorKind::ReadOnlyFilesystem => "mount that file system writable",
        io::ErrorKind::PermissionDenied => "correct the permissions, or run the agent as root",
        io::ErrorKind::NotFound => "make the directory again and restart the agent",
        io::ErrorKind::NotADirectory | io::ErrorKind::IsADirectory | io::ErrorKind::InvalidInput => {
            "see what is in its place"
        }
        _ => "look for errors of the disk in the kernel's log",
    }
}

#[cfg(test)]
mod tests;
