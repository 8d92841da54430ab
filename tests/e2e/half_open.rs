//! A connection that dies without a word, in a network namespace of its own: nothing arrives any more, and nobody says
//! so. The agent notices by itself, its containers do not, and it is back soon after the network is.

use std::process::Command;
use std::time::{Duration, Instant};

use serde_json::json;

use crate::support::agent::Node;
use crate::support::control_plane::{ControlPlane, TOKEN, WAIT};
use crate::support::engine::EngineTurn;
use crate::support::skip::skip;
use crate::world::{World, connected};

/// How long silence is borne, and what a busy machine adds.
const NOTICED_MS: u64 = 15_000 + 3_000;

/// A namespace whose only way out is a pair of virtual devices.
struct Cable {
    name: String,
    /// The device on this side.
    near: String,
}

impl Cable {
    /// The addresses of both ends: from 198.18.0.0/15, which is for tests (RFC 2544).
    const NEAR: &str = "198.18.77.1";
    const FAR: &str = "198.18.77.2";

    fn new() -> Self {
        let pid = std::process::id();
        let cable = Self { name: format!("vl-e2e-{pid}"), near: format!("vle{pid}") };
        let Self { name, near } = &cable;
        let far = "far";
        ip(&format!("netns add {name}"));
        ip(&format!("link add {near} type veth peer name {far} netns {name}"));
        ip(&format!("addr add {}/30 dev {near}", Self::NEAR));
        ip(&format!("link set {near} up"));
        ip(&format!("-n {name} addr add {}/30 dev {far}", Self::FAR));
        ip(&format!("-n {name} link set {far} up"));
        ip(&format!("-n {name} link set lo up"));
        cable
    }

    fn cut(&self) {
        ip(&format!("link set {} down", self.near));
    }

    fn mend(&self) {
        ip(&format!("link set {} up", self.near));
    }
}

impl Drop for Cable {
    fn drop(&mut self) {
        for line in [format!("link del {}", self.near), format!("netns del {}", self.name)] {
            let _ = Command::new("ip").args(line.split(' ')).output();
        }
    }
}

fn ip(line: &str) {
    let output = Command::new("ip").args(line.split(' ')).output().unwrap();
    assert!(output.status.success(), "ip {line}: {}", String::from_utf8_lossy(&output.stderr));
}

#[test]
fn a_connection_that_is_cut_in_silence() {
    let test = "a_connection_that_is_cut_in_silence";
    let Some(engine) = EngineTurn::alone(test) else { return };
    if Command::new("ip").arg("-V").output().is_err() {
        return skip(test, "there is no ip (Debian's package iproute2)");
    }
    let cable = Cable::new();
    let plane =
        ControlPlane::start(&["--listen", &format!("{}:0", Cable::NEAR), "--offline-after-s", "3600"]);
    let mut node = Node::new(test);
    engine.give_to(&mut node);
    node.set("url", plane.url()).set("allow-insecure", "true").env("VECTORLAY_TOKEN", TOKEN);
    node.around = ["ip", "netns", "exec", &cable.name].map(str::to_owned).to_vec();
    let agent = node.start();
    let id = connected(&plane);
    let world = World { agent, plane, node, id, engine };
    let wait = "trap 'exit 6' TERM; while :; do sleep 0.1; done";
    let stays = world.deploy("stays", &json!({}));
    let ends = world.deploy("ends", &json!({"command": ["/bin/sh", "-c", wait]}));
    let pid = world.engine.pid(&stays);

    let began = Instant::now();
    cable.cut();
    // Something happens that the control plane cannot be told of now.
    world.engine.text(&["stop", &ends]);
    let deadline = Duration::from_millis(NOTICED_MS);
    let line = world.agent.wait_line(deadline, |line| line.contains("next attempt in"));
    let took = began.elapsed();
    assert!(line.contains("nothing arrived for 15 s"), "{line}");
    assert!(took > Duration::from_secs(9), "{took:?}: it was heard from less than 6 s before");
    assert_eq!(world.engine.pid(&stays), pid);
    let (_, status) = world.node.said(&["status"]);
    assert!(status.contains("nothing arrived for 15 s") && status.contains("running    stays"), "{status}");

    let mark = world.plane.mark();
    cable.mend();
    let mended = Instant::now();
    let beat = world.plane.wait_event_after(mark, WAIT, |event| event["type"] == "heartbeat");
    assert!(mended.elapsed() < Duration::from_secs(15), "{:?}", mended.elapsed());
    let containers = beat["payload"]["status"]["containers"].to_string();
    assert!(containers.contains(r#"{"replica_id":"stays","status":"running"}"#), "{containers}");
    world.plane.wait_event_after(mark, WAIT, |event| event["payload"]["exit_code"] == 6);
    assert_eq!(world.engine.pid(&stays), pid);
    world.stop("stays", &json!({}));
}
