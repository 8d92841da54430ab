//! What may be deleted after a complete listing: logs and helper processes of containers that are gone.

use std::collections::{BTreeMap, BTreeSet};

use super::Action;
use super::cx::Cx;
use super::job::Listed;
use crate::types::ContainerId;

/// For how many listings a container that is gone is named, so that what it left is seen more than once.
const NAMED_FOR: u8 = 3;

/// What housekeeping goes by.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cleanup {
    /// The deploys whose logs are kept.
    pub deploys: BTreeSet<String>,
    /// Containers that were ours and are gone.
    pub gone: BTreeSet<ContainerId>,
}

/// The containers that were ever seen to be ours, until some time after they are gone.
#[derive(Debug, Default)]
pub(crate) struct SeenContainers(BTreeMap<ContainerId, Seen>);

#[derive(Debug)]
struct Seen {
    /// The tick at which it was first seen: an older listing does not show it.
    since: u64,
    /// From how many listings it was missing.
    missing: u8,
}

impl SeenContainers {
    /// A container of ours was started, or listed.
    pub(crate) fn see(&mut self, container: &ContainerId, tick: u64) {
        self.0.entry(container.clone()).or_insert(Seen { since: tick, missing: 0 }).missing = 0;
    }

    /// After a complete listing, asked for at tick `began`: says what may be deleted. `deploys`: those that are not over.
    pub(crate) fn on_listed(
        &mut self,
        cx: &mut Cx,
        began: u64,
        listed: &[Listed],
        deploys: impl Iterator<Item = String>,
    ) {
        let mut deploys: BTreeSet<String> = deploys.collect();
        deploys.extend(listed.iter().map(|container| container.deploy.clone()));
        let mut gone = self.missing(began);
        for container in listed {
            self.see(&container.id, began);
            gone.remove(&container.id);
        }
        cx.act(Action::CleanUp(Cleanup { deploys, gone }));
    }

    /// The ones that a listing that began at `began` should show and does not.
    fn missing(&mut self, began: u64) -> BTreeSet<ContainerId> {
        for seen in self.0.values_mut().filter(|seen| seen.since < began) {
            seen.missing += 1;
        }
        self.0.retain(|_, seen| seen.missing <= NAMED_FOR);
        self.0.iter().filter(|(_, seen)| seen.missing > 0).map(|(container, _)| container.clone()).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_gone_is_named_for_a_while_and_what_is_new_is_not() {
        let id = |digit: &str| ContainerId::new(&digit.repeat(64)).unwrap();
        let mut seen = SeenContainers::default();
        seen.see(&id("a"), 1);
        seen.see(&id("b"), 9);
        for round in 0..NAMED_FOR {
            assert_eq!(seen.missing(5), BTreeSet::from([id("a")]), "round {round}");
        }
        assert!(seen.missing(5).is_empty());
        assert_eq!(seen.missing(10), BTreeSet::from([id("b")]));
        seen.see(&id("b"), 11);
        assert!(seen.missing(5).is_empty(), "seen again");
    }
}
