//! The agent's own end and return: containers do not notice, and nothing that was accepted is lost or done twice.

use std::time::{Duration, Instant};

use rustix::process::Signal;
use serde_json::{Value, json};

use crate::support::control_plane::WAIT;
use crate::support::engine::Gate;
use crate::support::wait::wait_until;
use crate::world::World;

/// Well below the grace time of 30 s.
const AT_ONCE: Duration = Duration::from_secs(10);

#[test]
fn a_killed_agent_comes_back_to_its_containers() {
    let Some(mut world) = World::start("a_killed_agent_comes_back_to_its_containers") else { return };
    let container = world.deploy("a", &json!({}));
    let pid = world.engine.pid(&container);
    world.agent.kill();
    assert_eq!(world.engine.pid(&container), pid);
    let mark = world.plane.mark();
    world.restart();
    world.wait_status(mark, "a", "running");
    assert_eq!(world.engine.pid(&container), pid, "adopted, not started anew");
    // It is the same one to a deploy, and its end is noticed.
    assert_eq!(world.deploy("a", &json!({})), container);
    world.stop("a", &json!({}));
}

#[test]
fn without_its_records_it_adopts_all_the_same() {
    let Some(mut world) = World::start("without_its_records_it_adopts_all_the_same") else { return };
    let container = world.deploy("a", &json!({}));
    let pid = world.engine.pid(&container);
    world.agent.kill();
    std::fs::remove_dir_all(world.node.state()).unwrap();
    let mark = world.plane.mark();
    world.restart();
    world.wait_status(mark, "a", "running");
    assert_eq!(world.engine.pid(&container), pid);
    world.stop("a", &json!({}));
}

#[test]
fn what_ended_meanwhile_is_told() {
    let Some(mut world) = World::start("what_ended_meanwhile_is_told") else { return };
    let wait = "trap 'exit 5' TERM; while :; do sleep 0.1; done";
    let ends = world.deploy("ends", &json!({"command": ["/bin/sh", "-c", wait]}));
    let goes = world.deploy("goes", &json!({}));
    world.agent.kill();
    world.engine.text(&["stop", &ends]);
    world.engine.text(&["rm", "--force", &goes]);
    let mark = world.plane.mark();
    world.restart();
    let told = |replica: &str| {
        let news =
            |event: &Value| event["type"] == "replica_status" && event["payload"]["replica_id"] == replica;
        world.plane.wait_event_after(mark, WAIT, news)["payload"].clone()
    };
    let ended = told("ends");
    assert_eq!((&ended["status"], &ended["exit_code"]), (&json!("exited"), &json!(5)));
    assert_eq!(told("goes")["status"], "failed");
}

#[test]
fn a_deploy_in_the_middle_of_which_it_is_killed() {
    let test = "a_deploy_in_the_middle_of_which_it_is_killed";
    let Some((mut world, gate)) = World::with(test, |node, engine| Gate::new(engine, node, "run")) else {
        return;
    };
    gate.shut();
    let request = world.ask("a", &json!({}));
    gate.wait_for(1);
    // The call goes on without the agent; the control plane sends the deploy again.
    world.restart();
    assert_eq!(world.plane.job(&request)["result"], Value::Null);
    gate.open();
    let result = world.result(&request);
    let containers = world.engine.containers("a");
    match result["status"].as_str() {
        Some("running") => assert_eq!(containers, [result["container_id"].as_str().unwrap()]),
        Some("failed") => assert_eq!(containers, [""; 0], "{result}"),
        _ => panic!("{result}"),
    }
    let results = world.events("deploy_result");
    assert!(results.iter().all(|one| *one == results[0]), "{results:?}");
    world.stop("a", &json!({}));
}

#[test]
fn sigterm_leaves_the_containers_and_says_goodbye() {
    let Some(mut world) = World::start("sigterm_leaves_the_containers_and_says_goodbye") else { return };
    let container = world.deploy("a", &json!({}));
    let pid = world.engine.pid(&container);
    for signal in [Signal::TERM, Signal::INT] {
        let mark = world.plane.mark();
        world.agent.signal(signal);
        assert_eq!(world.agent.wait_exit(AT_ONCE), 0);
        let left = world.plane.wait_event_after(mark, WAIT, |event| event["type"] == "disconnected");
        let why = left["payload"]["why"].as_str().unwrap();
        assert!(why.starts_with("closed by the node: 1001"), "{why}");
        assert_eq!(world.engine.pid(&container), pid);
        world.restart();
    }
    assert_eq!(world.deploy("a", &json!({})), container);
}

#[test]
fn sigterm_lets_what_is_in_flight_finish() {
    let test = "sigterm_lets_what_is_in_flight_finish";
    let started = World::with(test, |node, engine| {
        node.set("workers", "1");
        Gate::new(engine, node, "run")
    });
    let Some((mut world, gate)) = started else { return };
    gate.shut();
    let flying = world.ask("flying", &json!({}));
    gate.wait_for(1);
    let queued = world.ask("queued", &json!({}));
    wait_until(WAIT, "one waits", || world.node.said(&["status"]).1.contains("1 deploy,"));
    world.agent.signal(Signal::TERM);
    let result = world.result(&queued);
    assert_eq!((&result["status"], &result["code"]), (&json!("failed"), &json!("interrupted")), "{result}");
    // No new work is taken, and no answer given: it will be sent again.
    let late = world.ask("late", &json!({}));
    gate.open();
    assert_eq!(world.result(&flying)["status"], "running");
    assert_eq!(world.agent.wait_exit(AT_ONCE), 0);
    assert_eq!(world.plane.job(&late)["result"], Value::Null);
    assert_eq!(world.engine.containers("late"), [""; 0]);
    assert_eq!((world.engine.containers("flying").len(), gate.calls()), (1, 1));
    world.restart();
    assert_eq!(world.result(&late)["status"], "running");
    assert_eq!(world.plane.job(&queued)["contradicted"], 0);
}

#[test]
fn a_second_signal_ends_it_at_once() {
    let test = "a_second_signal_ends_it_at_once";
    let Some((mut world, gate)) = World::with(test, |node, engine| Gate::new(engine, node, "run")) else {
        return;
    };
    let container = world.deploy("there", &json!({}));
    gate.shut();
    world.ask("a", &json!({}));
    gate.wait_for(1);
    world.agent.signal(Signal::TERM);
    world.agent.wait_line(WAIT, |line| line.contains("ending"));
    let began = Instant::now();
    world.agent.signal(Signal::INT);
    assert_eq!(world.agent.wait_exit(AT_ONCE), 1);
    assert!(began.elapsed() < AT_ONCE);
    world.engine.pid(&container);
    gate.open();
}

#[test]
fn the_grace_time_ends() {
    let test = "the_grace_time_ends";
    let started = World::with(test, |node, engine| {
        node.set("grace-s", "1");
        Gate::new(engine, node, "run")
    });
    let Some((mut world, gate)) = started else { return };
    gate.shut();
    let request = world.ask("a", &json!({}));
    gate.wait_for(1);
    world.agent.signal(Signal::TERM);
    assert_eq!(world.agent.wait_exit(AT_ONCE), 0);
    gate.open();
    // The call goes on; what becomes of it is told by the agent that comes next, once.
    world.restart();
    world.result(&request);
    assert!(world.engine.containers("a").len() <= 1);
}

#[test]
fn sighup_checks_again() {
    let Some(world) = World::start("sighup_checks_again") else { return };
    let container = world.deploy("a", &json!({}));
    let pid = world.engine.pid(&container);
    let mark = world.plane.mark();
    world.agent.signal(Signal::HUP);
    world.plane.wait_event_after(mark, WAIT, |event| event["type"] == "system_info");
    let mark = world.plane.mark();
    assert_eq!(world.node.said(&["recheck"]).0, 0);
    world.plane.wait_event_after(mark, WAIT, |event| event["type"] == "system_info");
    assert_eq!(world.engine.pid(&container), pid);
    assert_eq!(world.wait_node(WAIT, |_| true)["connects"], 1);
}
