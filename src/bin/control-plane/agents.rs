//! How a node gets in: `POST …/register`, and the upgrade to a WebSocket at any other path.

use std::fmt;
use std::net::TcpStream;
use std::sync::Arc;
use std::time::Duration;

use rustls::ServerConfig;
use serde_json::{Value, json};
use tungstenite::handshake::derive_accept_key;

use crate::fleet::Admission;
use crate::http::{self, HttpError, Request};
use crate::hub::Hub;
use crate::session;
use crate::stream::Stream;

/// How long TLS, the request and its body may take together.
const REQUEST_TIME: Duration = Duration::from_secs(10);

/// Serves one connection of an agent.
pub fn serve(hub: &Hub, tcp: TcpStream, tls: Option<&Arc<ServerConfig>>) {
    if hub.options.faults.accept_silent {
        hub.options.faults.say_nothing(tcp);
    } else if let Err(error) = request(hub, tcp, tls) {
        log::info!("a request on the agents' port failed: {error}");
    }
}

fn request(hub: &Hub, tcp: TcpStream, tls: Option<&Arc<ServerConfig>>) -> Result<(), AgentError> {
    let mut stream = Stream::new(tcp, tls, REQUEST_TIME).map_err(AgentError::Io)?;
    let (request, begun) = http::read_head(&mut stream).map_err(AgentError::Request)?;
    let posted = request.method == "POST";
    // Whatever the answer: a close with unread bytes would reset the connection and take the answer with it.
    let begun = if posted {
        http::read_body(&mut stream, &request, begun).map_err(AgentError::Request)?
    } else {
        begun
    };
    let refusal = if let Some(status) = hub.options.faults.http_status {
        let headers = hub.options.faults.headers();
        Answer { headers, ..Answer::error(status, "as the command line asks") }
    } else if posted && request.path.ends_with("/register") {
        register(hub, &request, &begun)
    } else {
        match upgrade(hub, &request) {
            Ok((key, node)) => {
                let accepted = format!(
                    "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
                     Sec-WebSocket-Accept: {key}\r\n\r\n"
                );
                session::run(hub, stream, &accepted, begun, node.as_deref());
                return Ok(());
            }
            Err(refusal) => refusal,
        }
    };
    let written = http::answer(&mut stream, refusal.status, &refusal.headers, &refusal.body);
    stream.finish();
    written.map_err(AgentError::Io)
}

/// An answer that ends the conversation.
struct Answer {
    status: u16,
    headers: String,
    body: Value,
}

impl Answer {
    fn new(status: u16, body: Value) -> Self {
        Self { status, headers: String::new(), body }
    }

    fn error(status: u16, text: &str) -> Self {
        Self::new(status, json!({ "error": text }))
    }
}

fn register(hub: &Hub, request: &Request, body: &[u8]) -> Answer {
    if hub.options.register_over_socket {
        return Answer::error(404, "nodes register over the socket here");
    }
    if !request.bearer().is_some_and(|token| hub.with(|fleet, _| fleet.is_org_token(token))) {
        return Answer::error(401, "this organisation token is not known");
    }
    match serde_json::from_slice::<Value>(body) {
        // A machine that has nothing to tell it by says null, or nothing.
        Ok(body) if body["system_info"].is_object() => {
            let machine_id = body["machine_id"].as_str();
            Answer::new(
                201,
                hub.with(|fleet, now| fleet.register(now, machine_id, Some(&body["system_info"]))),
            )
        }
        _ => Answer::error(400, "the body has to be a JSON object with system_info"),
    }
}

/// Checks an upgrade request: the answer to its key, and the node if it is known yet.
fn upgrade(hub: &Hub, request: &Request) -> Result<(String, Option<String>), Answer> {
    let has = |name: &str, word: &str| {
        request
            .header(name)
            .is_some_and(|value| value.split(',').any(|w| w.trim().eq_ignore_ascii_case(word)))
    };
    let asked = request.method == "GET" && has("upgrade", "websocket") && has("connection", "upgrade");
    if !asked || request.header("sec-websocket-version") != Some("13") {
        let headers = "Upgrade: websocket\r\nSec-WebSocket-Version: 13\r\n".to_owned();
        return Err(Answer { headers, ..Answer::error(426, "agents connect here with a WebSocket") });
    }
    let Some(key) = request.header("sec-websocket-key") else {
        return Err(Answer::error(400, "Sec-WebSocket-Key is missing"));
    };
    let node = match hub.with(|fleet, _| fleet.admit(request.bearer(), request.header("x-node-id"))) {
        Admission::Known(node) => Some(node),
        Admission::New => None,
        Admission::Gone => return Err(Answer::error(410, "this node was removed")),
        Admission::Refused => return Err(Answer::error(401, "the credential is missing or not this node's")),
    };
    Ok((derive_accept_key(key.as_bytes()), node))
}

/// Why a connection did not get as far as a session.
#[derive(Debug)]
enum AgentError {
    Io(std::io::Error),
    Request(HttpError),
}

impl fmt::Display for AgentError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Io(e) => write!(f, "the connection was lost: {e}"),
            Self::Request(e) => e.fmt(f),
        }
    }
}
