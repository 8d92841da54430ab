//! What happened, in order: a bounded log that tests and scripts read from a number on.

use std::collections::VecDeque;

use serde_json::{Value, json};

/// How many events are kept.
const EVENTS_MAX: usize = 100_000;
/// How many bytes of messages are kept.
const BYTES_MAX: usize = 64 << 20;

/// What kind of thing happened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// A node sent a message of the protocol.
    Received,
    /// A node sent what is no message.
    Malformed,
    /// A node sent a message that the protocol does not allow; it was taken all the same.
    Violation,
    /// Something about the node itself: registered, connected, disconnected, offline, removed.
    Node,
}

impl Kind {
    fn word(self) -> &'static str {
        match self {
            Self::Received => "received",
            Self::Malformed => "malformed",
            Self::Violation => "violation",
            Self::Node => "node",
        }
    }
}

/// One thing that happened.
pub struct Event {
    /// Its number, from 1 without gaps.
    pub n: u64,
    ms: u64,
    kind: Kind,
    node: Option<String>,
    /// The message's type, or a word for the event.
    pub name: String,
    payload: Value,
    size: usize,
}

impl Event {
    /// As the API shows it.
    fn to_json(&self) -> Value {
        json!({
            "n": self.n, "ms": self.ms, "kind": self.kind.word(), "node": self.node, "type": self.name,
            "payload": self.payload,
        })
    }

    /// As it is printed: one line.
    pub fn line(&self) -> String {
        let mark = match self.kind {
            Kind::Received => "",
            Kind::Malformed | Kind::Violation => "! ",
            Kind::Node => "* ",
        };
        let node = self.node.as_deref().unwrap_or("-");
        // Escaped: a type is the peer's text, and a terminal may be reading.
        format!("{mark}{node} {} {}", self.name.escape_debug(), self.payload)
    }
}

/// The log.
#[derive(Default)]
pub struct Events {
    log: VecDeque<Event>,
    last: u64,
    bytes: usize,
}

impl Events {
    /// Appends an event; the oldest make room. `size` is what its payload takes, about, in bytes.
    pub fn push(&mut self, ms: u64, kind: Kind, node: Option<&str>, name: &str, payload: Value, size: usize) {
        self.last += 1;
        self.bytes += size;
        let node = node.map(str::to_owned);
        self.log.push_back(Event { n: self.last, ms, kind, node, name: name.to_owned(), payload, size });
        while self.log.len() > EVENTS_MAX || self.bytes > BYTES_MAX {
            let Some(oldest) = self.log.pop_front() else { break };
            self.bytes -= oldest.size;
        }
    }

    /// The newest event's number, 0 before the first.
    pub fn last(&self) -> u64 {
        self.last
    }

    /// The kept events whose number is above `since`.
    pub fn after(&self, since: u64) -> impl Iterator<Item = &Event> {
        let kept_from = self.last - self.log.len() as u64;
        self.log.iter().skip(usize::try_from(since.saturating_sub(kept_from)).unwrap_or(usize::MAX))
    }

    /// The events above `since` as JSON, with the number to go on from; `kind` picks one kind.
    pub fn view(&self, since: u64, kind: Option<Kind>) -> Value {
        let wanted = self.after(since).filter(|event| kind.is_none_or(|k| k == event.kind));
        json!({"last": self.last, "events": wanted.map(Event::to_json).collect::<Vec<_>>()})
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_log_is_bounded_and_its_numbers_go_on() {
        let mut events = Events::default();
        for _ in 0..4 {
            events.push(0, Kind::Received, Some("n"), "logs", Value::Null, BYTES_MAX / 3);
        }
        let numbers = |since| events.after(since).map(|e| e.n).collect::<Vec<_>>();
        assert_eq!(numbers(0), [2, 3, 4]);
        assert_eq!(numbers(3), [4]);
        assert!(numbers(4).is_empty() && numbers(u64::MAX).is_empty());
        assert_eq!(events.view(3, Some(Kind::Node)), json!({"last": 4, "events": []}));
    }
}
