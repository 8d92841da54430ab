//! Outcomes of commands and of containers, as they are reported.

use std::time::Duration;

use serde_json::{Map, Value};

use crate::core::job::{Failure, FailureKind, PullCause};
use crate::types::{ContainerId, HostPort, PciAddress, ReplicaId, RequestId, word_enum};

word_enum! {
    /// Why a command failed: the stable word on the wire.
    pub(crate) enum Code {
        /// The command cannot be carried out as it stands.
        Invalid = "invalid",
        /// The host, or its owner, does not permit it.
        NotAllowed = "not_allowed",
        /// The image's configuration would steer the host.
        ImageRefused = "image_refused",
        /// A limit of the node is reached.
        Busy = "busy",
        /// Not as many GPUs are free.
        NoGpu = "no_gpu",
        /// Less memory is free.
        NoMemory = "no_memory",
        /// The host has fewer CPUs.
        NoCpu = "no_cpu",
        /// Too little space for images.
        NoDisk = "no_disk",
        /// The node does not know its containers yet.
        NotReady = "not_ready",
        /// The node takes no deploys.
        Draining = "draining",
        /// The replica exists with another specification.
        Conflict = "conflict",
        /// The image could not be pulled.
        PullFailed = "pull_failed",
        /// The container could not be started.
        StartFailed = "start_failed",
        /// The deadline passed.
        Timeout = "timeout",
        /// A stop overtook it.
        Cancelled = "cancelled",
        /// The agent ended meanwhile.
        Interrupted = "interrupted",
        /// The engine does not answer.
        RuntimeUnavailable = "runtime_unavailable",
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
        Self::new(Code::Interrupted, "the agent exited before the deploy finished")
    }

    pub(crate) fn cancelled() -> Self {
        Self::new(Code::Cancelled, "cancelled by a stop before it was running")
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
            FailureKind::NoSpace => Code::NoDisk,
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
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Exit {
    /// The code, where the engine knows it.
    pub(crate) code: Option<i32>,
    /// Whether the kernel ended it for want of memory, where that is known.
    pub(crate) oom: Option<bool>,
    /// Not the program ended but what ran it: its microVM's hypervisor, guest or shim.
    pub(crate) microvm_ended: bool,
    /// It ended with the host, which was booted anew since.
    pub(crate) rebooted: bool,
}

impl Exit {
    /// The program's own end.
    pub(crate) fn of_program(code: Option<i32>, oom: Option<bool>) -> Self {
        Self { code, oom, ..Self::default() }
    }

    /// The status on the wire: nothing is known of the program's own end where it failed.
    pub(crate) fn status(self) -> &'static str {
        if self.microvm_ended || self.rebooted { "failed" } else { "exited" }
    }

    /// Writes what is known of it into a message.
    pub(crate) fn describe(self, message: &mut Map<String, Value>) {
        message.extend(self.code.map(|code| ("exit_code".to_owned(), code.into())));
        message.extend(self.oom.map(|oom| ("oom_killed".to_owned(), oom.into())));
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
    /// A container that ran is gone, and the agent did not remove it.
    Vanished,
}
