//! How busy the GPUs inside microVMs are: the host cannot see it, so the containers are asked, where the setting
//! allows that. An answer is used for a while; what does not answer is not known.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::{Duration, Instant};

use crate::core::cx::{Cx, JobOwner};
use crate::core::inventory::GpuUse;
use crate::core::job::{Job, Vendor};
use crate::types::{ContainerId, ReplicaId};

/// How long an answer is used.
const FRESH: Duration = Duration::from_secs(90);
/// AMD's PCI vendor ID.
const AMD: u16 = 0x1002;
/// Concurrency limit: exit inspections share these workers.
const AT_ONCE: usize = 2;
/// How long one that did not answer is not asked again: the query's process may still run in it.
const PAUSE: Duration = Duration::from_secs(600);
/// More memory than a GPU has, in MiB.
const MEMORY_MAX_MIB: u64 = 4 * 1024 * 1024;

/// What the guests said, and which are to be asked.
#[derive(Debug, Default)]
pub(crate) struct Guests {
    /// What a replica said of its GPUs, and when.
    said: BTreeMap<ReplicaId, (Instant, Vec<GpuUse>)>,
    /// Those that are asked as soon as others have answered.
    due: VecDeque<Guest>,
    /// Those that are being asked.
    asked: BTreeSet<ReplicaId>,
    /// Those that did not answer, and until when they are not asked.
    silent: BTreeMap<ReplicaId, Instant>,
}

/// A running replica with GPUs that the host cannot see into.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Guest {
    pub(crate) replica: ReplicaId,
    pub(crate) container: ContainerId,
    /// PCI vendor ID of its GPUs.
    pub(crate) vendor: Option<u16>,
}

/// The use of all GPUs that somebody can see.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct GpuUsage {
    /// The mean, in percent, rounded.
    pub(crate) percent: Option<u8>,
    /// Memory in use and in all together, in GiB, rounded.
    pub(crate) memory_gib: Option<(u64, u64)>,
    /// Who said so.
    pub(crate) sources: Option<String>,
}

impl Guests {
    /// Asks all that there are, a few at a time.
    pub(crate) fn ask(&mut self, cx: &mut Cx, guests: Vec<Guest>) {
        let now = cx.now;
        self.silent.retain(|_, until| *until > now);
        self.due = guests.into_iter().filter(|guest| !self.silent.contains_key(&guest.replica)).collect();
        self.ask_next(cx, |_| true);
    }

    fn ask_next(&mut self, cx: &mut Cx, runs: impl Fn(&Guest) -> bool) {
        while self.asked.len() < AT_ONCE
            && let Some(guest) = self.due.pop_front()
        {
            if self.asked.contains(&guest.replica) || !runs(&guest) {
                continue;
            }
            let vendor = match guest.vendor {
                Some(AMD) => Vendor::Amd,
                Some(_) | None => Vendor::Nvidia,
            };
            self.asked.insert(guest.replica.clone());
            cx.start_job(Job::GuestUse(guest.container, vendor), JobOwner::Guest(guest.replica));
        }
    }

    /// A container answered, or did not. It is a tenant's: believed about as many GPUs as it has, and within reason.
    /// `runs`: whether a guest still runs.
    pub(crate) fn on_answer(
        &mut self,
        cx: &mut Cx,
        id: ReplicaId,
        gpu_count: usize,
        said: Option<Vec<GpuUse>>,
        runs: impl Fn(&Guest) -> bool,
    ) {
        self.asked.remove(&id);
        match said {
            Some(mut said) => {
                said.truncate(gpu_count);
                for gpu in &mut said {
                    gpu.memory_mib =
                        gpu.memory_mib.filter(|(used, total)| used <= total && *total <= MEMORY_MAX_MIB);
                }
                self.said.insert(id, (cx.now, said));
            }
            None => {
                self.said.remove(&id);
                self.silent.insert(id, cx.now + PAUSE);
            }
        }
        let now = cx.now;
        self.said.retain(|_, (at, _)| *at + FRESH > now);
        self.ask_next(cx, runs);
    }

    /// The use of all GPUs that the host or a guest can see. `runs`: whether a replica still runs.
    pub(crate) fn gpu_usage(
        &self,
        now: Instant,
        by_host: &[GpuUse],
        runs: impl Fn(&ReplicaId) -> bool,
    ) -> GpuUsage {
        let counts = self.said.iter().filter(|(id, (at, _))| *at + FRESH > now && runs(id));
        let seen: Vec<&GpuUse> = by_host.iter().chain(counts.flat_map(|(_, (_, said))| said)).collect();
        let percents: Vec<u64> = seen.iter().filter_map(|gpu| gpu.busy_percent.map(u64::from)).collect();
        let count = percents.len() as u64;
        let mean = |sum: u64| u8::try_from((sum + count / 2) / count).ok();
        let together = |a: (u64, u64), b: (u64, u64)| (a.0.saturating_add(b.0), a.1.saturating_add(b.1));
        let memory = seen.iter().filter_map(|gpu| gpu.memory_mib).reduce(together);
        let gib = |mib: u64| mib.saturating_add(512) / 1024;
        let sources: BTreeSet<&str> = seen.iter().map(|gpu| gpu.source).collect();
        GpuUsage {
            percent: (count > 0).then(|| mean(percents.iter().sum())).flatten(),
            memory_gib: memory.map(|(used, total)| (gib(used), gib(total))),
            sources: (!sources.is_empty()).then(|| sources.into_iter().collect::<Vec<_>>().join(", ")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn guest(id: &str) -> Guest {
        let container = ContainerId::new(&"a".repeat(64)).unwrap();
        Guest { replica: ReplicaId::new(id).unwrap(), container, vendor: None }
    }

    fn says(busy_percent: u8, memory_mib: (u64, u64)) -> GpuUse {
        GpuUse { source: "guest", busy_percent: Some(busy_percent), memory_mib: Some(memory_mib) }
    }

    #[test]
    fn a_few_are_asked_at_once_and_the_next_when_one_has_answered() {
        let mut cx = Cx::example();
        let mut guests = Guests::default();
        guests.ask(&mut cx, ["a", "b", "c", "d"].map(guest).to_vec());
        assert_eq!(guests.asked.len(), AT_ONCE);
        let id = |text: &str| ReplicaId::new(text).unwrap();
        // c does not run any more.
        guests.on_answer(&mut cx, id("a"), 1, None, |guest| guest.replica != id("c"));
        assert_eq!(guests.asked, BTreeSet::from([id("b"), id("d")]));
        guests.ask(&mut cx, vec![guest("a")]);
        assert!(guests.due.is_empty(), "one that was silent is left alone");
    }

    #[test]
    fn a_tenant_is_believed_within_reason_and_for_a_while() {
        let mut cx = Cx::example();
        let mut guests = Guests::default();
        let id = ReplicaId::new("a").unwrap();
        let said = vec![says(50, (1024, 2048)), says(70, (9, 1)), says(99, (1, 1))];
        guests.on_answer(&mut cx, id, 2, Some(said), |_| true);
        let usage = guests.gpu_usage(cx.now, &[], |_| true);
        assert_eq!((usage.percent, usage.memory_gib), (Some(60), Some((1, 2))));
        assert_eq!(guests.gpu_usage(cx.now, &[], |_| false), GpuUsage::default(), "it does not run");
        assert_eq!(guests.gpu_usage(cx.now + FRESH, &[], |_| true), GpuUsage::default());
    }
}
