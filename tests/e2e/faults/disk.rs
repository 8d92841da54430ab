//! A bad disk under the state directory: full, read-only, hanging in fsync. (A power cut is replayed write by write in
//! `store::directory`'s own tests: each prefix of a log of writes must load.)

use std::fs::{self, File};
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::process::Signal;

use super::report::{Random, Row};
use super::rig::{BEAT_SLACK, Changes, LATE, Rig, SOON};
use crate::support::control_plane::ControlPlane;
use crate::support::engine::{Engine, EngineTurn};
use crate::support::processes;
use crate::support::skip::skip;
use crate::support::wait::wait_for;

/// Within this the node has to say what is wrong with its disk.
const SAID_WITHIN: Duration = Duration::from_secs(15);
/// How long each fsync hangs.
const FSYNC: Duration = Duration::from_secs(15);

/// A small file system of its own at a rig's state directory; it goes when this is dropped.
struct Disk(PathBuf);

impl Disk {
    /// Mounts it. `None`: the machine does not let us.
    fn mount(state: &Path) -> Option<Self> {
        let identity = fs::read(state.join("node.json")).unwrap();
        mount(&["-t", "tmpfs", "-o", "size=128k,mode=700", "tmpfs", state.to_str().unwrap()]).then(|| {
            fs::write(state.join("node.json"), identity).unwrap();
            Self(state.to_owned())
        })
    }

    fn fill(&self, full: bool) {
        let ballast = self.0.join("ballast");
        if full {
            let mut file = File::create(ballast).unwrap();
            while file.write_all(&[7; 4096]).is_ok() {}
        } else {
            fs::remove_file(ballast).unwrap();
        }
    }

    fn read_only(&self, on: bool) {
        let how = if on { "remount,ro" } else { "remount,rw" };
        assert!(mount(&["-o", how, self.0.to_str().unwrap()]));
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("--lazy").arg(&self.0).status();
    }
}

fn mount(args: &[&str]) -> bool {
    let output = Command::new("mount").args(args).output().unwrap();
    if !output.status.success() {
        eprintln!("mount: {}", String::from_utf8_lossy(&output.stderr).trim());
    }
    output.status.success()
}

#[test]
fn the_disk_is_bad() {
    let test = "the_disk_is_bad";
    let Some(engine) = EngineTurn::shared(test) else { return };
    // Side by side: they mostly wait.
    std::thread::scope(|scope| {
        scope.spawn(|| on_a_bad_disk(test, &engine, "state directory full", Disk::fill));
        scope.spawn(|| on_a_bad_disk(test, &engine, "state directory read-only", Disk::read_only));
        scope.spawn(|| fsync_hangs(test, &engine));
    });
}

fn on_a_bad_disk(test: &str, engine: &Engine, fault: &'static str, switch: impl Fn(&Disk, bool)) {
    let plane = Arc::new(ControlPlane::start(&["--quiet"]));
    let mut rig = Rig::off(&plane, Some(engine), Changes::default());
    let Some(disk) = Disk::mount(&rig.folder().join("state")) else {
        return skip(test, "mount is not allowed");
    };
    rig.start();
    rig.wait_ready(SOON);
    let mut lost = Vec::new();
    let mut expect = |what: &str, outcome: String, wanted: &str| {
        if outcome != wanted {
            lost.push(format!("{what}: {outcome}"));
        }
    };
    let (old, new) = (rig.new_replica(), rig.new_replica());
    expect("the deploy before", rig.outcome(&rig.deploy(&old), SOON), "running");
    switch(&disk, true);
    let began = Instant::now();
    expect("the deploy on a bad disk", rig.outcome(&rig.deploy(&new), SOON), "running");
    let said = wait_for(SOON, || rig.reason().contains("state.json").then(|| began.elapsed()));
    expect("the reason", format!("{}", said.is_some_and(|time| time <= SAID_WITHIN)), "true");
    // A bad disk does not keep it from starting, and what is on it is whole.
    rig.kill();
    rig.start();
    rig.wait_ready(SOON);
    expect("the stop on a bad disk", rig.outcome(&rig.stop(&old), SOON), "stopped");
    switch(&disk, false);
    let mended = Instant::now();
    let well = wait_for(LATE, || (!rig.reason().contains("state.json")).then(|| mended.elapsed()));
    expect("it is well again", format!("{}", well.is_some()), "true");
    rig.kill();
    rig.start();
    lost.extend(rig.losses(BEAT_SLACK));
    let expected = "work goes on from memory, the node says why, the good copy stays, it starts";
    let (latest_beat, recovery) = (rig.latest_beat(), well.into_iter().collect());
    Row { fault, times: 1, expected, lost, latest_beat, recovery, seed: Random::new().seed }.finish();
    // The agent's lock keeps the file system busy, and the file system the rig's folder.
    rig.kill();
    drop(disk);
}

/// strace that lets each fsync of the agent's store thread wait; it is ended when this is dropped. (Of that thread
/// alone: the CLI syncs files too, and would hang with its locks held.)
struct SlowFsync(Child);

impl SlowFsync {
    fn begin(agent: u32) -> Option<Self> {
        let tasks = fs::read_dir(format!("/proc/{agent}/task")).unwrap().map(|task| task.unwrap().path());
        let is_store =
            |task: &PathBuf| fs::read_to_string(task.join("comm")).is_ok_and(|name| name == "store\n");
        let task = tasks.filter(is_store).last().expect("the agent has a store thread");
        let tid = task.file_name().unwrap().to_str().unwrap();
        let inject = format!("--inject=fsync,fdatasync:delay_enter={}", FSYNC.as_micros());
        let traced = "--trace=fsync,fdatasync";
        let strace = Command::new("strace")
            .args(["-qq", traced, &inject, "-o", "/dev/null", "-p", tid])
            .stdin(Stdio::null())
            .spawn()
            .ok()?;
        let slow = Self(strace);
        let is_traced = || {
            let status = fs::read_to_string(task.join("status")).unwrap_or_default();
            (!status.contains("TracerPid:\t0")).then_some(())
        };
        wait_for(Duration::from_secs(10), is_traced).map(|()| slow)
    }
}

impl Drop for SlowFsync {
    fn drop(&mut self) {
        processes::signal(self.0.id(), Signal::TERM);
        let _ = self.0.wait();
    }
}

fn fsync_hangs(test: &str, engine: &Engine) {
    let (seed, rig) = (Random::new().seed, Rig::new(engine));
    let Some(slow) = SlowFsync::begin(rig.pid()) else {
        return skip(test, "strace cannot be used here");
    };
    let mut lost = Vec::new();
    let began = Instant::now();
    let replica = rig.new_replica();
    let outcome = rig.outcome(&rig.deploy(&replica), SOON);
    let took = began.elapsed();
    if outcome != "running" || took >= FSYNC {
        lost.push(format!("the deploy on a disk that hangs: {outcome} after {took:?}"));
    }
    let said = wait_for(SOON, || rig.reason().contains("state directory").then(|| began.elapsed()));
    if said.is_none_or(|time| time > SAID_WITHIN) {
        lost.push(format!("the node said what is wrong after {said:?}"));
    }
    drop(slow);
    let mended = Instant::now();
    let well = wait_for(LATE, || (!rig.reason().contains("state directory")).then(|| mended.elapsed()));
    if well.is_none() {
        lost.push(format!("it did not come back: {}", rig.reason()));
    }
    lost.extend(rig.losses(BEAT_SLACK));
    let expected = "work waits 2 s for its record and goes on, the node says why";
    let (fault, latest_beat, recovery) =
        ("fsync of the state directory hangs", rig.latest_beat(), well.into_iter().collect());
    Row { fault, times: 1, expected, lost, latest_beat, recovery, seed }.finish();
}
