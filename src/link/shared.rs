//! What the link's handle and its thread share beside the queue of commands. A thread that waits for a handshake takes
//! no commands, and must still notice that its attempt was cancelled; and it must not read faster than the core can
//! work.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use crate::core::link_api::LinkId;
use crate::wait::Wakeup;

/// With this much text reported and not yet dealt with by the core, in bytes, nothing more is read. One message may go
/// beyond it, so that at most this and one message wait in the core's queue.
pub const BACKLOG_MAX: usize = 256 << 10;

/// Every attempt that there can be: the thread is to stop.
const EVERYTHING: u64 = u64::MAX;

/// The shared state.
#[derive(Debug)]
pub(super) struct Shared {
    wakeup: Wakeup,
    /// Every attempt below this number is cancelled (their numbers rise).
    cancelled: AtomicU64,
    /// Bytes of text that the core has yet to deal with.
    backlog: AtomicUsize,
}

impl Shared {
    /// Nothing is cancelled, and nothing waits.
    pub(super) fn new() -> io::Result<Arc<Self>> {
        let (cancelled, backlog) = (AtomicU64::new(0), AtomicUsize::new(0));
        Ok(Arc::new(Self { wakeup: Wakeup::new()?, cancelled, backlog }))
    }

    /// Wakes the thread; see [`Wakeup`].
    pub(super) fn wake(&self) {
        self.wakeup.wake();
    }

    /// Clears the wake-up, before looking for what it was about.
    pub(super) fn clear(&self) {
        self.wakeup.clear();
    }

    /// Cancels an attempt. [`Shared::wake`] must follow.
    pub(super) fn cancel(&self, link: LinkId) {
        self.cancelled.fetch_max(link.0.saturating_add(1), Ordering::SeqCst);
    }

    /// Cancels everything and tells the thread to stop. [`Shared::wake`] must follow.
    pub(super) fn stop(&self) {
        self.cancelled.store(EVERYTHING, Ordering::SeqCst);
    }

    /// Whether this attempt is cancelled.
    pub(super) fn is_cancelled(&self, link: LinkId) -> bool {
        self.cancelled.load(Ordering::SeqCst) > link.0
    }

    /// Whether the thread is to stop.
    pub(super) fn is_stopped(&self) -> bool {
        self.cancelled.load(Ordering::SeqCst) == EVERYTHING
    }

    /// Notes that a text of `bytes` is about to be reported.
    pub(super) fn report(&self, bytes: usize) {
        self.backlog.fetch_add(bytes, Ordering::SeqCst);
    }

    /// Notes that the core has dealt with a text of `bytes`, and wakes the thread if it stopped reading for that.
    pub(super) fn consume(&self, bytes: usize) {
        let before = self.backlog.fetch_sub(bytes, Ordering::SeqCst);
        if before >= BACKLOG_MAX && before - bytes < BACKLOG_MAX {
            self.wake();
        }
    }

    /// Whether the core keeps up, so that more may be read.
    pub(super) fn may_read(&self) -> bool {
        self.backlog.load(Ordering::SeqCst) < BACKLOG_MAX
    }
}

impl AsFd for Shared {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.wakeup.as_fd()
    }
}
