//! The engine's daemon killed, frozen and restarted under running replicas.

use std::time::{Duration, Instant};

use rustix::process::Signal;
use serde_json::json;

use super::report::{Plan, Random, Row};
use super::rig::{BEAT_SLACK, LATE, Rig, SOON};
use crate::support::engine::{Engine, EngineTurn, OwnEngine};
use crate::support::processes;
use crate::support::wait::wait_for;

/// Within this the node has to say that the engine does not answer; the rest is the test's own way of asking.
const DEGRADED_WITHIN: Duration = Duration::from_secs(30 + 2);
/// How long a deploy may take that meets a dead or frozen engine.
const DEPLOY_S: u64 = 20;
/// Replicas that are running when the fault comes.
const REPLICAS: usize = 3;
/// What the reason says of an engine that is gone.
const SILENT: &str = "the container engine does not answer";

/// What happens to the daemon.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Fault {
    /// SIGKILL, and a start after a while.
    Kill,
    /// SIGSTOP, and SIGCONT after a while.
    Freeze(Duration),
    /// A proper stop, and a start at once.
    Restart,
}

#[test]
fn the_engine_is_killed_and_frozen() {
    let Some(engine) = EngineTurn::shared("the_engine_is_killed_and_frozen") else { return };
    // Not the one that other tests are using.
    let own = OwnEngine::start(&engine);
    let plan = Plan::new();
    let expected = "degraded within 30 s and back by itself, exits meanwhile are told, replicas live on";
    faults(&own, "SIGKILL of the engine", Fault::Kill, plan.pick(1, 5), expected);
    let expected = "replicas live on, exits meanwhile are told";
    faults(&own, "restart of the engine", Fault::Restart, plan.pick(1, 10), expected);
    let expected = "degraded within 30 s and back by itself, heartbeats on time, deploys fail truly";
    let fault = plan.pick("SIGSTOP of the engine for 35 s", "SIGSTOP of the engine for 90 s");
    let long = Duration::from_secs(plan.pick(35, 90));
    faults(&own, fault, Fault::Freeze(long), plan.pick(1, 2), expected);
}

fn faults(engine: &Engine, fault: &'static str, kind: Fault, times: u32, expected: &'static str) {
    let (random, rig) = (Random::new(), Rig::new(engine));
    let (mut recovery, mut lost) = (Vec::new(), Vec::new());
    for round in 0..times {
        let mut found = Vec::new();
        recovery.extend(one(engine, &rig, kind, &mut found));
        lost.extend(found.into_iter().map(|what| format!("round {round}: {what}")));
    }
    lost.extend(rig.losses(BEAT_SLACK));
    let latest_beat = rig.latest_beat();
    Row { fault, times, expected, lost, latest_beat, recovery, seed: random.seed }.finish();
}

/// Injects one fault; how long it took from the engine's return until all was well.
fn one(engine: &Engine, rig: &Rig, kind: Fault, lost: &mut Vec<String>) -> Option<Duration> {
    let replicas: Vec<String> = (0..REPLICAS).map(|_| rig.new_replica()).collect();
    let asked: Vec<String> = replicas.iter().map(|replica| rig.deploy(replica)).collect();
    for request in asked {
        let outcome = rig.outcome(&request, SOON);
        if outcome != "running" {
            lost.push(format!("a deploy before the fault: {outcome}"));
        }
    }
    let victim = engine.ask(&["inspect", "--format", "{{.State.Pid}}", &container_of(rig, &replicas[0])?])?;
    let mark = rig.plane.mark();
    let began = Instant::now();
    match kind {
        Fault::Kill => assert!(processes::signal(engine.daemon(), Signal::KILL)),
        Fault::Freeze(_) => assert!(processes::signal(engine.daemon(), Signal::STOP)),
        Fault::Restart => engine.restart(),
    }
    // One replica ends while the engine cannot say so.
    processes::signal(victim.trim().parse().unwrap(), Signal::KILL);
    if kind != Fault::Restart {
        // A deploy and a stop that meet it.
        let (late, other) = (rig.new_replica(), &replicas[1]);
        let deploy = rig.deploy_with(&late, json!({"deploy_timeout_s": DEPLOY_S}));
        rig.stop(other);
        let degraded = wait_for(SOON, || rig.reason().contains(SILENT).then(|| began.elapsed()));
        if degraded.is_none_or(|time| time > DEGRADED_WITHIN) {
            lost.push(format!("degraded after {degraded:?}"));
        }
        let outcome = rig.outcome(&deploy, Duration::from_secs(DEPLOY_S) + SOON);
        if !matches!(outcome.as_str(), "runtime_unavailable" | "timeout") {
            lost.push(format!("the deploy that met the fault: {outcome}"));
        }
        if let Fault::Freeze(long) = kind {
            std::thread::sleep(long.saturating_sub(began.elapsed()));
        }
        match kind {
            Fault::Freeze(_) => assert!(processes::signal(engine.daemon(), Signal::CONT)),
            Fault::Kill | Fault::Restart => engine.restart(),
        }
    }
    // It answers again.
    let back = Instant::now();
    let well = wait_for(LATE, || {
        let well = rig.status().is_some_and(|s| !s["reason"].as_str().unwrap().contains(SILENT));
        (well && rig.ready() && rig.open() == 0).then(|| back.elapsed())
    });
    if well.is_none() {
        lost.push(format!("it did not come back: {}", rig.reason()));
    }
    // The exit is told, the third replica lives on, and the next deploy works.
    let told = wait_for(SOON, || {
        let news = rig.plane.api_get(&format!("/events?since={mark}"));
        let exit = |event: &serde_json::Value| {
            event["type"] == "replica_status"
                && event["payload"]["replica_id"] == replicas[0].as_str()
                && matches!(event["payload"]["status"].as_str(), Some("exited" | "failed"))
        };
        news["events"].as_array().unwrap().iter().any(exit).then_some(())
    });
    if told.is_none() {
        lost.push("the exit during the fault was not told".to_owned());
    }
    let outcome = rig.outcome(&rig.stop(&replicas[0]), SOON);
    if outcome != "stopped" {
        lost.push(format!("the stop of the exited replica: {outcome}"));
    }
    let next = rig.new_replica();
    let outcome = rig.outcome(&rig.deploy(&next), SOON);
    if outcome != "running" {
        lost.push(format!("the deploy after the fault: {outcome}"));
    }
    for replica in [&replicas[1], &replicas[2], &next] {
        let outcome = rig.outcome(&rig.stop(replica), SOON);
        if outcome != "stopped" {
            lost.push(format!("a stop after the fault: {outcome}"));
        }
    }
    well
}

fn container_of(rig: &Rig, replica: &str) -> Option<String> {
    rig.containers()?.into_iter().find(|(_, (of, _))| of == replica).map(|(id, _)| id)
}
