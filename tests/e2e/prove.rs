//! `prove`: a container of the agent's own starts as a deploy's does, says what it sees, and is gone afterwards, whatever
//! interrupts it.

use std::process::{Child, Stdio};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

use crate::support::agent::Node;
use crate::support::control_plane::WAIT;
use crate::support::engine::{Engine, EngineTurn, Gate};
use crate::support::skip::skip;
use crate::support::wait::{wait_for, wait_until};

/// A node whose agent can be an image. None: there is no engine, or this build is not static.
fn node(test: &str) -> Option<(EngineTurn, Node)> {
    let engine = EngineTurn::alone(test)?;
    let mut node = Node::new(test);
    engine.give_to(&mut node);
    let (_, text) = node.said(&["prove"]);
    if text.contains("is not static") {
        skip(test, "the agent's binary is not static (VECTORLAY_TEST_AGENT; scripts/build-static.sh)");
        return None;
    }
    Some((engine, node))
}

/// The containers of proofs.
fn proofs(engine: &Engine) -> Vec<String> {
    let ids = engine.text(&["ps", "--all", "--no-trunc", "--quiet", "--filter", "label=vectorlay.proof"]);
    ids.lines().map(str::to_owned).collect()
}

fn is_clean(engine: &Engine) -> bool {
    let images = engine.text(&["images", "--quiet", "vectorlay-proof"]);
    proofs(engine).is_empty() && images.trim().is_empty() && engine.all().is_empty()
}

fn proved(node: &Node) -> (i32, Value) {
    let output = node.run(&["prove", "--json"]);
    let error = String::from_utf8_lossy(&output.stderr);
    let value = serde_json::from_slice(&output.stdout).unwrap_or_else(|_| panic!("{error}"));
    (output.status.code().unwrap(), value)
}

#[test]
fn what_runs_behind_katas_name_is_found_out() {
    let Some((engine, mut node)) = node("prove-kata") else { return };
    let (code, proof) = proved(&node);
    assert_eq!((code, &proof["ok"], &proof["isolated"]), (1, &false.into(), &false.into()), "{proof:#}");
    let reason = proof["reason"].as_str().unwrap();
    assert!(reason.starts_with("NOT isolated: with runtime io.containerd.kata.v2"), "{reason}");
    assert!(is_clean(&engine), "something is left");
    // The same container is all that a plain runtime is to give.
    node.set("runtime", if engine.is_docker() { "runc" } else { "io.containerd.runc.v2" });
    let (code, proof) = proved(&node);
    assert_eq!((code, &proof["ok"], &proof["reason"]), (0, &true.into(), &Value::Null), "{proof:#}");
    let kernel = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap();
    let container = &proof["container"];
    assert_eq!(container["kernel"], kernel.trim());
    assert_eq!((&container["interfaces"], &container["gateway"]), (&Value::Array(vec![]), &Value::Null));
    assert!(proof["start_ms"].as_u64().unwrap() > 0 && container["memory_mb"].as_u64().unwrap() > 0);
    let (code, text) = node.said(&["prove"]);
    assert!(code == 0 && text.ends_with("\n\nproved: containers start\n"), "{text}");
    node.set("runtime", "io.containerd.nowhere.v2");
    let (code, text) = node.said(&["prove"]);
    assert!(code == 1 && text.contains("nowhere"), "{text}");
    assert!(is_clean(&engine), "something is left");
}

#[test]
fn a_gpu_that_is_not_there_is_no_proof() {
    let Some((engine, node)) = node("prove-gpu") else { return };
    let (code, text) = node.said(&["prove", "0000:ff:1f.7"]);
    assert!(code == 1 && text.contains("there is no GPU at 0000:ff:1f.7"), "{text}");
    assert!(is_clean(&engine));
}

/// A proof that has come to a call of this kind, which waits.
fn caught(node: &Node, gate: &Gate) -> Child {
    gate.shut();
    let proof = node.program(&["prove"]).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    gate.wait_for(1);
    proof
}

#[test]
fn a_proof_that_is_killed_leaves_nothing_behind_the_next_one() {
    for verb in ["load", "image", "run", "wait", "logs", "rm", "rmi"] {
        let Some((engine, mut node)) = node("prove-killed") else { return };
        let gate = Gate::new(&engine, &mut node, verb);
        let mut proof = caught(&node, &gate);
        proof.kill().unwrap();
        proof.wait().unwrap();
        gate.open();
        if verb == "run" {
            // The call outlives who made it.
            wait_until(WAIT, "the killed proof's container is there", || !proofs(&engine).is_empty());
        }
        wait_until(WAIT, "the next proof leaves nothing behind", || {
            let (code, text) = node.said(&["prove"]);
            assert!(code == 1 && text.contains("NOT isolated"), "{verb}: {text}");
            is_clean(&engine)
        });
    }
}

#[test]
fn a_proof_that_is_told_to_end_removes_what_it_made() {
    for verb in ["load", "run", "wait", "logs", "rm"] {
        let Some((engine, mut node)) = node("prove-ended") else { return };
        let gate = Gate::new(&engine, &mut node, verb);
        let mut proof = caught(&node, &gate);
        kill_process(Pid::from_child(&proof), Signal::TERM).unwrap();
        gate.open();
        let status = wait_for(WAIT, || proof.try_wait().unwrap()).expect("it ends");
        assert_eq!(status.code(), Some(1), "{verb}");
        assert!(is_clean(&engine), "something is left when it is told to end at {verb}");
    }
}
