//! Whatever comes from the network is checked before it is used: nothing of it becomes a flag, and nothing that is
//! merely wrong ends the connection.

use serde_json::{Value, json};

use crate::support::control_plane::WAIT;
use crate::world::World;

#[test]
fn nothing_from_the_network_becomes_a_flag() {
    let Some(world) = World::start("nothing_from_the_network_becomes_a_flag") else { return };
    let foreign = world.engine.start_foreign("bystander");
    let archive = world.node.path().join("archive");
    std::fs::write(&archive, "").unwrap();
    let archive = archive.display();
    let files =
        [format!("oci-archive://{archive}"), format!("docker-archive://{archive}"), format!("{archive}")];
    let names = [
        "--privileged",
        "-v",
        "--help",
        "",
        " ",
        "a b",
        "bb:1;id",
        "$(id)",
        "/etc/passwd",
        "bb\n:1",
        "oci-archive:///dev/zero",
        "ipfs://bafkreicysg23kiwv34eg2d7qweipxwosdo2py4ldv42nbauguluen5v6am",
        "ipns://k51qzi5uqu5dgutdk6i1ynyzgkqngpha5xpgia3a5qqp4jsh0u4csozksxel2r",
        "http://127.0.0.1/x",
        "sha256",
    ];
    for image in names.into_iter().chain(files.iter().map(String::as_str)) {
        world.fail("a", &json!({"image": image}), "invalid");
    }
    // The command is the container's, whatever it looks like.
    for command in [json!(["--help"]), json!(["--privileged", "sh"]), json!(["-it"])] {
        let error = world.fail("a", &json!({"command": command}), "start_failed");
        assert!(error.contains(command[0].as_str().unwrap()), "{error}");
    }
    let container =
        world.deploy("args", &json!({"command": ["/bin/sh", "-c", "sleep 1000", "--rm", "-v", "/:/host"]}));
    let inspected = world.engine.inspect(&container);
    assert_ne!(inspected["HostConfig"]["Privileged"], true);
    // Without any, nerdctl 1.7 says null.
    let mut mounts = inspected["Mounts"].as_array().into_iter().flatten();
    assert!(mounts.all(|mount| mount["Destination"] != "/host"), "{}", inspected["Mounts"]);

    // No name that could be a flag, a path or a filter of another replica's is a replica.
    let mark = world.plane.mark();
    for replica in ["-x", "--force", "../x", "a,b", "a=b", "a b", "", "ä", &"a".repeat(65)] {
        for kind in ["deploy", "stop", "logs"] {
            let payload = json!({"replica_id": replica, "image": world.engine.image, "request_id": "bad"});
            world.send_raw(&json!({"type": kind, "payload": payload}).to_string());
        }
    }
    // The order shows that all of them were taken, and that none was answered.
    let last = world.ask("args", &json!({"command": ["/bin/true"]}));
    assert_eq!(world.result(&last)["code"], "conflict");
    let answers = world.plane.api_get(&format!("/results?since={mark}"));
    let answered = answers["events"].as_array().unwrap().iter().find(|e| e["payload"]["request_id"] == "bad");
    assert_eq!(answered, None);
    assert_eq!(world.engine.all(), [container.as_str()]);
    assert_eq!(world.engine.inspect(&foreign)["State"]["Running"], true);
}

#[test]
fn what_is_wrong_is_counted_and_the_connection_stays() {
    let Some(world) = World::start("what_is_wrong_is_counted_and_the_connection_stays") else { return };
    let wrong = [
        "",
        "{oops",
        "[]",
        "null",
        "{}",
        r#"{"type": 7, "payload": {}}"#,
        r#"{"type": "reboot", "payload": {}}"#,
        r#"{"type": "deploy"}"#,
        r#"{"type": "deploy", "payload": []}"#,
        r#"{"type": "deploy", "payload": {"image": "bb:1"}}"#,
        r#"{"type": "stop", "payload": {"replica_id": 7}}"#,
        r#"{"type": "logs", "payload": {"replica_id": "a", "tail": -1}}"#,
        r#"{"type": "registration_success", "payload": {"node_id": "a b"}}"#,
        "\u{0}\u{1}\u{7f}",
    ];
    for text in wrong {
        world.send_raw(text);
    }
    world.send_raw(&format!("[{}]", "[".repeat(1_000_000)));
    // What can be answered is.
    let bad = [
        json!({"gpu_count": -1}),
        json!({"gpu_count": "two"}),
        json!({"env_vars": "A=B"}),
        json!({"command": "sleep 1"}),
        json!({"cpus": "half"}),
        json!({"ports": [{"host": 70000, "container": 1}]}),
        json!({"image": 7}),
    ];
    for fields in bad {
        world.fail("a", &fields, "invalid");
    }
    // Another ID for a known node is ignored.
    world.send_raw(r#"{"type": "registration_success", "payload": {"node_id": "another"}}"#);
    world.send_raw(r#"{"type": "drained?", "payload": {"more": 1}, "extra": true}"#);
    // Unknown fields are ignored.
    world.deploy("good", &json!({"colour": "blue"}));
    let (_, text) = world.node.said(&["status", "--json"]);
    let status: Value = serde_json::from_str(&text).unwrap();
    assert_eq!(status["node_id"], world.id.as_str());
    assert!(status["malformed_messages"].as_u64().unwrap() >= wrong.len() as u64, "{status:#}");
    let view = world.wait_node(WAIT, |_| true);
    assert_eq!((&view["connects"], &view["violations"]), (&json!(1), &json!(0)));
}
