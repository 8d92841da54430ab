//! Calls of the CLI that an earlier process made and that are still at work: what they make is waited for, and what
//! cannot be known before they end is not guessed.

use std::time::Duration;

use serde_json::json;
use vectorlay::core::LeftoverCall;
use vectorlay::core::job::{FailureKind, Job, Outcome, RunJob};
use vectorlay::core::operator::Request;
use vectorlay::types::ReplicaId;

use crate::engine::{Engine, Fault, Mode, failed};
use crate::restart::waiting;
use crate::rig::{Rig, SECOND, Start};

const MINUTE: Duration = Duration::from_secs(60);

/// The call that is at work on a deploy.
pub fn call(rig: &mut Rig) -> RunJob {
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
pub fn pending() -> (Option<String>, RunJob) {
    pending_with("")
}

fn pending_with(more: &str) -> (Option<String>, RunJob) {
    let mut rig = Rig::online();
    rig.hold("run");
    rig.deploy_with("r", "q1", more);
    (rig.record.clone(), call(&mut rig))
}

/// What a process starts from while this call is still at work.
fn at_work(record: Option<String>, run: &RunJob) -> Start {
    let gpus = run.gpus.iter().map(|(gpu, _)| *gpu).collect();
    let orphans = [(
        run.labels[1].1.clone(),
        LeftoverCall { replica: ReplicaId::new(&run.labels[0].1).unwrap(), gpus },
    )]
    .into();
    Start { record, orphans, seed: 2, ..Start::default() }
}

/// A process that starts with this record while this call is still at work.
fn beside(record: Option<String>, run: &RunJob) -> Rig {
    let mut rig = Rig::start(at_work(record, run));
    rig.connect();
    rig
}

/// The call does its work after all.
fn done(rig: &mut Rig, run: RunJob) {
    _ = rig.engine.call(&Job::Run(Box::new(run)), Fault::Nothing);
    rig.orphans.clear();
    rig.wait(2 * SECOND);
}

/// The same, while the first listing is under way: it looked before the call was done.
fn done_behind_the_listing(record: Option<String>, run: RunJob) -> Rig {
    let mut engine = Engine::new();
    engine.mode = Mode::Frozen;
    let mut rig = Rig::start(Start { engine, ..at_work(record, &run) });
    rig.connect();
    assert_eq!(rig.under_way("list"), 1);
    rig.engine.mode = Mode::Well;
    _ = rig.engine.call(&Job::Run(Box::new(run)), Fault::Nothing);
    rig.engine.mode = Mode::Frozen;
    rig.orphans.clear();
    rig.wait(2 * SECOND);
    rig.engine.mode = Mode::Well;
    rig.comes_back("list", |_| Outcome::Listed(Ok(Vec::new())));
    rig
}

#[test]
fn one_of_a_pending_deploy_is_waited_for() {
    let (record, run) = pending();
    let mut rig = beside(record, &run);
    assert_eq!(rig.sent(), [""; 0]);
    assert_eq!(rig.containers(), ["r unknown"]);
    done(&mut rig, run);
    assert_eq!(rig.sent(), ["deploy_result r running q1"]);
}

#[test]
fn one_of_a_deploy_that_the_record_has_as_waiting_is_waited_for() {
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
fn one_that_no_record_names_is_waited_for_before_its_replica_is_deployed_again() {
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
fn one_that_no_record_names_is_ended_by_a_stop() {
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
fn its_gpus_are_its_own_and_the_others_are_not() {
    let (record, run) = pending_with(r#","gpu_count":1"#);
    for record in [record, None] {
        let mut rig = beside(record, &run);
        rig.deploy_with("g", "q8", r#","gpu_count":1"#);
        rig.deploy_with("h", "q9", r#","gpu_count":1"#);
        let sent = rig.sent();
        assert_eq!(
            sent.iter().filter(|line| line.contains("running")).collect::<Vec<_>>(),
            ["deploy_result g running q8"]
        );
    }
}

#[test]
fn a_listing_that_began_before_its_end_proves_nothing() {
    let (record, run) = pending();
    let mut rig = done_behind_the_listing(record.clone(), run.clone());
    rig.wait(2 * SECOND);
    assert_eq!((rig.sent(), rig.up("r")), (vec!["deploy_result r running q1".to_owned()], 1));

    let mut rig = done_behind_the_listing(None, run.clone());
    rig.deploy("r", "q1");
    rig.wait(2 * SECOND);
    assert_eq!((rig.sent(), rig.up("r")), (vec!["deploy_result r running q1".to_owned()], 1));

    let mut rig = done_behind_the_listing(record, run);
    rig.deploy_with("g", "q9", r#","gpu_count":1"#);
    rig.wait(2 * SECOND);
    assert!(
        rig.sent().contains(&"deploy_result g running q9".to_owned()),
        "the next one is not long in coming"
    );
}

#[test]
fn one_that_cannot_be_ended_keeps_no_outcome_for_ever() {
    let (record, run) = pending();
    let mut rig = beside(record, &run);
    rig.wait(16 * MINUTE);
    assert_eq!(rig.sent(), ["deploy_result r failed:timeout q1"]);
    done(&mut rig, run);
    rig.wait(2 * SECOND);
    assert!(rig.engine.containers.is_empty(), "what it makes after all is removed");

    // Behind a stop that was accepted waits a deploy, and the call is of neither.
    let mut rig = Rig::online();
    rig.deploy("r", "q1");
    rig.pong();
    rig.hold("stop");
    rig.stop("r", "q2");
    rig.deploy("r", "q3");
    let record = rig.record.clone();
    let (_, run) = pending();
    let mut rig = beside(record, &run);
    rig.wait(16 * MINUTE);
    let sent = rig.sent();
    assert_eq!(
        sent.iter().filter(|line| line.ends_with("q2") || line.ends_with("q3")).count(),
        2,
        "{sent:?}"
    );
}

#[test]
fn a_node_is_not_drained_before_its_end() {
    let (_, run) = pending();
    let mut rig = beside(None, &run);
    rig.control(Request::Drain);
    rig.wait(2 * SECOND);
    assert_eq!(rig.state(), "draining");
    done(&mut rig, run);
    assert_eq!(rig.state(), "maintenance");
}

#[test]
fn where_they_cannot_be_looked_for_nothing_is_concluded_and_the_state_says_so() {
    let (record, run) = pending();
    let mut engine = Engine::new();
    _ = engine.call(&Job::Run(Box::new(run)), Fault::Nothing);
    let mut rig = Rig::start(Start { record, engine, searching: false, ..Start::default() });
    rig.connect();
    rig.wait(11 * SECOND);
    assert_eq!(rig.sent(), [""; 0]);
    let status = rig.control(Request::Status);
    assert_eq!((&status["state"], &status["containers_age_s"]), (&json!("degraded"), &json!(null)));
    assert!(status["reason"].as_str().unwrap().contains("the previous agent process"), "{status}");
    rig.searching = true;
    rig.wait(11 * SECOND);
    assert_eq!(rig.sent(), ["deploy_result r running q1"]);
    assert_eq!(rig.state(), "online");
}
