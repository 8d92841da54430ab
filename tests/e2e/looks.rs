//! `check` and `info`: for people, for machines, and as an exit status.

use serde_json::{Value, json};

use crate::support::agent::Node;
use crate::support::control_plane::{ControlPlane, TOKEN, WAIT};
use crate::support::engine::EngineTurn;

const DEPENDENCIES: [&str; 7] = ["containerd", "nerdctl", "cni", "kata-runtime", "virtiofsd", "kvm", "vfio"];

#[test]
fn a_node_without_its_engine_is_not_ready() {
    let node = Node::new("looks-not-ready");
    let (code, text) = node.said(&["check"]);
    assert_eq!(code, 1, "{text}");
    for name in DEPENDENCIES {
        assert!(text.lines().any(|line| line.starts_with(name)), "{name}: {text}");
    }
    let nerdctl: Vec<&str> = text.lines().skip_while(|line| !line.starts_with("nerdctl")).take(2).collect();
    assert!(nerdctl[0].contains('✗') && nerdctl[0].ends_with("Container CLI"), "{text}");
    assert!(nerdctl[1].contains("install"), "it says what to do: {text}");
    assert!(text.lines().last().unwrap().starts_with("not ready: "), "{text}");

    let output = node.run(&["check", "--json"]);
    assert_eq!(output.status.code(), Some(1));
    let value: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(value["ready"], false);
    for name in DEPENDENCIES {
        let check = &value["checks"][name];
        assert!(check["installed"].is_boolean() && check["ok"].is_boolean(), "{name}: {check}");
        assert!(check["required"].is_boolean() && check["detail"].is_string(), "{name}: {check}");
    }
    assert_eq!(value["checks"]["nerdctl"]["ok"], false);
}

/// Each step on the way to the control plane, with and without an agent that runs.
#[test]
fn check_tries_the_control_plane() {
    let plane = ControlPlane::start(&[]);
    let mut node = Node::new("looks-plane");
    let row = |node: &Node, ok: bool, words: &str| {
        let output = node.run(&["check", "--json"]);
        let value: Value = serde_json::from_slice(&output.stdout).unwrap();
        let row = &value["checks"]["link"];
        assert_eq!(row["ok"], ok, "{row}");
        assert!(row["detail"].as_str().unwrap().contains(words), "{row} lacks {words:?}");
        assert!(node.said(&["check"]).1.lines().any(|line| line.starts_with("link ")));
    };
    node.set("url", plane.url());
    row(&node, false, "neither a node identity nor an organisation token");
    node.env("VECTORLAY_TOKEN", "vtk_wrong");
    row(&node, false, "check the organisation token");
    node.env("VECTORLAY_TOKEN", TOKEN);
    row(&node, true, "connected to ws://");
    assert_eq!(plane.api_get("/nodes")["nodes"], json!([]), "no node is made by looking");
    node.set("url", "ws://127.0.0.1:1/agent");
    row(&node, false, "Connection refused");
    node.set("url", "wss://nowhere.invalid/agent");
    row(&node, false, "looking up nowhere.invalid");

    node.set("url", plane.url());
    let mut agent = node.start();
    let beat = plane.wait_event(WAIT, |event| event["type"] == "heartbeat");
    row(&node, true, "connected to ws://");
    let path = format!("/nodes/{}", beat["node"].as_str().unwrap());
    assert_eq!(plane.api_get(&path)["connects"], 1, "it asked the agent");
    agent.kill();
    // With the node's own token.
    node.env("VECTORLAY_TOKEN", "");
    row(&node, true, "connected to ws://");
}

#[test]
fn a_node_with_its_engine_is_ready() {
    let Some(engine) = EngineTurn::alone("a_node_with_its_engine_is_ready") else { return };
    let mut node = Node::new("looks-ready");
    engine.give_to(&mut node);
    // No Kata, no GPU that is to be handed over: what is required follows from what the node is for.
    let root = node.path().join("root");
    node.set("runtime", "io.containerd.runc.v2").set("gpu-handover", "none");
    let (code, text) = node.said(&["check"]);
    assert_eq!(code, 0, "{text}");
    assert_eq!(text.lines().last(), Some("ready"), "{text}");
    let containerd = text.lines().find(|line| line.starts_with("containerd")).unwrap();
    assert!(containerd.contains('✓') && containerd.ends_with("Container runtime"), "{text}");
    let output = node.run(&["check", "--json"]);
    assert_eq!(output.status.code(), Some(0));
    let value: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(value["ready"], true);
    let version = value["checks"]["containerd"]["version"].as_str().unwrap();
    assert!(version.starts_with(|c: char| c.is_ascii_digit()), "{version}");

    // A GPU that is to be handed over by VFIO makes vfio a requirement.
    let device = root.join("sys/devices/pci0000:00/0000:00:03.0");
    std::fs::create_dir_all(&device).unwrap();
    std::fs::create_dir_all(root.join("sys/bus/pci/devices")).unwrap();
    for (name, text) in
        [("class", "0x030200"), ("vendor", "0x10de"), ("device", "0x2330"), ("revision", "0xa1")]
    {
        std::fs::write(device.join(name), format!("{text}\n")).unwrap();
    }
    std::os::unix::fs::symlink(&device, root.join("sys/bus/pci/devices/0000:00:03.0")).unwrap();
    node.set("root", root.to_str().unwrap()).set("gpu-handover", "vfio");
    let (code, text) = node.said(&["check"]);
    assert_eq!(code, 1, "{text}");
    assert!(text.lines().last().unwrap().contains("vfio"), "{text}");
    let output = node.run(&["info", "--json"]);
    let value: Value = serde_json::from_slice(&output.stdout).unwrap();
    let gpus = value["gpus"].as_array().unwrap();
    assert_eq!((gpus.len(), &gpus[0]["assignable"]), (1, &Value::Bool(false)), "{value:#}");
    assert_eq!(gpus[0]["pci_address"], "0000:00:03.0");
    assert!(value["gpuInfo"][0].as_str().unwrap().starts_with("00:03.0 "), "{value:#}");
}

#[test]
fn the_hardware() {
    let node = Node::new("looks-info");
    let (code, text) = node.said(&["info"]);
    assert_eq!(code, 0, "{text}");
    let hostname = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap();
    for word in [hostname.trim(), "CPU", "RAM", "storage", "kernel", "GPUs", node.path().to_str().unwrap()] {
        assert!(text.contains(word), "{word}: {text}");
    }
    let output = node.run(&["info", "--json"]);
    let value: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(value["hostname"], hostname.trim());
    let meminfo = std::fs::read_to_string("/proc/meminfo").unwrap();
    let kib: u64 = meminfo.split_whitespace().nth(1).unwrap().parse().unwrap();
    assert_eq!(value["ramGb"], (kib + (1 << 19)) >> 20);
    // As `df` counts.
    let df = std::process::Command::new("df").args(["--output=pcent"]).arg(node.path()).output().unwrap();
    let df = String::from_utf8(df.stdout).unwrap();
    let percent: u64 = df.lines().last().unwrap().trim().trim_end_matches('%').parse().unwrap();
    assert!(value["storage"]["usage_percent"].as_u64().unwrap().abs_diff(percent) <= 1, "{value:#} {df}");
}
