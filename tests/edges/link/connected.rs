//! An established connection: frames both ways, limits, and its ends.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::sync::mpsc::{channel, sync_channel};
use std::time::{Duration, Instant};

use tungstenite::protocol::CloseFrame;
use tungstenite::{Message, WebSocket};
use vectorlay::core::link_api::{DownReason, LinkCommand, LinkEvent, LinkId};
use vectorlay::link::{BACKLOG_MAX, CLOSE_DEADLINE, MESSAGE_MAX, UNSENT_MAX};

use super::peers;
use super::rig::{LONG, Rig};

/// Sends back what it gets, until the peer has gone.
fn echo(mut socket: WebSocket<TcpStream>) {
    while let Ok(message) = socket.read() {
        if message.is_text() || message.is_binary() {
            socket.send(message).unwrap();
        }
    }
}

#[test]
fn frames_and_what_becomes_of_them() {
    let url = peers::ws(|mut socket| {
        assert_eq!(socket.read().unwrap(), Message::text("grüße"));
        socket.send(Message::text("ja")).unwrap();
        socket.send(Message::binary(vec![0; 9])).unwrap();
        socket.send(Message::Pong(vec![1, 2, 3].into())).unwrap();
        socket.send(Message::Ping(b"are you there".to_vec().into())).unwrap();
        assert_eq!(socket.read().unwrap(), Message::Ping(7u64.to_be_bytes().to_vec().into()));
        assert_eq!(socket.read().unwrap(), Message::Pong(b"are you there".to_vec().into()));
        socket.send(Message::text("all seen")).unwrap();
        let _ = socket.read();
    });
    let rig = Rig::new(&url);
    rig.up(1);
    rig.send(99, "for a link that is not");
    rig.send(1, "grüße");
    rig.link.command(LinkCommand::Ping(LinkId(1), 7));
    let mut words = Vec::new();
    loop {
        match rig.word(1) {
            LinkEvent::Text(text) if text == "all seen" => break,
            word => words.push(word),
        }
    }
    assert_eq!(words, [LinkEvent::Text("ja".into()), LinkEvent::NotText(9), LinkEvent::Pong(7)]);
}

#[test]
fn bytes_that_are_no_message_yet_say_that_the_peer_lives() {
    let url = peers::ws(|mut socket| {
        // A message of 1,000 bytes, two and a half seconds long.
        let raw = socket.get_mut();
        raw.write_all(&[0x81, 126, 3, 0xe8]).unwrap();
        peers::drip(raw, std::iter::repeat_n(b'x', 25), Duration::from_millis(100));
        raw.write_all(&[b'y'; 975]).unwrap();
        let _ = socket.read();
    });
    let rig = Rig::new(&url);
    rig.up(1);
    let mut alive = 0;
    while rig.next(1) == LinkEvent::Alive {
        alive += 1;
    }
    assert!((2..=4).contains(&alive), "{alive}");
}

#[test]
fn bursts_arrive_whole_and_in_order() {
    const COUNT: usize = 100_000;
    let url = peers::ws(echo);
    let rig = Rig::new(&url);
    rig.up(1);
    // The events' channel holds 64: the link is blocked by its reader again and again.
    for i in 0..COUNT {
        rig.send(1, i.to_string());
    }
    for i in 0..COUNT {
        assert_eq!(rig.word(1), LinkEvent::Text(i.to_string()));
    }
}

#[test]
fn a_command_does_not_wait_for_a_tick() {
    const ROUNDS: usize = 201;
    let rig = Rig::new(&peers::ws(echo));
    rig.up(1);
    let mut took: Vec<Duration> = (0..ROUNDS)
        .map(|i| {
            let began = Instant::now();
            rig.send(1, i.to_string());
            assert_eq!(rig.word(1), LinkEvent::Text(i.to_string()));
            began.elapsed()
        })
        .collect();
    took.sort();
    let median = took[ROUNDS / 2];
    println!("command to frame to event, median {median:?}");
    assert!(median < Duration::from_millis(5), "{median:?}");
}

#[test]
fn a_peer_that_reads_late_gets_everything_and_is_heard_meanwhile() {
    let (go, gone) = sync_channel::<()>(0);
    let gone = std::sync::Mutex::new(gone);
    let url = peers::ws(move |mut socket| {
        socket.send(Message::text("before")).unwrap();
        gone.lock().unwrap().recv().unwrap();
        socket.send(Message::text("while")).unwrap();
        gone.lock().unwrap().recv().unwrap();
        let mut total = 0;
        while total < UNSENT_MAX / 2 {
            total += socket.read().unwrap().len();
        }
        socket.send(Message::text(total.to_string())).unwrap();
        let _ = socket.read();
    });
    let rig = Rig::new(&url);
    rig.up(1);
    assert_eq!(rig.word(1), LinkEvent::Text("before".into()));
    for _ in 0..UNSENT_MAX / 2 / 65_536 {
        rig.send(1, "x".repeat(65_536));
    }
    go.send(()).unwrap();
    assert_eq!(rig.word(1), LinkEvent::Text("while".into()));
    go.send(()).unwrap();
    assert_eq!(rig.word(1), LinkEvent::Text((UNSENT_MAX / 2).to_string()));
}

#[test]
fn a_peer_that_never_reads_is_given_up() {
    let (done, wait) = channel::<()>();
    let wait = std::sync::Mutex::new(wait);
    let url = peers::ws(move |socket| {
        let _ = wait.lock().unwrap().recv();
        drop(socket);
    });
    let rig = Rig::new(&url);
    rig.up(1);
    for _ in 0..3 * UNSENT_MAX / 65_536 {
        rig.send(1, "x".repeat(65_536));
    }
    let down = rig.down(1);
    assert_eq!(down.why, DownReason::Broken);
    assert!(down.detail.contains("wait to be sent"), "{}", down.detail);
    drop(done);
}

#[test]
fn violations_are_answered_with_their_code() {
    let check = |bytes: &'static [u8], code: u16, words: &str| {
        let (tx, rx) = channel();
        let url = peers::ws(move |mut socket| {
            socket.get_mut().write_all(bytes).unwrap();
            // What follows of a message that is too long is still under way when the close arrives.
            socket.get_mut().write_all(&[0; 100_000]).unwrap();
            tx.send(socket.read()).unwrap();
        });
        let rig = Rig::new(&url);
        rig.up(1);
        let down = rig.down(1);
        assert_eq!(down.why, DownReason::Violation, "{words}: {down:?}");
        assert!(down.detail.contains(words) && down.detail.contains(&code.to_string()), "{}", down.detail);
        match rx.recv_timeout(LONG).unwrap() {
            Ok(Message::Close(Some(frame))) => assert_eq!(u16::from(frame.code), code),
            other => panic!("{words}: {other:?}"),
        }
    };
    // 4 MiB and a byte, in one frame and in two.
    check(&[0x81, 127, 0, 0, 0, 0, 0, 0x40, 0, 1], 1009, "4194305 bytes");
    check(&[0x81, 127, 0xff, 0, 0, 0, 0, 0, 0, 0], 1009, "are allowed");
    check(&[0x81, 2, 0xc3, 0x28], 1007, "not UTF-8");
    check(&[0x81, 0x81, 0, 0, 0, 0, b'x'], 1002, "masked");
    check(&[0xc1, 1, b'x'], 1002, "RFC 6455");
    check(&[0x83, 1, b'x'], 1002, "RFC 6455");
    check(&[0x80, 1, b'x'], 1002, "RFC 6455");
    check(&[0x89, 126, 0, 126], 1002, "RFC 6455");
}

#[test]
fn the_limit_counts_fragments_together() {
    let (tx, rx) = channel();
    let url = peers::ws(move |mut socket| {
        let half = vec![b'x'; MESSAGE_MAX / 2];
        for head in [0x01, 0x00] {
            socket.get_mut().write_all(&[head, 127, 0, 0, 0, 0, 0, 0x20, 0, 0]).unwrap();
            socket.get_mut().write_all(&half).unwrap();
        }
        socket.get_mut().write_all(&[0x80, 1, b'x']).unwrap();
        tx.send(socket.read()).unwrap();
    });
    let rig = Rig::new(&url);
    rig.up(1);
    assert_eq!(rig.down(1).why, DownReason::Violation);
    assert!(
        matches!(rx.recv_timeout(LONG).unwrap(), Ok(Message::Close(Some(f))) if u16::from(f.code) == 1009)
    );
    // And exactly as much is let through.
    let rig = Rig::new(&peers::ws(|mut socket| {
        socket.send(Message::text("y".repeat(MESSAGE_MAX))).unwrap();
        let _ = socket.read();
    }));
    rig.up(1);
    assert!(matches!(rig.word(1), LinkEvent::Text(text) if text.len() == MESSAGE_MAX));
}

#[test]
fn ends_that_the_peer_makes() {
    let check = |end: fn(&mut WebSocket<TcpStream>), why: DownReason, words: &str| {
        let (tx, rx) = channel();
        let rig = Rig::new(&peers::ws(move |mut socket| {
            end(&mut socket);
            // The close is answered.
            tx.send(socket.read()).unwrap();
        }));
        rig.up(1);
        let down = rig.down(1);
        assert_eq!(down.why, why, "{down:?}");
        assert!(down.detail.contains(words), "{}", down.detail);
        let answer = rx.recv_timeout(LONG).unwrap();
        if matches!(why, DownReason::Closed(_)) {
            assert!(matches!(answer, Ok(Message::Close(_))), "{answer:?}");
        }
    };
    check(|s| end_with(s, 4001, "Heartbeat timeout"), DownReason::Closed(4001), "4001 (Heartbeat timeout)");
    check(|s| end_with(s, 1012, ""), DownReason::Closed(1012), "1012");
    check(|s| end_with(s, 4410, ""), DownReason::Closed(4410), "4410");
    check(|s| s.close(None).unwrap(), DownReason::Closed(1005), "1005");
    check(
        |s| s.get_ref().shutdown(std::net::Shutdown::Both).unwrap(),
        DownReason::Broken,
        "without closing it",
    );
}

#[test]
fn close_codes_that_must_not_be_sent_are_violations() {
    let check = |payload: &'static [u8], why: DownReason, answered: u16| {
        let (tx, rx) = channel();
        let rig = Rig::new(&peers::ws(move |mut socket| {
            socket.get_mut().write_all(&[&[0x88, payload.len() as u8], payload].concat()).unwrap();
            tx.send(socket.read()).unwrap();
        }));
        rig.up(1);
        assert_eq!(rig.down(1).why, why, "{payload:?}");
        match rx.recv_timeout(LONG).unwrap() {
            Ok(Message::Close(Some(frame))) => assert_eq!(u16::from(frame.code), answered, "{payload:?}"),
            other => panic!("{payload:?}: {other:?}"),
        }
    };
    // RFC 6455, section 7.4: 0 to 999, 1004 to 1006, 1015, what is not assigned, 5000 and above.
    for code in [0, 999, 1004, 1005, 1006, 1015, 1016, 1100, 2000, 2999, 5000, 65535_u16] {
        check(Box::leak(Box::new(code.to_be_bytes())), DownReason::Violation, 1002);
    }
    check(&[3], DownReason::Violation, 1002);
    check(&[3, 0xe8, 0xff], DownReason::Violation, 1007);
    for code in [1000, 1001, 1003, 1007, 1008, 1011, 3000, 3999, 4000, 4999_u16] {
        check(Box::leak(Box::new(code.to_be_bytes())), DownReason::Closed(code), code);
    }
}

#[test]
fn a_core_that_is_busy_is_not_flooded_and_its_own_messages_go_out() {
    const SIZE: usize = 1 << 20;
    let (tx, heard) = channel();
    let url = peers::ws(move |mut socket| {
        let mut sender = WebSocket::from_raw_socket(
            socket.get_ref().try_clone().unwrap(),
            tungstenite::protocol::Role::Server,
            None,
        );
        std::thread::spawn(move || while sender.send(Message::text("x".repeat(SIZE))).is_ok() {});
        while let Ok(message) = socket.read() {
            if message.is_text() {
                tx.send(message).unwrap();
            }
        }
    });
    let rig = Rig::new(&url);
    rig.up(1);
    // Nothing is consumed: after the first message nothing more is read, whatever the peer sends, but what is to be
    // sent goes out all the same.
    let large = |event: &LinkEvent| matches!(event, LinkEvent::Text(text) if text.len() == SIZE);
    let next = || loop {
        match rig.unconsumed() {
            (_, LinkEvent::Alive) => {}
            (_, event) => return event,
        }
    };
    const { assert!(SIZE > BACKLOG_MAX) };
    assert!(large(&next()));
    for i in 0..50 {
        rig.send(1, i.to_string());
        assert_eq!(heard.recv_timeout(LONG).unwrap(), Message::text(i.to_string()));
    }
    assert!(rig.no_event());
    // Each one that is dealt with lets the next one in.
    for _ in 0..20 {
        rig.link.consumed(SIZE);
        assert!(large(&next()));
    }
}

#[test]
fn commands_are_carried_out_under_a_flood() {
    // Frames that never become a message: the empty fragments of a text that never ends.
    let url = peers::ws(|mut socket| {
        let mut raw = socket.get_ref().try_clone().unwrap();
        let flood: Vec<u8> =
            [0x01, 0].into_iter().chain([0x00, 0].into_iter().cycle().take(1 << 16)).collect();
        std::thread::spawn(move || {
            let mut bytes = &flood[..];
            while raw.write_all(bytes).is_ok() {
                bytes = &flood[2..];
            }
        });
        while socket.read().is_ok() {}
    });
    let rig = Rig::new(&url);
    rig.up(1);
    assert_eq!(rig.next(1), LinkEvent::Alive);
    rig.link.command(LinkCommand::Reject { link: LinkId(1), detail: "it floods".into() });
    let down = rig.down(1);
    assert_eq!(down.why, DownReason::Violation, "{down:?}");
    assert!(down.detail.contains("it floods: closed with 1008"), "{}", down.detail);
}

#[test]
fn a_flood_of_pings_is_a_violation() {
    let rig = Rig::new(&peers::ws(|mut socket| {
        let mut raw = socket.get_ref().try_clone().unwrap();
        std::thread::spawn(move || while raw.write_all(&[0x89, 0].repeat(1000)).is_ok() {});
        while socket.read().is_ok() {}
    }));
    rig.up(1);
    let down = rig.down(1);
    assert_eq!(down.why, DownReason::Violation, "{down:?}");
    assert!(down.detail.contains("closed with 1008"), "{}", down.detail);
}

fn end_with(socket: &mut WebSocket<TcpStream>, code: u16, reason: &'static str) {
    socket.close(Some(CloseFrame { code: code.into(), reason: reason.into() })).unwrap();
}

#[test]
fn the_peers_word_for_the_end_is_heard_though_sending_fails() {
    let rig = Rig::new(&peers::ws(|mut socket| {
        let _ = socket.read();
        end_with(&mut socket, 4410, "removed");
        // Dropped with bytes unread: the connection is reset behind the close frame.
    }));
    rig.up(1);
    for _ in 0..64 {
        rig.send(1, "x".repeat(65_536));
    }
    let down = rig.down(1);
    assert_eq!(down.why, DownReason::Closed(4410), "{down:?}");
}

#[test]
fn a_close_is_sent_after_what_was_commanded_before_it() {
    let (tx, rx) = channel();
    let rig = Rig::new(&peers::ws(move |mut socket| {
        while let Ok(message) = socket.read() {
            if message.is_text() {
                socket.send(Message::text("late")).unwrap();
            }
            tx.send(message).unwrap();
        }
    }));
    rig.up(1);
    rig.send(1, "last words");
    rig.link.command(LinkCommand::Close { link: LinkId(1), code: 1001, reason: "shutting down" });
    assert_eq!(rx.recv_timeout(LONG).unwrap(), Message::text("last words"));
    match rx.recv_timeout(LONG).unwrap() {
        Message::Close(Some(frame)) => {
            assert_eq!((u16::from(frame.code), frame.reason.as_str()), (1001, "shutting down"));
        }
        other => panic!("{other:?}"),
    }
    // What the peer said before its answer is still heard.
    assert_eq!(rig.word(1), LinkEvent::Text("late".into()));
    assert_eq!(rig.down(1).why, DownReason::Closed(1001));
    rig.up(2);
}

#[test]
fn a_close_without_an_answer_has_a_deadline() {
    for unread in [0, 4] {
        let rig = Rig::new(&peers::ws(|socket| {
            std::thread::sleep(CLOSE_DEADLINE * 5);
            drop(socket);
        }));
        rig.up(1);
        for _ in 0..unread {
            rig.send(1, "x".repeat(1 << 20));
        }
        let began = Instant::now();
        rig.link.command(LinkCommand::Close { link: LinkId(1), code: 1001, reason: "" });
        assert_eq!(rig.down(1).why, DownReason::Broken);
        assert!(began.elapsed() < CLOSE_DEADLINE * 3, "{:?}", began.elapsed());
    }
}

#[test]
fn abandoning_says_nothing_to_the_peer() {
    let (tx, rx) = channel();
    let rig = Rig::new(&peers::ws(move |mut socket| {
        let mut rest = Vec::new();
        let _ = socket.get_mut().read_to_end(&mut rest);
        // Nobody listens to the second connection's.
        let _ = tx.send(rest);
    }));
    rig.up(1);
    rig.link.command(LinkCommand::Abandon(LinkId(1)));
    assert_eq!(rig.down(1).why, DownReason::Broken);
    assert!(rx.recv_timeout(LONG).unwrap().is_empty());
    // Commands for it come too late.
    rig.send(1, "x");
    rig.link.command(LinkCommand::Close { link: LinkId(1), code: 1000, reason: "" });
    rig.up(2);
}

#[test]
fn dropping_the_handle_ends_the_thread_and_the_connection() {
    let (tx, rx) = channel();
    let rig = Rig::new(&peers::ws(move |mut socket| tx.send(socket.read().is_err()).unwrap()));
    rig.up(1);
    drop(rig);
    assert!(rx.recv_timeout(LONG).unwrap());
}
