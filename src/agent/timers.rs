//! Events that no edge reports: the heartbeat's time, and signals.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, TrySendError, channel};
use std::thread::Builder;
use std::time::{Duration, Instant};

use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::flag;
use signal_hook::iterator::Signals;

use crate::core::Event;
use crate::core::HEARTBEAT_EVERY;
use crate::logging;

/// Whether a heartbeat is due. It does not wait in the events' channel, where a flood may stand before it.
pub(super) struct Heartbeat(Arc<AtomicBool>);

impl Heartbeat {
    /// Whether one is due; true once for each.
    pub(super) fn is_due(&self) -> bool {
        self.0.swap(false, Ordering::SeqCst)
    }
}

/// Starts the heartbeat's thread. Its schedule is absolute: a beat that comes late does not move the next, and one
/// that is missed is not made up for.
///
/// # Errors
/// The kernel's, when it gives no thread.
pub(super) fn heartbeat(events: SyncSender<Event>) -> io::Result<Heartbeat> {
    let heartbeat = Heartbeat(Arc::new(AtomicBool::new(false)));
    let due = Arc::clone(&heartbeat.0);
    Builder::new().name("heartbeat".into()).spawn(move || {
        // Nothing is ever sent: waiting for it is sleeping until a time.
        let (_sender, nothing): (_, Receiver<()>) = channel();
        let mut next = Instant::now() + HEARTBEAT_EVERY;
        loop {
            let wait = next.saturating_duration_since(Instant::now());
            if nothing.recv_timeout(wait) != Err(RecvTimeoutError::Timeout) {
                return;
            }
            due.store(true, Ordering::SeqCst);
            // Wakes the main loop if it sleeps. With a full channel it is awake, and looks before it takes an event.
            if let Err(TrySendError::Disconnected(_)) = events.try_send(Event::Tick) {
                return;
            }
            let now = Instant::now();
            while next <= now {
                next += HEARTBEAT_EVERY;
            }
        }
    })?;
    Ok(heartbeat)
}

/// Starts the thread that takes signals. The second one that ends the process does so at once, with status 1,
/// whatever the threads do: the handler itself sees to it.
///
/// SIGHUP checks the dependencies again, as a supervisor's reload does. An agent whose standard error is a terminal was
/// started by hand: there SIGHUP says that the terminal was closed, and ends it as SIGTERM does.
///
/// # Errors
/// The kernel's, when it gives no thread or takes no handler.
pub(super) fn signals(events: SyncSender<Event>, grace: Duration) -> io::Result<()> {
    let on_terminal = logging::on_terminal();
    let ending = Arc::new(AtomicBool::new(false));
    for signal in [SIGTERM, SIGINT] {
        // In this order: the first signal finds the flag down, and then raises it.
        flag::register_conditional_shutdown(signal, 1, Arc::clone(&ending))?;
        flag::register(signal, Arc::clone(&ending))?;
    }
    let mut signals = Signals::new([SIGTERM, SIGINT, SIGHUP])?;
    Builder::new().name("signals".into()).spawn(move || {
        for signal in &mut signals {
            let event = if signal == SIGHUP && !on_terminal {
                log::info!("SIGHUP: checking the dependencies now");
                Event::Reload
            } else {
                let name = if signal == SIGINT {
                    "SIGINT"
                } else if signal == SIGHUP {
                    "SIGHUP"
                } else {
                    "SIGTERM"
                };
                let seconds = grace.as_secs();
                log::info!(
                    "{name}: ending within about {seconds} s; a second SIGTERM or Ctrl-C ends it at once"
                );
                Event::Terminate
            };
            if events.send(event).is_err() {
                return;
            }
        }
    })?;
    Ok(())
}
