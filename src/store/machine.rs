//! One agent per machine: a lock beside the state directory's, because a second agent with another state directory would
//! register with the same fingerprint and take the first one's place at the control plane.
//!
//! The lock is a file in /run, where only root can make one, with mode 0600: another user can neither make it first nor
//! open it to lock it. Such a user's agent only looks whether root's is running. Agents with an instance name lock a file
//! of that name and are nodes of their own.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::FlockOperation;
use rustix::io::Errno;

use super::directory::lock_holder;

/// The folder of the lock on every host.
pub const FOLDER: &str = "/run";

/// Held until the process ends. `None`: locking is impossible here (no /run, a read-only one), which keeps nobody from
/// starting.
#[derive(Debug)]
pub struct MachineLock(#[allow(dead_code, reason = "the descriptor holds the lock")] Option<File>);

/// Takes the machine's lock, or that of `instance`.
///
/// # Errors
/// When another agent holds it.
pub fn lock(folder: &Path, instance: Option<&str>) -> Result<MachineLock, String> {
    let path = path(folder, instance);
    let held = |pid: Option<u32>| {
        let process = pid.map_or_else(|| "another process".to_owned(), |pid| format!("process {pid}"));
        format!(
            "another agent runs on this machine ({process} holds the lock {}); stop it, or give this one a name with the \
             setting instance if they are to run side by side as two nodes",
            path.display()
        )
    };
    let opened = OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .custom_flags(rustix::fs::OFlags::NOFOLLOW.bits() as i32)
        .open(&path);
    let file = match opened {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
            // Not root: root's agent has the lock, if there is one.
            let found = std::fs::symlink_metadata(&path).ok();
            return match found.and_then(|found| lock_holder(found.dev(), found.ino())) {
                Some(pid) => Err(held(Some(pid))),
                None => Ok(MachineLock(None)),
            };
        }
        Err(error) => {
            log::warn!(
                "cannot make the lock {}: {error}; a second agent would not be noticed",
                path.display()
            );
            return Ok(MachineLock(None));
        }
    };
    match rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(MachineLock(Some(file))),
        Err(Errno::WOULDBLOCK) => {
            let found = file.metadata().ok();
            Err(held(found.and_then(|found| lock_holder(found.dev(), found.ino()))))
        }
        Err(errno) => {
            log::warn!("cannot lock {}: {errno}; a second agent would not be noticed", path.display());
            Ok(MachineLock(None))
        }
    }
}

fn path(folder: &Path, instance: Option<&str>) -> PathBuf {
    folder.join(match instance {
        None => "vectorlay-agent.lock".to_owned(),
        Some(name) => format!("vectorlay-agent-{name}.lock"),
    })
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn a_second_agent_is_refused_unless_it_has_a_name() {
        let folder = std::env::temp_dir().join(format!("vectorlay-machine-{}", std::process::id()));
        std::fs::create_dir_all(&folder).unwrap();
        let first = lock(&folder, None).unwrap();
        assert_eq!(path(&folder, None).metadata().unwrap().permissions().mode() & 0o777, 0o600);
        let error = lock(&folder, None).unwrap_err();
        assert!(
            error.contains(&format!("process {}", std::process::id())) && error.contains("instance"),
            "{error}"
        );
        let other = lock(&folder, Some("b")).unwrap();
        assert!(lock(&folder, Some("b")).is_err());
        drop((first, other));
        drop(lock(&folder, None).unwrap());
        std::fs::remove_dir_all(&folder).unwrap();
        // A missing folder keeps no agent from starting.
        assert!(lock(&folder, None).is_ok());
    }
}
