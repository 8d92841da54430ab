//! Results, kept until the peer is known to have them.
//!
//! The protocol has no acknowledgement, so a ping follows what was sent: a pong of the same connection that carries
//! its number, or a later one, proves the receipt of all that was sent before it (RFC 6455 section 5.5.3: frames are
//! answered in order). What is unproved when a connection ends is sent again on the next one, in order.

use std::collections::VecDeque;

use serde_json::{Map, Value};

use super::link_api::LinkId;
use super::persistence::DurableBarrier;
use crate::types::{ReplicaId, RequestId, word_enum};

word_enum! {
    /// Which message a result is, by the message's type.
    pub(crate) enum ResultKind {
        Deploy = "deploy_result",
        Stop = "stop_result",
        /// Of an exit.
        Exit = "replica_status",
    }
}

/// A result that the peer is not known to have.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Entry {
    pub(crate) kind: ResultKind,
    pub(crate) replica: ReplicaId,
    /// The request that it answers.
    pub(crate) request: Option<RequestId>,
    /// Of a deploy: the hash of its specification.
    pub(crate) spec_hash: String,
    pub(crate) payload: Map<String, Value>,
    /// Whether it goes into the state file (an answer that is given again does not).
    pub(crate) recorded: bool,
    barrier: DurableBarrier,
    /// The connection that it was sent on, and the ping that followed.
    sent: Option<(LinkId, u64)>,
}

impl Entry {
    pub(crate) fn new(
        kind: ResultKind,
        replica: ReplicaId,
        request: Option<RequestId>,
        payload: Map<String, Value>,
    ) -> Self {
        let barrier = DurableBarrier::OPEN;
        Self {
            kind,
            replica,
            request,
            spec_hash: String::new(),
            payload,
            recorded: true,
            barrier,
            sent: None,
        }
    }

    /// With the hash of the specification that it answers.
    pub(crate) fn about(mut self, spec_hash: &str) -> Self {
        spec_hash.clone_into(&mut self.spec_hash);
        self
    }

    /// Not sent before `barrier` opens.
    pub(crate) fn after(mut self, barrier: DurableBarrier) -> Self {
        self.barrier = barrier;
        self
    }

    /// Kept in memory alone.
    pub(crate) fn unrecorded(mut self) -> Self {
        self.recorded = false;
        self
    }
}

/// The results, in the order in which they came about.
#[derive(Debug, Default)]
pub(crate) struct Outbox {
    entries: VecDeque<Entry>,
}

impl Outbox {
    pub(crate) fn len(&self) -> usize {
        self.entries.len()
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// All, oldest first.
    pub(crate) fn iter(&self) -> impl DoubleEndedIterator<Item = &Entry> + ExactSizeIterator {
        self.entries.iter()
    }

    /// Keeps a result. Of a replica's exits the newest alone is kept.
    pub(crate) fn push(&mut self, entry: Entry) {
        if entry.kind == ResultKind::Exit {
            self.entries.retain(|old| old.kind != ResultKind::Exit || old.replica != entry.replica);
        }
        self.entries.push_back(entry);
    }

    /// The results that may be sent on `link` now and were not yet; they count as sent before ping `ping`.
    ///
    /// A replica's results keep their order: one that waits for its record holds back those behind it.
    pub(crate) fn take_unsent(
        &mut self,
        link: LinkId,
        ping: u64,
        is_durable: impl Fn(DurableBarrier) -> bool,
    ) -> Vec<(&'static str, Map<String, Value>)> {
        let mut held: Vec<ReplicaId> = Vec::new();
        let mut unsent = Vec::new();
        for entry in &mut self.entries {
            if entry.sent.is_some_and(|(on, _)| on == link) || held.contains(&entry.replica) {
                continue;
            }
            if is_durable(entry.barrier) {
                entry.sent = Some((link, ping));
                unsent.push((entry.kind.as_str(), entry.payload.clone()));
            } else {
                held.push(entry.replica.clone());
            }
        }
        unsent
    }

    /// A pong with this number arrived: takes what it proves to have arrived.
    pub(crate) fn confirm(&mut self, link: LinkId, pong: u64) -> Vec<Entry> {
        let (arrived, kept) =
            std::mem::take(&mut self.entries).into_iter().partition::<VecDeque<_>, _>(|entry| {
                entry.sent.is_some_and(|(on, ping)| on == link && ping <= pong)
            });
        self.entries = kept;
        arrived.into()
    }

    /// Sends the results that match (by their place and what they are) again, at the next chance, on whatever
    /// connection there is. Says whether any does.
    pub(crate) fn send_again(&mut self, matches: impl Fn(usize, &Entry) -> bool) -> bool {
        let mut found = false;
        for (n, entry) in self.entries.iter_mut().enumerate() {
            if matches(n, entry) {
                entry.sent = None;
                found = true;
            }
        }
        found
    }
}

#[cfg(test)]
mod tests {
    use super::super::cx::Cx;
    use super::super::persistence::Persistence;
    use super::*;

    const OPEN: DurableBarrier = DurableBarrier::OPEN;

    fn entry(kind: ResultKind, replica: &str, n: u64) -> Entry {
        let mut payload = Map::new();
        payload.insert("n".into(), n.into());
        Entry::new(kind, ReplicaId::new(replica).unwrap(), None, payload)
    }

    fn sent(outbox: &mut Outbox, link: u64, ping: u64, durable: DurableBarrier) -> Vec<u64> {
        let sent = outbox.take_unsent(LinkId(link), ping, |barrier| barrier <= durable);
        sent.iter().map(|(_, payload)| payload["n"].as_u64().unwrap()).collect()
    }

    #[test]
    fn only_a_later_pong_of_the_same_connection_proves_receipt() {
        let mut outbox = Outbox::default();
        outbox.push(entry(ResultKind::Deploy, "a", 1));
        assert_eq!(sent(&mut outbox, 1, 5, OPEN), [1]);
        assert!(sent(&mut outbox, 1, 6, OPEN).is_empty(), "sent once on a connection");
        assert!(outbox.confirm(LinkId(1), 4).is_empty(), "an earlier pong proves nothing");
        assert!(outbox.confirm(LinkId(2), 9).is_empty(), "nor does another connection's");
        assert_eq!(sent(&mut outbox, 2, 1, OPEN), [1], "sent again on the next connection");
        assert!(outbox.confirm(LinkId(1), 9).is_empty());
        assert_eq!(outbox.confirm(LinkId(2), 2).len(), 1);
        assert!(outbox.is_empty());
    }

    #[test]
    fn a_result_that_waits_for_its_record_holds_back_its_own_replica_alone() {
        let cx = Cx::example();
        let barrier = Persistence::new().barrier(cx.now);
        let mut outbox = Outbox::default();
        outbox.push(entry(ResultKind::Deploy, "a", 1).after(barrier));
        outbox.push(entry(ResultKind::Stop, "a", 2));
        outbox.push(entry(ResultKind::Deploy, "b", 3));
        assert_eq!(sent(&mut outbox, 1, 1, OPEN), [3]);
        assert_eq!(sent(&mut outbox, 1, 2, barrier), [1, 2]);
        assert_eq!(outbox.confirm(LinkId(1), 1).len(), 1);
        assert_eq!(outbox.confirm(LinkId(1), 2).len(), 2);
    }

    #[test]
    fn the_newest_exit_of_a_replica_is_kept() {
        let mut outbox = Outbox::default();
        outbox.push(entry(ResultKind::Exit, "a", 1));
        outbox.push(entry(ResultKind::Deploy, "a", 2));
        outbox.push(entry(ResultKind::Exit, "b", 3));
        outbox.push(entry(ResultKind::Exit, "a", 4));
        assert_eq!(sent(&mut outbox, 1, 1, OPEN), [2, 3, 4]);
    }
}
