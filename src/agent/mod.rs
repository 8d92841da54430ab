//! The running agent: starts the threads, then takes events, hands each to the core with the time, and carries out
//! what the core answers. It decides nothing by itself.
//!
//! ```text
//!  link · pool · watcher · sampler · store · housekeeping · control · heartbeat · signals
//!        └──────────────── events ───────────────► [ core ] ── actions ──► the same
//! ```
//!
//! The events' channel is bounded and its senders block; nothing that the main loop calls blocks.

mod host_choices;
pub mod metrics;
mod observer;
mod sd_notify;
mod startup;
mod timers;

use std::fmt;
use std::path::Path;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::cli::VERSION;
use crate::config::{Config, LogDriver};
use crate::control::Control;
use crate::core::allowed::{Allowed, image_prefix};
use crate::core::job::label_value;
use crate::core::link_api::LinkEvent;
use crate::core::operator::ControlId;
use crate::core::persistence::{Record, RecordFile, StoreEvent};
use crate::core::{self, Action, Core, End, Event};
use crate::engine::cli::Flavour;
use crate::engine::housekeeping::Housekeeper;
use crate::engine::leftover_calls;
use crate::engine::watcher::{self, Watcher};
use crate::engine::{self, Pool, housekeeping};
use crate::host::{identity, kernel_log};
use crate::link::{self, Link, Proxy, Url};
use crate::logging;
use crate::sampler::{self, Sampler};
use crate::setup::{self, Setup};
use crate::store::history::History;
use crate::store::metrics_file::MetricsFile;
use crate::store::{Directory, Store, machine};
use crate::types::NodeId;

use self::host_choices::Choices;
use self::observer::Observer;
use self::sd_notify::SdNotify;

/// Events that wait for the main loop; past it their senders wait.
const EVENTS_MAX: usize = 64;
/// Stops and removals at once.
const STOPS: usize = 8;
/// Lists, inspects and logs at once.
const QUERIES: usize = 4;

/// Why the agent cannot run, or stopped running.
#[derive(Debug)]
pub enum Error {
    /// The settings or the state directory have to be corrected, or a token given: what is wrong.
    Configuration(String),
    /// The organisation token is refused.
    TokenRefused(String),
    /// A thread or descriptor could not be had: what for, and the kernel's words.
    Start(&'static str, String),
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Configuration(why) | Self::TokenRefused(why) => f.write_str(why),
            Self::Start(what, why) => {
                write!(f, "cannot start {what}: {why}; free memory or raise the limits of tasks and files")
            }
        }
    }
}

impl std::error::Error for Error {}

/// Runs the agent until it is told to stop. `file` is the configuration file, if there is one.
///
/// # Errors
/// [`Error`] when it cannot start, or cannot go on.
pub fn run(config: &Config, file: Option<&Path>) -> Result<(), Error> {
    let (events, received) = sync_channel(EVENTS_MAX);
    // First of all, so that a signal during the start is not lost.
    timers::signals(events.clone(), Duration::from_secs(config.grace_s))
        .map_err(|e| Error::Start("the signals' thread", e.to_string()))?;
    let link = link_settings(config)?;
    let _machine = machine::lock(Path::new(machine::FOLDER), config.instance.as_deref())
        .map_err(Error::Configuration)?;
    let (directory, origin) = startup::open(config)?;
    log::info!(
        "vectorlay-agent {VERSION}: url {}, settings {}, state {}, node {}",
        link.url,
        file.map_or_else(|| "without a file".to_owned(), |file| file.display().to_string()),
        directory.path().display(),
        origin.identity.as_ref().map_or("not registered yet", |identity| identity.node_id.as_str()),
    );
    if identity::hostname(&config.root).is_none() {
        log::warn!(
            "this host has no name, so the node is shown without one: set it, by DHCP or `hostname NAME`"
        );
    }
    let mut observer = Observer::new(Instant::now(), link.url.to_string());
    let records = Records::start(config);
    let setup = Setup::new(config);
    let node = origin.identity.as_ref().map(|identity| &identity.node_id);
    let mut edges = Edges::start(config, node, setup, link, directory, &events)?;
    let heartbeat =
        timers::heartbeat(events).map_err(|e| Error::Start("the heartbeat's thread", e.to_string()))?;

    let mut actions = Vec::new();
    let mut sd_notify = SdNotify::new(Instant::now(), |name| std::env::var_os(name));
    let mut core = Core::new(Instant::now(), core_settings(config), origin, &mut actions);
    sd_notify.ready();
    loop {
        for mut action in actions.drain(..) {
            log::debug!("do: {action}");
            observer.action(Instant::now(), &action);
            if let Action::Reply(_, answer) = &mut action {
                observer.extend(Instant::now(), answer);
            }
            if let Some(end) = edges.perform(action) {
                sd_notify.stopping();
                records.record(&mut observer);
                return match end {
                    End::Clean => Ok(()),
                    End::NoIdentity(why) => Err(Error::Configuration(why)),
                    End::TokenRefused(why) => Err(Error::TokenRefused(why)),
                };
            }
        }
        sd_notify.turn(Instant::now());
        sd_notify.report(Instant::now(), || core.status(Instant::now()));
        // A heartbeat that is due goes before everything that waits in the channel.
        let event = if heartbeat.is_due() {
            Event::HeartbeatDue
        } else {
            next_event(&core, &received, sd_notify.deadline())
        };
        log::debug!("event: {event}");
        if is_of_the_store(&event) {
            edges.store.answered();
        }
        match event {
            Event::Reload => sd_notify.reloading(),
            Event::Terminate => sd_notify.stopping(),
            _ => {}
        }
        let is_reload = matches!(event, Event::Reload);
        let text_bytes = match &event {
            Event::Link(_, LinkEvent::Text(text)) => text.len(),
            _ => 0,
        };
        let is_heartbeat = matches!(event, Event::HeartbeatDue);
        let is_change = is_heartbeat
            || matches!(event, Event::Control(..) | Event::Link(_, LinkEvent::Up | LinkEvent::Down(_)));
        observer.event(Instant::now(), &event);
        core.handle(Instant::now(), event, &mut actions);
        edges.link.consumed(text_bytes);
        if is_change {
            let mut status = core.status(Instant::now());
            observer.compare(&status);
            if is_heartbeat {
                observer.extend(Instant::now(), &mut status);
                records.heartbeat(&status);
            }
        }
        records.record(&mut observer);
        if is_reload {
            sd_notify.ready();
        }
    }
}

/// Whether it is an answer of the store, which takes one order after the other.
fn is_of_the_store(event: &Event) -> bool {
    matches!(
        event,
        Event::Saved(_)
            | Event::SaveFailed(..)
            | Event::TableSaved
            | Event::TableFailed(_)
            | Event::IdentitySaved
            | Event::IdentityFailed(_)
    )
}

/// The next event; only time if the core's deadline or the watchdog's comes first.
fn next_event(core: &Core, received: &Receiver<Event>, watchdog: Option<Instant>) -> Event {
    let now = Instant::now();
    let deadline = core.next_deadline().into_iter().chain(watchdog).min();
    let wait = deadline.map(|at| at.saturating_duration_since(now));
    match received.recv_timeout(wait.unwrap_or(Duration::from_secs(3600))) {
        Ok(event) => event,
        Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => Event::Tick,
    }
}

fn core_settings(config: &Config) -> core::Settings {
    core::Settings {
        version: VERSION,
        runtime: config.runtime.clone(),
        workers: config.workers,
        queue_limit: config.queue_limit,
        retention: Duration::from_secs(config.retention_s),
        reconcile: Duration::from_secs(config.reconcile_s),
        recheck: Duration::from_secs(config.check_s),
        grace: Duration::from_secs(config.grace_s),
        min_free_bytes: config.min_free_gb << 30,
        image_marks: (config.image_high_percent > 0)
            .then_some((config.image_high_percent, config.image_low_percent)),
        ask_guests: config.gpu_guest_utilization,
        reserve_memory_mib: config.reserve_memory_mb,
        gpu_retest: Duration::from_secs(config.gpu_retest_s),
        allowed: allowed(config),
    }
}

fn allowed(config: &Config) -> Allowed {
    let limit = |number: u64| (number > 0).then_some(number);
    Allowed {
        images: config.image_entries().filter_map(image_prefix).collect(),
        by_digest_only: config.images_by_digest_only,
        ports: config.port_min..=config.port_max,
        memory_mib: limit(config.max_memory_mb),
        cpus: limit(config.max_cpus),
        shm_mib: limit(config.max_shm_mb),
        pids: limit(config.max_pids),
        variables: config.max_variables,
        variables_kib: config.max_variables_kb,
        command_kib: config.max_command_kb,
        replicas: limit(config.max_replicas),
    }
}

/// How to connect, by the settings.
///
/// # Errors
/// [`Error::Configuration`].
pub fn link_settings(config: &Config) -> Result<link::Settings, Error> {
    let wrong =
        |setting: &str, why: &dyn fmt::Display| Error::Configuration(format!("setting {setting}: {why}"));
    let url = config.required_url().map_err(Error::Configuration)?;
    let url = Url::websocket(url, config.allow_insecure).map_err(|e| wrong("url", &e))?;
    let register_url = match &config.register_url {
        Some(text) => Url::http(text, config.allow_insecure).map_err(|e| wrong("register_url", &e))?,
        None => Url::register_from(&url),
    };
    let proxy = config.proxy.as_ref().map(|proxy| {
        Proxy::new(proxy.expose(), config.no_proxy.as_deref().unwrap_or_default())
            .map_err(|e| wrong("proxy", &e))
    });
    if let Some(path) = &config.ca_file {
        link::check_ca_file(path).map_err(|e| wrong("ca_file", &e))?;
    }
    Ok(link::Settings { url, register_url, ca_file: config.ca_file.clone(), proxy: proxy.transpose()? })
}

/// Files that the agent keeps for people, and does not need itself.
struct Records {
    history: Option<History>,
    metrics: Option<MetricsFile>,
}

impl Records {
    fn start(config: &Config) -> Self {
        let warn = |what: &str, error: std::io::Error| log::warn!("no {what} is written: {error}");
        let boot_id = identity::boot_id(&config.root).unwrap_or_default();
        let history = History::start(&config.state_dir, boot_id).map_err(|e| warn("history", e)).ok();
        let metrics = config.metrics_file.clone().map(MetricsFile::start);
        let metrics = metrics.and_then(|started| started.map_err(|e| warn("metrics file", e)).ok());
        Self { history, metrics }
    }

    fn record(&self, observer: &mut Observer) {
        for entry in observer.take_entries() {
            if let Some(history) = &self.history {
                history.record(entry);
            }
        }
    }

    fn heartbeat(&self, status: &Value) {
        if let Some(history) = &self.history {
            history.alive();
        }
        if let Some(metrics) = &self.metrics {
            metrics.write(metrics::render(status));
        }
    }
}

/// The threads, seen from the main loop.
struct Edges {
    link: Link,
    pool: Pool,
    watcher: Watcher,
    sampler: Sampler,
    store: Store,
    housekeeper: Housekeeper,
    /// None where the socket could not be made: the agent works without it.
    control: Option<Control>,
}

impl Edges {
    fn start(
        config: &Config,
        node: Option<&NodeId>,
        setup: Setup,
        link: link::Settings,
        directory: Directory,
        events: &SyncSender<Event>,
    ) -> Result<Self, Error> {
        // The main loop outlives the edges: a failed send means that the process is ending.
        let to_main = |events: &SyncSender<Event>| {
            let events = events.clone();
            move |event: Event| _ = events.send(event)
        };
        let started = |what: &'static str| move |e: &dyn fmt::Display| Error::Start(what, e.to_string());
        let send = to_main(events);
        let link = link::start(link, move |link, event| send(Event::Link(link, event)))
            .map_err(|e| started("the link")(&e))?;
        let send = to_main(events);
        let mut choices = Choices::new(config, &setup);
        let (flavour, data_config) = (setup.cli.flavour, config.clone());
        let caller = leftover_calls::Caller {
            cli: setup.cli.path.clone(),
            flavour,
            node: node.map(|node| label_value(node.as_str())),
        };
        let pool = engine::Settings {
            cli: choices.cli(&setup),
            deploys: config.workers,
            stops: STOPS,
            queries: QUERIES,
            scratch: setup::scratch(config),
            pull_stall: (config.pull_stall_s > 0).then(|| Duration::from_secs(config.pull_stall_s)),
            overdue: engine::OVERDUE,
            root: config.root.clone(),
            oom_killed: kernel_log::says_oom_killed,
        };
        let pool = Pool::start(pool, Arc::new(move |job, outcome| send(Event::Job(job, outcome))))
            .map_err(|e| started("the engine's pool")(&e))?;
        let send = to_main(events);
        let watcher = Watcher::start(config.oom_score_adj, move |event| {
            send(match event {
                watcher::Event::Exited(container) => Event::ProcessEnded(container),
                watcher::Event::Unwatchable(container) => Event::Unwatchable(container),
            });
        })
        .map_err(|e| started("the watcher")(&e))?;
        let send = to_main(events);
        let cli = pool.cli_setter();
        let sources = sampler::Sources {
            root: config.root.clone(),
            instance: config.instance.clone(),
            data_path: Box::new(move || setup::data_path(&data_config, flavour)),
            checks: Box::new(move || choices.again(&cli)),
            gpus: Box::new(setup::gpu_reader(config)),
            utilization: Box::new(setup::utilization_reader(config)),
        };
        let sampler = Sampler::start(sources, Arc::new(send)).map_err(|e| started("the sampler")(&e))?;
        let send = to_main(events);
        let store = Store::start(directory, move |event| {
            send(match event {
                StoreEvent::Saved(RecordFile::State, seq) => Event::Saved(seq),
                StoreEvent::SaveFailed(RecordFile::State, seq, why) => Event::SaveFailed(seq, why),
                StoreEvent::Saved(RecordFile::Table, _) => Event::TableSaved,
                StoreEvent::SaveFailed(RecordFile::Table, _, why) => Event::TableFailed(why),
                StoreEvent::Saved(RecordFile::Node, _) => Event::IdentitySaved,
                StoreEvent::SaveFailed(RecordFile::Node, _, why) => Event::IdentityFailed(why),
            });
        })
        .map_err(|e| started("the store")(&e))?;
        let send = to_main(events);
        // What may become the choice once the runtime's shim is there.
        let files = flavour == Flavour::Nerdctl && config.log_driver != LogDriver::JsonFile;
        let logs = files.then(|| config.log_dir.clone());
        let housekeeping = housekeeping::Settings { root: config.root.clone(), caller, logs };
        let housekeeper = Housekeeper::start(housekeeping, move |calls| send(Event::LeftoverCalls(calls)))
            .map_err(|e| started("the housekeeping")(&e))?;
        let send = to_main(events);
        let control = Control::start(&config.control_socket, logging::recent, move |id, request| {
            send(Event::Control(id, request))
        });
        let control = control.inspect_err(|error| log::warn!("{error}")).ok();
        Ok(Self { link, pool, watcher, sampler, store, housekeeper, control })
    }

    fn perform(&mut self, action: Action) -> Option<End> {
        match action {
            Action::Link(order) => self.link.command(order),
            Action::Job(id, job) => self.pool.submit(id, job),
            Action::CancelJob(id) => self.pool.cancel(id),
            Action::Watch(container, pid) => self.watcher.watch(container, pid),
            Action::Unwatch(container) => self.watcher.unwatch(container),
            Action::FindLeftoverCalls => self.housekeeper.find_calls(),
            Action::EndLeftoverCalls(deploy) => self.housekeeper.end_calls(deploy),
            Action::EndShim(container) => self.housekeeper.end_shim(container),
            Action::CleanUp(cleanup) => self.housekeeper.clean_up(cleanup),
            Action::Sample(sample) => self.sampler.order(sample),
            Action::Save(seq, text) => self.store.save(Record::State(text), seq),
            Action::SaveTable(text) => self.store.save(Record::Table(text), 0),
            Action::SaveIdentity(identity) => self.store.save(Record::Node(identity), 0),
            Action::Reply(id, answer) => self.reply(id, &answer),
            Action::Log(level, text) => log::log!(level, "{text}"),
            Action::End(end) => return Some(end),
        }
        None
    }

    fn reply(&self, id: ControlId, answer: &Value) {
        if let Some(control) = &self.control {
            control.reply(id, answer.to_string());
        }
    }
}
