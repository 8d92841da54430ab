//! What the host's owner allows a deploy, and what nobody can ask for.

use serde_json::{Value, json};

use crate::world::World;

#[test]
fn the_owners_settings_are_named_where_they_refuse() {
    let started = World::with("the_owners_settings_are_named_where_they_refuse", |node, _| {
        node.set("images", "*")
            .set("max-memory-mb", "64")
            .set("max-replicas", "1")
            .set("runtime", "io.containerd.runc.v2");
    });
    let Some((world, ())) = started else { return };
    let refused = |fields: Value, setting: &str| {
        let error = world.fail("a", &fields, "not_allowed");
        assert!(error.contains(setting), "{error}");
    };
    refused(json!({"memory_mb": 65}), "max_memory_mb");
    refused(json!({}), "max_memory_mb");
    refused(json!({"memory_mb": 64, "image": "127.0.0.1:5000/x"}), "images");
    let auth = json!({"server": "169.254.169.254", "username": "u", "password": "hunter2"});
    refused(json!({"memory_mb": 64, "registry_auth": auth}), "images");
    refused(json!({"memory_mb": 64, "ports": [{"host": 22, "container": 22}]}), "port_min");
    let fits = json!({"memory_mb": 64});
    world.deploy("b", &fits);
    refused(fits.clone(), "max_replicas");
    // What runs is not counted against itself.
    world.deploy("b", &fits);
    world.stop("b", &json!({}));
    world.deploy("a", &fits);
}

/// Everything that a deploy can say, and what others' protocols have besides.
fn greedy() -> Value {
    json!({
        "env_vars": {"A": "1"}, "command": ["/bin/sleep", "600"], "cpus": 0.5, "memory_mb": 64, "shm_size_mb": 8,
        "pids_limit": 64, "ports": [{"host": 23456, "container": 80}], "stop_timeout_s": 1, "deploy_timeout_s": 60,
        "pull": "never", "gpu_count": 0,
        "privileged": true, "network": "host", "network_mode": "host", "ipc": "host", "pid": "host", "user": "0:0",
        "cap_add": ["ALL"], "volumes": ["/:/host"], "mounts": [{"type": "bind", "source": "/", "target": "/host"}],
        "security_opt": ["seccomp=unconfined", "apparmor=unconfined"], "devices": ["/dev/kmsg"], "runtime": "runc",
        "sysctls": {"kernel.msgmax": "1"}, "cgroup_parent": "/", "annotations": {"a": "b"}, "labels": {"a": "b"},
    })
}

#[test]
fn nothing_gives_a_deploy_more_than_a_plain_container() {
    let test = "nothing_gives_a_deploy_more_than_a_plain_container";
    let Some((world, ())) = World::with(test, |node, _| _ = node.set("network", "bridge")) else { return };
    let container = world.deploy("greedy", &greedy());
    let plain = world.engine.start_foreign_with("plain", "bridge", &[]);
    if world.engine.is_docker() {
        let host = |id: &str| world.engine.inspect(id)["HostConfig"].clone();
        let (mut ours, mut plain) = (host(&container), host(&plain));
        // What the deploy may say, and the place of a file.
        for field in [
            "NanoCpus",
            "CpuQuota",
            "CpuPeriod",
            "Memory",
            "MemorySwap",
            // /dev/shm, by its own size.
            "Tmpfs",
            "PidsLimit",
            "PortBindings",
            "LogConfig",
            "Runtime",
            // Higher than a plain container's, so that the kernel ends tenants first (exits.rs).
            "OomScoreAdj",
        ] {
            for side in [&mut ours, &mut plain] {
                side[field].take();
            }
        }
        assert_eq!(ours, plain);
        assert_eq!(
            world.engine.inspect(&container)["HostConfig"]["Tmpfs"],
            json!({"/dev/shm/": "size=8m,mode=1777"})
        );
        assert_eq!((&ours["Privileged"], &ours["Binds"]), (&json!(false), &Value::Null));
        return;
    }
    let spec = |id: &str| {
        let text = world.engine.text(&["container", "inspect", "--mode=native", id]);
        serde_json::from_str::<Value>(&text).unwrap()[0]["Spec"].take()
    };
    let (ours, plain) = (spec(&container), spec(&plain));
    for part in [
        "/process/capabilities",
        "/process/user",
        "/process/noNewPrivileges",
        "/process/apparmorProfile",
        "/process/selinuxLabel",
        "/process/rlimits",
        "/linux/seccomp",
        "/linux/maskedPaths",
        "/linux/readonlyPaths",
        "/linux/devices",
        "/linux/sysctl",
        "/linux/resources/devices",
        "/linux/namespaces",
        "/root/readonly",
    ] {
        let (one, other) = (ours.pointer(part), plain.pointer(part));
        assert_eq!(one, other, "{part}");
    }
    assert!(ours.pointer("/process/capabilities/bounding").is_some(), "{ours}");
    let kinds = |spec: &Value| -> Vec<(String, String, Value)> {
        let text = |mount: &Value, field: &str| mount[field].as_str().unwrap_or_default().to_owned();
        let all = spec["mounts"].as_array().unwrap().iter();
        all.map(|mount| {
            // shm has the size that the deploy gives it.
            let destination = text(mount, "destination").trim_end_matches('/').to_owned();
            let options = if destination == "/dev/shm" { Value::Null } else { mount["options"].clone() };
            (destination, text(mount, "type"), options)
        })
        .collect()
    };
    let kinds = |spec: &Value| {
        let mut kinds = kinds(spec);
        kinds.sort_by(|one, other| one.0.cmp(&other.0));
        kinds
    };
    assert_eq!(kinds(&ours), kinds(&plain));
    let binds: Vec<&str> = ours["mounts"]
        .as_array()
        .unwrap()
        .iter()
        .filter(|mount| mount["type"] == "bind")
        .map(|mount| mount["destination"].as_str().unwrap())
        .collect();
    assert!(
        binds.iter().all(|place| ["/etc/hosts", "/etc/resolv.conf", "/etc/hostname"].contains(place)),
        "{binds:?}"
    );
}
