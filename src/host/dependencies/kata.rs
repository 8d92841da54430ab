//! Kata Containers: its shim with the configuration in force, virtiofsd, and what the kernel must have for microVMs.
//!
//! What starts a microVM is the shim, which is looked at and not run. `kata-runtime` is asked for its version where it is
//! installed (it belongs to the Go runtime); it is never called with `check`, which loads modules, nor with `-info`,
//! which prints no text.

use std::path::{Path, PathBuf};

use super::version_query::ProbeCx;
use super::{Inputs, unknown, versions};
use crate::core::inventory::{Check, MicroVm};
use crate::host::files;
use crate::host::kata::config::Config;
use crate::host::kata::requirements;
use crate::host::shim::{Kind, Language, Program, Shim, means_kata};

const INSTALL: &str = "install Kata Containers (the kata-static archive unpacks to /opt/kata) and link its containerd-shim-kata-v2 into /usr/local/bin";
const GET_VIRTIOFSD: &str = "install the one in Rust, which comes with Kata (/opt/kata/libexec/virtiofsd) or as the package virtiofsd";

/// Kata's configuration in force, where the shim is Kata's and is found.
///
/// # Errors
/// Why Kata takes none, with what to do.
pub fn config(inputs: &Inputs) -> Option<Result<Config, String>> {
    let shim = inputs.shim();
    let program = shim.program()?;
    let language = program.kata()?;
    Some(Config::read(&inputs.root, program, language, installed_version(inputs, program).as_deref()))
}

/// The version of the archive that the shim is from: its file VERSION lies at the top, in /opt/kata.
fn installed_version(inputs: &Inputs, program: &Program) -> Option<String> {
    let above = program.target.ancestors().skip(2).filter(|folder| folder.parent().is_some());
    above.chain([Path::new("/opt/kata")]).find_map(|folder| {
        let text = files::value(&files::under(&inputs.root, folder.join("VERSION")))?;
        versions::first(&text)
    })
}

/// Kata's shim with its configuration and what that names.
pub(super) fn runtime(cx: &ProbeCx<'_>) -> Check {
    let inputs = cx.inputs;
    let program = cx.find("kata-runtime", &[inputs.dirs.path.as_slice(), &inputs.dirs.kata].concat());
    let answer = program.as_deref().map(|path| cx.ask(path, &["--version"]));
    let own_version = answer.as_ref().and_then(|answer| versions::first(answer.as_ref().ok()?));
    let mut check =
        Check { installed: program.is_some(), version: own_version, ..unknown("kata-runtime", inputs) };
    if !check.required {
        check.ok = answer.as_ref().is_some_and(Result::is_ok);
        check.detail = match answer {
            Some(Err(why)) => format!("does not work: {why} (not needed by runtime {})", inputs.runtime),
            _ => format!("not needed by runtime {}", inputs.runtime),
        };
        return check;
    }
    check.microvm = Some(MicroVm { overhead_mib: None });
    let shim = inputs.shim();
    let Some(program) = shim.program() else {
        let obstacle = shim.obstacle().unwrap_or_default();
        let missing = matches!(shim, Shim::Missing { .. });
        check.installed |= !missing;
        check.detail = if missing { format!("{obstacle}; {INSTALL}") } else { obstacle };
        return check;
    };
    match program.kind {
        Kind::Kata(language) => judge(inputs, program, language, check),
        Kind::Runc => {
            let detail = format!("{program} is runc's shim and isolates nothing; {INSTALL}");
            Check { microvm: None, detail, ..check }
        }
        Kind::Other => {
            let detail = format!("{program} is not Kata's shim; {INSTALL}");
            Check { microvm: None, detail, ..check }
        }
        Kind::Unknown => {
            let detail =
                format!("{program} is not recognised as Kata's shim, so nothing else of Kata was looked at");
            Check { installed: true, ok: true, detail, ..check }
        }
    }
}

/// What a shim that is Kata's needs.
fn judge(inputs: &Inputs, program: &Program, language: Language, mut check: Check) -> Check {
    let archive = installed_version(inputs, program);
    // kata-runtime is Go's; beside the other runtime it may be left over from an older Kata.
    let version = match language {
        Language::Go => check.version.take().or(archive),
        Language::Rust => archive,
    };
    let mut obstacles = Vec::new();
    let mut detail = format!("{program} ({language})");
    match Config::read(&inputs.root, program, language, version.as_deref()) {
        Ok(config) => {
            obstacles.extend(requirements::missing_files(&inputs.root, &config));
            check.microvm = Some(MicroVm { overhead_mib: Some(config.overhead_mib()) });
            detail += &format!(", configured by {}", config.file.display());
        }
        Err(why) => obstacles.push(why),
    }
    obstacles.extend(requirements::syslog_obstacle(&inputs.root, language));
    let ok = obstacles.is_empty();
    Check { installed: true, ok, version, detail: if ok { detail } else { obstacles.join("; ") }, ..check }
}

/// What the kernel must have: KVM, and a socket device for hypervisors that use it.
pub(super) fn kvm(cx: &ProbeCx<'_>) -> Check {
    let inputs = cx.inputs;
    let check = unknown("kvm", inputs);
    let kvm = requirements::kvm_obstacle(&inputs.root);
    let installed = kvm.is_none();
    if !check.required {
        let detail = format!("not needed by runtime {}", inputs.runtime);
        return Check { installed, ok: installed, detail, ..check };
    }
    let config = config(inputs).and_then(Result::ok);
    if config.as_ref().is_some_and(Config::is_remote) {
        let detail = "not needed: Kata's microVMs run elsewhere (hypervisor remote)".to_owned();
        return Check { required: false, installed, ok: installed, detail, ..check };
    }
    let vsock = config.and_then(|config| requirements::vsock_obstacle(&inputs.root, &config));
    let obstacles: Vec<String> = kvm.into_iter().chain(vsock).collect();
    let ok = obstacles.is_empty();
    let detail = if ok { "/dev/kvm can be opened".to_owned() } else { obstacles.join("; ") };
    Check { installed, ok, detail, ..check }
}

/// virtiofsd, which shares a container's files with its microVM: the one that Kata's configuration names, if it uses one.
pub(super) fn virtiofsd(cx: &ProbeCx<'_>) -> Check {
    let inputs = cx.inputs;
    let mut check = unknown("virtiofsd", inputs);
    let config = config(inputs).and_then(Result::ok);
    let mut needless = format!("not needed by runtime {}", inputs.runtime);
    if let Some(config) = config.as_ref().filter(|config| !config.needs_virtiofsd()) {
        check.required = false;
        needless = format!("not needed: shared_fs in {}", config.section());
    }
    if !check.required {
        let path = installed(cx);
        check.installed = path.is_some();
        if let Some(Ok(text)) = path.map(|path| cx.ask(&path, &["--version"])) {
            check.ok = !versions::is_qemus_virtiofsd(&text);
            check.version = versions::first(&text);
        }
        check.detail = needless;
        return check;
    }
    let path = match &config {
        Some(config) => {
            let named = config.hypervisor.virtio_fs_daemon.clone().unwrap_or_default();
            if named.is_empty() {
                check.detail = format!("set virtio_fs_daemon in {}; {GET_VIRTIOFSD}", config.section());
                return check;
            }
            if !files::is_program(&inputs.root, Path::new(&named)) {
                check.detail = format!(
                    "{named}, which is virtio_fs_daemon in {}, is not there: {GET_VIRTIOFSD}",
                    config.section()
                );
                return check;
            }
            files::under(&inputs.root, named)
        }
        // Without a configuration that can be read: the usual places.
        None => match installed(cx) {
            Some(path) => path,
            None => {
                check.detail = format!("not found: {GET_VIRTIOFSD}");
                return check;
            }
        },
    };
    let shown = path.display();
    check.installed = true;
    match cx.ask(&path, &["--version"]) {
        Ok(text) if versions::is_qemus_virtiofsd(&text) => {
            check.version = versions::first(&text);
            check.detail = format!("{shown} is QEMU's old one in C, which Kata cannot use: {GET_VIRTIOFSD}");
        }
        Ok(text) => {
            (check.ok, check.version) = (true, versions::first(&text));
            check.detail = shown.to_string();
        }
        Err(why) => {
            check.detail = format!("{shown} does not work: {why}; {}", cx.advice("install it again"));
        }
    }
    check
}

/// A virtiofsd in the usual folders; the one that Kata's archive brings comes first.
fn installed(cx: &ProbeCx<'_>) -> Option<PathBuf> {
    let dirs = &cx.inputs.dirs;
    cx.find("virtiofsd", &[dirs.virtiofsd.as_slice(), &dirs.path].concat())
}

/// Whether the configured runtime needs Kata, as far as its name says.
pub(super) fn wanted(inputs: &Inputs) -> bool {
    means_kata(&inputs.runtime)
}

#[cfg(test)]
mod tests {
    use super::super::tests::{config_file, inputs, kata_host};
    use super::*;
    use crate::host::files::fixture::Fixture;
    use crate::host::shim::fixture;
    use std::time::Duration;

    const KATA: &str = "io.containerd.kata.v2";
    const PROGRAM: &str =
        "#!/bin/sh\nprintf 'kata-runtime  : 3.18.0\\n   commit   : abc\\n   OCI specs: 1.2.0\\n'\n";
    const BROKEN: &str = "#!/bin/sh\necho cannot load >&2\nexit 1\n";
    const LINK: &str = "/usr/local/bin/containerd-shim-kata-v2";
    const PROGRAM_3: &str = "/opt/kata/bin/kata-runtime";

    fn look(host: &Fixture, runtime_name: &str, probe: fn(&ProbeCx<'_>) -> Check) -> Check {
        let mut inputs = inputs(host.path());
        inputs.runtime = runtime_name.to_owned();
        probe(&ProbeCx::new(&inputs, Duration::from_secs(10)))
    }

    #[test]
    fn both_runtimes_installed_as_their_archives_have_them() {
        for (language, version) in [(Language::Go, "3.18.0"), (Language::Rust, "4.1.0")] {
            let (host, _log) = kata_host(language, version);
            let check = look(&host, KATA, runtime);
            assert!(check.required && check.installed && check.ok, "{check:?}");
            assert_eq!(check.version.as_deref(), Some(version));
            assert!(
                check.detail.contains(&format!("({language}), configured by /opt/kata/share/")),
                "{check:?}"
            );
            for probe in [virtiofsd, kvm] {
                let check = look(&host, KATA, probe);
                assert!(check.required && check.installed && check.ok, "{check:?}");
            }
            assert_eq!(look(&host, KATA, virtiofsd).version.as_deref(), Some("1.14.0"));
            // Nothing is left for the words of a shim that was run: it could not have been.
            host.add("/opt/kata/VERSION", "what is this\n");
            assert_eq!(look(&host, KATA, runtime).version, None);
            // kata-runtime tells Go's version, and is left over beside the other one.
            host.add(PROGRAM_3, PROGRAM);
            let told = look(&host, KATA, runtime);
            assert_eq!(told.version.is_some(), language == Language::Go, "{told:?}");
            // It is not needed to run containers.
            host.add(PROGRAM_3, BROKEN);
            assert!(look(&host, KATA, runtime).ok);
        }
    }

    #[test]
    fn each_requirement_taken_away_is_named_and_comes_back() {
        let check = |language: Language, probe: fn(&ProbeCx<'_>) -> Check, taken: &str, words: &[&str]| {
            let (host, _log) = kata_host(language, "3.18.0");
            assert!(look(&host, KATA, probe).ok);
            let away = format!("{taken}.away");
            let rename = |from: &str, to: &str| {
                std::fs::rename(files::under(host.path(), from), files::under(host.path(), to)).unwrap();
            };
            rename(taken, &away);
            let found = look(&host, KATA, probe);
            assert!(!found.ok && found.required, "{taken}: {found:?}");
            words.iter().for_each(|word| assert!(found.detail.contains(word), "{word}: {found:?}"));
            rename(&away, taken);
            assert!(look(&host, KATA, probe).ok);
        };
        for language in [Language::Go, Language::Rust] {
            let missing =
                |what| [what, "does not exist: install it, or correct", "in [hypervisor.qemu] of /opt/kata"];
            check(
                language,
                runtime,
                "/opt/kata/bin/qemu-system-x86_64",
                &missing("Kata's hypervisor /opt/kata"),
            );
            check(
                language,
                runtime,
                "/opt/kata/share/kata-containers/vmlinux.container",
                &missing("guest kernel"),
            );
            check(language, runtime, "/opt/kata/share/kata-containers/kata.img", &missing("guest image"));
            check(
                language,
                virtiofsd,
                "/opt/kata/libexec/virtiofsd",
                &["virtio_fs_daemon", "install the one in Rust"],
            );
            check(language, kvm, "/proc/misc", &["KVM is not there"]);
            check(language, kvm, "/dev/kvm", &["/dev/kvm cannot be opened"]);
            check(language, kvm, "/dev/vhost-vsock", &["modprobe vhost_vsock"]);
            check(language, runtime, &config_file(language), &["Kata has no configuration; link "]);
            check(language, runtime, LINK, &["is not where containerd looks", "ln -s /opt/kata"]);
        }
        check(Language::Go, runtime, "/dev/log", &["Go shim needs a syslog socket"]);
        let (host, log) = kata_host(Language::Rust, "4.1.0");
        drop(log);
        assert!(look(&host, KATA, runtime).ok, "runtime-rs does without syslog");
    }

    #[test]
    fn another_program_behind_katas_name() {
        let check = |content: &[u8], ok: bool, words: &str| {
            let host = Fixture::new(&[]);
            host.program(LINK, content);
            let check = look(&host, KATA, runtime);
            assert_eq!(check.ok, ok, "{check:?}");
            assert!(check.detail.contains(words), "{check:?}");
        };
        check(&fixture::runc(), false, "is runc's shim and isolates nothing; install Kata");
        check(&fixture::go("example.com/shim"), false, "is not Kata's shim; install Kata");
        check(b"text", false, "is not Kata's shim; install Kata");
        // What cannot be told is not called broken.
        check(&fixture::unknown(), true, "not recognised");
        let nothing = look(&Fixture::new(&[]), KATA, runtime);
        assert!(!nothing.installed && nothing.detail.contains("install Kata Containers"), "{nothing:?}");
    }

    #[test]
    fn what_the_configuration_does_without_is_not_required() {
        let (host, _log) = kata_host(Language::Rust, "4.1.0");
        host.add(
            &format!("{}/config.d/10-none", "/opt/kata/share/defaults/kata-containers/runtime-rs"),
            "hypervisor.qemu.shared_fs = \"none\"\n",
        );
        let check = look(&host, KATA, virtiofsd);
        assert!(
            !check.required && check.ok && check.detail.starts_with("not needed: shared_fs"),
            "{check:?}"
        );
        let (host, _log) = kata_host(Language::Go, "3.18.0");
        host.add(&config_file(Language::Go), "[hypervisor.remote]\nshared_fs = 'none'\n");
        host.remove("/dev/kvm");
        for probe in [virtiofsd, kvm] {
            assert!(!look(&host, KATA, probe).required);
        }
    }

    #[test]
    fn virtiofsd_of_both_kinds() {
        let check = |script: &str, version: Option<&str>, ok: bool, words: &str| {
            let (host, _log) = kata_host(Language::Go, "3.18.0");
            host.add("/opt/kata/libexec/virtiofsd", script);
            let check = look(&host, KATA, virtiofsd);
            assert_eq!((check.version.as_deref(), check.ok), (version, ok), "{check:?}");
            assert!(check.required && check.installed && check.detail.contains(words), "{check:?}");
            // Without a configuration the usual places count.
            host.remove(LINK);
            let check = look(&host, KATA, virtiofsd);
            assert_eq!((check.version.as_deref(), check.ok), (version, ok), "{check:?}");
        };
        check("#!/bin/sh\necho virtiofsd 1.8.0\n", Some("1.8.0"), true, "/opt/kata/libexec/virtiofsd");
        let old = "#!/bin/sh\necho 'virtiofsd version 7.2.17 (Debian 1:7.2+dfsg-7)' >&2\n";
        check(old, Some("7.2.17"), false, "QEMU's old one in C");
        check(BROKEN, None, false, "cannot load\"; install it again");
        let nothing = look(&Fixture::new(&[]), KATA, virtiofsd);
        assert!(!nothing.installed && nothing.detail.starts_with("not found"), "{nothing:?}");
    }

    #[test]
    fn other_runtimes_do_not_need_kata() {
        for name in ["io.containerd.runc.v2", "runc", "/usr/bin/crun", "nvidia"] {
            let host = Fixture::new(&[(PROGRAM_3, PROGRAM)]);
            for probe in [runtime, virtiofsd, kvm] {
                assert!(!look(&host, name, probe).required, "{name}");
            }
            let check = look(&host, name, runtime);
            assert_eq!((check.ok, check.version.as_deref()), (true, Some("3.18.0")));
        }
    }

    #[test]
    fn names_that_nerdctl_cannot_run_are_not_ready() {
        let (host, _log) = kata_host(Language::Go, "3.18.0");
        for name in ["kata-qemu-nvidia-gpu", "/opt/kata/bin/containerd-shim-kata-v2"] {
            let check = look(&host, name, runtime);
            assert!(
                check.required && !check.ok && check.detail.contains("set runtime to io.containerd.kata"),
                "{check:?}"
            );
        }
        assert!(look(&host, KATA, runtime).ok);
    }
}
