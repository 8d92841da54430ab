#![allow(clippy::disallowed_methods, reason = "one instant is read, from which virtual time counts")]
#![allow(clippy::unwrap_used, reason = "what fails here fails the test")]
#![allow(missing_docs)]
//! Random worlds around the pure core: whatever the network, the engine, the disk and the process itself do, every
//! accepted command gets one outcome, nothing runs twice, no GPU is given twice or lost, and nothing grows or spins.
//!
//! A run is a list of steps that are made from a seed and mean something in any state, so that a failing one is
//! shrunk by leaving steps out. `VECTORLAY_TEST_SEED` repeats the run that a failure names, `VECTORLAY_TEST_STEPS`
//! sets how many steps are tried in all.

mod engine;
mod server;
mod steps;
mod world;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::Instant;

use vectorlay::core::random::Random;

use steps::{Played, Step, make, play};

/// Steps of one run, before the faults end.
const RUN_STEPS: usize = 400;
/// Steps in all, where nobody says.
const STEPS: u64 = 600_000;
/// The seed that a run without one begins with: the tests of a commit say the same each time. Other seeds are for the
/// search.
const SEED: u64 = 20_261_124;

#[test]
fn whatever_happens_each_command_has_one_outcome_and_no_container_or_gpu_is_lost_or_doubled() {
    let number = |name: &str| std::env::var(name).ok().and_then(|text| text.parse::<u64>().ok());
    let steps = number("VECTORLAY_TEST_STEPS").unwrap_or(STEPS);
    let given = number("VECTORLAY_TEST_SEED");
    let mut seeds = Random::new(given.unwrap_or(SEED));
    let began = Instant::now();
    let (mut tried, mut events) = (0, 0);
    while tried < steps {
        let seed = match given {
            Some(seed) if tried == 0 => seed,
            _ => seeds.bits(),
        };
        let run = make(seed, RUN_STEPS);
        tried += run.len() as u64;
        let first = played(seed, &run, false);
        events += first.events;
        if let Some(why) = first.broken {
            let run = shrink(seed, run, &why);
            let trace = played(seed, &run, true).trace;
            let from = trace.len().saturating_sub(400);
            println!("{}", trace[from..].join("\n"));
            println!("{run:?}");
            panic!("{why}\nafter the {} steps above: VECTORLAY_TEST_SEED={seed} repeats it", run.len());
        }
    }
    let seconds = began.elapsed().as_secs_f32();
    println!("{tried} steps, {events} events in {seconds:.1} s");
}

fn fails(seed: u64, run: &[Step]) -> Option<String> {
    played(seed, run, false).broken
}

fn played(seed: u64, run: &[Step], trace: bool) -> Played {
    let panicked = |_| Played { broken: Some("the core panicked".into()), ..Played::default() };
    catch_unwind(AssertUnwindSafe(|| play(seed, run, trace))).unwrap_or_else(panicked)
}

/// The kind of a failure: its words without names and numbers.
fn kind(why: &str) -> String {
    why.split_whitespace().filter(|word| word.chars().all(|c| c.is_ascii_alphabetic())).collect()
}

/// Leaves out steps, many at once and then few, as long as it fails in the same way.
fn shrink(seed: u64, mut run: Vec<Step>, why: &str) -> Vec<Step> {
    let kind_of_failure = kind(why);
    let mut size = run.len() / 2;
    while size > 0 {
        let mut at = 0;
        while at < run.len() {
            let mut shorter = run.clone();
            shorter.drain(at..(at + size).min(run.len()));
            if fails(seed, &shorter).is_some_and(|why| kind(&why) == kind_of_failure) {
                run = shorter;
            } else {
                at += size;
            }
        }
        size /= 2;
    }
    run
}
