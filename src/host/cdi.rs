//! Devices of the Container Device Interface (CDI): what a host's specifications name, and which of it is a GPU's.
//!
//! nerdctl looks names up by the CDI library (`pkg/cdi` of container-device-interface), in /etc/cdi and /var/run/cdi,
//! in files that end in `.json` or `.yaml`. A name here is one that the library finds too, and finds alone: of two
//! folders the later one counts, and two definitions in one folder make a name unusable. Where it cannot be known what
//! the library makes of a file, the names of its kind are left alone. nerdctl's configuration can name other folders:
//! that is what `gpu_cdi = never` is for.
//!
//! AMD's GPUs stay with their nodes: a container needs nothing else of the host's.

use std::path::Path;

use serde_json::Value;

use super::files;
use super::handover::{self, Way};
use super::yaml;
use crate::core::facts::Gpu;

/// How many files of one folder are read. Tools write one for each kind.
const FILES_MAX: usize = 64;
/// How many devices one file may have. Eight GPUs in their smallest parts are 56.
const DEVICES_MAX: usize = 1024;
/// The longest vendor, class or device's name, in bytes (a vendor is a DNS name).
const NAME_MAX: usize = 253;
/// What VFIO's users share. It is no device's own.
const VFIO_CONTROL: &str = "/dev/vfio/vfio";

/// The devices that a host's specifications define.
#[derive(Debug, Default)]
pub struct Devices {
    /// As they were read: those that count more come later.
    all: Vec<Device>,
}

#[derive(Debug)]
struct Device {
    /// `vendor/class=name`.
    name: String,
    /// The host's paths of the nodes that it brings; empty for a node that has numbers of its own.
    nodes: Vec<String>,
    /// Which folder it is from.
    folder: u8,
}

/// Gives each GPU the CDI name by which it can be handed over. `plain`: the way if it is not by VFIO.
pub fn apply(root: &Path, plain: Option<Way>, gpus: &mut [Gpu]) {
    let devices = Devices::read(root);
    for gpu in gpus {
        gpu.cdi_name = gpu.device_node.as_deref().and_then(|node| match plain {
            None => devices.of_node(node),
            Some(Way::Nvidia) => devices.of_uuid(node, handover::nvidia_minor(root, gpu.address)?),
            Some(Way::Amd | Way::Nowise) => None,
        });
    }
}

impl Devices {
    /// Reads the host's specifications.
    pub fn read(root: &Path) -> Self {
        let linked = root.join("var/run").is_symlink();
        let mut all = Vec::new();
        let mut strange = Vec::new();
        // A link there is to /run, and would lead out of a root that is not `/`.
        for (folder, path) in [(0, "etc/cdi"), (1, if linked { "run/cdi" } else { "var/run/cdi" })] {
            let mut names = files::names(root, path);
            names.retain(|name| name.ends_with(".json") || name.ends_with(".yaml"));
            if names.len() > FILES_MAX {
                return Self::default();
            }
            for path in names.iter().map(|name| root.join(path).join(name)).filter(|path| path.is_file()) {
                // What cannot be read cannot be read by the CLI.
                let Ok(bytes) = files::bytes(&path) else { continue };
                // Its kind may be beyond what was read.
                if bytes.len() as u64 >= files::FILE_MAX {
                    return Self::default();
                }
                let text = String::from_utf8_lossy(&bytes).into_owned();
                match parse(&text, folder) {
                    Some(devices) => all.extend(devices),
                    None => strange.push(text),
                }
            }
        }
        all.retain(|device: &Device| {
            let kind = device.name.split('=').next().unwrap_or_default();
            !strange.iter().any(|text| text.contains(kind))
        });
        Self { all }
    }

    /// The name of the one device whose node is `node`.
    pub fn of_node(&self, node: &str) -> Option<String> {
        let is_it = |device: &&Device| {
            let mut own = device.nodes.iter().filter(|path| *path != VFIO_CONTROL).peekable();
            own.peek().is_some() && own.all(|path| path == node) && self.counts(device)
        };
        let mut found = self.all.iter().filter(is_it);
        let name = &found.next()?.name;
        found.next().is_none().then(|| name.clone())
    }

    /// NVIDIA's name for the GPU with this UUID, if it still brings the node of that GPU and of no other: a
    /// specification is written once, and the nodes' numbers may change at each boot.
    pub fn of_uuid(&self, uuid: &str, minor: u32) -> Option<String> {
        let name = format!("nvidia.com/gpu={uuid}");
        let device = self.all.iter().find(|device| device.name == name && self.counts(device))?;
        let number = |path: &String| path.rsplit_once("/nvidia")?.1.parse::<u32>().ok();
        let mut numbers = device.nodes.iter().filter_map(number).peekable();
        (numbers.peek().is_some() && numbers.all(|number| number == minor)).then_some(name)
    }

    /// Whether it is what its name stands for. `all` is the tools' name for a kind's devices together.
    fn counts(&self, device: &Device) -> bool {
        let same = || self.all.iter().filter(|other| other.name == device.name);
        let conflict = same().zip(same().skip(1)).any(|(one, next)| one.folder == next.folder);
        !conflict && same().all(|other| other.folder <= device.folder) && !device.name.ends_with("=all")
    }
}

/// The devices of one specification; `None`: not understood.
fn parse(text: &str, folder: u8) -> Option<Vec<Device>> {
    let spec: Value = serde_json::from_str(text).ok().or_else(|| yaml::parse(text))?;
    let kind = spec.get("kind")?.as_str()?;
    let (vendor, class) = kind.split_once('/')?;
    if !is_name(vendor, false) || !is_name(class, false) {
        return None;
    }
    let common = nodes(&spec)?;
    let devices = spec.get("devices")?.as_array().filter(|devices| devices.len() <= DEVICES_MAX)?;
    let device = |device: &Value| {
        let name = device.get("name")?.as_str().filter(|name| is_name(name, true))?;
        let nodes = nodes(device)?.into_iter().chain(common.iter().cloned()).collect();
        Some(Device { name: format!("{kind}={name}"), nodes, folder })
    };
    devices.iter().map(device).collect()
}

/// The nodes among the edits of a device, or of a whole specification, which each of its devices brings.
fn nodes(of: &Value) -> Option<Vec<String>> {
    let Some(edits) = of.get("containerEdits").filter(|edits| !edits.is_null()) else {
        return Some(Vec::new());
    };
    let Some(nodes) = edits.as_object()?.get("deviceNodes").filter(|nodes| !nodes.is_null()) else {
        return Some(Vec::new());
    };
    let path = |node: &Value| {
        let path = node.get("hostPath").or_else(|| node.get("path"))?.as_str()?;
        // Then the library does not look at the path.
        Some(if node.get("major").is_some() { String::new() } else { path.to_owned() })
    };
    nodes.as_array()?.iter().map(path).collect()
}

/// The library's grammar of vendors and classes, and of devices (`pkg/parser`).
fn is_name(name: &str, device: bool) -> bool {
    let first = |b: u8| b.is_ascii_alphabetic() || device && b.is_ascii_digit();
    let inner = |b: u8| b.is_ascii_alphanumeric() || b"_-.".contains(&b) || device && b == b':';
    name.len() <= NAME_MAX
        && name.bytes().next().is_some_and(first)
        && name.bytes().all(inner)
        && name.ends_with(|c: char| c.is_ascii_alphanumeric())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::files::fixture::Fixture;

    /// As the NVIDIA container toolkit writes it for `--mode=vfio`.
    const VFIO: &str = "---
cdiVersion: 0.5.0
kind: nvidia.com/pgpu
devices:
    - name: \"0\"
      containerEdits:
        deviceNodes:
            - path: /dev/vfio/12
              hostPath: /dev/vfio/12
    - name: \"1\"
      containerEdits:
        deviceNodes:
            - path: /dev/vfio/13
              hostPath: /dev/vfio/13
containerEdits:
    env:
        - NVIDIA_VISIBLE_DEVICES=void
    deviceNodes:
        - path: /dev/vfio/vfio
          hostPath: /dev/vfio/vfio
";
    /// As NVIDIA's sandbox device plugin writes it: keys by the alphabet.
    const SANDBOX: &str = "cdiVersion: 0.5.0
containerEdits: {}
devices:
- containerEdits:
    deviceNodes:
    - path: /dev/vfio/10
  name: \"0\"
- containerEdits:
    deviceNodes:
    - path: /dev/vfio/devices/vfio3
  name: b
kind: nvidia.com/pgpu
";
    /// As `nvidia-ctk cdi generate` writes it for the host's driver, shortened.
    const DRIVER: &str = "---
cdiVersion: 0.5.0
containerEdits:
  deviceNodes:
  - path: /dev/nvidia-modeset
  - path: /dev/nvidia-uvm
  - path: /dev/nvidia-uvm-tools
  - path: /dev/nvidiactl
  env:
  - NVIDIA_VISIBLE_DEVICES=void
  hooks:
  - args:
    - nvidia-cdi-hook
    - create-symlinks
    - --link
    - ../libcuda.so.1::/usr/lib/x86_64-linux-gnu/libcuda.so
    hookName: createContainer
    path: /usr/bin/nvidia-cdi-hook
  mounts:
  - containerPath: /usr/bin/nvidia-smi
    hostPath: /usr/bin/nvidia-smi
    options:
    - ro
    - nosuid
    - bind
devices:
- containerEdits:
    deviceNodes:
    - path: /dev/nvidia0
    - path: /dev/dri/card1
    - path: /dev/dri/renderD128
    hooks:
    - args:
      - nvidia-cdi-hook
      - chmod
      - --mode
      - \"755\"
      hookName: createContainer
      path: /usr/bin/nvidia-cdi-hook
  name: GPU-a
- containerEdits:
    deviceNodes:
    - path: /dev/nvidia0
    - path: /dev/nvidia1
  name: all
kind: nvidia.com/gpu
";

    fn spec(kind: &str, name: &str, node: &str) -> String {
        format!(r#"{{"kind": "{kind}", "devices": [{{"name": "{name}", "containerEdits": {node}}}]}}"#)
    }

    fn with(node: &str) -> String {
        format!(r#"{{"deviceNodes": [{{"path": "{node}"}}]}}"#)
    }

    fn one(kind: &str, name: &str) -> String {
        spec(kind, name, &with("/dev/vfio/1"))
    }

    /// The name of the device with this node, where these files are.
    fn check(files: &[(&str, &str)], node: &str, expected: Option<&str>) {
        let host = Fixture::new(files);
        assert_eq!(Devices::read(host.path()).of_node(node).as_deref(), expected, "{node} {files:?}");
    }

    #[test]
    fn what_tools_write() {
        for (file, text, node, expected) in [
            ("etc/cdi/a.yaml", VFIO, "/dev/vfio/12", Some("nvidia.com/pgpu=0")),
            ("etc/cdi/a.yaml", VFIO, "/dev/vfio/13", Some("nvidia.com/pgpu=1")),
            ("etc/cdi/a.yaml", VFIO, "/dev/vfio/1", None),
            ("etc/cdi/a.yaml", VFIO, VFIO_CONTROL, None),
            ("var/run/cdi/a.yaml", SANDBOX, "/dev/vfio/10", Some("nvidia.com/pgpu=0")),
            ("var/run/cdi/a.yaml", SANDBOX, "/dev/vfio/devices/vfio3", Some("nvidia.com/pgpu=b")),
            ("etc/cdi/a.json", &one("a.b/c", "x:1"), "/dev/vfio/1", Some("a.b/c=x:1")),
            ("etc/cdi/a.yaml", &one("a/b", "0"), "/dev/vfio/1", Some("a/b=0")),
            // The library reads no such files.
            ("etc/cdi/a.yml", SANDBOX, "/dev/vfio/10", None),
            ("etc/cdi/sub/a.yaml", SANDBOX, "/dev/vfio/10", None),
            ("run/cdi/a.yaml", SANDBOX, "/dev/vfio/10", None),
        ] {
            check(&[(file, text)], node, expected);
        }
        let linked = [("var/run", "-> /run"), ("run/cdi/a.yaml", SANDBOX)];
        check(&linked, "/dev/vfio/10", Some("nvidia.com/pgpu=0"));
    }

    #[test]
    fn nvidias_driver() {
        let check = |text: &str, uuid: &str, minor, expected: Option<&str>| {
            let host = Fixture::new(&[("etc/cdi/nvidia.yaml", text)]);
            assert_eq!(Devices::read(host.path()).of_uuid(uuid, minor).as_deref(), expected, "{text}");
        };
        check(DRIVER, "GPU-a", 0, Some("nvidia.com/gpu=GPU-a"));
        check(DRIVER, "GPU-b", 0, None);
        // It was written before another GPU became the first one.
        check(DRIVER, "GPU-a", 1, None);
        check(DRIVER, "all", 0, None);
        check(&DRIVER.replace("card1", "nvidia1").replace("dri/nv", "nv"), "GPU-a", 0, None);
        check(&DRIVER.replace("  name: GPU-a", "  name: 'GPU-a'"), "GPU-a", 0, Some("nvidia.com/gpu=GPU-a"));
        check(&DRIVER.replace("path: /dev/nvidia0", "path: /dev/dxg"), "GPU-a", 0, None);
        check(&DRIVER.replace("kind: nvidia", "kind: k8s.nvidia"), "GPU-a", 0, None);
    }

    #[test]
    fn which_definition_counts() {
        let (x, y) = (one("v/c", "x"), one("v/c", "y"));
        let elsewhere = spec("v/c", "x", &with("/dev/vfio/2"));
        for (files, expected) in [
            // The later folder's, whatever the other says.
            (&[("etc/cdi/a.json", &x), ("var/run/cdi/a.json", &x)][..], Some("v/c=x")),
            (&[("etc/cdi/a.json", &elsewhere), ("var/run/cdi/a.json", &x)], Some("v/c=x")),
            (&[("etc/cdi/a.json", &x), ("var/run/cdi/a.json", &elsewhere)], None),
            // Two in one folder are a conflict, which a third one does not end.
            (&[("etc/cdi/a.json", &x), ("etc/cdi/b.json", &x)], None),
            (&[("etc/cdi/a.json", &x), ("etc/cdi/b.json", &elsewhere), ("var/run/cdi/a.json", &x)], None),
            // Two names for one node: which one is meant is not known.
            (&[("etc/cdi/a.json", &x), ("etc/cdi/b.json", &y)], None),
            (&[("etc/cdi/a.json", &x), ("var/run/cdi/b.json", &one("v/c", "all"))], Some("v/c=x")),
        ] {
            let files: Vec<(&str, &str)> = files.iter().map(|(path, text)| (*path, text.as_str())).collect();
            check(&files, "/dev/vfio/1", expected);
        }
    }

    #[test]
    fn what_is_not_understood_spoils_its_kind_alone() {
        let good = one("v/c", "x");
        let huge = "#".repeat(1 << 20);
        for (text, expected) in [
            ("", Some("v/c=x")),
            ("kind: &a other/c", Some("v/c=x")),
            ("kind: &a v/c", None),
            ("{\"kind\": \"v/c\", \"devices\":", None),
            // What it is of is not known.
            (&huge, None),
        ] {
            check(&[("etc/cdi/a.json", &good), ("etc/cdi/b.yaml", text)], "/dev/vfio/1", expected);
        }
        check(&[("etc/cdi/a.json", &good), ("etc/cdi/b.yaml/", "")], "/dev/vfio/1", Some("v/c=x"));
        check(&[("etc/cdi/a.json", &good), ("etc/cdi/b.yaml", "-> /nowhere")], "/dev/vfio/1", Some("v/c=x"));
        let names: Vec<String> = (0..=FILES_MAX).map(|n| format!("etc/cdi/{n}.json")).collect();
        let many: Vec<(&str, &str)> = names.iter().map(|name| (name.as_str(), good.as_str())).collect();
        check(&many, "/dev/vfio/1", None);
    }

    #[test]
    fn names_and_edits_that_are_refused() {
        let node = with("/dev/vfio/1");
        let long = "x".repeat(NAME_MAX + 1);
        let refused = |text: &str| check(&[("etc/cdi/a.json", text)], "/dev/vfio/1", None);
        for kind in
            ["", "v", "v/", "/c", "v/c/d", "-v/c", "1v/c", "v/c-", "v /c", "v/c,--privileged", "v/ü", &long]
        {
            refused(&one(kind, "x"));
        }
        for name in ["", "-x", "x-", "x y", "x,y", "x=y", "x/y", "x\\n", "--privileged", "../x", ":x", &long]
        {
            refused(&one("v/c", name));
        }
        for edits in [
            "null",
            "{}",
            "[]",
            "\"x\"",
            r#"{"deviceNodes": null}"#,
            r#"{"deviceNodes": {}}"#,
            r#"{"deviceNodes": [{}]}"#,
            r#"{"deviceNodes": ["/dev/vfio/1"]}"#,
            r#"{"deviceNodes": [{"path": 1}]}"#,
            // The node is another one's: by numbers of its own, by the host's path, or besides.
            r#"{"deviceNodes": [{"path": "/dev/vfio/1", "type": "c", "major": 1, "minor": 3}]}"#,
            r#"{"deviceNodes": [{"path": "/dev/vfio/1", "hostPath": "/dev/vfio/2"}]}"#,
            r#"{"deviceNodes": [{"path": "/dev/vfio/1"}, {"path": "/dev/vfio/2"}]}"#,
        ] {
            refused(&spec("v/c", "x", edits));
        }
        let common =
            one("v/c", "x").replacen('{', &format!("{{\"containerEdits\": {},", with("/dev/sda")), 1);
        refused(&common);
        let item = format!(r#"{{"name": "x", "containerEdits": {node}}},"#).repeat(DEVICES_MAX + 1);
        refused(&format!(r#"{{"kind": "v/c", "devices": [{}]}}"#, item.trim_end_matches(',')));
        refused(&"[".repeat(100_000));
    }
}
