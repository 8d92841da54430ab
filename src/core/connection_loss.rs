//! How long the connection to the control plane is missing, and what is logged of that: short losses happen, and the
//! same reason is not repeated.

use std::time::{Duration, Instant};

use log::Level;

/// A loss of the connection that lasts this long is logged as a warning.
const LONG_LOSS: Duration = Duration::from_secs(60);

/// A time without a connection: since when, and how many attempts failed.
#[derive(Debug)]
pub(crate) struct ConnectionLoss {
    /// `None` while connected.
    since: Option<Instant>,
    /// Attempts that failed since then.
    attempts: u32,
    /// Attempts that failed for the same reason as the last one logged, and were not logged.
    repeated: u32,
    /// It was logged as a warning.
    warned: bool,
    connected_once: bool,
}

impl ConnectionLoss {
    /// A process that has just started.
    pub(crate) fn new(now: Instant) -> Self {
        Self { since: Some(now), attempts: 0, repeated: 0, warned: false, connected_once: false }
    }

    /// The connection is back. Gives how long it was missing, if attempts failed meanwhile.
    pub(crate) fn end(&mut self, now: Instant) -> String {
        let without = match (self.since.take(), self.attempts) {
            (None, _) | (Some(_), 0) => String::new(),
            (Some(since), failed) => {
                let seconds = now.saturating_duration_since(since).as_secs();
                let noun = if failed == 1 { "attempt" } else { "attempts" };
                format!(", after {seconds} s without a connection and {failed} failed {noun}")
            }
        };
        *self = Self { since: None, attempts: 0, repeated: 0, warned: false, connected_once: true };
        without
    }

    /// An attempt failed, or the connection was lost. Gives the level at which to log it, and how often in a row it
    /// failed for this reason. Short losses happen; a long one, or a start without a connection, is worth a warning.
    pub(crate) fn add(&mut self, now: Instant, same_reason: bool) -> (Level, String) {
        let since = *self.since.get_or_insert(now);
        self.attempts += 1;
        let is_long = since + LONG_LOSS <= now || !self.connected_once;
        let is_news = !same_reason || is_long && !self.warned;
        let level = match (is_news, is_long) {
            (false, _) => Level::Debug,
            (true, false) => Level::Info,
            (true, true) => Level::Warn,
        };
        self.repeated = if is_news { 0 } else { self.repeated + 1 };
        self.warned |= is_news && is_long;
        let again = if is_news { String::new() } else { format!(" (failed {} times)", self.repeated + 1) };
        (level, again)
    }
}
