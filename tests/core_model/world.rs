//! The core in a world of virtual time: an engine, a server, a link between them, a disk and a host, each of which
//! goes wrong as the steps say. Every action of the core is checked against what may be done.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::{Duration, Instant};

use serde_json::Value;
use vectorlay::core::allowed::Allowed;
use vectorlay::core::identity::Identity;
use vectorlay::core::inventory::{Check, Gpu, Hardware, Health, Storage, Usage, Verdict};
use vectorlay::core::job::{FailureKind, Job, JobId, Outcome, RunJob};
use vectorlay::core::link_api::{Down, DownReason, LinkCommand, LinkEvent, LinkId, Registration};
use vectorlay::core::operator::{ControlId, Request};
use vectorlay::core::{Action, Core, End, Event, LeftoverCall, Origin, Sample, Settings};
use vectorlay::types::{ContainerId, NodeId, PciAddress, ReplicaId, Secret};

use crate::engine::{Engine, Fault, Mode, Status, failed};
use crate::server::Server;

/// Events without time passing after which the core is said to spin.
const SPIN_MAX: u32 = 20;
const WORKERS: usize = 2;
/// What replicas can be promised, and what is kept back.
const MEMORY_MIB: u64 = 9000;
const RESERVE_MIB: u64 = 1000;
const BEAT: Duration = Duration::from_secs(30);

/// A call under way. `outcome`: carried out, and not yet reported.
struct Flight {
    id: JobId,
    job: Job,
    deadline: Instant,
    outcome: Option<Outcome>,
}

pub enum Link {
    None,
    Dialing(LinkId),
    Registering(LinkId),
    Up(Connection),
}

pub struct Connection {
    id: LinkId,
    to_server: VecDeque<Frame>,
    to_agent: VecDeque<LinkEvent>,
    half_open: bool,
    informed: bool,
    beaten: bool,
    /// The server knows who is there, and sends what it has in order.
    greeted: bool,
    pings: u64,
    up: Instant,
    closing: bool,
}

enum Frame {
    Text(String),
    Ping(u64),
}

#[derive(Default)]
struct Store {
    saved: Option<String>,
    /// The table of replicas, and the one that is being written.
    table: Option<String>,
    table_in_flight: Option<String>,
    /// The number, what is saved, and since when this save and the one right before it are under way.
    in_flight: Option<(u64, String, Instant)>,
    since: Option<Instant>,
    /// When the last one was ordered, and when it was done.
    last: Option<(Instant, Instant)>,
    /// The last save failed: the gates are open.
    bad: bool,
    /// They were when the last good save was under way.
    was_bad: bool,
}

pub struct World {
    pub now: Instant,
    start: Instant,
    core: Core,
    incarnation: u64,
    seed: u64,
    pub engine: Engine,
    pub server: Server,
    flights: Vec<Flight>,
    orphans: Vec<(RunJob, Instant)>,
    scans: Vec<Option<BTreeMap<String, LeftoverCall>>>,
    pub link: Link,
    store: Store,
    identity: Option<Identity>,
    identity_in_flight: Option<Identity>,
    /// Readings of the hardware: the one being taken, and whether one waits.
    reading: Option<Option<Hardware>>,
    reading_waits: bool,
    other_samples: Vec<Sample>,
    watched: BTreeMap<ContainerId, i32>,
    watcher: VecDeque<Event>,
    beat: Instant,
    pub missing_gpus: BTreeSet<usize>,
    pub failed_gpus: BTreeSet<usize>,
    pub low_disk: bool,
    reply: Option<Value>,
    ended: bool,
    terminating: bool,
    pub broken: Option<String>,
    /// Events that the core was given.
    pub events: u64,
    pub trace: Option<Vec<String>>,
    /// Faults are over: everything goes well and at once.
    pub calm: bool,
}

fn settings() -> Settings {
    Settings {
        version: "0",
        runtime: "runc".into(),
        workers: WORKERS,
        queue_limit: 6,
        retention: Duration::from_secs(600),
        reconcile: Duration::from_secs(60),
        recheck: Duration::from_secs(120),
        grace: Duration::from_secs(20),
        min_free_bytes: 5,
        image_marks: Some((80, 60)),
        reserve_memory_mib: RESERVE_MIB,
        ask_guests: true,
        gpu_retest: Duration::from_secs(30),
        allowed: Allowed::everything(),
    }
}

impl World {
    pub fn new(seed: u64) -> Self {
        let now = Instant::now();
        let identity =
            Identity { node_id: NodeId::new("node-1").unwrap(), node_token: None, spec_key: Some([7; 32]) };
        let identity = (!seed.is_multiple_of(4)).then_some(identity);
        let mut out = Vec::new();
        let core = Core::new(now, settings(), Self::origin(identity.clone(), None, None, seed), &mut out);
        let mut world = Self {
            now,
            start: now,
            core,
            incarnation: 0,
            seed,
            engine: Engine::new(),
            server: Server::default(),
            flights: Vec::new(),
            orphans: Vec::new(),
            scans: Vec::new(),
            link: Link::None,
            store: Store::default(),
            identity,
            identity_in_flight: None,
            reading: None,
            reading_waits: false,
            other_samples: Vec::new(),
            watched: BTreeMap::new(),
            watcher: VecDeque::new(),
            beat: now + BEAT,
            missing_gpus: BTreeSet::new(),
            failed_gpus: BTreeSet::new(),
            low_disk: false,
            reply: None,
            ended: false,
            terminating: false,
            broken: None,
            events: 0,
            trace: None,
            calm: false,
        };
        for action in out {
            world.perform(action);
        }
        world
    }

    fn origin(
        identity: Option<Identity>,
        record: Option<String>,
        table: Option<String>,
        seed: u64,
    ) -> Origin {
        let token = Some(Secret::new("vtk_test".into()));
        Origin { identity, fresh_key: [9; 32], token, record, table, seed, machine_id: None, boot_id: None }
    }

    pub fn say(&mut self, text: impl FnOnce() -> String) {
        if let Some(trace) = &mut self.trace {
            trace.push(format!("{:9.3} {}", (self.now - self.start).as_secs_f64(), text()));
        }
    }

    fn breaks(&mut self, why: String) {
        self.say(|| format!("!!! {why}"));
        self.broken.get_or_insert(why);
    }

    /// The process dies; another one starts from what is on disk.
    pub fn crash(&mut self, luck: u32) {
        self.say(|| "=== crash".into());
        let store = std::mem::take(&mut self.store);
        let late = |since: Instant| store.was_bad || since + Duration::from_secs(2) <= self.now;
        if store.bad || store.in_flight.as_ref().is_some_and(|(.., since)| late(*since)) {
            // What was sent without its record, after 2 s, may be decided anew.
            for task in &mut self.server.tasks {
                task.weak = true;
            }
        }
        self.store.saved = match store.in_flight {
            Some((_, text, _)) if luck & 1 == 1 => Some(text),
            Some(_) | None => store.saved,
        };
        self.store.table = match store.table_in_flight {
            Some(text) if luck & 4 == 4 => Some(text),
            Some(_) | None => store.table,
        };
        if let Some(identity) = self.identity_in_flight.take()
            && luck & 2 == 2
        {
            self.identity = Some(identity);
        }
        for flight in std::mem::take(&mut self.flights) {
            if let Job::Run(run) = flight.job
                && flight.outcome.is_none()
            {
                self.orphans.push((*run, flight.deadline));
            }
        }
        self.scans.clear();
        self.link = Link::None;
        self.reading = None;
        self.reading_waits = false;
        self.other_samples.clear();
        self.watched.clear();
        self.watcher.clear();
        self.beat = self.now + BEAT;
        self.ended = false;
        self.terminating = false;
        self.server.forget_unarrived();
        self.incarnation += 1;
        self.seed = self.seed.wrapping_mul(6364136223846793005).wrapping_add(self.incarnation);
        let mut out = Vec::new();
        let (record, table) = (self.store.saved.clone(), self.store.table.clone());
        let origin = Self::origin(self.identity.clone(), record, table, self.seed);
        self.core = Core::new(self.now, settings(), origin, &mut out);
        for action in out {
            self.perform(action);
        }
        self.tick();
    }

    /// Hands an event to the core, and carries out what it says.
    pub fn handle(&mut self, event: Event) {
        self.hand(event);
        self.tick();
    }

    fn hand(&mut self, event: Event) {
        self.say(|| format!("--> {event}{}", detail(&event)));
        self.events += 1;
        let beat = matches!(event, Event::HeartbeatDue);
        let flowing = matches!(&self.link, Link::Up(up) if up.beaten && !up.closing);
        let mut out = Vec::new();
        self.core.handle(self.now, event, &mut out);
        let beaten = |action: &Action| matches!(action, Action::Link(LinkCommand::Send(_, text)) if text.contains(r#""type":"heartbeat""#));
        if beat && flowing && !out.iter().any(beaten) {
            self.breaks("no heartbeat was sent when it was due".into());
        }
        for action in out {
            self.perform(action);
        }
        let (runs, others): (Vec<&Flight>, Vec<&Flight>) =
            self.flights.iter().partition(|flight| matches!(flight.job, Job::Run(_) | Job::Pull(_)));
        if runs.len() > WORKERS + 3 || others.len() > 40 {
            let why = format!("{} deploys and {} other calls are under way", runs.len(), others.len());
            self.breaks(why);
        }
    }

    /// The main loop's part: ticks as long as the core's deadline has passed.
    fn tick(&mut self) {
        let mut spins = 0;
        while !self.ended && self.core.next_deadline().is_some_and(|at| at <= self.now) {
            spins += 1;
            if spins > SPIN_MAX {
                self.breaks("the core's deadline stays in the past: it spins".into());
                return;
            }
            self.hand(Event::Tick);
        }
        if self.ended {
            self.crash(1);
        } else {
            self.expect_rest();
        }
    }

    /// Nothing is waited for longer than the timer table says: before its next time there is nothing to do.
    fn expect_rest(&mut self) {
        if self.broken.is_some() || self.core.next_deadline().is_some_and(|at| at <= self.now) {
            return;
        }
        let mut out = Vec::new();
        self.core.handle(self.now, Event::Tick, &mut out);
        if let Some(action) = out.first() {
            self.breaks(format!("the core had more to do than its timers said: {action}"));
        }
        for action in out {
            self.perform(action);
        }
    }

    fn perform(&mut self, action: Action) {
        self.say(|| format!("    {action}{}", detail_of(&action)));
        match action {
            Action::Link(order) => self.link_order(order),
            Action::Job(id, job) => self.submit(id, job),
            Action::CancelJob(id) => {
                if let Some(flight) = self.flights.iter_mut().find(|flight| flight.id == id) {
                    flight
                        .outcome
                        .get_or_insert_with(|| failed(&flight.job, FailureKind::Deadline, "given up"));
                }
            }
            Action::Watch(container, pid) => {
                let there = self.engine.containers.get(&container).map(|c| c.status) == Some(Status::Up(pid));
                if !there {
                    self.watcher.push_back(Event::ProcessEnded(container.clone()));
                }
                self.watched.insert(container, pid);
            }
            Action::Unwatch(container) => _ = self.watched.remove(&container),
            Action::FindLeftoverCalls => self.scans.push(None),
            Action::EndLeftoverCalls(deploy) => self.end_orphan(&deploy, 1),
            Action::EndShim(container) => self.engine.end_shim(&container),
            Action::CleanUp(_) => {}
            Action::Sample(Sample::Hardware) if self.reading.is_some() => self.reading_waits = true,
            Action::Sample(Sample::Hardware) => self.reading = Some(None),
            Action::Sample(sample) => {
                if !self.other_samples.contains(&sample) {
                    self.other_samples.push(sample);
                }
            }
            Action::Save(seq, text) => {
                if self.store.in_flight.is_some() {
                    self.breaks("a save was ordered while one is under way".into());
                }
                let before =
                    self.store.last.filter(|(_, done)| *done == self.now).map(|(ordered, _)| ordered);
                self.store.in_flight = Some((seq, text, before.unwrap_or(self.now)));
                self.store.since = Some(self.now);
            }
            Action::SaveTable(text) => {
                if self.store.table_in_flight.replace(text).is_some() {
                    self.breaks("a table was ordered while one is being written".into());
                }
            }
            Action::SaveIdentity(identity) => self.identity_in_flight = Some(identity),
            Action::Reply(_, reply) => self.reply = Some(reply),
            Action::Log(..) => {}
            Action::End(End::Clean) if self.terminating => self.ended = true,
            Action::End(end) => self.breaks(format!("it ended: {end:?}")),
        }
    }

    fn submit(&mut self, id: JobId, job: Job) {
        let deploying = |flight: &Flight| matches!(flight.job, Job::Run(_) | Job::Pull(_));
        if matches!(job, Job::RemoveImage(_)) && self.flights.iter().any(deploying) {
            self.breaks("an image is removed while a deploy is under way".into());
        }
        if let Job::Run(run) = &job {
            let busy = |gpu: &PciAddress| run.gpus.iter().any(|(mine, _)| mine == gpu);
            let in_container = self.engine.containers.values().find(|c| c.gpus.iter().any(busy));
            let rivals = self.flights.iter().filter(|flight| flight.outcome.is_none()).filter_map(|flight| {
                match &flight.job {
                    Job::Run(other) => Some(&**other),
                    _ => None,
                }
            });
            let mut rivals = rivals.chain(self.orphans.iter().map(|(run, _)| run));
            if let Some(container) = in_container {
                let why = format!("{} gets a GPU of a container of {}", run.name, container.replica);
                self.breaks(why);
            } else if let Some(other) = rivals.find(|other| other.gpus.iter().any(|(gpu, _)| busy(gpu))) {
                let why = format!("{} gets a GPU that a run of {} has", run.name, other.name);
                self.breaks(why);
            }
            self.check_memory(run);
        }
        let lasts = match &job {
            Job::Run(run) => run.deadline,
            Job::Pull(pull) => pull.deadline,
            Job::Stop(_, time) => *time + Duration::from_secs(30),
            Job::Remove(_) => Duration::from_secs(60),
            Job::List
            | Job::Inspect(_)
            | Job::Probe
            | Job::Logs(..)
            | Job::Images
            | Job::RemoveImage(_)
            | Job::GuestUse(..) => Duration::from_secs(20),
        };
        self.flights.push(Flight { id, job, deadline: self.now + lasts, outcome: None });
    }

    /// What runs, and what is being started, was not promised more than there is. What an earlier process promised may be
    /// lost with its record.
    fn check_memory(&mut self, run: &RunJob) {
        let living = self.engine.containers.values().filter(|c| !matches!(c.status, Status::Exited(_)));
        let started = self.flights.iter().filter(|flight| flight.outcome.is_none());
        let starting = started.filter_map(|flight| match &flight.job {
            Job::Run(other) => Some(other.spec.memory_mib.unwrap_or(0)),
            _ => None,
        });
        let others: u64 = living.map(|c| c.memory_mib).chain(starting).sum();
        let asked = run.spec.memory_mib.unwrap_or(0);
        if asked > 0 && others + asked > MEMORY_MIB && self.incarnation == 0 {
            self.breaks(format!("{} gets {asked} MiB, and others have {others}", run.name));
        }
    }

    fn link_order(&mut self, order: LinkCommand) {
        match order {
            LinkCommand::Dial { link, .. } | LinkCommand::Register { link, .. }
                if !matches!(self.link, Link::None) =>
            {
                self.breaks(format!("{link} is tried while another lives"));
            }
            LinkCommand::Dial { link, .. } => self.link = Link::Dialing(link),
            LinkCommand::Register { link, .. } => self.link = Link::Registering(link),
            LinkCommand::Send(link, text) => self.send(link, text),
            LinkCommand::Ping(link, number) => match &mut self.link {
                Link::Up(up) if up.id == link => {
                    let again = number <= up.pings;
                    up.pings = number;
                    up.to_server.push_back(Frame::Ping(number));
                    if again {
                        self.breaks(format!("ping {number} was used before"));
                    }
                }
                _ => self.breaks(format!("a ping for {link}, which is not up")),
            },
            LinkCommand::Close { link, .. } => match &mut self.link {
                Link::Up(up) if up.id == link => up.closing = true,
                _ => self.breaks(format!("{link} is closed, which is not up")),
            },
            // The world's server sends no more nonsense than a clumsy one.
            LinkCommand::Reject { link, detail } => self.breaks(format!("{link} is rejected: {detail}")),
            LinkCommand::Abandon(link) => {
                if self.link_id() == Some(link) {
                    self.link = Link::None;
                } else {
                    self.breaks(format!("{link} is given up, which is not the present one"));
                }
            }
        }
    }

    fn link_id(&self) -> Option<LinkId> {
        match &self.link {
            Link::None => None,
            Link::Dialing(id) | Link::Registering(id) => Some(*id),
            Link::Up(up) => Some(up.id),
        }
    }

    fn send(&mut self, link: LinkId, text: String) {
        let Link::Up(up) = &mut self.link else {
            self.breaks(format!("something is sent on {link}, which is not up"));
            return;
        };
        if up.id != link || up.closing {
            self.breaks(format!("something is sent on {link}, which is over"));
            return;
        }
        let message: Value = serde_json::from_str(&text).unwrap();
        let kind = message["type"].as_str().unwrap();
        let wrong = match kind {
            "system_info" => {
                up.informed = true;
                None
            }
            _ if !up.informed => Some("before system_info"),
            "heartbeat" => {
                if !up.beaten && up.up + Duration::from_millis(2100) < self.now {
                    Some("too late for a first one")
                } else {
                    up.beaten = true;
                    None
                }
            }
            _ if !up.beaten => Some("before the first heartbeat"),
            _ => None,
        };
        if matches!(kind, "deploy_result" | "stop_result") {
            self.server.note_sent(&message["payload"]);
        }
        if up.to_server.len() < 10_000 {
            up.to_server.push_back(Frame::Text(text.clone()));
        }
        if let Some(wrong) = wrong {
            self.breaks(format!("{kind} is sent {wrong}"));
        }
    }

    /// Time passes; what is due meanwhile happens.
    pub fn advance(&mut self, time: Duration) {
        let end = self.now + time;
        while self.broken.is_none() {
            let flights = self.flights.iter().map(|flight| flight.deadline);
            let orphans = self.orphans.iter().map(|(_, deadline)| *deadline);
            let core = self.core.next_deadline();
            let next = flights.chain(orphans).chain([self.beat]).chain(core).min().unwrap_or(end);
            if next > end {
                break;
            }
            self.now += next.saturating_duration_since(self.now) / 2;
            self.expect_rest();
            self.now = self.now.max(next);
            while let Some(late) = self.flights.iter().position(|flight| flight.deadline <= self.now) {
                let luck = self.flights[late].id.0 as u32;
                self.carry_out(late, None, luck);
                self.report(late);
            }
            if let Some(late) = self.orphans.iter().position(|(_, deadline)| *deadline <= self.now) {
                // Nobody holds an orphan to its deadline: its own process is gone.
                self.orphans[late].1 = self.now + Duration::from_secs(100_000);
            }
            if self.beat <= self.now {
                self.beat += BEAT;
                self.handle(Event::HeartbeatDue);
            }
            self.tick();
            if self.calm {
                self.progress();
            }
        }
        self.now += end.saturating_duration_since(self.now) / 2;
        self.expect_rest();
        self.now = end;
        self.tick();
    }

    /// Carries a call out; `None`: its deadline ended it.
    pub fn carry_out(&mut self, n: usize, fault: Option<Fault>, luck: u32) {
        let flight = &mut self.flights[n];
        if flight.outcome.is_some() || fault.is_some() && self.engine.mode == Mode::Frozen {
            return;
        }
        let outcome = match fault {
            Some(Fault::Deadline) | None => self.engine.killed(&flight.job, luck),
            Some(fault) => self.engine.call(&flight.job, fault),
        };
        flight.outcome = Some(outcome);
        let job = flight.job.clone();
        self.say(|| format!("... {job} carried out ({fault:?})"));
        self.notice_ends();
        self.check_doubles();
    }

    pub fn flights(&self) -> usize {
        self.flights.len()
    }

    /// Reports a call that was carried out.
    pub fn report(&mut self, n: usize) {
        if self.flights[n].outcome.is_some() {
            let flight = self.flights.remove(n);
            if let Some(outcome) = flight.outcome {
                self.handle(Event::Job(flight.id, outcome));
            }
        }
    }

    fn check_doubles(&mut self) {
        let mut live: BTreeSet<&str> = BTreeSet::new();
        let mut gpus: BTreeSet<PciAddress> = BTreeSet::new();
        let mut wrong = None;
        for container in self.engine.containers.values() {
            if !matches!(container.status, Status::Up(_)) {
                continue;
            }
            if !live.insert(&container.replica) {
                wrong = Some(format!("{} runs twice", container.replica));
            }
            for gpu in &container.gpus {
                if !gpus.insert(*gpu) {
                    wrong = Some(format!("{gpu} is in two running containers"));
                }
            }
        }
        if let Some(wrong) = wrong {
            self.breaks(wrong);
        }
    }

    /// What the watcher sees of ended processes.
    fn notice_ends(&mut self) {
        let ended: Vec<ContainerId> = self
            .watched
            .iter()
            .filter(|(id, pid)| self.engine.containers.get(*id).map(|c| c.status) != Some(Status::Up(**pid)))
            .map(|(id, _)| id.clone())
            .collect();
        for id in ended {
            self.watched.remove(&id);
            self.watcher.push_back(Event::ProcessEnded(id));
        }
    }

    pub fn watch_event(&mut self, unwatchable: bool) {
        if unwatchable {
            if let Some((id, _)) = self.watched.pop_first() {
                self.handle(Event::Unwatchable(id));
            }
        } else if let Some(event) = self.watcher.pop_front() {
            self.handle(event);
        }
    }

    /// A container ends by itself, or somebody removes it.
    pub fn meddle(&mut self, luck: u32, remove: bool) {
        let up: Vec<ContainerId> = self
            .engine
            .containers
            .iter()
            .filter(|(_, c)| remove || matches!(c.status, Status::Up(_)))
            .map(|(id, _)| id.clone())
            .collect();
        let Some(id) = up.get(luck as usize % up.len().max(1)) else { return };
        self.say(|| format!("... {} {}", id.short(), if remove { "removed by hand" } else { "ends" }));
        if remove {
            self.engine.containers.remove(id);
        } else if let Some(container) = self.engine.containers.get_mut(id) {
            container.status = Status::Exited((luck % 200) as i32);
            container.by_itself = true;
        }
        self.notice_ends();
    }

    /// A container's shim stops answering, or answers again.
    pub fn hang_or_thaw(&mut self, luck: u32) {
        let containers = &self.engine.containers;
        let Some(id) = containers.keys().nth(luck as usize % containers.len().max(1)).cloned() else {
            return;
        };
        self.say(|| format!("... the shim of {} hangs or thaws", id.short()));
        if !self.engine.hung.remove(&id) {
            self.engine.hung.insert(id);
        }
    }

    /// A call of a dead process goes on.
    pub fn orphan(&mut self, luck: u32, fault: Fault) {
        if self.orphans.is_empty() || self.engine.mode == Mode::Frozen {
            return;
        }
        let (run, _) = self.orphans.remove(luck as usize % self.orphans.len());
        self.say(|| format!("... orphan {} carried out ({fault:?})", run.name));
        let job = Job::Run(Box::new(run));
        _ = self.engine.call(&job, fault);
        self.check_doubles();
    }

    fn end_orphan(&mut self, deploy: &str, luck: u32) {
        let of = |run: &RunJob| run.labels.iter().any(|(_, value)| value == deploy);
        if let Some(n) = self.orphans.iter().position(|(run, _)| of(run)) {
            let (run, _) = self.orphans.remove(n);
            _ = self.engine.killed(&Job::Run(Box::new(run)), luck);
        }
    }

    /// The search for calls of a dead process: looks, or reports what it saw.
    pub fn scan(&mut self) {
        let Some(scan) = self.scans.first_mut() else { return };
        if scan.is_none() {
            let name = |run: &RunJob| {
                let gpus = run.gpus.iter().map(|(gpu, _)| *gpu).collect();
                (
                    run.labels[1].1.clone(),
                    LeftoverCall { replica: ReplicaId::new(&run.labels[0].1).unwrap(), gpus },
                )
            };
            *scan = Some(self.orphans.iter().map(|(run, _)| name(run)).collect());
        } else if let Some(found) = self.scans.remove(0) {
            self.handle(Event::LeftoverCalls(Some(found)));
        }
    }

    /// The disk: `0` done, `1` failed, else nothing.
    pub fn disk(&mut self, how: u32) {
        match (how, self.store.in_flight.take()) {
            (_, None) => self.table_disk(how),
            (0, Some((seq, text, _))) => {
                self.store.saved = Some(text);
                self.store.was_bad = std::mem::take(&mut self.store.bad);
                self.store.last = self.store.since.map(|ordered| (ordered, self.now));
                self.handle(Event::Saved(seq));
            }
            (1, Some((seq, text, _))) => {
                if seq % 2 == 1 {
                    self.store.saved = Some(text);
                }
                self.store.bad = true;
                self.handle(Event::SaveFailed(seq, "disk full".into()));
            }
            (_, kept) => self.store.in_flight = kept,
        }
        match (how, self.identity_in_flight.take()) {
            (_, None) => {}
            (0, Some(identity)) => {
                self.identity = Some(identity);
                self.handle(Event::IdentitySaved);
            }
            (1, Some(_)) => self.handle(Event::IdentityFailed("disk full".into())),
            (_, kept) => self.identity_in_flight = kept,
        }
    }

    /// The same for the table, which everything else is written before.
    fn table_disk(&mut self, how: u32) {
        match (how, self.store.table_in_flight.take()) {
            (_, None) => {}
            (0, Some(text)) => {
                self.store.table = Some(text);
                self.handle(Event::TableSaved);
            }
            (1, Some(text)) => {
                if text.len().is_multiple_of(2) {
                    self.store.table = Some(text);
                }
                self.handle(Event::TableFailed("disk full".into()));
            }
            (_, kept) => self.store.table_in_flight = kept,
        }
    }

    pub fn sampler(&mut self) {
        match &mut self.reading {
            Some(reading @ None) => {
                let hardware = Hardware {
                    gpus: gpus(&self.engine, &self.missing_gpus, &self.failed_gpus),
                    memory_mib: Some(MEMORY_MIB + RESERVE_MIB),
                    ..Hardware::default()
                };
                *reading = Some(hardware);
            }
            Some(Some(_)) => {
                let done = self.reading.take().flatten();
                if std::mem::take(&mut self.reading_waits) {
                    self.reading = Some(None);
                }
                if let Some(hardware) = done {
                    self.handle(Event::Hardware(Box::new(hardware)));
                }
            }
            None => {}
        }
        match self.other_samples.pop() {
            Some(Sample::Checks) => {
                let check = Check {
                    name: "containerd",
                    purpose: "",
                    required: true,
                    installed: true,
                    ok: self.engine.mode == Mode::Well,
                    version: None,
                    modules: None,
                    microvm: None,
                    detail: String::new(),
                };
                self.handle(Event::Check(check));
                self.handle(Event::ChecksDone);
            }
            Some(Sample::Usage) => {
                let (free, usage_percent) = if self.low_disk { (1, 90) } else { (1 << 40, 50) };
                let storage = Storage { path: "/".into(), total_gb: 1, used_gb: 1, usage_percent };
                let usage = Usage { free_bytes: Some(free), storage: Some(storage), ..Usage::default() };
                self.handle(Event::Usage(usage));
            }
            Some(Sample::Hardware) | None => {}
        }
    }

    /// The attempt to connect comes to an end.
    pub fn dialed(&mut self, how: u32) {
        let down = |why| Down { why, retry_after: None, detail: "no".into() };
        let (event, link) = match &self.link {
            Link::Dialing(link) => {
                let event = match how {
                    0 => LinkEvent::Up,
                    1 => LinkEvent::Down(down(DownReason::NoConnection)),
                    2 => LinkEvent::Down(down(DownReason::Http(503))),
                    3 => LinkEvent::Down(down(DownReason::Http(410))),
                    _ => return,
                };
                (event, *link)
            }
            Link::Registering(link) => {
                let event = match how {
                    0 => Registration::Done { node: NodeId::new("node-1").unwrap(), token: None },
                    1 => Registration::Absent,
                    _ => Registration::Failed { retry_after: None, detail: "503".into() },
                };
                (LinkEvent::Registered(event), *link)
            }
            Link::None | Link::Up(_) => return,
        };
        self.link = Link::None;
        if event == LinkEvent::Up {
            let (to_server, to_agent) = Default::default();
            self.link = Link::Up(Connection {
                id: link,
                to_server,
                to_agent,
                half_open: false,
                informed: false,
                beaten: false,
                greeted: false,
                pings: 0,
                up: self.now,
                closing: false,
            });
        }
        self.handle(Event::Link(link, event));
    }

    /// The connection breaks, at both ends or at the server's alone.
    pub fn cut(&mut self, half: bool, why: DownReason) {
        let Link::Up(up) = &mut self.link else { return };
        up.to_server.clear();
        up.to_agent.clear();
        if half {
            up.half_open = true;
            return;
        }
        let link = up.id;
        self.link = Link::None;
        self.handle(Event::Link(
            link,
            LinkEvent::Down(Down { why, retry_after: None, detail: "cut".into() }),
        ));
    }

    /// The server reads up to `count` frames.
    pub fn serve(&mut self, count: usize) {
        for _ in 0..count {
            let Link::Up(up) = &mut self.link else { return };
            if up.half_open {
                up.to_server.clear();
                return;
            }
            match up.to_server.pop_front() {
                None if up.closing => {
                    let link = up.id;
                    self.link = Link::None;
                    let down =
                        Down { why: DownReason::Closed(1001), retry_after: None, detail: String::new() };
                    self.handle(Event::Link(link, LinkEvent::Down(down)));
                    return;
                }
                None => return,
                Some(Frame::Ping(number)) => up.to_agent.push_back(LinkEvent::Pong(number)),
                Some(Frame::Text(text)) => {
                    if text.contains(r#""type":"system_info""#) && !std::mem::replace(&mut up.greeted, true) {
                        if up.id.0 % 3 != 0 {
                            let named = r#"{"type":"registration_success","payload":{"node_id":"node-1"}}"#;
                            up.to_agent.push_back(LinkEvent::Text(named.into()));
                        }
                        for task in self.server.tasks.iter().filter(|task| task.outcome.is_none()) {
                            up.to_agent.push_back(LinkEvent::Text(task.text.clone()));
                        }
                    }
                    if let Err(why) = self.server.hear(&text, self.incarnation) {
                        self.breaks(why);
                    }
                }
            }
        }
    }

    /// The agent reads up to `count` frames.
    pub fn receive(&mut self, count: usize) {
        for _ in 0..count {
            let Link::Up(up) = &mut self.link else { return };
            let id = up.id;
            let Some(event) = up.to_agent.pop_front() else { return };
            if let LinkEvent::Text(text) = &event
                && !self.terminating
            {
                self.server.taken(text, self.incarnation);
            }
            self.handle(Event::Link(id, event));
        }
    }

    /// The server sends a command, if it can.
    pub fn post(&mut self, n: usize) {
        if let Link::Up(up) = &mut self.link
            && !up.half_open
            && up.greeted
        {
            up.to_agent.push_back(LinkEvent::Text(self.server.tasks[n].text.clone()));
        }
    }

    pub fn post_text(&mut self, text: &str) {
        if let Link::Up(up) = &mut self.link {
            up.to_agent.push_back(LinkEvent::Text(text.to_owned()));
        }
    }

    pub fn terminate(&mut self) {
        self.terminating = true;
        self.handle(Event::Terminate);
    }

    pub fn control(&mut self, request: Request) -> Value {
        self.reply = None;
        self.handle(Event::Control(ControlId(1), request));
        self.reply.take().unwrap_or_default()
    }

    /// Everything that can go on goes on, well, until nothing more can at this time.
    fn progress(&mut self) {
        for _ in 0..1000 {
            if self.broken.is_some() {
                return;
            }
            let before = self.core_busy();
            while !self.flights.is_empty() && self.broken.is_none() {
                self.carry_out(0, Some(Fault::Nothing), 0);
                self.report(0);
            }
            while !self.orphans.is_empty() {
                self.orphan(0, Fault::Nothing);
            }
            while !self.scans.is_empty() {
                self.scan();
            }
            self.watch_event(false);
            self.disk(0);
            self.sampler();
            self.dialed(0);
            self.serve(100);
            self.receive(100);
            if !before && !self.core_busy() {
                return;
            }
        }
        self.breaks("it does not come to rest".into());
    }

    fn core_busy(&self) -> bool {
        let link = match &self.link {
            Link::None => false,
            Link::Dialing(_) | Link::Registering(_) => true,
            Link::Up(up) => !up.to_server.is_empty() || !up.to_agent.is_empty() || up.closing,
        };
        !self.flights.is_empty()
            || !self.orphans.is_empty()
            || !self.scans.is_empty()
            || !self.watcher.is_empty()
            || self.store.in_flight.is_some()
            || self.store.table_in_flight.is_some()
            || self.identity_in_flight.is_some()
            || self.reading.is_some()
            || !self.other_samples.is_empty()
            || link
    }

    /// A heartbeat is due right now.
    pub fn beat(&mut self) {
        self.handle(Event::HeartbeatDue);
        self.progress();
    }

    /// Faults are over.
    pub fn calm_down(&mut self) {
        self.say(|| "=== calm".into());
        self.calm = true;
        self.engine.mode = Mode::Well;
        self.engine.hung.clear();
        self.missing_gpus.clear();
        self.failed_gpus.clear();
        self.low_disk = false;
        self.cut(false, DownReason::Broken);
        self.progress();
    }
}

/// Six GPUs in five groups on two NUMA nodes.
pub fn address(n: usize) -> PciAddress {
    PciAddress::parse(&format!("{:02x}:00.0", n + 1)).unwrap()
}

pub const GPUS: usize = 6;

fn gpus(engine: &Engine, missing: &BTreeSet<usize>, failed: &BTreeSet<usize>) -> Vec<Gpu> {
    let one = |n: usize| {
        let group = n.min(4) as u32;
        let same_group: Vec<PciAddress> =
            (0..GPUS).filter(|m| (*m).min(4) as u32 == group).map(address).collect();
        let busy = engine
            .containers
            .values()
            .any(|c| matches!(c.status, Status::Up(_)) && c.gpus.iter().any(|gpu| same_group.contains(gpu)));
        Gpu {
            address: address(n),
            iommu_group: Some(group),
            numa_node: Some(u32::from(n > 2)),
            device_node: Some(format!("/dev/vfio/{group}")),
            verdict: if busy { Verdict::Held("held by process 7".into()) } else { Verdict::Assignable },
            health: if failed.contains(&n) { Health::Failed("off the bus".into()) } else { Health::Ok },
            ..Gpu::example(0)
        }
    };
    (0..GPUS).filter(|n| !missing.contains(n)).map(one).collect()
}

fn detail(event: &Event) -> String {
    match event {
        Event::Link(_, LinkEvent::Text(text)) => format!(" {text}"),
        Event::Job(_, Outcome::Ran(Ok(id))) => format!(" {}", id.short()),
        Event::Job(_, Outcome::Listed(Ok(list))) => {
            let one =
                |c: &vectorlay::core::job::Listed| format!("{}={}:{:?}", c.id.short(), c.replica, c.status);
            format!(" {:?}", list.iter().map(one).collect::<Vec<_>>())
        }
        Event::LeftoverCalls(orphans) => format!(" {orphans:?}"),
        _ => String::new(),
    }
}

fn detail_of(action: &Action) -> String {
    match action {
        Action::Link(LinkCommand::Send(_, text))
            if text.contains("_result") || text.contains("replica_status") =>
        {
            format!(" {text}")
        }
        Action::Link(LinkCommand::Send(_, text)) => format!(" {:.40}", text),
        Action::Save(_, text) | Action::SaveTable(text) => format!(" {text}"),
        _ => String::new(),
    }
}
