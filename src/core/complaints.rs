//! Messages that cannot be acted on: each kind stands in the log once a minute with a count, and a peer that sends too
//! many of them is a flood.

use std::time::{Duration, Instant};

/// At most one line per kind in this time, over which a flood is counted as well.
pub(super) const PERIOD: Duration = Duration::from_secs(60);
/// The most messages that cannot be acted on in a [`PERIOD`].
pub(super) const MESSAGES_MAX: u32 = 1000;
/// The most bytes of them.
pub(super) const BYTES_MAX: usize = 32 << 20;

const _: () = assert!(BYTES_MAX > 2 * crate::protocol::MESSAGE_MAX, "a large message or two are not a flood");

/// What is wrong with a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Complaint {
    /// It is not text.
    NotText,
    /// It is not a JSON message.
    NotAMessage,
    /// Its type is unknown.
    UnknownType,
    /// Its payload is wrong.
    Malformed,
}

/// What follows from one more message.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Verdict {
    /// It is to be logged; inside, how many of its kind were not since the last one that was.
    pub(super) log: Option<u32>,
    /// The peer floods. Said once; the count then starts again.
    pub(super) is_flood: bool,
}

/// The counts of the present minute.
#[derive(Debug, Default)]
pub(super) struct Complaints {
    kinds: [Kind; 4],
    since: Option<Instant>,
    messages: u32,
    bytes: usize,
}

#[derive(Debug, Default, Clone, Copy)]
struct Kind {
    logged_at: Option<Instant>,
    unlogged: u32,
}

impl Complaints {
    /// Counts one more message of `bytes`.
    pub(super) fn add(&mut self, now: Instant, complaint: Complaint, bytes: usize) -> Verdict {
        let is_past = |at: Instant| now.saturating_duration_since(at) >= PERIOD;
        if self.since.is_none_or(is_past) {
            self.since = Some(now);
            (self.messages, self.bytes) = (0, 0);
        }
        self.messages += 1;
        self.bytes += bytes;
        let is_flood = self.messages > MESSAGES_MAX || self.bytes > BYTES_MAX;
        if is_flood {
            self.since = None;
        }
        let kind = &mut self.kinds[complaint as usize];
        let log = if kind.logged_at.is_none_or(is_past) {
            kind.logged_at = Some(now);
            Some(std::mem::take(&mut kind.unlogged))
        } else {
            kind.unlogged = kind.unlogged.saturating_add(1);
            None
        };
        Verdict { log, is_flood }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn start() -> Instant {
        Instant::now()
    }

    #[test]
    fn each_kind_is_logged_once_a_minute_with_a_count() {
        let (mut complaints, now) = (Complaints::default(), start());
        let mut log =
            |seconds: u64, complaint| complaints.add(now + Duration::from_secs(seconds), complaint, 1).log;
        assert_eq!(log(0, Complaint::NotText), Some(0));
        assert_eq!(log(0, Complaint::UnknownType), Some(0));
        assert_eq!(log(1, Complaint::NotText), None);
        assert_eq!(log(59, Complaint::NotText), None);
        assert_eq!(log(60, Complaint::NotText), Some(2));
        assert_eq!(log(61, Complaint::UnknownType), Some(0));
        assert_eq!(log(119, Complaint::NotText), None);
        assert_eq!(log(500, Complaint::NotText), Some(1));
    }

    #[test]
    fn a_flood_is_too_many_messages_or_bytes_within_a_minute() {
        let now = start();
        let floods = |bytes: usize, pause: Duration, count: u32| {
            let mut complaints = Complaints::default();
            (0..count)
                .filter(|i| complaints.add(now + pause * *i, Complaint::Malformed, bytes).is_flood)
                .count()
        };
        assert_eq!(floods(0, Duration::ZERO, MESSAGES_MAX), 0);
        assert_eq!(floods(0, Duration::ZERO, MESSAGES_MAX + 1), 1);
        assert_eq!(floods(0, Duration::ZERO, 3 * (MESSAGES_MAX + 1)), 3);
        // Ten a second are not.
        assert_eq!(floods(0, Duration::from_millis(100), 10_000), 0);
        assert_eq!(floods(BYTES_MAX / 8, Duration::ZERO, 8), 0);
        assert_eq!(floods(BYTES_MAX / 8, Duration::ZERO, 9), 1);
        assert_eq!(floods(BYTES_MAX / 8, PERIOD / 8, 100), 0);
    }
}
