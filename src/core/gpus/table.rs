//! The table of GPUs: which there are, how they are, and who has which.
//!
//! The labels of containers are the record: the table is rebuilt from them before any deploy is taken. A GPU is
//! claimed before the hardware is touched and freed when its container is proven gone; it can be handed out again
//! only after a reading that was taken since then calls it free. One reading that misses a GPU proves nothing.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use super::allocate::{Group, choose};
use crate::core::inventory::{Gpu, Health, Judgement, Verdict};
use crate::types::{PciAddress, ReplicaId};

/// A GPU that this many readings in a row do not show is gone, unless a replica has it.
const READINGS_UNTIL_GONE: u32 = 3;
/// How many readings may show a GPU held after its container is gone: its microVM may still be ending.
const BUSY_READINGS_TOLERATED: u8 = 10;

/// What the core knows of one GPU.
#[derive(Debug, Clone)]
struct Slot {
    gpu: Gpu,
    /// Readings in a row that did not show it.
    missed: u32,
    /// Freed: the reading that is this many ahead is the first one taken since. 0: this reading is fresh.
    until_fresh: u8,
    /// How many more readings may show a freed GPU held by a process that has not quite ended.
    busy_left: u8,
    /// It failed: good readings before this time do not count.
    retest: Option<Instant>,
}

/// Why a claim was not granted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Denied {
    /// Fewer are free than asked for, but some are on their way back.
    Wait,
    /// Fewer are free than asked for.
    Short {
        /// How many are free.
        free: usize,
        /// How many there are.
        total: usize,
    },
}

/// The table of GPUs. See the module.
#[derive(Debug, Default)]
pub struct GpuTable {
    slots: BTreeMap<PciAddress, Slot>,
    /// The holders: a label may name a GPU that no reading has shown yet.
    held: BTreeMap<PciAddress, ReplicaId>,
    /// GPUs that the operator holds back.
    held_back: BTreeSet<PciAddress>,
}

impl GpuTable {
    /// Takes a reading of the host's GPUs. Says whether anything in the table changed.
    ///
    /// A GPU that failed stays failed for `retest`, and is well again with the first good reading after that. Counters
    /// inside reason texts do not count as a change.
    pub fn reading(&mut self, now: Instant, retest: Duration, gpus: &[Gpu]) -> bool {
        let mut changed = false;
        for slot in self.slots.values_mut() {
            if !gpus.iter().any(|gpu| gpu.address == slot.gpu.address) {
                slot.missed += 1;
                changed |= slot.missed == 1;
            }
        }
        for gpu in gpus {
            let mut slot = Slot { gpu: gpu.clone(), missed: 0, until_fresh: 0, busy_left: 0, retest: None };
            let old = self.slots.get(&gpu.address);
            if let Some(old) = old {
                slot.until_fresh = old.until_fresh.saturating_sub(1);
                slot.busy_left = old.busy_left;
                if old.until_fresh == 1 && old.busy_left > 0 && matches!(gpu.verdict, Verdict::Held(_)) {
                    slot.until_fresh = 1;
                    slot.busy_left -= 1;
                }
            }
            if let Health::Failed(_) = gpu.health {
                slot.retest = Some(now + retest);
            } else if let Some(old) = old
                && old.retest.is_some_and(|at| at > now)
            {
                slot.gpu.health = old.gpu.health.clone();
                slot.retest = old.retest;
            }
            changed |= old.is_none_or(|old| {
                kind(&old.gpu) != kind(&slot.gpu)
                    || old.gpu.driver != slot.gpu.driver
                    || old.missed > 0
                    || (old.until_fresh > 0) != (slot.until_fresh > 0)
            });
            self.slots.insert(gpu.address, slot);
        }
        let before = self.slots.len();
        let held = &self.held;
        self.slots.retain(|address, slot| slot.missed < READINGS_UNTIL_GONE || held.contains_key(address));
        changed || self.slots.len() != before
    }

    /// These GPUs are said to be `replica`'s, by a label or a record, unless another one has them.
    pub(crate) fn adopt<'a>(&mut self, replica: &ReplicaId, gpus: impl IntoIterator<Item = &'a PciAddress>) {
        for gpu in gpus {
            self.held.entry(*gpu).or_insert_with(|| replica.clone());
        }
    }

    /// A GPU passes to `replica`, whose container carries it in its label, from one whose record alone named it.
    pub(crate) fn reassign(&mut self, replica: &ReplicaId, gpu: PciAddress) {
        self.held.insert(gpu, replica.clone());
    }

    /// Claims `count` GPUs for `replica`: whole groups, on as few NUMA nodes as possible, then by address.
    ///
    /// # Errors
    /// [`Denied`] when that many are not free: nothing is claimed then. `returning` says whether a holder is on its
    /// way out.
    pub fn claim(
        &mut self,
        replica: &ReplicaId,
        count: usize,
        returning: impl Fn(&ReplicaId) -> bool,
    ) -> Result<Vec<(PciAddress, String)>, Denied> {
        let groups = self.free_groups();
        let free: usize = groups.iter().map(|group| group.gpus.len()).sum();
        let Some(chosen) = choose(&groups, count) else {
            let coming_back = self.held.values().filter(|holder| returning(holder)).count()
                + self.slots.values().filter(|slot| slot.until_fresh > 0).count();
            return Err(if free + coming_back >= count && coming_back > 0 {
                Denied::Wait
            } else {
                Denied::Short { free, total: self.slots.len() }
            });
        };
        let mut claimed = Vec::new();
        for address in chosen {
            let gpu = self.slots.get(&address).map(|slot| &slot.gpu);
            let node = gpu.and_then(|gpu| gpu.device_node.clone());
            self.held.insert(address, replica.clone());
            claimed.push((address, node.unwrap_or_default()));
        }
        Ok(claimed)
    }

    /// The containers of `replica` are gone, but for ones with the GPUs in `kept`. Says whether any GPU is free by
    /// that: then a new reading is due. `under_way`: how many readings were ordered before and have not arrived.
    pub(crate) fn free(&mut self, replica: &ReplicaId, kept: &[PciAddress], under_way: u8) -> bool {
        let before = self.held.len();
        let slots = &mut self.slots;
        self.held.retain(|address, holder| {
            if holder == replica && !kept.contains(address) {
                if let Some(slot) = slots.get_mut(address) {
                    slot.until_fresh = under_way + 1;
                    slot.busy_left = BUSY_READINGS_TOLERATED;
                }
                false
            } else {
                true
            }
        });
        self.held.len() != before
    }

    /// Holds a GPU back from being handed out, or releases it again. Says whether that changed anything.
    pub fn hold_back(&mut self, gpu: PciAddress, held: bool) -> bool {
        if held { self.held_back.insert(gpu) } else { self.held_back.remove(&gpu) }
    }

    /// The GPUs that the operator holds back.
    pub(crate) fn held_back(&self) -> impl Iterator<Item = PciAddress> + '_ {
        self.held_back.iter().copied()
    }

    /// The PCI vendor ID of a GPU.
    pub(crate) fn vendor(&self, gpu: PciAddress) -> Option<u16> {
        self.slots.get(&gpu).map(|slot| slot.gpu.vendor_id)
    }

    /// Whether there is a GPU at this address, or was one when the operator held it back.
    pub(crate) fn knows(&self, gpu: PciAddress) -> bool {
        self.slots.contains_key(&gpu) || self.held_back.contains(&gpu)
    }

    /// Who has a GPU.
    pub(crate) fn holder(&self, gpu: PciAddress) -> Option<&ReplicaId> {
        self.held.get(&gpu)
    }

    /// Who has any GPU.
    pub(crate) fn holders(&self) -> BTreeSet<&ReplicaId> {
        self.held.values().collect()
    }

    /// How many there are, and how many of them are free.
    pub fn count(&self) -> (usize, usize) {
        (self.slots.len(), self.free_groups().iter().map(|group| group.gpus.len()).sum())
    }

    /// All of them, each with what the node says of it.
    pub(crate) fn describe(&self) -> Vec<(&Gpu, Judgement)> {
        let mut all: Vec<_> = self.slots.values().map(|slot| (&slot.gpu, self.judgement(slot))).collect();
        let kept: Vec<(u32, PciAddress)> = all
            .iter()
            .filter(|(_, judgement)| !judgement.assignable)
            .filter_map(|(gpu, _)| Some((group(gpu)?, gpu.address)))
            .collect();
        for (gpu, judgement) in all.iter_mut().filter(|(_, judgement)| judgement.assignable) {
            if let Some((_, other)) = kept.iter().find(|(number, _)| Some(*number) == group(gpu)) {
                judgement.assignable = false;
                judgement.reason = Some(format!("{other}, in the same IOMMU group, cannot be handed out"));
            }
        }
        all
    }

    /// Whether a GPU is handed over by VFIO: then the host cannot see into it.
    pub(crate) fn by_vfio(&self, gpu: PciAddress) -> bool {
        self.slots.get(&gpu).is_some_and(|slot| by_vfio(&slot.gpu))
    }

    fn judgement(&self, slot: &Slot) -> Judgement {
        let address = slot.gpu.address;
        let mut judgement = match self.held.get(&address) {
            None => slot.gpu.judgement(),
            // A container of this node makes the host call it busy, which is not an obstacle.
            Some(_) => Gpu { verdict: Verdict::Assignable, ..slot.gpu.clone() }.judgement(),
        };
        if slot.missed > 0 {
            judgement.assignable = false;
            judgement.health = "unknown";
            judgement.reason = Some("missing from the last reading of the bus".to_owned());
        }
        if self.held_back.contains(&address) {
            judgement.assignable = false;
            judgement.reason =
                Some("held back by the operator: vectorlay-agent gpu release ADDRESS".to_owned());
        }
        judgement
    }

    fn usable(&self, slot: &Slot) -> bool {
        slot.missed == 0
            && slot.until_fresh == 0
            && slot.gpu.verdict == Verdict::Assignable
            && !matches!(slot.gpu.health, Health::Failed(_))
            && !self.held.contains_key(&slot.gpu.address)
            && !self.held_back.contains(&slot.gpu.address)
    }

    /// The groups of which every GPU is free. A GPU without a group stands for itself.
    fn free_groups(&self) -> Vec<Group> {
        let mut groups: BTreeMap<(u8, u64), (Group, bool)> = BTreeMap::new();
        for (n, slot) in self.slots.values().enumerate() {
            let key = match group(&slot.gpu) {
                Some(number) => (0, u64::from(number)),
                None => (1, n as u64),
            };
            let empty = || (Group { gpus: Vec::new(), numa: slot.gpu.numa_node }, true);
            let (group, free) = groups.entry(key).or_insert_with(empty);
            group.gpus.push(slot.gpu.address);
            *free &= self.usable(slot);
        }
        let mut free: Vec<Group> =
            groups.into_values().filter_map(|(group, free)| free.then_some(group)).collect();
        free.sort_by_key(|group| group.gpus[0]);
        free
    }
}

/// The group that a GPU is handed out with. Groups matter to VFIO alone: a plain runtime is given a GPU by its driver.
fn group(gpu: &Gpu) -> Option<u32> {
    gpu.iommu_group.filter(|_| by_vfio(gpu))
}

/// Whether it is handed over by VFIO: its node shows that, or its driver where a CDI name stands for the node.
fn by_vfio(gpu: &Gpu) -> bool {
    let Some(node) = &gpu.device_node else { return true };
    let bound = |driver: &String| driver.ends_with("vfio-pci") || driver.ends_with("vfio_pci");
    node.starts_with("/dev/vfio/") || node.contains('=') && gpu.driver.as_ref().is_some_and(bound)
}

/// What of a GPU counts as a change: the kinds of its verdict and health, without their texts.
fn kind(gpu: &Gpu) -> (u8, u8) {
    let verdict = match gpu.verdict {
        Verdict::Assignable => 0,
        Verdict::Held(_) => 1,
        Verdict::Obstructed(_) => 2,
    };
    let health = match gpu.health {
        Health::Ok => 0,
        Health::Suspect(_) => 1,
        Health::Failed(_) => 2,
        Health::Unknown(_) => 3,
    };
    (verdict, health)
}

#[cfg(test)]
#[allow(clippy::disallowed_methods, reason = "a test needs some time to begin with")]
mod tests {
    use super::*;

    fn gpu(address: &str, group: u32, numa: u32) -> Gpu {
        Gpu {
            address: PciAddress::parse(address).unwrap(),
            iommu_group: Some(group),
            numa_node: Some(numa),
            device_node: Some(format!("/dev/vfio/{group}")),
            ..Gpu::example(1)
        }
    }

    /// A reading at a time at which every failure has been retested.
    fn read(gpus: &mut GpuTable, readings: &[Gpu]) -> bool {
        gpus.reading(Instant::now(), Duration::ZERO, readings)
    }

    fn replica(id: &str) -> ReplicaId {
        ReplicaId::new(id).unwrap()
    }

    fn claim(gpus: &mut GpuTable, id: &str, count: usize) -> Result<String, Denied> {
        let claimed = gpus.claim(&replica(id), count, |_| false)?;
        Ok(claimed.iter().map(|(a, _)| format!("{:02x}", a.bus)).collect::<Vec<_>>().join(" "))
    }

    /// Two nodes: 1, 2, 3 on node 0; 4, and the pair 5+6 of one group, on node 1.
    fn host() -> Vec<Gpu> {
        let on = [("01", 1, 0), ("02", 2, 0), ("03", 3, 0), ("04", 4, 1), ("05", 5, 1), ("06", 5, 1)];
        on.map(|(bus, group, numa)| gpu(&format!("{bus}:00.0"), group, numa)).to_vec()
    }

    #[test]
    fn whole_groups_from_the_fewest_nodes_by_address() {
        let check = |counts: &[usize], expected: &[Result<&str, Denied>]| {
            let mut gpus = GpuTable::default();
            read(&mut gpus, &host());
            for (n, (count, expected)) in counts.iter().zip(expected).enumerate() {
                let got = claim(&mut gpus, &format!("r{n}"), *count);
                assert_eq!(got, expected.map(str::to_owned), "claim {n} of {counts:?}");
            }
        };
        check(&[1, 1, 1], &[Ok("01"), Ok("02"), Ok("03")]);
        check(&[2, 2], &[Ok("01 02"), Ok("05 06")]);
        check(&[3, 3], &[Ok("01 02 03"), Ok("04 05 06")]);
        check(&[6, 1], &[Ok("01 02 03 04 05 06"), Err(Denied::Short { free: 0, total: 6 })]);
        check(&[7], &[Err(Denied::Short { free: 6, total: 6 })]);
        check(&[0], &[Ok("")]);
        // One GPU of the pair's group is never handed out alone.
        check(&[4, 1], &[Ok("01 02 03 04"), Err(Denied::Short { free: 2, total: 6 })]);
    }

    #[test]
    fn groups_stay_whole_when_cdi_names_stand_for_their_nodes() {
        let mut named = host();
        for gpu in &mut named[4..] {
            gpu.device_node = Some("nvidia.com/pgpu=5".into());
            gpu.driver = Some("vfio-pci".into());
        }
        let mut gpus = GpuTable::default();
        read(&mut gpus, &named);
        assert!(matches!(gpus.claim(&replica("b"), 7, |_| false), Err(Denied::Short { .. })));
        let claimed = gpus.claim(&replica("b"), 6, |_| false).unwrap();
        let claimed: Vec<_> = claimed.iter().map(|(_, device)| device.as_str()).collect();
        let pair = ["nvidia.com/pgpu=5", "nvidia.com/pgpu=5"];
        assert_eq!(claimed[..4], ["/dev/vfio/1", "/dev/vfio/2", "/dev/vfio/3", "/dev/vfio/4"]);
        assert_eq!(claimed[4..], pair);
        gpus.free(&replica("b"), &[], 0);
        read(&mut gpus, &named);
        // Four and one: the pair is never split.
        gpus.claim(&replica("c"), 4, |_| false).unwrap();
        assert!(matches!(gpus.claim(&replica("d"), 1, |_| false), Err(Denied::Short { free: 2, .. })));
    }

    #[test]
    fn a_gpu_whose_group_cannot_be_handed_out_is_not_called_assignable() {
        let mut gpus = GpuTable::default();
        read(&mut gpus, &host());
        // The last two share a group.
        let last: Vec<PciAddress> = host()[4..].iter().map(|gpu| gpu.address).collect();
        gpus.hold_back(last[0], true);
        let kept: Vec<PciAddress> =
            gpus.describe().iter().filter(|(_, j)| !j.assignable).map(|(gpu, _)| gpu.address).collect();
        assert_eq!((kept, gpus.count()), (last, (6, 4)));
        let (_, judgement) = gpus.describe().remove(5);
        assert_eq!(judgement.reason.unwrap(), "0000:05:00.0, in the same IOMMU group, cannot be handed out");
    }

    #[test]
    fn what_is_freed_waits_for_a_new_reading() {
        let mut gpus = GpuTable::default();
        read(&mut gpus, &host());
        claim(&mut gpus, "a", 6).unwrap();
        assert_eq!(gpus.count(), (6, 0));
        assert!(gpus.free(&replica("a"), &[], 1));
        assert!(!gpus.free(&replica("a"), &[], 0), "nothing left to free");
        assert_eq!(claim(&mut gpus, "b", 1), Err(Denied::Wait));
        read(&mut gpus, &host());
        assert_eq!(claim(&mut gpus, "b", 1), Err(Denied::Wait), "that one was under way before");
        read(&mut gpus, &host());
        assert_eq!(claim(&mut gpus, "b", 1), Ok("01".into()));
    }

    #[test]
    fn a_freed_gpu_may_be_held_a_little_longer_by_its_ending_vm() {
        let mut busy = host();
        for gpu in &mut busy {
            gpu.verdict = Verdict::Held("held by process 7".into());
        }
        let mut gpus = GpuTable::default();
        read(&mut gpus, &host());
        claim(&mut gpus, "a", 6).unwrap();
        gpus.free(&replica("a"), &[], 0);
        for _ in 0..BUSY_READINGS_TOLERATED {
            read(&mut gpus, &busy);
            assert_eq!(claim(&mut gpus, "b", 1), Err(Denied::Wait));
        }
        read(&mut gpus, &busy);
        assert_eq!(claim(&mut gpus, "b", 1), Err(Denied::Short { free: 0, total: 6 }), "somebody else's");
    }

    #[test]
    fn a_claim_waits_for_a_holder_that_is_on_its_way_out() {
        let mut gpus = GpuTable::default();
        read(&mut gpus, &host());
        claim(&mut gpus, "a", 6).unwrap();
        let leaving = replica("a");
        assert_eq!(gpus.claim(&replica("b"), 2, |holder| *holder == leaving), Err(Denied::Wait));
        assert_eq!(claim(&mut gpus, "b", 2), Err(Denied::Short { free: 0, total: 6 }));
    }

    #[test]
    fn a_reading_that_misses_a_gpu_proves_nothing() {
        let mut gpus = GpuTable::default();
        read(&mut gpus, &host());
        claim(&mut gpus, "a", 1).unwrap();
        for _ in 0..10 {
            read(&mut gpus, &[]);
        }
        assert_eq!(gpus.count(), (1, 0), "the held one is known for ever");
        assert_eq!(gpus.describe()[0].1.health, "unknown");
        read(&mut gpus, &host());
        assert_eq!(gpus.count(), (6, 5));
        assert_eq!(gpus.holder(PciAddress::parse("01:00.0").unwrap()), Some(&replica("a")));
    }

    #[test]
    fn failed_obstructed_and_held_back_ones_are_not_handed_out() {
        let mut readings = host();
        readings[0].health = Health::Failed("fell off the bus".into());
        readings[1].verdict = Verdict::Obstructed("bound to nvidia".into());
        let mut gpus = GpuTable::default();
        read(&mut gpus, &readings);
        let third = PciAddress::parse("03:00.0").unwrap();
        assert!(gpus.hold_back(third, true));
        assert_eq!(claim(&mut gpus, "a", 1), Ok("04".into()));
        assert!(gpus.hold_back(third, false));
        assert_eq!(claim(&mut gpus, "b", 1), Ok("03".into()));
        read(&mut gpus, &host());
        assert_eq!(claim(&mut gpus, "c", 1), Ok("01".into()), "well again");
    }

    #[test]
    fn a_label_is_the_record() {
        let mut gpus = GpuTable::default();
        gpus.adopt(&replica("a"), &[PciAddress::parse("02:00.0").unwrap()]);
        read(&mut gpus, &host());
        assert_eq!(gpus.count(), (6, 5));
        assert_eq!(claim(&mut gpus, "b", 3), Ok("04 05 06".into()));
    }

    #[test]
    fn a_failed_gpu_is_left_alone_until_its_retest() {
        let (now, retest) = (Instant::now(), Duration::from_secs(600));
        let well = &host()[..1];
        let mut failed = well.to_vec();
        failed[0].health = Health::Failed("fatal error".into());
        let mut gpus = GpuTable::default();
        assert!(gpus.reading(now, retest, well));
        assert!(gpus.reading(now, retest, &failed), "news");
        assert!(!gpus.reading(now, retest, &failed), "no news");
        assert!(!gpus.reading(now + retest / 2, retest, well), "too early");
        assert_eq!(gpus.count(), (1, 0));
        assert!(gpus.reading(now + retest, retest, well), "well again");
        assert_eq!(gpus.count(), (1, 1));
    }
}
