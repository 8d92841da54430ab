//! One container that the CLI cannot read: it is unknown alone, and the node serves the others.

use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use crate::support::control_plane::WAIT;
use crate::support::skip::skip;
use crate::support::wait::wait_until;
use crate::world::World;

/// The file of a container below `folder` that nerdctl 2.1 and later read for its ports.
pub fn network_file(folder: &Path, container: &str) -> Option<PathBuf> {
    std::fs::read_dir(folder).ok()?.flatten().find_map(|entry| {
        let path = entry.path();
        if entry.file_name() == container {
            return Some(path.join("network-config.json")).filter(|file| file.exists());
        }
        if path.is_dir() { network_file(&path, container) } else { None }
    })
}

fn state(world: &World) -> Value {
    let (_, text) = world.node.said(&["status", "--json"]);
    serde_json::from_str(&text).unwrap()
}

fn status(world: &World, replica: &str) -> String {
    let state = state(world);
    let found = state["containers"].as_array().unwrap().iter().find(|one| one["replica_id"] == replica);
    found.map(|one| one["status"].as_str().unwrap().to_owned()).unwrap_or_default()
}

#[test]
fn a_container_that_cannot_be_read_hides_no_other() {
    let name = "a_container_that_cannot_be_read_hides_no_other";
    let variable = |name: &str| std::env::var(name).unwrap_or_default();
    let (folder, namespace) = (variable("VECTORLAY_TEST_ENGINE_DIR"), variable("VECTORLAY_TEST_NAMESPACE"));
    if namespace.is_empty() || folder.is_empty() {
        return skip(name, "no engine of nerdctl's");
    }
    let folder = PathBuf::from(folder);
    let socket = folder.join("engine.sock");
    let change = |node: &mut crate::support::agent::Node, _: &crate::support::engine::Engine| {
        node.set("reconcile-s", "5").set("retention-s", "1").set("namespace", &namespace);
        node.set("containerd-address", socket.to_str().unwrap());
    };
    let Some((mut world, ())) = World::with(name, change) else { return };
    let container = world.deploy("damaged", &json!({}));
    world.deploy("other", &json!({}));
    let Some(file) = network_file(&folder.join("nerdctl.data"), &container) else {
        return skip(name, "this nerdctl keeps no such file");
    };
    let work = world.engine.pid(&container);
    let whole = std::fs::read(&file).unwrap();
    // As a power cut leaves it.
    std::fs::write(&file, "").unwrap();
    for restarted in [false, true] {
        if restarted {
            world.restart();
        }
        wait_until(WAIT, "the node says which container cannot be read", || {
            let reason = state(&world)["reason"].as_str().unwrap().to_owned();
            reason.contains("replica damaged is unknown") && reason.contains("unexpected end of JSON input")
        });
        assert_eq!(
            (status(&world, "damaged").as_str(), status(&world, "other").as_str()),
            ("unknown", "running")
        );
    }
    // The engine's own list fails as well: what the node answers is what counts.
    let asked = world.ask("third", &json!({}));
    assert_eq!(world.result(&asked)["status"], "running");
    let stopped = world.send("stop", &json!({"replica_id": "other"}));
    assert_eq!(world.result(&stopped)["status"], "stopped");
    std::fs::write(&file, whole).unwrap();
    wait_until(WAIT, "it is taken up again", || status(&world, "damaged") == "running");
    assert_eq!(world.engine.pid(&container), work, "it was started anew");
}
