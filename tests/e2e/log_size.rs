//! The bound of a container's log, whatever it writes.

use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use serde_json::json;
use vectorlay::engine::log_watch::{self, Limits};

use crate::support::control_plane::WAIT;
use crate::support::folder::Folder;
use crate::support::skip::skip;
use crate::support::wait::wait_until;
use crate::world::World;

/// The setting log_size_mb, in bytes.
const SIZE: u64 = 20 << 20;
/// How often the log has to have been cut: the first time is not the only one that counts.
const CUTS: usize = 10;

/// The bytes of all files in `folder`, and of those that are still written.
fn sizes(folder: &Path) -> (u64, u64) {
    let files = fs::read_dir(folder).unwrap().flatten();
    let sizes = files.filter_map(|file| Some((file.path(), file.metadata().ok()?.len())));
    sizes.fold((0, 0), |(all, written), (path, size)| {
        (all + size, written + if path.extension().is_some_and(|ending| ending == "log") { size } else { 0 })
    })
}

#[test]
fn a_log_stays_within_twice_its_size_whatever_is_written() {
    let test = "a_log_stays_within_twice_its_size_whatever_is_written";
    let Some((world, folder)) = World::with(test, |node, _| {
        node.set("log-driver", "file").set("log-size-mb", &(SIZE >> 20).to_string());
        node.path().join("logs")
    }) else {
        return;
    };
    if world.engine.is_docker() {
        skip(test, "Docker has no file:// log driver");
        return;
    }
    world.deploy("a", &json!({"command": ["yes", "the container writes as fast as it can"]}));
    let (end, mut peak, mut before, mut cuts) = (Instant::now() + WAIT, 0, 0, 0);
    while cuts < CUTS && Instant::now() < end {
        let (all, written) = sizes(&folder);
        cuts += usize::from(written < before);
        (peak, before) = (peak.max(all), written);
    }
    world.stop("a", &json!({"timeout_s": 0}));
    eprintln!("measured: at most {peak} bytes of log, with {SIZE} set, in {cuts} cuts");
    assert!(cuts == CUTS && peak <= 2 * SIZE, "{peak} bytes after {cuts} cuts");
}

/// A file system of its own, in memory.
struct Disk(PathBuf);

impl Disk {
    fn mount(place: PathBuf, mib: u64) -> Option<Self> {
        fs::create_dir(&place).unwrap();
        let size = format!("size={mib}m");
        let mount = Command::new("mount").args(["-t", "tmpfs", "-o", &size, "tmpfs"]).arg(&place).status();
        mount.is_ok_and(|status| status.success()).then_some(Self(place))
    }

    fn free(&self) -> u64 {
        let found = rustix::fs::statvfs(&self.0).unwrap();
        found.f_bavail * found.f_frsize
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("--lazy").arg(&self.0).status();
    }
}

/// Each log alone may have more than there is.
#[test]
fn all_logs_together_leave_the_room_that_is_to_stay_free() {
    const MIB: u64 = 1 << 20;
    let test = "all_logs_together_leave_the_room_that_is_to_stay_free";
    let folder = Folder::new("log-room");
    let Some(disk) = Disk::mount(folder.path().join("disk"), 256) else {
        return skip(test, "a file system cannot be mounted here");
    };
    let logs = disk.0.join("logs");
    fs::create_dir(&logs).unwrap();
    let min_free = 128 * MIB;
    log_watch::start(logs.clone(), Limits::new(400 * MIB, min_free, &logs, &disk.0)).unwrap();
    let least = AtomicU64::new(u64::MAX);
    std::thread::scope(|scope| {
        for writer in 0..3 {
            let (path, least, disk) = (logs.join(format!("{writer:016x}.log")), &least, &disk);
            scope.spawn(move || {
                let mut log = fs::OpenOptions::new().append(true).create(true).open(path).unwrap();
                for _ in 0..2_000 {
                    // A full disk fails here.
                    log.write_all(&[b'y'; 256 << 10]).unwrap();
                    least.fetch_min(disk.free(), Ordering::Relaxed);
                    // Faster than any disk, but not than the agent's thread comes to its turn on a busy machine.
                    std::thread::sleep(Duration::from_millis(2));
                }
            });
        }
    });
    let least = least.into_inner();
    eprintln!("measured: at least {} MiB stayed free, of {} that shall", least / MIB, min_free / MIB);
    assert!(least > min_free / 2, "{least} bytes");
    wait_until(WAIT, "what is to stay free is free", || disk.free() >= min_free);
}
