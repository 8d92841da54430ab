//! Which replicas stand in which file of the state directory.
//!
//! `state.json` is written before anything is told, so it has what that needs and no more: replicas of which a command
//! is not done, and those that changed since the table was written. The table (`replicas.json`) has the others, of which
//! nothing is left to tell. Where both name a replica, `state.json` is right, also when it says that one is gone.

use std::collections::{BTreeMap, BTreeSet, btree_map};
use std::hash::{DefaultHasher, Hash as _, Hasher as _};

use super::state::{Desired, Replica};
use crate::types::ReplicaId;

/// Past so many changes that no table has taken up, `state.json` has all replicas again: the table cannot be written.
const CHANGED_MAX: usize = 4096;

/// Which replica stands in which file.
#[derive(Debug, Default)]
pub(super) struct Files {
    in_flight: BTreeSet<ReplicaId>,
    /// Replicas that changed, or went, since the table on the disk was composed: at which tick.
    changed: BTreeMap<ReplicaId, u64>,
    /// A table is on the disk.
    has_table: bool,
    /// The tick at which the table was composed that is being written.
    composed: Option<u64>,
    /// Something changed that no table has since this was last asked.
    is_stale: bool,
    #[cfg(debug_assertions)]
    checks: Checks,
}

/// The records in the table on the disk, and in the one that is being written: for tests.
#[cfg(debug_assertions)]
#[derive(Debug, Default)]
struct Checks {
    on_disk: BTreeMap<ReplicaId, serde_json::Value>,
    composed: BTreeMap<ReplicaId, serde_json::Value>,
}

/// What a settled replica has in the table, as a hash; `None`: it is in flight, and `state.json` has it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Footprint(Option<u64>);

impl Replica {
    /// Whether anything that was accepted for it is not done.
    fn is_in_flight(&self) -> bool {
        self.desired == Desired::Absent
            || self.deploy.is_some()
            || self.stop.is_some()
            || self.successor.is_some()
    }

    /// Of all that [`Replica::to_record`] has of a settled one; in debug builds each save checks that.
    pub(super) fn footprint(&self) -> Footprint {
        let hash = || {
            let mut hasher = DefaultHasher::new();
            let names = (&self.deploy_id, &self.spec_hash, &self.gpus, &self.ports);
            (names, self.memory_mib, self.stop_timeout, self.reported).hash(&mut hasher);
            hasher.finish()
        };
        Footprint((!self.is_in_flight()).then(hash))
    }
}

impl Files {
    /// A replica was `before` an event, and is `after` it.
    pub(super) fn track(&mut self, id: &ReplicaId, before: Footprint, after: Footprint, tick: u64) {
        if before == after {
            return;
        }
        if after.0.is_none() {
            self.in_flight.insert(id.clone());
        } else {
            self.in_flight.remove(id);
            self.change(id, tick);
        }
    }

    /// A replica is new.
    pub(super) fn enter(&mut self, replica: &Replica, tick: u64) {
        self.in_flight.remove(&replica.id);
        if replica.is_in_flight() {
            self.in_flight.insert(replica.id.clone());
        }
        self.change(&replica.id, tick);
    }

    /// A replica is gone.
    pub(super) fn leave(&mut self, id: &ReplicaId, tick: u64) {
        self.in_flight.remove(id);
        self.change(id, tick);
    }

    fn change(&mut self, id: &ReplicaId, tick: u64) {
        self.is_stale = true;
        if self.changed.len() >= CHANGED_MAX {
            self.changed.clear();
            (self.has_table, self.composed) = (false, None);
        }
        match self.changed.entry(id.clone()) {
            btree_map::Entry::Vacant(entry) => _ = entry.insert(tick),
            btree_map::Entry::Occupied(mut entry) => *entry.get_mut() = tick,
        }
    }

    /// Whether something changed since this was last asked that the table is to have by and by.
    pub(super) fn take_stale(&mut self) -> bool {
        std::mem::take(&mut self.is_stale)
    }

    /// A table with the settled replicas as they are now is going to be written.
    pub(super) fn compose(&mut self, tick: u64) {
        if !self.has_table {
            self.changed.clear();
        }
        self.composed = Some(tick);
    }

    /// That table is on the disk.
    pub(super) fn written(&mut self) {
        if let Some(composed) = self.composed.take() {
            self.changed.retain(|_, tick| *tick > composed);
            self.has_table = true;
            #[cfg(debug_assertions)]
            self.checked_from_now();
        }
    }

    /// An earlier process left a table on which its state file counts: these replicas are in it as they are.
    pub(super) fn restore(&mut self, untouched: &[ReplicaId]) {
        for id in untouched {
            self.changed.remove(id);
        }
        self.has_table = true;
    }

    /// The replicas that `state.json` names; `None`: all, because there is no table.
    pub(super) fn in_state(&self) -> Option<impl Iterator<Item = &ReplicaId>> {
        let changed = self.changed.keys().filter(|id| !self.in_flight.contains(*id));
        self.has_table.then(|| self.in_flight.iter().chain(changed))
    }

    pub(super) fn is_in_flight(&self, id: &ReplicaId) -> bool {
        self.in_flight.contains(id)
    }

    /// For the check of all replicas: whether this is what its state says.
    #[cfg(debug_assertions)]
    pub(super) fn agrees_with(&self, replica: &Replica) -> bool {
        self.in_flight.contains(&replica.id) == replica.is_in_flight()
    }
}

/// For tests: whatever `state.json` says nothing of is in the table as it stands.
#[cfg(debug_assertions)]
impl Files {
    pub(super) fn check_later(&mut self, all: &BTreeMap<ReplicaId, Replica>) {
        let settled = all.iter().filter(|(id, _)| !self.in_flight.contains(id));
        self.checks.composed = settled.map(|(id, replica)| (id.clone(), replica.to_record())).collect();
    }

    pub(super) fn checked_from_now(&mut self) {
        self.checks.on_disk = std::mem::take(&mut self.checks.composed);
    }

    pub(super) fn check(&self, all: &BTreeMap<ReplicaId, Replica>) {
        let unnamed = |id: &ReplicaId| !self.in_flight.contains(id) && !self.changed.contains_key(id);
        for (id, replica) in all.iter().filter(|(id, _)| unnamed(id)) {
            debug_assert_eq!(self.checks.on_disk.get(id), Some(&replica.to_record()), "{id} is in no file");
        }
        for id in self.checks.on_disk.keys().filter(|id| unnamed(id)) {
            debug_assert!(all.contains_key(id), "{id} is gone, and no file says so");
        }
    }
}
