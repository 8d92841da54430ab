//! The connection to the control plane: one thread that owns the socket.
//!
//! It makes one attempt when it is told to, reports each thing that happens, and never tries again on its own: when to
//! dial, how long to wait, and when a silent peer is dead is the core's business. It never looks into a text frame.
//!
//! ```text
//!             Dial                    Up
//!   idle ───────────────► dialling ───────────► connected ──► Text, NotText, Pong, Alive
//!    ▲  ▲  Register          │                      │
//!    │  └──────────► one POST│ Down                 │ peer closes, breaks, violates a limit;
//!    │         Registered    │                      │ Close, Reject, Abandon: Down
//!    └───────────────────────┴──────────────────────┘
//! ```
//!
//! A peer may send as fast as it likes: a turn of the thread reads a bounded number of messages and bytes before it
//! looks at commands again, and it reads nothing while the core has [`BACKLOG_MAX`] of text before it (see
//! [`Link::consumed`]). So a heartbeat goes out behind a turn and not behind a flood, and memory stays bounded.
//!
//! | file | |
//! |---|---|
//! | `url`, `proxy` | settings, checked once |
//! | `dial` | name, addresses, proxy and TLS under one deadline |
//! | `upgrade`, `head` | from there to a WebSocket; the head of an HTTP answer |
//! | `connection` | frames in and out, and the ends that a connection can have |
//! | `register` | the one HTTP request |
//! | `replay` | all of these on bytes that somebody made up, for fuzzing |
//! | `sock`, `tls` | the non-blocking socket and the stream over it |
//! | `shared` | what the handle and the thread share: wake-up, cancelled attempts, the core's backlog |

mod connection;
pub mod dates;
mod dial;
mod error;
mod head;
mod proxy;
mod register;
pub mod replay;
mod shared;
mod sock;
mod tls;
mod upgrade;
mod url;

use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags};
use tungstenite::protocol::frame::coding::CloseCode;

use self::connection::{Connection, Turn};
use self::dial::Dialer;
use self::shared::Shared;
use self::sock::Deadline;
use crate::core::link_api::{Down, DownReason, LinkCommand, LinkEvent, LinkId, Registration};
use crate::types::{NodeId, Secret};
use crate::wait::poll_until;

pub use self::dates::RETRY_AFTER_MAX;
pub use self::error::Error;
pub use self::proxy::Proxy;
pub use self::shared::BACKLOG_MAX;
pub use self::upgrade::UNSENT_MAX;
pub use self::url::{BadUrl, Host, Url};
pub use crate::core::link_api::DIAL_DEADLINE;
pub use crate::protocol::MESSAGE_MAX;

/// How long a close may take: sending it, and waiting for the answer.
pub const CLOSE_DEADLINE: Duration = Duration::from_secs(2);

/// Commands taken before the socket is looked at again.
const COMMANDS_PER_TURN: usize = 256;

/// Where and how to connect. [`Url`] has checked the URLs, plain text to other than loopback included.
#[derive(Debug)]
pub struct Settings {
    /// The control plane's WebSocket.
    pub url: Url,
    /// Where to register; [`Url::register_from`] by default.
    pub register_url: Url,
    /// PEM file of roots that are trusted besides the built-in ones. Read anew at each attempt; see [`check_ca_file`].
    pub ca_file: Option<PathBuf>,
    /// The HTTP proxy, with the hosts that are reached without it.
    pub proxy: Option<Proxy>,
}

/// Whether a CA file can be used, for the start: a bad one would otherwise only show in the log, at each attempt.
///
/// # Errors
/// [`Error::CaFile`] when it cannot be read or has no usable certificate. One that is bad among others is left out, with
/// a warning at the first attempt.
pub fn check_ca_file(path: &Path) -> Result<(), Error> {
    tls::config(Some(path)).map(drop)
}

/// Connects once as the link does, as far as the upgrade, and ends the connection: whether there is a way to the control
/// plane, and whether it takes the credential. Takes at most [`DIAL_DEADLINE`].
///
/// # Errors
/// [`Error`]: which step failed, and on what.
pub fn try_once(settings: Settings, node: Option<&NodeId>, credential: Option<&Secret>) -> Result<(), Error> {
    let shared = Shared::new().map_err(Error::Start)?;
    let deadline = Deadline::for_close(DIAL_DEADLINE, &shared);
    let stream = Dialer::new(settings.ca_file, settings.proxy).open(&settings.url, &deadline)?;
    upgrade::upgrade(stream, &settings.url, node, credential, &deadline).map(drop)
}

/// The link thread's handle. Dropping it ends the thread, and with it the connection, without a close frame: command a
/// close first.
#[derive(Debug)]
pub struct Link {
    commands: Sender<LinkCommand>,
    shared: Arc<Shared>,
}

/// Starts the link thread, named `link`. `emit` is called on it and may block it. The numbers of links must rise.
///
/// # Errors
/// [`Error::Start`] when the thread or its wake-up descriptor cannot be made.
pub fn start(settings: Settings, emit: impl Fn(LinkId, LinkEvent) + Send + 'static) -> Result<Link, Error> {
    let shared = Shared::new().map_err(Error::Start)?;
    let (commands, queue) = channel();
    let thread = Thread {
        url: settings.url,
        register_url: settings.register_url,
        dialer: Dialer::new(settings.ca_file, settings.proxy),
        commands: queue,
        shared: Arc::clone(&shared),
        emit: Box::new(emit),
        current: None,
    };
    std::thread::Builder::new().name("link".into()).spawn(move || thread.run()).map_err(Error::Start)?;
    Ok(Link { commands, shared })
}

impl Link {
    /// Hands a command to the thread. Never blocks. The queue has no limit of its own: the core admits no more work than
    /// it can answer.
    pub fn command(&self, command: LinkCommand) {
        if let LinkCommand::Abandon(link) | LinkCommand::Close { link, .. } = command {
            // An attempt that is under way takes no commands; this is how it notices.
            self.shared.cancel(link);
        }
        // The thread ends only with this handle, or with the process.
        let _ = self.commands.send(command);
        self.shared.wake();
    }

    /// Must be called once for each [`LinkEvent::Text`], when it has been dealt with: the bytes of its text. The thread
    /// stops reading while too many are outstanding.
    pub fn consumed(&self, bytes: usize) {
        self.shared.consume(bytes);
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        self.shared.stop();
        self.shared.wake();
    }
}

/// The link thread.
struct Thread {
    url: Url,
    register_url: Url,
    dialer: Dialer,
    commands: Receiver<LinkCommand>,
    shared: Arc<Shared>,
    emit: Box<dyn Fn(LinkId, LinkEvent) + Send>,
    current: Option<Connection>,
}

impl Thread {
    fn run(mut self) {
        while !self.shared.is_stopped() {
            self.shared.clear();
            let mut again = self.take_commands();
            let mut wait_for = PollFlags::empty();
            if let Some(connection) = &mut self.current {
                match connection.turn(&self.emit, &self.shared) {
                    Turn::Wait(flags) => wait_for = flags,
                    Turn::Again => again = true,
                    Turn::Ended(down) => self.end_current(down),
                }
            }
            if !again {
                self.wait(wait_for);
            }
        }
    }

    /// Sleeps until the thread is woken, or the socket is ready for `flags`.
    fn wait(&self, flags: PollFlags) {
        let mut fds = vec![PollFd::new(&*self.shared, PollFlags::IN)];
        // poll(2) reports a broken socket even where nothing is asked for: left out, it cannot keep us awake.
        if let Some(connection) = self.current.as_ref().filter(|_| !flags.is_empty()) {
            fds.push(PollFd::from_borrowed_fd(connection.as_fd(), flags));
        }
        if let Err(error) = poll_until(&mut fds, None) {
            // Only a kernel without memory says so; the next turn finds out what is ready by trying.
            log::warn!("link: waiting for the socket: {error}");
        }
    }

    /// Carries commands out, a bounded number of them; returns whether there may be more.
    fn take_commands(&mut self) -> bool {
        for _ in 0..COMMANDS_PER_TURN {
            match self.commands.try_recv() {
                Ok(command) => self.carry_out(command),
                Err(_) => return false,
            }
        }
        true
    }

    fn carry_out(&mut self, command: LinkCommand) {
        match command {
            LinkCommand::Dial { link, node, credential } => {
                self.end_current(broken("a new attempt took this connection's place"));
                match self.dial(link, node.as_ref(), credential.as_ref()) {
                    Ok(connection) => {
                        self.current = Some(connection);
                        (self.emit)(link, LinkEvent::Up);
                    }
                    Err(error) => (self.emit)(link, LinkEvent::Down(error.down())),
                }
            }
            LinkCommand::Register { link, token, body } => {
                let answer = self.register(link, &token, body);
                (self.emit)(link, LinkEvent::Registered(answer));
            }
            LinkCommand::Send(link, text) => {
                if let Some(connection) = self.current(link) {
                    connection.send(text);
                }
            }
            LinkCommand::Ping(link, number) => {
                if let Some(connection) = self.current(link) {
                    connection.ping(number);
                }
            }
            LinkCommand::Close { link, code, reason } => {
                if let Some(mut connection) = self.current.take_if(|c| c.link() == link) {
                    let down = connection.close(code, reason, &self.emit, &self.shared);
                    (self.emit)(link, LinkEvent::Down(down));
                }
            }
            LinkCommand::Reject { link, detail } => {
                if let Some(mut connection) = self.current.take_if(|c| c.link() == link) {
                    let down = connection.reject(CloseCode::Policy, &detail, &self.shared);
                    (self.emit)(link, LinkEvent::Down(down));
                }
            }
            LinkCommand::Abandon(link) => {
                if self.current(link).is_some() {
                    self.end_current(broken("the connection was abandoned"));
                }
            }
        }
    }

    fn current(&mut self, link: LinkId) -> Option<&mut Connection> {
        self.current.as_mut().filter(|connection| connection.link() == link)
    }

    fn end_current(&mut self, down: Down) {
        if let Some(connection) = self.current.take() {
            let link = connection.link();
            drop(connection);
            (self.emit)(link, LinkEvent::Down(down));
        }
    }

    fn dial(
        &mut self,
        link: LinkId,
        node: Option<&NodeId>,
        credential: Option<&Secret>,
    ) -> Result<Connection, Error> {
        let deadline = Deadline::for_attempt(DIAL_DEADLINE, &self.shared, link);
        if deadline.is_cancelled() {
            return Err(Error::Cancelled);
        }
        let stream = self.dialer.open(&self.url, &deadline)?;
        let socket = upgrade::upgrade(stream, &self.url, node, credential, &deadline)?;
        Ok(Connection::new(link, socket))
    }

    fn register(&mut self, link: LinkId, token: &Secret, body: String) -> Registration {
        let deadline = Deadline::for_attempt(DIAL_DEADLINE, &self.shared, link);
        if deadline.is_cancelled() {
            return Registration::Failed { retry_after: None, detail: Error::Cancelled.to_string() };
        }
        match self.dialer.open(&self.register_url, &deadline) {
            Ok(stream) => register::post(stream, &self.register_url, token, body, &deadline),
            Err(error) => Registration::Failed { retry_after: None, detail: error.to_string() },
        }
    }
}

fn broken(detail: &str) -> Down {
    Down { why: DownReason::Broken, retry_after: None, detail: detail.to_owned() }
}
