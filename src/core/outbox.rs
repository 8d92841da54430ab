//! Results, kept until the peer is known to have them.
//!
//! The protocol has no acknowledgement, so a ping follows what was sent: a pong of the same connection that carries
//! its number, or a later one, proves the receipt of all that was sent before it (RFC 6455 section 5.5.3: frames are
//! answered in order). What is unproved when a connection ends is sent again on the next one, in order.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use serde_json::{Map, Value};

use super::link_api::LinkId;
use crate::types::{ReplicaId, RequestId};

/// How long a result waits for its word to be on disk before it is sent all the same: a bad disk is reported, it
/// does not stop the work.
pub const RECORD_PATIENCE: Duration = Duration::from_secs(2);

/// Waits for a save, but not for ever.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Gate {
    /// The save that has what must be on disk.
    pub seq: u64,
    /// When it is waited for no longer.
    pub until: Instant,
}

/// What a result is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// `deploy_result`.
    Deploy,
    /// `stop_result`.
    Stop,
    /// `replica_status` of an exit.
    Exit,
}

impl Kind {
    /// The message's type.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Deploy => "deploy_result",
            Self::Stop => "stop_result",
            Self::Exit => "replica_status",
        }
    }

    /// The kind with this word.
    pub fn read(word: &str) -> Option<Self> {
        [Self::Deploy, Self::Stop, Self::Exit].into_iter().find(|kind| kind.as_str() == word)
    }
}

/// A result that the peer is not known to have.
#[derive(Debug, Clone, PartialEq)]
pub struct Entry {
    /// Its kind.
    pub kind: Kind,
    /// Whose it is.
    pub replica: ReplicaId,
    /// Which request it answers.
    pub request: Option<RequestId>,
    /// The hash of the specification that it is about (of a deploy).
    pub spec: String,
    /// The message's payload.
    pub payload: Map<String, Value>,
    /// Whether it goes into the record (an answer that is given again does not).
    pub recorded: bool,
    gate: Option<Gate>,
    sent: Option<(LinkId, u64)>,
}

impl Entry {
    /// A new one, unsent.
    pub fn new(
        kind: Kind,
        replica: ReplicaId,
        request: Option<RequestId>,
        payload: Map<String, Value>,
    ) -> Self {
        Self { kind, replica, request, spec: String::new(), payload, recorded: true, gate: None, sent: None }
    }

    /// With the hash of the specification that it answers.
    pub fn about(mut self, spec: &str) -> Self {
        spec.clone_into(&mut self.spec);
        self
    }

    /// Not sent before `gate` opens.
    pub fn after(mut self, gate: Gate) -> Self {
        self.gate = Some(gate);
        self
    }

    /// Kept in memory alone.
    pub fn unrecorded(mut self) -> Self {
        self.recorded = false;
        self
    }
}

/// The results, in the order in which they came about.
#[derive(Debug, Default)]
pub struct Outbox {
    entries: VecDeque<Entry>,
}

impl Outbox {
    /// How many are kept.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether none is kept.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// All, oldest first.
    pub fn iter(&self) -> impl DoubleEndedIterator<Item = &Entry> + ExactSizeIterator {
        self.entries.iter()
    }

    /// Keeps a result. Of a replica's exits the newest alone is kept.
    pub fn push(&mut self, entry: Entry) {
        if entry.kind == Kind::Exit {
            self.entries.retain(|old| old.kind != Kind::Exit || old.replica != entry.replica);
        }
        self.entries.push_back(entry);
    }

    /// The results that may be sent on `link` now and were not yet; they count as sent before ping `ping`.
    ///
    /// A replica's results keep their order: one that waits for its record holds back those behind it.
    pub fn take_unsent(
        &mut self,
        link: LinkId,
        ping: u64,
        open: impl Fn(&Gate) -> bool,
    ) -> Vec<(&'static str, Map<String, Value>)> {
        let mut held: Vec<ReplicaId> = Vec::new();
        let mut out = Vec::new();
        for entry in &mut self.entries {
            if entry.sent.is_some_and(|(on, _)| on == link) || held.contains(&entry.replica) {
                continue;
            }
            if entry.gate.as_ref().is_none_or(&open) {
                entry.gate = None;
                entry.sent = Some((link, ping));
                out.push((entry.kind.as_str(), entry.payload.clone()));
            } else {
                held.push(entry.replica.clone());
            }
        }
        out
    }

    /// A pong with this number arrived: takes what it proves to have arrived.
    pub fn confirm(&mut self, link: LinkId, pong: u64) -> Vec<Entry> {
        let (arrived, kept) =
            std::mem::take(&mut self.entries).into_iter().partition::<VecDeque<_>, _>(|entry| {
                entry.sent.is_some_and(|(on, ping)| on == link && ping <= pong)
            });
        self.entries = kept;
        arrived.into()
    }

    /// Sends the results that match (by their place and what they are) again, at the next chance, on whatever
    /// connection there is. Says whether any does.
    pub fn send_again(&mut self, matches: impl Fn(usize, &Entry) -> bool) -> bool {
        let mut found = false;
        for (n, entry) in self.entries.iter_mut().enumerate() {
            if matches(n, entry) {
                entry.sent = None;
                found = true;
            }
        }
        found
    }

    /// When the next gate opens by itself.
    pub fn next_gate(&self) -> Option<Instant> {
        self.entries.iter().filter_map(|entry| entry.gate).map(|gate| gate.until).min()
    }
}

#[cfg(test)]
#[allow(clippy::disallowed_methods, reason = "a test needs some time to begin with")]
mod tests {
    use super::*;

    fn entry(kind: Kind, replica: &str, n: u64) -> Entry {
        let mut payload = Map::new();
        payload.insert("n".into(), n.into());
        Entry::new(kind, ReplicaId::new(replica).unwrap(), None, payload)
    }

    fn sent(outbox: &mut Outbox, link: u64, ping: u64, saved: u64) -> Vec<u64> {
        let sent = outbox.take_unsent(LinkId(link), ping, |gate| gate.seq <= saved);
        sent.iter().map(|(_, payload)| payload["n"].as_u64().unwrap()).collect()
    }

    #[test]
    fn only_a_later_pong_of_the_same_connection_proves_receipt() {
        let mut outbox = Outbox::default();
        outbox.push(entry(Kind::Deploy, "a", 1));
        assert_eq!(sent(&mut outbox, 1, 5, 0), [1]);
        assert!(sent(&mut outbox, 1, 6, 0).is_empty(), "sent once on a connection");
        assert!(outbox.confirm(LinkId(1), 4).is_empty(), "an earlier pong proves nothing");
        assert!(outbox.confirm(LinkId(2), 9).is_empty(), "nor does another connection's");
        assert_eq!(sent(&mut outbox, 2, 1, 0), [1], "sent again on the next connection");
        assert!(outbox.confirm(LinkId(1), 9).is_empty());
        assert_eq!(outbox.confirm(LinkId(2), 2).len(), 1);
        assert!(outbox.is_empty());
    }

    #[test]
    fn a_result_that_waits_for_its_record_holds_back_its_own_replica_alone() {
        let gate = Gate { seq: 7, until: Instant::now() + RECORD_PATIENCE };
        let mut outbox = Outbox::default();
        outbox.push(entry(Kind::Deploy, "a", 1).after(gate));
        outbox.push(entry(Kind::Stop, "a", 2));
        outbox.push(entry(Kind::Deploy, "b", 3));
        assert_eq!(outbox.next_gate(), Some(gate.until));
        assert_eq!(sent(&mut outbox, 1, 1, 6), [3]);
        assert_eq!(sent(&mut outbox, 1, 2, 7), [1, 2]);
        assert_eq!(outbox.next_gate(), None);
        assert_eq!(outbox.confirm(LinkId(1), 1).len(), 1);
        assert_eq!(outbox.confirm(LinkId(1), 2).len(), 2);
    }

    #[test]
    fn the_newest_exit_of_a_replica_is_kept() {
        let mut outbox = Outbox::default();
        outbox.push(entry(Kind::Exit, "a", 1));
        outbox.push(entry(Kind::Deploy, "a", 2));
        outbox.push(entry(Kind::Exit, "b", 3));
        outbox.push(entry(Kind::Exit, "a", 4));
        assert_eq!(sent(&mut outbox, 1, 1, 0), [2, 3, 4]);
    }
}
