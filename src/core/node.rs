//! The node itself: its mode, its dependencies, and the state that follows from both.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use log::Level;
use serde_json::{Map, Value, json};

use super::cx::Cx;
use super::inventory::{Check, GpuUse, Storage, Usage};
use super::link_api::LinkId;
use super::poll::Poll;
use super::replica::{Code, Refusal};
use super::timers::Timer;
use super::{Action, Sample};
use crate::types::word_enum;

/// The dependencies, by their names on the wire; one that has not answered yet is reported as such.
const DEPENDENCIES: [&str; 7] = ["containerd", "nerdctl", "cni", "kata-runtime", "virtiofsd", "kvm", "vfio"];
/// The check that knows the microVMs.
const MICROVM_CHECK: &str = "kata-runtime";
/// How soon the dependencies are checked again when one that is required does not work.
const CHECKS_RETRY: Duration = Duration::from_secs(30);

/// With fewer free bytes on the data path no container can be started.
const FULL_BELOW: u64 = 16 << 20;

word_enum! {
    /// What the operator or the control plane wants of the node: the word in the state file and on the wire.
    #[derive(Default)]
    pub enum Mode {
        #[default]
        Online = "online",
        /// Finish what was accepted, take no new deploys.
        Draining = "draining",
        /// Take no new deploys.
        Maintenance = "maintenance",
    }
}

/// The node: mode, checks, usage.
#[derive(Debug)]
pub(crate) struct Node {
    mode: Mode,
    checks: BTreeMap<&'static str, Check>,
    checking: Poll,
    usage: Option<Usage>,
    reported: Option<Reported>,
}

/// The state that was last sent, why, and on which connection.
#[derive(Debug)]
struct Reported {
    link: LinkId,
    state: &'static str,
    reason: String,
}

impl Node {
    pub(crate) fn new(now: Instant) -> Self {
        let mut checking = Poll::new(None);
        checking.want(now);
        Self { mode: Mode::Online, checks: BTreeMap::new(), checking, usage: None, reported: None }
    }

    pub(crate) fn mode(&self) -> Mode {
        self.mode
    }

    pub(crate) fn takes_deploys(&self) -> bool {
        self.mode == Mode::Online
    }

    /// Changes what is wanted of the node. Says whether that is a change.
    pub(crate) fn set_mode(&mut self, mode: Mode) -> bool {
        // A node in maintenance is drained already.
        let change = self.mode != mode && !(mode == Mode::Draining && self.mode == Mode::Maintenance);
        if change {
            self.mode = mode;
        }
        change
    }

    /// Everything that was accepted is done: a node that drains is drained. Says whether it was draining.
    pub(crate) fn on_idle(&mut self) -> bool {
        self.mode == Mode::Draining && self.set_mode(Mode::Maintenance)
    }

    pub(crate) fn timers(&self) -> [(Timer, Option<Instant>); 1] {
        [(Timer::Checks, self.checking.timer())]
    }

    pub(crate) fn on_timer(&mut self, cx: &mut Cx) {
        if self.checking.on_timer(cx.now) {
            self.order_checks(cx);
        }
    }

    /// The dependencies are to be checked at once.
    pub(crate) fn check_now(&mut self, cx: &mut Cx) {
        if self.checking.start(cx.now) {
            self.order_checks(cx);
        }
    }

    /// The dependencies are to be checked at this time at the latest.
    pub(crate) fn want_checks(&mut self, at: Instant) {
        self.checking.want(at);
    }

    fn order_checks(&mut self, cx: &mut Cx) {
        cx.act(Action::Sample(Sample::Checks));
        self.checking.want(cx.now + cx.settings.recheck);
    }

    /// A dependency was checked. Says whether something has changed that `system_info` tells.
    pub(crate) fn on_check(&mut self, check: Check) -> bool {
        let (ok, version) = (check.ok, check.version.clone());
        let before = self.checks.insert(check.name, check);
        self.is_checked() && before.is_none_or(|old| old.ok != ok || old.version != version)
    }

    pub(crate) fn on_checks_done(&mut self, now: Instant) {
        self.checking.done(now, ());
        if self.checks.values().any(|check| check.required && !check.ok) {
            self.checking.want(now + CHECKS_RETRY);
        }
    }

    /// Whether all dependencies have been checked once.
    fn is_checked(&self) -> bool {
        self.checking.last().is_some()
    }

    /// Whether what is known of the dependencies is complete and not about to change.
    pub(crate) fn checks_are_complete(&self) -> bool {
        self.is_checked() && !self.checking.is_under_way()
    }

    pub(crate) fn on_usage(&mut self, usage: Usage) {
        self.usage = Some(usage);
    }

    /// The data path's use, in percent.
    pub(crate) fn usage_percent(&self) -> Option<u8> {
        Some(self.usage.as_ref()?.storage.as_ref()?.usage_percent)
    }

    /// Memory in use and in all, in GiB.
    pub(crate) fn memory_gib(&self) -> Option<(u32, u32)> {
        self.usage.as_ref()?.memory_gib
    }

    /// The use of the GPUs that the host can see.
    pub(crate) fn gpus_in_use(&self) -> &[GpuUse] {
        self.usage.as_ref().map_or(&[], |usage| &usage.gpus)
    }

    /// Why no image may be pulled: fewer than `least` bytes are free.
    pub(crate) fn too_little_space(&self, least: u64) -> Option<Refusal> {
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

    /// Nothing can be written to the data path any more.
    fn full_disk(&self) -> Option<String> {
        let usage = self.usage.as_ref()?;
        let path = usage.storage.as_ref().map_or("the data path", |storage| storage.path.as_str());
        (usage.free_bytes? < FULL_BELOW)
            .then(|| format!("no space is left on {path}: remove images or other files there"))
    }

    /// The node's state and what is wrong with it. `troubles`: what the other machines say is.
    pub(crate) fn state(&self, troubles: impl Iterator<Item = String>) -> (&'static str, String) {
        let broken = self.checks.values().filter(|check| check.required && !check.ok);
        let mut reasons: Vec<String> =
            broken.map(|check| format!("{}: {}", check.name, check.detail)).collect();
        if !self.is_checked() {
            reasons.push("the dependencies have not been checked yet".to_owned());
        }
        reasons.extend(self.full_disk());
        reasons.extend(troubles);
        let state = match self.mode {
            Mode::Maintenance | Mode::Draining => self.mode.as_str(),
            Mode::Online if reasons.is_empty() => "online",
            Mode::Online => "degraded",
        };
        (state, reasons.join("; "))
    }

    /// Sends the state unless it was the last one sent on this connection, and logs it unless it was the last one logged.
    pub(crate) fn report_state(&mut self, cx: &mut Cx, state: &'static str, reason: String) {
        let Some(link) = cx.peer else { return };
        let reported = self.reported.as_ref();
        let known = reported.is_some_and(|last| (last.state, &last.reason) == (state, &reason));
        if known && reported.is_some_and(|last| last.link == link) {
            return;
        }
        cx.send("node_state", json!({ "state": state, "reason": reason }));
        if !known {
            let level = if state == "degraded" { Level::Warn } else { Level::Info };
            let colon = if reason.is_empty() { "" } else { ": " };
            cx.act(Action::Log(level, format!("node state: {state}{colon}{reason}")));
        }
        self.reported = Some(Reported { link, state, reason });
    }

    /// The data path's file system, as messages show it.
    pub(crate) fn storage(&self) -> Value {
        let storage = self.usage.as_ref().and_then(|usage| usage.storage.as_ref());
        storage.map_or(Value::Null, Storage::described)
    }

    /// Whether containers run in microVMs: as the check of their runtime found, before that as the runtime's name says.
    pub(crate) fn has_microvms(&self, runtime: &str) -> bool {
        self.checks.get(MICROVM_CHECK).map_or(runtime.contains("kata"), |check| check.microvm.is_some())
    }

    /// MiB that each replica takes besides its memory limit, as far as it is known.
    pub(crate) fn overhead_mib(&self) -> u64 {
        self.checks.get(MICROVM_CHECK).and_then(|check| check.microvm?.overhead_mib).unwrap_or(0)
    }

    /// The dependencies, as `system_info` shows them.
    pub(crate) fn dependencies(&self) -> Value {
        let mut checks = Map::new();
        for name in DEPENDENCIES {
            let value = match self.checks.get(name) {
                None => json!({ "installed": false, "ok": false, "detail": "has not answered yet" }),
                Some(check) => check.described(),
            };
            checks.insert(name.to_owned(), value);
        }
        let ready = self.is_checked() && self.checks.values().all(|check| check.ok || !check.required);
        json!({ "ready": ready, "checks": checks })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn containerd(ok: bool) -> Check {
        Check {
            name: "containerd",
            purpose: "Container runtime",
            required: true,
            installed: true,
            ok,
            version: None,
            modules: None,
            microvm: None,
            detail: "does not answer".into(),
        }
    }

    #[test]
    fn a_required_dependency_that_fails_degrades_the_node_and_is_checked_again_soon() {
        let mut cx = Cx::example();
        let mut node = Node::new(cx.now);
        assert_eq!(node.state([].into_iter()).0, "degraded", "nothing was checked");
        node.on_timer(&mut cx);
        assert!(!node.on_check(containerd(false)), "the first round is no change");
        node.on_checks_done(cx.now);
        assert_eq!(node.state([].into_iter()), ("degraded", "containerd: does not answer".into()));
        assert_eq!(node.timers()[0].1, Some(cx.now + CHECKS_RETRY));
        assert!(node.on_check(containerd(true)));
        assert_eq!(node.state([].into_iter()), ("online", String::new()));
        assert_eq!(node.state(["x".to_owned(), "y".to_owned()].into_iter()), ("degraded", "x; y".into()));
    }

    #[test]
    fn a_node_that_drains_is_in_maintenance_once_it_is_idle() {
        let cx = Cx::example();
        let mut node = Node::new(cx.now);
        assert!(!node.on_idle());
        assert!(node.set_mode(Mode::Draining) && !node.takes_deploys());
        assert!(node.on_idle());
        assert!(!node.set_mode(Mode::Draining), "it is drained");
        assert_eq!(node.mode(), Mode::Maintenance);
        for mode in [Mode::Online, Mode::Draining, Mode::Maintenance] {
            assert_eq!(mode.as_str().parse(), Ok(mode));
        }
    }

    #[test]
    fn a_state_is_sent_once_to_a_peer_that_listens() {
        let mut cx = Cx::example();
        let mut node = Node::new(cx.now);
        node.report_state(&mut cx, "online", String::new());
        assert!(cx.actions.is_empty(), "nobody listens");
        cx.peer = Some(super::super::link_api::LinkId(1));
        node.report_state(&mut cx, "online", String::new());
        node.report_state(&mut cx, "online", String::new());
        assert_eq!(cx.actions.len(), 2, "a message and a line in the log");
    }
}
