//! TLS: whom the link trusts, what it says of those whom it does not, and the tunnel through a proxy.

use std::fs;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::PathBuf;
use std::sync::mpsc::channel;
use std::thread;

use tungstenite::Message;
use vectorlay::core::link_api::{DownReason, LinkCommand, LinkEvent, LinkId};
use vectorlay::link::{Proxy, UNSENT_MAX};

use super::certs::{Leaf, certs};
use super::peers;
use super::rig::{LONG, Rig};
use crate::support::skip::has_openssl;

fn hold(mut socket: tungstenite::WebSocket<peers::Boxed>) {
    while socket.read().is_ok() {}
}

#[test]
fn what_is_wrong_with_a_certificate_is_said() {
    if !has_openssl("what_is_wrong_with_a_certificate_is_said") {
        return;
    }
    let certs = certs();
    let check = |leaf: &'static Leaf, ca: Option<&PathBuf>, words: &[&str]| {
        let rig = Rig::with(&format!("wss://{}/", peers::wss(leaf, hold)), ca.cloned(), None);
        rig.dial(1);
        let down = rig.down(1);
        assert_eq!(down.why, DownReason::NoConnection);
        for word in words {
            assert!(down.detail.contains(word), "{word:?} is not in: {}", down.detail);
        }
        println!("{}", down.detail);
    };
    let ca = Some(&certs.ca_file);
    check(&certs.expired, ca, &["expired on 2021-02-03 04:05:06 UTC", "clock says 20", "renew"]);
    check(
        &certs.not_yet,
        ca,
        &["not valid before 2098-01-02 03:04:05 UTC", "clock says 20", "set it by NTP"],
    );
    check(&certs.wrong_name, ca, &["not for 127.0.0.1", "it is for a.example, b.example:"]);
    check(&certs.good, None, &["is not trusted here", "set ca_file"]);
    check(&certs.good, Some(&certs.other_ca_file), &["neither a public root nor", "other-ca.pem"]);
    check(&certs.self_signed, None, &["self-signed"]);
    check(&certs.self_signed, ca, &["self-signed", "ca.pem"]);
}

#[test]
fn the_ca_file_is_read_anew_at_each_attempt() {
    if !has_openssl("the_ca_file_is_read_anew_at_each_attempt") {
        return;
    }
    let certs = certs();
    let file = certs.dir.join("replaced.pem");
    let rig = Rig::with(&format!("wss://{}/", peers::wss(&certs.good, hold)), Some(file.clone()), None);
    rig.dial(1);
    let detail = rig.down(1).detail;
    assert!(detail.contains("replaced.pem") && detail.contains("No such file"), "{detail}");
    fs::copy(&certs.other_ca_file, &file).unwrap();
    rig.dial(2);
    assert_eq!(rig.down(2).why, DownReason::NoConnection);
    fs::copy(&certs.ca_file, &file).unwrap();
    rig.up(3);
}

#[test]
fn a_server_without_tls_is_told_apart() {
    let address = peers::tcp("127.0.0.1:0", |mut stream| {
        let _ = stream.read(&mut [0; 512]);
        let _ = stream.write_all(b"HTTP/1.1 400 Bad Request\r\n\r\n");
    });
    let rig = Rig::new(&format!("wss://{address}/"));
    rig.dial(1);
    let detail = rig.down(1).detail;
    assert!(detail.contains("not TLS"), "{detail}");
    let address = peers::tcp("127.0.0.1:0", drop);
    let rig = Rig::new(&format!("wss://{address}/"));
    rig.dial(1);
    let detail = rig.down(1).detail;
    assert!(detail.contains("TLS handshake"), "{detail}");
}

#[test]
fn a_peer_that_reads_late_gets_everything_through_tls() {
    if !has_openssl("a_peer_that_reads_late_gets_everything_through_tls") {
        return;
    }
    let (go, gone) = channel::<()>();
    let gone = std::sync::Mutex::new(gone);
    let address = peers::wss(&certs().good, move |mut socket| {
        gone.lock().unwrap().recv().unwrap();
        socket.send(Message::text("while")).unwrap();
        gone.lock().unwrap().recv().unwrap();
        let mut total = 0;
        while total < UNSENT_MAX / 2 {
            total += socket.read().unwrap().len();
        }
        socket.send(Message::text(total.to_string())).unwrap();
        hold(socket);
    });
    let rig = Rig::with(&format!("wss://{address}/"), Some(certs().ca_file.clone()), None);
    rig.up(1);
    for _ in 0..UNSENT_MAX / 2 / 65_536 {
        rig.send(1, "x".repeat(65_536));
    }
    go.send(()).unwrap();
    assert_eq!(rig.word(1), LinkEvent::Text("while".into()));
    go.send(()).unwrap();
    assert_eq!(rig.word(1), LinkEvent::Text((UNSENT_MAX / 2).to_string()));
    rig.link.command(LinkCommand::Close { link: LinkId(1), code: 1001, reason: "" });
    assert_eq!(rig.down(1).why, DownReason::Closed(1001));
}

#[test]
fn ends_through_tls() {
    if !has_openssl("ends_through_tls") {
        return;
    }
    // A cut without TLS's close_notify, as most servers end.
    let address = peers::wss(&certs().good, |mut socket| {
        socket.send(Message::text("hello")).unwrap();
    });
    let rig = Rig::with(&format!("wss://{address}/"), Some(certs().ca_file.clone()), None);
    rig.up(1);
    assert_eq!(rig.word(1), LinkEvent::Text("hello".into()));
    let down = rig.down(1);
    assert_eq!(down.why, DownReason::Broken, "{down:?}");
    let address = peers::wss(&certs().good, |mut socket| {
        socket.get_mut().write_all(&[0x81, 127, 0, 0, 0, 0, 0, 0x40, 0, 1]).unwrap();
        socket.get_mut().flush().unwrap();
        assert!(matches!(socket.read(), Ok(Message::Close(Some(f))) if u16::from(f.code) == 1009));
        let _ = socket.read();
    });
    let rig = Rig::with(&format!("wss://{address}/"), Some(certs().ca_file.clone()), None);
    rig.up(1);
    assert_eq!(rig.down(1).why, DownReason::Violation);
}

/// An HTTP proxy that leads every tunnel to `target` and tells what was asked of it; without `target` it refuses.
fn proxy(
    target: Option<std::net::SocketAddr>,
    asked: std::sync::mpsc::Sender<String>,
) -> std::net::SocketAddr {
    peers::tcp("127.0.0.1:0", move |mut near| {
        asked.send(peers::request(&mut near).0).unwrap();
        let Some(target) = target else {
            let _ = near.write_all(b"HTTP/1.1 407 Proxy Authentication Required\r\n\r\n");
            return;
        };
        let mut far = TcpStream::connect(target).unwrap();
        near.write_all(b"HTTP/1.1 200 Connection established\r\nVia: test\r\n\r\n").unwrap();
        let (mut near_in, mut far_out) = (near.try_clone().unwrap(), far.try_clone().unwrap());
        thread::spawn(move || std::io::copy(&mut near_in, &mut far_out));
        let _ = std::io::copy(&mut far, &mut near);
    })
}

#[test]
fn through_a_proxy() {
    if !has_openssl("through_a_proxy") {
        return;
    }
    let (tx, asked) = channel();
    let certs = certs();
    let server = peers::wss(&certs.good, |mut socket| {
        socket.send(Message::text("through")).unwrap();
        let _ = socket.read();
    });
    let at = proxy(Some(server), tx);
    let settings = Proxy::new(&format!("http://user:pass@{at}"), "direct.test").unwrap();
    // Nobody but the proxy can know where node.test is.
    let rig = Rig::with("wss://node.test/ws", Some(certs.ca_file.clone()), Some(settings.clone()));
    rig.up(1);
    assert_eq!(rig.word(1), LinkEvent::Text("through".into()));
    let head = asked.recv_timeout(LONG).unwrap();
    assert!(head.starts_with("connect node.test:443 http/1.1\r\nhost: node.test:443\r\n"), "{head}");
    assert!(head.contains("proxy-authorization: basic dxnlcjpwyxnz\r\n"), "{head}");
    assert!(!head.contains("vtk_secret"));
    // Loopback is reached without it.
    let rig = Rig::with(&format!("wss://{server}/ws"), Some(certs.ca_file.clone()), Some(settings));
    rig.up(1);
    assert!(asked.try_recv().is_err());
}

#[test]
fn a_proxy_that_refuses_is_named() {
    let (tx, _asked) = channel();
    let at = proxy(None, tx);
    let check = |at: std::net::SocketAddr, words: &str| {
        let settings = Proxy::new(&format!("http://user:hunter2@{at}"), "").unwrap();
        let rig = Rig::with("wss://node.test/ws", None, Some(settings));
        rig.dial(1);
        let down = rig.down(1);
        assert_eq!(down.why, DownReason::NoConnection);
        assert!(down.detail.contains(words) && !down.detail.contains("hunter2"), "{}", down.detail);
    };
    check(at, "407");
    check(peers::http("HTTP/1.1 502 Bad Gateway\r\n\r\n"), "502 Bad Gateway");
    check(peers::http("nonsense\r\n\r\n"), "not HTTP");
    check(peers::http("HTTP/1.1 200 OK\r\n"), "asking the proxy");
    check(peers::http(vec![b'x'; 100_000]), "not HTTP");
}

#[test]
fn a_proxy_that_is_not_there_is_named() {
    let check = |proxy: &str, words: &[&str]| {
        let rig = Rig::with("wss://node.test/", None, Some(Proxy::new(proxy, "").unwrap()));
        rig.dial(1);
        let detail = rig.down(1).detail;
        assert!(words.iter().any(|word| detail.contains(word)), "{detail}");
    };
    let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let at = format!("127.0.0.1:{port}");
    check(&at, &[&format!("connecting to the proxy {at} (setting proxy): 127.0.0.1: Connection refused")]);
    // Where no name server answers, the deadline is as good.
    let named = "the proxy nothing.invalid (setting proxy)";
    check("nothing.invalid:1", &[&format!("looking up {named}: "), &format!("name servers for {named}")]);
}
