//! The pure core: every decision of the agent, as a state machine.
//!
//! It is fed [`Event`]s (`event`) with the time and answers with [`Action`]s. It blocks on nothing, does no I/O, reads no
//! clock and starts no thread; the edges carry the actions out and decide nothing. After each event
//! [`Core::handle`] derives from the state alone what must be under way, so no handler can forget to kick something.
//!
//! - `session`: registering, connecting, liveness, when to try again
//! - `commands`, `life` and `listing`, over the tables of [`replica`]: what is done in each state of a replica
//! - `telling`: results and refusals; `ending`: SIGTERM
//! - [`outbox`]: results until the peer has them; `document`, [`persistence`] and [`disk`]: what survives the process
//! - [`gpus`]: who has which GPU; `guests`: how busy they are; `images`: room for images; `engine`: whether it answers; [`node`]: states and messages

use std::collections::{BTreeMap, VecDeque};
use std::time::{Duration, Instant};

use log::Level;
use serde_json::json;

pub use self::cleanup::Cleanup;
use self::ending::Ending;
pub use self::event::{Action, End, Event, LeftoverCall, Sample};
use self::identity::Identity;
use self::inventory::{Gpu, Hardware};
use self::job::{Job, JobId};
use self::key::Key;
use self::node::Mode;
use self::operator::{ControlId, Request};
use self::outbox::{Kind, Outbox};
use self::random::Random;
use self::replica::{Phase, Replica};
use self::session::Session;
use crate::protocol::Inbound;
use crate::types::{ContainerId, PciAddress, ReplicaId, RequestId, Secret};

mod cleanup;
mod commands;
mod complaints;
pub mod disk;
mod document;
mod ending;
mod engine;
mod event;
pub mod gpus;
mod guests;
pub mod identity;
mod images;
pub mod inventory;
pub mod job;
mod key;
pub mod life;
mod listing;
pub mod node;
pub mod operator;
pub mod outbox;
pub mod persistence;
pub mod random;
pub mod replica;
pub mod session;
mod telling;

pub mod link_api;

/// How often the CLI calls of an earlier process are looked for while one is waited for.
const ORPHANS_EVERY: Duration = Duration::from_secs(1);
/// How long after a search that could not be made the next one is.
const ORPHANS_AGAIN: Duration = Duration::from_secs(10);
/// How long after a failed save of the identity it is tried again.
const IDENTITY_AGAIN: Duration = Duration::from_secs(10);

/// Settings that the core's decisions depend on.
#[derive(Debug, Clone)]
pub struct Settings {
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
    /// The machine's fingerprint, as far as it was read before the start.
    pub machine_id: Option<String>,
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

/// The agent's state. See the module.
#[derive(Debug)]
pub struct Core {
    settings: Settings,
    key: Key,
    random: Random,
    /// Counts the events: orders what was asked before and after a change.
    tick: u64,
    started: Instant,
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
    orphans: BTreeMap<String, LeftoverCall>,
    orphans_known: bool,
    orphans_due: Option<Instant>,
    /// The tick at which a call of an earlier process was last found to be over.
    orphans_over: u64,
    gpus: gpus::Gpus,
    ours: cleanup::Ours,
    images: images::Images,
    guests: guests::Guests,
    outbox: Outbox,
    /// Answers by request ID, oldest first; their payloads as text, which takes a fifth of what a map of them does.
    answered: VecDeque<(RequestId, Kind, ReplicaId, Box<str>)>,
    jobs: BTreeMap<JobId, Purpose>,
    malformed: u64,
    ending: Option<Ending>,
    /// For the log, since the last event.
    news: Vec<(Level, String)>,
}

impl Core {
    /// A core that has seen nothing yet, and what is to be done first.
    pub fn new(now: Instant, settings: Settings, origin: Origin, out: &mut Vec<Action>) -> Self {
        let Origin { identity, fresh_key, token, record, seed, machine_id } = origin;
        let known = identity.as_ref().and_then(|identity| identity.spec_key);
        let keyless = identity.is_some() && known.is_none();
        let key = Key(known.unwrap_or(fresh_key));
        let identity = identity.map(|identity| (identity.node_id, identity.node_token));
        let mut core = Self {
            settings,
            key,
            random: Random::new(seed),
            tick: 1,
            started: now,
            next_job: 0,
            session: Session::new(now, identity, token),
            node: node::Node::new(now, Mode::Online, machine_id),
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
            gpus: gpus::Gpus::default(),
            ours: cleanup::Ours::default(),
            images: images::Images::default(),
            guests: guests::Guests::default(),
            outbox: Outbox::default(),
            answered: VecDeque::new(),
            jobs: BTreeMap::new(),
            malformed: 0,
            ending: None,
            news: Vec::new(),
        };
        if let Some(record) = record {
            for trouble in core.restore(now, &record) {
                out.push(Action::warn(trouble));
            }
        }
        if keyless {
            core.save_identity(out);
        }
        out.push(Action::FindLeftoverCalls);
        core.maintain(now, out);
        core
    }

    /// Takes one event, and appends what is to be done.
    pub fn handle(&mut self, now: Instant, event: Event, out: &mut Vec<Action>) {
        self.tick += 1;
        match event {
            Event::Tick => {}
            Event::HeartbeatDue => {
                self.beat(now, out);
                self.sample(Sample::Usage, now, out);
                self.ask_guests(now, out);
            }
            Event::Link(link, event) => self.link_event(now, link, event, out),
            Event::Job(job, outcome) => self.outcome(now, job, outcome, out),
            Event::ProcessEnded(container) => self.process_ended(now, &container),
            Event::Unwatchable(container) => self.unwatchable(&container),
            Event::LeftoverCalls(orphans) => self.orphans(now, orphans),
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
        out.extend(self.news.drain(..).map(|(level, text)| Action::Log(level, text)));
        if self.orphans_due.is_some_and(|at| at <= now) {
            self.orphans_due = None;
            out.push(Action::FindLeftoverCalls);
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
        if self.gpus.reading(now, self.settings.gpu_retest, gpus) {
            self.node.want_info();
        }
        self.node.hardware(now, hardware);
    }

    fn orphans(&mut self, now: Instant, orphans: Option<BTreeMap<String, LeftoverCall>>) {
        let Some(orphans) = orphans else {
            self.orphans_due = Some(now + ORPHANS_AGAIN);
            return;
        };
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
        for replica in self.replicas.values_mut() {
            let orphaned = self.orphans.values().any(|call| call.replica == replica.id);
            if matches!(replica.phase, Phase::Orphaned(_)) && !orphaned {
                replica.enter(Phase::Unverified, self.tick);
            }
        }
    }

    /// Whether a CLI call of an earlier process is still at work on this replica.
    pub(super) fn is_orphaned(&self, id: &ReplicaId) -> bool {
        self.orphans.values().any(|call| call.replica == *id)
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
