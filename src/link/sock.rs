//! A TCP connection that never blocks the kernel's way: its socket is non-blocking, and waiting is poll(2).
//!
//! While a [`Patience`] is set, reads and writes wait for it at most, all of them together: a peer that drips single
//! bytes cannot stretch it, since the clock is read before each read too. Without one, `WouldBlock` is passed on.

use std::io::{self, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};

use super::error::Error;
use super::wake::Wake;
use crate::core::link_api::LinkId;

/// How long an attempt may take, and who may end it sooner.
#[derive(Debug, Clone)]
pub(super) struct Patience {
    /// What it began with.
    whole: Duration,
    deadline: Instant,
    wake: Arc<Wake>,
    /// The link whose giving up ends it, if any.
    link: Option<LinkId>,
}

impl Patience {
    /// Until `time` has passed or `link` was given up.
    pub(super) fn attempt(time: Duration, wake: &Arc<Wake>, link: LinkId) -> Self {
        Self { whole: time, deadline: Instant::now() + time, wake: Arc::clone(wake), link: Some(link) }
    }

    /// Until `time` has passed.
    pub(super) fn farewell(time: Duration, wake: &Arc<Wake>) -> Self {
        Self { whole: time, deadline: Instant::now() + time, wake: Arc::clone(wake), link: None }
    }

    /// What is left of it; nothing when the link was given up.
    pub(super) fn left(&self) -> Option<Duration> {
        let left = self.deadline.saturating_duration_since(Instant::now());
        (!left.is_zero() && !self.given_up()).then_some(left)
    }

    /// Whether the attempt was ended from outside.
    pub(super) fn given_up(&self) -> bool {
        self.link.is_some_and(|link| self.wake.is_given_up(link))
    }

    /// Why the attempt is over, if it is: given up, or too late while waiting for something from `peer`. To be asked
    /// when a step failed, for what a library makes of the socket's error is anybody's guess.
    pub(super) fn ended(&self, waiting_for: &'static str, peer: &str) -> Option<Error> {
        if self.given_up() {
            Some(Error::GivenUp)
        } else if self.left().is_none() {
            Some(Error::Deadline { waiting_for, peer: peer.to_owned(), after: self.whole })
        } else {
            None
        }
    }

    /// Waits until one of `fds` is ready for `flags`, at most `time`; says which are.
    ///
    /// # Errors
    /// `TimedOut` when there is no patience left.
    pub(super) fn wait(
        &self,
        fds: &[BorrowedFd<'_>],
        flags: PollFlags,
        time: Option<Duration>,
    ) -> io::Result<Vec<bool>> {
        let left = self.left().ok_or(io::ErrorKind::TimedOut)?;
        let mut polled: Vec<_> = fds.iter().map(|fd| PollFd::from_borrowed_fd(*fd, flags)).collect();
        if self.link.is_some() {
            polled.push(PollFd::new(&self.wake, PollFlags::IN));
        }
        wait(&mut polled, Some(time.map_or(left, |time| time.min(left))))?;
        let ready: Vec<bool> = polled.iter().map(|fd| !fd.revents().is_empty()).collect();
        if ready.get(fds.len()) == Some(&true) {
            // The orders are taken before the thread polls for them again, so this loses none.
            self.wake.reset();
        }
        Ok(ready)
    }
}

/// poll(2) with an optional limit; being interrupted by a signal is like being ready.
pub(super) fn wait(fds: &mut [PollFd<'_>], time: Option<Duration>) -> io::Result<()> {
    let time = time.map(|time| Timespec {
        tv_sec: i64::try_from(time.as_secs()).unwrap_or(i64::MAX),
        tv_nsec: i64::from(time.subsec_nanos()),
    });
    match poll(fds, time.as_ref()) {
        Ok(_) | Err(rustix::io::Errno::INTR) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

/// The connection.
#[derive(Debug)]
pub(super) struct Sock {
    tcp: TcpStream,
    patience: Option<Patience>,
    received: u64,
}

impl Sock {
    /// Takes a connected, non-blocking socket.
    pub(super) fn new(tcp: TcpStream, patience: Patience) -> Self {
        Self { tcp, patience: Some(patience), received: 0 }
    }

    /// From now on, wait like this; `None`: not at all.
    pub(super) fn set_patience(&mut self, patience: Option<Patience>) {
        self.patience = patience;
    }

    /// How many bytes arrived since the beginning.
    pub(super) fn received(&self) -> u64 {
        self.received
    }

    /// Says that nothing more will be sent.
    pub(super) fn shut_down_writing(&self) {
        // A socket that is broken already has nothing more to say either.
        let _ = self.tcp.shutdown(Shutdown::Write);
    }

    /// Waits for `flags` if there is patience, passes `WouldBlock` on if not.
    fn blocked(&self, flags: PollFlags) -> io::Result<()> {
        match &self.patience {
            Some(patience) => patience.wait(&[self.tcp.as_fd()], flags, None).map(drop),
            None => Err(io::ErrorKind::WouldBlock.into()),
        }
    }

    fn check_patience(&self) -> io::Result<()> {
        match &self.patience {
            Some(patience) if patience.left().is_none() => Err(io::ErrorKind::TimedOut.into()),
            _ => Ok(()),
        }
    }
}

impl Read for Sock {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        loop {
            self.check_patience()?;
            match self.tcp.read(buf) {
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => self.blocked(PollFlags::IN)?,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Ok(n) => {
                    self.received += n as u64;
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
            self.check_patience()?;
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
