//! How much is injected, with which randomness, and the rows of the report.

use std::fmt::Write as _;
use std::io::Write as _;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// From this many rounds on it is the full form.
const FULL: u32 = 50;
/// Rounds of the short form.
const SHORT_ROUNDS: u32 = 5;

/// What the environment asks for.
#[derive(Debug, Clone, Copy)]
pub struct Plan {
    /// How often a fault is injected that can be injected often.
    pub rounds: u32,
    /// Whether long waits are as long as the promise says.
    pub full: bool,
}

impl Plan {
    /// Reads the environment.
    pub fn new() -> Self {
        let rounds = number("VECTORLAY_TEST_ROUNDS").map_or(SHORT_ROUNDS, |n| u32::try_from(n).unwrap());
        Self { rounds, full: rounds >= FULL }
    }

    /// One of the two, by the form.
    pub fn pick<T>(&self, short: T, full: T) -> T {
        if self.full { full } else { short }
    }
}

/// A number from the environment, if it is set.
pub fn number(variable: &str) -> Option<u64> {
    let text = std::env::var(variable).ok().filter(|text| !text.is_empty())?;
    Some(text.parse().unwrap_or_else(|_| panic!("{variable}={text} is not a number")))
}

/// A small generator (xorshift64*), seeded by `VECTORLAY_TEST_SEED` or the clock; the seed is in the report.
#[derive(Debug)]
pub struct Random {
    state: u64,
    /// What it began with.
    pub seed: u64,
}

impl Random {
    /// One for a test of its own.
    pub fn new() -> Self {
        static COUNT: AtomicU64 = AtomicU64::new(1);
        let clock = || {
            let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap();
            u64::from(now.subsec_nanos()) * 1000 + COUNT.fetch_add(1, Ordering::Relaxed)
        };
        Self::seeded(number("VECTORLAY_TEST_SEED").unwrap_or_else(clock))
    }

    /// One with this seed.
    pub fn seeded(seed: u64) -> Self {
        Self { state: seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1, seed }
    }

    /// A number below `bound`.
    pub fn below(&mut self, bound: u64) -> u64 {
        self.state ^= self.state >> 12;
        self.state ^= self.state << 25;
        self.state ^= self.state >> 27;
        (self.state.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 16) % bound
    }

    /// A time below `bound`.
    pub fn time(&mut self, bound: Duration) -> Duration {
        Duration::from_micros(self.below(u64::try_from(bound.as_micros()).unwrap().max(1)))
    }

    /// True once in `n` times.
    pub fn one_in(&mut self, n: u64) -> bool {
        self.below(n) == 0
    }

    /// One of them.
    pub fn of<'a, T>(&mut self, all: &'a [T]) -> &'a T {
        &all[usize::try_from(self.below(all.len() as u64)).unwrap()]
    }
}

/// One fault's row.
#[derive(Debug)]
pub struct Row {
    /// What was injected.
    pub fault: &'static str,
    /// How often.
    pub times: u32,
    /// What has to come of it.
    pub expected: &'static str,
    /// What was lost, doubled, late or left behind: a line for each.
    pub lost: Vec<String>,
    /// How late the latest heartbeat reached the control plane.
    pub latest_beat: Duration,
    /// How long it took each time until all was well again.
    pub recovery: Vec<Duration>,
    /// The randomness.
    pub seed: u64,
}

impl Row {
    /// Writes the row to the report, and fails the test if anything was lost.
    pub fn finish(self) {
        let mut line = String::new();
        let lost = self.lost.len();
        write!(line, "{}\t{}\t{}\t{lost}\t", self.fault, self.times, self.expected).unwrap();
        write!(line, "{:.1} s\t{}\t{}", self.latest_beat.as_secs_f32(), spread(&self.recovery), self.seed)
            .unwrap();
        eprintln!("fault: {}", line.replace('\t', " | "));
        if let Some(path) = std::env::var_os("VECTORLAY_TEST_REPORT").filter(|path| !path.is_empty()) {
            let mut file = std::fs::OpenOptions::new().append(true).create(true).open(path).unwrap();
            file.write_all(format!("{line}\n").as_bytes()).unwrap();
        }
        assert!(self.lost.is_empty(), "{} (seed {}) lost:\n{}", self.fault, self.seed, self.lost.join("\n"));
    }
}

/// Median and maximum.
fn spread(times: &[Duration]) -> String {
    let mut sorted = times.to_vec();
    sorted.sort_unstable();
    match (sorted.get(sorted.len() / 2), sorted.last()) {
        (Some(median), Some(most)) => {
            format!("{:.1} s, at most {:.1} s", median.as_secs_f32(), most.as_secs_f32())
        }
        _ => "-".to_owned(),
    }
}
