//! The GPUs: which there are and who has which ([`table`]), who gets which ([`allocate`]), how busy they are inside
//! microVMs ([`guests`]), and when the hardware is read.

use std::time::{Duration, Instant};

use super::cx::Cx;
use super::inventory::Hardware;
use super::poll::Poll;
use super::replica::{Code, Refusal};
use super::timers::Timer;
use super::{Action, Sample};
use crate::types::{PciAddress, ReplicaId};

mod allocate;
pub(crate) mod guests;
mod table;

pub use self::table::{Denied, GpuTable};

/// How often the hardware is read.
const INVENTORY_EVERY: Duration = Duration::from_secs(60);
/// A reading that takes longer than this hangs.
const INVENTORY_SLOW: Duration = Duration::from_secs(30);
/// A claim goes by a reading that is not older than this.
const CLAIM_AGE_MAX: Duration = Duration::from_secs(5);
/// How long after a claim that had to wait the hardware is read again.
const CLAIM_RETRY: Duration = Duration::from_secs(1);

/// The GPUs, and when they are read.
#[derive(Debug)]
pub(crate) struct Gpus {
    table: GpuTable,
    inventory: Poll<Hardware>,
    /// The machine's fingerprint, as far as it was read before the start.
    machine_id: Option<String>,
}

/// GPUs that were claimed: their addresses, and what the CLI is given for each.
pub(crate) type Claimed = Vec<(PciAddress, String)>;

/// Why a claim was not granted.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum NotClaimed {
    /// It cannot be judged yet: the hardware is being read.
    Unread,
    /// Too few are free, but some are on their way back.
    Wait,
    Refused(Refusal),
}

impl Gpus {
    pub(crate) fn new(now: Instant, machine_id: Option<String>) -> Self {
        let mut inventory = Poll::new(Some(INVENTORY_SLOW));
        inventory.want(now);
        Self { table: GpuTable::default(), inventory, machine_id }
    }

    pub(crate) fn table(&self) -> &GpuTable {
        &self.table
    }

    pub(crate) fn hardware(&self) -> Option<&Hardware> {
        self.inventory.last()
    }

    /// The machine's fingerprint, where it is known.
    pub(crate) fn machine_id(&self) -> Option<&str> {
        let read = self.hardware().and_then(|hardware| hardware.machine_id.as_deref());
        read.or(self.machine_id.as_deref())
    }

    pub(crate) fn timers(&self) -> [(Timer, Option<Instant>); 1] {
        [(Timer::Inventory, self.inventory.timer())]
    }

    pub(crate) fn on_timer(&mut self, cx: &mut Cx) {
        if self.inventory.on_timer(cx.now) {
            self.order_reading(cx);
        }
    }

    /// The hardware is to be read at once.
    pub(crate) fn read_now(&mut self, cx: &mut Cx) {
        if self.inventory.start(cx.now) {
            self.order_reading(cx);
        }
    }

    fn order_reading(&mut self, cx: &mut Cx) {
        cx.act(Action::Sample(Sample::Hardware));
        self.inventory.want(cx.now + INVENTORY_EVERY);
    }

    /// The hardware was read. Says whether anything has changed that `system_info` tells.
    pub(crate) fn on_inventory(&mut self, cx: &Cx, hardware: Hardware) -> bool {
        let changed = self.table.reading(cx.now, cx.settings.gpu_retest, &hardware.gpus);
        let count = self.hardware().map(|old| old.gpus.len());
        let another_count = count.is_some_and(|count| count != hardware.gpus.len());
        self.inventory.done(cx.now, hardware);
        changed || another_count
    }

    /// What is wrong with reading the hardware, for the node's state.
    pub(crate) fn trouble(&self) -> Option<String> {
        self.inventory.is_slow().then(|| "a reading of the GPUs hangs; see the kernel's log".to_owned())
    }

    /// Claims `count` GPUs for a replica. `leaving`: whether a holder is on its way out. Takes a
    /// reading of the hardware that is less than 5 s old.
    pub(crate) fn claim(
        &mut self,
        cx: &Cx,
        id: &ReplicaId,
        count: usize,
        leaving: impl Fn(&ReplicaId) -> bool,
    ) -> Result<Claimed, NotClaimed> {
        if count == 0 {
            return Ok(Vec::new());
        }
        let fresh = self.inventory.age(cx.now).and_then(|age| CLAIM_AGE_MAX.checked_sub(age));
        let Some(fresh) = fresh.filter(|left| !left.is_zero()) else {
            if let Some(why) = self.trouble() {
                return Err(NotClaimed::Refused(Refusal::new(Code::NoGpu, why)));
            }
            if !self.inventory.is_under_way() {
                self.inventory.want(cx.now);
            }
            return Err(NotClaimed::Unread);
        };
        self.table.claim(id, count, leaving).map_err(|denied| match denied {
            Denied::Wait => {
                // Once this reading is too old for a claim, another is needed in any case.
                self.inventory.want(cx.now + CLAIM_RETRY.min(fresh));
                NotClaimed::Wait
            }
            Denied::Short { free, total } => {
                let error = format!("GPUs requested: {count}; {free} of {total} are free");
                NotClaimed::Refused(Refusal::new(Code::NoGpu, error))
            }
        })
    }

    /// A replica has no GPUs any more but those in `kept`: what it gives up is free after a reading that begins from now
    /// on.
    pub(crate) fn release(&mut self, now: Instant, id: &ReplicaId, kept: &[PciAddress]) {
        if self.table.free(id, kept, u8::from(self.inventory.is_under_way())) {
            self.inventory.want(now);
        }
    }

    /// A container's label, or a record, names these GPUs as a replica's.
    pub(crate) fn adopt<'a>(&mut self, id: &ReplicaId, gpus: impl IntoIterator<Item = &'a PciAddress>) {
        self.table.adopt(id, gpus);
    }

    /// A GPU passes to a replica whose container carries it in its label.
    pub(crate) fn reassign(&mut self, id: &ReplicaId, gpu: PciAddress) {
        self.table.reassign(id, gpu);
    }

    /// Holds a GPU back from being handed out, or releases it. Says whether that changed anything.
    pub(crate) fn hold_back(&mut self, gpu: PciAddress, held: bool) -> bool {
        self.table.hold_back(gpu, held)
    }
}

#[cfg(test)]
mod tests {
    use super::super::inventory::Gpu;
    use super::*;

    fn gpus(cx: &mut Cx, count: u8) -> Gpus {
        let mut gpus = Gpus::new(cx.now, None);
        gpus.on_timer(cx);
        let hardware = Hardware { gpus: (1..=count).map(Gpu::example).collect(), ..Hardware::default() };
        assert!(gpus.on_inventory(cx, hardware));
        gpus
    }

    fn id(text: &str) -> ReplicaId {
        ReplicaId::new(text).unwrap()
    }

    #[test]
    fn a_claim_goes_by_a_fresh_reading_and_orders_one() {
        let mut cx = Cx::example();
        let mut gpus = gpus(&mut cx, 2);
        assert_eq!(gpus.claim(&cx, &id("a"), 1, |_| false).unwrap().len(), 1);
        cx.now += CLAIM_AGE_MAX;
        assert_eq!(gpus.claim(&cx, &id("b"), 1, |_| false), Err(NotClaimed::Unread));
        assert_eq!(gpus.timers()[0].1, Some(cx.now));
        gpus.on_timer(&mut cx);
        assert_eq!(gpus.claim(&cx, &id("b"), 1, |_| false), Err(NotClaimed::Unread));
        cx.now += INVENTORY_SLOW;
        gpus.on_timer(&mut cx);
        assert!(matches!(gpus.claim(&cx, &id("b"), 1, |_| false), Err(NotClaimed::Refused(_))), "it hangs");
    }

    #[test]
    fn what_is_given_up_is_read_again_before_it_is_free() {
        let mut cx = Cx::example();
        let mut gpus = gpus(&mut cx, 1);
        _ = gpus.claim(&cx, &id("a"), 1, |_| false).unwrap();
        let short = gpus.claim(&cx, &id("b"), 1, |_| false);
        assert!(matches!(short, Err(NotClaimed::Refused(refusal)) if refusal.code == Code::NoGpu));
        gpus.release(cx.now, &id("a"), &[]);
        assert_eq!(gpus.timers()[0].1, Some(cx.now));
        assert_eq!(gpus.claim(&cx, &id("b"), 1, |_| false), Err(NotClaimed::Wait));
    }

    #[test]
    fn a_claim_that_waits_is_looked_at_again_before_its_reading_is_too_old() {
        let check = |age: Duration, again: Duration| {
            let mut cx = Cx::example();
            let mut gpus = gpus(&mut cx, 1);
            let read = cx.now;
            _ = gpus.claim(&cx, &id("a"), 1, |_| false).unwrap();
            cx.now += age;
            assert_eq!(gpus.claim(&cx, &id("b"), 1, |_| true), Err(NotClaimed::Wait));
            assert_eq!(gpus.timers()[0].1, Some(read + again), "{age:?}");
        };
        check(Duration::ZERO, CLAIM_RETRY);
        check(CLAIM_AGE_MAX - CLAIM_RETRY / 2, CLAIM_AGE_MAX);
    }
}
