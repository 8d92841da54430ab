//! What is owed to the peer: results that are kept until they have arrived, and answers that are given again to
//! requests that are asked again. Refusals and outcomes take the same path; a result that there is no room to keep is
//! sent once.

use std::collections::VecDeque;
use std::time::Duration;

use serde_json::{Map, Value};

use super::cx::Cx;
use super::link_api::LinkId;
use super::outbox::{Entry, Outbox, ResultKind};
use super::persistence::DurableBarrier;
use super::replica::{Exit, Refusal, Report, same_spec};
use crate::types::{ReplicaId, RequestId};

/// How many answers are remembered for their request IDs.
const ANSWERED_MAX: usize = 1024;
/// Maximum number of results that are kept and outcomes that are owed; past it new deploys are `busy`.
pub(crate) const OWED_MAX: usize = 1024;

/// Why a replica failed whose microVM died under its program.
const MICROVM_ENDED: &str =
    "the microVM ended: its hypervisor, guest or shim died, not the program; see the kernel's log and Kata's";
/// Why a replica failed that ran when the host was rebooted.
const HOST_REBOOTED: &str = "host rebooted";
/// Why a replica failed that this agent had not removed.
const CONTAINER_GONE: &str = "its container is gone: something other than this agent removed it";

/// The results that are owed, and the answers that are given again.
#[derive(Debug, Default)]
pub(crate) struct Results {
    outbox: Outbox,
    /// Answers by request, the oldest first.
    answered: VecDeque<Answered>,
    /// What is in the state file has changed.
    unsaved: bool,
}

#[derive(Debug)]
struct Answered {
    request: RequestId,
    kind: ResultKind,
    replica: ReplicaId,
    /// As text, which takes a fifth of what a map of it does.
    payload: Box<str>,
}

impl Answered {
    /// A command of another kind, or for another replica, is another request, whatever its ID.
    fn is(&self, kind: ResultKind, replica: &ReplicaId, request: &RequestId) -> bool {
        self.request == *request && self.kind == kind && self.replica == *replica
    }
}

impl Results {
    pub(crate) fn len(&self) -> usize {
        self.outbox.len()
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.outbox.is_empty()
    }

    /// What goes into the state file.
    pub(crate) fn recorded(&self) -> impl Iterator<Item = &Entry> {
        self.outbox.iter().filter(|entry| entry.recorded)
    }

    /// Whether what is in the state file has changed since this was last asked.
    pub(crate) fn take_unsaved(&mut self) -> bool {
        std::mem::take(&mut self.unsaved)
    }

    /// A result that an earlier process did not know to have arrived.
    pub(crate) fn restore(&mut self, entry: Entry) {
        self.remember(&entry);
        self.outbox.push(entry);
    }

    /// Keeps an outcome for everyone who waits for it. It is sent once `barrier` opens.
    pub(crate) fn report(&mut self, cx: &mut Cx, id: &ReplicaId, report: Report, barrier: DurableBarrier) {
        match report {
            Report::Running { requests, spec_hash, container, gpus, took, warnings } => {
                let mut payload = payload(id, "running");
                if let Some(container) = container {
                    payload.insert("container_id".into(), container.as_str().into());
                }
                if !gpus.is_empty() {
                    let gpus: Vec<String> = gpus.iter().map(ToString::to_string).collect();
                    payload.insert("gpus".into(), gpus.into());
                }
                if !warnings.is_empty() {
                    payload.insert("warnings".into(), warnings.into());
                }
                if let Some(took) = took {
                    payload.insert("duration_ms".into(), millis(took));
                }
                let shape = |entry: Entry| entry.about(&spec_hash).after(barrier);
                self.keep(cx, ResultKind::Deploy, id, requests, &payload, shape);
            }
            Report::Failed { requests, spec_hash, refusal, took } => {
                let mut payload = refusal_payload(id, &refusal);
                payload.insert("duration_ms".into(), millis(took));
                let shape = |entry: Entry| entry.about(&spec_hash).after(barrier);
                self.keep(cx, ResultKind::Deploy, id, requests, &payload, shape);
            }
            Report::Stopped { requests, refusal } => {
                let payload = match &refusal {
                    None => payload(id, "stopped"),
                    Some(refusal) => refusal_payload(id, refusal),
                };
                self.keep(cx, ResultKind::Stop, id, requests, &payload, |entry| entry.after(barrier));
            }
            Report::Exited(exit) => self.keep_exit(cx, id, exit.status(), exit, barrier),
            Report::Vanished => self.keep_exit(cx, id, "failed", Exit::default(), barrier),
        }
    }

    fn keep_exit(&mut self, cx: &mut Cx, id: &ReplicaId, status: &str, exit: Exit, barrier: DurableBarrier) {
        let mut payload = payload(id, status);
        exit.describe(&mut payload);
        if exit.microvm_ended {
            payload.insert("reason".into(), MICROVM_ENDED.into());
        } else if exit.rebooted {
            payload.insert("reason".into(), HOST_REBOOTED.into());
        } else if status == "failed" {
            payload.insert("reason".into(), CONTAINER_GONE.into());
        }
        log_outcome(cx, ResultKind::Exit, id, &payload);
        self.outbox.push(Entry::new(ResultKind::Exit, id.clone(), None, payload).after(barrier));
    }

    /// Answers a stop of a replica that does not exist: kept, or only sent when too much is kept already.
    pub(crate) fn answer_absent(&mut self, cx: &mut Cx, id: &ReplicaId, request: Option<RequestId>) {
        let newest = self.outbox.iter().rposition(|entry| entry.replica == *id);
        let same = |n: usize, entry: &Entry| {
            Some(n) == newest && entry.kind == ResultKind::Stop && entry.request == request
        };
        if !self.outbox.send_again(same) {
            self.answer(cx, ResultKind::Stop, id, request, payload(id, "stopped"), "");
        }
    }

    /// Answers a command that was not accepted. It is recorded as outcomes are: were it lost with the process, a refused
    /// deploy that is redelivered would be started behind a stop that came after it.
    pub(crate) fn refuse(
        &mut self,
        cx: &mut Cx,
        kind: ResultKind,
        id: &ReplicaId,
        request: Option<RequestId>,
        spec_hash: &str,
        refusal: &Refusal,
    ) {
        self.answer(cx, kind, id, request, refusal_payload(id, refusal), spec_hash);
    }

    fn answer(
        &mut self,
        cx: &mut Cx,
        kind: ResultKind,
        id: &ReplicaId,
        request: Option<RequestId>,
        payload: Map<String, Value>,
        spec_hash: &str,
    ) {
        if self.outbox.len() < OWED_MAX {
            self.keep(cx, kind, id, vec![request], &payload, |entry| entry.about(spec_hash));
        } else {
            cx.send(kind.as_str(), with_request(payload, request.as_ref()).into());
        }
    }

    /// Keeps a result for everyone who waits for it, and remembers it for their request IDs.
    fn keep(
        &mut self,
        cx: &mut Cx,
        kind: ResultKind,
        id: &ReplicaId,
        requests: Vec<Option<RequestId>>,
        payload: &Map<String, Value>,
        shape: impl Fn(Entry) -> Entry,
    ) {
        log_outcome(cx, kind, id, payload);
        for request in requests {
            let payload = with_request(payload.clone(), request.as_ref());
            let entry = shape(Entry::new(kind, id.clone(), request, payload));
            self.remember(&entry);
            self.outbox.push(entry);
            self.unsaved = true;
        }
    }

    fn remember(&mut self, entry: &Entry) {
        let Some(request) = &entry.request else { return };
        self.answered.retain(|known| !known.is(entry.kind, &entry.replica, request));
        if self.answered.len() >= ANSWERED_MAX {
            self.answered.pop_front();
        }
        let payload = Value::Object(entry.payload.clone()).to_string().into_boxed_str();
        let (request, replica) = (request.clone(), entry.replica.clone());
        self.answered.push_back(Answered { request, kind: entry.kind, replica, payload });
    }

    /// A request that was answered before gets the same answer again. Says whether it was.
    pub(crate) fn answer_known(
        &mut self,
        cx: &mut Cx,
        kind: ResultKind,
        id: &ReplicaId,
        request: Option<&RequestId>,
    ) -> bool {
        let Some(request) = request else { return false };
        let Some(known) = self.answered.iter().find(|known| known.is(kind, id, request)) else {
            return false;
        };
        let payload = match serde_json::from_str(&known.payload) {
            Ok(Value::Object(payload)) => payload,
            Ok(_) | Err(_) => unreachable!("an answer is remembered as the object that it is"),
        };
        let kept = |entry: &Entry| {
            entry.request.as_ref() == Some(request) && entry.kind == kind && entry.replica == *id
        };
        if !self.outbox.send_again(|_, entry| kept(entry)) {
            if self.outbox.len() < OWED_MAX {
                let entry = Entry::new(kind, id.clone(), Some(request.clone()), payload);
                self.outbox.push(entry.unrecorded());
            } else {
                cx.send(kind.as_str(), payload.into());
            }
        }
        true
    }

    /// Redelivery of a deploy whose result is not known to have arrived: sends that result again, and everything of the
    /// replica after it, unless a stop was answered after it: without request IDs a deploy that follows is a new one. Says
    /// whether it was one.
    pub(crate) fn answer_unconfirmed(
        &mut self,
        id: &ReplicaId,
        request: Option<&RequestId>,
        spec_hash: &str,
    ) -> bool {
        let of_replica = |entry: &Entry| entry.replica == *id;
        let equal = |entry: &Entry| {
            entry.kind == ResultKind::Deploy
                && match (request, &entry.request) {
                    (Some(request), Some(known)) => request == known,
                    (None, None) => !entry.spec_hash.is_empty() && same_spec(&entry.spec_hash, spec_hash),
                    (Some(_), None) | (None, Some(_)) => false,
                }
        };
        let stopped =
            self.outbox.iter().rposition(|entry| of_replica(entry) && entry.kind == ResultKind::Stop);
        let found = self.outbox.iter().rposition(|entry| of_replica(entry) && equal(entry));
        match found {
            Some(found) if stopped.is_none_or(|stopped| stopped < found) => {
                self.outbox.send_again(|n, entry| n >= found && of_replica(entry))
            }
            Some(_) | None => false,
        }
    }

    /// A pong arrived: the results that it proves to have arrived are no longer owed.
    pub(crate) fn confirm(&mut self, link: LinkId, pong: u64) {
        let arrived = self.outbox.confirm(link, pong);
        self.unsaved |= arrived.iter().any(|entry| entry.recorded);
    }

    /// Sends what may be sent on `link` and was not yet. Says whether anything was: then a ping is due, with this number.
    pub(crate) fn send_unsent(
        &mut self,
        cx: &mut Cx,
        link: LinkId,
        ping: u64,
        is_durable: impl Fn(DurableBarrier) -> bool,
    ) -> bool {
        let unsent = self.outbox.take_unsent(link, ping, is_durable);
        let any = !unsent.is_empty();
        for (kind, payload) in unsent {
            cx.send(kind, payload.into());
        }
        any
    }
}

/// Tells how far a replica is on the way up; such news is not kept.
pub(crate) fn send_progress(cx: &mut Cx, id: &ReplicaId, status: &str) {
    cx.send("replica_status", payload(id, status).into());
}

fn log_outcome(cx: &mut Cx, kind: ResultKind, id: &ReplicaId, payload: &Map<String, Value>) {
    let word = |name: &str| payload.get(name).and_then(Value::as_str).unwrap_or_default();
    let what = match kind {
        ResultKind::Deploy => "deploy: ",
        ResultKind::Stop => "stop: ",
        ResultKind::Exit => "",
    };
    let mut text = format!("replica {id}: {what}{}", word("status"));
    if let Some(code) = payload.get("exit_code") {
        text += &format!(" with code {code}");
    }
    if payload.get("oom_killed") == Some(&Value::Bool(true)) {
        text += ", ended by the kernel for want of memory";
    }
    if let Some(reason) = payload.get("reason").and_then(Value::as_str) {
        text += &format!(": {reason}");
    }
    let failed = word("status") == "failed";
    if failed && kind != ResultKind::Exit {
        text += &format!(" ({}): {}", word("code"), word("error"));
    }
    for warning in payload.get("warnings").and_then(Value::as_array).into_iter().flatten() {
        cx.warn(format!("replica {id}: {}", warning.as_str().unwrap_or_default()));
    }
    if failed {
        cx.warn(text);
    } else {
        cx.info(text);
    }
}

/// A duration in a message or a record, in milliseconds.
pub(crate) fn millis(time: Duration) -> Value {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX).into()
}

/// `{"replica_id", "status"}`.
fn payload(id: &ReplicaId, status: &str) -> Map<String, Value> {
    let mut payload = Map::new();
    payload.insert("replica_id".into(), id.as_str().into());
    payload.insert("status".into(), status.into());
    payload
}

fn refusal_payload(id: &ReplicaId, refusal: &Refusal) -> Map<String, Value> {
    let mut payload = payload(id, "failed");
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

#[cfg(test)]
mod tests {
    use super::super::replica::Code;
    use super::*;

    const LINK: LinkId = LinkId(1);

    fn id() -> ReplicaId {
        ReplicaId::new("r").unwrap()
    }

    fn request(text: &str) -> RequestId {
        RequestId::new(text).unwrap()
    }

    fn stopped(results: &mut Results, cx: &mut Cx, request: Option<RequestId>) {
        let report = Report::Stopped { requests: vec![request], refusal: None };
        results.report(cx, &id(), report, DurableBarrier::OPEN);
    }

    #[test]
    fn a_request_gets_the_answer_that_it_got() {
        let mut cx = Cx::example();
        let mut results = Results::default();
        stopped(&mut results, &mut cx, Some(request("q1")));
        assert!(results.take_unsaved());
        cx.peer = Some(LINK);
        assert!(results.send_unsent(&mut cx, LINK, 1, |_| true));
        assert!(!results.send_unsent(&mut cx, LINK, 2, |_| true));
        assert!(results.answer_known(&mut cx, ResultKind::Stop, &id(), Some(&request("q1"))));
        assert!(results.send_unsent(&mut cx, LINK, 2, |_| true), "sent again");
        results.confirm(LINK, 2);
        assert!(results.is_empty() && results.take_unsaved());
        assert!(results.answer_known(&mut cx, ResultKind::Stop, &id(), Some(&request("q1"))));
        assert_eq!((results.len(), results.recorded().count()), (1, 0), "kept in memory alone");
        for (kind, asked) in [(ResultKind::Deploy, "q1"), (ResultKind::Stop, "q2")] {
            assert!(!results.answer_known(&mut cx, kind, &id(), Some(&request(asked))));
        }
    }

    #[test]
    fn without_request_ids_an_equal_deploy_is_a_redelivery_until_a_stop_is_answered() {
        let mut cx = Cx::example();
        let mut results = Results::default();
        let refusal = Refusal::new(Code::PullFailed, "not found");
        results.refuse(&mut cx, ResultKind::Deploy, &id(), None, "k.1", &refusal);
        assert!(results.answer_unconfirmed(&id(), None, "k.1"));
        assert!(!results.answer_unconfirmed(&id(), None, "k.2"));
        stopped(&mut results, &mut cx, None);
        assert!(!results.answer_unconfirmed(&id(), None, "k.1"));
    }

    #[test]
    fn past_the_bound_an_answer_is_sent_and_not_kept() {
        let mut cx = Cx::example();
        let mut results = Results::default();
        for _ in 0..OWED_MAX {
            stopped(&mut results, &mut cx, None);
        }
        cx.peer = Some(LINK);
        cx.actions.clear();
        results.answer_absent(&mut cx, &ReplicaId::new("s").unwrap(), None);
        assert_eq!((results.len(), cx.actions.len()), (OWED_MAX, 1));
    }
}
