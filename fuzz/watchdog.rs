//! Ends the whole run when an input hangs, and says which.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, Once, PoisonError};
use std::time::{Duration, Instant};

/// How long an input may take, asleep or not. A machine that is busy stretches this, so it is long.
const HANGS: Duration = Duration::from_secs(60);
/// How often it is looked at.
const LOOK: Duration = Duration::from_secs(1);
/// Nothing is being tried.
const NOTHING: u64 = u64::MAX;

static WATCHED: Mutex<Vec<Arc<Watched>>> = Mutex::new(Vec::new());
static STARTED: Once = Once::new();

/// A target that is being tried.
pub struct Watched {
    name: String,
    seed: u64,
    input: AtomicU64,
}

impl Watched {
    pub fn begin(&self, n: u64) {
        self.input.store(n, Ordering::Relaxed);
    }

    pub fn end(&self) {
        self.input.store(NOTHING, Ordering::Relaxed);
    }
}

pub fn watch(name: &str, seed: u64) -> Arc<Watched> {
    let watched = Arc::new(Watched { name: name.to_owned(), seed, input: AtomicU64::new(NOTHING) });
    WATCHED.lock().unwrap_or_else(PoisonError::into_inner).push(Arc::clone(&watched));
    STARTED.call_once(|| _ = std::thread::spawn(look));
    watched
}

fn look() {
    let mut since: Vec<(u64, Instant)> = Vec::new();
    loop {
        std::thread::sleep(LOOK);
        let watched = WATCHED.lock().unwrap_or_else(PoisonError::into_inner).clone();
        since.resize(watched.len(), (NOTHING, Instant::now()));
        for (watched, (seen, at)) in watched.iter().zip(&mut since) {
            let now = watched.input.load(Ordering::Relaxed);
            if now != *seen {
                (*seen, *at) = (now, Instant::now());
            } else if now != NOTHING && at.elapsed() > HANGS {
                eprintln!("fuzz: {} hangs: input {now} of seed {}", watched.name, watched.seed);
                std::process::abort();
            }
        }
    }
}
