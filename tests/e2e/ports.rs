//! Ports of the host: one that is in use, by whomever, is not taken over.

use std::fs;
use std::net::TcpListener;
use std::os::unix::fs::symlink;
use std::path::PathBuf;

use serde_json::json;

use crate::support::agent::Node;
use crate::support::control_plane::WAIT;
use crate::support::engine::Engine;
use crate::support::wait::wait_until;
use crate::world::World;

/// This machine with the engine's network: that of the tests is another one, where nothing is published.
fn machine(node: &Node, engine: &Engine) -> PathBuf {
    let root = node.path().join("machine");
    fs::create_dir_all(root.join("proc")).unwrap();
    let link = |from: &str| {
        for entry in fs::read_dir(from).unwrap().flatten() {
            let path = entry.path();
            let there = root.join(path.strip_prefix("/").unwrap());
            if !fs::exists(&there).unwrap() {
                symlink(path, there).unwrap();
            }
        }
    };
    symlink(format!("/proc/{}/net", engine.daemon()), root.join("proc/net")).unwrap();
    link("/proc");
    link("/");
    root
}

#[test]
fn a_port_in_use_is_not_published() {
    let started = World::with("a_port_in_use_is_not_published", |node, engine| {
        let root = machine(node, engine);
        node.set("network", "bridge").set("root", root.to_str().unwrap());
        root.join("proc/net")
    });
    let Some((world, tables)) = started else { return };
    let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let publish = |protocol: &str| json!({"ports": [{"host": port, "container": 80, "protocol": protocol}]});
    let refused = |replica: &str, protocol: &str| {
        let error = world.fail(replica, &publish(protocol), "not_allowed");
        assert!(error.contains(&format!("port {port}/{protocol} of the host")), "{error}");
        error
    };
    // A service of the host, at loopback alone: publishing would take it over there too.
    let address = format!("127.0.0.1:{port}");
    let service = ["busybox", "httpd", "-f", "-p", address.as_str()];
    let service = world.engine.start_foreign_with("service", "host", &service);
    wait_until(WAIT, "the service listens", || {
        fs::read_to_string(tables.join("tcp")).unwrap().contains(&format!("0100007F:{port:04X} "))
    });
    refused("a", "tcp");
    world.deploy("a", &publish("udp"));
    // nerdctl 2.2 takes the port of one protocol for that of both.
    world.stop("a", &json!({}));
    world.engine.text(&["rm", "--force", &service]);
    world.deploy("a", &publish("tcp"));
    let error = refused("b", "tcp");
    assert!(error.contains("replica a"), "{error}");
    world.stop("a", &json!({}));
    world.deploy("b", &publish("tcp"));
}
