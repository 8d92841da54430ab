//! The record: what the engine cannot know, as one JSON document. Accepted commands and their outcome until it has
//! arrived, what was wanted of the node, and a last-known table as a hint. It holds no secret: no variables, no
//! credentials, so a deploy that was cut short cannot be taken up again, only told as interrupted.

use std::time::{Duration, Instant};

use serde_json::{Map, Value, json};

use super::Core;
use super::commands::{DEPLOY_TIMEOUT, STOP_MARGIN, STOP_TIMEOUT};
use super::node::Mode;
use super::outbox::{Entry, Gate, Kind};
use super::persistence::STATE_VERSION;
use super::replica::{Code, Deploy, Phase, Refusal, Replica, Step, Stop};
use crate::types::{ContainerId, PciAddress, ReplicaId, RequestId};

impl Core {
    /// The record of what stands now.
    pub(super) fn record(&self) -> String {
        let replicas: Map<String, Value> =
            self.replicas.values().map(|r| (r.id.to_string(), replica(r))).collect();
        let result = |entry: &Entry| {
            json!({
                "type": entry.kind.as_str(),
                "replica": entry.replica.as_str(),
                "request": entry.request.as_ref().map(RequestId::as_str),
                "spec": entry.spec,
                "payload": entry.payload,
            })
        };
        let results: Vec<Value> = self.outbox.iter().filter(|entry| entry.recorded).map(result).collect();
        let held: Vec<String> = self.gpus.held_back().map(|gpu| gpu.to_string()).collect();
        json!({
            "version": STATE_VERSION,
            "mode": self.node.mode().as_str(),
            "gpus_held_back": held,
            "replicas": replicas,
            "results": results,
        })
        .to_string()
    }

    /// Takes up the record of an earlier process. What in it cannot be read is left out and named.
    pub(super) fn restore(&mut self, now: Instant, text: &str) -> Vec<String> {
        let mut trouble = Vec::new();
        let Ok(Value::Object(record)) = serde_json::from_str(text) else {
            return vec!["the record is not a JSON object: starting without it".to_owned()];
        };
        if record.get("version").and_then(Value::as_u64) != Some(STATE_VERSION) {
            trouble.push(
                "the record has another version: what it has in common with this one is used".to_owned(),
            );
        }
        if let Some(mode) = record.get("mode").and_then(Value::as_str).and_then(Mode::read) {
            self.set_mode(mode);
        }
        for gpu in texts(record.get("gpus_held_back")) {
            match PciAddress::parse(&gpu) {
                Ok(gpu) => _ = self.gpus.hold_back(gpu, true),
                Err(invalid) => trouble.push(format!("a GPU held back: {invalid}")),
            }
        }
        for value in record.get("results").and_then(Value::as_array).into_iter().flatten() {
            match read_result(value) {
                Some(entry) => {
                    self.remember(&entry);
                    self.outbox.push(entry);
                }
                None => trouble.push("a result in the record cannot be read".to_owned()),
            }
        }
        for (id, value) in record.get("replicas").and_then(Value::as_object).into_iter().flatten() {
            match ReplicaId::new(id) {
                Ok(id) => self.restore_replica(now, id, value),
                Err(invalid) => trouble.push(format!("a replica in the record: {invalid}")),
            }
        }
        trouble
    }

    fn restore_replica(&mut self, now: Instant, id: ReplicaId, value: &Value) {
        let text = |name: &str| value.get(name).and_then(Value::as_str).unwrap_or_default().to_owned();
        let gate = Gate { seq: 0, until: now };
        let mut replica = Replica::bare(id.clone(), Phase::Unverified, 0);
        replica.hash = text("spec");
        replica.deploy_id = text("deploy");
        replica.gpus =
            texts(value.get("gpus")).iter().filter_map(|gpu| PciAddress::parse(gpu).ok()).collect();
        replica.stop_timeout =
            value.get("stop_timeout_ms").and_then(Value::as_u64).map(Duration::from_millis);
        replica.exit_told = value.get("exited").and_then(Value::as_bool) == Some(true);
        replica.known = value.get("ran").and_then(Value::as_bool) == Some(true);
        replica.doomed = value.get("doomed").and_then(Value::as_bool) == Some(true);
        if let Some(pending) = value.get("pending") {
            let refusal = pending.get("code").and_then(Value::as_str).and_then(Code::read).map(|code| {
                let error = pending.get("error").and_then(Value::as_str).unwrap_or_default();
                (Refusal::new(code, error), now)
            });
            let (id, hash) = (replica.deploy_id.clone(), replica.hash.clone());
            let deploy = pending_before(now, id, hash, requests(pending.get("requests")), gate);
            replica.deploy = Some(Deploy { refusal, ..deploy });
        }
        if let Some(stop) = value.get("stop") {
            let timeout = stop.get("timeout_ms").and_then(Value::as_u64).map(Duration::from_millis);
            let timeout = timeout.unwrap_or(STOP_TIMEOUT);
            replica.stop = Some(Stop {
                requests: requests(stop.get("requests")),
                timeout,
                deadline: now + timeout + STOP_MARGIN,
                gate,
            });
        }
        if replica.doomed && replica.deploy.as_ref().is_none_or(|deploy| deploy.refusal.is_some()) {
            replica.phase = match (&replica.stop, ContainerId::new(&text("container"))) {
                // A stop that was accepted and not done: the container is still given its time.
                (Some(_), Ok(container)) => Phase::Stopping(container, None, now),
                (Some(_) | None, _) => Phase::Clearing(Step::Look(0)),
            };
        }
        self.gpus.adopt(&id, &replica.gpus);
        // A deploy that waited behind it may have been begun since: the first listing shows that.
        replica.next = value.get("next").map(|next| {
            let text = |name: &str| next.get(name).and_then(Value::as_str).unwrap_or_default().to_owned();
            let next =
                pending_before(now, text("deploy"), text("spec"), requests(next.get("requests")), gate);
            Deploy { deadline: now + DEPLOY_TIMEOUT, ..next }
        });
        self.replicas.insert(id, replica);
    }
}

/// A deploy that an earlier process accepted.
fn pending_before(
    now: Instant,
    id: String,
    hash: String,
    requests: Vec<Option<RequestId>>,
    gate: Gate,
) -> Deploy {
    Deploy {
        id,
        requests,
        hash,
        work: None,
        accepted: now,
        deadline: now,
        gate,
        pulled: false,
        ghosts: 0,
        refusal: None,
    }
}

fn replica(replica: &Replica) -> Value {
    let gpus: Vec<String> = replica.gpus.iter().map(ToString::to_string).collect();
    let mut value = json!({ "deploy": replica.deploy_id, "spec": replica.hash });
    let Some(map) = value.as_object_mut() else { return value };
    if !gpus.is_empty() {
        map.insert("gpus".into(), gpus.into());
    }
    if let Some(timeout) = replica.stop_timeout {
        map.insert("stop_timeout_ms".into(), millis(timeout));
    }
    if replica.doomed {
        map.insert("doomed".into(), true.into());
    }
    match &replica.phase {
        Phase::Running(..) => _ = map.insert("ran".into(), true.into()),
        Phase::Stopping(container, ..) => _ = map.insert("container".into(), container.as_str().into()),
        Phase::Unverified if replica.known => _ = map.insert("ran".into(), true.into()),
        Phase::Unverified
        | Phase::Orphaned(_)
        | Phase::Queued
        | Phase::Pulling(_)
        | Phase::Starting(_)
        | Phase::Naming(..)
        | Phase::Exited(..)
        | Phase::Clearing(_) => {}
    }
    if replica.exit_told {
        map.insert("exited".into(), true.into());
    }
    if let Some(deploy) = &replica.deploy {
        let mut pending = json!({ "requests": request_list(&deploy.requests) });
        if let (Some((refusal, _)), Some(map)) = (&deploy.refusal, pending.as_object_mut()) {
            map.insert("code".into(), refusal.code.as_str().into());
            map.insert("error".into(), refusal.error.as_str().into());
        }
        map.insert("pending".into(), pending);
    }
    if let Some(stop) = &replica.stop {
        let stop = json!({ "requests": request_list(&stop.requests), "timeout_ms": millis(stop.timeout) });
        map.insert("stop".into(), stop);
    }
    if let Some(next) = &replica.next {
        let requests = request_list(&next.requests);
        map.insert("next".into(), json!({ "deploy": next.id, "spec": next.hash, "requests": requests }));
    }
    value
}

fn millis(time: Duration) -> Value {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX).into()
}

fn request_list(requests: &[Option<RequestId>]) -> Vec<Value> {
    requests.iter().map(|request| request.as_ref().map_or(Value::Null, |id| id.as_str().into())).collect()
}

fn requests(value: Option<&Value>) -> Vec<Option<RequestId>> {
    let read = |value: &Value| value.as_str().and_then(|text| RequestId::new(text).ok());
    value.and_then(Value::as_array).into_iter().flatten().map(read).collect()
}

fn texts(value: Option<&Value>) -> Vec<String> {
    let read = |value: &Value| value.as_str().map(str::to_owned);
    value.and_then(Value::as_array).into_iter().flatten().filter_map(read).collect()
}

fn read_result(value: &Value) -> Option<Entry> {
    let kind = Kind::read(value.get("type")?.as_str()?)?;
    let replica = ReplicaId::new(value.get("replica")?.as_str()?).ok()?;
    let request = value.get("request").and_then(Value::as_str).and_then(|text| RequestId::new(text).ok());
    let payload = value.get("payload")?.as_object()?.clone();
    let spec = value.get("spec").and_then(Value::as_str).unwrap_or_default();
    Some(Entry::new(kind, replica, request, payload).about(spec))
}
