//! One agent with an engine, a control plane and an operator: starts them, asks them, and says at the end what was lost.

use std::collections::{BTreeMap, BTreeSet};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use rustix::process::Signal;
use serde_json::{Value, json};

use crate::support::agent::{Agent, Node};
use crate::support::control_plane::{ControlPlane, TOKEN};
use crate::support::engine::Engine;
use crate::support::processes::{self, Process};
use crate::support::wait::wait_for;

/// The heartbeat's interval: what comes later than this is late.
pub const BEAT: Duration = Duration::from_secs(30);
/// How late a heartbeat may be where the link is up: the machine is busy.
pub const BEAT_SLACK: Duration = Duration::from_secs(5);
/// A deadline for what takes seconds.
pub const SOON: Duration = Duration::from_secs(60);
/// A deadline for what includes the engine's or the agent's own long deadlines.
pub const LATE: Duration = Duration::from_secs(180);
/// The label that tells the containers of one rig from another's.
const LABEL: &str = "vectorlay.test";

/// How an agent differs from the usual one.
#[derive(Debug, Default, Clone)]
pub struct Changes {
    /// What the agent is started by: a program and its arguments before the agent's own.
    pub through: Vec<String>,
    /// Settings, by their flags.
    pub settings: Vec<(&'static str, String)>,
    /// Lines of sh in the CLI's wrapper, before the real CLI is called.
    pub script: String,
}

/// The agent and all around it.
pub struct Rig {
    /// The control plane.
    pub plane: Arc<ControlPlane>,
    /// The node's ID.
    pub node: String,
    /// Tells this rig's containers and processes from all others.
    pub name: String,
    /// The engine, if it is a real one.
    pub engine: Option<Engine>,
    home: Node,
    agent: Option<Agent>,
    replicas: AtomicU64,
    /// Containers that were seen.
    seen: Mutex<BTreeSet<String>>,
}

impl Rig {
    /// Starts a control plane, and an agent beside the engine.
    pub fn new(engine: &Engine) -> Self {
        Self::with(engine, Changes::default())
    }

    /// The same with another agent.
    pub fn with(engine: &Engine, changes: Changes) -> Self {
        Self::on(&Arc::new(ControlPlane::start(&["--quiet"])), Some(engine), changes)
    }

    /// An agent for this control plane, started and connected. Without an engine the wrapper's script is the CLI.
    pub fn on(plane: &Arc<ControlPlane>, engine: Option<&Engine>, changes: Changes) -> Self {
        let mut rig = Self::off(plane, engine, changes);
        rig.start();
        rig.wait_ready(SOON);
        rig
    }

    /// The same, not started yet.
    pub fn off(plane: &Arc<ControlPlane>, engine: Option<&Engine>, changes: Changes) -> Self {
        static COUNT: AtomicU64 = AtomicU64::new(0);
        let name = format!("{}x{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
        let mut home = Node::new(&name);
        let node = register(plane, &name, &home.state());
        let cli = write_cli(home.path(), engine, &changes.script, &name);
        home.set("container-cli", cli.to_str().unwrap()).set("url", plane.url());
        home.set("network", "none").set("reconcile-s", "5").set("retention-s", "2");
        for (flag, value) in &changes.settings {
            home.set(flag, value);
        }
        home.around = changes.through;
        Self {
            plane: Arc::clone(plane),
            node,
            name,
            engine: engine.cloned(),
            home,
            agent: None,
            replicas: AtomicU64::new(0),
            seen: Mutex::default(),
        }
    }

    /// All that the agent keeps.
    pub fn folder(&self) -> &Path {
        self.home.path()
    }

    /// Starts the agent.
    pub fn start(&mut self) {
        assert!(self.agent.is_none(), "one agent at a time");
        self.agent = Some(self.home.start());
    }

    /// The agent's process.
    pub fn pid(&self) -> u32 {
        self.agent.as_ref().unwrap().pid()
    }

    /// Kills the agent with SIGKILL, and waits for its end.
    pub fn kill(&mut self) {
        self.agent.take().unwrap().kill();
    }

    /// Ends the agent with SIGTERM: true if it ended by itself with status 0 in time.
    pub fn end(&mut self) -> bool {
        let mut agent = self.agent.take().unwrap();
        agent.signal(Signal::TERM);
        agent.ended(SOON).is_some_and(|status| status.success())
    }

    /// The node as the control plane sees it.
    pub fn view(&self) -> Value {
        self.plane.api_get(&format!("/nodes/{}", self.node))
    }

    /// Whether the agent is connected and has said who it is.
    pub fn ready(&self) -> bool {
        self.view()["ready"] == true
    }

    /// Waits until it is.
    pub fn wait_ready(&self, deadline: Duration) {
        assert!(
            wait_for(deadline, || self.ready().then_some(())).is_some(),
            "not connected: {:#}",
            self.view()
        );
    }

    /// How often it has connected.
    pub fn connects(&self) -> u64 {
        self.view()["connects"].as_u64().unwrap()
    }

    /// What is wrong with the node, in the words of its last `node_state` (or of the operator's status).
    pub fn reason(&self) -> String {
        self.status()
            .map(|status| status["reason"].as_str().unwrap_or_default().to_owned())
            .unwrap_or_default()
    }

    /// What `vectorlay-agent status` says; `None` while the agent does not answer.
    pub fn status(&self) -> Option<Value> {
        let socket = self.home.path().join("run/agent.sock");
        let output = Command::new("timeout")
            .args(["-k", "1", "10"])
            .arg(self.home.binary())
            .args(["status", "--json", "--control-socket"])
            .arg(socket)
            .output()
            .unwrap();
        serde_json::from_slice(&output.stdout).ok()
    }

    /// A replica ID that was not used yet.
    pub fn new_replica(&self) -> String {
        format!("{}r{}", self.name, self.replicas.fetch_add(1, Ordering::Relaxed))
    }

    /// Asks for a replica of the usual image; the job's request ID.
    pub fn deploy(&self, replica: &str) -> String {
        self.deploy_with(replica, json!({}))
    }

    /// The same with more fields.
    pub fn deploy_with(&self, replica: &str, fields: Value) -> String {
        let image = self.engine.as_ref().map_or("none:1", |engine| engine.image.as_str());
        let mut payload = json!({"replica_id": replica, "image": image, "stop_timeout_s": 5});
        for (name, value) in fields.as_object().unwrap() {
            payload[name] = value.clone();
        }
        self.ask("deploy", &payload)
    }

    /// Asks for its end; the job's request ID.
    pub fn stop(&self, replica: &str) -> String {
        self.ask("stop", &json!({"replica_id": replica}))
    }

    fn ask(&self, verb: &str, payload: &Value) -> String {
        let job = self.plane.api_post(&format!("/nodes/{}/{verb}", self.node), payload);
        job["request_id"].as_str().unwrap().to_owned()
    }

    /// This node's jobs, oldest first.
    pub fn jobs(&self) -> Vec<Value> {
        let jobs = self.plane.api_get("/jobs");
        let all = jobs["jobs"].as_array().unwrap();
        all.iter().filter(|job| job["node"] == self.node.as_str()).cloned().collect()
    }

    /// How many jobs have no outcome yet.
    pub fn open(&self) -> usize {
        self.jobs().iter().filter(|job| job["result"].is_null()).count()
    }

    /// Waits for a job's outcome: `running`, `stopped`, or the code of its failure.
    pub fn outcome(&self, request: &str, deadline: Duration) -> String {
        let result = wait_for(deadline, || {
            let job = self.plane.job(request);
            Some(job["result"].clone()).filter(|result| !result.is_null())
        });
        match result {
            None => "no outcome".to_owned(),
            Some(result) if result["status"] == "failed" => result["code"].as_str().unwrap_or("?").to_owned(),
            Some(result) => result["status"].as_str().unwrap().to_owned(),
        }
    }

    /// Waits until the agent is there and every job has its outcome; how long that took, `None` at the deadline.
    pub fn recovered(&self, since: Instant, deadline: Duration) -> Option<Duration> {
        wait_for(deadline, || (self.ready() && self.open() == 0).then(|| since.elapsed()))
    }

    /// This rig's containers as the engine lists them: replica and status by ID. `None`: the engine does not answer.
    pub fn containers(&self) -> Option<BTreeMap<String, (String, String)>> {
        let filter = format!("label={LABEL}={}", self.name);
        let format = "{{.ID}}\t{{.Label \"vectorlay.replica\"}}\t{{.Status}}";
        let engine = self.engine.as_ref().unwrap();
        let text = engine.ask(&["ps", "--all", "--no-trunc", "--filter", &filter, "--format", format])?;
        let line = |line: &str| {
            let mut fields = line.split('\t').map(str::to_owned);
            Some((fields.next()?, (fields.next()?, fields.next()?)))
        };
        let found: BTreeMap<_, _> = text.lines().filter_map(line).collect();
        self.seen.lock().unwrap().extend(found.keys().cloned());
        Some(found)
    }

    /// How late the latest heartbeat was, by the control plane's clock; one that is overdue now counts.
    pub fn latest_beat(&self) -> Duration {
        let view = self.view();
        let ms = |name: &str| Duration::from_millis(view[name].as_u64().unwrap_or(0));
        ms("heartbeat_gap_max_ever_ms").max(ms("heartbeat_age_ms")).saturating_sub(BEAT)
    }

    /// A line for each thing that is not as it was promised, after all faults are over. Ends all replicas.
    pub fn losses(&self, beat_slack: Duration) -> Vec<String> {
        let mut lost = Vec::new();
        if self.recovered(Instant::now(), LATE).is_none() {
            lost.extend(
                self.jobs().iter().filter(|j| j["result"].is_null()).map(|j| format!("no outcome: {j}")),
            );
            lost.push(format!("ready: {}", self.ready()));
        }
        lost.extend(self.contradictions());
        if self.engine.is_some() {
            self.compare(&mut lost);
            self.stop_all(&mut lost);
        }
        self.leaks(&mut lost);
        let late = self.latest_beat();
        if late > beat_slack {
            lost.push(format!("a heartbeat came {:.1} s late", late.as_secs_f32()));
        }
        let violations = self.view()["violations"].as_u64().unwrap();
        if violations > 0 {
            lost.push(format!("{violations} messages of the agent break the protocol"));
        }
        lost
    }

    /// Jobs with more than one outcome.
    pub fn contradictions(&self) -> Vec<String> {
        let twice = |job: &&Value| job["contradicted"] != 0;
        self.jobs().iter().filter(twice).map(|job| format!("two outcomes: {job}")).collect()
    }

    /// Which replicas have to be there, by the outcomes; those whose stop failed may be there or not.
    fn expected(&self) -> BTreeMap<String, Option<bool>> {
        let mut expected = BTreeMap::new();
        for job in self.jobs() {
            let up = match (job["type"].as_str().unwrap(), job["result"]["status"].as_str()) {
                ("deploy", Some("running")) => Some(true),
                ("deploy", Some(_)) | ("stop", Some("stopped")) => Some(false),
                _ => None,
            };
            expected.insert(job["replica_id"].as_str().unwrap().to_owned(), up);
        }
        expected
    }

    /// Compares the outcomes, the engine and the agent's own view.
    fn compare(&self, lost: &mut Vec<String>) {
        let expected = self.expected();
        let mut differences = Vec::new();
        let agreed = wait_for(SOON, || {
            differences.clear();
            let Some(containers) = self.containers() else {
                differences.push("the engine does not answer".to_owned());
                return None;
            };
            let mut up: BTreeMap<&str, usize> = BTreeMap::new();
            for (replica, status) in containers.values() {
                *up.entry(replica).or_default() += 1;
                if !status.starts_with("Up") {
                    differences.push(format!("container of {replica} is {status}"));
                }
            }
            let status = self.status().unwrap_or_default();
            let said: BTreeSet<&str> = status["containers"]
                .as_array()
                .into_iter()
                .flatten()
                .filter(|container| container["status"] == "running")
                .filter_map(|container| container["replica_id"].as_str())
                .collect();
            for (replica, wanted) in &expected {
                let there = up.remove(replica.as_str()).unwrap_or(0);
                let wanted = wanted.map_or(there.min(1), usize::from);
                if there != wanted {
                    differences.push(format!("{replica}: {there} containers instead of {wanted}"));
                }
                if usize::from(said.contains(replica.as_str())) != wanted {
                    differences.push(format!("{replica}: the agent's own view differs ({wanted} expected)"));
                }
            }
            differences
                .extend(up.keys().map(|replica| format!("a container of {replica}, which nobody asked for")));
            differences.is_empty().then_some(())
        });
        if agreed.is_none() {
            lost.append(&mut differences);
        }
    }

    fn stop_all(&self, lost: &mut Vec<String>) {
        let there: Vec<String> =
            self.expected().into_iter().filter(|(_, up)| *up != Some(false)).map(|(id, _)| id).collect();
        for replica in &there {
            self.stop(replica);
        }
        if self.recovered(Instant::now(), SOON).is_none() {
            lost.push(format!("{} of the last stops have no outcome", self.open()));
        }
        if wait_for(SOON, || self.containers()?.is_empty().then_some(())).is_none() {
            lost.push(format!("left in the engine: {:?}", self.containers()));
        }
    }

    /// Processes of ours that should not be there any more: children of the agent, and whatever names a container that
    /// is gone, this rig's label, or its files.
    fn leaks(&self, lost: &mut Vec<String>) {
        let mut words: BTreeSet<String> = self.seen.lock().unwrap().clone();
        words.extend(
            self.jobs().iter().filter_map(|job| job["result"]["container_id"].as_str().map(str::to_owned)),
        );
        words.insert(format!("{LABEL}={}", self.name));
        words.insert(self.home.path().join("bin").to_str().unwrap().to_owned());
        // Looks come and go: only what is seen for the whole time is left over.
        let mut left: Option<Vec<Process>> = None;
        let clean = wait_for(SOON, || {
            let mut found = processes::naming(&words);
            // Its own settings name the CLI.
            found.retain(|process| process.pid != self.pid());
            found.extend(processes::children(self.pid()));
            left = Some(match left.take() {
                None => found,
                Some(before) => before.into_iter().filter(|p| found.iter().any(|f| f.pid == p.pid)).collect(),
            });
            left.as_ref()?.is_empty().then_some(())
        });
        if clean.is_none() {
            lost.extend(left.into_iter().flatten().map(|process| format!("left running: {process:?}")));
        }
    }
}

impl Drop for Rig {
    fn drop(&mut self) {
        self.agent = None;
        let Some(engine) = &self.engine else { return };
        // After a failure; else nothing is left.
        for id in self.containers().unwrap_or_default().keys() {
            engine.ask(&["rm", "-f", id]);
        }
    }
}

/// The CLI that the agent gets: the engine's, limited to the containers of this rig.
fn write_cli(folder: &Path, engine: Option<&Engine>, before: &str, name: &str) -> PathBuf {
    let mut script = format!("#!/bin/sh\n{before}\n");
    if let Some(engine) = engine {
        let real = engine.path().display();
        script += &format!(
            "case \"$1\" in\n\
             ps) shift; exec '{real}' ps --filter label={LABEL}={name} \"$@\" ;;\n\
             run) shift; exec '{real}' run --label {LABEL}={name} \"$@\" ;;\n\
             esac\nexec '{real}' \"$@\"\n"
        );
    }
    let path = folder.join("bin").join(engine.map_or("nerdctl", |engine| engine.kind.as_str()));
    std::fs::create_dir_all(path.parent().unwrap()).unwrap();
    std::fs::write(&path, script).unwrap();
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
    path
}

/// Registers a node under a machine ID of its own (the agents of one machine would all be one node), and writes its
/// identity.
fn register(plane: &ControlPlane, machine: &str, state_dir: &Path) -> String {
    let body = json!({"machine_id": machine, "hostname": machine, "agent_version": "0", "system_info": {}});
    let client = ureq::Agent::config_builder().proxy(None).timeout_global(Some(SOON)).build().new_agent();
    let mut response = client
        .post(format!("http://{}/register", plane.address()))
        .header("Authorization", format!("Bearer {TOKEN}"))
        .send(body.to_string())
        .unwrap();
    let identity: Value = serde_json::from_str(&response.body_mut().read_to_string().unwrap()).unwrap();
    std::fs::create_dir_all(state_dir).unwrap();
    std::fs::write(state_dir.join("node.json"), identity.to_string()).unwrap();
    identity["node_id"].as_str().unwrap().to_owned()
}
