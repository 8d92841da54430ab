//! The timer table: every point in time at which the core acts without an event.
//!
//! Each has a named slot. Machines keep their points in time as part of their state and say them with a function of
//! their own (`timers`); one place writes these into the table after each change ([`super::Core`] for its machines,
//! `Replicas` for each replica), and one place reads it. What is to be done at once is a slot that is due now.
//! What has to start at a time starts from here alone, so a wake-up cannot be forgotten: what is not in the table does not
//! happen.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Instant;

use crate::types::ReplicaId;

/// The slots that there is one of. Of several that are due, the first in this order comes first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Timer {
    /// A command that waits for the containers to be known has waited too long.
    WaitingCommand,
    /// A record has been waited for long enough: what waits for it goes on without.
    DurableBarrier,
    /// The next attempt to connect, or the end of the one under way.
    Session,
    /// Nothing arrived for too long: the connection is dead.
    Silence,
    /// The server has not named a new node in time.
    NodeId,
    /// `system_info` waits no longer for what is not known yet.
    SystemInfo,
    /// A ping is to be sent.
    Ping,
    /// Calls of the CLI that an earlier process left behind are looked for.
    LeftoverCalls,
    /// They have not been found out for so long that the node's state says so.
    LeftoverCallsUnknown,
    /// The containers are listed.
    Listing,
    /// The engine is asked whether it is there.
    Probe,
    /// The dependencies are checked.
    Checks,
    /// The host's hardware is read, its GPUs above all; or a reading takes too long.
    Inventory,
    Shutdown,
    /// The identity is saved.
    Identity,
    /// The table of replicas is saved.
    Table,
    /// The state file is saved, or a save takes too long. Last, so that one save has all changes of an event.
    StateFile,
}

impl Timer {
    const ALL: [Self; 17] = [
        Self::WaitingCommand,
        Self::DurableBarrier,
        Self::Session,
        Self::Silence,
        Self::NodeId,
        Self::SystemInfo,
        Self::Ping,
        Self::LeftoverCalls,
        Self::LeftoverCallsUnknown,
        Self::Listing,
        Self::Probe,
        Self::Checks,
        Self::Inventory,
        Self::Shutdown,
        Self::Identity,
        Self::Table,
        Self::StateFile,
    ];
}

/// The slots that each replica has.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum ReplicaTimer {
    /// The deploy that waits behind what is being removed has waited too long.
    Successor,
    /// A stop is reported as failed.
    Stop,
    /// A deploy's failure is reported though its containers are not proven gone.
    Failure,
    /// The state's own: what it waits for is due.
    State,
}

impl ReplicaTimer {
    pub(crate) const ALL: [Self; 4] = [Self::Successor, Self::Stop, Self::Failure, Self::State];
}

/// The times of one replica, in the order of [`ReplicaTimer::ALL`].
pub(crate) type ReplicaTimes = [Option<Instant>; 4];

/// A slot that is due.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Due {
    Timer(Timer),
    Replica(ReplicaId, ReplicaTimer),
}

/// The table.
#[derive(Debug, Default)]
pub(crate) struct Timers {
    single: [Option<Instant>; Timer::ALL.len()],
    replicas: BTreeMap<ReplicaId, ReplicaTimes>,
    /// The replicas' times, the earliest first.
    order: BTreeSet<(Instant, ReplicaId, ReplicaTimer)>,
}

impl Timers {
    pub(crate) fn set(&mut self, timer: Timer, at: Option<Instant>) {
        self.single[timer as usize] = at;
    }

    /// Writes a replica's slots. One that is gone has none.
    pub(crate) fn set_replica(&mut self, id: &ReplicaId, times: ReplicaTimes) {
        let old = self.replicas.get(id).copied().unwrap_or_default();
        if old == times {
            return;
        }
        for ((timer, old), new) in ReplicaTimer::ALL.into_iter().zip(old).zip(times) {
            if old == new {
                continue;
            }
            if let Some(at) = old {
                self.order.remove(&(at, id.clone(), timer));
            }
            if let Some(at) = new {
                self.order.insert((at, id.clone(), timer));
            }
        }
        if times == ReplicaTimes::default() {
            self.replicas.remove(id);
        } else {
            self.replicas.insert(id.clone(), times);
        }
    }

    /// The earliest time in the table.
    pub(crate) fn next(&self) -> Option<Instant> {
        let replicas = self.order.first().map(|(at, ..)| *at);
        self.single.iter().flatten().copied().chain(replicas).min()
    }

    /// A slot whose time has come. It stays due until its owner has moved it.
    pub(crate) fn next_due(&self, now: Instant) -> Option<Due> {
        if let Some((at, id, timer)) = self.order.first()
            && *at <= now
        {
            return Some(Due::Replica(id.clone(), *timer));
        }
        let due = |timer: &Timer| self.single[*timer as usize].is_some_and(|at| at <= now);
        Timer::ALL.into_iter().find(due).map(Due::Timer)
    }

    /// A replica's slots, for the check that they are what its state says.
    #[cfg(debug_assertions)]
    pub(crate) fn of_replica(&self, id: &ReplicaId) -> ReplicaTimes {
        self.replicas.get(id).copied().unwrap_or_default()
    }
}

#[cfg(test)]
#[allow(clippy::disallowed_methods, reason = "a test needs some time to begin with")]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn the_earliest_slot_is_next_and_stays_due_until_it_is_moved() {
        let now = Instant::now();
        let at = |s: u64| Some(now + Duration::from_secs(s));
        let (r, s) = (ReplicaId::new("r").unwrap(), ReplicaId::new("s").unwrap());
        let mut timers = Timers::default();
        assert_eq!(timers.next(), None);
        timers.set(Timer::Ping, at(5));
        timers.set_replica(&r, [None, at(3), None, at(9)]);
        timers.set_replica(&s, [None, None, None, at(4)]);
        assert_eq!(timers.next(), at(3));
        assert_eq!(timers.next_due(now), None);
        let late = now + Duration::from_secs(10);
        assert_eq!(timers.next_due(late), Some(Due::Replica(r.clone(), ReplicaTimer::Stop)));
        assert_eq!(timers.next_due(late), Some(Due::Replica(r.clone(), ReplicaTimer::Stop)));
        timers.set_replica(&r, [None, None, None, at(9)]);
        assert_eq!(timers.next_due(late), Some(Due::Replica(s.clone(), ReplicaTimer::State)));
        timers.set_replica(&s, ReplicaTimes::default());
        timers.set_replica(&r, ReplicaTimes::default());
        assert_eq!(timers.next_due(late), Some(Due::Timer(Timer::Ping)));
        timers.set(Timer::Ping, None);
        assert_eq!((timers.next(), timers.replicas.len(), timers.order.len()), (None, 0, 0));
    }

    #[test]
    fn every_slot_has_a_place_and_the_state_file_comes_last() {
        for (n, timer) in Timer::ALL.into_iter().enumerate() {
            assert_eq!(timer as usize, n);
        }
        assert_eq!(Timer::ALL.last(), Some(&Timer::StateFile));
    }
}
