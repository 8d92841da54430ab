//! An image is made by a stranger. Nothing of its configuration is obeyed on the host: it is refused, or turned off,
//! and what is run is what was looked at.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;

use serde_json::{Value, json};

use crate::support::control_plane::WAIT;
use crate::support::engine::Gate;
use crate::support::images::{Images, architecture};
use crate::support::skip::skip;
use crate::support::wait::wait_until;
use crate::world::World;

/// A label of a container, where the engine shows it.
fn label(world: &World, container: &str, key: &str) -> Value {
    world.engine.inspect(container)["Config"]["Labels"][key].clone()
}

fn volumes(world: &World) -> Vec<String> {
    world.engine.text(&["volume", "ls", "--quiet"]).lines().map(str::to_owned).collect()
}

/// Each would be an order to root on the host: what nerdctl 2.0 to 2.3 and containerd have been seen to make of them
/// is to run a program, to write a file, to publish a port and to remove a volume.
#[test]
fn an_image_with_orders_to_the_host_is_refused() {
    let test = "an_image_with_orders_to_the_host_is_refused";
    let Some(world) = World::start(test) else { return };
    let Some(mut images) = Images::of(&world.engine, test) else { return };
    let trap = world.node.path().join("trap");
    let script = world.node.path().join("script");
    fs::write(&script, format!("#!/bin/sh\necho caught >'{}'\n", trap.display())).unwrap();
    fs::set_permissions(&script, fs::Permissions::from_mode(0o755)).unwrap();
    let victim = format!("victim-{}", std::process::id());
    world.engine.text(&["volume", "create", &victim]);
    let program = format!("binary://{}", script.display());
    let port = r#"[{"HostPort":18099,"ContainerPort":80,"Protocol":"tcp","HostIP":"0.0.0.0"}]"#;
    let orders = [
        (
            "restart",
            json!({"containerd.io/restart.status": "running", "containerd.io/restart.loguri": program}),
        ),
        ("pid-file", json!({"nerdctl/pid-file": trap})),
        ("hidden", json!({"com.example.nerdctl/pid-file": trap})),
        ("ports", json!({"nerdctl/ports": port})),
        ("volumes", json!({"nerdctl/anonymous-volumes": format!("[\"{victim}\"]")})),
        ("network", json!({"nerdctl/network-namespace": "/proc/1/ns/net"})),
        ("kata", json!({"io.katacontainers.config.hypervisor.path": script})),
        ("cri", json!({"io.cri-containerd.kind": "sandbox"})),
        ("swarm", json!({"com.docker.swarm.service.id": "x"})),
        ("ours", json!({"vectorlay.later": "another"})),
    ];
    for (name, labels) in &orders {
        let image = format!("vectorlay-hostile/{name}:1");
        images.load(&image, &json!({"Labels": labels}));
        let error = world.fail("h", &json!({"image": image}), "image_refused");
        let named = labels.as_object().unwrap().keys().any(|key| error.contains(&format!("\"{key}\"")));
        assert!(named && error.contains(&image), "{error}");
        let mut values = labels.as_object().unwrap().values();
        assert!(values.all(|value| !error.contains(value.as_str().unwrap())), "a value is shown: {error}");
    }
    // An image that is fine is not held back by the others.
    images.load("vectorlay-hostile/none:1", &json!({"Labels": {"org.opencontainers.image.title": "t"}}));
    world.deploy("fine", &json!({"image": "vectorlay-hostile/none:1"}));
    world.stop("fine", &json!({}));
    assert!(volumes(&world).contains(&victim), "a stranger's volume was removed");
    assert!(!trap.exists(), "a file of the host was written");
    assert_eq!(world.engine.all(), [""; 0]);
    world.engine.text(&["volume", "rm", &victim]);
}

#[test]
fn what_compose_leaves_in_an_image_is_masked() {
    let test = "what_compose_leaves_in_an_image_is_masked";
    let Some(world) = World::start(test) else { return };
    let Some(mut images) = Images::of(&world.engine, test) else { return };
    let key = "com.docker.compose.project";
    images.load("vectorlay-hostile/compose:1", &json!({"Labels": {key: "shop", "plain": "stays"}}));
    let container = world.deploy("a", &json!({"image": "vectorlay-hostile/compose:1"}));
    assert_eq!(label(&world, &container, key), "-");
    let plain = label(&world, &container, "plain");
    assert!(plain == "stays" || plain.is_null(), "nerdctl 1.7 copies none: {plain}");
}

/// An image that was made from a container of ours has our labels.
#[test]
fn an_image_does_not_pose_as_another_replica() {
    let test = "an_image_does_not_pose_as_another_replica";
    let Some(world) = World::start(test) else { return };
    let Some(mut images) = Images::of(&world.engine, test) else { return };
    let labels =
        json!({"vectorlay.replica": "another", "vectorlay.deploy": "0", "vectorlay.gpus": "0000:41:00.0"});
    images.load("vectorlay-hostile/pose:1", &json!({"Labels": labels}));
    let container = world.deploy("a", &json!({"image": "vectorlay-hostile/pose:1"}));
    assert_eq!(world.engine.containers("another"), [""; 0]);
    assert_eq!(label(&world, &container, "vectorlay.gpus"), "-");
    world.stop("a", &json!({}));
}

/// Docker's daemon and, through systemd on the host, nerdctl 2.1.3 and newer would run it.
#[test]
fn an_images_health_check_is_off() {
    let test = "an_images_health_check_is_off";
    let Some(world) = World::start(test) else { return };
    let Some(mut images) = Images::of(&world.engine, test) else { return };
    let second = 1_000_000_000;
    let check =
        json!({"Test": ["CMD-SHELL", "echo checked >>/checked"], "Interval": second, "Timeout": second});
    images.load("vectorlay-hostile/health:1", &json!({"Healthcheck": check}));
    let container = world.deploy("a", &json!({"image": "vectorlay-hostile/health:1"}));
    let shown = world.engine.inspect(&container);
    assert!(shown["State"]["Health"].is_null(), "{}", shown["State"]);
    let test = if world.engine.is_docker() {
        shown["Config"]["Healthcheck"]["Test"].clone()
    } else {
        // Before 2.1.3 there is none at all.
        let kept = shown["Config"]["Labels"]["nerdctl/healthcheck"].as_str();
        kept.map_or(json!(["NONE"]), |kept| serde_json::from_str::<Value>(kept).unwrap()["Test"].clone())
    };
    assert_eq!(test, json!(["NONE"]));
}

/// Only the volumes that the engine made for this container go with it.
#[test]
fn volumes_of_an_image_go_with_its_container() {
    let test = "volumes_of_an_image_go_with_its_container";
    let Some(world) = World::start(test) else { return };
    let Some(mut images) = Images::of(&world.engine, test) else { return };
    let kept = format!("kept-{}", std::process::id());
    world.engine.text(&["volume", "create", &kept]);
    let before = volumes(&world);
    images.load("vectorlay-hostile/data:1", &json!({"Volumes": {"/data": {}, "/etc/../more": {}}}));
    world.deploy("a", &json!({"image": "vectorlay-hostile/data:1"}));
    assert_eq!(volumes(&world).len(), before.len() + 2);
    world.stop("a", &json!({}));
    assert_eq!(volumes(&world), before);
    world.engine.text(&["volume", "rm", &kept]);

    let many: serde_json::Map<String, Value> = (0..17).map(|n| (format!("/data{n}"), json!({}))).collect();
    images.load("vectorlay-hostile/many:1", &json!({"Volumes": many}));
    let error = world.fail("b", &json!({"image": "vectorlay-hostile/many:1"}), "image_refused");
    assert!(error.contains("17 volumes"), "{error}");
}

#[test]
fn what_else_an_image_says_stays_in_its_container() {
    let test = "what_else_an_image_says_stays_in_its_container";
    let Some(world) = World::start(test) else { return };
    let Some(mut images) = Images::of(&world.engine, test) else { return };
    let config = json!({
        "StopSignal": "SIGNONSENSE",
        "User": "0:0",
        "ExposedPorts": {"80/tcp": {}, "53/udp": {}},
        "OnBuild": ["RUN touch /built"],
        "Env": ["PATH=/bin", "LD_PRELOAD=/x.so", "NETCONFPATH=/x", "NERDCTL_TOML=/x", "DOCKER_HOST=tcp://127.0.0.1:1"],
        "Labels": {"sanity": "\u{1b}[2J"},
    });
    images.load("vectorlay-hostile/odd:1", &config);
    let container = world.deploy("a", &json!({"image": "vectorlay-hostile/odd:1"}));
    let shown = world.engine.inspect(&container);
    let ports = shown["NetworkSettings"]["Ports"].as_object().cloned().unwrap_or_default();
    assert!(ports.values().all(Value::is_null), "nothing is published: {ports:?}");
    assert!(world.engine.call(&["exec", &container, "/bin/ls", "/built"]).status.code() != Some(0));
    world.stop("a", &json!({"timeout_s": 1}));

    images.load("vectorlay-hostile/empty:1", &json!({"Cmd": [], "Entrypoint": []}));
    world.fail("b", &json!({"image": "vectorlay-hostile/empty:1"}), "start_failed");
}

#[test]
fn what_is_run_is_what_was_looked_at() {
    let test = "what_is_run_is_what_was_looked_at";
    let started = World::with(test, |node, engine| Gate::new(engine, node, "run"));
    let Some((world, gate)) = started else { return };
    let Some(mut images) = Images::of(&world.engine, test) else { return };
    images.load("vectorlay-hostile/good:1", &json!({"Env": ["PATH=/bin", "KIND=good"]}));
    images.load(
        "vectorlay-hostile/evil:1",
        &json!({"Env": ["PATH=/bin", "KIND=evil"], "Labels": {"nerdctl/ip": "x"}}),
    );
    let tag = |of: &str| {
        // nerdctl tags by way of containerd's leases, Docker at once; both replace what the name stood for.
        world.engine.text(&["tag", of, "vectorlay-hostile/moving:1"]);
    };
    tag("vectorlay-hostile/good:1");
    gate.shut();
    let request = world.ask("a", &json!({"image": "vectorlay-hostile/moving:1"}));
    gate.wait_for(1);
    tag("vectorlay-hostile/evil:1");
    gate.open();
    assert_eq!(world.result(&request)["status"], "running");
    let container = world.engine.containers("a").remove(0);
    let env = world.engine.inside(&container, &["/bin/env"]);
    assert!(String::from_utf8(env).unwrap().contains("KIND=good"));
    world.stop("a", &json!({}));
    // The agent itself did not move the tag: until it looks again, what it has seen of it holds.
    wait_until(WAIT, "the tag's new meaning is seen", || {
        let result = world.result(&world.ask("b", &json!({"image": "vectorlay-hostile/moving:1"})));
        let refused = result["code"] == "image_refused";
        assert!(refused || result["status"] == "running", "{result}");
        if !refused {
            world.stop("b", &json!({}));
        }
        refused
    });
    world.engine.text(&["rmi", "--force", "vectorlay-hostile/moving:1"]);
}

/// Any image's ID, or the beginning of one, would name it otherwise, whoever brought it.
#[test]
fn an_image_is_found_by_its_name_alone() {
    let test = "an_image_is_found_by_its_name_alone";
    let Some(world) = World::start(test) else { return };
    let ids = world.engine.text(&["images", "--quiet", "--no-trunc", &world.engine.image]);
    let digits = ids.trim().trim_start_matches("sha256:").to_owned();
    let whole = format!("sha256:{digits}");
    for image in [whole.as_str(), digits.as_str()] {
        if digits.len() == 64 {
            world.fail("a", &json!({"image": image}), "invalid");
        }
    }
    for image in [&digits[..12], &digits[..1]] {
        world.fail("a", &json!({"image": image, "pull": "never"}), "pull_failed");
    }
    let other = format!("vectorlay-hostile/other@{whole}");
    if digits.len() == 64 {
        world.fail("a", &json!({"image": other, "pull": "never"}), "pull_failed");
    }
}

/// Docker's store has no annotations and no index.
#[test]
fn annotations_and_indexes() {
    let test = "annotations_and_indexes";
    let Some(world) = World::start(test) else { return };
    if world.engine.is_docker() {
        return skip(test, "Docker's image store keeps neither");
    }
    let Some(mut images) = Images::of(&world.engine, test) else { return };
    let platform = |architecture: &str| json!({"os": "linux", "architecture": architecture});
    let with = |mut descriptor: Value, architecture: Option<&str>| {
        descriptor["platform"] = architecture.map_or(Value::Null, platform);
        if architecture.is_none() {
            descriptor.as_object_mut().unwrap().remove("platform");
        }
        descriptor
    };
    let trap = world.node.path().join("trap");
    let orders = json!({"nerdctl/pid-file": trap, "containerd.io/restart.status": "running", "vectorlay.replica": "x"});
    images.load_oci("vectorlay-hostile/annotated:1", &json!({}), &orders, |it| {
        vec![with(it, Some(architecture()))]
    });
    let container = world.deploy("a", &json!({"image": "vectorlay-hostile/annotated:1"}));
    for key in orders.as_object().unwrap().keys().filter(|key| *key != "vectorlay.replica") {
        assert_eq!(label(&world, &container, key), Value::Null, "{key}");
    }
    assert_eq!(label(&world, &container, "vectorlay.replica"), "a");
    assert!(!trap.exists());
    world.stop("a", &json!({}));

    images.load_oci("vectorlay-hostile/doubt:1", &json!({}), &json!({}), |it| {
        vec![with(it.clone(), Some(architecture())), with(it, None)]
    });
    let error = world.fail("b", &json!({"image": "vectorlay-hostile/doubt:1"}), "image_refused");
    assert!(error.contains("an entry without a platform"), "{error}");
}

/// What one tenant had to prove a right to is not another's because it is there.
#[test]
fn a_private_image_is_not_there_for_everyone() {
    let test = "a_private_image_is_not_there_for_everyone";
    let variable = |name: &str| std::env::var(format!("VECTORLAY_TEST_REGISTRY_{name}"));
    let (Ok(server), Ok(user), Ok(password)) = (variable("AUTH"), variable("USER"), variable("PASSWORD"))
    else {
        return skip(test, "there is no registry that asks for a password");
    };
    let Some(world) = World::start(test) else { return };
    let image = format!("{server}/busybox:1");
    let with = |password: &str| {
        let auth = json!({"server": server, "username": user, "password": password});
        json!({"image": image, "registry_auth": auth})
    };
    world.deploy("a", &with(&password));
    world.deploy("again", &with(&password));
    world.fail("b", &json!({"image": image}), "pull_failed");
    world.fail("c", &with("wrong"), "pull_failed");
    world.fail("d", &json!({"image": image, "pull": "never"}), "pull_failed");
    // Nor under another name of the same content.
    let digests = world.engine.text(&["images", "--digests", "--format={{.Repository}} {{.Digest}}"]);
    let digest = digests.lines().find_map(|line| line.strip_prefix(&format!("{server}/busybox "))).unwrap();
    let by_digest = format!("{server}/busybox@{digest}");
    // Docker's daemon takes a manifest that it has by its digest without asking the registry (distribution's
    // manifestStore.Get).
    if !world.engine.is_docker() {
        world.fail("e", &json!({"image": by_digest}), "pull_failed");
    }
    world.engine.clear();
    world.engine.text(&["rmi", "--force", &image]);
}
