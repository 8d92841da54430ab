//! One container of which the engine cannot tell how it is: its shim hangs, or its records are damaged. The node says
//! which, ends nothing of it, serves the others, and takes it up again.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use super::report::{Plan, Random, Row};
use super::rig::{BEAT_SLACK, Changes, LATE, Rig, SOON};
use crate::frozen_shim::Frozen;
use crate::support::engine::{EngineTurn, OwnEngine};
use crate::support::skip::skip;
use crate::support::wait::wait_for;
use crate::unreadable::network_file;

#[test]
fn the_shim_is_frozen() {
    let Some(engine) = EngineTurn::shared("the_shim_is_frozen") else { return };
    // Not the one that other tests are using: whoever asks for that container waits.
    let own = OwnEngine::start(&engine);
    let rig = Rig::new(&own);
    faults("SIGSTOP of a shim", &own, &rig, |container| Some(Frozen::of(container)));
}

#[test]
fn one_container_cannot_be_read() {
    let name = "one_container_cannot_be_read";
    let Some(engine) = EngineTurn::shared(name) else { return };
    if engine.is_docker() {
        return skip(name, "no engine of nerdctl's");
    }
    let own = OwnEngine::start(&engine);
    let namespace = own.dir().file_name().unwrap().to_str().unwrap().to_owned();
    let socket = own.dir().join("engine.sock").to_str().unwrap().to_owned();
    // containerd's own client is told by these where to ask; the engine's CLI knows it by itself.
    let script = "while case \"$1\" in --address=*|--namespace=*) true;; *) false;; esac; do shift; done";
    let settings = vec![("namespace", namespace), ("containerd-address", socket)];
    let rig = Rig::with(&own, Changes { settings, script: script.to_owned(), ..Changes::default() });
    let replica = rig.new_replica();
    let outcome = rig.outcome(&rig.deploy(&replica), SOON);
    assert_eq!(outcome, "running");
    let data = own.dir().join("nerdctl.data");
    if network_file(&data, &container_of(&rig, &replica)).is_none() {
        return skip(name, "this nerdctl keeps no file that can be damaged so");
    }
    faults("a container's record emptied", &own, &rig, |container| {
        Some(Emptied::new(network_file(&data, container)?))
    });
}

/// A file that is empty, as a power cut leaves it, until this is dropped.
struct Emptied {
    file: PathBuf,
    whole: Vec<u8>,
}

impl Emptied {
    fn new(file: PathBuf) -> Self {
        let whole = std::fs::read(&file).unwrap();
        std::fs::write(&file, "").unwrap();
        Self { file, whole }
    }
}

impl Drop for Emptied {
    fn drop(&mut self) {
        let _ = std::fs::write(&self.file, &self.whole);
    }
}

fn container_of(rig: &Rig, replica: &str) -> String {
    let containers = rig.containers().unwrap();
    containers.into_iter().find(|(_, (of, _))| of == replica).map(|(id, _)| id).unwrap()
}

/// Injects the fault again and again, and takes it back by dropping it.
fn faults<T>(fault: &'static str, engine: &OwnEngine, rig: &Rig, inject: impl Fn(&str) -> Option<T>) {
    let (random, times) = (Random::new(), Plan::new().pick(1, 10));
    let expected = "named as unknown, nothing of it ended, others served, taken up again";
    let (mut recovery, mut lost) = (Vec::new(), Vec::new());
    for round in 0..times {
        let mut found = Vec::new();
        recovery.extend(one(engine, rig, &inject, &mut found));
        lost.extend(found.into_iter().map(|what| format!("round {round}: {what}")));
    }
    lost.extend(rig.losses(BEAT_SLACK));
    let latest_beat = rig.latest_beat();
    Row { fault, times, expected, lost, latest_beat, recovery, seed: random.seed }.finish();
}

/// Injects it once; how long it took from its end until the container was taken up again.
fn one<T>(
    engine: &OwnEngine,
    rig: &Rig,
    inject: impl Fn(&str) -> Option<T>,
    lost: &mut Vec<String>,
) -> Option<Duration> {
    let (victim, other) = (rig.new_replica(), rig.new_replica());
    expect(rig, lost, &rig.deploy(&victim), "running", "the deploy before");
    expect(rig, lost, &rig.deploy(&other), "running", "another deploy before");
    let container = container_of(rig, &victim);
    let process = engine.pid(&container);
    let named = format!("replica {victim} is unknown");
    let mark = rig.plane.mark();
    let fault = inject(&container).unwrap();
    // Docker answers from its own memory: for it the container runs.
    if !engine.is_docker() && wait_for(SOON, || rig.reason().contains(&named).then_some(())).is_none() {
        lost.push(format!("not named: {:?}", rig.reason()));
    }
    expect(rig, lost, &rig.stop(&other), "stopped", "the stop of another meanwhile");
    expect(rig, lost, &rig.deploy(&other), "running", "the deploy of another meanwhile");
    if !std::fs::exists(format!("/proc/{process}/ns")).unwrap_or(false) {
        lost.push("what it runs was ended".to_owned());
    }
    drop(fault);
    let back = Instant::now();
    let well = wait_for(LATE, || {
        let status = rig.status()?;
        let runs =
            |one: &serde_json::Value| one["replica_id"] == victim.as_str() && one["status"] == "running";
        let running = status["containers"].as_array()?.iter().any(runs);
        let named = status["reason"].as_str().is_none_or(|reason| reason.contains(&named));
        (running && !named).then(|| back.elapsed())
    });
    if well.is_none() {
        lost.push(format!("not taken up again: {}", rig.reason()));
    } else if engine.pid(&container) != process {
        lost.push("it was started anew".to_owned());
    }
    let news = rig.plane.api_get(&format!("/events?since={mark}"));
    let ended = |event: &&serde_json::Value| {
        event["type"] == "replica_status"
            && event["payload"]["replica_id"] == victim.as_str()
            && matches!(event["payload"]["status"].as_str(), Some("exited" | "failed"))
    };
    lost.extend(news["events"].as_array().unwrap().iter().find(ended).map(|event| format!("told: {event}")));
    for replica in [&victim, &other] {
        expect(rig, lost, &rig.stop(replica), "stopped", "a stop afterwards");
    }
    well
}

fn expect(rig: &Rig, lost: &mut Vec<String>, request: &str, outcome: &str, what: &str) {
    let came = rig.outcome(request, SOON);
    if came != outcome {
        lost.push(format!("{what}: {came}"));
    }
}
