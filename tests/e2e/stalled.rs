//! A registry that stands still takes nobody's time: not the other deploys', and not the pull's own up to its deadline.

use std::time::Duration;

use serde_json::{Value, json};

use crate::support::control_plane::WAIT;
use crate::support::images::layer;
use crate::support::processes;
use crate::support::registry::{Manner, Registry};
use crate::support::wait::wait_until;
use crate::world::World;

/// The setting pull_stall_s: long beside a second, which is how long the slow one pauses.
const STALL_S: usize = 8;
/// How long any of the pulls may take. The deploys' own deadline is 15 minutes.
const PATIENCE: Duration = Duration::from_secs(120);

#[test]
fn a_pull_that_stands_still_is_given_up() {
    let test = "a_pull_that_stands_still_is_given_up";
    let Some(layer) = layer(test) else { return };
    let started = World::with(test, |node, engine| {
        let slow = Manner::Slow(STALL_S * 2);
        let images = [("silent", Manner::Silent), ("stops", Manner::Stops), ("slow", slow)];
        let registry = Registry::start(engine, &layer, &images);
        node.set("images", &format!("*,{}", registry.address));
        node.set("pull-stall-s", &STALL_S.to_string());
        // As many pulls as may go on at once: they take no start's place.
        node.set("workers", "3");
        registry
    });
    let Some((world, registry)) = started else { return };
    let image = |name: &str| format!("{}/{name}:1", registry.address);
    let requests = ["silent", "stops", "slow"].map(|name| world.ask(name, &json!({"image": image(name)})));
    world.deploy("here", &json!({}));
    let [silent, stops, slow] = requests.map(|request| {
        let mine = |event: &Value| {
            event["type"] == "deploy_result" && event["payload"]["request_id"] == request.as_str()
        };
        world.plane.wait_event(PATIENCE, mine)["payload"].clone()
    });
    for result in [silent, stops] {
        assert_eq!((&result["code"], &result["detail_code"]), (&json!("pull_failed"), &json!("unreachable")));
        let error = result["error"].as_str().unwrap();
        assert!(error.contains("was given up after") && error.contains("pull_stall_s"), "{error}");
    }
    assert_eq!(slow["status"], "running", "it was slow, and moved: {slow}");
    wait_until(WAIT, "no pull is left", || {
        let children = processes::children(world.agent.pid());
        !children.iter().any(|child| child.argv.contains(" pull "))
    });
    for replica in ["here", "slow"] {
        world.stop(replica, &json!({}));
    }
    for name in ["stops", "slow"] {
        world.engine.call(&["rmi", "--force", &image(name)]);
    }
}
