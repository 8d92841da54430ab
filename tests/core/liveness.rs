//! The link: when it counts as dead, when it is tried again, and what is said first.

use std::time::Duration;

use vectorlay::core::Event;
use vectorlay::core::link_api::{DownReason, LinkCommand, LinkEvent};

use crate::rig::{Rig, SECOND, Start, check, hardware};

/// How long until the next attempt.
fn pause(rig: &mut Rig) -> f32 {
    let began = rig.now;
    rig.orders.clear();
    while !rig.orders.iter().any(|order| matches!(order, LinkCommand::Dial { .. })) {
        rig.wait_in_silence(SECOND / 10);
        assert!(rig.now - began < 60 * SECOND, "it is not tried again");
    }
    (rig.now - began).as_secs_f32()
}

#[test]
fn silence_for_15_s_ends_the_connection() {
    let mut rig = Rig::online();
    rig.wait_in_silence(14 * SECOND);
    assert!(rig.orders.is_empty());
    rig.wait_in_silence(SECOND);
    assert!(matches!(rig.orders[..], [LinkCommand::Abandon(_)]));
    let pause = pause(&mut rig);
    assert!((4.0..=6.1).contains(&pause), "{pause}");
}

#[test]
fn a_disconnect_waits_5_s_and_failures_back_off_to_30_s_with_a_spread() {
    let mut pauses = Vec::new();
    for seed in 0..20 {
        let mut rig = Rig::start(Start { seed, ..Start::default() });
        rig.connect();
        rig.down(DownReason::Closed(1000));
        let mut run = vec![pause(&mut rig)];
        for _ in 0..5 {
            rig.down(DownReason::NoConnection);
            run.push(pause(&mut rig));
        }
        pauses.push(run);
    }
    for (n, expected) in [5.0_f32, 5.0, 10.0, 20.0, 30.0, 30.0].into_iter().enumerate() {
        let all: Vec<f32> = pauses.iter().map(|run| run[n]).collect();
        let (least, most) = all.iter().fold((f32::MAX, 0.0_f32), |(l, m), p| (l.min(*p), m.max(*p)));
        assert!(least >= 0.8 * expected && most <= 1.2 * expected + 0.11, "pause {n}: {least} to {most}");
        assert!(most - least > 0.1 * expected, "pause {n} is spread: {least} to {most}");
    }
}

#[test]
fn a_node_that_starts_tries_at_the_shortest_interval_for_a_minute() {
    let mut rig = Rig::start(Start::default());
    let began = rig.now;
    let mut long = 0.0_f32;
    while rig.now - began < 60 * SECOND {
        assert!(long <= 6.1, "{long} s after {:?}", rig.now - began);
        rig.down(DownReason::NoConnection);
        long = pause(&mut rig);
    }
    // By then it has failed ten times and more.
    for _ in 0..2 {
        rig.down(DownReason::NoConnection);
        long = pause(&mut rig);
    }
    assert!(long >= 24.0, "{long}");
}

#[test]
fn while_nothing_listens_the_pauses_stay_short() {
    let mut pauses = Vec::new();
    for seed in 0..20 {
        let mut rig = Rig::start(Start { seed, ..Start::default() });
        rig.connect();
        rig.down(DownReason::Closed(1012));
        for _ in 0..4 {
            _ = pause(&mut rig);
            rig.down(DownReason::NoConnection);
        }
        // However long it was away for other reasons before.
        for _ in 0..10 {
            _ = pause(&mut rig);
            rig.down(DownReason::Refused);
        }
        pauses.push(pause(&mut rig));
    }
    let (least, most) = pauses.iter().fold((f32::MAX, 0.0_f32), |(l, m), p| (l.min(*p), m.max(*p)));
    assert!(least >= 8.0 && most <= 12.11 && most - least > 1.0, "{least} to {most}");
}

#[test]
fn a_connection_that_lived_60_s_forgets_the_failures() {
    let mut rig = Rig::start(Start::default());
    rig.wait(Duration::ZERO);
    for _ in 0..4 {
        rig.down(DownReason::NoConnection);
        _ = pause(&mut rig);
    }
    rig.link(LinkEvent::Up);
    rig.wait(61 * SECOND);
    rig.down(DownReason::Broken);
    assert!(pause(&mut rig) <= 6.1);
}

#[test]
fn a_refusal_of_a_known_node_is_tried_at_the_slowest_pace() {
    let mut rig = Rig::start(Start::default());
    rig.down(DownReason::Http(401));
    assert!(pause(&mut rig) >= 24.0);
    assert_eq!(rig.end, None);
}

#[test]
fn retry_after_is_honoured() {
    let mut rig = Rig::start(Start::default());
    let down = vectorlay::core::link_api::Down {
        why: DownReason::Http(503),
        retry_after: Some(40 * SECOND),
        detail: "503".into(),
    };
    rig.link(LinkEvent::Down(down));
    let pause = pause(&mut rig);
    assert!(pause >= 40.0, "{pause}");
}

#[test]
fn system_info_waits_2_s_for_the_facts_and_is_sent_again_when_they_are_all_there() {
    let mut rig = Rig::start(Start { ..Start::default() });
    rig.sampling = false;
    rig.down(DownReason::NoConnection);
    rig.connect();
    assert_eq!(rig.everything_sent(), [""; 0]);
    rig.wait(2 * SECOND);
    assert_eq!(rig.everything_sent()[..2], ["system_info", "heartbeat"]);
    rig.event(Event::Hardware(Box::new(hardware(2))));
    rig.event(Event::Check(check(true)));
    rig.event(Event::ChecksDone);
    let again = rig.everything_sent();
    assert_eq!(again.iter().filter(|kind| *kind == "system_info").count(), 1, "{again:?}");
}

#[test]
fn the_first_heartbeat_waits_2_s_for_the_containers_and_never_says_none_for_unknown() {
    let mut rig = Rig::online();
    rig.deploy("r", "q1");
    rig.engine.mode = crate::engine::Mode::Frozen;
    let mut rig = rig.restart();
    rig.connect();
    assert!(!rig.everything_sent().contains(&"heartbeat".to_owned()));
    rig.wait(2 * SECOND);
    assert!(rig.everything_sent().contains(&"heartbeat".to_owned()));
    assert_eq!(rig.containers(), ["r unknown"]);
}

#[test]
fn an_attempt_that_says_nothing_is_given_up() {
    let mut rig = Rig::start(Start::default());
    rig.orders.clear();
    rig.wait_in_silence(12 * SECOND);
    assert!(matches!(rig.orders.first(), Some(LinkCommand::Abandon(_))));
    assert!(pause(&mut rig) <= 6.1);
}

#[test]
fn events_of_an_earlier_link_are_dropped() {
    let mut rig = Rig::online();
    let old = rig.link.unwrap();
    rig.down(DownReason::Broken);
    rig.connect();
    rig.everything_sent();
    rig.event(Event::Link(old, LinkEvent::Text(r#"{"type":"stop","payload":{"replica_id":"r"}}"#.into())));
    assert_eq!(rig.sent(), [""; 0]);
}

#[test]
fn a_heartbeat_is_sent_at_each_beat_and_a_ping_every_5_s() {
    let mut rig = Rig::online();
    rig.event(Event::HeartbeatDue);
    assert_eq!(rig.everything_sent(), ["heartbeat"]);
    rig.wait(26 * SECOND);
    assert_eq!(rig.pings.len(), 5);
}

#[test]
fn repeated_failures_are_counted_and_only_a_long_loss_is_a_warning() {
    let mut rig = Rig::online();
    rig.log.clear();
    for _ in 0..3 {
        rig.down(DownReason::NoConnection);
        _ = pause(&mut rig);
    }
    let said = |rig: &Rig, level: &str| rig.log.iter().filter(|line| line.starts_with(level)).count();
    assert_eq!((said(&rig, "WARN"), said(&rig, "INFO"), said(&rig, "DEBUG")), (0, 1, 2), "{:?}", rig.log);
    while rig.log.iter().all(|line| !line.starts_with("WARN")) {
        rig.down(DownReason::NoConnection);
        _ = pause(&mut rig);
    }
    let failed = rig.log.len();
    rig.down(DownReason::NoConnection);
    _ = pause(&mut rig);
    assert_eq!(said(&rig, "WARN"), 1, "{:?}", rig.log);
    rig.connect();
    let connected = rig.log.iter().find(|line| line.contains("connected")).unwrap();
    assert!(connected.ends_with(&format!("{} failed attempts", failed + 1)), "{connected} {failed}");
}

#[test]
fn a_peer_that_floods_is_rejected_and_backed_off_from() {
    let mut rig = Rig::online();
    let rejections =
        |rig: &Rig| rig.orders.iter().filter(|order| matches!(order, LinkCommand::Reject { .. })).count();
    rig.log.clear();
    for _ in 0..1000 {
        rig.link(LinkEvent::Text(String::new()));
    }
    assert_eq!(rejections(&rig), 0);
    for _ in 0..500 {
        rig.link(LinkEvent::NotText(0));
    }
    assert_eq!(rejections(&rig), 1);
    // One line for each of the two kinds.
    let lines: Vec<&String> = rig.log.iter().filter(|line| line.contains("ignored")).collect();
    assert_eq!(lines.len(), 2, "{lines:#?}");
    rig.down(DownReason::Violation);
    assert!(pause(&mut rig) <= 6.1);
    // A violation is a failure: from the second one in a row on the pauses grow.
    rig.link(LinkEvent::Up);
    rig.down(DownReason::Violation);
    assert!(pause(&mut rig) >= 8.0);
    // Large ones are a flood sooner.
    rig.link(LinkEvent::Up);
    rig.orders.clear();
    for _ in 0..9 {
        rig.link(LinkEvent::Text("x".repeat(4 << 20)));
    }
    assert_eq!(rejections(&rig), 1);
    // After a minute the next line says how many there were.
    rig.wait(61 * SECOND);
    rig.log.clear();
    rig.link(LinkEvent::NotText(0));
    assert!(rig.log.iter().any(|line| line.contains("499 more of this kind")), "{:#?}", rig.log);
}
