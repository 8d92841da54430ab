//! What a control plane decides: who gets in, what each message means, what is sent to whom.
//!
//! Pure: no socket, no file, no clock. Times are milliseconds since the program's start. What is to be sent lies in
//! `outgoing` after each call, and `dirty` says that what must survive a restart has changed; the hub saves first
//! and sends then.
//!
//! ```text
//!   connected ── system_info ──► ready: open jobs are sent ──┐
//!       │  (without a node ID: registered first)             │ results finish jobs
//!       └───────────── disconnected, or 60 s without a heartbeat: offline, 4001; its replicas move
//! ```

use std::collections::{BTreeMap, BTreeSet};
use std::io::Read as _;

use serde_json::{Value, json};

use crate::contract;
use crate::events::{Events, Kind as Happened};
use crate::jobs::{self, Jobs, Outcome};
use crate::mailbox::Order;
use crate::node::Node;
use crate::placement::Placements;

/// Close code: no heartbeat came.
const CLOSE_HEARTBEAT: u16 = 4001;
/// Close code: the node has a newer connection. Not in the protocol: an agent takes it for any disconnect.
const CLOSE_REPLACED: u16 = 4002;
/// Close code: the node was removed.
const CLOSE_REMOVED: u16 = 4410;

/// What the fleet goes by.
pub struct Rules {
    /// Organisation tokens.
    pub tokens: Vec<String>,
    /// Whether nodes get tokens of their own.
    pub node_tokens: bool,
    /// Whether commands carry request IDs.
    pub request_ids: bool,
    /// Milliseconds without a heartbeat until a node is offline.
    pub offline_after_ms: u64,
    /// Whether the replicas of a node that is offline are started on others.
    pub reschedule: bool,
}

impl Default for Rules {
    fn default() -> Self {
        Self {
            tokens: Vec::new(),
            node_tokens: true,
            request_ids: true,
            offline_after_ms: 60_000,
            reschedule: true,
        }
    }
}

/// Whether a connection is let in.
#[derive(Debug, PartialEq, Eq)]
pub enum Admission {
    /// As this node.
    Known(String),
    /// To register over the socket.
    New,
    /// Its node was removed or was never here: HTTP 410.
    Gone,
    /// HTTP 401.
    Refused,
}

/// Why a request of the operator's was not carried out.
#[derive(Debug, PartialEq, Eq)]
pub enum Refusal {
    /// No such node.
    NoNode,
    /// No such path or verb.
    NoVerb,
    /// The request's body lacks something.
    BadBody(&'static str),
    /// The node is not connected, and this kind of command is not queued.
    Away,
    /// The node has too many open jobs.
    Full,
}

/// An open connection.
struct Conn {
    /// Its node, once that is known.
    node: Option<String>,
    /// The peer's address.
    from: String,
}

/// All nodes and jobs.
pub struct Fleet {
    rules: Rules,
    nodes: BTreeMap<String, Node>,
    conns: BTreeMap<u64, Conn>,
    jobs: Jobs,
    placements: Placements,
    /// Nodes that went offline and are not back.
    lost: BTreeSet<String>,
    /// The log of what happened.
    pub events: Events,
    /// What is to be sent, by connection.
    pub outgoing: Vec<(u64, Order)>,
    /// Whether what is saved has changed.
    pub dirty: bool,
}

impl Fleet {
    /// A fleet without nodes.
    pub fn new(rules: Rules) -> Self {
        Self {
            rules,
            nodes: BTreeMap::new(),
            conns: BTreeMap::new(),
            jobs: Jobs::default(),
            placements: Placements::default(),
            lost: BTreeSet::new(),
            events: Events::default(),
            outgoing: Vec::new(),
            dirty: false,
        }
    }

    /// Whether this is one of the organisation's tokens.
    pub fn is_org_token(&self, token: &str) -> bool {
        self.rules.tokens.iter().any(|known| same_secret(known, token))
    }

    /// Decides on an upgrade request by its `Authorization` and `X-Node-Id`.
    pub fn admit(&self, bearer: Option<&str>, node_id: Option<&str>) -> Admission {
        let of_org = bearer.is_some_and(|token| self.is_org_token(token));
        let Some(id) = node_id else {
            // A node token says which node it is.
            let owner = |token: &str| {
                self.nodes
                    .iter()
                    .find(|(_, node)| node.token.as_deref().is_some_and(|t| same_secret(t, token)))
            };
            return match bearer.and_then(owner) {
                Some((_, node)) if node.removed => Admission::Gone,
                Some((id, _)) => Admission::Known(id.clone()),
                None if of_org => Admission::New,
                None => Admission::Refused,
            };
        };
        match self.nodes.get(id) {
            None => Admission::Gone,
            Some(node) if node.removed => Admission::Gone,
            Some(node) => {
                let right = match (&node.token, bearer) {
                    (Some(token), Some(given)) => same_secret(token, given),
                    (Some(_), None) => false,
                    // Without a token of its own the node is known by its ID, as `protocol.md` has it ("Connecting").
                    (None, Some(_)) => of_org,
                    (None, None) => true,
                };
                if right { Admission::Known(id.to_owned()) } else { Admission::Refused }
            }
        }
    }

    /// Registers a machine and returns the answer. The same machine gets its ID back, with a new token; one without a
    /// fingerprint is nobody's twin.
    pub fn register(&mut self, now: u64, machine_id: Option<&str>, system_info: Option<&Value>) -> Value {
        let machine_id = machine_id.filter(|machine| !machine.is_empty());
        let known = machine_id.and_then(|machine| {
            self.nodes.iter().find(|(_, n)| !n.removed && n.machine_id.as_deref() == Some(machine))
        });
        let id = known.map_or_else(|| random("node-", 6), |(id, _)| id.clone());
        let node = self.nodes.entry(id.clone()).or_default();
        node.machine_id = machine_id.map(str::to_owned);
        if let Some(info) = system_info {
            node.system_info = Some((now, info.clone()));
        }
        let mut answer = json!({"node_id": id});
        if self.rules.node_tokens {
            let token = random("vln_", 24);
            answer["node_token"] = json!(token);
            node.token = Some(token);
        }
        self.dirty = true;
        self.note(now, &id, "registered", json!({"machine_id": machine_id}));
        answer
    }

    /// A connection was let in.
    pub fn connected(&mut self, now: u64, conn: u64, from: &str, node: Option<&str>) {
        self.conns.insert(conn, Conn { node: node.map(str::to_owned), from: from.to_owned() });
        if let Some(id) = node {
            self.bind(now, conn, id);
        }
    }

    /// A connection ended.
    pub fn disconnected(&mut self, now: u64, conn: u64, why: &str) {
        let Some(Conn { node: Some(id), .. }) = self.conns.remove(&conn) else { return };
        if self.nodes.get_mut(&id).is_some_and(|node| node.disconnected(conn)) {
            self.note(now, &id, "disconnected", json!({"why": why}));
        }
    }

    /// A frame came in. `None`: it was no text.
    pub fn received(&mut self, now: u64, conn: u64, text: Option<&str>, size: usize) {
        let message = text.and_then(|text| serde_json::from_str::<Value>(text).ok());
        let mut id = self.conns.get(&conn).and_then(|conn| conn.node.clone());
        let parts = message.as_ref().and_then(|m| Some((m["type"].as_str()?, &m["payload"])));
        let Some((name, payload)) = parts.filter(|(_, payload)| payload.is_object()) else {
            if let Some(node) = id.as_ref().and_then(|id| self.nodes.get_mut(id)) {
                node.malformed += 1;
            }
            self.events.push(now, Happened::Malformed, id.as_deref(), "frame", json!({"size": size}), 0);
            return;
        };
        if id.is_none() && name == "system_info" {
            id = Some(self.register_over_socket(now, conn, payload));
        }
        self.events.push(now, Happened::Received, id.as_deref(), name, payload.clone(), size);
        let Some(id) = id else { return };
        self.take(now, conn, &id, name, payload);
    }

    /// Looks for nodes whose heartbeat is overdue.
    pub fn tick(&mut self, now: u64) {
        let limit = self.rules.offline_after_ms;
        let mut late = Vec::new();
        for (id, node) in self.nodes.iter_mut().filter(|(_, node)| node.overdue(now, limit)) {
            node.online = false;
            if let Some(conn) = node.conn {
                self.outgoing.push((conn, Order::Close(CLOSE_HEARTBEAT, "Heartbeat timeout".to_owned())));
            }
            late.push(id.clone());
        }
        for id in late {
            self.note(now, &id, "offline", json!({"after_ms": limit}));
            self.lost.insert(id);
        }
        if self.rules.reschedule {
            self.reschedule(now);
        }
    }

    /// Starts the replicas of lost nodes elsewhere, as far as there is room.
    fn reschedule(&mut self, now: u64) {
        for from in self.lost.clone() {
            for moved in self.placements.moves(&from, &self.nodes) {
                let (replica, to) = (moved.replica, moved.to);
                // The stop waits until the node is back. Without it the replica would run twice then.
                let stop = self.ask(&from, jobs::Kind::Stop, json!({"replica_id": replica}));
                if stop.is_err() || self.ask(&to, jobs::Kind::Deploy, moved.payload).is_err() {
                    continue;
                }
                self.note(now, &to, "rescheduled", json!({"replica_id": replica, "from": from}));
            }
        }
    }

    /// Carries out what an operator asks of a node; the answer is for them.
    ///
    /// # Errors
    /// [`Refusal`].
    pub fn command(&mut self, now: u64, id: &str, verb: &str, body: &str) -> Result<Value, Refusal> {
        let node = self.nodes.get(id).filter(|node| !node.removed).ok_or(Refusal::NoNode)?;
        let conn = node.conn.ok_or(Refusal::Away);
        let payload = || match serde_json::from_str::<Value>(body) {
            Ok(Value::Object(fields)) => Ok(Value::Object(fields)),
            Err(_) if body.is_empty() => Ok(json!({})),
            _ => Err(Refusal::BadBody("the body has to be a JSON object")),
        };
        let order = match verb {
            "deploy" => return self.ask(id, jobs::Kind::Deploy, payload()?),
            "stop" => return self.ask(id, jobs::Kind::Stop, payload()?),
            "remove" => return Ok(self.remove(now, id)),
            "drain" | "maintenance" | "resume" => message(verb, &json!({})),
            "logs" => message("logs", &with_ids(payload()?)?),
            "send" => Order::Send(body.to_owned()),
            "cut" => Order::Cut,
            "close" => close_order(&payload()?)?,
            _ => return Err(Refusal::NoVerb),
        };
        self.outgoing.push((conn?, order));
        Ok(json!({"sent": true}))
    }

    /// All nodes in short.
    pub fn nodes(&self, now: u64) -> Value {
        self.nodes.iter().map(|(id, node)| node.summary(id, now)).collect()
    }

    /// All that is known of a node.
    pub fn node(&self, now: u64, id: &str) -> Option<Value> {
        self.nodes.get(id).map(|node| node.view(id, now))
    }

    /// All jobs.
    pub fn jobs(&self) -> Value {
        self.jobs.view()
    }

    /// What has to survive a restart.
    pub fn save(&self) -> Value {
        let nodes: Value = self.nodes.iter().map(|(id, node)| node.save(id)).collect();
        json!({"nodes": nodes, "jobs": self.jobs.save(), "placements": self.placements.save()})
    }

    /// Takes what [`Fleet::save`] wrote; false if it is something else.
    pub fn load(&mut self, saved: &Value) -> bool {
        let nodes =
            saved["nodes"].as_array().and_then(|nodes| nodes.iter().map(Node::load).collect::<Option<_>>());
        let (Some(nodes), Some(jobs), Some(placements)) =
            (nodes, Jobs::load(&saved["jobs"]), Placements::load(&saved["placements"]))
        else {
            return false;
        };
        (self.nodes, self.jobs, self.placements) = (nodes, jobs, placements);
        true
    }

    fn bind(&mut self, now: u64, conn: u64, id: &str) {
        let Some(node) = self.nodes.get_mut(id).filter(|node| !node.removed) else {
            // Removed while it was being let in.
            self.outgoing.push((conn, Order::Close(CLOSE_REMOVED, "Node removed".to_owned())));
            return;
        };
        let older = node.connected(now, conn);
        self.lost.remove(id);
        let from = |conn| self.conns.get(&conn).map(|conn| conn.from.clone());
        let (from_new, from_old) = (from(conn), older.and_then(from));
        self.note(now, id, "connected", json!({"from": from_new}));
        if let Some(older) = older {
            let reason = "Replaced by a newer connection".to_owned();
            self.outgoing.push((older, Order::Close(CLOSE_REPLACED, reason)));
            self.note(now, id, "replaced", json!({"older": from_old, "newer": from_new}));
        }
    }

    fn register_over_socket(&mut self, now: u64, conn: u64, system_info: &Value) -> String {
        let answer = self.register(now, system_info["machine_id"].as_str(), None);
        let id = answer["node_id"].as_str().unwrap_or_default().to_owned();
        if let Some(conn) = self.conns.get_mut(&conn) {
            conn.node = Some(id.clone());
        }
        self.bind(now, conn, &id);
        self.outgoing.push((conn, message("registration_success", &answer)));
        id
    }

    /// Takes a well-formed message of a known node. One that comes on a connection which was replaced meanwhile
    /// counts too: its pong may be all that the agent waits for before it forgets the result.
    fn take(&mut self, now: u64, conn: u64, id: &str, name: &str, payload: &Value) {
        let Some(node) = self.nodes.get_mut(id) else { return };
        node.heard(now, name, payload);
        let mut wrong = contract::check(name, payload);
        let current = node.conn == Some(conn);
        if current && !node.ready && name != "system_info" {
            wrong.push(format!("{} came before system_info", name.escape_debug()));
        }
        node.violations += wrong.len() as u64;
        let becomes_ready = current && !node.ready && name == "system_info";
        node.ready |= becomes_ready;
        for what in wrong {
            self.events.push(now, Happened::Violation, Some(id), name, json!({"what": what}), 0);
        }
        if becomes_ready {
            let request_ids = self.rules.request_ids;
            self.outgoing.extend(self.jobs.open(id).map(|job| (conn, Order::Send(job.send(request_ids)))));
            self.dirty = true;
        }
        let replica = payload["replica_id"].as_str().unwrap_or_default();
        match (name, payload["status"].as_str()) {
            ("deploy_result", Some("running")) => {
                if let Some(asked) = self.jobs.asked(id, jobs::Kind::Deploy, payload).cloned() {
                    self.placements.runs(id, asked);
                }
            }
            ("stop_result", Some("stopped")) | ("replica_status", Some("exited" | "failed")) => {
                self.dirty |= self.placements.ends(id, replica);
            }
            _ => {}
        }
        if let Some(kind) = jobs::Kind::of_result(name) {
            match self.jobs.result(id, kind, payload) {
                Outcome::Finished | Outcome::Repeated | Outcome::Contradicted => self.dirty = true,
                Outcome::Unknown => {
                    if let Some(node) = self.nodes.get_mut(id) {
                        node.unmatched_results += 1;
                    }
                }
            }
        }
    }

    /// Queues a job, and sends it if the node is there.
    fn ask(&mut self, id: &str, kind: jobs::Kind, payload: Value) -> Result<Value, Refusal> {
        let payload = with_ids(payload)?;
        let replica = payload["replica_id"].as_str().unwrap_or_default().to_owned();
        let job = self.jobs.add(id, kind, payload).ok_or(Refusal::Full)?;
        self.dirty = true;
        if kind == jobs::Kind::Stop {
            self.placements.ends(id, &replica);
        }
        if let Some((conn, true)) = self.nodes.get(id).and_then(|node| Some((node.conn?, node.ready))) {
            self.outgoing.push((conn, Order::Send(job.send(self.rules.request_ids))));
        }
        Ok(job.view())
    }

    fn remove(&mut self, now: u64, id: &str) -> Value {
        if let Some(node) = self.nodes.get_mut(id) {
            node.removed = true;
            node.online = false;
            if let Some(conn) = node.conn {
                self.outgoing.push((conn, Order::Close(CLOSE_REMOVED, "Node removed".to_owned())));
            }
        }
        self.jobs.abandon(id);
        self.placements.forget(id);
        self.lost.remove(id);
        self.dirty = true;
        self.note(now, id, "removed", json!({}));
        json!({"removed": id})
    }

    fn note(&mut self, now: u64, id: &str, name: &str, payload: Value) {
        self.events.push(now, Happened::Node, Some(id), name, payload, 0);
    }
}

fn message(name: &str, payload: &Value) -> Order {
    Order::Send(json!({"type": name, "payload": payload}).to_string())
}

/// The payload of a command about a replica, with a request ID.
fn with_ids(mut payload: Value) -> Result<Value, Refusal> {
    if payload["replica_id"].as_str().is_none_or(str::is_empty) {
        return Err(Refusal::BadBody("replica_id is missing"));
    }
    if payload["request_id"].as_str().is_none_or(str::is_empty) {
        payload["request_id"] = json!(random("req-", 8));
    }
    Ok(payload)
}

fn close_order(body: &Value) -> Result<Order, Refusal> {
    let code = body["code"].as_u64().map_or(Some(1000), |code| u16::try_from(code).ok());
    let reason = body["reason"].as_str().unwrap_or_default();
    // RFC 6455 5.5: a control frame holds 125 bytes, two of them the code.
    match code {
        Some(code) if reason.len() <= 123 => Ok(Order::Close(code, reason.to_owned())),
        _ => Err(Refusal::BadBody("code is a number up to 65535 and reason a text of at most 123 bytes")),
    }
}

/// Compares without telling by its time how much was right.
fn same_secret(a: &str, b: &str) -> bool {
    a.len() == b.len() && a.bytes().zip(b.bytes()).fold(0, |differs, (x, y)| differs | (x ^ y)) == 0
}

/// A new ID or token: `bytes` random bytes in hexadecimal digits.
fn random(prefix: &str, bytes: usize) -> String {
    let mut noise = [0_u8; 32];
    std::fs::File::open("/dev/urandom")
        .and_then(|mut file| file.read_exact(&mut noise[..bytes]))
        .expect("Linux has /dev/urandom, and it never ends");
    noise[..bytes].iter().fold(prefix.to_owned(), |text, byte| format!("{text}{byte:02x}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A fleet with one node, connected twice: its ID, and what was to be sent is forgotten.
    fn fleet() -> (Fleet, String) {
        let mut fleet = Fleet::new(Rules::default());
        let answer = fleet.register(0, Some("m"), None);
        let id = answer["node_id"].as_str().unwrap().to_owned();
        for conn in [1, 2] {
            fleet.connected(0, conn, &format!("192.0.2.{conn}:7"), Some(&id));
            say(&mut fleet, conn, "system_info", json!({}));
        }
        fleet.outgoing.clear();
        (fleet, id)
    }

    fn say(fleet: &mut Fleet, conn: u64, name: &str, payload: Value) {
        let text = json!({"type": name, "payload": payload}).to_string();
        fleet.received(1, conn, Some(&text), text.len());
    }

    #[test]
    fn a_second_connection_is_told_with_both_addresses() {
        let (fleet, id) = fleet();
        let told = fleet.events.view(0, None);
        let replaced: Vec<&Value> =
            told["events"].as_array().unwrap().iter().filter(|event| event["type"] == "replaced").collect();
        assert_eq!(replaced.len(), 1);
        assert_eq!(replaced[0]["node"], id);
        assert_eq!(replaced[0]["payload"], json!({"older": "192.0.2.1:7", "newer": "192.0.2.2:7"}));
    }

    /// A heartbeat of a node with so many free GPUs.
    fn beat(fleet: &mut Fleet, now: u64, conn: u64, gpus: u64) {
        let status = json!({"containers": [], "gpus_free": gpus});
        let text = json!({"type": "heartbeat", "payload": {"status": status}}).to_string();
        fleet.received(now, conn, Some(&text), text.len());
    }

    /// A fleet of nodes with so many free GPUs, each on the connection of its number from 1; their IDs.
    fn nodes(rules: Rules, gpus: &[u64]) -> (Fleet, Vec<String>) {
        let mut fleet = Fleet::new(rules);
        let ids = gpus.iter().zip(1..).map(|(gpus, conn)| {
            let id = fleet.register(0, Some(&conn.to_string()), None)["node_id"].as_str().unwrap().to_owned();
            fleet.connected(0, conn, "192.0.2.1:7", Some(&id));
            say(&mut fleet, conn, "system_info", json!({}));
            beat(&mut fleet, 1, conn, *gpus);
            id
        });
        let ids = ids.collect();
        (fleet, ids)
    }

    /// The replica runs on the node.
    fn deploy(fleet: &mut Fleet, conn: u64, id: &str, replica: &str, gpus: u64) {
        let body = json!({"replica_id": replica, "image": "bb:1", "gpu_count": gpus, "request_id": replica});
        fleet.command(1, id, "deploy", &body.to_string()).unwrap();
        say(
            fleet,
            conn,
            "deploy_result",
            json!({"replica_id": replica, "request_id": replica, "status": "running"}),
        );
        fleet.outgoing.clear();
    }

    /// What was sent to whom: connection, type, replica.
    fn sent(fleet: &mut Fleet) -> Vec<(u64, String, String)> {
        let sent = fleet.outgoing.drain(..).filter_map(|(conn, order)| {
            let Order::Send(text) = order else { return None };
            let message: Value = serde_json::from_str(&text).unwrap();
            let word = |value: &Value| value.as_str().unwrap().to_owned();
            Some((conn, word(&message["type"]), word(&message["payload"]["replica_id"])))
        });
        sent.collect()
    }

    #[test]
    fn the_replicas_of_a_lost_node_move_and_it_is_told_to_stop_its_own() {
        let (mut fleet, ids) = nodes(Rules::default(), &[4, 1, 2]);
        deploy(&mut fleet, 1, &ids[0], "big", 2);
        deploy(&mut fleet, 1, &ids[0], "small", 1);
        deploy(&mut fleet, 1, &ids[0], "stopped", 0);
        deploy(&mut fleet, 1, &ids[0], "ended", 0);
        fleet.command(1, &ids[0], "stop", r#"{"replica_id":"stopped"}"#).unwrap();
        say(&mut fleet, 1, "replica_status", json!({"replica_id": "ended", "status": "exited"}));
        fleet.outgoing.clear();
        beat(&mut fleet, 50_000, 2, 1);
        beat(&mut fleet, 50_000, 3, 2);
        fleet.tick(60_002);
        let moved = |conn, replica: &str| (conn, "deploy".to_owned(), replica.to_owned());
        // The stops are sent in vain: the connection may be half-open, and a stop that arrives is as good.
        let to_others: Vec<_> = sent(&mut fleet).into_iter().filter(|(conn, ..)| *conn != 1).collect();
        assert_eq!(to_others, [moved(3, "big"), moved(2, "small")]);
        fleet.tick(60_202);
        assert_eq!(sent(&mut fleet), [], "once");
        fleet.disconnected(60_300, 1, "");
        fleet.connected(70_000, 4, "192.0.2.1:8", Some(&ids[0]));
        say(&mut fleet, 4, "system_info", json!({}));
        let stop = |replica: &str| (4, "stop".to_owned(), replica.to_owned());
        assert_eq!(sent(&mut fleet), [stop("stopped"), stop("big"), stop("small")]);
    }

    #[test]
    fn a_replica_that_fits_nowhere_waits_for_room_or_for_its_node() {
        let (mut fleet, ids) = nodes(Rules::default(), &[4, 1]);
        deploy(&mut fleet, 1, &ids[0], "big", 2);
        beat(&mut fleet, 50_000, 2, 1);
        fleet.tick(60_002);
        assert_eq!(sent(&mut fleet), []);
        beat(&mut fleet, 60_100, 2, 3);
        fleet.tick(60_202);
        assert_eq!(sent(&mut fleet).len(), 2);

        let (mut fleet, ids) = nodes(Rules { reschedule: false, ..Rules::default() }, &[4, 4]);
        deploy(&mut fleet, 1, &ids[0], "a", 2);
        beat(&mut fleet, 50_000, 2, 4);
        fleet.tick(60_002);
        assert_eq!(sent(&mut fleet), [], "it is turned off");
    }

    #[test]
    fn machines_without_a_fingerprint_are_not_each_other() {
        let mut fleet = Fleet::new(Rules::default());
        let mut id = |machine| fleet.register(0, machine, None)["node_id"].clone();
        assert_ne!(id(Some("")), id(Some("")));
        assert_ne!(id(None), id(None));
        assert_eq!(id(Some("m")), id(Some("m")));
    }

    #[test]
    fn a_result_on_a_replaced_connection_counts() {
        let (mut fleet, id) = fleet();
        fleet.command(1, &id, "deploy", r#"{"replica_id":"a","request_id":"r"}"#).unwrap();
        assert!(matches!(fleet.outgoing.as_slice(), [(2, Order::Send(_))]));
        say(
            &mut fleet,
            1,
            "deploy_result",
            json!({"replica_id": "a", "request_id": "r", "status": "running"}),
        );
        assert_eq!(fleet.jobs()[0]["result"]["status"], "running");
        fleet.disconnected(2, 1, "");
        assert_eq!(fleet.node(2, &id).unwrap()["connected"], true, "the newer one is still there");
    }

    #[test]
    fn an_overdue_node_is_closed_once_and_stays_known() {
        let (mut fleet, id) = fleet();
        fleet.tick(60_000);
        assert_eq!(fleet.outgoing, []);
        fleet.tick(60_001);
        fleet.tick(60_002);
        assert_eq!(fleet.outgoing, [(2, Order::Close(4001, "Heartbeat timeout".to_owned()))]);
        assert_eq!(fleet.node(60_002, &id).unwrap()["online"], false);
    }

    #[test]
    fn what_is_saved_is_loaded_and_nothing_else_is() {
        let (mut fleet, id) = fleet();
        fleet.command(1, &id, "stop", r#"{"replica_id":"a"}"#).unwrap();
        let mut again = Fleet::new(Rules::default());
        assert!(again.load(&fleet.save()));
        assert_eq!(again.save(), fleet.save());
        assert_eq!(again.node(0, &id).unwrap()["online"], false);
        for bad in
            [json!(null), json!({"nodes": []}), json!({"nodes": [{}], "jobs": []}), json!({"nodes": {}})]
        {
            assert!(!again.load(&bad), "{bad}");
        }
    }

    #[test]
    fn commands_that_cannot_be_carried_out() {
        let (mut fleet, id) = fleet();
        let mut check = |verb: &str, body: &str, why: Refusal| {
            assert_eq!(fleet.command(1, &id, verb, body), Err(why), "{verb} {body}");
        };
        let no_replica = || Refusal::BadBody("replica_id is missing");
        check("deploy", "{}", no_replica());
        check("stop", r#"{"replica_id":""}"#, no_replica());
        check("logs", "", no_replica());
        check("deploy", "[]", Refusal::BadBody("the body has to be a JSON object"));
        check("reboot", "", Refusal::NoVerb);
        assert!(matches!(fleet.command(1, &id, "close", r#"{"code":70000}"#), Err(Refusal::BadBody(_))));
        fleet.disconnected(2, 2, "");
        assert_eq!(fleet.command(3, &id, "drain", ""), Err(Refusal::Away));
        assert!(fleet.command(3, &id, "remove", "").is_ok());
        assert_eq!(fleet.command(3, &id, "drain", ""), Err(Refusal::NoNode));
    }
}
