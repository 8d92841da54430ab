//! Calls of the container CLI that an earlier process left behind. What they make is waited for; a listing proves
//! nothing about a replica while one is at work on it.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use super::poll::Poll;
use super::timers::Timer;
use super::{Action, LeftoverCall, cx::Cx};
use crate::types::ReplicaId;

/// How often they are looked for while one is waited for.
const SEARCH_EVERY: Duration = Duration::from_secs(1);
/// How long after a search that could not be made the next one is.
const SEARCH_RETRY: Duration = Duration::from_secs(10);
/// When the node's state says that nothing is known of them.
const UNKNOWN_AFTER: Duration = Duration::from_secs(10);

/// The CLI calls of an earlier process that may still be at work.
#[derive(Debug)]
pub(crate) struct LeftoverCalls {
    search: Poll,
    /// The calls at work, by the deploy that they are for.
    calls: BTreeMap<String, LeftoverCall>,
    known: bool,
    /// When the node's state says that they are not known; `None`: it does, or they are.
    unknown_at: Option<Instant>,
    /// The tick at which one was last found to be over.
    ended: u64,
}

impl LeftoverCalls {
    pub(crate) fn new(now: Instant) -> Self {
        let mut search = Poll::new(None);
        search.want(now);
        Self { search, calls: BTreeMap::new(), known: false, unknown_at: Some(now + UNKNOWN_AFTER), ended: 0 }
    }

    pub(crate) fn timers(&self) -> [(Timer, Option<Instant>); 2] {
        [(Timer::LeftoverCalls, self.search.timer()), (Timer::LeftoverCallsUnknown, self.unknown_at)]
    }

    pub(crate) fn on_timer(&mut self, cx: &mut Cx) {
        if self.search.on_timer(cx.now) {
            cx.act(Action::FindLeftoverCalls);
        }
    }

    pub(crate) fn on_unknown_timer(&mut self) {
        self.unknown_at = None;
    }

    /// A search came back. `None`: it could not be made. Gives the replicas that no call is at work on any more; if
    /// there are any, a listing that began before may have missed what the calls made.
    pub(crate) fn found(
        &mut self,
        cx: &Cx,
        found: Option<BTreeMap<String, LeftoverCall>>,
    ) -> BTreeSet<ReplicaId> {
        let Some(found) = found else {
            self.search.failed(cx.now, SEARCH_RETRY);
            return BTreeSet::new();
        };
        self.search.done(cx.now, ());
        self.known = true;
        self.unknown_at = None;
        if !found.is_empty() {
            self.search.want(cx.now + SEARCH_EVERY);
        }
        let mut before = std::mem::replace(&mut self.calls, found);
        before.retain(|deploy, _| !self.calls.contains_key(deploy));
        if !before.is_empty() {
            self.ended = cx.tick;
        }
        before.into_values().map(|call| call.replica).filter(|id| !self.is_at_work_on(id)).collect()
    }

    /// Whether a search has found out which there are.
    pub(crate) fn are_known(&self) -> bool {
        self.known
    }

    pub(crate) fn are_over(&self) -> bool {
        self.known && self.calls.is_empty()
    }

    /// The tick at which one was last found to be over: a listing that was asked for before proves nothing.
    pub(crate) fn ended(&self) -> u64 {
        self.ended
    }

    pub(crate) fn is_at_work_on(&self, id: &ReplicaId) -> bool {
        self.calls.values().any(|call| call.replica == *id)
    }

    /// The deploys that calls are at work for.
    pub(crate) fn deploys(&self) -> impl Iterator<Item = &String> {
        self.calls.keys()
    }

    pub(crate) fn is_for_deploy(&self, deploy: &str) -> bool {
        self.calls.contains_key(deploy)
    }

    pub(crate) fn calls(&self) -> impl Iterator<Item = &LeftoverCall> {
        self.calls.values()
    }

    /// Ends the calls that are at work on a replica.
    pub(crate) fn end(&self, cx: &mut Cx, id: &ReplicaId) {
        let of_replica = self.calls.iter().filter(|(_, call)| call.replica == *id);
        cx.actions.extend(of_replica.map(|(deploy, _)| Action::EndLeftoverCalls(deploy.clone())));
    }

    /// For the node's state.
    pub(crate) fn trouble(&self) -> Option<String> {
        let unknown =
            "cannot tell which container CLI calls the previous agent process left: /proc cannot be read";
        (!self.known && self.unknown_at.is_none()).then(|| unknown.to_owned())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_replica_is_free_when_the_last_call_at_work_on_it_is_over() {
        let mut cx = Cx::example();
        let call = |id: &str| LeftoverCall { replica: ReplicaId::new(id).unwrap(), gpus: Vec::new() };
        let found = |calls: &[(&str, &str)]| {
            Some(calls.iter().map(|(deploy, id)| ((*deploy).to_owned(), call(id))).collect())
        };
        let mut leftovers = LeftoverCalls::new(cx.now);
        leftovers.on_timer(&mut cx);
        assert!(!leftovers.are_over(), "not known");
        assert!(leftovers.found(&cx, found(&[("d1", "r"), ("d2", "r"), ("d3", "s")])).is_empty());
        assert_eq!(leftovers.timers()[0].1, Some(cx.now + SEARCH_EVERY));
        cx.tick = 7;
        leftovers.on_timer(&mut cx);
        let free = leftovers.found(&cx, found(&[("d2", "r")]));
        assert_eq!(free.iter().map(ReplicaId::as_str).collect::<Vec<_>>(), ["s"]);
        assert_eq!((leftovers.ended(), leftovers.are_over()), (7, false));
        leftovers.on_timer(&mut cx);
        assert_eq!(leftovers.found(&cx, found(&[])).len(), 1);
        assert!(leftovers.are_over() && leftovers.timers()[0].1.is_none());
    }

    #[test]
    fn a_search_that_cannot_be_made_is_made_again_and_told_after_a_while() {
        let mut cx = Cx::example();
        let mut leftovers = LeftoverCalls::new(cx.now);
        leftovers.on_timer(&mut cx);
        assert!(leftovers.found(&cx, None).is_empty());
        assert_eq!(leftovers.timers()[0].1, Some(cx.now + SEARCH_RETRY));
        assert_eq!(leftovers.trouble(), None);
        leftovers.on_unknown_timer();
        assert!(leftovers.trouble().is_some());
    }
}
