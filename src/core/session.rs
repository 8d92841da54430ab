//! The session with the control plane: registering, connecting, staying alive, and when to try again.
//!
//! ```text
//!   Idle ──► Gathering ──► Registering ──► Dialing ──► Up ──► Idle …
//!     └────────(known node)──────────────────▲           └──► Closing ──► Over
//! ```

use std::time::{Duration, Instant};

use log::Level;

use super::complaints::{Complaint, Complaints};
use super::identity::Identity;
use super::link_api::{Down, DownReason, LinkCommand, LinkEvent, LinkId, Registration};
use super::{Action, Core, End, Sample};
use crate::protocol::{self, Inbound, OFFLINE_AFTER, Unusable};
use crate::types::{NodeId, Secret};

/// How often a heartbeat is sent.
pub const HEARTBEAT_EVERY: Duration = Duration::from_secs(30);
/// How long after a disconnect the next attempt is made.
pub const RECONNECT: Duration = Duration::from_secs(5);
/// The longest delay between attempts.
pub const RECONNECT_MAX: Duration = Duration::from_secs(30);
/// While nothing listens at the server's port, failures beyond this many do not lengthen the delay: 10 s. Such an attempt
/// costs nobody anything, and a server that comes back after a long outage has its nodes again within 12 s, spread over
/// as many.
const REFUSALS_COUNTED: u32 = 2;
/// How much a delay is spread, in percent to either side.
pub const SPREAD_PERCENT: u32 = 20;
/// How long one attempt may take.
pub const DIAL_DEADLINE: Duration = Duration::from_secs(8);
/// How often a ping is sent.
pub const PING_EVERY: Duration = Duration::from_secs(5);
/// A connection on which nothing arrives for this long is given up.
pub const SILENCE_MAX: Duration = Duration::from_secs(15);
/// A connection that lived this long forgets the failures before it.
pub const GOOD_LIFE: Duration = Duration::from_secs(60);
/// How long after the upgrade `system_info` waits for facts, and the first heartbeat for the first listing.
pub const INFO_WAIT: Duration = Duration::from_secs(2);
/// How long a registration over the socket may take.
pub const NAMED_WITHIN: Duration = Duration::from_secs(30);
/// How long a proper close may take.
pub const CLOSE_WITHIN: Duration = Duration::from_secs(3);
/// A loss of the connection that lasts this long is logged as a warning.
const LONG_LOSS: Duration = Duration::from_secs(60);
/// How much longer than its deadline an attempt may take to say so.
const DIAL_GUARD: Duration = Duration::from_secs(4);

/// The longest delay before an attempt, after a disconnect.
const RECONNECT_LATEST: Duration =
    Duration::from_millis(RECONNECT.as_millis() as u64 * (100 + SPREAD_PERCENT as u64) / 100);
// A link that dies right after a heartbeat is noticed, replaced and has sent the next one before the server gives
// the node up.
const _: () = assert!(
    HEARTBEAT_EVERY.as_millis()
        + SILENCE_MAX.as_millis()
        + RECONNECT_LATEST.as_millis()
        + DIAL_DEADLINE.as_millis()
        < OFFLINE_AFTER.as_millis()
);
const _: () = assert!(PING_EVERY.as_millis() * 2 < SILENCE_MAX.as_millis());

/// What the node is to the control plane.
#[derive(Debug)]
pub(super) struct Session {
    state: State,
    node: Option<NodeId>,
    node_token: Option<Secret>,
    token: Option<Secret>,
    /// Attempts that failed in a row.
    failures: u32,
    /// The server registers over the socket (said by the last try over HTTP).
    over_socket: bool,
    links: u64,
    last_beat: Option<Instant>,
    /// Why there is no connection.
    trouble: Option<String>,
    /// Since when; `None` while connected.
    offline_since: Option<Instant>,
    /// Attempts that failed since then.
    failed_attempts: u32,
    /// Attempts that failed for the same reason as the last one logged, and were not logged.
    repeated: u32,
    /// That the connection is missing was logged as a warning.
    warned: bool,
    connected_once: bool,
    complaints: Complaints,
}

#[derive(Debug)]
enum State {
    Idle(Instant),
    Gathering(Instant),
    Registering(LinkId, Instant),
    Dialing(LinkId, Instant),
    Up(Connection),
    Closing(LinkId, Instant),
    Over,
}

#[derive(Debug)]
struct Connection {
    link: LinkId,
    since: Instant,
    heard: Instant,
    ping_due: Instant,
    pings: u64,
    informed: Informed,
    info_due: Instant,
    /// `system_info` and a heartbeat are out: everything else may follow.
    flowing: bool,
    /// When the server must have named the node, if it has to.
    named_by: Option<Instant>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Informed {
    No,
    Partly,
    Wholly,
}

impl Session {
    pub(super) fn new(
        now: Instant,
        identity: Option<(NodeId, Option<Secret>)>,
        token: Option<Secret>,
    ) -> Self {
        let (node, node_token) = identity.map_or((None, None), |(node, token)| (Some(node), token));
        Self {
            state: State::Idle(now),
            node,
            node_token,
            token,
            failures: 0,
            over_socket: false,
            links: 0,
            last_beat: None,
            trouble: None,
            offline_since: Some(now),
            failed_attempts: 0,
            repeated: 0,
            warned: false,
            connected_once: false,
            complaints: Complaints::default(),
        }
    }

    pub(super) fn node(&self) -> Option<&NodeId> {
        self.node.as_ref()
    }

    /// The connection on which results and replica messages may be sent.
    pub(super) fn flowing(&self) -> Option<LinkId> {
        match &self.state {
            State::Up(up) if up.flowing => Some(up.link),
            _ => None,
        }
    }

    /// For `status`: a word and what is wrong.
    pub(super) fn describe(&self) -> (&'static str, Option<&str>) {
        let word = match &self.state {
            State::Idle(_) => "waiting",
            State::Gathering(_) | State::Registering(..) => "registering",
            State::Dialing(..) => "connecting",
            State::Up(_) => "connected",
            State::Closing(..) | State::Over => "closing",
        };
        (word, self.trouble.as_deref())
    }

    pub(super) fn is_over(&self) -> bool {
        matches!(self.state, State::Over)
    }

    fn link(&self) -> Option<LinkId> {
        match &self.state {
            State::Registering(link, _) | State::Dialing(link, _) | State::Closing(link, _) => Some(*link),
            State::Up(up) => Some(up.link),
            State::Idle(_) | State::Gathering(_) | State::Over => None,
        }
    }

    fn next_link(&mut self) -> LinkId {
        self.links += 1;
        LinkId(self.links)
    }

    pub(super) fn next_deadline(&self) -> Option<Instant> {
        match &self.state {
            State::Idle(at)
            | State::Gathering(at)
            | State::Registering(_, at)
            | State::Dialing(_, at)
            | State::Closing(_, at) => Some(*at),
            State::Up(up) => {
                let info = (!up.flowing).then_some(up.info_due);
                let all = [Some(up.heard + SILENCE_MAX), Some(up.ping_due), info, up.named_by];
                all.into_iter().flatten().min()
            }
            State::Over => None,
        }
    }
}

impl Core {
    /// Something happened on a link.
    pub(super) fn link_event(&mut self, now: Instant, link: LinkId, event: LinkEvent, out: &mut Vec<Action>) {
        if self.session.link() != Some(link) {
            return;
        }
        if let State::Up(up) = &mut self.session.state {
            up.heard = now;
        }
        match event {
            LinkEvent::Up => self.up(now, link, out),
            LinkEvent::Text(text) => self.message(now, &text, out),
            LinkEvent::NotText(size) => self.complain(now, Complaint::NotText, size, "is not text", out),
            LinkEvent::Pong(number) => {
                let arrived = self.outbox.confirm(link, number);
                if arrived.iter().any(|entry| entry.recorded) {
                    self.disk.dirty();
                }
            }
            LinkEvent::Alive => {}
            LinkEvent::Down(down) => self.down(now, down, out),
            LinkEvent::Registered(registration) => self.registered(now, registration, out),
        }
    }

    fn up(&mut self, now: Instant, link: LinkId, out: &mut Vec<Action>) {
        let last = self.session.last_beat.map(|at| at + OFFLINE_AFTER - INFO_WAIT);
        let info_due = last.map_or(now + INFO_WAIT, |at| at.clamp(now, now + INFO_WAIT));
        let without = match (self.session.offline_since.take(), self.session.failed_attempts) {
            (None, _) | (Some(_), 0) => String::new(),
            (Some(since), failed) => {
                let seconds = now.saturating_duration_since(since).as_secs();
                let noun = if failed == 1 { "attempt" } else { "attempts" };
                format!(", after {seconds} s without a connection and {failed} failed {noun}")
            }
        };
        out.push(Action::info(format!("connected to the control plane ({link}){without}")));
        self.session.failed_attempts = 0;
        self.session.repeated = 0;
        self.session.warned = false;
        self.session.connected_once = true;
        self.session.trouble = None;
        self.session.state = State::Up(Connection {
            link,
            since: now,
            heard: now,
            ping_due: now + PING_EVERY,
            pings: 0,
            informed: Informed::No,
            info_due,
            flowing: false,
            named_by: self.session.node.is_none().then_some(now + NAMED_WITHIN),
        });
    }

    fn down(&mut self, now: Instant, down: Down, out: &mut Vec<Action>) {
        let lived = match &self.session.state {
            State::Up(up) => now.saturating_duration_since(up.since),
            State::Closing(..) => {
                self.session.state = State::Over;
                return;
            }
            _ => Duration::ZERO,
        };
        if lived >= GOOD_LIFE {
            self.session.failures = 0;
        }
        let mut slowest = false;
        match down.why {
            DownReason::Http(status @ (401 | 403)) => {
                if self.session.node.is_none() {
                    let why = format!("the organisation token is refused (HTTP {status}): set a valid token");
                    out.push(Action::End(End::TokenRefused(why)));
                    self.session.state = State::Over;
                    return;
                }
                slowest = true;
                self.session.failures += 1;
            }
            DownReason::Http(410) | DownReason::Closed(4410) => {
                if self.session.token.is_none() {
                    let why = "the control plane removed this node: give an organisation token to register it again";
                    out.push(Action::End(End::NoIdentity(why.to_owned())));
                    self.session.state = State::Over;
                    return;
                }
                out.push(Action::warn(
                    "the control plane removed this node: registering it again".to_owned(),
                ));
                self.session.node = None;
                self.session.node_token = None;
            }
            DownReason::NoConnection | DownReason::Refused | DownReason::Http(_) | DownReason::Violation => {
                self.session.failures += 1
            }
            DownReason::Closed(_) | DownReason::Broken => {}
        }
        if down.why == DownReason::Refused {
            self.session.failures = self.session.failures.min(REFUSALS_COUNTED);
        }
        self.session.over_socket = false;
        self.try_later(now, slowest, down.retry_after, &down.detail, out);
    }

    fn try_later(
        &mut self,
        now: Instant,
        slowest: bool,
        retry_after: Option<Duration>,
        detail: &str,
        out: &mut Vec<Action>,
    ) {
        let doubled = RECONNECT * 2u32.pow(self.session.failures.saturating_sub(1).min(8));
        let delay = if slowest { RECONNECT_MAX } else { doubled.min(RECONNECT_MAX) };
        let delay = self.random.spread(delay, SPREAD_PERCENT).max(retry_after.unwrap_or(Duration::ZERO));
        let since = *self.session.offline_since.get_or_insert(now);
        self.session.failed_attempts += 1;
        // Short losses happen. One that lasts is for somebody to look at, and so is a start without a connection.
        let is_long = since + LONG_LOSS <= now || !self.session.connected_once;
        let is_news = self.session.trouble.as_deref() != Some(detail) || (is_long && !self.session.warned);
        let level = match (is_news, is_long) {
            (false, _) => Level::Debug,
            (true, false) => Level::Info,
            (true, true) => Level::Warn,
        };
        self.session.repeated = if is_news { 0 } else { self.session.repeated + 1 };
        self.session.warned |= is_news && is_long;
        let again =
            if is_news { String::new() } else { format!(" (failed {} times)", self.session.repeated + 1) };
        let seconds = delay.as_secs_f32();
        out.push(Action::Log(level, format!("{detail}{again}; next attempt in {seconds:.1} s")));
        self.session.trouble = Some(detail.to_owned());
        self.session.state = State::Idle(now + delay);
    }

    fn registered(&mut self, now: Instant, registration: Registration, out: &mut Vec<Action>) {
        match registration {
            Registration::Done { node, token } => {
                self.become_node(node, token, out);
                self.session.failures = 0;
                self.session.state = State::Idle(now);
            }
            Registration::Refused(status) => {
                let why = format!("the organisation token is refused (HTTP {status}): set a valid token");
                out.push(Action::End(End::TokenRefused(why)));
                self.session.state = State::Over;
            }
            Registration::Absent => {
                out.push(Action::info(
                    "the server does not register over HTTP: registering over the socket".into(),
                ));
                self.session.over_socket = true;
                self.session.state = State::Idle(now);
            }
            Registration::Failed { retry_after, detail } => {
                self.session.failures += 1;
                self.try_later(now, false, retry_after, &detail, out);
            }
        }
    }

    fn become_node(&mut self, node: NodeId, token: Option<Secret>, out: &mut Vec<Action>) {
        out.push(Action::info(format!("this node is {node}")));
        if token.is_some() || self.session.node.as_ref() != Some(&node) {
            self.session.node_token = token;
        }
        self.session.node = Some(node);
        self.save_identity(out);
    }

    pub(super) fn save_identity(&mut self, out: &mut Vec<Action>) {
        if let Some(node) = &self.session.node {
            out.push(Action::SaveIdentity(Identity {
                node_id: node.clone(),
                node_token: self.session.node_token.clone(),
                spec_key: Some(self.key.bytes()),
            }));
        }
    }

    /// A text message arrived.
    fn message(&mut self, now: Instant, text: &str, out: &mut Vec<Action>) {
        match protocol::read(text) {
            Ok(Inbound::Registered { node, token }) => self.named(node, token, out),
            Ok(message) => self.command(now, message, out),
            Err(unusable) => {
                let (complaint, what) = match &unusable {
                    Unusable::NotAMessage => (Complaint::NotAMessage, "is not a JSON message".to_owned()),
                    Unusable::UnknownType => (Complaint::UnknownType, "has an unknown type".to_owned()),
                    Unusable::Malformed { kind, why, .. } => {
                        (Complaint::Malformed, format!("is a malformed {kind}: {why}"))
                    }
                };
                self.complain(now, complaint, text.len(), &what, out);
                if let Unusable::Malformed { owed: Some(owed), why, .. } = unusable {
                    self.refuse_malformed(owed, &why, out);
                }
            }
        }
    }

    /// Counts a message that cannot be acted on, logs it unless its kind was logged lately, and ends the connection with
    /// a peer that floods.
    fn complain(
        &mut self,
        now: Instant,
        complaint: Complaint,
        bytes: usize,
        what: &str,
        out: &mut Vec<Action>,
    ) {
        self.malformed += 1;
        let verdict = self.session.complaints.add(now, complaint, bytes);
        if let Some(unlogged) = verdict.log {
            let more = match unlogged {
                0 => String::new(),
                count => format!(" ({count} more of this kind since the last one in this log)"),
            };
            out.push(Action::warn(format!("a message of {bytes} bytes {what}: ignored{more}")));
        }
        if let (true, State::Up(up)) = (verdict.is_flood, &self.session.state) {
            let detail = "the server floods this node with messages that cannot be used".to_owned();
            out.push(Action::Link(LinkCommand::Reject { link: up.link, detail }));
        }
    }

    fn named(&mut self, node: NodeId, token: Option<Secret>, out: &mut Vec<Action>) {
        match &self.session.node {
            Some(known) if *known != node => {
                out.push(Action::warn(format!(
                    "the server calls this node {node}, but it is {known}: ignored"
                )));
            }
            Some(_) if token.is_none() => {}
            Some(_) | None => self.become_node(node, token, out),
        }
        if let State::Up(up) = &mut self.session.state {
            up.named_by = None;
        }
    }

    /// Level-triggered: attempts, pings, facts and results that are due.
    pub(super) fn drive_session(&mut self, now: Instant, out: &mut Vec<Action>) {
        match &mut self.session.state {
            State::Idle(at) if *at <= now => self.attempt(now, out),
            State::Gathering(until) if *until <= now || self.node.facts_complete() => self.register(now, out),
            State::Registering(link, guard) | State::Dialing(link, guard) if *guard <= now => {
                out.push(Action::Link(LinkCommand::Abandon(*link)));
                self.session.failures += 1;
                self.try_later(now, false, None, "the attempt to connect hangs: given up", out);
            }
            State::Closing(link, until) if *until <= now => {
                out.push(Action::Link(LinkCommand::Abandon(*link)));
                self.session.state = State::Over;
            }
            State::Up(up) => {
                let silent = up.heard + SILENCE_MAX <= now;
                let nameless = up.named_by.is_some_and(|at| at <= now);
                if silent || nameless {
                    let link = up.link;
                    let detail = match (silent, nameless) {
                        (true, _) => "nothing arrived for 15 s: the connection is given up",
                        (false, _) => "the server did not name this node within 30 s",
                    };
                    let lived = now.saturating_duration_since(up.since);
                    out.push(Action::Link(LinkCommand::Abandon(link)));
                    if lived >= GOOD_LIFE {
                        self.session.failures = 0;
                    }
                    self.session.over_socket = false;
                    self.try_later(now, false, None, detail, out);
                } else {
                    self.drive_connection(now, out);
                }
            }
            State::Idle(_)
            | State::Gathering(_)
            | State::Registering(..)
            | State::Dialing(..)
            | State::Closing(..)
            | State::Over => {}
        }
    }

    fn attempt(&mut self, now: Instant, out: &mut Vec<Action>) {
        self.sample(Sample::Checks, now, out);
        self.sample(Sample::Hardware, now, out);
        self.sample(Sample::Usage, now, out);
        match (&self.session.node, &self.session.token) {
            (None, None) => {
                let why = "there is neither a node identity nor an organisation token";
                out.push(Action::End(End::NoIdentity(why.to_owned())));
                self.session.state = State::Over;
            }
            (None, Some(_)) if !self.session.over_socket => {
                self.session.state = State::Gathering(now + INFO_WAIT);
            }
            (node, token) => {
                let node = node.clone();
                let credential = self.session.node_token.clone().or_else(|| token.clone());
                let link = self.session.next_link();
                out.push(Action::Link(LinkCommand::Dial { link, node, credential }));
                self.session.state = State::Dialing(link, now + DIAL_DEADLINE + DIAL_GUARD);
            }
        }
    }

    fn register(&mut self, now: Instant, out: &mut Vec<Action>) {
        let Some(token) = self.session.token.clone() else { return };
        let body = self.registration_body(now);
        let link = self.session.next_link();
        out.push(Action::Link(LinkCommand::Register { link, token, body }));
        self.session.state = State::Registering(link, now + DIAL_DEADLINE + DIAL_GUARD);
    }

    fn drive_connection(&mut self, now: Instant, out: &mut Vec<Action>) {
        let complete = self.node.facts_complete();
        let State::Up(up) = &self.session.state else { return };
        let (link, informed, flowing, info_due) = (up.link, up.informed, up.flowing, up.info_due);
        let due = info_due <= now;
        let inform = match informed {
            Informed::No => complete || due,
            Informed::Partly => complete,
            Informed::Wholly => complete && self.node.take_info_wanted(),
        };
        if inform {
            let text = protocol::write("system_info", self.system_info(now));
            out.push(Action::Link(LinkCommand::Send(link, text)));
            self.set_informed(if complete { Informed::Wholly } else { Informed::Partly });
            self.node.take_info_wanted();
        }
        let informed = informed != Informed::No || inform;
        if informed && !flowing && (self.table_ready || due) {
            self.set_flowing();
            self.beat(now, out);
        }
        let gate = |gate: &super::outbox::Gate| self.disk.open(now, gate);
        if self.session.flowing().is_some() {
            let State::Up(up) = &mut self.session.state else { return };
            let results = self.outbox.take_unsent(link, up.pings + 1, gate);
            let ping = !results.is_empty() || up.ping_due <= now;
            for (kind, payload) in results {
                out.push(Action::Link(LinkCommand::Send(link, protocol::write(kind, payload.into()))));
            }
            if ping {
                up.pings += 1;
                up.ping_due = now + PING_EVERY;
                out.push(Action::Link(LinkCommand::Ping(link, up.pings)));
            }
        } else if let State::Up(up) = &mut self.session.state
            && up.ping_due <= now
        {
            up.pings += 1;
            up.ping_due = now + PING_EVERY;
            out.push(Action::Link(LinkCommand::Ping(link, up.pings)));
        }
    }

    fn set_informed(&mut self, informed: Informed) {
        if let State::Up(up) = &mut self.session.state {
            up.informed = informed;
        }
    }

    fn set_flowing(&mut self) {
        if let State::Up(up) = &mut self.session.state {
            up.flowing = true;
        }
    }

    /// Sends a heartbeat, if there is a connection that has had its `system_info`.
    pub(super) fn beat(&mut self, now: Instant, out: &mut Vec<Action>) {
        if let Some(link) = self.session.flowing() {
            let text = protocol::write("heartbeat", self.heartbeat(now));
            out.push(Action::Link(LinkCommand::Send(link, text)));
            self.session.last_beat = Some(now);
        }
    }

    /// Closes the session for good.
    pub(super) fn close_session(&mut self, now: Instant, out: &mut Vec<Action>) {
        match &self.session.state {
            State::Up(up) => {
                let link = up.link;
                out.push(Action::Link(LinkCommand::Close { link, code: 1001, reason: "agent stops" }));
                self.session.state = State::Closing(link, now + CLOSE_WITHIN);
            }
            State::Registering(link, _) | State::Dialing(link, _) => {
                out.push(Action::Link(LinkCommand::Abandon(*link)));
                self.session.state = State::Over;
            }
            State::Idle(_) | State::Gathering(_) => self.session.state = State::Over,
            State::Closing(..) | State::Over => {}
        }
    }
}
