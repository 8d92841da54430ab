//! How busy the GPUs inside microVMs are: the host cannot see it, so the containers are asked, where the setting
//! allows that. An answer is used for a while; what does not answer is not known.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use super::inventory::GpuUse;
use super::job::{Job, Vendor};
use super::replica::Phase;
use super::{Action, Core, Purpose};
use crate::types::ReplicaId;

/// How long an answer is used.
const FRESH: Duration = Duration::from_secs(90);
/// AMD's PCI vendor ID.
const AMD: u16 = 0x1002;

/// How many are asked at once: the others' exits are looked at by the same workers.
const AT_ONCE: usize = 2;
/// How long one that did not answer is left alone: what it was asked with may still be at work in it.
const PAUSE: Duration = Duration::from_secs(600);
/// More memory than a GPU has, in MiB.
const MEMORY_MAX_MIB: u64 = 4 * 1024 * 1024;

/// What the guests said, and who is to be asked.
#[derive(Debug, Default)]
pub(super) struct Guests {
    /// What a replica said of its GPUs, and when.
    said: BTreeMap<ReplicaId, (Instant, Vec<GpuUse>)>,
    /// Those that are to be asked as soon as others have answered.
    due: BTreeSet<ReplicaId>,
    /// Those that did not answer, and until when they are left alone.
    silent: BTreeMap<ReplicaId, Instant>,
}

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
    /// Asks each running replica that has GPUs which the host cannot see into, if that is allowed.
    pub(super) fn ask_guests(&mut self, now: Instant, out: &mut Vec<Action>) {
        if !self.settings.ask_guests {
            return;
        }
        let replicas = &self.replicas;
        self.guests.silent.retain(|id, until| *until > now && replicas.contains_key(id));
        self.guests.due = replicas
            .values()
            .filter(|replica| matches!(replica.phase, Phase::Running(..)))
            .filter(|replica| replica.gpus.first().is_some_and(|gpu| self.gpus.by_vfio(*gpu)))
            .filter(|replica| !self.guests.silent.contains_key(&replica.id))
            .map(|replica| replica.id.clone())
            .collect();
        self.ask_next(out);
    }

    fn ask_next(&mut self, out: &mut Vec<Action>) {
        let asked = |purpose: &&Purpose| matches!(purpose, Purpose::Guest(_));
        while self.jobs.values().filter(asked).count() < AT_ONCE
            && let Some(id) = self.guests.due.pop_first()
        {
            let again = self.jobs.values().any(|purpose| matches!(purpose, Purpose::Guest(of) if *of == id));
            let Some(replica) = self.replicas.get(&id).filter(|_| !again) else { continue };
            let (Phase::Running(container, _), Some(gpu)) = (&replica.phase, replica.gpus.first()) else {
                continue;
            };
            let vendor = match self.gpus.vendor(*gpu) {
                Some(AMD) => Vendor::Amd,
                Some(_) | None => Vendor::Nvidia,
            };
            self.submit(Job::GuestUse(container.clone(), vendor), Purpose::Guest(id), out);
        }
    }

    /// A container answered. It is a tenant's: believed about as many GPUs as it has, and within reason.
    pub(super) fn guest_answer(
        &mut self,
        now: Instant,
        id: ReplicaId,
        said: Option<Vec<GpuUse>>,
        out: &mut Vec<Action>,
    ) {
        let count = self.replicas.get(&id).map_or(0, |replica| replica.gpus.len());
        match said {
            Some(mut said) => {
                said.truncate(count);
                for gpu in &mut said {
                    gpu.memory_mib =
                        gpu.memory_mib.filter(|(used, total)| used <= total && *total <= MEMORY_MAX_MIB);
                }
                self.guests.said.insert(id, (now, said));
            }
            None => {
                self.guests.said.remove(&id);
                self.guests.silent.insert(id, now + PAUSE);
            }
        }
        let replicas = &self.replicas;
        self.guests.said.retain(|id, (at, _)| replicas.contains_key(id) && *at + FRESH > now);
        self.ask_next(out);
    }

    /// The use of all GPUs that the host or a guest can see.
    pub(super) fn gpu_use(&self, now: Instant) -> Seen {
        let runs =
            |id: &ReplicaId| self.replicas.get(id).is_some_and(|r| matches!(r.phase, Phase::Running(..)));
        let counts = self.guests.said.iter().filter(|(id, (at, _))| *at + FRESH > now && runs(id));
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
