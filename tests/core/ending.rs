//! SIGTERM: no new work, what is in flight within the grace time, the results, a proper close.

use vectorlay::core::link_api::{DownReason, LinkCommand};
use vectorlay::core::{End, Event};

use crate::rig::{Rig, SECOND, Start};

fn closed(rig: &Rig) -> bool {
    rig.orders.iter().any(|order| matches!(order, LinkCommand::Close { code: 1001, .. }))
}

#[test]
fn an_idle_agent_closes_and_ends_at_once() {
    let mut rig = Rig::online();
    rig.deploy("r", "q1");
    rig.pong();
    rig.event(Event::Terminate);
    assert!(closed(&rig));
    assert_eq!(rig.end, None);
    rig.down(DownReason::Closed(1001));
    assert_eq!(rig.end, Some(End::Clean));
    assert_eq!(rig.up("r"), 1, "containers go on");
}

#[test]
fn what_is_in_flight_is_finished_what_waits_is_interrupted_what_is_new_is_not_answered() {
    let mut rig = Rig::online();
    rig.hold("run");
    for replica in ["a", "b", "c"] {
        rig.deploy(replica, "q");
    }
    rig.event(Event::Terminate);
    rig.deploy("d", "q");
    assert_eq!(rig.sent(), ["deploy_result c failed:interrupted q"]);
    assert!(!closed(&rig));
    rig.release("run");
    assert_eq!(rig.sent(), ["deploy_result a running q", "deploy_result b running q"]);
    assert!(!closed(&rig), "the results are to arrive");
    rig.pong();
    assert!(closed(&rig));
}

#[test]
fn nothing_is_waited_for_longer_than_its_time() {
    let mut rig = Rig::online();
    rig.hold("run");
    rig.deploy("a", "q");
    rig.event(Event::Terminate);
    rig.wait(19 * SECOND);
    assert!(!closed(&rig));
    rig.wait(5 * SECOND);
    assert!(closed(&rig));
    rig.wait(4 * SECOND);
    assert_eq!(rig.end, Some(End::Clean), "a peer that does not answer the close");
}

#[test]
fn without_a_connection_there_is_nothing_to_close() {
    let mut rig = Rig::start(Start::default());
    rig.event(Event::Terminate);
    assert_eq!(rig.end, Some(End::Clean));
}
