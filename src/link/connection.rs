//! An established connection: frames in and out without ever blocking, and the ways in which it can end.

#[cfg(test)]
mod autobahn;

use std::io::{self, Read};
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::event::PollFlags;
use tungstenite::error::{CapacityError, ProtocolError};
use tungstenite::protocol::CloseFrame;
use tungstenite::protocol::frame::coding::CloseCode;
use tungstenite::{Error as WsError, Message, WebSocket};

use super::shared::Shared;
use super::sock::Deadline;
use super::tls::Stream;
use super::upgrade::UNSENT_MAX;
use super::{CLOSE_DEADLINE, broken};
use crate::core::link_api::{Down, DownReason, LinkEvent, LinkId};
use crate::protocol::MESSAGE_MAX;

/// Messages read before commands are looked at again.
const MESSAGES_PER_TURN: usize = 64;
/// Bytes read from the socket before commands are looked at again.
const BYTES_PER_TURN: usize = 256 << 10;
/// How often [`LinkEvent::Alive`] is reported at most.
const ALIVE_EVERY: Duration = Duration::from_secs(1);
/// The most pings and pongs of the peer's own in [`CONTROL_PERIOD`]: with more it floods.
const CONTROL_MAX: u32 = 10_000;
const CONTROL_PERIOD: Duration = Duration::from_secs(60);
/// The code that stands for a close frame without one (RFC 6455, section 7.1.5).
const NO_CODE: u16 = 1005;
/// tungstenite puts this reason and code 1002 in the place of a close code that the peer must not send.
const FORBIDDEN_CODE: &str = "Protocol violation";

/// Reports an event to the core.
pub(super) type Emit = dyn Fn(LinkId, LinkEvent) + Send;

/// The connection.
pub(super) struct Connection {
    link: LinkId,
    socket: WebSocket<Stream>,
    /// The end that a failed write led to. What the peer sent before it is read first, its close frame above all.
    write_failure: Option<Down>,
    /// Bytes received when they were last looked at.
    received: u64,
    alive_at: Option<Instant>,
    control: Control,
}

/// Pings and pongs that mean nothing to the core, in the present period.
#[derive(Default)]
struct Control {
    since: Option<Instant>,
    count: u32,
}

/// What comes after a turn.
pub(super) enum Turn {
    /// Wait until the socket is ready for these; for none of them: until the thread is woken.
    Wait(PollFlags),
    /// Nothing to wait for: there is more to do at once.
    Again,
    /// The connection is over.
    Ended(Down),
}

/// How much of the incoming there was.
#[derive(PartialEq, Eq)]
enum Progress {
    /// All of it was read.
    Drained,
    /// The turn's bounds were reached.
    More,
    /// The core has enough to do.
    Paused,
}

impl Connection {
    /// Takes a socket on which the upgrade has just succeeded.
    pub(super) fn new(link: LinkId, socket: WebSocket<Stream>) -> Self {
        let received = socket.get_ref().sock().received();
        Self { link, socket, write_failure: None, received, alive_at: None, control: Control::default() }
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

    /// Reads what has come and sends what is unsent, a bounded amount of each.
    pub(super) fn turn(&mut self, emit: &Emit, shared: &Arc<Shared>) -> Turn {
        let progress = match self.read(emit, shared) {
            Ok(Progress::Paused) if self.write_failure.is_some() => return Turn::Wait(PollFlags::empty()),
            Ok(progress) => progress,
            // The peer's own reason for the end says more than the error of a write.
            Err(down) => {
                let by_peer = matches!(down.why, DownReason::Closed(_) | DownReason::Violation);
                return Turn::Ended(self.write_failure.take().filter(|_| !by_peer).unwrap_or(down));
            }
        };
        if let Some(down) = self.write_failure.take() {
            return Turn::Ended(down);
        }
        let mut wait_for = if progress == Progress::Paused { PollFlags::empty() } else { PollFlags::IN };
        match self.socket.flush() {
            Ok(()) => {}
            Err(WsError::Io(e)) if e.kind() == io::ErrorKind::WouldBlock => wait_for |= PollFlags::OUT,
            Err(error) => {
                self.write_failure = Some(lost(&error));
                return Turn::Again;
            }
        }
        if progress == Progress::More { Turn::Again } else { Turn::Wait(wait_for) }
    }

    /// Closes properly: sends `code` and waits for the peer's answer, all within [`CLOSE_DEADLINE`]. Messages that come
    /// before the answer are reported as long as the core keeps up with them.
    pub(super) fn close(
        &mut self,
        code: u16,
        reason: &'static str,
        emit: &Emit,
        shared: &Arc<Shared>,
    ) -> Down {
        self.set_close_deadline(shared);
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
                Ok(message) if shared.may_read() => {
                    self.report(message, emit, shared);
                }
                Ok(_) => {}
                Err(WsError::Io(e)) if e.kind() == io::ErrorKind::TimedOut => {
                    return broken("the server did not answer the close in time");
                }
                Err(error) => return lost(&error),
            }
        }
    }

    /// Ends the connection with a peer that breaks the rules: sends `code`, reads on without looking until the peer is
    /// done (closing over unread bytes would reset the connection, and the close frame would be lost), all within
    /// [`CLOSE_DEADLINE`].
    pub(super) fn reject(&mut self, code: CloseCode, detail: &str, shared: &Arc<Shared>) -> Down {
        self.set_close_deadline(shared);
        if self.socket.close(Some(CloseFrame { code, reason: "".into() })).is_ok() {
            self.drain();
        }
        let detail = format!("{detail}: closed with {}: look at the server's version", u16::from(code));
        Down { why: DownReason::Violation, retry_after: None, detail }
    }

    fn write(&mut self, message: Message) {
        if self.write_failure.is_some() {
            return;
        }
        match self.socket.write(message) {
            Ok(()) => {}
            // It is queued; the turn's flush goes on with it.
            Err(WsError::Io(e)) if e.kind() == io::ErrorKind::WouldBlock => {}
            Err(WsError::WriteBufferFull(_)) => {
                self.write_failure = Some(broken(&format!(
                    "the server does not read: more than {UNSENT_MAX} bytes wait to be sent: look at its own log"
                )));
            }
            Err(error) => self.write_failure = Some(lost(&error)),
        }
    }

    fn read(&mut self, emit: &Emit, shared: &Arc<Shared>) -> Result<Progress, Down> {
        // Whatever the peer sends, frames that never become a message too: no more than this before the next turn.
        self.socket.get_mut().sock_mut().allow(BYTES_PER_TURN);
        let mut reported = false;
        let mut progress = Progress::More;
        for _ in 0..MESSAGES_PER_TURN {
            if !shared.may_read() {
                progress = Progress::Paused;
                break;
            }
            match self.socket.read() {
                Ok(Message::Close(frame)) => return Err(self.closed_by_peer(frame.as_ref(), shared)),
                Ok(message) => {
                    let is_control = matches!(message, Message::Ping(_) | Message::Pong(_));
                    let for_core = self.report(message, emit, shared);
                    reported |= for_core;
                    if is_control && !for_core && self.control.is_flood(Instant::now()) {
                        let detail =
                            format!("the server sent more than {CONTROL_MAX} pings and pongs in a minute");
                        return Err(self.reject(CloseCode::Policy, &detail, shared));
                    }
                }
                Err(WsError::Io(e)) if e.kind() == io::ErrorKind::WouldBlock => {
                    if !self.socket.get_ref().sock().is_allowance_spent() {
                        progress = Progress::Drained;
                    }
                    break;
                }
                Err(error) => return Err(self.failed_read(&error, shared)),
            }
        }
        self.report_alive(reported, emit);
        Ok(progress)
    }

    /// Reports a message; returns whether there was anything in it for the core.
    fn report(&self, message: Message, emit: &Emit, shared: &Shared) -> bool {
        let event = match message {
            Message::Text(text) => {
                shared.report(text.len());
                LinkEvent::Text(text.as_str().to_owned())
            }
            Message::Binary(bytes) => LinkEvent::NotText(bytes.len()),
            Message::Pong(bytes) => match bytes.as_ref().try_into() {
                Ok(number) => LinkEvent::Pong(u64::from_be_bytes(number)),
                Err(_) => return false,
            },
            // Pings are answered by the next read or write; bare frames are never read.
            Message::Ping(_) | Message::Close(_) | Message::Frame(_) => return false,
        };
        emit(self.link, event);
        true
    }

    /// Reports that bytes came, unless another event did that.
    fn report_alive(&mut self, reported: bool, emit: &Emit) {
        let received = self.socket.get_ref().sock().received();
        let came = received != self.received;
        self.received = received;
        if reported || !came {
            return;
        }
        let now = Instant::now();
        if self.alive_at.is_none_or(|at| now.duration_since(at) >= ALIVE_EVERY) {
            self.alive_at = Some(now);
            emit(self.link, LinkEvent::Alive);
        }
    }

    /// The peer sent a close frame: answers it.
    fn closed_by_peer(&mut self, frame: Option<&CloseFrame>, shared: &Arc<Shared>) -> Down {
        self.set_close_deadline(shared);
        // Reading the frame queued the answer. A peer that has gone already needs none.
        let _ = self.socket.flush();
        self.socket.get_mut().end_writing();
        match frame {
            Some(frame) if frame.code == CloseCode::Protocol && frame.reason.as_str() == FORBIDDEN_CODE => Down {
                why: DownReason::Violation,
                retry_after: None,
                detail: "the server closed the connection with a code that RFC 6455, section 7.4, forbids: look at \
                         the server's version"
                    .to_owned(),
            },
            frame => closed(frame),
        }
    }

    /// A read failed. A violation of the protocol is answered with its code.
    fn failed_read(&mut self, error: &WsError, shared: &Arc<Shared>) -> Down {
        match error {
            WsError::Capacity(CapacityError::MessageTooLong { size, .. }) => {
                let detail = format!(
                    "the server sent a message of {size} bytes or more, and {MESSAGE_MAX} are allowed"
                );
                self.reject(CloseCode::Size, &detail, shared)
            }
            WsError::Utf8(_) => {
                self.reject(CloseCode::Invalid, "the server sent text that is not UTF-8", shared)
            }
            WsError::Protocol(ProtocolError::ResetWithoutClosingHandshake) => lost(error),
            WsError::Protocol(violation) => {
                self.reject(CloseCode::Protocol, &format!("the server broke RFC 6455: {violation}"), shared)
            }
            _ => lost(error),
        }
    }

    fn drain(&mut self) {
        self.socket.get_mut().end_writing();
        let sock = self.socket.get_mut().sock_mut();
        let mut ignored = [0u8; 4096];
        while sock.read(&mut ignored).is_ok_and(|n| n > 0) {}
    }

    /// From here on reads and writes wait, [`CLOSE_DEADLINE`] in all.
    fn set_close_deadline(&mut self, shared: &Arc<Shared>) {
        let deadline = Deadline::for_close(CLOSE_DEADLINE, shared);
        self.socket.get_mut().sock_mut().set_deadline(Some(deadline));
    }
}

impl AsFd for Connection {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.get_ref().as_fd()
    }
}

impl Control {
    /// Counts one more; whether that makes it a flood.
    fn is_flood(&mut self, now: Instant) -> bool {
        match self.since {
            Some(since) if now.duration_since(since) < CONTROL_PERIOD => self.count += 1,
            _ => *self = Self { since: Some(now), count: 1 },
        }
        self.count > CONTROL_MAX
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

/// The connection is gone without a close frame.
fn lost(error: &WsError) -> Down {
    match error {
        WsError::Io(e) => broken(&format!("the connection broke: {e}")),
        WsError::Protocol(ProtocolError::ResetWithoutClosingHandshake) | WsError::ConnectionClosed => {
            broken("the server ended the connection without closing it")
        }
        other => broken(&format!("the connection broke: {other}")),
    }
}
