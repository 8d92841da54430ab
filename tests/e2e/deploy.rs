//! Deploys: one that works, and all the ways in which the engine refuses one. What fails leaves nothing behind, tells
//! the engine's own words, and touches no container of anybody else's.

use serde_json::json;

use crate::support::control_plane::WAIT;
use crate::support::processes;
use crate::support::wait::wait_until;
use crate::world::World;

#[test]
fn a_container_runs_and_is_reported() {
    let Some(world) = World::start("a_container_runs_and_is_reported") else { return };
    let fields = json!({"gpu_count": 0, "memory_mb": 64, "cpus": 0.5, "pids_limit": 64, "shm_size_mb": 16});
    let mark = world.plane.mark();
    let container = world.deploy("web", &fields);
    assert_eq!(container.len(), 64);
    let inspected = world.engine.inspect(&container);
    let labels = &inspected["Config"]["Labels"];
    assert_eq!(labels["vectorlay.replica"], "web");
    assert_eq!(labels["vectorlay.node"], world.id.as_str());
    assert!(inspected["Name"].as_str().unwrap().ends_with("replica-web"), "{}", inspected["Name"]);
    // As it is given to Kata, a mount of its own.
    let shm = world.engine.inside(&container, &["busybox", "df", "-k", "/dev/shm"]);
    let shm = String::from_utf8(shm).unwrap();
    assert!(shm.split_whitespace().any(|word| word == "16384"), "{shm}");
    if world.engine.is_docker() {
        assert_eq!(inspected["HostConfig"]["Memory"], 64 << 20);
        assert_eq!(inspected["HostConfig"]["Runtime"], "io.containerd.kata.v2");
        assert_eq!(inspected["HostConfig"]["PidsLimit"], 64);
    }
    let starting = |event: &serde_json::Value| {
        event["type"] == "replica_status" && event["payload"]["status"] == "starting"
    };
    world.plane.wait_event_after(mark, WAIT, starting);
    let result = &world.events("deploy_result")[0];
    assert!(result["duration_ms"].as_u64().unwrap() < 60_000);

    // `status` asks the agent itself.
    let (code, text) = world.node.said(&["status"]);
    // This node has no Kata: it is degraded.
    assert_eq!(code, 1, "{text}");
    assert!(text.contains("running    web") && text.contains(&world.id), "{text}");
    world.stop("web", &json!({}));
    let view = world.wait_node(WAIT, |_| true);
    assert_eq!((&view["violations"], &view["malformed"]), (&json!(0), &json!(0)), "{view:#}");
}

#[test]
fn an_image_that_is_not_there() {
    let Some(world) = World::start("an_image_that_is_not_there") else { return };
    let error = world.fail("a", &json!({"image": "127.0.0.1:1/no/such:1"}), "pull_failed");
    assert!(error.ends_with("connection refused"), "{error}");
    let detail = |replica: &str| {
        let results = world.events("deploy_result");
        results.iter().find(|result| result["replica_id"] == replica).unwrap()["detail_code"].clone()
    };
    assert_eq!(detail("a"), "unreachable");
    let pulling = world.events("replica_status").iter().any(|news| news["status"] == "pulling");
    assert!(pulling, "it is told that it is being pulled");
    let calls = world.agent.log().iter().filter(|line| line.contains(": pull ")).count();
    world.fail("b", &json!({"image": "no-such:1", "pull": "never"}), "pull_failed");
    assert_eq!(detail("b"), json!(null));
    let after = world.agent.log().iter().filter(|line| line.contains(": pull ")).count();
    assert_eq!((calls, after), (1, 1), "never means never");
    if let Ok(registry) = std::env::var("VECTORLAY_TEST_REGISTRY") {
        let error = world.fail("c", &json!({"image": format!("{registry}/no-such:1")}), "pull_failed");
        assert!(error.ends_with("not found") || error.ends_with("manifest unknown"), "{error}");
        assert_eq!(detail("c"), "not_found");
        world.deploy(
            "d",
            &json!({"image": format!("{registry}/busybox:1"), "command": ["/bin/sleep", "1000"]}),
        );
    }
}

#[test]
fn a_command_that_is_not_there() {
    let Some(world) = World::start("a_command_that_is_not_there") else { return };
    // Twice: in some engines the name is free again while the first container is still there.
    for _ in 0..2 {
        let error = world.fail("bad", &json!({"command": ["/no/such/program"]}), "start_failed");
        assert!(error.contains("/no/such/program"), "{error}");
    }
    world.deploy("bad", &json!({}));
}

#[test]
fn a_foreign_container_of_the_same_name() {
    let Some(world) = World::start("a_foreign_container_of_the_same_name") else { return };
    let foreign = world.engine.start_foreign("replica-clash");
    let pid = world.engine.pid(&foreign);
    let error = world.fail("clash", &json!({}), "start_failed");
    assert!(error.contains("already"), "{error}");
    assert_eq!(world.engine.pid(&foreign), pid);
    // A stop of that replica is none of the foreign container's business either.
    world.stop("clash", &json!({}));
    assert_eq!(world.engine.pid(&foreign), pid);
}

#[test]
fn a_runtime_that_is_not_there() {
    let started = World::with("a_runtime_that_is_not_there", |node, _| {
        node.set("runtime", "io.containerd.nope.v2");
    });
    let Some((world, ())) = started else { return };
    let error = world.fail("a", &json!({}), "start_failed");
    assert!(error.contains("nope"), "{error}");
}

#[test]
fn no_child_is_left_as_a_zombie() {
    let Some(world) = World::start("no_child_is_left_as_a_zombie") else { return };
    world.deploy("a", &json!({}));
    world.fail("b", &json!({"command": ["/no/such"]}), "start_failed");
    world.fail("c", &json!({"image": "127.0.0.1:1/no/such:1"}), "pull_failed");
    world.stop("a", &json!({}));
    // Looks at the engine go on all the time, so that there may be a child now and then, but none that stays.
    let seen = processes::children(world.agent.pid());
    wait_until(WAIT, "these children of the agent are gone", || {
        let now = processes::children(world.agent.pid());
        !seen.iter().any(|one| now.iter().any(|other| other.pid == one.pid))
    });
}
