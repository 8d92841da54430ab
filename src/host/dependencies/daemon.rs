//! Where containerd looks for shims, learnt from the process itself: its PATH may differ from ours.
//!
//! Any user can call a process `containerd` and give it any PATH, so only root's own count (or our own user's). Some
//! hosts run several of root's: k3s and Docker bring their own, and others live in containers. Which of them the CLI
//! talks to is not asked, for that takes every descriptor of every process; it is taken to be the one that the service
//! manager started, in the mounts that the host has.

use std::ffi::OsStr;
use std::fmt;
use std::path::{Path, PathBuf};

use super::SERVICE_PATH;
use crate::host::files;

/// Most processes that are looked at to find containerd.
const PROCESSES_MAX: usize = 100_000;
/// What the kernel adds to the name of a program that was replaced while it runs, as an upgrade does.
const REPLACED: &str = " (deleted)";

/// Where containerd looks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Searched {
    /// In order, each once: its PATH, then beside its own program. Without a process that can be looked at: where it
    /// looks when systemd starts it.
    pub folders: Vec<PathBuf>,
    /// Whose folders these are, where that is not plain.
    pub note: Option<Note>,
}

/// Which containerd was taken.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Note {
    process: u32,
    of: usize,
    apart: bool,
}

/// The folders as in a PATH, and the note.
impl fmt::Display for Searched {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&listed(&self.folders))?;
        self.note.as_ref().map_or(Ok(()), |note| write!(f, "; {note}"))
    }
}

impl fmt::Display for Note {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "by the PATH of process {}", self.process)?;
        if self.of > 1 {
            write!(f, ", one of {} containerds", self.of)?;
        }
        f.write_str(if self.apart { ", which has mounts of its own" } else { "" })
    }
}

/// Folders as in a PATH.
pub fn listed(folders: &[PathBuf]) -> String {
    folders.iter().map(|folder| folder.to_string_lossy()).collect::<Vec<_>>().join(":")
}

/// Where containerd looks; `user` is who we are. A process counts that is root's or `user`'s, lives among our
/// processes, and has a program called containerd: the kernel takes a process's name from the path by which it was
/// started, which for a program that becomes root (`sudo`) is whatever a user has linked to it.
pub fn searched(root: &Path, user: u32) -> Searched {
    let names = files::names(root, "/proc");
    let processes = names.iter().filter_map(|name| name.parse().ok()).take(PROCESSES_MAX);
    let mut found: Vec<Daemon> = processes.filter_map(|process| Daemon::read(root, process, user)).collect();
    found.sort_unstable_by_key(|daemon| (daemon.apart, !daemon.by_init, daemon.process));
    let of = found.len();
    let taken = found.into_iter().next();
    let note = taken.as_ref().filter(|daemon| of > 1 || daemon.apart).map(|daemon| Note {
        process: daemon.process,
        of,
        apart: daemon.apart,
    });
    let mut folders: Vec<PathBuf> = Vec::new();
    for folder in taken.into_iter().flat_map(|daemon| daemon.folders) {
        if folder.is_absolute() && !folders.contains(&folder) {
            folders.push(folder);
        }
    }
    if folders.is_empty() {
        folders = SERVICE_PATH.iter().map(PathBuf::from).collect();
    }
    Searched { folders, note }
}

/// A process that counts.
struct Daemon {
    process: u32,
    /// Its mounts are neither ours nor the host's. Ours alone would not do: a service's unit can give the agent its
    /// own, as the one that is shipped does.
    apart: bool,
    /// The service manager started it.
    by_init: bool,
    folders: Vec<PathBuf>,
}

impl Daemon {
    fn read(root: &Path, process: u32, user: u32) -> Option<Self> {
        if files::value(root, &format!("/proc/{process}/comm")).as_deref() != Some("containerd") {
            return None;
        }
        let status = files::text(root, &format!("/proc/{process}/status")).ok()?;
        let field = |name: &str| status.lines().find_map(|line| line.strip_prefix(name));
        // The real one, the effective one, the saved one, and that for files.
        let mut owners = field("Uid:")?.split_whitespace().map(str::parse::<u32>);
        if owners.any(|owner| owner != Ok(0) && owner != Ok(user)) {
            return None;
        }
        let link =
            |of: &str, name: &str| std::fs::read_link(files::under(root, &format!("/proc/{of}/{name}"))).ok();
        let own = process.to_string();
        if link(&own, "ns/pid") != link("self", "ns/pid") {
            return None;
        }
        let program = link(&own, "exe")?;
        let name = program.file_name().map(OsStr::to_string_lossy)?;
        if name.strip_suffix(REPLACED).unwrap_or(&name) != "containerd" {
            return None;
        }
        // Not the daemon but one that is asked for its version, as our own checks do.
        let arguments = files::text(root, &format!("/proc/{process}/cmdline")).unwrap_or_default();
        if arguments.split('\0').any(|argument| argument == "--version") {
            return None;
        }
        let mounts = link(&own, "ns/mnt");
        let environment = files::text(root, &format!("/proc/{process}/environ")).unwrap_or_default();
        let path = environment.split('\0').find_map(|variable| variable.strip_prefix("PATH="));
        let mut folders: Vec<PathBuf> =
            path.into_iter().flat_map(|path| path.split(':')).map(PathBuf::from).collect();
        folders.extend(program.parent().map(Path::to_owned));
        Some(Self {
            process,
            apart: mounts != link("1", "ns/mnt") && mounts != link("self", "ns/mnt"),
            by_init: field("PPid:").is_some_and(|parent| parent.trim() == "1"),
            folders,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::files::fixture::Fixture;

    const ROOT: &str = "Name:\tcontainerd\nPPid:\t1\nUid:\t0\t0\t0\t0\nGid:\t0\t0\t0\t0\n";
    /// Not root, whoever runs the test.
    const USER: u32 = 4_242;

    /// A process of that number with `/pN` for a PATH.
    fn process(host: &Fixture, number: u32, status: &str, mounts: &str, processes: &str, program: &str) {
        let at = |name: &str| format!("/proc/{number}/{name}");
        host.add(&at("comm"), "containerd\n");
        host.add(&at("status"), status);
        host.add(&at("environ"), &format!("A=1\0PATH=/p{number}:relative:/p{number}\0B=2\0"));
        host.add(&at("ns/mnt"), &format!("-> mnt:[{mounts}]"));
        host.add(&at("ns/pid"), &format!("-> pid:[{processes}]"));
        host.add(&at("exe"), &format!("-> {program}"));
    }

    /// A host whose init has mounts 1, and on which we have mounts 2, as the shipped unit gives us.
    fn host() -> Fixture {
        Fixture::new(&[
            ("/proc/1/ns/mnt", "-> mnt:[1]"),
            ("/proc/self/ns/mnt", "-> mnt:[2]"),
            ("/proc/self/ns/pid", "-> pid:[1]"),
        ])
    }

    #[test]
    fn only_roots_and_our_own_count() {
        let check = |status: &str, processes: &str, program: &str, counts: bool| {
            let host = host();
            process(&host, 17, status, "1", processes, program);
            let found = searched(host.path(), USER);
            let expected = if counts {
                vec![PathBuf::from("/p17"), PathBuf::from("/usr/bin")]
            } else {
                SERVICE_PATH.map(PathBuf::from).to_vec()
            };
            assert_eq!(found, Searched { folders: expected, note: None }, "{status} {processes} {program}");
        };
        let daemon = "/usr/bin/containerd";
        let owners = |owners: &str| ROOT.replace("0\t0\t0\t0\nGid", &format!("{owners}\nGid"));
        check(ROOT, "1", daemon, true);
        check(&owners("4242\t4242\t4242\t4242"), "1", daemon, true);
        check(ROOT, "1", "/usr/bin/containerd (deleted)", true);
        // A user's, and one that became root, or gave that up, for a part.
        check(&owners("1000\t1000\t1000\t1000"), "1", daemon, false);
        check(&owners("1000\t0\t0\t0"), "1", daemon, false);
        check(&owners("0\t1000\t0\t1000"), "1", daemon, false);
        check("Name:\tcontainerd\n", "1", daemon, false);
        check("Uid:\tx\n", "1", daemon, false);
        // In a container, and another program under that name.
        check(ROOT, "7", daemon, false);
        check(ROOT, "1", "/usr/bin/sudo", false);
    }

    #[test]
    fn one_that_says_its_version_is_no_daemon() {
        let check = |arguments: &str, counts: bool| {
            let host = host();
            process(&host, 17, ROOT, "1", "1", "/usr/bin/containerd");
            host.add("/proc/17/cmdline", arguments);
            let found = searched(host.path(), USER);
            assert_eq!(found.folders[0] == Path::new("/p17"), counts, "{arguments:?}");
        };
        check("/usr/bin/containerd\0", true);
        check("containerd\0--config\0/etc/x.toml\0", true);
        check("/usr/bin/containerd\0--version\0", false);
    }

    #[test]
    fn the_services_own_comes_first() {
        let child = ROOT.replace("PPid:\t1", "PPid:\t900");
        let check = |processes: &[(u32, &str, &str)], first: u32, note: Option<&str>| {
            let host = host();
            for (number, status, mounts) in processes {
                process(&host, *number, status, mounts, "1", "/usr/bin/containerd");
            }
            let found = searched(host.path(), USER);
            assert_eq!(found.folders[0], PathBuf::from(format!("/p{first}")), "{found}");
            assert_eq!(found.note.as_ref().map(ToString::to_string).as_deref(), note);
        };
        check(&[(30, ROOT, "1")], 30, None);
        check(
            &[(9, &child, "1"), (30, ROOT, "1"), (200, ROOT, "1"), (10, ROOT, "9")],
            30,
            Some("by the PATH of process 30, one of 4 containerds"),
        );
        check(
            &[(7, ROOT, "9"), (30, &child, "2")],
            30,
            Some("by the PATH of process 30, one of 2 containerds"),
        );
        check(&[(7, ROOT, "9")], 7, Some("by the PATH of process 7, which has mounts of its own"));
        let found = searched(host().path(), USER);
        assert_eq!(found.to_string(), "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin");
    }
}
