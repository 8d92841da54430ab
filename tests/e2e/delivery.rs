//! Commands that arrive twice, cross each other or meet what is there already: exactly one outcome for each request.

use serde_json::{Value, json};

use crate::support::control_plane::WAIT;
use crate::support::engine::Gate;
use crate::world::World;

fn gated(test: &str) -> Option<(World, Gate)> {
    World::with(test, |node, engine| Gate::new(engine, node, "run"))
}

#[test]
fn a_request_that_arrives_again_gets_the_same_answer() {
    let Some((world, gate)) = gated("a_request_that_arrives_again_gets_the_same_answer") else { return };
    let payload = world.payload("a", &json!({"request_id": "r-1", "env_vars": {"A": "1"}}));
    let deploy = json!({"type": "deploy", "payload": payload}).to_string();
    // Before it is done, and after.
    gate.shut();
    world.send("deploy", &payload);
    world.send_raw(&deploy);
    gate.wait_for(1);
    gate.open();
    let first = world.result("r-1");
    assert_eq!(first["status"], "running");
    let again = |text: &str| {
        let mark = world.plane.mark();
        world.send_raw(text);
        world.plane.wait_event_after(mark, WAIT, |event| event["payload"]["request_id"] == "r-1")["payload"]
            .clone()
    };
    assert_eq!(again(&deploy), first);
    // Even when it says something else now, or the replica is gone.
    let other = deploy.replace("\"1\"", "\"2\"");
    assert_ne!(other, deploy);
    assert_eq!(again(&other), first);
    world.stop("a", &json!({"request_id": "r-2"}));
    assert_eq!(again(&deploy), first);
    assert_eq!((gate.calls(), world.engine.all()), (1, vec![]), "it was started once, and not again");
    let job = world.plane.job("r-1");
    assert_eq!(job["contradicted"], 0, "{job}");
}

#[test]
fn equal_deploys_join_and_others_conflict() {
    let Some((world, gate)) = gated("equal_deploys_join_and_others_conflict") else { return };
    gate.shut();
    let fields = json!({"env_vars": {"A": "1", "B": "2"}, "gpu_count": 0});
    let first = world.ask("a", &fields);
    gate.wait_for(1);
    // The same specification in other words.
    let second =
        world.ask("a", &json!({"env_vars": {"B": 2, "A": 1}, "pull": "never", "deploy_timeout_s": 60}));
    for other in
        [json!({}), json!({"env_vars": {"A": "1", "B": "3"}}), json!({"image": "vectorlay-test/busybox:2"})]
    {
        let result = world.result(&world.ask("a", &other));
        assert_eq!((&result["status"], &result["code"]), (&json!("failed"), &json!("conflict")), "{result}");
    }
    // Other replicas do not wait; those that wait have no result yet.
    assert_eq!(world.plane.job(&first)["result"], Value::Null);
    assert_eq!(world.plane.job(&second)["result"], Value::Null);
    gate.open();
    let (one, two) = (world.result(&first), world.result(&second));
    assert_eq!(
        (&one["status"], &one["container_id"]),
        (&json!("running"), &two["container_id"]),
        "{one} {two}"
    );
    // And when it runs.
    let third = world.result(&world.ask("a", &fields));
    assert_eq!((&third["status"], &third["container_id"]), (&json!("running"), &one["container_id"]));
    let other = world.result(&world.ask("a", &json!({})));
    assert_eq!(other["code"], "conflict");
    assert_eq!((gate.calls(), world.engine.all().len()), (1, 1));
    assert_eq!(world.events("deploy_result").len(), 7, "one for each request");
}

#[test]
fn a_stop_cancels_what_is_on_its_way_up() {
    let Some((world, gate)) = gated("a_stop_cancels_what_is_on_its_way_up") else { return };
    gate.shut();
    let deploy = world.ask("a", &json!({}));
    gate.wait_for(1);
    let stop = world.send("stop", &json!({"replica_id": "a"}));
    // What comes after the stop is started when the first is gone.
    let next = world.ask("a", &json!({"env_vars": {"NEXT": "1"}}));
    gate.open();
    let cancelled = world.result(&deploy);
    assert_eq!((&cancelled["status"], &cancelled["code"]), (&json!("failed"), &json!("cancelled")));
    assert_eq!(world.result(&stop)["status"], "stopped");
    let running = world.result(&next);
    assert_eq!(running["status"], "running", "{running}");
    assert_eq!(world.engine.containers("a"), [running["container_id"].as_str().unwrap()]);
    let order: Vec<Value> = world.plane.api_get("/events?since=0")["events"]
        .as_array()
        .unwrap()
        .iter()
        .filter(|event| event["type"].as_str().unwrap().ends_with("_result"))
        .map(|event| event["payload"]["request_id"].clone())
        .collect();
    assert_eq!(order, [deploy, stop, next].map(Value::from));
}

#[test]
fn a_pull_is_cancelled_at_once() {
    let test = "a_pull_is_cancelled_at_once";
    let Some((world, gate)) = World::with(test, |node, engine| Gate::new(engine, node, "pull")) else {
        return;
    };
    gate.shut();
    let deploy = world.ask("a", &json!({"image": "127.0.0.1:1/slow:1"}));
    gate.wait_for(1);
    let (_, status) = world.node.said(&["status"]);
    assert!(status.contains("pulling"), "{status}");
    let stop = world.send("stop", &json!({"replica_id": "a"}));
    // The gate is still shut.
    assert_eq!(world.result(&deploy)["code"], "cancelled");
    assert_eq!(world.result(&stop)["status"], "stopped");
    gate.open();
    world.deploy("a", &json!({}));
}

#[test]
fn what_ended_is_started_again() {
    let Some(world) = World::start("what_ended_is_started_again") else { return };
    let fields = json!({"command": ["/bin/sh", "-c", "exit 3"]});
    let first = world.deploy("a", &fields);
    world.plane.wait_event(WAIT, |event| event["payload"]["exit_code"] == 3);
    let mark = world.plane.mark();
    let second = world.deploy("a", &fields);
    assert_ne!(first, second);
    world.plane.wait_event_after(mark, WAIT, |event| event["payload"]["exit_code"] == 3);
    assert_ne!(world.deploy("a", &json!({})), second, "another specification, too");
}

#[test]
fn a_deploys_deadline() {
    let Some((world, gate)) = gated("a_deploys_deadline") else { return };
    gate.shut();
    world.fail("a", &json!({"deploy_timeout_s": 1}), "timeout");
    gate.open();
    world.deploy("a", &json!({}));
}

#[test]
fn a_server_without_request_ids() {
    let Some(world) = World::start("a_server_without_request_ids") else { return };
    let deploy = json!({"type": "deploy", "payload": world.payload("a", &json!({}))}).to_string();
    world.send_raw(&deploy);
    let result = world.plane.wait_event(WAIT, |event| event["type"] == "deploy_result");
    assert_eq!(
        (&result["payload"]["status"], &result["payload"]["request_id"]),
        (&json!("running"), &Value::Null)
    );
    let mark = world.plane.mark();
    world.send_raw(&deploy);
    let again = world.plane.wait_event_after(mark, WAIT, |event| event["type"] == "deploy_result");
    assert_eq!(again["payload"]["container_id"], result["payload"]["container_id"]);
    world.send_raw(r#"{"type": "stop", "payload": {"replica_id": "a"}}"#);
    let stopped = world.plane.wait_event(WAIT, |event| event["type"] == "stop_result");
    assert_eq!(stopped["payload"], json!({"replica_id": "a", "status": "stopped"}));
    assert_eq!(world.engine.all(), [""; 0]);
}
