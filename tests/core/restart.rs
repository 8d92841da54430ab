//! What a new process makes of what the last one left: its record, the containers, and calls still at work.

use vectorlay::core::job::{FailureKind, Job, RunJob};

use crate::engine::{Engine, Fault, Status, failed};
use crate::rig::{Rig, SECOND, Start};

/// The call that is at work on a deploy.
fn call(rig: &mut Rig) -> RunJob {
    let mut call = None;
    rig.comes_back("run", |job| {
        if let Job::Run(run) = job {
            call = Some((**run).clone());
        }
        failed(job, FailureKind::Refused, "not heard")
    });
    call.unwrap()
}

/// The record while a deploy of `r` is pending, and the call that is at work on it.
fn pending() -> (Option<String>, RunJob) {
    let mut rig = Rig::online();
    rig.hold("run");
    rig.deploy("r", "q1");
    (rig.record.clone(), call(&mut rig))
}

/// A deploy of `r` that waits for a listing behind one that exited, and the last record that is saved of it.
fn waiting() -> (Rig, Option<String>) {
    let mut rig = Rig::online();
    rig.deploy("r", "q1");
    rig.ends("r", 3);
    rig.pong();
    rig.hold("list");
    rig.deploy("r", "q2");
    rig.saving = false;
    let record = rig.record.clone();
    (rig, record)
}

/// A process that starts with this record while this call is still at work.
fn beside(record: Option<String>, run: &RunJob) -> Rig {
    let orphans = [(run.labels[1].1.clone(), run.replica.clone())].into();
    let mut rig = Rig::start(Start { record, orphans, ..Start::default() });
    rig.connect();
    rig
}

/// The call does its work after all.
fn done(rig: &mut Rig, run: RunJob) {
    _ = rig.engine.call(&Job::Run(Box::new(run)), Fault::Nothing);
    rig.orphans.clear();
    rig.wait(2 * SECOND);
}

/// A process after one that died with a deploy of `r` pending, whose call had made this of it.
fn after(made: Option<Fault>) -> Rig {
    let (record, run) = pending();
    let mut engine = Engine::new();
    if let Some(fault) = made {
        _ = engine.call(&Job::Run(Box::new(run)), fault);
    }
    let mut rig = Rig::start(Start { record, engine, ..Start::default() });
    rig.connect();
    rig
}

#[test]
fn a_pending_deploy_that_runs_is_running() {
    let mut rig = after(Some(Fault::Nothing));
    assert_eq!(rig.sent(), ["deploy_result r running q1"]);
    assert_eq!(rig.up("r"), 1);
}

#[test]
fn a_pending_deploy_that_left_half_a_container_or_nothing_is_interrupted() {
    for made in [None, Some(Fault::Half), Some(Fault::Nameless)] {
        let mut rig = after(made);
        assert_eq!(rig.sent(), ["deploy_result r failed:interrupted q1"], "{made:?}");
        assert!(rig.engine.containers.is_empty());
        rig.deploy("r", "q1");
        assert_eq!(rig.sent(), ["deploy_result r failed:interrupted q1"], "redelivered");
        assert!(rig.engine.containers.is_empty());
    }
}

#[test]
fn a_call_that_outlived_the_process_is_waited_for() {
    let (record, run) = pending();
    let mut rig = beside(record, &run);
    assert_eq!(rig.sent(), [""; 0]);
    assert_eq!(rig.containers(), ["r unknown"]);
    rig.deploy_with("g", "q9", r#","gpu_count":1"#);
    assert_eq!(rig.sent(), [""; 0], "which GPUs the call has is not known");
    done(&mut rig, run);
    assert_eq!(rig.sent(), ["deploy_result r running q1", "deploy_result g running q9"]);
}

#[test]
fn an_outcome_that_was_recorded_stays_what_it_was() {
    let mut rig = Rig::online();
    rig.hold("list");
    rig.spoil("run", Fault::Refused);
    rig.deploy("r", "q1");
    assert_eq!(rig.sent(), [""; 0], "it is not proven gone");
    let mut rig = rig.restart();
    rig.connect();
    assert_eq!(rig.sent(), ["deploy_result r failed:start_failed q1"]);
}

#[test]
fn a_stop_that_was_accepted_is_done() {
    let mut rig = Rig::online();
    rig.deploy("r", "q1");
    rig.pong();
    rig.hold("stop");
    rig.stop("r", "q2");
    let mut rig = rig.restart();
    rig.connect();
    assert!(rig.started.iter().any(|job| job.starts_with("stop")), "it is given its time");
    assert_eq!(rig.sent(), ["stop_result r stopped q2"]);
    assert!(rig.engine.containers.is_empty());
}

#[test]
fn exits_meanwhile_are_told_with_their_code() {
    let mut rig = Rig::online();
    rig.deploy("r", "q1");
    rig.pong();
    let id = rig.container("r");
    rig.engine.containers.get_mut(&id).unwrap().status = Status::Exited(5);
    let mut rig = rig.restart();
    rig.connect();
    assert_eq!(rig.sent(), ["replica_status r exited:5"]);
    rig.pong();
    let mut rig = rig.restart();
    rig.connect();
    assert_eq!(rig.sent(), [""; 0], "once");
    assert_eq!(rig.containers(), ["r exited"]);
}

#[test]
fn a_container_that_vanished_meanwhile_is_told_as_failed() {
    let mut rig = Rig::online();
    rig.deploy("r", "q1");
    rig.pong();
    rig.engine.containers.clear();
    let mut rig = rig.restart();
    rig.connect();
    assert_eq!(rig.sent(), ["replica_status r failed"]);
    assert!(rig.containers().is_empty());
}

#[test]
fn containers_without_a_record_are_adopted_with_their_gpus() {
    let mut rig = Rig::online();
    rig.deploy_with("r", "q1", r#","gpu_count":2"#);
    rig.pong();
    rig.record = None;
    let mut rig = rig.restart();
    rig.connect();
    assert_eq!(rig.containers(), ["r running"]);
    rig.deploy_with("s", "q2", r#","gpu_count":1"#);
    rig.deploy_with("r", "q3", r#","gpu_count":2"#);
    assert_eq!(rig.sent(), ["deploy_result s failed:no_gpu q2", "deploy_result r running q3"]);
}

#[test]
fn the_labels_are_believed_and_not_an_older_record() {
    let mut rig = Rig::online();
    rig.deploy_with("r", "q1", r#","gpu_count":1"#);
    rig.pong();
    let older = rig.record.clone();
    rig.stop("r", "q2");
    rig.deploy_with("s", "q3", r#","gpu_count":1"#);
    rig.deploy("r", "q4");
    rig.pong();
    rig.record = older;
    let mut rig = rig.restart();
    rig.connect();
    assert_eq!(rig.containers(), ["r running", "s running"]);
    rig.deploy_with("t", "q5", r#","gpu_count":1"#);
    assert!(rig.sent().contains(&"deploy_result t running q5".to_owned()));
}

#[test]
fn a_gpu_that_passed_on_since_the_record_was_saved_is_its_new_holder_s() {
    let mut rig = Rig::online();
    rig.deploy_with("a", "q1", r#","gpu_count":2"#);
    rig.pong();
    let older = rig.record.clone();
    rig.stop("a", "q2");
    rig.deploy_with("b", "q3", r#","gpu_count":2"#);
    rig.record = older;
    let mut rig = rig.restart();
    rig.connect();
    assert_eq!(rig.containers(), ["b running"]);
    rig.deploy_with("c", "q4", r#","gpu_count":1"#);
    assert!(rig.sent().contains(&"deploy_result c failed:no_gpu q4".to_owned()));
}

#[test]
fn results_that_did_not_arrive_and_their_requests_are_remembered() {
    let mut rig = Rig::online();
    rig.deploy("r", "q1");
    rig.stop("r", "q2");
    rig.deploy_with("r", "q3", r#","image":"img:nope""#);
    let mut rig = rig.restart();
    rig.connect();
    let all =
        ["deploy_result r running q1", "stop_result r stopped q2", "deploy_result r failed:pull_failed q3"];
    assert_eq!(rig.sent(), all);
    rig.deploy("r", "q1");
    assert_eq!(rig.sent(), all[..1]);
    assert!(rig.engine.containers.is_empty(), "it is not started again");
}

#[test]
fn a_deploy_that_waited_behind_a_stop_is_interrupted() {
    let mut rig = Rig::online();
    rig.deploy("r", "");
    rig.pong();
    rig.hold("stop");
    rig.stop("r", "");
    rig.deploy("r", "");
    let mut rig = rig.restart();
    rig.connect();
    assert_eq!(rig.sent(), ["stop_result r stopped", "deploy_result r failed:interrupted"]);
    assert!(rig.engine.containers.is_empty());
}

#[test]
fn a_waiting_deploy_that_was_begun_after_the_record_was_saved_is_taken_up() {
    for (made, outcome) in [
        (Fault::Nothing, "deploy_result r running q2"),
        (Fault::Half, "deploy_result r failed:interrupted q2"),
        (Fault::Refused, "deploy_result r failed:interrupted q2"),
    ] {
        let (mut rig, record) = waiting();
        rig.spoil("run", made);
        rig.release("list");
        rig.record = record;
        let mut rig = rig.restart();
        rig.connect();
        assert_eq!(rig.sent(), [outcome], "{made:?}");
        assert_eq!(rig.engine.containers.len(), usize::from(made == Fault::Nothing), "{made:?}");
    }
}

#[test]
fn the_call_of_a_waiting_deploy_that_was_begun_is_waited_for() {
    let (mut rig, record) = waiting();
    rig.hold("run");
    rig.release("list");
    let run = call(&mut rig);
    let mut rig = beside(record, &run);
    assert_eq!(rig.sent(), [""; 0]);
    done(&mut rig, run);
    assert_eq!(rig.sent(), ["deploy_result r running q2"]);
    assert_eq!(rig.up("r"), 1);
}

#[test]
fn a_call_that_no_record_names_is_waited_for_before_its_replica_is_deployed_again() {
    let (_, run) = pending();
    let mut rig = beside(None, &run);
    assert_eq!(rig.containers(), ["r unknown"]);
    rig.deploy("r", "q1");
    rig.deploy("s", "q2");
    assert_eq!(rig.sent(), ["deploy_result s running q2"]);
    done(&mut rig, run);
    assert_eq!(rig.sent(), ["deploy_result r running q1"]);
    assert_eq!(rig.up("r"), 1);
}

#[test]
fn a_stop_ends_a_call_that_no_record_names() {
    let (_, run) = pending();
    let mut rig = beside(None, &run);
    rig.stop("r", "q1");
    assert_eq!(rig.sent(), [""; 0]);
    rig.wait(11 * SECOND);
    assert_eq!(rig.other, [format!("end the calls for deploy {}", run.labels[1].1)]);
    rig.orphans.clear();
    rig.wait(2 * SECOND);
    assert_eq!(rig.sent(), ["stop_result r stopped q1"]);
    assert!(rig.containers().is_empty());
}

#[test]
fn a_record_that_cannot_be_read_is_started_without() {
    for record in ["", "[]", "{", r#"{"version":9,"results":[7],"replicas":{"-bad":{},"r":7}}"#] {
        let mut rig = Rig::online();
        rig.deploy("s", "q1");
        rig.record = Some(record.into());
        let mut rig = rig.restart();
        rig.connect();
        assert!(rig.containers().contains(&"s running".to_owned()), "{record}");
    }
}
