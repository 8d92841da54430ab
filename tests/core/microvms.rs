//! What is particular to containers that run in microVMs: their end, guests that hang while they boot, and what does not
//! reach them.

use vectorlay::core::Event;
use vectorlay::core::job::{FailureKind, Job, LABEL_DEPLOY};

use crate::engine::{Container, Status, failed};
use crate::rig::{Rig, SECOND, kata};

fn running() -> Rig {
    let mut rig = Rig::online();
    rig.event(Event::Check(kata()));
    rig.deploy("r", "q1");
    assert_eq!(rig.sent(), ["deploy_result r running q1"]);
    rig
}

fn set(rig: &mut Rig, status: Status) {
    let id = rig.container("r");
    rig.engine.containers.get_mut(&id).unwrap().status = status;
}

/// The hypervisor ends, and only then the engine learns that the program has: with `code`, or its task is lost.
fn ends(rig: &mut Rig, status: Status) {
    rig.event(Event::ProcessEnded(rig.container("r")));
    assert_eq!(rig.containers(), ["r unknown"]);
    set(rig, status);
    rig.wait(20 * SECOND);
}

#[test]
fn the_end_of_a_microvm_is_not_the_programs_own() {
    for status in [Status::Exited(255), Status::Created] {
        let mut rig = running();
        ends(&mut rig, status);
        let told = rig.payloads("replica_status").pop().unwrap();
        assert_eq!((&told["status"], told.get("exit_code")), (&"failed".into(), None), "{status:?}");
        assert!(told["reason"].as_str().unwrap().starts_with("the microVM ended: "), "{told}");
        rig.sent();
        assert_eq!(rig.containers(), ["r failed"]);
        // A new process says the same, and does not say it again.
        if status != Status::Created {
            rig.pong();
            let mut rig = rig.restart();
            rig.connect();
            assert_eq!((rig.containers(), rig.sent()), (vec!["r failed".to_owned()], vec![]));
        }
    }
}

#[test]
fn a_program_may_end_with_255_itself() {
    let mut rig = running();
    rig.ends("r", 255);
    rig.wait(20 * SECOND);
    assert_eq!(rig.sent(), ["replica_status r exited:255"]);
    // Another code is the program's, and a plain runtime has no microVM to end.
    let mut rig = running();
    ends(&mut rig, Status::Exited(3));
    assert_eq!(rig.sent(), ["replica_status r exited:3"]);
    let mut rig = Rig::online();
    rig.deploy("r", "q1");
    rig.sent();
    ends(&mut rig, Status::Exited(255));
    assert_eq!(rig.sent(), ["replica_status r exited:255"]);
}

#[test]
fn the_shim_of_a_guest_that_hangs_is_ended_after_the_stops_deadline() {
    let mut rig = Rig::online();
    rig.hold("run");
    rig.deploy("r", "q1");
    // What containerd has of a container whose task is being created.
    let mut made = None;
    rig.look("run", |job| {
        let Job::Run(run) = job else { panic!("{job}") };
        let label = run.labels.iter().find(|(name, _)| *name == LABEL_DEPLOY).unwrap();
        made = Some((run.name.clone(), label.1.clone()));
    });
    let (name, deploy) = made.unwrap();
    let id = rig.engine.fresh_id();
    let container = Container {
        name,
        replica: "r".into(),
        deploy,
        spec: String::new(),
        image: "img:a".into(),
        gpus: Vec::new(),
        memory_mib: 0,
        status: Status::Created,
        by_itself: false,
    };
    rig.engine.containers.insert(id.clone(), container);
    rig.engine.hung.insert(id);
    rig.stop("r", "q2");
    rig.wait(69 * SECOND);
    assert_eq!((rig.sent(), rig.other.len()), (vec![], 0), "the stop still has time");
    rig.wait(2 * SECOND);
    let result = rig.payloads("stop_result").pop().unwrap();
    assert_eq!(result["code"], "timeout");
    let error = result["error"].as_str().unwrap();
    assert!(error.contains("a guest that hangs while it boots") && error.contains("dial_timeout"), "{error}");
    assert_eq!(rig.other, ["end the shim of r"]);
    rig.comes_back("run", |job| failed(job, FailureKind::Refused, "ttrpc: closed"));
    rig.wait(SECOND);
    assert_eq!((rig.engine.of("r").count(), rig.containers()), (0, vec![]));
}

#[test]
fn a_shim_that_hangs_is_no_reason_to_end_it_before_that() {
    let mut rig = running();
    let id = rig.container("r");
    rig.engine.hung.insert(id);
    rig.wait(600 * SECOND);
    assert_eq!(rig.other, [""; 0]);
    rig.stop("r", "q2");
    rig.wait(80 * SECOND);
    assert_eq!(rig.other, ["end the shim of r"]);
    rig.wait(60 * SECOND);
    assert_eq!(rig.engine.of("r").count(), 0);
}

#[test]
fn what_does_not_reach_a_microvm_is_told() {
    let more = r#","env_vars":{"A":"x ","B":"y"},"shm_size_mb":64,"pids_limit":9"#;
    let mut rig = running();
    rig.deploy_with("s", "q2", more);
    let warnings = rig.payloads("deploy_result").pop().unwrap()["warnings"].clone();
    assert_eq!(warnings.as_array().unwrap().len(), 2, "{warnings}");
    assert!(warnings[0].as_str().unwrap().ends_with("changes A"), "{warnings}");
    // The same for one who asks again, and for one whose answer is kept.
    rig.deploy_with("s", "q3", more);
    assert_eq!(rig.payloads("deploy_result").pop().unwrap()["warnings"], warnings);
    let mut rig = Rig::online();
    rig.deploy_with("s", "q2", more);
    assert_eq!(rig.payloads("deploy_result").pop().unwrap().get("warnings"), None);
}
