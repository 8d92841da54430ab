//! The bound of a container's log, whatever it writes.

use std::fs;
use std::path::Path;
use std::time::Instant;

use serde_json::json;

use crate::support::control_plane::WAIT;
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
        crate::support::skip::skip(test, "Docker has no file:// log driver");
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
