//! What the node says of itself: `system_info`, `heartbeat`, the body of a registration and `status`, composed from
//! what the machines know.

use std::time::Instant;

use serde_json::{Value, json};

use super::Settings;
use super::capacity::Capacity;
use super::engine_health::EngineHealth;
use super::gpus::Gpus;
use super::gpus::guests::{GpuUsage, Guests};
use super::inventory::{Gpu, Hardware, Judgement};
use super::leftover_calls::LeftoverCalls;
use super::node::Node;
use super::persistence::Persistence;
use super::replica::{Replica, Replicas};
use super::results::Results;
use super::session::Session;
use crate::protocol::PROTOCOL_VERSION;
use crate::types::{NodeId, ReplicaId};

/// All that a message may be composed from.
#[derive(Clone, Copy)]
pub(crate) struct View<'a> {
    pub(crate) now: Instant,
    pub(crate) settings: &'a Settings,
    pub(crate) session: &'a Session,
    pub(crate) node: &'a Node,
    pub(crate) engine: &'a EngineHealth,
    pub(crate) persistence: &'a Persistence,
    pub(crate) leftovers: &'a LeftoverCalls,
    pub(crate) replicas: &'a Replicas,
    pub(crate) gpus: &'a Gpus,
    pub(crate) guests: &'a Guests,
    pub(crate) results: &'a Results,
    /// Commands that wait for the containers to be known.
    pub(crate) waiting_commands: usize,
}

impl View<'_> {
    /// The node's state and what is wrong with it.
    pub(crate) fn state(&self) -> (&'static str, String) {
        let troubles = self.leftovers.trouble().into_iter();
        let troubles = troubles.chain(self.gpus.trouble()).chain(self.engine.trouble());
        self.node.state(troubles.chain(self.replicas.trouble()).chain(self.persistence.trouble()))
    }

    /// The payload of `system_info`.
    pub(crate) fn system_info(&self) -> Value {
        let unknown = Hardware::default();
        let mut info = self.gpus.hardware().unwrap_or(&unknown).described();
        let more = [
            ("storage", self.node.storage()),
            ("dependencies", self.node.dependencies()),
            ("agent_version", self.settings.version.into()),
            ("protocol_version", PROTOCOL_VERSION.into()),
            ("machine_id", self.gpus.machine_id().into()),
            ("state", self.state().0.into()),
            ("runtime", self.settings.runtime.as_str().into()),
            ("gpus", self.gpu_list().into()),
        ];
        info.extend(more.map(|(name, value): (&str, Value)| (name.to_owned(), value)));
        info.extend(self.session.node().map(|node| ("node_id".to_owned(), node.as_str().into())));
        info.into()
    }

    /// The body of a registration over HTTP.
    pub(crate) fn registration_body(&self) -> String {
        let hardware = self.gpus.hardware();
        json!({
            "machine_id": self.gpus.machine_id(),
            "hostname": hardware.and_then(|h| h.hostname.as_deref()),
            "agent_version": self.settings.version,
            "system_info": self.system_info(),
        })
        .to_string()
    }

    /// The payload of `heartbeat`.
    pub(crate) fn heartbeat(&self) -> Value {
        let memory = self.node.memory_gib();
        let (total, free) = self.gpus.table().count();
        let free = if self.replicas.are_known() { free } else { 0 };
        let gpus = self.gpu_usage();
        json!({ "status": {
            "containers": self.containers(),
            "gpu_utilization": gpus.percent,
            "gpu_utilization_source": gpus.sources,
            "gpu_memory_used_gb": gpus.memory_gib.map(|(used, _)| used),
            "gpu_memory_total_gb": gpus.memory_gib.map(|(_, total)| total),
            "memory_used_gb": memory.map(|(used, _)| used),
            "memory_total_gb": memory.map(|(_, total)| total),
            "memory_free_mb": self.capacity().free_mib(self.replicas.promised().0),
            "storage": self.node.storage(),
            "state": self.state().0,
            "gpus_total": total,
            "gpus_free": free,
            "containers_age_s": self.engine.list_age(self.now).map(|age| age.as_secs()),
        }})
    }

    /// What `vectorlay-agent status` shows.
    pub(crate) fn status(&self) -> Value {
        let (state, reason) = self.state();
        let (link, trouble) = self.session.describe();
        let gpus = self.gpu_usage();
        json!({
            "node_id": self.session.node().map(NodeId::as_str),
            "version": self.settings.version,
            "state": state,
            "reason": reason,
            "link": link,
            "link_trouble": trouble,
            "containers": self.containers(),
            "containers_age_s": self.engine.list_age(self.now).map(|age| age.as_secs()),
            "results_waiting": self.results.len(),
            "deploys_waiting": self.replicas.queue().len() + self.waiting_commands,
            "malformed_messages": self.session.unusable_messages(),
            "gpu_utilization": gpus.percent,
            "gpu_utilization_source": gpus.sources,
            "gpu_memory_used_gb": gpus.memory_gib.map(|(used, _)| used),
            "gpu_memory_total_gb": gpus.memory_gib.map(|(_, total)| total),
            "gpus": self.gpu_list(),
        })
    }

    /// What the host has for replicas.
    pub(crate) fn capacity(&self) -> Capacity {
        let hardware = self.gpus.hardware();
        Capacity {
            memory_mib: hardware.and_then(|hardware| hardware.memory_mib),
            cpus: hardware.and_then(|hardware| hardware.cpu_cores),
            reserve_mib: self.settings.reserve_memory_mib,
            overhead_mib: self.node.overhead_mib(),
        }
    }

    fn gpu_usage(&self) -> GpuUsage {
        let runs = |id: &ReplicaId| self.replicas.get(id).is_some_and(|replica| replica.running().is_some());
        self.guests.gpu_usage(self.now, self.node.gpus_in_use(), runs)
    }

    fn containers(&self) -> Vec<Value> {
        self.replicas.iter().map(|(_, replica)| container(replica)).collect()
    }

    /// The GPUs, as `system_info` and `status` show them.
    fn gpu_list(&self) -> Vec<Value> {
        let known = self.replicas.are_known();
        let one = |(gpu, Judgement { assignable, health, reason }): (&Gpu, Judgement)| {
            let mut described = gpu.described();
            let holder = self.gpus.table().holder(gpu.address).map(ToString::to_string);
            described.insert("health".into(), health.into());
            let unknown = || "whether a container has it is not known yet".to_owned();
            let reason = if known { reason } else { Some(reason.unwrap_or_else(unknown)) };
            described.insert("assignable".into(), (assignable && known).into());
            described.insert("reason".into(), json!(reason));
            described.insert("replica_id".into(), json!(holder));
            Value::Object(described)
        };
        self.gpus.table().describe().into_iter().map(one).collect()
    }
}

fn container(replica: &Replica) -> Value {
    let mut value = json!({ "replica_id": replica.id().as_str(), "status": replica.status() });
    if let Some(map) = value.as_object_mut() {
        if let Some(exit) = replica.exit().filter(|exit| exit.status() == "exited") {
            exit.describe(map);
        }
        if !replica.gpus().is_empty() {
            let gpus: Vec<String> = replica.gpus().iter().map(ToString::to_string).collect();
            map.insert("gpus".into(), gpus.into());
        }
    }
    value
}
