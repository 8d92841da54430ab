//! The soak: deploys and stops in a loop with faults among them, while what the agent uses is measured.

use std::time::{Duration, Instant};

use rustix::process::Signal;
use serde_json::json;

use super::kills::ask_something;
use super::report::{Random, number};
use super::rig::{BEAT_SLACK, Changes, LATE, Rig, SOON};
use crate::support::engine::EngineTurn;
use crate::support::processes::{self, Use};
use crate::support::wait::wait_for;

/// How often the agent is measured.
const SAMPLE_EVERY: Duration = Duration::from_secs(5);
/// How often something goes wrong.
const FAULT_EVERY: Duration = Duration::from_secs(15);
/// How often the engine itself is restarted.
const ENGINE_EVERY: Duration = Duration::from_secs(150);
/// How often a line is printed.
const PRINT_EVERY: Duration = Duration::from_secs(60);
/// The control plane remembers 2,000 finished jobs: their outcomes are looked at before it forgets any.
const LOOK_EVERY: u64 = 200;
/// Answers that an agent remembers, and some more: after as many its memory is as full as it gets.
const ANSWERS: u64 = 1100;
/// Growth that is no leak: caches of the allocator and a call of the CLI that is under way.
const SLACK: Use = Use { resident: 512, private_dirty: 384, descriptors: 16, threads: 8, children: 6 };

/// Reads one of the numbers.
type Get = fn(&Use) -> u64;

/// What is measured, by name.
const COLUMNS: [(&str, Get); 5] = [
    ("resident KiB", |u| u.resident),
    ("private dirty KiB", |u| u.private_dirty),
    ("descriptors", |u| u.descriptors),
    ("threads", |u| u.threads),
    ("children", |u| u.children),
];

/// `scripts/soak.sh` runs it: `VECTORLAY_TEST_SOAK_S` seconds.
#[test]
#[ignore = "takes as long as it is told: scripts/soak.sh"]
fn soak() {
    let Some(engine) = EngineTurn::shared("soak") else { return };
    let long = Duration::from_secs(number("VECTORLAY_TEST_SOAK_S").unwrap_or(60));
    let settings = vec![("log", "warn".to_owned())];
    let (mut random, rig) = (Random::new(), Rig::with(&engine, Changes { settings, ..Changes::default() }));
    eprintln!("soak: {} s, seed {}, agent {}", long.as_secs(), random.seed, rig.pid());
    eprintln!("{:>7} {:>7} {:>7}  {}", "minute", "jobs", "faults", COLUMNS.map(|(name, _)| name).join("  "));
    let before = processes::usage(rig.pid()).unwrap_or_default();
    fill(&rig);
    let filled = processes::usage(rig.pid()).unwrap_or_default();
    eprintln!(
        "soak: private dirty KiB at first {}, with {ANSWERS} answers {}",
        before.private_dirty, filled.private_dirty
    );
    let (mut replicas, mut samples, mut lost): (Vec<String>, Vec<Use>, Vec<String>) = Default::default();
    let (mut jobs, mut faults) = (0, Faults::default());
    let began = Instant::now();
    let (mut sampled, mut hurt, mut renewed, mut printed) = (began, began, began, began);
    while began.elapsed() < long {
        let open = Instant::now();
        ask_something(&rig, &mut random, &mut replicas);
        std::thread::sleep(random.time(Duration::from_millis(300)));
        if renewed.elapsed() >= ENGINE_EVERY {
            renewed = Instant::now();
            faults.engine_restarts += 1;
            engine.restart();
        } else if hurt.elapsed() >= FAULT_EVERY {
            hurt = Instant::now();
            hurt_something(&rig, &mut random, &mut faults);
        }
        if rig.recovered(open, LATE).is_none() {
            lost.push(format!("{:?}: no recovery", began.elapsed()));
        }
        jobs += 1;
        if jobs % LOOK_EVERY == 0 {
            lost.extend(rig.contradictions());
        }
        if sampled.elapsed() >= SAMPLE_EVERY {
            sampled = Instant::now();
            match processes::usage(rig.pid()) {
                Some(usage) => samples.push(usage),
                None => lost.push("the agent is gone".to_owned()),
            }
        }
        if printed.elapsed() >= PRINT_EVERY {
            printed = Instant::now();
            let last = samples.last().copied().unwrap_or_default();
            let numbers = COLUMNS.map(|(name, get)| format!("{:>1$}", get(&last), name.len())).join("  ");
            let minute = began.elapsed().as_secs_f32() / 60.0;
            eprintln!("{minute:>7.1} {jobs:>7} {:>7}  {numbers}", faults.all());
        }
    }
    lost.extend(rig.losses(BEAT_SLACK + Duration::from_secs(10)));
    eprintln!(
        "soak: {jobs} rounds of commands; {faults:?}; latest heartbeat {:.1} s late",
        rig.latest_beat().as_secs_f32()
    );
    lost.extend(verdict(&samples));
    eprintln!("soak: {}", if lost.is_empty() { "flat, and nothing lost" } else { "FAILED" });
    assert!(lost.is_empty(), "seed {}:\n{}", random.seed, lost.join("\n"));
}

/// Fills what the agent remembers up to its bound, with answers that cost no container: what grows after that leaks.
fn fill(rig: &Rig) {
    for n in 0..ANSWERS {
        let replica = format!("fill-{n}");
        let request = format!("{replica}-{}", "x".repeat(64));
        let payload =
            json!({"replica_id": replica, "request_id": request, "image": "none:1", "gpu_count": 1});
        let text = json!({"type": "deploy", "payload": payload}).to_string();
        rig.plane.api_post_text(&format!("/nodes/{}/send", rig.node), &text);
    }
    let answered = || (rig.view()["unmatched_results"].as_u64()? >= ANSWERS).then_some(());
    assert!(wait_for(SOON, answered).is_some(), "not all were answered: {:#}", rig.view());
}

/// How often what was done.
#[derive(Debug, Default)]
struct Faults {
    cuts: u32,
    closes: u32,
    cli_kills: u32,
    nonsense: u32,
    engine_freezes: u32,
    engine_restarts: u32,
}

impl Faults {
    fn all(&self) -> u32 {
        self.cuts + self.closes + self.cli_kills + self.nonsense + self.engine_freezes + self.engine_restarts
    }
}

/// One small fault. The agent itself is not killed: it is what is measured.
fn hurt_something(rig: &Rig, random: &mut Random, faults: &mut Faults) {
    let post = |verb: &str, body: &str| rig.plane.api_post_text(&format!("/nodes/{}/{verb}", rig.node), body);
    match random.below(5) {
        0 => {
            faults.cuts += 1;
            post("cut", "");
        }
        1 => {
            faults.closes += 1;
            post("close", &json!({"code": 4001, "reason": "Heartbeat timeout"}).to_string());
        }
        2 => {
            if let Some(call) = wait_for(SAMPLE_EVERY, || processes::children(rig.pid()).pop()) {
                faults.cli_kills += u32::from(processes::signal(call.pid, Signal::KILL));
            }
        }
        3 => {
            faults.nonsense += 1;
            for text in ["{", "[]", "{\"type\":\"deploy\",\"payload\":7}", "{\"type\":\"x\",\"payload\":{}}"]
            {
                post("send", text);
            }
        }
        _ => {
            faults.engine_freezes += 1;
            let pid = rig.engine.as_ref().unwrap().daemon();
            processes::signal(pid, Signal::STOP);
            std::thread::sleep(Duration::from_secs(2));
            processes::signal(pid, Signal::CONT);
        }
    }
    rig.wait_ready(SOON);
}

/// Flat means: the most of the last third is no more than the most of the first, and a little.
fn verdict(samples: &[Use]) -> Vec<String> {
    let third = samples.len() / 3;
    if third == 0 {
        return vec!["too short to judge".to_owned()];
    }
    let most = |part: &[Use], get: Get| part.iter().map(get).max().unwrap_or(0);
    let mut grown = Vec::new();
    eprintln!("soak: {} samples; most in the first third, in the last third:", samples.len());
    for (name, get) in COLUMNS {
        let (first, last) = (most(&samples[..third], get), most(&samples[samples.len() - third..], get));
        eprintln!("  {name:<18} {first:>8} {last:>8}");
        if last > first + get(&SLACK) {
            grown.push(format!("{name} grew from {first} to {last}"));
        }
    }
    grown
}
