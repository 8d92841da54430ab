//! The one lock. Whoever has something for the fleet calls [`Hub::with`]; what that changes is saved, then sent, then
//! printed, in this order, so that nothing is sent that a crash would make undone.

use std::collections::BTreeMap;
use std::io;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::fleet::Fleet;
use crate::mailbox::{Inbox, Mailbox, Order, mailbox};
use crate::options::Options;
use crate::state::{self, StateError};

/// Close code: the service restarts (registered with IANA).
const CLOSE_RESTART: u16 = 1012;
/// How long connections have to close when the program ends.
const FAREWELL: Duration = Duration::from_secs(2);

/// What all threads share.
pub struct Hub {
    /// The command line.
    pub options: Options,
    started: Instant,
    inner: Mutex<Inner>,
    /// Rung at each change.
    news: Condvar,
}

struct Inner {
    fleet: Fleet,
    /// The open connections, until their threads end.
    links: BTreeMap<u64, Mailbox>,
    last_conn: u64,
    printed: u64,
}

impl Hub {
    /// Starts with what the state file holds.
    ///
    /// # Errors
    /// [`StateError`] when it cannot be read.
    pub fn new(mut options: Options) -> Result<Self, StateError> {
        let mut fleet = Fleet::new(std::mem::take(&mut options.rules));
        if let Some(file) = &options.state {
            state::load(file, &mut fleet)?;
        }
        Ok(Self {
            options,
            started: Instant::now(),
            inner: Mutex::new(Inner { fleet, links: BTreeMap::new(), last_conn: 0, printed: 0 }),
            news: Condvar::new(),
        })
    }

    /// Does something with the fleet, at a time in milliseconds since the start.
    pub fn with<T>(&self, act: impl FnOnce(&mut Fleet, u64) -> T) -> T {
        let mut inner = self.lock();
        let now = u64::try_from(self.started.elapsed().as_millis()).unwrap_or(u64::MAX);
        let answer = act(&mut inner.fleet, now);
        let lines = self.settle(&mut inner);
        drop(inner);
        lines.iter().for_each(|line| crate::say(line));
        answer
    }

    /// Opens a connection of the peer at `from`: its number, and where its orders come in.
    ///
    /// # Errors
    /// No descriptor is left for its mailbox.
    pub fn connect(&self, from: &str, node: Option<&str>) -> io::Result<(u64, Inbox)> {
        let (sender, inbox) = mailbox()?;
        let mut inner = self.lock();
        inner.last_conn += 1;
        let conn = inner.last_conn;
        inner.links.insert(conn, sender);
        drop(inner);
        self.with(|fleet, now| fleet.connected(now, conn, from, node));
        Ok((conn, inbox))
    }

    /// A connection's thread ends.
    pub fn disconnect(&self, conn: u64, why: &str) {
        self.lock().links.remove(&conn);
        self.with(|fleet, now| fleet.disconnected(now, conn, why));
    }

    /// Waits at most `patience` for an event above `since`, and returns what there is.
    pub fn events(&self, since: u64, patience: Duration) -> Value {
        let inner = self.lock();
        let nothing_new = |inner: &mut Inner| inner.fleet.events.last() <= since;
        let waited = self.news.wait_timeout_while(inner, patience, nothing_new);
        waited.unwrap_or_else(PoisonError::into_inner).0.fleet.events.view(since, None)
    }

    /// Closes all connections, and waits a little for their peers to agree.
    pub fn shut_down(&self) {
        let inner = self.lock();
        for link in inner.links.values() {
            link.put(Order::Close(CLOSE_RESTART, "Service restart".to_owned()));
        }
        let open = |inner: &mut Inner| !inner.links.is_empty();
        let waited = self.news.wait_timeout_while(inner, FAREWELL, open);
        let left = waited.unwrap_or_else(PoisonError::into_inner).0.links.len();
        if left > 0 {
            log::warn!("{left} connections did not close in time");
        }
    }

    fn settle(&self, inner: &mut Inner) -> Vec<String> {
        let Inner { fleet, links, printed, .. } = inner;
        if std::mem::take(&mut fleet.dirty)
            && let Some(file) = &self.options.state
            && let Err(error) = state::save(file, fleet)
        {
            // Serving on from memory is worth more to the nodes than an end.
            log::error!("{error}");
        }
        for (conn, order) in fleet.outgoing.drain(..) {
            // Without its mailbox a connection's thread ends.
            if links.get(&conn).is_some_and(|link| !link.put(order)) {
                log::warn!("connection {conn} does not read what it is sent: dropped");
                links.remove(&conn);
            }
        }
        let since = std::mem::replace(printed, fleet.events.last());
        if since != *printed {
            self.news.notify_all();
        }
        let quiet = self.options.quiet;
        fleet
            .events
            .after(since)
            .filter(|event| !quiet || event.name != "heartbeat")
            .map(|e| e.line())
            .collect()
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
