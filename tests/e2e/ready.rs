//! Ready means that a microVM can start: each thing that Kata needs is taken away from a host in a folder, `check` and
//! the running node name it, and the node is back when it is.

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::os::unix::net::UnixDatagram;
use std::path::Path;

use rustix::process::Signal;
use serde_json::Value;

use crate::support::agent::Node;
use crate::support::control_plane::{ControlPlane, TOKEN, WAIT};
use crate::world::connected;

/// An engine that answers, and has nothing.
const NERDCTL: &str = "#!/bin/sh
case \"$*\" in
*--version*) echo 'nerdctl version 2.2.2' ;;
*version*) echo '{\"Server\":{\"Components\":[{\"Name\":\"containerd\",\"Version\":\"v2.2.1\"}]}}' ;;
*events*) exec sleep 600 ;;
esac
";
const CONFIG: &str = "opt/kata/share/defaults/kata-containers/configuration-qemu.toml";
const SETTINGS: &str = r#"
[hypervisor.qemu]
path = "/opt/kata/bin/qemu-system-x86_64"
kernel = '/opt/kata/share/kata-containers/vmlinux.container'
image = "/opt/kata/share/kata-containers/kata.img"
shared_fs = "virtio-fs"
virtio_fs_daemon = "/opt/kata/libexec/virtiofsd"
[agent.kata]
dial_timeout = 1_200
"#;
const PLUGINS: [&str; 5] = ["bridge", "firewall", "host-local", "portmap", "tuning"];

/// An ELF file with the section that Go's linker writes.
fn go_program(source: &str) -> Vec<u8> {
    let content = format!("\u{fffd} Go buildinf:\x08\x02\0\npath\t{source}\n");
    let names = b"\0.shstrtab\0.go.buildinfo\0";
    let (names_at, table_at) = (64 + content.len() as u64, 64 + content.len() as u64 + names.len() as u64);
    let mut file = b"\x7fELF\x02\x01\x01".to_vec();
    file.resize(64, 0);
    file[0x28..0x30].copy_from_slice(&table_at.to_le_bytes());
    for (at, number) in [(0x3a, 64_u16), (0x3c, 3), (0x3e, 1)] {
        file[at..at + 2].copy_from_slice(&number.to_le_bytes());
    }
    file.extend([content.as_bytes(), names].concat());
    for (name, at, size) in [(0_u32, 0, 0), (1, names_at, names.len() as u64), (11, 64, content.len() as u64)]
    {
        let mut entry = [0; 64];
        entry[..4].copy_from_slice(&name.to_le_bytes());
        entry[0x18..0x20].copy_from_slice(&at.to_le_bytes());
        entry[0x20..0x28].copy_from_slice(&size.to_le_bytes());
        file.extend(entry);
    }
    file
}

fn write(root: &Path, path: &str, content: &[u8], mode: u32) {
    let path = root.join(path);
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(&path, content).unwrap();
    fs::set_permissions(path, PermissionsExt::from_mode(mode)).unwrap();
}

/// A node with Kata's Go runtime on a host that has all it needs, and the socket of its syslog daemon.
fn kata_node(name: &str) -> (Node, UnixDatagram) {
    let mut node = Node::new(name);
    let root = node.path().join("root");
    let kata = "github.com/kata-containers/kata-containers/src/runtime/cmd/containerd-shim-kata-v2";
    let programs: [(&str, &[u8]); 4] = [
        ("opt/kata/bin/containerd-shim-kata-v2", &go_program(kata)),
        ("opt/kata/bin/qemu-system-x86_64", b"#!/bin/sh\n"),
        ("opt/kata/libexec/virtiofsd", b"#!/bin/sh\necho virtiofsd 1.14.0\n"),
        ("engine/nerdctl", NERDCTL.as_bytes()),
    ];
    programs.iter().for_each(|(path, content)| write(&root, path, content, 0o755));
    PLUGINS.iter().for_each(|plugin| write(&root, &format!("opt/cni/bin/{plugin}"), b"", 0o755));
    for (path, content) in [
        (CONFIG, SETTINGS),
        ("opt/kata/VERSION", "3.32.0\n"),
        ("opt/kata/share/kata-containers/vmlinux.container", "kernel"),
        ("opt/kata/share/kata-containers/kata.img", "image"),
        ("proc/misc", "232 kvm\n241 vhost-vsock\n"),
        ("dev/kvm", ""),
        ("dev/vhost-vsock", ""),
        ("sys/bus/pci/devices/none/class", ""),
    ] {
        write(&root, path, content.as_bytes(), 0o644);
    }
    fs::create_dir_all(root.join("usr/local/bin")).unwrap();
    for (target, link) in [
        ("/opt/kata/bin/containerd-shim-kata-v2", "usr/local/bin/containerd-shim-kata-v2"),
        ("configuration-qemu.toml", "opt/kata/share/defaults/kata-containers/configuration.toml"),
    ] {
        symlink(target, root.join(link)).unwrap();
    }
    let log = UnixDatagram::bind(root.join("dev/log")).unwrap();
    let cli = root.join("engine/nerdctl");
    node.set("root", root.to_str().unwrap()).set("container-cli", cli.to_str().unwrap());
    (node, log)
}

/// What `check` says of the dependency `name`.
fn checked(node: &Node, name: &str) -> (i32, Value) {
    let output = node.run(&["check", "--json"]);
    let all: Value = serde_json::from_slice(&output.stdout).unwrap();
    (output.status.code().unwrap(), all["checks"][name].clone())
}

#[test]
fn check_names_each_requirement_that_is_taken_away() {
    let (node, log) = kata_node("ready-check");
    let (code, text) = node.said(&["check"]);
    assert_eq!((code, text.lines().last()), (0, Some("ready")), "{text}");
    assert!(text.contains("kata-runtime ✓ 3.32.0"), "{text}");
    let root = node.path().join("root");
    for (taken, name, words) in [
        ("dev/kvm", "kvm", "/dev/kvm cannot be opened"),
        ("proc/misc", "kvm", "KVM is not there"),
        ("dev/vhost-vsock", "kvm", "run `modprobe vhost_vsock`"),
        (
            "opt/kata/share/kata-containers/vmlinux.container",
            "kata-runtime",
            "Kata's guest kernel /opt/kata/",
        ),
        ("opt/kata/share/kata-containers/kata.img", "kata-runtime", "Kata's guest image /opt/kata/"),
        ("opt/kata/bin/qemu-system-x86_64", "kata-runtime", "Kata's hypervisor /opt/kata/"),
        (CONFIG, "kata-runtime", "Kata has no configuration"),
        (
            "usr/local/bin/containerd-shim-kata-v2",
            "kata-runtime",
            "ln -s /opt/kata/bin/containerd-shim-kata-v2",
        ),
        ("opt/kata/bin/containerd-shim-kata-v2", "kata-runtime", "containerd-shim-kata-v2 not found"),
        ("opt/kata/libexec/virtiofsd", "virtiofsd", "virtio_fs_daemon in [hypervisor.qemu]"),
        ("opt/cni/bin/bridge", "cni", "bridge missing in /opt/cni/bin"),
        ("opt/cni", "cni", "/opt/cni/bin does not exist"),
        ("dev/log", "kata-runtime", "needs a syslog socket"),
    ] {
        let (there, away) = (root.join(taken), root.join(format!("{taken}.away")));
        fs::rename(&there, &away).unwrap();
        let (code, check) = checked(&node, name);
        assert_eq!(
            (code, &check["ok"], &check["required"]),
            (1, &false.into(), &true.into()),
            "{taken}: {check}"
        );
        assert!(check["detail"].as_str().unwrap().contains(words), "{taken}: {check}");
        fs::rename(&away, &there).unwrap();
    }
    for (setting, value, name, words) in [
        (
            "runtime",
            "kata-qemu-nvidia-gpu",
            "kata-runtime",
            "set runtime to io.containerd.kata-qemu-nvidia-gpu.v2",
        ),
        (
            "runtime",
            "/opt/kata/bin/containerd-shim-kata-v2",
            "kata-runtime",
            "set runtime to io.containerd.kata.v2",
        ),
        ("network", "lan", "cni", "`nerdctl network create lan`"),
    ] {
        let (mut other, _log) = kata_node("ready-settings");
        other.set(setting, value);
        let (code, check) = checked(&other, name);
        assert!(code == 1 && check["detail"].as_str().unwrap().contains(words), "{value}: {check}");
    }
    let (code, text) = node.said(&["check"]);
    assert_eq!(code, 0, "{text}");
    drop(log);
    assert_eq!(checked(&node, "kata-runtime").0, 1, "a socket that nobody listens on");
}

#[test]
fn the_node_is_degraded_and_back_by_itself() {
    let (mut node, _log) = kata_node("ready-node");
    let plane = ControlPlane::start(&[]);
    node.set("url", plane.url()).env("VECTORLAY_TOKEN", TOKEN);
    let agent = node.start();
    let id = connected(&plane);
    let online = |node: &Value| node["state"] == "online";
    plane.wait_node(&id, WAIT, online);
    let kvm = node.path().join("root/dev/kvm");
    fs::remove_file(&kvm).unwrap();
    agent.signal(Signal::HUP);
    plane.wait_node(&id, WAIT, |node| node["state"] == "degraded");
    let (_, status) = node.said(&["status"]);
    assert!(status.contains("kvm: /dev/kvm cannot be opened"), "{status}");
    fs::write(&kvm, "").unwrap();
    // Nobody tells it: what is not well is looked at again after 30 s.
    let view = plane.wait_node(&id, 3 * WAIT, online);
    assert_eq!(view["violations"], 0, "{view:#}");
    let unknown = ["hostname", "cpuModel", "cpuCores", "ramGb", "kernel", "boot_id", "machine_id"];
    unknown.iter().for_each(|field| assert_eq!(view["system_info"][field], Value::Null, "{field}"));
}
