//! A core with everything around it in one place: the engine's calls are carried out at once unless they are held,
//! saves and samples are answered at once unless told otherwise, and what is sent is read as short lines.

use std::collections::{BTreeMap, VecDeque};
use std::time::{Duration, Instant};

use serde_json::Value;
use vectorlay::core::allowed::Allowed;
use vectorlay::core::identity::Identity;
use vectorlay::core::inventory::{Check, Gpu, Hardware, MicroVm, Usage};
use vectorlay::core::job::{Job, JobId, Outcome};
use vectorlay::core::link_api::{Down, DownReason, LinkCommand, LinkEvent, LinkId};
use vectorlay::core::operator::{ControlId, Request};
use vectorlay::core::{Action, Core, End, Event, LeftoverCall, Origin, Sample, Settings};
use vectorlay::types::{ContainerId, NodeId, Secret};

use crate::engine::{Engine, Fault, Mode, Status};

pub const SECOND: Duration = Duration::from_secs(1);

/// What a rig starts from.
pub struct Start {
    pub node: Option<&'static str>,
    pub token: Option<&'static str>,
    pub record: Option<String>,
    pub boot_id: Option<&'static str>,
    pub table: Option<String>,
    pub engine: Engine,
    pub orphans: BTreeMap<String, LeftoverCall>,
    /// Calls of an earlier process can be looked for.
    pub searching: bool,
    pub gpus: usize,
    pub queue_limit: usize,
    pub image_marks: Option<(u8, u8)>,
    pub ask_guests: bool,
    pub seed: u64,
}

impl Default for Start {
    fn default() -> Self {
        Self {
            node: Some("node-1"),
            token: Some("vtk_1"),
            record: None,
            boot_id: Some("boot-1"),
            table: None,
            engine: Engine::new(),
            orphans: BTreeMap::new(),
            searching: true,
            gpus: 2,
            queue_limit: 4,
            image_marks: None,
            ask_guests: false,
            seed: 1,
        }
    }
}

pub struct Rig {
    pub now: Instant,
    pub core: Core,
    pub engine: Engine,
    /// Calls whose names begin so are not carried out by themselves.
    held: Vec<&'static str>,
    /// How the next call of this name goes wrong.
    faults: VecDeque<(&'static str, Fault)>,
    calls: Vec<(JobId, Job)>,
    pub started: Vec<String>,
    sent: Vec<String>,
    payloads: Vec<(String, Value)>,
    pub link: Option<LinkId>,
    pub orders: Vec<LinkCommand>,
    pub pings: Vec<u64>,
    pub saving: bool,
    pub record: Option<String>,
    pub table: Option<String>,
    unsaved: Vec<(u64, String)>,
    pub sampling: bool,
    pub usage: Usage,
    pub gpus: usize,
    pub orphans: BTreeMap<String, LeftoverCall>,
    pub searching: bool,
    pub watched: Vec<ContainerId>,
    pub other: Vec<String>,
    pub log: Vec<String>,
    pub end: Option<End>,
    reply: Option<Value>,
    pub identity: Option<Identity>,
}

impl Rig {
    /// A process that has just been started.
    pub fn start(start: Start) -> Self {
        let now = Instant::now();
        let settings = Settings {
            version: "0",
            runtime: "runc".into(),
            workers: 2,
            queue_limit: start.queue_limit,
            retention: Duration::from_secs(600),
            reconcile: Duration::from_secs(60),
            recheck: Duration::from_secs(600),
            grace: Duration::from_secs(20),
            min_free_bytes: 5,
            image_marks: start.image_marks,
            reserve_memory_mib: 1024,
            ask_guests: start.ask_guests,
            gpu_retest: Duration::ZERO,
            allowed: Allowed::everything(),
        };
        let identity = |node: &str| Identity {
            node_id: NodeId::new(node).unwrap(),
            node_token: None,
            spec_key: Some([7; 32]),
        };
        let origin = Origin {
            identity: start.node.map(identity),
            fresh_key: [7; 32],
            token: start.token.map(|token| Secret::new(token.into())),
            record: start.record.clone(),
            table: start.table.clone(),
            seed: start.seed,
            machine_id: None,
            boot_id: start.boot_id.map(str::to_owned),
        };
        let mut out = Vec::new();
        let core = Core::new(now, settings, origin, &mut out);
        let mut rig = Self {
            now,
            core,
            engine: start.engine,
            held: Vec::new(),
            faults: VecDeque::new(),
            calls: Vec::new(),
            started: Vec::new(),
            sent: Vec::new(),
            payloads: Vec::new(),
            link: None,
            orders: Vec::new(),
            pings: Vec::new(),
            saving: true,
            record: start.record,
            table: start.table,
            unsaved: Vec::new(),
            sampling: true,
            usage: Usage { free_bytes: Some(1 << 40), ..Usage::default() },
            gpus: start.gpus,
            orphans: start.orphans,
            searching: start.searching,
            watched: Vec::new(),
            other: Vec::new(),
            log: Vec::new(),
            end: None,
            reply: None,
            identity: None,
        };
        rig.perform(out);
        rig
    }

    /// A node that is connected, knows its containers and has told so.
    pub fn online() -> Self {
        let mut rig = Self::start(Start::default());
        rig.connect();
        rig.sent();
        rig.started.clear();
        rig
    }

    /// The same disk and engine, another process.
    pub fn restart(self) -> Self {
        let Self { record, table, engine, gpus, .. } = self;
        Self::start(Start { record, table, engine, gpus, seed: 2, ..Start::default() })
    }

    pub fn event(&mut self, event: Event) {
        let mut out = Vec::new();
        self.core.handle(self.now, event, &mut out);
        self.perform(out);
    }

    fn perform(&mut self, actions: Vec<Action>) {
        let mut events = Vec::new();
        for action in actions {
            match action {
                Action::Link(order) => self.order(order),
                Action::Job(id, job) => {
                    self.started.push(job.to_string());
                    self.calls.push((id, job));
                }
                Action::Watch(container, _) => self.watched.push(container),
                Action::Unwatch(container) => self.watched.retain(|watched| *watched != container),
                Action::FindLeftoverCalls => {
                    events.push(Event::LeftoverCalls(self.searching.then(|| self.orphans.clone())));
                }
                Action::Sample(sample) if self.sampling => self.sample(sample, &mut events),
                Action::Save(seq, text) if self.saving => {
                    self.record = Some(text);
                    events.push(Event::Saved(seq));
                }
                Action::Save(seq, text) => self.unsaved.push((seq, text)),
                Action::SaveTable(table) => {
                    self.table = Some(table);
                    events.push(Event::TableSaved);
                }
                Action::SaveIdentity(identity) => {
                    self.identity = Some(identity);
                    events.push(Event::IdentitySaved);
                }
                Action::Reply(_, reply) => self.reply = Some(reply),
                Action::End(end) => self.end = Some(end),
                Action::CancelJob(_) | Action::EndLeftoverCalls(_) => self.other.push(action.to_string()),
                Action::Log(level, text) => self.log.push(format!("{level} {text}")),
                Action::EndShim(container) => {
                    self.other
                        .push(format!("end the shim of {}", self.engine.containers[&container].replica));
                    self.engine.end_shim(&container);
                }
                Action::Sample(_) | Action::CleanUp(_) => {}
            }
        }
        for event in events {
            self.event(event);
        }
        self.work();
    }

    /// Carries out the calls that are not held.
    fn work(&mut self) {
        let free = |rig: &Self, job: &Job| {
            let name = job.to_string();
            rig.engine.mode != Mode::Frozen && !rig.held.iter().any(|held| name.starts_with(held))
        };
        while let Some(n) = self.calls.iter().position(|(_, job)| free(self, job)) {
            self.carry_out(n);
        }
    }

    fn carry_out(&mut self, n: usize) {
        let (id, job) = self.calls.remove(n);
        let name = job.to_string();
        let fault = self.faults.iter().position(|(of, _)| name.starts_with(of));
        let fault = fault.and_then(|n| self.faults.remove(n)).map_or(Fault::Nothing, |(_, fault)| fault);
        let outcome = self.engine.call(&job, fault);
        self.event(Event::Job(id, outcome));
    }

    /// Calls whose names begin so wait from now on.
    pub fn hold(&mut self, name: &'static str) {
        self.held.push(name);
    }

    /// And now they go on.
    pub fn release(&mut self, name: &'static str) {
        self.held.retain(|held| *held != name);
        self.work();
    }

    /// The next call whose name begins so goes wrong.
    pub fn spoil(&mut self, name: &'static str, fault: Fault) {
        self.faults.push_back((name, fault));
    }

    /// A held call comes back with this.
    pub fn comes_back(&mut self, name: &str, outcome: impl FnOnce(&Job) -> Outcome) {
        let n = self.calls.iter().position(|(_, job)| job.to_string().starts_with(name));
        let (id, job) = self.calls.remove(n.unwrap_or_else(|| panic!("{name} is not under way")));
        self.event(Event::Job(id, outcome(&job)));
    }

    /// Looks at a held call.
    pub fn look(&self, name: &str, at: impl FnOnce(&Job)) {
        at(&self.calls.iter().find(|(_, job)| job.to_string().starts_with(name)).unwrap().1);
    }

    pub fn under_way(&self, name: &str) -> usize {
        self.calls.iter().filter(|(_, job)| job.to_string().starts_with(name)).count()
    }

    fn order(&mut self, order: LinkCommand) {
        match &order {
            LinkCommand::Dial { link, .. } | LinkCommand::Register { link, .. } => self.link = Some(*link),
            LinkCommand::Send(_, text) => {
                self.sent.push(line(text));
                let mut message: Value = serde_json::from_str(text).unwrap();
                let kind = message["type"].as_str().unwrap().to_owned();
                self.payloads.push((kind, message["payload"].take()));
            }
            LinkCommand::Ping(_, number) => self.pings.push(*number),
            LinkCommand::Close { .. } | LinkCommand::Reject { .. } | LinkCommand::Abandon(_) => {}
        }
        if !matches!(order, LinkCommand::Send(..) | LinkCommand::Ping(..)) {
            self.orders.push(order);
        }
    }

    fn sample(&mut self, sample: Sample, events: &mut Vec<Event>) {
        match sample {
            Sample::Usage => events.push(Event::Usage(self.usage.clone())),
            Sample::Checks => {
                events.push(Event::Check(check(self.engine.mode == Mode::Well)));
                events.push(Event::ChecksDone);
            }
            Sample::Hardware => events.push(Event::Hardware(Box::new(hardware(self.gpus)))),
        }
    }

    pub fn link(&mut self, event: LinkEvent) {
        let link = self.link.unwrap();
        self.event(Event::Link(link, event));
    }

    pub fn down(&mut self, why: DownReason) {
        self.orders.clear();
        self.link(LinkEvent::Down(Down { why, retry_after: None, detail: "gone".into() }));
    }

    /// The attempt that is under way, or the next one, succeeds.
    pub fn connect(&mut self) {
        for _ in 0..60 {
            if matches!(self.orders.last(), Some(LinkCommand::Dial { .. })) {
                self.orders.clear();
                self.link(LinkEvent::Up);
                return;
            }
            self.wait(SECOND);
        }
        panic!("no attempt was made within a minute");
    }

    /// The server says something.
    pub fn hear(&mut self, kind: &str, payload: &str) {
        self.link(LinkEvent::Text(format!(r#"{{"type":"{kind}","payload":{payload}}}"#)));
    }

    /// `deploy` of image a, with a request ID unless it is empty.
    pub fn deploy(&mut self, replica: &str, request: &str) {
        self.deploy_with(replica, request, "");
    }

    pub fn deploy_with(&mut self, replica: &str, request: &str, more: &str) {
        let image = if more.contains("\"image\"") { "" } else { r#","image":"img:a""# };
        let payload = format!(r#"{{"replica_id":"{replica}"{image}{}{more}}}"#, with(request));
        self.hear("deploy", &payload);
    }

    pub fn stop(&mut self, replica: &str, request: &str) {
        self.hear("stop", &format!(r#"{{"replica_id":"{replica}"{}}}"#, with(request)));
    }

    /// The peer answers the newest ping.
    pub fn pong(&mut self) {
        let number = *self.pings.last().unwrap();
        self.link(LinkEvent::Pong(number));
    }

    /// The heartbeat's timer fires.
    pub fn beat(&mut self) {
        self.event(Event::HeartbeatDue);
    }

    /// Time passes, with a tick at each deadline; the peer stays alive.
    pub fn wait(&mut self, time: Duration) {
        self.pass(time, true);
    }

    /// Time passes, and nothing comes from the peer.
    pub fn wait_in_silence(&mut self, time: Duration) {
        self.pass(time, false);
    }

    fn pass(&mut self, time: Duration, alive: bool) {
        let end = self.now + time;
        let mut spins = 0;
        while let Some(at) = self.core.next_deadline().filter(|at| *at <= end) {
            spins = if at <= self.now { spins + 1 } else { 0 };
            assert!(spins < 20, "the core spins");
            self.now = self.now.max(at);
            if alive && let Some(link) = self.link {
                self.event(Event::Link(link, LinkEvent::Alive));
            }
            self.event(Event::Tick);
        }
        self.now = end;
    }

    /// What was sent since this was last asked; heartbeats, `system_info` and the way up are left out.
    pub fn sent(&mut self) -> Vec<String> {
        let news = |line: &String| {
            !["heartbeat", "system_info", "node_state"].iter().any(|kind| line.starts_with(kind))
                && !line.ends_with("starting")
                && !line.ends_with("pulling")
        };
        self.everything_sent().into_iter().filter(news).collect()
    }

    /// The payloads of what was sent of this kind since anything was last asked.
    pub fn payloads(&mut self, kind: &str) -> Vec<Value> {
        let all = std::mem::take(&mut self.payloads);
        self.sent.clear();
        all.into_iter().filter(|(of, _)| of == kind).map(|(_, payload)| payload).collect()
    }

    pub fn everything_sent(&mut self) -> Vec<String> {
        self.payloads.clear();
        std::mem::take(&mut self.sent)
    }

    /// What of the containers the last heartbeat would say.
    pub fn containers(&mut self) -> Vec<String> {
        let status = self.control(Request::Status);
        let one =
            |c: &Value| format!("{} {}", c["replica_id"].as_str().unwrap(), c["status"].as_str().unwrap());
        status["containers"].as_array().unwrap().iter().map(one).collect()
    }

    pub fn control(&mut self, request: Request) -> Value {
        self.event(Event::Control(ControlId(1), request));
        self.reply.take().unwrap()
    }

    pub fn state(&mut self) -> String {
        self.control(Request::Status)["state"].as_str().unwrap().to_owned()
    }

    /// The container of a replica ends by itself, and the watcher sees it.
    pub fn ends(&mut self, replica: &str, code: i32) {
        let id = self.container(replica);
        self.engine.containers.get_mut(&id).unwrap().status = Status::Exited(code);
        self.event(Event::ProcessEnded(id));
    }

    pub fn container(&self, replica: &str) -> ContainerId {
        let (id, _) = self.engine.of(replica).next().unwrap_or_else(|| panic!("{replica} has no container"));
        id.clone()
    }

    pub fn up(&self, replica: &str) -> usize {
        self.engine.of(replica).filter(|(_, container)| matches!(container.status, Status::Up(_))).count()
    }

    /// The save that hangs, or waits, arrives after all, or fails.
    pub fn disk(&mut self, good: bool) {
        for (seq, text) in std::mem::take(&mut self.unsaved) {
            if good {
                self.record = Some(text);
                self.event(Event::Saved(seq));
            } else {
                self.event(Event::SaveFailed(seq, "state.json cannot be saved: no space".into()));
            }
        }
    }
}

fn with(request: &str) -> String {
    if request.is_empty() { String::new() } else { format!(r#","request_id":"{request}""#) }
}

/// `kind replica status[:code] [request]`.
fn line(text: &str) -> String {
    let message: Value = serde_json::from_str(text).unwrap();
    let payload = &message["payload"];
    let kind = message["type"].as_str().unwrap();
    let word = |name: &str| payload[name].as_str().map(str::to_owned);
    let Some(replica) = word("replica_id") else { return kind.to_owned() };
    let code = word("code").or_else(|| payload["exit_code"].as_i64().map(|code| code.to_string()));
    let code = code.map_or(String::new(), |code| format!(":{code}"));
    let request = word("request_id").map_or(String::new(), |request| format!(" {request}"));
    if kind == "logs" {
        return format!("logs {replica}{request} {}", word("error").unwrap_or_default());
    }
    format!("{kind} {replica} {}{code}{request}", word("status").unwrap_or_default())
}

pub fn check(ok: bool) -> Check {
    Check {
        name: "containerd",
        purpose: "Container runtime",
        required: true,
        installed: true,
        ok,
        version: None,
        modules: None,
        microvm: None,
        detail: if ok { String::new() } else { "does not answer: start it".into() },
    }
}

/// Kata's check, whose microVMs take 2,208 MiB each.
pub fn kata() -> Check {
    let microvm = Some(MicroVm { overhead_mib: Some(2208) });
    Check { name: "kata-runtime", microvm, ..check(true) }
}

/// A host with 16,000 MiB.
pub fn hardware(count: usize) -> Hardware {
    let gpu = |n: usize| Gpu::example(n as u8 + 1);
    Hardware {
        gpus: (0..count).map(gpu).collect(),
        hostname: Some("gpu-07".into()),
        memory_mib: Some(16_000),
        ..Hardware::default()
    }
}
