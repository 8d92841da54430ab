//! The WebSocket upgrade over an open stream, and the limits of what comes of it.

use std::io;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use tungstenite::Error as WsError;
use tungstenite::client::client_with_config;
use tungstenite::error::ProtocolError;
use tungstenite::handshake::HandshakeError;
use tungstenite::handshake::client::{Request, Response, generate_key};
use tungstenite::http::{HeaderValue, header};
use tungstenite::protocol::{WebSocket, WebSocketConfig};

use super::dates;
use super::error::Error;
use super::sock::Patience;
use super::tls::Stream;
use super::url::Url;
use crate::protocol::MESSAGE_MAX;
use crate::types::{NodeId, Secret};

/// How much may wait to be sent to a peer that does not read, in bytes; past it the connection is given up.
pub const UNSENT_MAX: usize = 8 << 20;
/// The longest frame that the core sends, in bytes. It bounds its frames itself; this ties the two together.
pub const FRAME_MAX: usize = 1 << 20;
/// What is read at once, in bytes: it is zeroed before each read, so that more of it is more resident memory.
const READ_BUFFER: usize = 4096;

const _: () = assert!(FRAME_MAX * 4 <= UNSENT_MAX, "one frame must never be what exceeds the limit");

/// How the agent names itself to servers.
pub(super) const USER_AGENT: &str = concat!("vectorlay-agent/", env!("CARGO_PKG_VERSION"));

/// Asks for the upgrade.
///
/// # Errors
/// [`Error`]: an HTTP status, or what was wrong with the answer.
pub(super) fn upgrade(
    stream: Stream,
    url: &Url,
    node: Option<&NodeId>,
    credential: Option<&Secret>,
    patience: &Patience,
) -> Result<WebSocket<Stream>, Error> {
    let request = request(url, node, credential)?;
    let config = WebSocketConfig::default()
        .read_buffer_size(READ_BUFFER)
        // Each frame goes to the socket at once.
        .write_buffer_size(0)
        .max_write_buffer_size(UNSENT_MAX)
        .max_message_size(Some(MESSAGE_MAX))
        .max_frame_size(Some(MESSAGE_MAX));
    match client_with_config(request, stream, Some(config)) {
        Ok((mut socket, _)) => {
            socket.get_mut().sock_mut().set_patience(None);
            Ok(socket)
        }
        Err(error) => {
            let peer = format!("{}:{}", url.host(), url.port());
            Err(patience.ended("answer to the upgrade", &peer).unwrap_or_else(|| match error {
                HandshakeError::Failure(error) => refused(error, url, node.is_some()),
                HandshakeError::Interrupted(_) => refused(WsError::AlreadyClosed, url, node.is_some()),
            }))
        }
    }
}

fn request(url: &Url, node: Option<&NodeId>, credential: Option<&Secret>) -> Result<Request, Error> {
    let mut request = Request::builder()
        .uri(url.to_string())
        .header(header::HOST, url.authority())
        .header(header::CONNECTION, "Upgrade")
        .header(header::UPGRADE, "websocket")
        .header(header::SEC_WEBSOCKET_VERSION, "13")
        .header(header::SEC_WEBSOCKET_KEY, generate_key())
        .header(header::USER_AGENT, USER_AGENT);
    if let Some(credential) = credential {
        request = request.header(header::AUTHORIZATION, bearer(credential)?);
    }
    if let Some(node) = node {
        request = request.header("X-Node-Id", node.as_str());
    }
    request.body(()).map_err(|e| Error::Upgrade { url: url.to_string(), why: format!("{e} in the request") })
}

/// The value of `Authorization`.
pub(super) fn bearer(credential: &Secret) -> Result<HeaderValue, Error> {
    let text = Secret::new(format!("Bearer {}", credential.expose()));
    let mut value = HeaderValue::from_str(text.expose()).map_err(|_| Error::Header("token"))?;
    value.set_sensitive(true);
    Ok(value)
}

fn refused(error: WsError, url: &Url, as_node: bool) -> Error {
    let url = url.to_string();
    let why = match error {
        WsError::Http(response) => return status(&response, url, as_node),
        WsError::Protocol(ProtocolError::HandshakeIncomplete) => {
            "the server closed the connection without an answer".to_owned()
        }
        WsError::Io(e) if e.kind() == io::ErrorKind::ConnectionReset => {
            "the server reset the connection without an answer".to_owned()
        }
        WsError::AttackAttempt => {
            "the answer is longer than 64 KiB, or comes in too many tiny pieces".to_owned()
        }
        WsError::Protocol(e) => format!("the answer is no upgrade ({e})"),
        other => other.to_string(),
    };
    Error::Upgrade { url, why }
}

fn status(response: &Response, url: String, as_node: bool) -> Error {
    Error::Status {
        url,
        status: response.status().as_u16(),
        retry_after: retry_after(response.headers().get(header::RETRY_AFTER)),
        location: location(response.headers().get(header::LOCATION)),
        as_node,
    }
}

/// `Retry-After`, read with the wall clock.
pub(super) fn retry_after(value: Option<&HeaderValue>) -> Option<Duration> {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
    dates::retry_after(value?.to_str().ok()?, now)
}

/// `Location`, fit for a message to a person.
pub(super) fn location(value: Option<&HeaderValue>) -> Option<String> {
    const SHOWN: usize = 200;
    Some(value?.to_str().ok()?.chars().filter(|c| !c.is_control()).take(SHOWN).collect())
}
