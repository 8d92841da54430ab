//! What `src/protocol.md` says of the agent's messages is what the agent's binary sends.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{Read as _, Write as _};
use std::net::{TcpListener, TcpStream};

use serde_json::{Value, json};

use super::gpus::{World, eight};
use crate::support::agent::Node;
use crate::support::control_plane::{TOKEN, WAIT};
use crate::support::protocol_page::{self as page, FROM_AGENT};
use crate::support::wait::wait_until;

/// What kind of value it is; `null` says nothing.
fn kind(value: &Value) -> Option<&'static str> {
    match value {
        Value::Null => None,
        Value::Bool(_) => Some("boolean"),
        Value::Number(number) if number.is_u64() || number.is_i64() => Some("whole number"),
        Value::Number(_) => Some("number"),
        Value::String(_) => Some("string"),
        Value::Array(_) => Some("array"),
        Value::Object(_) => Some("object"),
    }
}

/// The kinds of value of each field, by message type and path.
fn kinds(messages: &[(String, Value)]) -> BTreeMap<(String, String), BTreeSet<&'static str>> {
    let mut found: BTreeMap<_, BTreeSet<_>> = BTreeMap::new();
    for (name, payload) in messages {
        for field in page::fields(payload) {
            let values = page::values(payload, &field);
            found.entry((name.clone(), field)).or_default().extend(values.into_iter().filter_map(kind));
        }
    }
    found
}

#[test]
fn every_field_of_the_protocol_is_sent_and_no_other() {
    let mut world = World::start("contract", &eight("vfio-pci"), &[("reconcile-s", "5")]);
    let post = |world: &World, verb: &str, body: &Value| {
        world.plane.api_post(&format!("/nodes/{}/{verb}", world.id), body)
    };
    let run = |replica: &str, gpus: u32| json!({"replica_id": replica, "image": "bb:1", "gpu_count": gpus});

    let mut up = run("up", 1);
    up["pids_limit"] = json!(64);
    assert_eq!(world.command("deploy", "up", &up)["status"], "running");
    assert_eq!(world.command("deploy", "ends", &run("ends", 0))["status"], "running");
    assert_eq!(world.command("deploy", "wrong", &run("wrong", 65))["code"], "invalid");
    let missing = json!({"replica_id": "missing", "image": "no-such:1", "pull": "always"});
    assert_eq!(world.command("deploy", "missing", &missing)["detail_code"], "not_found");
    let wrong_stop = json!({"replica_id": "wrong", "timeout_s": "soon"});
    assert_eq!(world.command("stop", "wrong", &wrong_stop)["code"], "invalid");

    let containers = world.node.path().join("cli");
    let ended = std::fs::read_dir(containers.join("up"))
        .unwrap()
        .map(|entry| entry.unwrap())
        .find(|entry| std::fs::read_to_string(entry.path()).unwrap().contains("\"ends\""));
    let ended = ended.unwrap();
    std::fs::rename(ended.path(), containers.join("exited").join(ended.file_name())).unwrap();
    world.plane.wait_event(WAIT, |event| event["payload"]["status"] == "exited");

    for replica in ["up", "nobody"] {
        let mark = world.plane.mark();
        post(&world, "logs", &json!({"replica_id": replica, "tail": 10}));
        world.plane.wait_event_after(mark, WAIT, |event| event["type"] == "logs");
    }

    // The next connection begins with a heartbeat, which shows how all of them are.
    let mark = world.plane.mark();
    post(&world, "cut", &json!({}));
    world.plane.wait_event_after(mark, WAIT, |event| event["type"] == "heartbeat");
    assert_eq!(world.command("stop", "up", &json!({"replica_id": "up"}))["status"], "stopped");

    assert_eq!(world.command("deploy", "lost", &run("lost", 0))["status"], "running");
    world.reboot();
    world.plane.wait_event(WAIT, |event| event["payload"]["reason"] == "host rebooted");

    let events = world.plane.api_get("/events?since=0");
    let received = events["events"].as_array().unwrap().iter().filter(|event| event["kind"] == "received");
    let message = |event: &Value| (event["type"].as_str().unwrap().to_owned(), event["payload"].clone());
    let sent = kinds(&received.map(message).collect::<Vec<_>>());
    let shown = kinds(&page::messages(FROM_AGENT));

    let fields = |of: &BTreeMap<(String, String), _>| of.keys().cloned().collect::<BTreeSet<_>>();
    let (sent_fields, shown_fields) = (fields(&sent), fields(&shown));
    let missing: Vec<_> = shown_fields.difference(&sent_fields).collect();
    assert!(missing.is_empty(), "in the protocol's examples, and never sent: {missing:?}");
    let unknown: Vec<_> = sent_fields.difference(&shown_fields).collect();
    assert!(unknown.is_empty(), "sent, and in no example of the protocol: {unknown:?}");
    for (field, kinds) in sent {
        let others: Vec<_> = kinds.difference(&shown[&field]).collect();
        assert!(others.is_empty(), "{field:?} is sent as {others:?}, and shown as {:?}", shown[&field]);
    }
    let node = world.plane.api_get(&format!("/nodes/{}", world.id));
    assert_eq!(node["violations"], 0, "{node:#}");
}

/// The next connection's request: its head, and the body that its length promises.
fn request(listener: &TcpListener) -> (TcpStream, String, String) {
    let mut accepted = None;
    wait_until(WAIT, "the agent connects", || {
        accepted = listener.accept().ok();
        accepted.is_some()
    });
    let (mut stream, _) = accepted.unwrap();
    stream.set_nonblocking(false).unwrap();
    stream.set_read_timeout(Some(WAIT)).unwrap();
    let mut text = String::new();
    loop {
        let mut chunk = [0; 4096];
        let count = stream.read(&mut chunk).unwrap();
        assert!(count > 0, "it ends in the middle of {text}");
        text += std::str::from_utf8(&chunk[..count]).unwrap();
        let Some((head, body)) = text.split_once("\r\n\r\n") else { continue };
        let head = head.to_ascii_lowercase() + "\r\n";
        let length = head.lines().find_map(|line| line.strip_prefix("content-length: "));
        if body.len() == length.map_or(0, |length| length.parse().unwrap()) {
            return (stream, head, body.to_owned());
        }
    }
}

#[test]
fn a_node_registers_as_the_protocol_shows() {
    let example = |label: &str| page::examples().into_iter().find(|e| e.label == label).unwrap();
    let (shown, answer) = (example("registration request"), example("registration answer"));
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    listener.set_nonblocking(true).unwrap();
    let address = listener.local_addr().unwrap();
    let mut node = Node::new("contract-register");
    node.set("url", &format!("ws://{address}/api/agent")).env("VECTORLAY_TOKEN", TOKEN);
    let _agent = node.start();

    let (mut stream, head, body) = request(&listener);
    assert!(head.starts_with("post /api/register http/1.1"), "{head}");
    assert!(head.lines().any(|line| line == format!("authorization: bearer {TOKEN}")), "{head}");
    let body: Value = serde_json::from_str(&body).unwrap();
    let missing: Vec<_> = page::fields(&shown.json)
        .difference(&page::fields(&body))
        .filter(|field| !field.contains("NAME"))
        .cloned()
        .collect();
    assert_eq!(missing, [""; 0], "{body:#}");
    let shown_keys: Vec<&String> = shown.json.as_object().unwrap().keys().collect();
    assert_eq!(body.as_object().unwrap().keys().collect::<Vec<_>>(), shown_keys);
    let length = answer.text.len();
    write!(stream, "HTTP/1.1 201 Created\r\nContent-Length: {length}\r\n\r\n{}", answer.text).unwrap();
    drop(stream);

    let (_stream, head, _) = request(&listener);
    let word = |name: &str| answer.json[name].as_str().unwrap();
    assert!(head.starts_with("get /api/agent http/1.1"), "{head}");
    for line in
        [format!("x-node-id: {}", word("node_id")), format!("authorization: bearer {}", word("node_token"))]
    {
        assert!(head.lines().any(|there| there == line), "{line:?} is not in {head}");
    }
}
