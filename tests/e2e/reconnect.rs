//! The control plane goes away and comes back: the agent waits its 5 s, reports the same containers, and delivers what
//! happened meanwhile.

use serde_json::{Value, json};

use crate::support::agent::Node;
use crate::support::control_plane::{ControlPlane, TOKEN, WAIT};
use crate::support::engine::{EngineTurn, Gate};
use crate::support::wait::wait_until;
use crate::world::{World, connected};

/// 5 s, spread by 20 %, and what a busy machine adds.
const PAUSE_MS: std::ops::Range<u64> = 3_900..9_000;

fn restart_plane(world: &mut World) {
    let address = world.plane.address().to_owned();
    let state = world.node.path().join("plane.json");
    world.plane = ControlPlane::start(&["--state", state.to_str().unwrap(), "--listen", &address]);
}

#[test]
fn five_seconds_after_a_disconnect() {
    let Some(world) = World::start("five_seconds_after_a_disconnect") else { return };
    let container = world.deploy("a", &json!({}));
    let pid = world.engine.pid(&container);
    // A proper close, the server's word for a stale socket, and a connection that just ends.
    let ways = [
        ("close", json!({"code": 1000, "reason": "bye"})),
        ("close", json!({"code": 4001, "reason": "Heartbeat timeout"})),
        ("cut", json!({})),
    ];
    for (verb, body) in ways {
        let mark = world.plane.mark();
        world.plane.api_post(&format!("/nodes/{}/{verb}", world.id), &body);
        let next = |kind: &'static str| world.plane.wait_event_after(mark, WAIT, move |e| e["type"] == kind);
        let (left, back) = (next("disconnected"), next("connected"));
        let pause = back["ms"].as_u64().unwrap() - left["ms"].as_u64().unwrap();
        assert!(PAUSE_MS.contains(&pause), "{pause} ms after {verb} {body}");
        // system_info, then a heartbeat with the container.
        let (info, beat) = (next("system_info"), next("heartbeat"));
        assert!(info["n"].as_u64() < beat["n"].as_u64());
        assert_eq!(
            beat["payload"]["status"]["containers"],
            json!([{"replica_id": "a", "status": "running"}])
        );
    }
    assert_eq!(world.engine.pid(&container), pid);
    assert_eq!(world.wait_node(WAIT, |_| true)["violations"], 0);
}

#[test]
fn the_control_plane_is_restarted() {
    let test = "the_control_plane_is_restarted";
    let Some((mut world, gate)) = World::with(test, |node, engine| Gate::new(engine, node, "run")) else {
        return;
    };
    let stays = world.deploy("stays", &json!({}));
    let wait = "trap 'exit 9' TERM; echo ready; while :; do sleep 0.1; done";
    let ends = world.deploy("ends", &json!({"command": ["/bin/sh", "-c", wait]}));
    let pid = world.engine.pid(&stays);
    gate.shut();
    let request = world.ask("flying", &json!({}));
    gate.wait_for(1);
    assert!(world.plane.stop().success());
    // While nobody listens, a deploy is done and a container ends.
    gate.open();
    world.engine.text(&["stop", &ends]);
    world.agent.wait_line(WAIT, |line| line.contains("next attempt in"));
    wait_until(WAIT, "two results wait", || {
        let (_, status) = world.node.said(&["status", "--json"]);
        let status: Value = serde_json::from_str(&status).unwrap();
        status["results_waiting"] == 2
    });
    restart_plane(&mut world);
    let result = world.result(&request);
    assert_eq!(result["status"], "running");
    assert_eq!(world.engine.containers("flying"), [result["container_id"].as_str().unwrap()]);
    let ended = world.plane.wait_event(WAIT, |event| event["payload"]["exit_code"] == 9);
    assert_eq!(ended["payload"]["replica_id"], "ends");
    let beat = world.plane.wait_event(WAIT, |event| event["type"] == "heartbeat");
    assert_eq!(beat["node"], world.id.as_str());
    assert!(beat["n"].as_u64() < ended["n"].as_u64(), "system_info and a heartbeat come before results");
    assert_eq!(world.engine.pid(&stays), pid);
    assert_eq!(gate.calls(), 3);
    // Delivered is delivered: they are not sent once more.
    wait_until(WAIT, "no result waits", || world.node.said(&["status"]).1.contains("0 results"));
    let mark = world.plane.mark();
    world.plane.api_post(&format!("/nodes/{}/cut", world.id), &json!({}));
    world.plane.wait_event_after(mark, WAIT, |event| event["type"] == "heartbeat");
    world.stop("stays", &json!({}));
    let again = world.plane.api_get(&format!("/results?since={mark}"))["events"].clone();
    let again: Vec<&Value> = again
        .as_array()
        .unwrap()
        .iter()
        .filter(|event| event["type"] == "deploy_result" || event["type"] == "replica_status")
        .collect();
    assert_eq!(again, Vec::<&Value>::new());
}

#[test]
fn a_result_that_may_be_lost_is_sent_again() {
    // No ping is answered, so the agent cannot know that anything has arrived.
    let test = "a_result_that_may_be_lost_is_sent_again";
    let Some(engine) = EngineTurn::alone(test) else { return };
    let mut node = Node::new(test);
    engine.give_to(&mut node);
    let plane = ControlPlane::start(&["--ignore-pings"]);
    node.set("url", plane.url()).env("VECTORLAY_TOKEN", TOKEN);
    let agent = node.start();
    let id = connected(&plane);
    let world = World { agent, plane, node, id, engine };
    let request = world.ask("a", &json!({}));
    let first = world.result(&request);
    let mark = world.plane.mark();
    world.plane.api_post(&format!("/nodes/{}/cut", world.id), &json!({}));
    let mine = |event: &Value| event["payload"]["request_id"] == *request;
    let again = world.plane.wait_event_after(mark, WAIT, mine);
    assert_eq!(again["payload"], first);
    let job = world.plane.job(&request);
    assert_eq!((&job["repeated"], &job["contradicted"]), (&json!(1), &json!(0)), "{job}");
}
