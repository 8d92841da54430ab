//! Housekeeping: calls of the CLI that an earlier process left behind; log files, helpers and addresses of containers that
//! are gone.
//!
//! It reads /proc and the log folder, which may hang: it has a thread of its own, and nobody waits for it but the
//! start, which must know what is still at work.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::Builder;
use std::time::Duration;

use super::leftover_calls::{self, Caller, Leak, Process};
use super::{addresses, logs};
use crate::core::{Cleanup, LeftoverCall};
use crate::types::ContainerId;

/// How long a call or helper that was asked to end is waited for before it is killed.
const END_WITHIN: Duration = Duration::from_secs(5);

/// What is looked after.
#[derive(Debug)]
pub struct Settings {
    /// Where /proc and /var are.
    pub root: PathBuf,
    /// Whose calls count as an earlier process's.
    pub caller: Caller,
    /// The folder of log files, if the shims write any.
    pub logs: Option<PathBuf>,
}

#[derive(Debug)]
enum Order {
    FindCalls,
    EndCalls(String),
    EndShim(ContainerId),
    CleanUp(Cleanup),
}

/// The thread's handle.
#[derive(Debug)]
pub struct Housekeeper {
    orders: Sender<Order>,
}

impl Housekeeper {
    /// Starts the thread. `found` is called on it with the calls of an earlier process that are at work, by deploy;
    /// `None`: /proc cannot be read.
    ///
    /// # Errors
    /// The kernel's, when it gives no thread.
    pub fn start(
        settings: Settings,
        found: impl Fn(Option<BTreeMap<String, LeftoverCall>>) + Send + 'static,
    ) -> io::Result<Self> {
        let (orders, received) = channel();
        Builder::new().name("housekeeping".into()).spawn(move || work(&settings, &received, &found))?;
        Ok(Self { orders })
    }

    /// Looks for calls of an earlier process. Never blocks.
    pub fn find_calls(&self) {
        let _ = self.orders.send(Order::FindCalls);
    }

    /// Ends the calls of an earlier process for a deploy. Never blocks.
    pub fn end_calls(&self, deploy: String) {
        let _ = self.orders.send(Order::EndCalls(deploy));
    }

    /// Ends the shim of a container that hangs. Never blocks.
    pub fn end_shim(&self, container: ContainerId) {
        let _ = self.orders.send(Order::EndShim(container));
    }

    /// Removes what belongs to no container any more. Never blocks.
    pub fn clean_up(&self, cleanup: Cleanup) {
        let _ = self.orders.send(Order::CleanUp(cleanup));
    }
}

fn work(
    settings: &Settings,
    orders: &Receiver<Order>,
    found: &impl Fn(Option<BTreeMap<String, LeftoverCall>>),
) {
    // Helpers seen once may be on their way out: they are ended when they are seen again.
    let mut suspects: BTreeSet<(i32, u64)> = BTreeSet::new();
    for order in orders {
        match order {
            Order::FindCalls => found(find_calls(settings)),
            Order::EndCalls(deploy) => end_calls(settings, &deploy),
            Order::EndShim(container) => end_shim(&settings.root, container),
            Order::CleanUp(cleanup) => clean_up(settings, &cleanup, &mut suspects),
        }
    }
}

/// The calls of an earlier process, by deploy; `None`: /proc cannot be read, and nothing may be concluded.
fn find_calls(settings: &Settings) -> Option<BTreeMap<String, LeftoverCall>> {
    let calls = leftover_calls::calls(&settings.root, &settings.caller).map_err(|error| {
        log::warn!("cannot look for calls of an earlier process: {error}; mount /proc");
    });
    Some(calls.ok()?.into_iter().map(|found| (found.deploy, found.call)).collect())
}

fn end_calls(settings: &Settings, deploy: &str) {
    for found in leftover_calls::calls(&settings.root, &settings.caller).unwrap_or_default() {
        if found.deploy == deploy {
            log::warn!(
                "ending the call (pid {}) of an earlier process for deploy {deploy}",
                found.process.pid
            );
            end_process(found.process);
        }
    }
}

/// A shim that hangs while its guest boots takes no SIGTERM; Kata's leaves nothing of the microVM behind when it is killed.
pub(super) fn end_shim(root: &Path, container: ContainerId) {
    let helpers = leftover_calls::leaks(root, &BTreeSet::from([container])).unwrap_or_default();
    for Leak { process, container, name } in helpers {
        if name.starts_with("containerd-shim") {
            log::warn!("ending {name} (pid {}): it hangs with container {}", process.pid, container.short());
            if let Err(error) = leftover_calls::end(process, true) {
                log::warn!("cannot end process {}: {error}", process.pid);
            }
        }
    }
}

fn end_process(process: Process) {
    let ended = leftover_calls::end(process, false).and_then(|there| {
        let gone = !there || leftover_calls::wait(process, END_WITHIN)?;
        if gone { Ok(true) } else { leftover_calls::end(process, true) }
    });
    if let Err(error) = ended {
        log::warn!("cannot end process {}: {error}", process.pid);
    }
}

fn clean_up(settings: &Settings, cleanup: &Cleanup, suspects: &mut BTreeSet<(i32, u64)>) {
    if let Some(dir) = &settings.logs {
        logs::remove_others(dir, &cleanup.deploys);
    }
    if cleanup.gone.is_empty() {
        return;
    }
    addresses::give_back(&settings.root, &cleanup.gone);
    let leaks = leftover_calls::leaks(&settings.root, &cleanup.gone).unwrap_or_default();
    let mut seen = BTreeSet::new();
    for Leak { process, container, name } in leaks {
        let key = (process.pid, process.started);
        if suspects.contains(&key) {
            log::warn!("ending {name} (pid {}): its container {} is gone", process.pid, container.short());
            end_process(process);
        } else {
            seen.insert(key);
        }
    }
    *suspects = seen;
}
