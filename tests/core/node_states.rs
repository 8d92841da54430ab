//! online, degraded, draining, maintenance.

use vectorlay::core::Event;
use vectorlay::core::job::FailureKind;
use vectorlay::core::link_api::DownReason;
use vectorlay::core::operator::Request;

use crate::rig::{Rig, SECOND, Start, check};

#[test]
fn drain_finishes_what_was_accepted_and_becomes_maintenance() {
    let mut rig = Rig::online();
    rig.hold("run");
    for replica in ["a", "b", "c"] {
        rig.deploy(replica, "q");
    }
    rig.hear("drain", "{}");
    assert_eq!(rig.state(), "draining");
    rig.deploy("d", "q");
    assert_eq!(rig.sent(), ["deploy_result d failed:draining q"]);
    rig.release("run");
    assert_eq!(rig.sent().len(), 3, "queued ones too");
    assert_eq!(rig.state(), "maintenance");
    assert_eq!(rig.engine.containers.len(), 3, "replicas keep running");
    rig.deploy("a", "q2");
    assert_eq!(rig.sent(), ["deploy_result a running q2"], "it runs, and nothing is started for it");
    rig.stop("a", "q3");
    assert_eq!(rig.sent(), ["stop_result a stopped q3"]);
    rig.hear("resume", "{}");
    assert_eq!(rig.state(), "online");
}

#[test]
fn drain_and_maintenance_survive_a_restart() {
    for (word, after) in [("drain", "maintenance"), ("maintenance", "maintenance")] {
        let mut rig = Rig::online();
        rig.hear(word, "{}");
        let mut rig = rig.restart();
        assert_eq!(rig.state(), after);
        rig.connect();
        rig.deploy("r", "q");
        assert_eq!(rig.sent(), ["deploy_result r failed:draining q"]);
        rig.control(Request::Resume);
        assert_eq!(rig.state(), "online");
    }
}

#[test]
fn a_required_dependency_that_fails_degrades_and_refuses_nothing() {
    let mut rig = Rig::online();
    rig.event(Event::Check(check(false)));
    rig.event(Event::ChecksDone);
    assert_eq!(rig.state(), "degraded");
    assert!(rig.everything_sent().contains(&"node_state".to_owned()));
    rig.deploy("r", "q1");
    assert_eq!(rig.sent(), ["deploy_result r running q1"]);
    rig.event(Event::Check(check(true)));
    rig.event(Event::ChecksDone);
    assert_eq!(rig.state(), "online");
    assert!(rig.everything_sent().contains(&"node_state".to_owned()));
}

#[test]
fn each_connection_hears_the_state_and_nothing_twice() {
    let mut rig = Rig::online();
    let states = |rig: &mut Rig| {
        let sent = rig.everything_sent();
        sent.iter().filter(|message| *message == "node_state").count()
    };
    rig.down(DownReason::Broken);
    rig.connect();
    assert_eq!(states(&mut rig), 1, "this peer may not know it");
    rig.beat();
    assert_eq!(states(&mut rig), 0, "nothing has changed");
}

#[test]
fn before_the_containers_are_known_a_deploy_waits_up_to_its_deadline() {
    let mut rig = Rig::start(Start { engine: frozen(), ..Start::default() });
    rig.connect();
    rig.deploy_with("r", "q1", r#","deploy_timeout_s":30"#);
    rig.deploy("s", "q2");
    rig.wait(31 * SECOND);
    assert_eq!(rig.sent(), ["deploy_result r failed:not_ready q1"]);
    rig.engine.mode = crate::engine::Mode::Well;
    rig.release("");
    assert_eq!(rig.sent(), ["deploy_result s running q2"]);
}

#[test]
fn what_waits_for_the_containers_to_be_known_keeps_its_order() {
    let mut rig = Rig::start(Start { engine: frozen(), ..Start::default() });
    rig.connect();
    // Without request IDs: the same deploy behind a stop is another; twice in a row it arrived twice.
    rig.deploy("r", "");
    rig.stop("r", "");
    rig.deploy("r", "");
    rig.deploy("r", "");
    rig.engine.mode = crate::engine::Mode::Well;
    rig.release("");
    let sent = rig.sent();
    assert_eq!(sent.last().map(String::as_str), Some("deploy_result r running"), "{sent:?}");
    assert_eq!(rig.up("r"), 1);
}

#[test]
fn deploys_that_wait_are_bounded_by_their_size() {
    let mut rig = Rig::start(Start { engine: frozen(), ..Start::default() });
    rig.connect();
    let large = format!(r#","env_vars":{{"A":"{}"}}"#, "x".repeat(1_500_000));
    for n in 0..30 {
        rig.deploy_with(&format!("r{n}"), &format!("q{n}"), &large);
    }
    rig.wait(5 * SECOND);
    let sent = rig.sent();
    assert!(sent.iter().all(|result| result.contains("failed:busy")), "{sent:?}");
    assert!((5..25).contains(&sent.len()), "{} were refused", sent.len());
    // What no program could be started with is refused whatever waits.
    let huge = format!(r#","env_vars":{{"A":"{}"}}"#, "x".repeat(2_100_000));
    rig.deploy_with("huge", "q", &huge);
    assert_eq!(rig.sent(), ["deploy_result huge failed:invalid q"]);
}

fn frozen() -> crate::engine::Engine {
    let mut engine = crate::engine::Engine::new();
    engine.mode = crate::engine::Mode::Frozen;
    engine
}

#[test]
fn a_gpu_that_the_operator_holds_back_stays_so_after_a_restart() {
    let gpu = vectorlay::types::PciAddress::parse("01:00.0").unwrap();
    let mut rig = Rig::online();
    rig.control(Request::GpuHold(gpu));
    let mut rig = rig.restart();
    rig.connect();
    rig.deploy_with("r", "q1", r#","gpu_count":2"#);
    assert_eq!(rig.sent(), ["deploy_result r failed:no_gpu q1"]);
    rig.control(Request::GpuRelease(gpu));
    rig.deploy_with("r", "q2", r#","gpu_count":2"#);
    assert_eq!(rig.sent(), ["deploy_result r running q2"]);
}

#[test]
fn a_reading_of_the_gpus_that_hangs_is_told_and_holds_up_no_deploy() {
    let mut rig = Rig::online();
    rig.sampling = false;
    rig.wait(60 * SECOND);
    rig.deploy_with("g", "q1", r#","gpu_count":1"#);
    rig.wait(60 * SECOND);
    assert_eq!(rig.sent(), ["deploy_result g failed:no_gpu q1"]);
    assert_eq!(rig.state(), "degraded");
    rig.deploy("plain", "q2");
    assert_eq!(rig.sent(), ["deploy_result plain running q2"]);
}

#[test]
fn why_the_containers_cannot_be_listed_is_said() {
    let mut rig = Rig::start(Start { node: Some("node-1"), ..Start::default() });
    rig.connect();
    rig.hold("list");
    rig.wait(61 * SECOND);
    let words = "network-store error unexpected end of JSON input";
    for _ in 0..3 {
        rig.comes_back("list", |job| crate::engine::failed(job, FailureKind::Refused, words));
        rig.wait(11 * SECOND);
    }
    let reason = |rig: &mut Rig| rig.control(Request::Status)["reason"].as_str().unwrap().to_owned();
    assert_eq!(reason(&mut rig), format!("the containers cannot be listed: {words}"));
    let said = rig.log.iter().filter(|line| line.starts_with("WARN the containers")).count();
    assert_eq!(said, 1, "{:?}", rig.log);
    rig.release("list");
    rig.wait(11 * SECOND);
    assert_eq!(reason(&mut rig), "");
}
