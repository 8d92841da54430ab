//! What moves a replica from one state to the next: commands, outcomes of its jobs, its timers, its process's end.
//!
//! [`Replica::apply`] is the only way in. It changes nothing but the replica; what follows for others comes back as
//! [`Effect`]s.

use std::time::{Duration, Instant};

use super::reconcile::Shown;
use super::state::{
    Awaited, Code, CommandClass, Deploy, Desired, Exit, ExitWatch, OnStop, Refusal, Removal, RemovalStep,
    Replica, ReplicaState, Report, Reported, Stop, StopCall, on_stop,
};
use crate::core::Action;
use crate::core::cx::{Cx, JobOwner};
use crate::core::gpus::Claimed;
use crate::core::job::{
    Failure, FailureKind, Inspected, InspectedState, Job, JobId, LABEL_DEPLOY, LABEL_GPUS, LABEL_NODE,
    LABEL_REPLICA, LABEL_SPEC, Outcome, PullJob, RunJob,
};
use crate::core::persistence::DurableBarrier;
use crate::core::timers::ReplicaTimer;
use crate::protocol::Pull;
use crate::types::{ContainerId, NodeId, PciAddress, ReplicaId, RequestId};

/// How long after a failed question to the engine about one container it is asked again.
pub(super) const INSPECT_RETRY: Duration = Duration::from_secs(5);
/// The engine learns of an exit a little after the kernel: it is asked again after this, then after twice as long.
const CONFIRM_FIRST: Duration = Duration::from_millis(20);
/// How often it is asked before its word stands against the kernel's.
const CONFIRM_TRIES: u32 = 8;
/// How many names held by a container that does not exist are passed over.
const NAME_CONFLICTS_MAX: u32 = 3;

/// What can happen to a replica.
#[derive(Debug)]
pub(crate) enum Input<'a> {
    /// A `stop`. The barrier opens when it is recorded.
    Stop { request: Option<RequestId>, timeout: Option<Duration>, barrier: DurableBarrier },
    /// A deploy that starts when everything of this one is gone.
    Succeed { deploy: Box<Deploy>, stop_timeout: Option<Duration> },
    /// One more request waits for a deploy's outcome.
    Join { request: Option<RequestId>, of: Awaited },
    /// A deploy of what runs already.
    AlreadyRuns(Option<RequestId>),
    /// It leaves the queue, with these GPUs.
    Admitted(Claimed),
    /// It leaves the queue, and is not started.
    NotAdmitted(Refusal),
    /// What it waits for is on disk, or is waited for no longer.
    Durable,
    /// A job came back.
    Outcome(JobId, Outcome),
    /// One of its slots in the timer table is due.
    Timer(ReplicaTimer),
    /// The process that stands for its container ended.
    ProcessEnded,
    /// That process cannot be watched.
    Unwatchable,
    /// Another replica needs the GPUs of this one, which has ended.
    GiveWay,
    /// A listing came back: what it shows of this replica.
    Listed(&'a Shown<'a>),
    /// The first look at what an earlier process left: which deploy is what is there?
    Recovered(&'a Shown<'a>),
    /// A container or call of this replica carries these GPUs in its label.
    Labelled(Vec<PciAddress>),
    /// A GPU is another replica's, says the label of a container.
    LosesGpu(PciAddress),
    /// The engine cannot be asked: nothing can be proven gone.
    EngineSilent,
    /// No call of an earlier process is at work on it any more.
    LeftoverCallsOver,
    /// The agent ends: what has not begun is not begun.
    Shutdown,
}

/// What follows from an input for others.
#[derive(Debug, PartialEq)]
pub(crate) enum Effect {
    /// An outcome for the control plane.
    Report(Report),
    /// News of the way up for the control plane.
    Progress(&'static str),
    /// The state file is to be saved.
    Save,
    /// A container of ours was started.
    Started(ContainerId),
    /// Of its GPUs, these alone are still its own.
    KeepsGpus(Vec<PciAddress>),
    /// A container that carries its label, never ran, and is not its container is to be removed.
    RemoveLeftover(ContainerId),
    /// The containers are to be listed at this time at the latest.
    ListAgain(Instant),
    /// Calls of an earlier process that are at work on it are to be ended.
    EndLeftoverCalls,
    /// Everything of it is proven gone: it is no more.
    Gone,
}

/// What a replica needs to know of the node to be started.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Surroundings<'a> {
    pub(crate) node: Option<&'a NodeId>,
    /// Why no image may be pulled.
    pub(crate) too_little_space: Option<&'a Refusal>,
}

/// The input's context: everything that a transition may use.
pub(super) struct Step<'a> {
    pub(super) cx: &'a mut Cx,
    pub(super) around: Surroundings<'a>,
    pub(super) effects: Vec<Effect>,
}

impl Step<'_> {
    pub(super) fn effect(&mut self, effect: Effect) {
        self.effects.push(effect);
    }

    pub(super) fn report(&mut self, report: Report) {
        self.effect(Effect::Report(report));
    }

    fn job(&mut self, id: &ReplicaId, job: Job) -> JobId {
        self.cx.start_job(job, JobOwner::Replica(id.clone()))
    }
}

impl Replica {
    /// Takes an input; says what follows for others.
    pub(crate) fn apply(&mut self, cx: &mut Cx, around: Surroundings<'_>, input: Input<'_>) -> Vec<Effect> {
        let mut step = Step { cx, around, effects: Vec::new() };
        let s = &mut step;
        match input {
            Input::Stop { request, timeout, barrier } => self.on_stop(s, request, timeout, barrier),
            Input::Succeed { deploy, stop_timeout } => self.on_successor(s, *deploy, stop_timeout),
            Input::Join { request, of } => self.on_join(s, request, of),
            Input::AlreadyRuns(request) => self.report_running(s, vec![request], None),
            Input::Admitted(gpus) => self.on_admitted(s, gpus),
            Input::NotAdmitted(refusal) => self.not_started(s, refusal),
            Input::Durable => self.on_durable(s),
            Input::Outcome(job, outcome) if self.job() == Some(job) => self.on_outcome(s, outcome),
            Input::Outcome(..) => {}
            Input::Timer(timer) => self.on_timer(s, timer),
            Input::ProcessEnded => self.confirm_exit(s),
            Input::Unwatchable => {
                if let ReplicaState::Running(_, watch) = &mut self.state
                    && matches!(watch, ExitWatch::Verifying(..) | ExitWatch::Armed)
                {
                    *watch = ExitWatch::Unsupported;
                }
            }
            Input::GiveWay => {
                if matches!(self.state, ReplicaState::Exited(..)) && !self.gpus.is_empty() {
                    self.remove(s);
                }
            }
            Input::Listed(shown) => self.on_listed(s, shown),
            Input::Recovered(shown) => self.on_recovered(s, shown),
            Input::Labelled(gpus) => {
                for gpu in gpus {
                    if !self.gpus.contains(&gpu) {
                        self.gpus.push(gpu);
                    }
                }
            }
            Input::LosesGpu(gpu) => self.gpus.retain(|held| *held != gpu),
            Input::EngineSilent => {
                if matches!(self.state, ReplicaState::Removing(_)) && self.stop.is_none() {
                    self.report_failure(s);
                }
            }
            Input::LeftoverCallsOver => {
                if matches!(self.state, ReplicaState::AwaitingLeftoverCall(_)) {
                    self.enter(s.cx, ReplicaState::Unverified(None));
                }
            }
            Input::Shutdown => self.on_shutdown(s),
        }
        step.effects
    }

    fn on_stop(
        &mut self,
        s: &mut Step<'_>,
        request: Option<RequestId>,
        timeout: Option<Duration>,
        barrier: DurableBarrier,
    ) {
        let meaning = on_stop(self.class());
        let now = s.cx.now;
        let timeout = timeout.unwrap_or(self.stop_timeout());
        let first = self.stop.is_none();
        let stop = self.stop.get_or_insert_with(|| Stop::new(now, timeout, barrier));
        if !stop.requests.contains(&request) {
            stop.requests.push(request);
        }
        self.desired = Desired::Absent;
        if let ReplicaState::AwaitingLeftoverCall(until) = &mut self.state {
            *until = (*until).min(now + timeout);
        }
        match meaning {
            OnStop::Gone => {}
            OnStop::Cancel => {
                if let Some(deploy) = &mut self.deploy {
                    deploy.work = None;
                    deploy.failure = Some((Refusal::cancelled(), now));
                }
                match self.state {
                    ReplicaState::Queued => s.effect(Effect::Gone),
                    // Pulling leaves nothing of the container behind; a `run` may as well finish and be removed.
                    ReplicaState::Pulling(job) => s.cx.act(Action::CancelJob(job)),
                    ReplicaState::Unverified(_)
                    | ReplicaState::AwaitingLeftoverCall(_)
                    | ReplicaState::Starting(_)
                    | ReplicaState::ResolvingNameConflict(..)
                    | ReplicaState::Running(..)
                    | ReplicaState::Exited(..)
                    | ReplicaState::Stopping(..)
                    | ReplicaState::Removing(_) => {}
                }
            }
            OnStop::Stop => {
                if let ReplicaState::Running(container, _) = &self.state {
                    let container = container.clone();
                    s.cx.act(Action::Unwatch(container.clone()));
                    self.enter(s.cx, ReplicaState::Stopping(container, StopCall::AwaitingRecord(barrier)));
                }
            }
            OnStop::Remove => self.remove(s),
            OnStop::Join => {
                if !first && let Some(stop) = &mut self.stop {
                    stop.deadline = stop.deadline.max(now + timeout);
                }
                if let Some(next) = self.successor.take() {
                    s.report(next.failed(now, Refusal::cancelled()));
                }
            }
        }
    }

    fn on_successor(&mut self, s: &mut Step<'_>, deploy: Deploy, stop_timeout: Option<Duration>) {
        self.successor = Some(deploy);
        self.stop_timeout = stop_timeout;
        if matches!(self.state, ReplicaState::Exited(..)) {
            self.remove(s);
        }
    }

    fn on_join(&mut self, s: &mut Step<'_>, request: Option<RequestId>, of: Awaited) {
        let deploy = match of {
            Awaited::Deploy => self.deploy.as_mut(),
            Awaited::Successor => self.successor.as_mut(),
        };
        if let Some(deploy) = deploy {
            deploy.requests.push(request);
            s.effect(Effect::Save);
        }
    }

    fn on_admitted(&mut self, s: &mut Step<'_>, gpus: Claimed) {
        let Some(work) = self.deploy.as_mut().and_then(|deploy| deploy.work.as_mut()) else { return };
        let always = work.pull == Pull::Always;
        if !gpus.is_empty() {
            self.gpus = gpus.iter().map(|(address, _)| *address).collect();
            work.gpus = gpus;
            s.effect(Effect::Save);
        }
        if always {
            self.pull(s);
        } else {
            self.run(s);
        }
    }

    /// A deploy that was never started failed: there is nothing to remove.
    fn not_started(&mut self, s: &mut Step<'_>, refusal: Refusal) {
        self.fail(s.cx.now, refusal);
        s.effect(Effect::Gone);
    }

    fn on_shutdown(&mut self, s: &mut Step<'_>) {
        let refusal = || Refusal::new(Code::Interrupted, "the agent was ended before the deploy was started");
        if matches!(self.state, ReplicaState::Queued) {
            self.not_started(s, refusal());
        } else if let Some(next) = self.successor.take_if(|next| next.work.is_some()) {
            // One of an earlier process may run: the next process will see.
            s.report(next.failed(s.cx.now, refusal()));
        }
    }

    fn on_durable(&mut self, s: &mut Step<'_>) {
        if let ReplicaState::Stopping(container, StopCall::AwaitingRecord(_)) = &self.state {
            let container = container.clone();
            self.call_stop(s, container);
        }
    }

    /// Calls `stop`. One whose failure was reported is still carried out.
    fn call_stop(&mut self, s: &mut Step<'_>, container: ContainerId) {
        let timeout = self.stop.as_ref().map_or(self.stop_timeout(), |stop| stop.timeout);
        let job = s.job(&self.id, Job::Stop(container.clone(), timeout));
        self.enter(s.cx, ReplicaState::Stopping(container, StopCall::Called(job)));
    }

    fn on_timer(&mut self, s: &mut Step<'_>, timer: ReplicaTimer) {
        let now = s.cx.now;
        match timer {
            ReplicaTimer::Successor => {
                if let Some(next) = self.successor.take() {
                    let late = "the container before it was not gone in time";
                    s.report(next.failed(now, Refusal::new(Code::Timeout, late)));
                }
            }
            ReplicaTimer::Stop => {
                if let Some(stop) = self.stop.take() {
                    self.report_failure(s);
                    let late = "it was not proven gone in time; its removal goes on";
                    let refusal = Some(Refusal::new(Code::Timeout, late));
                    s.report(Report::Stopped { requests: stop.requests, refusal });
                }
            }
            ReplicaTimer::Failure => self.report_failure(s),
            ReplicaTimer::State => self.on_state_timer(s),
        }
    }

    fn on_state_timer(&mut self, s: &mut Step<'_>) {
        match self.state.clone() {
            ReplicaState::Queued => {
                let late = "no place to start it came free before its deadline";
                self.not_started(s, Refusal::new(Code::Timeout, late));
            }
            ReplicaState::Running(container, ExitWatch::InspectAt(_)) => {
                let job = s.job(&self.id, Job::Inspect(container));
                self.watch(ExitWatch::Inspecting(job));
            }
            ReplicaState::Running(container, ExitWatch::ConfirmAt(_, tries)) => {
                let job = s.job(&self.id, Job::Inspect(container));
                self.watch(ExitWatch::Confirming(job, tries));
            }
            ReplicaState::Running(container, ExitWatch::NoTaskAt(_)) => {
                let job = s.job(&self.id, Job::Inspect(container));
                self.watch(ExitWatch::ConfirmingNoTask(job));
            }
            ReplicaState::Stopping(container, StopCall::RetryAt(_)) => self.call_stop(s, container),
            ReplicaState::Exited(..) => {
                self.remove(s);
                s.effect(Effect::Save);
            }
            ReplicaState::Removing(Removal { step: RemovalStep::PauseUntil(_), attempts }) => {
                let step = RemovalStep::AwaitingListing(s.cx.tick);
                self.enter(s.cx, ReplicaState::Removing(Removal { step, attempts }));
            }
            ReplicaState::AwaitingLeftoverCall(_) => {
                self.state = ReplicaState::AwaitingLeftoverCall(s.cx.now + INSPECT_RETRY);
                // Reported even if the call cannot be ended; what it makes after all is removed.
                if let Some(deploy) = &mut self.deploy {
                    let late = "a call of an earlier process did not end in time";
                    deploy.failure.get_or_insert_with(|| (Refusal::new(Code::Timeout, late), s.cx.now));
                    self.desired = Desired::Absent;
                    s.effect(Effect::Save);
                }
                s.effect(Effect::EndLeftoverCalls);
            }
            ReplicaState::Unverified(_)
            | ReplicaState::Pulling(_)
            | ReplicaState::Starting(_)
            | ReplicaState::ResolvingNameConflict(..)
            | ReplicaState::Running(..)
            | ReplicaState::Stopping(..)
            | ReplicaState::Removing(_) => {}
        }
    }

    fn on_outcome(&mut self, s: &mut Step<'_>, outcome: Outcome) {
        let leaving = matches!(self.class(), CommandClass::Leaving { .. });
        match (self.state.clone(), outcome) {
            (ReplicaState::Starting(_), Outcome::Ran(Ok(container))) => {
                s.effect(Effect::Started(container.clone()));
                if leaving {
                    self.remove(s);
                } else {
                    self.started(s, container);
                }
            }
            (
                ReplicaState::Starting(_)
                | ReplicaState::Pulling(_)
                | ReplicaState::ResolvingNameConflict(..),
                _,
            ) if leaving => self.remove(s),
            (ReplicaState::Starting(_), Outcome::Ran(Err(failure))) => self.run_failed(s, failure),
            (ReplicaState::ResolvingNameConflict(_, failure), Outcome::Inspected(result)) => match result {
                Ok(None) if self.takes_next_name() => self.run(s),
                Ok(_) | Err(_) => self.fail_started(s, Refusal::from_failure(failure, false)),
            },
            (ReplicaState::Pulling(_), Outcome::Pulled(Ok(()))) => {
                if let Some(deploy) = &mut self.deploy {
                    deploy.pulled = true;
                }
                self.run(s);
            }
            (ReplicaState::Pulling(_), Outcome::Pulled(Err(failure))) => {
                self.fail_started(s, Refusal::from_failure(failure, true));
            }
            (ReplicaState::Running(container, watch), Outcome::Inspected(result)) => {
                self.inspected(s, container, watch, result);
            }
            // Nothing can be removed either; the container still gets its time when the engine is back.
            (
                ReplicaState::Stopping(container, _),
                Outcome::Stopped(Err(Failure { kind: FailureKind::Unavailable, .. })),
            ) => {
                let at = s.cx.now + INSPECT_RETRY;
                self.enter(s.cx, ReplicaState::Stopping(container, StopCall::RetryAt(at)));
            }
            (ReplicaState::Stopping(..), Outcome::Stopped(Ok(()) | Err(_))) => self.remove(s),
            (ReplicaState::Removing(Removal { step: RemovalStep::Called(_), attempts }), _) => {
                let removal = Removal { step: RemovalStep::Proving(s.cx.tick), attempts: attempts + 1 };
                self.enter(s.cx, ReplicaState::Removing(removal));
            }
            // An outcome of another kind than its job's cannot come about; the state stands.
            (
                ReplicaState::Unverified(_)
                | ReplicaState::AwaitingLeftoverCall(_)
                | ReplicaState::Queued
                | ReplicaState::Pulling(_)
                | ReplicaState::Starting(_)
                | ReplicaState::ResolvingNameConflict(..)
                | ReplicaState::Running(..)
                | ReplicaState::Exited(..)
                | ReplicaState::Stopping(..)
                | ReplicaState::Removing(_),
                _,
            ) => {}
        }
    }

    fn started(&mut self, s: &mut Step<'_>, container: ContainerId) {
        let now = s.cx.now;
        self.enter(s.cx, ReplicaState::Running(container, ExitWatch::InspectAt(now)));
        self.reported = Reported::Running;
        if let Some(deploy) = self.deploy.take() {
            let took = now.saturating_duration_since(deploy.accepted);
            self.report_running(s, deploy.requests, Some(took));
        }
    }

    fn run_failed(&mut self, s: &mut Step<'_>, failure: Failure) {
        let Some(deploy) = &self.deploy else { return };
        let may_pull = !deploy.pulled && deploy.work.as_ref().is_some_and(|work| work.pull != Pull::Never);
        match failure.kind {
            FailureKind::NoImage if may_pull => self.pull(s),
            FailureKind::NameTaken if let Some(holder) = name_holder(&failure.message) => {
                let job = s.job(&self.id, Job::Inspect(holder));
                self.enter(s.cx, ReplicaState::ResolvingNameConflict(job, failure));
            }
            FailureKind::NameReserved if self.takes_next_name() => self.run(s),
            FailureKind::NoImage
            | FailureKind::ImageRefused
            | FailureKind::NameTaken
            | FailureKind::NameReserved
            | FailureKind::Unavailable
            | FailureKind::Deadline
            | FailureKind::NoSuchContainer
            | FailureKind::Impossible
            | FailureKind::PullRefused(_)
            | FailureKind::Refused => self.fail_started(s, Refusal::from_failure(failure, false)),
        }
    }

    /// A name is held by no container: passes it over, unless too many were.
    fn takes_next_name(&mut self) -> bool {
        let Some(deploy) = &mut self.deploy else { return false };
        deploy.name_conflicts += 1;
        deploy.name_conflicts <= NAME_CONFLICTS_MAX
    }

    fn fail(&mut self, now: Instant, refusal: Refusal) {
        if let Some(deploy) = &mut self.deploy {
            deploy.work = None;
            deploy.failure = Some((refusal, now));
        }
        self.desired = Desired::Absent;
    }

    /// The deploy failed: reported once its containers are gone.
    fn fail_started(&mut self, s: &mut Step<'_>, refusal: Refusal) {
        self.fail(s.cx.now, refusal);
        self.remove(s);
        s.effect(Effect::Save);
    }

    /// Removes what is there of it, beginning with a listing that starts from now on.
    pub(super) fn remove(&mut self, s: &mut Step<'_>) {
        let step = RemovalStep::AwaitingListing(s.cx.tick);
        self.enter(s.cx, ReplicaState::Removing(Removal { step, attempts: 0 }));
    }

    fn pull(&mut self, s: &mut Step<'_>) {
        if let Some(refusal) = s.around.too_little_space {
            let refusal = refusal.clone();
            self.fail_started(s, refusal);
            return;
        }
        let Some((deploy, deadline)) = self.time_left(s) else { return };
        let Some(work) = &deploy.work else { return };
        let job = PullJob { image: work.spec.image.clone(), auth: work.auth.clone(), deadline };
        let job = s.job(&self.id, Job::Pull(Box::new(job)));
        self.enter(s.cx, ReplicaState::Pulling(job));
        s.effect(Effect::Progress("pulling"));
    }

    fn run(&mut self, s: &mut Step<'_>) {
        let id = self.id.clone();
        let Some((deploy, deadline)) = self.time_left(s) else { return };
        let Some(work) = &deploy.work else { return };
        let mut labels = vec![
            (LABEL_REPLICA, id.to_string()),
            (LABEL_DEPLOY, deploy.id.clone()),
            (LABEL_SPEC, deploy.spec_hash.clone()),
        ];
        if !work.gpus.is_empty() {
            let addresses: Vec<String> = work.gpus.iter().map(|(address, _)| address.to_string()).collect();
            labels.push((LABEL_GPUS, addresses.join("+")));
        }
        if let Some(node) = s.around.node {
            labels.push((LABEL_NODE, label_value(node.as_str())));
        }
        let name = match deploy.name_conflicts {
            0 => format!("replica-{id}"),
            n => format!("replica-{id}-{}", n + 1),
        };
        let (spec, gpus) = (work.spec.clone(), work.gpus.clone());
        let job = RunJob { replica: id.clone(), name, spec, labels, gpus, deadline };
        let job = s.job(&id, Job::Run(Box::new(job)));
        self.enter(s.cx, ReplicaState::Starting(job));
        s.effect(Effect::Progress("starting"));
    }

    /// The deploy and how much of its time is left. Where none is, it fails.
    fn time_left(&mut self, s: &mut Step<'_>) -> Option<(&Deploy, Duration)> {
        let left = self.deploy.as_ref()?.deadline.saturating_duration_since(s.cx.now);
        if left.is_zero() {
            let late = "its deadline passed before it could be started";
            self.fail_started(s, Refusal::new(Code::Timeout, late));
            return None;
        }
        self.deploy.as_ref().map(|deploy| (deploy, left))
    }

    pub(super) fn watch(&mut self, new: ExitWatch) {
        if let ReplicaState::Running(_, watch) = &mut self.state {
            *watch = new;
        }
    }

    /// Its container seems to have ended: the engine is asked.
    pub(super) fn confirm_exit(&mut self, s: &Step<'_>) {
        self.watch(ExitWatch::ConfirmAt(s.cx.now, 0));
    }

    /// The engine said how a running container is.
    fn inspected(
        &mut self,
        s: &mut Step<'_>,
        container: ContainerId,
        watch: ExitWatch,
        result: Result<Option<Inspected>, Failure>,
    ) {
        let again = s.cx.now + INSPECT_RETRY;
        let new = match (result, watch) {
            (Ok(None), _) => {
                self.vanished(s, container);
                return;
            }
            (Ok(Some(Inspected { state: InspectedState::Exited(code), oom_killed })), _) => {
                self.exited(s, container, Exit { code: Some(code), oom: oom_killed });
                return;
            }
            // The task is lost, by a reboot of the host: how it ended is not known. Believed when it is said twice,
            // since what follows is the container's removal.
            (Ok(Some(Inspected { state: InspectedState::NoTask, .. })), ExitWatch::ConfirmingNoTask(_)) => {
                self.exited(s, container, Exit { code: None, oom: None });
                return;
            }
            (Ok(Some(Inspected { state: InspectedState::NoTask, .. })), _) => ExitWatch::NoTaskAt(again),
            (Ok(Some(Inspected { state: InspectedState::Running(pid), .. })), watch) => match (watch, pid) {
                (ExitWatch::Confirming(_, tries), _) if tries < CONFIRM_TRIES => {
                    ExitWatch::ConfirmAt(s.cx.now + CONFIRM_FIRST * 2u32.pow(tries), tries + 1)
                }
                (ExitWatch::Confirming(..), _) => ExitWatch::InspectAt(again),
                (ExitWatch::Verifying(_, before), Some(pid)) if pid == before => ExitWatch::Armed,
                (_, Some(pid)) => {
                    s.cx.act(Action::Watch(container.clone(), pid));
                    ExitWatch::Verifying(s.job(&self.id, Job::Inspect(container)), pid)
                }
                (_, None) => ExitWatch::Unsupported,
            },
            (Ok(Some(Inspected { state: InspectedState::Unclear(said), .. })), _) => {
                self.lost_from_sight(s, &container, &said);
                return;
            }
            (
                Err(Failure { kind: FailureKind::Deadline | FailureKind::Refused, message }),
                ExitWatch::Confirming(..) | ExitWatch::ConfirmingNoTask(_),
            ) => {
                self.lost_from_sight(s, &container, &message);
                return;
            }
            (Err(_), ExitWatch::Confirming(_, tries)) => ExitWatch::ConfirmAt(again, tries),
            (Err(_), ExitWatch::ConfirmingNoTask(_)) => ExitWatch::NoTaskAt(again),
            (Err(_), _) => ExitWatch::InspectAt(again),
        };
        self.watch(new);
    }

    /// The engine cannot say how a container is that ran: nothing is reported or removed, and the listings that follow
    /// decide.
    fn lost_from_sight(&mut self, s: &mut Step<'_>, container: &ContainerId, said: &str) {
        self.reported = Reported::Running;
        self.enter(s.cx, ReplicaState::Unverified(None));
        self.unclear_again(s, container, said, None);
        s.effect(Effect::Save);
    }

    /// Notes why a replica's state is not known, and lists again before long. `before`: why it was not known until now.
    pub(super) fn unclear_again(
        &mut self,
        s: &mut Step<'_>,
        container: &ContainerId,
        said: &str,
        before: Option<String>,
    ) {
        let short = container.short();
        if before.is_none() {
            s.cx.warn(format!(
                "replica {}: the engine cannot say whether container {short} runs: {said}; it is left as it is and asked \
                 about again",
                self.id
            ));
        }
        // The first message stays: what follows is often less to the point, and each change would be reported.
        let unclear = before.unwrap_or_else(|| format!("container {short}: {said}"));
        self.state = ReplicaState::Unverified(Some(unclear));
        s.effect(Effect::ListAgain(s.cx.now + INSPECT_RETRY));
    }

    pub(super) fn exited(&mut self, s: &mut Step<'_>, container: ContainerId, exit: Exit) {
        s.cx.act(Action::Unwatch(container.clone()));
        let until = s.cx.now + s.cx.settings.retention;
        self.enter(s.cx, ReplicaState::Exited(container, exit, until));
        if self.reported != Reported::Exited {
            self.reported = Reported::Exited;
            s.report(Report::Exited(exit));
        }
        s.effect(Effect::Save);
    }

    /// Its container is no more, and nobody here removed it. Another of its containers may still be there: looked up
    /// before anything is concluded.
    fn vanished(&mut self, s: &mut Step<'_>, container: ContainerId) {
        s.cx.act(Action::Unwatch(container));
        s.report(Report::Vanished);
        self.reported = Reported::Nothing;
        self.enter(s.cx, ReplicaState::Unverified(None));
        s.effect(Effect::Save);
    }

    pub(super) fn report_running(
        &self,
        s: &mut Step<'_>,
        requests: Vec<Option<RequestId>>,
        took: Option<Duration>,
    ) {
        s.report(Report::Running {
            requests,
            spec_hash: self.spec_hash.clone(),
            container: self.running().cloned(),
            gpus: self.gpus.clone(),
            took,
        });
    }

    /// Reports a deploy's failure, if it failed, whether its containers are gone or not.
    fn report_failure(&mut self, s: &mut Step<'_>) {
        let Some((refusal, _)) = self.failure().cloned() else { return };
        if let Some(deploy) = self.deploy.take() {
            s.report(deploy.failed(s.cx.now, refusal));
        }
    }

    /// What is still owed when everything of it is gone.
    pub(super) fn last_reports(&mut self, now: Instant) -> Vec<Report> {
        let mut reports = Vec::new();
        if let Some(deploy) = self.deploy.take()
            && let Some((refusal, _)) = deploy.failure.clone()
        {
            reports.push(deploy.failed(now, refusal));
        }
        if let Some(stop) = self.stop.take() {
            reports.push(Report::Stopped { requests: stop.requests, refusal: None });
        }
        reports
    }
}

/// The ID of the container that holds a name, in the engine's message about it.
fn name_holder(message: &str) -> Option<ContainerId> {
    message.split(|c: char| !c.is_ascii_alphanumeric()).find_map(|word| ContainerId::new(word).ok())
}

/// `text` with what a label's value may not have replaced.
fn label_value(text: &str) -> String {
    text.chars().map(|c| if matches!(c, ',' | '=' | '\n' | '"') { '_' } else { c }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::replica::Work;
    use crate::types::{ImageRef, Spec};

    const NOWHERE: Surroundings<'static> = Surroundings { node: None, too_little_space: None };

    fn queued(cx: &Cx) -> Replica {
        let spec = Spec::new(ImageRef::new("img:a").unwrap());
        let work = Work { spec, auth: None, pull: Pull::Missing, gpus: Vec::new() };
        let deadline = cx.now + Duration::from_secs(900);
        let deploy = Deploy::recovered(cx.now, deadline, "d".into(), "k.1".into(), vec![None]);
        let deploy = Deploy { work: Some(work), ..deploy };
        Replica::queued(ReplicaId::new("r").unwrap(), deploy, None, cx.tick)
    }

    fn apply(replica: &mut Replica, cx: &mut Cx, input: Input<'_>) -> Vec<Effect> {
        let effects = replica.apply(cx, NOWHERE, input);
        if !effects.contains(&Effect::Gone) {
            assert_eq!(replica.illegal(), None, "{replica:?}");
        }
        effects
    }

    fn stop() -> Input<'static> {
        Input::Stop { request: None, timeout: None, barrier: DurableBarrier::OPEN }
    }

    fn container() -> ContainerId {
        ContainerId::new(&"a".repeat(64)).unwrap()
    }

    fn failure(kind: FailureKind) -> Failure {
        Failure { kind, message: String::new() }
    }

    fn outcome(replica: &mut Replica, cx: &mut Cx, outcome: Outcome) -> Vec<Effect> {
        let job = replica.job().expect("a job is under way");
        apply(replica, cx, Input::Outcome(job, outcome))
    }

    fn running(cx: &mut Cx) -> Replica {
        let mut replica = queued(cx);
        apply(&mut replica, cx, Input::Admitted(Vec::new()));
        let effects = outcome(&mut replica, cx, Outcome::Ran(Ok(container())));
        assert!(matches!(&effects[1], Effect::Report(Report::Running { took: Some(_), .. })), "{effects:?}");
        replica
    }

    #[test]
    fn an_image_that_is_missing_is_pulled_once() {
        let mut cx = Cx::example();
        let mut replica = queued(&cx);
        let effects = apply(&mut replica, &mut cx, Input::Admitted(Vec::new()));
        assert_eq!(effects, [Effect::Progress("starting")]);
        outcome(&mut replica, &mut cx, Outcome::Ran(Err(failure(FailureKind::NoImage))));
        assert_eq!(replica.status(), "pulling");
        outcome(&mut replica, &mut cx, Outcome::Pulled(Ok(())));
        assert_eq!(replica.status(), "starting");
        outcome(&mut replica, &mut cx, Outcome::Ran(Err(failure(FailureKind::NoImage))));
        assert_eq!((replica.status(), replica.owed()), ("failed", 1));
    }

    #[test]
    fn a_stop_before_the_start_cancels_in_each_state() {
        let mut cx = Cx::example();
        let mut replica = queued(&cx);
        assert_eq!(apply(&mut replica, &mut cx, stop()), [Effect::Gone]);
        assert_eq!(replica.last_reports(cx.now).len(), 2, "the deploy's failure and the stop");

        let mut replica = queued(&cx);
        apply(&mut replica, &mut cx, Input::Admitted(Vec::new()));
        apply(&mut replica, &mut cx, stop());
        outcome(&mut replica, &mut cx, Outcome::Ran(Ok(container())));
        assert!(replica.needs_listing(), "what was started after all is removed");
    }

    #[test]
    fn a_stop_waits_for_its_record_and_then_gives_the_container_its_time() {
        let mut cx = Cx::example();
        let mut replica = running(&mut cx);
        apply(&mut replica, &mut cx, stop());
        assert_eq!((replica.awaited_record(), replica.job()), (Some(DurableBarrier::OPEN), None));
        apply(&mut replica, &mut cx, Input::Durable);
        assert!(replica.job().is_some() && replica.awaited_record().is_none());
        outcome(&mut replica, &mut cx, Outcome::Stopped(Err(failure(FailureKind::Unavailable))));
        let [_, deadline, _, again] = replica.timers(true);
        assert_eq!(again, Some(cx.now + INSPECT_RETRY), "called again when the engine may be back");
        assert!(deadline > again);
    }

    #[test]
    fn an_exit_is_confirmed_by_the_engine_and_reported_once() {
        let mut cx = Cx::example();
        let mut replica = running(&mut cx);
        apply(&mut replica, &mut cx, Input::ProcessEnded);
        assert_eq!(replica.status(), "unknown");
        apply(&mut replica, &mut cx, Input::Timer(ReplicaTimer::State));
        let inspected = Inspected { state: InspectedState::Exited(3), oom_killed: None };
        let effects = outcome(&mut replica, &mut cx, Outcome::Inspected(Ok(Some(inspected))));
        let exit = Exit { code: Some(3), oom: None };
        assert_eq!(effects, [Effect::Report(Report::Exited(exit)), Effect::Save]);
        let [.., retention] = replica.timers(true);
        assert_eq!(retention, Some(cx.now + cx.settings.retention));
    }

    #[test]
    fn outcomes_of_other_jobs_change_nothing() {
        let mut cx = Cx::example();
        let mut replica = running(&mut cx);
        let before = replica.state.clone();
        assert!(apply(&mut replica, &mut cx, Input::Outcome(JobId(99), Outcome::Stopped(Ok(())))).is_empty());
        assert_eq!(replica.state, before);
    }
}
