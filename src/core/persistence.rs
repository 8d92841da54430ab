//! The files of the state directory: what the core has written to them, which save has arrived, and what waits for one.

use std::collections::VecDeque;
use std::fmt;
use std::time::{Duration, Instant};

use super::identity::Identity;
use super::poll::Poll;
use super::timers::Timer;

/// A file of the state directory.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum RecordFile {
    /// `node.json`.
    Node,
    /// `state.json`.
    State,
    /// `replicas.json`.
    Table,
}

impl RecordFile {
    /// Its name in the directory.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Node => "node.json",
            Self::State => "state.json",
            Self::Table => "replicas.json",
        }
    }
}

impl fmt::Display for RecordFile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// A file's whole new content.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Record {
    /// Of `node.json`.
    Node(Identity),
    /// Of `state.json`: one JSON value, at most [`STATE_MAX`] bytes.
    State(String),
    /// Of `replicas.json`: the same.
    Table(String),
}

/// Version of `state.json` and `replicas.json`. A file with a higher one is kept aside untouched.
pub const STATE_VERSION: u64 = 1;
/// Maximum size of `state.json`, and of `replicas.json`, in bytes.
pub const STATE_MAX: usize = 4 * 1024 * 1024;

impl Record {
    /// The file that it is for.
    pub fn file(&self) -> RecordFile {
        match self {
            Self::Node(_) => RecordFile::Node,
            Self::State(_) => RecordFile::State,
            Self::Table(_) => RecordFile::Table,
        }
    }
}

/// What became of saving. The number is the one that the record was given; it stands for all earlier ones of the
/// same file too, which were not saved one by one if they came too fast.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum StoreEvent {
    /// It is on the disk.
    Saved(RecordFile, u64),
    /// It is not known to be on the disk; what was there before still is, whole. Says why and what to do.
    SaveFailed(RecordFile, u64, String),
}

impl fmt::Display for StoreEvent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Saved(file, seq) => write!(f, "saved {file} {seq}"),
            Self::SaveFailed(file, seq, _) => write!(f, "save failed {file} {seq}"),
        }
    }
}

/// How long something waits for its record to be on disk before it goes on without: a bad disk is reported and does not
/// stop the work.
pub(crate) const BARRIER_TIMEOUT: Duration = Duration::from_secs(2);
/// How long after a failed save the next one is tried.
const SAVE_RETRY: Duration = Duration::from_secs(10);
/// A save that takes longer than this counts as a bad disk.
const SAVE_SLOW: Duration = Duration::from_secs(5);
/// How long `state.json` carries what is not in the table as it stands, before the table is written anew: it grows by
/// what changes meanwhile.
const TABLE_PAUSE: Duration = Duration::from_secs(10);

/// What waits at a barrier goes on when all that stood when the barrier was made is on disk, or after a time. Barriers
/// open in the order in which they were made, and stay open.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct DurableBarrier(u64);

impl DurableBarrier {
    /// One that is open: what it stands for came from the disk.
    pub(crate) const OPEN: Self = Self(0);
}

/// A barrier that is closed.
#[derive(Debug)]
struct Closed {
    barrier: DurableBarrier,
    /// The save that has what must be on disk.
    seq: u64,
    gives_up_at: Instant,
}

/// The saves of the state file, one at a time, each with everything that stands then; of the table of replicas, which
/// nothing waits for; and of the identity.
///
/// A table is composed together with a state file and written after that has arrived. So no table on the disk is newer
/// than the state file beside it, which says what has changed since.
#[derive(Debug)]
pub(crate) struct Persistence {
    saving: Poll,
    /// Number of the last save that was ordered.
    issued: u64,
    /// Why the last save failed.
    failure: Option<String>,
    last_barrier: u64,
    closed: VecDeque<Closed>,
    saving_table: Poll,
    /// The next save is composed with a table.
    table_is_due: bool,
    /// The table that is to be written when this save has arrived.
    table: Option<(u64, String)>,
    table_failure: Option<String>,
    saving_identity: Poll,
    identity_failure: Option<String>,
}

impl Persistence {
    pub(crate) fn new() -> Self {
        Self {
            saving: Poll::new(Some(SAVE_SLOW)),
            issued: 0,
            failure: None,
            last_barrier: 0,
            closed: VecDeque::new(),
            saving_table: Poll::new(None),
            table_is_due: false,
            table: None,
            table_failure: None,
            saving_identity: Poll::new(None),
            identity_failure: None,
        }
    }

    /// Something changed that must be saved.
    pub(crate) fn save(&mut self, now: Instant) {
        self.saving.want(now);
    }

    /// A barrier that opens when all that stands now is on disk.
    pub(crate) fn barrier(&mut self, now: Instant) -> DurableBarrier {
        self.save(now);
        let (seq, gives_up_at) = (self.issued + 1, now + BARRIER_TIMEOUT);
        if let Some(last) = self.closed.back()
            && (last.seq, last.gives_up_at) == (seq, gives_up_at)
        {
            return last.barrier;
        }
        self.last_barrier += 1;
        let barrier = DurableBarrier(self.last_barrier);
        if self.failure.is_none() {
            self.closed.push_back(Closed { barrier, seq, gives_up_at });
        }
        barrier
    }

    /// Whether what waits at `barrier` may go on.
    pub(crate) fn is_durable(&self, barrier: DurableBarrier) -> bool {
        self.closed.front().is_none_or(|first| barrier < first.barrier)
    }

    /// A save is due, or the one under way takes too long. Gives the number of the save that is to be made.
    pub(crate) fn on_timer(&mut self, now: Instant) -> Option<u64> {
        self.saving.on_timer(now).then(|| {
            self.issued += 1;
            self.issued
        })
    }

    /// The oldest barriers have been waited at for long enough.
    pub(crate) fn on_barrier_timer(&mut self, now: Instant) {
        while self.closed.front().is_some_and(|first| first.gives_up_at <= now) {
            self.closed.pop_front();
        }
    }

    /// A save arrived. Gives the table that is to be written now.
    pub(crate) fn saved(&mut self, now: Instant, seq: u64) -> Option<String> {
        while self.closed.front().is_some_and(|first| first.seq <= seq) {
            self.closed.pop_front();
        }
        if seq == self.issued {
            self.saving.done(now, ());
        }
        self.failure = None;
        self.table.take_if(|(with, _)| *with <= seq).map(|(_, table)| table)
    }

    /// A save failed: it is tried again with what stands then, and nobody waits for it.
    pub(crate) fn failed(&mut self, now: Instant, seq: u64, why: String) {
        self.closed.clear();
        self.failure = Some(why);
        if seq == self.issued {
            self.saving.failed(now, SAVE_RETRY);
        }
        if self.table.take().is_some() {
            self.saving_table.failed(now, SAVE_RETRY);
        }
    }

    /// Something changed that the table is to have, by and by.
    pub(crate) fn save_table(&mut self, now: Instant) {
        self.saving_table.want(now + TABLE_PAUSE);
    }

    /// The table is due: the next save, which is due too, is composed with one.
    pub(crate) fn on_table_timer(&mut self, now: Instant) {
        if self.saving_table.on_timer(now) {
            self.table_is_due = true;
            self.save(now);
        }
    }

    /// Whether a table is to be composed with the save that is being made.
    pub(crate) fn takes_table(&mut self) -> bool {
        std::mem::take(&mut self.table_is_due)
    }

    /// The table that was composed with save `seq`.
    pub(crate) fn keep_table(&mut self, seq: u64, table: String) {
        self.table = Some((seq, table));
    }

    pub(crate) fn table_saved(&mut self, now: Instant) {
        self.saving_table.done(now, ());
        self.table_failure = None;
    }

    pub(crate) fn table_failed(&mut self, now: Instant, why: String) {
        self.saving_table.failed(now, SAVE_RETRY);
        self.table_failure = Some(why);
    }

    /// The identity is to be saved.
    pub(crate) fn save_identity(&mut self, now: Instant) {
        self.saving_identity.want(now);
    }

    /// Whether the identity is to be saved now.
    pub(crate) fn on_identity_timer(&mut self, now: Instant) -> bool {
        self.saving_identity.on_timer(now)
    }

    pub(crate) fn identity_saved(&mut self, now: Instant) {
        self.saving_identity.done(now, ());
        self.identity_failure = None;
    }

    pub(crate) fn identity_failed(&mut self, now: Instant, why: String) {
        self.saving_identity.failed(now, SAVE_RETRY);
        self.identity_failure = Some(why);
    }

    /// What is wrong with the disk, for the node's state.
    pub(crate) fn trouble(&self) -> impl Iterator<Item = String> {
        let slow = || {
            let hangs = "the state directory does not answer: the last save hangs";
            self.saving.is_slow().then(|| hangs.to_owned())
        };
        let files = self.failure.clone().or_else(|| self.table_failure.clone()).or_else(slow);
        files.into_iter().chain(self.identity_failure.clone())
    }

    /// Whether everything that must be is saved, as far as that is possible.
    pub(crate) fn is_settled(&self) -> bool {
        self.failure.is_some() || !self.saving.is_wanted() && !self.saving.is_under_way()
    }

    pub(crate) fn timers(&self) -> [(Timer, Option<Instant>); 4] {
        [
            (Timer::StateFile, self.saving.timer()),
            (Timer::Table, self.saving_table.timer()),
            (Timer::Identity, self.saving_identity.timer()),
            (Timer::DurableBarrier, self.closed.front().map(|first| first.gives_up_at)),
        ]
    }
}

#[cfg(test)]
#[allow(clippy::disallowed_methods, reason = "a test needs some time to begin with")]
mod tests {
    use super::*;

    #[test]
    fn a_barrier_opens_with_the_save_that_has_its_change() {
        let now = Instant::now();
        let mut disk = Persistence::new();
        let first = disk.barrier(now);
        assert_eq!(disk.barrier(now), first, "made at the same time, it is the same");
        assert_eq!(disk.on_timer(now), Some(1));
        let second = disk.barrier(now);
        assert_eq!(disk.timers()[0].1, Some(now + SAVE_SLOW), "one save at a time");
        assert!(!disk.is_durable(first));
        disk.saved(now, 1);
        assert!(disk.is_durable(first) && !disk.is_durable(second));
        assert_eq!(disk.on_timer(now), Some(2));
        assert!(!disk.is_settled());
        assert_eq!(disk.timers()[3].1, Some(now + BARRIER_TIMEOUT));
        disk.on_barrier_timer(now + BARRIER_TIMEOUT);
        assert!(disk.is_durable(second), "it is not waited for longer");
        disk.saved(now, 2);
        assert!(disk.is_settled() && disk.is_durable(DurableBarrier::OPEN));
    }

    #[test]
    fn a_bad_disk_opens_the_barriers_and_is_tried_again() {
        let now = Instant::now();
        let mut disk = Persistence::new();
        let barrier = disk.barrier(now);
        assert_eq!(disk.on_timer(now), Some(1));
        assert_eq!(disk.trouble().count(), 0);
        assert_eq!(disk.on_timer(now + SAVE_SLOW), None);
        assert_eq!(disk.trouble().count(), 1);
        disk.failed(now, 1, "full".into());
        assert!(disk.is_durable(barrier));
        let later = disk.barrier(now);
        assert!(disk.is_durable(later));
        assert_eq!(disk.trouble().collect::<Vec<_>>(), ["full"]);
        assert_eq!(disk.timers()[0].1, Some(now + SAVE_RETRY));
        assert_eq!(disk.on_timer(now + SAVE_RETRY), Some(2));
        disk.saved(now, 2);
        assert_eq!(disk.trouble().count(), 0);
    }

    #[test]
    fn a_table_follows_the_save_that_it_was_composed_with_and_nothing_waits_for_it() {
        let now = Instant::now();
        let mut disk = Persistence::new();
        let round = |disk: &mut Persistence, now: Instant, seq: u64, good: bool| {
            assert_eq!(disk.timers()[1].1, Some(now));
            disk.on_table_timer(now);
            assert_eq!(
                (disk.on_timer(now), disk.takes_table(), disk.takes_table()),
                (Some(seq), true, false)
            );
            disk.keep_table(seq, "table".into());
            assert_eq!(disk.saved(now, seq - 1), None, "an earlier save");
            if good {
                assert_eq!(disk.saved(now, seq).as_deref(), Some("table"));
            } else {
                disk.failed(now, seq, "full".into());
            }
            assert!(disk.is_settled());
            disk.table_failed(now, "full".into());
            assert_eq!(disk.trouble().count(), 1);
        };
        disk.save_table(now);
        disk.save_table(now + TABLE_PAUSE);
        round(&mut disk, now + TABLE_PAUSE, 1, true);
        round(&mut disk, now + TABLE_PAUSE + SAVE_RETRY, 2, false);
        disk.on_table_timer(now);
        disk.table_saved(now);
        assert_eq!(
            (disk.trouble().count(), disk.timers()[1].1),
            (1, None),
            "the state file is not saved yet"
        );
        disk.saved(now, 2);
        assert_eq!(disk.trouble().count(), 0);
    }
}
