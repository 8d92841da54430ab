//! What the link makes of the bytes that a peer has sent, without a peer. The agent itself has no use for it: it is there
//! for those who try hostile bytes on the real code (the folder `fuzz`).

use std::io::Write as _;
use std::net::TcpStream;
use std::os::fd::OwnedFd;
use std::sync::{Arc, mpsc};

use rustix::net::{AddressFamily, RecvFlags, SocketFlags, SocketType, recv, socketpair};
use tungstenite::WebSocket;
use tungstenite::protocol::Role;

use super::connection::{Connection, Turn};
use super::dial;
use super::error::Error;
use super::head::Head;
use super::proxy::Proxy;
use super::register;
use super::shared::Shared;
use super::sock::{Deadline, Sock};
use super::tls::Stream;
use super::upgrade;
use super::url::Url;
use crate::core::link_api::{DIAL_DEADLINE, Down, LinkEvent, LinkId, Registration};
use crate::types::Secret;

/// At most this much of what is given is sent, in bytes: it fits into a socket's buffer.
pub const SENT_MAX: usize = 64 << 10;

/// The answer to the key `dGhlIHNhbXBsZSBub25jZQ==` (RFC 6455, section 1.3).
pub const ACCEPT: &str = "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=";

const LINK: LinkId = LinkId(1);

/// The events of a connection on which the server sends these frames and then ends it, and how the connection ended.
///
/// # Errors
/// The kernel's, when it has no more sockets.
pub fn frames(sent: &[u8]) -> std::io::Result<(Vec<LinkEvent>, Down)> {
    let shared = Shared::new()?;
    let (mut stream, far) = stream(sent, &shared)?;
    stream.sock_mut().set_deadline(None);
    let socket = WebSocket::from_raw_socket(stream, Role::Client, Some(upgrade::limits()));
    let mut connection = Connection::new(LINK, socket);
    let (events, received) = mpsc::channel();
    let core = Arc::clone(&shared);
    let emit = move |_, event: LinkEvent| {
        if let LinkEvent::Text(text) = &event {
            core.consume(text.len());
        }
        // The receiver lives as long as this function.
        let _ = events.send(event);
    };
    loop {
        if let Turn::Ended(down) = connection.turn(&emit, &shared) {
            return Ok((received.try_iter().collect(), down));
        }
        // What the agent answers must have room.
        while recv(&far, &mut [0; 4096], RecvFlags::DONTWAIT).is_ok_and(|(count, _)| count > 0) {}
    }
}

/// Whether this answer to the request for an upgrade, whose key is answered by [`ACCEPT`], opens a WebSocket.
///
/// # Errors
/// Why not, as the log says it.
pub fn upgrade_answer(url: &Url, sent: &[u8]) -> Result<(), String> {
    let head = Head::read(&mut &*sent).map_err(|error| error.to_string())?;
    if head.status != 101 {
        return Err(Error::status(url, &head, true).to_string());
    }
    upgrade::judge(&head, ACCEPT)
}

/// Whether this answer of a proxy opens a tunnel.
///
/// # Errors
/// Why not, as the log says it.
pub fn proxy_answer(url: &Url, proxy: &Proxy, sent: &[u8]) -> Result<(), String> {
    let shared = Shared::new().map_err(|error| error.to_string())?;
    let deadline = Deadline::for_attempt(DIAL_DEADLINE, &shared, LINK);
    let (mut stream, _far) = stream(sent, &shared).map_err(|error| error.to_string())?;
    dial::tunnel(stream.sock_mut(), proxy, url, &deadline).map_err(|error| error.to_string())
}

/// What this answer to a registration means.
///
/// # Errors
/// The kernel's, when it has no more sockets.
pub fn registration(url: &Url, sent: &[u8]) -> std::io::Result<Registration> {
    let shared = Shared::new()?;
    let deadline = Deadline::for_attempt(DIAL_DEADLINE, &shared, LINK);
    let (stream, _far) = stream(sent, &shared)?;
    Ok(register::post(stream, url, &Secret::new("vtk_1".to_owned()), "{}".to_owned(), &deadline))
}

/// A connection whose other end has sent this and will send nothing more; the other end, which must be kept.
fn stream(sent: &[u8], shared: &Arc<Shared>) -> std::io::Result<(Stream, OwnedFd)> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let (near, far) = socketpair(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
    let mut far = TcpStream::from(far);
    far.write_all(&sent[..sent.len().min(SENT_MAX)])?;
    far.shutdown(std::net::Shutdown::Write)?;
    let deadline = Deadline::for_attempt(DIAL_DEADLINE, shared, LINK);
    Ok((Stream::Plain(Sock::new(TcpStream::from(near), deadline)), far.into()))
}
