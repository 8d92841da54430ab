//! Ports of the host: one that is in use, by whomever, is not taken over.

use std::fs;
use std::net::TcpListener;
use std::path::Path;

use serde_json::json;

use crate::support::control_plane::WAIT;
use crate::support::host::machine;
use crate::support::wait::wait_until;
use crate::world::World;

#[test]
fn a_port_in_use_is_not_published() {
    let started = World::with("a_port_in_use_is_not_published", |node, engine| {
        // The network of the tests is another one, where nothing is published.
        let net = format!("/proc/{}/net", engine.daemon());
        let root = machine(&node.path().join("machine"), &[("proc/net", Path::new(&net))]);
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
