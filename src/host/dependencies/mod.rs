//! What the node needs to do its work, checked: containerd, nerdctl, CNI plugins, Kata, virtiofsd, KVM, VFIO.
//!
//! The probes run side by side. Each result is handed on as soon as it is known; a probe that has not answered at the
//! round's deadline is reported as such and its thread left behind, and until that thread ends the probe is not started
//! again. Nothing is ever installed, loaded or started here, only looked at. Programs are asked for their version if they
//! lie in the agent's own PATH or in fixed folders, or are named by the settings or by Kata's configuration; a program to
//! which only another process's PATH leads is never run.

mod kata;
mod version_query;
pub mod versions;
mod vfio;

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc::{self, Receiver, Sender};
use std::thread::Builder;
use std::time::{Duration, Instant};

pub use kata::config as kata_config;

use crate::core::inventory::Check;
use crate::host::containerd_path::{self, SERVICE_PATH};
use crate::host::{cni, shim};
use version_query::ProbeCx;

/// How long one program may take to tell its version. An engine that is frozen answers nothing: without this a CLI
/// waits 10 s for it.
const ASK_DEADLINE: Duration = Duration::from_secs(6);
/// How long all probes of a round may take.
const ROUND_DEADLINE: Duration = Duration::from_secs(14);
/// No probe asks more than two programs one after the other.
const _: () =
    assert!(2 * (ASK_DEADLINE.as_millis() + version_query::GRACE.as_millis()) < ROUND_DEADLINE.as_millis());

/// What the checks depend on.
#[derive(Debug, Clone)]
pub struct Inputs {
    /// Where the host's files are read. Programs are run from where they are, whatever this is.
    pub root: PathBuf,
    /// The container CLI: an absolute path, or a name that is looked up in [`SearchDirs::path`].
    pub cli: String,
    /// Whether the CLI is nerdctl.
    pub nerdctl: bool,
    /// The whole environment that programs are asked in (the CLI's own: `PATH`, `HOME`, `DOCKER_HOST` and the like).
    pub env: Vec<(OsString, OsString)>,
    /// The runtime that containers are started with.
    pub runtime: String,
    /// The network that containers are connected to; `None`: the CLI's default.
    pub network: Option<String>,
    /// The CLI's namespace; `None`: its default.
    pub namespace: Option<String>,
    /// The folder of the CNI plugins; `None`: the CLI's default.
    pub cni_path: Option<PathBuf>,
    /// Whether GPUs are handed over through VFIO.
    pub gpus_by_vfio: bool,
    /// Whether the host whose root is given has GPUs. Called on the probe's own thread.
    pub has_gpus: fn(&Path) -> bool,
    /// Where programs are looked for.
    pub dirs: SearchDirs,
}

impl Inputs {
    /// The configured runtime's shim, looked up anew.
    pub fn shim(&self) -> shim::Shim {
        shim::Shim::look_up(&self.root, &self.runtime, self.nerdctl)
    }
}

/// The folders where programs are looked for, in order.
#[derive(Debug, Clone)]
pub struct SearchDirs {
    /// For all programs.
    pub path: Vec<PathBuf>,
    /// For Kata's own, after `path`.
    pub kata: Vec<PathBuf>,
    /// For virtiofsd, before `path`.
    pub virtiofsd: Vec<PathBuf>,
}

impl SearchDirs {
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

/// Whether nothing that is required is missing or out of order.
pub fn ready<'a>(checks: impl IntoIterator<Item = &'a Check>) -> bool {
    checks.into_iter().all(|check| check.ok || !check.required)
}

/// One dependency: what stays the same whatever is found.
struct Probe {
    name: &'static str,
    purpose: &'static str,
    run: fn(&ProbeCx<'_>) -> Check,
}

/// In the order in which people know them.
const PROBES: [Probe; 7] = [
    Probe { name: "containerd", purpose: "Container runtime", run: containerd },
    Probe { name: "nerdctl", purpose: "Container CLI", run: cli },
    Probe { name: "cni", purpose: "Container network", run: network },
    Probe { name: "kata-runtime", purpose: "MicroVM runtime", run: kata::runtime },
    Probe { name: "virtiofsd", purpose: "MicroVM file sharing", run: kata::virtiofsd },
    Probe { name: "kvm", purpose: "Hardware virtualization", run: kata::kvm },
    Probe { name: "vfio", purpose: "GPU hand-over", run: vfio::check },
];

/// The names of the checks, in the order in which they are shown.
pub fn names() -> impl Iterator<Item = &'static str> {
    PROBES.iter().map(|probe| probe.name)
}

/// A check of which nothing is known yet. It is required unless it is known not to be needed.
fn unknown(name: &str, inputs: &Inputs) -> Check {
    let probe = PROBES.iter().find(|probe| probe.name == name).expect("checks are named as in the table");
    let required = match probe.name {
        "kata-runtime" | "virtiofsd" | "kvm" => kata::wanted(inputs),
        "cni" => inputs.nerdctl,
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
        microvm: None,
        detail: String::new(),
    }
}

/// What came of one probe.
struct Answer {
    check: Check,
    /// A program did not answer in time.
    missed: bool,
}

/// Checks in rounds, and remembers which probes hang and what they last found well.
#[derive(Debug)]
pub struct Checker {
    inputs: Arc<Inputs>,
    ask: Duration,
    round: Duration,
    /// The probes of this round and of earlier ones answer here, each with its index.
    answers: Sender<(usize, Answer)>,
    answered: Receiver<(usize, Answer)>,
    /// The probes that have not answered yet.
    asked: [bool; PROBES.len()],
    /// What each probe found well in the round before. It stands for one answer that is missing: a host that is busy for
    /// a moment is not a host that lost its programs.
    well: [Option<Check>; PROBES.len()],
}

impl Checker {
    /// One that has not checked anything yet.
    pub fn new(inputs: Arc<Inputs>) -> Self {
        let (answers, answered) = mpsc::channel();
        Self {
            inputs,
            ask: ASK_DEADLINE,
            round: ROUND_DEADLINE,
            answers,
            answered,
            asked: Default::default(),
            well: Default::default(),
        }
    }

    /// The same with other inputs from now on: programs come and go.
    pub fn round_with(&mut self, inputs: Arc<Inputs>, emit: &mut dyn FnMut(Check)) {
        self.inputs = inputs;
        self.round(emit);
    }

    /// Checks everything once: each check is emitted once, as soon as it is known. Returns at the latest after 14 s.
    pub fn round(&mut self, emit: &mut dyn FnMut(Check)) {
        // An answer that came after its round was over is out of date, but its probe no longer hangs.
        while let Ok((index, _)) = self.answered.try_recv() {
            self.asked[index] = false;
        }
        let mut waiting: Vec<usize> = Vec::new();
        for (index, probe) in PROBES.iter().enumerate() {
            if self.asked[index] {
                let answer = self.unanswered(probe, "still has not answered since an earlier check");
                emit(self.settle(index, answer));
                continue;
            }
            let (inputs, ask, sender) = (Arc::clone(&self.inputs), self.ask, self.answers.clone());
            let thread = Builder::new().name(format!("check-{}", probe.name)).spawn(move || {
                let cx = ProbeCx::new(&inputs, ask);
                let check = (probe.run)(&cx);
                // Nobody listens any more when the checker is gone.
                let _ = sender.send((index, Answer { check, missed: cx.missed.get() }));
            });
            match thread {
                Ok(_) => {
                    self.asked[index] = true;
                    waiting.push(index);
                }
                Err(error) => {
                    let why = format!("could not be checked: no thread can be started ({error})");
                    let answer = self.unanswered(probe, &why);
                    emit(self.settle(index, answer));
                }
            }
        }
        let until = Instant::now() + self.round;
        while !waiting.is_empty() {
            let left = until.saturating_duration_since(Instant::now());
            let Ok((index, answer)) = self.answered.recv_timeout(left) else { break };
            self.asked[index] = false;
            if waiting.contains(&index) {
                waiting.retain(|other| *other != index);
                emit(self.settle(index, answer));
            }
        }
        for index in waiting {
            let why = format!("has not answered within {} s", self.round.as_secs());
            let answer = self.unanswered(&PROBES[index], &why);
            emit(self.settle(index, answer));
        }
    }

    /// What is reported: the answer, or, where one is missing for the first time, what was well in the round before.
    fn settle(&mut self, index: usize, answer: Answer) -> Check {
        let Answer { check, missed } = answer;
        let before = self.well[index].take();
        if check.ok {
            self.well[index] = Some(check.clone());
            return check;
        }
        match before {
            Some(before) if missed => {
                let detail = format!("{} (this time: {})", before.detail, check.detail);
                Check { detail, ..before }
            }
            Some(_) | None => check,
        }
    }

    fn unanswered(&self, probe: &Probe, why: &str) -> Answer {
        let detail = format!("{why}; look for processes in state D and at the kernel's log");
        Answer { check: Check { detail, ..unknown(probe.name, &self.inputs) }, missed: true }
    }
}

/// What nerdctl needs to connect containers to their network. Docker brings its own.
fn network(cx: &ProbeCx<'_>) -> Check {
    let inputs = cx.inputs;
    let check = unknown("cni", inputs);
    if !inputs.nerdctl {
        let detail = "not needed: the engine connects containers by itself".to_owned();
        return Check { detail, ..check };
    }
    match cni::look(
        &inputs.root,
        inputs.network.as_deref(),
        inputs.namespace.as_deref(),
        inputs.cni_path.as_deref(),
    ) {
        None => {
            let network = inputs.network.as_deref().unwrap_or_default();
            let detail = format!("not needed by the network {network}");
            Check { required: false, ok: true, detail, ..check }
        }
        Some(cni::Plugins { folder, obstacle: None }) => {
            Check { installed: true, ok: true, detail: folder.display().to_string(), ..check }
        }
        Some(cni::Plugins { obstacle: Some(obstacle), .. }) => Check { detail: obstacle, ..check },
    }
}

/// containerd is well when it answers, through the CLI that deploys go through, and can start what they ask for.
fn containerd(cx: &ProbeCx<'_>) -> Check {
    let inputs = cx.inputs;
    let program = cx.find("containerd", &inputs.dirs.path);
    let own_version = || cx.ask(program.as_deref()?, &["--version"]).ok().and_then(|t| versions::first(&t));
    let mut check = Check { installed: program.is_some(), ..unknown("containerd", inputs) };
    let Some(cli) = cx.find(&inputs.cli, &inputs.dirs.path) else {
        check.version = own_version();
        check.detail = if check.installed {
            format!("cannot be asked without {}", file_name(&inputs.cli))
        } else {
            "not found: install containerd and start it".to_owned()
        };
        return check;
    };
    // Not `json`: Docker's CLI of 20.10 takes that word for a template, and prints it.
    match cx.ask(&cli, &["version", "--format", "{{json .}}"]).map(|text| versions::server(&text)) {
        Ok(Some(server)) => {
            check.installed = true;
            check.version = server.containerd.or_else(own_version);
            check.detail = "answers".to_owned();
            check.ok = true;
        }
        Ok(None) => {
            check.version = own_version();
            check.detail = format!("does not answer {}: {}", inputs.cli, start_it(inputs.nerdctl));
        }
        Err(why) => {
            check.version = own_version();
            let advice = cx.advice(start_it(inputs.nerdctl));
            check.detail = if check.installed {
                format!("does not answer: {why}; {advice}")
            } else {
                format!("not found, and does not answer: {why}; install it, and {advice}")
            };
        }
    }
    if check.ok
        && inputs.nerdctl
        && !kata::wanted(inputs)
        && let Some(obstacle) = inputs.shim().obstacle()
    {
        check.ok = false;
        check.detail = obstacle;
    }
    check
}

fn cli(cx: &ProbeCx<'_>) -> Check {
    let inputs = cx.inputs;
    let check = unknown("nerdctl", inputs);
    let Some(path) = cx.find(&inputs.cli, &inputs.dirs.path) else {
        let detail = not_found(cx);
        return Check { detail, ..check };
    };
    match cx.ask(&path, &["--version"]) {
        Ok(text) => {
            let (purpose, stands_for) = match inputs.nerdctl {
                true => (check.purpose, ""),
                false if text.starts_with("Docker ") => ("Container CLI (docker for nerdctl)", IN_ITS_PLACE),
                false => ("Container CLI (another for nerdctl)", IN_ITS_PLACE),
            };
            let detail = format!("{}{stands_for}", path.display());
            Check { purpose, installed: true, ok: true, version: versions::first(&text), detail, ..check }
        }
        Err(why) => {
            let advice = cx.advice("install it again");
            let detail = format!("{} does not work: {why}; {advice}", path.display());
            Check { installed: true, detail, ..check }
        }
    }
}

const IN_ITS_PLACE: &str = ", which stands for nerdctl";

/// That the CLI is missing. Where a name was looked up in vain, the agent keeps to the place where it is usually put.
fn not_found(cx: &ProbeCx<'_>) -> String {
    let (cli, path) = (&cx.inputs.cli, &cx.inputs.dirs.path);
    let name = file_name(cli);
    if cli.contains('/')
        && !Path::new(cli).parent().is_some_and(|folder| path.iter().any(|own| own == folder))
    {
        return format!("{cli} not found: install it, or set container_cli");
    }
    match cx.find(name, path) {
        Some(other) => {
            let other = other.display();
            format!(
                "{cli} not found, but {other}: set container_cli to that, or restart the agent if it is new"
            )
        }
        None => format!(
            "{name} is not on the PATH ({}): install it (the archive nerdctl-full has containerd and CNI plugins too), or set container_cli",
            containerd_path::joined(path)
        ),
    }
}

fn start_it(nerdctl: bool) -> &'static str {
    if nerdctl { "start it (systemctl start containerd)" } else { "start the engine that the CLI talks to" }
}

fn file_name(path: &str) -> &str {
    path.rsplit('/').next().unwrap_or(path)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::files::fixture::Fixture;
    use crate::host::shim::{self, Language};
    use std::os::unix::net::UnixDatagram;
    use std::sync::atomic::{AtomicU32, Ordering};
    use std::thread;

    /// Where the archives of Kata have the configuration for QEMU.
    pub fn config_file(language: Language) -> String {
        let folder = "/opt/kata/share/defaults/kata-containers";
        match language {
            Language::Go => format!("{folder}/configuration-qemu.toml"),
            Language::Rust => format!("{folder}/runtime-rs/configuration-qemu-runtime-rs.toml"),
        }
    }

    /// A host on which a microVM starts, with Kata as its archive unpacks, and the socket of its syslog daemon.
    pub fn kata_host(language: Language, version: &str) -> (Fixture, UnixDatagram) {
        let shim = match language {
            Language::Go => "/opt/kata/bin/containerd-shim-kata-v2",
            Language::Rust => "/opt/kata/runtime-rs/bin/containerd-shim-kata-v2",
        };
        let file = config_file(language);
        let (folder, name) = file.rsplit_once('/').unwrap();
        let host = Fixture::new(&[
            ("/opt/kata/VERSION", &format!("{version}\n")),
            ("/opt/kata/bin/qemu-system-x86_64", "#!/bin/sh\n"),
            ("/opt/kata/libexec/virtiofsd", "#!/bin/sh\necho virtiofsd 1.14.0\n"),
            ("/opt/kata/share/kata-containers/vmlinux.container", "kernel"),
            ("/opt/kata/share/kata-containers/kata.img", "image"),
            (&format!("{folder}/configuration.toml"), &format!("-> {name}")),
            (
                &file,
                "[hypervisor.qemu]\npath = \"/opt/kata/bin/qemu-system-x86_64\"\n\
                 kernel = \"/opt/kata/share/kata-containers/vmlinux.container\"\n\
                 image = \"/opt/kata/share/kata-containers/kata.img\"\nshared_fs = \"virtio-fs\"\n\
                 virtio_fs_daemon = \"/opt/kata/libexec/virtiofsd\"\n[agent.kata]\n[runtime]\n\
                 hypervisor_name = \"qemu\"\nagent_name = \"kata\"\n",
            ),
            ("/usr/local/bin/containerd-shim-kata-v2", &format!("-> {shim}")),
            ("/proc/misc", "232 kvm\n241 vhost-vsock\n"),
            ("/dev/kvm", ""),
            ("/dev/vhost-vsock", ""),
        ]);
        host.program(
            shim,
            &match language {
                Language::Go => shim::fixture::kata_go(),
                Language::Rust => shim::fixture::kata_rust(),
            },
        );
        for plugin in ["bridge", "firewall", "host-local", "portmap", "tuning"] {
            host.program(&format!("/opt/cni/bin/{plugin}"), b"plugin");
        }
        let log = UnixDatagram::bind(host.path().join("dev/log")).unwrap();
        (host, log)
    }

    /// What the checks of a fixture depend on: every program is looked for in it alone.
    pub fn inputs(root: &Path) -> Inputs {
        let folders = |list: &[&str]| list.iter().map(|folder| root.join(folder)).collect::<Vec<_>>();
        Inputs {
            root: root.to_owned(),
            cli: "nerdctl".into(),
            nerdctl: true,
            env: vec![("PATH".into(), "/usr/bin:/bin".into())],
            runtime: "io.containerd.kata.v2".into(),
            network: None,
            namespace: None,
            cni_path: None,
            gpus_by_vfio: true,
            has_gpus: |_| true,
            dirs: SearchDirs {
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
                let check = containerd(&ProbeCx::new(&inputs, Duration::from_secs(2)));
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
            inputs.nerdctl = name.contains("nerdctl");
            let check = cli(&ProbeCx::new(&inputs, Duration::from_secs(10)));
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
            inputs.nerdctl = name.contains("nerdctl");
            let check = cli(&ProbeCx::new(&inputs, Duration::from_secs(10)));
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
            assert_eq!(found, ["cni", "containerd", "kata-runtime", "kvm", "nerdctl", "vfio", "virtiofsd"]);
        }
        assert_eq!(CALLS.load(Ordering::Relaxed), 1);
    }

    #[test]
    fn one_missed_answer_keeps_what_was_well_for_a_round() {
        let slow = "#!/bin/sh\n[ -e \"$0.slow\" ] && exec sleep 600\necho 'nerdctl version 2.2.2'\n";
        let (host, _log) = kata_host(Language::Go, "3.18.0");
        host.add(CLI, slow);
        let mut inputs = inputs(host.path());
        inputs.has_gpus = |_| false;
        let mut checker = Checker { ask: Duration::from_millis(1500), ..Checker::new(Arc::new(inputs)) };
        let mut nerdctl = || {
            let mut found = None;
            checker.round(&mut |check| found = (check.name == "nerdctl").then_some(check).or(found.take()));
            found.unwrap()
        };
        let well = nerdctl();
        assert!(well.ok && well.version.as_deref() == Some("2.2.2"), "{well:?}");
        host.add(&format!("{CLI}.slow"), "");
        let missed = nerdctl();
        assert_eq!((missed.ok, &missed.version), (true, &well.version), "{missed:?}");
        assert!(
            missed.detail.contains("(this time: ") && missed.detail.contains("no answer within 1.5 s"),
            "{missed:?}"
        );
        let again = nerdctl();
        assert!(
            !again.ok && again.detail.ends_with("the host is too busy or its disk too slow"),
            "{again:?}"
        );
        host.remove(&format!("{CLI}.slow"));
        assert_eq!(nerdctl(), well);
        // A program that is broken is not slow.
        host.add(CLI, "#!/bin/sh\nexit 3\n");
        let broken = nerdctl();
        assert!(!broken.ok && broken.detail.ends_with("exit status 3; install it again"), "{broken:?}");
    }

    #[test]
    fn a_host_with_everything_is_ready_and_without_plugins_is_not() {
        let (host, _log) = kata_host(Language::Go, "3.18.0");
        host.add(CLI, ANSWERS);
        let mut inputs = inputs(host.path());
        inputs.has_gpus = |_| false;
        let mut checker = Checker::new(Arc::new(inputs));
        let mut round = || {
            let mut checks = Vec::new();
            checker.round(&mut |check| checks.push(check));
            checks
        };
        let checks = round();
        assert!(ready(&checks), "{checks:?}");
        host.remove("/opt/cni/bin/portmap");
        let checks = round();
        let wrong: Vec<&Check> = checks.iter().filter(|check| check.required && !check.ok).collect();
        assert!(
            wrong.len() == 1 && wrong[0].detail.starts_with("portmap missing in /opt/cni/bin"),
            "{wrong:?}"
        );
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
        inputs.network = Some("none".into());
        inputs.has_gpus = |_| false;
        let mut checks = Vec::new();
        Checker::new(Arc::new(inputs)).round(&mut |check| checks.push(check));
        assert!(ready(&checks), "{checks:?}");
        assert!(checks.iter().any(|check| !check.ok));
    }

    #[test]
    fn folders_are_searched_once_each() {
        let dirs = SearchDirs::standard("/opt/x:relative:/usr/bin:/opt/x:");
        let expected =
            ["/opt/x", "/usr/bin", "/usr/local/sbin", "/usr/local/bin", "/usr/sbin", "/sbin", "/bin"];
        assert_eq!(dirs.path, expected.map(PathBuf::from));
    }
}
