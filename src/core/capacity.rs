//! What the host has for replicas: whether what a deploy asks for fits beside what others were promised. Arithmetic alone.

use super::replica::{Code, Promised, Refusal};
use crate::types::Spec;

/// What there is. What is not known refuses nothing.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Capacity {
    /// MemTotal, in MiB.
    pub(crate) memory_mib: Option<u64>,
    /// Logical CPUs.
    pub(crate) cpus: Option<u32>,
    /// Memory that is promised to nobody, in MiB.
    pub(crate) reserve_mib: u64,
    /// What each replica takes besides its limit, in MiB.
    pub(crate) overhead_mib: u64,
}

/// Why a deploy is not started.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum NoRoom {
    /// There will be room when replicas that are on their way out are gone.
    Wait,
    Refused(Refusal),
}

impl Capacity {
    /// The memory that replicas can still be promised, in MiB, beside those that have `held`.
    pub(crate) fn free_mib(&self, held: Promised) -> Option<u64> {
        let taken = self.reserve_mib.saturating_add(self.taken_mib(held));
        Some(self.memory_mib?.saturating_sub(taken))
    }

    /// What replicas take with their microVMs, in MiB.
    fn taken_mib(&self, held: Promised) -> u64 {
        held.memory_mib.saturating_add(held.replicas.saturating_mul(self.overhead_mib))
    }

    /// Why `spec` cannot be started beside replicas that have `held`, of which `returning` is on its way out.
    pub(crate) fn refuses(&self, spec: &Spec, held: Promised, returning: Promised) -> Option<NoRoom> {
        let refused = |code, error| Some(NoRoom::Refused(Refusal::new(code, error)));
        if let (Some(millicpus), Some(cpus)) = (spec.millicpus, self.cpus)
            && millicpus > u64::from(cpus) * 1000
        {
            let asked = format!("{}.{:03}", millicpus / 1000, millicpus % 1000);
            return refused(Code::NoCpu, format!("cpus is {asked}, and this host has {cpus}: ask for fewer"));
        }
        let (asked, total) = (spec.memory_mib?, self.memory_mib?);
        let (needed, free) = (asked.saturating_add(self.overhead_mib), self.free_mib(held)?);
        if needed <= free {
            return None;
        }
        if needed <= free.saturating_add(self.taken_mib(returning)) {
            return Some(NoRoom::Wait);
        }
        let vm = match self.overhead_mib {
            0 => String::new(),
            overhead => format!(" and {overhead} MiB for its microVM"),
        };
        refused(
            Code::NoMemory,
            format!(
                "memory_mb is {asked}{vm}, and {free} MiB are free: of {total} MiB, {} are promised to {} replicas and {} \
                 are kept back by reserve_memory_mb",
                self.taken_mib(held),
                held.replicas,
                self.reserve_mib
            ),
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::ImageRef;

    const NOBODY: Promised = Promised { replicas: 0, memory_mib: 0 };
    const HOST: Capacity =
        Capacity { memory_mib: Some(24_000), cpus: Some(8), reserve_mib: 1024, overhead_mib: 2208 };

    fn spec(memory_mib: Option<u64>, millicpus: Option<u64>) -> Spec {
        Spec { memory_mib, millicpus, ..Spec::new(ImageRef::new("img:a").unwrap()) }
    }

    #[test]
    fn memory_is_promised_once() {
        let held = Promised { replicas: 2, memory_mib: 10_000 };
        assert_eq!(HOST.free_mib(held), Some(24_000 - 1024 - 10_000 - 2 * 2208));
        let check = |memory, held, returning, fits: Option<NoRoom>| {
            assert_eq!(HOST.refuses(&spec(Some(memory), None), held, returning), fits, "{memory}");
        };
        check(24_000 - 1024 - 2208, NOBODY, NOBODY, None);
        check(8560 - 2208, held, NOBODY, None);
        check(8561 - 2208, held, Promised { replicas: 1, memory_mib: 0 }, Some(NoRoom::Wait));
        let error = "memory_mb is 60000 and 2208 MiB for its microVM, and 8560 MiB are free: of 24000 MiB, 14416 are \
                     promised to 2 replicas and 1024 are kept back by reserve_memory_mb";
        check(60_000, held, held, Some(NoRoom::Refused(Refusal::new(Code::NoMemory, error))));
        check(u64::MAX, held, held, HOST.refuses(&spec(Some(u64::MAX), None), held, NOBODY));
        assert_eq!(HOST.refuses(&spec(None, None), Promised { replicas: 99, memory_mib: 0 }, NOBODY), None);
    }

    #[test]
    fn no_more_cpus_than_there_are_and_nothing_is_guessed() {
        assert_eq!(HOST.refuses(&spec(None, Some(8000)), NOBODY, NOBODY), None);
        let refused = HOST.refuses(&spec(None, Some(8001)), NOBODY, NOBODY);
        let error = "cpus is 8.001, and this host has 8: ask for fewer";
        assert_eq!(refused, Some(NoRoom::Refused(Refusal::new(Code::NoCpu, error))));
        let unknown = Capacity { memory_mib: None, cpus: None, ..HOST };
        assert_eq!(unknown.refuses(&spec(Some(u64::MAX), Some(u64::MAX)), NOBODY, NOBODY), None);
        assert_eq!(unknown.free_mib(NOBODY), None);
    }
}
