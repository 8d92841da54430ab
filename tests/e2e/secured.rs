//! TLS: with the operator's own CA; and words for what is wrong with a certificate.

use rustix::process::Signal;

use crate::support::agent::Node;
use crate::support::control_plane::{Certificate, ControlPlane, TOKEN, WAIT};
use crate::support::skip::has_openssl;
use crate::world::connected;

#[test]
fn a_ca_of_the_operators_own() {
    if !has_openssl("a_ca_of_the_operators_own") {
        return;
    }
    let mut node = Node::new("secured-ca");
    let made = Certificate::make(node.path());
    let [ca, cert, key] = [&made.ca, &made.cert, &made.key].map(|path| path.to_str().unwrap());
    let plane = ControlPlane::start(&["--tls-cert", cert, "--tls-key", key]);
    assert!(plane.url().starts_with("wss://"));
    node.set("url", plane.url()).env("VECTORLAY_TOKEN", TOKEN);

    let said = |node: &Node| {
        let agent = node.start();
        agent.wait_line(WAIT, |line| line.contains("next attempt in"))
    };
    // Without it, and with another one.
    let line = said(&node);
    assert!(line.contains("is not trusted here") && line.contains("ca_file"), "{line}");
    let elsewhere = node.path().join("elsewhere");
    std::fs::create_dir(&elsewhere).unwrap();
    let other = Certificate::make(&elsewhere);
    node.set("ca-file", other.ca.to_str().unwrap());
    let line = said(&node);
    assert!(line.contains("not signed by the issuer that it names") && line.contains("ca_file"), "{line}");
    // A file without a certificate, and one that is not there, end the start.
    for file in [key, "/no/such/ca.pem"] {
        node.set("ca-file", file);
        let (code, text) = node.said(&["run"]);
        assert!(code == 3 && text.contains("ca_file") && text.contains(file), "{code}: {text}");
    }
    // A certificate that is cut off among good ones is left out.
    let pem = std::fs::read_to_string(ca).unwrap();
    std::fs::write(node.path().join("mixed.pem"), format!("{}\n{pem}", &pem[..pem.len() / 2])).unwrap();
    node.set("ca-file", node.path().join("mixed.pem").to_str().unwrap());
    let mut agent = node.start();
    connected(&plane);
    agent.wait_line(WAIT, |line| line.contains("1 of its certificates cannot be used"));
    agent.signal(Signal::TERM);
    assert_eq!(agent.wait_exit(WAIT), 0);
    let left = plane.wait_event(WAIT, |event| event["type"] == "disconnected");
    assert!(left["payload"]["why"].as_str().unwrap().contains("1001"), "{left}");
}

#[test]
fn a_certificate_for_another_name() {
    if !has_openssl("a_certificate_for_another_name") {
        return;
    }
    let mut node = Node::new("secured-name");
    let made = Certificate::make(node.path());
    let [ca, cert, key] = [&made.ca, &made.cert, &made.key].map(|path| path.to_str().unwrap());
    let plane = ControlPlane::start(&["--tls-cert", cert, "--tls-key", key, "--listen", "127.0.0.2:0"]);
    node.set("url", plane.url()).set("ca-file", ca).env("VECTORLAY_TOKEN", TOKEN);
    let agent = node.start();
    let line = agent.wait_line(WAIT, |line| line.contains("next attempt in"));
    assert!(line.contains("not for 127.0.0.2") && line.contains("localhost"), "{line}");
}

#[test]
fn no_token_in_the_clear() {
    let plane = ControlPlane::start(&["--listen", "0.0.0.0:0"]);
    let mut node = Node::new("secured-clear");
    node.set("url", plane.url()).env("VECTORLAY_TOKEN", TOKEN);
    let mut agent = node.start();
    assert_eq!(agent.wait_exit(WAIT), 3);
    let text = agent.text();
    assert!(
        text.contains("unencrypted") && text.contains("allow_insecure") && text.contains("wss://"),
        "{text}"
    );
    node.set("allow-insecure", "true");
    let _agent = node.start();
    connected(&plane);
    // The registration's own URL is held to the same.
    node.unset("allow-insecure")
        .set("url", "wss://127.0.0.1:1/")
        .set("register-url", "http://192.0.2.1/register");
    let (code, text) = node.said(&["run"]);
    assert!(code == 3 && text.contains("register_url"), "{text}");
}
