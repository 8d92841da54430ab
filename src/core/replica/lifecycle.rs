//! What moves a replica from one state to the next: commands, outcomes of its jobs, its timers, its process's end.
//!
//! [`Replica::apply`] is the only way in; the way up is `starting`, the watch over what runs is `watching`, and what a
//! listing means is `reconcile` and, after a restart, `recovery`. It changes nothing but the replica; what follows for others comes back as
//! [`Effect`]s.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use super::commands::{CommandClass, OnStop, on_stop};
use super::outcome::{Code, Refusal, Report};
use super::reconcile::Shown;
use super::state::{
    Awaited, Deploy, Desired, ExitWatch, Removal, RemovalStep, Replica, ReplicaState, Stop, StopCall,
};
use crate::core::Action;
use crate::core::cx::{Cx, JobOwner};
use crate::core::gpus::Claimed;
use crate::core::job::{Failure, FailureKind, Job, JobId, Outcome};
use crate::core::persistence::DurableBarrier;
use crate::core::private_images::First;
use crate::core::timers::ReplicaTimer;
use crate::types::{ContainerId, NodeId, PciAddress, ReplicaId, RequestId};

/// How long after a failed query about one container the next one follows.
pub(super) const INSPECT_RETRY: Duration = Duration::from_secs(5);

/// What can happen to a replica.
#[derive(Debug)]
pub(crate) enum Input<'a> {
    /// A `stop`. The barrier opens when it is recorded.
    Stop { request: Option<RequestId>, timeout: Option<Duration>, barrier: DurableBarrier },
    /// A deploy that starts when everything of this one is gone.
    Succeed { deploy: Box<Deploy>, stop_timeout: Option<Duration> },
    /// One more request waits for a deploy's outcome.
    Join { request: Option<RequestId>, of: Awaited },
    /// A deploy of what runs already, and what of it does not reach the container.
    AlreadyRuns(Option<RequestId>, Vec<String>),
    /// It leaves the queue with these GPUs; what it does first; the containers that a reboot ended and that are kept.
    Admitted(Claimed, First, BTreeSet<ContainerId>),
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
    /// The agent stops: deploys that have not begun do not begin.
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
    /// Everything of it is proven gone.
    Gone,
}

/// What a replica needs to know of the node to be started.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Surroundings<'a> {
    pub(crate) node: Option<&'a NodeId>,
    /// Why no image may be pulled.
    pub(crate) too_little_space: Option<&'a Refusal>,
    /// Whether containers run in microVMs.
    pub(crate) microvm: bool,
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

    pub(super) fn job(&mut self, id: &ReplicaId, job: Job) -> JobId {
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
            Input::AlreadyRuns(request, warnings) => self.report_running(s, vec![request], None, warnings),
            Input::Admitted(gpus, first, ended) => self.on_admitted(s, gpus, first, ended),
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
                self.fail(now, Refusal::cancelled());
                if let ReplicaState::Pulling(job) = self.state {
                    // It leaves nothing of the container behind. A `run` may as well finish and be removed.
                    s.cx.act(Action::CancelJob(job));
                } else if self.state == ReplicaState::Queued {
                    s.effect(Effect::Gone);
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

    /// A deploy that was never started failed: there is nothing to remove.
    fn not_started(&mut self, s: &mut Step<'_>, refusal: Refusal) {
        self.fail(s.cx.now, refusal);
        s.effect(Effect::Gone);
    }

    fn on_shutdown(&mut self, s: &mut Step<'_>) {
        let refusal = || Refusal::new(Code::Interrupted, "the agent was stopped before it began the deploy");
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
                    let late = "the previous container was not removed in time";
                    s.report(next.failed(now, Refusal::new(Code::Timeout, late)));
                }
            }
            ReplicaTimer::Stop => {
                if let Some(stop) = self.stop.take() {
                    self.report_failure(s);
                    let late = match self.state {
                        ReplicaState::Starting(_) => {
                            "its start has not ended: a guest that hangs while it boots holds it for up to dial_timeout of \
                             Kata's configuration; its shim is ended now, and the removal goes on"
                        }
                        _ => {
                            "it could not be confirmed in time that the container is gone; its removal continues"
                        }
                    };
                    self.ends_shims = true;
                    s.effect(Effect::ListAgain(s.cx.now));
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
                let late = "it was still queued at its deadline: the slot, GPUs, memory or ports that it needs did not come free";
                self.not_started(s, Refusal::new(Code::Timeout, late));
            }
            ReplicaState::Running(
                container,
                watch @ (ExitWatch::InspectAt(_) | ExitWatch::ConfirmAt(..) | ExitWatch::NoTaskAt(_)),
            ) => {
                let job = s.job(&self.id, Job::Inspect(container));
                self.watch(match watch {
                    ExitWatch::ConfirmAt(_, tries) => ExitWatch::Confirming(job, tries),
                    ExitWatch::NoTaskAt(_) => ExitWatch::ConfirmingNoTask(job),
                    _ => ExitWatch::Inspecting(job),
                });
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
                    let late =
                        "a container CLI call that the previous agent process left did not finish in time";
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
            // A removal would fail as well; once the engine is back, the container still gets its time to end.
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

    /// It is to go. If a deploy of it is pending, that failed for this reason.
    pub(super) fn fail(&mut self, now: Instant, refusal: Refusal) {
        if let Some(deploy) = &mut self.deploy {
            deploy.work = None;
            deploy.failure = Some((refusal, now));
        }
        self.desired = Desired::Absent;
    }

    /// The deploy failed: reported once its containers are gone.
    pub(super) fn fail_started(&mut self, s: &mut Step<'_>, refusal: Refusal) {
        self.fail(s.cx.now, refusal);
        self.remove(s);
        s.effect(Effect::Save);
    }

    /// Removes what is there of it, beginning with a listing that starts from now on.
    pub(super) fn remove(&mut self, s: &mut Step<'_>) {
        let step = RemovalStep::AwaitingListing(s.cx.tick);
        self.enter(s.cx, ReplicaState::Removing(Removal { step, attempts: 0 }));
    }

    pub(super) fn report_running(
        &self,
        s: &mut Step<'_>,
        requests: Vec<Option<RequestId>>,
        took: Option<Duration>,
        warnings: Vec<String>,
    ) {
        s.report(Report::Running {
            requests,
            spec_hash: self.spec_hash.clone(),
            container: self.running().cloned(),
            gpus: self.gpus.clone(),
            took,
            warnings,
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::job::{Inspected, InspectedState};
    use crate::core::replica::{Exit, Work};
    use crate::protocol::Pull;
    use crate::types::{ImageRef, Spec};

    const NOWHERE: Surroundings<'static> =
        Surroundings { node: None, too_little_space: None, microvm: false };

    fn queued(cx: &Cx) -> Replica {
        let spec = Spec::new(ImageRef::new("img:a").unwrap());
        let work = Work {
            spec,
            auth: None,
            pull: Pull::Missing,
            gpus: Vec::new(),
            ended_by_reboot: BTreeSet::new(),
        };
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
        apply(&mut replica, cx, Input::Admitted(Vec::new(), First::Run, BTreeSet::new()));
        let effects = outcome(&mut replica, cx, Outcome::Ran(Ok(container())));
        assert!(matches!(&effects[1], Effect::Report(Report::Running { took: Some(_), .. })), "{effects:?}");
        replica
    }

    #[test]
    fn an_image_that_is_missing_is_pulled_once() {
        let mut cx = Cx::example();
        let mut replica = queued(&cx);
        let effects = apply(&mut replica, &mut cx, Input::Admitted(Vec::new(), First::Run, BTreeSet::new()));
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
        apply(&mut replica, &mut cx, Input::Admitted(Vec::new(), First::Run, BTreeSet::new()));
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
        let exit = Exit::of_program(Some(3), None);
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
