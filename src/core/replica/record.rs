//! A replica in the state file: what the engine cannot know of it, as JSON. It holds no secret: no variables and no
//! credentials, so a deploy that was cut short cannot be taken up again, only reported as interrupted.

use std::time::{Duration, Instant};

use serde_json::{Map, Value, json};

use super::outcome::{Code, Refusal};
use super::state::{Deploy, Desired, Removal, RemovalStep, Replica, ReplicaState, Reported, Stop, StopCall};
use super::{STOP_TIMEOUT, default_deploy_timeout};
use crate::core::persistence::DurableBarrier;
use crate::core::results::millis;
use crate::types::{ContainerId, PciAddress, ReplicaId, RequestId};

impl Replica {
    /// As it stands in the state file.
    pub(crate) fn to_record(&self) -> Value {
        let mut map = Map::new();
        let mut put = |name: &str, value: Value| _ = map.insert(name.to_owned(), value);
        put("deploy", self.deploy_id.as_str().into());
        put("spec", self.spec_hash.as_str().into());
        if !self.gpus.is_empty() {
            let gpus: Vec<String> = self.gpus.iter().map(ToString::to_string).collect();
            put("gpus", gpus.into());
        }
        if !self.ports.is_empty() {
            let ports: Vec<String> = self.ports.iter().map(ToString::to_string).collect();
            put("ports", ports.into());
        }
        if let Some(timeout) = self.stop_timeout {
            put("stop_timeout_ms", millis(timeout));
        }
        if self.desired == Desired::Absent {
            put("doomed", true.into());
        }
        match self.reported {
            Reported::Nothing => {}
            Reported::Running => put("ran", true.into()),
            Reported::Exited => put("exited", true.into()),
            Reported::Failed => put("failed", true.into()),
        }
        if self.memory_mib > 0 {
            put("memory_mb", self.memory_mib.into());
        }
        if let ReplicaState::Stopping(container, _) = &self.state {
            put("container", container.as_str().into());
        }
        if let Some(deploy) = &self.deploy {
            let mut pending = json!({ "requests": written(&deploy.requests) });
            if let (Some((refusal, _)), Some(map)) = (&deploy.failure, pending.as_object_mut()) {
                map.insert("code".into(), refusal.code.as_str().into());
                map.insert("error".into(), refusal.error.as_str().into());
            }
            let private = deploy.work.as_ref().filter(|work| work.auth.is_some());
            if let (Some(work), Some(map)) = (private, pending.as_object_mut()) {
                map.insert("private".into(), work.spec.image.repository().into());
            }
            put("pending", pending);
        }
        if let Some(stop) = &self.stop {
            let requests = written(&stop.requests);
            put("stop", json!({ "requests": requests, "timeout_ms": millis(stop.timeout) }));
        }
        if let Some(next) = &self.successor {
            let requests = written(&next.requests);
            put("next", json!({ "deploy": next.id, "spec": next.spec_hash, "requests": requests }));
        }
        Value::Object(map)
    }

    /// A replica of an earlier process. What cannot be read is as if it were not there.
    pub(crate) fn from_record(now: Instant, id: ReplicaId, record: &Value) -> Self {
        let yes = |name: &str| record.get(name).and_then(Value::as_bool) == Some(true);
        let mut replica = Self::bare(id, ReplicaState::Unverified(None), 0);
        replica.spec_hash = text(record, "spec");
        replica.deploy_id = text(record, "deploy");
        replica.gpus = texts(record.get("gpus")).filter_map(|gpu| PciAddress::parse(gpu).ok()).collect();
        replica.ports = texts(record.get("ports")).filter_map(|port| port.parse().ok()).collect();
        replica.stop_timeout = duration(record, "stop_timeout_ms");
        replica.memory_mib = record.get("memory_mb").and_then(Value::as_u64).unwrap_or(0);
        let reports =
            [("failed", Reported::Failed), ("exited", Reported::Exited), ("ran", Reported::Running)];
        let reported = reports.into_iter().find(|(name, _)| yes(name));
        replica.reported = reported.map_or(Reported::Nothing, |(_, reported)| reported);
        if let Some(pending) = record.get("pending") {
            let (id, spec_hash) = (replica.deploy_id.clone(), replica.spec_hash.clone());
            let mut deploy = Deploy::recovered(now, now, id, spec_hash, requests(pending));
            deploy.failure = text(pending, "code").parse::<Code>().ok().map(|code| {
                let refusal = Refusal::new(code, text(pending, "error"));
                (refusal, now)
            });
            replica.deploy = Some(deploy);
        }
        if let Some(stop) = record.get("stop") {
            let timeout = duration(stop, "timeout_ms").unwrap_or(STOP_TIMEOUT);
            let requests = requests(stop);
            replica.stop = Some(Stop { requests, ..Stop::new(now, timeout, DurableBarrier::OPEN) });
        }
        if yes("doomed") || replica.stop.is_some() || replica.failure().is_some() {
            replica.desired = Desired::Absent;
        }
        if replica.desired == Desired::Absent
            && replica.deploy.as_ref().is_none_or(|deploy| deploy.failure.is_some())
        {
            replica.state =
                match (&replica.stop, &replica.deploy, ContainerId::new(&text(record, "container"))) {
                    // A stop that was accepted and not done: the container is still given its time.
                    (Some(_), None, Ok(container)) => {
                        ReplicaState::Stopping(container, StopCall::AwaitingRecord(DurableBarrier::OPEN))
                    }
                    (Some(_) | None, _, _) => {
                        ReplicaState::Removing(Removal { step: RemovalStep::AwaitingListing(0), attempts: 0 })
                    }
                };
        }
        // A deploy that waited behind it may have been begun since: the first listing shows that.
        replica.successor = record.get("next").map(|next| {
            let (id, spec_hash) = (text(next, "deploy"), text(next, "spec"));
            Deploy::recovered(now, now + default_deploy_timeout(false), id, spec_hash, requests(next))
        });
        replica
    }
}

fn duration(record: &Value, name: &str) -> Option<Duration> {
    record.get(name).and_then(Value::as_u64).map(Duration::from_millis)
}

fn text(record: &Value, name: &str) -> String {
    record.get(name).and_then(Value::as_str).unwrap_or_default().to_owned()
}

/// The strings of an array.
fn texts(value: Option<&Value>) -> impl Iterator<Item = &str> {
    value.and_then(Value::as_array).into_iter().flatten().filter_map(Value::as_str)
}

fn written(requests: &[Option<RequestId>]) -> Vec<Value> {
    requests.iter().map(|request| request.as_ref().map_or(Value::Null, |id| id.as_str().into())).collect()
}

fn requests(record: &Value) -> Vec<Option<RequestId>> {
    let read = |value: &Value| value.as_str().and_then(|text| RequestId::new(text).ok());
    record.get("requests").and_then(Value::as_array).into_iter().flatten().map(read).collect()
}
