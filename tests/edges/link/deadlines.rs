//! Servers that say nothing, or too little: the deadlines hold all the same.

use std::io::Read;
use std::net::{SocketAddr, TcpStream};
use std::thread;
use std::time::{Duration, Instant};

use vectorlay::core::link_api::{DownReason, Registration};
use vectorlay::link::DIAL_DEADLINE;

use super::peers;
use super::rig::Rig;

/// How much later than its deadline an attempt may end on a busy machine.
const SLACK: Duration = Duration::from_secs(5);

fn silent(mut stream: TcpStream) {
    let _ = stream.read_to_end(&mut Vec::new());
}

fn dripped_tls(mut stream: TcpStream) {
    // A handshake record of 16 KiB that never ends.
    let record = [0x16, 3, 3, 0x40, 0, 2, 0, 0x3f, 0xfc].into_iter().chain(std::iter::repeat(0));
    peers::drip(&mut stream, record, Duration::from_millis(100));
}

fn dripped_upgrade(mut stream: TcpStream) {
    let head = b"HTTP/1.1 101 Switching Protocols\r\nX: ".iter().copied().chain(std::iter::repeat(b'x'));
    peers::drip(&mut stream, head, Duration::from_millis(200));
}

fn dripped_body(mut stream: TcpStream) {
    peers::request(&mut stream);
    let head = b"HTTP/1.1 200 OK\r\n\r\n".iter().copied().chain(std::iter::repeat(b' '));
    peers::drip(&mut stream, head, Duration::from_millis(50));
}

#[test]
fn no_server_can_stretch_a_deadline() {
    let dial = |scheme: &str, handler: fn(TcpStream), waiting_for: &str| {
        let rig = Rig::new(&format!("{scheme}://{}/", peers::tcp("127.0.0.1:0", handler)));
        let began = Instant::now();
        rig.dial(1);
        let down = rig.down(1);
        held(began);
        assert_eq!(down.why, DownReason::NoConnection);
        assert!(down.detail.contains(waiting_for), "{}", down.detail);
    };
    let register = |handler: fn(TcpStream)| {
        let address: SocketAddr = peers::tcp("127.0.0.1:0", handler);
        let rig = Rig::new(&format!("ws://{address}/ws"));
        let began = Instant::now();
        let answer = rig.register(1);
        held(began);
        assert!(
            matches!(answer, Registration::Failed { detail, .. } if detail.contains("to the registration"))
        );
    };
    thread::scope(|scope| {
        scope.spawn(|| dial("ws", silent, "answer to the upgrade"));
        scope.spawn(|| dial("ws", dripped_upgrade, "answer to the upgrade"));
        scope.spawn(|| dial("wss", silent, "answer to the TLS handshake"));
        scope.spawn(|| dial("wss", dripped_tls, "answer to the TLS handshake"));
        scope.spawn(|| register(silent));
        scope.spawn(|| register(dripped_body));
    });
}

#[track_caller]
fn held(began: Instant) {
    let took = began.elapsed();
    assert!(took >= DIAL_DEADLINE && took < DIAL_DEADLINE + SLACK, "{took:?}");
}
