//! Kata Containers: its runtime and virtiofsd, in the layouts of versions 3 and 4.
//!
//! What starts a microVM is the shim, which containerd looks up in its own PATH; `kata-runtime` only belongs to Kata 3
//! (and to the Go runtime of Kata 4, a separate archive). So the shim decides, and speaks for Kata where the other is
//! not to be had. Neither is asked with `check` or `-info`: the first loads modules, the second prints no text.

use std::path::{Path, PathBuf};

use super::ask::{self, Asker};
use super::daemon::{self, Note, Searched};
use super::hands::{self, Foreign, Own};
use super::versions::{self, KataShim};
use super::{Inputs, SERVICE_PATH, blank};
use crate::core::inventory::Check;
use crate::process;

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
    /// containerd will find it, and it can be run: nobody but root can change it (or, where the agent is not root, its
    /// own user), or it lies where the agent looks for its own programs.
    Found(PathBuf),
    /// containerd will find it, but others than root could change it. It must not be run.
    Unsafe {
        /// Where it is.
        path: PathBuf,
        /// What others could change.
        foreign: Foreign,
    },
    /// It is installed, but containerd does not look there.
    Elsewhere {
        /// Where it is.
        path: PathBuf,
        /// Where containerd looks.
        searched: Searched,
    },
    /// It is nowhere.
    Missing {
        /// Its file name, or its whole path where the runtime is given as one.
        name: String,
        /// Where containerd looks.
        searched: Searched,
    },
}

impl Shim {
    /// Why containers cannot be started with it, and what to do; `None` when nothing is known to prevent it.
    pub fn obstacle(&self) -> Option<String> {
        match self {
            Self::None | Self::Found(_) => None,
            Self::Unsafe { path, foreign } => {
                let at = foreign.at.display();
                let folder = path.parent().unwrap_or(path).display();
                Some(format!(
                    "{} can be changed by others than root ({foreign}): not run, though containerd would run it; give \
                     it to root alone (`chown root:root {at}` and `chmod go-w {at}`), or take {folder} out of \
                     containerd's PATH",
                    path.display(),
                ))
            }
            Self::Elsewhere { path, searched } => Some(format!(
                "{} is not where containerd looks ({searched}): run `ln -s {} /usr/local/bin/`",
                path.display(),
                path.display()
            )),
            Self::Missing { name, searched } => {
                Some(format!("{name} not found where containerd looks ({searched})"))
            }
        }
    }
}

/// Looks the configured runtime's shim up as containerd will.
pub fn shim(inputs: &Inputs) -> Shim {
    look_up(inputs).0
}

/// The shim, and whose PATH it was looked up in, where that is not plain.
pub(super) fn look_up(inputs: &Inputs) -> (Shim, Option<Note>) {
    let Some(name) = shim_name(&inputs.runtime) else { return (Shim::None, None) };
    let own = Own::now();
    let searched = daemon::searched(&inputs.root, own.user);
    let places = &inputs.places;
    let elsewhere = [places.path.as_slice(), &places.kata].concat();
    if let Some(path) = find(&name, &searched.folders) {
        // A whole path comes from the settings; what is in the agent's own folders it trusts as it does its CLI.
        let ours = |folder: &Path| {
            elsewhere.iter().any(|own| own == folder)
                || SERVICE_PATH.iter().any(|own| Path::new(own) == folder)
        };
        let trusted = name.starts_with('/') || path.parent().is_some_and(ours);
        let foreign = if trusted { None } else { hands::foreign(&path, own) };
        return match foreign {
            Some(foreign) => (Shim::Unsafe { path, foreign }, searched.note),
            None => (Shim::Found(path), searched.note),
        };
    }
    match find(&name, &elsewhere) {
        Some(path) => (Shim::Elsewhere { path, searched }, None),
        None => (Shim::Missing { name, searched }, None),
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
    let (shim, note) = look_up(inputs);
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
        Shim::Unsafe { .. } | Shim::Elsewhere { .. } | Shim::Missing { .. } => {
            let obstacle = shim.obstacle().unwrap_or_default();
            check.installed |= !matches!(shim, Shim::Missing { .. });
            check.detail = if check.installed { obstacle } else { format!("{obstacle}; {INSTALL}") };
            return check;
        }
    };
    match asker.ask(path, &["--version"]) {
        Ok(text) => match versions::kata_shim(&text) {
            Some(kata) => {
                let mut check = judge(check, &kata, path, answer);
                check.detail += &note.map(|note| format!(", found {note}")).unwrap_or_default();
                check
            }
            None => {
                let said = ask::quoted(&text);
                check.detail = format!("{} is not Kata's shim ({said}); {INSTALL}", with_target(path));
                check
            }
        },
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
    let folders = [places.virtiofsd.as_slice(), &places.path].concat();
    let mut found = folders.iter().filter_map(|folder| asker.find("virtiofsd", std::slice::from_ref(folder)));
    let Some(mut path) = found.next() else {
        let detail = if blank.required {
            format!("not found: {GET_VIRTIOFSD}")
        } else {
            format!("not found{needless}")
        };
        return Check { detail, ..blank };
    };
    let mut answer = asker.ask(&path, &["--version"]);
    // Where QEMU's stands before another, Kata's configuration may still name the other.
    if answer.as_ref().is_ok_and(|text| versions::is_qemus_virtiofsd(text))
        && let Some(other) = found.next()
        && let Ok(text) = asker.ask(&other, &["--version"])
    {
        (path, answer) = (other, Ok(text));
    }
    let shown = path.display();
    match answer {
        Ok(text) => {
            let qemus = versions::is_qemus_virtiofsd(&text);
            let detail = if qemus {
                format!("{shown} is QEMU's old one in C, which Kata cannot use: {GET_VIRTIOFSD}{needless}")
            } else {
                format!("{shown}{needless}")
            };
            Check { installed: true, ok: !qemus, version: versions::first(&text), detail, ..blank }
        }
        Err(words) => {
            let detail = format!("{shown} does not work: {words}; install it anew{needless}");
            Check { installed: true, detail, ..blank }
        }
    }
}

const GET_VIRTIOFSD: &str = "install the one in Rust, which comes with Kata (/opt/kata/libexec/virtiofsd) or as the package virtiofsd";

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

fn find(name: &str, folders: &[PathBuf]) -> Option<PathBuf> {
    process::find(name, &folders.iter().map(PathBuf::as_path).collect::<Vec<_>>())
}

#[cfg(test)]
mod tests {
    use super::super::tests::inputs;
    use super::*;
    use crate::host::files::fixture::Fixture;
    use std::os::unix::fs::{PermissionsExt, chown};
    use std::os::unix::process::CommandExt;
    use std::process::Command;
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
        host.add("/proc/17/status", "PPid:\t1\nUid:\t0\t0\t0\t0\n");
        host.add("/proc/17/exe", "-> /no/such/containerd");
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
        check("/usr/lib/qemu/virtiofsd", old, Some("7.2.17"), false);
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
    fn qemus_virtiofsd_does_not_hide_the_right_one() {
        let old = "#!/bin/sh\necho 'virtiofsd version 7.2.17 (Debian 1:7.2+dfsg-7)'\n";
        let (_, check) = look(&[("/usr/libexec/virtiofsd", old)], "io.containerd.kata.v2");
        assert!(
            !check.ok && check.detail.contains("QEMU's") && check.detail.contains("package"),
            "{check:?}"
        );
        let new = ("/usr/local/bin/virtiofsd", "#!/bin/sh\necho virtiofsd 1.13.2\n");
        let (_, check) = look(&[("/usr/libexec/virtiofsd", old), new], "io.containerd.kata.v2");
        assert_eq!((check.ok, check.version.as_deref()), (true, Some("1.13.2")), "{check:?}");
        let (_, check) = look(&[("/usr/libexec/virtiofsd", old)], "io.containerd.runc.v2");
        assert!(!check.required && check.detail.ends_with("(not needed by runtime io.containerd.runc.v2)"));
    }

    /// A script that says that it was run, and is Kata's shim.
    fn tell_tale(host: &Fixture) -> (String, PathBuf) {
        let told = host.path().join("told");
        (GO.replacen("\n", &format!("\necho run >>{}\n", told.display()), 1), told)
    }

    #[test]
    fn what_others_can_change_is_not_run() {
        let host = host(&[]);
        let (script, told) = tell_tale(&host);
        host.add("/opt/x/containerd-shim-kata-v2", &script);
        let folder = host.path().join("opt/x");
        std::fs::remove_file(host.path().join("proc/17/environ")).unwrap();
        host.add("/proc/17/environ", &format!("PATH={}\0", folder.display()));
        host.add(PROGRAM_3, PROGRAM);
        let mut inputs = inputs(host.path());
        let look = |inputs: &Inputs| runtime(&Asker { inputs, deadline: Duration::from_secs(10) });

        std::fs::set_permissions(&folder, PermissionsExt::from_mode(0o777)).unwrap();
        let check = look(&inputs);
        let shim = folder.join("containerd-shim-kata-v2");
        let expected =
            format!("{} can be changed by others than root ({} can be", shim.display(), folder.display());
        assert!(check.installed && !check.ok && check.detail.starts_with(&expected), "{check:?}");
        assert!(check.detail.contains("not run") && check.detail.contains("chmod go-w"), "{check:?}");
        assert!(!told.exists());

        // The agent's own folders are the operator's choice, and so is a whole path.
        let own = inputs.places.path.clone();
        inputs.places.path.push(folder.clone());
        assert!(look(&inputs).ok && told.exists());
        inputs.places.path = own;
        inputs.runtime = shim.to_string_lossy().into_owned();
        assert_eq!(super::shim(&inputs), Shim::Found(shim));

        inputs.runtime = "io.containerd.kata.v2".to_owned();
        std::fs::set_permissions(&folder, PermissionsExt::from_mode(0o755)).unwrap();
        assert!(look(&inputs).ok);
    }

    /// The real thing: a user's process that calls itself containerd, and has a shim for root.
    #[test]
    fn a_users_containerd_is_not_listened_to() {
        const NOBODY: u32 = 65_534;
        if Own::now().user != 0 {
            return;
        }
        let host = Fixture::new(&[("/x/", "")]);
        let (script, told) = tell_tale(&host);
        host.add("/x/containerd-shim-kata-v2", &script);
        let folder = host.path().join("x");
        let program = folder.join("containerd");
        std::fs::copy("/bin/sleep", &program).unwrap();
        for path in [&folder, &program, &folder.join("containerd-shim-kata-v2")] {
            chown(path, Some(NOBODY), Some(NOBODY)).unwrap();
        }
        let start = |user: u32| {
            let mut command = Command::new(&program);
            command.arg("600").env_clear().env("PATH", &folder).uid(user).spawn().unwrap()
        };
        let mut inputs = inputs(host.path());
        inputs.root = "/".into();
        for (user, listened_to) in [(NOBODY, false), (0, true)] {
            let mut child = start(user);
            let (found, _) = look_up(&inputs);
            let check = runtime(&Asker { inputs: &inputs, deadline: Duration::from_secs(10) });
            let searched = daemon::searched(Path::new("/"), 0);
            child.kill().unwrap();
            child.wait().unwrap();
            assert!(!told.exists() && !check.ok, "{check:?}");
            // On a machine with a containerd of its own, that one comes first.
            if !listened_to || searched.note.is_none() {
                assert_eq!(searched.folders.contains(&folder), listened_to, "{searched}");
                assert_eq!(matches!(found, Shim::Unsafe { .. }), listened_to, "{found:?}");
            }
        }
    }
}
