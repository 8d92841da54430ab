//! Whether a pull still moves: a registry that accepts a connection and sends nothing, or stops in the middle of a layer,
//! would else hold its slot until the deploy's deadline. The CLIs do not give up: neither has a limit for a body that
//! stops.
//!
//! What moves is told by `rchar` of /proc/PID/io (proc(5)), the bytes that the CLI's process has read, sockets included.
//! Where that counts, and what counts as waiting for the registry, differs by who fetches:
//!
//! - nerdctl up to 2.2, and later ones with containerd 1: the CLI itself, from the registry. Besides that it only reads
//!   answers of containerd. While layers are unpacked nothing comes for minutes on a slow disk, so it must also have a
//!   TCP connection: containerd's library closes idle ones after 30 s (`IdleConnTimeout` in
//!   `core/remotes/docker/registry.go`), and talks to containerd by a Unix socket.
//! - nerdctl from 2.3 on with containerd 2: containerd, which tells the CLI of each layer that has grown, unless it is
//!   called with `--quiet`. What the CLI prints then says whether any layer is still awaited.
//! - Docker: its daemon, which tells the CLI of what was fetched and unpacked.
//!
//! What cannot be told is no stall: the kernel has no /proc/PID/io, or nerdctl from 2.3 on asks containerd 1 for its
//! progress ten times a second, or Docker's containerd store does.

use std::fs;
use std::io;
use std::path::Path;
use std::time::{Duration, Instant};

use super::cli::Flavour;
use super::socket_tables;

/// Bytes that a process may read without having been sent any: its own wake-ups, frames of gRPC without content.
const NOISE: u64 = 64;
/// Looks in the time that a pull may stand still.
const LOOKS: u32 = 12;

/// One pull's progress.
pub(super) struct Stall<'a> {
    proc: &'a Path,
    fetches: Fetches,
    limit: Duration,
    /// What was read when it last moved, and when that was.
    read: u64,
    moved: Instant,
}

/// Who fetches.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Fetches {
    /// The CLI.
    Itself,
    /// containerd, and the CLI prints how far it is.
    Containerd,
    /// Docker's daemon.
    Docker,
}

impl Fetches {
    /// `by_transfer`: whether this nerdctl may have containerd do it.
    pub(super) fn of(flavour: Flavour, by_transfer: bool) -> Self {
        match flavour {
            Flavour::Docker => Self::Docker,
            Flavour::Nerdctl if by_transfer => Self::Containerd,
            Flavour::Nerdctl => Self::Itself,
        }
    }
}

impl<'a> Stall<'a> {
    /// Of a pull that begins now. `proc`: where /proc is.
    pub(super) fn new(proc: &'a Path, fetches: Fetches, limit: Duration, now: Instant) -> Self {
        Self { proc, fetches, limit, read: 0, moved: now }
    }

    /// How often to look.
    pub(super) fn every(&self) -> Duration {
        self.limit / LOOKS
    }

    /// Whether the CLI's process, which has printed this, may go on.
    pub(super) fn goes_on(&mut self, now: Instant, pid: u32, printed: &[u8]) -> bool {
        let process = self.proc.join(pid.to_string());
        let read = bytes_read(&process).ok();
        if read.is_none_or(|read| read >= self.read.saturating_add(NOISE)) || !self.waits(&process, printed) {
            self.read = read.unwrap_or(0);
            self.moved = now;
        }
        now.saturating_duration_since(self.moved) < self.limit
    }

    /// Whether anything is awaited from the registry.
    fn waits(&self, process: &Path, printed: &[u8]) -> bool {
        match self.fetches {
            Fetches::Docker => true,
            Fetches::Itself => has_connection(process).unwrap_or(false),
            Fetches::Containerd => {
                has_connection(process).unwrap_or(false) || awaits_layers(&String::from_utf8_lossy(printed))
            }
        }
    }
}

/// What the process has read, in bytes.
fn bytes_read(process: &Path) -> io::Result<u64> {
    let text = fs::read_to_string(process.join("io"))?;
    let read = text.lines().find_map(|line| line.strip_prefix("rchar: ")?.trim().parse().ok());
    read.ok_or(io::ErrorKind::InvalidData.into())
}

/// Whether the process has a socket of TCP.
fn has_connection(process: &Path) -> io::Result<bool> {
    let mut sockets = Vec::new();
    for entry in fs::read_dir(process.join("fd"))? {
        // One that was closed meanwhile.
        let Ok(link) = fs::read_link(entry?.path()) else { continue };
        let socket = link.to_str().and_then(|link| link.strip_prefix("socket:[")?.strip_suffix(']'));
        sockets.extend(socket.and_then(|inode| inode.parse::<u64>().ok()));
    }
    if sockets.is_empty() {
        return Ok(false);
    }
    let is_own = |line: &str| inode(line).filter(|inode| sockets.contains(inode));
    for table in ["net/tcp", "net/tcp6"] {
        if socket_tables::find(&process.join(table), is_own)?.is_some() {
            return Ok(true);
        }
    }
    Ok(false)
}

/// A socket's inode, the tenth field of a line of the kernel's tables (proc(5)).
fn inode(line: &str) -> Option<u64> {
    line.split_ascii_whitespace().nth(9)?.parse().ok()
}

/// Whether nerdctl's picture of a pull (`displayHierarchy` in its `pkg/transferutil/progress.go`) shows one that waits for the
/// registry. It is drawn anew with each news: a line of `NAME\tSTATE\t…` for the image and each part of it, then one
/// with `\telapsed: `. Nothing is drawn while the image's name is resolved, and the image's own line says `fetching image
/// content` to the end.
fn awaits_layers(printed: &str) -> bool {
    let lines: Vec<&str> = printed.lines().collect();
    let ends = |line: &&str| line.contains("\telapsed: ");
    let Some(end) = lines.iter().rposition(ends) else { return true };
    let picture = lines[..end].iter().rev().take_while(|line| !ends(line));
    let states = picture.filter_map(|line| Some(line.split('\t').nth(1)?.trim()));
    let mut parts = states.filter(|state| *state != "fetching image content").peekable();
    parts.peek().is_none() || parts.any(|state| matches!(state, "resolving" | "waiting" | "downloading"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;
    use std::path::PathBuf;

    const LIMIT: Duration = Duration::from_secs(120);
    const PID: u32 = 7;

    /// A /proc with one process.
    struct Proc(PathBuf);

    impl Proc {
        fn new(name: &str) -> Self {
            let proc =
                Self(std::env::temp_dir().join(format!("vectorlay-stall-{name}-{}", std::process::id())));
            for folder in ["fd", "net"] {
                fs::create_dir_all(proc.0.join("7").join(folder)).unwrap();
            }
            symlink("/dev/null", proc.0.join("7/fd/0")).unwrap();
            symlink("socket:[41]", proc.0.join("7/fd/3")).unwrap();
            symlink("socket:[42]", proc.0.join("7/fd/4")).unwrap();
            proc
        }

        fn has_read(&self, bytes: u64) {
            fs::write(self.0.join("7/io"), format!("rchar: {bytes}\nwchar: 9\nsyscr: 1\n")).unwrap();
        }

        fn has_connection(&self, inode: u64) {
            let line = format!(
                "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode\n   \
                 0: 0100007F:1B58 0100007F:C350 01 00000000:00000000 00:00000000 00000000     0        0 {inode} 1 x\n"
            );
            fs::write(self.0.join("7/net/tcp"), line).unwrap();
        }
    }

    impl Drop for Proc {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.0);
        }
    }

    /// When a pull with this process is given up, in looks, while `each` changes things.
    fn looks(proc: &Proc, fetches: Fetches, printed: &str, mut each: impl FnMut(u32, &Proc)) -> Option<u32> {
        let began = Instant::now();
        let mut stall = Stall::new(&proc.0, fetches, LIMIT, began);
        (1..100).find(|look| {
            each(*look, proc);
            !stall.goes_on(began + *look * stall.every(), PID, printed.as_bytes())
        })
    }

    #[test]
    fn a_pull_that_reads_nothing_from_its_connection_stalls() {
        let proc = Proc::new("itself");
        proc.has_connection(42);
        let itself = |each: fn(u32, &Proc)| looks(&proc, Fetches::Itself, "", each);
        // The first look sees that it has read at all.
        assert_eq!(itself(|_, proc| proc.has_read(5_000)), Some(1 + LOOKS));
        assert_eq!(itself(|look, proc| proc.has_read(5_000 + u64::from(look.min(4)) * 64)), Some(4 + LOOKS));
        // A byte each two seconds is slow, and moves.
        assert_eq!(itself(|look, proc| proc.has_read(5_000 + u64::from(look) * 6)), None);
        // No connection: it unpacks. Of another process: not its own.
        proc.has_connection(43);
        assert_eq!(itself(|_, proc| proc.has_read(5_000)), None);
        // The connection was only kept for a while.
        let until = |look: u32, proc: &Proc| proc.has_connection(if look < 9 { 42 } else { 43 });
        assert_eq!(itself(until), None);
        // What cannot be told is no stall.
        proc.has_connection(42);
        fs::remove_file(proc.0.join("7/io")).unwrap();
        assert_eq!(itself(|_, _| ()), None);
    }

    #[test]
    fn dockers_daemon_tells_of_everything() {
        let proc = Proc::new("docker");
        let docker = |each: fn(u32, &Proc)| looks(&proc, Fetches::Docker, "", each);
        assert_eq!(docker(|_, proc| proc.has_read(5_000)), Some(1 + LOOKS));
        assert_eq!(docker(|look, proc| proc.has_read(u64::from(look) * 194)), None);
    }

    /// The texts are nerdctl 2.3.5's on containerd 2.3.7.
    #[test]
    fn containerd_waits_as_long_as_a_layer_is_awaited() {
        let proc = Proc::new("transfer");
        let line = |name: &str, state: &str| format!("{name}\t{state:<11}\t|\u{1b}[32m++\u{1b}[0m--|\t\n");
        let picture = |states: &[&str]| {
            let parts: String =
                states.iter().map(|state| line("   └──layer (3d080a2604b0)", state)).collect();
            format!(
                "\u{1b}[0G127.0.0.1:7024/b:1\tfetching image content\t\n{parts}application/vnd.oci.image.manifest.v1+json \
                 sha256:5504\nPulling from OCI Registry (127.0.0.1:7024/b:1)\telapsed: 0.3 s\ttotal:  2.0 Mi\t(6.3 MiB/s)\t\n"
            )
        };
        let check = |printed: &str, stalls: bool| {
            let given_up = looks(&proc, Fetches::Containerd, printed, |_, proc| proc.has_read(24_368));
            assert_eq!(given_up, stalls.then_some(1 + LOOKS), "{printed}");
        };
        check("", true);
        check(&picture(&[]), true);
        check(&picture(&["complete", "downloading"]), true);
        check(&picture(&["waiting", "extracting"]), true);
        check(&picture(&["complete", "complete"]), false);
        check(&picture(&["already exists", "extracted", "extracting"]), false);
        check(&(picture(&["downloading"]) + &picture(&["complete"])), false);
        check(&(picture(&["complete"]) + "half a pic"), false);
        check(&picture(&["complete"]).replace("127.0.0.1:7024/b:1", "downloading/waiting:1"), false);
    }
}
