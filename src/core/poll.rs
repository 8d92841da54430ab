//! Something that is asked for again and again, one at a time: when the next one is wanted, since when one is under
//! way, and what the last one said.
//!
//! ```text
//!   wanted at ──(its time)──► under way ──► done: the answer, and wanted again if somebody asked meanwhile
//!                                  │  └───► failed: wanted again after a pause
//!                                  └ takes too long: slow, and still awaited
//! ```
//! What is asked for while one is under way is not in that one's answer, so another follows it.

use std::time::{Duration, Instant};

/// Something that is read again and again. `T` is what is kept of an answer.
#[derive(Debug)]
pub(crate) struct Poll<T = ()> {
    wanted: Option<Instant>,
    /// The pause after a failure: it does not start before.
    not_before: Option<Instant>,
    started: Option<Instant>,
    /// How long one may take before it counts as slow.
    slow_after: Option<Duration>,
    slow: bool,
    last: Option<(Instant, T)>,
}

impl<T> Poll<T> {
    /// Nothing is wanted yet. One that takes longer than `slow_after` is slow.
    pub(crate) fn new(slow_after: Option<Duration>) -> Self {
        Self { wanted: None, not_before: None, started: None, slow_after, slow: false, last: None }
    }

    /// The next one starts at `at` at the latest.
    pub(crate) fn want(&mut self, at: Instant) {
        self.wanted = Some(self.wanted.map_or(at, |wanted| wanted.min(at)));
    }

    /// The pause after a failure is over.
    pub(crate) fn end_pause(&mut self) {
        self.not_before = None;
    }

    /// Its slot in the timer table.
    pub(crate) fn timer(&self) -> Option<Instant> {
        match (self.started, self.slow_after) {
            (Some(_), _) if self.slow => None,
            (Some(since), slow_after) => slow_after.map(|slow_after| since + slow_after),
            (None, _) => self.wanted.map(|at| self.not_before.map_or(at, |pause| pause.max(at))),
        }
    }

    /// The slot is due. Says whether one is to be started; else the one under way is slow from now on.
    #[must_use]
    pub(crate) fn on_timer(&mut self, now: Instant) -> bool {
        if self.started.is_some() {
            self.slow = true;
            return false;
        }
        self.started = Some(now);
        self.wanted = None;
        self.not_before = None;
        true
    }

    /// Wants one at once: says whether it is to be started here and now; else it follows the one under way.
    #[must_use]
    pub(crate) fn start(&mut self, now: Instant) -> bool {
        if self.started.is_some() {
            self.want(now);
            return false;
        }
        self.on_timer(now)
    }

    pub(crate) fn done(&mut self, now: Instant, answer: T) {
        self.started = None;
        self.slow = false;
        self.last = Some((now, answer));
    }

    /// It failed: wanted again after `pause`.
    pub(crate) fn failed(&mut self, now: Instant, pause: Duration) {
        self.started = None;
        self.slow = false;
        self.not_before = Some(now + pause);
        self.want(now);
    }

    pub(crate) fn is_under_way(&self) -> bool {
        self.started.is_some()
    }

    pub(crate) fn is_wanted(&self) -> bool {
        self.wanted.is_some()
    }

    pub(crate) fn is_slow(&self) -> bool {
        self.slow
    }

    pub(crate) fn last(&self) -> Option<&T> {
        self.last.as_ref().map(|(_, answer)| answer)
    }

    /// How old the last answer is.
    pub(crate) fn age(&self, now: Instant) -> Option<Duration> {
        self.last.as_ref().map(|(at, _)| now.saturating_duration_since(*at))
    }
}

#[cfg(test)]
#[allow(clippy::disallowed_methods, reason = "a test needs some time to begin with")]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn a_wish_while_one_is_under_way_starts_another_behind_it() {
        let now = Instant::now();
        let mut poll = Poll::new(None);
        assert_eq!(poll.timer(), None);
        poll.want(now + SECOND);
        poll.want(now);
        poll.want(now + SECOND);
        assert_eq!(poll.timer(), Some(now), "the earliest counts");
        assert!(poll.on_timer(now));
        assert_eq!((poll.timer(), poll.is_under_way()), (None, true));
        poll.want(now);
        assert_eq!(poll.timer(), None, "one at a time");
        poll.done(now + SECOND, 7);
        assert_eq!((poll.last(), poll.age(now + 3 * SECOND)), (Some(&7), Some(2 * SECOND)));
        assert_eq!(poll.timer(), Some(now));
    }

    #[test]
    fn after_a_failure_it_is_asked_again_after_a_pause() {
        let now = Instant::now();
        let mut poll = Poll::<()>::new(None);
        poll.want(now);
        assert!(poll.on_timer(now));
        poll.failed(now, SECOND);
        poll.want(now);
        assert_eq!((poll.timer(), poll.last()), (Some(now + SECOND), None));
        poll.end_pause();
        assert_eq!(poll.timer(), Some(now));
    }

    #[test]
    fn what_takes_too_long_is_slow_until_it_ends() {
        let now = Instant::now();
        let mut poll = Poll::new(Some(SECOND));
        poll.want(now);
        assert!(poll.on_timer(now));
        assert_eq!(poll.timer(), Some(now + SECOND));
        assert!(!poll.on_timer(now + SECOND));
        assert!(poll.is_slow() && poll.timer().is_none());
        poll.done(now + 2 * SECOND, ());
        assert!(!poll.is_slow());
    }
}
