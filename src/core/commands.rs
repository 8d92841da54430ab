//! Commands: what a `deploy` or a `stop` does, by the tables of `replica.rs`, and those that have to wait for the
//! table of containers.

use std::time::{Duration, Instant};

use super::job::{Failure, FailureKind, Job};
use super::node::Mode;
use super::outbox::Kind;
use super::replica::{
    Code, Deploy, OnDeploy, OnStop, Phase, REQUESTS_MAX, Refusal, Replica, Stage, Step, Stop, Work,
    on_deploy, on_stop, same_spec,
};
use super::telling::OWED_MAX;
use super::{Action, Core, Purpose};
use crate::protocol::{self, Inbound};
use crate::types::{ReplicaId, RequestId};

/// How long pull and start may take together, where the deploy does not say.
pub const DEPLOY_TIMEOUT: Duration = Duration::from_secs(15 * 60);
/// The same with GPUs: a large guest pins all of its memory first.
pub const DEPLOY_TIMEOUT_GPU: Duration = Duration::from_secs(30 * 60);
/// How long a container is given to end by itself, where nobody says.
pub const STOP_TIMEOUT: Duration = Duration::from_secs(10);
/// How much longer than its timeout a stop may take before it is reported as failed.
pub const STOP_MARGIN: Duration = Duration::from_secs(60);
/// The most commands that wait for the table of containers.
const WAITING_MAX: usize = 1024;
/// The most bytes of variables and arguments in deploys that wait.
const WAITING_BYTES_MAX: usize = 32 * 1024 * 1024;
/// The most readings of logs at once.
const LOGS_MAX: usize = 16;

impl Core {
    /// A command arrived.
    pub(super) fn command(&mut self, now: Instant, command: Inbound, out: &mut Vec<Action>) {
        match command {
            Inbound::Deploy(_) | Inbound::Stop(_) if self.ending.is_some() || self.known(&command, out) => {}
            Inbound::Deploy(_) | Inbound::Stop(_) if !self.table_ready => self.wait(now, command, out),
            Inbound::Deploy(deploy) => self.deploy(now, *deploy, out),
            Inbound::Stop(stop) => self.stop(now, stop, out),
            Inbound::Drain => self.set_mode(Mode::Draining),
            Inbound::Maintenance => self.set_mode(Mode::Maintenance),
            Inbound::Resume => self.set_mode(Mode::Online),
            Inbound::Logs { replica, request, tail } => self.logs(replica, request, tail, out),
            Inbound::Registered { .. } => {}
        }
    }

    /// Whether a command is a redelivery: one that was answered gets its answer again, one whose outcome is awaited
    /// gets that when it is there.
    fn known(&mut self, command: &Inbound, out: &mut Vec<Action>) -> bool {
        match command {
            Inbound::Deploy(deploy) => {
                let hash = self.key.hash(&deploy.spec);
                let request = deploy.request.as_ref();
                self.answered_before(Kind::Deploy, &deploy.replica, request, out)
                    || self.answer_again(&deploy.replica, request, &hash)
                    || self
                        .replicas
                        .get(&deploy.replica)
                        .is_some_and(|replica| replica.awaits(request, &hash))
            }
            Inbound::Stop(stop) => {
                let awaited = |replica: &Replica| {
                    replica.stop.as_ref().is_some_and(|accepted| accepted.requests.contains(&stop.request))
                };
                self.answered_before(Kind::Stop, &stop.replica, stop.request.as_ref(), out)
                    || stop.request.is_some() && self.replicas.get(&stop.replica).is_some_and(awaited)
            }
            Inbound::Registered { .. }
            | Inbound::Drain
            | Inbound::Maintenance
            | Inbound::Resume
            | Inbound::Logs { .. } => false,
        }
    }

    /// A `deploy` arrived, or waited for the table until now.
    pub(super) fn deploy(&mut self, now: Instant, command: protocol::Deploy, out: &mut Vec<Action>) {
        let protocol::Deploy { replica: id, request, spec, auth, pull, stop_timeout, deploy_timeout } =
            command;
        let hash = self.key.hash(&spec);
        let replica = self.replicas.get(&id);
        let stage = replica.map_or(Stage::None, Replica::stage);
        let same = replica.is_some_and(|replica| same_spec(&replica.hash, &hash));
        let next = replica.and_then(|replica| replica.next.as_ref());
        let same_next = next.is_some_and(|next| same_spec(&next.hash, &hash));
        let meaning = on_deploy(stage, same, same_next);
        let refusal = match meaning {
            OnDeploy::Start | OnDeploy::After | OnDeploy::Replace => self.admission(),
            OnDeploy::Conflict => Some(Refusal::conflict(&id)),
            OnDeploy::Running => self.room(),
            OnDeploy::Join | OnDeploy::JoinNext => None,
        };
        if let Some(refusal) = refusal {
            self.refuse_deploy(&id, request, &hash, &refusal, out);
            return;
        }
        let timeout =
            deploy_timeout.unwrap_or(if spec.gpu_count > 0 { DEPLOY_TIMEOUT_GPU } else { DEPLOY_TIMEOUT });
        let make = |core: &mut Self| Deploy {
            id: core.fresh_deploy_id(),
            requests: vec![request.clone()],
            hash: hash.clone(),
            work: Some(Work { spec, auth, pull, gpus: Vec::new() }),
            accepted: now,
            deadline: now + timeout,
            gate: core.disk.gate(now),
            pulled: false,
            ghosts: 0,
            refusal: None,
        };
        match meaning {
            OnDeploy::Start => {
                let mut replica = Replica::queued(id.clone(), make(self), self.tick);
                replica.stop_timeout = stop_timeout;
                self.replicas.insert(id.clone(), replica);
                self.queue.push_back(id);
            }
            OnDeploy::After | OnDeploy::Replace => {
                let deploy = make(self);
                let tick = self.tick;
                if let Some(replica) = self.replicas.get_mut(&id) {
                    replica.next = Some(deploy);
                    replica.stop_timeout = stop_timeout;
                    if meaning == OnDeploy::Replace {
                        replica.enter(Phase::Clearing(Step::Look(tick)), tick);
                    }
                }
            }
            OnDeploy::Join => self.join(&id, request, &hash, |replica| replica.deploy.as_mut(), out),
            OnDeploy::JoinNext => self.join(&id, request, &hash, |replica| replica.next.as_mut(), out),
            OnDeploy::Running => self.tell_running(now, &id, vec![request], None),
            OnDeploy::Conflict => {}
        }
    }

    fn join(
        &mut self,
        id: &ReplicaId,
        request: Option<RequestId>,
        hash: &str,
        which: fn(&mut Replica) -> Option<&mut Deploy>,
        out: &mut Vec<Action>,
    ) {
        let Some(deploy) = self.replicas.get_mut(id).and_then(which) else { return };
        if deploy.requests.contains(&request) {
            return;
        }
        if deploy.requests.len() >= REQUESTS_MAX {
            let refusal =
                Refusal::new(Code::Busy, "too many requests wait for this replica: ask again later");
            self.refuse_deploy(id, request, hash, &refusal, out);
        } else if let Some(refusal) = self.room() {
            self.refuse_deploy(id, request, hash, &refusal, out);
        } else if let Some(deploy) = self.replicas.get_mut(id).and_then(which) {
            deploy.requests.push(request);
            self.disk.dirty();
        }
    }

    /// Why no new deploy is taken now, if so.
    fn admission(&self) -> Option<Refusal> {
        if !self.node.takes_deploys() {
            return Some(Refusal::new(
                Code::Draining,
                "the node is draining or in maintenance: it takes no deploys",
            ));
        }
        if self.queue.len() >= self.settings.queue_limit {
            let limit = self.settings.queue_limit;
            return Some(Refusal::new(Code::Busy, format!("{limit} deploys are waiting already")));
        }
        let waiting = |id| self.replicas.get(id).and_then(|replica| replica.deploy.as_ref()?.work.as_ref());
        let bytes: usize = self.queue.iter().filter_map(waiting).map(|work| work.spec.bytes()).sum();
        if bytes > WAITING_BYTES_MAX {
            return Some(Refusal::new(
                Code::Busy,
                "the deploys that are waiting already are too large together",
            ));
        }
        self.room()
    }

    /// Why no further result can be promised now, if so.
    fn room(&self) -> Option<Refusal> {
        let owed = self.outbox.len() + self.replicas.values().map(Replica::owed).sum::<usize>();
        (owed >= OWED_MAX).then(|| {
            Refusal::new(Code::Busy, "too many results are not known to have arrived: ask again later")
        })
    }

    /// A `stop` arrived, or waited for the table until now.
    pub(super) fn stop(&mut self, now: Instant, command: protocol::Stop, out: &mut Vec<Action>) {
        let protocol::Stop { replica: id, request, timeout } = command;
        let Some(replica) = self.replicas.get_mut(&id) else {
            self.tell_absent(&id, request, out);
            return;
        };
        if let Some(stop) = &replica.stop
            && stop.requests.len() >= REQUESTS_MAX
            && !stop.requests.contains(&request)
        {
            let refusal =
                Refusal::new(Code::Busy, "too many requests wait for this replica: ask again later");
            self.refuse(Kind::Stop, &id, request, "", &refusal, out);
            return;
        }
        let meaning = on_stop(replica.stage());
        let timeout = timeout.or(replica.stop_timeout).unwrap_or(STOP_TIMEOUT);
        let gate = self.disk.gate(now);
        let fresh = replica.stop.is_none();
        let stop = replica.stop.get_or_insert_with(|| Stop {
            requests: Vec::new(),
            timeout,
            deadline: now + timeout + STOP_MARGIN,
            gate,
        });
        if !stop.requests.contains(&request) {
            stop.requests.push(request);
        }
        replica.doomed = true;
        if let Phase::Orphaned(until) = &mut replica.phase {
            *until = (*until).min(now + timeout);
        }
        let tick = self.tick;
        let cancelled = || Refusal::new(Code::Cancelled, "stopped before it was running");
        match meaning {
            OnStop::Gone => {}
            OnStop::Cancel => {
                if let Some(deploy) = &mut replica.deploy {
                    deploy.work = None;
                    deploy.refusal = Some((cancelled(), now));
                }
                match replica.phase {
                    Phase::Queued => self.gone(now, &id),
                    // Pulling leaves nothing of the container behind; a `run` may as well finish and be removed.
                    Phase::Pulling(job) => out.push(Action::CancelJob(job)),
                    Phase::Unverified
                    | Phase::Orphaned(_)
                    | Phase::Starting(_)
                    | Phase::Naming(..)
                    | Phase::Running(..)
                    | Phase::Exited(..)
                    | Phase::Stopping(..)
                    | Phase::Clearing(_) => {}
                }
            }
            OnStop::Stop => {
                if let Phase::Running(container, _) = &replica.phase {
                    let container = container.clone();
                    out.push(Action::Unwatch(container.clone()));
                    replica.enter(Phase::Stopping(container, None, now), tick);
                }
            }
            OnStop::Remove => {
                replica.enter(Phase::Clearing(Step::Look(tick)), tick);
            }
            OnStop::Join => {
                if !fresh && let Some(stop) = &mut replica.stop {
                    stop.deadline = stop.deadline.max(now + timeout);
                }
                if let Some(next) = replica.next.take() {
                    self.tell_failed(now, &id, &next, &cancelled());
                }
            }
        }
    }

    /// Keeps a command until the table is known.
    fn wait(&mut self, now: Instant, command: Inbound, out: &mut Vec<Action>) {
        // Equal to the last one for its replica: arrived twice. Behind another it is a command of its own.
        let of_replica = |waiting: &&(Instant, Inbound)| waiting.1.replica() == command.replica();
        if self.waiting.iter().rev().find(of_replica).is_some_and(|(_, waiting)| *waiting == command) {
            return;
        }
        let timeout = match &command {
            Inbound::Deploy(deploy) => deploy.deploy_timeout.unwrap_or(DEPLOY_TIMEOUT),
            Inbound::Stop(stop) => stop.timeout.unwrap_or(STOP_TIMEOUT) + STOP_MARGIN,
            _ => return,
        };
        let bytes: usize = self.waiting.iter().map(|(_, waiting)| waiting.bytes()).sum();
        if self.waiting.len() < WAITING_MAX && bytes + command.bytes() <= WAITING_BYTES_MAX {
            self.waiting.push_back((now + timeout, command));
        } else {
            let refusal =
                Refusal::new(Code::Busy, "too many commands wait for the node to know its containers");
            self.refuse_waiting(command, &refusal, out);
        }
    }

    pub(super) fn take_waiting(&mut self, now: Instant, out: &mut Vec<Action>) {
        for (_, command) in std::mem::take(&mut self.waiting) {
            self.command(now, command, out);
        }
    }

    pub(super) fn expire_waiting(&mut self, now: Instant, out: &mut Vec<Action>) {
        if self.waiting.iter().all(|(until, _)| *until > now) {
            return;
        }
        let refusal =
            Refusal::new(Code::NotReady, "the node does not know its containers yet: the engine is silent");
        for (until, command) in std::mem::take(&mut self.waiting) {
            if until <= now {
                self.refuse_waiting(command, &refusal, out);
            } else {
                self.waiting.push_back((until, command));
            }
        }
    }

    fn refuse_waiting(&mut self, command: Inbound, refusal: &Refusal, out: &mut Vec<Action>) {
        match command {
            Inbound::Deploy(deploy) => {
                let hash = self.key.hash(&deploy.spec);
                self.refuse_deploy(&deploy.replica, deploy.request, &hash, refusal, out);
            }
            Inbound::Stop(stop) => self.refuse(Kind::Stop, &stop.replica, stop.request, "", refusal, out),
            _ => {}
        }
    }

    fn logs(&mut self, replica: ReplicaId, request: Option<RequestId>, tail: u32, out: &mut Vec<Action>) {
        let container = self.replicas.get(&replica).and_then(|replica| match &replica.phase {
            Phase::Running(container, _) | Phase::Exited(container, ..) | Phase::Stopping(container, ..) => {
                Some(container.clone())
            }
            Phase::Unverified
            | Phase::Orphaned(_)
            | Phase::Queued
            | Phase::Pulling(_)
            | Phase::Starting(_)
            | Phase::Naming(..)
            | Phase::Clearing(_) => None,
        });
        let busy = self.jobs.values().filter(|purpose| matches!(purpose, Purpose::Logs { .. })).count();
        match container {
            Some(_) if busy >= LOGS_MAX => {
                let message = format!("{LOGS_MAX} logs are being read already: ask again later");
                let failure = Failure { kind: FailureKind::Refused, message };
                self.tell_logs(&replica, request.as_ref(), Err(failure), out);
            }
            Some(container) => {
                _ = self.submit(Job::Logs(container, tail), Purpose::Logs { replica, request }, out)
            }
            None => {
                let message = match self.replicas.get(&replica) {
                    None if self.table_ready => "there is no container of this replica",
                    None | Some(_) => "its container is not known yet, or gone already",
                };
                let failure = Failure { kind: FailureKind::NoSuchContainer, message: message.to_owned() };
                self.tell_logs(&replica, request.as_ref(), Err(failure), out);
            }
        }
    }
}
