//! Telling: results that are kept until they arrive, refusals, and news that is not kept.

use std::time::{Duration, Instant};

use log::Level;
use serde_json::{Map, Value};

use super::job::Failure;
use super::link_api::LinkCommand;
use super::outbox::{Entry, Kind};
use super::replica::{Code, Deploy, Exit, Phase, Refusal, Replica, same_spec};
use super::{Action, Core};
use crate::protocol::{self, Command};
use crate::types::{ReplicaId, RequestId};

/// How many answers are remembered for their request IDs.
const ANSWERED_MAX: usize = 1024;
/// The most results and owed outcomes that are kept; past it new deploys are `busy`.
pub const OWED_MAX: usize = 1024;
impl Core {
    pub(super) fn tell_running(
        &mut self,
        now: Instant,
        id: &ReplicaId,
        requests: Vec<Option<RequestId>>,
        took: Option<Duration>,
    ) {
        let Some(replica) = self.replicas.get(id) else { return };
        let mut payload = payload(id, "running");
        if let Phase::Running(container, _) = &replica.phase {
            payload.insert("container_id".into(), container.as_str().into());
        }
        if !replica.gpus.is_empty() {
            let gpus: Vec<String> = replica.gpus.iter().map(ToString::to_string).collect();
            payload.insert("gpus".into(), gpus.into());
        }
        if let Some(took) = took {
            payload.insert("duration_ms".into(), u64::try_from(took.as_millis()).unwrap_or(u64::MAX).into());
        }
        let hash = replica.hash.clone();
        let gate = self.disk.gate(now);
        self.tell(Kind::Deploy, id, requests, payload, |entry| entry.about(&hash).after(gate));
    }

    pub(super) fn tell_failed(&mut self, now: Instant, id: &ReplicaId, deploy: &Deploy, refusal: &Refusal) {
        let mut payload = refusal_payload(id, refusal);
        let took = now.saturating_duration_since(deploy.accepted).as_millis();
        payload.insert("duration_ms".into(), u64::try_from(took).unwrap_or(u64::MAX).into());
        let gate = self.disk.gate(now);
        self.tell(Kind::Deploy, id, deploy.requests.clone(), payload, |entry| {
            entry.about(&deploy.hash).after(gate)
        });
    }

    pub(super) fn tell_stopped(
        &mut self,
        now: Instant,
        id: &ReplicaId,
        requests: Vec<Option<RequestId>>,
        refusal: Option<Refusal>,
    ) {
        let gate = self.disk.gate(now);
        let payload = match &refusal {
            None => payload(id, "stopped"),
            Some(refusal) => refusal_payload(id, refusal),
        };
        self.tell(Kind::Stop, id, requests, payload, |entry| entry.after(gate));
    }

    /// Answers a stop of a replica that does not exist: kept, or only sent when too much is kept already.
    pub(super) fn tell_absent(&mut self, id: &ReplicaId, request: Option<RequestId>, out: &mut Vec<Action>) {
        let newest = self.outbox.iter().rposition(|entry| entry.replica == *id);
        let again = |n: usize, entry: &Entry| {
            Some(n) == newest && entry.kind == Kind::Stop && entry.request == request
        };
        if self.outbox.send_again(again) {
        } else if self.outbox.len() < OWED_MAX {
            self.tell(Kind::Stop, id, vec![request], payload(id, "stopped"), |entry| entry);
        } else {
            self.send_unkept(Kind::Stop, with_request(payload(id, "stopped"), request.as_ref()), out);
        }
    }

    /// Sends a result that there is no room to keep.
    fn send_unkept(&self, kind: Kind, payload: Map<String, Value>, out: &mut Vec<Action>) {
        if let Some(link) = self.session.flowing() {
            out.push(Action::Link(LinkCommand::Send(link, protocol::write(kind.as_str(), payload.into()))));
        }
    }

    pub(super) fn tell_exit(&mut self, now: Instant, id: &ReplicaId, status: &str, exit: Exit) {
        let mut payload = payload(id, status);
        if let Some(code) = exit.code {
            payload.insert("exit_code".into(), code.into());
        }
        if let Some(oom) = exit.oom {
            payload.insert("oom_killed".into(), oom.into());
        }
        self.note(Kind::Exit, id, &payload);
        let gate = self.disk.gate(now);
        self.outbox.push(Entry::new(Kind::Exit, id.clone(), None, payload).after(gate));
    }

    pub(super) fn refuse_malformed(
        &mut self,
        (command, replica, request): (Command, ReplicaId, Option<RequestId>),
        why: &str,
        out: &mut Vec<Action>,
    ) {
        let kind = match command {
            Command::Deploy => Kind::Deploy,
            Command::Stop => Kind::Stop,
        };
        // A command that was understood once keeps its answer.
        let awaited = |known: &Replica| known.awaits_request(request.as_ref());
        if self.ending.is_some()
            || self.answered_before(kind, &replica, request.as_ref(), out)
            || self.replicas.get(&replica).is_some_and(awaited)
        {
            return;
        }
        self.refuse(kind, &replica, request, "", &Refusal::new(Code::Invalid, why), out);
    }

    pub(super) fn refuse_deploy(
        &mut self,
        replica: &ReplicaId,
        request: Option<RequestId>,
        hash: &str,
        refusal: &Refusal,
        out: &mut Vec<Action>,
    ) {
        self.refuse(Kind::Deploy, replica, request, hash, refusal, out);
    }

    /// Answers a command that was not accepted: kept, or only sent when too much is kept already. It is recorded as
    /// outcomes are: lost with the process, a refused deploy that is redelivered would be started behind a stop that
    /// came after it.
    pub(super) fn refuse(
        &mut self,
        kind: Kind,
        replica: &ReplicaId,
        request: Option<RequestId>,
        hash: &str,
        refusal: &Refusal,
        out: &mut Vec<Action>,
    ) {
        let payload = refusal_payload(replica, refusal);
        if self.outbox.len() < OWED_MAX {
            self.tell(kind, replica, vec![request], payload, |entry| entry.about(hash));
        } else {
            self.send_unkept(kind, with_request(payload, request.as_ref()), out);
        }
    }

    /// Keeps a result for everyone who waits for it, and remembers it for their request IDs.
    fn tell(
        &mut self,
        kind: Kind,
        replica: &ReplicaId,
        requests: Vec<Option<RequestId>>,
        payload: Map<String, Value>,
        shape: impl Fn(Entry) -> Entry,
    ) {
        self.note(kind, replica, &payload);
        for request in requests {
            let payload = with_request(payload.clone(), request.as_ref());
            let entry = shape(Entry::new(kind, replica.clone(), request, payload));
            self.remember(&entry);
            if entry.recorded {
                self.disk.dirty();
            }
            self.outbox.push(entry);
        }
    }

    /// Tells the log of an outcome.
    fn note(&mut self, kind: Kind, replica: &ReplicaId, payload: &Map<String, Value>) {
        let word = |name: &str| payload.get(name).and_then(Value::as_str).unwrap_or_default();
        let what = match kind {
            Kind::Deploy => "deploy: ",
            Kind::Stop => "stop: ",
            Kind::Exit => "",
        };
        let mut text = format!("replica {replica}: {what}{}", word("status"));
        if let Some(code) = payload.get("exit_code") {
            text += &format!(" with code {code}");
        }
        let failed = word("status") == "failed";
        if failed && kind != Kind::Exit {
            text += &format!(" ({}): {}", word("code"), word("error"));
        }
        self.news.push((if failed { Level::Warn } else { Level::Info }, text));
    }

    /// Remembers the answer to a request.
    pub(super) fn remember(&mut self, entry: &Entry) {
        let Some(request) = &entry.request else { return };
        let same = |known: &RequestId, kind: Kind, replica: &ReplicaId| {
            known == request && kind == entry.kind && *replica == entry.replica
        };
        self.answered.retain(|(known, kind, replica, _)| !same(known, *kind, replica));
        if self.answered.len() >= ANSWERED_MAX {
            self.answered.pop_front();
        }
        let payload = Value::Object(entry.payload.clone()).to_string().into_boxed_str();
        self.answered.push_back((request.clone(), entry.kind, entry.replica.clone(), payload));
    }

    /// A request that was answered before gets the same answer again. A command of another kind, or for another
    /// replica, is another request, whatever its ID.
    pub(super) fn answered_before(
        &mut self,
        kind: Kind,
        replica: &ReplicaId,
        request: Option<&RequestId>,
        out: &mut Vec<Action>,
    ) -> bool {
        let Some(request) = request else { return false };
        let same = |known: &&(RequestId, Kind, ReplicaId, Box<str>)| {
            known.0 == *request && known.1 == kind && known.2 == *replica
        };
        let Some((_, kind, replica, payload)) = self.answered.iter().find(same).cloned() else {
            return false;
        };
        let payload = match serde_json::from_str(&payload) {
            Ok(Value::Object(payload)) => payload,
            Ok(_) | Err(_) => unreachable!("an answer is remembered as the object that it is"),
        };
        let kept = |entry: &Entry| {
            entry.request.as_ref() == Some(request) && entry.kind == kind && entry.replica == replica
        };
        if self.outbox.send_again(|_, entry| kept(entry)) {
        } else if self.outbox.len() < OWED_MAX {
            let entry = Entry::new(kind, replica, Some(request.clone()), payload);
            self.outbox.push(entry.unrecorded());
        } else {
            self.send_unkept(kind, payload, out);
        }
        true
    }

    /// A deploy whose equal's result is not known to have arrived gets that result again, and what became of it
    /// since, unless a stop was answered after it: without request IDs a deploy that follows is a new one.
    pub(super) fn answer_again(
        &mut self,
        replica: &ReplicaId,
        request: Option<&RequestId>,
        hash: &str,
    ) -> bool {
        if self.replicas.get(replica).is_some_and(Replica::owes) {
            return false;
        }
        let of_replica = |entry: &Entry| entry.replica == *replica;
        let equal = |entry: &Entry| {
            entry.kind == Kind::Deploy
                && match (request, &entry.request) {
                    (Some(request), Some(known)) => request == known,
                    (None, None) => !entry.spec.is_empty() && same_spec(&entry.spec, hash),
                    (Some(_), None) | (None, Some(_)) => false,
                }
        };
        let stopped = self.outbox.iter().rposition(|entry| of_replica(entry) && entry.kind == Kind::Stop);
        let found = self.outbox.iter().rposition(|entry| of_replica(entry) && equal(entry));
        match found {
            Some(found) if stopped.is_none_or(|stopped| stopped < found) => {
                self.outbox.send_again(|n, entry| n >= found && of_replica(entry))
            }
            Some(_) | None => false,
        }
    }

    /// Tells how far a replica is on the way up; such news is not kept.
    pub(super) fn tell_progress(&self, replica: &ReplicaId, status: &str, out: &mut Vec<Action>) {
        if let Some(link) = self.session.flowing() {
            let text = protocol::write("replica_status", payload(replica, status).into());
            out.push(Action::Link(LinkCommand::Send(link, text)));
        }
    }

    pub(super) fn tell_logs(
        &self,
        replica: &ReplicaId,
        request: Option<&RequestId>,
        result: Result<(Vec<String>, bool), Failure>,
        out: &mut Vec<Action>,
    ) {
        let Some(link) = self.session.flowing() else { return };
        let mut payload = Map::new();
        payload.insert("replica_id".into(), replica.as_str().into());
        let (lines, truncated) = result.unwrap_or_else(|failure| {
            payload.insert("error".into(), failure.message.into());
            (Vec::new(), false)
        });
        payload.insert("lines".into(), lines.into());
        payload.insert("truncated".into(), truncated.into());
        let payload = with_request(payload, request);
        out.push(Action::Link(LinkCommand::Send(link, protocol::write("logs", payload.into()))));
    }
}

/// `{"replica_id", "status"}`.
fn payload(replica: &ReplicaId, status: &str) -> Map<String, Value> {
    let mut payload = Map::new();
    payload.insert("replica_id".into(), replica.as_str().into());
    payload.insert("status".into(), status.into());
    payload
}

fn refusal_payload(replica: &ReplicaId, refusal: &Refusal) -> Map<String, Value> {
    let mut payload = payload(replica, "failed");
    payload.insert("code".into(), refusal.code.as_str().into());
    payload.insert("error".into(), refusal.error.as_str().into());
    if let Some(detail) = refusal.detail {
        payload.insert("detail_code".into(), detail.as_str().into());
    }
    payload
}

fn with_request(mut payload: Map<String, Value>, request: Option<&RequestId>) -> Map<String, Value> {
    if let Some(request) = request {
        payload.insert("request_id".into(), request.as_str().into());
    }
    payload
}
