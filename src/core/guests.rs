//! How busy the GPUs inside microVMs are: the host cannot see it, so the containers are asked, where the setting
//! allows that. An answer is used for a while; what does not answer is not known.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use super::facts::GpuUse;
use super::job::{Job, Vendor};
use super::replica::Phase;
use super::{Action, Core, Purpose};
use crate::types::{ContainerId, ReplicaId};

/// How long an answer is used.
const FRESH: Duration = Duration::from_secs(90);
/// AMD's PCI vendor ID.
const AMD: u16 = 0x1002;

/// The answers: when, and what a replica said of its GPUs.
pub(super) type Guests = BTreeMap<ReplicaId, (Instant, Vec<GpuUse>)>;

/// The use of all GPUs that somebody can see.
#[derive(Debug, Default)]
pub(super) struct Seen {
    /// The mean, in percent, rounded.
    pub(super) percent: Option<u8>,
    /// Memory in use and in all together, in GiB, rounded.
    pub(super) memory_gib: Option<(u64, u64)>,
    /// Who said so.
    pub(super) sources: Option<String>,
}

impl Core {
    /// Asks each running replica that has GPUs, if that is allowed.
    pub(super) fn ask_guests(&mut self, out: &mut Vec<Action>) {
        if !self.limits.ask_guests {
            return;
        }
        let asked = |replica: &ReplicaId| {
            self.jobs.values().any(|purpose| matches!(purpose, Purpose::Guest(of) if of == replica))
        };
        let ask: Vec<(ReplicaId, ContainerId, Vendor)> = self
            .replicas
            .values()
            .filter_map(|replica| match &replica.phase {
                Phase::Running(container, _) if !replica.gpus.is_empty() && !asked(&replica.id) => {
                    let vendor = match replica.gpus.first().and_then(|gpu| self.gpus.vendor(*gpu)) {
                        Some(AMD) => Vendor::Amd,
                        Some(_) | None => Vendor::Nvidia,
                    };
                    Some((replica.id.clone(), container.clone(), vendor))
                }
                _ => None,
            })
            .collect();
        for (replica, container, vendor) in ask {
            self.submit(Job::GuestUse(container, vendor), Purpose::Guest(replica), out);
        }
    }

    /// A container answered. It is believed about as many GPUs as it has.
    pub(super) fn guest_answer(&mut self, now: Instant, id: ReplicaId, said: Option<Vec<GpuUse>>) {
        let count = self.replicas.get(&id).map_or(0, |replica| replica.gpus.len());
        match said.filter(|said| !said.is_empty()) {
            Some(mut said) => {
                said.truncate(count);
                self.guests.insert(id, (now, said));
            }
            None => _ = self.guests.remove(&id),
        }
        let replicas = &self.replicas;
        self.guests.retain(|id, (at, _)| replicas.contains_key(id) && *at + FRESH > now);
    }

    /// The use of all GPUs that the host or a guest can see.
    pub(super) fn gpu_use(&self, now: Instant) -> Seen {
        let runs =
            |id: &ReplicaId| self.replicas.get(id).is_some_and(|r| matches!(r.phase, Phase::Running(..)));
        let counts = self.guests.iter().filter(|(id, (at, _))| *at + FRESH > now && runs(id));
        let seen: Vec<&GpuUse> =
            self.node.gpus_in_use().iter().chain(counts.flat_map(|(_, (_, said))| said)).collect();
        let percents: Vec<u64> = seen.iter().filter_map(|gpu| gpu.busy_percent.map(u64::from)).collect();
        let count = percents.len() as u64;
        let mean = |sum: u64| u8::try_from((sum + count / 2) / count).ok();
        let together = |a: (u64, u64), b: (u64, u64)| (a.0.saturating_add(b.0), a.1.saturating_add(b.1));
        let memory = seen.iter().filter_map(|gpu| gpu.memory_mib).reduce(together);
        let gib = |mib: u64| mib.saturating_add(512) / 1024;
        let sources: BTreeSet<&str> = seen.iter().map(|gpu| gpu.source).collect();
        Seen {
            percent: (count > 0).then(|| mean(percents.iter().sum())).flatten(),
            memory_gib: memory.map(|(used, total)| (gib(used), gib(total))),
            sources: (!sources.is_empty()).then(|| sources.into_iter().collect::<Vec<_>>().join(", ")),
        }
    }
}
