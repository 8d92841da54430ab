//! What a microVM needs of the host, as Kata's configuration in force names it.

use std::fs::OpenOptions;
use std::os::unix::net::{UnixDatagram, UnixStream};
use std::path::Path;

use super::config::Config;
use crate::host::files;
use crate::host::shim::Language;

/// Where Go's log/syslog looks for a socket.
const SYSLOG_SOCKETS: [&str; 3] = ["/dev/log", "/var/run/syslog", "/var/run/log"];

/// What of the configuration's own files is missing, each with what to do: Kata refuses every container then.
pub fn missing_files(root: &Path, config: &Config) -> Vec<String> {
    let mut missing = Vec::new();
    if config.is_remote() {
        return missing;
    }
    let section = config.section();
    let hypervisor = &config.hypervisor;
    let files = [
        ("path", "hypervisor", &hypervisor.path),
        ("kernel", "guest kernel", &hypervisor.kernel),
        ("image", "guest image", &hypervisor.image),
        ("initrd", "guest initrd", &hypervisor.initrd),
    ];
    for (key, what, file) in files {
        let Some(file) = file.as_deref().filter(|file| !file.is_empty()) else { continue };
        let path = Path::new(file);
        if files::resolve(root, path).is_none() {
            missing.push(format!(
                "Kata's {what} {file} does not exist: install it, or correct {key} in {section}"
            ));
        } else if key == "path" && !files::is_program(root, path) {
            missing
                .push(format!("Kata's {what} {file} cannot be run: correct its mode, or {key} in {section}"));
        }
    }
    let given = |file: &Option<String>| file.as_ref().is_some_and(|file| !file.is_empty());
    match (given(&hypervisor.image), given(&hypervisor.initrd)) {
        (false, false) => {
            missing.push(format!("Kata has neither a guest image nor an initrd: set image in {section}"))
        }
        (true, true) if config.language == Language::Rust => {
            missing.push(format!("Kata takes either image or initrd: remove one of them in {section}"));
        }
        _ => {}
    }
    missing
}

/// Why hardware virtualization cannot be used, with what to do; `None` when it can be. The kernel registers the device
/// only once its driver for this processor works, so opening it is the proof (the API's version has been 12 since Linux
/// 2.6.22). It is opened only if it is registered, for opening the bare node would load a module.
pub fn kvm_obstacle(root: &Path) -> Option<String> {
    if !is_registered(root, "kvm") {
        let cpu = files::text(&files::under(root, "/proc/cpuinfo")).unwrap_or_default();
        let has = |flag: &str| cpu.split_whitespace().any(|word| word == flag);
        return Some(if has("vmx") {
            "KVM is not there: run `modprobe kvm_intel`; if that fails, turn VT-x on in the firmware"
                .to_owned()
        } else if has("svm") {
            "KVM is not there: run `modprobe kvm_amd`; if that fails, turn SVM on in the firmware".to_owned()
        } else if has("hypervisor") {
            "KVM is not there and this is a virtual machine: its hypervisor must allow nested virtualization"
                .to_owned()
        } else {
            "KVM is not there: load the kernel's kvm module for this processor, and turn virtualization on in the \
             firmware"
                .to_owned()
        });
    }
    match OpenOptions::new().read(true).write(true).open(files::under(root, "/dev/kvm")) {
        Ok(_) => None,
        Err(error) => Some(format!(
            "/dev/kvm cannot be opened: {error}; run the agent as root, and see that /dev is a devtmpfs"
        )),
    }
}

/// What is missing of the socket device by which Kata talks to the guest, if this hypervisor uses it. Cloud Hypervisor,
/// Firecracker and Dragonball have sockets of their own.
pub fn vsock_obstacle(root: &Path, config: &Config) -> Option<String> {
    let needed = matches!(config.name.as_str(), "qemu" | "stratovirt");
    let there = files::under(root, "/dev/vhost-vsock").exists();
    (needed && !there).then(|| {
        format!(
            "/dev/vhost-vsock, which Kata needs with {}, does not exist: run `modprobe vhost_vsock`, and write vhost_vsock \
             to /etc/modules-load.d/kata.conf",
            config.name
        )
    })
}

/// Kata's shim in Go does not start a container without a syslog socket; the one in Rust does without.
pub fn syslog_obstacle(root: &Path, language: Language) -> Option<String> {
    let answers = |socket: &&str| {
        let path = files::under(root, socket);
        let datagram = UnixDatagram::unbound().and_then(|unbound| unbound.connect(&path));
        datagram.is_ok() || UnixStream::connect(&path).is_ok()
    };
    (language == Language::Go && !SYSLOG_SOCKETS.iter().any(answers)).then(|| {
        "Kata's Go shim needs a syslog socket, and nothing listens on /dev/log: start systemd-journald or a syslog daemon \
         (`busybox syslogd` will do)"
            .to_owned()
    })
}

/// Whether the kernel has a device of that name: lines such as `232 kvm`.
fn is_registered(root: &Path, name: &str) -> bool {
    let text = files::text(&files::under(root, "/proc/misc")).unwrap_or_default();
    text.lines().any(|line| line.split_whitespace().nth(1) == Some(name))
}

#[cfg(test)]
mod tests {
    use super::super::config::Hypervisor;
    use super::*;
    use crate::host::files::fixture::Fixture;

    fn config(language: Language, name: &str, hypervisor: Hypervisor) -> Config {
        let file = "/etc/kata-containers/configuration.toml".into();
        Config { language, file, name: name.into(), hypervisor, start_timeout_s: None, dial_timeout_ms: None }
    }

    #[test]
    fn files_as_the_configuration_names_them() {
        let host = Fixture::new(&[
            ("/opt/kata/bin/qemu", "#!/bin/sh\n"),
            ("/opt/kata/share/vmlinux.container", "-> vmlinux-6.12"),
            ("/opt/kata/share/vmlinux-6.12", "k"),
            ("/opt/kata/share/kata.img", "i"),
            ("/opt/kata/share/kata.initrd", "i"),
        ]);
        let some = |file: &str| Some(file.to_owned());
        let hypervisor = Hypervisor {
            path: some("/opt/kata/bin/qemu"),
            kernel: some("/opt/kata/share/vmlinux.container"),
            image: some("/opt/kata/share/kata.img"),
            ..Hypervisor::default()
        };
        let missing = |language, name: &str, hypervisor: Hypervisor| {
            missing_files(host.path(), &config(language, name, hypervisor)).join("; ")
        };
        assert_eq!(missing(Language::Go, "qemu", hypervisor.clone()), "");
        let both = Hypervisor { initrd: some("/opt/kata/share/kata.initrd"), ..hypervisor.clone() };
        assert_eq!(missing(Language::Go, "qemu", both.clone()), "");
        assert!(missing(Language::Rust, "qemu", both).contains("either image or initrd"));
        let neither = Hypervisor { image: some(""), ..hypervisor.clone() };
        assert!(
            missing(Language::Go, "clh", neither.clone())
                .ends_with("set image in [hypervisor.clh] of /etc/kata-containers/configuration.toml")
        );
        assert_eq!(missing(Language::Go, "remote", neither), "");
        host.add("/opt/plain", "text");
        let plain = Hypervisor { path: some("/opt/plain"), ..hypervisor.clone() };
        assert!(
            missing(Language::Go, "qemu", plain).starts_with("Kata's hypervisor /opt/plain cannot be run")
        );
        for (file, what) in [
            ("/opt/kata/bin/qemu", "hypervisor"),
            ("/opt/kata/share/vmlinux-6.12", "guest kernel"),
            ("/opt/kata/share/kata.img", "guest image"),
        ] {
            host.remove(file);
            let why = missing(Language::Go, "qemu", hypervisor.clone());
            assert!(
                why.contains(&format!("Kata's {what} /opt/kata/")) && why.contains("does not exist"),
                "{why}"
            );
        }
    }

    #[test]
    fn devices() {
        let host = Fixture::new(&[
            ("/proc/misc", "232 kvm\n241 vhost-vsock\n"),
            ("/dev/kvm", ""),
            ("/dev/log/", ""),
        ]);
        assert_eq!(kvm_obstacle(host.path()), None);
        host.remove("/dev/kvm");
        assert!(kvm_obstacle(host.path()).unwrap().starts_with("/dev/kvm cannot be opened"));
        for (flags, advice) in [
            ("vmx", "kvm_intel"),
            ("svm", "kvm_amd"),
            ("hypervisor", "nested virtualization"),
            ("", "for this processor"),
        ] {
            host.add("/proc/misc", "241 vhost-vsock\n");
            host.add("/proc/cpuinfo", &format!("flags\t\t: fpu {flags}\n"));
            assert!(kvm_obstacle(host.path()).unwrap().contains(advice), "{flags}");
        }
        let vsock = |name: &str| {
            vsock_obstacle(host.path(), &config(Language::Go, name, Hypervisor::default()))
                .unwrap_or_default()
        };
        assert!(vsock("qemu").contains("modprobe vhost_vsock"));
        for name in ["clh", "firecracker", "dragonball", "remote"] {
            assert_eq!(vsock(name), "");
        }
        host.add("/dev/vhost-vsock", "");
        assert_eq!(vsock("qemu"), "");
    }

    #[test]
    fn a_syslog_socket_that_somebody_listens_on() {
        let host = Fixture::new(&[("/dev/", ""), ("/var/run/", "")]);
        let obstacle = |language| syslog_obstacle(host.path(), language);
        assert_eq!(obstacle(Language::Rust), None);
        assert!(obstacle(Language::Go).unwrap().contains("syslogd"));
        let socket = UnixDatagram::bind(files::under(host.path(), "/dev/log")).unwrap();
        assert_eq!(obstacle(Language::Go), None);
        // What a daemon that was killed leaves behind is not enough.
        drop(socket);
        assert!(files::under(host.path(), "/dev/log").exists());
        assert!(obstacle(Language::Go).is_some());
        let _stream =
            std::os::unix::net::UnixListener::bind(files::under(host.path(), "/var/run/syslog")).unwrap();
        assert_eq!(obstacle(Language::Go), None);
    }
}
