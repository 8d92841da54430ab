//! GPUs from the bus to the container's command line and back to the control plane: the agent's own binary on a host
//! of made-up GPUs, with a container CLI that only remembers what it is told.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;

use crate::support::agent::{Agent, Node};
use crate::support::control_plane::{ControlPlane, TOKEN, WAIT};
use crate::support::host::Host;
use rustix::process::Signal;
use serde_json::{Value, json};

/// Keeps each container as a file of what `ps` prints, and the arguments of each `run`.
const CLI: &str = r#"#!/bin/sh
here=${0%/*}
mkdir -p "$here/up" "$here/exited"
for last; do :; done
case "$1" in
--version) echo "nerdctl version 2.2.2" ;;
version) echo '{"Client":{"Version":"2.2.2"},"Server":{"Components":[]}}' ;;
image)
    digest=sha256:0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef
    echo '{"Image":{"Name":"'"$last"'","Target":{"digest":"'$digest'"}},"ImageConfigDesc":{"digest":"'$digest'"}}'
    ;;
ps)
    for file in "$here"/up/*; do [ ! -e "$file" ] || printf '%s\tUp\n' "$(cat "$file")"; done
    for file in "$here"/exited/*; do [ ! -e "$file" ] || printf '%s\tExited (0) 1 second ago\n' "$(cat "$file")"; done
    ;;
run)
    replica=none deploy=none spec=none gpus=none
    for word; do
        case "$word" in
        --label=vectorlay.replica=*) replica=${word#*=*=} ;;
        --label=vectorlay.deploy=*) deploy=${word#*=*=} ;;
        --label=vectorlay.spec=*) spec=${word#*=*=} ;;
        --label=vectorlay.gpus=*) gpus=${word#*=*=} ;;
        esac
    done
    printf '%s\n' "$@" >"$here/run.$replica"
    id=$(printf '%064x' $$)
    printf '%s\t"%s"\t"%s"\t"%s"\t"%s"' "$id" "$replica" "$deploy" "$spec" "$gpus" >"$here/$id"
    mv "$here/$id" "$here/up/$id"
    echo "$id"
    ;;
container)
    if [ -e "$here/up/$last" ]; then
        echo '{"Status":"running","Running":true,"Pid":0,"ExitCode":0}'
    elif [ -e "$here/exited/$last" ]; then
        echo '{"Status":"exited","Running":false,"Pid":0,"ExitCode":137,"OOMKilled":true}'
    else
        echo "time=\"2026-01-01T00:00:00Z\" level=fatal msg=\"1 errors:\nno such container: $last\"" >&2
        exit 1
    fi
    ;;
pull)
    echo "time=\"2026-01-01T00:00:00Z\" level=fatal msg=\"failed to resolve reference: $last: not found\"" >&2
    exit 1
    ;;
stop) mv "$here/up/$last" "$here/exited/$last" && echo "$last" ;;
rm)
    rm -f "$here/up/$last" "$here/exited/$last"
    echo "$last"
    ;;
esac
"#;

/// Where the kernel names this boot.
const BOOT_ID: &str = "proc/sys/kernel/random/boot_id";

pub(super) struct World {
    pub(super) agent: Agent,
    pub(super) plane: ControlPlane,
    pub(super) node: Node,
    pub(super) id: String,
    host: Host,
}

impl World {
    pub(super) fn start(name: &str, facts: &str, settings: &[(&str, &str)]) -> Self {
        let (host, plane, mut node) = (Host::new(facts), ControlPlane::start(&[]), Node::new(name));
        let cli = node.path().join("cli/nerdctl");
        fs::create_dir(cli.parent().unwrap()).unwrap();
        fs::write(&cli, CLI).unwrap();
        fs::set_permissions(&cli, fs::Permissions::from_mode(0o755)).unwrap();
        node.set("container-cli", cli.to_str().unwrap()).set("root", host.root().to_str().unwrap());
        node.set("url", plane.url()).env("VECTORLAY_TOKEN", TOKEN);
        for (flag, value) in settings {
            node.set(flag, value);
        }
        let boot_id = host.root().join(BOOT_ID);
        fs::create_dir_all(boot_id.parent().unwrap()).unwrap();
        fs::write(boot_id, "boot-1\n").unwrap();
        let agent = node.start();
        let beat = plane.wait_event(WAIT, |event| event["type"] == "heartbeat");
        let id = beat["node"].as_str().unwrap().to_owned();
        Self { agent, plane, node, id, host }
    }

    /// The first such `system_info`.
    fn info(&self, wanted: impl Fn(&Value) -> bool) -> Value {
        let found = |event: &Value| event["type"] == "system_info" && wanted(&event["payload"]);
        self.plane.wait_event(WAIT, found)["payload"].clone()
    }

    /// Asks for a deploy with so many GPUs: its result.
    fn deploy(&self, replica: &str, gpus: u32) -> Value {
        let body = json!({"replica_id": replica, "image": "bb:1", "gpu_count": gpus});
        self.command("deploy", replica, &body)
    }

    fn stop(&self, replica: &str) -> Value {
        self.command("stop", replica, &json!({"replica_id": replica}))
    }

    pub(super) fn command(&self, verb: &str, replica: &str, body: &Value) -> Value {
        let mark = self.plane.mark();
        self.plane.api_post(&format!("/nodes/{}/{verb}", self.id), body);
        let kind = format!("{verb}_result");
        let result = self.plane.wait_event_after(mark, WAIT, |event| {
            event["type"] == kind.as_str() && event["payload"]["replica_id"] == replica
        });
        result["payload"].clone()
    }

    /// A deploy that gets the GPUs on these buses; the CLI's arguments.
    fn runs(&self, replica: &str, buses: &[&str]) -> Vec<String> {
        let result = self.deploy(replica, u32::try_from(buses.len()).unwrap());
        let gpus: Vec<String> = buses.iter().map(|bus| format!("0000:{bus}:00.0")).collect();
        assert_eq!((&result["status"], &result["gpus"]), (&json!("running"), &json!(gpus)), "{result}");
        let arguments =
            fs::read_to_string(self.node.path().join("cli").join(format!("run.{replica}"))).unwrap();
        let arguments: Vec<String> = arguments.lines().map(str::to_owned).collect();
        assert!(arguments.contains(&format!("--label=vectorlay.gpus={}", gpus.join("+"))), "{arguments:?}");
        arguments
    }

    /// A deploy that is refused for want of GPUs.
    fn refused(&self, replica: &str, gpus: u32, why: &str) {
        let result = self.deploy(replica, gpus);
        let got = (&result["status"], &result["code"], &result["error"]);
        assert_eq!(got, (&json!("failed"), &json!("no_gpu"), &json!(why)), "{result}");
    }

    /// Who has each GPU, as the operator is told.
    fn holders(&self) -> Vec<Value> {
        let (_, text) = self.node.said(&["status", "--json"]);
        let told: Value = serde_json::from_str(&text).unwrap();
        told["gpus"].as_array().unwrap().iter().map(|gpu| gpu["replica_id"].clone()).collect()
    }

    /// The host is booted anew, and its engine knows nothing of the containers that ran.
    pub(super) fn reboot(&mut self) {
        self.agent.kill();
        fs::remove_dir_all(self.node.path().join("cli/up")).unwrap();
        fs::write(self.host.root().join(BOOT_ID), "boot-2\n").unwrap();
        self.agent = self.node.start();
    }

    /// Starts the agent anew: its first heartbeat's status.
    fn restart(&mut self) -> Value {
        let mark = self.plane.mark();
        self.agent.kill();
        self.agent = self.node.start();
        let beat = self.plane.wait_event_after(mark, WAIT, |event| event["type"] == "heartbeat");
        beat["payload"]["status"].clone()
    }
}

/// The arguments that hand devices over.
fn devices(arguments: &[String]) -> Vec<&str> {
    let hands = |word: &&str| ["--device", "--gpus"].iter().any(|flag| word.starts_with(flag));
    arguments.iter().map(String::as_str).filter(hands).collect()
}

const BUSES: [&str; 8] = ["1b", "43", "52", "61", "9d", "c3", "d1", "df"];

/// Eight H100, four on each NUMA node, bound to `driver`.
pub(super) fn eight(driver: &str) -> String {
    let mut facts = "cpu GenuineIntel\ncmdline intel_iommu=on\niommu dmar0\nids\n".to_owned();
    for (n, bus) in BUSES.iter().enumerate() {
        let (group, numa) = (40 + n, n / 4);
        facts +=
            &format!("pci 0000:{bus}:00.0 10de:2330 0302 rev=a1 driver={driver} group={group} numa={numa}\n");
    }
    facts
}

#[test]
fn the_inventory_is_the_same_wherever_it_is_told() {
    let world = World::start("gpus-inventory", &eight("vfio-pci"), &[]);
    let info = world.info(|info| info["gpus"].as_array().is_some_and(|gpus| gpus.len() == 8));
    let lines = BUSES
        .map(|bus| format!("{bus}:00.0 3D controller: NVIDIA Corporation GH100 [H100 SXM5 80GB] (rev a1)"));
    assert_eq!(info["gpuInfo"], json!(lines));
    let first = json!({
        "pci_address": "0000:1b:00.0", "vendor_id": "10de", "device_id": "2330",
        "name": "NVIDIA Corporation GH100 [H100 SXM5 80GB]", "class": "0302", "driver": "vfio-pci",
        "iommu_group": 40, "numa_node": 0, "assignable": true, "health": "ok", "reason": null, "replica_id": null,
    });
    assert_eq!(info["gpus"][0], first);

    let (status, text) = world.node.said(&["info", "--json"]);
    assert_eq!(status, 0, "{text}");
    let told: Value = serde_json::from_str(&text).unwrap();
    assert_eq!(told["gpuInfo"], info["gpuInfo"]);
    for (told, sent) in told["gpus"].as_array().unwrap().iter().zip(info["gpus"].as_array().unwrap()) {
        let mut sent = sent.clone();
        sent.as_object_mut().unwrap().remove("replica_id");
        assert_eq!(*told, sent);
    }

    let (_, text) = world.node.said(&["check"]);
    for (group, bus) in (40..).zip(BUSES) {
        let line = format!("GPU 0000:{bus}:00.0  assignable as /dev/vfio/{group}\n");
        assert!(text.contains(&line), "{text}");
    }
    assert!(text.contains("vfio: --device /dev/vfio/N"), "{text}");
    let node = world.plane.wait_node(&world.id, WAIT, |node| node["heartbeat"].is_object());
    let status = &node["heartbeat"]["status"];
    assert_eq!((&status["gpus_total"], &status["gpus_free"]), (&json!(8), &json!(8)));
    assert_eq!(status["gpu_utilization"], Value::Null, "nobody can look into them");
}

#[test]
fn from_the_fewest_numa_nodes_and_never_twice() {
    let mut world = World::start("gpus-numa", &eight("vfio-pci"), &[]);
    let arguments = world.runs("pair", &["1b", "43"]);
    assert_eq!(devices(&arguments), ["--device=/dev/vfio/40", "--device=/dev/vfio/41"]);
    world.runs("four", &["9d", "c3", "d1", "df"]);
    world.refused("three", 3, "GPUs requested: 3; 2 of 8 are free");
    world.runs("rest", &["52", "61"]);
    world.refused("none", 1, "GPUs requested: 1; 0 of 8 are free");
    assert_eq!(world.holders(), ["pair", "pair", "rest", "rest", "four", "four", "four", "four"]);

    // The labels alone say who has what.
    fs::remove_file(world.node.state().join("state.json")).unwrap();
    let status = world.restart();
    assert_eq!((&status["gpus_total"], &status["gpus_free"]), (&json!(8), &json!(0)), "{status}");
    let held = |replica: &str| {
        let of = |container: &&Value| container["replica_id"] == replica;
        status["containers"].as_array().unwrap().iter().find(of).unwrap()["gpus"].clone()
    };
    assert_eq!(held("pair"), json!(["0000:1b:00.0", "0000:43:00.0"]));
    world.refused("none", 1, "GPUs requested: 1; 0 of 8 are free");

    assert_eq!(world.stop("pair")["status"], "stopped");
    world.runs("next", &["1b", "43"]);
    assert_eq!(world.stop("four")["status"], "stopped");
    let arguments = world.runs("one", &["9d"]);
    assert_eq!(devices(&arguments), ["--device=/dev/vfio/44"]);
}

#[test]
fn what_is_not_well_or_not_free_is_left_out_and_named() {
    let mut world = World::start("gpus-left-out", &eight("vfio-pci"), &[]);
    world.info(|info| info["gpus"][7]["assignable"] == true);
    world.host.fact("pci 0000:1b:00.0 10de:2330 0302 rev=a1 driver=nvidia group=40 numa=0");
    world.host.fact("pci 0000:43:00.0 10de:2330 0302 rev=a1 driver=vfio-pci group=41 numa=0 config=ones");
    world.host.fact("holder 4242 qemu-system-x86 /dev/vfio/42");
    let (status, text) = world.node.said(&["gpu", "hold", "0000:61:00.0"]);
    assert_eq!(status, 0, "{text}");
    world.agent.signal(Signal::HUP);
    let info =
        world.info(|info| info["gpus"][0]["assignable"] == false && info["gpus"][3]["assignable"] == false);
    let reasons = [
        "0000:1b:00.0 is bound to nvidia; run `vectorlay-agent vfio bind 0000:1b:00.0`",
        "fell off the bus",
        "/dev/vfio/42 is held by process 4242 (qemu-system-x86)",
        "held back by the operator",
    ];
    for (gpu, words) in info["gpus"].as_array().unwrap().iter().zip(reasons) {
        let reason = gpu["reason"].as_str().unwrap_or_default();
        assert!(gpu["assignable"] == false && reason.contains(words), "{gpu} lacks {words:?}");
    }
    let health: Vec<&Value> = info["gpus"].as_array().unwrap().iter().map(|gpu| &gpu["health"]).collect();
    assert_eq!(health, ["ok", "failed", "ok", "ok", "ok", "ok", "ok", "ok"]);
    // The operator's word is the agent's alone; the rest, check finds by itself.
    let (_, text) = world.node.said(&["check"]);
    for words in &reasons[..3] {
        assert!(text.contains(words), "{text} lacks {words:?}");
    }
    world.refused("five", 5, "GPUs requested: 5; 4 of 8 are free");
    world.runs("four", &["9d", "c3", "d1", "df"]);

    // What was held back stays so across a restart, until it is released.
    assert_eq!(world.restart()["gpus_free"], 0);
    let (status, text) = world.node.said(&["gpu", "release", "0000:61:00.0"]);
    assert_eq!(status, 0, "{text}");
    world.runs("released", &["61"]);
}

#[test]
fn by_nvidias_driver_for_a_plain_runtime() {
    let uuid = |n: usize| format!("GPU-00000000-0000-0000-0000-00000000000{n}");
    let mut facts = eight("nvidia");
    for (n, bus) in BUSES.iter().enumerate().skip(1) {
        facts += &format!("uuid 0000:{bus}:00.0 {}\n", uuid(n));
    }
    let world = World::start("gpus-nvidia", &facts, &[("runtime", "io.containerd.runc.v2")]);
    let (_, text) = world.node.said(&["check"]);
    assert!(text.contains("nvidia: --gpus with the UUIDs"), "{text}");
    assert!(text.contains("does not tell the UUID of 0000:1b:00.0"), "{text}");
    world.refused("all", 8, "GPUs requested: 8; 7 of 8 are free");
    let arguments = world.runs("pair", &["43", "52"]);
    assert_eq!(devices(&arguments), [format!("--gpus=\"device={},{}\"", uuid(1), uuid(2))]);
    assert!(arguments.contains(&"--runtime=io.containerd.runc.v2".to_owned()));
    assert_eq!(world.holders()[..4], [Value::Null, json!("pair"), json!("pair"), Value::Null]);
}

#[test]
fn by_amdgpu_for_a_plain_runtime() {
    let facts = "
        cpu AuthenticAMD
        ids
        pci 0000:05:00.0 1002:740f 0380 driver=amdgpu
        pci 0000:85:00.0 1002:74a1 1200 driver=amdgpu
        render 0000:05:00.0 128
        render 0000:85:00.0 129
        file dev/kfd
    ";
    let world = World::start("gpus-amd", facts, &[("runtime", "runc")]);
    let arguments = world.runs("both", &["05", "85"]);
    let expected = ["--device=/dev/kfd", "--device=/dev/dri/renderD128", "--device=/dev/dri/renderD129"];
    assert_eq!(devices(&arguments), expected);
    let (_, text) = world.node.said(&["check"]);
    assert!(text.contains("amd: --device /dev/kfd"), "{text}");
}

#[test]
fn a_node_that_hands_out_none() {
    let world = World::start("gpus-none", &eight("vfio-pci"), &[("gpu-handover", "none")]);
    world.refused("one", 1, "GPUs requested: 1; 0 of 8 are free");
    let info = world.info(|info| info["gpus"].as_array().is_some_and(|gpus| gpus.len() == 8));
    assert!(info["gpus"][0]["reason"].as_str().unwrap().contains("gpu_handover"), "{info}");
    let result = world.deploy("without", 0);
    assert_eq!(result["status"], "running", "{result}");
}
