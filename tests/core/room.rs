//! Memory and CPUs: what is promised is there, and what is not refuses a deploy before anything starts.

use serde_json::Value;
use vectorlay::core::Event;
use vectorlay::core::inventory::Hardware;

use crate::rig::{Rig, SECOND, Start, hardware, kata};

/// `memory_free_mb` of the next heartbeat.
fn free(rig: &mut Rig) -> Value {
    rig.everything_sent();
    rig.beat();
    rig.payloads("heartbeat").pop().unwrap()["status"]["memory_free_mb"].take()
}

#[test]
fn memory_is_promised_once_and_given_back() {
    let mut rig = Rig::online();
    assert_eq!(free(&mut rig), 15_000 - 24);
    rig.deploy_with("a", "q1", r#","memory_mb":10000"#);
    rig.deploy_with("b", "q2", r#","memory_mb":5000"#);
    assert_eq!(rig.sent(), ["deploy_result a running q1", "deploy_result b failed:no_memory q2"]);
    assert_eq!(rig.up("b"), 0);
    rig.deploy("c", "q3");
    assert_eq!((rig.sent(), free(&mut rig)), (vec!["deploy_result c running q3".to_owned()], 4976.into()));
    // One that is on its way out is waited for.
    rig.hold("stop");
    rig.stop("a", "q4");
    rig.deploy_with("d", "q5", r#","memory_mb":14000"#);
    assert_eq!(rig.sent(), [""; 0]);
    rig.release("stop");
    rig.wait(SECOND);
    assert_eq!(rig.sent(), ["stop_result a stopped q4", "deploy_result d running q5"]);
    // What ended by itself has given its memory back.
    rig.ends("d", 0);
    rig.wait(SECOND);
    assert_eq!(free(&mut rig), 14_976);
}

#[test]
fn each_microvm_takes_its_own_besides() {
    let mut rig = Rig::online();
    rig.event(Event::Check(kata()));
    rig.deploy("a", "q1");
    assert_eq!(free(&mut rig), 14_976 - 2208);
    rig.deploy_with("b", "q2", r#","memory_mb":10561"#);
    let result = rig.payloads("deploy_result").pop().unwrap();
    let error = "memory_mb is 10561 and 2208 MiB for its microVM, and 12768 MiB are free: of 16000 MiB, 2208 are \
                 promised to 1 replicas and 1024 are kept back by reserve_memory_mb";
    assert_eq!((&result["code"], &result["error"]), (&"no_memory".into(), &error.into()));
    rig.deploy_with("b", "q3", r#","memory_mb":10560"#);
    assert_eq!(rig.sent().pop().unwrap(), "deploy_result b running q3");
}

#[test]
fn what_was_promised_is_known_after_a_restart() {
    let mut rig = Rig::online();
    rig.deploy_with("a", "q1", r#","memory_mb":10000"#);
    let mut rig = rig.restart();
    rig.connect();
    assert_eq!(free(&mut rig), 4976);
    rig.deploy_with("b", "q2", r#","memory_mb":5000"#);
    assert_eq!(rig.sent().pop().unwrap(), "deploy_result b failed:no_memory q2");
}

#[test]
fn more_cpus_than_the_host_has_are_refused() {
    let mut rig = Rig::online();
    rig.event(Event::Hardware(Box::new(Hardware { cpu_cores: Some(4), ..hardware(0) })));
    rig.deploy_with("a", "q1", r#","cpus":4.5"#);
    rig.deploy_with("b", "q2", r#","cpus":4"#);
    assert_eq!(rig.sent(), ["deploy_result a failed:no_cpu q1", "deploy_result b running q2"]);
}

#[test]
fn what_is_not_known_refuses_nothing() {
    let mut rig = Rig::start(Start::default());
    rig.sampling = false;
    rig.event(Event::Hardware(Box::default()));
    rig.connect();
    rig.deploy_with("a", "q1", r#","memory_mb":1000000000,"cpus":4096"#);
    assert_eq!(rig.sent(), ["deploy_result a running q1"]);
    assert_eq!(free(&mut rig), Value::Null);
}
