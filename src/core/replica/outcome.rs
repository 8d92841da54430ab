//! Outcomes of commands and of containers, as they are reported.

use std::str::FromStr;
use std::time::Duration;

use crate::core::job::{Failure, FailureKind, PullCause};
use crate::types::{ContainerId, HostPort, PciAddress, ReplicaId, RequestId};

/// Why a command failed: the stable word on the wire.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Code {
    /// The command cannot be carried out as it stands.
    Invalid,
    /// The host does not permit it: a port that it is to publish is in use.
    NotAllowed,
    /// The image's configuration would steer the host.
    ImageRefused,
    /// A limit of the node is reached.
    Busy,
    /// Not as many GPUs are free.
    NoGpu,
    /// Less memory is free.
    NoMemory,
    /// The host has fewer CPUs.
    NoCpu,
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
    const ALL: [Self; 17] = [
        Self::Invalid,
        Self::NotAllowed,
        Self::ImageRefused,
        Self::Busy,
        Self::NoGpu,
        Self::NoMemory,
        Self::NoCpu,
        Self::NoDisk,
        Self::NotReady,
        Self::Draining,
        Self::Conflict,
        Self::PullFailed,
        Self::StartFailed,
        Self::Timeout,
        Self::Cancelled,
        Self::Interrupted,
        Self::RuntimeUnavailable,
    ];

    pub(crate) const fn as_str(self) -> &'static str {
        match self {
            Self::Invalid => "invalid",
            Self::NotAllowed => "not_allowed",
            Self::ImageRefused => "image_refused",
            Self::Busy => "busy",
            Self::NoGpu => "no_gpu",
            Self::NoMemory => "no_memory",
            Self::NoCpu => "no_cpu",
            Self::NoDisk => "no_disk",
            Self::NotReady => "not_ready",
            Self::Draining => "draining",
            Self::Conflict => "conflict",
            Self::PullFailed => "pull_failed",
            Self::StartFailed => "start_failed",
            Self::Timeout => "timeout",
            Self::Cancelled => "cancelled",
            Self::Interrupted => "interrupted",
            Self::RuntimeUnavailable => "runtime_unavailable",
        }
    }
}

impl FromStr for Code {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        Self::ALL.into_iter().find(|code| code.as_str() == text).ok_or(())
    }
}

/// Why a command was refused, or failed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Refusal {
    pub(crate) code: Code,
    /// The sentence for a person.
    pub(crate) error: String,
    /// Why the image could not be pulled, where that is certain.
    pub(crate) detail: Option<PullCause>,
}

impl Refusal {
    pub(crate) fn new(code: Code, error: impl Into<String>) -> Self {
        Self { code, error: error.into(), detail: None }
    }

    /// Another specification runs, or is on its way.
    pub(crate) fn conflict(id: &ReplicaId) -> Self {
        Self::new(Code::Conflict, format!("replica {id} exists with another specification: stop it first"))
    }

    /// A port that it is to publish is another replica's.
    pub(crate) fn port_of_another(port: HostPort, holder: &ReplicaId) -> Self {
        let why = format!(
            "port {port} of the host is published by replica {holder}: choose another, or stop that one"
        );
        Self::new(Code::NotAllowed, why)
    }

    pub(crate) fn interrupted() -> Self {
        Self::new(Code::Interrupted, "the agent was ended before the deploy was done")
    }

    pub(crate) fn cancelled() -> Self {
        Self::new(Code::Cancelled, "stopped before it was running")
    }

    pub(crate) fn too_many_requests() -> Self {
        Self::new(Code::Busy, "too many requests wait for this replica: ask again later")
    }

    /// What a failed call means for a deploy. `pulling`: the call was the pull.
    pub(crate) fn from_failure(failure: Failure, pulling: bool) -> Self {
        let code = match failure.kind {
            FailureKind::Unavailable => Code::RuntimeUnavailable,
            FailureKind::Deadline => Code::Timeout,
            FailureKind::Impossible => Code::Invalid,
            FailureKind::PortInUse => Code::NotAllowed,
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
        let detail = if let FailureKind::PullRefused(cause) = failure.kind { Some(cause) } else { None };
        Self { code, error: failure.message, detail }
    }
}

/// How a container ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Exit {
    /// The code, where the engine knows it.
    pub(crate) code: Option<i32>,
    /// Whether the kernel ended it for want of memory, where that is known.
    pub(crate) oom: Option<bool>,
    /// Not the program ended but what ran it: its microVM's hypervisor, guest or shim.
    pub(crate) microvm_ended: bool,
}

impl Exit {
    /// The program's own end.
    pub(crate) fn of_program(code: Option<i32>, oom: Option<bool>) -> Self {
        Self { code, oom, microvm_ended: false }
    }
}

/// An outcome for the control plane.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Report {
    Running {
        requests: Vec<Option<RequestId>>,
        spec_hash: String,
        container: Option<ContainerId>,
        gpus: Vec<PciAddress>,
        took: Option<Duration>,
        /// What of the deploy does not reach the container.
        warnings: Vec<String>,
    },
    Failed {
        requests: Vec<Option<RequestId>>,
        spec_hash: String,
        refusal: Refusal,
        took: Duration,
    },
    Stopped {
        requests: Vec<Option<RequestId>>,
        /// Why it was not, in time.
        refusal: Option<Refusal>,
    },
    Exited(Exit),
    /// A container that ran is no more, and nobody here removed it.
    Vanished,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_are_the_words_on_the_wire() {
        for code in Code::ALL {
            assert_eq!(code.as_str().parse(), Ok(code));
        }
        assert_eq!("other".parse::<Code>(), Err(()));
    }
}
