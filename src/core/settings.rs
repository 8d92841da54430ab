//! What a core is given when it starts.

use std::time::Duration;

use super::allowed::Allowed;
use super::identity::Identity;
use crate::types::Secret;

/// Settings that the core's decisions depend on.
#[derive(Debug, Clone)]
pub struct Settings {
    /// The agent's version.
    pub version: &'static str,
    /// The containers' runtime.
    pub runtime: String,
    /// Maximum concurrent deploys.
    pub workers: usize,
    /// Maximum number of deploys that wait.
    pub queue_limit: usize,
    /// How long the container of a replica that exited is kept.
    pub retention: Duration,
    /// How often the replicas are compared with the engine's list.
    pub reconcile: Duration,
    /// How often the dependencies are checked.
    pub recheck: Duration,
    /// How long commands in flight may take to finish after SIGTERM.
    pub grace: Duration,
    /// Free bytes below which no image is pulled.
    pub min_free_bytes: u64,
    /// The data path's use, in percent, from which and down to which images are removed; `None`: never.
    pub image_marks: Option<(u8, u8)>,
    /// Memory that is promised to no replica.
    pub reserve_memory_mib: u64,
    /// Whether containers are asked how busy their GPUs are.
    pub ask_guests: bool,
    /// How long a GPU that failed is left alone before a good reading counts.
    pub gpu_retest: Duration,
    /// What a deploy may ask for.
    pub allowed: Allowed,
}

/// What a core starts from.
#[derive(Debug)]
pub struct Origin {
    /// The identity, if the node has one.
    pub identity: Option<Identity>,
    /// A key for the hashes, should there be no identity.
    pub fresh_key: [u8; 32],
    /// The organisation token.
    pub token: Option<Secret>,
    /// The state file of an earlier process.
    pub record: Option<String>,
    /// Its table of replicas, which counts only together with that.
    pub table: Option<String>,
    /// The seed of the spread and of the names of attempts: different in each process.
    pub seed: u64,
    /// The machine's fingerprint, as far as it was read before the start.
    pub machine_id: Option<String>,
    /// Names this boot of the host, where the kernel tells.
    pub boot_id: Option<String>,
}

#[cfg(test)]
impl Settings {
    /// Settings for a test of one machine.
    pub(crate) fn example() -> Self {
        Self {
            version: "0",
            runtime: "runc".into(),
            workers: 2,
            queue_limit: 4,
            retention: Duration::from_secs(600),
            reconcile: Duration::from_secs(60),
            recheck: Duration::from_secs(600),
            grace: Duration::from_secs(20),
            min_free_bytes: 5,
            image_marks: None,
            reserve_memory_mib: 0,
            ask_guests: false,
            gpu_retest: Duration::ZERO,
            allowed: Allowed::everything(),
        }
    }
}
