//! How a container is started: optimistically, with a pull only where it is needed, and honestly when it fails.

use vectorlay::core::job::{FailureKind, PullCause};
use vectorlay::core::operator::Request;

use crate::engine::{Fault, failed};
use crate::rig::{Rig, SECOND};

#[test]
fn an_image_that_is_there_costs_one_call() {
    let mut rig = Rig::online();
    rig.deploy("r", "q1");
    let calls: Vec<&String> = rig.started.iter().filter(|job| !job.starts_with("inspect")).collect();
    assert_eq!(calls, ["run replica-r"]);
}

#[test]
fn a_missing_image_is_pulled_unless_that_is_forbidden() {
    let mut rig = Rig::online();
    rig.deploy_with("r", "q1", r#","image":"img:far""#);
    assert_eq!(rig.started[..3], ["run replica-r", "pull img:far", "run replica-r"]);
    assert_eq!(rig.sent(), ["deploy_result r running q1"]);
    rig.deploy_with("s", "q2", r#","image":"img:near","pull":"never""#);
    assert_eq!(rig.sent(), ["deploy_result s failed:pull_failed q2"]);
    rig.started.clear();
    rig.deploy_with("t", "q3", r#","pull":"always""#);
    assert_eq!(rig.started[..2], ["pull img:a", "run replica-t"]);
}

#[test]
fn pulls_hold_up_no_start() {
    let mut rig = Rig::online();
    rig.hold("pull");
    let mut slow = |n: usize| rig.deploy_with(&format!("slow{n}"), &n.to_string(), r#","image":"img:far""#);
    // More than start at once.
    (0..3).for_each(&mut slow);
    rig.deploy("r", "q1");
    assert_eq!(rig.sent(), ["deploy_result r running q1"]);
    // They count as waiting.
    rig.deploy_with("slow3", "3", r#","image":"img:far""#);
    rig.deploy("s", "q2");
    assert_eq!(rig.sent(), ["deploy_result s failed:busy q2"]);
}

#[test]
fn what_came_with_credentials_is_asked_for_before_it_is_used() {
    let auth = r#","registry_auth":{"server":"s","username":"u","password":"p"}"#;
    let mut rig = Rig::online();
    let started = |rig: &mut Rig| -> Vec<String> {
        std::mem::take(&mut rig.started).into_iter().filter(|job| !job.starts_with("inspect")).collect()
    };
    rig.deploy_with("a", "q1", "");
    assert_eq!(started(&mut rig), ["run replica-a"]);
    rig.deploy_with("b", "q2", auth);
    assert_eq!(started(&mut rig), ["pull img:a", "run replica-b"], "the credentials are tried");
    // Another one, without them, asks too; since it gets it, everyone may have it again.
    rig.deploy_with("c", "q3", "");
    assert_eq!(started(&mut rig), ["pull img:a", "run replica-c"]);
    rig.deploy_with("d", "q4", "");
    assert_eq!(started(&mut rig), ["run replica-d"]);
    rig.deploy_with("e", "q5", auth);
    started(&mut rig);
    rig.sent();
    rig.deploy_with("f", "q6", r#","pull":"never""#);
    assert_eq!(rig.sent(), ["deploy_result f failed:pull_failed q6"]);
    assert_eq!(started(&mut rig), [""; 0]);
}

#[test]
fn each_failure_has_its_code() {
    let check = |call: &str, kind: FailureKind, more: &str, code: &str| {
        let mut rig = Rig::online();
        rig.hold("run");
        rig.hold("pull");
        rig.deploy_with("r", "q1", more);
        rig.comes_back(call, |job| failed(job, kind, "words"));
        assert_eq!(rig.sent(), [format!("deploy_result r failed:{code} q1")], "{call} {kind:?}");
        assert!(rig.containers().is_empty());
    };
    let always = r#","pull":"always""#;
    check("run", FailureKind::Refused, "", "start_failed");
    check("run", FailureKind::Unavailable, "", "runtime_unavailable");
    check("run", FailureKind::Deadline, "", "timeout");
    check("run", FailureKind::Impossible, "", "invalid");
    check("run", FailureKind::NameTaken, "", "start_failed");
    check("run", FailureKind::ImageRefused, "", "image_refused");
    check("run", FailureKind::PortInUse, "", "not_allowed");
    check("pull", FailureKind::Refused, always, "pull_failed");
    check("pull", FailureKind::PullRefused(PullCause::NotFound), always, "pull_failed");
    check("pull", FailureKind::Unavailable, always, "runtime_unavailable");
    check("pull", FailureKind::Deadline, always, "timeout");
}

#[test]
fn what_a_failed_run_left_is_removed_before_it_is_told() {
    for fault in [Fault::Half, Fault::Nameless] {
        let mut rig = Rig::online();
        rig.spoil("run", fault);
        // `rm -f` says 0 and does nothing.
        rig.spoil("remove", Fault::Half);
        rig.deploy("r", "q1");
        rig.wait(SECOND);
        assert_eq!(rig.sent(), ["deploy_result r failed:start_failed q1"]);
        assert!(rig.engine.containers.is_empty(), "{fault:?}");
        rig.deploy("r", "q2");
        assert_eq!(rig.sent(), ["deploy_result r running q2"]);
    }
}

#[test]
fn a_failure_whose_container_will_not_go_is_told_all_the_same_and_its_gpus_stay_held() {
    let mut rig = Rig::online();
    rig.spoil("run", Fault::Half);
    rig.hold("remove");
    rig.deploy_with("r", "q1", r#","gpu_count":2"#);
    rig.wait(11 * SECOND);
    assert_eq!(rig.sent(), ["deploy_result r failed:start_failed q1"]);
    rig.deploy_with("s", "q2", r#","gpu_count":1"#);
    assert_eq!(rig.sent(), [""; 0], "it waits for what is on its way back");
    rig.release("remove");
    rig.wait(2 * SECOND);
    assert_eq!(rig.sent(), ["deploy_result s running q2"]);
}

#[test]
fn a_name_that_is_held_by_nobody_is_passed_over() {
    let mut rig = Rig::online();
    let id = |digit: &str| vectorlay::types::ContainerId::new(&digit.repeat(64)).unwrap();
    rig.engine.ghosts.insert("replica-r".into(), id("a"));
    rig.engine.ghosts.insert("replica-r-2".into(), id("b"));
    rig.deploy("r", "q1");
    assert_eq!(rig.sent(), ["deploy_result r running q1"]);
    assert_eq!(rig.engine.containers[&rig.container("r")].name, "replica-r-3");
}

#[test]
fn a_name_that_is_reserved_for_no_container_is_passed_over() {
    let mut rig = Rig::online();
    rig.hold("run");
    rig.deploy("r", "q1");
    let reserved =
        |job: &_| failed(job, FailureKind::NameReserved, "name \"replica-r\" is already used by ID \"\"");
    rig.comes_back("run", reserved);
    rig.release("run");
    assert_eq!(rig.sent(), ["deploy_result r running q1"]);
    assert_eq!(rig.engine.containers[&rig.container("r")].name, "replica-r-2");
    // Not for ever.
    rig.hold("run");
    rig.deploy("s", "q2");
    for _ in 0..4 {
        rig.comes_back("run", reserved);
    }
    assert_eq!(rig.sent(), ["deploy_result s failed:start_failed q2"]);
}

#[test]
fn a_foreign_container_with_our_name_is_left_alone() {
    let mut rig = Rig::online();
    rig.deploy("r", "q1");
    let id = rig.container("r");
    let container = rig.engine.containers.get_mut(&id).unwrap();
    (container.name, container.replica) = ("replica-s".into(), String::new());
    rig.deploy("s", "q2");
    assert!(rig.sent().contains(&"deploy_result s failed:start_failed q2".to_owned()));
    assert!(rig.engine.containers.contains_key(&id));
}

#[test]
fn too_little_space_refuses_a_pull_and_nothing_else() {
    let mut rig = Rig::online();
    rig.usage.free_bytes = Some(1);
    rig.event(vectorlay::core::Event::HeartbeatDue);
    rig.deploy_with("r", "q1", r#","image":"img:far""#);
    rig.deploy("s", "q2");
    assert_eq!(rig.sent(), ["deploy_result r failed:no_disk q1", "deploy_result s running q2"]);
}

#[test]
fn a_full_disk_degrades_the_node_and_is_why_a_start_fails() {
    let mut rig = Rig::online();
    assert_eq!(rig.state(), "online");
    rig.usage.free_bytes = Some(0);
    rig.beat();
    let status = rig.control(Request::Status);
    assert_eq!(status["state"], "degraded");
    let reason = status["reason"].as_str().unwrap();
    assert!(reason.starts_with("no space is left on the data path"), "{reason}");
    rig.hold("run");
    rig.deploy("r", "q1");
    rig.comes_back("run", |job| failed(job, FailureKind::NoSpace, "mkdir x: no space left on device"));
    assert_eq!(rig.sent(), ["deploy_result r failed:no_disk q1"]);
    rig.usage.free_bytes = Some(1 << 30);
    rig.beat();
    assert_eq!(rig.state(), "online");
}

#[test]
fn more_gpus_than_are_free_are_refused_at_once() {
    let mut rig = Rig::online();
    rig.deploy_with("r", "q1", r#","gpu_count":2"#);
    rig.deploy_with("s", "q2", r#","gpu_count":1"#);
    assert_eq!(rig.sent(), ["deploy_result r running q1", "deploy_result s failed:no_gpu q2"]);
}

#[test]
fn a_deploy_that_finds_no_place_in_time_fails() {
    let mut rig = Rig::online();
    rig.hold("run");
    for replica in ["a", "b"] {
        rig.deploy(replica, "q");
    }
    rig.deploy_with("r", "q1", r#","deploy_timeout_s":30"#);
    rig.wait(31 * SECOND);
    assert_eq!(rig.sent(), ["deploy_result r failed:timeout q1"]);
}

/// The field of a deploy that publishes this port, in the form of [`Rig::deploy_with`].
fn publishing(port: &str) -> String {
    let (host, protocol) = port.split_once('/').unwrap();
    format!(r#","ports":[{{"host":{host},"container":80,"protocol":"{protocol}"}}]"#)
}

#[test]
fn a_port_of_the_host_is_one_replicas() {
    let mut rig = Rig::online();
    rig.deploy_with("a", "q1", &publishing("8080/tcp"));
    rig.sent();
    rig.deploy_with("b", "q2", &publishing("8080/udp"));
    assert_eq!(rig.sent(), ["deploy_result b running q2"]);
    // Across a restart too: it is in the record.
    let mut rig = rig.restart();
    rig.connect();
    rig.sent();
    rig.started.clear();
    rig.deploy_with("c", "q3", &publishing("8080/tcp"));
    assert_eq!(rig.sent(), ["deploy_result c failed:not_allowed q3"]);
    assert!(rig.started.iter().all(|job| !job.starts_with("run")), "{:?}", rig.started);
    // One that ended holds none.
    rig.ends("a", 0);
    rig.sent();
    rig.deploy_with("d", "q4", &publishing("8080/tcp"));
    assert_eq!(rig.sent(), ["deploy_result d running q4"]);
}

#[test]
fn a_port_of_a_replica_that_leaves_is_waited_for() {
    let mut rig = Rig::online();
    rig.deploy_with("a", "q1", &publishing("8080/tcp"));
    rig.sent();
    rig.hold("stop");
    rig.stop("a", "q2");
    rig.deploy_with("b", "q3", &publishing("8080/tcp"));
    assert_eq!(rig.sent(), [""; 0]);
    rig.release("stop");
    let mut sent = rig.sent();
    sent.sort_unstable();
    assert_eq!(sent, ["deploy_result b running q3", "stop_result a stopped q2"]);
}
