//! What an operator and a supervisor see: one agent per machine, status, drain, history, report, and readiness.

use std::fs::{self, File};
use std::os::unix::net::UnixDatagram;
use std::time::Duration;

use rustix::process::Signal;
use serde_json::{Value, json};

use crate::support::agent::Node;
use crate::support::control_plane::{ControlPlane, TOKEN, WAIT};
use crate::support::wait::wait_until;
use crate::world::{World, connected, node};

#[test]
fn a_machine_has_one_agent_whatever_its_state_directory_is() {
    let plane = ControlPlane::start(&[]);
    let mut node = node("operate-one", &plane);
    let mut first = node.start();
    connected(&plane);
    let other = node.path().join("other");
    node.set("state-dir", other.to_str().unwrap());
    let mut second = node.start();
    assert_eq!(second.wait_exit(WAIT), 3);
    let text = second.text();
    assert!(text.contains(&format!("process {}", first.pid())) && text.contains("instance"), "{text}");
    assert!(!other.exists());
    // With a name of its own it is another node.
    let control = node.path().join("other.sock");
    node.set("control-socket", control.to_str().unwrap()).set("instance", "operate-two");
    let _third = node.start();
    wait_until(WAIT, "two nodes", || {
        plane.api_get("/nodes")["nodes"].as_array().is_some_and(|nodes| nodes.len() == 2)
    });
    first.kill();
}

#[test]
fn status_succeeds_only_where_all_is_well_and_drain_waits() {
    let plane = ControlPlane::start(&[]);
    let node = node("operate-drain", &plane);
    let _agent = node.start();
    connected(&plane);
    let (code, text) = node.said(&["status"]);
    assert!(code == 1 && text.contains("degraded") && text.contains(plane.url()), "{code}: {text}");
    assert!(text.contains("last heartbeat") && text.contains("0 reconnects"), "{text}");
    let (code, text) = node.said(&["drain", "--wait", "--deadline", "60s"]);
    assert!(code == 0 && text.contains("\nstate        maintenance\n"), "{code}: {text}");
    let metrics = node.run(&["metrics"]).stdout;
    let metrics = String::from_utf8(metrics).unwrap();
    assert!(metrics.contains("vectorlay_node_state{state=\"maintenance\"} 1\n"), "{metrics}");
    assert!(metrics.contains("vectorlay_connected 1\n"), "{metrics}");
}

#[test]
fn what_the_node_was_is_remembered() {
    let plane = ControlPlane::start(&[]);
    let node = node("operate-history", &plane);
    let history = || -> Value { serde_json::from_slice(&node.run(&["history", "--json"]).stdout).unwrap() };
    let causes = || -> Vec<Value> {
        let lines = fs::read_to_string(node.state().join("history.jsonl")).unwrap_or_default();
        let lines = lines.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
        lines.filter(|line| line["state"] == "offline").map(|line| line["cause"].clone()).collect()
    };
    let mut agent = node.start();
    connected(&plane);
    wait_until(WAIT, "the state is recorded", || !history()["states"].as_array().unwrap().is_empty());
    agent.kill();
    let mark = plane.mark();
    let mut agent = node.start();
    plane.wait_event_after(mark, WAIT, |event| event["type"] == "heartbeat");
    wait_until(WAIT, "the end of the killed one is recorded", || causes().contains(&json!("agent")));
    agent.signal(Signal::TERM);
    assert_eq!(agent.wait_exit(WAIT), 0);
    wait_until(WAIT, "the end of the stopped one is recorded", || {
        causes().last() == Some(&json!("operator"))
    });
}

#[test]
fn a_report_has_everything_but_secrets() {
    let plane = ControlPlane::start(&[]);
    let node = node("operate-report", &plane);
    fs::write(node.file(), r#"{"proxy": "http://user:canary-proxy@127.0.0.1:9", "no_proxy": "127.0.0.1"}"#)
        .unwrap();
    let agent = node.start();
    connected(&plane);
    let node_token: Value = serde_json::from_str(&fs::read_to_string(node.identity()).unwrap()).unwrap();
    let text = String::from_utf8(node.run(&["report"]).stdout).unwrap();
    for heading in
        ["version", "settings", "check", "hardware", "GPUs", "status", "history", "log of the agent"]
    {
        assert!(text.contains(&format!("== {heading} ==\n")), "{heading}: {text}");
    }
    assert!(text.contains("connected to the control plane"), "{text}");
    for secret in [TOKEN, "canary-proxy", node_token["spec_key"].as_str().unwrap()] {
        assert!(!text.contains(secret), "{secret}: {text}");
    }
    if let Some(token) = node_token["node_token"].as_str() {
        assert!(!text.contains(token), "{text}");
    }
    // Without an agent the rest is there.
    drop(agent);
    let text = String::from_utf8(node.run(&["report"]).stdout).unwrap();
    assert!(text.contains("== status ==\nnot available: no agent is running"), "{text}");
    assert!(text.contains("== hardware ==\nhostname"), "{text}");
}

#[test]
fn output_that_cannot_be_written_is_a_failure() {
    let node = Node::new("operate-full");
    for command in [
        &["version"][..],
        &["help"],
        &["man"],
        &["config"],
        &["config", "--json"],
        &["check"],
        &["info", "--json"],
        &["history"],
        &["report"],
        &["completions", "zsh"],
        &["vfio", "status"],
    ] {
        let full = File::options().write(true).open("/dev/full").unwrap();
        let output = node.program(command).stdout(full).output().unwrap();
        let text = String::from_utf8(output.stderr).unwrap();
        assert!(output.status.code() == Some(1) && text.contains("No space left"), "{command:?}: {text}");
    }
}

#[test]
fn the_supervisor_hears_how_the_agent_is() {
    let plane = ControlPlane::start(&[]);
    let mut node = node("operate-notify", &plane);
    let path = node.path().join("notify");
    let supervisor = UnixDatagram::bind(&path).unwrap();
    supervisor.set_read_timeout(Some(WAIT)).unwrap();
    node.env("NOTIFY_SOCKET", path.to_str().unwrap()).env("WATCHDOG_USEC", "2000000");
    let hears = |wanted: &str| {
        let mut bytes = [0; 1024];
        loop {
            let length = supervisor.recv(&mut bytes).unwrap();
            let text = String::from_utf8_lossy(&bytes[..length]).into_owned();
            if text.contains(wanted) {
                return text;
            }
        }
    };
    let mut agent = node.start();
    hears("READY=1");
    hears("WATCHDOG=1");
    let line = hears("STATUS=degraded, connected, 0 replicas running; ");
    assert!(!line.contains('\n'), "{line}");
    agent.signal(Signal::HUP);
    assert!(hears("RELOADING=1").contains("\nMONOTONIC_USEC="));
    hears("READY=1");
    agent.signal(Signal::TERM);
    hears("STOPPING=1");
    assert_eq!(agent.wait_exit(WAIT + Duration::from_secs(1)), 0);
}

#[test]
fn a_replica_is_listed_and_its_output_shown() {
    let Some(world) = World::start("a_replica_is_listed_and_its_output_shown") else { return };
    let command = json!({"command": ["sh", "-c", "echo one; echo two; exec sleep 600"]});
    world.deploy("web", &command);
    let (code, text) = world.node.said(&["replicas"]);
    let line = text.lines().find(|line| line.starts_with("web ")).unwrap_or_default();
    assert!(code == 0 && line.contains(" running ") && line.contains(&world.engine.image), "{code}: {text}");
    wait_until(WAIT, "the output is there", || world.node.said(&["logs", "web"]).1.contains("one\ntwo\n"));
    let (code, text) = world.node.said(&["logs", "--tail", "1", "web"]);
    assert!(code == 0 && text.contains("two\n") && !text.contains("one\n"), "{code}: {text}");
    let (code, text) = world.node.said(&["logs", "nobody"]);
    assert!(code == 1 && text.contains("no container of replica nobody"), "{code}: {text}");
    let (code, text) = world.node.said(&["drain", "--wait", "--deadline", "0"]);
    assert!(code == 1 && text.contains("1 replica running: web"), "{code}: {text}");
    world.stop("web", &json!({}));
    assert_eq!(world.node.said(&["drain", "--wait", "--deadline", "2m"]).0, 0);
}
