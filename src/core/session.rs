//! The session with the control plane: registering, connecting, staying alive, and when to try again. It says what
//! arrived; what that means is decided elsewhere.
//!
//! ```text
//!   Waiting ──► Gathering ──► Registering ──► Dialing ──► Up ──► Waiting …
//!      └────────(known node)─────────────────────▲         └──► Closing ──► Over
//! ```
//! On a new connection `system_info` goes out first, then a heartbeat; only then is it `established`, and everything
//! else may follow.

use std::time::{Duration, Instant};

use serde_json::Value;

use super::complaints::{Complaint, Complaints};
use super::connection_loss::ConnectionLoss;
use super::cx::Cx;
use super::identity::Identity;
use super::link_api::{DIAL_DEADLINE, Down, DownReason, LinkCommand, LinkEvent, LinkId, Registration};
use super::timers::Timer;
use super::{Action, End, HEARTBEAT_EVERY};
use crate::protocol::{self, Command, Inbound, OFFLINE_AFTER, Unusable};
use crate::types::{NodeId, ReplicaId, RequestId, Secret};

/// How long after a disconnect the next attempt is made.
const RECONNECT: Duration = Duration::from_secs(5);
/// The longest delay between attempts.
const RECONNECT_MAX: Duration = Duration::from_secs(30);
/// While nothing listens at the server's port, failures beyond this many do not lengthen the delay: 10 s. Such an attempt
/// costs nobody anything, and a server that comes back after a long outage has its nodes again within 12 s, spread over
/// as many.
const REFUSALS_COUNTED: u32 = 2;
/// How long an agent that has not been connected yet tries again after the shortest delay: the network of a host that is
/// booting comes up at any moment.
const STARTING_UP: Duration = Duration::from_secs(60);
/// How much a delay is spread, in percent to either side.
const SPREAD_PERCENT: u32 = 20;
/// How often a ping is sent.
const PING_EVERY: Duration = Duration::from_secs(5);
/// A connection on which nothing arrives for this long is dead.
const SILENCE_MAX: Duration = Duration::from_secs(15);
/// A connection that lasted this long resets the count of failures.
const FAILURES_RESET_AFTER: Duration = Duration::from_secs(60);
/// How long after the upgrade `system_info` waits for missing readings, and the first heartbeat for the first listing.
const INFO_WAIT: Duration = Duration::from_secs(2);
/// How long a registration over the socket may take.
const REGISTRATION_TIMEOUT: Duration = Duration::from_secs(30);
/// How long a proper close may take.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(3);
/// How much longer than its deadline an attempt may take to report.
const DIAL_MARGIN: Duration = Duration::from_secs(4);

/// The longest delay before an attempt, after a disconnect.
const RECONNECT_LATEST: Duration =
    Duration::from_millis(RECONNECT.as_millis() as u64 * (100 + SPREAD_PERCENT as u64) / 100);
// A link that dies right after a heartbeat is noticed, replaced and has sent the next one before the server marks the
// node offline.
const _: () = assert!(
    HEARTBEAT_EVERY.as_millis()
        + SILENCE_MAX.as_millis()
        + RECONNECT_LATEST.as_millis()
        + DIAL_DEADLINE.as_millis()
        < OFFLINE_AFTER.as_millis()
);
const _: () = assert!(PING_EVERY.as_millis() * 2 < SILENCE_MAX.as_millis());

/// The session with the control plane.
#[derive(Debug)]
pub(crate) struct Session {
    state: State,
    node: Option<NodeId>,
    node_token: Option<Secret>,
    token: Option<Secret>,
    /// Until it was connected once: when the start is over.
    starting_up: Option<Instant>,
    /// Attempts that failed in a row.
    failures: u32,
    /// The server registers over the socket (learnt from the last try over HTTP).
    over_socket: bool,
    links: u64,
    last_heartbeat: Option<Instant>,
    /// What `system_info` says has changed since it was sent.
    info_outdated: bool,
    /// Messages that could not be used.
    unusable: u64,
    /// Why there is no connection.
    trouble: Option<String>,
    complaints: Complaints,
    loss: ConnectionLoss,
}

#[derive(Debug)]
enum State {
    /// The next attempt is made at this time.
    Waiting(Instant),
    /// What a registration says is awaited, until this time.
    Gathering(Instant),
    /// An attempt is under way, until this time at most.
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
    /// When it counts as dead, if nothing arrives before.
    dead_at: Instant,
    ping_at: Instant,
    pings: u64,
    info: InfoSent,
    /// Until when `system_info` waits for readings that are missing; `None`: that time is over.
    info_deadline: Option<Instant>,
    established: bool,
    /// When the server must have named the node, if it has to.
    named_by: Option<Instant>,
}

/// Which `system_info` went out on a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum InfoSent {
    None,
    /// Something was not known yet.
    Partial,
    Complete,
}

/// What came from the server.
#[derive(Debug)]
pub(crate) enum Arrived {
    Message(Inbound),
    /// A message that cannot be acted on, but is owed an answer; why.
    Refused(Command, ReplicaId, Option<RequestId>, String),
    /// A pong: all that was sent on this connection before its ping has arrived.
    Receipt(LinkId, u64),
    /// The node has a new ID or token: to be saved.
    NewIdentity,
}

/// What the session needs from the other machines when one of its timers is due.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum SessionNeeds {
    Nothing,
    /// An attempt begins: what the host is like is to be read anew.
    FreshReadings,
    /// The body of a registration.
    Registration,
}

impl Session {
    pub(crate) fn new(
        now: Instant,
        identity: Option<(NodeId, Option<Secret>)>,
        token: Option<Secret>,
    ) -> Self {
        let (node, node_token) = identity.map_or((None, None), |(node, token)| (Some(node), token));
        Self {
            state: State::Waiting(now),
            node,
            node_token,
            token,
            starting_up: Some(now + STARTING_UP),
            failures: 0,
            over_socket: false,
            links: 0,
            last_heartbeat: None,
            info_outdated: false,
            unusable: 0,
            complaints: Complaints::default(),
            trouble: None,
            loss: ConnectionLoss::new(now),
        }
    }

    pub(crate) fn node(&self) -> Option<&NodeId> {
        self.node.as_ref()
    }

    /// The identity as it is to be saved; `None`: there is none yet.
    pub(crate) fn identity(&self, spec_key: [u8; 32]) -> Option<Identity> {
        let node_id = self.node.clone()?;
        Some(Identity { node_id, node_token: self.node_token.clone(), spec_key: Some(spec_key) })
    }

    pub(crate) fn unusable_messages(&self) -> u64 {
        self.unusable
    }

    /// For `status`: a word for the state, and why there is no connection.
    pub(crate) fn describe(&self) -> (&'static str, Option<&str>) {
        let word = match &self.state {
            State::Waiting(_) => "waiting",
            State::Gathering(_) | State::Registering(..) => "registering",
            State::Dialing(..) => "connecting",
            State::Up(_) => "connected",
            State::Closing(..) | State::Over => "closing",
        };
        (word, self.trouble.as_deref())
    }

    pub(crate) fn is_over(&self) -> bool {
        matches!(self.state, State::Over)
    }

    pub(crate) fn timers(&self) -> [(Timer, Option<Instant>); 5] {
        let (mut session, mut silence, mut ping, mut info, mut naming) = (None, None, None, None, None);
        match &self.state {
            State::Waiting(at)
            | State::Gathering(at)
            | State::Registering(_, at)
            | State::Dialing(_, at)
            | State::Closing(_, at) => session = Some(*at),
            State::Up(up) => {
                silence = Some(up.dead_at);
                ping = Some(up.ping_at);
                info = up.info_deadline;
                naming = up.named_by;
            }
            State::Over => {}
        }
        [
            (Timer::Session, session),
            (Timer::Silence, silence),
            (Timer::Ping, ping),
            (Timer::SystemInfo, info),
            (Timer::NodeId, naming),
        ]
    }

    /// One of its slots is due.
    pub(crate) fn on_timer(&mut self, cx: &mut Cx, timer: Timer) -> SessionNeeds {
        match (&mut self.state, timer) {
            (State::Waiting(_), Timer::Session) => {
                self.attempt(cx);
                return SessionNeeds::FreshReadings;
            }
            (State::Gathering(_), Timer::Session) => return SessionNeeds::Registration,
            (State::Registering(link, _) | State::Dialing(link, _), Timer::Session) => {
                let link = *link;
                cx.act(Action::Link(LinkCommand::Abandon(link)));
                self.failures += 1;
                self.try_later(cx, false, None, "the attempt to connect timed out");
            }
            (State::Closing(link, _), Timer::Session) => {
                let link = *link;
                cx.act(Action::Link(LinkCommand::Abandon(link)));
                self.enter(cx, State::Over);
            }
            (State::Up(up), Timer::Ping) => up.ping(cx),
            (State::Up(up), Timer::SystemInfo) => up.info_deadline = None,
            (State::Up(_), Timer::Silence) => {
                let seconds = SILENCE_MAX.as_secs();
                self.give_up(cx, &format!("nothing arrived for {seconds} s: the connection is closed"));
            }
            (State::Up(_), Timer::NodeId) => {
                let seconds = REGISTRATION_TIMEOUT.as_secs();
                self.give_up(cx, &format!("the control plane did not name this node within {seconds} s"));
            }
            (
                State::Waiting(_)
                | State::Gathering(_)
                | State::Registering(..)
                | State::Dialing(..)
                | State::Up(_)
                | State::Closing(..)
                | State::Over,
                _,
            ) => {}
        }
        SessionNeeds::Nothing
    }

    /// Something happened on a link. What belongs to an earlier one is dropped.
    pub(crate) fn on_link(&mut self, cx: &mut Cx, link: LinkId, event: LinkEvent) -> Option<Arrived> {
        if self.link() != Some(link) {
            return None;
        }
        if let State::Up(up) = &mut self.state {
            up.dead_at = cx.now + SILENCE_MAX;
        }
        match event {
            LinkEvent::Up => self.up(cx, link),
            LinkEvent::Text(text) => return self.message(cx, &text),
            LinkEvent::NotText(size) => {
                self.complain(cx, Complaint::NotText, size, "is not text");
            }
            LinkEvent::Pong(number) => return Some(Arrived::Receipt(link, number)),
            LinkEvent::Alive => {}
            LinkEvent::Down(down) => self.down(cx, &down),
            LinkEvent::Registered(registration) => return self.registered(cx, registration),
        }
        None
    }

    fn link(&self) -> Option<LinkId> {
        match &self.state {
            State::Registering(link, _) | State::Dialing(link, _) | State::Closing(link, _) => Some(*link),
            State::Up(up) => Some(up.link),
            State::Waiting(_) | State::Gathering(_) | State::Over => None,
        }
    }

    fn enter(&mut self, cx: &mut Cx, state: State) {
        // Where it is established, that is said when it is.
        cx.peer = None;
        self.state = state;
    }

    fn next_link(&mut self) -> LinkId {
        self.links += 1;
        LinkId(self.links)
    }

    fn attempt(&mut self, cx: &mut Cx) {
        match (&self.node, &self.token) {
            (None, None) => {
                let why = "there is neither a node identity nor an organisation token";
                self.end(cx, End::NoIdentity(why.to_owned()));
            }
            (None, Some(_)) if !self.over_socket => {
                let until = cx.now + INFO_WAIT;
                self.enter(cx, State::Gathering(until));
            }
            (node, token) => {
                let node = node.clone();
                let credential = self.node_token.clone().or_else(|| token.clone());
                let link = self.next_link();
                cx.act(Action::Link(LinkCommand::Dial { link, node, credential }));
                let until = cx.now + DIAL_DEADLINE + DIAL_MARGIN;
                self.enter(cx, State::Dialing(link, until));
            }
        }
    }

    /// Whether a registration is waiting for what it says about the host.
    pub(crate) fn is_gathering(&self) -> bool {
        matches!(self.state, State::Gathering(_))
    }

    pub(crate) fn register(&mut self, cx: &mut Cx, body: String) {
        let Some(token) = self.token.clone() else { return };
        let link = self.next_link();
        cx.act(Action::Link(LinkCommand::Register { link, token, body }));
        let until = cx.now + DIAL_DEADLINE + DIAL_MARGIN;
        self.enter(cx, State::Registering(link, until));
    }

    fn registered(&mut self, cx: &mut Cx, registration: Registration) -> Option<Arrived> {
        match registration {
            Registration::Done { node, token } => {
                self.failures = 0;
                let now = cx.now;
                self.enter(cx, State::Waiting(now));
                return Some(self.become_node(cx, node, token));
            }
            Registration::Refused(status) => self.token_refused(cx, status),
            Registration::Absent => {
                cx.info("the control plane does not register over HTTP: registering over the socket");
                self.over_socket = true;
                let now = cx.now;
                self.enter(cx, State::Waiting(now));
            }
            Registration::Failed { retry_after, detail } => {
                self.failures += 1;
                self.try_later(cx, false, retry_after, &detail);
            }
        }
        None
    }

    fn become_node(&mut self, cx: &mut Cx, node: NodeId, token: Option<Secret>) -> Arrived {
        cx.info(format!("this node is {node}"));
        if token.is_some() || self.node.as_ref() != Some(&node) {
            self.node_token = token;
        }
        self.node = Some(node);
        Arrived::NewIdentity
    }

    fn up(&mut self, cx: &mut Cx, link: LinkId) {
        let without = self.loss.end(cx.now);
        cx.info(format!("connected to the control plane ({link}){without}"));
        self.trouble = None;
        self.starting_up = None;
        let now = cx.now;
        // A heartbeat that would come too late for the server is not held up by what is missing.
        let last = self.last_heartbeat.map(|at| at + OFFLINE_AFTER - INFO_WAIT);
        let info_deadline = last.map_or(now + INFO_WAIT, |at| at.clamp(now, now + INFO_WAIT));
        let up = Connection {
            link,
            since: now,
            dead_at: now + SILENCE_MAX,
            ping_at: now + PING_EVERY,
            pings: 0,
            info: InfoSent::None,
            info_deadline: Some(info_deadline),
            established: false,
            named_by: self.node.is_none().then_some(now + REGISTRATION_TIMEOUT),
        };
        self.enter(cx, State::Up(up));
    }

    fn message(&mut self, cx: &mut Cx, text: &str) -> Option<Arrived> {
        match protocol::read(text) {
            Ok(Inbound::Registered { node, token }) => self.named(cx, node, token),
            Ok(message) => Some(Arrived::Message(message)),
            Err(unusable) => {
                let (complaint, what) = match &unusable {
                    Unusable::NotAMessage => (Complaint::NotAMessage, "is not a JSON message".to_owned()),
                    Unusable::UnknownType => (Complaint::UnknownType, "has an unknown type".to_owned()),
                    Unusable::Malformed { kind, why, .. } => {
                        (Complaint::Malformed, format!("is a malformed {kind}: {why}"))
                    }
                };
                self.complain(cx, complaint, text.len(), &what);
                match unusable {
                    Unusable::Malformed { owed: Some((command, replica, request)), why, .. } => {
                        Some(Arrived::Refused(command, replica, request, why))
                    }
                    Unusable::NotAMessage | Unusable::UnknownType | Unusable::Malformed { .. } => None,
                }
            }
        }
    }

    /// Counts a message that cannot be acted on, logs it unless its kind was logged lately, and ends the connection with
    /// a peer that floods.
    fn complain(&mut self, cx: &mut Cx, complaint: Complaint, bytes: usize, what: &str) {
        self.unusable += 1;
        let verdict = self.complaints.add(cx.now, complaint, bytes);
        if let Some(unlogged) = verdict.log {
            let more = match unlogged {
                0 => String::new(),
                count => format!(" ({count} more of this kind since the last one in this log)"),
            };
            cx.warn(format!("a message of {bytes} bytes {what}: ignored{more}"));
        }
        if let (true, State::Up(up)) = (verdict.is_flood, &self.state) {
            let detail = "the control plane floods this node with messages that cannot be used".to_owned();
            cx.act(Action::Link(LinkCommand::Reject { link: up.link, detail }));
        }
    }

    fn named(&mut self, cx: &mut Cx, node: NodeId, token: Option<Secret>) -> Option<Arrived> {
        if let State::Up(up) = &mut self.state {
            up.named_by = None;
        }
        match &self.node {
            Some(known) if *known != node => {
                cx.warn(format!("the control plane calls this node {node}, but it is {known}: ignored"));
                None
            }
            Some(_) if token.is_none() => None,
            Some(_) | None => Some(self.become_node(cx, node, token)),
        }
    }

    fn down(&mut self, cx: &mut Cx, down: &Down) {
        match &self.state {
            State::Up(up) => self.failures_of(up.since, cx.now),
            State::Closing(..) => {
                self.enter(cx, State::Over);
                return;
            }
            State::Waiting(_)
            | State::Gathering(_)
            | State::Registering(..)
            | State::Dialing(..)
            | State::Over => {}
        }
        let mut slowest = false;
        match down.why {
            DownReason::Http(status @ (401 | 403)) => {
                if self.node.is_none() {
                    self.token_refused(cx, status);
                    return;
                }
                slowest = true;
                self.failures += 1;
            }
            DownReason::Http(410) | DownReason::Closed(4410) => {
                if self.token.is_none() {
                    let why = "the control plane removed this node: give an organisation token to register it again";
                    self.end(cx, End::NoIdentity(why.to_owned()));
                    return;
                }
                cx.warn("the control plane removed this node: registering it again");
                self.node = None;
                self.node_token = None;
            }
            DownReason::NoConnection | DownReason::Refused | DownReason::Http(_) | DownReason::Violation => {
                self.failures += 1;
            }
            DownReason::Closed(_) | DownReason::Broken => {}
        }
        if down.why == DownReason::Refused {
            self.failures = self.failures.min(REFUSALS_COUNTED);
        }
        self.over_socket = false;
        self.try_later(cx, slowest, down.retry_after, &down.detail);
    }

    /// A connection that lasted long enough resets the count of failures.
    fn failures_of(&mut self, since: Instant, now: Instant) {
        if now.saturating_duration_since(since) >= FAILURES_RESET_AFTER {
            self.failures = 0;
        }
    }

    fn give_up(&mut self, cx: &mut Cx, why: &str) {
        let State::Up(up) = &self.state else { return };
        let (link, since) = (up.link, up.since);
        cx.act(Action::Link(LinkCommand::Abandon(link)));
        self.failures_of(since, cx.now);
        self.over_socket = false;
        self.try_later(cx, false, None, why);
    }

    fn try_later(&mut self, cx: &mut Cx, slowest: bool, retry_after: Option<Duration>, detail: &str) {
        let doubled = RECONNECT * 2u32.pow(self.failures.saturating_sub(1).min(8));
        let delay = if slowest {
            RECONNECT_MAX
        } else if self.starting_up.is_some_and(|until| cx.now < until) {
            RECONNECT
        } else {
            doubled.min(RECONNECT_MAX)
        };
        let delay = cx.random.spread(delay, SPREAD_PERCENT).max(retry_after.unwrap_or(Duration::ZERO));
        let (level, again) = self.loss.add(cx.now, self.trouble.as_deref() == Some(detail));
        let seconds = delay.as_secs_f32();
        cx.act(Action::Log(level, format!("{detail}{again}; next attempt in {seconds:.1} s")));
        self.trouble = Some(detail.to_owned());
        let at = cx.now + delay;
        self.enter(cx, State::Waiting(at));
    }

    fn token_refused(&mut self, cx: &mut Cx, status: u16) {
        let why = format!("the organisation token is refused (HTTP {status}): set a valid token");
        self.end(cx, End::TokenRefused(why));
    }

    fn end(&mut self, cx: &mut Cx, end: End) {
        cx.act(Action::End(end));
        self.enter(cx, State::Over);
    }

    /// What `system_info` says has changed: it is sent again.
    pub(crate) fn info_changed(&mut self) {
        self.info_outdated = true;
    }

    /// Whether `system_info` is to be sent now. `complete`: all that it says is known.
    pub(crate) fn info_is_due(&self, complete: bool) -> bool {
        let State::Up(up) = &self.state else { return false };
        match up.info {
            InfoSent::None => complete || up.info_deadline.is_none(),
            InfoSent::Partial => complete,
            InfoSent::Complete => complete && self.info_outdated,
        }
    }

    pub(crate) fn send_info(&mut self, cx: &mut Cx, info: Value, complete: bool) {
        let State::Up(up) = &mut self.state else { return };
        cx.act(Action::Link(LinkCommand::Send(up.link, protocol::write("system_info", info))));
        up.info = if complete { InfoSent::Complete } else { InfoSent::Partial };
        self.info_outdated = false;
    }

    /// Establishes the connection if it may be. Says whether it was: then a heartbeat is due. `containers_known`: what
    /// a heartbeat says of the containers can be said.
    pub(crate) fn establish(&mut self, cx: &mut Cx, containers_known: bool) -> bool {
        let State::Up(up) = &mut self.state else { return false };
        let may = up.info != InfoSent::None && (containers_known || up.info_deadline.is_none());
        if up.established || !may {
            return false;
        }
        up.established = true;
        up.info_deadline = None;
        cx.peer = Some(up.link);
        true
    }

    pub(crate) fn send_heartbeat(&mut self, cx: &mut Cx, heartbeat: Value) {
        if cx.peer.is_some() {
            cx.send("heartbeat", heartbeat);
            self.last_heartbeat = Some(cx.now);
        }
    }

    /// The number of the ping that will follow what is sent now, on an established connection.
    pub(crate) fn next_ping(&self) -> Option<(LinkId, u64)> {
        match &self.state {
            State::Up(up) if up.established => Some((up.link, up.pings + 1)),
            _ => None,
        }
    }

    /// Sends the ping whose pong is the receipt of all that was sent before it.
    pub(crate) fn ping(&mut self, cx: &mut Cx) {
        if let State::Up(up) = &mut self.state {
            up.ping(cx);
        }
    }

    /// Closes the session for good.
    pub(crate) fn close(&mut self, cx: &mut Cx) {
        match &self.state {
            State::Up(up) => {
                let (link, until) = (up.link, cx.now + CLOSE_TIMEOUT);
                cx.act(Action::Link(LinkCommand::Close { link, code: 1001, reason: "agent stops" }));
                self.enter(cx, State::Closing(link, until));
            }
            State::Registering(link, _) | State::Dialing(link, _) => {
                let link = *link;
                cx.act(Action::Link(LinkCommand::Abandon(link)));
                self.enter(cx, State::Over);
            }
            State::Waiting(_) | State::Gathering(_) => self.enter(cx, State::Over),
            State::Closing(..) | State::Over => {}
        }
    }
}

impl Connection {
    fn ping(&mut self, cx: &mut Cx) {
        self.pings += 1;
        self.ping_at = cx.now + PING_EVERY;
        cx.act(Action::Link(LinkCommand::Ping(self.link, self.pings)));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn session(cx: &Cx) -> Session {
        let identity = (NodeId::new("node-1").unwrap(), None);
        Session::new(cx.now, Some(identity), Some(Secret::new("vtk_1".into())))
    }

    #[test]
    fn a_connection_is_established_by_system_info_and_then_a_heartbeat() {
        let mut cx = Cx::example();
        let mut session = session(&cx);
        assert_eq!(session.on_timer(&mut cx, Timer::Session), SessionNeeds::FreshReadings);
        let link = session.link().unwrap();
        assert!(session.on_link(&mut cx, link, LinkEvent::Up).is_none());
        assert!(!session.info_is_due(false) && session.info_is_due(true));
        assert!(!session.establish(&mut cx, true), "not before system_info");
        session.send_info(&mut cx, Value::Null, true);
        assert!(!session.establish(&mut cx, false), "the containers are not known");
        assert_eq!((session.next_ping(), cx.peer), (None, None));
        _ = session.on_timer(&mut cx, Timer::SystemInfo);
        assert!(session.establish(&mut cx, false), "and are not waited for longer");
        assert_eq!((session.next_ping(), cx.peer), (Some((link, 1)), Some(link)));
        assert!(!session.info_is_due(true));
        session.info_changed();
        assert!(session.info_is_due(true));
    }

    #[test]
    fn silence_ends_a_connection_and_what_arrives_puts_it_off() {
        let mut cx = Cx::example();
        let mut session = session(&cx);
        _ = session.on_timer(&mut cx, Timer::Session);
        let link = session.link().unwrap();
        _ = session.on_link(&mut cx, link, LinkEvent::Up);
        cx.now += Duration::from_secs(10);
        _ = session.on_link(&mut cx, link, LinkEvent::Alive);
        assert_eq!(session.timers()[1], (Timer::Silence, Some(cx.now + SILENCE_MAX)));
        cx.actions.clear();
        _ = session.on_timer(&mut cx, Timer::Silence);
        assert!(matches!(cx.actions[0], Action::Link(LinkCommand::Abandon(given_up)) if given_up == link));
        assert!(matches!(session.state, State::Waiting(at) if at > cx.now));
        assert!(session.on_link(&mut cx, link, LinkEvent::Up).is_none() && session.link().is_none());
    }
}
