//! The WebSocket upgrade over an open stream, and the limits of the connection that comes of it.
//!
//! The request and the judgement of the answer are our own (RFC 6455, section 4.1): tungstenite takes a `Connection` of
//! one token only, on one line, while proxies add tokens and lines of their own.

use std::fmt::Write as _;
use std::io::Write as _;

use tungstenite::handshake::client::generate_key;
use tungstenite::handshake::derive_accept_key;
use tungstenite::protocol::{Role, WebSocket, WebSocketConfig};

use super::error::Error;
use super::head::{Head, HeadError};
use super::sock::Deadline;
use super::tls::Stream;
use super::url::Url;
use crate::protocol::MESSAGE_MAX;
use crate::types::{NodeId, Secret};

/// How much may wait to be sent to a peer that does not read, in bytes; past it the connection is dropped.
pub const UNSENT_MAX: usize = 8 << 20;
/// What is read at once, in bytes. tungstenite zeroes it before each read, so that more of it is more resident memory.
const READ_BUFFER: usize = 4096;

/// How the agent names itself to servers.
pub(super) const USER_AGENT: &str = concat!("vectorlay-agent/", env!("CARGO_PKG_VERSION"));

/// Asks for the upgrade.
///
/// # Errors
/// [`Error::Status`] for another answer than 101, [`Error::Upgrade`] for an answer that is not an upgrade.
pub(super) fn upgrade(
    mut stream: Stream,
    url: &Url,
    node: Option<&NodeId>,
    credential: Option<&Secret>,
    deadline: &Deadline,
) -> Result<WebSocket<Stream>, Error> {
    let key = generate_key();
    let request = request(url, node, credential, &key)?;
    let sent = stream.write_all(request.expose().as_bytes()).and_then(|()| stream.flush());
    let head = sent.map_err(HeadError::Io).and_then(|()| Head::read(&mut stream)).map_err(|error| {
        deadline
            .error("answer to the upgrade", &format!("{}:{}", url.host(), url.port()))
            .unwrap_or_else(|| Error::Upgrade { url: url.to_string(), why: error.to_string() })
    })?;
    if head.status != 101 {
        return Err(Error::status(url, &head, node.is_some()));
    }
    judge(&head, &derive_accept_key(key.as_bytes()))
        .map_err(|why| Error::Upgrade { url: url.to_string(), why })?;
    stream.sock_mut().set_deadline(None);
    Ok(WebSocket::from_raw_socket(stream, Role::Client, Some(limits())))
}

/// How much a connection reads and keeps.
pub(super) fn limits() -> WebSocketConfig {
    WebSocketConfig::default()
        .read_buffer_size(READ_BUFFER)
        // Each frame goes to the socket at once.
        .write_buffer_size(0)
        .max_write_buffer_size(UNSENT_MAX)
        .max_message_size(Some(MESSAGE_MAX))
        .max_frame_size(Some(MESSAGE_MAX))
}

fn request(
    url: &Url,
    node: Option<&NodeId>,
    credential: Option<&Secret>,
    key: &str,
) -> Result<Secret, Error> {
    let (target, host) = (url.target(), url.authority());
    let mut text = format!(
        "GET {target} HTTP/1.1\r\nHost: {host}\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
         Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: {key}\r\nUser-Agent: {USER_AGENT}\r\n"
    );
    if let Some(credential) = credential {
        let token = credential.expose();
        if token.is_empty() || !token.bytes().all(|b| b.is_ascii_graphic()) {
            return Err(Error::Header("token"));
        }
        // Room for the rest as well: a buffer that grows leaves copies of the token behind.
        text.reserve(token.len() + 256);
        let _ = write!(text, "Authorization: Bearer {token}\r\n");
    }
    if let Some(node) = node {
        let _ = write!(text, "X-Node-Id: {node}\r\n");
    }
    text.push_str("\r\n");
    Ok(Secret::new(text))
}

/// Whether an answer with status 101 opens a WebSocket, by RFC 6455, section 4.1 (page 19); says why not.
pub(super) fn judge(head: &Head, accept_key: &str) -> Result<(), String> {
    if !head.is_http_1_1 {
        return Err("the answer is not HTTP/1.1".to_owned());
    }
    let mut upgrades = head.list("upgrade").peekable();
    if upgrades.peek().is_none() || !upgrades.all(|protocol| protocol.eq_ignore_ascii_case("websocket")) {
        return Err("the answer is not an upgrade to a WebSocket (no `Upgrade: websocket`)".to_owned());
    }
    if !head.list("connection").any(|token| token.eq_ignore_ascii_case("upgrade")) {
        return Err("the answer is not an upgrade (no `Connection: Upgrade`)".to_owned());
    }
    let mut keys = head.values("sec-websocket-accept").peekable();
    if keys.peek().is_none() || !keys.all(|key| key == accept_key) {
        return Err("the answer is not an upgrade (`Sec-WebSocket-Accept` is missing or wrong)".to_owned());
    }
    for (name, what) in
        [("sec-websocket-extensions", "an extension"), ("sec-websocket-protocol", "a subprotocol")]
    {
        if head.list(name).next().is_some() {
            return Err(format!("the server chose {what} that was not asked for"));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The example of RFC 6455, section 1.3.
    const ACCEPT: &str = "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=";

    fn judged(fields: &str) -> Result<(), String> {
        let text = format!("HTTP/1.1 101 Switching Protocols\r\n{fields}\r\n\r\n");
        judge(&Head::read(&mut text.as_bytes()).unwrap(), ACCEPT)
    }

    #[test]
    fn the_key_is_answered_as_the_standard_says() {
        assert_eq!(derive_accept_key(b"dGhlIHNhbXBsZSBub25jZQ=="), ACCEPT);
    }

    #[test]
    fn answers_that_are_merely_different() {
        for fields in [
            "Upgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: @",
            "upgrade: WebSocket\r\nconnection: upgrade\r\nsec-websocket-accept: @",
            "Upgrade: websocket\r\nConnection: keep-alive, Upgrade\r\nSec-WebSocket-Accept: @",
            "Upgrade: websocket\r\nConnection: Upgrade , keep-alive\r\nSec-WebSocket-Accept: @",
            "Upgrade: websocket\r\nConnection: keep-alive\r\nConnection: UPGRADE\r\nSec-WebSocket-Accept: @",
            "Upgrade: websocket\r\nConnection: upgrade\r\nConnection: close\r\nSec-WebSocket-Accept: @",
            "Upgrade: websocket\r\nConnection: keep-alive,\r\n Upgrade\r\nSec-WebSocket-Accept: @",
            "Upgrade:\twebsocket \r\nConnection :Upgrade\r\nSec-WebSocket-Accept:   @   ",
            "Upgrade: websocket\r\nUpgrade: websocket\r\nConnection: ,Upgrade,\r\nSec-WebSocket-Accept: @",
            "Upgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: @\r\nSec-WebSocket-Accept: @",
            "Upgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept:\r\n @",
            "Upgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: @\r\nSec-WebSocket-Extensions:",
        ] {
            assert_eq!(judged(&fields.replace('@', ACCEPT)), Ok(()), "{fields}");
        }
    }

    #[test]
    fn answers_that_are_no_upgrade() {
        let check = |fields: &str, says: &str| {
            let why = judged(&fields.replace('@', ACCEPT)).expect_err(fields);
            assert!(why.contains(says), "{fields}: {why}");
        };
        let rest = "\r\nSec-WebSocket-Accept: @";
        check(&format!("Connection: Upgrade{rest}"), "Upgrade: websocket");
        check(&format!("Upgrade: h2c\r\nConnection: Upgrade{rest}"), "Upgrade: websocket");
        check(&format!("Upgrade: h2c, websocket\r\nConnection: Upgrade{rest}"), "Upgrade: websocket");
        check(&format!("Upgrade: websocket{rest}"), "Connection: Upgrade");
        check(&format!("Upgrade: websocket\r\nConnection: keep-alive{rest}"), "Connection: Upgrade");
        check(&format!("Upgrade: websocket\r\nConnection: not-upgrade{rest}"), "Connection: Upgrade");
        let upgrade = "Upgrade: websocket\r\nConnection: Upgrade";
        check(upgrade, "Sec-WebSocket-Accept");
        check(&format!("{upgrade}\r\nSec-WebSocket-Accept: x"), "Sec-WebSocket-Accept");
        check(
            &format!("{upgrade}\r\nSec-WebSocket-Accept: {}", ACCEPT.to_lowercase()),
            "Sec-WebSocket-Accept",
        );
        check(&format!("{upgrade}{rest}\r\nSec-WebSocket-Accept: x"), "Sec-WebSocket-Accept");
        check(&format!("{upgrade}{rest}\r\nSec-WebSocket-Extensions: permessage-deflate"), "an extension");
        check(&format!("{upgrade}{rest}\r\nSec-WebSocket-Protocol: chat"), "a subprotocol");
        let text = format!("HTTP/1.0 101 Switching\r\n{upgrade}{rest}\r\n\r\n").replace('@', ACCEPT);
        assert!(judge(&Head::read(&mut text.as_bytes()).unwrap(), ACCEPT).is_err());
    }
}
