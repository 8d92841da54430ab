//! One replica's state as values, and which combinations of them are legal.
//!
//! ```text
//!            deploy                  image missing
//!   (none) ────────► Queued ─► Starting ◄────────► Pulling
//!                                 │ │ name taken
//!                                 │ └──► ResolvingNameConflict ─► Starting (with a suffix)
//!              result `running`   ▼
//!                              Running ─── the process ends ──► Exited ── retention ──┐
//!                                 │ stop                                              │
//!                                 ▼                                                   ▼
//!                              Stopping ──────────────────────────────────────────► Removing ─► (none)
//!   any failure, cancel ────────────────────────────────────────────────────────────▲
//! ```
//! `Removing` looks up the containers by label, removes each by its full ID and looks again; it ends only when a
//! listing that began afterwards shows none. `Unverified` replicas come from the record of an earlier process and
//! wait for the first listing; those `AwaitingLeftoverCall` wait for a CLI call that outlived that process.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use super::commands::{CommandClass, OnDeploy, on_deploy, same_spec};
use super::outcome::{Exit, Refusal, Report};
use super::{Promised, STOP_TIMEOUT};
use crate::core::cx::Cx;
use crate::core::gpus::Claimed;
use crate::core::job::{Failure, JobId};
use crate::core::persistence::DurableBarrier;
use crate::core::timers::ReplicaTimes;
use crate::protocol::Pull;
use crate::types::{ContainerId, HostPort, PciAddress, RegistryAuth, ReplicaId, RequestId, Spec};

/// How much longer than its timeout a stop may take before it is reported as failed.
const STOP_MARGIN: Duration = Duration::from_secs(60);
/// How long a failure is withheld until its containers are proven gone.
const REMOVAL_TIMEOUT: Duration = Duration::from_secs(10);

/// A deploy whose outcome is not decided, or not reported.
#[derive(Debug, Clone)]
pub(crate) struct Deploy {
    /// Names the attempt: the value of the container's label.
    pub(crate) id: String,
    /// Everyone who gets the outcome. `None`: a deploy without a request ID.
    pub(crate) requests: Vec<Option<RequestId>>,
    /// The specification's keyed hash.
    pub(crate) spec_hash: String,
    /// What to run; `None` when it comes from the record of an earlier process, which holds no secrets.
    pub(crate) work: Option<Work>,
    /// When it was accepted.
    pub(crate) accepted: Instant,
    /// When it fails with `timeout`.
    pub(crate) deadline: Instant,
    /// Opens when it is recorded.
    pub(crate) barrier: DurableBarrier,
    /// The image was pulled for it.
    pub(crate) pulled: bool,
    /// How many names were found to be taken by a container that does not exist.
    pub(crate) name_conflicts: u32,
    /// It failed, for this reason, at this time; reported once its containers are gone.
    pub(crate) failure: Option<(Refusal, Instant)>,
}

impl Deploy {
    /// One that an earlier process accepted.
    pub(crate) fn recovered(
        now: Instant,
        deadline: Instant,
        id: String,
        spec_hash: String,
        requests: Vec<Option<RequestId>>,
    ) -> Self {
        Self {
            id,
            requests,
            spec_hash,
            work: None,
            accepted: now,
            deadline,
            barrier: DurableBarrier::OPEN,
            pulled: false,
            name_conflicts: 0,
            failure: None,
        }
    }

    /// Its failure, to be reported to everyone who waits for its outcome.
    pub(super) fn failed(self, now: Instant, refusal: Refusal) -> Report {
        let took = now.saturating_duration_since(self.accepted);
        Report::Failed { requests: self.requests, spec_hash: self.spec_hash, refusal, took }
    }
}

/// What a deploy needs to be carried out.
#[derive(Debug, Clone)]
pub(crate) struct Work {
    pub(crate) spec: Spec,
    pub(crate) auth: Option<RegistryAuth>,
    pub(crate) pull: Pull,
    /// The GPUs that it has claimed.
    pub(crate) gpus: Claimed,
    /// Containers that ended with the host, and are kept.
    pub(crate) ended_by_reboot: BTreeSet<ContainerId>,
}

/// A stop whose outcome is not reported.
#[derive(Debug, Clone)]
pub(crate) struct Stop {
    /// Everyone who gets the outcome.
    pub(crate) requests: Vec<Option<RequestId>>,
    /// How long the container has to end after SIGTERM.
    pub(crate) timeout: Duration,
    /// When it is reported as failed.
    pub(crate) deadline: Instant,
    /// Opens when it is recorded.
    pub(crate) barrier: DurableBarrier,
}

impl Stop {
    pub(crate) fn new(now: Instant, timeout: Duration, barrier: DurableBarrier) -> Self {
        Self { requests: Vec::new(), timeout, deadline: now + Self::total_timeout(timeout), barrier }
    }

    /// How long a stop may take in all.
    pub(crate) fn total_timeout(timeout: Duration) -> Duration {
        timeout + STOP_MARGIN
    }
}

/// How the end of a running container is noticed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ExitWatch {
    /// Not yet: its process is asked for at this time.
    InspectAt(Instant),
    Inspecting(JobId),
    /// Its process is watched, and asked for once more: the process ID may have been used again meanwhile.
    Verifying(JobId, i32),
    Armed,
    /// It cannot be watched: the slow listing covers it.
    Unsupported,
    /// Its process ended; the engine is asked at this time, for the n-th time.
    ConfirmAt(Instant, u32),
    Confirming(JobId, u32),
    /// The engine had no task for it: asked once more at this time before the task counts as lost.
    NoTaskAt(Instant),
    ConfirmingNoTask(JobId),
}

/// How far the stop of a container is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum StopCall {
    /// Waits for its record to be on disk.
    AwaitingRecord(DurableBarrier),
    /// The engine did not answer: called again at this time.
    RetryAt(Instant),
    Called(JobId),
}

/// How far the removal of a replica's containers is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Removal {
    pub(crate) step: RemovalStep,
    /// Removals asked for.
    pub(crate) attempts: u32,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum RemovalStep {
    /// Waits for a listing that began at or after this tick.
    AwaitingListing(u64),
    /// The same, right after a removal: should something be there still, there is a pause first.
    Proving(u64),
    Called(JobId),
    PauseUntil(Instant),
}

/// The state of a replica.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum ReplicaState {
    /// Whether its container runs is not known, and a listing decides: an earlier process recorded it, or the engine
    /// could not say. `Some`: what the engine says instead of the container's state, as long as it cannot tell that.
    Unverified(Option<String>),
    /// A CLI call of an earlier process is at work on it, until this time at most.
    AwaitingLeftoverCall(Instant),
    /// Accepted; waits for its record, then for a slot, GPUs, memory and ports.
    Queued,
    Pulling(JobId),
    Starting(JobId),
    /// The container's name is taken, says this failure: its holder is being inspected.
    ResolvingNameConflict(JobId, Failure),
    Running(ContainerId, ExitWatch),
    /// It ended without a stop; its container is kept for its log until this time.
    Exited(ContainerId, Exit, Instant),
    Stopping(ContainerId, StopCall),
    Removing(Removal),
}

/// What is wanted of a replica.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Desired {
    Present,
    /// Stopped, cancelled or failed: it is to go.
    Absent,
}

/// What the control plane was last told of a replica: tells news from repetition.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Reported {
    Nothing,
    /// The control plane counts on it: should it go missing, that is reported.
    Running,
    Exited,
    /// Its microVM ended, or the host was rebooted.
    Failed,
}

/// A replica. It alone writes its state, in [`Replica::apply`].
///
/// Legal combinations, checked after each change in debug builds:
///
/// | state | desired | deploy | stop | successor |
/// |---|---|---|---|---|
/// | Unverified, AwaitingLeftoverCall | any | any | only when absent | any |
/// | Queued | present | with work | no | no |
/// | Pulling, Starting, ResolvingNameConflict | present | with work | no | no |
/// | the same | absent: cancelled | failed, until that is reported | any | any |
/// | Running, Exited | present | no | no | no |
/// | Stopping | absent | no | any | any |
/// | Removing | absent, or present: what ended gives way | failed, until that is reported | only when absent | any |
#[derive(Debug, Clone)]
pub(crate) struct Replica {
    pub(super) id: ReplicaId,
    pub(super) state: ReplicaState,
    /// The tick at which the state last changed: a listing that began before says nothing about it.
    pub(super) changed_at: u64,
    pub(super) desired: Desired,
    pub(super) reported: Reported,
    /// The deploy whose outcome is awaited.
    pub(super) deploy: Option<Deploy>,
    /// The deploy that starts when everything of this one is gone.
    pub(super) successor: Option<Deploy>,
    /// The stop whose outcome is awaited.
    pub(super) stop: Option<Stop>,
    /// The hash of the specification that it runs.
    pub(super) spec_hash: String,
    /// The deploy that started it.
    pub(super) deploy_id: String,
    /// The GPUs that it holds.
    pub(super) gpus: Vec<PciAddress>,
    /// The host's ports that it publishes since it left the queue.
    pub(super) ports: Vec<HostPort>,
    /// The memory limit that its deploy asked for, in MiB; 0: none.
    pub(super) memory_mib: u64,
    /// The stop timeout that its deploy asked for.
    pub(super) stop_timeout: Option<Duration>,
    /// Its containers were not proven gone by its stop's deadline: their shims are ended.
    pub(super) ends_shims: bool,
    /// The host was booted anew since it was last known to run.
    pub(super) rebooted: bool,
}

/// Which command an outcome is awaited of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Awaited {
    Deploy,
    Successor,
}

impl Replica {
    /// A replica in `state`, of which nothing else is known.
    pub(crate) fn bare(id: ReplicaId, state: ReplicaState, tick: u64) -> Self {
        Self {
            id,
            state,
            changed_at: tick,
            desired: Desired::Present,
            reported: Reported::Nothing,
            deploy: None,
            successor: None,
            stop: None,
            spec_hash: String::new(),
            deploy_id: String::new(),
            gpus: Vec::new(),
            ports: Vec::new(),
            memory_mib: 0,
            stop_timeout: None,
            ends_shims: false,
            rebooted: false,
        }
    }

    /// The host was booted anew since this was recorded.
    pub(crate) fn after_reboot(mut self) -> Self {
        self.rebooted = true;
        self
    }

    /// A replica that only a container's label, or a call's, names.
    pub(crate) fn unknown(id: ReplicaId) -> Self {
        Self::bare(id, ReplicaState::Unverified(None), 0)
    }

    /// A replica that is to be started.
    pub(crate) fn queued(id: ReplicaId, deploy: Deploy, stop_timeout: Option<Duration>, tick: u64) -> Self {
        let mut replica = Self::bare(id, ReplicaState::Queued, tick);
        replica.stop_timeout = stop_timeout;
        replica.expect(deploy);
        replica
    }

    /// What follows a replica that is gone: a deploy that waited behind it. One of an earlier process runs, or was
    /// interrupted.
    pub(super) fn succeed(self, tick: u64) -> Option<Self> {
        let next = self.successor?;
        if next.work.is_some() {
            return Some(Self::queued(self.id, next, self.stop_timeout, tick));
        }
        let mut begun = Self::bare(self.id, ReplicaState::Unverified(None), 0);
        begun.stop_timeout = self.stop_timeout;
        begun.expect(next);
        Some(begun)
    }

    /// Makes `deploy` the one whose outcome is awaited.
    pub(crate) fn expect(&mut self, deploy: Deploy) {
        self.spec_hash.clone_from(&deploy.spec_hash);
        self.deploy_id.clone_from(&deploy.id);
        self.memory_mib = deploy.work.as_ref().and_then(|work| work.spec.memory_mib).unwrap_or(0);
        self.deploy = Some(deploy);
    }

    pub(super) fn enter(&mut self, cx: &Cx, state: ReplicaState) {
        self.rebooted &= !matches!(state, ReplicaState::Running(..));
        self.state = state;
        self.changed_at = cx.tick;
    }

    pub(crate) fn id(&self) -> &ReplicaId {
        &self.id
    }

    pub(crate) fn gpus(&self) -> &[PciAddress] {
        &self.gpus
    }

    /// Whether this port of the host is its own. The engine takes back those of a container that has ended.
    pub(crate) fn publishes(&self, port: HostPort) -> bool {
        !matches!(self.state, ReplicaState::Exited(..)) && self.ports.contains(&port)
    }

    pub(crate) fn deploy_id(&self) -> &str {
        &self.deploy_id
    }

    /// The deploy whose outcome is awaited.
    pub(crate) fn deploy(&self) -> Option<&Deploy> {
        self.deploy.as_ref()
    }

    /// The ID of the deploy that waits behind it.
    pub(crate) fn successor_id(&self) -> Option<&str> {
        self.successor.as_ref().map(|next| next.id.as_str())
    }

    /// The container that runs.
    pub(crate) fn running(&self) -> Option<&ContainerId> {
        if let ReplicaState::Running(container, _) = &self.state { Some(container) } else { None }
    }

    /// The container that a log can be read from.
    pub(crate) fn container(&self) -> Option<&ContainerId> {
        if let ReplicaState::Running(container, _)
        | ReplicaState::Exited(container, ..)
        | ReplicaState::Stopping(container, _) = &self.state
        {
            Some(container)
        } else {
            None
        }
    }

    /// What it has of the host's memory.
    pub(crate) fn promised(&self) -> Promised {
        match &self.state {
            ReplicaState::Queued | ReplicaState::Exited(..) => Promised::default(),
            ReplicaState::Unverified(_)
            | ReplicaState::AwaitingLeftoverCall(_)
            | ReplicaState::Pulling(_)
            | ReplicaState::Starting(_)
            | ReplicaState::ResolvingNameConflict(..)
            | ReplicaState::Running(..)
            | ReplicaState::Stopping(..)
            | ReplicaState::Removing(_) => Promised { replicas: 1, memory_mib: self.memory_mib },
        }
    }

    pub(crate) fn exit(&self) -> Option<Exit> {
        if let ReplicaState::Exited(_, exit, _) = &self.state { Some(*exit) } else { None }
    }

    /// Whether it takes one of the slots for starts. A pull takes none: a registry that never answers holds up
    /// no start.
    pub(crate) fn is_starting(&self) -> bool {
        matches!(self.state, ReplicaState::Starting(_) | ReplicaState::ResolvingNameConflict(..))
    }

    /// Whether its image is being pulled.
    pub(crate) fn is_pulling(&self) -> bool {
        matches!(self.state, ReplicaState::Pulling(_))
    }

    /// Whether it is on its way out, with its GPUs.
    pub(crate) fn is_leaving(&self) -> bool {
        matches!(self.class(), CommandClass::Leaving { .. } | CommandClass::Exited)
    }

    /// Whether its containers are to be removed, and no removal has come back yet.
    pub(super) fn awaits_first_removal(&self) -> bool {
        matches!(&self.state, ReplicaState::Removing(removal) if removal.attempts == 0)
    }

    /// Whether it waits for a listing.
    pub(crate) fn needs_listing(&self) -> bool {
        let looks = |step| matches!(step, RemovalStep::AwaitingListing(_) | RemovalStep::Proving(_));
        // One whose state the engine could not tell is listed again after a pause.
        matches!(&self.state, ReplicaState::Unverified(None))
            || matches!(&self.state, ReplicaState::Removing(removal) if looks(removal.step))
    }

    /// What the engine says instead of its container's state, while it cannot tell that.
    pub(crate) fn unclear(&self) -> Option<&str> {
        if let ReplicaState::Unverified(unclear) = &self.state { unclear.as_deref() } else { None }
    }

    /// The barrier that its stop waits at.
    pub(crate) fn awaited_record(&self) -> Option<DurableBarrier> {
        if let ReplicaState::Stopping(_, StopCall::AwaitingRecord(barrier)) = &self.state {
            Some(*barrier)
        } else {
            None
        }
    }

    /// What the command tables tell apart.
    pub(crate) fn class(&self) -> CommandClass {
        let leaving = CommandClass::Leaving { successor: self.successor.is_some() };
        if self.desired == Desired::Absent {
            return leaving;
        }
        match &self.state {
            ReplicaState::Queued
            | ReplicaState::Pulling(_)
            | ReplicaState::Starting(_)
            | ReplicaState::ResolvingNameConflict(..) => CommandClass::Coming,
            ReplicaState::Running(..) => CommandClass::Running,
            ReplicaState::Exited(..) => CommandClass::Exited,
            ReplicaState::Stopping(..) | ReplicaState::Removing(_) => leaving,
            ReplicaState::Unverified(_) | ReplicaState::AwaitingLeftoverCall(_) if self.deploy.is_some() => {
                CommandClass::Coming
            }
            // Whether it runs is known after the next listing.
            ReplicaState::Unverified(_) | ReplicaState::AwaitingLeftoverCall(_) => leaving,
        }
    }

    /// The word for the state on the wire.
    pub(crate) fn status(&self) -> &'static str {
        match &self.state {
            ReplicaState::Unverified(_) | ReplicaState::AwaitingLeftoverCall(_) => "unknown",
            ReplicaState::Pulling(_) => "pulling",
            ReplicaState::Queued | ReplicaState::Starting(_) | ReplicaState::ResolvingNameConflict(..) => {
                "starting"
            }
            ReplicaState::Running(
                _,
                ExitWatch::ConfirmAt(..)
                | ExitWatch::Confirming(..)
                | ExitWatch::NoTaskAt(_)
                | ExitWatch::ConfirmingNoTask(_),
            ) => "unknown",
            ReplicaState::Running(..) => "running",
            ReplicaState::Exited(_, exit, _) => exit.status(),
            ReplicaState::Stopping(..) => "stopping",
            ReplicaState::Removing(_) if self.failure().is_some() => "failed",
            ReplicaState::Removing(_) => "stopping",
        }
    }

    pub(super) fn failure(&self) -> Option<&(Refusal, Instant)> {
        self.deploy.as_ref()?.failure.as_ref()
    }

    /// The job that the state waits for.
    pub(crate) fn job(&self) -> Option<JobId> {
        match &self.state {
            ReplicaState::Pulling(job)
            | ReplicaState::Starting(job)
            | ReplicaState::ResolvingNameConflict(job, _)
            | ReplicaState::Running(
                _,
                ExitWatch::Inspecting(job)
                | ExitWatch::Verifying(job, _)
                | ExitWatch::Confirming(job, _)
                | ExitWatch::ConfirmingNoTask(job),
            )
            | ReplicaState::Stopping(_, StopCall::Called(job)) => Some(*job),
            ReplicaState::Removing(Removal { step: RemovalStep::Called(job), .. }) => Some(*job),
            ReplicaState::Unverified(_)
            | ReplicaState::AwaitingLeftoverCall(_)
            | ReplicaState::Queued
            | ReplicaState::Running(..)
            | ReplicaState::Exited(..)
            | ReplicaState::Stopping(..)
            | ReplicaState::Removing(_) => None,
        }
    }

    /// Its points in time, for the timer table: the one place that says when something about it is due.
    pub(crate) fn timers(&self, containers_known: bool) -> ReplicaTimes {
        let state = match &self.state {
            ReplicaState::AwaitingLeftoverCall(at)
            | ReplicaState::Running(
                _,
                ExitWatch::InspectAt(at) | ExitWatch::ConfirmAt(at, _) | ExitWatch::NoTaskAt(at),
            )
            | ReplicaState::Exited(_, _, at)
            | ReplicaState::Stopping(_, StopCall::RetryAt(at)) => Some(*at),
            ReplicaState::Removing(Removal { step: RemovalStep::PauseUntil(at), .. }) => Some(*at),
            ReplicaState::Queued => self.deploy.as_ref().map(|deploy| deploy.deadline),
            ReplicaState::Unverified(_)
            | ReplicaState::Pulling(_)
            | ReplicaState::Starting(_)
            | ReplicaState::ResolvingNameConflict(..)
            | ReplicaState::Running(..)
            | ReplicaState::Stopping(..)
            | ReplicaState::Removing(_) => None,
        };
        let stop = self.stop.as_ref().map(|stop| stop.deadline);
        let failure =
            self.failure().filter(|_| self.stop.is_none()).map(|(_, since)| *since + REMOVAL_TIMEOUT);
        // One of an earlier process is not given up as long as it may have been begun.
        let may_expire = |next: &&Deploy| next.work.is_some() || containers_known;
        let successor = self.successor.as_ref().filter(may_expire).map(|next| next.deadline);
        [successor, stop, failure, state]
    }

    /// Whether the outcome of this request is awaited.
    pub(crate) fn awaits_request(&self, request: Option<&RequestId>) -> bool {
        let known = |requests: &[Option<RequestId>]| requests.iter().any(|known| known.as_ref() == request);
        self.deploy.as_ref().is_some_and(|deploy| known(&deploy.requests))
            || self.successor.as_ref().is_some_and(|next| known(&next.requests))
            || self.stop.as_ref().is_some_and(|stop| known(&stop.requests))
    }

    /// Whether a deploy that arrives is one whose outcome is awaited here already: one that failed and is being
    /// removed too. Without a request ID, one that follows a stop is another.
    pub(crate) fn awaits_deploy(&self, request: Option<&RequestId>, spec_hash: &str) -> bool {
        let known = |deploy: &&Deploy| deploy.requests.iter().any(|known| known.as_ref() == request);
        let deploy = self.deploy.as_ref().filter(known);
        let next = self.successor.as_ref().filter(known);
        match request {
            Some(_) => deploy.is_some() || next.is_some(),
            None => {
                let equal = |deploy: &Deploy| same_spec(&deploy.spec_hash, spec_hash);
                self.stop.is_none() && deploy.is_some_and(equal) || next.is_some_and(equal)
            }
        }
    }

    /// The requests that wait for the outcome of a deploy.
    pub(crate) fn requests(&self, of: Awaited) -> &[Option<RequestId>] {
        let deploy = match of {
            Awaited::Deploy => self.deploy.as_ref(),
            Awaited::Successor => self.successor.as_ref(),
        };
        deploy.map_or(&[], |deploy| &deploy.requests)
    }

    /// The requests that wait for the outcome of a stop.
    pub(crate) fn stop_requests(&self) -> &[Option<RequestId>] {
        self.stop.as_ref().map_or(&[], |stop| &stop.requests)
    }

    /// How many results are still to be reported.
    pub(crate) fn owed(&self) -> usize {
        let deploys = self.requests(Awaited::Deploy).len() + self.requests(Awaited::Successor).len();
        deploys + self.stop_requests().len()
    }

    /// What a deploy with this specification means now.
    pub(crate) fn on_deploy(&self, spec_hash: &str) -> OnDeploy {
        let same = same_spec(&self.spec_hash, spec_hash);
        let same_next = self.successor.as_ref().is_some_and(|next| same_spec(&next.spec_hash, spec_hash));
        on_deploy(self.class(), same, same_next)
    }

    /// How long its container has to end after SIGTERM, where the stop does not say.
    pub(super) fn stop_timeout(&self) -> Duration {
        self.stop_timeout.unwrap_or(STOP_TIMEOUT)
    }

    /// Why the combination is not legal; see the type.
    pub(crate) fn illegal(&self) -> Option<&'static str> {
        let present = self.desired == Desired::Present;
        if present && self.stop.is_some() {
            return Some("a stop is awaited of one that is to stay");
        }
        if present && self.failure().is_some() {
            return Some("a deploy failed and is to stay");
        }
        match &self.state {
            ReplicaState::Unverified(_) | ReplicaState::AwaitingLeftoverCall(_) => None,
            ReplicaState::Queued if !present => Some("one that is to go is queued"),
            ReplicaState::Queued
            | ReplicaState::Pulling(_)
            | ReplicaState::Starting(_)
            | ReplicaState::ResolvingNameConflict(..) => {
                let works = self.deploy.as_ref().is_some_and(|deploy| deploy.work.is_some());
                if present && !works {
                    Some("nothing is known of what is being started")
                } else if present && self.successor.is_some() {
                    Some("a deploy waits behind one that is on its way up")
                } else {
                    None
                }
            }
            ReplicaState::Running(..) | ReplicaState::Exited(..) => {
                if !present {
                    Some("one that is to go runs or has exited")
                } else if self.owed() > 0 {
                    Some("an outcome is awaited of one that runs or has exited")
                } else {
                    None
                }
            }
            ReplicaState::Stopping(..) if present => Some("one that is to stay is stopped"),
            ReplicaState::Stopping(..) if self.deploy.is_some() => Some("a deploy that runs is awaited"),
            ReplicaState::Stopping(..) => None,
            ReplicaState::Removing(_) => (self.deploy.is_some() && self.failure().is_none())
                .then_some("what is removed belongs to a deploy that did not fail"),
        }
    }
}
