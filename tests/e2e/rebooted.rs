//! What a reboot of the host leaves behind.

use std::fs;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use crate::support::agent::Node;
use crate::support::control_plane::{ControlPlane, TOKEN, WAIT};
use crate::support::engine::{EngineTurn, OwnEngine};
use crate::support::host::machine;
use crate::support::skip::skip;
use crate::world::connected;

/// As many containers as a network of eight addresses has room for: one is the network's own, one the bridge's, one
/// for broadcasts.
const ROOM: usize = 5;

/// nerdctl's records of containers' names, below its data: files that are called so, in `HASH/names/NAMESPACE`, or
/// without `names` in 2.0.
fn records_of_names(folder: &Path) -> Vec<PathBuf> {
    let below = fs::read_dir(folder).into_iter().flatten().flatten().map(|entry| entry.path());
    let (folders, files): (Vec<_>, Vec<_>) = below.partition(|path| path.is_dir());
    let is_ours = |file: &PathBuf| file.file_name().unwrap().to_str().unwrap().starts_with("replica-");
    files
        .into_iter()
        .filter(is_ours)
        .chain(folders.iter().flat_map(|folder| records_of_names(folder)))
        .collect()
}

#[test]
fn what_a_reboot_ended_gives_its_addresses_back() {
    let name = "what_a_reboot_ended_gives_its_addresses_back";
    // Not the engine that the others use: it loses all that runs.
    let Some(turn) = EngineTurn::shared(name) else { return };
    if turn.is_docker() {
        return skip(name, "Docker keeps its addresses itself");
    }
    let engine = OwnEngine::start(&turn);
    engine.text(&["network", "create", "--subnet", "10.123.0.0/29", "small"]);
    let mut node = Node::new(name);
    engine.give_to(&mut node);
    let boot_id = node.path().join("boot_id");
    let cni = engine.inside("/var/lib/cni");
    let replaced = [("var/lib/cni", cni.as_path()), ("proc/sys/kernel/random/boot_id", boot_id.as_path())];
    let root = machine(&node.path().join("machine"), &replaced);
    let boot = |round: usize| fs::write(&boot_id, format!("boot-{round}\n")).unwrap();
    boot(0);
    node.set("network", "small").set("root", root.to_str().unwrap());
    let plane = ControlPlane::start(&["--state", node.path().join("plane.json").to_str().unwrap()]);
    node.set("url", plane.url()).env("VECTORLAY_TOKEN", TOKEN);
    let mut agent = node.start();
    let id = connected(&plane);
    let deploy = |replica: String| {
        let payload = json!({"replica_id": replica, "image": engine.image});
        plane.api_post(&format!("/nodes/{id}/deploy"), &payload)["request_id"].clone()
    };
    for round in 0..3 {
        // All at once, as a control plane does that finds a node empty. The names are those of the boot before.
        let requests: Vec<Value> = (0..ROOM).map(|n| deploy(format!("r{}", n + round % 2))).collect();
        for request in requests {
            let result = plane.wait_event(WAIT, |event| event["payload"]["request_id"] == request);
            assert_eq!(result["payload"]["status"], "running", "boot {round}: {result}");
        }
        agent.kill();
        engine.reboot();
        // Known for a reboot, and not: what ended is kept for its log, or removed at once.
        boot(usize::from(round > 0));
        if round == 0 {
            // As a power cut leaves them. nerdctl 1.7 takes these names for used from now on, by a container without ID.
            let names = records_of_names(&engine.dir().join("nerdctl.data"));
            assert_eq!(names.len(), ROOM);
            names.iter().for_each(|name| fs::write(name, "").unwrap());
        }
        let mark = plane.mark();
        agent = node.start();
        plane.wait_event_after(mark, WAIT, |event| event["type"] == "heartbeat");
        if round == 1 {
            plane.wait_event_after(mark, WAIT, |event| event["payload"]["reason"] == "host rebooted");
            assert!(!engine.all().is_empty(), "kept for their logs");
        }
    }
    drop(agent);
}
