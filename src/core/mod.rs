//! The pure core: every decision of the agent, as a state machine.
//!
//! It is fed [`Event`]s with the time and answers with [`Action`]s. It blocks on nothing, does no I/O, reads no
//! clock and starts no thread; the edges carry the actions out and decide nothing. After each event
//! [`Core::handle`] derives from the state alone what must be under way, so no handler can forget to kick something.
//!
//! - `session`: registering, connecting, liveness, when to try again
//! - `life`, over the tables of [`replica`]: what is done in each state of a replica
//! - [`outbox`]: results until the peer has them; `record` and [`disk`]: what survives the process
//! - [`gpus`]: who has which GPU; `engine`: whether it answers; [`node`]: states and messages

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::fmt;
use std::time::{Duration, Instant};

use log::Level;
use serde_json::{Map, Value, json};

use self::facts::{Check, Gpu, Hardware, Usage};
use self::job::{Failure, Job, JobId, Outcome, Spec};
use self::life::OWED_MAX;
use self::node::Mode;
use self::outbox::{Entry, Kind, Outbox};
use self::random::Random;
use self::replica::{Code, Phase, Refusal, Replica};
use self::session::Session;
use self::wire::{LinkEvent, LinkId, LinkOrder};
use crate::digest::{hex, keyed_hash};
use crate::protocol::{self, Command, Inbound};
use crate::types::{ContainerId, NodeId, PciAddress, ReplicaId, RequestId, Secret};

pub mod disk;
mod engine;
pub mod facts;
pub mod gpus;
pub mod job;
pub mod life;
pub mod node;
pub mod outbox;
pub mod random;
mod record;
pub mod replica;
pub mod session;
pub mod wire;

/// How many answers are remembered for their request IDs.
const ANSWERED_MAX: usize = 1024;
/// The most commands that wait for the table of containers.
const WAITING_MAX: usize = 1024;
/// How often the CLI calls of an earlier process are looked for while one is waited for.
const ORPHANS_EVERY: Duration = Duration::from_secs(1);
/// How long the last results are waited for before the session is closed.
const FLUSH_WITHIN: Duration = Duration::from_secs(3);
/// How long after a failed save of the identity it is tried again.
const IDENTITY_AGAIN: Duration = Duration::from_secs(10);

/// The node's identity, as it is kept.
#[derive(Debug, Clone, PartialEq)]
pub struct Identity {
    /// The node's ID.
    pub node_id: NodeId,
    /// Its own token, where the server issued one.
    pub node_token: Option<Secret>,
    /// The key of the hashes of specifications.
    pub spec_key: [u8; 32],
}

/// What the settings and the build say, as far as the core decides by it.
#[derive(Debug, Clone)]
pub struct Limits {
    /// The agent's version.
    pub version: &'static str,
    /// The containers' runtime.
    pub runtime: String,
    /// Deploys at once.
    pub workers: usize,
    /// Deploys waiting.
    pub queue_limit: usize,
    /// How long the container of a replica that exited is kept.
    pub retention: Duration,
    /// How often the table is compared with the engine's list.
    pub reconcile: Duration,
    /// How often the dependencies are checked while connected.
    pub recheck: Duration,
    /// How long commands in flight may take to finish after SIGTERM.
    pub grace: Duration,
    /// Free bytes below which no image is pulled.
    pub min_free_bytes: u64,
}

/// What a core starts from.
#[derive(Debug)]
pub struct Origin {
    /// The identity, if the node has one.
    pub identity: Option<Identity>,
    /// A key for the hashes, should there be no identity.
    pub fresh_key: [u8; 32],
    /// The organisation token.
    pub token: Option<Secret>,
    /// The record of an earlier process.
    pub record: Option<String>,
    /// The seed of the spread and of the names of attempts: different in each process.
    pub seed: u64,
}

/// A reading of the host.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sample {
    /// Memory, disk, use of the GPUs.
    Usage,
    /// The dependencies.
    Checks,
    /// What the host is made of, the GPUs above all.
    Hardware,
}

/// Names one conversation on the operator's socket.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct ControlId(pub u64);

/// What an operator asks of the running agent.
#[derive(Debug, Clone, PartialEq)]
pub enum Request {
    /// How it is.
    Status,
    /// Finish, and take nothing new.
    Drain,
    /// Take nothing new.
    Maintenance,
    /// Take work again.
    Resume,
    /// Hold a GPU back.
    Hold(PciAddress),
    /// Release it.
    Release(PciAddress),
    /// Check the dependencies anew.
    Recheck,
}

/// Everything that can happen.
#[derive(Debug)]
pub enum Event {
    /// Nothing but time passed.
    Tick,
    /// The heartbeat's timer fired.
    Beat,
    /// Something happened on a link.
    Link(LinkId, LinkEvent),
    /// A job came back.
    Job(JobId, Outcome),
    /// The process that stands for a container ended.
    ProcessEnded(ContainerId),
    /// The process that stands for a container cannot be watched.
    Unwatchable(ContainerId),
    /// The deploys that CLI calls of an earlier process are still at work on.
    Orphans(BTreeSet<String>),
    /// A reading of what changes all the time.
    Usage(Usage),
    /// A reading of what the host is made of.
    Hardware(Box<Hardware>),
    /// One dependency was checked.
    Check(Check),
    /// All dependencies were checked.
    ChecksDone,
    /// The record with this number is on disk.
    Saved(u64),
    /// The record with this number could not be saved: why.
    SaveFailed(u64, String),
    /// The identity is on disk.
    IdentitySaved,
    /// The identity could not be saved: why.
    IdentityFailed(String),
    /// An operator asks something.
    Control(ControlId, Request),
    /// SIGTERM or SIGINT.
    Terminate,
    /// SIGHUP.
    Reload,
}

/// Everything that the edges are told to do.
#[derive(Debug)]
pub enum Action {
    /// For the link thread.
    Link(LinkOrder),
    /// For the pool.
    Job(JobId, Job),
    /// Give a job up, if that does no harm.
    CancelJob(JobId),
    /// Watch the process that stands for a container, and no other for it.
    Watch(ContainerId, i32),
    /// Watch it no longer.
    Unwatch(ContainerId),
    /// Look for CLI calls of an earlier process.
    FindOrphans,
    /// End the CLI calls of an earlier process for this deploy.
    EndOrphan(String),
    /// Read something of the host.
    Sample(Sample),
    /// Save the record under this number.
    Save(u64, String),
    /// Save the identity.
    SaveIdentity(Identity),
    /// Answer an operator.
    Reply(ControlId, Value),
    /// Tell the log.
    Log(Level, String),
    /// End the process.
    End(End),
}

impl Action {
    fn info(text: String) -> Self {
        Self::Log(Level::Info, text)
    }

    fn warn(text: String) -> Self {
        Self::Log(Level::Warn, text)
    }
}

/// How the process ends.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum End {
    /// As it was told to.
    Clean,
    /// There is no identity, and no way to get one: why.
    NoIdentity(String),
    /// The organisation token is refused: why.
    TokenRefused(String),
}

/// What a job is for.
#[derive(Debug)]
enum Purpose {
    Replica(ReplicaId),
    /// Asked for at this tick.
    List(u64),
    Probe,
    /// A container that belongs to nobody is being removed.
    Stray,
    Logs { replica: ReplicaId, request: Option<RequestId> },
}

/// The key of the hashes of specifications.
#[derive(Debug)]
struct Key([u8; 32]);

impl Key {
    fn bytes(&self) -> [u8; 32] {
        self.0
    }

    /// `<key>.<hash>`: which key, and what it makes of the specification.
    fn hash(&self, spec: &Spec) -> String {
        let mut bytes = Vec::new();
        let mut put = |field: &[u8]| {
            bytes.extend((field.len() as u64).to_be_bytes());
            bytes.extend(field);
        };
        put(spec.image.as_str().as_bytes());
        put(&spec.gpu_count.to_be_bytes());
        put(&(spec.env.len() as u64).to_be_bytes());
        for (name, value) in &spec.env {
            put(name.as_str().as_bytes());
            put(value.expose().as_bytes());
        }
        put(&(spec.command.len() as u64).to_be_bytes());
        for argument in &spec.command {
            put(argument.as_bytes());
        }
        let limits = [spec.millicpus, spec.memory_mib, spec.shm_mib, spec.pids_limit.map(u64::from)];
        for limit in limits {
            put(&limit.map_or_else(Vec::new, |limit| limit.to_be_bytes().to_vec()));
        }
        for port in &spec.ports {
            let [h1, h2] = port.host.to_be_bytes();
            let [c1, c2] = port.container.to_be_bytes();
            put(&[h1, h2, c1, c2, u8::from(port.udp)]);
        }
        let hash = hex(&keyed_hash(&self.0, &bytes));
        bytes.fill(0);
        std::hint::black_box(&bytes);
        format!("{}.{}", &hex(&keyed_hash(&self.0, b"name of the key"))[..8], &hash[..32])
    }
}

/// The end of the process, under way.
#[derive(Debug)]
struct Ending {
    /// Commands in flight are waited for until this time.
    grace: Instant,
    /// Results are waited for until this time, once nothing is in flight.
    flush: Option<Instant>,
    told: bool,
}

/// The agent's state. See the module.
#[derive(Debug)]
pub struct Core {
    limits: Limits,
    key: Key,
    random: Random,
    /// Counts the events: orders what was asked before and after a change.
    tick: u64,
    next_job: u64,
    session: Session,
    node: node::Node,
    engine: engine::Engine,
    disk: disk::Disk,
    identity_trouble: Option<String>,
    identity_retry: Option<Instant>,
    replicas: BTreeMap<ReplicaId, Replica>,
    /// Replicas that are to be started, in order.
    queue: VecDeque<ReplicaId>,
    /// Commands that wait for the table.
    waiting: VecDeque<(Instant, Inbound)>,
    /// The containers are known: a listing has been taken up.
    table_ready: bool,
    orphans: BTreeSet<String>,
    orphans_known: bool,
    orphans_due: Option<Instant>,
    gpus: gpus::Gpus,
    outbox: Outbox,
    /// Answers by request ID, oldest first.
    answered: VecDeque<(RequestId, Kind, ReplicaId, Map<String, Value>)>,
    jobs: BTreeMap<JobId, Purpose>,
    malformed: u64,
    ending: Option<Ending>,
}

impl Core {
    /// A core that has seen nothing yet, and what is to be done first.
    pub fn new(now: Instant, limits: Limits, origin: Origin, out: &mut Vec<Action>) -> Self {
        let Origin { identity, fresh_key, token, record, seed } = origin;
        let key = Key(identity.as_ref().map_or(fresh_key, |identity| identity.spec_key));
        let identity = identity.map(|identity| (identity.node_id, identity.node_token));
        let mut core = Self {
            limits,
            key,
            random: Random::new(seed),
            tick: 1,
            next_job: 0,
            session: Session::new(now, identity, token),
            node: node::Node::new(now, Mode::Online),
            engine: engine::Engine::new(now),
            disk: disk::Disk::default(),
            identity_trouble: None,
            identity_retry: None,
            replicas: BTreeMap::new(),
            queue: VecDeque::new(),
            waiting: VecDeque::new(),
            table_ready: false,
            orphans: BTreeSet::new(),
            orphans_known: false,
            orphans_due: None,
            gpus: gpus::Gpus::default(),
            outbox: Outbox::default(),
            answered: VecDeque::new(),
            jobs: BTreeMap::new(),
            malformed: 0,
            ending: None,
        };
        if let Some(record) = record {
            for trouble in core.restore(now, &record) {
                out.push(Action::warn(trouble));
            }
        }
        out.push(Action::FindOrphans);
        core.maintain(now, out);
        core
    }

    /// Takes one event, and appends what is to be done.
    pub fn handle(&mut self, now: Instant, event: Event, out: &mut Vec<Action>) {
        self.tick += 1;
        match event {
            Event::Tick => {}
            Event::Beat => {
                self.beat(now, out);
                self.sample(Sample::Usage, now, out);
            }
            Event::Link(link, event) => self.link_event(now, link, event, out),
            Event::Job(job, outcome) => self.outcome(now, job, outcome, out),
            Event::ProcessEnded(container) => self.process_ended(now, &container),
            Event::Unwatchable(container) => self.unwatchable(&container),
            Event::Orphans(orphans) => self.orphans(now, orphans),
            Event::Usage(usage) => self.node.usage(usage),
            Event::Hardware(hardware) => self.hardware(*hardware),
            Event::Check(check) => self.node.check(check),
            Event::ChecksDone => self.node.checks_done(),
            Event::Saved(seq) => self.disk.saved(seq),
            Event::SaveFailed(seq, why) => self.disk.failed(now, seq, why),
            Event::IdentitySaved => self.identity_trouble = None,
            Event::IdentityFailed(why) => {
                self.identity_trouble = Some(why);
                self.identity_retry = Some(now + IDENTITY_AGAIN);
            }
            Event::Control(id, request) => self.control(now, id, &request, out),
            Event::Terminate => self.terminate(now, out),
            Event::Reload => {
                self.node.want_info();
                self.sample(Sample::Checks, now, out);
                self.sample(Sample::Hardware, now, out);
            }
        }
        self.maintain(now, out);
    }

    /// When [`Core::handle`] is to be called again at the latest, with [`Event::Tick`] if with nothing else.
    pub fn next_deadline(&self, now: Instant) -> Option<Instant> {
        let ending = self.ending.as_ref().map(|ending| ending.flush.unwrap_or(ending.grace));
        let waiting = self.waiting.front().map(|(until, _)| *until);
        let replicas = self.replicas.values().filter_map(|replica| self.due(replica)).min();
        [
            self.session.next_deadline(),
            Some(self.node.next_deadline()),
            self.engine_deadline(now),
            self.disk.next_deadline(now),
            self.outbox.next_gate(),
            self.identity_retry,
            self.orphans_due,
            replicas,
            waiting,
            ending,
        ]
        .into_iter()
        .flatten()
        .min()
    }

    /// Level-triggered: what the state calls for.
    fn maintain(&mut self, now: Instant, out: &mut Vec<Action>) {
        self.expire_waiting(now);
        if self.ending.is_none() {
            self.drive(now, out);
        } else {
            self.drive_ending(now, out);
        }
        self.drive_engine(now, out);
        self.drive_node(now, out);
        self.drive_session(now, out);
        if self.orphans_due.is_some_and(|at| at <= now) {
            self.orphans_due = None;
            out.push(Action::FindOrphans);
        }
        if self.identity_retry.is_some_and(|at| at <= now) {
            self.identity_retry = None;
            self.save_identity(out);
        }
        if let Some(seq) = self.disk.next(now) {
            out.push(Action::Save(seq, self.record()));
        }
    }

    /// A command arrived.
    fn command(&mut self, now: Instant, command: Inbound, out: &mut Vec<Action>) {
        match command {
            Inbound::Deploy(_) | Inbound::Stop(_) if self.ending.is_some() => {}
            Inbound::Deploy(_) | Inbound::Stop(_) if !self.table_ready => self.wait(now, command, out),
            Inbound::Deploy(deploy) => self.deploy(now, *deploy, out),
            Inbound::Stop(stop) => self.stop(now, stop, out),
            Inbound::Drain => self.set_mode(Mode::Draining),
            Inbound::Maintenance => self.set_mode(Mode::Maintenance),
            Inbound::Resume => self.set_mode(Mode::Online),
            Inbound::Logs { replica, request, tail } => self.logs(replica, request, tail, out),
            Inbound::Registered { .. } => {}
        }
    }

    /// Keeps a command until the table is known.
    fn wait(&mut self, now: Instant, command: Inbound, out: &mut Vec<Action>) {
        if self.waiting.iter().any(|(_, waiting)| *waiting == command) {
            return;
        }
        let timeout = match &command {
            Inbound::Deploy(deploy) => deploy.deploy_timeout.unwrap_or(life::DEPLOY_TIMEOUT),
            Inbound::Stop(stop) => stop.timeout.unwrap_or(life::STOP_TIMEOUT) + life::STOP_MARGIN,
            _ => return,
        };
        if self.waiting.len() < WAITING_MAX {
            self.waiting.push_back((now + timeout, command));
        } else {
            let refusal = Refusal::new(Code::Busy, "too many commands wait for the node to know its containers");
            self.refuse_waiting(command, &refusal, out);
        }
    }

    fn take_waiting(&mut self, now: Instant, out: &mut Vec<Action>) {
        for (_, command) in std::mem::take(&mut self.waiting) {
            self.command(now, command, out);
        }
    }

    fn expire_waiting(&mut self, now: Instant) {
        if self.waiting.iter().all(|(until, _)| *until > now) {
            return;
        }
        let refusal = Refusal::new(Code::NotReady, "the node does not know its containers yet: the engine is silent");
        let mut unsent = Vec::new();
        for (until, command) in std::mem::take(&mut self.waiting) {
            if until <= now {
                self.refuse_waiting(command, &refusal, &mut unsent);
            } else {
                self.waiting.push_back((until, command));
            }
        }
    }

    fn refuse_waiting(&mut self, command: Inbound, refusal: &Refusal, out: &mut Vec<Action>) {
        match command {
            Inbound::Deploy(deploy) => {
                let hash = self.key.hash(&deploy.spec);
                self.refuse_deploy(&deploy.replica, deploy.request, &hash, refusal, out);
            }
            Inbound::Stop(stop) => self.refuse(Kind::Stop, &stop.replica, stop.request, "", refusal, out),
            _ => {}
        }
    }

    fn refuse_malformed(
        &mut self,
        (command, replica, request): (Command, ReplicaId, Option<RequestId>),
        why: &str,
        out: &mut Vec<Action>,
    ) {
        let kind = match command {
            Command::Deploy => Kind::Deploy,
            Command::Stop => Kind::Stop,
        };
        self.refuse(kind, &replica, request, "", &Refusal::new(Code::Invalid, why), out);
    }

    fn refuse_deploy(
        &mut self,
        replica: &ReplicaId,
        request: Option<RequestId>,
        hash: &str,
        refusal: &Refusal,
        out: &mut Vec<Action>,
    ) {
        self.refuse(Kind::Deploy, replica, request, hash, refusal, out);
    }

    /// Answers a command that was not accepted: kept in memory, or only sent when too much is kept already.
    fn refuse(
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
            let about = |entry: Entry| entry.about(hash).unrecorded();
            self.tell(kind, replica, vec![request], payload, about);
        } else if let Some(link) = self.session.flowing() {
            let payload = with_request(payload, request.as_ref());
            out.push(Action::Link(LinkOrder::Send(link, protocol::write(kind.word(), payload.into()))));
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
        for request in requests {
            let payload = with_request(payload.clone(), request.as_ref());
            if let Some(request) = &request {
                self.answered.retain(|(known, ..)| known != request);
                if self.answered.len() >= ANSWERED_MAX {
                    self.answered.pop_front();
                }
                self.answered.push_back((request.clone(), kind, replica.clone(), payload.clone()));
            }
            let entry = shape(Entry::new(kind, replica.clone(), request, payload));
            if entry.recorded {
                self.disk.dirty();
            }
            self.outbox.push(entry);
        }
    }

    /// A request that was answered before gets the same answer again.
    fn answered_before(&mut self, request: Option<&RequestId>, out: &mut Vec<Action>) -> bool {
        let Some(request) = request else { return false };
        let Some((_, kind, replica, payload)) = self.answered.iter().find(|(known, ..)| known == request).cloned()
        else {
            return false;
        };
        if !self.outbox.send_again(|entry| entry.request.as_ref() == Some(request)) {
            if self.outbox.len() < OWED_MAX {
                let entry = Entry::new(kind, replica, Some(request.clone()), payload);
                self.outbox.push(entry.unrecorded());
            } else if let Some(link) = self.session.flowing() {
                out.push(Action::Link(LinkOrder::Send(link, protocol::write(kind.word(), payload.into()))));
            }
        }
        true
    }

    /// A deploy whose equal's result is not known to have arrived gets that result again, as long as nothing was
    /// said about the replica since.
    fn answer_again(&mut self, replica: &ReplicaId, request: Option<&RequestId>, hash: &str) -> bool {
        if self.replicas.get(replica).is_some_and(Replica::owes) {
            return false;
        }
        let newest = self.outbox.iter().filter(|entry| entry.replica == *replica && entry.kind != Kind::Exit).last();
        let equal = newest.is_some_and(|entry| {
            entry.kind == Kind::Deploy
                && match (request, &entry.request) {
                    (Some(request), Some(known)) => request == known,
                    (None, None) => !entry.spec.is_empty() && replica::same_spec(&entry.spec, hash),
                    (Some(_), None) | (None, Some(_)) => false,
                }
        });
        equal && self.outbox.send_again(|entry| entry.replica == *replica && entry.kind != Kind::Stop)
    }

    fn tell_interrupted(&mut self, now: Instant, replica: &ReplicaId, requests: Vec<Option<RequestId>>) {
        let refusal = Refusal::new(Code::Interrupted, "the agent was ended before the deploy was started");
        let gate = self.disk.gate(now);
        self.tell(Kind::Deploy, replica, requests, refusal_payload(replica, &refusal), |entry| entry.after(gate));
    }

    /// Tells how far a replica is on the way up; such news is not kept.
    fn tell_progress(&self, replica: &ReplicaId, status: &str, out: &mut Vec<Action>) {
        if let Some(link) = self.session.flowing() {
            let text = protocol::write("replica_status", payload(replica, status).into());
            out.push(Action::Link(LinkOrder::Send(link, text)));
        }
    }

    fn logs(&mut self, replica: ReplicaId, request: Option<RequestId>, tail: u32, out: &mut Vec<Action>) {
        let container = self.replicas.get(&replica).and_then(|replica| match &replica.phase {
            Phase::Running(container, _) | Phase::Exited(container, ..) | Phase::Stopping(container, ..) => {
                Some(container.clone())
            }
            Phase::Unverified
            | Phase::Orphaned(_)
            | Phase::Queued
            | Phase::Pulling(_)
            | Phase::Starting(_)
            | Phase::Naming(..)
            | Phase::Clearing(_) => None,
        });
        match container {
            Some(container) => _ = self.submit(Job::Logs(container, tail), Purpose::Logs { replica, request }, out),
            None => self.tell_logs(&replica, request.as_ref(), Ok((Vec::new(), false)), out),
        }
    }

    fn tell_logs(
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
            payload.insert("error".into(), failure.words.into());
            (Vec::new(), false)
        });
        payload.insert("lines".into(), lines.into());
        payload.insert("truncated".into(), truncated.into());
        let payload = with_request(payload, request);
        out.push(Action::Link(LinkOrder::Send(link, protocol::write("logs", payload.into()))));
    }

    fn hardware(&mut self, hardware: Hardware) {
        let gpus: &[Gpu] = &hardware.gpus;
        if self.gpus.reading(gpus) {
            self.node.want_info();
        }
        self.node.hardware(hardware);
    }

    fn orphans(&mut self, now: Instant, orphans: BTreeSet<String>) {
        self.orphans = orphans;
        self.orphans_known = true;
        if !self.orphans.is_empty() {
            self.orphans_due = Some(now + ORPHANS_EVERY);
        }
        for replica in self.replicas.values_mut() {
            if matches!(replica.phase, Phase::Orphaned(_)) && !self.orphans.contains(&replica.deploy_id) {
                replica.phase = Phase::Unverified;
                replica.touched = self.tick;
            }
        }
    }

    fn submit(&mut self, job: Job, purpose: Purpose, out: &mut Vec<Action>) -> JobId {
        self.next_job += 1;
        let id = JobId(self.next_job);
        self.jobs.insert(id, purpose);
        out.push(Action::Job(id, job));
        id
    }

    /// A name for a deploy that no other has, in this process or another.
    fn fresh_deploy_id(&mut self) -> String {
        format!("{:016x}", self.random.bits())
    }

    fn control(&mut self, now: Instant, id: ControlId, request: &Request, out: &mut Vec<Action>) {
        match request {
            Request::Status => {}
            Request::Drain => self.set_mode(Mode::Draining),
            Request::Maintenance => self.set_mode(Mode::Maintenance),
            Request::Resume => self.set_mode(Mode::Online),
            Request::Recheck => {
                self.node.want_info();
                self.sample(Sample::Checks, now, out);
            }
            Request::Hold(gpu) | Request::Release(gpu) if !self.gpus.knows(*gpu) => {
                out.push(Action::Reply(id, json!({ "error": format!("there is no GPU at {gpu}") })));
                return;
            }
            Request::Hold(gpu) => self.hold_back(*gpu, true),
            Request::Release(gpu) => self.hold_back(*gpu, false),
        }
        out.push(Action::Reply(id, self.status(now)));
    }

    fn hold_back(&mut self, gpu: PciAddress, held: bool) {
        if self.gpus.hold_back(gpu, held) {
            self.disk.dirty();
            self.node.want_info();
        }
    }

    fn terminate(&mut self, now: Instant, out: &mut Vec<Action>) {
        if self.ending.is_some() {
            return;
        }
        self.ending = Some(Ending { grace: now + self.limits.grace, flush: None, told: false });
        self.waiting.clear();
        let refusal = || Refusal::new(Code::Interrupted, "the agent was ended before the deploy was started");
        for id in self.queue.iter().cloned().collect::<Vec<_>>() {
            self.fail_queued(now, &id, refusal(), out);
        }
        let waiting: Vec<ReplicaId> =
            self.replicas.values().filter(|r| r.next.is_some()).map(|r| r.id.clone()).collect();
        for id in waiting {
            if let Some(next) = self.replicas.get_mut(&id).and_then(|replica| replica.next.take()) {
                self.tell_interrupted(now, &id, next.requests);
            }
        }
        out.push(Action::info("ending: finishing what is in flight; containers go on running".into()));
    }

    fn drive_ending(&mut self, now: Instant, out: &mut Vec<Action>) {
        self.drive(now, out);
        let idle = self.idle();
        let delivered = self.outbox.is_empty() || self.session.flowing().is_none();
        let settled = self.disk.settled();
        let Some(ending) = &mut self.ending else { return };
        if ending.told {
            return;
        }
        if idle || ending.grace <= now {
            let flush = *ending.flush.get_or_insert(now + FLUSH_WITHIN);
            if (delivered && settled) || flush <= now {
                if self.session.is_over() {
                    ending.told = true;
                    out.push(Action::End(End::Clean));
                } else {
                    self.close_session(now, out);
                    // What has no connection to close is over at once.
                    if self.session.is_over()
                        && let Some(ending) = &mut self.ending
                    {
                        ending.told = true;
                        out.push(Action::End(End::Clean));
                    }
                }
            }
        }
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
    payload.insert("code".into(), refusal.code.word().into());
    payload.insert("error".into(), refusal.error.as_str().into());
    payload
}

fn with_request(mut payload: Map<String, Value>, request: Option<&RequestId>) -> Map<String, Value> {
    if let Some(request) = request {
        payload.insert("request_id".into(), request.as_str().into());
    }
    payload
}

impl fmt::Display for Event {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tick => f.write_str("tick"),
            Self::Beat => f.write_str("heartbeat due"),
            Self::Link(link, event) => {
                let what = match event {
                    LinkEvent::Up => "up",
                    LinkEvent::Text(_) => "text",
                    LinkEvent::NotText(_) => "not text",
                    LinkEvent::Pong(_) => "pong",
                    LinkEvent::Alive => "alive",
                    LinkEvent::Down(_) => "down",
                    LinkEvent::Registered(_) => "registration answered",
                };
                write!(f, "{link}: {what}")
            }
            Self::Job(job, outcome) => write!(f, "{job}: {outcome}"),
            Self::ProcessEnded(container) => write!(f, "process of {} ended", container.short()),
            Self::Unwatchable(container) => write!(f, "process of {} cannot be watched", container.short()),
            Self::Orphans(orphans) => write!(f, "{} calls of an earlier process at work", orphans.len()),
            Self::Usage(_) => f.write_str("usage read"),
            Self::Hardware(_) => f.write_str("hardware read"),
            Self::Check(check) => write!(f, "{} checked", check.name),
            Self::ChecksDone => f.write_str("dependencies checked"),
            Self::Saved(seq) => write!(f, "record {seq} saved"),
            Self::SaveFailed(seq, why) => write!(f, "record {seq} not saved: {why}"),
            Self::IdentitySaved => f.write_str("identity saved"),
            Self::IdentityFailed(why) => write!(f, "identity not saved: {why}"),
            Self::Control(..) => f.write_str("operator's request"),
            Self::Terminate => f.write_str("told to end"),
            Self::Reload => f.write_str("told to check again"),
        }
    }
}

impl fmt::Display for Action {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Link(order) => match order {
                LinkOrder::Dial { link, .. } => write!(f, "{link}: dial"),
                LinkOrder::Register { link, .. } => write!(f, "{link}: register"),
                LinkOrder::Send(link, text) => write!(f, "{link}: send {} bytes", text.len()),
                LinkOrder::Ping(link, number) => write!(f, "{link}: ping {number}"),
                LinkOrder::Close { link, code, .. } => write!(f, "{link}: close with {code}"),
                LinkOrder::Abandon(link) => write!(f, "{link}: abandon"),
            },
            Self::Job(id, job) => write!(f, "{id}: {job}"),
            Self::CancelJob(id) => write!(f, "{id}: cancel"),
            Self::Watch(container, pid) => write!(f, "watch {pid} for {}", container.short()),
            Self::Unwatch(container) => write!(f, "watch nothing for {}", container.short()),
            Self::FindOrphans => f.write_str("look for calls of an earlier process"),
            Self::EndOrphan(deploy) => write!(f, "end the calls for deploy {deploy}"),
            Self::Sample(sample) => write!(f, "read {sample:?}"),
            Self::Save(seq, _) => write!(f, "save record {seq}"),
            Self::SaveIdentity(_) => f.write_str("save the identity"),
            Self::Reply(..) => f.write_str("answer the operator"),
            Self::Log(_, text) => f.write_str(text),
            Self::End(_) => f.write_str("end"),
        }
    }
}
