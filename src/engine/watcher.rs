//! Knows within a millisecond when a container's process has ended: one thread, one pidfd for each container.
//!
//! A process number from the engine may be another process's by the time the pidfd is opened: whoever asked for the
//! watch inspects the container once more after it is in place. Nothing is ever signalled here.
//!
//! What stands for a container on the host also gets its score for the kernel's choice when memory runs out: Kata takes
//! the one of its containers into the guest, and leaves its hypervisor with containerd's.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::sync::mpsc::{Receiver, Sender, channel};

use rustix::event::{PollFd, PollFlags};
use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, pidfd_open};

use crate::types::ContainerId;
use crate::wait::{Wakeup, poll_until};

/// Most containers watched at once; each takes a descriptor.
pub const WATCH_MAX: usize = 4096;

/// What the watcher has to say.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// The process that stood for this container has ended, or had before it could be watched. Not watched any more.
    Exited(ContainerId),
    /// It cannot be watched (its process is a thread, as with Kata's runtime-rs; or there are too many): look at it
    /// from time to time.
    Unwatchable(ContainerId),
}

enum Order {
    Watch(ContainerId, i32),
    Unwatch(ContainerId),
    End,
}

/// The watcher's handle; dropping it ends the thread.
#[derive(Debug)]
pub struct Watcher {
    orders: Sender<Order>,
    wake: Wakeup,
}

impl Watcher {
    /// Starts the thread. `events` is called there, and may block. What is watched gets at least this `oom_score_adj`.
    ///
    /// # Errors
    /// The kernel's, when it gives no descriptor or no thread.
    pub fn start(oom_score_adj: u64, events: impl Fn(Event) + Send + 'static) -> io::Result<Self> {
        let wake = Wakeup::new()?;
        let (orders, inbox) = channel();
        let woken = wake.clone();
        std::thread::Builder::new().name("watcher".into()).spawn(move || {
            watch(&inbox, &woken, oom_score_adj, &events);
        })?;
        Ok(Self { orders, wake })
    }

    /// Watches `container` by its process `pid`, instead of an earlier one if there is. Answered by an [`Event`].
    pub fn watch(&self, container: ContainerId, pid: i32) {
        self.order(Order::Watch(container, pid));
    }

    /// Stops watching it. An event that is already on its way still arrives.
    pub fn unwatch(&self, container: ContainerId) {
        self.order(Order::Unwatch(container));
    }

    fn order(&self, order: Order) {
        // The thread ends only with this handle.
        let _ = self.orders.send(order);
        self.wake.wake();
    }
}

impl Drop for Watcher {
    fn drop(&mut self) {
        self.order(Order::End);
    }
}

fn watch(inbox: &Receiver<Order>, wake: &Wakeup, oom_score_adj: u64, events: &dyn Fn(Event)) {
    let mut watched: BTreeMap<ContainerId, OwnedFd> = BTreeMap::new();
    loop {
        let mut fds = vec![PollFd::new(wake, PollFlags::IN)];
        fds.extend(watched.values().map(|fd| PollFd::from_borrowed_fd(fd.as_fd(), PollFlags::IN)));
        // No deadline: it waits for orders and ends alike, and has nothing else to do.
        if let Err(error) = poll_until(&mut fds, None) {
            log::error!("cannot watch containers: {error}; they are only looked at from time to time now");
            return;
        }
        let ready = |fd: &PollFd<'_>| !fd.revents().is_empty();
        let woken = ready(&fds[0]);
        let ended: Vec<ContainerId> =
            watched.keys().zip(&fds[1..]).filter(|(_, fd)| ready(fd)).map(|(id, _)| id.clone()).collect();
        for id in ended {
            watched.remove(&id);
            events(Event::Exited(id));
        }
        if !woken {
            continue;
        }
        wake.clear();
        for order in inbox.try_iter() {
            match order {
                Order::Watch(id, pid) => {
                    let opened = open(pid, watched.len());
                    raise_oom_score(&id, pid, oom_score_adj);
                    match opened {
                        Ok(fd) => {
                            watched.insert(id, fd);
                        }
                        Err(errno) => {
                            watched.remove(&id);
                            // There was such a process when the engine named it.
                            let gone = errno == Errno::SRCH;
                            events(if gone { Event::Exited(id) } else { Event::Unwatchable(id) });
                        }
                    }
                }
                Order::Unwatch(id) => drop(watched.remove(&id)),
                Order::End => return,
            }
        }
    }
}

/// Raises the process's score, unless it is that high, or the process is not the container's after all: all that can
/// stand for a container has its ID in its cgroup's name (runc) or on its command line (Kata's hypervisors and shims).
fn raise_oom_score(id: &ContainerId, pid: i32, oom_score_adj: u64) {
    let proc = Path::new("/proc").join(pid.to_string());
    let names_it = |file: &str| {
        let text = fs::read(proc.join(file)).unwrap_or_default();
        String::from_utf8_lossy(&text).contains(id.as_str())
    };
    let file = proc.join("oom_score_adj");
    let now = fs::read_to_string(&file).ok().and_then(|text| text.trim().parse::<i64>().ok());
    let wanted = i64::try_from(oom_score_adj).unwrap_or(i64::MAX);
    if now.is_some_and(|now| now < wanted) && (names_it("cgroup") || names_it("cmdline")) {
        // A process that has just ended needs none.
        let _ = fs::write(&file, wanted.to_string());
    }
}

fn open(pid: i32, watched: usize) -> Result<OwnedFd, Errno> {
    if watched >= WATCH_MAX {
        return Err(Errno::MFILE);
    }
    pidfd_open(Pid::from_raw(pid).ok_or(Errno::INVAL)?, PidfdFlags::empty())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::process::CommandExt as _;
    use std::process::{Child, Command};
    use std::time::Duration;

    const LONG: Duration = Duration::from_secs(60);

    fn sleeper() -> Child {
        Command::new("/bin/sleep").arg("600").spawn().unwrap()
    }

    fn end(mut child: Child) {
        child.kill().unwrap();
        child.wait().unwrap();
    }

    fn id(n: u32) -> ContainerId {
        ContainerId::new(&format!("{n:064x}")).unwrap()
    }

    #[test]
    fn tells_of_each_end_once_and_of_what_it_cannot_watch() {
        let (events, seen) = channel();
        let watcher = Watcher::start(0, move |event| events.send(event).unwrap()).unwrap();
        let (one, two, three) = (sleeper(), sleeper(), sleeper());
        for (n, child) in [(1, &one), (2, &two), (3, &three)] {
            watcher.watch(id(n), child.id() as i32);
        }
        watcher.unwatch(id(2));
        watcher.watch(id(4), 0);
        // Its answer proves that all before it were carried out.
        assert_eq!(seen.recv_timeout(LONG).unwrap(), Event::Unwatchable(id(4)));
        end(two);
        end(three);
        assert_eq!(seen.recv_timeout(LONG).unwrap(), Event::Exited(id(3)));
        end(one);
        assert_eq!(seen.recv_timeout(LONG).unwrap(), Event::Exited(id(1)));
        // A pid whose process has ended.
        let gone = sleeper();
        let pid = gone.id() as i32;
        end(gone);
        watcher.watch(id(5), pid);
        assert_eq!(seen.recv_timeout(LONG).unwrap(), Event::Exited(id(5)));
        // Dropped, the thread ends and with it the sender.
        drop(watcher);
        assert!(seen.recv_timeout(LONG).is_err());
    }

    #[test]
    fn what_stands_for_a_container_is_no_better_off_than_it() {
        let (events, seen) = channel();
        let watcher = Watcher::start(321, move |event| events.send(event).unwrap()).unwrap();
        let named = Command::new("/bin/sleep").arg0(id(1).as_str()).arg("600").spawn().unwrap();
        let other = sleeper();
        let score = |child: &Child| {
            let text = fs::read_to_string(format!("/proc/{}/oom_score_adj", child.id())).unwrap();
            text.trim().parse::<i64>().unwrap()
        };
        let before = score(&other);
        assert!(before < 321);
        watcher.watch(id(1), named.id() as i32);
        watcher.watch(id(2), other.id() as i32);
        watcher.watch(id(3), 0);
        assert_eq!(seen.recv_timeout(LONG).unwrap(), Event::Unwatchable(id(3)));
        assert_eq!((score(&named), score(&other)), (321, before));
        end(named);
        end(other);
    }

    #[test]
    fn a_thread_cannot_be_watched() {
        let (events, seen) = channel();
        let watcher = Watcher::start(0, move |event| events.send(event).unwrap()).unwrap();
        let (tell, told) = channel();
        let (stop, stopped) = channel::<()>();
        let thread = std::thread::spawn(move || {
            let link = std::fs::read_link("/proc/thread-self").unwrap();
            tell.send(link.file_name().unwrap().to_str().unwrap().parse().unwrap()).unwrap();
            let _ = stopped.recv();
        });
        watcher.watch(id(1), told.recv().unwrap());
        assert_eq!(seen.recv_timeout(LONG).unwrap(), Event::Unwatchable(id(1)));
        drop(stop);
        thread.join().unwrap();
    }
}
