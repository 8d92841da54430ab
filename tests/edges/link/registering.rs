//! The one HTTP request.

use std::io::{Read, Write};
use std::net::SocketAddr;
use std::sync::mpsc::channel;
use std::time::{Duration, Instant};

use vectorlay::core::link_api::{LinkCommand, LinkId, Registration};
use vectorlay::types::{NodeId, Secret};

use super::certs::certs;
use super::peers;
use super::rig::{LONG, Rig};
use crate::support::skip::has_openssl;

const GOOD: &str = "HTTP/1.1 201 Created\r\nContent-Type: application/json\r\nContent-Length: 38\r\n\r\n\
                    {\"node_id\":\"n-1\",\"node_token\":\"vtn_1\"}";

fn done() -> Registration {
    Registration::Done { node: NodeId::new("n-1").unwrap(), token: Some(Secret::new("vtn_1".into())) }
}

fn at(address: SocketAddr) -> Rig {
    Rig::new(&format!("ws://{address}/api/ws"))
}

#[test]
fn the_request_and_its_answer() {
    let (tx, rx) = channel();
    let address = peers::tcp("127.0.0.1:0", move |mut stream| {
        tx.send(peers::request(&mut stream)).unwrap();
        stream.write_all(GOOD.as_bytes()).unwrap();
        // Kept open: the length says where the answer ends.
        let _ = stream.read(&mut [0]);
    });
    assert_eq!(at(address).register(1), done());
    let (head, body) = rx.recv_timeout(LONG).unwrap();
    for line in [
        "post /api/register http/1.1\r\n",
        "\r\nauthorization: bearer vtk_secret\r\n",
        "\r\ncontent-type: application/json\r\n",
        concat!("\r\nuser-agent: vectorlay-agent/", env!("CARGO_PKG_VERSION"), "\r\n"),
        &format!("\r\nhost: {address}\r\n"),
    ] {
        assert!(head.contains(line), "{line:?} is not in {head}");
    }
    assert_eq!(body, r#"{"machine_id":"m"}"#);
}

#[test]
fn other_answers() {
    let absent = |answer: String| {
        assert_eq!(at(peers::http(answer.clone())).register(1), Registration::Absent, "{answer:.60}");
    };
    absent("HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n".into());
    absent("HTTP/1.1 426 Upgrade Required\r\n\r\n".into());
    absent("HTTP/1.1 200 OK\r\n\r\n<!doctype html>".into());
    absent(format!("HTTP/1.1 200 OK\r\n\r\n{{\"node_id\":\"n\",\"x\":\"{}\"}}", "x".repeat(1 << 20)));
    let refused = at(peers::http("HTTP/1.1 401 Unauthorized\r\nContent-Length: 0\r\n\r\n")).register(1);
    assert_eq!(refused, Registration::Refused(401));
    let own = "HTTP/1.1 403 Forbidden\r\nContent-Type: application/json\r\nContent-Length: 17\r\n\r\n{\"error\":\"token\"}";
    assert_eq!(at(peers::http(own)).register(1), Registration::Refused(403));
    let failed = |answer: &str, wait: Option<u64>, words: &str| match at(peers::http(answer)).register(1) {
        Registration::Failed { retry_after, detail } => {
            assert_eq!(retry_after, wait.map(Duration::from_secs), "{answer}");
            assert!(detail.contains(words), "{answer}: {detail}");
        }
        other => panic!("{answer}: {other:?}"),
    };
    failed("HTTP/1.1 503 Busy\r\nRetry-After: 9\r\n\r\n", Some(9), "503");
    failed("HTTP/1.1 429 Slow\r\nRetry-After: 90000\r\n\r\n", Some(3600), "429");
    failed("HTTP/1.1 302 Found\r\nLocation: https://x.example/l\r\n\r\n", None, "https://x.example/l");
    // A firewall or a portal in between.
    for status in [401, 403] {
        let page =
            format!("HTTP/1.1 {status} No\r\nContent-Type: text/html\r\nContent-Length: 6\r\n\r\n<html>");
        failed(&page, None, "in between");
    }
    failed("HTTP/1.1 403 Forbidden\r\nContent-Length: 0\r\n\r\n", None, "in between");
    failed("", None, "registering at http://127.0.0.1");
    failed("SSH-2.0-x\r\n\r\n", None, "registering at");
    failed("HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n{\"node_id\"", None, "registering at");
    failed(&format!("HTTP/1.1 200 OK\r\nX: {}\r\n\r\n", "x".repeat(100_000)), None, "registering at");
}

#[test]
fn a_chunked_answer_in_pieces() {
    let address = peers::tcp("127.0.0.1:0", |mut stream| {
        peers::request(&mut stream);
        let answer = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\n{\"no\r\nd\r\nde_id\":\"n-1\"}\r\n0\r\n\r\n";
        peers::drip(&mut stream, answer.iter().copied(), Duration::from_millis(2));
    });
    let node = NodeId::new("n-1").unwrap();
    assert_eq!(at(address).register(1), Registration::Done { node, token: None });
}

#[test]
fn with_tls_the_ca_file_counts_as_it_does_for_the_socket() {
    if !has_openssl("with_tls_the_ca_file_counts_as_it_does_for_the_socket") {
        return;
    }
    let address = peers::tls(&certs().good, |mut stream| {
        peers::request(&mut stream);
        stream.write_all(GOOD.as_bytes()).unwrap();
        stream.flush().unwrap();
    });
    let url = format!("wss://{address}/api/ws");
    assert_eq!(Rig::with(&url, Some(certs().ca_file.clone()), None).register(1), done());
    match Rig::new(&url).register(1) {
        Registration::Failed { detail, .. } => assert!(detail.contains("set ca_file"), "{detail}"),
        other => panic!("{other:?}"),
    }
}

#[test]
fn it_can_be_cancelled() {
    let (tx, waiting) = channel();
    let address = peers::tcp("127.0.0.1:0", move |mut stream| {
        stream.read_exact(&mut [0]).unwrap();
        tx.send(()).unwrap();
        drop(stream.read_to_end(&mut Vec::new()));
    });
    let rig = at(address);
    let began = Instant::now();
    rig.link.command(LinkCommand::Register {
        link: LinkId(1),
        token: Secret::new("t".into()),
        body: String::new(),
    });
    waiting.recv_timeout(LONG).unwrap();
    rig.link.command(LinkCommand::Abandon(LinkId(1)));
    assert!(matches!(rig.registered(1), Registration::Failed { detail, .. } if detail.contains("cancelled")));
    assert!(began.elapsed() < Duration::from_secs(5));
}
