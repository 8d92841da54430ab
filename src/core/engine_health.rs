//! What is known of the container engine: whether it answers, and how old the list of its containers is. Both are
//! learnt from the outcomes of jobs; after some silence it is asked.

use std::time::{Duration, Instant};

use super::cx::{Cx, JobOwner};
use super::job::{Failure, FailureKind, Job, Outcome};
use super::poll::Poll;
use super::timers::Timer;

/// Probe the engine after this much silence. With the 10 s that its CLI gives a frozen one, its silence is noticed
/// within 30 s.
const PROBE_AFTER: Duration = Duration::from_secs(12);
/// Probe an engine that does not answer this often.
const PROBE_DOWN: Duration = Duration::from_secs(5);
/// The first pause after a listing that failed; doubled for each that follows.
const LIST_PAUSE_FIRST: Duration = Duration::from_millis(500);
/// The longest of these pauses.
const LIST_PAUSE_MAX: Duration = Duration::from_secs(10);

/// Whether the engine answers, and when the containers are listed.
#[derive(Debug)]
pub(crate) struct EngineHealth {
    /// Why it counts as unavailable.
    down: Option<String>,
    /// When an outcome last said anything about it.
    heard: Instant,
    probing: bool,
    /// A listing proves nothing before it is known what an earlier process left at work.
    may_list: bool,
    listing: Poll,
    failed_listings: u32,
    /// Why the last listing failed.
    listing_failure: Option<String>,
}

/// What an outcome says about the engine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Sign {
    Answers,
    Silent,
    /// Nothing: the fault may be anywhere.
    None,
}

impl EngineHealth {
    pub(crate) fn new(now: Instant) -> Self {
        let listing = Poll::new(None);
        Self {
            down: None,
            heard: now,
            probing: false,
            may_list: false,
            listing,
            failed_listings: 0,
            listing_failure: None,
        }
    }

    /// Why it counts as unavailable, or why the containers cannot be listed, for the node's state.
    pub(crate) fn trouble(&self) -> Option<String> {
        let down =
            self.down.as_ref().map(|message| format!("the container engine does not answer: {message}"));
        down.or_else(|| Some(format!("the containers cannot be listed: {}", self.listing_failure.as_ref()?)))
    }

    /// How old the last complete listing is.
    pub(crate) fn list_age(&self, now: Instant) -> Option<Duration> {
        self.listing.age(now)
    }

    /// Listings may begin, and the first does.
    pub(crate) fn allow_listing(&mut self, now: Instant) {
        if !self.may_list {
            self.may_list = true;
            self.listing.want(now);
        }
    }

    /// A listing is wanted that begins from now on, at this time at the latest.
    pub(crate) fn want_listing(&mut self, at: Instant) {
        self.listing.want(at);
    }

    /// Something waits for a listing: the next one starts now, unless one is under way, which may be
    /// enough.
    pub(crate) fn need_listing(&mut self, now: Instant) {
        if !self.listing.is_under_way() {
            self.listing.want(now);
        }
    }

    pub(crate) fn timers(&self) -> [(Timer, Option<Instant>); 2] {
        let quiet = !self.probing && !self.listing.is_under_way();
        let probe = self.heard + if self.down.is_some() { PROBE_DOWN } else { PROBE_AFTER };
        let listing = self.listing.timer().filter(|_| self.may_list);
        [(Timer::Listing, listing), (Timer::Probe, quiet.then_some(probe))]
    }

    pub(crate) fn on_listing_timer(&mut self, cx: &mut Cx) {
        if self.listing.on_timer(cx.now) {
            self.listing.want(cx.now + cx.settings.reconcile);
            cx.start_job(Job::List, JobOwner::Listing(cx.tick));
        }
    }

    pub(crate) fn on_probe_timer(&mut self, cx: &mut Cx) {
        self.probing = true;
        cx.start_job(Job::Probe, JobOwner::Probe);
    }

    /// A listing is complete.
    pub(crate) fn listed(&mut self, now: Instant) {
        self.listing.done(now, ());
        self.failed_listings = 0;
        self.listing_failure = None;
    }

    pub(crate) fn listing_failed(&mut self, cx: &mut Cx, why: &str) {
        let now = cx.now;
        if self.listing_failure.as_deref() != Some(why) {
            cx.warn(format!("the containers cannot be listed: {why}"));
            self.listing_failure = Some(why.to_owned());
        }
        let pause = LIST_PAUSE_FIRST * 2u32.pow(self.failed_listings.min(8));
        self.failed_listings += 1;
        self.listing.failed(now, pause.min(LIST_PAUSE_MAX));
    }

    /// Notes what a job's outcome says about the engine. Says whether it became unavailable or came back: then the
    /// dependencies are to be checked.
    pub(crate) fn on_outcome(&mut self, now: Instant, outcome: &Outcome) -> bool {
        if matches!(outcome, Outcome::Probed(_)) {
            self.probing = false;
        }
        match sign(outcome) {
            (Sign::None, _) => false,
            (Sign::Answers, _) => {
                self.heard = now;
                let back = self.down.take().is_some();
                if back {
                    self.listing.end_pause();
                    self.listing.want(now);
                }
                back
            }
            (Sign::Silent, message) => {
                self.heard = now;
                self.down.replace(message.to_owned()).is_none()
            }
        }
    }
}

fn sign(outcome: &Outcome) -> (Sign, &str) {
    // Queries do nothing but ask: one that is not answered in time was not answered by the engine.
    let (failure, query) = match outcome {
        Outcome::Ran(result) => (result.as_ref().err(), false),
        Outcome::Listed(result) => (result.as_ref().err(), true),
        // A shim that hangs keeps the question about its container, not the engine.
        Outcome::Inspected(result) => (result.as_ref().err(), false),
        Outcome::Probed(result) => (result.as_ref().err(), true),
        Outcome::Pulled(result) | Outcome::Stopped(result) => (result.as_ref().err(), false),
        // `rm -f` exits with 0 whatever happens: its success proves nothing about the engine.
        Outcome::Removed(Ok(())) => return (Sign::None, ""),
        Outcome::Removed(Err(failure)) => (Some(failure), false),
        Outcome::Logs(_) | Outcome::Images(_) | Outcome::ImageRemoved(_) | Outcome::GuestUse(_) => {
            return (Sign::None, "");
        }
    };
    let Some(Failure { kind, message }) = failure else { return (Sign::Answers, "") };
    let sign = match kind {
        FailureKind::Unavailable => Sign::Silent,
        FailureKind::Deadline if query => Sign::Silent,
        FailureKind::NoImage
        | FailureKind::ImageRefused
        | FailureKind::NameTaken
        | FailureKind::NameReserved
        | FailureKind::NoSuchContainer => Sign::Answers,
        // A refusal or a slow pull may be anybody's fault.
        FailureKind::Deadline
        | FailureKind::Impossible
        | FailureKind::NoSpace
        | FailureKind::PortInUse
        | FailureKind::PullRefused(_)
        | FailureKind::Refused => Sign::None,
    };
    (sign, message)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn failure(kind: FailureKind) -> Failure {
        Failure { kind, message: "connection refused".into() }
    }

    #[test]
    fn its_silence_is_noticed_by_a_probe_and_its_return_lists_at_once() {
        let mut cx = Cx::example();
        let mut engine = EngineHealth::new(cx.now);
        assert_eq!(engine.timers(), [(Timer::Listing, None), (Timer::Probe, Some(cx.now + PROBE_AFTER))]);
        cx.now += PROBE_AFTER;
        engine.on_probe_timer(&mut cx);
        assert_eq!(engine.timers()[1].1, None, "one at a time");
        assert!(engine.on_outcome(cx.now, &Outcome::Probed(Err(failure(FailureKind::Unavailable)))));
        assert!(engine.trouble().is_some());
        assert_eq!(engine.timers()[1].1, Some(cx.now + PROBE_DOWN));
        assert!(engine.on_outcome(cx.now, &Outcome::Probed(Ok(()))));
        assert!(engine.trouble().is_none());
        assert_eq!(engine.timers()[0].1, None, "what an earlier process left is not known");
        engine.allow_listing(cx.now);
        assert_eq!(engine.timers()[0].1, Some(cx.now));
    }

    #[test]
    fn listings_that_fail_are_further_and_further_apart() {
        let mut cx = Cx::example();
        let mut engine = EngineHealth::new(cx.now);
        engine.allow_listing(cx.now);
        let mut pauses = Vec::new();
        for _ in 0..7 {
            engine.on_listing_timer(&mut cx);
            engine.listing_failed(&mut cx, "words");
            let at = engine.timers()[0].1.unwrap();
            pauses.push((at - cx.now).as_millis());
            cx.now = at;
        }
        assert_eq!(pauses, [500, 1000, 2000, 4000, 8000, 10_000, 10_000]);
        engine.on_listing_timer(&mut cx);
        engine.listed(cx.now);
        assert_eq!(engine.timers()[0].1, Some(cx.now + cx.settings.reconcile));
    }

    #[test]
    fn what_may_be_anybodys_fault_says_nothing_about_the_engine() {
        for (outcome, expected) in [
            (Outcome::Pulled(Err(failure(FailureKind::Deadline))), Sign::None),
            (Outcome::Inspected(Err(failure(FailureKind::Deadline))), Sign::None),
            (Outcome::Listed(Err(failure(FailureKind::Deadline))), Sign::Silent),
            (Outcome::Ran(Err(failure(FailureKind::Refused))), Sign::None),
            (Outcome::Ran(Err(failure(FailureKind::NoImage))), Sign::Answers),
            (Outcome::Removed(Ok(())), Sign::None),
            (Outcome::Stopped(Ok(())), Sign::Answers),
        ] {
            assert_eq!(sign(&outcome).0, expected, "{outcome:?}");
        }
    }
}
