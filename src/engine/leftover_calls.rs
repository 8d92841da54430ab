//! Processes that a dead agent left: calls of the CLI that are still at work, and helpers of containers that are gone.
//!
//! How a call is recognised: it is the container CLI's `run`, root's own (any user could start a process whose argv is
//! the same), with the labels on its argv that say which deploy of which node it is for. Calls that start no container
//! need not be known. Argv is readable by all, and so holds no secret.
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

use super::cli::Flavour;
use crate::core::LeftoverCall;
use crate::core::job::{LABEL_DEPLOY, LABEL_GPUS, LABEL_NODE, LABEL_REPLICA, gpus_of_label};
use crate::trust;
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

/// A run of the CLI that a dead agent left.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Orphan {
    /// The process.
    pub process: Process,
    /// The deploy that it is for (its label).
    pub deploy: String,
    /// What it is at work on.
    pub call: LeftoverCall,
}

/// Whose calls are looked for.
#[derive(Debug, Clone)]
pub struct Caller {
    /// The CLI's path.
    pub cli: PathBuf,
    /// Its vocabulary.
    pub flavour: Flavour,
    /// The node's ID as it stands in labels; `None`: the agent started without one, and cannot tell its own calls from
    /// those of another agent that died.
    pub node: Option<String>,
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

/// The runs that a dead agent of `caller` left, from /proc under `root`. Those of an agent that lives, this one
/// included, are left out.
///
/// # Errors
/// The kernel's, when /proc cannot be read: then nothing may be concluded.
pub fn calls(root: &Path, caller: &Caller) -> io::Result<Vec<Orphan>> {
    let proc = root.join("proc");
    let mut found = Vec::new();
    // A container's process can have any arguments; but it is in another PID namespace than a call of ours.
    let namespace = |dir: PathBuf| fs::read_link(dir.join("ns/pid")).ok();
    let ours = namespace(proc.join("self"));
    for pid in pids(&proc)? {
        let dir = proc.join(pid.to_string());
        let cmdline = read(&dir.join("cmdline"));
        let Some((deploy, call)) = run_of(&cmdline, caller.node.as_deref()) else { continue };
        if namespace(dir.clone()) != ours || !is_roots(&read(&dir.join("status"))) {
            continue;
        }
        let executable = fs::read_link(dir.join("exe")).unwrap_or_default();
        let Some(process) = process(&proc, pid) else { continue };
        if is_cli(caller, &cmdline, &executable) && !has_living_agent(&proc, pid) {
            found.push(Orphan { process, deploy, call });
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

/// Waits for `target` to end, at most `timeout`; says whether it has.
///
/// # Errors
/// The kernel's, when it cannot be watched.
pub fn wait(target: Process, timeout: Duration) -> io::Result<bool> {
    let Some(fd) = open(target)? else { return Ok(true) };
    let until = Instant::now() + timeout;
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

/// The deploy and the replica of a `run` of ours, from its argv (with a NUL after each string). A run's labels stand before
/// the image; a tenant's command behind it that looks like one changes nothing.
fn run_of(cmdline: &[u8], node: Option<&str>) -> Option<(String, LeftoverCall)> {
    let label = |name: &str| starting_with(cmdline, &format!("--label={name}="));
    let (deploy, replica) = (label(LABEL_DEPLOY)?, ReplicaId::new(&label(LABEL_REPLICA)?).ok()?);
    if node.is_some_and(|node| label(LABEL_NODE).as_deref() != Some(node)) {
        return None;
    }
    let gpus = label(LABEL_GPUS).unwrap_or_default();
    let gpus = gpus_of_label(&gpus).filter_map(|gpu| PciAddress::parse(gpu).ok()).collect();
    Some((deploy, LeftoverCall { replica, gpus }))
}

/// Whether a process is root's, or this process's user's, in each of its four user IDs (proc_pid_status(5)). The owner of
/// /proc/PID does not tell: it is root for whatever process asked for that (PR_SET_DUMPABLE).
fn is_roots(status: &[u8]) -> bool {
    let status = String::from_utf8_lossy(status);
    let uids = status.lines().find_map(|line| line.strip_prefix("Uid:"));
    uids.is_some_and(|uids| uids.split_whitespace().all(|uid| uid.parse().is_ok_and(trust::is_ours)))
}

/// Whether a process runs the CLI: by its path, also as a script behind its interpreter, or where a wrapper of the owner's
/// has started another one, by the executable's name.
fn is_cli(caller: &Caller, cmdline: &[u8], executable: &Path) -> bool {
    let path = caller.cli.as_os_str().as_encoded_bytes();
    cmdline.split(|b| *b == 0).take(2).any(|arg| arg == path)
        || Flavour::of_file(executable) == Some(caller.flavour)
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

/// The process with this number, from the /proc at `proc`; `None` when there is none, or it has ended.
pub fn process(proc: &Path, pid: i32) -> Option<Process> {
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

    fn caller() -> Caller {
        Caller { cli: "/opt/cli".into(), flavour: Flavour::Nerdctl, node: Some("n1".into()) }
    }

    const LABELS: [&str; 3] =
        ["--label=vectorlay.replica=r", "--label=vectorlay.deploy=d1", "--label=vectorlay.node=n1"];

    #[test]
    fn runs_are_known_by_their_labels() {
        let check = |node: Option<&str>, argv: &[&str], gpus: Option<&[&str]>| {
            let found = run_of(&strings(argv), node);
            let call = gpus.map(|gpus| {
                let gpus = gpus.iter().map(|gpu| PciAddress::parse(gpu).unwrap()).collect();
                ("d1".to_owned(), LeftoverCall { replica: ReplicaId::new("r").unwrap(), gpus })
            });
            assert_eq!(found, call, "{argv:?}");
        };
        let run = |more: &[&'static str]| [&["nerdctl", "run"], &LABELS[..], more].concat();
        check(Some("n1"), &run(&["bb:1"]), Some(&[]));
        let gpus = "--label=vectorlay.gpus=0000:41:00.0+0000:c1:00.0";
        check(Some("n1"), &run(&[gpus]), Some(&["41:00.0", "c1:00.0"]));
        check(Some("n1"), &run(&["--label=vectorlay.gpus=none"]), Some(&[]));
        // Another node's, and one whose labels do not tell.
        check(Some("n2"), &run(&[]), None);
        check(None, &run(&[]), Some(&[]));
        check(None, &["nerdctl", "--label=vectorlay.replica=r", "--label=vectorlay.deploy=d1"], Some(&[]));
        check(Some("n1"), &["nerdctl", "--label=vectorlay.replica=r", "--label=vectorlay.deploy=d1"], None);
        check(None, &["nerdctl", "ps", "--filter", "label=vectorlay.deploy=d1"], None);
        check(None, &[], None);
    }

    #[test]
    fn only_the_cli_counts_and_only_as_root() {
        let is = |argv: &[&str], executable: &str| is_cli(&caller(), &strings(argv), Path::new(executable));
        assert!(is(&["/opt/cli", "run"], "/usr/bin/python3"));
        assert!(is(&["/bin/sh", "/opt/cli", "run"], "/bin/dash"));
        assert!(is(&["x"], "/usr/local/bin/nerdctl (deleted)"));
        assert!(!is(&["nerdctl", "run"], "/bin/dash"));
        assert!(!is(&["nerdctl", "run"], "/usr/bin/docker"));
        assert!(!is(&["a", "b", "/opt/cli"], ""));
        let roots = |uids: &str| is_roots(format!("Name:\tx\nUid:\t{uids}\nGid:\t5\n").as_bytes());
        assert!(roots("0\t0\t0\t0"));
        for foreign in ["1234567\t1234567\t1234567\t1234567", "1234567\t0\t0\t0", "0\t1234567\t0\t0", "x"] {
            assert!(!roots(foreign), "{foreign}");
        }
        assert!(!is_roots(b""));
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

    /// The command that starts a script at `cli`, which sleeps and has the labels of a run.
    fn sleeper(name: &str) -> (PathBuf, Caller, Command) {
        let dir = std::env::temp_dir().join(format!("vectorlay-leftover-{name}-{}", std::process::id()));
        fs::create_dir_all(&dir).unwrap();
        let caller = Caller { cli: dir.join("cli"), ..caller() };
        let mut command = Command::new("/bin/sh");
        // An interpreter that is given the script: a file just written could not be executed while another test forks.
        fs::write(&caller.cli, "read never <\"$0.fifo\"").unwrap();
        let fifo = caller.cli.with_extension("fifo");
        rustix::fs::mknodat(rustix::fs::CWD, &fifo, rustix::fs::FileType::Fifo, rustix::fs::Mode::RUSR, 0)
            .unwrap();
        command.arg(&caller.cli).arg("run").args(LABELS);
        (dir, caller, command)
    }

    #[test]
    fn real_ones_are_found_ended_and_waited_for() {
        let (dir, caller, command) = sleeper("real");
        // As if its agent were dead: the parent is init (or whoever adopts orphans), not this process.
        let mut shell = Command::new("/bin/sh");
        shell.args(["-c", "\"$@\" </dev/null >/dev/null 2>&1 &", "sh"]).arg(command.get_program());
        assert!(shell.args(command.get_args()).status().unwrap().success());
        let until = Instant::now() + Duration::from_secs(60);
        let found = loop {
            if let Some(found) = calls(Path::new("/"), &caller).unwrap().pop() {
                break found;
            }
            assert!(Instant::now() < until, "not found");
        };
        assert_eq!((found.deploy.as_str(), found.call.replica.as_str()), ("d1", "r"));
        assert_eq!(calls(Path::new("/"), &Caller { node: Some("n2".into()), ..caller.clone() }).unwrap(), []);
        assert_eq!(calls(Path::new("/"), &Caller { cli: "/opt/cli".into(), ..caller.clone() }).unwrap(), []);
        assert!(!wait(found.process, Duration::from_millis(50)).unwrap());
        // A process with the same number that started at another time is not touched.
        let other = Process { started: found.process.started + 1, ..found.process };
        assert!(!end(other, true).unwrap());
        assert!(end(found.process, false).unwrap());
        assert!(wait(found.process, Duration::from_secs(60)).unwrap());
        assert!(!end(found.process, true).unwrap());
        assert_eq!(calls(Path::new("/"), &caller).unwrap(), []);
        fs::remove_dir_all(dir).unwrap();
    }

    #[test]
    fn children_of_a_living_agent_are_not_leftovers() {
        let (dir, caller, mut command) = sleeper("living");
        let mut child = command.spawn().unwrap();
        assert_eq!(calls(Path::new("/"), &caller).unwrap(), []);
        child.kill().unwrap();
        child.wait().unwrap();
        fs::remove_dir_all(dir).unwrap();
    }

    #[test]
    fn another_users_process_is_none_whatever_it_says() {
        if !rustix::process::geteuid().is_root() {
            return;
        }
        let (dir, caller, command) = sleeper("foreign");
        fs::set_permissions(
            caller.cli.with_extension("fifo"),
            std::os::unix::fs::PermissionsExt::from_mode(0o644),
        )
        .unwrap();
        let mut shell = Command::new("/bin/sh");
        shell.args(["-c", "\"$@\" </dev/null >/dev/null 2>&1 & echo $!", "sh", "setpriv", "--reuid=65534"]);
        shell.args(["--clear-groups"]).arg(command.get_program()).args(command.get_args());
        let pid: i32 = String::from_utf8(shell.output().unwrap().stdout).unwrap().trim().parse().unwrap();
        let proc = Path::new("/proc");
        let there = || run_of(&read(&proc.join(format!("{pid}/cmdline"))), Some("n1")).is_some();
        let started =
            || fs::read_to_string(proc.join(format!("{pid}/comm"))).is_ok_and(|name| name.trim() == "sh");
        let until = Instant::now() + Duration::from_secs(60);
        while !(there() && started()) {
            assert!(Instant::now() < until, "it did not start");
        }
        assert_eq!(calls(Path::new("/"), &caller).unwrap(), []);
        assert!(end(process(proc, pid).unwrap(), true).unwrap());
        fs::remove_dir_all(dir).unwrap();
    }

    #[test]
    fn no_proc_is_no_answer() {
        assert!(calls(Path::new("/no/such"), &caller()).is_err());
        assert!(
            leaks(Path::new("/no/such"), &BTreeSet::from([ContainerId::new(&"ab".repeat(32)).unwrap()]))
                .is_err()
        );
    }
}
