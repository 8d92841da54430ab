//! What a machine may use while it handles an event. It is the same object for all of them, and no way from one
//! machine to another.

use std::collections::BTreeMap;
use std::time::Instant;

use log::Level;
use serde_json::Value;

use super::job::{Job, JobId};
use super::link_api::{LinkCommand, LinkId};
use super::random::Random;
use super::timers::Timers;
use super::{Action, Settings};
use crate::protocol;
use crate::types::{ContainerId, ReplicaId, RequestId};

/// The context of one event, and what all machines share.
#[derive(Debug)]
pub(crate) struct Cx {
    /// When the event happened.
    pub(crate) now: Instant,
    /// Number of the event, counted from 1: tells what was asked before a change from what was asked after it.
    pub(crate) tick: u64,
    pub(crate) settings: Settings,
    pub(crate) random: Random,
    pub(crate) jobs: Jobs,
    pub(crate) timers: Timers,
    /// The connection on which everything may be sent, while there is one. Written by the session alone.
    pub(crate) peer: Option<LinkId>,
    /// What the edges are told to do, in order.
    pub(crate) actions: Vec<Action>,
}

impl Cx {
    pub(crate) fn new(now: Instant, settings: Settings, seed: u64) -> Self {
        Self {
            now,
            tick: 1,
            settings,
            random: Random::new(seed),
            jobs: Jobs::default(),
            timers: Timers::default(),
            peer: None,
            actions: Vec::new(),
        }
    }

    pub(crate) fn act(&mut self, action: Action) {
        self.actions.push(action);
    }

    pub(crate) fn info(&mut self, text: impl Into<String>) {
        self.act(Action::Log(Level::Info, text.into()));
    }

    pub(crate) fn warn(&mut self, text: impl Into<String>) {
        self.act(Action::Log(Level::Warn, text.into()));
    }

    /// Gives a job to the engine's pool.
    pub(crate) fn start_job(&mut self, job: Job, owner: JobOwner) -> JobId {
        let id = self.jobs.add(owner);
        self.act(Action::Job(id, job));
        id
    }

    /// Sends a message that is not kept: without a connection it is lost.
    pub(crate) fn send(&mut self, kind: &str, payload: Value) {
        if let Some(link) = self.peer {
            self.act(Action::Link(LinkCommand::Send(link, protocol::write(kind, payload))));
        }
    }

    /// A name for a deploy that no other has, in this process or another.
    pub(crate) fn fresh_deploy_id(&mut self) -> String {
        format!("{:016x}", self.random.bits())
    }
}

/// Whose a job is: who gets its outcome.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum JobOwner {
    Replica(ReplicaId),
    /// The listing that was asked for at this tick.
    Listing(u64),
    Probe,
    /// The removal of a container that carries a replica's label, never ran and is not the replica's.
    LeftoverContainer(ContainerId),
    Images,
    /// The question how busy a replica's GPUs are.
    Guest(ReplicaId),
    Logs {
        replica: ReplicaId,
        request: Option<RequestId>,
    },
}

/// The jobs under way.
#[derive(Debug, Default)]
pub(crate) struct Jobs {
    last: u64,
    owners: BTreeMap<JobId, JobOwner>,
}

impl Jobs {
    fn add(&mut self, owner: JobOwner) -> JobId {
        self.last += 1;
        let id = JobId(self.last);
        self.owners.insert(id, owner);
        id
    }

    /// A job came back: whose it was, unless it is not known.
    pub(crate) fn finish(&mut self, id: JobId) -> Option<JobOwner> {
        self.owners.remove(&id)
    }
}

#[cfg(test)]
impl Cx {
    /// A context for a test of one machine.
    #[allow(clippy::disallowed_methods, reason = "a test needs some time to begin with")]
    pub(crate) fn example() -> Self {
        Self::new(Instant::now(), Settings::example(), 1)
    }
}
