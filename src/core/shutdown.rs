//! The end of the process: no new work, what is in flight within a grace time, the results, a proper close.
//!
//! ```text
//!   Finishing ──(idle, or grace over)──► Flushing ──(delivered and saved, or time over)──► Closing ──► Ended
//! ```

use std::time::{Duration, Instant};

use super::timers::Timer;

/// How long the last results are waited for before the session is closed.
const FLUSH_WITHIN: Duration = Duration::from_secs(3);

/// How far the end of the process is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Shutdown {
    /// Commands in flight are waited for, until this time.
    Finishing(Instant),
    /// Results are waited for until they have arrived and are saved, until this time.
    Flushing(Instant),
    /// The session is being closed, which has a deadline of its own; the last save is waited for until this time.
    Closing(Option<Instant>),
    Ended,
}

/// What the process's end waits for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Progress {
    /// Nothing that was accepted is left to be done.
    pub(crate) idle: bool,
    /// No result waits, or nobody is there to take one.
    pub(crate) delivered: bool,
    /// Everything is on disk, as far as that is possible.
    pub(crate) saved: bool,
    /// The session is over.
    pub(crate) closed: bool,
}

/// What is to be done now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Step {
    Wait,
    CloseSession,
    EndProcess,
}

impl Shutdown {
    pub(crate) fn begin(now: Instant, grace: Duration) -> Self {
        Self::Finishing(now + grace)
    }

    pub(crate) fn timers(self) -> [(Timer, Option<Instant>); 1] {
        let at = match self {
            Self::Finishing(until) | Self::Flushing(until) => Some(until),
            Self::Closing(until) => until,
            Self::Ended => None,
        };
        [(Timer::Shutdown, at)]
    }

    /// Its time is over: goes on without what it waits for.
    pub(crate) fn on_timer(&mut self, now: Instant) -> Step {
        match *self {
            Self::Finishing(_) => {
                *self = Self::Flushing(now + FLUSH_WITHIN);
                Step::Wait
            }
            Self::Flushing(_) => {
                *self = Self::Closing(None);
                Step::CloseSession
            }
            Self::Closing(_) => {
                *self = Self::Closing(None);
                Step::Wait
            }
            Self::Ended => Step::Wait,
        }
    }

    /// Goes on as far as what it waits for has happened.
    pub(crate) fn advance(&mut self, now: Instant, progress: Progress) -> Step {
        match *self {
            Self::Finishing(_) if progress.idle => {
                *self = Self::Flushing(now + FLUSH_WITHIN);
                self.advance(now, progress)
            }
            Self::Flushing(until) if progress.delivered && progress.saved => {
                *self = Self::Closing(Some(until));
                Step::CloseSession
            }
            Self::Closing(until) if progress.closed && (progress.saved || until.is_none()) => {
                *self = Self::Ended;
                Step::EndProcess
            }
            Self::Finishing(_) | Self::Flushing(_) | Self::Closing(_) | Self::Ended => Step::Wait,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::cx::Cx;
    use super::*;

    const NOTHING: Progress = Progress { idle: false, delivered: false, saved: false, closed: false };
    const ALL: Progress = Progress { idle: true, delivered: true, saved: true, closed: true };

    #[test]
    fn with_nothing_to_wait_for_it_ends_at_once() {
        let now = Cx::example().now;
        let mut shutdown = Shutdown::begin(now, Duration::from_secs(20));
        assert_eq!(shutdown.advance(now, NOTHING), Step::Wait);
        assert_eq!(shutdown.advance(now, ALL), Step::CloseSession);
        assert_eq!(shutdown.advance(now, ALL), Step::EndProcess);
        assert_eq!(shutdown.advance(now, ALL), Step::Wait, "once");
    }

    #[test]
    fn every_wait_has_an_end() {
        let now = Cx::example().now;
        let mut shutdown = Shutdown::begin(now, Duration::from_secs(20));
        let mut steps = Vec::new();
        for _ in 0..3 {
            if let Some(at) = shutdown.timers()[0].1 {
                steps.push(shutdown.on_timer(at));
            }
        }
        assert_eq!(steps, [Step::Wait, Step::CloseSession]);
        assert_eq!(shutdown.advance(now, Progress { closed: true, ..NOTHING }), Step::EndProcess);
    }
}
