//! Deploys and stops that were asked for, until their results are known.
//!
//! A job is sent when its node is there, and sent again each time the node comes back, until a result names it: by
//! `request_id`, or by replica where the node knows of no request IDs. What comes after the first result is counted,
//! since an agent that repeats itself is right and one that contradicts itself is not.

use std::collections::VecDeque;

use serde_json::{Value, json};

use crate::mailbox::MAILBOX_MAX;

/// How many unfinished jobs a node may have.
pub const OPEN_MAX: usize = 4096;
/// How many finished jobs are remembered, of all nodes.
const FINISHED_MAX: usize = 2000;

// All of a node's open jobs are sent at once when it comes back.
const _: () = assert!(OPEN_MAX < MAILBOX_MAX);

/// What is asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Start a replica.
    Deploy,
    /// Stop a replica.
    Stop,
}

impl Kind {
    /// The type of its message.
    pub fn command(self) -> &'static str {
        match self {
            Self::Deploy => "deploy",
            Self::Stop => "stop",
        }
    }

    /// The kind whose result has this type.
    pub fn of_result(name: &str) -> Option<Self> {
        match name {
            "deploy_result" => Some(Self::Deploy),
            "stop_result" => Some(Self::Stop),
            _ => None,
        }
    }

    fn of_command(name: &str) -> Option<Self> {
        match name {
            "deploy" => Some(Self::Deploy),
            "stop" => Some(Self::Stop),
            _ => None,
        }
    }
}

/// One deploy or stop.
#[derive(Debug)]
pub struct Job {
    node: String,
    kind: Kind,
    request_id: String,
    replica_id: String,
    /// What is sent; nothing once it is finished, since it may hold secrets.
    payload: Value,
    sent: u64,
    result: Option<Value>,
    repeated: u64,
    contradicted: u64,
}

impl Job {
    /// The message to send now. With `request_ids` off it has none, as control planes that know the base alone send it.
    pub fn send(&mut self, request_ids: bool) -> String {
        self.sent += 1;
        let mut payload = self.payload.clone();
        if let (false, Some(fields)) = (request_ids, payload.as_object_mut()) {
            fields.remove("request_id");
        }
        json!({"type": self.kind.command(), "payload": payload}).to_string()
    }

    /// As the API shows it; never its payload, which may hold secrets.
    pub fn view(&self) -> Value {
        json!({
            "request_id": self.request_id, "node": self.node, "type": self.kind.command(),
            "replica_id": self.replica_id, "sent": self.sent, "result": self.result,
            "repeated": self.repeated, "contradicted": self.contradicted,
        })
    }
}

/// What a result turned out to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// The first result of its job.
    Finished,
    /// The same result once more.
    Repeated,
    /// Another result than the first.
    Contradicted,
    /// No job has such a result.
    Unknown,
}

/// All jobs, in the order in which they were asked for.
#[derive(Default)]
pub struct Jobs {
    jobs: VecDeque<Job>,
}

impl Jobs {
    /// Takes a job on. `payload` has a `request_id` and a `replica_id`. One that is already there by its request ID
    /// is given back as it is, to be sent again. `None`: the node has too many open jobs.
    pub fn add(&mut self, node: &str, kind: Kind, payload: Value) -> Option<&mut Job> {
        let word = |field: &str| payload[field].as_str().unwrap_or_default().to_owned();
        let (request_id, replica_id) = (word("request_id"), word("replica_id"));
        let same = |job: &Job| job.node == node && job.kind == kind && job.request_id == request_id;
        if let Some(at) = self.jobs.iter().position(same) {
            let job = &mut self.jobs[at];
            if job.result.is_some() {
                job.payload = payload;
            }
            return Some(job);
        }
        if self.jobs.iter().filter(|job| job.node == node && job.result.is_none()).count() >= OPEN_MAX {
            return None;
        }
        self.jobs.push_back(Job {
            node: node.to_owned(),
            kind,
            request_id,
            replica_id,
            payload,
            sent: 0,
            result: None,
            repeated: 0,
            contradicted: 0,
        });
        self.jobs.back_mut()
    }

    /// The node's jobs without a result, oldest first.
    pub fn open(&mut self, node: &str) -> impl Iterator<Item = &mut Job> {
        self.jobs.iter_mut().filter(move |job| job.node == node && job.result.is_none())
    }

    /// Takes a result in.
    pub fn result(&mut self, node: &str, kind: Kind, payload: &Value) -> Outcome {
        let Some(at) = self.named(node, kind, payload) else { return Outcome::Unknown };
        let job = &mut self.jobs[at];
        job.payload = Value::Null;
        let Some(first) = &job.result else {
            job.result = Some(payload.clone());
            self.forget_oldest();
            return Outcome::Finished;
        };
        if first["status"] == payload["status"] && first["code"] == payload["code"] {
            job.repeated += 1;
            Outcome::Repeated
        } else {
            job.contradicted += 1;
            Outcome::Contradicted
        }
    }

    /// What was asked for by the job that a result belongs to, while that has no result.
    pub fn asked(&self, node: &str, kind: Kind, result: &Value) -> Option<&Value> {
        let job = &self.jobs[self.named(node, kind, result)?];
        job.result.is_none().then_some(&job.payload)
    }

    /// Forgets the node's open jobs: it will not come back.
    pub fn abandon(&mut self, node: &str) {
        self.jobs.retain(|job| job.node != node || job.result.is_some());
    }

    /// As the API shows them.
    pub fn view(&self) -> Value {
        self.jobs.iter().map(Job::view).collect()
    }

    /// As they are saved: what the API shows, and the payload of those to be sent again.
    pub fn save(&self) -> Value {
        let saved = |job: &Job| {
            let mut value = job.view();
            value["payload"] = job.payload.clone();
            value
        };
        self.jobs.iter().map(saved).collect()
    }

    /// What [`Jobs::save`] wrote. `None`: it is something else.
    pub fn load(saved: &Value) -> Option<Self> {
        let job = |value: &Value| {
            let word = |field: &str| value[field].as_str().map(str::to_owned);
            Some(Job {
                node: word("node")?,
                kind: Kind::of_command(value["type"].as_str()?)?,
                request_id: word("request_id")?,
                replica_id: word("replica_id")?,
                payload: value["payload"].clone(),
                sent: value["sent"].as_u64()?,
                result: Some(value["result"].clone()).filter(|result| !result.is_null()),
                repeated: value["repeated"].as_u64()?,
                contradicted: value["contradicted"].as_u64()?,
            })
        };
        Some(Self { jobs: saved.as_array()?.iter().map(job).collect::<Option<_>>()? })
    }

    /// The job that a result belongs to. Without a request ID: the replica's oldest that was sent and is open, else
    /// its newest.
    fn named(&self, node: &str, kind: Kind, payload: &Value) -> Option<usize> {
        let of_node = |job: &Job| job.node == node && job.kind == kind;
        if let Some(id) = payload["request_id"].as_str() {
            return self.jobs.iter().position(|job| of_node(job) && job.request_id == id);
        }
        let replica = payload["replica_id"].as_str()?;
        let sent = |job: &Job| of_node(job) && job.replica_id == replica && job.sent > 0;
        let open = self.jobs.iter().position(|job| sent(job) && job.result.is_none());
        open.or_else(|| self.jobs.iter().rposition(sent))
    }

    fn forget_oldest(&mut self) {
        if self.jobs.iter().filter(|job| job.result.is_some()).count() > FINISHED_MAX
            && let Some(oldest) = self.jobs.iter().position(|job| job.result.is_some())
        {
            self.jobs.remove(oldest);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn deploy(jobs: &mut Jobs, node: &str, request: &str, replica: &str) {
        let payload = json!({"request_id": request, "replica_id": replica, "image": "bb:1"});
        jobs.add(node, Kind::Deploy, payload).unwrap();
    }

    fn send_all(jobs: &mut Jobs, node: &str) -> Vec<String> {
        jobs.open(node).map(|job| job.send(true)).collect()
    }

    #[test]
    fn jobs_are_sent_in_order_until_their_result_is_there() {
        let mut jobs = Jobs::default();
        deploy(&mut jobs, "n", "r1", "a");
        deploy(&mut jobs, "m", "r1", "a");
        deploy(&mut jobs, "n", "r2", "b");
        let ids = |texts: Vec<String>| {
            texts
                .iter()
                .map(|t| serde_json::from_str::<Value>(t).unwrap()["payload"]["request_id"].clone())
                .collect()
        };
        let first: Value = ids(send_all(&mut jobs, "n"));
        assert_eq!(first, json!(["r1", "r2"]));
        let result = json!({"request_id": "r1", "replica_id": "a", "status": "running"});
        assert_eq!(jobs.result("n", Kind::Stop, &result), Outcome::Unknown);
        assert_eq!(jobs.result("n", Kind::Deploy, &result), Outcome::Finished);
        let second: Value = ids(send_all(&mut jobs, "n"));
        assert_eq!(second, json!(["r2"]));
        assert_eq!(jobs.view()[0]["sent"], 1);
        assert_eq!(jobs.view()[2]["sent"], 2);
        assert_eq!(jobs.save()[0]["payload"], Value::Null, "a finished job keeps no secrets");
    }

    #[test]
    fn later_results_are_counted_and_judged() {
        let mut jobs = Jobs::default();
        deploy(&mut jobs, "n", "r1", "a");
        let mut check = |status: &str, code: Value, outcome: Outcome| {
            let result = json!({"request_id": "r1", "replica_id": "a", "status": status, "code": code});
            assert_eq!(jobs.result("n", Kind::Deploy, &result), outcome);
        };
        check("failed", json!("timeout"), Outcome::Finished);
        check("failed", json!("timeout"), Outcome::Repeated);
        check("failed", json!("busy"), Outcome::Contradicted);
        check("running", Value::Null, Outcome::Contradicted);
        let view = jobs.view();
        assert_eq!((&view[0]["repeated"], &view[0]["contradicted"]), (&json!(1), &json!(2)));
        assert_eq!(view[0]["result"]["code"], "timeout");
    }

    #[test]
    fn results_without_request_ids_go_by_replica() {
        let mut jobs = Jobs::default();
        deploy(&mut jobs, "n", "r1", "a");
        let result = json!({"replica_id": "a", "status": "running"});
        assert_eq!(jobs.result("n", Kind::Deploy, &result), Outcome::Unknown, "it was never sent");
        assert!(!jobs.open("n").next().unwrap().send(false).contains("request_id"));
        deploy(&mut jobs, "n", "r2", "a");
        send_all(&mut jobs, "n");
        assert_eq!(jobs.result("n", Kind::Deploy, &result), Outcome::Finished);
        assert_eq!(jobs.view()[0]["result"], result);
        assert_eq!(jobs.result("n", Kind::Deploy, &result), Outcome::Finished);
        assert_eq!(jobs.result("n", Kind::Deploy, &result), Outcome::Repeated);
        assert_eq!(jobs.view()[1]["repeated"], 1);
    }

    #[test]
    fn the_same_request_is_the_same_job() {
        let mut jobs = Jobs::default();
        deploy(&mut jobs, "n", "r1", "a");
        deploy(&mut jobs, "n", "r1", "a");
        assert_eq!(jobs.view().as_array().unwrap().len(), 1);
    }

    #[test]
    fn both_queues_are_bounded() {
        let mut jobs = Jobs::default();
        for n in 0..OPEN_MAX {
            deploy(&mut jobs, "n", &n.to_string(), "a");
        }
        assert!(jobs.add("n", Kind::Deploy, json!({"request_id": "x", "replica_id": "a"})).is_none());
        assert!(jobs.add("m", Kind::Deploy, json!({"request_id": "x", "replica_id": "a"})).is_some());
        for n in 0..OPEN_MAX {
            let result = json!({"request_id": n.to_string(), "replica_id": "a", "status": "running"});
            assert_eq!(jobs.result("n", Kind::Deploy, &result), Outcome::Finished);
        }
        assert_eq!(jobs.view().as_array().unwrap().len(), FINISHED_MAX + 1);
        jobs.abandon("m");
        assert_eq!(jobs.view().as_array().unwrap().len(), FINISHED_MAX);
    }

    #[test]
    fn what_is_saved_is_loaded() {
        let mut jobs = Jobs::default();
        deploy(&mut jobs, "n", "r1", "a");
        deploy(&mut jobs, "n", "r2", "b");
        send_all(&mut jobs, "n");
        jobs.result("n", Kind::Deploy, &json!({"request_id": "r1", "replica_id": "a", "status": "running"}));
        let mut loaded = Jobs::load(&jobs.save()).unwrap();
        assert_eq!(loaded.save(), jobs.save());
        assert_eq!(send_all(&mut loaded, "n").len(), 1);
        assert!(Jobs::load(&json!([{"node": "n"}])).is_none());
        assert!(Jobs::load(&json!({})).is_none());
    }
}
