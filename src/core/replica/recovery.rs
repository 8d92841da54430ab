//! Recovery: what a new process makes of the replicas that an earlier one left, or that were lost from sight.
//!
//! It is settled by one table, [`on_recovery`]: what was intended, by the record, against what a listing shows.

use super::commands::same_spec;
use super::default_deploy_timeout;
use super::lifecycle::{Effect, Step};
use super::outcome::{Exit, Refusal, Report};
use super::reconcile::{Shown, UNWANTED_CALL_TIMEOUT, remove_leftovers};
use super::state::{Desired, ExitWatch, Replica, ReplicaState, Reported, StopCall};
use super::warnings::warnings;
use crate::core::job::{Listed, ListedStatus};
use crate::core::persistence::DurableBarrier;

/// What an earlier process intended with a replica, by its record.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Intent {
    /// It runs, or ran; nothing is awaited. Without a record this is assumed.
    Keep,
    /// A deploy was accepted.
    Start,
    /// A deploy failed, and its failure is not reported.
    Fail,
    /// A stop was accepted.
    Stop,
    /// It was to go, and all about it is reported.
    Remove,
}

/// What is there of a replica.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Found {
    /// A container or call of the deploy that waited behind it: that was started after the record was saved.
    SuccessorBegun,
    /// A call that is still at work: what it makes is not known yet.
    LeftoverCall,
    /// Containers ran, each of a deploy that the record does not name: that was started after the record was saved.
    Newer,
    /// The container of the recorded deploy is up.
    Up,
    /// The container of another deploy is up, and which is newer cannot be told.
    OtherUp,
    /// The same, beside a container of which the engine cannot say whether it runs.
    OtherUpAndUnclear,
    /// None is up, and of one the engine cannot say whether it runs.
    Unclear,
    /// A container ended.
    Exited,
    /// No container, or none that ever ran.
    Nothing,
}

/// What is done about it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Recovery {
    /// What was before it is gone: the successor takes its place, and is looked at in turn.
    TakeUpSuccessor,
    /// Wait for the call to end, and look again.
    AwaitCall,
    /// What the record has as pending is over: report that, and look at what is there without it.
    Supersede,
    /// It may run: wait until the engine can say, and report and remove nothing.
    AwaitEngine,
    /// Take it as running.
    Adopt,
    /// Take it as ended.
    AdoptExited,
    /// Report that it is gone, if it was known to run, and remove what is left.
    Vanished,
    /// The deploy succeeded.
    ConfirmStarted,
    /// The deploy failed: for the recorded reason, else it was interrupted. Remove what is left.
    FailDeploy,
    /// Give the container its time to end.
    Stop,
    /// Remove what is left.
    Remove,
}

/// What a new process makes of a replica that an earlier one left.
pub(crate) fn on_recovery(intent: Intent, found: Found) -> Recovery {
    match (intent, found) {
        (_, Found::SuccessorBegun) => Recovery::TakeUpSuccessor,
        (_, Found::LeftoverCall) => Recovery::AwaitCall,
        (_, Found::Newer) => Recovery::Supersede,
        (Intent::Keep, Found::Up | Found::OtherUp | Found::OtherUpAndUnclear) => Recovery::Adopt,
        (Intent::Keep, Found::Unclear) => Recovery::AwaitEngine,
        (Intent::Keep, Found::Exited) => Recovery::AdoptExited,
        (Intent::Keep, Found::Nothing) => Recovery::Vanished,
        (Intent::Start, Found::Up) => Recovery::ConfirmStarted,
        (Intent::Start, Found::OtherUpAndUnclear | Found::Unclear) => Recovery::AwaitEngine,
        (Intent::Start, Found::OtherUp | Found::Exited | Found::Nothing) => Recovery::FailDeploy,
        (Intent::Fail, _) => Recovery::FailDeploy,
        (Intent::Stop, Found::Up | Found::OtherUp | Found::OtherUpAndUnclear | Found::Unclear) => {
            Recovery::Stop
        }
        (Intent::Stop, Found::Exited | Found::Nothing) => Recovery::Remove,
        (Intent::Remove, _) => Recovery::Remove,
    }
}

/// The container that is there, of those that are listed for a replica.
#[derive(Debug, Clone, Copy)]
struct Candidates<'a> {
    up: Option<&'a Listed>,
    exited: Option<(&'a Listed, i32)>,
    /// With what the engine says of it.
    unclear: Option<(&'a Listed, &'a str)>,
}

impl Shown<'_> {
    fn candidates(&self, deploy_id: &str) -> Candidates<'_> {
        let is_up = |c: &&Listed| c.status == ListedStatus::Up;
        let up = self.containers.iter().find(|c| is_up(c) && c.deploy == deploy_id);
        let exited = self.containers.iter().find_map(|c| match c.status {
            ListedStatus::Exited(code) => Some((c, code)),
            ListedStatus::Created | ListedStatus::Up | ListedStatus::Unclear(_) => None,
        });
        let unclear = self.containers.iter().find_map(|c| match &c.status {
            ListedStatus::Unclear(said) => Some((c, said.as_str())),
            ListedStatus::Created | ListedStatus::Up | ListedStatus::Exited(_) => None,
        });
        Candidates { up: up.or_else(|| self.containers.iter().find(is_up)), exited, unclear }
    }
}

impl Replica {
    pub(super) fn intent(&self) -> Intent {
        match (self.desired, &self.deploy, &self.stop) {
            (Desired::Present, None, _) => Intent::Keep,
            (Desired::Present, Some(_), _) => Intent::Start,
            (Desired::Absent, Some(_), _) => Intent::Fail,
            (Desired::Absent, None, Some(_)) => Intent::Stop,
            (Desired::Absent, None, None) => Intent::Remove,
        }
    }

    pub(super) fn found(&self, shown: &Shown<'_>) -> Found {
        let begun = |next: &str| shown.successor_call || shown.containers.iter().any(|c| c.deploy == next);
        if self.successor.as_ref().is_some_and(|next| next.work.is_none() && begun(&next.id)) {
            return Found::SuccessorBegun;
        }
        if shown.leftover_call {
            return Found::LeftoverCall;
        }
        let mut ran = shown
            .containers
            .iter()
            .filter(|c| matches!(c.status, ListedStatus::Up | ListedStatus::Exited(_)))
            .peekable();
        let recorded = shown.first && !self.deploy_id.is_empty();
        if recorded && ran.peek().is_some() && ran.all(|c| c.deploy != self.deploy_id) {
            return Found::Newer;
        }
        let there = shown.candidates(&self.deploy_id);
        match (there.up, there.unclear, there.exited) {
            (Some(up), _, _) if up.deploy == self.deploy_id => Found::Up,
            (Some(_), None, _) => Found::OtherUp,
            (Some(_), Some(_), _) => Found::OtherUpAndUnclear,
            (None, Some(_), _) => Found::Unclear,
            (None, None, Some(_)) => Found::Exited,
            (None, None, None) => Found::Nothing,
        }
    }

    /// The first look at what an earlier process left: whether what is there is newer than the record.
    pub(super) fn on_recovered(&mut self, s: &mut Step<'_>, shown: &Shown<'_>) {
        let recovery = on_recovery(self.intent(), self.found(shown));
        if recovery == Recovery::TakeUpSuccessor {
            s.effect(Effect::Gone);
        } else if recovery == Recovery::Supersede {
            self.supersede(s);
        }
    }

    fn supersede(&mut self, s: &mut Step<'_>) {
        self.state = ReplicaState::Unverified(None);
        self.desired = Desired::Present;
        self.reported = Reported::Nothing;
        let now = s.cx.now;
        if let Some(deploy) = &mut self.deploy {
            deploy.failure.get_or_insert_with(|| (Refusal::interrupted(), now));
        }
        for report in self.last_reports(now) {
            s.report(report);
        }
        s.effect(Effect::Save);
    }

    /// A replica that an earlier process knew, that nobody knew, or that was lost from sight.
    pub(super) fn recover(&mut self, s: &mut Step<'_>, shown: &Shown<'_>) {
        let there = shown.candidates(&self.deploy_id);
        let now = s.cx.now;
        let recovery = on_recovery(self.intent(), self.found(shown));
        if let (Recovery::AwaitEngine, Some((container, said))) = (recovery, there.unclear) {
            let before = self.unclear().map(str::to_owned);
            self.unclear_again(s, &container.id, said, before);
            return;
        }
        if self.unclear().is_some() && recovery != Recovery::AwaitCall {
            s.cx.info(format!("replica {}: the engine can say how its container is again", self.id));
        }
        let up_or_unclear = there.up.or(there.unclear.map(|(container, _)| container));
        match (recovery, there.up, there.exited, up_or_unclear) {
            (Recovery::AwaitCall, ..) => {
                let timeout = match self.desired {
                    Desired::Absent => UNWANTED_CALL_TIMEOUT,
                    Desired::Present => default_deploy_timeout(!self.gpus.is_empty()),
                };
                self.enter(s.cx, ReplicaState::AwaitingLeftoverCall(now + timeout));
            }
            (Recovery::Adopt, Some(up), ..) => self.adopt(s, shown, up),
            (Recovery::AdoptExited, _, Some((exited, code)), _) => self.adopt_exited(s, shown, exited, code),
            (Recovery::ConfirmStarted, Some(up), ..) => self.confirm_started(s, shown, up),
            (Recovery::FailDeploy, ..) => {
                if self.failure().is_none() {
                    self.fail(now, Refusal::interrupted());
                }
                self.remove(s);
                s.effect(Effect::Save);
            }
            (Recovery::Stop, _, _, Some(up)) => {
                let barrier = self.stop.as_ref().map_or(DurableBarrier::OPEN, |stop| stop.barrier);
                let stopping = ReplicaState::Stopping(up.id.clone(), StopCall::AwaitingRecord(barrier));
                self.enter(s.cx, stopping);
            }
            (Recovery::Vanished, ..) => self.conclude_vanished(s, shown),
            (Recovery::Remove, ..) => self.remove(s),
            // Done in `on_recovered`, before any replica is looked at here.
            (Recovery::TakeUpSuccessor | Recovery::Supersede, ..) => {}
            // What is decided about a container is decided because it is there.
            (
                Recovery::AwaitEngine
                | Recovery::Adopt
                | Recovery::AdoptExited
                | Recovery::ConfirmStarted
                | Recovery::Stop,
                ..,
            ) => debug_assert!(false, "no container to go with the decision"),
        }
    }

    fn adopt(&mut self, s: &mut Step<'_>, shown: &Shown<'_>, up: &Listed) {
        self.trust_labels(s, shown.containers);
        self.take_identity(up);
        self.watch_again(s, up);
        remove_leftovers(s, &up.id, shown.containers);
        self.answer_successor(s);
        s.effect(Effect::Save);
    }

    fn adopt_exited(&mut self, s: &mut Step<'_>, shown: &Shown<'_>, exited: &Listed, code: i32) {
        self.trust_labels(s, shown.containers);
        if exited.deploy != self.deploy_id {
            // The record is older than this container: what it says was reported was another's end.
            self.reported = Reported::Nothing;
            self.take_identity(exited);
        }
        let mut exit = Exit::of_program(Some(code), None);
        exit.microvm_ended = self.reported == Reported::Failed;
        self.exited_before_successor(s, exited, exit);
    }

    fn confirm_started(&mut self, s: &mut Step<'_>, shown: &Shown<'_>, up: &Listed) {
        self.watch_again(s, up);
        let requests = self.deploy.take().map(|deploy| deploy.requests).unwrap_or_default();
        self.trust_labels(s, shown.containers);
        self.report_running(s, requests, None, Vec::new());
        self.answer_successor(s);
        s.effect(Effect::Save);
    }

    /// It was known to run, and no container of it does.
    fn conclude_vanished(&mut self, s: &mut Step<'_>, shown: &Shown<'_>) {
        self.trust_labels(s, shown.containers);
        if self.reported == Reported::Running && self.rebooted {
            let exit = Exit { rebooted: true, ..Exit::default() };
            // The engine still has it, without its task: kept for its log, like any that ended.
            if let Some(container) = shown.containers.first() {
                self.exited_before_successor(s, container, exit);
                return;
            }
            self.reported = Reported::Nothing;
            s.report(Report::Exited(exit));
        } else if self.reported == Reported::Running {
            self.reported = Reported::Nothing;
            s.report(Report::Vanished);
        }
        self.desired = Desired::Absent;
        self.remove(s);
        s.effect(Effect::Save);
    }

    fn watch_again(&mut self, s: &mut Step<'_>, up: &Listed) {
        self.reported = Reported::Running;
        self.enter(s.cx, ReplicaState::Running(up.id.clone(), ExitWatch::InspectAt(s.cx.now)));
    }

    /// It ended, and gives way at once to a deploy that waits behind it.
    fn exited_before_successor(&mut self, s: &mut Step<'_>, container: &Listed, exit: Exit) {
        self.exited(s, container.id.clone(), exit);
        if self.successor.is_some() {
            self.remove(s);
        }
    }

    /// It runs what a container's labels say.
    fn take_identity(&mut self, container: &Listed) {
        self.spec_hash.clone_from(&container.spec);
        self.deploy_id.clone_from(&container.deploy);
    }

    /// A replica that was lost from sight has the GPUs of its containers' labels, not those of an older record.
    fn trust_labels(&mut self, s: &mut Step<'_>, containers: &[Listed]) {
        if !containers.is_empty() {
            self.gpus.retain(|gpu| containers.iter().any(|container| container.gpus.contains(gpu)));
            s.effect(Effect::KeepsGpus(self.gpus.clone()));
        }
    }

    /// A deploy that came while it was not known whether the replica runs, and now it does.
    fn answer_successor(&mut self, s: &mut Step<'_>) {
        let Some(next) = self.successor.take() else { return };
        if same_spec(&self.spec_hash, &next.spec_hash) {
            let warnings = next.work.map_or_else(Vec::new, |work| warnings(&work.spec, s.around.microvm));
            self.report_running(s, next.requests, None, warnings);
        } else {
            s.report(next.failed(s.cx.now, Refusal::conflict(&self.id)));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::cx::Cx;
    use crate::core::replica::{Deploy, Input, Surroundings};
    use crate::types::{ContainerId, ReplicaId};

    const FOUND: [Found; 9] = [
        Found::SuccessorBegun,
        Found::LeftoverCall,
        Found::Newer,
        Found::Up,
        Found::OtherUp,
        Found::OtherUpAndUnclear,
        Found::Unclear,
        Found::Exited,
        Found::Nothing,
    ];

    #[test]
    fn the_whole_table_of_recovery() {
        use Recovery::{
            Adopt, AdoptExited, AwaitCall, AwaitEngine, ConfirmStarted, FailDeploy, Remove, Stop, Supersede,
            TakeUpSuccessor, Vanished,
        };
        // What is newer than the record comes first, whatever was intended.
        let newer = [TakeUpSuccessor, AwaitCall, Supersede];
        // Up, of another deploy, the same beside one that is unclear, unclear, exited, nothing.
        let table = [
            (Intent::Keep, [Adopt, Adopt, Adopt, AwaitEngine, AdoptExited, Vanished]),
            (Intent::Start, [ConfirmStarted, FailDeploy, AwaitEngine, AwaitEngine, FailDeploy, FailDeploy]),
            (Intent::Fail, [FailDeploy; 6]),
            (Intent::Stop, [Stop, Stop, Stop, Stop, Remove, Remove]),
            (Intent::Remove, [Remove; 6]),
        ];
        for (intent, rest) in table {
            for (found, expected) in FOUND.into_iter().zip(newer.into_iter().chain(rest)) {
                assert_eq!(on_recovery(intent, found), expected, "{intent:?}, {found:?}");
            }
        }
    }

    fn container(n: u8, deploy: &str, status: ListedStatus) -> Listed {
        Listed {
            id: ContainerId::new(&format!("{n:064x}")).unwrap(),
            replica: "r".into(),
            deploy: deploy.into(),
            spec: "k.1".into(),
            gpus: Vec::new(),
            status,
        }
    }

    fn shown(containers: &[Listed]) -> Shown<'_> {
        Shown { began: 1, first: true, containers, leftover_call: false, successor_call: false }
    }

    /// A replica whose record names deploy `d`.
    fn recorded(cx: &Cx) -> Replica {
        let mut replica = Replica::unknown(ReplicaId::new("r").unwrap());
        replica.expect(Deploy::recovered(cx.now, cx.now, "d".into(), "k.1".into(), vec![None]));
        replica
    }

    #[test]
    fn what_is_there_is_told_by_the_labels() {
        let cx = Cx::example();
        let replica = recorded(&cx);
        let unclear = || ListedStatus::Unclear("Unknown".into());
        let check = |containers: &[Listed], expected| {
            assert_eq!(replica.found(&shown(containers)), expected, "{containers:?}");
        };
        check(&[], Found::Nothing);
        check(&[container(1, "d", ListedStatus::Created)], Found::Nothing);
        check(&[container(1, "d", ListedStatus::Up)], Found::Up);
        check(&[container(1, "d", ListedStatus::Exited(3))], Found::Exited);
        check(&[container(1, "d", unclear())], Found::Unclear);
        check(&[container(1, "e", ListedStatus::Up)], Found::Newer);
        check(&[container(1, "e", ListedStatus::Exited(0))], Found::Newer);
        let mixed = [container(1, "d", ListedStatus::Exited(0)), container(2, "e", ListedStatus::Up)];
        check(&mixed, Found::OtherUp);
        let doubtful = [mixed[0].clone(), mixed[1].clone(), container(3, "d", unclear())];
        check(&doubtful, Found::OtherUpAndUnclear);
        let late = Shown { first: false, ..shown(&mixed[1..]) };
        assert_eq!(replica.found(&late), Found::OtherUp, "only the first listing tells what is newer");
        let call = Shown { leftover_call: true, ..shown(&mixed) };
        assert_eq!(replica.found(&call), Found::LeftoverCall);
    }

    fn listed(replica: &mut Replica, cx: &mut Cx, containers: &[Listed]) -> Vec<Effect> {
        let around = Surroundings { node: None, too_little_space: None, microvm: false };
        let effects = replica.apply(cx, around, Input::Listed(&shown(containers)));
        assert_eq!(replica.illegal(), None);
        effects
    }

    #[test]
    fn a_pending_deploy_is_confirmed_or_failed() {
        let mut cx = Cx::example();
        let mut replica = recorded(&cx);
        let effects = listed(&mut replica, &mut cx, &[container(1, "d", ListedStatus::Up)]);
        assert!(matches!(&effects[1], Effect::Report(Report::Running { .. })), "{effects:?}");
        assert_eq!(replica.status(), "running");
        let mut replica = recorded(&cx);
        listed(&mut replica, &mut cx, &[]);
        assert_eq!((replica.status(), replica.owed()), ("failed", 1), "reported once it is proven gone");
        cx.tick = 1;
        assert!(listed(&mut replica, &mut cx, &[]).contains(&Effect::Gone));
    }
}
