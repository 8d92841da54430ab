//! Exits are told at once, once, and with the code, however they come to be known.

use vectorlay::core::job::{FailureKind, InspectedState, Outcome};
use vectorlay::core::operator::Request;

use crate::engine::{Status, failed};
use crate::rig::{Rig, SECOND};

fn running() -> Rig {
    let mut rig = Rig::online();
    rig.deploy("r", "q1");
    rig.pong();
    rig.sent();
    rig
}

#[test]
fn the_watcher_s_word_is_confirmed_by_the_engine_and_told() {
    let mut rig = running();
    assert_eq!(rig.watched.len(), 1);
    rig.ends("r", 7);
    assert_eq!(rig.sent(), ["replica_status r exited:7"]);
    assert_eq!(rig.containers(), ["r exited"]);
    rig.wait(130 * SECOND);
    assert_eq!(rig.sent(), [""; 0]);
}

#[test]
fn an_engine_that_lags_behind_the_kernel_is_asked_again() {
    let mut rig = running();
    rig.hold("inspect");
    let container = rig.container("r");
    rig.event(vectorlay::core::Event::ProcessEnded(container));
    let still = |_: &_| {
        let state = InspectedState::Running(Some(101));
        Outcome::Inspected(Ok(Some(vectorlay::core::job::Inspected { state, oom_killed: None })))
    };
    rig.comes_back("inspect", still);
    rig.wait(25 * SECOND / 1000);
    rig.comes_back("inspect", still);
    let id = rig.container("r");
    rig.engine.containers.get_mut(&id).unwrap().status = Status::Exited(1);
    rig.release("inspect");
    rig.wait(50 * SECOND / 1000);
    assert_eq!(rig.sent(), ["replica_status r exited:1"]);
}

#[test]
fn the_slow_listing_finds_what_cannot_be_watched() {
    let mut rig = running();
    let id = rig.container("r");
    rig.event(vectorlay::core::Event::Unwatchable(id.clone()));
    rig.engine.containers.get_mut(&id).unwrap().status = Status::Exited(9);
    rig.wait(61 * SECOND);
    assert_eq!(rig.sent(), ["replica_status r exited:9"]);
}

#[test]
fn a_container_that_somebody_removed_is_told_as_failed() {
    let mut rig = running();
    rig.engine.containers.clear();
    rig.wait(61 * SECOND);
    assert_eq!(rig.sent(), ["replica_status r failed"]);
    assert!(rig.containers().is_empty());
    rig.deploy("r", "q2");
    assert_eq!(rig.sent(), ["deploy_result r running q2"]);
}

#[test]
fn an_engine_that_does_not_answer_proves_no_exit() {
    let mut rig = running();
    rig.hold("inspect");
    let container = rig.container("r");
    rig.event(vectorlay::core::Event::ProcessEnded(container));
    rig.comes_back("inspect", |job| failed(job, FailureKind::Unavailable, "connection refused"));
    assert_eq!(rig.sent(), [""; 0]);
    assert_eq!(rig.containers(), ["r unknown"]);
    rig.release("inspect");
    rig.wait(12 * SECOND);
    assert_eq!(rig.containers(), ["r running"]);
}

#[test]
fn an_exited_container_is_kept_for_its_log_and_then_removed() {
    let mut rig = running();
    rig.ends("r", 0);
    rig.wait(590 * SECOND);
    assert_eq!(rig.engine.containers.len(), 1);
    rig.wait(20 * SECOND);
    assert!(rig.engine.containers.is_empty());
    assert!(rig.containers().is_empty());
    assert_eq!(rig.sent(), ["replica_status r exited:0"]);
}

#[test]
fn an_exited_container_gives_way_to_one_that_needs_its_gpus() {
    let mut rig = Rig::online();
    rig.deploy_with("r", "q1", r#","gpu_count":2"#);
    rig.ends("r", 0);
    rig.deploy_with("s", "q2", r#","gpu_count":2"#);
    rig.wait(2 * SECOND);
    assert!(rig.sent().contains(&"deploy_result s running q2".to_owned()));
    assert_eq!(rig.engine.containers.len(), 1);
}

/// The shim of `r` hangs until the node has noticed.
fn hung() -> Rig {
    let mut rig = running();
    rig.deploy("other", "q2");
    rig.sent();
    let id = rig.container("r");
    rig.engine.hung.insert(id);
    rig.wait(61 * SECOND);
    rig
}

#[test]
fn a_shim_that_does_not_answer_is_no_exit() {
    let mut rig = hung();
    let id = rig.container("r");
    rig.wait(3_600 * SECOND);
    assert_eq!(rig.sent(), [""; 0]);
    assert_eq!(rig.containers(), ["other running", "r unknown"]);
    assert_eq!(rig.up("r"), 1);
    let status = rig.control(Request::Status);
    assert_eq!(status["state"], "degraded");
    let reason = status["reason"].as_str().unwrap();
    let said = format!(
        "replica r is unknown: container {}: failed to inspect Task: context deadline exceeded",
        id.short()
    );
    assert_eq!(reason, said);
    let about = |rig: &Rig| {
        rig.log.iter().filter(|line| line.contains("replica r: the engine")).cloned().collect::<Vec<_>>()
    };
    assert_eq!(about(&rig).len(), 1, "said once: {:?}", about(&rig));
    // It answers again.
    rig.engine.hung.clear();
    rig.wait(6 * SECOND);
    assert_eq!(rig.containers(), ["other running", "r running"]);
    assert_eq!(rig.state(), "online");
    assert_eq!(about(&rig).len(), 2, "{:?}", about(&rig));
    rig.ends("r", 7);
    assert_eq!(rig.sent(), ["replica_status r exited:7"]);
}

#[test]
fn others_are_served_while_a_shim_hangs() {
    let mut rig = hung();
    rig.ends("other", 3);
    rig.deploy("third", "q3");
    rig.stop("third", "q4");
    assert_eq!(
        rig.sent(),
        ["replica_status other exited:3", "deploy_result third running q3", "stop_result third stopped q4"]
    );
}

#[test]
fn a_container_that_ends_while_its_shim_hangs_is_told_when_it_answers() {
    let mut rig = hung();
    rig.ends("r", 5);
    rig.wait(60 * SECOND);
    assert_eq!(rig.sent(), [""; 0]);
    rig.engine.hung.clear();
    rig.wait(6 * SECOND);
    assert_eq!(rig.sent(), ["replica_status r exited:5"]);
}

#[test]
fn a_replica_whose_shim_hangs_takes_commands() {
    let mut rig = hung();
    // Whether it runs is not known: it is answered when it is.
    rig.deploy("r", "q3");
    rig.wait(10 * SECOND);
    assert_eq!(rig.sent(), [""; 0]);
    rig.engine.hung.clear();
    rig.wait(6 * SECOND);
    assert_eq!(rig.sent(), ["deploy_result r running q3"]);
    let mut rig = hung();
    rig.stop("r", "q4");
    rig.wait(20 * SECOND);
    assert_eq!(rig.sent(), [""; 0]);
    rig.engine.hung.clear();
    rig.wait(40 * SECOND);
    assert_eq!(rig.sent(), ["stop_result r stopped q4"]);
    assert_eq!(rig.engine.of("r").count(), 0);
}

#[test]
fn a_lost_task_is_believed_when_it_is_said_twice() {
    let mut rig = running();
    let id = rig.container("r");
    let up = rig.engine.containers[&id].status;
    let set = |rig: &mut Rig, status| rig.engine.containers.get_mut(&id).unwrap().status = status;
    set(&mut rig, Status::Created);
    rig.event(vectorlay::core::Event::ProcessEnded(id.clone()));
    assert_eq!((rig.sent(), rig.containers()), (vec![], vec!["r unknown".to_owned()]));
    // It was a slip.
    set(&mut rig, up);
    rig.wait(6 * SECOND);
    assert_eq!((rig.sent(), rig.containers()), (vec![], vec!["r running".to_owned()]));
    set(&mut rig, Status::Created);
    rig.event(vectorlay::core::Event::ProcessEnded(id.clone()));
    rig.wait(6 * SECOND);
    assert_eq!(rig.sent(), ["replica_status r exited"]);
}

#[test]
fn what_was_started_again_by_hand_is_not_removed_at_the_end_of_its_keeping() {
    let mut rig = running();
    rig.ends("r", 0);
    rig.sent();
    rig.hold("list");
    rig.wait(605 * SECOND);
    let id = rig.container("r");
    rig.engine.containers.get_mut(&id).unwrap().status = Status::Up(4242);
    rig.release("list");
    rig.wait(61 * SECOND);
    assert_eq!(rig.containers(), ["r running"]);
    assert_eq!(rig.up("r"), 1);
}
