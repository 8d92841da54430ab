//! An image whose content is damaged on the node, as a power cut or a bad disk leaves it.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::{Value, json};

use crate::support::control_plane::WAIT;
use crate::support::images::Images;
use crate::support::skip::skip;
use crate::world::World;

/// The files in containerd's store of an image's manifest and configuration.
fn content(world: &World, folder: &Path, image: &str) -> [PathBuf; 2] {
    let text = world.engine.text(&["image", "inspect", "--mode=native", "--format={{json .}}", image]);
    let shown: Value = serde_json::from_str(text.lines().next().unwrap()).unwrap();
    let blob = |digest: &Value| {
        let digits = digest.as_str().unwrap().strip_prefix("sha256:").unwrap();
        folder.join("data/io.containerd.content.v1.content/blobs/sha256").join(digits)
    };
    [blob(&shown["Image"]["Target"]["digest"]), blob(&shown["ImageConfigDesc"]["digest"])]
}

/// Replaces what is in a file; `None`: removes it.
fn damage(file: &Path, with: Option<&[u8]>) {
    fs::set_permissions(file, fs::Permissions::from_mode(0o644)).unwrap();
    match with {
        Some(bytes) => fs::write(file, bytes).unwrap(),
        None => fs::remove_file(file).unwrap(),
    }
}

#[test]
fn a_damaged_image_is_pulled_anew() {
    let name = "a_damaged_image_is_pulled_anew";
    let variable = |name: &str| std::env::var(name).unwrap_or_default();
    let (folder, registry) = (variable("VECTORLAY_TEST_ENGINE_DIR"), variable("VECTORLAY_TEST_REGISTRY"));
    if folder.is_empty() || registry.is_empty() {
        return skip(name, "no engine of scripts/engine.sh with a registry");
    }
    let Some(world) = World::start(name) else { return };
    if world.engine.is_docker() {
        return skip(name, "the content store is containerd's");
    }
    let folder = PathBuf::from(folder);
    // Content that no other name keeps from being removed.
    let image = format!("{registry}/damaged:1");
    let mut images = Images::of(&world.engine, name).unwrap();
    images.load("vectorlay-damaged/local:1", &json!({"Labels": {"a": "b"}}));
    let push =
        Command::new(folder.join("push")).args(["vectorlay-damaged/local:1", &image]).output().unwrap();
    assert!(push.status.success(), "{}", String::from_utf8_lossy(&push.stderr));
    drop(images);
    let deploy = |replica: &str, pull: &str| world.deploy(replica, &json!({"image": image, "pull": pull}));
    deploy("a", "missing");
    let mut mended = 0;
    for (part, with, pull) in [
        (0, None, "missing"),
        (0, Some(&b"\0\0\0\0"[..]), "always"),
        (1, None, "always"),
        (1, Some(&b""[..]), "missing"),
    ] {
        world.stop("a", &json!({}));
        let file = &content(&world, &folder, &image)[part];
        let length = usize::try_from(fs::metadata(file).unwrap().len()).unwrap();
        let with = with.map(|byte| byte.repeat(length / byte.len().max(1)));
        damage(file, with.as_deref());
        deploy("a", pull);
        mended += 1;
        let told =
            || world.agent.log().iter().filter(|line| line.contains("damaged and is pulled anew")).count();
        assert_eq!(told(), mended, "part {part}, {pull}");
    }
    // While a container uses it, it stays, and that is said.
    damage(&content(&world, &folder, &image)[0], None);
    let error = world.fail("b", &json!({"image": image}), "pull_failed");
    assert!(error.contains("is damaged"), "{error}");
    assert_eq!(world.engine.containers("a").len(), 1);
    world.stop("a", &json!({}));
    deploy("b", "missing");
    world.wait_node(WAIT, |node| node["violations"] == 0);
    world.stop("b", &json!({}));
    world.engine.text(&["rmi", &image]);
}
