//! Watches what passes between the edges and the core, and remembers what a person asks about later: since when the node is
//! connected, how often it was not, and the history of its states. It decides nothing, and neither reads a clock nor writes
//! a file itself.

use std::collections::BTreeMap;
use std::time::Instant;

use serde_json::{Value, json};

use crate::core::link_api::{DownReason, LinkCommand, LinkEvent};
use crate::core::operator::Request;
use crate::core::{Action, Event};
use crate::store::history::{Cause, Entry};

/// How every heartbeat ends, as the protocol writes it: keys in order.
const HEARTBEAT_END: &str = "\"type\":\"heartbeat\"}";
const DEPLOY_RESULT_END: &str = "\"type\":\"deploy_result\"}";
/// Results remembered so that one that is sent again is recorded once.
const RESULTS_MAX: usize = 256;

#[derive(Debug)]
pub(super) struct Observer {
    url: String,
    started: Instant,
    connected_since: Option<Instant>,
    connections: u64,
    last_heartbeat: Option<Instant>,
    /// Why the connection was lost last, or why there is none yet.
    offline_cause: Cause,
    /// Who changed the mode last.
    mode_cause: Cause,
    recorded_state: Option<(String, String)>,
    recorded_gpus: BTreeMap<String, String>,
    results: Vec<String>,
    deploys: BTreeMap<String, u64>,
    entries: Vec<Entry>,
    /// The agent was told to stop: what follows is not recorded as the node's state.
    ending: bool,
}

impl Observer {
    pub(super) fn new(now: Instant, url: String) -> Self {
        Self {
            url,
            started: now,
            connected_since: None,
            connections: 0,
            last_heartbeat: None,
            offline_cause: Cause::Agent,
            mode_cause: Cause::Operator,
            recorded_state: None,
            recorded_gpus: BTreeMap::new(),
            results: Vec::new(),
            deploys: BTreeMap::new(),
            entries: Vec::new(),
            ending: false,
        }
    }

    /// Before the core handles `event`.
    pub(super) fn event(&mut self, now: Instant, event: &Event) {
        match event {
            Event::Link(_, LinkEvent::Up) => {
                self.connected_since = Some(now);
                self.connections += 1;
            }
            Event::Link(_, LinkEvent::Down(down)) => {
                self.connected_since = None;
                self.offline_cause = match down.why {
                    DownReason::NoConnection | DownReason::Broken => Cause::Network,
                    DownReason::Refused
                    | DownReason::Http(_)
                    | DownReason::Closed(_)
                    | DownReason::Violation => Cause::ControlPlane,
                };
            }
            Event::Link(_, LinkEvent::Text(text)) if sets_mode(text) => self.mode_cause = Cause::ControlPlane,
            Event::Control(_, Request::Drain | Request::Maintenance | Request::Resume) => {
                self.mode_cause = Cause::Operator;
            }
            Event::Terminate if !self.ending => {
                self.ending = true;
                self.entries.push(Entry::State {
                    state: "offline".to_owned(),
                    cause: Cause::Operator,
                    reason: "the agent was told to stop".to_owned(),
                });
            }
            _ => {}
        }
    }

    /// Before `action` is carried out.
    pub(super) fn action(&mut self, now: Instant, action: &Action) {
        match action {
            Action::Link(LinkCommand::Send(_, text)) if text.ends_with(HEARTBEAT_END) => {
                self.last_heartbeat = Some(now);
            }
            Action::Link(LinkCommand::Send(_, text)) if text.ends_with(DEPLOY_RESULT_END) => {
                self.deploy_result(text);
            }
            Action::Link(LinkCommand::Abandon(_)) if self.connected_since.is_some() => {
                self.connected_since = None;
                self.offline_cause = Cause::Network;
            }
            _ => {}
        }
    }

    fn deploy_result(&mut self, text: &str) {
        if self.results.iter().any(|known| known == text) {
            return;
        }
        if self.results.len() >= RESULTS_MAX {
            self.results.remove(0);
        }
        self.results.push(text.to_owned());
        let message: Value = serde_json::from_str(text).unwrap_or_default();
        let payload = &message["payload"];
        let field = |name: &str| payload[name].as_str().unwrap_or_default().to_owned();
        let outcome = if field("status") == "running" { "running".to_owned() } else { field("code") };
        *self.deploys.entry(outcome.clone()).or_default() += 1;
        self.entries.push(Entry::Deploy { replica: field("replica_id"), outcome, reason: field("error") });
    }

    /// Adds what it knows to the core's status.
    pub(super) fn extend(&self, now: Instant, status: &mut Value) {
        let ago = |at: Instant| now.saturating_duration_since(at).as_secs();
        let Some(map) = status.as_object_mut() else { return };
        // An answer that refuses a request is not a status.
        if !map.contains_key("state") {
            return;
        }
        map.insert("url".into(), self.url.as_str().into());
        map.insert("uptime_s".into(), ago(self.started).into());
        map.insert("connected_s".into(), json!(self.connected_since.map(ago)));
        map.insert("last_heartbeat_s".into(), json!(self.last_heartbeat.map(ago)));
        map.insert("reconnects".into(), self.connections.saturating_sub(1).into());
        map.insert("deploys".into(), json!(self.deploys));
    }

    /// Records what changed in the core's status since the last call.
    pub(super) fn compare(&mut self, status: &Value) {
        if self.ending {
            return;
        }
        let text = |name: &str| status[name].as_str().unwrap_or_default().to_owned();
        let (state, reason, cause) = if self.connected_since.is_some() {
            let state = text("state");
            let cause = match state.as_str() {
                "draining" | "maintenance" => self.mode_cause,
                "degraded" if is_about_engine(&text("reason")) => Cause::Engine,
                "degraded" => Cause::Host,
                _ => Cause::None,
            };
            (state, text("reason"), cause)
        } else {
            ("offline".to_owned(), text("link_trouble"), self.offline_cause)
        };
        let now = (state.clone(), reason.clone());
        if self.recorded_state.as_ref() != Some(&now) {
            self.recorded_state = Some(now);
            self.entries.push(Entry::State { state, cause, reason });
        }
        for gpu in status["gpus"].as_array().into_iter().flatten() {
            let (address, health) = (&gpu["pci_address"], &gpu["health"]);
            let (Some(address), Some(health)) = (address.as_str(), health.as_str()) else { continue };
            let before = self.recorded_gpus.insert(address.to_owned(), health.to_owned());
            if before.as_deref().unwrap_or("ok") != health && !(before.is_none() && health == "unknown") {
                let reason = gpu["reason"].as_str().unwrap_or_default().to_owned();
                self.entries.push(Entry::Gpu {
                    address: address.to_owned(),
                    health: health.to_owned(),
                    reason,
                });
            }
        }
    }

    pub(super) fn take_entries(&mut self) -> Vec<Entry> {
        std::mem::take(&mut self.entries)
    }
}

/// Whether a message of the control plane may be a command that changes the mode.
fn sets_mode(text: &str) -> bool {
    ["\"drain\"", "\"maintenance\"", "\"resume\""].iter().any(|kind| text.contains(kind))
}

/// Whether a reason, as the core words it, is the container engine's.
fn is_about_engine(reason: &str) -> bool {
    ["containerd", "nerdctl", "container engine"].iter().any(|word| reason.contains(word))
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::core::link_api::{Down, LinkId};
    use crate::core::operator::ControlId;
    use crate::protocol;

    const LINK: LinkId = LinkId(1);

    fn lost(why: DownReason) -> Event {
        Event::Link(LINK, LinkEvent::Down(Down { why, retry_after: None, detail: "gone".into() }))
    }

    fn send(kind: &str, payload: Value) -> Action {
        Action::Link(LinkCommand::Send(LINK, protocol::write(kind, payload)))
    }

    #[test]
    fn status_says_since_when() {
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        let mut observer = Observer::new(start, "wss://cp/agent".into());
        let shown = |observer: &Observer, seconds| {
            let mut status = json!({"state": "online"});
            observer.extend(at(seconds), &mut status);
            [&status["connected_s"], &status["last_heartbeat_s"], &status["reconnects"]].map(Value::clone)
        };
        assert_eq!(shown(&observer, 1), [Value::Null, Value::Null, json!(0)]);
        observer.event(at(2), &Event::Link(LINK, LinkEvent::Up));
        observer.action(at(3), &send("heartbeat", json!({})));
        assert_eq!(shown(&observer, 10), [json!(8), json!(7), json!(0)]);
        observer.event(at(11), &lost(DownReason::Broken));
        observer.event(at(12), &Event::Link(LINK, LinkEvent::Up));
        assert_eq!(shown(&observer, 13), [json!(1), json!(10), json!(1)]);
        let mut refusal = json!({"error": "x"});
        observer.extend(at(14), &mut refusal);
        assert_eq!(refusal, json!({"error": "x"}));
    }

    #[test]
    fn changes_are_recorded_once_and_with_their_cause() {
        let now = Instant::now();
        let mut observer = Observer::new(now, String::new());
        let gpus = |health: &str| json!([{"pci_address": "0000:41:00.0", "health": health, "reason": "off the bus"}]);
        let seen = |observer: &mut Observer, status: Value| {
            observer.compare(&status);
            observer.compare(&status);
            observer.take_entries()
        };
        let state = |state: &str, cause, reason: &str| Entry::State {
            state: state.into(),
            cause,
            reason: reason.into(),
        };
        assert_eq!(
            seen(&mut observer, json!({"state": "online", "link_trouble": null})),
            [state("offline", Cause::Agent, "")]
        );
        observer.event(now, &Event::Link(LINK, LinkEvent::Up));
        let online = json!({"state": "online", "reason": "", "gpus": gpus("ok")});
        assert_eq!(seen(&mut observer, online), [state("online", Cause::None, "")]);
        let degraded = json!({"state": "degraded", "reason": "containerd: gone", "gpus": gpus("failed")});
        let gpu = Entry::Gpu {
            address: "0000:41:00.0".into(),
            health: "failed".into(),
            reason: "off the bus".into(),
        };
        assert_eq!(
            seen(&mut observer, degraded),
            [state("degraded", Cause::Engine, "containerd: gone"), gpu]
        );
        observer.event(now, &lost(DownReason::Http(503)));
        let offline = json!({"state": "degraded", "link_trouble": "HTTP 503", "gpus": gpus("failed")});
        assert_eq!(seen(&mut observer, offline), [state("offline", Cause::ControlPlane, "HTTP 503")]);
        observer.event(now, &Event::Link(LINK, LinkEvent::Up));
        observer.event(now, &Event::Control(ControlId(1), Request::Maintenance));
        let maintenance = json!({"state": "maintenance", "reason": ""});
        assert_eq!(seen(&mut observer, maintenance), [state("maintenance", Cause::Operator, "")]);
        observer.event(now, &Event::Terminate);
        observer.event(now, &lost(DownReason::Closed(1000)));
        let ended = [state("offline", Cause::Operator, "the agent was told to stop")];
        assert_eq!(seen(&mut observer, json!({"state": "online"})), ended);
    }

    #[test]
    fn a_result_that_is_sent_again_counts_once() {
        let now = Instant::now();
        let mut observer = Observer::new(now, String::new());
        let failed = || {
            send(
                "deploy_result",
                json!({"replica_id": "a", "status": "failed", "code": "no_gpu", "error": "e"}),
            )
        };
        observer.action(now, &failed());
        observer.action(now, &failed());
        observer.action(now, &send("deploy_result", json!({"replica_id": "b", "status": "running"})));
        let outcomes: Vec<_> = observer.take_entries();
        assert_eq!(outcomes.len(), 2);
        let mut status = json!({"state": "online"});
        observer.extend(now, &mut status);
        assert_eq!(status["deploys"], json!({"no_gpu": 1, "running": 1}));
    }
}
