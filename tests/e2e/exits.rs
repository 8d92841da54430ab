//! A container that ends by itself is reported at once, with its exit code; and its output can be asked for.

use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::support::control_plane::WAIT;
use crate::world::World;

/// The slow comparison with the engine's list is 60 s away: what comes within this was noticed at once.
const SOON: Duration = Duration::from_secs(5);

#[test]
fn an_exit_is_told_at_once_with_its_code() {
    let Some(world) = World::start("an_exit_is_told_at_once_with_its_code") else { return };
    let codes = [(0, "exit 0"), (7, "exit 7"), (137, "kill -KILL $$"), (143, "kill -TERM $$")];
    for (code, end) in codes {
        let replica = format!("exits-{code}");
        // PID 1 cannot be killed from inside, so a shell below it is.
        let script = format!("while [ ! -e /tmp/go ]; do sleep 0.05; done; sh -c '{end}'; exit $?");
        let container = world.deploy(&replica, &json!({"command": ["/bin/sh", "-c", script]}));
        world.engine.inside(&container, &["/bin/touch", "/tmp/go"]);
        let began = Instant::now();
        let told = world.plane.wait_event(WAIT, |event| {
            event["payload"]["exit_code"].is_number() && event["payload"]["replica_id"] == *replica
        });
        assert!(began.elapsed() < SOON, "{:?}", began.elapsed());
        assert_eq!(
            (&told["payload"]["status"], &told["payload"]["exit_code"]),
            (&json!("exited"), &json!(code))
        );
    }
    // Killed from outside; and one that ends before anybody looks.
    let container = world.deploy("killed", &json!({}));
    world.engine.text(&["kill", "--signal=KILL", &container]);
    let killed =
        |event: &Value| event["payload"]["replica_id"] == "killed" && event["payload"]["exit_code"] == 137;
    world.plane.wait_event(SOON, killed);
    world.deploy("brief", &json!({"command": ["/bin/sh", "-c", "exit 4"]}));
    let brief =
        |event: &Value| event["payload"]["replica_id"] == "brief" && event["payload"]["exit_code"] == 4;
    world.plane.wait_event(SOON, brief);
    // Each was told once, and stands in the list with its code.
    let told = world.events("replica_status");
    assert_eq!(told.iter().filter(|news| news["status"] == "exited").count(), codes.len() + 2, "{told:?}");
    let (_, status) = world.node.said(&["status"]);
    assert!(status.contains("exited (7) exits-7") && status.contains("exited (137) killed"), "{status}");
}

/// The moments in which the agent learns of a container, looks for its process and begins to watch it.
#[test]
fn an_exit_at_any_moment_of_the_start() {
    let Some(world) = World::start("an_exit_at_any_moment_of_the_start") else { return };
    let moments = 0..16;
    let asked: Vec<(i32, String)> = moments
        .map(|moment| {
            let script = format!("sleep {}; exit {}", f64::from(moment) * 0.02, moment + 1);
            (moment, world.ask(&format!("m-{moment}"), &json!({"command": ["/bin/sh", "-c", script]})))
        })
        .collect();
    for (moment, request) in asked {
        assert_eq!(world.result(&request)["status"], "running");
        let replica = format!("m-{moment}");
        let told = world.plane.wait_event(WAIT, |event| {
            event["payload"]["replica_id"] == *replica && event["payload"]["exit_code"].is_number()
        });
        assert_eq!(told["payload"]["exit_code"], moment + 1);
    }
}

#[test]
fn out_of_memory() {
    let Some(world) = World::start("out_of_memory") else { return };
    let script = "while [ ! -e /tmp/go ]; do sleep 0.05; done; x=x; while :; do x=$x$x$x$x; done";
    let container = world.deploy("greedy", &json!({"memory_mb": 16, "command": ["/bin/sh", "-c", script]}));
    // It does not inherit the engine's, by which it would be the last one to be ended.
    let score = world.engine.inside(&container, &["/bin/cat", "/proc/1/oom_score_adj"]);
    assert_eq!(score.trim_ascii(), b"500");
    world.engine.inside(&container, &["/bin/touch", "/tmp/go"]);
    let told = world.plane.wait_event(WAIT, |event| event["payload"]["exit_code"].is_number());
    assert_eq!(
        (&told["payload"]["oom_killed"], &told["payload"]["exit_code"]),
        (&json!(true), &json!(137)),
        "{told}"
    );
}

#[test]
fn what_a_container_prints() {
    let Some(world) = World::start("what_a_container_prints") else { return };
    let script = "for i in $(seq 1 50); do echo line $i; done; echo last >&2; echo; printf 'grüße \\033[31m\\n'; sleep 1000";
    world.deploy("talks", &json!({"command": ["/bin/sh", "-c", script]}));
    world.wait_printed("talks", "grüße");
    let ask = |replica: &str, tail: u64| world.logs(replica, tail);
    let all = ask("talks", 100);
    let mut lines: Vec<&str> =
        all["lines"].as_array().unwrap().iter().map(|line| line.as_str().unwrap()).collect();
    assert_eq!((lines.len(), &all["truncated"]), (53, &json!(false)), "{all}");
    // Both streams are there; which of them comes first where both were written to is the engine's business.
    lines.retain(|line| *line != "last");
    assert_eq!((lines[0], lines[49], lines[50]), ("line 1", "line 50", ""));
    assert!(lines[51].starts_with("grüße"), "{all}");
    let few = ask("talks", 2);
    assert_eq!(few["lines"].as_array().unwrap().len(), 2, "{few}");
    assert_eq!(ask("nobody", 10)["lines"], json!([]));
    // Those of one that ended are still there.
    world.deploy("ended", &json!({"command": ["/bin/sh", "-c", "echo so long; exit 1"]}));
    world.plane.wait_event(WAIT, |event| event["payload"]["exit_code"] == 1);
    assert_eq!(ask("ended", 10)["lines"], json!(["so long"]));
    world.stop("ended", &json!({}));
    assert_eq!(ask("ended", 10)["lines"], json!([]));
}
