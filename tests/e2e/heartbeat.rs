//! Heartbeats come in time, whatever hangs.

use std::os::unix::fs::PermissionsExt as _;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::support::control_plane::{ControlPlane, WAIT};
use crate::world::node;

#[test]
fn in_time_although_the_engine_hangs() {
    let plane = ControlPlane::start(&[]);
    let mut node = node("heartbeat", &plane);
    // A CLI that never answers, until the test is over.
    let cli = node.path().join("nerdctl");
    let script = format!("#!/bin/sh\nwhile [ -d '{}' ]; do sleep 0.2; done\n", node.path().display());
    std::fs::write(&cli, script).unwrap();
    std::fs::set_permissions(&cli, std::fs::Permissions::from_mode(0o755)).unwrap();
    node.set("container-cli", cli.to_str().unwrap());
    let began = Instant::now();
    let _agent = node.start();

    let next = |mark: u64, deadline: Duration, kind: &'static str| {
        plane.wait_event_after(mark, deadline, move |event| event["type"] == kind)
    };
    let ms = |event: &Value| event["ms"].as_u64().unwrap();
    let number = |event: &Value| event["n"].as_u64().unwrap();
    let up = next(0, WAIT, "connected");
    let info = next(number(&up), WAIT, "system_info");
    assert!(ms(&info) - ms(&up) < 6_000, "at the latest 2 s after the upgrade, with what is known");
    let first = next(number(&info), WAIT, "heartbeat");
    assert!(ms(&first) - ms(&up) < 6_000, "the first comes at once");
    // What is not known is not made up.
    let status = &first["payload"]["status"];
    assert_eq!((&status["containers"], &status["containers_age_s"]), (&json!([]), &Value::Null));
    // The schedule is the agent's own, from its start on.
    let second = next(number(&first), Duration::from_secs(45), "heartbeat");
    let after = began.elapsed();
    assert!((Duration::from_secs(29)..Duration::from_secs(35)).contains(&after), "{after:?} after the start");
    assert!(second["payload"]["status"]["memory_total_gb"].is_u64());
    assert_eq!(second["payload"]["status"]["state"], "degraded");
}
