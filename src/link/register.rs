//! The registration: one POST over a stream that is open already, by ureq.
//!
//! ureq frames the request and reads the answer. The connection is the link's own, so the roots, the proxy, the
//! deadline and the errors are the same as for the socket.

use std::io::{self, Read, Write};
use std::sync::{Mutex, PoisonError};

use serde_json::Value;
use ureq::unversioned::resolver::{ResolvedSocketAddrs, Resolver};
use ureq::unversioned::transport::{
    Buffers, ConnectionDetails, Connector, LazyBuffers, NextTimeout, Transport,
};
use ureq::{Agent, Body, config::Config, http};

use super::error::Error;
use super::sock::Patience;
use super::tls::Stream;
use super::upgrade::{USER_AGENT, bearer, location, retry_after};
use super::url::Url;
use crate::core::link_api::Registration;
use crate::protocol::TOKEN_MAX;
use crate::types::{NodeId, Secret};

/// The longest answer that is read, in bytes.
const ANSWER_MAX: u64 = 64 << 10;
/// The longest head of an answer, in bytes, which is also what is read at once.
const HEAD_MAX: usize = 16 << 10;

/// Sends the one request. The stream's patience bounds all of it; redirects are not followed.
pub(super) fn post(
    stream: Stream,
    url: &Url,
    token: &Secret,
    body: String,
    patience: &Patience,
) -> Registration {
    let failed = |detail: String| Registration::Failed { retry_after: None, detail };
    let authorization = match bearer(token) {
        Ok(value) => value,
        Err(error) => return failed(error.to_string()),
    };
    let sent = agent(stream)
        .post(url.to_string())
        .header(http::header::AUTHORIZATION, authorization)
        .header(http::header::CONTENT_TYPE, "application/json")
        .header(http::header::CONNECTION, "close")
        .send(body);
    let read = sent.and_then(|mut response| {
        let status = response.status().as_u16();
        // What is left unread of other answers goes with the connection.
        let text = if (200..300).contains(&status) { answer(response.body_mut())? } else { None };
        Ok((response, text))
    });
    match read {
        Ok((response, text)) => judge(url, response.status().as_u16(), response.headers(), text.as_deref()),
        Err(error) => {
            let peer = format!("{}:{}", url.host(), url.port());
            failed(match patience.ended("answer to the registration", &peer) {
                Some(ended) => ended.to_string(),
                None => {
                    format!("registering at {url}: {error}: check the URL and look at the server's own log")
                }
            })
        }
    }
}

/// The body as text; `None` when it is longer than [`ANSWER_MAX`] or not UTF-8.
fn answer(body: &mut Body) -> Result<Option<String>, ureq::Error> {
    match body.with_config().limit(ANSWER_MAX).read_to_vec() {
        Ok(bytes) => Ok(String::from_utf8(bytes).ok()),
        Err(ureq::Error::BodyExceedsLimit(_)) => Ok(None),
        Err(error) => Err(error),
    }
}

/// What an answer means by the protocol. A redirect is a failure, not an absence: an
/// operator must see where it points.
fn judge(url: &Url, status: u16, headers: &http::HeaderMap, text: Option<&str>) -> Registration {
    match status {
        200..=299 => text.and_then(done).unwrap_or(Registration::Absent),
        401 | 403 => Registration::Refused(status),
        400 | 404 | 405 | 426 | 501 => Registration::Absent,
        _ => {
            let retry_after = retry_after(headers.get(http::header::RETRY_AFTER));
            let location = location(headers.get(http::header::LOCATION));
            let error = Error::Status { url: url.to_string(), status, retry_after, location, as_node: false };
            Registration::Failed { retry_after, detail: error.to_string() }
        }
    }
}

/// `{"node_id","node_token"?}`; `None` when it is anything else.
fn done(text: &str) -> Option<Registration> {
    let answer: Value = serde_json::from_str(text).ok()?;
    let node = NodeId::new(answer.get("node_id")?.as_str()?).ok()?;
    let token = match answer.get("node_token") {
        None | Some(Value::Null) => None,
        Some(Value::String(token)) if token.is_empty() => None,
        // It has to stand in a header from now on.
        Some(Value::String(token))
            if token.len() <= TOKEN_MAX && token.bytes().all(|b| b.is_ascii_graphic()) =>
        {
            Some(Secret::new(token.clone()))
        }
        Some(_) => return None,
    };
    Some(Registration::Done { node, token })
}

fn agent(stream: Stream) -> Agent {
    let config = Config::builder()
        .proxy(None)
        .max_redirects(0)
        .max_redirects_will_error(false)
        .http_status_as_error(false)
        .max_idle_connections(0)
        .max_response_header_size(HEAD_MAX)
        .user_agent(USER_AGENT)
        .build();
    Agent::with_parts(config, Given(Mutex::new(Some(stream))), NoNames)
}

/// Gives ureq the one connection.
#[derive(Debug)]
struct Given(Mutex<Option<Stream>>);

impl Connector<()> for Given {
    type Out = Carrier;

    fn connect(&self, _: &ConnectionDetails<'_>, _: Option<()>) -> Result<Option<Carrier>, ureq::Error> {
        let stream = self.0.lock().unwrap_or_else(PoisonError::into_inner).take();
        Ok(stream.map(|stream| Carrier { stream, buffers: LazyBuffers::new(HEAD_MAX, HEAD_MAX) }))
    }
}

/// The connection stands already: there is no name to look up.
#[derive(Debug)]
struct NoNames;

impl Resolver for NoNames {
    fn resolve(&self, _: &http::Uri, _: &Config, _: NextTimeout) -> Result<ResolvedSocketAddrs, ureq::Error> {
        Ok(self.empty())
    }
}

/// The connection as ureq uses one. Its time limits are the stream's own.
#[derive(Debug)]
struct Carrier {
    stream: Stream,
    buffers: LazyBuffers,
}

impl Transport for Carrier {
    fn buffers(&mut self) -> &mut dyn Buffers {
        &mut self.buffers
    }

    fn transmit_output(&mut self, amount: usize, _: NextTimeout) -> Result<(), ureq::Error> {
        self.stream.write_all(&self.buffers.output()[..amount])?;
        Ok(self.stream.flush()?)
    }

    fn await_input(&mut self, _: NextTimeout) -> Result<bool, ureq::Error> {
        let room = self.buffers.input_append_buf();
        if room.is_empty() {
            return Err(
                io::Error::new(io::ErrorKind::InvalidData, "the head of the answer is too long").into()
            );
        }
        let n = self.stream.read(room)?;
        self.buffers.input_appended(n);
        Ok(n > 0)
    }

    fn is_open(&mut self) -> bool {
        // It carries one request and is never kept.
        false
    }

    fn is_tls(&self) -> bool {
        matches!(self.stream, Stream::Tls(_))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_and_what_they_mean() {
        let url = Url::http("https://cp.example/register", false).unwrap();
        let check = |status: u16, text: &str, wanted: &str| {
            let got = match judge(&url, status, &http::HeaderMap::new(), Some(text)) {
                Registration::Done { node, token } => {
                    format!("done {node} {}", token.map_or("-".to_owned(), |t| t.expose().to_owned()))
                }
                Registration::Refused(status) => format!("refused {status}"),
                Registration::Absent => "absent".to_owned(),
                Registration::Failed { retry_after: None, .. } => "failed".to_owned(),
                Registration::Failed { retry_after: Some(t), .. } => format!("failed {t:?}"),
            };
            assert_eq!(got, wanted, "{status} {text}");
        };
        check(200, r#"{"node_id":"n-1"}"#, "done n-1 -");
        check(201, r#"{"node_id":"n-1","node_token":"vtn_x","more":1}"#, "done n-1 vtn_x");
        check(200, r#"{"node_id":"n-1","node_token":null}"#, "done n-1 -");
        check(200, r#"{"node_id":"n-1","node_token":""}"#, "done n-1 -");
        for odd in [
            "",
            "<html>",
            "[]",
            "{}",
            r#"{"node_id":1}"#,
            r#"{"node_id":""}"#,
            r#"{"node_id":"a b"}"#,
            r#"{"node_id":"n","node_token":7}"#,
            r#"{"node_id":"n","node_token":"a\nb"}"#,
        ] {
            check(200, odd, "absent");
        }
        check(204, "", "absent");
        for status in [400, 404, 405, 426, 501] {
            check(status, "", "absent");
        }
        check(401, "", "refused 401");
        check(403, "", "refused 403");
        for status in [301, 302, 307, 308, 402, 408, 409, 410, 422, 429, 500, 502, 503, 504] {
            check(status, r#"{"node_id":"n-1"}"#, "failed");
        }
    }
}
