//! The four sources of a setting and their order, the places where a token may stand, and what is said about mistakes.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;

use rustix::process::Signal;
use serde_json::Value;

use crate::support::agent::Node;
use crate::support::control_plane::{ControlPlane, TOKEN, WAIT};
use crate::world::{connected, node};

fn shown(node: &Node, name: &str) -> (Value, String) {
    let output = node.run(&["config", "--json"]);
    assert_eq!(output.status.code(), Some(0), "{}", String::from_utf8_lossy(&output.stderr));
    let mut all: Value = serde_json::from_slice(&output.stdout).unwrap();
    let source = all[name]["source"].as_str().unwrap().to_owned();
    (all[name]["value"].take(), source)
}

/// Writes a file that its owner alone can read.
fn secret(node: &Node, name: &str, text: &str) -> String {
    let path = node.path().join(name);
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(&path, text).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
    path.to_str().unwrap().to_owned()
}

#[test]
fn the_stronger_source_wins() {
    let mut node = Node::new("settings-order");
    let root = node.path().join("root");
    fs::create_dir_all(root.join("proc")).unwrap();
    fs::write(root.join("proc/cmdline"), "quiet vectorlay.workers=3 vectorlay.namespace=\"of the kernel\"\n")
        .unwrap();
    node.set("root", root.to_str().unwrap()).set("container-cli", "nerdctl");
    let check = |node: &Node, value: u64, source: &str| {
        let (seen, from) = shown(node, "workers");
        assert!(seen == value && from.contains(source), "{seen} from {from}");
    };
    node.set("workers", "5").env("VECTORLAY_WORKERS", "4");
    fs::write(node.file(), r#"{"workers": 2}"#).unwrap();
    check(&node, 5, "--workers");
    node.unset("workers");
    check(&node, 4, "VECTORLAY_WORKERS");
    node.env("VECTORLAY_WORKERS", "");
    check(&node, 3, "vectorlay.workers");
    assert_eq!(shown(&node, "namespace").0, "of the kernel");
    fs::write(root.join("proc/cmdline"), "quiet\n").unwrap();
    check(&node, 2, node.file().to_str().unwrap());
    fs::write(node.file(), "{}").unwrap();
    check(&node, 8, "default");
    // The flag names another file than the variable.
    let other = secret(&node, "other.json", r#"{"workers": 7}"#);
    node.set("config", &other);
    check(&node, 7, &other);
}

#[test]
fn mistakes_name_the_nearest_word() {
    let mut node = Node::new("settings-mistakes");
    let said = |node: &Node, arguments: &[&str], code: i32, words: &[&str]| {
        let (status, text) = node.said(arguments);
        assert!(
            status == code && words.iter().all(|word| text.contains(word)),
            "{arguments:?}: {status}: {text}"
        );
    };
    said(&node, &["--stat-dir=/x"], 2, &["--stat-dir", "--state-dir"]);
    said(&node, &["--worker", "3"], 2, &["--worker", "--workers"]);
    said(&node, &["chekc"], 2, &["chekc", "check"]);
    said(&node, &["run", "now"], 2, &["now"]);
    said(&node, &["--token=vtk_x"], 2, &["token", "VECTORLAY_TOKEN"]);
    said(&node, &["config", "--workers=many"], 3, &["workers", "many"]);
    said(&node, &["config", "--workers=0"], 3, &["workers"]);
    node.env("VECTORLAY_WORKERS", "65");
    said(&node, &["config"], 3, &["VECTORLAY_WORKERS", "65"]);
    node.env("VECTORLAY_WORKERS", "");
    for (text, words) in [
        (r#"{"worker": 3}"#, ["\"worker\"", "did you mean workers"]),
        (r#"{"state-dir": "/x"}"#, ["state-dir", "did you mean state_dir"]),
        (r#"{"workers": "3"}"#, ["workers", "the text \"3\" is not a whole number"]),
        (r#"{"url": 5}"#, ["url", "the number 5 is not text"]),
        (r#"{"workers": 3"#, ["agent.json", "JSON"]),
        ("[]", ["agent.json", "object"]),
        (r#"{"namespace": "x", "container_cli": "docker"}"#, ["namespace", "docker"]),
    ] {
        fs::write(node.file(), text).unwrap();
        node.unset("container-cli");
        said(&node, &["run"], 3, &words);
    }
    fs::write(node.file(), "{}").unwrap();
    node.set("config", node.path().join("missing.json").to_str().unwrap());
    said(&node, &["run"], 3, &["missing.json"]);
    node.unset("config");
    said(&node, &["run"], 3, &["url", "--url", "VECTORLAY_URL"]);
    node.set("url", "http://cp.example.com/agent");
    said(&node, &["run"], 3, &["setting url: is not a WebSocket URL", "wss://"]);
    node.unset("url");
    // What a rack may have wrong must not keep it from starting.
    node.env("VECTORLAY_STAT_DIR", "/x");
    said(&node, &["config"], 0, &["VECTORLAY_STAT_DIR", "VECTORLAY_STATE_DIR"]);
}

#[test]
fn the_places_of_a_token() {
    let plane = ControlPlane::start(&[]);
    let mut node = Node::new("settings-token");
    node.set("url", plane.url());
    // Weakest first: each is beaten by the next.
    let credentials = secret(&node, "credentials/token", &format!("{TOKEN}\n"));
    node.env("CREDENTIALS_DIRECTORY", node.path().join("credentials").to_str().unwrap());
    assert!(shown(&node, "token").1.contains(&credentials));
    let mut agent = node.start();
    connected(&plane);
    agent.kill();
    assert!(!agent.text().contains(TOKEN));

    fs::remove_dir_all(node.state()).unwrap();
    fs::write(&credentials, "vtk_wrong").unwrap();
    let file = secret(&node, "token", TOKEN);
    node.set("token-file", &file);
    assert!(shown(&node, "token").1.contains(&file));
    let mark = plane.mark();
    let mut agent = node.start();
    plane.wait_event_after(mark, WAIT, |event| event["type"] == "heartbeat");
    agent.kill();

    fs::remove_dir_all(node.state()).unwrap();
    fs::write(&file, "vtk_wrong").unwrap();
    node.env("VECTORLAY_TOKEN", TOKEN);
    assert!(shown(&node, "token").1.contains("VECTORLAY_TOKEN"));
    let mark = plane.mark();
    let _agent = node.start();
    plane.wait_event_after(mark, WAIT, |event| event["type"] == "heartbeat");

    // One that everybody can read is taken, and told about.
    node.env("VECTORLAY_TOKEN", "");
    fs::set_permissions(&file, fs::Permissions::from_mode(0o644)).unwrap();
    let (_, text) = node.said(&["config"]);
    assert!(text.contains("everyone") && text.contains(&file), "{text}");
    fs::write(&file, "two\nlines").unwrap();
    let (code, text) = node.said(&["config"]);
    assert!(code == 3 && text.contains(&file) && !text.contains("lines\n"), "{text}");
}

#[test]
fn what_needs_no_token_and_no_file_goes_without() {
    let plane = ControlPlane::start(&[]);
    let mut node = node("settings-without", &plane);
    let agent = node.start();
    connected(&plane);
    // A token that cannot be read keeps the agent from running, and nothing else from being done.
    node.env("VECTORLAY_TOKEN", "");
    let token = node.path().join("folder");
    fs::create_dir(&token).unwrap();
    let token = token.to_str().unwrap();
    node.set("token-file", token);
    for (command, code) in [("info", 0), ("check", 1), ("status", 1), ("recheck", 0)] {
        let (status, text) = node.said(&[command]);
        assert!(status == code && !text.contains(token), "{command}: {status}: {text}");
    }
    let (code, text) = node.said(&["vfio", "status"]);
    assert!(code == 0 && !text.contains(token), "{code}: {text}");
    for command in ["run", "config"] {
        let (code, text) = node.said(&[command]);
        assert!(code == 3 && text.contains(&format!("cannot read the token file {token}")), "{code}: {text}");
    }
    let (_, text) = node.said(&["config"]);
    let line = text.lines().find(|line| line.starts_with("token ")).unwrap();
    assert!(line.contains(token) && line.contains("cannot be used"), "{line}");

    // Nor does a broken file, for what the running agent is asked.
    fs::write(node.file(), "{\"workers\": 3").unwrap();
    for (command, state, code) in [
        ("status", "degraded", 1),
        ("drain", "draining", 0),
        ("resume", "degraded", 0),
        ("maintenance", "maintenance", 0),
    ] {
        let output = node.run(&[command]);
        let (out, err) =
            (String::from_utf8(output.stdout).unwrap(), String::from_utf8(output.stderr).unwrap());
        assert_eq!(output.status.code(), Some(code), "{command}: {err}");
        assert!(out.contains(&format!("\nstate        {state}\n")), "{command}: {out}");
        assert!(err.contains("agent.json") && err.contains("; ignored"), "{command}: {err}");
    }
    let (code, text) = node.said(&["gpu", "hold", "41:00.0"]);
    let refused = "gpu hold: there is no GPU at 0000:41:00.0; see `vectorlay-agent status`";
    assert!(code == 1 && text.contains(refused), "{code}: {text}");
    assert_eq!(node.said(&["info"]).0, 3);

    // A signal does the same as `recheck`, and says so.
    agent.signal(Signal::HUP);
    agent.wait_line(WAIT, |line| line.contains("INFO") && line.contains("SIGHUP"));
}

#[test]
fn secrets_are_masked() {
    let mut node = Node::new("settings-masked");
    node.env("VECTORLAY_TOKEN", "vtk_hunter2");
    fs::write(node.file(), r#"{"proxy": "http://user:hunter3@proxy.example.com:3128"}"#).unwrap();
    for form in [&["config"][..], &["config", "--json"]] {
        let (code, text) = node.said(form);
        assert_eq!(code, 0, "{text}");
        assert!(!text.contains("hunter") && text.contains("***"), "{text}");
        assert!(text.contains("proxy.example.com") && text.contains("VECTORLAY_TOKEN"), "{text}");
    }
    // In mistakes, too.
    node.env("VECTORLAY_TOKEN", "hunter2 with\nspaces");
    let (code, text) = node.said(&["config"]);
    assert!(code == 3 && text.contains("token") && !text.contains("hunter2"), "{text}");
}
