//! The end of the process: no new work, what is in flight within a grace time, the results, a proper close.

use std::time::{Duration, Instant};

use super::replica::{Code, Refusal, Replica};
use super::{Action, Core, End};
use crate::types::ReplicaId;

/// How long the last results are waited for before the session is closed.
const FLUSH_WITHIN: Duration = Duration::from_secs(3);

/// The end of the process, under way.
#[derive(Debug)]
pub(super) struct Ending {
    /// Commands in flight are waited for until this time.
    grace: Instant,
    /// Results are waited for until this time, once nothing is in flight.
    flush: Option<Instant>,
    /// The session is being closed, which has a deadline of its own.
    closing: bool,
    told: bool,
}

impl Ending {
    /// When something is to be done by itself. Once all times are up, only the session's own deadline is left.
    pub(super) fn deadline(&self, now: Instant) -> Option<Instant> {
        Some(self.flush.unwrap_or(self.grace)).filter(|at| *at > now)
    }
}

impl Core {
    pub(super) fn terminate(&mut self, now: Instant, out: &mut Vec<Action>) {
        if self.ending.is_some() {
            return;
        }
        self.ending =
            Some(Ending { grace: now + self.settings.grace, flush: None, closing: false, told: false });
        self.waiting.clear();
        let refusal = || Refusal::new(Code::Interrupted, "the agent was ended before the deploy was started");
        for id in self.queue.iter().cloned().collect::<Vec<_>>() {
            self.fail_queued(now, &id, refusal());
        }
        // One of an earlier process may run: the next one will see.
        let waits = |replica: &&Replica| replica.next.as_ref().is_some_and(|next| next.work.is_some());
        let waiting: Vec<ReplicaId> = self.replicas.values().filter(waits).map(|r| r.id.clone()).collect();
        for id in waiting {
            if let Some(next) = self.replicas.get_mut(&id).and_then(|replica| replica.next.take()) {
                self.tell_failed(now, &id, &next, &refusal());
            }
        }
        out.push(Action::info("ending: finishing what is in flight; containers go on running".into()));
    }

    /// Level-triggered: closes the session when all is done or its time is up, and then ends the process.
    pub(super) fn drive_ending(&mut self, now: Instant, out: &mut Vec<Action>) {
        let idle = self.idle();
        let delivered = self.outbox.is_empty() || self.session.flowing().is_none();
        let settled = self.disk.settled();
        let Some(ending) = &mut self.ending else { return };
        if !ending.closing && (idle || ending.grace <= now) {
            let flush = *ending.flush.get_or_insert(now + FLUSH_WITHIN);
            if (delivered && settled) || flush <= now {
                ending.closing = true;
                self.close_session(now, out);
            }
        }
        if let Some(ending) = &mut self.ending
            && ending.closing
            && !ending.told
            && self.session.is_over()
            && (settled || ending.flush.is_none_or(|flush| flush <= now))
        {
            ending.told = true;
            out.push(Action::End(End::Clean));
        }
    }
}
