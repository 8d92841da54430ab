//! The reference control plane, driven by a hand-made agent: a control plane that is wrong would make a wrong agent
//! look right.

use std::fs;
use std::net::TcpStream;
use std::os::unix::fs::PermissionsExt as _;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::support::control_plane::{Certificate, ControlPlane, TOKEN, WAIT};
use crate::support::folder::Folder;
use crate::support::skip::has_openssl;
use serde_json::{Value, json};
use tungstenite::client::IntoClientRequest as _;
use tungstenite::handshake::client::Request;
use tungstenite::{HandshakeError, Message, WebSocket};

/// A socket of either kind.
trait Wire: std::io::Read + std::io::Write + Send {}
impl<T: std::io::Read + std::io::Write + Send> Wire for T {}

struct Agent {
    socket: WebSocket<Box<dyn Wire>>,
}

impl Agent {
    /// Connects; an HTTP answer other than the upgrade is the error.
    fn connect(plane: &ControlPlane, bearer: Option<&str>, node: Option<&str>) -> Result<Self, u16> {
        Self::over(plane, bearer, node, |tcp| Box::new(tcp))
    }

    fn over(
        plane: &ControlPlane,
        bearer: Option<&str>,
        node: Option<&str>,
        wrap: impl Fn(TcpStream) -> Box<dyn Wire>,
    ) -> Result<Self, u16> {
        let mut request: Request = plane.url().into_client_request().unwrap();
        if let Some(token) = bearer {
            request.headers_mut().insert("Authorization", format!("Bearer {token}").parse().unwrap());
        }
        if let Some(node) = node {
            request.headers_mut().insert("X-Node-Id", node.parse().unwrap());
        }
        let tcp = TcpStream::connect(plane.address()).unwrap();
        tcp.set_read_timeout(Some(WAIT)).unwrap();
        match tungstenite::client(request, wrap(tcp)) {
            Ok((socket, _)) => Ok(Self { socket }),
            Err(HandshakeError::Failure(tungstenite::Error::Http(response))) => {
                Err(response.status().as_u16())
            }
            Err(error) => panic!("{error}"),
        }
    }

    fn send(&mut self, name: &str, payload: Value) {
        self.socket.send(Message::text(json!({"type": name, "payload": payload}).to_string())).unwrap();
    }

    fn greet(&mut self) {
        self.send("system_info", system_info(None));
        self.send("heartbeat", heartbeat());
    }

    /// The next message.
    fn receive(&mut self) -> (String, Value) {
        loop {
            if let Message::Text(text) = self.socket.read().unwrap() {
                let message: Value = serde_json::from_str(&text).unwrap();
                return (message["type"].as_str().unwrap().to_owned(), message["payload"].clone());
            }
        }
    }

    /// Waits for the close frame.
    fn closed(&mut self) -> (u16, String) {
        loop {
            if let Message::Close(frame) = self.socket.read().unwrap() {
                let frame = frame.unwrap();
                return (frame.code.into(), frame.reason.to_string());
            }
        }
    }
}

fn system_info(machine: Option<&str>) -> Value {
    let found = json!({"installed": true, "version": "1"});
    let mut info = json!({
        "hostname": "gpu-07", "cpuModel": "cpu", "cpuCores": 2, "ramGb": 4, "gpuInfo": [],
        "storage": {"path": "/", "total_gb": 9, "used_gb": 1, "usage_percent": 11},
        "dependencies": {"ready": true, "checks": {
            "containerd": found, "nerdctl": found, "kata-runtime": found, "virtiofsd": found,
            "vfio": {"installed": true, "modules": 4}}},
    });
    if let Some(machine) = machine {
        info["machine_id"] = json!(machine);
    }
    info
}

fn heartbeat() -> Value {
    json!({"status": {
        "containers": [], "gpu_utilization": null, "memory_used_gb": 1, "memory_total_gb": 4,
        "storage": {"path": "/", "total_gb": 9, "used_gb": 1, "usage_percent": 11}, "state": "online"}})
}

/// Registers over HTTP: status and answer.
fn register(plane: &ControlPlane, token: &str, machine: &str) -> (u16, Value) {
    let body = json!({
        "machine_id": machine, "hostname": "gpu-07", "agent_version": "0", "system_info": system_info(None)});
    let mut response = ureq::Agent::config_builder()
        .http_status_as_error(false)
        .timeout_global(Some(WAIT))
        .build()
        .new_agent()
        .post(format!("http://{}/register", plane.address()))
        .header("Authorization", format!("Bearer {token}"))
        .send(body.to_string())
        .unwrap();
    let text = response.body_mut().read_to_string().unwrap();
    (response.status().as_u16(), serde_json::from_str(&text).unwrap())
}

/// Registers a node: its ID and token.
fn node(plane: &ControlPlane, machine: &str) -> (String, String) {
    let (status, answer) = register(plane, TOKEN, machine);
    assert_eq!(status, 201);
    let word = |field: &str| answer[field].as_str().unwrap().to_owned();
    (word("node_id"), word("node_token"))
}

#[test]
fn a_machine_registers_and_only_its_own_token_lets_it_in() {
    let plane = ControlPlane::start(&[]);
    assert_eq!(register(&plane, "vtk_other", "m1").0, 401);
    let (id, old) = node(&plane, "m1");
    let (again, token) = node(&plane, "m1");
    assert_eq!(id, again, "the same machine gets its old ID back");
    assert_ne!(node(&plane, "m2").0, id);

    let check = |bearer: Option<&str>, node: Option<&str>, answer: Option<u16>| {
        let got = Agent::connect(&plane, bearer, node).err();
        assert_eq!(got, answer, "{bearer:?} {node:?}");
    };
    check(Some(&token), Some(&id), None);
    check(Some(&token), None, None);
    check(Some(&old), Some(&id), Some(401));
    check(Some(TOKEN), Some(&id), Some(401));
    check(None, Some(&id), Some(401));
    check(None, None, Some(401));
    check(Some("vtk_other"), None, Some(401));
    check(Some(TOKEN), Some("node-unknown"), Some(410));

    let mut agent = Agent::connect(&plane, Some(&token), Some(&id)).unwrap();
    agent.greet();
    plane.wait_node(&id, WAIT, |node| node["ready"] == true);
    plane.api_post(&format!("/nodes/{id}/remove"), &json!({}));
    assert_eq!(agent.closed().0, 4410);
    check(Some(&token), Some(&id), Some(410));
    assert_ne!(node(&plane, "m1").0, id, "a removed node comes back as a new one");
}

#[test]
fn what_a_node_says_is_kept_counted_and_checked() {
    let plane = ControlPlane::start(&["--quiet"]);
    let (id, token) = node(&plane, "m1");
    let mut agent = Agent::connect(&plane, Some(&token), Some(&id)).unwrap();
    agent.greet();
    agent.send("deploy_result", json!({"replica_id": "x", "status": "running", "requestId": "typo"}));
    agent.socket.send(Message::text("not json")).unwrap();
    agent.socket.send(Message::text("[]")).unwrap();
    agent.socket.send(Message::binary(vec![1, 2, 3])).unwrap();
    agent.send("heartbeat", heartbeat());
    let view = plane.wait_node(&id, WAIT, |node| node["messages"]["heartbeat"] == 2);
    assert_eq!(view["malformed"], 3);
    assert_eq!((&view["violations"], &view["unmatched_results"]), (&json!(1), &json!(1)));
    let violation = plane.wait_event(WAIT, |event| event["kind"] == "violation");
    assert_eq!(violation["payload"]["what"], "requestId: unknown field");
    assert_eq!(
        (&view["online"], &view["connects"], &view["state"]),
        (&json!(true), &json!(1), &json!("online"))
    );
    assert_eq!(view["system_info"]["hostname"], "gpu-07");
    assert!(view["heartbeat_age_ms"].as_u64().unwrap() < 20_000);
    assert!(view.get("token").is_none());
    let results = plane.api_get("/results?since=0");
    assert_eq!(results["events"].as_array().unwrap().len(), 4);
    let printed = plane.output().join("\n");
    assert!(printed.contains("system_info") && !printed.contains("heartbeat {"), "{printed}");

    // Both ways: commands that are no jobs, raw text, and a close with a code of the caller's.
    plane.api_post(&format!("/nodes/{id}/drain"), &json!({}));
    assert_eq!(agent.receive(), ("drain".to_owned(), json!({})));
    plane.api_post(&format!("/nodes/{id}/logs"), &json!({"replica_id": "x", "tail": 5, "request_id": "r"}));
    assert_eq!(agent.receive().1, json!({"replica_id": "x", "tail": 5, "request_id": "r"}));
    assert_eq!(plane.api_post_text(&format!("/nodes/{id}/send"), "{oops").0, 200);
    assert_eq!(agent.socket.read().unwrap(), Message::text("{oops"));
    plane.api_post(&format!("/nodes/{id}/close"), &json!({"code": 4321, "reason": "why not"}));
    assert_eq!(agent.closed(), (4321, "why not".to_owned()));
    plane.wait_node(&id, WAIT, |node| node["connected"] == false && node["online"] == true);
    assert_eq!(plane.api_post_text(&format!("/nodes/{id}/drain"), "").0, 409);
    assert_eq!(plane.api_post_text("/nodes/nobody/drain", "").0, 404);
    assert_eq!(plane.api_post_text(&format!("/nodes/{id}/deploy"), "{}").0, 400);
}

#[test]
fn a_job_is_sent_again_until_its_result_is_there() {
    let plane = ControlPlane::start(&[]);
    let (id, token) = node(&plane, "m1");
    let ask = |replica: &str, request: &str| {
        let body = json!({"replica_id": replica, "image": "bb:1", "request_id": request, "env_vars": {"A": "secret"}});
        plane.api_post(&format!("/nodes/{id}/deploy"), &body)
    };
    assert_eq!(ask("a", "r1")["sent"], 0, "the node is away");
    let mut agent = Agent::connect(&plane, Some(&token), Some(&id)).unwrap();
    agent.greet();
    let (name, payload) = agent.receive();
    assert_eq!(
        (name.as_str(), &payload["request_id"], &payload["env_vars"]["A"]),
        ("deploy", &json!("r1"), &json!("secret"))
    );
    ask("b", "r2");
    assert_eq!(agent.receive().1["request_id"], "r2");
    let stop = plane.api_post(&format!("/nodes/{id}/stop"), &json!({"replica_id": "a"}));
    assert_eq!(agent.receive().0, "stop");
    agent.send("deploy_result", json!({"replica_id": "b", "status": "running", "request_id": "r2"}));
    plane.wait_event(WAIT, |event| event["type"] == "deploy_result");
    drop(agent);
    plane.wait_node(&id, WAIT, |node| node["connected"] == false);

    let mut agent = Agent::connect(&plane, Some(&token), Some(&id)).unwrap();
    agent.greet();
    assert_eq!(agent.receive().1["request_id"], "r1");
    assert_eq!(agent.receive().1["request_id"], stop["request_id"], "the order is kept, r2 is finished");
    let mut result =
        json!({"replica_id": "a", "status": "failed", "error": "e", "code": "cancelled", "request_id": "r1"});
    agent.send("deploy_result", result.clone());
    agent.send("deploy_result", result.clone());
    result["code"] = json!("timeout");
    agent.send("deploy_result", result);
    let mark = plane.mark();
    agent.send(
        "stop_result",
        json!({"replica_id": "a", "status": "stopped", "request_id": stop["request_id"]}),
    );
    plane.wait_event_after(mark, WAIT, |event| event["type"] == "stop_result");
    let job = plane.job("r1");
    assert_eq!((&job["sent"], &job["repeated"], &job["contradicted"]), (&json!(2), &json!(1), &json!(1)));
    assert_eq!(job["result"]["code"], "cancelled");
    assert!(!plane.api_get("/jobs").to_string().contains("secret"));

    // The same request once more is the same job, sent once more.
    ask("b", "r2");
    assert_eq!(agent.receive().1["request_id"], "r2");
}

#[test]
fn a_silent_node_goes_offline() {
    let plane = ControlPlane::start(&["--offline-after-s", "1"]);
    let (id, token) = node(&plane, "m1");
    let mut agent = Agent::connect(&plane, Some(&token), Some(&id)).unwrap();
    agent.greet();
    plane.wait_node(&id, WAIT, |node| node["messages"]["heartbeat"] == 1);
    let began = Instant::now();
    assert_eq!(agent.closed(), (4001, "Heartbeat timeout".to_owned()));
    assert!(began.elapsed() < WAIT);
    let view = plane.wait_node(&id, WAIT, |node| node["online"] == false);
    assert!(view["heartbeat_age_ms"].as_u64().unwrap() >= 1000);
    plane.wait_event(WAIT, |event| event["type"] == "offline");
    let mut agent = Agent::connect(&plane, Some(&token), Some(&id)).unwrap();
    agent.greet();
    plane.wait_node(&id, WAIT, |node| node["online"] == true && node["connects"] == 2);
}

#[test]
fn a_restart_keeps_nodes_tokens_and_jobs() {
    let folder = Folder::new("restart");
    let file = folder.path().join("state.json");
    let state = file.to_str().unwrap();
    let mut plane = ControlPlane::start(&["--state", state]);
    let (id, token) = node(&plane, "m1");
    let mut agent = Agent::connect(&plane, Some(&token), Some(&id)).unwrap();
    agent.greet();
    plane.api_post(
        &format!("/nodes/{id}/deploy"),
        &json!({"replica_id": "a", "image": "bb:1", "request_id": "r1"}),
    );
    assert_eq!(agent.receive().0, "deploy");
    assert_eq!(fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o600);
    let closed = std::thread::spawn(move || agent.closed());
    assert!(plane.stop().success());
    assert_eq!(closed.join().unwrap(), (1012, "Service restart".to_owned()));

    let address = plane.address().to_owned();
    let plane = ControlPlane::start(&["--state", state, "--listen", &address]);
    assert_eq!(plane.address(), address);
    let mut agent = Agent::connect(&plane, Some(&token), Some(&id)).unwrap();
    agent.greet();
    assert_eq!(agent.receive().1["request_id"], "r1");
    assert_eq!(plane.job("r1")["sent"], 2);
    assert_eq!(register(&plane, TOKEN, "m1").1["node_id"], id.as_str());
}

#[test]
fn registration_over_the_socket() {
    let plane = ControlPlane::start(&["--register-over", "socket", "--no-node-token", "--no-request-ids"]);
    assert_eq!(register(&plane, TOKEN, "m1").0, 404);
    let greet = || {
        let mut agent = Agent::connect(&plane, Some(TOKEN), None).unwrap();
        agent.send("system_info", system_info(Some("m1")));
        let (name, payload) = agent.receive();
        assert_eq!(name, "registration_success");
        assert!(payload.get("node_token").is_none());
        (agent, payload["node_id"].as_str().unwrap().to_owned())
    };
    let (_first, id) = greet();
    let (mut agent, again) = greet();
    assert_eq!(id, again);
    plane.api_post(
        &format!("/nodes/{id}/deploy"),
        &json!({"replica_id": "a", "image": "bb:1", "request_id": "r1"}),
    );
    assert_eq!(agent.receive().1, json!({"replica_id": "a", "image": "bb:1"}));
    agent.send("deploy_result", json!({"replica_id": "a", "status": "running"}));
    plane.wait_event(WAIT, |event| event["type"] == "deploy_result");
    assert_eq!(plane.job("r1")["result"]["status"], "running");
    // A returning node is known by its ID, with the token or without.
    assert!(Agent::connect(&plane, None, Some(&id)).is_ok());
    assert!(Agent::connect(&plane, Some(TOKEN), Some(&id)).is_ok());
    assert_eq!(Agent::connect(&plane, Some("vtk_other"), Some(&id)).err(), Some(401));
}

#[test]
fn a_newer_connection_replaces_the_older() {
    let plane = ControlPlane::start(&[]);
    let (id, token) = node(&plane, "m1");
    let mut older = Agent::connect(&plane, Some(&token), Some(&id)).unwrap();
    older.greet();
    let mut newer = Agent::connect(&plane, Some(&token), Some(&id)).unwrap();
    newer.greet();
    assert_eq!(older.closed().0, 4002);
    plane.api_post(&format!("/nodes/{id}/cut"), &json!({}));
    assert!(newer.socket.read().is_err(), "no close frame, the connection just ends");
    let event = plane.wait_event(WAIT, |event| event["type"] == "disconnected");
    assert_eq!(event["payload"]["why"], "cut");
}

#[test]
fn tls_and_large_messages() {
    if !has_openssl("tls_and_large_messages") {
        return;
    }
    let folder = Folder::new("tls");
    let made = Certificate::make(folder.path());
    let [cert, key] = [&made.cert, &made.key].map(|path| path.to_str().unwrap());
    let plane = ControlPlane::start(&["--tls-cert", cert, "--tls-key", key, "--no-node-token"]);
    assert!(plane.url().starts_with("wss://"));
    let mut agent = Agent::over(&plane, Some(TOKEN), None, |tcp| Box::new(tls(&made, tcp))).unwrap();
    agent.send("system_info", system_info(Some("m1")));
    let id = agent.receive().1["node_id"].as_str().unwrap().to_owned();
    // More than a socket's buffers and rustls' hold, both ways.
    let long = "x".repeat(3 << 20);
    assert_eq!(plane.api_post_text(&format!("/nodes/{id}/send"), &long).0, 200);
    assert_eq!(agent.socket.read().unwrap(), Message::text(long.clone()));
    agent.send("logs", json!({"replica_id": "a", "request_id": "r", "lines": [long], "truncated": true}));
    let event = plane.wait_event(WAIT, |event| event["type"] == "logs");
    assert_eq!(event["payload"]["lines"][0].as_str().unwrap().len(), 3 << 20);
    // Past the limit: 1009.
    let too_long = agent.socket.send(Message::text("x".repeat((4 << 20) + 1)));
    assert!(too_long.is_err() || agent.closed().0 == 1009);
    plane.wait_node(&id, WAIT, |node| node["connected"] == false);
}

fn tls(made: &Certificate, tcp: TcpStream) -> rustls::StreamOwned<rustls::ClientConnection, TcpStream> {
    use rustls::pki_types::pem::PemObject as _;
    let mut roots = rustls::RootCertStore::empty();
    roots.add(rustls::pki_types::CertificateDer::from_pem_file(&made.ca).unwrap()).unwrap();
    let config =
        rustls::ClientConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(roots)
            .with_no_client_auth();
    let name = "127.0.0.1".try_into().unwrap();
    rustls::StreamOwned::new(rustls::ClientConnection::new(Arc::new(config), name).unwrap(), tcp)
}

#[test]
fn faults_on_demand() {
    let plane = ControlPlane::start(&["--http-status", "503", "--retry-after", "7"]);
    assert_eq!(Agent::connect(&plane, Some(TOKEN), None).err(), Some(503));
    assert_eq!(register(&plane, TOKEN, "m1").0, 503);

    let plane = ControlPlane::start(&["--accept-silent"]);
    let silent = TcpStream::connect(plane.address()).unwrap();
    silent.set_read_timeout(Some(Duration::from_millis(300))).unwrap();
    std::io::Write::write_all(&mut &silent, b"GET / HTTP/1.1\r\n\r\n").unwrap();
    let nothing = std::io::Read::read(&mut &silent, &mut [0; 1]).unwrap_err();
    assert_eq!(nothing.kind(), std::io::ErrorKind::WouldBlock);

    let pong_comes = |args: &[&str]| {
        let plane = ControlPlane::start(args);
        let (id, token) = node(&plane, "m1");
        let mut agent = Agent::connect(&plane, Some(&token), Some(&id)).unwrap();
        agent.greet();
        agent.socket.send(Message::Ping(vec![7].into())).unwrap();
        plane.wait_node(&id, WAIT, |node| node["ready"] == true);
        agent.send("heartbeat", heartbeat());
        plane.wait_node(&id, WAIT, |node| node["messages"]["heartbeat"] == 2);
        plane.api_post(&format!("/nodes/{id}/drain"), &json!({}));
        agent.socket.read().unwrap().is_pong()
    };
    assert!(pong_comes(&[]));
    assert!(!pong_comes(&["--ignore-pings"]));
}

#[test]
fn a_hundred_nodes_at_once() {
    let plane = ControlPlane::start(&["--quiet"]);
    let threads: Vec<_> = (0..100).map(|n| node(&plane, &format!("m{n}"))).collect();
    let mut agents: Vec<_> =
        threads.iter().map(|(id, token)| Agent::connect(&plane, Some(token), Some(id)).unwrap()).collect();
    agents.iter_mut().for_each(Agent::greet);
    for (id, _) in &threads {
        plane.api_post(&format!("/nodes/{id}/deploy"), &json!({"replica_id": "a", "image": "bb:1"}));
    }
    for agent in &mut agents {
        assert_eq!(agent.receive().0, "deploy");
    }
    let nodes = plane.api_get("/nodes");
    assert!(nodes["nodes"].as_array().unwrap().iter().all(|node| node["online"] == true));
}
