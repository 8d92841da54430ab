//! Kata Containers: its runtime and virtiofsd, in the layouts of versions 3 and 4.
//!
//! What starts a microVM is the shim, which containerd looks up in its own PATH; `kata-runtime` only belongs to Kata 3
//! (and to the Go runtime of Kata 4, a separate archive). So the shim decides, and speaks for Kata where the other is
//! not to be had. Neither is asked with `check` or `-info`: the first loads modules, the second prints no text.

use std::path::{Path, PathBuf};

use super::ask::Asker;
use super::versions::{self, KataShim};
use super::{Inputs, SERVICE_PATH, blank};
use crate::core::facts::Check;
use crate::host::files;
use crate::process;

/// Most processes that are looked at to find containerd.
const PROCESSES_MAX: usize = 100_000;

/// Whether `runtime` names Kata.
pub(super) fn wanted(runtime: &str) -> bool {
    runtime.contains("kata")
}

/// Where the shim is that a runtime's name stands for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Shim {
    /// The runtime is not started through a shim of its own (`runc`, or a name that the engine's configuration
    /// explains).
    None,
    /// containerd will find it.
    Found(PathBuf),
    /// It is installed, but containerd does not look there.
    Elsewhere {
        /// Where it is.
        path: PathBuf,
        /// Where containerd looks.
        searched: Vec<PathBuf>,
    },
    /// It is nowhere.
    Missing {
        /// Its file name, or its whole path where the runtime is given as one.
        name: String,
        /// Where containerd looks.
        searched: Vec<PathBuf>,
    },
}

impl Shim {
    /// Why containers cannot be started with it, and what to do; `None` when nothing is known to prevent it.
    pub fn obstacle(&self) -> Option<String> {
        match self {
            Self::None | Self::Found(_) => None,
            Self::Elsewhere { path, searched } => Some(format!(
                "{} is not where containerd looks ({}): run `ln -s {} /usr/local/bin/`",
                path.display(),
                listed(searched),
                path.display()
            )),
            Self::Missing { name, searched } => {
                Some(format!("{name} not found where containerd looks ({})", listed(searched)))
            }
        }
    }
}

/// Looks the configured runtime's shim up as containerd will.
pub fn shim(inputs: &Inputs) -> Shim {
    let Some(name) = shim_name(&inputs.runtime) else { return Shim::None };
    let searched = containerd_folders(&inputs.root);
    if let Some(path) = find(&name, &searched) {
        return Shim::Found(path);
    }
    let elsewhere = [inputs.places.path.as_slice(), &inputs.places.kata].concat();
    match find(&name, &elsewhere) {
        Some(path) => Shim::Elsewhere { path, searched },
        None => Shim::Missing { name, searched },
    }
}

/// Kata's shim and, where it belongs to it, kata-runtime.
pub(super) fn runtime(asker: &Asker<'_>) -> Check {
    let inputs = asker.inputs;
    let places = &inputs.places;
    let program = asker.find("kata-runtime", &[places.path.as_slice(), &places.kata].concat());
    let answer = program.as_deref().map(|path| asker.ask(path, &["--version"]));
    let own_version = answer.as_ref().and_then(|answer| versions::first(answer.as_ref().ok()?));
    let mut check =
        Check { installed: program.is_some(), version: own_version, ..blank("kata-runtime", inputs) };
    if !check.required {
        check.ok = answer.as_ref().is_some_and(Result::is_ok);
        check.detail = match answer {
            Some(Err(words)) => format!("does not work: {words} (not needed by runtime {})", inputs.runtime),
            _ => format!("not needed by runtime {}", inputs.runtime),
        };
        return check;
    }
    let shim = shim(inputs);
    let path = match &shim {
        Shim::Found(path) => path,
        // A name that only the engine's configuration explains: kata-runtime is all that can be looked at.
        Shim::None => {
            check.ok = answer.as_ref().is_some_and(Result::is_ok);
            check.detail = match answer {
                Some(Ok(_)) => "answers".to_owned(),
                Some(Err(words)) => format!("does not work: {words}; install Kata Containers anew"),
                None => INSTALL.to_owned(),
            };
            return check;
        }
        Shim::Elsewhere { .. } | Shim::Missing { .. } => {
            let obstacle = shim.obstacle().unwrap_or_default();
            check.installed |= matches!(shim, Shim::Elsewhere { .. });
            check.detail = if check.installed { obstacle } else { format!("{obstacle}; {INSTALL}") };
            return check;
        }
    };
    match asker.ask(path, &["--version"]).map(|text| versions::kata_shim(&text)) {
        Ok(Some(kata)) => judge(check, &kata, path, answer),
        Ok(None) => {
            check.detail = format!("{} is not Kata's shim; {INSTALL}", with_target(path));
            check
        }
        Err(words) => {
            check.detail =
                format!("{} is not Kata's shim, or broken ({words}); {INSTALL}", with_target(path));
            check
        }
    }
}

const INSTALL: &str = "install Kata Containers (the kata-static archive unpacks to /opt/kata) and link its containerd-shim-kata-v2 into /usr/local/bin";

/// What a shim that is Kata's means, with what kata-runtime answered.
fn judge(check: Check, kata: &KataShim, path: &Path, answer: Option<Result<String, String>>) -> Check {
    let major: Option<u32> = kata.version.split('.').next().and_then(|major| major.parse().ok());
    let needs_program = !kata.rust && major.is_some_and(|major| major < 4);
    let language = if kata.rust { "Rust" } else { "Go" };
    let shim = format!("{} ({language}, {})", path.display(), kata.version);
    let (ok, detail) = match answer {
        Some(Err(words)) if needs_program => {
            (false, format!("kata-runtime does not work: {words}; install Kata anew"))
        }
        None if needs_program => {
            (false, format!("kata-runtime is missing beside {shim}: unpack the whole kata-static archive"))
        }
        _ => (true, shim),
    };
    let version = check.version.or_else(|| Some(kata.version.clone()));
    Check { installed: ok || check.installed, ok, version, detail, ..check }
}

/// The path and, where it is a link, what it leads to: one program can stand behind several names.
pub fn with_target(path: &Path) -> String {
    match path.canonicalize() {
        Ok(real) if real != path => format!("{} -> {}", path.display(), real.display()),
        _ => path.display().to_string(),
    }
}

/// virtiofsd, which shares a container's files with its microVM.
pub(super) fn virtiofsd(asker: &Asker<'_>) -> Check {
    let inputs = asker.inputs;
    let places = &inputs.places;
    let blank = blank("virtiofsd", inputs);
    let needless =
        if blank.required { String::new() } else { format!(" (not needed by runtime {})", inputs.runtime) };
    let Some(path) = asker.find("virtiofsd", &[places.virtiofsd.as_slice(), &places.path].concat()) else {
        let detail = if blank.required {
            "not found: it comes with Kata (/opt/kata/libexec/virtiofsd), or install the package virtiofsd"
                .to_owned()
        } else {
            format!("not found{needless}")
        };
        return Check { detail, ..blank };
    };
    match asker.ask(&path, &["--version"]) {
        Ok(text) => {
            let detail = format!("{}{needless}", path.display());
            Check { installed: true, ok: true, version: versions::first(&text), detail, ..blank }
        }
        Err(words) => {
            let detail = format!("{} does not work: {words}; install it anew{needless}", path.display());
            Check { installed: true, detail, ..blank }
        }
    }
}

/// The shim's file name, by containerd's rule (its `BinaryName`): `io.containerd.kata-qemu.v2` is
/// `containerd-shim-kata-qemu-v2`. An absolute path is the shim itself. Docker's configuration can give Kata's shim
/// any name, such as `kata`.
fn shim_name(runtime: &str) -> Option<String> {
    if runtime.starts_with('/') {
        return Some(runtime.to_owned());
    }
    let mut parts = runtime.rsplit('.');
    match (parts.next(), parts.next(), parts.next()) {
        (Some(version), Some(name), Some(_)) => Some(format!("containerd-shim-{name}-{version}")),
        _ if wanted(runtime) => Some("containerd-shim-kata-v2".to_owned()),
        _ => None,
    }
}

/// Where containerd looks for shims: in the PATH of the process (another's may differ from ours), then beside its own
/// program. Without a process that can be looked at: where it looks when systemd starts it.
fn containerd_folders(root: &Path) -> Vec<PathBuf> {
    let mut folders = Vec::new();
    let processes = files::names(root, "/proc");
    let processes =
        processes.iter().filter(|name| name.bytes().all(|b| b.is_ascii_digit())).take(PROCESSES_MAX);
    for process in processes {
        if files::value(root, &format!("/proc/{process}/comm")).as_deref() != Some("containerd") {
            continue;
        }
        let environment = files::text(root, &format!("/proc/{process}/environ")).unwrap_or_default();
        let path = environment.split('\0').find_map(|variable| variable.strip_prefix("PATH="));
        folders.extend(path.into_iter().flat_map(|path| path.split(':')).map(PathBuf::from));
        let program = std::fs::read_link(files::under(root, &format!("/proc/{process}/exe")));
        folders.extend(program.ok().and_then(|program| Some(program.parent()?.to_owned())));
    }
    folders.retain(|folder| folder.is_absolute());
    if folders.is_empty() {
        folders = SERVICE_PATH.iter().map(PathBuf::from).collect();
    }
    let mut seen = Vec::new();
    folders.retain(|folder| {
        let new = !seen.contains(folder);
        if new {
            seen.push(folder.clone());
        }
        new
    });
    folders
}

fn find(name: &str, folders: &[PathBuf]) -> Option<PathBuf> {
    process::find(name, &folders.iter().map(PathBuf::as_path).collect::<Vec<_>>())
}

fn listed(folders: &[PathBuf]) -> String {
    folders.iter().map(|folder| folder.to_string_lossy()).collect::<Vec<_>>().join(":")
}

#[cfg(test)]
mod tests {
    use super::super::tests::inputs;
    use super::*;
    use crate::host::files::fixture::Fixture;
    use std::time::Duration;

    const GO: &str = "#!/bin/sh\necho 'Kata Containers containerd shim (Golang): id: \"io.containerd.kata.v2\", version: 3.18.0, commit: abc'\n";
    const RUST: &str = "#!/bin/sh\necho 'Kata Containers containerd shim (Rust): id: io.containerd.kata.v2, version: 4.1.0, commit: abc'\n";
    const RUNC: &str = "#!/bin/sh\necho 'flag provided but not defined: -version' >&2\nexit 2\n";
    const PROGRAM: &str =
        "#!/bin/sh\nprintf 'kata-runtime  : 3.18.0\\n   commit   : abc\\n   OCI specs: 1.2.0\\n'\n";
    const BROKEN: &str = "#!/bin/sh\necho cannot load >&2\nexit 1\n";
    /// Where the fixture's containerd looks, where Kata is unpacked, and where nobody looks.
    const SHIM: &str = "/usr/local/bin/containerd-shim-kata-v2";
    const SHIM_3: &str = "/opt/kata/bin/containerd-shim-kata-v2";
    const SHIM_4: &str = "/opt/kata/runtime-rs/bin/containerd-shim-kata-v2";
    const PROGRAM_3: &str = "/opt/kata/bin/kata-runtime";

    /// A host whose containerd has its own PATH, which has only the fixture's /usr/local/bin.
    fn host(files: &[(&str, &str)]) -> Fixture {
        let host = Fixture::new(files);
        let path = format!("A=1\0PATH={}/usr/local/bin:relative\0B=2\0", host.path().display());
        host.add("/proc/17/comm", "containerd\n");
        host.add("/proc/17/environ", &path);
        host.add("/proc/18/comm", "containerd-shim\n");
        host.add("/proc/18/environ", "PATH=/opt/kata/bin\0");
        host
    }

    fn look(files: &[(&str, &str)], runtime_name: &str) -> (Check, Check) {
        let host = host(files);
        let mut inputs = inputs(host.path());
        inputs.runtime = runtime_name.to_owned();
        let asker = Asker { inputs: &inputs, deadline: Duration::from_secs(10) };
        (runtime(&asker), virtiofsd(&asker))
    }

    #[test]
    fn layouts_of_kata_3_and_4() {
        let check =
            |files: &[(&str, &str)], installed: bool, ok: bool, version: Option<&str>, detail: &str| {
                let (check, _) = look(files, "io.containerd.kata.v2");
                assert!(check.required);
                assert_eq!(
                    (check.installed, check.ok, check.version.as_deref()),
                    (installed, ok, version),
                    "{check:?}"
                );
                assert!(check.detail.contains(detail), "{check:?}");
            };
        // Kata 3 with its link, and Kata 4, which has no kata-runtime.
        check(&[(SHIM, GO), (PROGRAM_3, PROGRAM)], true, true, Some("3.18.0"), "(Go, 3.18.0)");
        check(&[(SHIM, RUST)], true, true, Some("4.1.0"), "(Rust, 4.1.0)");
        check(&[(SHIM, &GO.replace("3.18.0", "4.1.0"))], true, true, Some("4.1.0"), "(Go, 4.1.0)");
        // Unpacked, but containerd does not look there.
        check(&[(SHIM_3, GO), (PROGRAM_3, PROGRAM)], true, false, Some("3.18.0"), "ln -s");
        check(&[(SHIM_4, RUST)], true, false, None, "ln -s");
        // Half an installation.
        check(&[(SHIM, GO)], false, false, Some("3.18.0"), "kata-runtime is missing");
        check(&[(SHIM, GO), (PROGRAM_3, BROKEN)], true, false, Some("3.18.0"), "cannot load");
        check(&[(PROGRAM_3, PROGRAM)], true, false, Some("3.18.0"), "not found where containerd looks");
        // An old kata-runtime that is left over does not spoil Kata 4.
        check(&[(SHIM, RUST), (PROGRAM_3, BROKEN)], true, true, Some("4.1.0"), "(Rust, 4.1.0)");
        // Another runtime behind Kata's name.
        check(&[(SHIM, RUNC)], false, false, None, "not Kata's shim");
        check(
            &[(SHIM, "#!/bin/sh\necho 'containerd-shim-runc-v2:'\n")],
            false,
            false,
            None,
            "not Kata's shim",
        );
        check(&[], false, false, None, "install Kata Containers");
    }

    #[test]
    fn virtiofsd_of_both_kinds() {
        let check = |path: &str, script: &str, version: Option<&str>, ok: bool| {
            let (_, check) = look(&[(path, script)], "io.containerd.kata.v2");
            assert_eq!(
                (check.version.as_deref(), check.ok, check.required),
                (version, ok, true),
                "{check:?}"
            );
            assert_eq!(check.installed, !path.contains("nowhere"), "{check:?}");
        };
        check("/opt/kata/libexec/virtiofsd", "#!/bin/sh\necho virtiofsd 1.14.0\n", Some("1.14.0"), true);
        check("/usr/libexec/virtiofsd", "#!/bin/sh\necho virtiofsd 1.8.0\n", Some("1.8.0"), true);
        let old = "#!/bin/sh\necho 'virtiofsd version 7.2.17 (Debian 1:7.2+dfsg-7)' >&2\n";
        check("/usr/lib/qemu/virtiofsd", old, Some("7.2.17"), true);
        check("/usr/local/bin/virtiofsd", BROKEN, None, false);
        check("/nowhere/virtiofsd", "#!/bin/sh\n", None, false);
    }

    #[test]
    fn other_runtimes_do_not_need_kata() {
        for runtime in ["io.containerd.runc.v2", "runc", "/usr/bin/crun", "nvidia"] {
            let (kata, virtiofsd) = look(&[], runtime);
            assert!(!kata.required && !virtiofsd.required, "{runtime}");
            let (kata, _) = look(&[(PROGRAM_3, PROGRAM)], runtime);
            assert_eq!((kata.required, kata.ok, kata.version.as_deref()), (false, true, Some("3.18.0")));
        }
    }

    #[test]
    fn shims_are_named_by_containerds_rule() {
        let check =
            |runtime: &str, expected: Option<&str>| assert_eq!(shim_name(runtime).as_deref(), expected);
        check("io.containerd.kata.v2", Some("containerd-shim-kata-v2"));
        check("io.containerd.kata-qemu.v2", Some("containerd-shim-kata-qemu-v2"));
        check("io.containerd.runc.v2", Some("containerd-shim-runc-v2"));
        check("/opt/kata/bin/containerd-shim-kata-v2", Some("/opt/kata/bin/containerd-shim-kata-v2"));
        check("kata", Some("containerd-shim-kata-v2"));
        check("runc", None);
        check("nvidia", None);
        check("", None);
    }

    #[test]
    fn containerd_looks_in_its_own_path() {
        let host = host(&[]);
        host.add("/proc/17/exe", "-> /usr/sbin/containerd");
        let expected = [host.path().join("usr/local/bin"), PathBuf::from("/usr/sbin")];
        assert_eq!(containerd_folders(host.path()), expected);
        let nobody = Fixture::new(&[("/proc/1/comm", "init\n")]);
        assert_eq!(containerd_folders(nobody.path()), SERVICE_PATH.map(PathBuf::from));
    }
}
