//! What the core and the link thread tell each other. The link makes one attempt when told to and reports what came
//! of it; when to try again is the core's business.

use std::fmt;
use std::time::Duration;

use crate::types::{NodeId, Secret};

/// How long one attempt may take, from the first look-up of a name to the answer to the upgrade.
pub const DIAL_DEADLINE: Duration = Duration::from_secs(8);

/// Names one attempt and the connection that comes of it. Never used again within a process.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct LinkId(pub u64);

impl fmt::Display for LinkId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "link {}", self.0)
    }
}

/// A command to the link thread. One for a link that is not the present one is dropped.
#[derive(Debug, Clone)]
pub enum LinkCommand {
    /// Connect: names, addresses, proxy, TLS and upgrade under one deadline.
    Dial {
        /// The attempt.
        link: LinkId,
        /// For `X-Node-Id`.
        node: Option<NodeId>,
        /// For `Authorization: Bearer`.
        credential: Option<Secret>,
    },
    /// Register over HTTP: one POST under one deadline.
    Register {
        /// The attempt.
        link: LinkId,
        /// The organisation token.
        token: Secret,
        /// The JSON body.
        body: String,
    },
    /// Send a text frame.
    Send(LinkId, String),
    /// Send a ping whose payload is this number, eight bytes in network order.
    Ping(LinkId, u64),
    /// Close properly, with a deadline, and report `Down`.
    Close {
        /// The connection.
        link: LinkId,
        /// The close code (RFC 6455 section 7.4).
        code: u16,
        /// The reason, at most 123 bytes.
        reason: &'static str,
    },
    /// End the connection because the peer broke a rule that the link cannot see: close with 1008 (policy violation),
    /// drop whatever it still sends, and report `Down` with [`DownReason::Violation`].
    Reject {
        /// The connection.
        link: LinkId,
        /// What the peer did, for a person.
        detail: String,
    },
    /// Drop the connection without a word, and report `Down`.
    Abandon(LinkId),
}

/// What happened on the link.
#[derive(Debug, Clone, PartialEq)]
pub enum LinkEvent {
    /// The upgrade succeeded.
    Up,
    /// A text frame arrived.
    Text(String),
    /// A message arrived that is not text; its size in bytes.
    NotText(usize),
    /// A pong arrived that carries this number.
    Pong(u64),
    /// Bytes arrived (reported at most once a second, while nothing else is).
    Alive,
    /// The attempt failed, or the connection ended. The last event of its link.
    Down(Down),
    /// The registration's answer. The last event of its attempt.
    Registered(Registration),
}

/// Why there is no connection.
#[derive(Debug, Clone, PartialEq)]
pub struct Down {
    /// The reason.
    pub why: DownReason,
    /// How long the server asked to be left alone.
    pub retry_after: Option<Duration>,
    /// For a person: what failed, on what, and what to do.
    pub detail: String,
}

/// The reasons that the core tells apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DownReason {
    /// No connection came about (name, address, TLS, deadline).
    NoConnection,
    /// Nothing listens at any of the host's addresses (ECONNREFUSED): the server is not running, and asking again costs
    /// nobody anything.
    Refused,
    /// The upgrade was answered with this HTTP status.
    Http(u16),
    /// The peer closed with this code.
    Closed(u16),
    /// The connection broke, or was given up.
    Broken,
    /// The peer violated the protocol or a limit.
    Violation,
}

/// What came of a registration.
#[derive(Debug, Clone, PartialEq)]
pub enum Registration {
    /// The node is registered.
    Done {
        /// Its ID.
        node: NodeId,
        /// Its own token, where the server issues one.
        token: Option<Secret>,
    },
    /// 401 or 403: the token is refused.
    Refused(u16),
    /// The server does not register over HTTP (`protocol.md`, "Over HTTP").
    Absent,
    /// No answer, 429 or 5xx: try again.
    Failed {
        /// How long the server asked to be left alone.
        retry_after: Option<Duration>,
        /// For a person.
        detail: String,
    },
}
