//! A container whose shim does not answer: the engine cannot say how it is. That is no exit, and no reason to remove
//! what it runs.

use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};

use crate::support::control_plane::WAIT;
use crate::support::wait::wait_until;
use crate::world::World;

/// A container's shim, stopped. It goes on when this is dropped: a test that fails leaves no frozen process.
pub struct Frozen(Pid);

impl Frozen {
    /// Stops it.
    pub fn of(container: &str) -> Self {
        let shim = shim_of(container);
        kill_process(shim, Signal::STOP).unwrap();
        Self(shim)
    }
}

impl Drop for Frozen {
    fn drop(&mut self) {
        let _ = kill_process(self.0, Signal::CONT);
    }
}

/// The process `containerd-shim… -id CONTAINER …`; its children have other arguments.
fn shim_of(container: &str) -> Pid {
    let is_shim = |argv: &[u8]| {
        let arguments: Vec<&[u8]> = argv.split(|byte| *byte == 0).collect();
        let named = arguments.windows(2).any(|pair| pair == [b"-id".as_slice(), container.as_bytes()]);
        named && String::from_utf8_lossy(arguments[0]).contains("containerd-shim")
    };
    for entry in std::fs::read_dir("/proc").unwrap().flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse().ok()) else { continue };
        if is_shim(&std::fs::read(entry.path().join("cmdline")).unwrap_or_default()) {
            return Pid::from_raw(pid).unwrap();
        }
    }
    panic!("container {container} has no shim")
}

fn is_alive(pid: u64) -> bool {
    std::fs::exists(format!("/proc/{pid}/ns")).unwrap_or(false)
}

#[test]
fn a_frozen_shim_is_no_exit() {
    let name = "a_frozen_shim_is_no_exit";
    let change = |node: &mut crate::support::agent::Node, _: &crate::support::engine::Engine| {
        // What is taken for an exit is removed soon.
        node.set("reconcile-s", "5").set("retention-s", "1");
    };
    let Some((world, ())) = World::with(name, change) else { return };
    let container = world.deploy("frozen", &json!({}));
    world.deploy("other", &json!({}));
    let work = world.engine.pid(&container);
    let status_of = |node: &Value| {
        let containers = node["status"]["containers"].as_array().cloned().unwrap_or_default();
        let found = containers.into_iter().find(|one| one["replica_id"] == "frozen");
        found.map(|one| one["status"].as_str().unwrap().to_owned())
    };
    let state = || {
        let (_, text) = world.node.said(&["status", "--json"]);
        serde_json::from_str::<Value>(&text).unwrap()
    };
    let frozen = Frozen::of(&container);
    if world.engine.is_docker() {
        // Docker answers from its own memory: for it the container runs. Two listings later that still stands.
        world.stop("other", &json!({}));
        world.deploy("other", &json!({}));
    } else {
        wait_until(WAIT, "the node says which container hangs", || {
            let reason = state()["reason"].as_str().unwrap().to_owned();
            reason.contains("replica frozen is unknown") && reason.contains(&container[..12])
        });
        world
            .agent
            .wait_line(WAIT, |line| line.contains("replica frozen") && line.contains(&container[..12]));
        assert_eq!(status_of(&json!({"status": state()})).as_deref(), Some("unknown"));
        // The others are served meanwhile, and the time of keeping passes.
        world.stop("other", &json!({}));
        world.deploy("other", &json!({}));
        assert_eq!(status_of(&json!({"status": state()})).as_deref(), Some("unknown"));
    }
    assert!(is_alive(work), "the container's process was ended");
    drop(frozen);
    wait_until(WAIT, "it is taken up again", || {
        let state = state();
        let well = !state["reason"].as_str().unwrap().contains("frozen");
        well && status_of(&json!({"status": state})).as_deref() == Some("running")
    });
    assert_eq!(world.engine.pid(&container), work, "it was started anew");
    let told = world.events("replica_status");
    let ended = |news: &&Value| matches!(news["status"].as_str(), Some("exited" | "failed"));
    assert_eq!(told.iter().find(ended), None);
    // Its end is seen as any other's.
    world.engine.text(&["kill", "--signal=KILL", &container]);
    world.plane.wait_event(Duration::from_secs(15), |event| {
        event["payload"]["replica_id"] == "frozen" && event["payload"]["exit_code"] == 137
    });
}

#[test]
fn a_shim_that_holds_up_a_stop_is_ended_after_the_stops_deadline() {
    let Some(world) = World::start("a-shim-that-holds-up-a-stop") else { return };
    if world.engine.is_docker() {
        // Its daemon gives such a shim up by itself.
        return;
    }
    let container = world.deploy("frozen", &json!({}));
    let other = world.deploy("other", &json!({}));
    let frozen = Frozen::of(&container);
    let request = world.send("stop", &json!({"replica_id": "frozen", "timeout_s": 0}));
    // 60 s after the stop's own time it is told that it failed; until then nothing is ended.
    let mine = |event: &Value| event["payload"]["request_id"] == request.as_str();
    let result = world.plane.wait_event(5 * WAIT, mine)["payload"].clone();
    assert_eq!((&result["status"], &result["code"]), (&json!("failed"), &json!("timeout")), "{result}");
    world
        .agent
        .wait_line(WAIT, |line| line.contains("ending containerd-shim") && line.contains(&container[..12]));
    wait_until(2 * WAIT, "its container is gone", || world.engine.containers("frozen").is_empty());
    assert!(world.engine.pid(&other) > 0, "the other one runs");
    drop(frozen);
    world.deploy("frozen", &json!({}));
}
