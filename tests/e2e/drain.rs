//! Drain, maintenance and resume: by the control plane and by the operator on the machine itself.

use serde_json::{Value, json};

use crate::support::control_plane::WAIT;
use crate::support::engine::Gate;
use crate::world::World;

fn states(world: &World) -> Vec<String> {
    let told = world.events("node_state");
    let mut states: Vec<String> =
        told.iter().map(|news| news["state"].as_str().unwrap().to_owned()).collect();
    // A change of the reason alone is told, too.
    states.dedup();
    states
}

#[test]
fn a_drained_node_finishes_what_it_accepted() {
    let test = "a_drained_node_finishes_what_it_accepted";
    let started = World::with(test, |node, engine| {
        node.set("workers", "1");
        Gate::new(engine, node, "run")
    });
    let Some((mut world, gate)) = started else { return };
    let kept = world.deploy("kept", &json!({}));
    gate.shut();
    let flying = world.ask("flying", &json!({}));
    gate.wait_for(1);
    let queued = world.ask("queued", &json!({}));
    world.plane.api_post(&format!("/nodes/{}/drain", world.id), &json!({}));
    world.wait_node(WAIT, |node| node["state"] == "draining");
    let late = world.ask("late", &json!({}));
    let refused = world.result(&late);
    assert_eq!((&refused["status"], &refused["code"]), (&json!("failed"), &json!("draining")), "{refused}");
    // What is there already is still told, and stopped.
    assert_eq!(world.deploy("kept", &json!({})), kept);
    gate.open();
    assert_eq!(world.result(&flying)["status"], "running");
    assert_eq!(world.result(&queued)["status"], "running");
    world.wait_node(WAIT, |node| node["state"] == "maintenance");
    world.stop("queued", &json!({}));
    // It is so after a restart, too.
    world.restart();
    world.wait_node(WAIT, |node| node["system_info"]["state"] == "maintenance");
    world.fail("late", &json!({}), "draining");
    world.plane.api_post(&format!("/nodes/{}/resume", world.id), &json!({}));
    world.wait_node(WAIT, |node| node["state"] != "maintenance");
    world.deploy("late", &json!({}));
    assert_eq!(world.engine.containers("kept"), [kept.as_str()]);
    let states = states(&world);
    let place = |state: &str| states.iter().position(|told| told == state).unwrap();
    assert!(place("draining") < place("maintenance"), "{states:?}");
}

#[test]
fn the_operator_drains() {
    let Some(world) = World::start("the_operator_drains") else { return };
    let state = |arguments: &[&str]| {
        let (code, text) = world.node.said(arguments);
        // `status` fails on this node, which is degraded without Kata; a request that was accepted does not.
        assert_eq!(code, i32::from(arguments == ["status"]), "{text}");
        let (_, text) = world.node.said(&["status", "--json"]);
        let status: Value = serde_json::from_str(&text).unwrap();
        status["state"].as_str().unwrap().to_owned()
    };
    let before = state(&["status"]);
    // Nothing is under way: it is drained at once.
    assert_eq!(state(&["drain"]), "maintenance");
    world.wait_node(WAIT, |node| node["state"] == "maintenance");
    world.fail("a", &json!({}), "draining");
    assert_eq!(state(&["resume"]), before);
    world.deploy("a", &json!({}));
    assert_eq!(state(&["maintenance"]), "maintenance");
    world.wait_node(WAIT, |node| node["state"] == "maintenance");
    world.stop("a", &json!({}));
    assert_eq!(state(&["resume"]), before);
}
