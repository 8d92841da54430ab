//! Exits are told at once, once, and with the code, however they come to be known.

use vectorlay::core::job::{FailureKind, InspectedState, Outcome};

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
