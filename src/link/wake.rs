//! How the link thread is woken: an eventfd that stands in its poll set, and the newest link that was given up.
//!
//! Orders travel in a channel of their own; this only says that there is something to look at. What is given up is
//! told beside the channel, because a thread that waits for a handshake must notice it without taking orders.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use rustix::event::{EventfdFlags, eventfd};

use crate::core::link_api::LinkId;

/// The wake-up descriptor and the flag, shared by the thread and its handle.
#[derive(Debug)]
pub(super) struct Wake {
    fd: OwnedFd,
    /// Every link up to this one was given up (their numbers rise).
    given_up: AtomicU64,
}

/// Given up are all links that can be: the thread ends.
const EVERYTHING: u64 = u64::MAX;

impl Wake {
    /// A new one, with nothing to say.
    pub(super) fn new() -> io::Result<Arc<Self>> {
        let fd = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        Ok(Arc::new(Self { fd, given_up: AtomicU64::new(0) }))
    }

    /// Wakes the thread. Never blocks: it only fails when the counter is full, and then the thread is awake anyway.
    pub(super) fn wake(&self) {
        let _ = rustix::io::write(&self.fd, &1u64.to_ne_bytes());
    }

    /// Takes the wake-up back. To be called before looking at what it was for, never after.
    pub(super) fn reset(&self) {
        let _ = rustix::io::read(&self.fd, &mut [0u8; 8]);
    }

    /// Tells that `link` is given up. [`Wake::wake`] must follow.
    pub(super) fn give_up(&self, link: LinkId) {
        self.given_up.fetch_max(link.0.saturating_add(1), Ordering::SeqCst);
    }

    /// Tells the thread to end. [`Wake::wake`] must follow.
    pub(super) fn end(&self) {
        self.given_up.store(EVERYTHING, Ordering::SeqCst);
    }

    /// Whether `link` was given up.
    pub(super) fn is_given_up(&self, link: LinkId) -> bool {
        self.given_up.load(Ordering::SeqCst) > link.0
    }

    /// Whether the thread is to end.
    pub(super) fn ended(&self) -> bool {
        self.given_up.load(Ordering::SeqCst) == EVERYTHING
    }
}

impl AsFd for Wake {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}
