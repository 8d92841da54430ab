//! How other threads reach a connection's thread: a bounded queue, and a descriptor that wakes its poll.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, SyncSender, TryRecvError, sync_channel};

use rustix::event::{EventfdFlags, eventfd};

/// How many orders may wait. A peer that is further behind does not read: its connection is ended.
pub const MAILBOX_MAX: usize = 8192;

/// What a connection's thread is asked to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Order {
    /// Send this text frame.
    Send(String),
    /// Close properly with this code and reason.
    Close(u16, String),
    /// Drop the connection without a word.
    Cut,
}

/// The sender's end.
pub struct Mailbox {
    queue: SyncSender<Order>,
    bell: Arc<OwnedFd>,
}

/// The connection's end.
pub struct Inbox {
    queue: Receiver<Order>,
    bell: Arc<OwnedFd>,
}

/// Makes a mailbox.
///
/// # Errors
/// What eventfd(2) gives: no descriptor is left.
pub fn mailbox() -> io::Result<(Mailbox, Inbox)> {
    let bell = Arc::new(eventfd(0, EventfdFlags::NONBLOCK | EventfdFlags::CLOEXEC)?);
    let (sender, receiver) = sync_channel(MAILBOX_MAX);
    Ok((Mailbox { queue: sender, bell: Arc::clone(&bell) }, Inbox { queue: receiver, bell }))
}

impl Mailbox {
    /// Puts an order in; false when the mailbox is full.
    pub fn put(&self, order: Order) -> bool {
        let fits = self.queue.try_send(order).is_ok();
        self.ring();
        fits
    }

    fn ring(&self) {
        // It can only fail when the counter is near its end, and then the bell rings anyway.
        let _ = rustix::io::write(&self.bell, &1_u64.to_ne_bytes());
    }
}

impl Drop for Mailbox {
    fn drop(&mut self) {
        self.ring();
    }
}

impl Inbox {
    /// Silences the bell. Before the queue is emptied, else an order that comes in between is slept over.
    pub fn hush(&self) {
        let _ = rustix::io::read(&self.bell, &mut [0; 8]);
    }

    /// The next order, if one waits. A mailbox that was dropped is an order to cut.
    pub fn take(&self) -> Option<Order> {
        match self.queue.try_recv() {
            Ok(order) => Some(order),
            Err(TryRecvError::Empty) => None,
            Err(TryRecvError::Disconnected) => Some(Order::Cut),
        }
    }
}

impl AsFd for Inbox {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.bell.as_fd()
    }
}
