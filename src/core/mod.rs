//! The pure core: every decision about replicas, results, GPUs and the connection, as machines that own their state.
//!
//! It takes [`Event`]s with the time and answers with [`Action`]s. It blocks on nothing, does no I/O, reads no clock
//! and starts no thread; the edges carry the actions out. (What is safe to hand to the CLI is the engine's to judge: an
//! image's configuration, ports in use.) A machine is the only writer of its state:
//! it gets the event's context (`cx`) and values, and gives values back; none reaches another, and none gets the
//! [`Core`], which routes. After each event the core does what has become due (`timers`) and what follows from the
//! state alone, so no handler can forget to start something.
//!
//! - In and out: [`event`](Event), [`job`], [`link_api`], [`operator`], [`inventory`], [`identity`], [`persistence`]
//! - `session`: registering, connecting, liveness, when to try again
//! - `replica`: what a command, an outcome, a listing means in each state of a replica; the queue
//! - `results` and `outbox`: what is owed to the peer; `report`: what the node says of itself
//! - [`gpus`]: who has which GPU, and how busy they are; `images`: room for images; `logs`; `cleanup`
//! - `engine_health`: whether the engine answers; `leftover_calls`: what an earlier process left at work
//! - `node`: what is wanted of the node and its state; `shutdown`: SIGTERM
//! - `state_file`: what survives the process; `spec_hash`: how specifications are compared
//!
//! # A deploy, from the socket to the result
//!
//! 1. The link reads a text frame: `Event::Link`. The session sees that it belongs to the present connection, puts the
//!    silence timer off and has `protocol` read it; a [`Inbound::Deploy`] comes out.
//! 2. The core asks whether it is a redelivery: answered before (`results`), or awaited (`replica`). If not, the table
//!    `on_deploy` says what it means in the replica's state; here, `Start`. `replica::admission` has the bounds past
//!    which it is refused. It is queued with a barrier that opens when it is recorded, so `Timer::StateFile` is due and
//!    the state file is saved: `Action::Save`.
//! 3. `Event::Saved` opens the barrier. What follows from the state: the first of the queue whose barrier is open and
//!    for which there are a slot and GPUs (`gpus::claim`) is admitted. The replica enters `Starting` and starts a job:
//!    `Action::Job` with `run --pull never`. (An image that is missing is pulled then, and `run` repeated.)
//! 4. `Event::Job` brings the container's ID. The engine's health is noted, the replica enters `Running`, and reports.
//!    The report becomes a result in the outbox, behind a barrier of its own; its process is asked for, to be watched.
//! 5. `Event::Saved` again: the result is sent, and a ping behind it. The pong (`Event::Link`) with the ping's number
//!    proves that it arrived; it is no longer owed.
//!
//! # A heartbeat
//!
//! The heartbeat's thread sets a flag when it is time, and the main loop turns that into `Event::HeartbeatDue` before it
//! takes anything that waits in the channel. `report` composes the message from what the machines hold,
//! the session sends it. One event, no waiting, no I/O: nothing that hangs elsewhere can make it late.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use self::capacity::NoRoom;
pub use self::cleanup::Cleanup;
use self::cx::{Cx, JobOwner};
use self::engine_health::EngineHealth;
pub use self::event::{Action, End, Event, LeftoverCall, Sample};
use self::gpus::guests::{Guest, Guests};
use self::gpus::{Gpus, NotClaimed};
use self::images::Images;
use self::job::{Failure, JobId, Listed, Outcome};
use self::leftover_calls::LeftoverCalls;
use self::listing::{Listing, Misheld};
use self::logs::Logs;
pub use self::node::Mode;
use self::node::Node;
use self::operator::{ControlId, Request};
use self::outbox::ResultKind;
use self::persistence::Persistence;
use self::private_images::PrivateImages;
use self::replica::{
    Awaited, Code, Deploy, Effect, Input, Load, OnDeploy, REQUESTS_MAX, Refusal, Replica, Replicas, Shown,
    Surroundings, WaitingCommands, Work, default_deploy_timeout, warnings,
};
use self::report::View;
use self::results::Results;
use self::session::{Arrived, Session, SessionNeeds};
pub use self::settings::{Origin, Settings};
use self::shutdown::{Progress, Shutdown, Step};
use self::spec_hash::SpecKey;
use self::state_file::Table;
use self::timers::{Due, Timer};
use crate::protocol::{self, Command, Inbound};
use crate::types::{ReplicaId, RequestId};

pub mod allowed;
mod capacity;
mod cleanup;
mod complaints;
mod connection_loss;
mod cx;
mod engine_health;
mod event;
pub mod gpus;
pub mod identity;
mod images;
pub mod inventory;
pub mod job;
mod leftover_calls;
pub mod link_api;
mod listing;
mod logs;
mod node;
pub mod operator;
mod outbox;
pub mod persistence;
mod poll;
mod private_images;
pub mod proof;
pub mod random;
mod replica;
mod report;
mod results;
mod session;
mod settings;
mod shutdown;
mod spec_hash;
mod state_file;
mod timers;

/// How often a heartbeat is sent.
pub const HEARTBEAT_EVERY: Duration = Duration::from_secs(30);

/// The agent's state: the machines, and how events reach them. See the module.
#[derive(Debug)]
pub struct Core {
    cx: Cx,
    spec_key: SpecKey,
    session: Session,
    node: Node,
    engine: EngineHealth,
    leftovers: LeftoverCalls,
    persistence: Persistence,
    waiting: WaitingCommands,
    replicas: Replicas,
    gpus: Gpus,
    guests: Guests,
    images: Images,
    private_images: PrivateImages,
    seen: cleanup::SeenContainers,
    results: Results,
    logs: Logs,
    boot_id: Option<String>,
    shutdown: Option<Shutdown>,
}

impl Core {
    /// A core that has seen nothing yet, and what is to be done first.
    pub fn new(now: Instant, settings: Settings, origin: Origin, out: &mut Vec<Action>) -> Self {
        let Origin { identity, fresh_key, token, record, table, seed, machine_id, boot_id } = origin;
        let saved_key = identity.as_ref().and_then(|identity| identity.spec_key);
        let keyless = identity.is_some() && saved_key.is_none();
        let identity = identity.map(|identity| (identity.node_id, identity.node_token));
        let mut core = Self {
            cx: Cx::new(now, settings, seed),
            spec_key: SpecKey(saved_key.unwrap_or(fresh_key)),
            session: Session::new(now, identity, token),
            node: Node::new(now),
            engine: EngineHealth::new(now),
            leftovers: LeftoverCalls::new(now),
            persistence: Persistence::new(),
            waiting: WaitingCommands::default(),
            replicas: Replicas::default(),
            gpus: Gpus::new(now, machine_id),
            guests: Guests::default(),
            images: Images::default(),
            private_images: PrivateImages::default(),
            seen: cleanup::SeenContainers::default(),
            results: Results::default(),
            logs: Logs::default(),
            boot_id,
            shutdown: None,
        };
        if let Some(record) = record {
            core.restore(&record, table.as_deref());
        }
        if keyless {
            core.persistence.save_identity(now);
        }
        core.settle();
        out.append(&mut core.cx.actions);
        core
    }

    fn restore(&mut self, record: &str, table: Option<&str>) {
        let restored = state_file::read(self.cx.now, record, table);
        for trouble in restored.troubles {
            self.cx.warn(trouble);
        }
        self.set_mode(restored.mode.unwrap_or_default());
        for gpu in restored.held_back {
            self.gpus.hold_back(gpu, true);
        }
        self.private_images = restored.private_images;
        for entry in restored.results {
            self.results.restore(entry);
        }
        let rebooted = restored.boot_id.zip(self.boot_id.as_ref()).is_some_and(|(then, now)| then != *now);
        for replica in restored.replicas {
            self.gpus.adopt(replica.id(), replica.gpus());
            let replica = if rebooted { replica.after_reboot() } else { replica };
            self.replicas.insert(&mut self.cx, replica);
        }
        if let Some(Table { mut untouched, gone }) = restored.table {
            if rebooted {
                // None of them is as the table has it.
                untouched.clear();
            }
            self.replicas.restore_table(&untouched, gone, self.cx.tick);
        }
        if rebooted {
            // What happens from now on is no work of the reboot.
            self.persistence.save(self.cx.now);
        }
    }

    /// Takes one event, and appends what is to be done.
    pub fn handle(&mut self, now: Instant, event: Event, out: &mut Vec<Action>) {
        self.cx.now = now;
        self.cx.tick += 1;
        self.route(event);
        self.settle();
        out.append(&mut self.cx.actions);
    }

    /// When [`Core::handle`] is to be called again at the latest, with [`Event::Tick`] if with nothing else.
    pub fn next_deadline(&self) -> Option<Instant> {
        self.cx.timers.next()
    }

    fn route(&mut self, event: Event) {
        let now = self.cx.now;
        match event {
            Event::Tick => {}
            Event::HeartbeatDue => {
                self.send_heartbeat();
                self.cx.act(Action::Sample(Sample::Usage));
                self.ask_guests();
            }
            Event::Link(link, event) => {
                if let Some(arrived) = self.session.on_link(&mut self.cx, link, event) {
                    self.arrived(arrived);
                }
            }
            Event::Job(job, outcome) => self.job_done(job, outcome),
            Event::ProcessEnded(container) => {
                if let Some(id) = self.replicas.of_container(&container).cloned() {
                    self.apply(&id, Input::ProcessEnded);
                }
            }
            Event::Unwatchable(container) => {
                if let Some(id) = self.replicas.of_container(&container).cloned() {
                    self.apply(&id, Input::Unwatchable);
                }
            }
            Event::LeftoverCalls(found) => self.leftover_calls(found),
            Event::Usage(usage) => {
                self.node.on_usage(usage);
                let (percent, deploying) = (self.node.usage_percent(), self.replicas.are_deploying());
                self.images.on_usage(&mut self.cx, percent, deploying);
            }
            Event::Hardware(hardware) => {
                if self.gpus.on_inventory(&self.cx, *hardware) {
                    self.session.info_changed();
                }
            }
            Event::Check(check) => {
                if self.node.on_check(check) {
                    self.session.info_changed();
                }
            }
            Event::ChecksDone => self.node.on_checks_done(now),
            Event::Saved(seq) => {
                if let Some(table) = self.persistence.saved(now, seq) {
                    self.cx.act(Action::SaveTable(table));
                }
            }
            Event::SaveFailed(seq, why) => self.persistence.failed(now, seq, why),
            Event::TableSaved => {
                self.persistence.table_saved(now);
                self.replicas.table_written();
            }
            Event::TableFailed(why) => self.persistence.table_failed(now, why),
            Event::IdentitySaved => self.persistence.identity_saved(now),
            Event::IdentityFailed(why) => self.persistence.identity_failed(now, why),
            Event::Control(id, request) => self.control(id, &request),
            Event::Terminate => self.terminate(),
            Event::Reload => {
                self.session.info_changed();
                self.node.check_now(&mut self.cx);
                self.gpus.read_now(&mut self.cx);
            }
        }
    }

    /// Does what is due and what follows from the state, until nothing is due.
    fn settle(&mut self) {
        let now = self.cx.now;
        let most = 1000 + 4 * self.replicas.len();
        for _ in 0..most {
            self.write_timers();
            match self.cx.timers.next_due(now) {
                // One save has all that an event changes.
                None | Some(Due::Timer(Timer::StateFile)) => {}
                Some(due) => {
                    self.on_due(due);
                    continue;
                }
            }
            self.follow_up();
            self.write_timers();
            match self.cx.timers.next_due(now) {
                None => return,
                Some(due) => self.on_due(due),
            }
        }
        // The main loop comes back at once, and other events still get their turn.
        debug_assert!(false, "a timer stays due: {:?}", self.cx.timers.next_due(now));
    }

    /// Writes the machines' points in time into the table; the replicas' are written where a replica changes.
    fn write_timers(&mut self) {
        let shutdown = self.shutdown.map_or([(Timer::Shutdown, None)], Shutdown::timers);
        let all = self.session.timers().into_iter().chain(self.persistence.timers());
        let all = all.chain(self.engine.timers()).chain(self.leftovers.timers()).chain(self.node.timers());
        for (timer, at) in all.chain(self.gpus.timers()).chain(self.waiting.timers()).chain(shutdown) {
            self.cx.timers.set(timer, at);
        }
        #[cfg(debug_assertions)]
        debug_assert!(self.replicas.len() > 100 || self.replicas.is_consistent(&self.cx));
    }

    fn on_due(&mut self, due: Due) {
        let now = self.cx.now;
        let timer = match due {
            Due::Replica(id, timer) => {
                self.apply(&id, Input::Timer(timer));
                return;
            }
            Due::Timer(timer) => timer,
        };
        match timer {
            Timer::WaitingCommand => {
                let why = self.engine.trouble().unwrap_or_else(|| "the engine is silent".to_owned());
                let why = format!("the node does not know its containers yet: {why}");
                let refusal = Refusal::new(Code::NotReady, why);
                for command in self.waiting.take_expired(now) {
                    self.refuse_command(command, &refusal);
                }
            }
            Timer::DurableBarrier => self.persistence.on_barrier_timer(now),
            Timer::Session | Timer::Silence | Timer::NodeId | Timer::SystemInfo | Timer::Ping => {
                match self.session.on_timer(&mut self.cx, timer) {
                    SessionNeeds::Nothing => {}
                    SessionNeeds::FreshReadings => {
                        self.node.check_now(&mut self.cx);
                        self.gpus.read_now(&mut self.cx);
                        self.cx.act(Action::Sample(Sample::Usage));
                    }
                    SessionNeeds::Registration => self.register(),
                }
            }
            Timer::LeftoverCalls => self.leftovers.on_timer(&mut self.cx),
            Timer::LeftoverCallsUnknown => self.leftovers.on_unknown_timer(),
            Timer::Listing => self.engine.on_listing_timer(&mut self.cx),
            Timer::Probe => self.engine.on_probe_timer(&mut self.cx),
            Timer::Checks => self.node.on_timer(&mut self.cx),
            Timer::Inventory => self.gpus.on_timer(&mut self.cx),
            Timer::Shutdown => {
                if self.shutdown.as_mut().map(|shutdown| shutdown.on_timer(now)) == Some(Step::CloseSession) {
                    self.session.close(&mut self.cx);
                }
            }
            Timer::Identity => {
                if self.persistence.on_identity_timer(now)
                    && let Some(identity) = self.session.identity(self.spec_key.bytes())
                {
                    self.cx.act(Action::SaveIdentity(identity));
                }
            }
            Timer::Table => self.persistence.on_table_timer(now),
            Timer::StateFile => {
                if let Some(seq) = self.persistence.on_timer(now) {
                    self.save_state(seq);
                }
            }
        }
    }

    fn save_state(&mut self, seq: u64) {
        let (replicas, gone) = self.replicas.in_state();
        let text = state_file::write(
            self.node.mode(),
            self.gpus.table().held_back(),
            &replicas,
            gone.as_deref(),
            self.results.recorded(),
            &self.private_images,
            self.boot_id.as_deref(),
        );
        self.cx.act(Action::Save(seq, text));
        if self.persistence.takes_table() {
            let table = state_file::write_table(self.replicas.compose_table(self.cx.tick));
            self.persistence.keep_table(seq, table);
        }
    }

    /// Level-triggered: what follows from the state alone.
    fn follow_up(&mut self) {
        let now = self.cx.now;
        for id in self.replicas.durable_stops(&self.persistence) {
            self.apply(&id, Input::Durable);
        }
        // GPUs that one deploy takes or gives up change what the others get.
        while self.admit() {}
        if !self.replicas.awaiting_listing().is_empty() {
            self.engine.need_listing(now);
        }
        self.speak();
        // A call of an earlier process may still start a container.
        if self.leftovers.are_over() && self.is_idle() && self.node.on_idle() {
            self.persistence.save(now);
        }
        if self.results.take_unsaved() {
            self.persistence.save(now);
        }
        if self.replicas.take_stale_table() {
            self.persistence.save_table(now);
        }
        if self.cx.peer.is_some() {
            let (state, reason) = self.view(self.cx.now).state();
            self.node.report_state(&mut self.cx, state, reason);
        }
        self.end();
    }

    /// Continues the shutdown as far as its conditions are met.
    fn end(&mut self) {
        let progress = Progress {
            idle: self.is_idle(),
            delivered: self.results.is_empty() || self.cx.peer.is_none(),
            saved: self.persistence.is_settled(),
            closed: self.session.is_over(),
        };
        let now = self.cx.now;
        match self.shutdown.as_mut().map_or(Step::Wait, |shutdown| shutdown.advance(now, progress)) {
            Step::Wait => {}
            Step::CloseSession => {
                self.session.close(&mut self.cx);
                // Where there was no connection, the session is over at once.
                self.end();
            }
            Step::EndProcess => self.cx.act(Action::End(End::Clean)),
        }
    }

    /// Sends what must go first on a connection, and then the results that may be sent.
    fn speak(&mut self) {
        let complete = self.gpus.hardware().is_some() && self.node.checks_are_complete();
        if complete && self.session.is_gathering() {
            self.register();
        }
        if self.session.info_is_due(complete) {
            let info = self.view(self.cx.now).system_info();
            self.session.send_info(&mut self.cx, info, complete);
        }
        if self.session.establish(&mut self.cx, self.replicas.are_known()) {
            self.send_heartbeat();
        }
        if let Some((link, ping)) = self.session.next_ping() {
            let persistence = &self.persistence;
            let durable = |barrier| persistence.is_durable(barrier);
            if self.results.send_unsent(&mut self.cx, link, ping, durable) {
                self.session.ping(&mut self.cx);
            }
        }
    }

    fn register(&mut self) {
        let body = self.view(self.cx.now).registration_body();
        self.session.register(&mut self.cx, body);
    }

    fn send_heartbeat(&mut self) {
        if self.cx.peer.is_some() {
            let heartbeat = self.view(self.cx.now).heartbeat();
            self.session.send_heartbeat(&mut self.cx, heartbeat);
        }
    }

    /// What `vectorlay-agent status` shows.
    pub fn status(&self, now: Instant) -> Value {
        self.view(now).status()
    }

    fn view(&self, now: Instant) -> View<'_> {
        View {
            now,
            settings: &self.cx.settings,
            session: &self.session,
            node: &self.node,
            engine: &self.engine,
            persistence: &self.persistence,
            leftovers: &self.leftovers,
            replicas: &self.replicas,
            gpus: &self.gpus,
            guests: &self.guests,
            results: &self.results,
            waiting_commands: self.waiting.len(),
        }
    }

    /// Whether everything that was accepted is done.
    fn is_idle(&self) -> bool {
        self.waiting.is_empty() && self.replicas.owed() == 0
    }

    /// Hands a replica an input and carries out its effects.
    fn apply(&mut self, id: &ReplicaId, input: Input<'_>) {
        let too_little_space = self.node.too_little_space(self.cx.settings.min_free_bytes);
        let around = Surroundings {
            node: self.session.node(),
            too_little_space: too_little_space.as_ref(),
            microvm: self.node.has_microvms(&self.cx.settings.runtime),
        };
        for effect in self.replicas.apply(&mut self.cx, around, id, input) {
            let now = self.cx.now;
            match effect {
                Effect::Report(report) => {
                    let barrier = self.persistence.barrier(now);
                    self.results.report(&mut self.cx, id, report, barrier);
                }
                Effect::Progress(status) => results::send_progress(&mut self.cx, id, status),
                Effect::Save => self.persistence.save(now),
                Effect::Started(container) => self.seen.see(&container, self.cx.tick),
                Effect::KeepsGpus(kept) => self.gpus.release(now, id, &kept),
                Effect::RemoveLeftover(container) => self.replicas.remove_leftover(&mut self.cx, container),
                Effect::ListAgain(at) => self.engine.want_listing(at),
                Effect::EndLeftoverCalls => self.leftovers.end(&mut self.cx, id),
                Effect::Gone => self.gpus.release(now, id, &[]),
            }
        }
    }

    /// Starts deploys from the queue, in order, as far as there are slots and GPUs. Says whether another pass could admit
    /// more.
    fn admit(&mut self) -> bool {
        if self.replicas.queue().is_empty() || self.replicas.are_clearing() {
            return false;
        }
        let before = self.replicas.queue().len();
        let queue: Vec<ReplicaId> = self.replicas.queue().iter().cloned().collect();
        for id in queue {
            if self.replicas.free_slots(&self.cx) == 0 {
                return false;
            }
            let Some(deploy) = self.replicas.get(&id).and_then(Replica::deploy) else { continue };
            let Some(work) = deploy.work.as_ref().filter(|_| self.persistence.is_durable(deploy.barrier))
            else {
                continue;
            };
            let (held, returning) = self.replicas.promised();
            match self.view(self.cx.now).capacity().refuses(&work.spec, held, returning) {
                None => {}
                Some(NoRoom::Wait) => continue,
                Some(NoRoom::Refused(refusal)) => {
                    self.apply(&id, Input::NotAdmitted(refusal));
                    continue;
                }
            }
            let first = match self.private_images.first(work) {
                Ok(first) => first,
                Err(refusal) => {
                    self.apply(&id, Input::NotAdmitted(refusal));
                    continue;
                }
            };
            if let Some((holder, port)) = self.replicas.port_holder(&id, &work.spec.ports) {
                // What is leaving gives its ports back soon.
                if !holder.is_leaving() {
                    let refusal = Refusal::port_of_another(port, holder.id());
                    self.apply(&id, Input::NotAdmitted(refusal));
                }
                continue;
            }
            let count = usize::try_from(work.spec.gpu_count).unwrap_or(usize::MAX);
            let leaving = |holder: &ReplicaId| self.replicas.get(holder).is_some_and(Replica::is_leaving);
            match self.gpus.claim(&self.cx, &id, count, leaving) {
                Ok(claimed) => {
                    if !claimed.is_empty() {
                        self.session.info_changed();
                    }
                    self.apply(&id, Input::Admitted(claimed, first, self.replicas.kept_after_reboot()));
                }
                Err(NotClaimed::Unread) => {}
                // Containers that ended and are kept for their logs give way to one that needs their GPUs.
                Err(NotClaimed::Wait) => {
                    let holders: Vec<ReplicaId> = self.gpus.table().holders().into_iter().cloned().collect();
                    for holder in holders {
                        self.apply(&holder, Input::GiveWay);
                    }
                }
                Err(NotClaimed::Refused(refusal)) => self.apply(&id, Input::NotAdmitted(refusal)),
            }
        }
        self.replicas.queue().len() < before
    }

    /// The server sent something.
    fn arrived(&mut self, arrived: Arrived) {
        match arrived {
            Arrived::Message(command) => self.command(command),
            Arrived::Receipt(link, pong) => self.results.confirm(link, pong),
            Arrived::NewIdentity => self.persistence.save_identity(self.cx.now),
            Arrived::Refused(command, id, request, why) => {
                let kind = match command {
                    Command::Deploy => ResultKind::Deploy,
                    Command::Stop => ResultKind::Stop,
                };
                // A command that was understood once keeps its answer.
                let awaited = |replica: &Replica| replica.awaits_request(request.as_ref());
                if self.shutdown.is_some()
                    || self.results.answer_known(&mut self.cx, kind, &id, request.as_ref())
                    || self.replicas.get(&id).is_some_and(awaited)
                {
                    return;
                }
                let refusal = Refusal::new(Code::Invalid, why);
                self.results.refuse(&mut self.cx, kind, &id, request, "", &refusal);
            }
        }
    }

    /// A command arrived, or waited for the containers to be known until now.
    fn command(&mut self, command: Inbound) {
        match command {
            Inbound::Deploy(_) | Inbound::Stop(_)
                if self.shutdown.is_some() || self.is_redelivery(&command) => {}
            Inbound::Deploy(_) | Inbound::Stop(_) if !self.replicas.are_known() => {
                if let Err((command, refusal)) = self.waiting.push(self.cx.now, command) {
                    self.refuse_command(command, &refusal);
                }
            }
            Inbound::Deploy(deploy) => self.deploy(*deploy),
            Inbound::Stop(stop) => self.stop(stop),
            Inbound::Drain => self.set_mode(Mode::Draining),
            Inbound::Maintenance => self.set_mode(Mode::Maintenance),
            Inbound::Resume => self.set_mode(Mode::Online),
            Inbound::Logs { replica, request, tail } => {
                let known = self.replicas.get(&replica);
                let container = known.and_then(Replica::container).cloned().ok_or(match known {
                    None if self.replicas.are_known() => "there is no container of this replica",
                    None | Some(_) => "its container is not known yet, or gone already",
                });
                self.logs.read(&mut self.cx, replica, request, tail, container);
            }
            Inbound::Registered { .. } => {}
        }
    }

    /// Whether a command is a redelivery: one that was answered gets its answer again, one whose outcome is awaited gets
    /// that when it is there.
    fn is_redelivery(&mut self, command: &Inbound) -> bool {
        let cx = &mut self.cx;
        match command {
            Inbound::Deploy(deploy) => {
                let spec_hash = self.spec_key.hash(&deploy.spec);
                let (id, request) = (&deploy.replica, deploy.request.as_ref());
                let replica = self.replicas.get(id);
                let owes = replica.is_some_and(|replica| replica.owed() > 0);
                self.results.answer_known(cx, ResultKind::Deploy, id, request)
                    || !owes && self.results.answer_unconfirmed(id, request, &spec_hash)
                    || replica.is_some_and(|replica| replica.awaits_deploy(request, &spec_hash))
            }
            Inbound::Stop(stop) => {
                let (id, request) = (&stop.replica, stop.request.as_ref());
                let awaited = |replica: &Replica| replica.stop_requests().contains(&stop.request);
                self.results.answer_known(cx, ResultKind::Stop, id, request)
                    || request.is_some() && self.replicas.get(id).is_some_and(awaited)
            }
            Inbound::Registered { .. }
            | Inbound::Drain
            | Inbound::Maintenance
            | Inbound::Resume
            | Inbound::Logs { .. } => false,
        }
    }

    fn load(&self) -> Load {
        Load {
            takes_deploys: self.node.takes_deploys(),
            queued: self.replicas.queue().len() + self.replicas.pulling(),
            queue_limit: self.cx.settings.queue_limit,
            queued_bytes: self.replicas.queued_bytes(),
            owed: self.results.len() + self.replicas.owed(),
        }
    }

    fn deploy(&mut self, command: protocol::Deploy) {
        let others = self.replicas.others(&command.replica);
        let settings = &self.cx.settings;
        let microvm = self.node.has_microvms(&settings.runtime);
        let not_allowed = settings.allowed.refuses(&command, others, microvm);
        let not_allowed = not_allowed.map(|why| Refusal::new(Code::NotAllowed, why));
        let protocol::Deploy { replica: id, request, spec, auth, pull, stop_timeout, deploy_timeout } =
            command;
        let spec_hash = self.spec_key.hash(&spec);
        let meaning = self.replicas.on_deploy(&id, &spec_hash);
        let refusal = match meaning {
            OnDeploy::Start | OnDeploy::After | OnDeploy::Replace => {
                not_allowed.or_else(|| self.load().refuses_deploy())
            }
            OnDeploy::Conflict => Some(Refusal::conflict(&id)),
            OnDeploy::Running => self.load().refuses_result(),
            OnDeploy::Join => self.load().refuses_join(self.replicas.requests(&id, Awaited::Deploy)),
            OnDeploy::JoinSuccessor => {
                self.load().refuses_join(self.replicas.requests(&id, Awaited::Successor))
            }
        };
        if let Some(refusal) = refusal {
            let kind = ResultKind::Deploy;
            self.results.refuse(&mut self.cx, kind, &id, request, &spec_hash, &refusal);
            return;
        }
        let now = self.cx.now;
        if meaning == OnDeploy::Running {
            let warnings = warnings(&spec, self.node.has_microvms(&self.cx.settings.runtime));
            self.apply(&id, Input::AlreadyRuns(request, warnings));
            return;
        }
        let usual = default_deploy_timeout(spec.gpu_count > 0);
        let accept = |core: &mut Self, request| Deploy {
            id: core.cx.fresh_deploy_id(),
            requests: vec![request],
            spec_hash,
            work: Some(Work { spec, auth, pull, gpus: Vec::new(), ended_by_reboot: BTreeSet::new() }),
            accepted: now,
            deadline: now + deploy_timeout.unwrap_or(usual),
            barrier: core.persistence.barrier(now),
            pulled: false,
            name_conflicts: 0,
            failure: None,
        };
        match meaning {
            OnDeploy::Start => {
                let deploy = accept(self, request);
                let replica = Replica::queued(id, deploy, stop_timeout, self.cx.tick);
                self.replicas.insert(&mut self.cx, replica);
            }
            OnDeploy::After | OnDeploy::Replace => {
                let deploy = Box::new(accept(self, request));
                self.apply(&id, Input::Succeed { deploy, stop_timeout });
            }
            OnDeploy::Join => self.apply(&id, Input::Join { request, of: Awaited::Deploy }),
            OnDeploy::JoinSuccessor => self.apply(&id, Input::Join { request, of: Awaited::Successor }),
            OnDeploy::Running | OnDeploy::Conflict => {}
        }
    }

    fn stop(&mut self, command: protocol::Stop) {
        let protocol::Stop { replica: id, request, timeout } = command;
        let Some(replica) = self.replicas.get(&id) else {
            self.results.answer_absent(&mut self.cx, &id, request);
            return;
        };
        let requests = replica.stop_requests();
        if requests.len() >= REQUESTS_MAX && !requests.contains(&request) {
            let refusal = Refusal::too_many_requests();
            self.results.refuse(&mut self.cx, ResultKind::Stop, &id, request, "", &refusal);
            return;
        }
        let barrier = self.persistence.barrier(self.cx.now);
        self.apply(&id, Input::Stop { request, timeout, barrier });
    }

    /// Answers a command that waited for the containers to be known, or was to.
    fn refuse_command(&mut self, command: Inbound, refusal: &Refusal) {
        let (kind, id, request, spec_hash): (_, _, Option<RequestId>, _) = match command {
            Inbound::Deploy(deploy) => {
                (ResultKind::Deploy, deploy.replica, deploy.request, self.spec_key.hash(&deploy.spec))
            }
            Inbound::Stop(stop) => (ResultKind::Stop, stop.replica, stop.request, String::new()),
            Inbound::Registered { .. }
            | Inbound::Drain
            | Inbound::Maintenance
            | Inbound::Resume
            | Inbound::Logs { .. } => return,
        };
        self.results.refuse(&mut self.cx, kind, &id, request, &spec_hash, refusal);
    }

    fn set_mode(&mut self, mode: Mode) {
        if self.node.set_mode(mode) {
            self.persistence.save(self.cx.now);
        }
    }

    fn job_done(&mut self, job: JobId, outcome: Outcome) {
        let Some(owner) = self.cx.jobs.finish(job) else { return };
        if self.engine.on_outcome(self.cx.now, &outcome) {
            self.node.want_checks(self.cx.now);
        }
        match (owner, outcome) {
            (JobOwner::Replica(id), outcome) => {
                // The images on the host are everyone's: what a pull had to prove a right to is remembered.
                let deploy = self.replicas.get(&id).and_then(Replica::deploy);
                if let Outcome::Pulled(result) = &outcome
                    && let Some(work) = deploy.and_then(|deploy| deploy.work.as_ref())
                    && self.private_images.pulled(work, result)
                {
                    self.persistence.save(self.cx.now);
                }
                self.apply(&id, Input::Outcome(job, outcome));
            }
            (JobOwner::Listing(began), Outcome::Listed(result)) => self.listed(began, result),
            (JobOwner::Listing(_), _) => self.engine.listing_failed(&mut self.cx, "it was not answered"),
            (JobOwner::Logs { replica, request }, outcome) => {
                let result = if let Outcome::Logs(result) = outcome { Some(result) } else { None };
                self.logs.on_outcome(&mut self.cx, &replica, request.as_ref(), result);
            }
            (JobOwner::Images, outcome) => {
                let deploying = self.replicas.are_deploying();
                self.images.on_outcome(&mut self.cx, job, outcome, deploying);
            }
            (JobOwner::Guest(id), outcome) => {
                let said = if let Outcome::GuestUse(result) = outcome { result.ok() } else { None };
                let replicas = &self.replicas;
                let count = replicas.get(&id).map_or(0, |replica| replica.gpus().len());
                let runs = |guest: &Guest| replicas.of_container(&guest.container) == Some(&guest.replica);
                self.guests.on_answer(&mut self.cx, id, count, said, runs);
            }
            (JobOwner::LeftoverContainer(container), _) => self.replicas.leftover_removed(&container),
            (JobOwner::Probe, _) => {}
        }
    }

    /// The engine's list came back. `began`: the tick at which it was asked for.
    fn listed(&mut self, began: u64, result: Result<Vec<Listed>, Failure>) {
        let now = self.cx.now;
        let listed = match result {
            Ok(listed) => listed,
            Err(failure) => {
                self.engine.listing_failed(&mut self.cx, &failure.message);
                // Failures whose containers cannot be proven gone are reported all the same.
                for id in self.replicas.awaiting_listing().clone() {
                    self.apply(&id, Input::EngineSilent);
                }
                return;
            }
        };
        self.engine.listed(now);
        if began < self.leftovers.ended() {
            // It may have missed a container that a call of an earlier process made meanwhile.
            self.engine.want_listing(now);
            return;
        }
        let deploys = self.replicas.iter().map(|(_, replica)| replica.deploy_id().to_owned());
        let deploys = deploys.chain(self.leftovers.deploys().cloned());
        self.seen.on_listed(&mut self.cx, began, &listed, deploys);
        let first = !self.replicas.are_known();
        let listing = Listing::new(&mut self.cx, began, first, listed, &self.leftovers);
        for (id, _) in listing.labelled() {
            self.show(id, &listing, |shown| Input::Recovered(shown));
        }
        for Misheld { gpu, holder, owner } in listing.misheld(self.gpus.table(), &self.replicas) {
            self.apply(&holder, Input::LosesGpu(gpu));
            self.gpus.reassign(&owner, gpu);
        }
        for (id, gpus) in listing.labelled() {
            if self.replicas.get(id).is_none() {
                // Unknown replica: adopt it.
                self.replicas.insert(&mut self.cx, Replica::unknown(id.clone()));
            }
            self.apply(id, Input::Labelled(gpus.iter().copied().collect()));
            self.gpus.adopt(id, gpus);
        }
        for id in self.replicas.ids() {
            self.show(&id, &listing, |shown| Input::Listed(shown));
        }
        if first {
            self.replicas.become_known(&mut self.cx, listing.without_task());
            if self.gpus.table().count().0 > 0 {
                self.session.info_changed();
            }
            for command in self.waiting.take_all() {
                self.command(command);
            }
        }
    }

    /// Shows a replica what a listing has of it.
    fn show(&mut self, id: &ReplicaId, listing: &Listing, input: for<'a> fn(&'a Shown<'a>) -> Input<'a>) {
        let Some(replica) = self.replicas.get(id) else { return };
        let shown = listing.shown(replica, &self.leftovers);
        self.apply(id, input(&shown));
    }

    /// A search for calls of an earlier process came back.
    fn leftover_calls(&mut self, found: Option<BTreeMap<String, LeftoverCall>>) {
        let free = self.leftovers.found(&self.cx, found);
        let now = self.cx.now;
        if self.leftovers.are_known() {
            self.engine.allow_listing(now);
        }
        // A listing that begins now shows what the finished calls have made; an earlier one may miss it.
        if self.leftovers.ended() == self.cx.tick {
            self.engine.want_listing(now);
        }
        for id in free {
            self.apply(&id, Input::LeftoverCallsOver);
        }
    }

    /// Asks each running replica that has GPUs which the host cannot see into, if that is allowed.
    fn ask_guests(&mut self) {
        if !self.cx.settings.ask_guests {
            return;
        }
        let table = self.gpus.table();
        let guest = |id: &ReplicaId| {
            let replica = self.replicas.get(id)?;
            let gpu = *replica.gpus().first().filter(|gpu| table.by_vfio(**gpu))?;
            let container = replica.running()?.clone();
            Some(Guest { replica: id.clone(), container, vendor: table.vendor(gpu) })
        };
        let guests = table.holders().into_iter().filter_map(guest).collect();
        self.guests.ask(&mut self.cx, guests);
    }

    fn control(&mut self, id: ControlId, request: &Request) {
        match request {
            Request::Status => {}
            Request::Drain => self.set_mode(Mode::Draining),
            Request::Maintenance => self.set_mode(Mode::Maintenance),
            Request::Resume => self.set_mode(Mode::Online),
            Request::Recheck => {
                self.session.info_changed();
                self.node.check_now(&mut self.cx);
            }
            Request::GpuHold(gpu) | Request::GpuRelease(gpu) if !self.gpus.table().knows(*gpu) => {
                let error = json!({ "error": format!("there is no GPU at {gpu}") });
                self.cx.act(Action::Reply(id, error));
                return;
            }
            Request::GpuHold(gpu) | Request::GpuRelease(gpu) => {
                if self.gpus.hold_back(*gpu, matches!(request, Request::GpuHold(_))) {
                    self.persistence.save(self.cx.now);
                    self.session.info_changed();
                }
            }
        }
        let status = self.status(self.cx.now);
        self.cx.act(Action::Reply(id, status));
    }

    fn terminate(&mut self) {
        if self.shutdown.is_some() {
            return;
        }
        self.shutdown = Some(Shutdown::begin(self.cx.now, self.cx.settings.grace));
        drop(self.waiting.take_all());
        let queued: Vec<ReplicaId> = self.replicas.queue().iter().cloned().collect();
        for id in queued.into_iter().chain(self.replicas.ids()) {
            self.apply(&id, Input::Shutdown);
        }
        self.cx.info("shutting down: finishing what is in flight; containers keep running");
    }
}
