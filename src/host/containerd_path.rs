//! Where containerd looks for shims: in the PATH of its own process, which may differ from the agent's.
//!
//! Any user can call a process `containerd` and give it any PATH, so only root's processes count (or the agent's own
//! user's). What that PATH leads to is looked at and never run. Some hosts have several containerds (k3s and Docker bring
//! their own): the one that the service manager started is taken, and of those the oldest.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};

use super::files;

/// At most so many processes are looked at.
const PROCESSES_MAX: usize = 100_000;
/// What the kernel adds to the name of a program that was replaced while it runs, as an upgrade does.
const REPLACED: &str = " (deleted)";
/// systemd's PATH for services (systemd.exec(5)).
pub const SERVICE_PATH: [&str; 6] =
    ["/usr/local/sbin", "/usr/local/bin", "/usr/sbin", "/usr/bin", "/sbin", "/bin"];

/// The folders in which containerd looks, in order, each once: its PATH, then the folder of its own program. Without a
/// process that counts: where it looks when systemd starts it. `user` is who the agent runs as.
pub fn folders(root: &Path, user: u32) -> Vec<PathBuf> {
    let names = files::names(&files::under(root, "/proc"));
    let processes = names.iter().filter_map(|name| name.parse().ok()).take(PROCESSES_MAX);
    let daemon = processes
        .filter_map(|process| Daemon::read(root, process, user))
        .min_by_key(|daemon| (!daemon.by_init, daemon.process));
    let mut folders: Vec<PathBuf> = Vec::new();
    for folder in daemon.into_iter().flat_map(|daemon| daemon.folders) {
        if folder.is_absolute() && !folders.contains(&folder) {
            folders.push(folder);
        }
    }
    if folders.is_empty() { SERVICE_PATH.iter().map(PathBuf::from).collect() } else { folders }
}

/// Folders as in a PATH.
pub fn joined(folders: &[PathBuf]) -> String {
    folders.iter().map(|folder| folder.to_string_lossy()).collect::<Vec<_>>().join(":")
}

/// A containerd that counts.
struct Daemon {
    process: u32,
    /// The service manager started it.
    by_init: bool,
    folders: Vec<PathBuf>,
}

impl Daemon {
    fn read(root: &Path, process: u32, user: u32) -> Option<Self> {
        let folder = files::under(root, format!("/proc/{process}"));
        if files::value(&folder.join("comm")).as_deref() != Some("containerd") {
            return None;
        }
        let status = files::text(&folder.join("status"))?;
        let field = |name: &str| status.lines().find_map(|line| line.strip_prefix(name));
        // The real one, the effective one, the saved one, and that for files.
        let mut owners = field("Uid:")?.split_whitespace().map(str::parse::<u32>);
        if owners.any(|owner| owner != Ok(0) && owner != Ok(user)) {
            return None;
        }
        // One that runs in a container looks in that container's files.
        let link = |path: &Path| std::fs::read_link(path).ok();
        if link(&folder.join("ns/pid")) != link(&files::under(root, "/proc/self/ns/pid")) {
            return None;
        }
        // The kernel takes a process's name from the path by which it was started, which for a program that becomes root
        // (`sudo`) is whatever a user has linked to it.
        let program = link(&folder.join("exe"))?;
        let name = program.file_name().map(OsStr::to_string_lossy)?;
        if name.strip_suffix(REPLACED).unwrap_or(&name) != "containerd" {
            return None;
        }
        // A process that is asked for its version, as the checks do, is not the daemon.
        let arguments = files::text(&folder.join("cmdline")).unwrap_or_default();
        if arguments.split('\0').any(|argument| argument == "--version") {
            return None;
        }
        let environment = files::text(&folder.join("environ")).unwrap_or_default();
        let path = environment.split('\0').find_map(|variable| variable.strip_prefix("PATH="));
        let mut folders: Vec<PathBuf> =
            path.into_iter().flat_map(|path| path.split(':')).map(PathBuf::from).collect();
        folders.extend(program.parent().map(Path::to_owned));
        Some(Self { process, by_init: field("PPid:").is_some_and(|parent| parent.trim() == "1"), folders })
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
    fn process(host: &Fixture, number: u32, status: &str, processes: &str, program: &str) {
        let at = |name: &str| format!("/proc/{number}/{name}");
        host.add(&at("comm"), "containerd\n");
        host.add(&at("status"), status);
        host.add(&at("environ"), &format!("A=1\0PATH=/p{number}:relative:/p{number}\0B=2\0"));
        host.add(&at("ns/pid"), &format!("-> pid:[{processes}]"));
        host.add(&at("exe"), &format!("-> {program}"));
    }

    fn host() -> Fixture {
        Fixture::new(&[("/proc/self/ns/pid", "-> pid:[1]")])
    }

    #[test]
    fn only_roots_and_our_own_count() {
        let check = |status: &str, processes: &str, program: &str, counts: bool| {
            let host = host();
            process(&host, 17, status, processes, program);
            let found = folders(host.path(), USER);
            let expected = if counts { "/p17:/usr/bin".to_owned() } else { SERVICE_PATH.join(":") };
            assert_eq!(joined(&found), expected, "{status} {processes} {program}");
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
    fn one_that_says_its_version_is_not_the_daemon() {
        let check = |arguments: &str, counts: bool| {
            let host = host();
            process(&host, 17, ROOT, "1", "/usr/bin/containerd");
            host.add("/proc/17/cmdline", arguments);
            let found = folders(host.path(), USER);
            assert_eq!(found[0] == Path::new("/p17"), counts, "{arguments:?}");
        };
        check("/usr/bin/containerd\0", true);
        check("containerd\0--config\0/etc/x.toml\0", true);
        check("/usr/bin/containerd\0--version\0", false);
    }

    #[test]
    fn the_services_own_comes_first() {
        let child = ROOT.replace("PPid:\t1", "PPid:\t900");
        let check = |processes: &[(u32, &str)], first: u32| {
            let host = host();
            for (number, status) in processes {
                process(&host, *number, status, "1", "/usr/bin/containerd");
            }
            assert_eq!(folders(host.path(), USER)[0], PathBuf::from(format!("/p{first}")));
        };
        check(&[(30, ROOT)], 30);
        check(&[(9, &child), (200, ROOT), (30, ROOT)], 30);
        check(&[(9, &child)], 9);
    }
}
