//! How a node gets its identity, keeps it, and loses it.

use vectorlay::core::End;
use vectorlay::core::link_api::{DownReason, LinkCommand, LinkEvent, Registration};
use vectorlay::types::{NodeId, Secret};

use crate::rig::{Rig, SECOND, Start};

fn new_node() -> Rig {
    Rig::start(Start { node: None, ..Start::default() })
}

fn dial(rig: &Rig) -> (Option<&str>, Option<&str>) {
    match rig.orders.last() {
        Some(LinkCommand::Dial { node, credential, .. }) => {
            (node.as_ref().map(NodeId::as_str), credential.as_ref().map(Secret::expose))
        }
        other => panic!("no attempt to connect, but {other:?}"),
    }
}

fn identity(rig: &Rig) -> (&str, Option<&str>) {
    let identity = rig.identity.as_ref().unwrap();
    (identity.node_id.as_str(), identity.node_token.as_ref().map(Secret::expose))
}

#[test]
fn over_http_then_it_connects_with_what_it_got() {
    let mut rig = new_node();
    let [LinkCommand::Register { body, .. }] = &rig.orders[..] else { panic!("{:?}", rig.orders) };
    // What the machine does not tell is null: an empty fingerprint would be the same on every such machine.
    let body: serde_json::Value = serde_json::from_str(body).unwrap();
    assert_eq!((&body["machine_id"], &body["hostname"]), (&serde_json::Value::Null, &"gpu-07".into()));
    for unknown in ["machine_id", "boot_id", "cpuModel", "cpuCores", "ramGb", "kernel", "arch"] {
        assert_eq!(body["system_info"].get(unknown), Some(&serde_json::Value::Null), "{unknown}");
    }
    let (node, token) = (NodeId::new("n7").unwrap(), Some(Secret::new("nt".into())));
    rig.link(LinkEvent::Registered(Registration::Done { node, token }));
    assert_eq!(identity(&rig), ("n7", Some("nt")));
    assert_eq!(dial(&rig), (Some("n7"), Some("nt")));
}

#[test]
fn over_the_socket_where_http_has_none() {
    let mut rig = new_node();
    rig.link(LinkEvent::Registered(Registration::Absent));
    assert_eq!(dial(&rig), (None, Some("vtk_1")));
    rig.connect();
    rig.everything_sent();
    rig.hear("registration_success", r#"{"node_id":"n8"}"#);
    assert_eq!(identity(&rig), ("n8", None));
    assert!(!rig.everything_sent().contains(&"system_info".to_owned()), "it is not repeated");
    rig.wait(40 * SECOND);
    assert!(rig.orders.is_empty(), "named in time");
    rig.hear("registration_success", r#"{"node_id":"n9","node_token":"x"}"#);
    assert_eq!(identity(&rig), ("n8", None), "another name is ignored");
    rig.hear("registration_success", r#"{"node_id":"n8","node_token":"x"}"#);
    assert_eq!(identity(&rig), ("n8", Some("x")));
}

#[test]
fn a_server_that_does_not_name_the_node_is_left_after_30_s() {
    let mut rig = new_node();
    rig.link(LinkEvent::Registered(Registration::Absent));
    rig.connect();
    rig.wait(29 * SECOND);
    assert!(rig.orders.is_empty());
    rig.wait(SECOND);
    assert!(matches!(rig.orders.first(), Some(LinkCommand::Abandon(_))));
}

#[test]
fn a_refused_token_ends_the_process() {
    let mut rig = new_node();
    rig.link(LinkEvent::Registered(Registration::Refused(401)));
    assert!(matches!(rig.end, Some(End::TokenRefused(_))));
    let mut rig = new_node();
    rig.link(LinkEvent::Registered(Registration::Absent));
    rig.down(DownReason::Http(403));
    assert!(matches!(rig.end, Some(End::TokenRefused(_))));
}

#[test]
fn neither_identity_nor_token_ends_the_process() {
    let rig = Rig::start(Start { node: None, token: None, ..Start::default() });
    assert!(matches!(rig.end, Some(End::NoIdentity(_))));
}

#[test]
fn a_removed_node_registers_again_if_it_can_and_its_replicas_stay() {
    for why in [DownReason::Http(410), DownReason::Closed(4410)] {
        let mut rig = Rig::online();
        rig.deploy("r", "q1");
        rig.down(why);
        rig.wait(7 * SECOND);
        assert!(matches!(rig.orders.last(), Some(LinkCommand::Register { .. })), "{why:?}");
        assert_eq!(rig.up("r"), 1);
    }
    let mut rig = Rig::start(Start { token: None, ..Start::default() });
    rig.down(DownReason::Http(410));
    assert!(matches!(rig.end, Some(End::NoIdentity(_))));
}

#[test]
fn a_failed_registration_is_tried_again() {
    let mut rig = new_node();
    rig.link(LinkEvent::Registered(Registration::Failed { retry_after: None, detail: "503".into() }));
    rig.orders.clear();
    rig.wait(7 * SECOND);
    assert!(matches!(rig.orders.last(), Some(LinkCommand::Register { .. })));
}
