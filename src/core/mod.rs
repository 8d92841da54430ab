//! The pure core: every decision of the agent, as a state machine.
//!
//! It is fed [`Event`]s with the time and answers with [`Action`]s. It blocks on nothing, does no I/O, reads no
//! clock and starts no thread; the edges carry the actions out and decide nothing. After each event
//! [`Core::handle`] derives from the state alone what must be under way, so no handler can forget to kick something.
//!
//! - `session`: registering, connecting, liveness, when to try again
//! - `commands`, `life` and `listing`, over the tables of [`replica`]: what is done in each state of a replica
//! - `telling`: results and refusals; `ending`: SIGTERM
//! - [`outbox`]: results until the peer has them; `document`, [`record`] and [`disk`]: what survives the process
//! - [`gpus`]: who has which GPU; `guests`: how busy they are; `images`: room for images; `engine`: whether it answers; [`node`]: states and messages

use std::collections::{BTreeMap, VecDeque};
use std::fmt;
use std::time::{Duration, Instant};

use log::Level;
use serde_json::{Value, json};

use self::ending::Ending;
use self::facts::{Check, Gpu, Hardware, Usage};
use self::job::{Job, JobId, Outcome, Spec};
use self::node::Mode;
use self::operator::{ControlId, Request};
use self::outbox::{Kind, Outbox};
use self::random::Random;
use self::record::Identity;
use self::replica::{Phase, Replica, Step};
use self::session::Session;
pub use self::tidy::Tidy;
use self::wire::{LinkEvent, LinkId, LinkOrder};
use crate::digest::{hex, keyed_hash};
use crate::protocol::Inbound;
use crate::types::{ContainerId, PciAddress, ReplicaId, RequestId, Secret};

mod commands;
pub mod disk;
mod document;
mod ending;
mod engine;
pub mod facts;
pub mod gpus;
mod guests;
mod images;
pub mod job;
pub mod life;
mod listing;
pub mod node;
pub mod operator;
pub mod outbox;
pub mod random;
pub mod record;
pub mod replica;
pub mod session;
mod telling;
mod tidy;
pub mod wire;

/// How often the CLI calls of an earlier process are looked for while one is waited for.
const ORPHANS_EVERY: Duration = Duration::from_secs(1);
/// How long after a failed save of the identity it is tried again.
const IDENTITY_AGAIN: Duration = Duration::from_secs(10);

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
    /// The data path's use, in percent, from which and down to which images are removed; `None`: never.
    pub image_marks: Option<(u8, u8)>,
    /// Whether containers are asked how busy their GPUs are.
    pub ask_guests: bool,
    /// How long a GPU that failed is left alone before a good reading counts.
    pub gpu_retest: Duration,
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
    /// The deploys that CLI calls of an earlier process are still at work on, and of which replicas.
    Orphans(BTreeMap<String, ReplicaId>),
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
    /// Tidy up.
    Tidy(Tidy),
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
pub(super) enum Purpose {
    Replica(ReplicaId),
    /// Asked for at this tick.
    List(u64),
    Probe,
    /// A container that belongs to nobody is being removed.
    Stray(ContainerId),
    /// Images are listed or removed.
    Images,
    /// The replica is asked how busy its GPUs are.
    Guest(ReplicaId),
    Logs {
        replica: ReplicaId,
        request: Option<RequestId>,
    },
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
    orphans: BTreeMap<String, ReplicaId>,
    orphans_known: bool,
    orphans_due: Option<Instant>,
    /// The tick at which a call of an earlier process was last found to be over.
    orphans_over: u64,
    /// The tick at which the last complete listing began.
    listed_at: u64,
    gpus: gpus::Gpus,
    ours: tidy::Ours,
    images: images::Images,
    guests: guests::Guests,
    outbox: Outbox,
    /// Answers by request ID, oldest first; their payloads as text, which takes a fifth of what a map of them does.
    answered: VecDeque<(RequestId, Kind, ReplicaId, Box<str>)>,
    jobs: BTreeMap<JobId, Purpose>,
    malformed: u64,
    ending: Option<Ending>,
}

impl Core {
    /// A core that has seen nothing yet, and what is to be done first.
    pub fn new(now: Instant, limits: Limits, origin: Origin, out: &mut Vec<Action>) -> Self {
        let Origin { identity, fresh_key, token, record, seed } = origin;
        let known = identity.as_ref().and_then(|identity| identity.spec_key);
        let keyless = identity.is_some() && known.is_none();
        let key = Key(known.unwrap_or(fresh_key));
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
            orphans: BTreeMap::new(),
            orphans_known: false,
            orphans_due: None,
            orphans_over: 0,
            listed_at: 0,
            gpus: gpus::Gpus::default(),
            ours: tidy::Ours::default(),
            images: images::Images::default(),
            guests: guests::Guests::new(),
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
        if keyless {
            core.save_identity(out);
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
                self.ask_guests(out);
            }
            Event::Link(link, event) => self.link_event(now, link, event, out),
            Event::Job(job, outcome) => self.outcome(now, job, outcome, out),
            Event::ProcessEnded(container) => self.process_ended(now, &container),
            Event::Unwatchable(container) => self.unwatchable(&container),
            Event::Orphans(orphans) => self.orphans(now, orphans),
            Event::Usage(usage) => {
                self.node.usage(usage);
                self.make_room(now, out);
            }
            Event::Hardware(hardware) => self.hardware(now, *hardware),
            Event::Check(check) => self.node.check(check),
            Event::ChecksDone => self.node.checks_done(now),
            Event::Saved(seq) => self.disk.saved(seq),
            Event::SaveFailed(seq, why) => self.disk.failed(now, seq, why),
            Event::IdentitySaved => {
                self.identity_trouble = None;
                self.identity_retry = None;
            }
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
        let ending = self.ending.as_ref().and_then(|ending| ending.deadline(now));
        let waiting = self.waiting.iter().map(|(until, _)| *until).min();
        let replicas = self.replicas.values().filter_map(|replica| self.due(now, replica)).min();
        // What waits for its record is looked at when it can be sent.
        let gate = self.session.flowing().and_then(|_| self.outbox.next_gate());
        [
            self.session.next_deadline(),
            Some(self.node.next_deadline()),
            self.engine_deadline(now),
            self.disk.next_deadline(now),
            gate,
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
        self.expire_waiting(now, out);
        self.drive(now, out);
        self.drive_engine(now, out);
        self.drive_session(now, out);
        self.drive_node(now, out);
        self.drive_ending(now, out);
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

    fn hardware(&mut self, now: Instant, hardware: Hardware) {
        let gpus: &[Gpu] = &hardware.gpus;
        if self.gpus.reading(now, self.limits.gpu_retest, gpus) {
            self.node.want_info();
        }
        self.node.hardware(now, hardware);
    }

    fn orphans(&mut self, now: Instant, orphans: BTreeMap<String, ReplicaId>) {
        let before = std::mem::replace(&mut self.orphans, orphans);
        self.orphans_known = true;
        if !self.orphans.is_empty() {
            self.orphans_due = Some(now + ORPHANS_EVERY);
        }
        // What a call that is over has made is in a listing that begins now; an earlier one may miss it.
        if before.keys().any(|deploy| !self.orphans.contains_key(deploy)) {
            self.engine.list_now(now);
            self.orphans_over = self.tick;
        }
        let of = |orphans: &BTreeMap<String, ReplicaId>, id: &ReplicaId| orphans.values().any(|of| of == id);
        for replica in self.replicas.values_mut() {
            if of(&self.orphans, &replica.id) {
                continue;
            }
            if matches!(replica.phase, Phase::Orphaned(_)) {
                replica.enter(Phase::Unverified, self.tick);
            } else if matches!(replica.phase, Phase::Clearing(Step::Look(_))) && of(&before, &replica.id) {
                replica.enter(Phase::Clearing(Step::Look(self.tick)), self.tick);
            }
        }
    }

    /// Whether a CLI call of an earlier process is still at work on this replica.
    pub(super) fn is_orphaned(&self, id: &ReplicaId) -> bool {
        self.orphans.values().any(|of| of == id)
    }

    pub(super) fn submit(&mut self, job: Job, purpose: Purpose, out: &mut Vec<Action>) -> JobId {
        self.next_job += 1;
        let id = JobId(self.next_job);
        self.jobs.insert(id, purpose);
        out.push(Action::Job(id, job));
        id
    }

    /// A name for a deploy that no other has, in this process or another.
    pub(super) fn fresh_deploy_id(&mut self) -> String {
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
            Request::GpuHold(gpu) | Request::GpuRelease(gpu) if !self.gpus.knows(*gpu) => {
                out.push(Action::Reply(id, json!({ "error": format!("there is no GPU at {gpu}") })));
                return;
            }
            Request::GpuHold(gpu) => self.hold_back(*gpu, true),
            Request::GpuRelease(gpu) => self.hold_back(*gpu, false),
        }
        out.push(Action::Reply(id, self.status(now)));
    }

    fn hold_back(&mut self, gpu: PciAddress, held: bool) {
        if self.gpus.hold_back(gpu, held) {
            self.disk.dirty();
            self.node.want_info();
        }
    }
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
            Self::Tidy(tidy) => write!(f, "tidy up after {} containers", tidy.gone.len()),
            Self::Sample(sample) => write!(f, "read {sample:?}"),
            Self::Save(seq, _) => write!(f, "save record {seq}"),
            Self::SaveIdentity(_) => f.write_str("save the identity"),
            Self::Reply(..) => f.write_str("answer the operator"),
            Self::Log(_, text) => f.write_str(text),
            Self::End(_) => f.write_str("end"),
        }
    }
}
