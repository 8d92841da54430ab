//! What is done in each state of a replica: commands and outcomes move it (`deploy`, `stop`, `outcome`, `listed`),
//! and `Core::drive` derives from the state alone what must be under way.

use std::time::{Duration, Instant};

use super::commands::STOP_TIMEOUT;
use super::gpus::Denied;
use super::job::{
    Failure, FailureKind, Inspected, InspectedState, Job, JobId, LABEL_DEPLOY, LABEL_GPUS, LABEL_NODE,
    LABEL_REPLICA, LABEL_SPEC, Outcome, PullJob, RunJob,
};
use super::replica::{Code, Exit, Phase, Refusal, Replica, Sight, Stage, Step};
use super::{Action, Core, Level, Purpose};
use crate::protocol::Pull;
use crate::types::{ContainerId, ReplicaId};

/// How long a failure is kept back for its containers to be proven gone.
pub const CLEAR_PATIENCE: Duration = Duration::from_secs(10);
/// How long after a failed question to the engine about one container it is asked again.
pub(super) const ASK_AGAIN: Duration = Duration::from_secs(5);
/// The engine learns of an exit a little after the kernel: it is asked again after this, then after twice as long.
const CONFIRM_FIRST: Duration = Duration::from_millis(20);
/// How often it is asked before its word stands against the kernel's.
const CONFIRM_TRIES: u32 = 8;
/// How long after a claim that had to wait the GPUs are looked at again.
const GPU_READING_PAUSE: Duration = Duration::from_secs(1);
/// A claim goes by a reading of the GPUs that is not older than this.
const GPU_READING_AGE: Duration = Duration::from_secs(5);
/// How many names held by a container that does not exist are passed over.
const GHOSTS_MAX: u32 = 3;

impl Core {
    /// A job came back.
    pub(super) fn outcome(&mut self, now: Instant, job: JobId, outcome: Outcome, out: &mut Vec<Action>) {
        let Some(purpose) = self.jobs.remove(&job) else { return };
        self.evidence(now, &outcome);
        match (purpose, outcome) {
            (Purpose::List(began), Outcome::Listed(result)) => self.listed(now, began, result, out),
            (Purpose::Logs { replica, request }, Outcome::Logs(result)) => {
                self.tell_logs(&replica, request.as_ref(), result, out);
            }
            (Purpose::Replica(id), outcome) => {
                if self.replicas.get(&id).and_then(Replica::job) == Some(job) {
                    self.replica_outcome(now, &id, outcome, out);
                }
            }
            (Purpose::List(_), _) => self.listing_over(now, false),
            (Purpose::Images, Outcome::Images(result)) => self.room_answer(now, job, Some(result), out),
            (Purpose::Images, _) => self.room_answer(now, job, None, out),
            (Purpose::Guest(id), Outcome::GuestUse(result)) => self.guest_answer(now, id, result.ok(), out),
            (Purpose::Probe | Purpose::Stray(_) | Purpose::Logs { .. } | Purpose::Guest(_), _) => {}
        }
    }

    fn replica_outcome(&mut self, now: Instant, id: &ReplicaId, outcome: Outcome, out: &mut Vec<Action>) {
        let tick = self.tick;
        let Some(replica) = self.replicas.get_mut(id) else { return };
        let doomed = matches!(replica.stage(), Stage::Going { .. });
        match (replica.phase.clone(), outcome) {
            (Phase::Starting(_), Outcome::Ran(Ok(container))) => {
                self.ours.see(&container, tick);
                if doomed {
                    replica.enter(Phase::Clearing(Step::Look(tick)), tick);
                    return;
                }
                replica.enter(Phase::Running(container.clone(), Sight::Ask(now)), tick);
                if let Some(deploy) = replica.deploy.take() {
                    let took = now.saturating_duration_since(deploy.accepted);
                    self.tell_running(now, id, deploy.requests, Some(took));
                }
            }
            (Phase::Starting(_), Outcome::Ran(Err(failure))) => {
                if doomed {
                    replica.enter(Phase::Clearing(Step::Look(tick)), tick);
                } else {
                    self.run_failed(now, id, failure, out);
                }
            }
            (Phase::Naming(_, failure), Outcome::Inspected(result)) => {
                if doomed {
                    replica.enter(Phase::Clearing(Step::Look(tick)), tick);
                    return;
                }
                match (&mut replica.deploy, result) {
                    (Some(deploy), Ok(None)) if deploy.ghosts < GHOSTS_MAX => {
                        deploy.ghosts += 1;
                        self.run(now, id, out);
                    }
                    (_, Ok(_) | Err(_)) => {
                        self.fail(now, id, Refusal::from_failure(failure, false));
                    }
                }
            }
            (Phase::Pulling(_), Outcome::Pulled(result)) => match result {
                _ if doomed => replica.enter(Phase::Clearing(Step::Look(tick)), tick),
                Ok(()) => {
                    if let Some(deploy) = &mut replica.deploy {
                        deploy.pulled = true;
                    }
                    self.run(now, id, out);
                }
                Err(failure) => self.fail(now, id, Refusal::from_failure(failure, true)),
            },
            (Phase::Running(container, sight), Outcome::Inspected(result)) => {
                self.looked_at(now, id, &container, sight, result, out);
            }
            (Phase::Stopping(container, ..), Outcome::Stopped(result)) => {
                match result {
                    // Nothing can be removed either; the container still gets its time when the engine is back.
                    Err(Failure { kind: FailureKind::Unavailable, .. }) => {
                        replica.enter(Phase::Stopping(container, None, now + ASK_AGAIN), tick);
                    }
                    Ok(()) | Err(_) => replica.enter(Phase::Clearing(Step::Look(tick)), tick),
                }
            }
            (Phase::Clearing(Step::Remove(_)), _) => {
                replica.removals += 1;
                replica.enter(Phase::Clearing(Step::Look(tick)), tick);
            }
            // An outcome of another kind than its job's cannot come about; the state stands.
            (
                Phase::Unverified
                | Phase::Orphaned(_)
                | Phase::Queued
                | Phase::Pulling(_)
                | Phase::Starting(_)
                | Phase::Naming(..)
                | Phase::Running(..)
                | Phase::Exited(..)
                | Phase::Stopping(..)
                | Phase::Clearing(_),
                _,
            ) => {}
        }
    }

    fn run_failed(&mut self, now: Instant, id: &ReplicaId, failure: Failure, out: &mut Vec<Action>) {
        let Some(replica) = self.replicas.get_mut(id) else { return };
        let Some(deploy) = &mut replica.deploy else { return };
        let may_pull = !deploy.pulled && deploy.work.as_ref().is_some_and(|work| work.pull != Pull::Never);
        match failure.kind {
            FailureKind::NoImage if may_pull => self.pull(now, id, out),
            FailureKind::NameTaken if let Some(holder) = holder(&failure.message) => {
                let job = self.submit(Job::Inspect(holder), Purpose::Replica(id.clone()), out);
                self.enter(id, Phase::Naming(job, failure));
            }
            FailureKind::NameReserved if deploy.ghosts < GHOSTS_MAX => {
                deploy.ghosts += 1;
                self.run(now, id, out);
            }
            FailureKind::NoImage
            | FailureKind::ImageRefused
            | FailureKind::NameTaken
            | FailureKind::NameReserved
            | FailureKind::Unavailable
            | FailureKind::Deadline
            | FailureKind::NoSuchContainer
            | FailureKind::Impossible
            | FailureKind::PullRefused(_)
            | FailureKind::Refused => self.fail(now, id, Refusal::from_failure(failure, false)),
        }
    }

    /// The deploy failed: it is told so once its containers are gone.
    pub(super) fn fail(&mut self, now: Instant, id: &ReplicaId, refusal: Refusal) {
        let tick = self.tick;
        if let Some(replica) = self.replicas.get_mut(id) {
            if let Some(deploy) = &mut replica.deploy {
                deploy.work = None;
                deploy.refusal = Some((refusal, now));
            }
            replica.doomed = true;
            replica.enter(Phase::Clearing(Step::Look(tick)), tick);
        }
        self.disk.dirty();
    }

    fn pull(&mut self, now: Instant, id: &ReplicaId, out: &mut Vec<Action>) {
        if let Some(refusal) = self.node.too_little_space(self.settings.min_free_bytes) {
            self.fail(now, id, refusal);
            return;
        }
        let Some(deploy) = self.replicas.get(id).and_then(|r| r.deploy.as_ref()) else { return };
        let Some(work) = &deploy.work else { return };
        let deadline = deploy.deadline.saturating_duration_since(now);
        if deadline.is_zero() {
            self.fail(now, id, too_late());
            return;
        }
        let job = PullJob { image: work.spec.image.clone(), auth: work.auth.clone(), deadline };
        let job = self.submit(Job::Pull(Box::new(job)), Purpose::Replica(id.clone()), out);
        self.enter(id, Phase::Pulling(job));
        self.tell_progress(id, "pulling", out);
    }

    fn run(&mut self, now: Instant, id: &ReplicaId, out: &mut Vec<Action>) {
        let Some(deploy) = self.replicas.get(id).and_then(|r| r.deploy.as_ref()) else { return };
        let Some(work) = &deploy.work else { return };
        let deadline = deploy.deadline.saturating_duration_since(now);
        if deadline.is_zero() {
            self.fail(now, id, too_late());
            return;
        }
        let mut labels = vec![
            (LABEL_REPLICA, id.to_string()),
            (LABEL_DEPLOY, deploy.id.clone()),
            (LABEL_SPEC, deploy.hash.clone()),
        ];
        if !work.gpus.is_empty() {
            let addresses: Vec<String> = work.gpus.iter().map(|(address, _)| address.to_string()).collect();
            labels.push((LABEL_GPUS, addresses.join("+")));
        }
        if let Some(node) = self.session.node() {
            labels.push((LABEL_NODE, label_value(node.as_str())));
        }
        let name = match deploy.ghosts {
            0 => format!("replica-{id}"),
            n => format!("replica-{id}-{}", n + 1),
        };
        let job = RunJob {
            replica: id.clone(),
            name,
            spec: work.spec.clone(),
            labels,
            gpus: work.gpus.clone(),
            deadline,
        };
        let job = self.submit(Job::Run(Box::new(job)), Purpose::Replica(id.clone()), out);
        self.enter(id, Phase::Starting(job));
        self.tell_progress(id, "starting", out);
    }

    /// The process that stood for a container ended.
    pub(super) fn process_ended(&mut self, now: Instant, container: &ContainerId) {
        for replica in self.replicas.values_mut() {
            if let Phase::Running(running, sight) = &mut replica.phase
                && running == container
            {
                *sight = Sight::Confirm(now, 0);
            }
        }
    }

    /// The process that stands for a container cannot be watched.
    pub(super) fn unwatchable(&mut self, container: &ContainerId) {
        for replica in self.replicas.values_mut() {
            if let Phase::Running(running, sight @ (Sight::Checking(..) | Sight::Watched(_))) =
                &mut replica.phase
                && running == container
            {
                *sight = Sight::Unwatchable;
            }
        }
    }

    /// The engine said how a running container is.
    fn looked_at(
        &mut self,
        now: Instant,
        id: &ReplicaId,
        container: &ContainerId,
        sight: Sight,
        result: Result<Option<Inspected>, Failure>,
        out: &mut Vec<Action>,
    ) {
        let again = now + ASK_AGAIN;
        let new = match (result, sight) {
            (Ok(None), _) => {
                self.lost(now, id, container, out);
                return;
            }
            (Ok(Some(Inspected { state: InspectedState::Exited(code), oom_killed })), _) => {
                self.exited(now, id, container, Exit { code: Some(code), oom: oom_killed }, out);
                return;
            }
            // The task is lost, by a reboot of the host: how it ended is not known. Believed when it is said twice,
            // since what follows is the container's removal.
            (Ok(Some(Inspected { state: InspectedState::NoTask, .. })), Sight::NoTaskAgain(_)) => {
                self.exited(now, id, container, Exit { code: None, oom: None }, out);
                return;
            }
            (Ok(Some(Inspected { state: InspectedState::NoTask, .. })), _) => Sight::NoTask(again),
            (Ok(Some(Inspected { state: InspectedState::Running(pid), .. })), sight) => match (sight, pid) {
                (Sight::Confirming(_, tries), _) if tries < CONFIRM_TRIES => {
                    Sight::Confirm(now + CONFIRM_FIRST * 2u32.pow(tries), tries + 1)
                }
                (Sight::Confirming(..), _) => Sight::Ask(again),
                (Sight::Checking(_, before), Some(pid)) if pid == before => Sight::Watched(pid),
                (_, Some(pid)) => {
                    out.push(Action::Watch(container.clone(), pid));
                    let job = self.submit(Job::Inspect(container.clone()), Purpose::Replica(id.clone()), out);
                    Sight::Checking(job, pid)
                }
                (_, None) => Sight::Unwatchable,
            },
            (Ok(Some(Inspected { state: InspectedState::Unclear(said), .. })), _) => {
                self.lost_from_sight(now, id, container, said);
                return;
            }
            (
                Err(Failure { kind: FailureKind::Deadline | FailureKind::Refused, message }),
                Sight::Confirming(..) | Sight::NoTaskAgain(_),
            ) => {
                self.lost_from_sight(now, id, container, message);
                return;
            }
            (Err(_), Sight::Confirming(_, tries)) => Sight::Confirm(again, tries),
            (Err(_), Sight::NoTaskAgain(_)) => Sight::NoTask(again),
            (Err(_), _) => Sight::Ask(again),
        };
        if let Some(Replica { phase: Phase::Running(_, sight), .. }) = self.replicas.get_mut(id) {
            *sight = new;
        }
    }

    /// The engine cannot say how a container is that ran: nothing is told or removed, and the listings that follow
    /// decide.
    fn lost_from_sight(&mut self, now: Instant, id: &ReplicaId, container: &ContainerId, said: String) {
        let tick = self.tick;
        if let Some(replica) = self.replicas.get_mut(id) {
            replica.known = true;
            replica.enter(Phase::Unverified, tick);
        }
        self.unclear(now, id, container, said, None);
        self.disk.dirty();
    }

    /// Notes why a replica's state is not known, and lists again before long. `before`: why it was not known until
    /// now.
    pub(super) fn unclear(
        &mut self,
        now: Instant,
        id: &ReplicaId,
        container: &ContainerId,
        said: String,
        before: Option<String>,
    ) {
        if before.is_none() {
            self.news.push((
                Level::Warn,
                format!(
                    "replica {id}: the engine cannot say whether container {} runs: {said}; it is left as it is \
                     and asked about again",
                    container.short()
                ),
            ));
        }
        // The first words stay: what follows is often less to the point, and each change would be news.
        if let Some(replica) = self.replicas.get_mut(id) {
            replica.unclear =
                Some(before.unwrap_or_else(|| format!("container {}: {said}", container.short())));
        }
        self.engine.list_at(now + ASK_AGAIN);
    }

    pub(super) fn exited(
        &mut self,
        now: Instant,
        id: &ReplicaId,
        container: &ContainerId,
        exit: Exit,
        out: &mut Vec<Action>,
    ) {
        out.push(Action::Unwatch(container.clone()));
        let tick = self.tick;
        let Some(replica) = self.replicas.get_mut(id) else { return };
        replica.enter(Phase::Exited(container.clone(), exit, now), tick);
        if !std::mem::replace(&mut replica.exit_told, true) {
            self.tell_exit(now, id, "exited", exit);
        }
        self.disk.dirty();
    }

    /// A container that ran is no more, and nobody here removed it.
    fn lost(&mut self, now: Instant, id: &ReplicaId, container: &ContainerId, out: &mut Vec<Action>) {
        out.push(Action::Unwatch(container.clone()));
        self.tell_exit(now, id, "failed", Exit { code: None, oom: None });
        // Another of its containers may still be there: looked up before anything is concluded.
        if let Some(replica) = self.replicas.get_mut(id) {
            replica.known = false;
            replica.enter(Phase::Unverified, self.tick);
        }
        self.disk.dirty();
    }

    /// Everything of a replica is proven gone.
    pub(super) fn gone(&mut self, now: Instant, id: &ReplicaId) {
        let Some(mut replica) = self.replicas.remove(id) else { return };
        self.queue.retain(|queued| queued != id);
        if self.gpus.free(id, &[], self.node.hardware_readings) {
            self.node.want_hardware(now);
        }
        if let Some(deploy) = replica.deploy.take()
            && let Some((refusal, _)) = &deploy.refusal
        {
            self.tell_failed(now, id, &deploy, refusal);
        }
        if let Some(stop) = replica.stop.take() {
            self.tell_stopped(now, id, stop.requests, None);
        }
        if let Some(next) = replica.next.take() {
            let mut fresh = if next.work.is_some() {
                self.queue.push_back(id.clone());
                Replica::queued(id.clone(), next, self.tick)
            } else {
                // Of an earlier process: it runs, or it was interrupted.
                let mut begun = Replica::bare(id.clone(), Phase::Unverified, 0);
                begun.accept(next);
                begun
            };
            fresh.stop_timeout = replica.stop_timeout;
            self.replicas.insert(id.clone(), fresh);
        }
        self.disk.dirty();
    }

    /// Level-triggered: starts what the states call for and can be started now.
    pub(super) fn drive(&mut self, now: Instant, out: &mut Vec<Action>) {
        self.admit(now, out);
        let due: Vec<ReplicaId> = self
            .replicas
            .values()
            .filter(|r| self.due(now, r).is_some_and(|at| at <= now))
            .map(|r| r.id.clone())
            .collect();
        let tick = self.tick;
        for id in due {
            self.give_up_what_is_late(now, &id);
            let Some(replica) = self.replicas.get_mut(&id) else { continue };
            match replica.phase.clone() {
                Phase::Running(container, Sight::Ask(at)) if at <= now => {
                    let job = self.submit(Job::Inspect(container.clone()), Purpose::Replica(id.clone()), out);
                    self.see(&id, Sight::Asking(job));
                }
                Phase::Running(container, Sight::Confirm(at, tries)) if at <= now => {
                    let job = self.submit(Job::Inspect(container.clone()), Purpose::Replica(id.clone()), out);
                    self.see(&id, Sight::Confirming(job, tries));
                }
                Phase::Running(container, Sight::NoTask(at)) if at <= now => {
                    let job = self.submit(Job::Inspect(container.clone()), Purpose::Replica(id.clone()), out);
                    self.see(&id, Sight::NoTaskAgain(job));
                }
                Phase::Stopping(container, None, at) if at <= now => {
                    // One that was given up is carried out all the same.
                    let stop = replica.stop.as_ref();
                    let timeout = stop.map(|stop| stop.timeout).or(replica.stop_timeout);
                    if stop.is_none_or(|stop| self.disk.open(now, &stop.gate)) {
                        let job = Job::Stop(container.clone(), timeout.unwrap_or(STOP_TIMEOUT));
                        let job = self.submit(job, Purpose::Replica(id.clone()), out);
                        self.enter(&id, Phase::Stopping(container, Some(job), at));
                    }
                }
                Phase::Exited(_, _, since) if since + self.settings.retention <= now => {
                    replica.enter(Phase::Clearing(Step::Look(tick)), tick);
                    self.disk.dirty();
                }
                Phase::Clearing(Step::Pause(at)) if at <= now => {
                    replica.enter(Phase::Clearing(Step::Look(tick)), tick);
                }
                Phase::Orphaned(at) if at <= now => {
                    replica.phase = Phase::Orphaned(now + ASK_AGAIN);
                    // Told even if the call cannot be ended, and what it makes after all is removed.
                    if let Some(deploy) = &mut replica.deploy {
                        let late = || {
                            Refusal::new(Code::Timeout, "a call of an earlier process did not end in time")
                        };
                        deploy.refusal.get_or_insert_with(|| (late(), now));
                        replica.doomed = true;
                        self.disk.dirty();
                    }
                    let calls = self.orphans.iter().filter(|(_, call)| call.replica == id);
                    out.extend(calls.map(|(deploy, _)| Action::EndLeftoverCalls(deploy.clone())));
                }
                Phase::Unverified
                | Phase::Orphaned(_)
                | Phase::Queued
                | Phase::Pulling(_)
                | Phase::Starting(_)
                | Phase::Naming(..)
                | Phase::Running(..)
                | Phase::Exited(..)
                | Phase::Stopping(..)
                | Phase::Clearing(_) => {}
            }
        }
    }

    /// When something is to be done about a replica by itself.
    pub(super) fn due(&self, now: Instant, replica: &Replica) -> Option<Instant> {
        let by_phase = match &replica.phase {
            Phase::Running(_, Sight::Ask(at) | Sight::Confirm(at, _) | Sight::NoTask(at)) => Some(*at),
            Phase::Stopping(_, None, at) => {
                let record = replica.stop.as_ref().and_then(|stop| self.disk.opens(now, &stop.gate));
                Some(record.map_or(*at, |record| record.max(*at)))
            }
            Phase::Exited(_, _, since) => Some(*since + self.settings.retention),
            Phase::Clearing(Step::Pause(at)) | Phase::Orphaned(at) => Some(*at),
            Phase::Queued => replica.deploy.as_ref().map(|deploy| {
                self.disk.opens(now, &deploy.gate).map_or(deploy.deadline, |opens| opens.min(deploy.deadline))
            }),
            Phase::Unverified
            | Phase::Pulling(_)
            | Phase::Starting(_)
            | Phase::Naming(..)
            | Phase::Running(..)
            | Phase::Stopping(..)
            | Phase::Clearing(_) => None,
        };
        let stop = replica.stop.as_ref().map(|stop| stop.deadline);
        let refusal = match (&replica.stop, replica.deploy.as_ref().and_then(|d| d.refusal.as_ref())) {
            (None, Some((_, since))) => Some(*since + CLEAR_PATIENCE),
            (_, None) | (Some(_), _) => None,
        };
        [by_phase, stop, refusal, self.next_due(replica)].into_iter().flatten().min()
    }

    /// When the deploy that waits behind a replica is given up. One of an earlier process is not, as long as it may
    /// have been begun.
    fn next_due(&self, replica: &Replica) -> Option<Instant> {
        let next = replica.next.as_ref()?;
        (next.work.is_some() || self.table_ready).then_some(next.deadline)
    }

    /// Tells outcomes whose time is up.
    fn give_up_what_is_late(&mut self, now: Instant, id: &ReplicaId) {
        let next_due = self.replicas.get(id).and_then(|replica| self.next_due(replica));
        let Some(replica) = self.replicas.get_mut(id) else { return };
        if next_due.is_some_and(|at| at <= now)
            && let Some(next) = replica.next.take()
        {
            let refusal = Refusal::new(Code::Timeout, "the container before it was not gone in time");
            self.tell_failed(now, id, &next, &refusal);
        }
        let Some(replica) = self.replicas.get_mut(id) else { return };
        if replica.stop.as_ref().is_some_and(|stop| stop.deadline <= now)
            && let Some(stop) = replica.stop.take()
        {
            self.tell_failure_early(now, id);
            let error = "it was not proven gone in time; its removal goes on";
            self.tell_stopped(now, id, stop.requests, Some(Refusal::new(Code::Timeout, error)));
            return;
        }
        let Some(replica) = self.replicas.get_mut(id) else { return };
        let patience_over = replica
            .deploy
            .as_ref()
            .and_then(|deploy| deploy.refusal.as_ref())
            .is_some_and(|(_, since)| *since + CLEAR_PATIENCE <= now);
        if patience_over && replica.stop.is_none() {
            self.tell_failure_early(now, id);
        }
    }

    /// Starts deploys from the queue, in order, as far as there are places.
    fn admit(&mut self, now: Instant, out: &mut Vec<Action>) {
        let busy = self.replicas.values().filter(|replica| replica.is_starting()).count();
        let mut places = self.settings.workers.saturating_sub(busy);
        for id in self.queue.iter().cloned().collect::<Vec<_>>() {
            let Some(deploy) = self.replicas.get(&id).and_then(|r| r.deploy.as_ref()) else { continue };
            if deploy.deadline <= now {
                let refusal =
                    Refusal::new(Code::Timeout, "no place to start it came free before its deadline");
                self.fail_queued(now, &id, refusal);
                continue;
            }
            if places == 0 || !self.disk.open(now, &deploy.gate) {
                continue;
            }
            let Some(work) = &deploy.work else { continue };
            let count = usize::try_from(work.spec.gpu_count).unwrap_or(usize::MAX);
            let always = work.pull == Pull::Always;
            match self.claim(now, &id, count) {
                Ok(()) => {}
                Err(None) => continue,
                Err(Some(refusal)) => {
                    self.fail_queued(now, &id, refusal);
                    continue;
                }
            }
            places -= 1;
            self.queue.retain(|queued| *queued != id);
            if always {
                self.pull(now, &id, out);
            } else {
                self.run(now, &id, out);
            }
        }
    }

    /// A deploy that was never started failed: there is nothing to remove.
    pub(super) fn fail_queued(&mut self, now: Instant, id: &ReplicaId, refusal: Refusal) {
        if let Some(deploy) = self.replicas.get_mut(id).and_then(|r| r.deploy.as_mut()) {
            deploy.refusal = Some((refusal, now));
        }
        self.gone(now, id);
    }

    /// Whether a deploy is on its way to a container.
    pub(super) fn deploying(&self) -> bool {
        self.replicas.values().any(|replica| replica.deploy.is_some() || replica.is_starting())
    }

    /// Claims GPUs; `Err(None)`: not now, but soon.
    fn claim(&mut self, now: Instant, id: &ReplicaId, count: usize) -> Result<(), Option<Refusal>> {
        if count == 0 {
            return Ok(());
        }
        if !self.node.hardware_is_fresh(now, GPU_READING_AGE) {
            if let Some(why) = self.node.hardware_trouble(now) {
                return Err(Some(Refusal::new(Code::NoGpu, why)));
            }
            // How well they are is looked at before each job.
            self.node.want_hardware(now);
            return Err(None);
        }
        let replicas = &self.replicas;
        let going = |holder: &ReplicaId| {
            replicas.get(holder).is_some_and(|r| matches!(r.stage(), Stage::Going { .. } | Stage::Ended))
        };
        match self.gpus.claim(id, count, going) {
            Ok(claimed) => {
                if let Some(replica) = self.replicas.get_mut(id) {
                    replica.gpus = claimed.iter().map(|(address, _)| *address).collect();
                    if let Some(work) = replica.deploy.as_mut().and_then(|deploy| deploy.work.as_mut()) {
                        work.gpus = claimed;
                    }
                }
                self.disk.dirty();
                self.node.want_info();
                Ok(())
            }
            Err(Denied::Wait) => {
                // Containers that ended and are kept for their logs give way to one that needs their GPUs.
                let tick = self.tick;
                for replica in self.replicas.values_mut() {
                    if matches!(replica.phase, Phase::Exited(..)) && !replica.gpus.is_empty() {
                        replica.enter(Phase::Clearing(Step::Look(tick)), tick);
                    }
                }
                self.node.want_hardware(now + GPU_READING_PAUSE);
                Err(None)
            }
            Err(Denied::Short { free, total }) => Err(Some(Refusal::new(
                Code::NoGpu,
                format!("{count} GPUs asked for, {free} of {total} free"),
            ))),
        }
    }

    pub(super) fn enter(&mut self, id: &ReplicaId, phase: Phase) {
        let tick = self.tick;
        if let Some(replica) = self.replicas.get_mut(id) {
            replica.enter(phase, tick);
        }
    }

    fn see(&mut self, id: &ReplicaId, new: Sight) {
        if let Some(Replica { phase: Phase::Running(_, sight), .. }) = self.replicas.get_mut(id) {
            *sight = new;
        }
    }
}

fn too_late() -> Refusal {
    Refusal::new(Code::Timeout, "its deadline passed before it could be started")
}

/// The ID of the container that holds a name, in the engine's message about it.
fn holder(message: &str) -> Option<ContainerId> {
    message.split(|c: char| !c.is_ascii_alphanumeric()).find_map(|word| ContainerId::new(word).ok())
}

/// `text` with what a label's value may not have replaced.
fn label_value(text: &str) -> String {
    text.chars().map(|c| if matches!(c, ',' | '=' | '\n' | '"') { '_' } else { c }).collect()
}
