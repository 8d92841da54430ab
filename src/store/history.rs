//! What the node was, when, and whose cause it was: `history.jsonl` in the state directory, one JSON object per line.
//!
//! The file is bounded: at [`FILE_MAX`] it becomes `history.jsonl.1`, whose predecessor is removed. Its modification time
//! is set at each heartbeat, so that the next start knows until when the agent lived. A thread writes it, because a disk can
//! hang; what does not fit into its channel is dropped. Nothing here is needed to run, so errors are only logged.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread::Builder;
use std::time::{SystemTime, UNIX_EPOCH};

use serde_json::{Value, json};

use crate::types::word_enum;

/// Size at which the file is set aside, in bytes; both together are at most twice that.
pub const FILE_MAX: u64 = 512 * 1024;
/// Entries that wait for the thread.
const WAITING_MAX: usize = 256;
/// The longest reason, in characters.
const REASON_CHARS: usize = 300;

word_enum! {
    pub enum Cause {
        None = "",
        Network = "network",
        ControlPlane = "control plane",
        Engine = "engine",
        Host = "host",
        HostReboot = "host reboot",
        Agent = "agent",
        Operator = "operator",
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Entry {
    /// The node is in this state from now on.
    State {
        state: String,
        cause: Cause,
        reason: String,
    },
    Gpu {
        address: String,
        health: String,
        reason: String,
    },
    Deploy {
        replica: String,
        outcome: String,
        reason: String,
    },
}

impl Entry {
    /// As a line of the file, at `time` (seconds since 1970).
    fn line(&self, time: u64) -> String {
        let short = |text: &str| text.chars().take(REASON_CHARS).collect::<String>();
        let object = match self {
            Self::State { state, cause, reason } => {
                json!({"time": time, "state": state, "cause": cause.as_str(), "reason": short(reason)})
            }
            Self::Gpu { address, health, reason } => {
                json!({"time": time, "gpu": address, "health": health, "reason": short(reason)})
            }
            Self::Deploy { replica, outcome, reason } => {
                json!({"time": time, "replica": replica, "outcome": outcome, "reason": short(reason)})
            }
        };
        format!("{object}\n")
    }
}

enum Order {
    Entry(Entry),
    /// The agent lives.
    Alive,
}

/// The thread, seen from the main loop.
#[derive(Debug)]
pub struct History(SyncSender<Order>);

impl History {
    /// Starts the thread. It first records how the last run of the agent ended, by its last sign of life and the boot.
    ///
    /// # Errors
    /// The kernel's, when it gives no thread.
    pub fn start(folder: &Path, boot_id: String) -> io::Result<Self> {
        let (orders, received) = sync_channel(WAITING_MAX);
        let path = path(folder);
        Builder::new().name("history".into()).spawn(move || write(&path, &boot_id, &received))?;
        Ok(Self(orders))
    }

    /// Never blocks.
    pub fn record(&self, entry: Entry) {
        let _ = self.0.try_send(Order::Entry(entry));
    }

    /// Never blocks.
    pub fn alive(&self) {
        let _ = self.0.try_send(Order::Alive);
    }
}

pub fn path(folder: &Path) -> PathBuf {
    folder.join("history.jsonl")
}

/// The lines of the file and of the one before it, oldest first, and the last sign of life in seconds since 1970. Lines
/// that are not JSON (a power cut) are left out.
///
/// # Errors
/// When the file exists and cannot be read.
pub fn read(folder: &Path) -> io::Result<(Vec<Value>, Option<u64>)> {
    let path = path(folder);
    let mut lines = Vec::new();
    let mut alive = None;
    for file in [path.with_extension("jsonl.1"), path] {
        let mut text = Vec::new();
        match File::open(&file) {
            Ok(file) => {
                alive = file.metadata()?.modified().ok().and_then(since_1970);
                file.take(2 * FILE_MAX).read_to_end(&mut text)?;
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            Err(error) => return Err(error),
        };
        lines.extend(text.split(|byte| *byte == b'\n').filter_map(|line| serde_json::from_slice(line).ok()));
    }
    Ok((lines, alive))
}

fn write(path: &Path, boot_id: &str, orders: &Receiver<Order>) {
    let mut failed = false;
    let mut note = |result: io::Result<()>| {
        if let Err(error) = result
            && !std::mem::replace(&mut failed, true)
        {
            log::warn!("cannot write the history {}: {error}", path.display());
        }
    };
    note(begin(path, boot_id, now()));
    for order in orders {
        note(match order {
            Order::Entry(entry) => append(path, &entry.line(now())),
            Order::Alive => OpenOptions::new()
                .append(true)
                .open(path)
                .and_then(|file| file.set_modified(SystemTime::now())),
        });
    }
}

/// Records the end of the last run, unless it was recorded, and this run's boot.
fn begin(path: &Path, boot_id: &str, now: u64) -> io::Result<()> {
    let folder = path.parent().unwrap_or(Path::new("/"));
    let (lines, alive) = read(folder)?;
    end_line(path)?;
    let last_state = lines.iter().rev().find_map(|line| line.get("state")?.as_str());
    let last_boot = lines.iter().rev().find_map(|line| line.get("boot")?.as_str());
    if let (Some(state), Some(alive)) = (last_state, alive)
        && state != "offline"
    {
        let (cause, reason) = match last_boot {
            Some(boot) if boot != boot_id => (Cause::HostReboot, "the host was restarted"),
            _ => (Cause::Agent, "the agent ended unexpectedly"),
        };
        let ended = Entry::State { state: "offline".to_owned(), cause, reason: reason.to_owned() };
        append(path, &ended.line(alive.min(now)))?;
    }
    append(path, &format!("{}\n", json!({"time": now, "boot": boot_id})))
}

/// Ends a line that a power cut left half written, so that the next one is not lost with it.
fn end_line(path: &Path) -> io::Result<()> {
    let mut last = [0];
    let mut file = match OpenOptions::new().read(true).append(true).open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error),
    };
    if file.seek(SeekFrom::End(-1)).is_err() || file.read(&mut last)? == 0 || last == *b"\n" {
        return Ok(());
    }
    file.write_all(b"\n")
}

fn append(path: &Path, line: &str) -> io::Result<()> {
    let mut file = OpenOptions::new().append(true).create(true).mode(0o600).open(path)?;
    if file.metadata()?.len() + line.len() as u64 > FILE_MAX {
        fs::rename(path, path.with_extension("jsonl.1"))?;
        file = OpenOptions::new().append(true).create(true).mode(0o600).open(path)?;
    }
    file.write_all(line.as_bytes())
}

fn now() -> u64 {
    since_1970(SystemTime::now()).unwrap_or(0)
}

fn since_1970(time: SystemTime) -> Option<u64> {
    time.duration_since(UNIX_EPOCH).ok().map(|since| since.as_secs())
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn folder(test: &str) -> PathBuf {
        let folder = std::env::temp_dir().join(format!("vectorlay-history-{test}-{}", std::process::id()));
        fs::create_dir_all(&folder).unwrap();
        folder
    }

    fn state(state: &str) -> Entry {
        Entry::State { state: state.to_owned(), cause: Cause::Network, reason: "x".repeat(1000) }
    }

    #[test]
    fn it_is_bounded_and_whole() {
        let folder = folder("bound");
        let path = path(&folder);
        for time in 0..4000 {
            append(&path, &state("online").line(time)).unwrap();
        }
        assert!(fs::metadata(&path).unwrap().len() <= FILE_MAX);
        assert!(fs::metadata(path.with_extension("jsonl.1")).unwrap().len() <= FILE_MAX);
        let (lines, alive) = read(&folder).unwrap();
        assert!(alive.is_some());
        let times: Vec<u64> = lines.iter().map(|line| line["time"].as_u64().unwrap()).collect();
        assert_eq!(times, (4000 - times.len() as u64..4000).collect::<Vec<_>>());
        fs::remove_dir_all(&folder).unwrap();
    }

    #[test]
    fn the_next_start_knows_how_the_last_run_ended() {
        let check = |last: Option<&str>, boot: &str, expected: Option<&str>| {
            let folder = folder("ends");
            let path = path(&folder);
            begin(&path, "boot-1", 100).unwrap();
            if let Some(last) = last {
                append(&path, &state(last).line(110)).unwrap();
            }
            // A power cut in the middle of a line.
            append(&path, "{\"time\":").unwrap();
            let lived = UNIX_EPOCH + Duration::from_secs(150);
            OpenOptions::new().append(true).open(&path).unwrap().set_modified(lived).unwrap();
            begin(&path, boot, 200).unwrap();
            let (lines, _) = read(&folder).unwrap();
            let ended = lines.iter().find(|line| line["time"] == 150);
            assert_eq!(
                ended.map(|line| line["cause"].as_str().unwrap()),
                expected,
                "{last:?} {boot}: {lines:?}"
            );
            assert_eq!(lines.last().unwrap()["boot"], boot);
            fs::remove_dir_all(&folder).unwrap();
        };
        check(None, "boot-1", None);
        check(Some("online"), "boot-1", Some("agent"));
        check(Some("degraded"), "boot-2", Some("host reboot"));
        check(Some("offline"), "boot-2", None);
    }
}
