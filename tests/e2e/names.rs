//! Names of replicas that mean something to somebody else: to a CLI's template, to a filter, to a reader of numbers.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use crate::support::control_plane::WAIT;
use crate::support::wait::wait_until;
use crate::world::World;

/// Words for nothing and for everything, numbers, one character, cases, separators that not each release takes.
const NAMES: [&str; 14] = [
    "none",
    "None",
    "null",
    "nil",
    "all",
    "true",
    "no.value",
    "a",
    "7",
    "0123456789",
    "UPPER",
    "a--b",
    "a-_.",
    "replica-x",
];

fn statuses(world: &World) -> BTreeMap<String, String> {
    let (_, text) = world.node.said(&["status", "--json"]);
    let state: Value = serde_json::from_str(&text).unwrap_or_default();
    let pair =
        |one: &Value| Some((one["replica_id"].as_str()?.to_owned(), one["status"].as_str()?.to_owned()));
    state["containers"].as_array().into_iter().flatten().filter_map(pair).collect()
}

#[test]
fn whatever_a_replica_is_called_it_is_known_by_its_name() {
    let test = "whatever_a_replica_is_called_it_is_known_by_its_name";
    let Some((mut world, ())) = World::with(test, |node, _| {
        node.set("reconcile-s", "5");
    }) else {
        return;
    };
    let longest = "x".repeat(64);
    let names: Vec<&str> = NAMES.into_iter().chain([longest.as_str()]).collect();
    // What cannot be a replica's name is not started under another one.
    for name in ["<no value>", "", "-", "a b", "a=b", "a,b"] {
        let payload = world.payload(name, &json!({"request_id": "odd"}));
        world.send_raw(&json!({"type": "deploy", "payload": payload}).to_string());
    }
    let containers: Vec<String> = names.iter().map(|name| world.deploy(name, &json!({}))).collect();
    assert_eq!(world.engine.all().len(), names.len());
    let all = |wanted: &str| names.iter().map(|name| ((*name).to_owned(), wanted.to_owned())).collect();
    let running: BTreeMap<String, String> = all("running");
    assert_eq!(statuses(&world), running);
    world.restart();
    wait_until(WAIT, "all are known after a restart of the agent", || statuses(&world) == running);
    world.engine.restart();
    world.restart();
    wait_until(WAIT, "all are known after a restart of both", || statuses(&world) == running);
    // Deployed again it is the same one, and none is started beside it.
    for (name, container) in names.iter().zip(&containers) {
        let result = world.result(&world.ask(name, &json!({})));
        assert_eq!((&result["status"], &result["container_id"]), (&json!("running"), &json!(container)));
    }
    // Every other one ends by itself; all of them go when they are stopped.
    for container in containers.iter().step_by(2) {
        world.engine.text(&["kill", "--signal=KILL", container]);
    }
    wait_until(WAIT, "their ends are seen", || {
        let exited = statuses(&world).values().filter(|status| *status == "exited").count();
        exited == containers.len().div_ceil(2)
    });
    world.restart();
    for name in &names {
        world.stop(name, &json!({}));
    }
    assert_eq!(world.engine.all(), [""; 0]);
}
