//! Registration over HTTP: one POST by ureq over a stream that is open already.
//!
//! ureq frames the request and reads the answer. The connection is the link's own, so the roots, the proxy, the
//! deadline and the errors are the same as for the socket.

use std::io::{self, Read, Write};
use std::sync::{Mutex, PoisonError};

use serde_json::{Map, Value};
use ureq::unversioned::resolver::{ResolvedSocketAddrs, Resolver};
use ureq::unversioned::transport::{
    Buffers, ConnectionDetails, Connector, LazyBuffers, NextTimeout, Transport,
};
use ureq::{Agent, Body, config::Config, http};

use super::dates;
use super::error::{Error, is_html, shown_location};
use super::sock::Deadline;
use super::tls::Stream;
use super::upgrade::USER_AGENT;
use super::url::Url;
use crate::core::link_api::Registration;
use crate::protocol::is_token;
use crate::types::{NodeId, Secret};

/// The longest answer that is read, in bytes.
const ANSWER_MAX: u64 = 64 << 10;
/// The longest head of an answer, in bytes, which is also what is read at once.
const HEAD_MAX: usize = 16 << 10;

/// Sends the one request. The stream's deadline bounds all of it; redirects are not followed.
pub(super) fn post(
    stream: Stream,
    url: &Url,
    token: &Secret,
    body: String,
    deadline: &Deadline,
) -> Registration {
    let failed = |detail: String| Registration::Failed { retry_after: None, detail };
    let authorization = match bearer(token) {
        Ok(value) => value,
        Err(error) => return failed(error.to_string()),
    };
    let sent = agent(stream)
        .post(url.full())
        .header(http::header::AUTHORIZATION, authorization)
        .header(http::header::CONTENT_TYPE, "application/json")
        .header(http::header::CONNECTION, "close")
        .send(body);
    let read = sent.and_then(|mut response| {
        let text = match response.status().as_u16() {
            200..=299 => answer(response.body_mut())?,
            // A refusal counts by its status even if its body is cut.
            401 | 403 => answer(response.body_mut()).unwrap_or(None),
            // The body goes with the connection.
            _ => None,
        };
        Ok((response, text))
    });
    match read {
        Ok((response, text)) => judge(url, response.status().as_u16(), response.headers(), text.as_deref()),
        Err(error) => {
            let peer = format!("{}:{}", url.host(), url.port());
            failed(match deadline.error("answer to the registration", &peer) {
                Some(error) => error.to_string(),
                None => {
                    format!("registering at {url}: {error}: check the URL and look at the server's own log")
                }
            })
        }
    }
}

/// The value of `Authorization`.
fn bearer(token: &Secret) -> Result<http::HeaderValue, Error> {
    let text = Secret::new(format!("Bearer {}", token.expose()));
    let mut value = http::HeaderValue::from_str(text.expose()).map_err(|_| Error::Header("token"))?;
    value.set_sensitive(true);
    Ok(value)
}

/// The body as text; `None` when it is longer than [`ANSWER_MAX`] or not UTF-8.
fn answer(body: &mut Body) -> Result<Option<String>, ureq::Error> {
    match body.with_config().limit(ANSWER_MAX).read_to_vec() {
        Ok(bytes) => Ok(String::from_utf8(bytes).ok()),
        Err(ureq::Error::BodyExceedsLimit(_)) => Ok(None),
        Err(error) => Err(error),
    }
}

/// What an answer means by the protocol. A redirect is a failure, not an absence: an operator must see where it points.
/// A refusal ends the agent, so it must be the control plane's own: a firewall or portal in between answers with 403
/// too, and with a web page.
fn judge(url: &Url, status: u16, headers: &http::HeaderMap, text: Option<&str>) -> Registration {
    match status {
        200..=299 => text.and_then(done).unwrap_or(Registration::Absent),
        401 if !is_page(headers, text) => Registration::Refused(status),
        403 if text.is_some_and(is_json_object) => Registration::Refused(status),
        400 | 404 | 405 | 426 | 501 => Registration::Absent,
        _ => {
            let value = |name| headers.get(name).and_then(|value| value.to_str().ok());
            let retry_after = value(http::header::RETRY_AFTER).and_then(dates::retry_after_now);
            let location = value(http::header::LOCATION).map(shown_location);
            // Without JSON, a refusal is not the control plane's.
            let foreign = matches!(status, 401 | 403);
            let url = url.to_string();
            let error = Error::Status { url, status, retry_after, location, as_node: false, foreign };
            Registration::Failed { retry_after, detail: error.to_string() }
        }
    }
}

fn is_page(headers: &http::HeaderMap, text: Option<&str>) -> bool {
    let content_type = headers.get(http::header::CONTENT_TYPE).and_then(|value| value.to_str().ok());
    content_type.is_some_and(is_html) || text.is_some_and(|text| text.trim_start().starts_with('<'))
}

fn is_json_object(text: &str) -> bool {
    serde_json::from_str::<Map<String, Value>>(text).is_ok()
}

/// `{"node_id","node_token"?}`; `None` when it is anything else.
fn done(text: &str) -> Option<Registration> {
    let answer: Value = serde_json::from_str(text).ok()?;
    let node = NodeId::new(answer.get("node_id")?.as_str()?).ok()?;
    let token = match answer.get("node_token") {
        None | Some(Value::Null) => None,
        Some(Value::String(token)) if token.is_empty() => None,
        Some(Value::String(token)) if is_token(token) => Some(Secret::new(token.clone())),
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
    Agent::with_parts(config, Preconnected(Mutex::new(Some(stream))), NullResolver)
}

/// Hands ureq the connection that is open already.
#[derive(Debug)]
struct Preconnected(Mutex<Option<Stream>>);

impl Connector<()> for Preconnected {
    type Out = UreqTransport;

    fn connect(
        &self,
        _: &ConnectionDetails<'_>,
        _: Option<()>,
    ) -> Result<Option<UreqTransport>, ureq::Error> {
        let stream = self.0.lock().unwrap_or_else(PoisonError::into_inner).take();
        Ok(stream.map(|stream| UreqTransport { stream, buffers: LazyBuffers::new(HEAD_MAX, HEAD_MAX) }))
    }
}

/// Resolves nothing: the connection is open already.
#[derive(Debug)]
struct NullResolver;

impl Resolver for NullResolver {
    fn resolve(&self, _: &http::Uri, _: &Config, _: NextTimeout) -> Result<ResolvedSocketAddrs, ureq::Error> {
        Ok(self.empty())
    }
}

/// The connection in the form that ureq uses. The stream's deadline bounds it; ureq's timeouts are not set.
#[derive(Debug)]
struct UreqTransport {
    stream: Stream,
    buffers: LazyBuffers,
}

impl Transport for UreqTransport {
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
        check(401, "no", "refused 401");
        check(403, r#"{"error":"unknown token"}"#, "refused 403");
        // Something in between answered.
        for page in ["<html>", " \n<!doctype html>"] {
            check(401, page, "failed");
            check(403, page, "failed");
        }
        check(403, "", "failed");
        check(403, "Forbidden by policy", "failed");
        check(403, "[]", "failed");
        for status in [301, 302, 307, 308, 402, 408, 409, 410, 422, 429, 500, 502, 503, 504] {
            check(status, r#"{"node_id":"n-1"}"#, "failed");
        }
    }
}
