//! The operator's API: HTTP with JSON, on loopback, without authentication. Tests and scripts use it, and the
//! console goes through [`route`] too.
//!
//! ```text
//! GET  /nodes                      POST /nodes/ID/deploy       {"replica_id","image",…}
//! GET  /nodes/ID                   POST /nodes/ID/stop         {"replica_id",…}
//! GET  /jobs                       POST /nodes/ID/logs         {"replica_id","tail"}
//! GET  /results?since=N            POST /nodes/ID/drain | maintenance | resume | remove
//! GET  /events?since=N&wait_ms=M   POST /nodes/ID/send         any text, sent as it is
//!                                  POST /nodes/ID/close        {"code","reason"}
//!                                  POST /nodes/ID/cut          the connection is dropped without a word
//! ```
//! `/events` answers as soon as there is an event above N, and after M milliseconds without one.

use std::net::TcpStream;
use std::time::Duration;

use serde_json::{Value, json};

use crate::events::Kind;
use crate::fleet::Refusal;
use crate::http::{self, HttpError};
use crate::hub::Hub;
use crate::stream::Stream;

/// How long a request may take, its answer included.
const REQUEST_TIME: Duration = Duration::from_secs(70);
/// How long a request may wait for events.
const WAIT_MAX_MS: u64 = 60_000;

const _: () = assert!(WAIT_MAX_MS < REQUEST_TIME.as_millis() as u64);

/// Serves one request.
pub fn serve(hub: &Hub, tcp: TcpStream) {
    let served = Stream::new(tcp, None, REQUEST_TIME).map_err(HttpError::Io).and_then(|mut stream| {
        let (request, begun) = http::read_head(&mut stream)?;
        let body = http::read_body(&mut stream, &request, begun)?;
        let (status, answer) = match String::from_utf8(body) {
            Ok(_) if request.method == "GET" && request.path == "/events" => (200, events(hub, &request)),
            Ok(body) => {
                route(hub, &request.method, &request.path, request.number("since").unwrap_or(0), &body)
            }
            Err(_) => (400, json!({"error": "the body is not UTF-8"})),
        };
        http::answer(&mut stream, status, "", &answer).map_err(HttpError::Io)
    });
    if let Err(error) = served {
        log::info!("an API request failed: {error}");
    }
}

/// Answers a request that need not wait: status and JSON.
pub fn route(hub: &Hub, method: &str, path: &str, since: u64, body: &str) -> (u16, Value) {
    let parts: Vec<&str> = path.trim_start_matches('/').split('/').collect();
    let answer = hub.with(|fleet, now| match (method, parts.as_slice()) {
        ("GET", ["nodes"]) => Ok(json!({"nodes": fleet.nodes(now)})),
        ("GET", ["nodes", id]) => fleet.node(now, id).ok_or(Refusal::NoNode),
        ("GET", ["jobs"]) => Ok(json!({"jobs": fleet.jobs()})),
        ("GET", ["results"]) => Ok(fleet.events.view(since, Some(Kind::Received))),
        ("POST", ["nodes", id, verb]) => fleet.command(now, id, verb, body),
        _ => Err(Refusal::NoVerb),
    });
    let (status, text) = match answer {
        Ok(answer) => return (200, answer),
        Err(Refusal::NoNode) => (404, "no such node"),
        Err(Refusal::NoVerb) => (404, "no such path"),
        Err(Refusal::BadBody(what)) => (400, what),
        Err(Refusal::Away) => (409, "the node is not connected, and only deploy and stop are queued"),
        Err(Refusal::Full) => (429, "the node has too many open jobs"),
    };
    (status, json!({ "error": text }))
}

fn events(hub: &Hub, request: &http::Request) -> Value {
    let wait = Duration::from_millis(request.number("wait_ms").unwrap_or(0).min(WAIT_MAX_MS));
    hub.events(request.number("since").unwrap_or(0), wait)
}
