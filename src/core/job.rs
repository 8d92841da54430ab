//! The work that the core gives to the engine's pool, and what comes back. Most jobs are one CLI call.

use std::collections::BTreeSet;
use std::fmt;
use std::time::Duration;

use super::inventory::GpuUse;
use crate::types::{ContainerId, ImageRef, PciAddress, RegistryAuth, ReplicaId, Spec, word_enum};

/// The label that makes a container ours; its value is the replica's ID.
pub const LABEL_REPLICA: &str = "vectorlay.replica";
/// The label that names the deploy that started a container.
pub const LABEL_DEPLOY: &str = "vectorlay.deploy";
/// The label with the keyed hash of the specification.
pub const LABEL_SPEC: &str = "vectorlay.spec";
/// The label with the PCI addresses of the container's GPUs, joined by `+`; absent without GPUs.
pub const LABEL_GPUS: &str = "vectorlay.gpus";
/// Between two addresses of [`LABEL_GPUS`].
const GPU_SEPARATOR: char = '+';
/// The label with the node's ID when the container was started: it tells this node's CLI calls from
/// others'. Containers are adopted whatever it says.
pub const LABEL_NODE: &str = "vectorlay.node";

/// The label with the image as the deploy named it, for people: the container is run by digest, and that is what the
/// engine lists.
pub const LABEL_IMAGE: &str = "vectorlay.image";

/// The label that makes a container one of a proof: the process that made it, by number and start time.
pub const LABEL_PROOF: &str = "vectorlay.proof";

/// Names one job. Never used again within a process.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct JobId(pub u64);

impl fmt::Display for JobId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "job {}", self.0)
    }
}

/// `text` with what a label's value may not have replaced.
pub fn label_value(text: &str) -> String {
    text.chars().map(|c| if matches!(c, ',' | '=' | '\n' | '"') { '_' } else { c }).collect()
}

/// The value of [`LABEL_GPUS`] for these GPUs.
pub fn gpus_label(gpus: &[(PciAddress, String)]) -> String {
    let addresses: Vec<String> = gpus.iter().map(|(address, _)| address.to_string()).collect();
    addresses.join(&GPU_SEPARATOR.to_string())
}

/// The addresses in a value of [`LABEL_GPUS`], as they stand there.
pub fn gpus_of_label(label: &str) -> impl Iterator<Item = &str> {
    label.split(GPU_SEPARATOR).filter(|address| !address.is_empty())
}

/// Whether `text` has the form of a deploy's ID: 16 lower-case hexadecimal digits.
pub fn is_deploy_id(text: &str) -> bool {
    text.len() == 16 && text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'))
}

/// Longest name of a container, in bytes: containerd's identifiers have 76 at most, and a suffix may follow.
const NAME_MAX: usize = 72;

/// The name of a replica's container where `taken` names are held by no container. nerdctl 1.7 takes containerd's
/// identifiers alone (letters and digits, in groups with one of `._-` between them): an ID of another form is changed
/// to that, with a hash of what it was behind it. Containers are known by their labels, never by their names.
pub fn container_name(replica: &ReplicaId, taken: u32) -> String {
    let id = replica.as_str();
    let mut name = "replica".to_owned();
    for part in id.split(['.', '_', '-']).filter(|part| !part.is_empty()) {
        name.push('-');
        name.push_str(part);
    }
    let plain = format!("replica-{id}");
    // The same but for its separators: none is doubled, or at an end.
    let fits = name.len() == plain.len() && plain.len() <= NAME_MAX;
    let mut name = if fits {
        plain
    } else {
        // FNV-1a, 64 bits.
        let hash = id.bytes().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
            (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
        });
        name.truncate(NAME_MAX - 17);
        format!("{}-{hash:016x}", name.trim_end_matches('-'))
    };
    if taken > 0 {
        name.push_str(&format!("-{}", taken + 1));
    }
    name
}

/// One operation of the container engine.
#[derive(Debug, Clone)]
pub enum Job {
    /// `run -d --pull never`, after a look at the image's configuration.
    Run(Box<RunJob>),
    /// `pull`.
    Pull(Box<PullJob>),
    /// All containers that carry [`LABEL_REPLICA`].
    List,
    /// One container's state.
    Inspect(ContainerId),
    /// `stop -t`: TERM, then KILL after the time given.
    Stop(ContainerId, Duration),
    /// `rm -f`. That it worked is only claimed, never proved: list again.
    Remove(ContainerId),
    /// The last lines of a container's log.
    Logs(ContainerId, u32),
    /// `version`: whether the engine answers.
    Probe,
    /// `images`: the names of all images.
    Images,
    /// `rmi`, without force: the engine refuses while any container uses the image.
    RemoveImage(ImageRef),
    /// `exec`: how busy the GPUs are that a container sees.
    GuestUse(ContainerId, Vendor),
}

/// Who made a GPU: what is asked inside a container differs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Vendor {
    /// Asked with nvidia-smi.
    Nvidia,
    /// Asked by amdgpu's files.
    Amd,
}

/// `run -d`: everything that it needs.
#[derive(Debug, Clone)]
pub struct RunJob {
    /// The container's name, by [`container_name`].
    pub name: String,
    /// What to run.
    pub spec: Spec,
    /// The labels, with values that are never empty and have no `,`, `=` or newline.
    pub labels: Vec<(&'static str, String)>,
    /// The GPUs: address and what `--device` is given.
    pub gpus: Vec<(PciAddress, String)>,
    /// Containers that ended with the host and are kept for their logs: nobody has given their addresses back.
    pub ended_by_reboot: BTreeSet<ContainerId>,
    /// Ends the call.
    pub deadline: Duration,
}

/// `pull`.
#[derive(Debug, Clone)]
pub struct PullJob {
    /// The image.
    pub image: ImageRef,
    /// Credentials for its registry.
    pub auth: Option<RegistryAuth>,
    /// Ends the call.
    pub deadline: Duration,
}

impl fmt::Display for Job {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Run(run) => write!(f, "run {}", run.name),
            Self::Pull(pull) => write!(f, "pull {}", pull.image),
            Self::List => f.write_str("list"),
            Self::Inspect(id) => write!(f, "inspect {}", id.short()),
            Self::Stop(id, _) => write!(f, "stop {}", id.short()),
            Self::Remove(id) => write!(f, "remove {}", id.short()),
            Self::Logs(id, _) => write!(f, "logs of {}", id.short()),
            Self::Probe => f.write_str("probe"),
            Self::Images => f.write_str("images"),
            Self::RemoveImage(image) => write!(f, "remove image {image}"),
            Self::GuestUse(id, _) => write!(f, "use of the GPUs in {}", id.short()),
        }
    }
}

/// What became of a job.
#[derive(Debug, Clone, PartialEq)]
pub enum Outcome {
    /// Of [`Job::Run`].
    Ran(Result<ContainerId, Failure>),
    /// Of [`Job::Pull`].
    Pulled(Result<(), Failure>),
    /// Of [`Job::List`]: complete, or an error; never a part.
    Listed(Result<Vec<Listed>, Failure>),
    /// Of [`Job::Inspect`]; `None`: the engine says that there is no such container.
    Inspected(Result<Option<Inspected>, Failure>),
    /// Of [`Job::Stop`].
    Stopped(Result<(), Failure>),
    /// Of [`Job::Remove`].
    Removed(Result<(), Failure>),
    /// Of [`Job::Logs`]: lines, and whether some were left out.
    Logs(Result<(Vec<String>, bool), Failure>),
    /// Of [`Job::Probe`].
    Probed(Result<(), Failure>),
    /// Of [`Job::Images`]: the oldest first.
    Images(Result<Vec<ImageRef>, Failure>),
    /// Of [`Job::RemoveImage`].
    ImageRemoved(Result<(), Failure>),
    /// Of [`Job::GuestUse`]: of each GPU that could be read.
    GuestUse(Result<Vec<GpuUse>, Failure>),
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let failure = match self {
            Self::Ran(result) => result.as_ref().err(),
            Self::Pulled(result)
            | Self::Stopped(result)
            | Self::Removed(result)
            | Self::Probed(result)
            | Self::ImageRemoved(result) => result.as_ref().err(),
            Self::Images(result) => result.as_ref().err(),
            Self::GuestUse(result) => result.as_ref().err(),
            Self::Listed(result) => result.as_ref().err(),
            Self::Inspected(result) => result.as_ref().err(),
            Self::Logs(result) => result.as_ref().err(),
        };
        match failure {
            None => f.write_str("done"),
            Some(failure) => write!(f, "{failure}"),
        }
    }
}

/// A line of the engine's list.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Listed {
    /// The container.
    pub id: ContainerId,
    /// [`LABEL_REPLICA`], as it stands there.
    pub replica: String,
    /// [`LABEL_DEPLOY`]; empty when it has none.
    pub deploy: String,
    /// [`LABEL_SPEC`]; empty when it has none.
    pub spec: String,
    /// [`LABEL_GPUS`], read.
    pub gpus: Vec<PciAddress>,
    /// What the engine's status says.
    pub status: ListedStatus,
}

/// The status column of `ps`, read (its text begins so in nerdctl and in Docker).
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ListedStatus {
    /// `Created`: it never ran, or its task is lost. nerdctl prints it only where containerd says "not found"; every
    /// other failure to ask for the task is `Unknown` (`ContainerStatus` in its `pkg/formatter`).
    Created,
    /// `Up …`.
    Up,
    /// `Exited (N) …`.
    Exited(i32),
    /// Anything else, as it stands there (`Unknown`, `Paused`, `Restarting`, `Removal In Progress`, `Dead`). It does
    /// not say that the container ended.
    Unclear(String),
}

/// What `inspect` says of one container.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Inspected {
    /// Its state.
    pub state: InspectedState,
    /// Whether the kernel ended it for want of memory, where that is known: Docker says so, and for
    /// nerdctl the kernel's log does.
    pub oom_killed: Option<bool>,
}

/// A container's state.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum InspectedState {
    /// The engine has no task for it, and had no trouble to find out: never started, or lost by a reboot of the host.
    NoTask,
    /// It runs; the process that stands for it on the host, where the engine gives one.
    Running(Option<i32>),
    /// It ended with this code.
    Exited(i32),
    /// The engine cannot say (the container's shim does not answer), or says something else (paused, being removed):
    /// its words.
    Unclear(String),
}

/// Why a call failed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failure {
    /// What kind of failure it is.
    pub kind: FailureKind,
    /// The engine's own text as one readable line without secrets, or ours if it had none.
    pub message: String,
}

/// The kinds of failure that the core tells apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FailureKind {
    /// `run --pull never` without the image.
    NoImage,
    /// The image's configuration would steer the host: says how.
    ImageRefused,
    /// The container's name is taken.
    NameTaken,
    /// The container's name is taken, and by no container.
    NameReserved,
    /// The engine does not answer (or its CLI cannot be started).
    Unavailable,
    /// The call was ended: its deadline passed, or it was cancelled.
    Deadline,
    /// The engine says that there is no such container.
    NoSuchContainer,
    /// A port that is to be published is in use on the host: says which.
    PortInUse,
    /// The call cannot be made at all: says why (a variable that the CLI cannot carry).
    Impossible,
    /// The data path's file system is full.
    NoSpace,
    /// The image could not be pulled, for a reason that is certain.
    PullRefused(PullCause),
    /// Everything else: the engine refused.
    Refused,
}

word_enum! {
    /// Why an image could not be pulled: the wire's `detail_code`.
    pub enum PullCause {
        /// The registry has no such image.
        NotFound = "not_found",
        /// The registry wants other credentials.
        Unauthorized = "unauthorized",
        /// The registry has been asked too often.
        RateLimited = "rate_limited",
        /// The registry does not answer, or its name is not known.
        Unreachable = "unreachable",
        /// The registry's certificate is not trusted, or it does not speak TLS.
        Tls = "tls",
        /// The disk is full.
        NoSpace = "no_space",
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_identifiers_of_containerd() {
        let name = |id: &str, taken| container_name(&ReplicaId::new(id).unwrap(), taken);
        assert_eq!(name("a", 0), "replica-a");
        assert_eq!(name("A.b_c-9", 0), "replica-A.b_c-9");
        assert_eq!(name("none", 1), "replica-none-2");
        let longest = "x".repeat(crate::types::REPLICA_ID_MAX);
        for id in ["a--b", "a-.b", "a-", "a_", longest.as_str()] {
            let name = name(id, 3);
            let groups = name.split(['.', '_', '-']);
            assert!(groups.into_iter().all(|group| !group.is_empty()) && name.len() <= 76, "{id}: {name}");
        }
        assert_ne!(name("a--b", 0), name("a-_b", 0));
        assert_ne!(name("a--b", 0), name("a-b", 0));
        assert_ne!(name(&longest, 0), name(&"x".repeat(crate::types::REPLICA_ID_MAX - 1), 0));
    }
}
