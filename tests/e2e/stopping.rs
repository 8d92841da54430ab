//! Stops: SIGTERM and time, then SIGKILL; of what ended by itself; of what never was.

use std::time::{Duration, Instant};

use serde_json::json;

use crate::support::control_plane::WAIT;
use crate::world::World;

/// Runs until it is killed, and says when it is asked to end.
const STUBBORN: &str = "trap 'echo asked' TERM; echo ready; while :; do sleep 0.1; done";

#[test]
fn a_container_is_asked_before_it_is_killed() {
    let Some(world) = World::start("a_container_is_asked_before_it_is_killed") else { return };
    let deploy = |replica: &str, fields: serde_json::Value| {
        let mut fields = fields;
        fields["command"] = json!(["/bin/sh", "-c", STUBBORN]);
        world.deploy(replica, &fields);
        world.wait_printed(replica, "ready");
    };
    // It is given the time that the deploy says, or the stop, which beats it.
    for (of_deploy, of_stop, expected) in [(Some(2), None, 2), (Some(60), Some(1), 1)] {
        deploy("stubborn", json!({"stop_timeout_s": of_deploy}));
        let began = Instant::now();
        let request = world.send("stop", &json!({"replica_id": "stubborn", "timeout_s": of_stop}));
        world.wait_printed("stubborn", "asked");
        assert_eq!(world.result(&request)["status"], "stopped");
        let took = began.elapsed();
        assert!(took >= Duration::from_secs(expected), "{took:?}");
        assert!(took < Duration::from_secs(expected + 15), "{took:?}");
        assert_eq!(world.engine.all(), [""; 0]);
    }
    // One that obeys need not be waited for.
    world.deploy("docile", &json!({"stop_timeout_s": 600}));
    let began = Instant::now();
    world.stop("docile", &json!({}));
    assert!(began.elapsed() < Duration::from_secs(15));
}

#[test]
fn what_is_gone_already_is_stopped() {
    let Some(world) = World::start("what_is_gone_already_is_stopped") else { return };
    world.stop("never-was", &json!({}));
    world.deploy("short", &json!({"command": ["/bin/sh", "-c", "exit 3"]}));
    world.plane.wait_event(WAIT, |event| event["payload"]["exit_code"] == 3);
    world.stop("short", &json!({}));
    world.stop("short", &json!({}));
    // Removed behind the agent's back.
    let container = world.deploy("removed", &json!({}));
    world.engine.text(&["rm", "--force", &container]);
    world.stop("removed", &json!({}));
}

#[test]
fn only_the_replica_that_is_meant_is_stopped() {
    let Some(world) = World::start("only_the_replica_that_is_meant_is_stopped") else { return };
    let other = world.deploy("a.1", &json!({}));
    world.deploy("a", &json!({}));
    let foreign = world.engine.start_foreign("replica-a-1");
    let pids = [world.engine.pid(&other), world.engine.pid(&foreign)];
    world.stop("a", &json!({}));
    assert_eq!([world.engine.pid(&other), world.engine.pid(&foreign)], pids);
}
