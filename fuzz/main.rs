#![allow(missing_docs)]
#![allow(clippy::unwrap_used, reason = "what fails here fails the test")]
#![allow(clippy::print_stdout, clippy::print_stderr, reason = "the counts, and what hangs")]
//! Tries mutated bytes on every reader of bytes from outside, and sees that none panics, hangs, or takes more time or
//! memory than it may. One test for each target in `targets.rs`, so as many run at once as the test runner has threads.
//!
//! ```sh
//! cargo test --test fuzz                  # a thousand inputs each: what CI runs
//! scripts/fuzz.sh 60                      # optimised, a minute for each target, and the counts
//! VECTORLAY_FUZZ_TARGET=url VECTORLAY_FUZZ_INPUT=123 cargo test --test fuzz    # one input again
//! ```
//!
//! Input `n` of a target is a function of the target, the seed and `n` alone, so that whatever is found can be repeated. An
//! input that fails is made shorter as long as it still fails, and written to a file.
//!
//! | variable | default | |
//! |---|---|---|
//! | `VECTORLAY_FUZZ_INPUTS` | 1000 | how many inputs each target gets |
//! | `VECTORLAY_FUZZ_SECONDS` | | how long each target is tried, instead |
//! | `VECTORLAY_FUZZ_SEED` | 1 | other inputs |
//! | `VECTORLAY_FUZZ_TARGET` | | this target alone |
//! | `VECTORLAY_FUZZ_INPUT` | | this input alone |
//! | `VECTORLAY_FUZZ_SEEDS` | | write each target's seeds to this folder, for libFuzzer |

#[allow(dead_code, reason = "core_model uses all of it")]
#[path = "../tests/core_model/engine.rs"]
mod engine;
#[path = "../tests/support/host.rs"]
mod host;
mod memory;
mod mutate;
#[allow(dead_code, reason = "the tests of the core use all of it")]
#[path = "../tests/core/rig.rs"]
mod rig;
mod targets;
mod watchdog;

use std::cell::Cell;
use std::fmt::Display;
use std::panic::{AssertUnwindSafe, catch_unwind, set_hook, take_hook};
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::Once;
use std::time::{Duration, Instant};

use rustix::time::{ClockId, clock_gettime};

use mutate::Mutator;
use targets::{TARGETS, Target};

/// The CPU time that one input may take, without optimisation. The slowest take some milliseconds.
const CPU_MAX: Duration = Duration::from_secs(2);
/// The memory that one input may take at its peak, in bytes; inputs have at most [`mutate::INPUT_MAX`].
const MEMORY_MAX: usize = 64 << 20;
/// Attempts at making an input that fails shorter.
const SHRINK_MAX: u32 = 2000;

fn variable<T: FromStr>(name: &str) -> Option<T>
where
    T::Err: Display,
{
    let text = std::env::var(format!("VECTORLAY_FUZZ_{name}")).ok().filter(|text| !text.is_empty())?;
    Some(text.parse().unwrap_or_else(|error| panic!("VECTORLAY_FUZZ_{name}: {error}")))
}

/// A folder of a target's own, in memory where that can be had.
struct Scratch(PathBuf);

impl Scratch {
    fn new(name: &str) -> Self {
        let memory = Path::new("/dev/shm");
        let place = if memory.is_dir() { memory.to_owned() } else { std::env::temp_dir() };
        let folder = place.join(format!("vectorlay-fuzz-{name}-{}", std::process::id()));
        std::fs::create_dir_all(&folder).unwrap();
        Self(folder)
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

thread_local! {
    /// This thread tries an input: what it panics with is told by [`failure`].
    static TRYING: Cell<bool> = const { Cell::new(false) };
}

/// Panics of inputs are not printed, each time one is made shorter.
fn be_quiet_while_trying() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let usual = take_hook();
        set_hook(Box::new(move |panic| {
            if !TRYING.get() {
                usual(panic);
            }
        }));
    });
}

fn cpu_time() -> Duration {
    let time = clock_gettime(ClockId::ThreadCPUTime);
    Duration::new(u64::try_from(time.tv_sec).unwrap(), u32::try_from(time.tv_nsec).unwrap())
}

/// Why `input` fails, if it does.
fn failure(target: &Target, input: &[u8], scratch: &Path) -> Option<String> {
    be_quiet_while_trying();
    let began = cpu_time();
    memory::begin();
    TRYING.set(true);
    let ran = catch_unwind(AssertUnwindSafe(|| target.try_bytes(input, scratch)));
    TRYING.set(false);
    let (peak, took) = (memory::peak(), cpu_time() - began);
    if let Err(panic) = ran {
        let text = panic.downcast_ref::<String>().map(String::as_str).or(panic.downcast_ref().copied());
        return Some(format!("panic: {}", text.unwrap_or("without a text")));
    }
    if took > CPU_MAX {
        return Some(format!("it took {took:?} of CPU time"));
    }
    (peak > MEMORY_MAX).then(|| format!("it took {peak} bytes of memory"))
}

/// The shortest input that was found to fail, beginning with `input`, which does.
fn shrunk(target: &Target, input: &[u8], scratch: &Path) -> Vec<u8> {
    let mut shortest = input.to_owned();
    let (mut part, mut attempts) = (input.len() / 2, 0);
    while part > 0 && attempts < SHRINK_MAX {
        let mut at = 0;
        while at < shortest.len() && attempts < SHRINK_MAX {
            let mut shorter = shortest.clone();
            shorter.drain(at..(at + part).min(shortest.len()));
            attempts += 1;
            if failure(target, &shorter, scratch).is_some() {
                shortest = shorter;
            } else {
                at += part;
            }
        }
        part /= 2;
    }
    shortest
}

/// Tries the inputs of one target.
fn fuzz(name: &str) {
    if variable::<String>("TARGET").is_some_and(|only| only != name) {
        return;
    }
    let target = TARGETS.iter().find(|target| target.name == name).unwrap();
    let seed = variable("SEED").unwrap_or(1);
    let mutator = Mutator::new(target);
    if let Some(folder) = variable::<PathBuf>("SEEDS") {
        return mutator.write_seeds(&folder.join(name)).unwrap();
    }
    let scratch = Scratch::new(name);
    let only: Option<u64> = variable("INPUT");
    let until = variable("SECONDS").map(|seconds| Instant::now() + Duration::from_secs(seconds));
    let most = variable("INPUTS").unwrap_or(if until.is_some() { u64::MAX } else { 1000 });
    let (mut n, mut slowest) = (only.unwrap_or(0), Duration::ZERO);
    let end = only.map_or(most, |only| only + 1);
    let watched = watchdog::watch(name, seed);
    while n < end && until.is_none_or(|until| n % 16 != 0 || Instant::now() < until) {
        let input = mutator.input(seed, n);
        watched.begin(n);
        let began = cpu_time();
        if let Some(why) = failure(target, &input, &scratch.0) {
            let shortest = shrunk(target, &input, &scratch.0);
            let file = std::env::temp_dir().join(format!("vectorlay-fuzz-{name}-{seed}-{n}"));
            std::fs::write(&file, &shortest).unwrap();
            panic!(
                "{name}: input {n} of seed {seed}: {why}\nshortened to {} bytes in {}: {}",
                shortest.len(),
                file.display(),
                shortest.escape_ascii()
            );
        }
        slowest = slowest.max(cpu_time() - began);
        n += 1;
    }
    watched.end();
    println!("fuzz: {name} {n} inputs, the slowest {slowest:?}");
    assert!(n > 0 && mutator.seeds() > 0, "{name}: there was something to try");
}

macro_rules! tests {
    ($($name:ident)+) => {
        $(#[test]
        fn $name() {
            fuzz(stringify!($name));
        })+

        #[test]
        fn every_target_has_a_test() {
            let targets: Vec<&str> = TARGETS.iter().map(|target| target.name).collect();
            assert_eq!(targets, [$(stringify!($name)),+]);
        }
    };
}

tests! {
    messages
    protocol
    frames
    upgrade_answer
    proxy_answer
    registration_answer
    http_dates
    url
    proxy
    certificates
    image_name
    cli_output
    error_text
    image_inspect
    versions
    proof_report
    lspci
    pci_ids
    nvidia_smi
    sysfs
    kernel_log
    kernel_tables
    processes
    cni
    addresses
    kata_config
    shim
    container_log
    node_json
    state
    history
    settings
    control_request
}

/// What finds faults must be seen to find them.
#[test]
fn faults_are_found_and_made_short() {
    fn picky(_: u8, bytes: &[u8], _: &Path) {
        assert!(!bytes.windows(2).any(|pair| pair == b"wx"), "there it is");
    }
    fn greedy(_: u8, _: &[u8], _: &Path) {
        drop(std::hint::black_box(vec![1u8; MEMORY_MAX + 1]));
    }
    let target = |run| Target { name: "picky", choices: 0, sources: &["fuzz/main.rs"], run };
    let scratch = Path::new("/");
    let picky = target(picky);
    let mutator = Mutator::new(&picky);
    let found = (0..100_000).find(|n| failure(&picky, &mutator.input(1, *n), scratch).is_some()).unwrap();
    let input = mutator.input(1, found);
    assert_eq!(input, Mutator::new(&picky).input(1, found), "it is the same again");
    assert_ne!(input, mutator.input(2, found), "with another seed it is another");
    assert_eq!(failure(&picky, &input, scratch).as_deref(), Some("panic: there it is"));
    assert_eq!(shrunk(&picky, &input, scratch), b"wx");
    assert_eq!(failure(&picky, b"w", scratch), None);
    assert!(failure(&target(greedy), b"", scratch).unwrap().contains("bytes of memory"));
}
