//! The startup flow: a saved identity, else a token, else an error that names both ways; and what the control plane
//! may say to either. No engine is needed for it.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

use rustix::process::Signal;
use serde_json::{Value, json};

use crate::support::agent::Node;
use crate::support::control_plane::{ControlPlane, TOKEN, WAIT};
use crate::support::wait::wait_until;
use crate::world::{connected, node};

fn identity(node: &Node) -> Value {
    serde_json::from_slice(&fs::read(node.identity()).unwrap()).unwrap()
}

fn mode(path: &Path) -> u32 {
    fs::metadata(path).unwrap().permissions().mode() & 0o777
}

/// The state directory's files whose names begin with `node.json`.
fn kept(node: &Node) -> Vec<String> {
    let names = fs::read_dir(node.state()).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap());
    let mut names: Vec<String> = names.filter(|name| name.starts_with("node.json")).collect();
    names.sort();
    names
}

#[test]
fn a_new_node_registers_and_an_old_one_comes_back() {
    let plane = ControlPlane::start(&[]);
    let mut node = node("identity-new", &plane);
    let mut agent = node.start();
    let id = connected(&plane);
    wait_until(WAIT, "the identity is saved", || node.identity().exists());
    assert_eq!((mode(&node.identity()), mode(&node.state())), (0o600, 0o700));
    let saved = identity(&node);
    assert_eq!(saved["node_id"], id.as_str());
    assert!(saved["node_token"].as_str().unwrap().starts_with("vln_"));
    assert_eq!(kept(&node), ["node.json"], "no temporary file stays");

    // system_info comes first, whole, and a heartbeat at once after it.
    let events = plane.api_get("/events?since=0");
    let events = events["events"].as_array().unwrap();
    let kinds: Vec<&str> = events.iter().map(|event| event["type"].as_str().unwrap()).collect();
    assert_eq!(kinds[..2], ["registered", "connected"], "{kinds:?}");
    let first = |kind: &str| events.iter().find(|event| event["type"] == kind).unwrap();
    assert_eq!(kinds[2], "system_info", "{kinds:?}");
    assert!(kinds.iter().position(|kind| *kind == "heartbeat").unwrap() <= 4, "{kinds:?}");
    let (connected_at, beat_at) = (first("connected")["ms"].as_u64(), first("heartbeat")["ms"].as_u64());
    assert!(beat_at.unwrap() - connected_at.unwrap() < 10_000, "not 30 s later");
    let info = &first("system_info")["payload"];
    for field in ["hostname", "cpuModel", "machine_id", "boot_id", "agent_version", "arch", "kernel"] {
        assert!(info[field].as_str().is_some_and(|text| !text.is_empty()), "{field}: {info:#}");
    }
    assert!(info["cpuCores"].as_u64().unwrap() > 0 && info["ramGb"].is_u64() && info["gpuInfo"].is_array());
    assert_eq!(info["storage"]["path"], node.path().to_str().unwrap());
    assert_eq!(info["dependencies"]["ready"], false, "it has no container CLI");
    assert_eq!((&info["state"], &info["node_id"]), (&json!("degraded"), &json!(id)));
    assert_eq!(plane.wait_node(&id, WAIT, |_| true)["violations"], 0);

    // It comes back as the same node, without the token; and what it knows stays as it is.
    agent.kill();
    node.env("VECTORLAY_TOKEN", "");
    let mark = plane.mark();
    let _agent = node.start();
    let beat = plane.wait_event_after(mark, WAIT, |event| event["type"] == "heartbeat");
    assert_eq!(beat["node"], id.as_str());
    assert_eq!(identity(&node), saved);
    let again = |event: &&Value| event["type"] == "registered";
    let events = plane.api_get("/events?since=0");
    assert_eq!(events["events"].as_array().unwrap().iter().filter(again).count(), 1);
}

#[test]
fn neither_identity_nor_token() {
    let plane = ControlPlane::start(&[]);
    let mut node = node("identity-neither", &plane);
    node.env("VECTORLAY_TOKEN", "");
    let mut agent = node.start();
    assert_eq!(agent.wait_exit(WAIT), 3);
    let text = agent.text();
    assert!(text.contains(node.identity().to_str().unwrap()), "{text}");
    assert!(text.contains("token") && text.contains("VECTORLAY_TOKEN"), "{text}");
}

#[test]
fn a_damaged_identity_is_kept_aside() {
    let plane = ControlPlane::start(&[]);
    let mut node = node("identity-damaged", &plane);
    fs::create_dir(node.state()).unwrap();
    let damages =
        ["", "{\"node_id\": \"n-", "\0\0\0\0", "[]", "{}", "{\"node_id\": 7}", "{\"node_id\": \"a b\"}"];
    for (count, damage) in damages.iter().enumerate() {
        fs::write(node.identity(), damage).unwrap();
        // Without a token that is an error …
        node.env("VECTORLAY_TOKEN", "");
        let mut agent = node.start();
        assert_eq!(agent.wait_exit(WAIT), 3, "{damage:?}");
        let text = agent.text();
        assert!(text.contains("damaged") && text.contains(node.identity().to_str().unwrap()), "{text}");
        // … and what was there is not lost.
        let aside: Vec<String> = kept(&node).into_iter().filter(|name| name != "node.json").collect();
        assert_eq!(aside.len(), count + 1, "{aside:?}");
        let contents: Vec<Vec<u8>> = aside.iter().map(|n| fs::read(node.state().join(n)).unwrap()).collect();
        assert!(contents.contains(&damage.as_bytes().to_vec()), "{damage:?} among {aside:?}");
    }
    fs::write(node.identity(), "{oops").unwrap();
    node.env("VECTORLAY_TOKEN", TOKEN);
    let agent = node.start();
    let id = connected(&plane);
    wait_until(WAIT, "the identity is saved", || node.identity().exists());
    assert_eq!(identity(&node)["node_id"], id.as_str());
    assert_eq!(kept(&node).len(), damages.len() + 2);
    assert!(agent.text().contains("damaged"), "it is reported");
}

#[test]
fn an_identity_that_cannot_be_read_is_no_reason_to_register() {
    let plane = ControlPlane::start(&[]);
    let node = node("identity-unreadable", &plane);
    fs::create_dir_all(node.identity()).unwrap();
    let mut agent = node.start();
    assert_eq!(agent.wait_exit(WAIT), 3);
    assert!(agent.text().contains(node.identity().to_str().unwrap()), "{}", agent.text());
    assert_eq!(plane.api_get("/nodes")["nodes"], json!([]));
}

#[test]
fn a_second_agent_is_kept_off() {
    let plane = ControlPlane::start(&[]);
    let mut node = node("identity-lock", &plane);
    let mut first = node.start();
    connected(&plane);
    node.set("control-socket", node.path().join("other.sock").to_str().unwrap());
    let mut second = node.start();
    assert_eq!(second.wait_exit(WAIT), 3);
    let text = second.text();
    assert!(text.contains("lock") && text.contains(&first.pid().to_string()), "{text}");
    // The lock goes with its process, however that ends.
    first.kill();
    let mark = plane.mark();
    let _third = node.start();
    plane.wait_event_after(mark, WAIT, |event| event["type"] == "heartbeat");
}

#[test]
fn a_token_that_is_refused() {
    // Over HTTP and over the socket alike.
    for over in ["http", "socket"] {
        let plane = ControlPlane::start(&["--register-over", over]);
        let mut node = node("identity-refused", &plane);
        node.env("VECTORLAY_TOKEN", "vtk_wrong");
        let mut agent = node.start();
        assert_eq!(agent.wait_exit(WAIT), 4, "{over}");
        let text = agent.text();
        assert!(text.contains("token") && text.contains("refused"), "{text}");
        assert!(!text.contains("vtk_wrong"), "{text}");
        assert!(!node.identity().exists());
    }
}

#[test]
fn a_server_that_registers_over_the_socket() {
    for more in [&["--no-node-token"][..], &[]] {
        let plane = ControlPlane::start(&[&["--register-over", "socket"], more].concat());
        let node = node("identity-socket", &plane);
        let mut agent = node.start();
        let id = connected(&plane);
        wait_until(WAIT, "the identity is saved", || node.identity().exists());
        let saved = identity(&node);
        assert_eq!(saved["node_id"], id.as_str());
        assert_eq!(saved["node_token"].is_string(), more.is_empty());
        let view = plane.wait_node(&id, WAIT, |_| true);
        assert_eq!(view["messages"]["system_info"], 1, "it is not repeated");
        agent.kill();
        let mark = plane.mark();
        let _agent = node.start();
        let beat = plane.wait_event_after(mark, WAIT, |event| event["type"] == "heartbeat");
        assert_eq!(beat["node"], id.as_str());
    }
}

#[test]
fn a_known_node_that_is_refused_keeps_its_identity_and_tries_again() {
    let plane = ControlPlane::start(&["--http-status", "401"]);
    let node = node("identity-known", &plane);
    fs::create_dir(node.state()).unwrap();
    let saved = r#"{"node_id": "n-1", "node_token": "vln_secret"}"#;
    fs::write(node.identity(), saved).unwrap();
    let mut agent = node.start();
    let line = agent.wait_line(WAIT, |line| line.contains("next attempt in"));
    assert!(line.contains("401") && line.contains("the node's own token, in node.json"), "{line}");
    // At the slowest interval: 30 s, give or take 20 %.
    let delay: f32 = line.split("next attempt in ").nth(1).unwrap().trim_end_matches(" s").parse().unwrap();
    assert!((24.0..=36.0).contains(&delay), "{line}");
    let (_, status) = node.said(&["status"]);
    assert!(status.contains("401") && status.contains("n-1"), "{status}");
    assert!(!agent.text().contains("vln_secret"));
    let known = identity(&node);
    assert_eq!((&known["node_id"], &known["node_token"]), (&json!("n-1"), &json!("vln_secret")));
    agent.signal(Signal::TERM);
    assert_eq!(agent.wait_exit(WAIT), 0);
}

#[test]
fn a_node_that_was_removed() {
    let plane = ControlPlane::start(&[]);
    let mut node = node("identity-removed", &plane);
    let mut agent = node.start();
    let first = connected(&plane);
    // With a token it registers again: once told by the close code, once by HTTP 410.
    let mark = plane.mark();
    plane.api_post(&format!("/nodes/{first}/remove"), &json!({}));
    let beat =
        plane.wait_event_after(mark, WAIT, |event| event["type"] == "heartbeat" && event["node"] != *first);
    let second = beat["node"].as_str().unwrap().to_owned();
    wait_until(WAIT, "the new identity is saved", || identity(&node)["node_id"] == *second);
    agent.kill();
    plane.api_post(&format!("/nodes/{second}/remove"), &json!({}));
    let mark = plane.mark();
    agent = node.start();
    let beat = plane.wait_event_after(mark, WAIT, |event| event["type"] == "heartbeat");
    let third = beat["node"].as_str().unwrap().to_owned();
    assert!(third != first && third != second);
    wait_until(WAIT, "the new identity is saved", || identity(&node)["node_id"] == *third);

    // Without one that is the end.
    agent.kill();
    node.env("VECTORLAY_TOKEN", "");
    agent = node.start();
    plane.wait_event_after(plane.mark(), WAIT, |event| event["type"] == "heartbeat");
    plane.api_post(&format!("/nodes/{third}/remove"), &json!({}));
    assert_eq!(agent.wait_exit(WAIT), 3);
    let mut agent = node.start();
    assert_eq!(agent.wait_exit(WAIT), 3);
    assert!(agent.text().contains("removed") && agent.text().contains("token"), "{}", agent.text());
    assert_eq!(identity(&node)["node_id"], third.as_str());
}

#[test]
fn a_stateless_node_gets_its_old_id_back() {
    let plane = ControlPlane::start(&[]);
    let node = node("identity-stateless", &plane);
    let mut agent = node.start();
    let id = connected(&plane);
    agent.kill();
    fs::remove_dir_all(node.state()).unwrap();
    let mark = plane.mark();
    let _agent = node.start();
    let beat = plane.wait_event_after(mark, WAIT, |event| event["type"] == "heartbeat");
    assert_eq!(beat["node"], id.as_str());
}

#[test]
fn a_server_that_is_busy_is_asked_again_when_it_says() {
    let plane = ControlPlane::start(&["--http-status", "503", "--retry-after", "45"]);
    let node = node("identity-busy", &plane);
    let agent = node.start();
    let line = agent.wait_line(WAIT, |line| line.contains("next attempt in"));
    let delay: f32 = line.split("next attempt in ").nth(1).unwrap().trim_end_matches(" s").parse().unwrap();
    assert!(delay >= 45.0 && line.contains("503"), "{line}");
}
