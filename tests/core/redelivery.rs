//! Commands that arrive twice, and results that are sent until they are known to have arrived.

use vectorlay::core::link_api::DownReason;

use crate::rig::{Rig, SECOND};

#[test]
fn an_answered_request_gets_the_same_answer_and_nothing_is_done() {
    let mut rig = Rig::online();
    rig.deploy("r", "q1");
    rig.stop("r", "q2");
    rig.pong();
    rig.sent();
    rig.started.clear();
    rig.deploy("r", "q1");
    rig.stop("r", "q2");
    assert_eq!(rig.sent(), ["deploy_result r running q1", "stop_result r stopped q2"]);
    assert_eq!(rig.started, [""; 0]);
}

#[test]
fn without_a_request_id_an_equal_deploy_gets_the_result_that_may_not_have_arrived() {
    let mut rig = Rig::online();
    let gone = r#","image":"img:nope""#;
    rig.deploy_with("r", "", gone);
    rig.deploy_with("r", "", gone);
    let failed = "deploy_result r failed:pull_failed";
    assert_eq!(rig.sent(), [failed, failed]);
    assert_eq!(rig.started.iter().filter(|job| job.starts_with("run")).count(), 1);
    rig.pong();
    rig.deploy_with("r", "", gone);
    assert_eq!(rig.started.iter().filter(|job| job.starts_with("run")).count(), 2, "that one is new");
}

#[test]
fn without_request_ids_a_deploy_behind_a_stop_is_another() {
    let mut rig = Rig::online();
    rig.deploy("r", "");
    rig.stop("r", "");
    rig.deploy("r", "");
    assert_eq!(rig.sent(), ["deploy_result r running", "stop_result r stopped", "deploy_result r running"]);
    assert_eq!(rig.up("r"), 1);
}

#[test]
fn a_redelivery_while_a_failure_is_being_cleaned_up_is_the_same_deploy() {
    let mut rig = Rig::online();
    rig.spoil("run", crate::engine::Fault::Half);
    rig.hold("remove");
    rig.deploy("r", "q1");
    rig.deploy("r", "q1");
    assert_eq!(rig.sent(), [""; 0]);
    rig.release("remove");
    assert_eq!(rig.sent(), ["deploy_result r failed:start_failed q1"]);
    assert!(rig.engine.containers.is_empty());
}

#[test]
fn results_are_sent_again_in_order_until_a_pong_proves_their_receipt() {
    let mut rig = Rig::online();
    rig.deploy("r", "q1");
    rig.stop("r", "q2");
    let both = ["deploy_result r running q1", "stop_result r stopped q2"];
    assert_eq!(rig.sent(), both);
    rig.down(DownReason::Broken);
    rig.connect();
    let all = rig.everything_sent();
    assert_eq!(all[..4], ["system_info", "heartbeat", both[0], both[1]]);
    rig.pong();
    rig.down(DownReason::Closed(4001));
    rig.connect();
    assert_eq!(rig.sent(), [""; 0]);
}

#[test]
fn a_result_is_on_disk_before_it_is_sent_but_a_bad_disk_is_not_waited_for() {
    let mut rig = Rig::online();
    rig.hold("run");
    rig.deploy("r", "q1");
    rig.saving = false;
    rig.release("run");
    assert_eq!(rig.sent(), [""; 0]);
    rig.disk(true);
    rig.disk(true);
    assert_eq!(rig.sent(), ["deploy_result r running q1"]);
    rig.stop("r", "q2");
    rig.wait(5 * SECOND);
    assert_eq!(rig.sent(), ["stop_result r stopped q2"], "2 s for the stop, 2 s for its result");
    rig.wait(5 * SECOND);
    assert_eq!(rig.state(), "degraded");
    rig.saving = true;
    rig.disk(true);
    assert_eq!(rig.state(), "online");
}

#[test]
fn past_the_bounds_commands_are_busy() {
    let mut rig = Rig::online();
    rig.hold("run");
    for n in 0..7 {
        rig.deploy(&format!("r{n}"), "");
    }
    assert_eq!(rig.sent(), ["deploy_result r6 failed:busy"], "2 start, 4 wait");
    rig.release("run");
    rig.sent();
    rig.saving = false;
    // Without any pong the results pile up to the bound and no further.
    for n in 0..1200 {
        rig.stop("nobody", &format!("s{n}"));
        rig.deploy("r0", &format!("d{n}"));
    }
    rig.wait(3 * SECOND);
    let sent = rig.sent();
    assert_eq!(sent.len(), 2400, "each is answered");
    assert!(sent.iter().any(|line| line.starts_with("deploy_result r0 failed:busy")));
    assert!(
        rig.control(vectorlay::core::operator::Request::Status)["results_waiting"].as_u64().unwrap() <= 1024
    );
}

#[test]
fn logs_are_read_a_few_at_a_time() {
    let mut rig = Rig::online();
    rig.deploy("r", "q1");
    rig.hold("logs");
    for _ in 0..100 {
        rig.hear("logs", r#"{"replica_id":"r"}"#);
    }
    assert_eq!(rig.under_way("logs"), 16);
}

#[test]
fn an_answer_is_of_its_own_kind_and_replica() {
    let mut rig = Rig::online();
    rig.deploy("a", "q1");
    rig.sent();
    // A server that uses an ID again means another command by it.
    rig.deploy("b", "q1");
    rig.stop("a", "q1");
    assert_eq!(rig.sent(), ["deploy_result b running q1", "stop_result a stopped q1"]);
    // What makes no sense takes nothing back that was said.
    rig.hear("deploy", r#"{"replica_id":"b","request_id":"q1","image":7}"#);
    rig.deploy("b", "q1");
    assert_eq!(rig.sent(), ["deploy_result b running q1", "deploy_result b running q1"]);
}

#[test]
fn every_outcome_is_in_the_log_and_no_more_than_that() {
    let mut rig = Rig::online();
    rig.log.clear();
    rig.deploy_with("r", "q1", r#","env_vars":{"A":"hunter2"}"#);
    rig.ends("r", 7);
    rig.deploy_with("s", "q2", r#","image":"img:nope""#);
    rig.stop("r", "q3");
    let replicas: Vec<&String> = rig.log.iter().filter(|line| line.contains("replica ")).collect();
    assert_eq!(
        replicas,
        [
            "INFO replica r: deploy: running",
            "INFO replica r: exited with code 7",
            "WARN replica s: deploy: failed (pull_failed): pull: not found",
            "INFO replica r: stop: stopped",
        ]
    );
}

#[test]
fn logs_of_what_is_not_there_are_no_empty_logs() {
    let mut rig = Rig::online();
    rig.hear("logs", r#"{"replica_id":"r","request_id":"l1"}"#);
    rig.hold("run");
    rig.deploy("r", "q1");
    rig.hear("logs", r#"{"replica_id":"r","request_id":"l2"}"#);
    assert_eq!(
        rig.sent(),
        [
            "logs r l1 there is no container of this replica",
            "logs r l2 its container is not known yet, or gone already"
        ]
    );
}
