//! What the node needs to do its work, checked: containerd, nerdctl, kata-runtime, virtiofsd, vfio.
//!
//! The probes run side by side. Each result is handed on as soon as it is known; what has not answered at the round's
//! deadline is reported as such and its thread left behind, and until that thread ends its probe is not started again.
//! Nothing is ever installed, loaded or started here, only looked at: programs are asked for their version. They are
//! those in the agent's own PATH, in fixed folders or in the settings; what another process's PATH leads to is run only
//! where nobody but root could change it.

mod ask;
mod daemon;
mod hands;
mod kata;
mod versions;
mod vfio;

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc::{self, Receiver, Sender};
use std::thread::Builder;
use std::time::{Duration, Instant};

pub use daemon::Searched;
pub use hands::Foreign;
pub use kata::{Shim, shim, with_target};

use crate::core::inventory::Check;
use crate::process;
use ask::Asker;

/// How long one program may take to tell its version. An engine that is frozen answers nothing: without this a CLI
/// waits 10 s for it.
const ASK_DEADLINE: Duration = Duration::from_secs(6);
/// How long all probes of a round may take.
const ROUND_DEADLINE: Duration = Duration::from_secs(14);
/// No probe asks more than two programs one after the other.
const _: () = assert!(2 * (ASK_DEADLINE.as_millis() + ask::GRACE.as_millis()) < ROUND_DEADLINE.as_millis());

/// What the checks depend on.
#[derive(Debug, Clone)]
pub struct Inputs {
    /// Where /proc, /sys and /lib/modules are read.
    pub root: PathBuf,
    /// The container CLI: an absolute path, or a name that is looked up in [`Places::path`].
    pub cli: String,
    /// The whole environment that programs are asked in (the CLI's own: `PATH`, `HOME`, `DOCKER_HOST` and the like).
    pub env: Vec<(OsString, OsString)>,
    /// The runtime that containers are started with.
    pub runtime: String,
    /// Whether GPUs are handed over through VFIO.
    pub gpus_by_vfio: bool,
    /// Whether the host whose root is given has GPUs. Called on the probe's own thread.
    pub has_gpus: fn(&Path) -> bool,
    /// Where programs are looked for.
    pub places: Places,
}

/// The folders where programs are looked for, in order.
#[derive(Debug, Clone)]
pub struct Places {
    /// For all programs.
    pub path: Vec<PathBuf>,
    /// For Kata's own, after `path`.
    pub kata: Vec<PathBuf>,
    /// For virtiofsd, before `path`.
    pub virtiofsd: Vec<PathBuf>,
}

impl Places {
    /// The folders of `path` (a `PATH` variable), those that a service manager would have searched, and those that
    /// Kata's archives and the distributions use (kata-containers `docs/installation.md`, its
    /// `kata-deploy-binaries.sh`; Debian's and Fedora's packages).
    pub fn standard(path: &str) -> Self {
        let folders = |list: &[&str]| list.iter().map(PathBuf::from).collect::<Vec<_>>();
        let mut searched: Vec<PathBuf> = Vec::new();
        for folder in path.split(':').chain(SERVICE_PATH).filter(|folder| folder.starts_with('/')) {
            let folder = PathBuf::from(folder);
            if !searched.contains(&folder) {
                searched.push(folder);
            }
        }
        Self {
            path: searched,
            kata: folders(&["/opt/kata/bin", "/opt/kata/runtime-rs/bin"]),
            virtiofsd: folders(&["/opt/kata/libexec", "/usr/libexec", "/usr/lib", "/usr/lib/qemu"]),
        }
    }
}

/// systemd's `PATH` for services (systemd.exec(5)).
const SERVICE_PATH: [&str; 6] =
    ["/usr/local/sbin", "/usr/local/bin", "/usr/sbin", "/usr/bin", "/sbin", "/bin"];

/// Whether nothing that is required is missing or out of order.
pub fn ready<'a>(checks: impl IntoIterator<Item = &'a Check>) -> bool {
    checks.into_iter().all(|check| check.ok || !check.required)
}

/// One dependency: what stays the same whatever is found.
struct Probe {
    name: &'static str,
    purpose: &'static str,
    run: fn(&Asker<'_>) -> Check,
}

/// In the order in which people know them.
const PROBES: [Probe; 5] = [
    Probe { name: "containerd", purpose: "Container runtime", run: containerd },
    Probe { name: "nerdctl", purpose: "Container CLI", run: cli },
    Probe { name: "kata-runtime", purpose: "MicroVM runtime", run: kata::runtime },
    Probe { name: "virtiofsd", purpose: "MicroVM file sharing", run: kata::virtiofsd },
    Probe { name: "vfio", purpose: "GPU hand-over", run: vfio::check },
];

/// The names of the checks, in the order in which they are shown.
pub fn names() -> impl Iterator<Item = &'static str> {
    PROBES.iter().map(|probe| probe.name)
}

/// A check of which nothing is known yet. What is asked about and not known to be unneeded is required.
fn blank(name: &str, inputs: &Inputs) -> Check {
    let probe = PROBES.iter().find(|probe| probe.name == name).expect("checks are named as in the table");
    let required = match probe.name {
        "kata-runtime" | "virtiofsd" => kata::wanted(&inputs.runtime),
        "vfio" => inputs.gpus_by_vfio,
        _ => true,
    };
    Check {
        name: probe.name,
        purpose: probe.purpose,
        required,
        installed: false,
        ok: false,
        version: None,
        modules: None,
        detail: String::new(),
    }
}

/// Checks in rounds, and remembers which probes hang.
#[derive(Debug)]
pub struct Checker {
    inputs: Arc<Inputs>,
    ask: Duration,
    round: Duration,
    /// The probes of this round and of earlier ones answer here, each with its index.
    answers: Sender<(usize, Check)>,
    answered: Receiver<(usize, Check)>,
    /// The probes that have not answered yet.
    asked: [bool; PROBES.len()],
}

impl Checker {
    /// One that has not checked anything yet.
    pub fn new(inputs: Arc<Inputs>) -> Self {
        let (ask, round) = (ASK_DEADLINE, ROUND_DEADLINE);
        let (answers, answered) = mpsc::channel();
        Self { inputs, ask, round, answers, answered, asked: Default::default() }
    }

    /// Checks everything once: each check is emitted once, as soon as it is known. Returns at the latest after 14 s.
    pub fn round(&mut self, emit: &mut dyn FnMut(Check)) {
        // What answered after its round was over is old, but it hangs no more.
        while let Ok((index, _)) = self.answered.try_recv() {
            self.asked[index] = false;
        }
        let mut waiting: Vec<usize> = Vec::new();
        for (index, probe) in PROBES.iter().enumerate() {
            if self.asked[index] {
                emit(self.unanswered(probe, "still has not answered since an earlier check"));
                continue;
            }
            let (inputs, ask, sender) = (Arc::clone(&self.inputs), self.ask, self.answers.clone());
            let thread = Builder::new().name(format!("check-{}", probe.name)).spawn(move || {
                let check = (probe.run)(&Asker { inputs: &inputs, deadline: ask });
                // Nobody listens any more when the checker is gone.
                let _ = sender.send((index, check));
            });
            match thread {
                Ok(_) => {
                    self.asked[index] = true;
                    waiting.push(index);
                }
                Err(error) => {
                    let why = format!("could not be checked: no thread can be started ({error})");
                    emit(self.unanswered(probe, &why));
                }
            }
        }
        let until = Instant::now() + self.round;
        while !waiting.is_empty() {
            let left = until.saturating_duration_since(Instant::now());
            let Ok((index, check)) = self.answered.recv_timeout(left) else { break };
            self.asked[index] = false;
            if waiting.contains(&index) {
                waiting.retain(|other| *other != index);
                emit(check);
            }
        }
        for index in waiting {
            let why = format!("has not answered within {} s", self.round.as_secs());
            emit(self.unanswered(&PROBES[index], &why));
        }
    }

    fn unanswered(&self, probe: &Probe, why: &str) -> Check {
        let detail = format!("{why}; look for processes in state D and at the kernel's log");
        Check { detail, ..blank(probe.name, &self.inputs) }
    }
}

/// containerd is well when it answers, through the CLI that deploys go through, and can start what they ask for.
fn containerd(asker: &Asker<'_>) -> Check {
    let inputs = asker.inputs;
    let program = asker.find("containerd", &inputs.places.path);
    let own_version =
        || asker.ask(program.as_deref()?, &["--version"]).ok().and_then(|t| versions::first(&t));
    let mut check = Check { installed: program.is_some(), ..blank("containerd", inputs) };
    let Some(cli) = asker.find(&inputs.cli, &inputs.places.path) else {
        check.version = own_version();
        check.detail = if check.installed {
            format!("cannot be asked without {}", file_name(&inputs.cli))
        } else {
            "not found: install containerd and start it".to_owned()
        };
        return check;
    };
    // Not `json`: Docker's CLI of 20.10 takes that word for a template, and prints it.
    match asker.ask(&cli, &["version", "--format", "{{json .}}"]).map(|text| versions::server(&text)) {
        Ok(Some(server)) => {
            check.installed = true;
            check.version = server.containerd.or_else(own_version);
            check.detail = "answers".to_owned();
            check.ok = true;
        }
        Ok(None) => {
            check.version = own_version();
            check.detail = format!("does not answer {}: {}", inputs.cli, start_it(&inputs.cli));
        }
        Err(words) if check.installed => {
            check.version = own_version();
            check.detail = format!("does not answer: {words}; {}", start_it(&inputs.cli));
        }
        Err(words) => {
            check.detail =
                format!("not found, and does not answer: {words}; install it, and {}", start_it(&inputs.cli))
        }
    }
    if check.ok && !kata::wanted(&inputs.runtime) && is_nerdctl(&inputs.cli) {
        let (shim, note) = kata::look_up(inputs);
        if let Some(obstacle) = shim.obstacle() {
            check.ok = false;
            check.detail = obstacle;
        } else if let Some(note) = note {
            check.detail += &format!("; its shim is found {note}");
        }
    }
    check
}

fn cli(asker: &Asker<'_>) -> Check {
    let inputs = asker.inputs;
    let blank = blank("nerdctl", inputs);
    let Some(path) = asker.find(&inputs.cli, &inputs.places.path) else {
        let detail = not_found(asker);
        return Check { detail, ..blank };
    };
    match asker.ask(&path, &["--version"]) {
        Ok(text) => {
            let (purpose, stands_for) = match is_nerdctl(&inputs.cli) {
                true => (blank.purpose, ""),
                false if text.starts_with("Docker ") => ("Container CLI (docker for nerdctl)", IN_ITS_PLACE),
                false => ("Container CLI (another for nerdctl)", IN_ITS_PLACE),
            };
            let detail = format!("{}{stands_for}", path.display());
            Check { purpose, installed: true, ok: true, version: versions::first(&text), detail, ..blank }
        }
        Err(words) => {
            let detail = format!("{} does not work: {words}; install it anew", path.display());
            Check { installed: true, detail, ..blank }
        }
    }
}

const IN_ITS_PLACE: &str = ", which stands for nerdctl";

/// That the CLI is missing. Where a name was looked up in vain, the agent keeps to the place where it is usually put.
fn not_found(asker: &Asker<'_>) -> String {
    let (cli, path) = (&asker.inputs.cli, &asker.inputs.places.path);
    let name = file_name(cli);
    if cli.contains('/')
        && !Path::new(cli).parent().is_some_and(|folder| path.iter().any(|own| own == folder))
    {
        return format!("{cli} not found: install it, or set container_cli");
    }
    match asker.find(name, path) {
        Some(other) => {
            let other = other.display();
            format!(
                "{cli} not found, but {other}: set container_cli to that, or restart the agent if it is new"
            )
        }
        None => format!(
            "{name} is not on the PATH ({}): install it (the archive nerdctl-full has containerd and CNI plugins too), or set container_cli",
            daemon::listed(path)
        ),
    }
}

fn start_it(cli: &str) -> &'static str {
    if is_nerdctl(cli) {
        "start it (systemctl start containerd)"
    } else {
        "start the engine that the CLI talks to"
    }
}

fn is_nerdctl(cli: &str) -> bool {
    file_name(cli).contains("nerdctl")
}

fn file_name(path: &str) -> &str {
    path.rsplit('/').next().unwrap_or(path)
}

impl Asker<'_> {
    /// An executable file of that name in `folders`, or the file itself where `name` is a path.
    fn find(&self, name: &str, folders: &[PathBuf]) -> Option<PathBuf> {
        process::find(name, &folders.iter().map(PathBuf::as_path).collect::<Vec<_>>())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::files::fixture::Fixture;
    use std::sync::atomic::{AtomicU32, Ordering};
    use std::thread;

    /// What the checks of a fixture depend on: every program is looked for in it alone.
    pub fn inputs(root: &Path) -> Inputs {
        let folders = |list: &[&str]| list.iter().map(|folder| root.join(folder)).collect::<Vec<_>>();
        Inputs {
            root: root.to_owned(),
            cli: "nerdctl".into(),
            env: vec![("PATH".into(), "/usr/bin:/bin".into())],
            runtime: "io.containerd.kata.v2".into(),
            gpus_by_vfio: true,
            has_gpus: |_| true,
            places: Places {
                path: folders(&["usr/local/bin", "usr/bin"]),
                kata: folders(&["opt/kata/bin", "opt/kata/runtime-rs/bin"]),
                virtiofsd: folders(&["opt/kata/libexec", "usr/libexec", "usr/lib/qemu"]),
            },
        }
    }

    const ANSWERS: &str = "#!/bin/sh\n[ \"$1\" = --version ] && exec echo 'nerdctl version 2.2.2'\n[ \"$*\" = 'version --format {{json .}}' ] && exec echo '{\"Server\":{\"Components\":[{\"Name\":\"containerd\",\"Version\":\"1.7.2\"}]}}'\nexit 9\n";
    const NO_SERVER: &str = "#!/bin/sh\n[ \"$1\" = --version ] && exec echo 'nerdctl version 2.2.2'\necho 'time=\"x\" level=fatal msg=\"no such socket\"' >&2\nexit 1\n";
    const HANGS: &str =
        "#!/bin/sh\n[ \"$1\" = --version ] && exec echo 'nerdctl version 2.2.2'\nexec sleep 600\n";
    const DAEMON: &str = "#!/bin/sh\necho containerd github.com/containerd/containerd v1.7.2 abc\n";
    const CLI: &str = "/usr/local/bin/nerdctl";
    const CONTAINERD: &str = "/usr/bin/containerd";

    #[test]
    fn containerd_must_answer() {
        let check =
            |files: &[(&str, &str)], runtime: &str, expected: (bool, bool, Option<&str>), detail: &str| {
                let host = Fixture::new(files);
                let mut inputs = inputs(host.path());
                inputs.runtime = runtime.to_owned();
                let check = containerd(&Asker { inputs: &inputs, deadline: Duration::from_secs(2) });
                assert_eq!((check.installed, check.ok, check.version.as_deref()), expected, "{check:?}");
                assert!(check.required && check.detail.contains(detail), "{check:?}");
            };
        let kata = "io.containerd.kata.v2";
        check(&[(CLI, ANSWERS)], kata, (true, true, Some("1.7.2")), "answers");
        check(
            &[(CLI, NO_SERVER), (CONTAINERD, DAEMON)],
            kata,
            (true, false, Some("1.7.2")),
            "no such socket",
        );
        check(&[(CLI, NO_SERVER)], kata, (false, false, None), "not found");
        check(
            &[(CLI, HANGS), (CONTAINERD, DAEMON)],
            kata,
            (true, false, Some("1.7.2")),
            "no answer within 2 s",
        );
        check(&[(CONTAINERD, DAEMON)], kata, (true, false, Some("1.7.2")), "without nerdctl");
        check(&[], kata, (false, false, None), "install containerd");
        // It answers, but has not got the shim of the runtime that deploys ask for.
        let lost = "io.containerd.no-such.v2";
        check(&[(CLI, ANSWERS)], lost, (true, false, Some("1.7.2")), "containerd-shim-no-such-v2 not found");
    }

    #[test]
    fn another_cli_stands_for_nerdctl() {
        let host = Fixture::new(&[
            ("/usr/bin/docker", "#!/bin/sh\necho 'Docker version 28.2.2, build e6534b4'\n"),
            ("/usr/bin/broken", "#!/bin/sh\nexit 3\n"),
        ]);
        let check = |name: &str, expected: (bool, bool, Option<&str>), detail: &str| {
            let mut inputs = inputs(host.path());
            inputs.cli = name.to_owned();
            let check = cli(&Asker { inputs: &inputs, deadline: Duration::from_secs(10) });
            assert_eq!(check.name, "nerdctl");
            assert_eq!((check.installed, check.ok, check.version.as_deref()), expected, "{check:?}");
            assert!(check.detail.contains(detail), "{check:?}");
        };
        check("docker", (true, true, Some("28.2.2")), "stands for nerdctl");
        check(
            host.path().join("usr/bin/docker").to_str().unwrap(),
            (true, true, Some("28.2.2")),
            "stands for",
        );
        check("broken", (true, false, None), "exit status 3");
        check("nerdctl", (false, false, None), "nerdctl is not on the PATH (");
        check("/no/such/nerdctl", (false, false, None), "/no/such/nerdctl not found");
        // The agent's guess where none was found, and one that came later to another folder.
        let guess = |name: &str| host.path().join("usr/local/bin").join(name).to_str().unwrap().to_owned();
        check(&guess("nerdctl"), (false, false, None), "nerdctl is not on the PATH (");
        check(&guess("docker"), (false, false, None), "usr/bin/docker: set container_cli");
    }

    #[test]
    fn the_row_says_what_stands_for_nerdctl() {
        let check = |answer: &str, name: &str, purpose: &str| {
            let host =
                Fixture::new(&[(&format!("/usr/bin/{name}"), &format!("#!/bin/sh\necho '{answer}'\n"))]);
            let mut inputs = inputs(host.path());
            inputs.cli = name.to_owned();
            let check = cli(&Asker { inputs: &inputs, deadline: Duration::from_secs(10) });
            assert_eq!(check.purpose, purpose, "{check:?}");
        };
        check("nerdctl version 2.2.2", "nerdctl", "Container CLI");
        check("Docker version 28.2.2, build e6534b4", "docker", "Container CLI (docker for nerdctl)");
        check("podman version 5.0.0", "podman", "Container CLI (another for nerdctl)");
    }

    #[test]
    fn a_probe_that_hangs_holds_up_nothing_and_is_not_started_twice() {
        static CALLS: AtomicU32 = AtomicU32::new(0);
        fn hang(_: &Path) -> bool {
            CALLS.fetch_add(1, Ordering::Relaxed);
            loop {
                thread::park();
            }
        }
        let host = Fixture::new(&[(CLI, ANSWERS)]);
        let mut inputs = inputs(host.path());
        inputs.has_gpus = hang;
        let mut checker = Checker { round: Duration::from_secs(3), ..Checker::new(Arc::new(inputs)) };
        for why in ["not answered within 3 s", "since an earlier check"] {
            let mut checks = Vec::new();
            checker.round(&mut |check| checks.push(check));
            let mut found: Vec<&str> = checks.iter().map(|check| check.name).collect();
            let vfio = checks.iter().find(|check| check.name == "vfio").unwrap();
            assert!(vfio.required && !vfio.ok && vfio.detail.contains(why), "{vfio:?}");
            assert!(checks.iter().any(|check| check.name == "containerd" && check.ok), "{checks:?}");
            assert!(!ready(&checks));
            found.sort_unstable();
            assert_eq!(found, ["containerd", "kata-runtime", "nerdctl", "vfio", "virtiofsd"]);
        }
        assert_eq!(CALLS.load(Ordering::Relaxed), 1);
    }

    #[test]
    fn what_has_answered_hangs_no_more() {
        let host = Fixture::new(&[(CLI, ANSWERS)]);
        let mut inputs = inputs(host.path());
        inputs.has_gpus = |_| false;
        let mut checker = Checker::new(Arc::new(inputs));
        for _ in 0..50 {
            checker.round(&mut |check| assert!(!check.detail.contains("earlier check"), "{check:?}"));
        }
    }

    #[test]
    fn what_is_not_required_does_not_count() {
        let host = Fixture::new(&[(CLI, ANSWERS)]);
        let mut inputs = inputs(host.path());
        inputs.runtime = "runc".into();
        inputs.has_gpus = |_| false;
        let mut checks = Vec::new();
        Checker::new(Arc::new(inputs)).round(&mut |check| checks.push(check));
        assert!(ready(&checks), "{checks:?}");
        assert!(checks.iter().any(|check| !check.ok));
    }

    #[test]
    fn folders_are_searched_once_each() {
        let places = Places::standard("/opt/x:relative:/usr/bin:/opt/x:");
        let expected =
            ["/opt/x", "/usr/bin", "/usr/local/sbin", "/usr/local/bin", "/usr/sbin", "/sbin", "/bin"];
        assert_eq!(places.path, expected.map(PathBuf::from));
    }
}
