//! What the core is fed, and what it answers with.

use std::collections::BTreeMap;
use std::fmt;

use log::Level;
use serde_json::Value;

use super::cleanup::Cleanup;
use super::identity::Identity;
use super::inventory::{Check, Hardware, Usage};
use super::job::{Job, JobId, Outcome};
use super::link_api::{LinkCommand, LinkEvent, LinkId};
use super::operator::{ControlId, Request};
use crate::types::{ContainerId, PciAddress, ReplicaId};

/// A reading of the host.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sample {
    /// Memory, disk, use of the GPUs.
    Usage,
    /// The dependencies.
    Checks,
    /// What the host is made of, the GPUs above all.
    Hardware,
}

/// A `run` that an earlier process called, as its labels say.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LeftoverCall {
    /// Of which replica.
    pub replica: ReplicaId,
    /// The GPUs that it claimed.
    pub gpus: Vec<PciAddress>,
}

/// Everything that can happen.
#[derive(Debug)]
pub enum Event {
    /// Nothing but time passed.
    Tick,
    /// The heartbeat's timer fired.
    HeartbeatDue,
    /// Something happened on a link.
    Link(LinkId, LinkEvent),
    /// A job came back.
    Job(JobId, Outcome),
    /// The process that stands for a container ended.
    ProcessEnded(ContainerId),
    /// The process that stands for a container cannot be watched.
    Unwatchable(ContainerId),
    /// The calls of an earlier process that are still at work, by their deploy. `None`: they cannot be looked for.
    LeftoverCalls(Option<BTreeMap<String, LeftoverCall>>),
    /// A reading of what changes all the time.
    Usage(Usage),
    /// A reading of what the host is made of.
    Hardware(Box<Hardware>),
    /// One dependency was checked.
    Check(Check),
    /// All dependencies were checked.
    ChecksDone,
    /// The record with this number is on disk.
    Saved(u64),
    /// The record with this number could not be saved: why.
    SaveFailed(u64, String),
    /// The table of replicas is on disk.
    TableSaved,
    /// The table of replicas could not be saved: why.
    TableFailed(String),
    /// The identity is on disk.
    IdentitySaved,
    /// The identity could not be saved: why.
    IdentityFailed(String),
    /// An operator asks something.
    Control(ControlId, Request),
    /// SIGTERM or SIGINT.
    Terminate,
    /// SIGHUP.
    Reload,
}

/// Everything that the edges are told to do.
#[derive(Debug)]
pub enum Action {
    /// For the link thread.
    Link(LinkCommand),
    /// For the pool.
    Job(JobId, Job),
    /// Cancel a job, if that does no harm.
    CancelJob(JobId),
    /// Watch the process that stands for a container, and no other for it.
    Watch(ContainerId, i32),
    /// Stop watching it.
    Unwatch(ContainerId),
    /// Look for CLI calls of an earlier process.
    FindLeftoverCalls,
    /// End the CLI calls of an earlier process for this deploy.
    EndLeftoverCalls(String),
    /// End the shim of this container, which hangs.
    EndShim(ContainerId),
    /// Delete what no container needs any more: log files, helper processes.
    CleanUp(Cleanup),
    /// Read something of the host.
    Sample(Sample),
    /// Save the record under this number.
    Save(u64, String),
    /// Save the table of replicas.
    SaveTable(String),
    /// Save the identity.
    SaveIdentity(Identity),
    /// Answer an operator.
    Reply(ControlId, Value),
    /// Tell the log.
    Log(Level, String),
    /// End the process.
    End(End),
}

/// How the process ends.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum End {
    /// It was told to stop.
    Clean,
    /// There is no identity, and no way to get one: why.
    NoIdentity(String),
    /// The organisation token is refused: why.
    TokenRefused(String),
}

impl fmt::Display for Event {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tick => f.write_str("tick"),
            Self::HeartbeatDue => f.write_str("heartbeat due"),
            Self::Link(link, event) => {
                let what = match event {
                    LinkEvent::Up => "up",
                    LinkEvent::Text(_) => "text",
                    LinkEvent::NotText(_) => "not text",
                    LinkEvent::Pong(_) => "pong",
                    LinkEvent::Alive => "alive",
                    LinkEvent::Down(_) => "down",
                    LinkEvent::Registered(_) => "registration answered",
                };
                write!(f, "{link}: {what}")
            }
            Self::Job(job, outcome) => write!(f, "{job}: {outcome}"),
            Self::ProcessEnded(container) => write!(f, "process of {} ended", container.short()),
            Self::Unwatchable(container) => write!(f, "process of {} cannot be watched", container.short()),
            Self::LeftoverCalls(None) => f.write_str("calls of an earlier process cannot be looked for"),
            Self::LeftoverCalls(Some(calls)) => {
                write!(f, "{} calls of an earlier process at work", calls.len())
            }
            Self::Usage(_) => f.write_str("usage read"),
            Self::Hardware(_) => f.write_str("hardware read"),
            Self::Check(check) => write!(f, "{} checked", check.name),
            Self::ChecksDone => f.write_str("dependencies checked"),
            Self::Saved(seq) => write!(f, "record {seq} saved"),
            Self::SaveFailed(seq, why) => write!(f, "record {seq} not saved: {why}"),
            Self::TableSaved => f.write_str("table saved"),
            Self::TableFailed(why) => write!(f, "table not saved: {why}"),
            Self::IdentitySaved => f.write_str("identity saved"),
            Self::IdentityFailed(why) => write!(f, "identity not saved: {why}"),
            Self::Control(..) => f.write_str("operator's request"),
            Self::Terminate => f.write_str("told to stop"),
            Self::Reload => f.write_str("told to check again"),
        }
    }
}

impl fmt::Display for Action {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Link(order) => match order {
                LinkCommand::Dial { link, .. } => write!(f, "{link}: dial"),
                LinkCommand::Register { link, .. } => write!(f, "{link}: register"),
                LinkCommand::Send(link, text) => write!(f, "{link}: send {} bytes", text.len()),
                LinkCommand::Ping(link, number) => write!(f, "{link}: ping {number}"),
                LinkCommand::Close { link, code, .. } => write!(f, "{link}: close with {code}"),
                LinkCommand::Reject { link, .. } => write!(f, "{link}: reject"),
                LinkCommand::Abandon(link) => write!(f, "{link}: abandon"),
            },
            Self::Job(id, job) => write!(f, "{id}: {job}"),
            Self::CancelJob(id) => write!(f, "{id}: cancel"),
            Self::Watch(container, pid) => write!(f, "watch {pid} for {}", container.short()),
            Self::Unwatch(container) => write!(f, "watch nothing for {}", container.short()),
            Self::FindLeftoverCalls => f.write_str("look for calls of an earlier process"),
            Self::EndLeftoverCalls(deploy) => write!(f, "end the calls for deploy {deploy}"),
            Self::EndShim(container) => write!(f, "end the shim of {}", container.short()),
            Self::CleanUp(cleanup) => write!(f, "clean up after {} containers", cleanup.gone.len()),
            Self::Sample(sample) => write!(f, "read {sample:?}"),
            Self::Save(seq, _) => write!(f, "save record {seq}"),
            Self::SaveTable(_) => f.write_str("save the table"),
            Self::SaveIdentity(_) => f.write_str("save the identity"),
            Self::Reply(..) => f.write_str("answer the operator"),
            Self::Log(_, text) => f.write_str(text),
            Self::End(_) => f.write_str("end"),
        }
    }
}
