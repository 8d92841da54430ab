//! Runs the reference control plane for a test, and talks to its API.
//!
//! ```no_run
//! let plane = ControlPlane::start(&["--offline-after-s", "2"]);
//! // … start an agent with plane.url() and TOKEN …
//! let event = plane.wait_event(WAIT, |event| event["type"] == "system_info");
//! let id = event["node"].as_str().unwrap().to_owned();
//! plane.api_post(&format!("/nodes/{id}/deploy"), &json!({"replica_id": "a", "image": "bb:1"}));
//! ```
#![allow(dead_code, reason = "each test file uses a part of it")]
#![allow(clippy::unwrap_used, reason = "tests start programs, read clocks, and fail")]

use std::io::{BufRead as _, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use serde_json::Value;

/// The organisation token that [`ControlPlane::start`] allows.
pub const TOKEN: &str = "vtk_test";
/// A wide deadline for whatever should come soon: the machine may be busy.
pub const WAIT: Duration = Duration::from_secs(20);

/// A running control plane; it is killed when this is dropped.
pub struct ControlPlane {
    child: Child,
    url: String,
    api: String,
    client: ureq::Agent,
    output: Arc<Mutex<Vec<String>>>,
}

impl ControlPlane {
    /// Starts one with `--token` [`TOKEN`] and these arguments, on free ports.
    pub fn start(args: &[&str]) -> Self {
        let mut child = Command::new(env!("CARGO_BIN_EXE_control-plane"))
            .args(["--token", TOKEN])
            .args(args)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let stdout = child.stdout.take().unwrap();
        let output = Arc::new(Mutex::new(Vec::new()));
        let (sender, lines) = channel();
        let kept = Arc::clone(&output);
        std::thread::spawn(move || {
            for line in BufReader::new(stdout).lines().map_while(Result::ok) {
                kept.lock().unwrap().push(line.clone());
                let _ = sender.send(line);
            }
        });
        let url = announced(&lines, "listening on ");
        let api = announced(&lines, "api on ");
        let config = ureq::Agent::config_builder()
            .proxy(None)
            .http_status_as_error(false)
            .timeout_global(Some(Duration::from_secs(90)));
        Self { child, url, api, client: config.build().new_agent(), output }
    }

    /// Where agents connect: `ws://127.0.0.1:PORT/agent`, or `wss`.
    pub fn url(&self) -> &str {
        &self.url
    }

    /// The address of [`ControlPlane::url`]: `127.0.0.1:PORT`. As `--listen` it gives a second start the same one.
    pub fn address(&self) -> &str {
        self.url.split('/').nth(2).unwrap()
    }

    /// The process ID.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// What it has printed.
    pub fn output(&self) -> Vec<String> {
        self.output.lock().unwrap().clone()
    }

    /// `GET path`, which has to succeed.
    pub fn api_get(&self, path: &str) -> Value {
        let response = self.client.get(format!("{}{path}", self.api)).call().unwrap();
        expect_ok("GET", path, read(response))
    }

    /// `POST path` with JSON, which has to succeed.
    pub fn api_post(&self, path: &str, body: &Value) -> Value {
        expect_ok("POST", path, self.api_post_text(path, &body.to_string()))
    }

    /// `POST path` with any text: the status and the answer.
    pub fn api_post_text(&self, path: &str, body: &str) -> (u16, Value) {
        read(self.client.post(format!("{}{path}", self.api)).send(body).unwrap())
    }

    /// The newest event's number: a mark for [`ControlPlane::wait_event_after`].
    pub fn mark(&self) -> u64 {
        self.api_get(&format!("/events?since={}", u64::MAX))["last"].as_u64().unwrap()
    }

    /// Waits for an event since the start that `wanted` accepts, and returns the first; the test fails at the
    /// deadline, with all that was seen.
    pub fn wait_event(&self, deadline: Duration, wanted: impl Fn(&Value) -> bool) -> Value {
        self.wait_event_after(0, deadline, wanted)
    }

    /// The same for the events after `mark`.
    pub fn wait_event_after(&self, mark: u64, deadline: Duration, wanted: impl Fn(&Value) -> bool) -> Value {
        let end = Instant::now() + deadline;
        let (mut since, mut seen) = (mark, Vec::new());
        loop {
            let left = end.saturating_duration_since(Instant::now());
            let news = self.api_get(&format!("/events?since={since}&wait_ms={}", left.as_millis()));
            since = news["last"].as_u64().unwrap();
            for event in news["events"].as_array().unwrap() {
                if wanted(event) {
                    return event.clone();
                }
                seen.push(format!("{} {} {}", event["n"], event["node"], event["type"]));
            }
            assert!(!left.is_zero(), "no such event within {deadline:?}; there were:\n{}", seen.join("\n"));
        }
    }

    /// Waits until the node's view (`GET /nodes/ID`) is as wanted; it is looked at after each event.
    pub fn wait_node(&self, id: &str, deadline: Duration, wanted: impl Fn(&Value) -> bool) -> Value {
        let end = Instant::now() + deadline;
        loop {
            let mark = self.mark();
            let node = self.api_get(&format!("/nodes/{id}"));
            if wanted(&node) {
                return node;
            }
            let left = end.saturating_duration_since(Instant::now());
            assert!(!left.is_zero(), "the node did not become so within {deadline:?}: {node:#}");
            self.api_get(&format!("/events?since={mark}&wait_ms={}", left.as_millis()));
        }
    }

    /// The job with this request ID.
    pub fn job(&self, request_id: &str) -> Value {
        let jobs = self.api_get("/jobs");
        let job = jobs["jobs"].as_array().unwrap().iter().find(|job| job["request_id"] == request_id);
        job.unwrap_or_else(|| panic!("no job {request_id} in {jobs:#}")).clone()
    }

    /// Asks it to end with SIGTERM, and waits.
    pub fn stop(&mut self) -> ExitStatus {
        let pid = rustix::process::Pid::from_child(&self.child);
        rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
        self.child.wait().unwrap()
    }
}

impl Drop for ControlPlane {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A certificate for `localhost` and 127.0.0.1, and the authority that signed it.
pub struct Certificate {
    /// What a client has to trust.
    pub ca: PathBuf,
    /// For `--tls-cert`.
    pub cert: PathBuf,
    /// For `--tls-key`.
    pub key: PathBuf,
}

impl Certificate {
    /// Makes one in `folder` with the `openssl` command.
    pub fn make(folder: &Path) -> Self {
        std::fs::write(folder.join("leaf.ext"), "subjectAltName=DNS:localhost,IP:127.0.0.1\n").unwrap();
        for line in [
            "req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=authority -keyout ca.key -out ca.pem",
            "req -new -newkey rsa:2048 -nodes -subj /CN=localhost -keyout key.pem -out leaf.csr",
            "x509 -req -in leaf.csr -CA ca.pem -CAkey ca.key -CAcreateserial -days 2 -extfile leaf.ext -out cert.pem",
        ] {
            let made = Command::new("openssl").args(line.split(' ')).current_dir(folder).output().unwrap();
            assert!(made.status.success(), "openssl {line}: {}", String::from_utf8_lossy(&made.stderr));
        }
        Self { ca: folder.join("ca.pem"), cert: folder.join("cert.pem"), key: folder.join("key.pem") }
    }
}

fn announced(lines: &Receiver<String>, prefix: &str) -> String {
    let line = lines.recv_timeout(WAIT).expect("the control plane says where it listens");
    line.strip_prefix(prefix).unwrap_or_else(|| panic!("{line:?} does not begin with {prefix:?}")).to_owned()
}

fn read(mut response: ureq::http::Response<ureq::Body>) -> (u16, Value) {
    let status = response.status().as_u16();
    let text = response.body_mut().with_config().limit(256 << 20).read_to_string().unwrap();
    (status, serde_json::from_str(&text).unwrap())
}

fn expect_ok(method: &str, path: &str, (status, answer): (u16, Value)) -> Value {
    assert_eq!(status, 200, "{method} {path}: {answer}");
    answer
}
