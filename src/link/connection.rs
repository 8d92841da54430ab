//! An established connection: frames in and out without ever blocking, and the ways in which it can end.

use std::io::{self, Read};
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

use tungstenite::error::{CapacityError, ProtocolError};
use tungstenite::protocol::CloseFrame;
use tungstenite::protocol::frame::coding::CloseCode;
use tungstenite::{Error as WsError, Message, WebSocket};

use super::sock::Patience;
use super::tls::Stream;
use super::upgrade::UNSENT_MAX;
use super::wake::Wake;
use super::{CLOSE_DEADLINE, broken};
use crate::core::link_api::{Down, DownReason, LinkEvent, LinkId};
use crate::protocol::MESSAGE_MAX;

/// Messages read before the orders are looked at again.
const READS_PER_TURN: usize = 64;
/// How often [`LinkEvent::Alive`] is said at most.
const ALIVE_EVERY: Duration = Duration::from_secs(1);
/// The code that stands for a close frame without one (RFC 6455, section 7.1.5).
const NO_CODE: u16 = 1005;

/// What the connection tells the core through.
pub(super) type Emit = dyn Fn(LinkId, LinkEvent) + Send;

/// The connection.
pub(super) struct Connection {
    link: LinkId,
    socket: WebSocket<Stream>,
    /// Why it ends, once a write failed: what the peer said before that is read first, its close frame above all.
    failed: Option<Down>,
    /// Bytes received when they were last looked at.
    heard: u64,
    alive_at: Option<Instant>,
}

/// What is to be waited for after a turn.
pub(super) enum Turn {
    /// Something to read.
    Idle,
    /// Something to read, or room for what is unsent.
    Blocked,
    /// Nothing: there is more to do at once.
    Again,
    /// Nothing: the connection is over.
    Ended(Down),
}

impl Connection {
    /// Takes a socket on which the upgrade has just succeeded.
    pub(super) fn new(link: LinkId, socket: WebSocket<Stream>) -> Self {
        let heard = socket.get_ref().sock().received();
        Self { link, socket, failed: None, heard, alive_at: None }
    }

    /// The attempt that it came of.
    pub(super) fn link(&self) -> LinkId {
        self.link
    }

    /// Sends a text frame, or keeps it until there is room.
    pub(super) fn send(&mut self, text: String) {
        self.write(Message::text(text));
    }

    /// Sends a ping that carries `number`.
    pub(super) fn ping(&mut self, number: u64) {
        self.write(Message::Ping(number.to_be_bytes().to_vec().into()));
    }

    /// Reads what has come, a bounded number of messages, and sends what is unsent.
    pub(super) fn turn(&mut self, emit: &Emit, wake: &Arc<Wake>) -> Turn {
        let read = self.read(emit, wake);
        match (read, self.failed.take()) {
            (Err(down), None) => return Turn::Ended(down),
            // The peer's own word for the end tells more than what a write ran into.
            (Err(down), Some(failed)) => {
                let said = matches!(down.why, DownReason::Closed(_) | DownReason::Violation);
                return Turn::Ended(if said { down } else { failed });
            }
            (Ok(_), Some(failed)) => return Turn::Ended(failed),
            (Ok(true), None) => return Turn::Again,
            (Ok(false), None) => {}
        }
        match self.socket.flush() {
            Ok(()) => Turn::Idle,
            Err(WsError::Io(e)) if e.kind() == io::ErrorKind::WouldBlock => Turn::Blocked,
            Err(error) => {
                self.failed = Some(lost(&error));
                Turn::Again
            }
        }
    }

    /// Closes properly: sends `code`, hears the peer out until it has answered, all within [`CLOSE_DEADLINE`].
    pub(super) fn close(&mut self, code: u16, reason: &'static str, emit: &Emit, wake: &Arc<Wake>) -> Down {
        self.say_farewell(wake);
        let frame = CloseFrame { code: code.into(), reason: reason.into() };
        if let Err(error) = self.socket.close(Some(frame)) {
            return lost(&error);
        }
        loop {
            match self.socket.read() {
                Ok(Message::Close(frame)) => {
                    self.socket.get_mut().end_writing();
                    return closed(frame.as_ref());
                }
                Ok(message) => {
                    self.tell(message, emit);
                }
                Err(WsError::Io(e)) if e.kind() == io::ErrorKind::TimedOut => {
                    return broken("the server did not answer the close in time");
                }
                Err(error) => return lost(&error),
            }
        }
    }

    fn write(&mut self, message: Message) {
        if self.failed.is_some() {
            return;
        }
        match self.socket.write(message) {
            Ok(()) => {}
            // It is queued; the turn's flush goes on with it.
            Err(WsError::Io(e)) if e.kind() == io::ErrorKind::WouldBlock => {}
            Err(WsError::WriteBufferFull(_)) => {
                self.failed = Some(broken(&format!(
                    "the server takes nothing: more than {UNSENT_MAX} bytes wait to be sent: look at its own log"
                )));
            }
            Err(error) => self.failed = Some(lost(&error)),
        }
    }

    /// `Ok(true)`: there may be more.
    fn read(&mut self, emit: &Emit, wake: &Arc<Wake>) -> Result<bool, Down> {
        let mut told = false;
        let mut more = true;
        for _ in 0..READS_PER_TURN {
            match self.socket.read() {
                Ok(Message::Close(frame)) => {
                    let down = closed(frame.as_ref());
                    self.say_farewell(wake);
                    // The answer to the close was queued by reading it. Whoever has gone needs none.
                    let _ = self.socket.flush();
                    self.socket.get_mut().end_writing();
                    return Err(down);
                }
                Ok(message) => told |= self.tell(message, emit),
                Err(WsError::Io(e)) if e.kind() == io::ErrorKind::WouldBlock => {
                    more = false;
                    break;
                }
                Err(error) => return Err(self.ended_by(&error, wake)),
            }
        }
        self.tell_alive(told, emit);
        Ok(more)
    }

    /// Passes a message on; says whether there was anything in it for the core.
    fn tell(&self, message: Message, emit: &Emit) -> bool {
        let event = match message {
            Message::Text(text) => LinkEvent::Text(text.as_str().to_owned()),
            Message::Binary(bytes) => LinkEvent::NotText(bytes.len()),
            Message::Pong(bytes) => match bytes.as_ref().try_into() {
                Ok(number) => LinkEvent::Pong(u64::from_be_bytes(number)),
                Err(_) => return false,
            },
            // Pings are answered by the next read; bare frames are never read.
            Message::Ping(_) | Message::Close(_) | Message::Frame(_) => return false,
        };
        emit(self.link, event);
        true
    }

    /// Says that bytes came, if nothing else says so.
    fn tell_alive(&mut self, told: bool, emit: &Emit) {
        let received = self.socket.get_ref().sock().received();
        let came = received != self.heard;
        self.heard = received;
        if told || !came {
            return;
        }
        let now = Instant::now();
        if self.alive_at.is_none_or(|at| now.duration_since(at) >= ALIVE_EVERY) {
            self.alive_at = Some(now);
            emit(self.link, LinkEvent::Alive);
        }
    }

    /// What a failed read means. A violation is answered with its code first.
    fn ended_by(&mut self, error: &WsError, wake: &Arc<Wake>) -> Down {
        let (code, detail) = match error {
            WsError::Capacity(CapacityError::MessageTooLong { size, .. }) => (
                CloseCode::Size,
                format!("the server sent a message of {size} bytes or more, and {MESSAGE_MAX} are allowed"),
            ),
            WsError::Utf8(_) => (CloseCode::Invalid, "the server sent text that is not UTF-8".to_owned()),
            WsError::Protocol(ProtocolError::ResetWithoutClosingHandshake) => return lost(error),
            WsError::Protocol(violation) => {
                (CloseCode::Protocol, format!("the server broke RFC 6455: {violation}"))
            }
            _ => return lost(error),
        };
        self.say_farewell(wake);
        let frame = CloseFrame { code, reason: "".into() };
        if self.socket.close(Some(frame)).is_ok() {
            self.linger();
        }
        Down {
            why: DownReason::Violation,
            retry_after: None,
            detail: format!("{detail}: closed with {}: look at the server's version", u16::from(code)),
        }
    }

    /// Reads on without looking until the peer is done: closing over unread bytes resets the connection, and the
    /// close frame would be lost with it.
    fn linger(&mut self) {
        self.socket.get_mut().end_writing();
        let sock = self.socket.get_mut().sock_mut();
        let mut ignored = [0u8; 4096];
        while sock.read(&mut ignored).is_ok_and(|n| n > 0) {}
    }

    /// From here on reads and writes wait, [`CLOSE_DEADLINE`] in all.
    fn say_farewell(&mut self, wake: &Arc<Wake>) {
        let patience = Patience::farewell(CLOSE_DEADLINE, wake);
        self.socket.get_mut().sock_mut().set_patience(Some(patience));
    }
}

impl AsFd for Connection {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.get_ref().as_fd()
    }
}

/// The peer closed with a frame.
fn closed(frame: Option<&CloseFrame>) -> Down {
    let code = frame.map_or(NO_CODE, |frame| frame.code.into());
    let reason: String =
        frame.map_or("", |f| f.reason.as_str()).chars().filter(|c| !c.is_control()).collect();
    let reason = if reason.is_empty() { reason } else { format!(" ({reason})") };
    Down {
        why: DownReason::Closed(code),
        retry_after: None,
        detail: format!("the server closed the connection with code {code}{reason}"),
    }
}

/// The connection is gone without a frame that says so.
fn lost(error: &WsError) -> Down {
    match error {
        WsError::Io(e) => broken(&format!("the connection broke: {e}")),
        WsError::Protocol(ProtocolError::ResetWithoutClosingHandshake) | WsError::ConnectionClosed => {
            broken("the server ended the connection without closing it")
        }
        other => broken(&format!("the connection broke: {other}")),
    }
}
