//! A control plane with a job queue: it sends commands, again while they have no result, and writes down what it is
//! told. It fails the run when two results of one request differ.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::Value;

pub const REPLICAS: [&str; 5] = ["r0", "r1", "r2", "r3", "plain"];
/// The replica whose commands carry no request ID, as the base of the protocol has them.
pub const PLAIN: &str = "plain";

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    Deploy,
    Stop,
}

#[derive(Debug)]
pub struct Task {
    pub kind: Kind,
    pub replica: &'static str,
    pub request: Option<String>,
    pub text: String,
    /// The word and the code of its result.
    pub outcome: Option<String>,
    /// The process of the agent that took it last, and when it first did.
    pub taken: Option<(u64, u64)>,
    /// The record that holds its outcome may be lost: a crash met a bad disk.
    pub weak: bool,
    /// It was refused, and the agent died before that arrived: a refusal is not recorded, and decided anew.
    pub anew: bool,
}

#[derive(Debug, Default)]
pub struct Server {
    pub tasks: Vec<Task>,
    /// By replica: the newest exit that was told, `status:code`.
    pub exits: BTreeMap<String, String>,
    pub heartbeat: Option<Value>,
    /// Replicas that run, as far as the results with request IDs say.
    pub running: BTreeSet<String>,
    /// By replica: requests in the order in which their results were first sent, and how far they have arrived.
    pub sent: BTreeMap<String, Vec<String>>,
    pub arrived: BTreeMap<String, usize>,
    pub results: u64,
    takes: u64,
}

impl Server {
    pub fn new_deploy(&mut self, replica: &'static str, image: &str, gpus: u32, more: &str) -> usize {
        let (n, request) = self.name(replica);
        let field = request.as_ref().map_or(String::new(), |id| format!(r#","request_id":"{id}""#));
        let text = format!(
            r#"{{"type":"deploy","payload":{{"replica_id":"{replica}","image":"{image}","gpu_count":{gpus}{field}{more}}}}}"#
        );
        self.tasks.push(Task {
            kind: Kind::Deploy,
            replica,
            request,
            text,
            outcome: None,
            taken: None,
            weak: false,
            anew: false,
        });
        n
    }

    pub fn new_stop(&mut self, replica: &'static str) -> usize {
        let (n, request) = self.name(replica);
        let field = request.as_ref().map_or(String::new(), |id| format!(r#","request_id":"{id}""#));
        let text = format!(r#"{{"type":"stop","payload":{{"replica_id":"{replica}"{field}}}}}"#);
        self.tasks.push(Task {
            kind: Kind::Stop,
            replica,
            request,
            text,
            outcome: None,
            taken: None,
            weak: false,
            anew: false,
        });
        n
    }

    fn name(&self, replica: &str) -> (usize, Option<String>) {
        let n = self.tasks.len();
        (n, (replica != PLAIN).then(|| format!("q{n}")))
    }

    pub fn open(&self) -> impl Iterator<Item = usize> + '_ {
        (0..self.tasks.len()).filter(|n| self.tasks[*n].outcome.is_none())
    }

    /// The agent takes a command from the connection.
    pub fn taken(&mut self, text: &str, incarnation: u64) {
        self.takes += 1;
        let takes = self.takes;
        let waits = |task: &&mut Task| task.text == text && task.outcome.is_none();
        if let Some(task) = self.tasks.iter_mut().find(waits)
            && task.taken.is_none_or(|(process, _)| process != incarnation)
        {
            task.taken = Some((incarnation, takes));
        }
    }

    /// The agent says something.
    pub fn hear(&mut self, text: &str, incarnation: u64) -> Result<(), String> {
        let message: Value = serde_json::from_str(text).unwrap();
        let payload = &message["payload"];
        let replica = payload["replica_id"].as_str().unwrap_or_default().to_owned();
        let word = |name: &str| payload[name].as_str().unwrap_or("-").to_owned();
        match message["type"].as_str().unwrap() {
            "deploy_result" => self.result(Kind::Deploy, &replica, payload, incarnation),
            "stop_result" => self.result(Kind::Stop, &replica, payload, incarnation),
            "replica_status" => {
                let status = word("status");
                if matches!(status.as_str(), "exited" | "failed") {
                    self.exits.insert(replica, format!("{status}:{}", payload["exit_code"]));
                }
                Ok(())
            }
            "heartbeat" => {
                self.heartbeat = Some(payload["status"].clone());
                Ok(())
            }
            _ => Ok(()),
        }
    }

    fn result(&mut self, kind: Kind, replica: &str, payload: &Value, incarnation: u64) -> Result<(), String> {
        self.results += 1;
        let word = |name: &str| payload[name].as_str().unwrap_or("-").to_owned();
        let outcome = format!("{}:{}", word("status"), word("code"));
        let Some(request) = payload["request_id"].as_str() else {
            let oldest =
                |task: &&mut Task| task.kind == kind && task.replica == replica && task.outcome.is_none();
            if let Some(task) = self.tasks.iter_mut().find(oldest) {
                task.outcome = Some(outcome);
            }
            return Ok(());
        };
        let Some(n) = self.tasks.iter().position(|task| task.request.as_deref() == Some(request)) else {
            return Err(format!("a result of an unknown request {request}"));
        };
        let task = &mut self.tasks[n];
        if task.kind != kind || task.replica != replica {
            return Err(format!("the result of {request} has another kind or replica"));
        }
        match &task.outcome {
            Some(known) if *known != outcome && !task.weak => {
                return Err(format!("{request} of {replica} had the outcome {known}, now it has {outcome}"));
            }
            Some(_) => return Ok(()),
            None => task.outcome = Some(outcome.clone()),
        }
        self.runs_or_not(kind, replica, &outcome);
        let place = self.sent.get(replica).and_then(|sent| sent.iter().position(|id| id == request));
        let far = self.arrived.entry(replica.to_owned()).or_default();
        match place {
            Some(place) if place < *far => {
                return Err(format!("the result of {request} of {replica} arrived after a later one"));
            }
            Some(place) => *far = place,
            None => return Err(format!("the result of {request} arrived and was never sent")),
        }
        if kind == Kind::Stop
            && outcome.starts_with("stopped")
            && let Some((process, at)) = self.tasks[n].taken
            && process == incarnation
        {
            let before = |task: &&Task| {
                let taken = task.taken.is_some_and(|(process, then)| process == incarnation && then < at);
                task.replica == replica
                    && task.kind == Kind::Deploy
                    && taken
                    && task.outcome.is_none()
                    && !task.anew
            };
            if let Some(task) = self.tasks.iter().find(before) {
                return Err(format!("{request} stopped {replica} before {:?} had its result", task.request));
            }
        }
        Ok(())
    }

    /// What a result says about whether the replica runs. After a stop that took too long the removal goes on.
    fn runs_or_not(&mut self, kind: Kind, replica: &str, outcome: &str) {
        match (kind, outcome) {
            (Kind::Deploy, "running:-") => _ = self.running.insert(replica.to_owned()),
            (Kind::Stop, "stopped:-" | "failed:timeout") => _ = self.running.remove(replica),
            (Kind::Deploy | Kind::Stop, _) => {}
        }
    }

    /// The result of a request goes out.
    pub fn note_sent(&mut self, payload: &Value) {
        let (Some(replica), Some(request)) = (payload["replica_id"].as_str(), payload["request_id"].as_str())
        else {
            return;
        };
        let sent = self.sent.entry(replica.to_owned()).or_default();
        if !sent.iter().any(|known| known == request) {
            sent.push(request.to_owned());
        }
    }

    /// The agent died: what it sent and did not arrive may be decided anew, in another order.
    pub fn forget_unarrived(&mut self) {
        for task in self.tasks.iter_mut().filter(|task| task.outcome.is_none()) {
            let request = task.request.as_ref();
            let sent = self.sent.get(task.replica);
            task.anew |= sent.is_some_and(|sent| sent.iter().any(|sent| Some(sent) == request));
        }
        let tasks = &self.tasks;
        let arrived = |request: &String| {
            tasks.iter().any(|task| task.request.as_ref() == Some(request) && task.outcome.is_some())
        };
        for (replica, sent) in &mut self.sent {
            sent.retain(arrived);
            let last = sent.len().saturating_sub(1);
            self.arrived.insert(replica.clone(), last);
        }
    }
}
