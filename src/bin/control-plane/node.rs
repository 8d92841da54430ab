//! What is known of one node. Pure: times are milliseconds since the program's start, and arguments.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use crate::contract;

/// What else a node can take. The better one is the greater one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Room {
    /// Nothing is wrong with it.
    pub well: bool,
    /// GPUs that a deploy could get.
    pub gpus_free: u64,
    /// The number of its replicas, negated.
    pub replicas_fewer: i64,
}

/// One node.
#[derive(Default)]
pub struct Node {
    /// The hardware's fingerprint, if the node has one.
    pub machine_id: Option<String>,
    /// The node's own token, if one was issued.
    pub token: Option<String>,
    /// It was removed: what still uses its ID is told so.
    pub removed: bool,
    /// The connection that it is reached on.
    pub conn: Option<u64>,
    /// `system_info` has come on that connection: commands may be sent.
    pub ready: bool,
    /// It was heard of within the time that nodes have for a heartbeat.
    pub online: bool,
    /// What it said of itself last.
    pub system_info: Option<(u64, Value)>,
    heartbeat: Option<(u64, Value)>,
    connected_at: u64,
    gap_max_ms: u64,
    gap_max_ever_ms: u64,
    connects: u64,
    state: Option<String>,
    messages: BTreeMap<&'static str, u64>,
    /// Frames that were no message.
    pub malformed: u64,
    /// Messages that the contract does not allow.
    pub violations: u64,
    /// Results that belong to no job.
    pub unmatched_results: u64,
}

impl Node {
    /// It connected. The connection that it had until now is given back.
    pub fn connected(&mut self, now: u64, conn: u64) -> Option<u64> {
        self.ready = false;
        self.online = true;
        self.connected_at = now;
        self.gap_max_ms = 0;
        self.connects += 1;
        self.conn.replace(conn)
    }

    /// This connection ended; true if it was the node's present one. It stays online until its heartbeat is due.
    pub fn disconnected(&mut self, conn: u64) -> bool {
        let current = self.conn == Some(conn);
        if current {
            self.conn = None;
            self.ready = false;
        }
        current
    }

    /// It sent a message.
    pub fn heard(&mut self, now: u64, name: &str, payload: &Value) {
        *self.messages.entry(contract::known(name).unwrap_or("unknown")).or_default() += 1;
        match name {
            "system_info" => {
                self.take_state(&payload["state"]);
                self.system_info = Some((now, payload.clone()));
            }
            "heartbeat" => {
                self.take_state(&payload["status"]["state"]);
                let before = self.heartbeat.as_ref().map(|(at, _)| *at);
                let since = now.saturating_sub(before.unwrap_or(0).max(self.connected_at));
                self.gap_max_ms = self.gap_max_ms.max(since);
                let since_ever = now.saturating_sub(before.unwrap_or(self.connected_at));
                self.gap_max_ever_ms = self.gap_max_ever_ms.max(since_ever);
                self.heartbeat = Some((now, payload.clone()));
                self.online = true;
            }
            "node_state" => self.take_state(&payload["state"]),
            _ => {}
        }
    }

    /// What it can take; `None`: nothing now.
    pub fn room(&self) -> Option<Room> {
        let state = self.state.as_deref().unwrap_or("online");
        if self.removed || !self.online || !self.ready || !["online", "degraded"].contains(&state) {
            return None;
        }
        let status = &self.heartbeat.as_ref()?.1["status"];
        Some(Room {
            well: state == "online",
            gpus_free: status["gpus_free"].as_u64().unwrap_or(0),
            replicas_fewer: -status["containers"].as_array().map_or(0, |all| all.len() as i64),
        })
    }

    /// Whether it counts as online and should not: nothing for `limit_ms`.
    pub fn overdue(&self, now: u64, limit_ms: u64) -> bool {
        let beat = self.heartbeat.as_ref().map_or(0, |(at, _)| *at);
        self.online && now.saturating_sub(beat.max(self.connected_at)) > limit_ms
    }

    /// The short form, for a list.
    pub fn summary(&self, id: &str, now: u64) -> Value {
        json!({
            "node_id": id,
            "hostname": self.system_info.as_ref().map(|(_, info)| info["hostname"].clone()),
            "connected": self.conn.is_some(),
            "online": self.online,
            "removed": self.removed,
            "state": self.state,
            "heartbeat_age_ms": age(&self.heartbeat, now),
        })
    }

    /// All that is known; never its token.
    pub fn view(&self, id: &str, now: u64) -> Value {
        let mut view = self.summary(id, now);
        let payload = |last: &Option<(u64, Value)>| last.as_ref().map(|(_, payload)| payload.clone());
        view["ready"] = json!(self.ready);
        view["machine_id"] = json!(self.machine_id);
        view["connects"] = json!(self.connects);
        view["system_info"] = json!(payload(&self.system_info));
        view["system_info_age_ms"] = json!(age(&self.system_info, now));
        view["heartbeat"] = json!(payload(&self.heartbeat));
        view["heartbeat_gap_max_ms"] = json!(self.gap_max_ms);
        view["heartbeat_gap_max_ever_ms"] = json!(self.gap_max_ever_ms);
        view["messages"] = json!(self.messages);
        view["malformed"] = json!(self.malformed);
        view["violations"] = json!(self.violations);
        view["unmatched_results"] = json!(self.unmatched_results);
        view
    }

    /// What has to survive a restart.
    pub fn save(&self, id: &str) -> Value {
        json!({
            "node_id": id, "machine_id": self.machine_id, "token": self.token, "removed": self.removed,
            "system_info": self.system_info.as_ref().map(|(_, info)| info),
        })
    }

    /// The ID and the node that [`Node::save`] wrote. `None`: it is something else.
    pub fn load(saved: &Value) -> Option<(String, Self)> {
        let word = |field: &str| saved[field].as_str().map(str::to_owned);
        let node = Self {
            machine_id: word("machine_id"),
            token: word("token"),
            removed: saved["removed"].as_bool()?,
            system_info: Some((0, saved["system_info"].clone())).filter(|(_, info)| !info.is_null()),
            ..Self::default()
        };
        Some((word("node_id")?, node))
    }

    fn take_state(&mut self, state: &Value) {
        if let Some(state) = state.as_str() {
            self.state = Some(state.to_owned());
        }
    }
}

fn age(last: &Option<(u64, Value)>, now: u64) -> Option<u64> {
    last.as_ref().map(|(at, _)| now.saturating_sub(*at))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn beat(node: &mut Node, now: u64) {
        node.heard(now, "heartbeat", &json!({"status": {"state": "degraded"}}));
    }

    #[test]
    fn gaps_between_heartbeats() {
        let mut node = Node::default();
        let check = |node: &Node, gap: u64, ever: u64| {
            let view = node.view("n", 0);
            assert_eq!(view["heartbeat_gap_max_ms"], gap);
            assert_eq!(view["heartbeat_gap_max_ever_ms"], ever);
        };
        node.connected(1_000, 1);
        beat(&mut node, 1_010);
        check(&node, 10, 10);
        beat(&mut node, 31_010);
        beat(&mut node, 61_000);
        check(&node, 30_000, 30_000);
        node.disconnected(1);
        node.connected(100_000, 2);
        check(&node, 0, 30_000);
        beat(&mut node, 100_005);
        check(&node, 5, 39_005);
        let view = node.view("n", 100_105);
        assert_eq!((&view["heartbeat_age_ms"], &view["messages"]["heartbeat"]), (&json!(100), &json!(4)));
        assert_eq!((&view["connects"], &view["state"]), (&json!(2), &json!("degraded")));
    }

    #[test]
    fn a_short_absence_is_not_offline() {
        let mut node = Node::default();
        assert!(!node.overdue(100_000, 60_000), "it never came");
        node.connected(1_000, 1);
        beat(&mut node, 2_000);
        assert!(node.disconnected(1) && node.online);
        assert!(!node.overdue(62_000, 60_000));
        assert!(node.overdue(62_001, 60_000));
        node.connected(62_001, 2);
        assert!(!node.overdue(62_001, 60_000), "to connect is a sign of life");
    }

    #[test]
    fn a_newer_connection_takes_over() {
        let mut node = Node::default();
        assert_eq!(node.connected(0, 1), None);
        assert_eq!(node.connected(5, 2), Some(1));
        assert!(!node.disconnected(1));
        assert_eq!(node.conn, Some(2));
    }

    #[test]
    fn types_from_outside_do_not_grow_the_counters() {
        let mut node = Node::default();
        for n in 0..1000 {
            node.heard(0, &format!("x{n}"), &Value::Null);
        }
        assert_eq!(node.view("n", 0)["messages"], json!({"unknown": 1000}));
    }
}
