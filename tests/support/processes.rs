//! Processes, as /proc shows them.
#![allow(dead_code, reason = "each test target uses a part of it")]
#![allow(clippy::unwrap_used, reason = "what fails here fails the test")]

use std::fs;

use rustix::process::{Pid, Signal, kill_process};

/// One process.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Process {
    /// Its number.
    pub pid: u32,
    /// Its parent's.
    pub parent: u32,
    /// `R`, `S`, `Z`, …
    pub state: char,
    /// Its argv, joined by spaces; empty for a zombie.
    pub argv: String,
}

/// All processes of this machine that can be read.
pub fn all() -> Vec<Process> {
    let pids =
        fs::read_dir("/proc").unwrap().filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok());
    pids.filter_map(read).collect()
}

/// One process; `None` when it is gone.
pub fn read(pid: u32) -> Option<Process> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name, in parentheses, may hold anything.
    let mut fields = stat.rsplit_once(") ")?.1.split(' ');
    let state = fields.next()?.chars().next()?;
    let parent = fields.next()?.parse().ok()?;
    let argv = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    let argv = String::from_utf8_lossy(&argv).replace('\0', " ");
    Some(Process { pid, parent, state, argv })
}

/// The children of `pid`.
pub fn children(pid: u32) -> Vec<Process> {
    all().into_iter().filter(|process| process.parent == pid).collect()
}

/// The processes whose argv holds one of these words.
pub fn naming<'a>(words: impl IntoIterator<Item = &'a String> + Clone) -> Vec<Process> {
    let mut found = all();
    found.retain(|process| words.clone().into_iter().any(|word| process.argv.contains(word.as_str())));
    found
}

/// Sends a signal; false when the process is gone.
pub fn signal(pid: u32, signal: Signal) -> bool {
    let pid = Pid::from_raw(i32::try_from(pid).unwrap()).unwrap();
    kill_process(pid, signal).is_ok()
}

/// What a process uses.
#[derive(Debug, Clone, Copy, Default)]
pub struct Use {
    /// Resident, KiB.
    pub resident: u64,
    /// Of that its own, written to, KiB.
    pub private_dirty: u64,
    /// Open descriptors.
    pub descriptors: u64,
    /// Threads.
    pub threads: u64,
    /// Children.
    pub children: u64,
}

/// Reads what a process uses; `None` when it is gone.
pub fn usage(pid: u32) -> Option<Use> {
    let field = |text: &str, name: &str| -> Option<u64> {
        text.lines().find_map(|line| line.strip_prefix(name))?.split_whitespace().next()?.parse().ok()
    };
    let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let rollup = fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).ok()?;
    Some(Use {
        resident: field(&status, "VmRSS:")?,
        private_dirty: field(&rollup, "Private_Dirty:")?,
        descriptors: fs::read_dir(format!("/proc/{pid}/fd")).ok()?.count() as u64,
        threads: field(&status, "Threads:")?,
        children: children(pid).len() as u64,
    })
}
