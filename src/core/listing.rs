//! What a listing of the containers means for each replica: adoption, exits, removal and its proof.

use std::time::{Duration, Instant};

use std::collections::{BTreeMap, BTreeSet};

use super::commands::{DEPLOY_TIMEOUT, DEPLOY_TIMEOUT_GPU};
use super::job::{Failure, Job, Listed, ListedStatus};
use super::replica::{Code, Exit, Phase, Refusal, Replica, Sight, Step, same_spec};
use super::{Action, Core, Level, Purpose};
use crate::types::{ContainerId, PciAddress, ReplicaId};

/// How long a call of an earlier process may go on making a container that is not wanted any more.
const CONDEMNED_PATIENCE: Duration = Duration::from_secs(60);
/// The pause before a second removal of a container that will not go; doubled for each that follows.
const REMOVE_PAUSE_FIRST: Duration = Duration::from_millis(125);
/// The longest of these pauses.
const REMOVE_PAUSE_MAX: Duration = Duration::from_secs(30);

impl Core {
    /// The engine's list came back. `began`: the tick at which it was asked for.
    pub(super) fn listed(
        &mut self,
        now: Instant,
        began: u64,
        result: Result<Vec<Listed>, Failure>,
        out: &mut Vec<Action>,
    ) {
        let listed = match result {
            Ok(listed) => listed,
            Err(_) => {
                self.listing_over(now, false);
                self.tell_what_cannot_be_proven(now);
                return;
            }
        };
        if began < self.orphans_over {
            // It may have missed what a call of an earlier process made meanwhile.
            self.listing_over(now, true);
            self.engine.list_now(now);
            return;
        }
        self.listing_over(now, true);
        self.tidy(began, &listed, out);
        let mut by_replica: BTreeMap<ReplicaId, Vec<Listed>> = BTreeMap::new();
        for container in listed {
            match ReplicaId::new(&container.replica) {
                Ok(id) => by_replica.entry(id).or_default().push(container),
                Err(invalid) => out.push(Action::warn(format!(
                    "container {} carries our label, but its {invalid}: left alone",
                    container.id.short()
                ))),
            }
        }
        self.take_up_begun(now, &by_replica);
        if !self.table_ready {
            self.put_behind(now, &by_replica);
        }
        let mut labelled: BTreeMap<ReplicaId, BTreeSet<PciAddress>> = BTreeMap::new();
        for (id, containers) in &by_replica {
            let gpus = containers.iter().flat_map(|container| container.gpus.iter().copied());
            labelled.entry(id.clone()).or_default().extend(gpus);
        }
        for call in self.orphans.values() {
            labelled.entry(call.replica.clone()).or_default().extend(call.gpus.iter().copied());
        }
        self.correct_holders(&labelled);
        for (id, gpus) in &labelled {
            // One that only a lost record named, or none.
            let bare = || Replica::bare(id.clone(), Phase::Unverified, 0);
            let replica = self.replicas.entry(id.clone()).or_insert_with(bare);
            for gpu in gpus {
                if !replica.gpus.contains(gpu) {
                    replica.gpus.push(*gpu);
                }
            }
            self.gpus.adopt(id, gpus);
        }
        let ids: Vec<ReplicaId> =
            self.replicas.values().filter(|r| r.touched <= began).map(|r| r.id.clone()).collect();
        for id in ids {
            let containers = by_replica.get(&id).map_or(&[][..], Vec::as_slice);
            self.settle(now, &id, began, containers, out);
        }
        if !self.table_ready {
            self.table_ready = true;
            if self.gpus.count().0 > 0 {
                self.node.want_info();
            }
            self.take_waiting(now, out);
        }
    }

    /// Deploys that waited behind another when an earlier process ended. Where a container or a call of such a one is
    /// there, it was begun after the record was saved, and what was before it is gone.
    fn take_up_begun(&mut self, now: Instant, by_replica: &BTreeMap<ReplicaId, Vec<Listed>>) {
        let begun = |replica: &&Replica| {
            let Some(next) = replica.next.as_ref().filter(|next| next.work.is_none()) else { return false };
            let made = |containers: &Vec<Listed>| containers.iter().any(|c| c.deploy == next.id);
            self.orphans.contains_key(&next.id) || by_replica.get(&replica.id).is_some_and(made)
        };
        let begun: Vec<ReplicaId> = self.replicas.values().filter(begun).map(|r| r.id.clone()).collect();
        for id in begun {
            self.gone(now, &id);
        }
    }

    /// Where a container is of a deploy that the record of an earlier process does not name, it was started after the
    /// record was saved: what the record has as pending before it was over by then.
    fn put_behind(&mut self, now: Instant, by_replica: &BTreeMap<ReplicaId, Vec<Listed>>) {
        let newer: Vec<ReplicaId> = by_replica
            .iter()
            .filter(|(id, containers)| {
                let Some(replica) = self.replicas.get(id) else { return false };
                let ran = |c: &&Listed| matches!(c.status, ListedStatus::Up | ListedStatus::Exited(_));
                !replica.deploy_id.is_empty()
                    && !self.is_orphaned(id)
                    && containers.iter().any(|c| ran(&c))
                    && containers.iter().filter(ran).all(|c| c.deploy != replica.deploy_id)
            })
            .map(|(id, _)| id.clone())
            .collect();
        for id in newer {
            let Some(replica) = self.replicas.get_mut(&id) else { continue };
            replica.phase = Phase::Unverified;
            replica.doomed = false;
            replica.known = false;
            replica.exit_told = false;
            let (deploy, stop) = (replica.deploy.take(), replica.stop.take());
            if let Some(deploy) = deploy {
                let refusal =
                    deploy.refusal.as_ref().map_or_else(interrupted, |(refusal, _)| refusal.clone());
                self.tell_failed(now, &id, &deploy, &refusal);
            }
            if let Some(stop) = stop {
                self.tell_stopped(now, &id, stop.requests, None);
            }
            self.disk.dirty();
        }
    }

    /// A record of an earlier process may be older than the labels: where both name a holder, the label is right.
    fn correct_holders(&mut self, labelled: &BTreeMap<ReplicaId, BTreeSet<PciAddress>>) {
        for (id, gpus) in labelled {
            for gpu in gpus {
                let Some(holder) = self.gpus.holder(*gpu).filter(|holder| *holder != id).cloned() else {
                    continue;
                };
                let Some(replica) = self.replicas.get_mut(&holder) else { continue };
                let claimed = replica.deploy.as_ref().is_some_and(|deploy| deploy.work.is_some());
                if !claimed && !labelled.get(&holder).is_some_and(|gpus| gpus.contains(gpu)) {
                    replica.gpus.retain(|held| held != gpu);
                    self.gpus.pass(id, *gpu);
                }
            }
        }
    }

    /// Compares one replica with what a listing shows of it.
    fn settle(
        &mut self,
        now: Instant,
        id: &ReplicaId,
        began: u64,
        containers: &[Listed],
        out: &mut Vec<Action>,
    ) {
        let Some(replica) = self.replicas.get(id) else { return };
        match replica.phase.clone() {
            Phase::Unverified => self.verify(now, id, containers, out),
            Phase::Running(container, sight) => {
                let up = containers.iter().any(|c| c.id == container && c.status == ListedStatus::Up);
                let asked = replica.job().is_some() || matches!(sight, Sight::Confirm(..) | Sight::NoTask(_));
                if !up && !asked {
                    self.process_ended(now, &container);
                }
                self.remove_strays(&container, containers, out);
            }
            Phase::Exited(container, ..) => {
                if let Some(up) = containers.iter().find(|c| c.status == ListedStatus::Up) {
                    // Someone started it again by hand.
                    let up = up.id.clone();
                    if let Some(replica) = self.replicas.get_mut(id) {
                        replica.exit_told = false;
                        replica.enter(Phase::Running(up, Sight::Ask(now)), self.tick);
                    }
                    self.disk.dirty();
                } else if !containers.iter().any(|c| c.id == container) {
                    self.clear(now, id, containers, out);
                }
            }
            Phase::Clearing(Step::Look(needs)) if needs <= began => self.clear(now, id, containers, out),
            Phase::Orphaned(_)
            | Phase::Queued
            | Phase::Pulling(_)
            | Phase::Starting(_)
            | Phase::Naming(..)
            | Phase::Stopping(..)
            | Phase::Clearing(_) => {}
        }
    }

    /// The first sight of a replica that an earlier process knew, or that nobody knew.
    fn verify(&mut self, now: Instant, id: &ReplicaId, containers: &[Listed], out: &mut Vec<Action>) {
        let tick = self.tick;
        let orphaned = self.is_orphaned(id);
        let Some(replica) = self.replicas.get_mut(id) else { return };
        if orphaned {
            let longest = match (replica.doomed, replica.gpus.is_empty()) {
                (true, _) => CONDEMNED_PATIENCE,
                (false, true) => DEPLOY_TIMEOUT,
                (false, false) => DEPLOY_TIMEOUT_GPU,
            };
            replica.enter(Phase::Orphaned(now + longest), tick);
            return;
        }
        let up = containers.iter().find(|c| c.status == ListedStatus::Up && c.deploy == replica.deploy_id);
        let up = up.or_else(|| containers.iter().find(|c| c.status == ListedStatus::Up));
        let unclear = containers.iter().find_map(|c| match &c.status {
            ListedStatus::Unclear(said) => Some((c, said)),
            ListedStatus::Created | ListedStatus::Up | ListedStatus::Exited(_) => None,
        });
        let before = replica.unclear.take();
        let decided = match (&replica.deploy, up) {
            _ if replica.doomed => true,
            (Some(deploy), Some(up)) => up.deploy == deploy.id,
            (None, Some(_)) => true,
            (_, None) => false,
        };
        if let Some((container, said)) = unclear
            && !decided
        {
            // It may run: neither told nor removed.
            let said = format!("the engine lists it as {said:?}");
            self.unclear(now, id, &container.id, said, before);
            return;
        }
        if before.is_some() {
            self.news
                .push((Level::Info, format!("replica {id}: the engine can say how its container is again")));
        }
        if replica.doomed && replica.deploy.is_none() {
            match up.or(unclear.map(|(container, _)| container)) {
                Some(up) if replica.stop.is_some() => {
                    let container = up.id.clone();
                    replica.enter(Phase::Stopping(container, None, now), tick);
                }
                Some(_) | None => replica.enter(Phase::Clearing(Step::Look(tick)), tick),
            }
            return;
        }
        if let Some(deploy) = &mut replica.deploy {
            match up {
                Some(up) if up.deploy == deploy.id && !replica.doomed => {
                    replica.enter(Phase::Running(up.id.clone(), Sight::Ask(now)), tick);
                    let requests = replica.deploy.take().map(|deploy| deploy.requests).unwrap_or_default();
                    self.believe_labels(now, id, containers);
                    self.tell_running(now, id, requests, None);
                }
                Some(_) | None => {
                    deploy.refusal.get_or_insert_with(|| (interrupted(), now));
                    replica.doomed = true;
                    replica.enter(Phase::Clearing(Step::Look(tick)), tick);
                }
            }
            self.disk.dirty();
            return;
        }
        self.believe_labels(now, id, containers);
        let Some(replica) = self.replicas.get_mut(id) else { return };
        let ended = containers.iter().find_map(|c| match c.status {
            ListedStatus::Exited(code) => Some((c, code)),
            ListedStatus::Created | ListedStatus::Up | ListedStatus::Unclear(_) => None,
        });
        match (up, ended) {
            (Some(up), _) => {
                replica.hash.clone_from(&up.spec);
                replica.deploy_id.clone_from(&up.deploy);
                // It runs: what a record says was told was another's end.
                replica.exit_told = false;
                let container = up.id.clone();
                replica.enter(Phase::Running(container.clone(), Sight::Ask(now)), tick);
                self.remove_strays(&container, containers, out);
                self.answer_next(now, id);
            }
            (None, Some((ended, code))) => {
                if ended.deploy != replica.deploy_id {
                    // The record is older than this container: what it says was told was another's end.
                    replica.exit_told = false;
                    replica.hash.clone_from(&ended.spec);
                    replica.deploy_id.clone_from(&ended.deploy);
                }
                let container = ended.id.clone();
                self.exited(now, id, &container, Exit { code: Some(code), oom: None }, out);
                if self.replicas.get(id).is_some_and(|replica| replica.next.is_some()) {
                    self.enter(id, Phase::Clearing(Step::Look(tick)));
                }
            }
            (None, None) => {
                if std::mem::take(&mut replica.known) {
                    self.tell_exit(now, id, "failed", Exit { code: None, oom: None });
                }
                if let Some(replica) = self.replicas.get_mut(id) {
                    replica.doomed = true;
                    replica.enter(Phase::Clearing(Step::Look(tick)), tick);
                }
            }
        }
        self.disk.dirty();
    }

    /// A replica that was lost from sight has the GPUs of its containers' labels, not those of an older record.
    fn believe_labels(&mut self, now: Instant, id: &ReplicaId, containers: &[Listed]) {
        let Some(replica) = self.replicas.get_mut(id) else { return };
        if containers.is_empty() {
            return;
        }
        replica.gpus.retain(|gpu| containers.iter().any(|container| container.gpus.contains(gpu)));
        if self.gpus.free(id, &replica.gpus, self.node.hardware_readings) {
            self.node.want_hardware(now);
        }
    }

    /// A deploy that came while it was not known whether the replica runs, and now it does.
    fn answer_next(&mut self, now: Instant, id: &ReplicaId) {
        let Some(replica) = self.replicas.get_mut(id) else { return };
        let Some(next) = replica.next.take() else { return };
        if same_spec(&replica.hash, &next.hash) {
            self.tell_running(now, id, next.requests, None);
        } else {
            self.tell_failed(now, id, &next, &Refusal::conflict(id));
        }
    }

    /// Removes what carries a running replica's label, never ran, and is not its container.
    fn remove_strays(&mut self, container: &ContainerId, containers: &[Listed], out: &mut Vec<Action>) {
        for stray in containers {
            let asked = |purpose: &Purpose| matches!(purpose, Purpose::Stray(id) if *id == stray.id);
            if stray.id != *container
                && stray.status == ListedStatus::Created
                && !self.jobs.values().any(asked)
            {
                self.submit(Job::Remove(stray.id.clone()), Purpose::Stray(stray.id.clone()), out);
            }
        }
    }

    /// A listing that began after a replica was to go: removes what it shows, or concludes.
    fn clear(&mut self, now: Instant, id: &ReplicaId, containers: &[Listed], out: &mut Vec<Action>) {
        let orphaned = self.is_orphaned(id);
        let Some(replica) = self.replicas.get_mut(id) else { return };
        if orphaned {
            // A call of an earlier process may still make a container: nothing is proven before it is over.
            replica.enter(Phase::Orphaned(now + CONDEMNED_PATIENCE), self.tick);
            return;
        }
        let Some(first) = containers.first() else {
            self.gone(now, id);
            return;
        };
        if !replica.doomed && containers.iter().any(|c| c.status == ListedStatus::Up) {
            // It ended and its time of keeping is over, but someone started it again.
            replica.enter(Phase::Unverified, self.tick);
            return;
        }
        if replica.paused != replica.removals {
            // It was asked for before, and something is still there: not at once again.
            replica.paused = replica.removals;
            let pause = REMOVE_PAUSE_FIRST * 2u32.pow(replica.removals.min(8));
            replica.phase = Phase::Clearing(Step::Pause(now + pause.min(REMOVE_PAUSE_MAX)));
            return;
        }
        let job = self.submit(Job::Remove(first.id.clone()), Purpose::Replica(id.clone()), out);
        self.enter(id, Phase::Clearing(Step::Remove(job)));
    }

    /// The engine cannot be asked: failures whose containers cannot be proven gone are told all the same.
    fn tell_what_cannot_be_proven(&mut self, now: Instant) {
        let ids: Vec<ReplicaId> = self.replicas.keys().cloned().collect();
        for id in ids {
            let Some(replica) = self.replicas.get_mut(&id) else { continue };
            if matches!(replica.phase, Phase::Clearing(_)) && replica.stop.is_none() {
                self.tell_failure_early(now, &id);
            }
        }
    }

    pub(super) fn tell_failure_early(&mut self, now: Instant, id: &ReplicaId) {
        let Some(replica) = self.replicas.get_mut(id) else { return };
        if let Some(deploy) = replica.deploy.take() {
            match &deploy.refusal {
                Some((refusal, _)) => self.tell_failed(now, id, &deploy, refusal),
                None => replica.deploy = Some(deploy),
            }
        }
    }
}

fn interrupted() -> Refusal {
    Refusal::new(Code::Interrupted, "the agent was ended before the deploy was done")
}
