//! Addresses that containers left behind.
//!
//! nerdctl gives a container's address back in the hook that runs when its task ends. A reboot ends it without, and a
//! removal afterwards runs no hook (`RemoveContainer` in its `pkg/cmd/container`, 1.7 to 2.3): each reboot takes as
//! many addresses from the network as there were containers.
//!
//! CNI's plugin `host-local` keeps a file for each address, `/var/lib/cni/networks/NETWORK/ADDRESS`, with the owner's ID
//! in its first line: with nerdctl the namespace, `-` and the container's ID, which no other container ever has. The
//! plugin holds a lock on the file `lock` beside them while it looks and writes (`backend/disk` in its source). A
//! network whose configuration names another folder (`dataDir`) is left alone; those that nerdctl makes name none.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::{self, Read as _};
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::fs::{FlockOperation, flock};

use crate::types::ContainerId;
use crate::wait::poll_until;

/// Where the plugin keeps them, below the machine's root.
const NETWORKS: &str = "var/lib/cni/networks";
/// How long the plugin may hold its lock.
const LOCK_TIMEOUT: Duration = Duration::from_secs(5);
/// The pause before its lock is tried again.
const LOCK_PAUSE: Duration = Duration::from_millis(20);

/// Gives back the addresses of containers that are known to be gone, on the machine below `root`.
pub fn give_back(root: &Path, gone: &BTreeSet<ContainerId>) {
    let Ok(networks) = fs::read_dir(root.join(NETWORKS)) else { return };
    for network in networks.flatten() {
        let folder = network.path();
        match give_back_of(&folder, gone, LOCK_TIMEOUT) {
            Ok(given) => {
                for (record, owner) in given {
                    log::info!("{} is free again: its container {} is gone", record.display(), owner.short());
                }
            }
            Err(error) => log::warn!(
                "cannot give addresses of containers that are gone back to {}: {error}; the network may run out of them",
                folder.display()
            ),
        }
    }
}

/// The records that were removed, and whose they were.
fn give_back_of(
    folder: &Path,
    gone: &BTreeSet<ContainerId>,
    timeout: Duration,
) -> io::Result<Vec<(PathBuf, ContainerId)>> {
    let theirs = |record: &Path| owner(record).filter(|owner| gone.contains(owner));
    let mut records = Vec::new();
    for entry in fs::read_dir(folder)? {
        let record = entry?.path();
        let is_address = record.file_name().and_then(|name| name.to_str()?.parse::<IpAddr>().ok()).is_some();
        if is_address && theirs(&record).is_some() {
            records.push(record);
        }
    }
    if records.is_empty() {
        return Ok(Vec::new());
    }
    let _lock = lock(&folder.join("lock"), timeout)?;
    let mut given = Vec::new();
    for record in records {
        // Looked at again under the lock: by now it may be another container's.
        if let Some(owner) = theirs(&record) {
            fs::remove_file(&record)?;
            given.push((record, owner));
        }
    }
    Ok(given)
}

/// The container that a record names.
fn owner(record: &Path) -> Option<ContainerId> {
    let mut text = String::new();
    File::open(record).ok()?.take(1024).read_to_string(&mut text).ok()?;
    let owner = text.lines().next()?.trim();
    ContainerId::new(owner.rsplit('-').next()?).ok()
}

/// Takes the plugin's lock, which is let go when the file is closed.
fn lock(path: &Path, timeout: Duration) -> io::Result<File> {
    let file = File::options().create(true).append(true).open(path)?;
    let until = Instant::now() + timeout;
    loop {
        match flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => return Ok(file),
            Err(rustix::io::Errno::WOULDBLOCK) if Instant::now() < until => {
                poll_until(&mut [], Some(Instant::now() + LOCK_PAUSE))?;
            }
            Err(rustix::io::Errno::WOULDBLOCK) => {
                return Err(io::Error::other(format!("another program holds {}", path.display())));
            }
            Err(errno) => return Err(errno.into()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_records_of_containers_that_are_gone_go() {
        let root = std::env::temp_dir().join(format!("vectorlay-addresses-{}", std::process::id()));
        let folder = root.join(NETWORKS).join("bridge");
        let id = |n: u8| ContainerId::new(&format!("{n:064x}")).unwrap();
        let (gone, stays) = (id(1), id(2));
        // A machine without the folder.
        give_back(&root, &BTreeSet::from([gone.clone()]));
        fs::create_dir_all(&folder).unwrap();
        let records = [
            ("10.4.0.2", format!("default-{gone}\r\neth0")),
            ("10.4.0.3", format!("default-{stays}\r\neth0")),
            ("10.4.0.4", format!("my-namespace-{gone}\r\neth0")),
            ("10.4.0.5", gone.to_string()),
            ("fd00::5", format!("default-{gone}\r\neth1")),
            // Not a whole ID, not the owner's line, empty as a power cut leaves it.
            ("10.4.0.6", format!("default-{}\r\neth0", gone.short())),
            ("10.4.0.7", format!("other\r\ndefault-{gone}")),
            ("10.4.0.8", String::new()),
            ("last_reserved_ip.0", format!("default-{gone}")),
        ];
        for (name, text) in &records {
            fs::write(folder.join(name), text).unwrap();
        }
        give_back(&root, &BTreeSet::from([gone, id(3)]));
        let left: Vec<_> =
            records.iter().map(|(name, _)| *name).filter(|name| folder.join(name).exists()).collect();
        assert_eq!(left, ["10.4.0.3", "10.4.0.6", "10.4.0.7", "10.4.0.8", "last_reserved_ip.0"]);
        // While the plugin is at work nothing is touched.
        let held = lock(&folder.join("lock"), Duration::ZERO).unwrap();
        let error = give_back_of(&folder, &BTreeSet::from([stays.clone()]), LOCK_PAUSE).unwrap_err();
        assert!(error.to_string().contains("another program holds"), "{error}");
        drop(held);
        give_back(&root, &BTreeSet::from([stays]));
        assert!(!folder.join("10.4.0.3").exists());
        fs::remove_dir_all(root).unwrap();
    }
}
