//! What the core knows of the engine: whether it answers, and how old the table of containers is.

use std::time::{Duration, Instant};

use super::job::{Failure, FailureKind, Job, Outcome};
use super::replica::{Phase, Step};
use super::{Action, Core, Purpose};

/// An engine of which nothing was heard for this long is asked whether it is there. With the 10 s that its CLI gives
/// a frozen one, its silence is noticed within 30 s.
const PROBE_AFTER: Duration = Duration::from_secs(12);
/// An engine that does not answer is asked again after this.
const PROBE_DOWN: Duration = Duration::from_secs(5);
/// The first pause after a listing that failed; doubled for each that follows.
const LIST_PAUSE_FIRST: Duration = Duration::from_millis(500);
/// The longest of these pauses.
const LIST_PAUSE_MAX: Duration = Duration::from_secs(10);

/// The engine, as its answers show it.
#[derive(Debug)]
pub(super) struct Engine {
    down: Option<String>,
    heard: Instant,
    probing: bool,
    listing: bool,
    /// When the next slow listing is due.
    list_due: Instant,
    /// Not before this, after a listing that failed.
    list_after: Instant,
    list_failures: u32,
    listed: Option<Instant>,
}

impl Engine {
    pub(super) fn new(now: Instant) -> Self {
        Self {
            down: None,
            heard: now,
            probing: false,
            listing: false,
            list_due: now,
            list_after: now,
            list_failures: 0,
            listed: None,
        }
    }

    /// Why it counts as gone, if so.
    pub(super) fn trouble(&self) -> Option<String> {
        self.down.as_ref().map(|message| format!("the container engine does not answer: {message}"))
    }

    /// How old the last complete listing is.
    pub(super) fn table_age(&self, now: Instant) -> Option<Duration> {
        self.listed.map(|at| now.saturating_duration_since(at))
    }

    /// The containers are to be listed without delay.
    pub(super) fn list_now(&mut self, now: Instant) {
        self.list_due = now;
    }

    /// The containers are to be listed at this time at the latest.
    pub(super) fn list_at(&mut self, at: Instant) {
        self.list_due = self.list_due.min(at);
    }

    fn probe_due(&self) -> Instant {
        self.heard + if self.down.is_some() { PROBE_DOWN } else { PROBE_AFTER }
    }
}

impl Core {
    /// What an outcome says about the engine itself.
    pub(super) fn evidence(&mut self, now: Instant, outcome: &Outcome) {
        let (failure, look) = match outcome {
            Outcome::Ran(result) => (result.as_ref().err(), false),
            Outcome::Listed(result) => (result.as_ref().err(), true),
            // A shim that hangs keeps the question about its container, not the engine.
            Outcome::Inspected(result) => (result.as_ref().err(), false),
            Outcome::Probed(result) => {
                self.engine.probing = false;
                (result.as_ref().err(), true)
            }
            Outcome::Pulled(result) | Outcome::Stopped(result) => (result.as_ref().err(), false),
            // `rm -f` says 0 whatever happens: its success is no sign of life.
            Outcome::Removed(Ok(())) => return,
            Outcome::Removed(Err(failure)) => (Some(failure), false),
            Outcome::Logs(_) | Outcome::Images(_) | Outcome::ImageRemoved(_) | Outcome::GuestUse(_) => return,
        };
        match failure {
            None => self.engine_answers(now),
            Some(Failure { kind: FailureKind::Unavailable, message }) => {
                self.engine_silent(now, message.clone())
            }
            Some(Failure { kind: FailureKind::Deadline, message }) if look => {
                self.engine_silent(now, message.clone())
            }
            Some(Failure {
                kind:
                    FailureKind::NoImage
                    | FailureKind::ImageRefused
                    | FailureKind::NameTaken
                    | FailureKind::NameReserved
                    | FailureKind::NoSuchContainer,
                ..
            }) => self.engine_answers(now),
            // A refusal or a slow pull may be anybody's fault.
            Some(Failure {
                kind:
                    FailureKind::Deadline
                    | FailureKind::Impossible
                    | FailureKind::PullRefused(_)
                    | FailureKind::Refused,
                ..
            }) => {}
        }
    }

    fn engine_answers(&mut self, now: Instant) {
        self.engine.heard = now;
        if self.engine.down.take().is_some() {
            self.engine.list_due = now;
            self.engine.list_after = now;
            self.node.want_checks(now);
        }
    }

    fn engine_silent(&mut self, now: Instant, message: String) {
        self.engine.heard = now;
        if self.engine.down.replace(message).is_none() {
            self.node.want_checks(now);
        }
    }

    /// A listing is over.
    pub(super) fn listing_over(&mut self, now: Instant, good: bool) {
        self.engine.listing = false;
        if good {
            self.engine.listed = Some(now);
            self.engine.list_failures = 0;
        } else {
            self.engine.list_due = now;
            let pause = LIST_PAUSE_FIRST * 2u32.pow(self.engine.list_failures.min(8));
            self.engine.list_failures += 1;
            self.engine.list_after = now + pause.min(LIST_PAUSE_MAX);
        }
    }

    /// Level-triggered: listings and probes that are due.
    pub(super) fn drive_engine(&mut self, now: Instant, out: &mut Vec<Action>) {
        if self.list_wanted(now) && self.engine.list_after <= now {
            self.engine.listing = true;
            // What is wanted from here on is not in this one.
            self.engine.list_due = now + self.settings.reconcile;
            let began = self.tick;
            self.submit(Job::List, Purpose::List(began), out);
        }
        if !self.engine.probing && !self.engine.listing && self.engine.probe_due() <= now {
            self.engine.probing = true;
            self.submit(Job::Probe, Purpose::Probe, out);
        }
    }

    fn list_wanted(&self, now: Instant) -> bool {
        // What an earlier process left at work is known first: a listing proves nothing before.
        self.orphans_known
            && !self.engine.listing
            && (self.engine.list_due <= now
                || self.replicas.values().any(|replica| match replica.phase {
                    Phase::Clearing(Step::Look(_)) => true,
                    // One whose state the engine could not tell is listed again when that is due.
                    Phase::Unverified => replica.unclear.is_none(),
                    _ => false,
                }))
    }

    /// When the engine is to be asked something by itself.
    pub(super) fn engine_deadline(&self, now: Instant) -> Option<Instant> {
        let probe = (!self.engine.probing && !self.engine.listing).then(|| self.engine.probe_due());
        let list = if self.engine.listing || !self.orphans_known {
            None
        } else if self.list_wanted(now) {
            Some(self.engine.list_after)
        } else {
            Some(self.engine.list_due.max(self.engine.list_after))
        };
        [probe, list].into_iter().flatten().min()
    }
}
