//! The state directory: locked, loaded at the start, and changed only so that a power cut at any moment leaves each file
//! either old or new, and whole.
//!
//! ```text
//! create node.json.new → write → fsync → rename to node.json → fsync the directory
//! ```
//!
//! All work goes through the directory's descriptor, so that a later mount over its path does not matter.

use std::fs::{DirBuilder, File};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, FlockOperation, Mode, OFlags};
use rustix::io::Errno;

use super::identity;
use crate::core::identity::Identity;
use crate::core::persistence::{RecordFile, STATE_MAX, STATE_VERSION};
use crate::trust;
use crate::types::Secret;

/// Bytes of `node.json` at most.
const NODE_MAX: usize = 64 * 1024;
/// Damaged copies kept of one file.
const DAMAGED_MAX: u32 = 100;

/// The state directory, locked for as long as this value lives.
#[derive(Debug)]
pub struct Directory {
    handle: File,
    path: PathBuf,
    /// Damaged files that could not be renamed: they must not be overwritten.
    unrenamed: Vec<RecordFile>,
    /// The content of [`MODE_FILE`], if it was written by this process.
    saved_mode: Option<String>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Found<T> {
    Absent,
    Good(T),
    /// The content is invalid. The message says why, and where the file is kept now.
    Damaged(String),
    /// A newer version of the agent wrote it. The message says where the file is kept now, untouched.
    Newer(String),
}

/// What the store looks at in `state.json`; the rest is the core's.
#[derive(serde::Deserialize)]
struct Head {
    version: Option<u64>,
    mode: Option<String>,
}

/// Holds the last saved mode, so that a node in maintenance stays there if `state.json` is damaged.
const MODE_FILE: &str = "mode";
const MODE_TEMPORARY: &str = "mode.new";
const MODE_MAX: u64 = 64;

impl Directory {
    /// Makes the directory if it is missing (mode 0700), takes its lock, and removes files that a power cut left half
    /// written. A full or read-only disk is not an error.
    ///
    /// # Errors
    /// When it cannot be made or opened, belongs to another user, or another process holds the lock.
    pub fn open(path: &Path) -> Result<Self, String> {
        let shown = path.display();
        let failed = |error: io::Error| {
            format!("cannot open the state directory {shown}: {error}; {}, or set state_dir", advice(&error))
        };
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
            return Err(format!(
                "the state directory {shown} belongs to user {owner}, but the agent runs as user {we}; chown it, or set state_dir"
            ));
        }
        match rustix::fs::flock(&handle, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => {}
            Err(Errno::WOULDBLOCK) => {
                let holder = lock_holder(metadata.dev(), metadata.ino());
                return Err(match holder {
                    Some(pid) => {
                        format!(
                            "the state directory {shown} is locked by another agent: stop process {pid}, or set another state_dir"
                        )
                    }
                    None => format!(
                        "the state directory {shown} is locked by another agent: stop it (`fuser {shown}` may name it), or set another state_dir"
                    ),
                });
            }
            Err(errno) => {
                return Err(format!(
                    "cannot lock the state directory {shown}: {errno}; set state_dir to a directory on a local disk"
                ));
            }
        }
        if metadata.permissions().mode() & 0o077 != 0
            && let Err(errno) = rustix::fs::fchmod(&handle, Mode::RWXU)
        {
            log::warn!("other users can read {shown}, and its mode cannot be changed: {errno}");
        }
        let directory = Self { handle, path: path.to_owned(), unrenamed: Vec::new(), saved_mode: None };
        for file in [RecordFile::Node, RecordFile::State, RecordFile::Table] {
            directory.remove(temporary(file));
        }
        Ok(directory)
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Reads `node.json`.
    ///
    /// # Errors
    /// When it exists but cannot be read, which must never lead to a new registration.
    pub fn load_identity(&mut self) -> Result<Found<Identity>, String> {
        self.load(RecordFile::Node, identity::read)
    }

    /// Reads `state.json` or `replicas.json`: one JSON value, of whatever shape.
    ///
    /// # Errors
    /// When it exists but cannot be read.
    pub fn load_json(&mut self, file: RecordFile) -> Result<Found<String>, String> {
        let found = self.load(file, |text| {
            serde_json::from_str::<serde::de::IgnoredAny>(text)
                .map(|_| text.to_owned())
                .map_err(|error| format!("not JSON: {error}"))
        })?;
        let version = match &found {
            Found::Good(text) => serde_json::from_str::<Head>(text).ok().and_then(|head| head.version),
            Found::Absent | Found::Damaged(_) | Found::Newer(_) => None,
        };
        let Some(version) = version.filter(|version| *version > STATE_VERSION) else { return Ok(found) };
        let kept = self.rename_aside(file, &format!("version-{version}"));
        let path = self.path.join(file.name());
        Ok(Found::Newer(format!(
            "{} is of version {version}, newer than this agent's {STATE_VERSION}; {kept}",
            path.display()
        )))
    }

    /// The mode that was last saved, whatever has become of `state.json`.
    pub fn last_mode(&self) -> Option<String> {
        let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let file = File::from(rustix::fs::openat(&self.handle, MODE_FILE, flags, Mode::empty()).ok()?);
        let mut text = String::new();
        file.take(MODE_MAX).read_to_string(&mut text).ok()?;
        Some(text.trim().to_owned())
    }

    /// Writes the mode of the state that was just saved. A failure here does not fail the save.
    fn save_mode(&mut self, state: &str) {
        let Some(mode) = serde_json::from_str::<Head>(state).ok().and_then(|head| head.mode) else { return };
        if self.saved_mode.as_ref() == Some(&mode) {
            return;
        }
        let write = || -> io::Result<()> {
            let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::TRUNC | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            let permissions = Mode::RUSR | Mode::WUSR;
            let mut file = File::from(rustix::fs::openat(&self.handle, MODE_TEMPORARY, flags, permissions)?);
            file.write_all(mode.as_bytes())?;
            file.sync_all()?;
            Ok(rustix::fs::renameat(&self.handle, MODE_TEMPORARY, &self.handle, MODE_FILE)?)
        };
        match write() {
            Ok(()) => self.saved_mode = Some(mode),
            Err(error) => log::warn!("cannot write {}: {error}", self.path.join(MODE_FILE).display()),
        }
    }

    /// Renames a file with invalid content, so that the next save does not destroy it. Returns where it is now.
    pub fn quarantine(&mut self, file: RecordFile) -> String {
        self.rename_aside(file, "damaged")
    }

    fn rename_aside(&mut self, file: RecordFile, suffix: &str) -> String {
        match self.rename_to_free(file, suffix) {
            Ok(kept) => format!("kept as {}", self.path.join(kept).display()),
            Err(error) => {
                if !self.unrenamed.contains(&file) {
                    self.unrenamed.push(file);
                }
                format!("it stays in place and is not overwritten: {error}")
            }
        }
    }

    /// Replaces `file` with `content`.
    ///
    /// # Errors
    /// When a step fails; the old content is then still there, whole.
    pub(super) fn save(&mut self, file: RecordFile, content: &Secret) -> Result<(), String> {
        if self.unrenamed.contains(&file) {
            self.rename_to_free(file, "damaged")?;
            self.unrenamed.retain(|other| *other != file);
        }
        let most = most_bytes(file);
        if content.expose().len() > most {
            let path = self.path.join(file.name());
            return Err(format!("{} would exceed {most} bytes; report this as a bug", path.display()));
        }
        let mut open = None;
        for step in SAVE {
            if let Err(source) = self.perform(*step, file, content, &mut open) {
                self.remove(temporary(file));
                let what = match step {
                    Step::Create | Step::Write => "write",
                    Step::SyncFile | Step::SyncDirectory => "sync",
                    Step::Rename => "replace",
                };
                let path = self.path.join(file.name());
                return Err(format!("cannot {what} {}: {source}; {}", path.display(), advice(&source)));
            }
        }
        if file == RecordFile::State {
            self.save_mode(content.expose());
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
                // Some file systems cannot sync a directory (fsync(2)).
                Ok(()) | Err(Errno::INVAL) => Ok(()),
                Err(errno) => Err(errno.into()),
            },
        }
    }

    fn load<T>(
        &mut self,
        file: RecordFile,
        read: impl FnOnce(&str) -> Result<T, String>,
    ) -> Result<Found<T>, String> {
        let most = most_bytes(file);
        let bytes = match self.read_bytes(file, most) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Found::Absent),
            Err(error) => {
                let path = self.path.join(file.name());
                return Err(format!(
                    "cannot read {}: {error}; {}, or move the file away",
                    path.display(),
                    advice(&error)
                ));
            }
        };
        let outcome = if bytes.len() > most {
            Err(format!("larger than {most} bytes"))
        } else {
            std::str::from_utf8(&bytes).map_err(|_| "not UTF-8".to_owned()).and_then(read)
        };
        match outcome {
            Ok(content) => Ok(Found::Good(content)),
            Err(why) => {
                let kept = self.quarantine(file);
                let path = self.path.join(file.name());
                Ok(Found::Damaged(format!("{} is damaged: {why}; {kept}", path.display())))
            }
        }
    }

    /// At most one byte more than `most`.
    fn read_bytes(&self, file: RecordFile, most: usize) -> io::Result<Vec<u8>> {
        // Non-blocking: a pipe in the file's place must not block.
        let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let opened = File::from(rustix::fs::openat(&self.handle, file.name(), flags, Mode::empty())?);
        let found = opened.metadata()?;
        if !found.is_file() {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "not a regular file"));
        }
        // In a folder of ours it can have come with its owner kept (cp -p, tar); that one knows, and may change, it.
        if !trust::is_ours(found.uid()) {
            let why = format!("it belongs to user {}, not to root", found.uid());
            return Err(io::Error::new(io::ErrorKind::PermissionDenied, why));
        }
        let mut bytes = Vec::new();
        opened.take(most as u64 + 1).read_to_end(&mut bytes)?;
        Ok(bytes)
    }

    /// Renames `file` to the first free `….<suffix>-<n>`. The lock keeps others from taking that name meanwhile.
    fn rename_to_free(&self, file: RecordFile, suffix: &str) -> Result<String, String> {
        let path = self.path.join(file.name());
        let failed = |error: io::Error| {
            format!("cannot rename {}: {error}; {}, or move it away", path.display(), advice(&error))
        };
        for n in 1..=DAMAGED_MAX {
            let name = format!("{}.{suffix}-{n}", file.name());
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
        Err(failed(io::Error::new(io::ErrorKind::AlreadyExists, "100 such copies exist already")))
    }

    /// Removes a file that nobody needs; if it stays, it does no harm.
    fn remove(&self, name: &str) {
        let _ = rustix::fs::unlinkat(&self.handle, name, AtFlags::empty());
    }
}

const fn most_bytes(file: RecordFile) -> usize {
    match file {
        RecordFile::Node => NODE_MAX,
        RecordFile::State | RecordFile::Table => STATE_MAX,
    }
}

/// One step of a save, in the order of [`SAVE`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Step {
    /// Make an empty temporary file.
    Create,
    Write,
    SyncFile,
    /// Move it to the file's place.
    Rename,
    SyncDirectory,
}

/// A save. The test `a_power_cut_leaves_old_or_new` replays it, interrupted at each place.
pub(super) const SAVE: &[Step] =
    &[Step::Create, Step::Write, Step::SyncFile, Step::Rename, Step::SyncDirectory];

/// The temporary file's name. It is always the same one: the lock makes us the only writer.
pub(super) const fn temporary(file: RecordFile) -> &'static str {
    match file {
        RecordFile::Node => "node.json.new",
        RecordFile::State => "state.json.new",
        RecordFile::Table => "replicas.json.new",
    }
}

/// The process that holds the lock on the file with this device and inode, if the kernel says.
pub(super) fn lock_holder(dev: u64, ino: u64) -> Option<u32> {
    // The kernel's list of locks is short; on a host with more, the holder stays unnamed.
    const MOST: u64 = 1024 * 1024;
    let mut text = String::new();
    File::open("/proc/locks").ok()?.take(MOST).read_to_string(&mut text).ok()?;
    holder_in(&text, dev, ino)
}

/// Reads /proc/locks (proc_locks(5)): `1: FLOCK  ADVISORY  WRITE 708 08:01:263120 0 EOF`; the device's numbers are
/// hexadecimal, the inode is decimal, and the process is 0 or less if it is in another PID namespace. The second word of a
/// waiter's line is `->`.
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

/// What to do about the error.
fn advice(error: &io::Error) -> &'static str {
    match error.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => "free some space there",
        io::ErrorKind::ReadOnlyFilesystem => "mount that file system writable",
        io::ErrorKind::PermissionDenied => "correct the permissions, or run the agent as root",
        io::ErrorKind::NotFound => "make the directory again and restart the agent",
        io::ErrorKind::NotADirectory | io::ErrorKind::IsADirectory | io::ErrorKind::InvalidInput => {
            "check what is in its place"
        }
        _ => "look for disk errors in the kernel's log",
    }
}

#[cfg(test)]
mod tests;
