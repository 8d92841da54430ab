//! A TCP socket that is always non-blocking.
//!
//! While a [`Deadline`] is set, reads and writes wait with poll(2), all of them together no longer than it: the clock
//! is read before each read too, so that a peer that drips single bytes cannot stretch it. Without one, `WouldBlock`
//! is passed on, and no more is read than [`Sock::allow`] allows: whatever a peer sends, a turn of the thread ends.

use std::io::{self, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags};

use super::error::Error;
use super::shared::Shared;
use crate::core::link_api::LinkId;
use crate::wait::poll_until;

/// Until when an attempt or a close may take, and what cancels it sooner.
#[derive(Debug, Clone)]
pub(super) struct Deadline {
    /// The time that it was given, for messages.
    allowed: Duration,
    at: Instant,
    shared: Arc<Shared>,
    /// The attempt whose cancelling ends it; a close cannot be cancelled.
    attempt: Option<LinkId>,
}

impl Deadline {
    /// For an attempt to connect or to register: until `time` has passed or the attempt is cancelled.
    pub(super) fn for_attempt(time: Duration, shared: &Arc<Shared>, link: LinkId) -> Self {
        Self { attempt: Some(link), ..Self::for_close(time, shared) }
    }

    /// For closing a connection: until `time` has passed.
    pub(super) fn for_close(time: Duration, shared: &Arc<Shared>) -> Self {
        Self { allowed: time, at: Instant::now() + time, shared: Arc::clone(shared), attempt: None }
    }

    /// Whether the attempt was cancelled.
    pub(super) fn is_cancelled(&self) -> bool {
        self.attempt.is_some_and(|link| self.shared.is_cancelled(link))
    }

    /// Whether the time is over or the attempt was cancelled.
    pub(super) fn is_over(&self) -> bool {
        self.is_cancelled() || Instant::now() >= self.at
    }

    /// The error that it stands for once it is over: cancelled, or too late while waiting for something from `peer`.
    /// Ask this first when a step failed: a library may have made anything of the socket's `TimedOut`.
    pub(super) fn error(&self, waiting_for: &'static str, peer: &str) -> Option<Error> {
        if self.is_cancelled() {
            Some(Error::Cancelled)
        } else if self.is_over() {
            Some(Error::Deadline { waiting_for, peer: peer.to_owned(), after: self.allowed })
        } else {
            None
        }
    }

    /// Waits until one of `fds` is ready for `flags`, or until `sooner`; says which are.
    ///
    /// # Errors
    /// `TimedOut` when it is over.
    pub(super) fn wait(
        &self,
        fds: &[BorrowedFd<'_>],
        flags: PollFlags,
        sooner: Option<Instant>,
    ) -> io::Result<Vec<bool>> {
        if self.is_over() {
            return Err(io::ErrorKind::TimedOut.into());
        }
        let mut polled: Vec<_> = fds.iter().map(|fd| PollFd::from_borrowed_fd(*fd, flags)).collect();
        if self.attempt.is_some() {
            polled.push(PollFd::new(&*self.shared, PollFlags::IN));
        }
        poll_until(&mut polled, Some(sooner.map_or(self.at, |sooner| sooner.min(self.at))))?;
        let ready: Vec<bool> = polled.iter().map(|fd| !fd.revents().is_empty()).collect();
        if ready.get(fds.len()) == Some(&true) {
            // The thread takes its commands before it polls again, so this loses none.
            self.shared.clear();
        }
        Ok(ready)
    }
}

/// The connection.
#[derive(Debug)]
pub(super) struct Sock {
    tcp: TcpStream,
    deadline: Option<Deadline>,
    received: u64,
    /// What may still be read without a deadline, in bytes.
    allowance: usize,
}

impl Sock {
    /// Takes a connected, non-blocking socket.
    pub(super) fn new(tcp: TcpStream, deadline: Deadline) -> Self {
        Self { tcp, deadline: Some(deadline), received: 0, allowance: 0 }
    }

    /// From now on reads and writes wait until then; `None`: not at all.
    pub(super) fn set_deadline(&mut self, deadline: Option<Deadline>) {
        self.deadline = deadline;
    }

    /// Allows `bytes` to be read without a deadline; beyond them reads are `WouldBlock`.
    pub(super) fn allow(&mut self, bytes: usize) {
        self.allowance = bytes;
    }

    /// Whether the last [`Sock::allow`] is used up, so that there may be more to read at once.
    pub(super) fn is_allowance_spent(&self) -> bool {
        self.allowance == 0
    }

    /// How many bytes arrived since the beginning.
    pub(super) fn received(&self) -> u64 {
        self.received
    }

    /// Tells the peer that nothing more will be sent.
    pub(super) fn shut_down_writing(&self) {
        // It fails where the connection is broken, and then the peer hears nothing anyway.
        let _ = self.tcp.shutdown(Shutdown::Write);
    }

    fn blocked(&self, flags: PollFlags) -> io::Result<()> {
        match &self.deadline {
            Some(deadline) => deadline.wait(&[self.tcp.as_fd()], flags, None).map(drop),
            None => Err(io::ErrorKind::WouldBlock.into()),
        }
    }

    fn check_deadline(&self) -> io::Result<()> {
        match &self.deadline {
            Some(deadline) if deadline.is_over() => Err(io::ErrorKind::TimedOut.into()),
            _ => Ok(()),
        }
    }
}

impl Read for Sock {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let room = if self.deadline.is_some() { buf.len() } else { buf.len().min(self.allowance) };
        if room == 0 && !buf.is_empty() {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        loop {
            self.check_deadline()?;
            match self.tcp.read(&mut buf[..room]) {
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => self.blocked(PollFlags::IN)?,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Ok(n) => {
                    self.received += n as u64;
                    self.allowance = self.allowance.saturating_sub(n);
                    return Ok(n);
                }
                Err(e) => return Err(e),
            }
        }
    }
}

impl Write for Sock {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        loop {
            self.check_deadline()?;
            match self.tcp.write(buf) {
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => self.blocked(PollFlags::OUT)?,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                other => return other,
            }
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl AsFd for Sock {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.tcp.as_fd()
    }
}
