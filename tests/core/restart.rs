//! What a new process makes of what the last one left: its record and the containers.

use serde_json::json;
use vectorlay::core::Event;
use vectorlay::core::job::{FailureKind, Job, Listed, ListedStatus, Outcome};
use vectorlay::core::operator::Request;

use crate::earlier_calls::pending;
use crate::engine::{Engine, Fault, Mode, Status, failed};
use crate::rig::{Rig, SECOND, Start};

/// A deploy of `r` that waits for a listing behind one that exited, and the last record that is saved of it.
pub fn waiting() -> (Rig, Option<String>) {
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

/// After two replicas ran, in boot-1, the engine has one's container without its task, and nothing of the other; the host
/// is in the boot of this name.
fn booted(boot_id: &'static str) -> Rig {
    let mut before = Rig::online();
    before.deploy("r", "q1");
    before.deploy("gone", "q2");
    before.pong();
    let r = before.container("r");
    let Rig { record, mut engine, .. } = before;
    engine.containers.retain(|id, _| *id == r);
    engine.containers.get_mut(&r).unwrap().status = Status::Created;
    let mut rig = Rig::start(Start { record, engine, boot_id: Some(boot_id), ..Start::default() });
    rig.connect();
    rig
}

/// How often the log says that something ended with the host.
fn reboots(rig: &Rig) -> usize {
    rig.log.iter().filter(|line| line.contains("host rebooted")).count()
}

#[test]
fn what_ended_with_the_host_is_told_so_and_its_log_kept() {
    let mut rig = booted("boot-2");
    assert_eq!(rig.sent(), ["replica_status gone failed", "replica_status r failed"]);
    assert_eq!(reboots(&rig), 2, "{:?}", rig.log);
    assert_eq!(rig.containers(), ["r failed"]);
    rig.pong();
    rig.wait(590 * SECOND);
    assert_eq!(rig.engine.containers.len(), 1);
    // A process that follows knows that this is over.
    let Rig { record, engine, .. } = rig;
    let mut rig = Rig::start(Start { record, engine, boot_id: Some("boot-2"), ..Start::default() });
    rig.connect();
    rig.wait(20 * SECOND);
    assert!(rig.engine.containers.is_empty());
    assert_eq!((rig.sent(), reboots(&rig)), (vec![], 0));
}

#[test]
fn what_is_gone_without_a_reboot_is_not_blamed_on_one() {
    let mut rig = booted("boot-1");
    assert_eq!(rig.sent(), ["replica_status gone failed", "replica_status r failed"]);
    assert_eq!(reboots(&rig), 0);
    assert!(rig.engine.containers.is_empty());
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
fn what_a_reboot_ended_is_removed_before_anything_starts() {
    let mut rig = Rig::online();
    rig.deploy("a", "q1");
    rig.deploy("b", "q2");
    rig.pong();
    for container in rig.engine.containers.values_mut() {
        container.status = Status::Created;
    }
    rig.engine.mode = Mode::Frozen;
    let mut rig = rig.restart();
    rig.hold("remove");
    rig.engine.mode = Mode::Well;
    rig.release("list");
    rig.connect();
    rig.deploy("c", "q3");
    let runs = |rig: &Rig| rig.started.iter().filter(|job| job.starts_with("run")).count();
    assert_eq!((rig.under_way("remove"), runs(&rig)), (2, 0));
    rig.comes_back("remove", |_| Outcome::Removed(Ok(())));
    assert_eq!(runs(&rig), 0);
    // One that does not go holds nothing up any longer.
    rig.comes_back("remove", |job| failed(job, FailureKind::Deadline, "the engine's rm did not finish"));
    assert_eq!(runs(&rig), 1);
    assert!(rig.sent().contains(&"deploy_result c running q3".to_owned()));
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
fn a_container_that_is_newer_than_what_the_record_has_as_pending_is_adopted() {
    // The disk is full while the deploy is pending: it fails, and the next one runs.
    let mut rig = Rig::online();
    rig.hold("run");
    rig.deploy("r", "q1");
    let pending = rig.record.clone();
    rig.saving = false;
    rig.comes_back("run", |job| failed(job, FailureKind::Refused, "no"));
    rig.wait(3 * SECOND);
    rig.release("run");
    rig.deploy("r", "q2");
    rig.wait(5 * SECOND);
    assert_eq!(rig.sent(), ["deploy_result r failed:start_failed q1", "deploy_result r running q2"]);
    rig.record = pending;
    let mut rig = rig.restart();
    rig.connect();
    rig.wait(2 * SECOND);
    assert_eq!((rig.up("r"), rig.sent()), (1, vec!["deploy_result r failed:interrupted q1".to_owned()]));

    // The same while a stop is.
    let mut rig = Rig::online();
    rig.deploy("r", "q1");
    rig.pong();
    rig.hold("stop");
    rig.stop("r", "q2");
    let stopping = rig.record.clone();
    rig.saving = false;
    rig.release("stop");
    rig.wait(5 * SECOND);
    rig.deploy("r", "q3");
    rig.wait(5 * SECOND);
    rig.record = stopping;
    let mut rig = rig.restart();
    rig.connect();
    rig.wait(2 * SECOND);
    assert_eq!((rig.up("r"), rig.sent()), (1, vec!["stop_result r stopped q2".to_owned()]));
}

#[test]
fn a_waiting_deploy_that_may_run_is_left_to_the_next_process() {
    let (mut rig, record) = waiting();
    rig.release("list");
    assert_eq!(rig.up("r"), 1, "it was begun");
    let Rig { mut engine, .. } = rig;
    engine.mode = Mode::Frozen;
    let mut rig = Rig::start(Start { record, engine, seed: 2, ..Start::default() });
    rig.connect();
    rig.wait(3 * SECOND);
    rig.event(Event::Terminate);
    rig.wait(60 * SECOND);
    assert_eq!(rig.sent(), [""; 0]);
    rig.engine.mode = Mode::Well;
    let mut rig = rig.restart();
    rig.connect();
    assert_eq!(rig.sent(), ["deploy_result r running q2"]);
}

#[test]
fn a_container_of_which_the_engine_cannot_say_whether_it_runs_is_waited_for() {
    let mut rig = Rig::online();
    rig.deploy("r", "q1");
    rig.pong();
    let id = rig.container("r");
    let made = rig.engine.containers[&id].clone();
    rig.record = None;
    rig.engine.mode = Mode::Frozen;
    let mut rig = rig.restart();
    rig.connect();
    rig.comes_back("list", |_| {
        Outcome::Listed(Ok(vec![Listed {
            id,
            replica: made.replica,
            deploy: made.deploy,
            spec: made.spec,
            gpus: Vec::new(),
            status: ListedStatus::Unclear("Paused".into()),
        }]))
    });
    rig.deploy_with("r", "q2", r#","image":"img:b""#);
    assert_eq!(rig.sent(), [""; 0]);
    assert_eq!(rig.containers(), ["r unknown"]);
    rig.engine.mode = Mode::Well;
    rig.release("");
    rig.wait(6 * SECOND);
    assert_eq!(rig.sent(), ["deploy_result r failed:conflict q2"]);
    assert_eq!(rig.containers(), ["r running"]);
}

#[test]
fn what_a_hung_shim_keeps_is_neither_interrupted_nor_removed_by_a_restart() {
    for answered in [true, false] {
        let mut rig = Rig::online();
        rig.deploy("other", "q0");
        rig.hold("run");
        rig.deploy("r", "q1");
        rig.release("run");
        if answered {
            rig.pong();
        }
        let id = rig.container("r");
        rig.engine.hung.insert(id.clone());
        let mut rig = rig.restart();
        rig.connect();
        rig.sent();
        rig.wait(300 * SECOND);
        assert_eq!(rig.containers(), ["other running", "r unknown"]);
        assert_eq!(rig.up("r"), 1);
        rig.engine.hung.clear();
        rig.wait(6 * SECOND);
        assert_eq!(rig.containers(), ["other running", "r running"]);
        let told = rig.sent();
        assert!(told.iter().all(|line| line.contains("running")), "{told:?}");
    }
}

#[test]
fn no_gpu_is_called_free_before_the_containers_are_known() {
    let mut rig = Rig::online();
    rig.deploy_with("r", "q1", r#","gpu_count":2"#);
    rig.pong();
    rig.record = None;
    rig.engine.mode = Mode::Frozen;
    let mut rig = rig.restart();
    rig.connect();
    let status = rig.control(Request::Status);
    let gpus = status["gpus"].as_array().unwrap();
    assert!(
        gpus.iter().all(|gpu| gpu["assignable"] == json!(false) && gpu["reason"].is_string()),
        "{gpus:?}"
    );
    rig.engine.mode = Mode::Well;
    rig.release("list");
    let status = rig.control(Request::Status);
    assert!(status["gpus"].as_array().unwrap().iter().all(|gpu| gpu["replica_id"] == "r"), "{status}");
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
