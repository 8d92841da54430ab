//! The replicas, and what is true of all of them together: the queue, the slots, what is owed, who waits for what
//! ([`Replicas`]).
//!
//! One replica is a state machine: [`state`] has its values and what is legal, [`commands`] what a command means in
//! each, [`lifecycle`] its inputs and effects, [`starting`] the way up, [`watching`] the watch over what runs,
//! [`reconcile`] what a listing means, [`recovery`] what a restart makes of it, [`record`] what survives the process and
//! [`files`] in which file, and [`outcome`] what is reported. [`admission`] says what is taken on.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

use super::cx::{Cx, JobOwner};
use super::job::Job;
use super::persistence::{DurableBarrier, Persistence};
use super::timers::ReplicaTimes;
use crate::types::{ContainerId, HostPort, Port, ReplicaId};

mod admission;
mod commands;
mod files;
mod lifecycle;
mod outcome;
mod reconcile;
mod record;
mod recovery;
mod starting;
mod state;
mod warnings;
mod watching;

pub(crate) use self::admission::{Load, WaitingCommands};
use self::commands::{CommandClass, on_deploy};
pub(crate) use self::commands::{OnDeploy, same_spec};
use self::files::Files;
pub(crate) use self::lifecycle::{Effect, Input, Surroundings};
pub(crate) use self::outcome::{Code, Exit, Refusal, Report};
pub(crate) use self::reconcile::Shown;
use self::state::ReplicaState;
pub(crate) use self::state::{Awaited, Deploy, Replica, Work};
pub(crate) use self::warnings::warnings;

/// How long pull and start may take together, where the deploy does not say. With GPUs a large guest pins all of its
/// memory first.
pub(crate) fn default_deploy_timeout(with_gpus: bool) -> Duration {
    Duration::from_secs(if with_gpus { 30 * 60 } else { 15 * 60 })
}

/// How long a container has to end after SIGTERM, where neither the stop nor its deploy says.
pub(crate) const STOP_TIMEOUT: Duration = Duration::from_secs(10);
/// How many replicas whose state the engine cannot tell are named in the node's reason.
const UNCLEAR_NAMED: usize = 3;
/// Maximum number of requests that one outcome answers.
pub(crate) const REQUESTS_MAX: usize = 64;

/// All replicas, by ID. Sums and indexes are kept up to date by [`Replicas::apply`] and its like, so that an event costs
/// what it touches, however many replicas there are.
#[derive(Debug, Default)]
pub(crate) struct Replicas {
    all: BTreeMap<ReplicaId, Replica>,
    /// Replicas that are to be started, in order.
    queue: VecDeque<ReplicaId>,
    sums: Sums,
    /// The replica of each running container.
    by_container: BTreeMap<ContainerId, ReplicaId>,
    /// Replicas whose stops wait for their record, the oldest first.
    awaiting_record: BTreeSet<(DurableBarrier, ReplicaId)>,
    /// Replicas that wait for a listing.
    awaiting_listing: BTreeSet<ReplicaId>,
    /// Replicas whose container's state the engine cannot tell.
    unclear: BTreeSet<ReplicaId>,
    /// Replicas whose containers a reboot ended, until their first removal has come back.
    ended_by_reboot: BTreeSet<ReplicaId>,
    /// Leftover containers that are being removed.
    leftovers: BTreeSet<ContainerId>,
    files: Files,
    /// A listing has been taken up: the containers are known.
    known: bool,
}

/// What replicas were promised.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Promised {
    pub(crate) replicas: u64,
    /// The sum of their memory limits, in MiB.
    pub(crate) memory_mib: u64,
}

/// Sums over all replicas.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
struct Sums {
    /// Slots for starts that are taken.
    starting: usize,
    /// Images that are being pulled.
    pulling: usize,
    /// Outcomes that are still to be reported.
    owed: usize,
    /// Deploys that are on their way to a container.
    deploying: usize,
    /// What those have that run, or may.
    held: Promised,
    /// What of it is on its way out.
    returning: Promised,
}

impl Sums {
    fn of(replica: &Replica) -> Self {
        let (starting, pulling) = (replica.is_starting(), replica.is_pulling());
        let held = replica.promised();
        Self {
            held,
            returning: if replica.is_leaving() { held } else { Promised::default() },
            starting: usize::from(starting),
            pulling: usize::from(pulling),
            owed: replica.owed(),
            deploying: usize::from(starting || pulling || replica.deploy().is_some()),
        }
    }

    fn add(&mut self, other: Self) {
        self.starting += other.starting;
        self.pulling += other.pulling;
        self.owed += other.owed;
        self.deploying += other.deploying;
        for (mine, others) in [(&mut self.held, other.held), (&mut self.returning, other.returning)] {
            mine.replicas += others.replicas;
            mine.memory_mib = mine.memory_mib.saturating_add(others.memory_mib);
        }
    }

    fn subtract(&mut self, other: Self) {
        self.starting -= other.starting;
        self.pulling -= other.pulling;
        self.owed -= other.owed;
        self.deploying -= other.deploying;
        for (mine, others) in [(&mut self.held, other.held), (&mut self.returning, other.returning)] {
            mine.replicas -= others.replicas;
            mine.memory_mib -= others.memory_mib;
        }
    }
}

impl Replicas {
    pub(crate) fn get(&self, id: &ReplicaId) -> Option<&Replica> {
        self.all.get(id)
    }

    /// All, by ID.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (&ReplicaId, &Replica)> {
        self.all.iter()
    }

    pub(crate) fn of_container(&self, container: &ContainerId) -> Option<&ReplicaId> {
        self.by_container.get(container)
    }

    pub(crate) fn len(&self) -> usize {
        self.all.len()
    }

    /// How many there are besides `id` that have not ended.
    pub(crate) fn others(&self, id: &ReplicaId) -> usize {
        let there = |(other, replica): &(&ReplicaId, &Replica)| {
            *other != id && replica.class() != CommandClass::Exited
        };
        self.all.iter().filter(there).count()
    }

    pub(crate) fn ids(&self) -> Vec<ReplicaId> {
        self.all.keys().cloned().collect()
    }

    /// Whether the containers are known: a listing has been taken up.
    pub(crate) fn are_known(&self) -> bool {
        self.known
    }

    /// A listing has been taken up, which shows of these replicas only containers without a task.
    pub(crate) fn become_known(&mut self, cx: &mut Cx, without_task: BTreeSet<ReplicaId>) {
        self.known = true;
        self.ended_by_reboot = without_task;
        // What is not given up before depends on it.
        for (id, replica) in &self.all {
            cx.timers.set_replica(id, replica.timers(true));
        }
    }

    /// Outcomes that are still to be reported.
    pub(crate) fn owed(&self) -> usize {
        self.sums.owed
    }

    /// Whether a deploy is on its way to a container.
    pub(crate) fn are_deploying(&self) -> bool {
        self.sums.deploying > 0
    }

    /// Replicas whose state the engine cannot tell, for the node's state: the first few by name.
    pub(crate) fn trouble(&self) -> Option<String> {
        let named = self
            .unclear
            .iter()
            .take(UNCLEAR_NAMED)
            .filter_map(|id| Some(format!("replica {id} is unknown: {}", self.all.get(id)?.unclear()?)));
        let named = named.collect::<Vec<_>>().join("; ");
        match (self.unclear.len(), self.unclear.len().saturating_sub(UNCLEAR_NAMED)) {
            (0, _) => None,
            (_, 0) => Some(named),
            (_, more) => Some(format!("{named}; and {more} more")),
        }
    }

    /// How many requests wait for the outcome of a deploy.
    pub(crate) fn requests(&self, id: &ReplicaId, of: Awaited) -> usize {
        self.all.get(id).map_or(0, |replica| replica.requests(of).len())
    }

    /// What a deploy with this specification means now.
    pub(crate) fn on_deploy(&self, id: &ReplicaId, spec_hash: &str) -> OnDeploy {
        let absent = || on_deploy(CommandClass::Absent, false, false);
        self.all.get(id).map_or_else(absent, |replica| replica.on_deploy(spec_hash))
    }

    /// Those that wait for a listing.
    pub(crate) fn awaiting_listing(&self) -> &BTreeSet<ReplicaId> {
        &self.awaiting_listing
    }

    /// Replicas that are to be started, in order.
    pub(crate) fn queue(&self) -> &VecDeque<ReplicaId> {
        &self.queue
    }

    /// The replica other than `id` that has one of these ports on the host, and the port; one that stays before one that
    /// is on its way out.
    pub(crate) fn port_holder(&self, id: &ReplicaId, ports: &[Port]) -> Option<(&Replica, HostPort)> {
        let wanted = || ports.iter().map(|port| port.on_host());
        let others = self.all.iter().filter(|(other, _)| !ports.is_empty() && *other != id);
        let holders = others
            .filter_map(|(_, replica)| Some((replica, wanted().find(|port| replica.publishes(*port))?)));
        holders.min_by_key(|(replica, _)| replica.is_leaving())
    }

    /// Containers that ended with the host and are kept for their logs.
    pub(crate) fn kept_after_reboot(&self) -> BTreeSet<ContainerId> {
        let kept = self.all.values().filter(|replica| replica.exit().is_some_and(|exit| exit.rebooted));
        kept.filter_map(|replica| replica.container().cloned()).collect()
    }

    /// Whether what a reboot ended is still being removed for the first time: what starts before may find no address left.
    pub(crate) fn are_clearing(&mut self) -> bool {
        self.ended_by_reboot.retain(|id| self.all.get(id).is_some_and(Replica::awaits_first_removal));
        !self.ended_by_reboot.is_empty()
    }

    /// What the replicas that run, or may run, were promised; and what of that is on its way back.
    pub(crate) fn promised(&self) -> (Promised, Promised) {
        (self.sums.held, self.sums.returning)
    }

    /// Images that are being pulled for a deploy.
    pub(crate) fn pulling(&self) -> usize {
        self.sums.pulling
    }

    /// How many more deploys may be started now.
    pub(crate) fn free_slots(&self, cx: &Cx) -> usize {
        cx.settings.workers.saturating_sub(self.sums.starting)
    }

    /// Size of the variables and arguments of the deploys that are queued, in bytes.
    pub(crate) fn queued_bytes(&self) -> usize {
        let work = |id| self.all.get(id).and_then(|replica| replica.deploy()?.work.as_ref());
        self.queue.iter().filter_map(work).map(|work| work.spec.bytes()).sum()
    }

    /// Replicas whose stops have waited for their record.
    pub(crate) fn durable_stops(&self, persistence: &Persistence) -> Vec<ReplicaId> {
        let open = self.awaiting_record.iter().take_while(|(barrier, _)| persistence.is_durable(*barrier));
        open.map(|(_, id)| id.clone()).collect()
    }

    /// A replica that is new, or that a record or a label names.
    pub(crate) fn insert(&mut self, cx: &mut Cx, replica: Replica) {
        let id = replica.id.clone();
        if replica.state == ReplicaState::Queued {
            self.queue.push_back(id.clone());
        }
        self.unindex(&id);
        self.files.enter(&replica, cx.tick);
        self.all.insert(id.clone(), replica);
        self.index(cx, &id);
    }

    /// Hands a replica an input; says what follows for others. A replica that is gone is replaced by its successor.
    pub(crate) fn apply(
        &mut self,
        cx: &mut Cx,
        around: Surroundings<'_>,
        id: &ReplicaId,
        input: Input<'_>,
    ) -> Vec<Effect> {
        self.unindex(id);
        let Some(replica) = self.all.get_mut(id) else { return Vec::new() };
        let (was_queued, before) = (replica.state == ReplicaState::Queued, replica.footprint());
        let mut effects = replica.apply(cx, around, input);
        let gone = effects.iter().any(|effect| matches!(effect, Effect::Gone));
        if gone {
            let reports = replica.last_reports(cx.now);
            effects.extend(reports.into_iter().map(Effect::Report));
            effects.push(Effect::Save);
        }
        if gone || was_queued && replica.state != ReplicaState::Queued {
            self.queue.retain(|queued| queued != id);
        }
        if !gone {
            debug_assert_eq!(replica.illegal(), None, "{replica:?}");
            self.files.track(id, before, replica.footprint(), cx.tick);
        } else if let Some(next) = self.all.remove(id).and_then(|replica| replica.succeed(cx.tick)) {
            self.insert(cx, next);
            return effects;
        } else {
            self.files.leave(id, cx.tick);
        }
        self.index(cx, id);
        effects
    }

    /// Takes a replica out of the sums and indexes, before it is changed.
    fn unindex(&mut self, id: &ReplicaId) {
        let Some(replica) = self.all.get(id) else { return };
        self.sums.subtract(Sums::of(replica));
        if let Some(container) = replica.running() {
            self.by_container.remove(container);
        }
        if let Some(barrier) = replica.awaited_record() {
            self.awaiting_record.remove(&(barrier, id.clone()));
        }
        if replica.needs_listing() {
            self.awaiting_listing.remove(id);
        }
        if replica.unclear().is_some() {
            self.unclear.remove(id);
        }
    }

    /// Enters a replica into the sums, the indexes and the timer table, after it was changed.
    fn index(&mut self, cx: &mut Cx, id: &ReplicaId) {
        let Some(replica) = self.all.get(id) else {
            cx.timers.set_replica(id, ReplicaTimes::default());
            return;
        };
        self.sums.add(Sums::of(replica));
        if let Some(container) = replica.running() {
            self.by_container.insert(container.clone(), id.clone());
        }
        if let Some(barrier) = replica.awaited_record() {
            self.awaiting_record.insert((barrier, id.clone()));
        }
        if replica.needs_listing() {
            self.awaiting_listing.insert(id.clone());
        }
        if replica.unclear().is_some() {
            self.unclear.insert(id.clone());
        }
        cx.timers.set_replica(id, replica.timers(self.known));
    }

    /// Removes a leftover container, unless that is under way.
    pub(crate) fn remove_leftover(&mut self, cx: &mut Cx, container: ContainerId) {
        if self.leftovers.insert(container.clone()) {
            cx.start_job(Job::Remove(container.clone()), JobOwner::LeftoverContainer(container));
        }
    }

    /// The removal of a leftover container came back. Whether it is gone is seen in the next listing.
    pub(crate) fn leftover_removed(&mut self, container: &ContainerId) {
        self.leftovers.remove(container);
    }

    /// The replicas that `state.json` has, and those that it says are gone; without the latter it has all.
    pub(crate) fn in_state(&self) -> (Vec<&Replica>, Option<Vec<&ReplicaId>>) {
        let Some(named) = self.files.in_state() else { return (self.all.values().collect(), None) };
        #[cfg(debug_assertions)]
        if self.all.len() <= 100 {
            self.files.check(&self.all);
        }
        let (mut there, mut gone) = (Vec::new(), Vec::new());
        for id in named {
            match self.all.get(id) {
                Some(replica) => there.push(replica),
                None => gone.push(id),
            }
        }
        (there, Some(gone))
    }

    /// The replicas that belong in the table that is composed now.
    pub(crate) fn compose_table(&mut self, tick: u64) -> impl Iterator<Item = &Replica> {
        self.files.compose(tick);
        #[cfg(debug_assertions)]
        self.files.check_later(&self.all);
        self.all.values().filter(|replica| !self.files.is_in_flight(&replica.id))
    }

    /// That table is on the disk.
    pub(crate) fn table_written(&mut self) {
        self.files.written();
    }

    /// These replicas come from a table that is on the disk, and are as they are there; `gone` are not any more.
    pub(crate) fn restore_table(&mut self, untouched: &[ReplicaId], gone: BTreeSet<ReplicaId>, tick: u64) {
        gone.iter().for_each(|id| self.files.leave(id, tick));
        self.files.restore(untouched);
        #[cfg(debug_assertions)]
        {
            self.files.check_later(&self.all);
            self.files.checked_from_now();
        }
    }

    /// Whether something changed since this was last asked that the table is to have by and by.
    pub(crate) fn take_stale_table(&mut self) -> bool {
        self.files.take_stale()
    }

    /// Whether sums, indexes and timers are what the replicas' states say. For tests: it walks all of them.
    #[cfg(debug_assertions)]
    pub(crate) fn is_consistent(&self, cx: &Cx) -> bool {
        let mut sums = Sums::default();
        self.all.values().for_each(|replica| sums.add(Sums::of(replica)));
        let queued = |id: &ReplicaId| self.all.get(id).is_some_and(|r| r.state == ReplicaState::Queued);
        sums == self.sums
            && self.queue.iter().all(queued)
            && self.all.values().filter(|r| r.state == ReplicaState::Queued).count() == self.queue.len()
            && self.by_container.len() == self.all.values().filter(|r| r.running().is_some()).count()
            && self.awaiting_listing.len() == self.all.values().filter(|r| r.needs_listing()).count()
            && self.awaiting_record.len() == self.all.values().filter_map(Replica::awaited_record).count()
            && self.all.values().all(|r| self.files.agrees_with(r))
            && self.all.iter().all(|(id, r)| cx.timers.of_replica(id) == r.timers(self.known))
    }
}
