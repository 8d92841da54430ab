//! Killed programs, and commands that come twice.

use std::time::{Duration, Instant};

use rustix::process::Signal;
use serde_json::json;

use super::report::{Plan, Random, Row};
use super::rig::{BEAT_SLACK, LATE, Rig, SOON};
use crate::support::engine::EngineTurn;
use crate::support::processes;
use crate::support::wait::wait_for;

/// How many replicas there are at most at a time.
const REPLICAS: usize = 4;
/// A deploy or a stop takes less than this, mostly.
const COMMAND: Duration = Duration::from_millis(900);

/// Asks for one or two things: a new replica, or the end of one.
pub fn ask_something(rig: &Rig, random: &mut Random, replicas: &mut Vec<String>) {
    for _ in 0..=random.below(2) {
        if replicas.len() < REPLICAS && (replicas.is_empty() || random.one_in(2)) {
            let replica = rig.new_replica();
            rig.deploy(&replica);
            replicas.push(replica);
        } else {
            let replica = random.of(replicas).clone();
            rig.stop(&replica);
            replicas.retain(|other| *other != replica);
        }
    }
}

#[test]
fn the_agent_is_killed() {
    let Some(engine) = EngineTurn::shared("the_agent_is_killed") else { return };
    let (plan, mut random, mut rig) = (Plan::new(), Random::new(), Rig::new(&engine));
    let (mut replicas, mut recovery, mut lost) = (Vec::new(), Vec::new(), Vec::new());
    for round in 0..plan.rounds {
        ask_something(&rig, &mut random, &mut replicas);
        std::thread::sleep(random.time(COMMAND));
        let killed = Instant::now();
        rig.kill();
        rig.start();
        // While it still finds out what the first one left.
        if random.one_in(4) {
            std::thread::sleep(random.time(COMMAND));
            rig.kill();
            rig.start();
        }
        match rig.recovered(killed, LATE) {
            Some(time) => recovery.push(time),
            None => lost.push(format!("round {round}: no recovery")),
        }
    }
    lost.extend(rig.losses(BEAT_SLACK));
    let expected = "one outcome for each command, no container lost or doubled";
    let (times, latest_beat) = (plan.rounds, rig.latest_beat());
    let fault = "SIGKILL of the agent during deploys and stops";
    Row { fault, times, expected, lost, latest_beat, recovery, seed: random.seed }.finish();
}

#[test]
fn the_cli_is_killed() {
    let Some(engine) = EngineTurn::shared("the_cli_is_killed") else { return };
    let (plan, mut random, rig) = (Plan::new(), Random::new(), Rig::new(&engine));
    let (mut replicas, mut recovery, mut lost) = (Vec::new(), Vec::new(), Vec::new());
    let mut times = 0;
    for round in 0..plan.rounds * 20 {
        if times == plan.rounds {
            break;
        }
        ask_something(&rig, &mut random, &mut replicas);
        // The first call of this round, or one that it leads to.
        std::thread::sleep(random.time(COMMAND / 3));
        let Some(call) = wait_for(COMMAND, || processes::children(rig.pid()).pop()) else { continue };
        std::thread::sleep(random.time(COMMAND / 3));
        let killed = Instant::now();
        let is_there = processes::read(call.pid).is_some_and(|p| p.parent == rig.pid() && p.state != 'Z');
        if is_there && processes::signal(call.pid, Signal::KILL) {
            times += 1;
        }
        match rig.recovered(killed, LATE) {
            Some(time) => recovery.push(time),
            None => lost.push(format!("round {round}: no recovery after the end of {}", call.argv)),
        }
    }
    if times < plan.rounds {
        lost.push(format!("only {times} calls could be killed"));
    }
    lost.extend(rig.losses(BEAT_SLACK));
    let expected = "one true outcome for each command, the next deploy works, nothing left";
    let latest_beat = rig.latest_beat();
    let fault = "SIGKILL of the CLI during deploys and stops";
    Row { fault, times, expected, lost, latest_beat, recovery, seed: random.seed }.finish();
}

#[test]
fn commands_come_again() {
    let Some(engine) = EngineTurn::shared("commands_come_again") else { return };
    let (plan, mut random, rig) = (Plan::new(), Random::new(), Rig::new(&engine));
    let (mut recovery, mut lost, mut times) = (Vec::new(), Vec::new(), 0);
    let again = |verb: &str, replica: &str, request: &str| {
        let mut payload = json!({"replica_id": replica, "request_id": request});
        if verb == "deploy" {
            payload["image"] = json!(engine.image);
            payload["stop_timeout_s"] = json!(5);
        }
        let text = json!({"type": verb, "payload": payload}).to_string();
        let (status, answer) = rig.plane.api_post_text(&format!("/nodes/{}/send", rig.node), &text);
        assert_eq!(status, 200, "{answer}");
    };
    let repeated = |request: &str| rig.plane.job(request)["repeated"].as_u64().unwrap();
    for round in 0..plan.rounds {
        let replica = rig.new_replica();
        let asked = Instant::now();
        let deploy = rig.deploy(&replica);
        for _ in 0..1 + random.below(4) {
            std::thread::sleep(random.time(COMMAND / 3));
            again("deploy", &replica, &deploy);
            times += 1;
        }
        let outcome = rig.outcome(&deploy, SOON);
        let stop = rig.stop(&replica);
        again("stop", &replica, &stop);
        let end = rig.outcome(&stop, SOON);
        if (outcome.as_str(), end.as_str()) != ("running", "stopped") {
            lost.push(format!("round {round}: {outcome}, then {end}"));
        }
        recovery.push(asked.elapsed());
        // Long after its end the queue delivers the deploy once more: it is answered, and starts nothing.
        let before = repeated(&deploy);
        again("deploy", &replica, &deploy);
        times += 2;
        if wait_for(SOON, || (repeated(&deploy) > before).then_some(())).is_none() {
            lost.push(format!("round {round}: a deploy that came again was not answered"));
        }
        if rig.containers().is_none_or(|containers| !containers.is_empty()) {
            lost.push(format!("round {round}: a deploy that came again was started again"));
        }
    }
    lost.extend(rig.losses(BEAT_SLACK));
    let expected = "the same answer again, nothing started twice";
    let latest_beat = rig.latest_beat();
    let fault = "commands delivered again, during and after";
    Row { fault, times, expected, lost, latest_beat, recovery, seed: random.seed }.finish();
}
