//! Waiting for what nothing announces.
#![allow(dead_code, reason = "each test target uses a part of it")]

use std::time::{Duration, Instant};

/// How often it is looked at.
const LOOK_EVERY: Duration = Duration::from_millis(10);

/// Asks again and again until there is an answer; `None` at the deadline.
pub fn wait_for<T>(deadline: Duration, mut ask: impl FnMut() -> Option<T>) -> Option<T> {
    let end = Instant::now() + deadline;
    loop {
        if let Some(answer) = ask() {
            return Some(answer);
        }
        if Instant::now() >= end {
            return None;
        }
        std::thread::sleep(LOOK_EVERY);
    }
}

/// Waits until `reached` is true, and fails the test at the deadline.
pub fn wait_until(deadline: Duration, what: &str, mut reached: impl FnMut() -> bool) {
    let waited = wait_for(deadline, || reached().then_some(()));
    assert!(waited.is_some(), "{what}: not so within {deadline:?}");
}
