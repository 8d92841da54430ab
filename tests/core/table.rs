//! The protocol's table: what a command means in each state of a replica.

use crate::rig::{Rig, SECOND};

const OTHER: &str = r#","image":"img:b""#;

#[test]
fn none_starts_and_running_says_so() {
    let mut rig = Rig::online();
    rig.deploy("r", "q1");
    assert_eq!(rig.sent(), ["deploy_result r running q1"]);
    rig.deploy("r", "q2");
    assert_eq!(rig.sent(), ["deploy_result r running q2"]);
    assert_eq!(rig.started.iter().filter(|job| job.starts_with("run")).count(), 1);
    rig.deploy_with("r", "q3", OTHER);
    assert_eq!(rig.sent(), ["deploy_result r failed:conflict q3"]);
    assert_eq!(rig.up("r"), 1);
}

#[test]
fn a_deploy_under_way_is_joined_by_its_equal_alone() {
    let mut rig = Rig::online();
    rig.hold("run");
    rig.deploy("r", "q1");
    rig.deploy("r", "q2");
    rig.deploy("r", "q1");
    rig.deploy_with("r", "q3", OTHER);
    assert_eq!(rig.sent(), ["deploy_result r failed:conflict q3"]);
    rig.release("run");
    assert_eq!(rig.sent(), ["deploy_result r running q1", "deploy_result r running q2"]);
    assert_eq!(rig.up("r"), 1);
}

#[test]
fn a_stop_ends_what_runs_and_answers_for_what_does_not_exist() {
    let mut rig = Rig::online();
    rig.stop("r", "q1");
    assert_eq!(rig.sent(), ["stop_result r stopped q1"]);
    rig.deploy("r", "q2");
    rig.hold("stop");
    rig.stop("r", "q3");
    rig.stop("r", "q4");
    assert_eq!(rig.sent(), ["deploy_result r running q2"]);
    rig.release("stop");
    assert_eq!(rig.sent(), ["stop_result r stopped q3", "stop_result r stopped q4"]);
    assert!(rig.engine.containers.is_empty());
    assert!(rig.containers().is_empty());
}

#[test]
fn a_stop_cancels_in_every_state_on_the_way_up() {
    let cancelled = ["deploy_result r failed:cancelled q1", "stop_result r stopped q2"];
    // Queued: both slots are taken.
    let mut rig = Rig::online();
    rig.hold("run");
    for other in ["a", "b", "r"] {
        rig.deploy(other, "q1");
    }
    rig.stop("r", "q2");
    assert_eq!(rig.sent(), cancelled);
    // Pulling: the pull is given up.
    let mut rig = Rig::online();
    rig.hold("pull");
    rig.deploy_with("r", "q1", r#","image":"img:far""#);
    rig.stop("r", "q2");
    assert!(rig.other.iter().any(|action| action.ends_with("cancel")));
    assert_eq!(rig.sent(), [""; 0]);
    rig.comes_back("pull", |job| {
        crate::engine::failed(job, vectorlay::core::job::FailureKind::Deadline, "given up")
    });
    assert_eq!(rig.sent(), cancelled);
    // Starting: it may as well finish, and is removed.
    let mut rig = Rig::online();
    rig.hold("run");
    rig.deploy("r", "q1");
    rig.stop("r", "q2");
    assert!(rig.other.is_empty(), "a run is not interrupted");
    rig.release("run");
    assert_eq!(rig.sent(), cancelled);
    assert!(rig.engine.containers.is_empty());
}

#[test]
fn a_deploy_waits_behind_a_stop() {
    let mut rig = Rig::online();
    rig.deploy("r", "q1");
    rig.hold("stop");
    rig.stop("r", "q2");
    rig.deploy_with("r", "q3", OTHER);
    rig.deploy_with("r", "q4", OTHER);
    rig.deploy("r", "q5");
    assert_eq!(rig.sent(), ["deploy_result r running q1", "deploy_result r failed:conflict q5"]);
    rig.release("stop");
    assert_eq!(
        rig.sent(),
        ["stop_result r stopped q2", "deploy_result r running q3", "deploy_result r running q4"]
    );
    assert_eq!(rig.up("r"), 1);
}

#[test]
fn a_second_stop_cancels_the_deploy_that_waits_behind_the_first() {
    let mut rig = Rig::online();
    rig.deploy("r", "q1");
    rig.hold("stop");
    rig.stop("r", "q2");
    rig.deploy("r", "q3");
    rig.stop("r", "q4");
    assert_eq!(rig.sent(), ["deploy_result r running q1", "deploy_result r failed:cancelled q3"]);
    rig.release("stop");
    assert_eq!(rig.sent(), ["stop_result r stopped q2", "stop_result r stopped q4"]);
    assert_eq!(rig.up("r"), 0);
}

#[test]
fn what_ended_is_removed_and_then_started_or_said_to_be_stopped() {
    let mut rig = Rig::online();
    rig.deploy("r", "q1");
    rig.ends("r", 3);
    assert_eq!(rig.sent(), ["deploy_result r running q1", "replica_status r exited:3"]);
    rig.pong();
    rig.deploy_with("r", "q2", OTHER);
    assert_eq!(rig.sent(), ["deploy_result r running q2"]);
    assert_eq!((rig.up("r"), rig.engine.containers.len()), (1, 1));
    rig.ends("r", 0);
    rig.stop("r", "q3");
    assert_eq!(rig.sent(), ["replica_status r exited:0", "stop_result r stopped q3"]);
    assert!(rig.engine.containers.is_empty());
}

#[test]
fn a_stop_that_cannot_be_done_fails_at_its_deadline_and_goes_on() {
    let mut rig = Rig::online();
    rig.deploy("r", "q1");
    rig.hold("stop");
    rig.hear("stop", r#"{"replica_id":"r","request_id":"q2","timeout_s":5}"#);
    rig.wait(66 * SECOND);
    assert_eq!(rig.sent(), ["deploy_result r running q1", "stop_result r failed:timeout q2"]);
    rig.release("stop");
    assert_eq!(rig.sent(), [""; 0]);
    assert!(rig.engine.containers.is_empty());
}

#[test]
fn malformed_commands_are_answered_where_they_name_a_replica() {
    let mut rig = Rig::online();
    rig.hear("deploy", r#"{"replica_id":"r","request_id":"q1","image":7}"#);
    rig.hear("stop", r#"{"replica_id":"r","request_id":"q2","timeout_s":"x"}"#);
    rig.hear("deploy", r#"{"image":"a"}"#);
    rig.hear("reboot", "{}");
    assert_eq!(rig.sent(), ["deploy_result r failed:invalid q1", "stop_result r failed:invalid q2"]);
}
