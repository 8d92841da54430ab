//! Devices of the Container Device Interface (CDI): what a host's specifications name, and which of it is a GPU's.
//!
//! nerdctl looks names up by the CDI library (`pkg/cdi` of container-device-interface), in /etc/cdi and /var/run/cdi,
//! in files that end in `.json` or `.yaml`. A name here is one that the library finds too, and finds alone: two
//! definitions in one folder make a name unusable, and of two folders the later one counts, but only where it names the
//! same nodes. The library refuses a file whole for the least fault, and what it refuses does not count, so that a name
//! can come to stand for another file's device. So a file is taken only if it has nothing but fields that are checked
//! here as the library checks them; otherwise the names of its kind are left alone, and all names where its kind is not
//! sure, or where the library might break off at it. A GPU is then handed over by its node, which is always right.
//! nerdctl's configuration can name other folders: that is what `gpu_cdi = never` is for.
//!
//! AMD's GPUs stay with their nodes: a container needs nothing else of the host's.

use std::path::Path;

use serde_json::{Map, Value};

use super::files;
use super::handover::{self, Way};
use super::yaml;
use crate::core::inventory::Gpu;

/// How many files of one folder are read. Tools write one for each kind.
const FILES_MAX: usize = 64;
/// How many devices one file may have. Eight GPUs in their smallest parts are 56.
const DEVICES_MAX: usize = 1024;
/// The longest vendor, class or device's name, in bytes (a vendor is a DNS name).
const NAME_MAX: usize = 253;
/// The specification's versions that each nerdctl with CDI names knows (2.1.0 has the library's 1.0.1).
const VERSIONS: [&str; 7] = ["0.3.0", "0.4.0", "0.5.0", "0.6.0", "0.7.0", "0.8.0", "1.0.0"];
/// Since this one a device's name may begin with a digit, and a node may have another path on the host.
const V0_5: usize = 2;
/// Since this one a class may have dots.
const V0_6: usize = 3;
/// What a hook can be of.
const HOOKS: [&str; 6] =
    ["prestart", "createRuntime", "createContainer", "startContainer", "poststart", "poststop"];
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
    /// The host's paths of the nodes that it brings.
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
            // The library looks into no folder that is a link.
            if root.join(path).is_symlink() {
                continue;
            }
            let mut names = files::names(root, path);
            names.retain(|name| name.ends_with(".json") || name.ends_with(".yaml"));
            if names.len() > FILES_MAX {
                return Self::default();
            }
            for path in names.iter().map(|name| root.join(path).join(name)).filter(|path| path.is_file()) {
                // What cannot be read cannot be read by the CLI.
                let Ok(bytes) = files::bytes(&path) else { continue };
                // It may be longer than what was read.
                let whole = (bytes.len() as u64) < files::FILE_MAX;
                let text = std::str::from_utf8(&bytes).ok().filter(|_| whole);
                let Some(spec) = text.and_then(yaml::parse).filter(|spec| !has_gaps(spec)) else {
                    return Self::default();
                };
                let Some(kind) = word(&spec, "kind").filter(|kind| is_kind(kind)) else {
                    return Self::default();
                };
                match parse(&spec, kind, folder) {
                    Some(devices) => all.extend(devices),
                    None => strange.push(kind.to_owned()),
                }
            }
        }
        all.retain(|device: &Device| {
            let kind = device.name.split('=').next();
            !strange.iter().any(|strange| kind == Some(strange))
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
        let last = same().all(|other| other.folder <= device.folder && other.nodes == device.nodes);
        !conflict && last && !device.name.ends_with("=all")
    }
}

/// The devices of one specification; `None`: not understood, or the library refuses it.
fn parse(spec: &Value, kind: &str, folder: u8) -> Option<Vec<Device>> {
    let known = VERSIONS.iter().position(|version| word(spec, "cdiVersion") == Some(version))?;
    let dotted = kind.split_once('/')?.1.contains('.');
    if dotted && known < V0_6 {
        return None;
    }
    let spec = fields(spec, &["cdiVersion", "kind", "devices", "containerEdits"])?;
    let common = spec.get("containerEdits").map_or(Some(Vec::new()), |edits| nodes(edits, known))?;
    let devices = spec.get("devices")?.as_array().filter(|devices| devices.len() <= DEVICES_MAX)?;
    let mut all: Vec<Device> = Vec::new();
    for device in devices {
        let edits = fields(device, &["name", "containerEdits"])?.get("containerEdits")?;
        // A device that brings nothing is none.
        edits.as_object()?.values().find(|list| **list != Value::Array(Vec::new()))?;
        let name = word(device, "name").filter(|name| is_name(name, true))?;
        if name.starts_with(|c: char| c.is_ascii_digit()) && known < V0_5 {
            return None;
        }
        let name = format!("{kind}={name}");
        if all.iter().any(|other| other.name == name) {
            return None;
        }
        all.push(Device { name, nodes: [nodes(edits, known)?, common.clone()].concat(), folder });
    }
    (!all.is_empty()).then_some(all)
}

/// The host's paths of the nodes among these edits, if there is nothing wrong with any of them.
fn nodes(edits: &Value, known: usize) -> Option<Vec<String>> {
    let edits = fields(edits, &["deviceNodes", "env", "hooks", "mounts"])?;
    each(edits, "env", is_variable)?;
    each(edits, "hooks", |hook| {
        fields(hook, &["hookName", "path", "args", "env"]).is_some_and(|fields| {
            word(hook, "hookName").is_some_and(|name| HOOKS.contains(&name))
                && path(hook, "path").is_some()
                && each(fields, "args", Value::is_string).is_some()
                && each(fields, "env", is_variable).is_some()
        })
    })?;
    each(edits, "mounts", |mount| {
        fields(mount, &["hostPath", "containerPath", "options"]).is_some_and(|fields| {
            path(mount, "hostPath").is_some()
                && path(mount, "containerPath").is_some()
                && each(fields, "options", Value::is_string).is_some()
        })
    })?;
    let node = |node: &Value| {
        // Numbers of its own would be the node, whatever is at the path: they are none of the fields.
        let fields = fields(node, &["path", "hostPath", "permissions"])?;
        let inside = path(node, "path")?;
        if let Some(permissions) = fields.get("permissions") {
            permissions.as_str().filter(|all| all.bytes().all(|b| b"rwm".contains(&b)))?;
        }
        let host = if fields.contains_key("hostPath") { path(node, "hostPath")? } else { inside };
        (known >= V0_5 || !fields.contains_key("hostPath")).then(|| host.to_owned())
    };
    list(edits, "deviceNodes")?.iter().map(node).collect()
}

/// The object, if it has no other fields than these.
fn fields<'a>(value: &'a Value, known: &[&str]) -> Option<&'a Map<String, Value>> {
    value.as_object().filter(|fields| fields.keys().all(|key| known.contains(&key.as_str())))
}

/// A field's list; empty where there is no such field.
fn list<'a>(fields: &'a Map<String, Value>, key: &str) -> Option<&'a [Value]> {
    fields.get(key).map_or(Some(&[]), |list| list.as_array().map(Vec::as_slice))
}

/// Whether a field's list has only what `fits`.
fn each(fields: &Map<String, Value>, key: &str, fits: fn(&Value) -> bool) -> Option<()> {
    list(fields, key)?.iter().all(fits).then_some(())
}

fn word<'a>(of: &'a Value, key: &str) -> Option<&'a str> {
    of.get(key)?.as_str()
}

fn path<'a>(of: &'a Value, key: &str) -> Option<&'a str> {
    word(of, key).filter(|path| path.starts_with('/'))
}

fn is_variable(value: &Value) -> bool {
    value.as_str().is_some_and(|text| text.find('=').is_some_and(|at| at > 0))
}

/// Whether a list has an item that is null, at which the library breaks off, and the CLI with it.
fn has_gaps(value: &Value) -> bool {
    match value {
        Value::Array(items) => items.iter().any(|item| item.is_null() || has_gaps(item)),
        Value::Object(fields) => fields.values().any(has_gaps),
        _ => false,
    }
}

/// A vendor and a class. At one of a single letter the library breaks off too.
fn is_kind(kind: &str) -> bool {
    let part = |part: &str| part.len() > 1 && is_name(part, false);
    kind.split_once('/').is_some_and(|(vendor, class)| part(vendor) && part(class))
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
        versioned("0.5.0", kind, name, node)
    }

    fn versioned(version: &str, kind: &str, name: &str, edits: &str) -> String {
        format!(
            r#"{{"cdiVersion": "{version}", "kind": "{kind}",
            "devices": [{{"name": "{name}", "containerEdits": {edits}}}]}}"#
        )
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
            ("etc/cdi/a.json", &one("a.b/cl", "x:1"), "/dev/vfio/1", Some("a.b/cl=x:1")),
            ("etc/cdi/a.yaml", &one("vd/cl", "0"), "/dev/vfio/1", Some("vd/cl=0")),
            // The library reads no such files.
            ("etc/cdi/a.yml", SANDBOX, "/dev/vfio/10", None),
            ("etc/cdi/sub/a.yaml", SANDBOX, "/dev/vfio/10", None),
            ("run/cdi/a.yaml", SANDBOX, "/dev/vfio/10", None),
        ] {
            check(&[(file, text)], node, expected);
        }
        let linked = [("var/run", "-> /run"), ("run/cdi/a.yaml", SANDBOX)];
        check(&linked, "/dev/vfio/10", Some("nvidia.com/pgpu=0"));
        let linked = [("else/a.yaml", SANDBOX), ("etc/cdi", "-> ../else")];
        check(&linked, "/dev/vfio/10", None);
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
        let (x, y) = (one("vd/cl", "x"), one("vd/cl", "y"));
        let elsewhere = spec("vd/cl", "x", &with("/dev/vfio/2"));
        for (files, expected) in [
            (&[("etc/cdi/a.json", &x), ("var/run/cdi/a.json", &x)][..], Some("vd/cl=x")),
            // It would be the later folder's, if nothing is wrong with that.
            (&[("etc/cdi/a.json", &elsewhere), ("var/run/cdi/a.json", &x)], None),
            (&[("etc/cdi/a.json", &x), ("var/run/cdi/a.json", &elsewhere)], None),
            // Two in one folder are a conflict, which a third one does not end.
            (&[("etc/cdi/a.json", &x), ("etc/cdi/b.json", &x)], None),
            (&[("etc/cdi/a.json", &x), ("etc/cdi/b.json", &elsewhere), ("var/run/cdi/a.json", &x)], None),
            // Two names for one node: which one is meant is not known.
            (&[("etc/cdi/a.json", &x), ("etc/cdi/b.json", &y)], None),
            (&[("etc/cdi/a.json", &x), ("var/run/cdi/b.json", &one("vd/cl", "all"))], Some("vd/cl=x")),
        ] {
            let files: Vec<(&str, &str)> = files.iter().map(|(path, text)| (*path, text.as_str())).collect();
            check(&files, "/dev/vfio/1", expected);
        }
    }

    #[test]
    fn what_a_file_spoils_that_is_not_understood() {
        let good = one("vd/cl", "x");
        let huge = "#".repeat(1 << 20);
        let (its_own, other, all) = (None, Some("vd/cl=x"), None);
        for (text, expected) in [
            ("cdiVersion: 9.0.0\nkind: other/cl", other),
            ("cdiVersion: 9.0.0\nkind: vd/cl", its_own),
            (r#"{"kind": "vd/cll"}"#, other),
            (r#"{"kind": "vd/cl", "later": [1]}"#, its_own),
            // What they are of is not known.
            ("", all),
            ("kind: &a other/cl", all),
            (r#"{"kind": "other\/cl"}"#, all),
            (r#"{"kind": "other/cl", "devices":"#, all),
            (r#"{"KIND": "other/cl"}"#, all),
            (&huge, all),
            // The library breaks off at them.
            (r#"{"kind": "o/cl"}"#, all),
            ("kind: other/cl\ncontainerEdits:\n  deviceNodes:\n  -\n", all),
        ] {
            check(&[("etc/cdi/a.json", &good), ("etc/cdi/b.yaml", text)], "/dev/vfio/1", expected);
        }
        check(&[("etc/cdi/a.json", &good), ("etc/cdi/b.yaml/", "")], "/dev/vfio/1", Some("vd/cl=x"));
        check(
            &[("etc/cdi/a.json", &good), ("etc/cdi/b.yaml", "-> /nowhere")],
            "/dev/vfio/1",
            Some("vd/cl=x"),
        );
        let names: Vec<String> = (0..=FILES_MAX).map(|n| format!("etc/cdi/{n}.json")).collect();
        let many: Vec<(&str, &str)> = names.iter().map(|name| (name.as_str(), good.as_str())).collect();
        check(&many, "/dev/vfio/1", None);
    }

    #[test]
    fn what_the_library_refuses() {
        let check = |text: &str, taken: bool| {
            let old = spec("vd/cl", "x", &with("/dev/vfio/2"));
            check(&[("etc/cdi/a.json", text)], "/dev/vfio/1", taken.then_some("vd/cl=x"));
            // It lets another file's device be what the name stands for.
            check(&[("etc/cdi/a.json", &old), ("var/run/cdi/a.json", text)], "/dev/vfio/1", None);
            check(&[("var/run/cdi/a.json", &old), ("etc/cdi/a.json", text)], "/dev/vfio/2", None);
        };
        let good = one("vd/cl", "x");
        let changed = |from: &str, to: &str| {
            assert!(good.contains(from), "{from}");
            good.replacen(from, to, 1)
        };
        for version in VERSIONS {
            check(&changed("0.5.0", version), true);
        }
        for version in ["", "0.2.0", "0.5", "0.5.1", "v0.5.0", "1.0.1", "1.1.0", "1.9.0"] {
            check(&changed("0.5.0", version), false);
        }
        for (from, to) in [
            ("\"cdiVersion\": \"0.5.0\", ", ""),
            ("\"0.5.0\"", "0.5"),
            ("{", "{\"annotations\": {}, "),
            ("{", "{\"kind\": \"vd/cl\", "),
            ("{\"name\"", "{\"later\": 1, \"name\""),
            ("{\"path\"", "{\"major\": 195, \"path\""),
            ("{\"path\"", "{\"permissions\": \"rwx\", \"path\""),
            ("[{\"name\"", "[{\"name\": \"y\", \"containerEdits\": {}}, {\"name\""),
            ("[{\"name\"", "[{\"name\": \"y\", \"containerEdits\": {\"env\": []}}, {\"name\""),
            ("[{\"name\"", "[{\"name\": \"y\"}, {\"name\""),
            ("[{\"name\"", "[{\"name\": \"x\", \"containerEdits\": {\"env\": [\"A=\"]}}, {\"name\""),
        ] {
            check(&changed(from, to), false);
        }
        for (edits, fits) in [
            (r#""env": ["A=", "B=c=d"], "hooks": [], "mounts": []"#, true),
            (r#""env": ["A"]"#, false),
            (r#""env": ["=A"]"#, false),
            (r#""env": [1]"#, false),
            (r#""env": "A=b""#, false),
            (r#""hooks": [{"hookName": "prestart", "path": "/a", "args": ["a", ""], "env": ["A=b"]}]"#, true),
            (r#""hooks": [{"hookName": "prestart"}]"#, false),
            (r#""hooks": [{"hookName": "preStart", "path": "/a"}]"#, false),
            (r#""hooks": [{"hookName": "prestart", "path": "a"}]"#, false),
            (r#""hooks": [{"hookName": "prestart", "path": "/a", "args": [1]}]"#, false),
            (r#""hooks": [{"hookName": "prestart", "path": "/a", "env": ["A"]}]"#, false),
            (r#""hooks": [{"hookName": "prestart", "path": "/a", "timeout": "1"}]"#, false),
            (r#""mounts": [{"hostPath": "/a", "containerPath": "/b", "options": ["ro"]}]"#, true),
            (r#""mounts": [{"hostPath": "/a", "containerPath": ""}]"#, false),
            (r#""mounts": [{"containerPath": "/b"}]"#, false),
            (r#""mounts": [{"hostPath": "/a", "containerPath": "/b", "options": "ro"}]"#, false),
            (r#""mounts": [{"hostPath": "/a", "containerPath": "/b", "kind": "c"}]"#, false),
            (r#""intelRdt": {}"#, false),
            (r#""additionalGids": [0]"#, false),
        ] {
            check(&changed("{", &format!("{{\"containerEdits\": {{{edits}}}, ")), fits);
            check(&changed("{\"deviceNodes\"", &format!("{{{edits}, \"deviceNodes\"")), fits);
        }
        let own = r#"{"deviceNodes": [{"path": "/a", "hostPath": "/dev/vfio/1", "permissions": "rw"}]}"#;
        for (version, name, edits, taken) in [
            ("0.4.0", "x", own, false),
            ("0.5.0", "x", own, true),
            ("0.4.0", "0", &with("/dev/vfio/1"), false),
        ] {
            check(&versioned(version, "vd/cl", name, edits), taken);
        }
        for (version, taken) in [("0.5.0", None), ("0.6.0", Some("vd/c.l=x"))] {
            let text = versioned(version, "vd/c.l", "x", own);
            super::tests::check(&[("etc/cdi/a.json", &text)], "/dev/vfio/1", taken);
        }
    }

    #[test]
    fn names_and_edits_that_are_refused() {
        let node = with("/dev/vfio/1");
        let long = "x".repeat(NAME_MAX + 1);
        let refused = |text: &str| check(&[("etc/cdi/a.json", text)], "/dev/vfio/1", None);
        for kind in [
            "",
            "vd",
            "v/cl",
            "vd/c",
            "vd/",
            "/cl",
            "vd/cl/d",
            "-vd/cl",
            "1vd/cl",
            "vd/cl-",
            "vd /cl",
            "vd/cl,--privileged",
            "vd/ü",
            &long,
        ] {
            refused(&one(kind, "x"));
        }
        for name in ["", "-x", "x-", "x y", "x,y", "x=y", "x/y", "x\\n", "--privileged", "../x", ":x", &long]
        {
            refused(&one("vd/cl", name));
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
            refused(&spec("vd/cl", "x", edits));
        }
        let common =
            one("vd/cl", "x").replacen('{', &format!("{{\"containerEdits\": {},", with("/dev/sda")), 1);
        refused(&common);
        let item = format!(r#"{{"name": "x", "containerEdits": {node}}},"#).repeat(DEVICES_MAX + 1);
        let item = item.trim_end_matches(',');
        refused(&format!(r#"{{"cdiVersion": "0.5.0", "kind": "vd/cl", "devices": [{item}]}}"#));
        refused(&"[".repeat(100_000));
    }
}
