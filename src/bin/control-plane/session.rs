//! One agent's connection after the upgrade. Its thread owns the socket, and sleeps in poll(2) until the agent sends
//! something or another thread has an order for it.
//!
//! Pings are answered by tungstenite, and only after the hub has taken (and saved) the messages before them: an agent
//! may take a pong for the proof that its results arrived.

use std::io::{self, Write as _};
use std::os::fd::AsFd as _;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use tungstenite::protocol::frame::coding::CloseCode;
use tungstenite::protocol::{CloseFrame, Role, WebSocketConfig};
use tungstenite::{Error, Message, WebSocket};

use crate::faults::PongFilter;
use crate::http::BODY_MAX;
use crate::hub::Hub;
use crate::mailbox::{Inbox, Order};
use crate::stream::Stream;

/// The largest message taken, and sent: the protocol's limit.
const MESSAGE_MAX: usize = 4 << 20;
/// How much may wait to be sent before a peer that does not read is dropped.
const BACKLOG_MAX: usize = 32 << 20;
/// How long the peer has to answer a close frame.
const CLOSE_WAIT: Duration = Duration::from_secs(1);

// What the API takes as a body can be sent as one message.
const _: () = assert!(BODY_MAX <= MESSAGE_MAX && MESSAGE_MAX < BACKLOG_MAX);

/// Answers an upgrade request with `accepted` and serves the connection until it ends. `begun` is what the peer
/// already sent after its request.
pub fn run(hub: &Hub, mut stream: Stream, accepted: &str, begun: Vec<u8>, node: Option<&str>) {
    let from = stream.peer();
    // First of all: a peer that sees the answer may rely on being known as connected.
    let (conn, inbox) = match hub.connect(&from, node) {
        Ok(opened) => opened,
        Err(error) => {
            log::warn!("a connection was not served: {error}");
            return;
        }
    };
    let answered = stream.write_all(accepted.as_bytes()).and_then(|()| stream.flush());
    let why = match answered.and_then(|()| stream.no_deadline()) {
        Ok(()) => serve(hub, stream, begun, conn, inbox),
        Err(error) => error.to_string(),
    };
    hub.disconnect(conn, &why);
}

/// Serves the WebSocket, and returns why it ended.
fn serve(hub: &Hub, stream: Stream, begun: Vec<u8>, conn: u64, inbox: Inbox) -> String {
    let config = WebSocketConfig::default()
        .read_buffer_size(8 << 10)
        .write_buffer_size(0)
        .max_write_buffer_size(BACKLOG_MAX)
        .max_message_size(Some(MESSAGE_MAX))
        .max_frame_size(Some(MESSAGE_MAX));
    let line = PongFilter::new(stream, hub.options.faults.ignore_pings);
    let socket = WebSocket::from_partially_read(line, begun, Role::Server, Some(config));
    let mut session = Session { hub, conn, inbox, socket, closing: None, said: None };
    let why = session.serve();
    session.socket.into_inner().into_inner().finish();
    why
}

struct Session<'h> {
    hub: &'h Hub,
    conn: u64,
    inbox: Inbox,
    socket: WebSocket<PongFilter>,
    /// A close frame was sent: its answer may come until then.
    closing: Option<Instant>,
    /// What the first close frame said, of either side.
    said: Option<String>,
}

impl Session<'_> {
    /// Returns why the connection ended.
    fn serve(&mut self) -> String {
        loop {
            match self.turn() {
                Ok(blocked) => {
                    if let Err(why) = self.sleep(blocked) {
                        return why;
                    }
                }
                Err(End::Cut) => return "cut".to_owned(),
                Err(End::Socket(error)) => {
                    self.complain(&error);
                    return self.said.take().unwrap_or_else(|| error.to_string());
                }
            }
        }
    }

    /// Does all that can be done without waiting. True: there is more to send than the socket takes.
    fn turn(&mut self) -> Result<bool, End> {
        self.inbox.hush();
        while let Some(order) = self.inbox.take() {
            match order {
                Order::Send(text) => would_block(self.socket.write(Message::text(text)))?,
                Order::Close(code, reason) => {
                    let frame = CloseFrame { code: CloseCode::from(code), reason: reason.into() };
                    self.said.get_or_insert(format!("closed by the control plane: {code} {}", frame.reason));
                    self.closing.get_or_insert(Instant::now() + CLOSE_WAIT);
                    would_block(self.socket.close(Some(frame)))?
                }
                Order::Cut => return Err(End::Cut),
            };
        }
        // Until it blocks: TLS and tungstenite hold bytes that poll(2) does not see.
        loop {
            let message = match self.socket.read() {
                Ok(message) => message,
                Err(Error::Io(e)) if e.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) => return Err(End::Socket(error)),
            };
            let (text, size) = match &message {
                Message::Text(text) => (Some(text.as_str()), text.len()),
                Message::Binary(bytes) => (None, bytes.len()),
                Message::Ping(_) | Message::Pong(_) | Message::Frame(_) => continue,
                Message::Close(frame) => {
                    let with =
                        frame.as_ref().map(|f| format!(": {} {}", f.code, f.reason)).unwrap_or_default();
                    self.said.get_or_insert(format!("closed by the node{with}"));
                    continue;
                }
            };
            self.hub.with(|fleet, now| fleet.received(now, self.conn, text, size));
        }
        would_block(self.socket.flush())
    }

    /// Waits for bytes or orders.
    fn sleep(&self, blocked: bool) -> Result<(), String> {
        let left = self.closing.map(|end| end.saturating_duration_since(Instant::now()));
        if left == Some(Duration::ZERO) {
            return Err("closed, and the node did not answer".to_owned());
        }
        let timeout = left.and_then(|left| Timespec::try_from(left).ok());
        let line = self.socket.get_ref();
        let wanted = if blocked { PollFlags::IN | PollFlags::OUT } else { PollFlags::IN };
        let mut fds =
            [PollFd::from_borrowed_fd(line.as_fd(), wanted), PollFd::new(&self.inbox, PollFlags::IN)];
        match poll(&mut fds, timeout.as_ref()) {
            Ok(_) | Err(rustix::io::Errno::INTR) => Ok(()),
            Err(error) => Err(error.to_string()),
        }
    }

    /// Tells the peer, as RFC 6455 asks, what it did wrong before the connection is dropped.
    fn complain(&mut self, error: &Error) {
        let code = match error {
            Error::Capacity(_) => CloseCode::Size,
            Error::Utf8(_) => CloseCode::Invalid,
            Error::Protocol(_) => CloseCode::Protocol,
            _ => return,
        };
        let _ = self.socket.close(Some(CloseFrame { code, reason: "".into() }));
        let _ = self.socket.flush();
    }
}

/// How a connection ends.
enum End {
    Cut,
    Socket(Error),
}

/// True: what was written waits for room. tungstenite holds it, and the next flush goes on.
fn would_block(written: tungstenite::Result<()>) -> Result<bool, End> {
    match written {
        Ok(()) => Ok(false),
        Err(Error::Io(e)) if e.kind() == io::ErrorKind::WouldBlock => Ok(true),
        // It is closing: whatever else was to be sent is sent after it comes back.
        Err(Error::Protocol(tungstenite::error::ProtocolError::SendAfterClosing)) => Ok(false),
        Err(error) => Err(End::Socket(error)),
    }
}
