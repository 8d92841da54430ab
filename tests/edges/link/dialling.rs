//! One attempt, and the ways in which it fails.

use std::io::{Read, Write};
use std::net::TcpListener;
use std::sync::mpsc::channel;
use std::time::{Duration, Instant};

use vectorlay::core::link_api::{DownReason, LinkCommand, LinkEvent, LinkId};
use vectorlay::link::RETRY_AFTER_MAX;

use super::peers;
use super::rig::{LONG, Rig};
use crate::support::skip::skip;

#[test]
fn the_upgrade_says_who_asks() {
    let (tx, rx) = channel();
    let address = peers::tcp("127.0.0.1:0", move |mut stream| {
        tx.send(peers::request(&mut stream).0).unwrap();
    });
    let rig = Rig::new(&format!("ws://{address}/api/ws?x=1"));
    rig.dial(1);
    let head = rx.recv_timeout(LONG).unwrap();
    for line in [
        "get /api/ws?x=1 http/1.1\r\n",
        "\r\nauthorization: bearer vtk_secret\r\n",
        "\r\nx-node-id: node-7\r\n",
        concat!("\r\nuser-agent: vectorlay-agent/", env!("CARGO_PKG_VERSION"), "\r\n"),
        &format!("\r\nhost: {address}\r\n"),
    ] {
        assert!(head.contains(line), "{line:?} is not in {head}");
    }
    rig.down(1);
    rig.link.command(LinkCommand::Dial { link: LinkId(2), node: None, credential: None });
    let head = rx.recv_timeout(LONG).unwrap();
    assert!(!head.contains("authorization") && !head.contains("x-node-id"), "{head}");
}

#[test]
fn names_and_addresses() {
    reached("127.0.0.1:0", "127.0.0.1");
    reached("127.0.0.1:0", "localhost");
}

#[test]
fn addresses_of_the_newer_family() {
    if TcpListener::bind("[::1]:0").is_err() {
        return skip("addresses_of_the_newer_family", "this machine has no ::1");
    }
    reached("[::1]:0", "[::1]");
}

/// Connects to a server that listens at `at` under the name `host`.
fn reached(at: &str, host: &str) {
    let address = peers::tcp(at, |stream| drop(tungstenite::accept(stream).unwrap().read()));
    Rig::new(&format!("ws://{host}:{}/", address.port())).up(1);
}

#[test]
fn an_upgrade_as_proxies_write_it_loses_nothing_behind_it() {
    let address = peers::tcp("127.0.0.1:0", |mut stream| {
        let (head, _) = peers::request_as_sent(&mut stream);
        let key = head.lines().find_map(|line| line.strip_prefix("Sec-WebSocket-Key: ")).unwrap();
        let accept = tungstenite::handshake::derive_accept_key(key.as_bytes());
        let answer = format!(
            "HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nLink: </a.css>\r\n\r\n\
             HTTP/1.1 101 Switching Protocols\r\nVia: 1.1 proxy\r\nConnection: keep-alive\r\n\
             UPGRADE: WebSocket\r\nconnection: foo,\r\n  Upgrade\r\nSec-WebSocket-Accept:  {accept}  \r\n\r\n"
        );
        // In one piece with the first frame.
        stream.write_all(&[answer.as_bytes(), &[0x81, 5], b"first"].concat()).unwrap();
        let _ = stream.read(&mut [0]);
    });
    let rig = Rig::new(&format!("ws://{address}/ws"));
    rig.up(1);
    assert_eq!(rig.word(1), LinkEvent::Text("first".into()));
}

#[test]
fn what_was_not_asked_for_is_refused() {
    for (field, words) in [
        ("Sec-WebSocket-Extensions: permessage-deflate", "extension"),
        ("Sec-WebSocket-Protocol: x", "subprotocol"),
    ] {
        let address = peers::tcp("127.0.0.1:0", move |mut stream| {
            let (head, _) = peers::request_as_sent(&mut stream);
            let key = head.lines().find_map(|line| line.strip_prefix("Sec-WebSocket-Key: ")).unwrap();
            let accept = tungstenite::handshake::derive_accept_key(key.as_bytes());
            let answer = format!(
                "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
                 Sec-WebSocket-Accept: {accept}\r\n{field}\r\n\r\n"
            );
            stream.write_all(answer.as_bytes()).unwrap();
        });
        let rig = Rig::new(&format!("ws://{address}/ws"));
        rig.dial(1);
        let down = rig.down(1);
        assert_eq!(down.why, DownReason::NoConnection);
        assert!(down.detail.contains(words), "{}", down.detail);
    }
}

#[test]
fn answers_that_are_no_upgrade() {
    let check = |answer: &str, why: DownReason, retry: Option<u64>, words: &str| {
        let rig = Rig::new(&format!("ws://{}/api/ws", peers::http(answer)));
        rig.dial(1);
        let down = rig.down(1);
        assert_eq!((down.why, down.retry_after), (why, retry.map(Duration::from_secs)), "{answer}");
        assert!(down.detail.contains(words), "{answer}: {}", down.detail);
    };
    use DownReason::{Http, NoConnection};
    check("HTTP/1.1 503 Busy\r\nRetry-After: 7\r\n\r\n", Http(503), Some(7), "503");
    check(
        "HTTP/1.1 429 Slow\r\nRetry-After: 999999\r\n\r\n",
        Http(429),
        Some(RETRY_AFTER_MAX.as_secs()),
        "429",
    );
    check("HTTP/1.1 503 Busy\r\nRetry-After: Sun, 06 Nov 1994 08:49:37 GMT\r\n\r\n", Http(503), Some(0), "");
    check("HTTP/1.1 503 Busy\r\nRetry-After: soon\r\n\r\n", Http(503), None, "server's own log");
    check(
        "HTTP/1.1 302 Found\r\nLocation: https://x.example/\r\n\r\n",
        Http(302),
        None,
        "https://x.example/",
    );
    // The rig asks as a node that is registered.
    check("HTTP/1.1 401 No\r\nContent-Length: 0\r\n\r\n", Http(401), None, "move that file away");
    check("HTTP/1.1 410 Gone\r\n\r\n", Http(410), None, "removed");
    // A web page is not the control plane's: such an answer must neither end the agent nor take its identity.
    for status in [401, 403, 410] {
        let page = format!("HTTP/1.1 {status} No\r\nContent-Type: text/html; charset=utf-8\r\n\r\n<html>");
        check(&page, NoConnection, None, "in between");
    }
    check("HTTP/1.0 503 Busy\r\n\r\n", Http(503), None, "503");
    check("HTTP/1.1 200 OK\r\n\r\nhello", Http(200), None, "check the URL");
    check("", NoConnection, None, "without an answer");
    check("SSH-2.0-OpenSSH_9.2\r\n", NoConnection, None, "not HTTP");
    check(
        "HTTP/1.1 101 Switching\r\nUpgrade: websocket\r\nConnection: upgrade\r\nSec-WebSocket-Accept: x\r\n\r\n",
        NoConnection,
        None,
        "not an upgrade",
    );
}

#[test]
fn servers_that_are_not_there() {
    let check = |url: &str, words: &[&str]| {
        let rig = Rig::new(url);
        rig.dial(1);
        let down = rig.down(1);
        let refused = down.detail.contains("refused");
        assert_eq!(down.why, if refused { DownReason::Refused } else { DownReason::NoConnection });
        assert!(words.iter().any(|word| down.detail.contains(word)), "{}", down.detail);
    };
    let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    check(&format!("ws://127.0.0.1:{port}/"), &["127.0.0.1: Connection refused"]);
    check(&format!("ws://localhost:{port}/"), &["127.0.0.1: Connection refused"]);
    // Where no name server answers, the deadline is as good.
    check("wss://nothing.invalid/", &["looking up nothing.invalid", "name servers for nothing.invalid"]);
}

#[test]
fn an_attempt_can_be_cancelled() {
    let (tx, waiting) = channel();
    let address = peers::tcp("127.0.0.1:0", move |mut stream| {
        stream.read_exact(&mut [0]).unwrap();
        tx.send(()).unwrap();
        drop(stream.read_to_end(&mut Vec::new()));
    });
    for scheme in ["ws", "wss"] {
        let rig = Rig::new(&format!("{scheme}://{address}/"));
        for (link, close) in [(1, true), (2, false)] {
            let command = match close {
                true => LinkCommand::Close { link: LinkId(link), code: 1001, reason: "" },
                false => LinkCommand::Abandon(LinkId(link)),
            };
            let began = Instant::now();
            rig.dial(link);
            waiting.recv_timeout(LONG).unwrap();
            // Not for this attempt: must not end it, nor keep the thread from sleeping.
            rig.link.command(LinkCommand::Abandon(LinkId(link - 1)));
            rig.link.command(command);
            let down = rig.down(link);
            assert_eq!(down.why, DownReason::Broken);
            assert!(began.elapsed() < Duration::from_secs(4), "{:?}", began.elapsed());
        }
    }
}

#[test]
fn an_attempt_cancelled_in_the_queue_never_begins() {
    let url = peers::ws(|mut socket| while socket.read().is_ok() {});
    let rig = Rig::new(&url);
    // While the first dials, the second is commanded and cancelled again.
    rig.dial(1);
    rig.dial(2);
    rig.link.command(LinkCommand::Abandon(LinkId(2)));
    rig.dial(3);
    let (mut ups, mut downs) = (Vec::new(), Vec::new());
    while ups.last() != Some(&3) {
        match rig.any() {
            (link, LinkEvent::Up) => ups.push(link.0),
            (link, LinkEvent::Down(_)) => downs.push(link.0),
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(downs, [1, 2]);
}

#[test]
fn an_answer_that_is_cut_is_not_an_upgrade() {
    let address = peers::tcp("127.0.0.1:0", |mut stream| {
        peers::request(&mut stream);
        stream.write_all(b"HTTP/1.1 101 Sw").unwrap();
    });
    let rig = Rig::new(&format!("ws://{address}/"));
    rig.dial(1);
    assert_eq!(rig.down(1).why, DownReason::NoConnection);
}
