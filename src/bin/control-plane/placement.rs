//! Which replica is to run on which node. When a node is offline, its replicas are started on others, and it is told to
//! stop its own when it comes back. Pure.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use crate::node::{Node, Room};

/// The replicas that are to run, by node and replica ID, with what their deploys asked for.
#[derive(Default)]
pub struct Placements {
    placed: BTreeMap<(String, String), Value>,
}

/// A replica that is to move.
#[derive(Debug, PartialEq)]
pub struct Move {
    /// Which.
    pub replica: String,
    /// Where it can run.
    pub to: String,
    /// What its deploy asked for.
    pub payload: Value,
}

impl Placements {
    /// The replica runs on the node, by a deploy with this payload.
    pub fn runs(&mut self, node: &str, mut payload: Value) {
        let Some(replica) = payload["replica_id"].as_str().map(str::to_owned) else { return };
        // Another start is another request.
        payload.as_object_mut().map(|fields| fields.remove("request_id"));
        self.placed.insert((node.to_owned(), replica), payload);
    }

    /// The replica is not to run there any more; true if it was.
    pub fn ends(&mut self, node: &str, replica: &str) -> bool {
        self.placed.remove(&(node.to_owned(), replica.to_owned())).is_some()
    }

    /// Nothing is to run on the node any more.
    pub fn forget(&mut self, node: &str) {
        self.placed.retain(|(on, _), _| on != node);
    }

    /// Where the replicas of a lost node can go, each to the node that has the most room left.
    pub fn moves(&self, lost: &str, nodes: &BTreeMap<String, Node>) -> Vec<Move> {
        let mut rooms: BTreeMap<&str, Room> =
            nodes.iter().filter_map(|(id, node)| Some((id.as_str(), node.room()?))).collect();
        rooms.remove(lost);
        let mut moves = Vec::new();
        for ((_, replica), payload) in self.placed.iter().filter(|((node, _), _)| node == lost) {
            let gpus = payload["gpu_count"].as_u64().unwrap_or(0);
            let fits = |id: &str, room: &Room| {
                room.gpus_free >= gpus && !self.placed.contains_key(&(id.to_owned(), replica.clone()))
            };
            let best = rooms.iter_mut().filter(|(id, room)| fits(id, room)).max_by_key(|(_, room)| **room);
            if let Some((to, room)) = best {
                room.gpus_free -= gpus;
                room.replicas_fewer -= 1;
                moves.push(Move { replica: replica.clone(), to: (*to).to_owned(), payload: payload.clone() });
            }
        }
        moves
    }

    /// What has to survive a restart.
    pub fn save(&self) -> Value {
        self.placed.iter().map(|((node, _), payload)| json!({"node": node, "payload": payload})).collect()
    }

    /// What [`Placements::save`] wrote. `None`: it is something else.
    pub fn load(saved: &Value) -> Option<Self> {
        let mut placements = Self::default();
        // An earlier version kept none.
        let saved = if saved.is_null() { &json!([]) } else { saved };
        for placed in saved.as_array()? {
            placements.runs(placed["node"].as_str()?, placed["payload"].clone());
        }
        Some(placements)
    }
}
