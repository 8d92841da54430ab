//! The node: what is known of the host, what state the node is in, and the messages that say so.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use log::Level;
use serde_json::{Map, Value, json};

use super::inventory::{Check, GpuUse, Hardware, Storage, Usage};
use super::link_api::LinkCommand;
use super::replica::{Code, Phase, Refusal, Replica};
use super::{Action, Core, Sample};
use crate::protocol::{self, PROTOCOL_VERSION};

/// The dependencies, in the wire's words; one that has not answered yet is reported as such.
const DEPENDENCIES: [&str; 7] = ["containerd", "nerdctl", "cni", "kata-runtime", "virtiofsd", "kvm", "vfio"];
/// How soon the dependencies are checked again when one that is required is not well.
const CHECKS_AGAIN: Duration = Duration::from_secs(30);
/// How often the GPUs are looked at while connected.
const HARDWARE_EVERY: Duration = Duration::from_secs(60);

/// How many replicas that the engine cannot tell about are named in the node's reason.
const UNCLEAR_NAMED: usize = 3;
/// A reading of the GPUs that takes longer than this hangs.
const HARDWARE_SLOW: Duration = Duration::from_secs(30);
/// When it is told that nothing is known of what an earlier process left at work.
const ORPHANS_SLOW: Duration = Duration::from_secs(10);

/// What the operator or the control plane wants of the node.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Mode {
    /// Work.
    #[default]
    Online,
    /// Finish what was accepted, take no new deploys.
    Draining,
    /// Take no new deploys.
    Maintenance,
}

impl Mode {
    /// The word in the record and on the wire.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Online => "online",
            Self::Draining => "draining",
            Self::Maintenance => "maintenance",
        }
    }

    /// The mode with this word.
    pub fn read(word: &str) -> Option<Self> {
        [Self::Online, Self::Draining, Self::Maintenance].into_iter().find(|mode| mode.as_str() == word)
    }
}

/// What is known of the host.
#[derive(Debug)]
pub(super) struct Node {
    mode: Mode,
    machine_id: Option<String>,
    hardware: Option<Hardware>,
    hardware_at: Option<Instant>,
    checks: BTreeMap<&'static str, Check>,
    checks_under_way: bool,
    checked_once: bool,
    checks_due: Instant,
    hardware_due: Instant,
    /// Readings of the hardware that were ordered and have not arrived: one is taken at a time, and one waits.
    pub(super) hardware_readings: u8,
    /// Since when one is under way.
    hardware_since: Option<Instant>,
    usage: Option<Usage>,
    info_wanted: bool,
    told: Option<(&'static str, String)>,
}

impl Node {
    pub(super) fn new(now: Instant, mode: Mode, machine_id: Option<String>) -> Self {
        Self {
            mode,
            machine_id,
            hardware: None,
            hardware_at: None,
            checks: BTreeMap::new(),
            checks_under_way: false,
            checked_once: false,
            checks_due: now,
            hardware_due: now,
            hardware_readings: 0,
            hardware_since: None,
            usage: None,
            info_wanted: false,
            told: None,
        }
    }

    pub(super) fn mode(&self) -> Mode {
        self.mode
    }

    pub(super) fn takes_deploys(&self) -> bool {
        self.mode == Mode::Online
    }

    pub(super) fn facts_complete(&self) -> bool {
        self.hardware.is_some() && self.checked_once && !self.checks_under_way
    }

    pub(super) fn take_info_wanted(&mut self) -> bool {
        std::mem::take(&mut self.info_wanted)
    }

    pub(super) fn want_info(&mut self) {
        self.info_wanted = true;
    }

    /// A dependency was checked. A change of what is ready is news for the control plane.
    pub(super) fn check(&mut self, check: Check) {
        let before = self.checks.insert(check.name, check.clone());
        if self.checked_once && before.is_none_or(|old| old.ok != check.ok || old.version != check.version) {
            self.info_wanted = true;
        }
    }

    pub(super) fn checks_done(&mut self, now: Instant) {
        self.checks_under_way = false;
        self.checked_once = true;
        if self.checks.values().any(|check| check.required && !check.ok) {
            self.want_checks(now + CHECKS_AGAIN);
        }
    }

    pub(super) fn hardware(&mut self, now: Instant, hardware: Hardware) {
        self.hardware_at = Some(now);
        let changed = self.hardware.as_ref().is_some_and(|old| old.gpus.len() != hardware.gpus.len());
        self.info_wanted |= changed;
        self.hardware_readings = self.hardware_readings.saturating_sub(1);
        self.hardware_since = (self.hardware_readings > 0).then_some(now);
        self.hardware = Some(hardware);
    }

    pub(super) fn usage(&mut self, usage: Usage) {
        self.usage = Some(usage);
    }

    /// The machine's fingerprint, where it is known.
    fn machine_id(&self) -> Option<&str> {
        let read = self.hardware.as_ref().and_then(|hardware| hardware.machine_id.as_deref());
        read.or(self.machine_id.as_deref())
    }

    /// The data path's use, in percent.
    pub(super) fn usage_percent(&self) -> Option<u8> {
        Some(self.usage.as_ref()?.storage.as_ref()?.usage_percent)
    }

    /// The use of the GPUs that the host can see.
    pub(super) fn gpus_in_use(&self) -> &[GpuUse] {
        self.usage.as_ref().map_or(&[], |usage| &usage.gpus)
    }

    /// Whether the GPUs were looked at not longer ago than `age`.
    pub(super) fn hardware_is_fresh(&self, now: Instant, age: Duration) -> bool {
        self.hardware_at.is_some_and(|at| at + age > now)
    }

    /// Why the GPUs cannot be looked at, if so.
    pub(super) fn hardware_trouble(&self, now: Instant) -> Option<String> {
        let hangs = self.hardware_since.is_some_and(|since| since + HARDWARE_SLOW <= now);
        hangs.then(|| "a reading of the GPUs hangs; see the kernel's log".to_owned())
    }

    /// The GPUs are to be looked at again at this time.
    pub(super) fn want_hardware(&mut self, at: Instant) {
        self.hardware_due = self.hardware_due.min(at);
    }

    /// The dependencies are to be checked again at this time.
    pub(super) fn want_checks(&mut self, at: Instant) {
        self.checks_due = self.checks_due.min(at);
    }

    /// Why no image may be pulled, if so.
    pub(super) fn too_little_space(&self, least: u64) -> Option<Refusal> {
        let usage = self.usage.as_ref()?;
        let free = usage.free_bytes?;
        let path = usage.storage.as_ref().map_or("the data path", |storage| storage.path.as_str());
        (free < least).then(|| {
            let error = format!(
                "{} GiB free on {path}, at least {} are needed for images (setting min_free_gb)",
                free >> 30,
                least >> 30
            );
            Refusal::new(Code::NoDisk, error)
        })
    }

    pub(super) fn next_deadline(&self) -> Instant {
        self.checks_due.min(self.hardware_due)
    }
}

impl Core {
    /// Orders a reading of the host.
    pub(super) fn sample(&mut self, sample: Sample, now: Instant, out: &mut Vec<Action>) {
        match sample {
            Sample::Checks => {
                self.node.checks_under_way = true;
                self.node.checks_due = now + self.settings.recheck;
            }
            Sample::Hardware => {
                self.node.hardware_due = now + HARDWARE_EVERY;
                self.node.hardware_readings = (self.node.hardware_readings + 1).min(2);
                self.node.hardware_since.get_or_insert(now);
            }
            Sample::Usage => {}
        }
        out.push(Action::Sample(sample));
    }

    /// Level-triggered: readings that are due, and news of the node's state.
    pub(super) fn drive_node(&mut self, now: Instant, out: &mut Vec<Action>) {
        if self.node.checks_due <= now {
            self.sample(Sample::Checks, now, out);
        }
        if self.node.hardware_due <= now {
            self.sample(Sample::Hardware, now, out);
        }
        // A call of an earlier process may still start a container.
        let quiet = self.orphans_known && self.orphans.is_empty();
        if self.node.mode == Mode::Draining && quiet && self.idle() {
            self.node.mode = Mode::Maintenance;
            self.disk.dirty();
        }
        let (state, reason) = self.state(now);
        let Some(link) = self.session.flowing() else { return };
        if self.node.told.as_ref().is_none_or(|(told, why)| *told != state || *why != reason) {
            let payload = json!({ "state": state, "reason": reason });
            out.push(Action::Link(LinkCommand::Send(link, protocol::write("node_state", payload))));
            let level = if state == "degraded" { Level::Warn } else { Level::Info };
            let colon = if reason.is_empty() { "" } else { ": " };
            out.push(Action::Log(level, format!("node state: {state}{colon}{reason}")));
            self.node.told = Some((state, reason));
        }
    }

    /// Changes what is wanted of the node.
    pub(super) fn set_mode(&mut self, mode: Mode) {
        // A node in maintenance is drained already.
        if self.node.mode != mode && !(mode == Mode::Draining && self.node.mode == Mode::Maintenance) {
            self.node.mode = mode;
            self.disk.dirty();
        }
    }

    /// Whether nothing that was accepted is still to be done.
    pub(super) fn idle(&self) -> bool {
        self.waiting.is_empty() && !self.replicas.values().any(Replica::owes)
    }

    /// The node's state and what is wrong with it.
    pub(super) fn state(&self, now: Instant) -> (&'static str, String) {
        let mut reasons: Vec<String> = self
            .node
            .checks
            .values()
            .filter(|check| check.required && !check.ok)
            .map(|check| format!("{}: {}", check.name, check.detail))
            .collect();
        if !self.node.checked_once {
            reasons.push("the dependencies have not been checked yet".to_owned());
        }
        if !self.orphans_known && self.started + ORPHANS_SLOW <= now {
            reasons
                .push("what an earlier process left at work is not known: /proc cannot be read".to_owned());
        }
        reasons.extend(self.node.hardware_trouble(now));
        reasons.extend(self.engine.trouble());
        reasons.extend(self.unclear_replicas());
        reasons.extend(self.disk.trouble(now));
        reasons.extend(self.identity_trouble.clone());
        let state = match self.node.mode {
            Mode::Maintenance | Mode::Draining => self.node.mode.as_str(),
            Mode::Online if reasons.is_empty() => "online",
            Mode::Online => "degraded",
        };
        (state, reasons.join("; "))
    }

    /// The replicas whose state the engine cannot tell, the first few by name.
    fn unclear_replicas(&self) -> Option<String> {
        let unclear: Vec<String> = self
            .replicas
            .values()
            .filter_map(|replica| {
                Some(format!("replica {} is unknown: {}", replica.id, replica.unclear.as_ref()?))
            })
            .collect();
        let more = unclear.len().saturating_sub(UNCLEAR_NAMED);
        let named = unclear.get(..UNCLEAR_NAMED).unwrap_or(&unclear).join("; ");
        match (unclear.len(), more) {
            (0, _) => None,
            (_, 0) => Some(named),
            (_, more) => Some(format!("{named}; and {more} more")),
        }
    }

    /// The payload of `system_info`.
    pub(super) fn system_info(&self, now: Instant) -> Value {
        let unknown = Hardware::default();
        let hardware = self.node.hardware.as_ref().unwrap_or(&unknown);
        let lines: Vec<&str> = hardware.gpus.iter().map(|gpu| gpu.line.as_str()).collect();
        let mut info = json!({
            "hostname": hardware.hostname,
            "cpuModel": hardware.cpu_model,
            "cpuCores": hardware.cpu_cores,
            "ramGb": hardware.ram_gib,
            "gpuInfo": lines,
            "storage": self.storage(),
            "dependencies": self.dependencies(),
            "agent_version": self.settings.version,
            "protocol_version": PROTOCOL_VERSION,
            "machine_id": self.node.machine_id(),
            "boot_id": hardware.boot_id,
            "arch": hardware.arch,
            "kernel": hardware.kernel,
            "state": self.state(now).0,
            "runtime": self.settings.runtime,
            "gpus": self.gpu_list(),
        });
        if let (Some(node), Some(map)) = (self.session.node(), info.as_object_mut()) {
            map.insert("node_id".into(), node.as_str().into());
        }
        info
    }

    /// The body of a registration over HTTP.
    pub(super) fn registration_body(&self, now: Instant) -> String {
        let hardware = self.node.hardware.as_ref();
        json!({
            "machine_id": self.node.machine_id(),
            "hostname": hardware.and_then(|h| h.hostname.as_deref()),
            "agent_version": self.settings.version,
            "system_info": self.system_info(now),
        })
        .to_string()
    }

    fn storage(&self) -> Value {
        let storage = self.node.usage.as_ref().and_then(|usage| usage.storage.as_ref());
        storage.map_or(Value::Null, |Storage { path, total_gb, used_gb, usage_percent }| {
            json!({ "path": path, "total_gb": total_gb, "used_gb": used_gb, "usage_percent": usage_percent })
        })
    }

    fn dependencies(&self) -> Value {
        let mut checks = Map::new();
        for name in DEPENDENCIES {
            let value = match self.node.checks.get(name) {
                None => json!({ "installed": false, "ok": false, "detail": "has not answered yet" }),
                Some(check) => {
                    let mut value = json!({
                        "installed": check.installed,
                        "required": check.required,
                        "ok": check.ok,
                        "detail": check.detail,
                    });
                    if let Some(map) = value.as_object_mut() {
                        if let Some(version) = &check.version {
                            map.insert("version".into(), version.as_str().into());
                        }
                        if let Some(modules) = check.modules {
                            map.insert("modules".into(), modules.into());
                        }
                    }
                    value
                }
            };
            checks.insert(name.to_owned(), value);
        }
        let ready =
            self.node.checked_once && self.node.checks.values().all(|check| check.ok || !check.required);
        json!({ "ready": ready, "checks": checks })
    }

    /// The GPUs, as `system_info` and `status` show them.
    pub(super) fn gpu_list(&self) -> Vec<Value> {
        let one = |(gpu, judgement): (&super::inventory::Gpu, super::inventory::Judgement)| {
            let mut described = gpu.described();
            let holder = self.gpus.holder(gpu.address).map(ToString::to_string);
            described.insert("health".into(), judgement.health.into());
            let unknown = || "whether a container has it is not known yet".to_owned();
            let reason = judgement.reason;
            let reason = if self.table_ready { reason } else { Some(reason.unwrap_or_else(unknown)) };
            described.insert("assignable".into(), (judgement.assignable && self.table_ready).into());
            described.insert("reason".into(), json!(reason));
            described.insert("replica_id".into(), json!(holder));
            Value::Object(described)
        };
        self.gpus.describe().into_iter().map(one).collect()
    }

    /// The payload of `heartbeat`.
    pub(super) fn heartbeat(&self, now: Instant) -> Value {
        let containers: Vec<Value> = self.replicas.values().map(container).collect();
        let usage = self.node.usage.as_ref();
        let memory = usage.and_then(|usage| usage.memory_gib);
        let (total, free) = self.gpus.count();
        let free = if self.table_ready { free } else { 0 };
        let gpus = self.gpu_use(now);
        let age = self.engine.table_age(now).map(|age| age.as_secs());
        json!({ "status": {
            "containers": containers,
            "gpu_utilization": gpus.percent,
            "gpu_utilization_source": gpus.sources,
            "gpu_memory_used_gb": gpus.memory_gib.map(|(used, _)| used),
            "gpu_memory_total_gb": gpus.memory_gib.map(|(_, total)| total),
            "memory_used_gb": memory.map(|(used, _)| used),
            "memory_total_gb": memory.map(|(_, total)| total),
            "storage": self.storage(),
            "state": self.state(now).0,
            "gpus_total": total,
            "gpus_free": free,
            "containers_age_s": age,
        }})
    }

    /// What `vectorlay-agent status` shows.
    pub fn status(&self, now: Instant) -> Value {
        let (state, reason) = self.state(now);
        let (link, trouble) = self.session.describe();
        let gpus = self.gpu_use(now);
        json!({
            "node_id": self.session.node().map(|node| node.as_str()),
            "version": self.settings.version,
            "state": state,
            "reason": reason,
            "link": link,
            "link_trouble": trouble,
            "containers": self.replicas.values().map(container).collect::<Vec<_>>(),
            "containers_age_s": self.engine.table_age(now).map(|age| age.as_secs()),
            "results_waiting": self.outbox.len(),
            "deploys_waiting": self.queue.len() + self.waiting.len(),
            "malformed_messages": self.malformed,
            "gpu_utilization": gpus.percent,
            "gpu_utilization_source": gpus.sources,
            "gpu_memory_used_gb": gpus.memory_gib.map(|(used, _)| used),
            "gpu_memory_total_gb": gpus.memory_gib.map(|(_, total)| total),
            "gpus": self.gpu_list(),
        })
    }
}

fn container(replica: &Replica) -> Value {
    let mut value = json!({ "replica_id": replica.id.as_str(), "status": replica.status() });
    if let Some(map) = value.as_object_mut() {
        if let Phase::Exited(_, exit, _) = &replica.phase {
            if let Some(code) = exit.code {
                map.insert("exit_code".into(), code.into());
            }
            if let Some(oom) = exit.oom {
                map.insert("oom_killed".into(), oom.into());
            }
        }
        if !replica.gpus.is_empty() {
            let gpus: Vec<String> = replica.gpus.iter().map(ToString::to_string).collect();
            map.insert("gpus".into(), gpus.into());
        }
    }
    value
}
