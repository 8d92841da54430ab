//! What the core knows of the state directory: which save has arrived, and who waits for it.

use std::time::{Duration, Instant};

use super::outbox::{Gate, RECORD_PATIENCE};

/// How long after a failed save the next one is tried.
const SAVE_AGAIN: Duration = Duration::from_secs(10);
/// A save that takes longer than this counts as a bad disk.
const SAVE_SLOW: Duration = Duration::from_secs(5);

/// The saves of the record, one at a time; the newest state goes out next.
#[derive(Debug, Default)]
pub struct Disk {
    dirty: bool,
    issued: u64,
    saved: u64,
    in_flight: Option<Instant>,
    retry_at: Option<Instant>,
    failure: Option<String>,
}

impl Disk {
    /// Something changed that must be saved.
    pub fn dirty(&mut self) {
        self.dirty = true;
    }

    /// The gate that opens when all that stands now is saved.
    pub fn gate(&mut self, now: Instant) -> Gate {
        self.dirty = true;
        Gate { seq: self.issued + 1, until: now + RECORD_PATIENCE }
    }

    /// Whether what waits for `gate` may go on.
    pub fn open(&self, now: Instant, gate: &Gate) -> bool {
        self.saved >= gate.seq || gate.until <= now || self.failure.is_some()
    }

    /// When `gate` opens by itself; `None` when it is open.
    pub fn opens(&self, now: Instant, gate: &Gate) -> Option<Instant> {
        (!self.open(now, gate)).then_some(gate.until)
    }

    /// The number of the save that is to be made now, if one is.
    pub fn next(&mut self, now: Instant) -> Option<u64> {
        let due = self.dirty && self.in_flight.is_none() && self.retry_at.is_none_or(|at| at <= now);
        due.then(|| {
            self.dirty = false;
            self.retry_at = None;
            self.in_flight = Some(now);
            self.issued += 1;
            self.issued
        })
    }

    /// A save arrived.
    pub fn saved(&mut self, seq: u64) {
        self.saved = self.saved.max(seq);
        if seq == self.issued {
            self.in_flight = None;
        }
        self.failure = None;
    }

    /// A save failed: it is tried again with what stands then.
    pub fn failed(&mut self, now: Instant, seq: u64, why: String) {
        if seq == self.issued {
            self.in_flight = None;
        }
        self.dirty = true;
        self.retry_at = Some(now + SAVE_AGAIN);
        self.failure = Some(why);
    }

    /// What is wrong with the disk, for the node's state.
    pub fn trouble(&self, now: Instant) -> Option<String> {
        match (&self.failure, self.in_flight) {
            (Some(why), _) => Some(why.clone()),
            (None, Some(since)) if since + SAVE_SLOW <= now => {
                Some("the state directory does not answer: the last save hangs".to_owned())
            }
            (None, _) => None,
        }
    }

    /// Whether everything is saved, as far as that can be had.
    pub fn settled(&self) -> bool {
        self.failure.is_some() || !self.dirty && self.in_flight.is_none()
    }

    /// When something is to be done, or to be said, by itself.
    pub fn next_deadline(&self, now: Instant) -> Option<Instant> {
        let retry = if self.dirty && self.in_flight.is_none() { self.retry_at } else { None };
        let slow = self.in_flight.map(|since| since + SAVE_SLOW).filter(|at| *at > now);
        [retry, slow].into_iter().flatten().min()
    }
}

#[cfg(test)]
#[allow(clippy::disallowed_methods, reason = "a test needs some time to begin with")]
mod tests {
    use super::*;

    #[test]
    fn a_gate_opens_with_the_save_that_has_its_change() {
        let now = Instant::now();
        let mut disk = Disk::default();
        let first = disk.gate(now);
        assert_eq!(disk.next(now), Some(1));
        let second = disk.gate(now);
        assert_eq!(disk.next(now), None, "one save at a time");
        assert!(!disk.open(now, &first));
        disk.saved(1);
        assert!(disk.open(now, &first) && !disk.open(now, &second));
        assert_eq!(disk.next(now), Some(2));
        assert!(disk.open(now + RECORD_PATIENCE, &second), "it is not waited for longer");
        assert!(!disk.settled());
        disk.saved(2);
        assert!(disk.settled() && disk.open(now, &second));
    }

    #[test]
    fn a_bad_disk_opens_the_gates_and_is_tried_again() {
        let now = Instant::now();
        let mut disk = Disk::default();
        let gate = disk.gate(now);
        assert_eq!(disk.next(now), Some(1));
        assert_eq!(disk.trouble(now), None);
        assert!(disk.trouble(now + SAVE_SLOW).is_some());
        disk.failed(now, 1, "full".into());
        assert!(disk.open(now, &gate));
        assert_eq!(disk.trouble(now).as_deref(), Some("full"));
        assert_eq!(disk.next(now), None);
        assert_eq!(disk.next_deadline(now), Some(now + SAVE_AGAIN));
        assert_eq!(disk.next(now + SAVE_AGAIN), Some(2));
        disk.saved(2);
        assert_eq!(disk.trouble(now), None);
    }
}
