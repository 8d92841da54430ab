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

use std::num::NonZero;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use vectorlay::core::random::Random;

use steps::{Played, Step, make, play};

/// Steps of one run, before the faults end.
const RUN_STEPS: usize = 400;
/// Steps in all, where nobody says.
const STEPS: u64 = 2_000_000;
/// The seed that a run without one begins with: the tests of a commit say the same each time. Other seeds are for the
/// search.
const SEED: u64 = 20_261_124;

#[test]
fn whatever_happens_each_command_has_one_outcome_and_no_container_or_gpu_is_lost_or_doubled() {
    let number = |name: &str| std::env::var(name).ok().and_then(|text| text.parse::<u64>().ok());
    let steps = number("VECTORLAY_TEST_STEPS").unwrap_or(STEPS);
    let given = number("VECTORLAY_TEST_SEED");
    let began = Instant::now();
    let runs = Mutex::new(Runs { seeds: Random::new(given.unwrap_or(SEED)), first: given, left: steps });
    let events = AtomicU64::new(0);
    let broken = Mutex::new(None);
    std::thread::scope(|scope| {
        for _ in 0..std::thread::available_parallelism().map_or(1, NonZero::get) {
            scope.spawn(|| {
                let next = || runs.lock().unwrap().next();
                while let Some(seed) = next() {
                    let run = make(seed, RUN_STEPS);
                    let Played { broken: why, events: seen, .. } = played(seed, &run, false);
                    events.fetch_add(seen, Ordering::Relaxed);
                    if let Some(why) = why {
                        broken.lock().unwrap().get_or_insert((seed, run, why));
                        runs.lock().unwrap().left = 0;
                    }
                }
            });
        }
    });
    if let Some((seed, run, why)) = broken.into_inner().unwrap() {
        let run = shrink(seed, run, &why);
        let trace = played(seed, &run, true).trace;
        let from = trace.len().saturating_sub(400);
        println!("{}", trace[from..].join("\n"));
        println!("{run:?}");
        panic!("{why}\nafter the {} steps above: VECTORLAY_TEST_SEED={seed} repeats it", run.len());
    }
    let (seconds, events) = (began.elapsed().as_secs_f32(), events.into_inner());
    println!("{steps} steps, {events} events in {seconds:.1} s");
}

/// The seeds of the runs to come.
struct Runs {
    seeds: Random,
    /// The one that was asked for comes first.
    first: Option<u64>,
    /// Steps that are still to be tried.
    left: u64,
}

impl Runs {
    fn next(&mut self) -> Option<u64> {
        if self.left == 0 {
            return None;
        }
        self.left = self.left.saturating_sub(RUN_STEPS as u64);
        Some(self.first.take().unwrap_or_else(|| self.seeds.bits()))
    }
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
