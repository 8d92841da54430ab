//! What the static binaries promise: memory, and that the one for the other architecture really works.

use std::path::PathBuf;

use crate::support::agent::{Agent, Node};
use crate::support::control_plane::{Certificate, ControlPlane, TOKEN, WAIT};
use crate::support::skip::{has_openssl, skip};
use rustix::process::Signal;

/// What is private and dirty when idle, in bytes. The rest of what is resident is the binary's own file, which the
/// kernel maps whole and can drop: `scripts/build-static.sh` limits its size.
const PRIVATE_DIRTY_MAX: u64 = 600_000;

/// A node with an agent that is connected by TLS and has sent its first heartbeat.
fn connected(name: &str, shape: impl Fn(&mut Node)) -> (Node, ControlPlane, Agent) {
    let mut node = Node::new(name);
    let made = Certificate::make(node.path());
    let [ca, cert, key] = [&made.ca, &made.cert, &made.key].map(|path| path.to_str().unwrap());
    let plane = ControlPlane::start(&["--tls-cert", cert, "--tls-key", key]);
    node.set("url", plane.url()).set("ca-file", ca).set("log", "info").env("VECTORLAY_TOKEN", TOKEN);
    shape(&mut node);
    let agent = node.start();
    let info = plane.wait_event(WAIT, |event| event["type"] == "system_info");
    plane.wait_event(WAIT, |event| event["type"] == "heartbeat");
    assert!(info["payload"]["hostname"].as_str().is_some_and(|name| !name.is_empty()), "{info}");
    (node, plane, agent)
}

#[test]
fn idle_memory() {
    let Some(binary) = std::env::var_os("VECTORLAY_TEST_AGENT") else {
        skip("idle_memory", "VECTORLAY_TEST_AGENT names no static binary");
        return;
    };
    if !has_openssl("idle_memory") {
        return;
    }
    let (_node, plane, agent) =
        connected("budgets-memory", |node| node.binary = Some(PathBuf::from(&binary)));
    // What it takes for its checks and reports it must not go on taking more of.
    for _ in 0..3 {
        let mark = plane.mark();
        agent.signal(Signal::HUP);
        plane.wait_event_after(mark, WAIT, |event| event["type"] == "system_info");
    }
    let rollup = std::fs::read_to_string(format!("/proc/{}/smaps_rollup", agent.pid())).unwrap();
    let measure = |field: &str| -> u64 {
        let line = rollup.lines().find(|line| line.starts_with(field)).unwrap();
        line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap() * 1024
    };
    let (resident, dirty) = (measure("Rss:"), measure("Private_Dirty:"));
    assert!(dirty <= PRIVATE_DIRTY_MAX, "{dirty} bytes private and dirty");
    let file = std::fs::metadata(&binary).unwrap().len().next_multiple_of(4096);
    let beside = resident.saturating_sub(file);
    assert!(beside <= PRIVATE_DIRTY_MAX, "{resident} bytes resident: {beside} beside the binary's");
}

#[test]
fn aarch64_registers_and_reports_over_tls() {
    if !has_openssl("aarch64_registers_and_reports_over_tls") {
        return;
    }
    let Some(binary) = std::env::var_os("VECTORLAY_TEST_AGENT_AARCH64") else {
        skip("aarch64_registers_and_reports_over_tls", "VECTORLAY_TEST_AGENT_AARCH64 names no binary");
        return;
    };
    let qemu = std::env::var("PATH").unwrap_or_default();
    let qemu =
        std::env::split_paths(&qemu).map(|dir| dir.join("qemu-aarch64-static")).find(|path| path.exists());
    let Some(qemu) = qemu else {
        skip("aarch64_registers_and_reports_over_tls", "there is no qemu-aarch64-static");
        return;
    };
    let (_node, plane, mut agent) = connected("budgets-aarch64", |node| {
        node.binary = Some(PathBuf::from(&binary));
        node.around = vec![qemu.to_str().unwrap().to_owned()];
    });
    let info = plane.wait_event(WAIT, |event| event["type"] == "system_info");
    assert_eq!(info["payload"]["arch"], "aarch64", "{info}");
    agent.signal(Signal::TERM);
    assert_eq!(agent.wait_exit(WAIT), 0);
}
