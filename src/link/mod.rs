//! The connection to the control plane: one thread that owns the socket.
//!
//! It makes one attempt when told to, reports each thing that happens, and never tries again by itself: when to dial,
//! how long to wait, and when a silent peer is dead is the core's business. It never reads what a frame says.
//!
//! ```text
//!             Dial                    Up
//!   idle ───────────────► dialling ───────────► connected ──► Text, NotText, Pong, Alive
//!    ▲  ▲  Register          │                      │
//!    │  └──────────► one POST│ Down                 │ peer closes, breaks, violates a limit;
//!    │         Registered    │                      │ Close, Abandon: Down
//!    └───────────────────────┴──────────────────────┘
//! ```
//!
//! | file | |
//! |---|---|
//! | `url`, `proxy` | settings, checked once |
//! | `dial` | name, addresses, proxy and TLS under one deadline |
//! | `upgrade` | from there to a WebSocket |
//! | `connection` | frames in and out, and the ends that a connection can have |
//! | `register` | the one HTTP request |
//! | `sock`, `wake`, `tls` | the non-blocking socket, what wakes the thread, the stream |

mod connection;
pub mod dates;
mod dial;
mod error;
mod proxy;
mod register;
mod sock;
mod tls;
mod upgrade;
mod url;
mod wake;

use std::os::fd::AsFd;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags};

use self::connection::{Connection, Turn};
use self::dial::Dialer;
use self::sock::Patience;
use self::wake::Wake;
use crate::core::link_api::{Down, DownReason, LinkCommand, LinkEvent, LinkId, Registration};
use crate::types::{NodeId, Secret};

pub use self::dates::RETRY_AFTER_MAX;
pub use self::error::Error;
pub use self::proxy::Proxy;
pub use self::upgrade::{FRAME_MAX, UNSENT_MAX};
pub use self::url::{BadUrl, Host, Url};
pub use crate::core::session::DIAL_DEADLINE;
pub use crate::protocol::MESSAGE_MAX;

/// How long a close may take: sending it, and hearing the answer.
pub const CLOSE_DEADLINE: Duration = Duration::from_secs(2);

/// Orders taken before the socket is looked at again.
const ORDERS_PER_TURN: usize = 256;

/// What the link needs to know. The URLs are checked already (plain text to other than loopback included).
#[derive(Debug)]
pub struct Settings {
    /// The control plane's WebSocket.
    pub url: Url,
    /// Where to register; [`Url::register_from`] by default.
    pub register_url: Url,
    /// PEM file of roots that are trusted besides the built-in ones. Read anew at each attempt.
    pub ca_file: Option<PathBuf>,
    /// The HTTP proxy, and what is reached without it.
    pub proxy: Option<Proxy>,
}

/// The link thread's handle. Dropping it ends the thread, and with it the connection, without a word: order a close
/// first.
#[derive(Debug)]
pub struct Link {
    orders: Sender<LinkCommand>,
    wake: Arc<Wake>,
}

/// Starts the link thread, named `link`. `emit` is called on it and may block it. The numbers of links must rise.
///
/// # Errors
/// [`Error::Start`] when the thread or its wake-up descriptor cannot be made.
pub fn start(settings: Settings, emit: impl Fn(LinkId, LinkEvent) + Send + 'static) -> Result<Link, Error> {
    let wake = Wake::new().map_err(Error::Start)?;
    let (orders, taken) = channel();
    let thread = Thread {
        url: settings.url,
        register_url: settings.register_url,
        dialer: Dialer::new(settings.ca_file, settings.proxy),
        orders: taken,
        wake: Arc::clone(&wake),
        emit: Box::new(emit),
        current: None,
    };
    std::thread::Builder::new().name("link".into()).spawn(move || thread.run()).map_err(Error::Start)?;
    Ok(Link { orders, wake })
}

impl Link {
    /// Gives an order. Never blocks. The queue has no limit of its own: the core admits no more work than it can
    /// answer.
    pub fn order(&self, order: LinkCommand) {
        if let LinkCommand::Abandon(link) | LinkCommand::Close { link, .. } = order {
            // An attempt that is under way takes no orders; this is what it looks at.
            self.wake.give_up(link);
        }
        // The thread ends only with this handle, or with the process.
        let _ = self.orders.send(order);
        self.wake.wake();
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        self.wake.end();
        self.wake.wake();
    }
}

/// The link thread.
struct Thread {
    url: Url,
    register_url: Url,
    dialer: Dialer,
    orders: Receiver<LinkCommand>,
    wake: Arc<Wake>,
    emit: Box<dyn Fn(LinkId, LinkEvent) + Send>,
    current: Option<Connection>,
}

impl Thread {
    fn run(mut self) {
        while !self.wake.ended() {
            self.wake.reset();
            let mut again = self.take_orders();
            let mut flags = PollFlags::IN;
            if let Some(connection) = &mut self.current {
                match connection.turn(&self.emit, &self.wake) {
                    Turn::Idle => {}
                    Turn::Blocked => flags |= PollFlags::OUT,
                    Turn::Again => again = true,
                    Turn::Ended(down) => self.end_current(down),
                }
            }
            if !again {
                self.wait(flags);
            }
        }
    }

    /// Sleeps until there is an order, or something to read (or to write, where `flags` say so).
    fn wait(&self, flags: PollFlags) {
        let mut fds = vec![PollFd::new(&self.wake, PollFlags::IN)];
        if let Some(connection) = &self.current {
            fds.push(PollFd::from_borrowed_fd(connection.as_fd(), flags));
        }
        if let Err(error) = sock::wait(&mut fds, None) {
            // Only a kernel without memory says so; what is ready will be found by trying.
            log::warn!("link: waiting for the socket: {error}");
        }
    }

    /// Carries orders out, a bounded number of them; says whether there may be more.
    fn take_orders(&mut self) -> bool {
        for _ in 0..ORDERS_PER_TURN {
            match self.orders.try_recv() {
                Ok(order) => self.carry_out(order),
                Err(_) => return false,
            }
        }
        true
    }

    fn carry_out(&mut self, order: LinkCommand) {
        match order {
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
                    let down = connection.close(code, reason, &self.emit, &self.wake);
                    (self.emit)(link, LinkEvent::Down(down));
                }
            }
            LinkCommand::Abandon(link) => {
                if self.current(link).is_some() {
                    self.end_current(broken("the connection was given up"));
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
        &self,
        link: LinkId,
        node: Option<&NodeId>,
        credential: Option<&Secret>,
    ) -> Result<Connection, Error> {
        let patience = Patience::attempt(DIAL_DEADLINE, &self.wake, link);
        if patience.given_up() {
            return Err(Error::GivenUp);
        }
        let stream = self.dialer.open(&self.url, &patience)?;
        let socket = upgrade::upgrade(stream, &self.url, node, credential, &patience)?;
        Ok(Connection::new(link, socket))
    }

    fn register(&self, link: LinkId, token: &Secret, body: String) -> Registration {
        let patience = Patience::attempt(DIAL_DEADLINE, &self.wake, link);
        if patience.given_up() {
            return Registration::Failed { retry_after: None, detail: Error::GivenUp.to_string() };
        }
        let stream = match self.dialer.open(&self.register_url, &patience) {
            Ok(stream) => stream,
            Err(error) => return Registration::Failed { retry_after: None, detail: error.to_string() },
        };
        register::post(stream, &self.register_url, token, body, &patience)
    }
}

fn broken(detail: &str) -> Down {
    Down { why: DownReason::Broken, retry_after: None, detail: detail.to_owned() }
}
