//! How busy the GPUs in microVMs are, as the guests say.

use serde_json::{Value, json};
use vectorlay::core::Event;
use vectorlay::core::inventory::GpuUse;
use vectorlay::core::job::{FailureKind, Outcome};
use vectorlay::core::operator::Request;

use crate::engine::{failed, guest_use};
use crate::rig::{Rig, SECOND, Start, hardware};

fn node() -> Rig {
    let mut rig = Rig::start(Start { ask_guests: true, ..Start::default() });
    rig.connect();
    rig
}

/// What is known, and who said so.
fn known(rig: &mut Rig) -> [Value; 2] {
    let status = rig.control(Request::Status);
    ["gpu_utilization", "gpu_utilization_source"].map(|name| status[name].clone())
}

#[test]
fn guests_are_asked_with_each_heartbeat_if_that_is_allowed() {
    let mut rig = node();
    rig.deploy_with("g", "q1", r#","gpu_count":1"#);
    rig.deploy("plain", "q2");
    rig.beat();
    let asked = rig.started.iter().filter(|job| job.starts_with("use of the GPUs")).count();
    assert_eq!(asked, 1, "the one that has GPUs");
    assert_eq!(known(&mut rig), [json!(50), json!("guest")]);

    let mut rig = Rig::online();
    rig.deploy_with("g", "q1", r#","gpu_count":1"#);
    rig.beat();
    assert!(!rig.started.iter().any(|job| job.starts_with("use of the GPUs")));
    assert_eq!(known(&mut rig), [Value::Null, Value::Null]);
}

#[test]
fn a_guest_that_hangs_delays_no_heartbeat_and_is_asked_once() {
    let mut rig = node();
    rig.deploy_with("g", "q1", r#","gpu_count":1"#);
    rig.hold("use of the GPUs");
    for _ in 0..3 {
        rig.everything_sent();
        rig.beat();
        assert!(rig.everything_sent().contains(&"heartbeat".to_owned()));
    }
    assert_eq!(rig.under_way("use of the GPUs"), 1);
}

#[test]
fn an_answer_is_used_for_a_while_and_a_failure_makes_it_unknown() {
    let mut rig = node();
    rig.deploy_with("g", "q1", r#","gpu_count":1"#);
    rig.beat();
    rig.hold("use of the GPUs");
    rig.wait(89 * SECOND);
    assert_eq!(known(&mut rig)[0], json!(50));
    rig.wait(2 * SECOND);
    assert_eq!(known(&mut rig), [Value::Null, Value::Null]);
    rig.release("use of the GPUs");
    rig.beat();
    assert_eq!(known(&mut rig)[0], json!(50));
    rig.hold("use of the GPUs");
    rig.beat();
    rig.comes_back("use of the GPUs", |job| failed(job, FailureKind::Refused, "no nvidia-smi"));
    assert_eq!(known(&mut rig)[0], Value::Null);
}

#[test]
fn a_replica_that_is_gone_is_not_counted() {
    let mut rig = node();
    rig.deploy_with("g", "q1", r#","gpu_count":1"#);
    rig.deploy_with("h", "q2", r#","gpu_count":1"#);
    rig.hold("use of the GPUs");
    rig.beat();
    rig.comes_back("use of the GPUs", |_| Outcome::GuestUse(Ok(vec![guest_use(10)])));
    rig.comes_back("use of the GPUs", |_| Outcome::GuestUse(Ok(vec![guest_use(90)])));
    assert_eq!(known(&mut rig)[0], json!(50), "the mean");
    rig.stop("g", "q3");
    assert_eq!(known(&mut rig)[0], json!(90));
}

#[test]
fn what_the_host_sees_counts_beside_what_guests_say() {
    let mut rig = node();
    rig.deploy_with("g", "q1", r#","gpu_count":1"#);
    rig.usage.gpus =
        vec![GpuUse { source: "nvidia-smi", busy_percent: Some(99), memory_mib: Some((1024, 24 * 1024)) }];
    rig.beat();
    assert_eq!(known(&mut rig), [json!(75), json!("guest, nvidia-smi")]);
    let status = rig.control(Request::Status);
    assert_eq!([&status["gpu_memory_used_gb"], &status["gpu_memory_total_gb"]], [&json!(21), &json!(104)]);
}

#[test]
fn a_guest_is_believed_about_its_own_gpus_alone() {
    let mut rig = node();
    rig.deploy_with("g", "q1", r#","gpu_count":1"#);
    rig.hold("use of the GPUs");
    rig.beat();
    rig.comes_back("use of the GPUs", |_| Outcome::GuestUse(Ok(vec![guest_use(10), guest_use(100)])));
    assert_eq!(known(&mut rig)[0], json!(10));
}

#[test]
fn what_a_guest_says_is_taken_within_reason() {
    for memory in [(u64::MAX, u64::MAX), (2, 1), (0, 1 << 40)] {
        let mut rig = node();
        rig.deploy_with("g", "q1", r#","gpu_count":1"#);
        rig.hold("use of the GPUs");
        rig.beat();
        let said = GpuUse { memory_mib: Some(memory), ..guest_use(7) };
        rig.comes_back("use of the GPUs", |_| Outcome::GuestUse(Ok(vec![said])));
        assert_eq!(known(&mut rig)[0], json!(7));
        assert_eq!(rig.control(Request::Status)["gpu_memory_used_gb"], Value::Null, "{memory:?}");
    }
}

#[test]
fn few_are_asked_at_once_and_one_that_does_not_answer_is_left_alone_for_ten_minutes() {
    let mut rig = Rig::start(Start { ask_guests: true, gpus: 5, ..Start::default() });
    rig.connect();
    for replica in ["a", "b", "c", "d"] {
        rig.deploy_with(replica, &format!("q{replica}"), r#","gpu_count":1"#);
    }
    rig.hold("use of the GPUs");
    rig.beat();
    assert_eq!(rig.under_way("use of the GPUs"), 2);
    rig.comes_back("use of the GPUs", |job| failed(job, FailureKind::Deadline, "hangs"));
    assert_eq!(rig.under_way("use of the GPUs"), 2, "the next one is asked");
    rig.release("use of the GPUs");
    rig.started.clear();
    let asked = |rig: &mut Rig| {
        rig.beat();
        std::mem::take(&mut rig.started).iter().filter(|job| job.starts_with("use of the GPUs")).count()
    };
    assert_eq!(asked(&mut rig), 3);
    rig.wait(601 * SECOND);
    rig.started.clear();
    assert_eq!(asked(&mut rig), 4);
}

#[test]
fn a_container_is_not_asked_about_gpus_that_the_host_sees() {
    let mut rig = node();
    rig.sampling = false;
    let mut by_driver = hardware(2);
    for (n, gpu) in by_driver.gpus.iter_mut().enumerate() {
        gpu.device_node = Some(format!("GPU-{n}"));
    }
    rig.event(Event::Hardware(Box::new(by_driver)));
    rig.deploy_with("g", "q1", r#","gpu_count":1"#);
    assert_eq!(rig.up("g"), 1);
    rig.beat();
    assert!(!rig.started.iter().any(|job| job.starts_with("use of the GPUs")));
}
