//! One replica's life, as values and tables: what state it is in, and what a command means there.
//!
//! ```text
//!            deploy                  image missing
//!   (none) ────────► Queued ─► Starting ◄────────► Pulling
//!                                 │ │ name taken
//!                                 │ └──► Naming ─► Starting (with a suffix)
//!              result `running`   ▼
//!                              Running ─── the process ends ──► Exited ── retention ──┐
//!                                 │ stop                                              │
//!                                 ▼                                                   ▼
//!   any failure, cancel ─────► Stopping ──────────────────────────────────────────► Clearing ─► (none)
//! ```
//! `Clearing` looks up the containers by label, removes each by its full ID and looks again; it ends only when a
//! listing that began afterwards shows none. `Unverified` replicas come from the record of an earlier process and
//! wait for the first listing; `Orphaned` ones wait for a CLI call that outlived that process.
//!
//! What is done in each state is `life.rs`; nothing here changes anything.

use std::time::{Duration, Instant};

use super::job::{Failure, FailureKind, JobId, PullCause};
use super::outbox::Gate;
use crate::protocol::Pull;
use crate::types::{ContainerId, PciAddress, RegistryAuth, ReplicaId, RequestId, Spec};

/// The most request IDs that one outcome answers.
pub const REQUESTS_MAX: usize = 64;

/// Why a command failed: the wire's stable word.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Code {
    /// The command cannot be carried out as it stands.
    Invalid,
    /// The image's configuration would steer the host.
    ImageRefused,
    /// A limit of the node is reached.
    Busy,
    /// Not as many GPUs are free.
    NoGpu,
    /// Too little space for images.
    NoDisk,
    /// The node does not know its containers yet.
    NotReady,
    /// The node takes no deploys.
    Draining,
    /// The replica exists with another specification.
    Conflict,
    /// The image could not be pulled.
    PullFailed,
    /// The container could not be started.
    StartFailed,
    /// The deadline passed.
    Timeout,
    /// A stop overtook it.
    Cancelled,
    /// The agent ended meanwhile.
    Interrupted,
    /// The engine does not answer.
    RuntimeUnavailable,
}

impl Code {
    const ALL: [(Self, &'static str); 14] = [
        (Self::Invalid, "invalid"),
        (Self::ImageRefused, "image_refused"),
        (Self::Busy, "busy"),
        (Self::NoGpu, "no_gpu"),
        (Self::NoDisk, "no_disk"),
        (Self::NotReady, "not_ready"),
        (Self::Draining, "draining"),
        (Self::Conflict, "conflict"),
        (Self::PullFailed, "pull_failed"),
        (Self::StartFailed, "start_failed"),
        (Self::Timeout, "timeout"),
        (Self::Cancelled, "cancelled"),
        (Self::Interrupted, "interrupted"),
        (Self::RuntimeUnavailable, "runtime_unavailable"),
    ];

    /// The wire's word.
    pub fn as_str(self) -> &'static str {
        Self::ALL.iter().find(|(code, _)| *code == self).map_or("", |(_, word)| word)
    }

    /// The code with this word.
    pub fn read(word: &str) -> Option<Self> {
        Self::ALL.iter().find(|(_, known)| *known == word).map(|(code, _)| *code)
    }
}

/// Why a deploy failed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refusal {
    /// The word.
    pub code: Code,
    /// The sentence.
    pub error: String,
    /// Why the image could not be pulled, where that is certain.
    pub detail: Option<PullCause>,
}

impl Refusal {
    /// A new one.
    pub fn new(code: Code, error: impl Into<String>) -> Self {
        Self { code, error: error.into(), detail: None }
    }

    /// Another one runs, or is on its way.
    pub fn conflict(id: &ReplicaId) -> Self {
        Self::new(Code::Conflict, format!("replica {id} exists with another specification: stop it first"))
    }

    /// What a failed call means for a deploy that was in `phase`: `pulling` or starting.
    pub fn from_failure(failure: Failure, pulling: bool) -> Self {
        let code = match failure.kind {
            FailureKind::Unavailable => Code::RuntimeUnavailable,
            FailureKind::Deadline => Code::Timeout,
            FailureKind::Impossible => Code::Invalid,
            FailureKind::ImageRefused => Code::ImageRefused,
            FailureKind::NoImage => Code::PullFailed,
            FailureKind::NameTaken
            | FailureKind::NameReserved
            | FailureKind::NoSuchContainer
            | FailureKind::Refused
                if !pulling =>
            {
                Code::StartFailed
            }
            FailureKind::NameTaken
            | FailureKind::NameReserved
            | FailureKind::NoSuchContainer
            | FailureKind::PullRefused(_)
            | FailureKind::Refused => Code::PullFailed,
        };
        let detail = match failure.kind {
            FailureKind::PullRefused(cause) => Some(cause),
            _ => None,
        };
        Self { code, error: failure.message, detail }
    }
}

/// A deploy whose outcome is not decided, or not told.
#[derive(Debug, Clone)]
pub struct Deploy {
    /// Names the attempt: the value of the container's label.
    pub id: String,
    /// Everyone who gets the outcome. `None`: a deploy without a request ID.
    pub requests: Vec<Option<RequestId>>,
    /// The specification's keyed hash.
    pub hash: String,
    /// What to do; `None` when it comes from the record of an earlier process, which holds no secrets.
    pub work: Option<Work>,
    /// When it was accepted.
    pub accepted: Instant,
    /// When it is given up.
    pub deadline: Instant,
    /// Its record.
    pub gate: Gate,
    /// The image was pulled for it.
    pub pulled: bool,
    /// How many names were found taken by a ghost.
    pub ghosts: u32,
    /// It failed, for this reason; told once its containers are gone.
    pub refusal: Option<(Refusal, Instant)>,
}

/// What a deploy needs to be carried out.
#[derive(Debug, Clone)]
pub struct Work {
    /// What to run.
    pub spec: Spec,
    /// For the image's registry.
    pub auth: Option<RegistryAuth>,
    /// When to pull.
    pub pull: Pull,
    /// How many GPUs it claims, and once claimed, what the CLI is given for each.
    pub gpus: Vec<(PciAddress, String)>,
}

/// A stop whose outcome is not told.
#[derive(Debug, Clone)]
pub struct Stop {
    /// Everyone who gets the outcome.
    pub requests: Vec<Option<RequestId>>,
    /// How long the container is given to end by itself.
    pub timeout: Duration,
    /// When it is reported as failed.
    pub deadline: Instant,
    /// Its record.
    pub gate: Gate,
}

/// How the end of a running container is noticed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sight {
    /// Not yet: its process is asked for at this time.
    Ask(Instant),
    /// Its process is being asked for.
    Asking(JobId),
    /// Its process is watched, and asked for once more: the ID may have been used again meanwhile.
    Checking(JobId, i32),
    /// Its process is watched.
    Watched(i32),
    /// It cannot be watched: the slow listing covers it.
    Unwatchable,
    /// Its process ended; the engine is asked at this time, for the n-th time.
    Confirm(Instant, u32),
    /// Its process ended; the engine is being asked, for the n-th time.
    Confirming(JobId, u32),
    /// The engine had no task for it: asked once more at this time before the task counts as lost.
    NoTask(Instant),
    /// The engine had no task for it and is being asked once more.
    NoTaskAgain(JobId),
}

/// How a container ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Exit {
    /// The code, where the engine knows it.
    pub code: Option<i32>,
    /// Whether the kernel ended it for want of memory, where that is known.
    pub oom: Option<bool>,
}

/// How far the removal of a replica's containers is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// Waits for a listing that began at or after this tick.
    Look(u64),
    /// A container is being removed.
    Remove(JobId),
    /// The engine did not do it: looks again at this time.
    Pause(Instant),
}

/// The state of a replica.
#[derive(Debug, Clone)]
pub enum Phase {
    /// Whether its container runs is not known, and a listing decides: it is known from an earlier process, or the
    /// engine cannot say how it is (`unclear`).
    Unverified,
    /// A CLI call of an earlier process is still at work on it, until this time at most.
    Orphaned(Instant),
    /// Accepted; waits for its record, the table, GPUs and a place.
    Queued,
    /// The image is being pulled.
    Pulling(JobId),
    /// The container is being started.
    Starting(JobId),
    /// The container's name is taken: its holder is looked at.
    Naming(JobId, Failure),
    /// It runs.
    Running(ContainerId, Sight),
    /// It ended by itself, at this time; its container is kept for its log.
    Exited(ContainerId, Exit, Instant),
    /// It is being stopped; `None`: waits for its record, or until this time after a failed try.
    Stopping(ContainerId, Option<JobId>, Instant),
    /// Its containers are being removed.
    Clearing(Step),
}

/// A replica.
#[derive(Debug, Clone)]
pub struct Replica {
    /// Its ID.
    pub id: ReplicaId,
    /// Its state.
    pub phase: Phase,
    /// The tick at which the state last changed: an older listing says nothing about it.
    pub touched: u64,
    /// The deploy whose outcome is awaited.
    pub deploy: Option<Deploy>,
    /// The deploy that starts when everything of this one is gone.
    pub next: Option<Deploy>,
    /// The stop whose outcome is awaited.
    pub stop: Option<Stop>,
    /// The hash of the specification that it runs.
    pub hash: String,
    /// The deploy that started it.
    pub deploy_id: String,
    /// The GPUs that it holds.
    pub gpus: Vec<PciAddress>,
    /// The stop timeout that its deploy asked for.
    pub stop_timeout: Option<Duration>,
    /// It is to go: stopped, cancelled or failed.
    pub doomed: bool,
    /// An earlier process saw it run: should it be missing, that is told.
    pub known: bool,
    /// Its exit was told.
    pub exit_told: bool,
    /// What the engine says in the place of the container's state, while it cannot tell that.
    pub unclear: Option<String>,
    /// Removals asked for.
    pub removals: u32,
    /// The number of removals after which it was paused.
    pub paused: u32,
}

/// What the tables tell apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stage {
    /// None, or gone.
    None,
    /// Queued, pulling, starting.
    Coming,
    /// Running.
    Running,
    /// Stopping, or being removed; with a deploy that waits behind, or without.
    Going {
        /// Whether a deploy waits.
        next: bool,
    },
    /// Exited.
    Ended,
}

impl Replica {
    /// A replica that waits to be started.
    pub fn queued(id: ReplicaId, deploy: Deploy, touched: u64) -> Self {
        let mut replica = Self::bare(id, Phase::Queued, touched);
        replica.accept(deploy);
        replica
    }

    /// A replica in `phase`, of which nothing else is known.
    pub fn bare(id: ReplicaId, phase: Phase, touched: u64) -> Self {
        Self {
            id,
            phase,
            touched,
            deploy: None,
            next: None,
            stop: None,
            hash: String::new(),
            deploy_id: String::new(),
            gpus: Vec::new(),
            stop_timeout: None,
            doomed: false,
            known: false,
            exit_told: false,
            unclear: None,
            removals: 0,
            paused: 0,
        }
    }

    /// Makes `deploy` the one whose outcome is awaited.
    pub fn accept(&mut self, deploy: Deploy) {
        self.hash.clone_from(&deploy.hash);
        self.deploy_id.clone_from(&deploy.id);
        self.deploy = Some(deploy);
    }

    /// Enters `phase`: listings that began before `tick` say nothing about it.
    pub fn enter(&mut self, phase: Phase, tick: u64) {
        self.phase = phase;
        self.touched = tick;
    }

    /// Whether it takes one of the places for deploys at once.
    pub fn is_starting(&self) -> bool {
        matches!(self.phase, Phase::Pulling(_) | Phase::Starting(_) | Phase::Naming(..))
    }

    /// What the tables tell apart.
    pub fn stage(&self) -> Stage {
        match &self.phase {
            Phase::Stopping(..) | Phase::Clearing(_) => Stage::Going { next: self.next.is_some() },
            Phase::Unverified
            | Phase::Orphaned(_)
            | Phase::Queued
            | Phase::Pulling(_)
            | Phase::Starting(_)
            | Phase::Naming(..)
            | Phase::Running(..)
            | Phase::Exited(..)
                if self.doomed =>
            {
                Stage::Going { next: self.next.is_some() }
            }
            Phase::Queued | Phase::Pulling(_) | Phase::Starting(_) | Phase::Naming(..) => Stage::Coming,
            Phase::Running(..) => Stage::Running,
            Phase::Exited(..) => Stage::Ended,
            Phase::Unverified | Phase::Orphaned(_) if self.deploy.is_some() => Stage::Coming,
            // Lost from sight: whether it runs is known after the next listing.
            Phase::Unverified | Phase::Orphaned(_) => Stage::Going { next: self.next.is_some() },
        }
    }

    /// The wire's word for the state.
    pub fn status(&self) -> &'static str {
        match &self.phase {
            Phase::Unverified | Phase::Orphaned(_) => "unknown",
            Phase::Pulling(_) => "pulling",
            Phase::Queued | Phase::Starting(_) | Phase::Naming(..) => "starting",
            Phase::Running(
                _,
                Sight::Confirm(..) | Sight::Confirming(..) | Sight::NoTask(_) | Sight::NoTaskAgain(_),
            ) => "unknown",
            Phase::Running(..) => "running",
            Phase::Exited(..) => "exited",
            Phase::Stopping(..) => "stopping",
            Phase::Clearing(_) if self.deploy.as_ref().is_some_and(|d| d.refusal.is_some()) => "failed",
            Phase::Clearing(_) => "stopping",
        }
    }

    /// The job that the state waits for.
    pub fn job(&self) -> Option<JobId> {
        match &self.phase {
            Phase::Pulling(job) | Phase::Starting(job) | Phase::Naming(job, _) => Some(*job),
            Phase::Running(
                _,
                Sight::Asking(job)
                | Sight::Checking(job, _)
                | Sight::Confirming(job, _)
                | Sight::NoTaskAgain(job),
            ) => Some(*job),
            Phase::Stopping(_, job, _) => *job,
            Phase::Clearing(Step::Remove(job)) => Some(*job),
            Phase::Unverified
            | Phase::Orphaned(_)
            | Phase::Queued
            | Phase::Running(..)
            | Phase::Exited(..)
            | Phase::Clearing(_) => None,
        }
    }

    /// Whether the outcome of this request is awaited.
    pub fn awaits_request(&self, request: Option<&RequestId>) -> bool {
        let known = |requests: &[Option<RequestId>]| requests.iter().any(|known| known.as_ref() == request);
        self.deploy.as_ref().is_some_and(|deploy| known(&deploy.requests))
            || self.next.as_ref().is_some_and(|next| known(&next.requests))
            || self.stop.as_ref().is_some_and(|stop| known(&stop.requests))
    }

    /// Whether a deploy that arrives is one whose outcome is awaited here already: one that failed and is being
    /// removed too. Without a request ID, one that follows a stop is another.
    pub fn awaits(&self, request: Option<&RequestId>, hash: &str) -> bool {
        let known = |deploy: &Deploy| deploy.requests.iter().any(|known| known.as_ref() == request);
        let deploy = self.deploy.as_ref().filter(|deploy| known(deploy));
        let next = self.next.as_ref().filter(|next| known(next));
        match request {
            Some(_) => deploy.is_some() || next.is_some(),
            None => {
                let equal = |deploy: &Deploy| same_spec(&deploy.hash, hash);
                self.stop.is_none() && deploy.is_some_and(equal) || next.is_some_and(equal)
            }
        }
    }

    /// Whether someone still waits for an outcome.
    pub fn owes(&self) -> bool {
        self.owed() > 0
    }

    /// How many results are still to be told.
    pub fn owed(&self) -> usize {
        let deploys = [&self.deploy, &self.next].into_iter().flatten().map(|deploy| deploy.requests.len());
        deploys.sum::<usize>() + self.stop.as_ref().map_or(0, |stop| stop.requests.len())
    }
}

/// What a `deploy` means.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OnDeploy {
    /// Start it.
    Start,
    /// It gets the outcome of the one under way.
    Join,
    /// It runs: say so.
    Running,
    /// It exists, otherwise: refuse.
    Conflict,
    /// It starts when what is going is gone.
    After,
    /// It gets the outcome of the one that waits.
    JoinNext,
    /// Remove what ended, then start.
    Replace,
}

/// What a `deploy` means in `stage`; `same`: as the one under way or running; `same_next`: as the one that waits.
pub fn on_deploy(stage: Stage, same: bool, same_next: bool) -> OnDeploy {
    match stage {
        Stage::None => OnDeploy::Start,
        Stage::Coming if same => OnDeploy::Join,
        Stage::Running if same => OnDeploy::Running,
        Stage::Coming | Stage::Running => OnDeploy::Conflict,
        Stage::Going { next: false } => OnDeploy::After,
        Stage::Going { next: true } if same_next => OnDeploy::JoinNext,
        Stage::Going { next: true } => OnDeploy::Conflict,
        Stage::Ended => OnDeploy::Replace,
    }
}

/// What a `stop` means.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OnStop {
    /// There is nothing: say so.
    Gone,
    /// End what is coming.
    Cancel,
    /// Stop what runs.
    Stop,
    /// It gets the outcome of what is going; a deploy that waits behind it is cancelled.
    Join,
    /// Remove what ended.
    Remove,
}

/// What a `stop` means in `stage`.
pub fn on_stop(stage: Stage) -> OnStop {
    match stage {
        Stage::None => OnStop::Gone,
        Stage::Coming => OnStop::Cancel,
        Stage::Running => OnStop::Stop,
        Stage::Going { .. } => OnStop::Join,
        Stage::Ended => OnStop::Remove,
    }
}

/// Whether two hashes stand for the same specification. A hash is `<key>.<hash>`: one made with another key, or none,
/// says nothing, and counts as the same.
pub fn same_spec(one: &str, other: &str) -> bool {
    match (one.split_once('.'), other.split_once('.')) {
        (Some((key, hash)), Some((other_key, other_hash))) => key != other_key || hash == other_hash,
        (None, _) | (_, None) => true,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_of_the_protocol() {
        let going = Stage::Going { next: false };
        let waiting = Stage::Going { next: true };
        let check = |stage, same, other, stop| {
            assert_eq!(on_deploy(stage, true, true), same, "{stage:?}, same specification");
            assert_eq!(on_deploy(stage, false, false), other, "{stage:?}, other specification");
            assert_eq!(on_stop(stage), stop, "{stage:?}, stop");
        };
        check(Stage::None, OnDeploy::Start, OnDeploy::Start, OnStop::Gone);
        check(Stage::Coming, OnDeploy::Join, OnDeploy::Conflict, OnStop::Cancel);
        check(Stage::Running, OnDeploy::Running, OnDeploy::Conflict, OnStop::Stop);
        check(going, OnDeploy::After, OnDeploy::After, OnStop::Join);
        check(waiting, OnDeploy::JoinNext, OnDeploy::Conflict, OnStop::Join);
        check(Stage::Ended, OnDeploy::Replace, OnDeploy::Replace, OnStop::Remove);
    }

    #[test]
    fn a_hash_with_an_unknown_key_counts_as_the_same() {
        assert!(same_spec("k.1", "k.1"));
        assert!(!same_spec("k.1", "k.2"));
        assert!(same_spec("k.1", "l.2"));
        assert!(same_spec("", "k.2"));
        assert!(same_spec("k.1", "plain"));
    }

    #[test]
    fn codes_are_the_wires_words() {
        for (code, word) in Code::ALL {
            assert_eq!(Code::read(word), Some(code));
            assert_eq!(code.as_str(), word);
        }
        assert_eq!(Code::read("other"), None);
    }
}
