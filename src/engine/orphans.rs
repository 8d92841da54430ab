//! Processes that a dead agent left: calls of the CLI that are still at work, and helpers of containers that are gone.
//!
//! How a call is recognised: a `run` by the label `vectorlay.deploy=…` on its argv, which says whose it is; every
//! other call by the variable `VECTORLAY_CHILD` in its environment. A run does not carry that variable, because the
//! CLI writes its whole environment into the container's OCI hooks, and their programs would then look like calls of
//! ours; the other calls start no container, so there it goes nowhere. Neither mark holds a secret: argv is readable
//! by all, and /proc/PID/environ by root.
//!
//! A process is named by its number and its start time together, and is signalled through a pidfd that was opened
//! before the start time was compared: a number that has a new owner is never hit. Nothing is ended that is not a
//! call of ours or, by name, a helper of a container whose full ID the caller knows to have been ours.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags};
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

use super::cli::MARK;
use crate::core::LeftoverCall;
use crate::core::job::{LABEL_DEPLOY, LABEL_GPUS, LABEL_REPLICA};
use crate::types::{ContainerId, PciAddress, ReplicaId};
use crate::wait::poll_until;

/// The agent's name in /proc/PID/comm (at most 15 bytes there, as many as it has).
const AGENT: &str = "vectorlay-agent";
/// How far up a call's parents are looked for a living agent.
const PARENTS_MAX: usize = 16;
/// Longest argv or environment that is read, in bytes: the kernel lets a process have about 2 MiB.
const READ_MAX: u64 = 4 * 1024 * 1024;
/// Helpers of a container that outlive it when something was killed: how their executables' names begin.
const HELPERS: [&str; 6] =
    ["containerd-shim", "qemu-system-", "cloud-hypervisor", "firecracker", "virtiofsd", "nerdctl"];

/// One process, which is this one only as long as its start time is the same.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Process {
    /// Its number.
    pub pid: i32,
    /// When it started, in clock ticks after the boot (field 22 of /proc/PID/stat).
    pub started: u64,
}

/// A call of the CLI that a dead agent left.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Orphan {
    /// The process.
    pub process: Process,
    /// What it does.
    pub call: Call,
}

/// What an orphaned call does.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Call {
    /// `run`, for the deploy of this ID (its label).
    Run(String, LeftoverCall),
    /// Another one: the verb (`pull`, `stop`, `rm`, `ps`, …).
    Other(String),
}

/// A helper of a container that is gone.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Leak {
    /// The process.
    pub process: Process,
    /// The container that it served.
    pub container: ContainerId,
    /// Its name, for a person.
    pub name: String,
}

/// The calls that a dead agent left, from /proc under `root`. Those of an agent that lives, this one included, are
/// left out.
///
/// # Errors
/// The kernel's, when /proc cannot be read: then nothing may be concluded.
pub fn calls(root: &Path) -> io::Result<Vec<Orphan>> {
    let proc = root.join("proc");
    let mut found = Vec::new();
    // A container's process can have any arguments; but it is in another PID namespace than a call of ours.
    let namespace = |dir: PathBuf| fs::read_link(dir.join("ns/pid")).ok();
    let ours = namespace(proc.join("self"));
    for pid in pids(&proc)? {
        let dir = proc.join(pid.to_string());
        if namespace(dir.clone()) != ours {
            continue;
        }
        let Some(call) = call_of(&read(&dir.join("cmdline")), || read(&dir.join("environ"))) else {
            continue;
        };
        let Some(process) = process(&proc, pid) else { continue };
        if !has_living_agent(&proc, pid) {
            found.push(Orphan { process, call });
        }
    }
    Ok(found)
}

/// Shims, hypervisors and loggers of containers in `gone`, from /proc under `root`. The caller must know that each of
/// them was ours and is no longer in the engine's list.
///
/// # Errors
/// The kernel's, when /proc cannot be read.
pub fn leaks(root: &Path, gone: &BTreeSet<ContainerId>) -> io::Result<Vec<Leak>> {
    let proc = root.join("proc");
    let mut found = Vec::new();
    if gone.is_empty() {
        return Ok(found);
    }
    for pid in pids(&proc)? {
        let dir = proc.join(pid.to_string());
        let served = helper_of(&read(&dir.join("cmdline")), || read(&dir.join("environ")));
        let Some((name, container)) = served.filter(|(_, container)| gone.contains(container)) else {
            continue;
        };
        if let Some(process) = process(&proc, pid) {
            found.push(Leak { process, container, name });
        }
    }
    Ok(found)
}

/// Sends SIGTERM to `target`, or SIGKILL with `kill`; `false` when it is gone already.
///
/// # Errors
/// The kernel's, when it cannot be signalled.
pub fn end(target: Process, kill: bool) -> io::Result<bool> {
    let Some(fd) = open(target)? else { return Ok(false) };
    match pidfd_send_signal(&fd, if kill { Signal::KILL } else { Signal::TERM }) {
        Ok(()) => Ok(true),
        Err(rustix::io::Errno::SRCH) => Ok(false),
        Err(errno) => Err(errno.into()),
    }
}

/// Waits for `target` to end, at most `patience`; says whether it has.
///
/// # Errors
/// The kernel's, when it cannot be watched.
pub fn wait(target: Process, patience: Duration) -> io::Result<bool> {
    let Some(fd) = open(target)? else { return Ok(true) };
    let until = Instant::now() + patience;
    loop {
        let mut fds = [PollFd::new(&fd, PollFlags::IN)];
        poll_until(&mut fds, Some(until))?;
        if !fds[0].revents().is_empty() {
            return Ok(true);
        }
        if Instant::now() >= until {
            return Ok(false);
        }
    }
}

/// A pidfd of `target`; `None` when it is gone.
fn open(target: Process) -> io::Result<Option<OwnedFd>> {
    let Some(pid) = Pid::from_raw(target.pid) else { return Ok(None) };
    match pidfd_open(pid, PidfdFlags::empty()) {
        // Compared with the pidfd in hand: from here on the number cannot change its owner unnoticed.
        Ok(fd) => Ok((process(Path::new("/proc"), target.pid) == Some(target)).then_some(fd)),
        Err(rustix::io::Errno::SRCH) => Ok(None),
        Err(errno) => Err(errno.into()),
    }
}

/// What call of ours a process is, from its argv and its environment (both with a NUL after each string).
fn call_of(cmdline: &[u8], environ: impl FnOnce() -> Vec<u8>) -> Option<Call> {
    let label = |name: &str| starting_with(cmdline, &format!("--label={name}="));
    let mark = format!("{MARK}=");
    // A kernel thread, or a zombie.
    if cmdline.is_empty() {
        return None;
    }
    // A run's labels stand before the image; a tenant's command behind it that looks like one changes nothing.
    if let (Some(deploy), Some(replica)) = (label(LABEL_DEPLOY), label(LABEL_REPLICA))
        && let Ok(replica) = ReplicaId::new(&replica)
    {
        let gpus = label(LABEL_GPUS).unwrap_or_default();
        let gpus = gpus.split('+').filter_map(|gpu| PciAddress::parse(gpu).ok()).collect();
        return Some(Call::Run(deploy, LeftoverCall { replica, gpus }));
    }
    starting_with(&environ(), &mark).map(Call::Other)
}

/// Which container a process helps, by an executable's name and the ID on its argv; for a logger (`nerdctl
/// _NERDCTL_INTERNAL_LOGGING`), which has none there, by the CONTAINER_ID that containerd gives it.
fn helper_of(cmdline: &[u8], environ: impl FnOnce() -> Vec<u8>) -> Option<(String, ContainerId)> {
    let mut args = cmdline.split(|b| *b == 0).map(|arg| std::str::from_utf8(arg).unwrap_or(""));
    let program = args.next()?.rsplit('/').next()?;
    let helper = HELPERS.iter().find(|helper| program.starts_with(**helper))?;
    let container = if *helper == "nerdctl" {
        args.next().filter(|arg| *arg == "_NERDCTL_INTERNAL_LOGGING")?;
        ContainerId::new(&starting_with(&environ(), "CONTAINER_ID=")?).ok()?
    } else {
        // `-id ID`, `-name sandbox-ID`, `/run/vc/vm/ID/…`.
        args.flat_map(|arg| arg.split(|c: char| !c.is_ascii_alphanumeric()))
            .find_map(|w| ContainerId::new(w).ok())?
    };
    Some((program.to_owned(), container))
}

/// What follows `prefix` in the first string that begins with it.
fn starting_with(strings: &[u8], prefix: &str) -> Option<String> {
    let rest = strings.split(|b| *b == 0).find_map(|s| s.strip_prefix(prefix.as_bytes()))?;
    std::str::from_utf8(rest).ok().map(str::to_owned)
}

fn has_living_agent(proc: &Path, pid: i32) -> bool {
    let mut pid = pid;
    for _ in 0..PARENTS_MAX {
        let Some(parent) = stat(proc, pid).map(|(parent, _)| parent).filter(|parent| *parent > 1) else {
            return false;
        };
        let comm = fs::read_to_string(proc.join(parent.to_string()).join("comm")).unwrap_or_default();
        if comm.trim_end() == AGENT || parent.unsigned_abs() == std::process::id() {
            return true;
        }
        pid = parent;
    }
    false
}

fn process(proc: &Path, pid: i32) -> Option<Process> {
    stat(proc, pid).map(|(_, started)| Process { pid, started })
}

/// Parent and start time: fields 4 and 22 of /proc/PID/stat (proc_pid_stat(5)); the name in field 2 may hold anything.
/// `None` for a process that is gone, a zombie included.
fn stat(proc: &Path, pid: i32) -> Option<(i32, u64)> {
    let stat = fs::read_to_string(proc.join(pid.to_string()).join("stat")).ok()?;
    let mut fields = stat.rsplit_once(") ")?.1.split(' ');
    let state = fields.next()?;
    if matches!(state, "Z" | "X") {
        return None;
    }
    let parent = fields.next()?.parse().ok()?;
    let started = fields.nth(17)?.parse().ok()?;
    Some((parent, started))
}

fn pids(proc: &Path) -> io::Result<Vec<i32>> {
    let mut pids = Vec::new();
    for entry in fs::read_dir(proc)? {
        if let Some(pid) = entry?.file_name().to_str().and_then(|name| name.parse().ok()) {
            pids.push(pid);
        }
    }
    Ok(pids)
}

/// What can be read of a file of another process; nothing when it is gone.
fn read(path: &PathBuf) -> Vec<u8> {
    let mut bytes = Vec::new();
    if let Ok(file) = fs::File::open(path) {
        let _ = io::Read::read_to_end(&mut io::Read::take(file, READ_MAX), &mut bytes);
    }
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::Command;

    fn strings(list: &[&str]) -> Vec<u8> {
        list.iter().flat_map(|s| s.bytes().chain([0])).collect()
    }

    #[test]
    fn calls_are_known_by_label_or_mark() {
        let check = |argv: &[&str], env: &[&str], call: Option<Call>| {
            assert_eq!(call_of(&strings(argv), || strings(env)), call, "{argv:?}");
        };
        let run = |gpus: &[&str]| {
            let gpus = gpus.iter().map(|gpu| PciAddress::parse(gpu).unwrap()).collect();
            Some(Call::Run("d1".into(), LeftoverCall { replica: ReplicaId::new("r").unwrap(), gpus }))
        };
        check(
            &["nerdctl", "run", "--label=vectorlay.replica=r", "--label=vectorlay.deploy=d1", "bb:1"],
            &["PATH=x"],
            run(&[]),
        );
        check(
            &[
                "nerdctl",
                "--label=vectorlay.replica=r",
                "--label=vectorlay.deploy=d1",
                "--label=vectorlay.gpus=0000:41:00.0+0000:c1:00.0",
            ],
            &[],
            run(&["41:00.0", "c1:00.0"]),
        );
        check(
            &[
                "nerdctl",
                "--label=vectorlay.replica=r",
                "--label=vectorlay.deploy=d1",
                "--label=vectorlay.gpus=none",
            ],
            &[],
            run(&[]),
        );
        check(
            &["/bin/sh", "/x/nerdctl", "pull", "bb:1"],
            &["A=b", "VECTORLAY_CHILD=pull"],
            Some(Call::Other("pull".into())),
        );
        check(&["nerdctl", "pull", "bb:1"], &["A=VECTORLAY_CHILD=pull"], None);
        check(&["nerdctl", "ps", "--filter", "label=vectorlay.deploy=d1"], &[], None);
        check(&[], &["VECTORLAY_CHILD=pull"], None);
    }

    #[test]
    fn helpers_are_known_by_name_and_id() {
        let id = "ab".repeat(32);
        let check = |argv: &[&str], env: &[&str], name: Option<&str>| {
            let found = helper_of(&strings(argv), || strings(env));
            let expected = name.map(|name| (name.to_owned(), ContainerId::new(&id).unwrap()));
            assert_eq!(found, expected, "{argv:?}");
        };
        check(
            &["/usr/bin/containerd-shim-runc-v2", "-namespace", "default", "-id", &id, "-address", "/x"],
            &[],
            Some("containerd-shim-runc-v2"),
        );
        check(
            &["/opt/kata/bin/qemu-system-x86_64", "-name", &format!("sandbox-{id},debug-threads=on")],
            &[],
            Some("qemu-system-x86_64"),
        );
        check(
            &["cloud-hypervisor", "--api-socket", &format!("/run/vc/vm/{id}/clh-api.sock")],
            &[],
            Some("cloud-hypervisor"),
        );
        check(
            &["/usr/bin/nerdctl", "_NERDCTL_INTERNAL_LOGGING", "/var/lib/nerdctl/1935db59"],
            &[&format!("CONTAINER_ID={id}")],
            Some("nerdctl"),
        );
        // A person's call, a tenant's process, another ID.
        check(&["nerdctl", "logs", "-f", &id], &[&format!("CONTAINER_ID={id}")], None);
        check(&["sleep", &id], &[], None);
        check(&["containerd-shim-runc-v2", "-id", "web"], &[], None);
        check(&["containerd-shim-runc-v2", "-id", &format!("{id}0")], &[], None);
    }

    #[test]
    fn real_ones_are_found_ended_and_waited_for() {
        // As if its agent were dead: the parent is init (or whoever adopts orphans), not this process.
        let mark = format!("t{}", std::process::id());
        let script = "sleep 600 </dev/null >/dev/null 2>&1 &";
        assert!(Command::new("/bin/sh").args(["-c", script]).env(MARK, &mark).status().unwrap().success());
        let mine = |orphans: Vec<Orphan>| orphans.into_iter().find(|o| o.call == Call::Other(mark.clone()));
        let until = Instant::now() + Duration::from_secs(60);
        let orphan = loop {
            if let Some(orphan) = mine(calls(Path::new("/")).unwrap()) {
                break orphan;
            }
            assert!(Instant::now() < until, "not found");
        };
        assert!(!wait(orphan.process, Duration::from_millis(50)).unwrap());
        // A process with the same number that started at another time is not touched.
        let other = Process { started: orphan.process.started + 1, ..orphan.process };
        assert!(!end(other, true).unwrap());
        assert!(end(orphan.process, false).unwrap());
        assert!(wait(orphan.process, Duration::from_secs(60)).unwrap());
        assert!(!end(orphan.process, true).unwrap());
        assert_eq!(mine(calls(Path::new("/")).unwrap()), None);
    }

    #[test]
    fn children_of_a_living_agent_are_no_orphans() {
        let mark = format!("c{}", std::process::id());
        let mut child = Command::new("/bin/sleep").arg("600").env(MARK, &mark).spawn().unwrap();
        let found = calls(Path::new("/")).unwrap();
        assert!(!found.iter().any(|orphan| orphan.call == Call::Other(mark.clone())));
        child.kill().unwrap();
        child.wait().unwrap();
    }

    #[test]
    fn no_proc_is_no_answer() {
        assert!(calls(Path::new("/no/such")).is_err());
        assert!(
            leaks(Path::new("/no/such"), &BTreeSet::from([ContainerId::new(&"ab".repeat(32)).unwrap()]))
                .is_err()
        );
    }
}
