//! What may be tidied up after a complete listing: logs of no container, helpers of containers that are gone.

use std::collections::{BTreeMap, BTreeSet};

use super::job::Listed;
use super::{Action, Core};
use crate::types::ContainerId;

/// For how many listings a container that is gone is named, so that what it left is seen more than once.
const NAMED_FOR: u8 = 3;

/// What the janitor is told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cleanup {
    /// The deploys whose logs are kept.
    pub deploys: BTreeSet<String>,
    /// Containers that were ours and are gone.
    pub gone: BTreeSet<ContainerId>,
}

/// The containers that were ever seen to be ours, until some time after they are gone.
#[derive(Debug, Default)]
pub(super) struct Ours(BTreeMap<ContainerId, Known>);

#[derive(Debug)]
struct Known {
    /// The tick at which it was first seen: an older listing does not show it.
    since: u64,
    /// In how many listings it was missing.
    missing: u8,
}

impl Ours {
    /// A container of ours was started, or seen.
    pub(super) fn see(&mut self, container: &ContainerId, tick: u64) {
        self.0.entry(container.clone()).or_insert(Known { since: tick, missing: 0 }).missing = 0;
    }

    /// The ones that a listing that began at `began` should show and does not.
    fn missing(&mut self, began: u64) -> BTreeSet<ContainerId> {
        for known in self.0.values_mut().filter(|known| known.since < began) {
            known.missing += 1;
        }
        self.0.retain(|_, known| known.missing <= NAMED_FOR);
        self.0.iter().filter(|(_, known)| known.missing > 0).map(|(container, _)| container.clone()).collect()
    }
}

impl Core {
    /// After a complete listing: says what may be tidied up.
    pub(super) fn tidy(&mut self, began: u64, listed: &[Listed], out: &mut Vec<Action>) {
        let mut deploys: BTreeSet<String> = self.replicas.values().map(|r| r.deploy_id.clone()).collect();
        deploys.extend(self.orphans.keys().cloned());
        deploys.extend(listed.iter().map(|container| container.deploy.clone()));
        let gone_before = self.ours.missing(began);
        for container in listed {
            self.ours.see(&container.id, began);
        }
        let gone = gone_before.into_iter().filter(|id| !listed.iter().any(|c| c.id == *id)).collect();
        out.push(Action::CleanUp(Cleanup { deploys, gone }));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_gone_is_named_for_a_while_and_what_is_new_is_not() {
        let id = |digit: &str| ContainerId::new(&digit.repeat(64)).unwrap();
        let mut ours = Ours::default();
        ours.see(&id("a"), 1);
        ours.see(&id("b"), 9);
        for round in 0..NAMED_FOR {
            assert_eq!(ours.missing(5), BTreeSet::from([id("a")]), "round {round}");
        }
        assert!(ours.missing(5).is_empty());
        assert_eq!(ours.missing(10), BTreeSet::from([id("b")]));
        ours.see(&id("b"), 11);
        assert!(ours.missing(5).is_empty(), "seen again");
    }
}
