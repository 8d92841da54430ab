//! Waiting for descriptors: poll(2) up to a deadline, and a descriptor with which one thread wakes another that waits.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::time::Instant;

use rustix::event::{EventfdFlags, PollFd, Timespec, eventfd, poll};
use rustix::io::Errno;

/// Waits until a descriptor is ready, or `deadline` has passed; `None` waits without end. Which descriptors are ready
/// stands in their `revents`. A signal ends the wait with none of them ready, so callers look at the clock themselves.
///
/// # Errors
/// The kernel's: it has no memory for the wait.
pub fn poll_until(fds: &mut [PollFd<'_>], deadline: Option<Instant>) -> io::Result<()> {
    // A time that no timespec can hold is as good as no deadline.
    let timeout =
        deadline.and_then(|at| Timespec::try_from(at.saturating_duration_since(Instant::now())).ok());
    match poll(fds, timeout.as_ref()) {
        Ok(_) | Err(Errno::INTR) => Ok(()),
        Err(errno) => Err(errno.into()),
    }
}

/// An eventfd(2) that is readable from [`Wakeup::wake`] until [`Wakeup::clear`]. Clones are the same descriptor.
#[derive(Debug, Clone)]
pub struct Wakeup(Arc<OwnedFd>);

impl Wakeup {
    /// One that nobody has woken.
    ///
    /// # Errors
    /// The kernel's: there is no free descriptor.
    pub fn new() -> io::Result<Self> {
        Ok(Self(Arc::new(eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?)))
    }

    /// Wakes whoever waits for it. Never blocks.
    pub fn wake(&self) {
        // It fails only when the counter is full, and then the descriptor is readable already.
        let _ = rustix::io::write(&self.0, &1u64.to_ne_bytes());
    }

    /// Makes it unreadable again. Call this before looking for what the wake-up was about: one that comes in between
    /// is then not lost.
    pub fn clear(&self) {
        let _ = rustix::io::read(&self.0, &mut [0; 8]);
    }
}

impl AsFd for Wakeup {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use rustix::event::PollFlags;

    use super::*;

    fn woken(wakeup: &Wakeup, deadline: Option<Instant>) -> bool {
        let mut fds = [PollFd::new(wakeup, PollFlags::IN)];
        poll_until(&mut fds, deadline).unwrap();
        !fds[0].revents().is_empty()
    }

    #[test]
    fn a_wakeup_lasts_until_it_is_cleared() {
        let wakeup = Wakeup::new().unwrap();
        let past = Some(Instant::now());
        assert!(!woken(&wakeup, past));
        wakeup.clone().wake();
        wakeup.wake();
        assert!(woken(&wakeup, None) && woken(&wakeup, past));
        wakeup.clear();
        assert!(!woken(&wakeup, past));
    }

    #[test]
    fn the_deadline_ends_a_wait_and_another_thread_ends_it_sooner() {
        let wakeup = Wakeup::new().unwrap();
        let brief = Duration::from_millis(20);
        let began = Instant::now();
        assert!(!woken(&wakeup, Some(began + brief)));
        assert!(began.elapsed() >= brief);
        let other = wakeup.clone();
        let thread = std::thread::spawn(move || other.wake());
        assert!(woken(&wakeup, Some(Instant::now() + Duration::from_secs(60))));
        thread.join().unwrap();
    }
}
