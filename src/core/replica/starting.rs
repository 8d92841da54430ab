//! The way up: from the queue by `run`, and where it must be `pull`, to a container.

use std::collections::BTreeSet;
use std::time::Duration;

use super::lifecycle::{Effect, Step};
use super::outcome::{Code, Refusal};
use super::state::{Deploy, ExitWatch, Replica, ReplicaState, Reported};
use super::warnings::warnings;
use crate::core::gpus::Claimed;
use crate::core::job::{
    Failure, FailureKind, Job, LABEL_DEPLOY, LABEL_GPUS, LABEL_IMAGE, LABEL_NODE, LABEL_REPLICA, LABEL_SPEC,
    PullJob, RunJob, container_name, gpus_label, label_value,
};
use crate::core::private_images::First;
use crate::protocol::Pull;
use crate::types::ContainerId;

/// How many names held by a container that does not exist are passed over.
const NAME_CONFLICTS_MAX: u32 = 3;

impl Replica {
    pub(super) fn on_admitted(
        &mut self,
        s: &mut Step<'_>,
        gpus: Claimed,
        first: First,
        ended_by_reboot: BTreeSet<ContainerId>,
    ) {
        let Some(work) = self.deploy.as_mut().and_then(|deploy| deploy.work.as_mut()) else { return };
        work.ended_by_reboot = ended_by_reboot;
        if !gpus.is_empty() {
            self.gpus = gpus.iter().map(|(address, _)| *address).collect();
            work.gpus = gpus;
            s.effect(Effect::Save);
        }
        self.ports = work.spec.ports.iter().map(|port| port.on_host()).collect();
        if !self.ports.is_empty() {
            s.effect(Effect::Save);
        }
        match first {
            First::Pull => self.pull(s),
            First::Run => self.run(s),
        }
    }

    pub(super) fn started(&mut self, s: &mut Step<'_>, container: ContainerId) {
        let now = s.cx.now;
        self.enter(s.cx, ReplicaState::Running(container, ExitWatch::InspectAt(now)));
        self.reported = Reported::Running;
        if let Some(deploy) = self.deploy.take() {
            let took = now.saturating_duration_since(deploy.accepted);
            let warnings = deploy.work.map_or_else(Vec::new, |work| warnings(&work.spec, s.around.microvm));
            self.report_running(s, deploy.requests, Some(took), warnings);
        }
    }

    pub(super) fn run_failed(&mut self, s: &mut Step<'_>, failure: Failure) {
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
            | FailureKind::PortInUse
            | FailureKind::Impossible
            | FailureKind::NoSpace
            | FailureKind::PullRefused(_)
            | FailureKind::Refused => self.fail_started(s, Refusal::from_failure(failure, false)),
        }
    }

    /// A name is held by no container: passes it over, unless too many were.
    pub(super) fn takes_next_name(&mut self) -> bool {
        let Some(deploy) = &mut self.deploy else { return false };
        deploy.name_conflicts += 1;
        deploy.name_conflicts <= NAME_CONFLICTS_MAX
    }

    pub(super) fn pull(&mut self, s: &mut Step<'_>) {
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

    pub(super) fn run(&mut self, s: &mut Step<'_>) {
        let id = self.id.clone();
        let Some((deploy, deadline)) = self.time_left(s) else { return };
        let Some(work) = &deploy.work else { return };
        let mut labels = vec![
            (LABEL_REPLICA, id.to_string()),
            (LABEL_DEPLOY, deploy.id.clone()),
            (LABEL_SPEC, deploy.spec_hash.clone()),
            (LABEL_IMAGE, work.spec.image.to_string()),
        ];
        if !work.gpus.is_empty() {
            labels.push((LABEL_GPUS, gpus_label(&work.gpus)));
        }
        if let Some(node) = s.around.node {
            labels.push((LABEL_NODE, label_value(node.as_str())));
        }
        let name = container_name(&id, deploy.name_conflicts);
        let (spec, gpus) = (work.spec.clone(), work.gpus.clone());
        let ended_by_reboot = work.ended_by_reboot.clone();
        let job = RunJob { name, spec, labels, gpus, ended_by_reboot, deadline };
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
}

/// The ID of the container that holds a name, in the engine's message about it.
fn name_holder(message: &str) -> Option<ContainerId> {
    message.split(|c: char| !c.is_ascii_alphanumeric()).find_map(|word| ContainerId::new(word).ok())
}
