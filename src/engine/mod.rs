//! The container engine, by its CLI: jobs in, outcomes out.
//!
//! ```text
//!  submit, cancel ──► manager ──► a thread for each job that runs ──► CLI
//!  (never block)      queues,                  │
//!                     four lanes               └──► (JobId, Outcome), by the function that the caller gave
//! ```
//!
//! A job waits in its lane (runs, pulls, stops, queries) for a slot and then has a thread of its own until its call has
//! ended. A stop or removal that hangs releases its slot after [`OVERDUE`] and is still reaped: killing it would leak
//! the container's shim. Every job has exactly one outcome while the pool lives.
//!
//! No deploy is decided on or retried here: a call is repeated only to repair what the CLI got wrong (a damaged image, a
//! list that one unreadable container spoils).

pub mod addresses;
pub mod cli;
pub mod credentials;
pub mod env;
pub mod error_text;
mod failure;
pub mod housekeeping;
pub mod image;
pub mod image_policy;
mod image_repair;
pub mod leftover_calls;
mod list_one_by_one;
pub mod log_watch;
pub mod logs;
pub mod parse;
pub mod ports;
pub mod proof;
mod proof_image;
mod pull;
pub mod releases;
mod socket_tables;
mod stall;
pub mod watcher;

use std::collections::VecDeque;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::time::{Duration, Instant};

use crate::core::job::{Failure, FailureKind, Inspected, InspectedState, Job, JobId, Outcome, RunJob};
use crate::process::{self, Cancel};
use crate::types::{ContainerId, ImageRef};
use cli::{Cli, Flavour, LogChoice};
use credentials::Credentials;
use image::Known;
use image_policy::Checked;

/// After this long a stop or a removal no longer counts against its lane.
pub const OVERDUE: Duration = Duration::from_secs(30);
/// The exit code of a process that was ended by SIGKILL.
const KILLED: i32 = 128 + 9;
/// At most this many hung calls hold no slot; each is a process of the CLI of 40 MB.
const OVERDUE_MAX: usize = 32;

/// How the pool works.
#[derive(Debug, Clone)]
pub struct Settings {
    /// The CLI.
    pub cli: Cli,
    /// Runs at once, and pulls at once besides.
    pub deploys: usize,
    /// Stops and removals at once.
    pub stops: usize,
    /// Lists, inspects and logs at once.
    pub queries: usize,
    /// A folder of this agent's own for credentials while a pull runs; on a tmpfs, if possible.
    pub scratch: PathBuf,
    /// How long a pull may stand still before it is given up; `None`: until its deadline.
    pub pull_stall: Option<Duration>,
    /// See [`OVERDUE`].
    pub overdue: Duration,
    /// The machine: `/`, or a folder that stands for it.
    pub root: PathBuf,
    /// Whether the log of the kernel at this root says that it ended a process of this container for want of memory: nerdctl
    /// does not.
    pub oom_killed: fn(&Path, &ContainerId) -> bool,
}

/// What is called with each outcome, in a thread of the pool; it may block.
pub type Sink = Arc<dyn Fn(JobId, Outcome) + Send + Sync>;

/// The pool's handle; dropping it starts no more jobs and lets those that run end.
#[derive(Debug)]
pub struct Pool {
    inbox: Sender<Message>,
}

enum Message {
    Submit(JobId, Job),
    Cancel(JobId),
    /// How the CLI is used from now on.
    SetCli(Box<Cli>),
    /// With the image of a run as it was looked at.
    Ended(JobId, Option<Checked>),
    Close,
}

impl Pool {
    /// Starts the manager's thread, and removes credentials that a killed agent left.
    ///
    /// # Errors
    /// The kernel's, when it gives no thread.
    pub fn start(settings: Settings, sink: Sink) -> io::Result<Self> {
        Credentials::clean(&settings.scratch);
        let (inbox, messages) = channel();
        let manager = Manager {
            lanes: [settings.deploys, settings.deploys, settings.stops, settings.queries].map(Lane::new),
            running: Vec::new(),
            known: Known::default(),
            settings: Arc::new(settings),
            sink,
            inbox: inbox.clone(),
        };
        std::thread::Builder::new().name("jobs".into()).spawn(move || manager.work(&messages))?;
        Ok(Self { inbox })
    }

    /// Hands over a job. Never blocks; what waits is bounded by what the caller admits.
    pub fn submit(&self, id: JobId, job: Job) {
        // The manager ends only after this handle is dropped.
        let _ = self.inbox.send(Message::Submit(id, job));
    }

    /// For whoever finds out that the host has changed.
    pub fn cli_setter(&self) -> CliSetter {
        CliSetter { inbox: self.inbox.clone() }
    }

    /// Drops a job that still waits, and ends the call of one that runs, if that is a pull or a query. A run, stop or
    /// removal under way goes on: killed, it would leave more behind than it does when it ends. The outcome comes in
    /// either case.
    pub fn cancel(&self, id: JobId) {
        let _ = self.inbox.send(Message::Cancel(id));
    }
}

/// Changes how the CLI of a pool is used.
#[derive(Debug, Clone)]
pub struct CliSetter {
    inbox: Sender<Message>,
}

impl CliSetter {
    /// Calls that begin from now on use the CLI so.
    pub fn set(&self, cli: Cli) {
        // A pool that has ended needs it no more.
        let _ = self.inbox.send(Message::SetCli(Box::new(cli)));
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        let _ = self.inbox.send(Message::Close);
    }
}

const RUNS: usize = 0;
const PULLS: usize = 1;
const STOPS: usize = 2;
const QUERIES: usize = 3;

fn lane_of(job: &Job) -> usize {
    match job {
        Job::Run(_) => RUNS,
        Job::Pull(_) => PULLS,
        Job::Stop(..) | Job::Remove(_) => STOPS,
        Job::RemoveImage(_) => STOPS,
        Job::List | Job::Inspect(_) | Job::Logs(..) | Job::Probe | Job::Images | Job::GuestUse(..) => QUERIES,
    }
}

struct Lane {
    waiting: VecDeque<(JobId, Job)>,
    slots: usize,
    taken: usize,
}

impl Lane {
    fn new(slots: usize) -> Self {
        Self { waiting: VecDeque::new(), slots: slots.max(1), taken: 0 }
    }
}

struct Running {
    lane: usize,
    /// Where it may be ended before its deadline.
    cancel: Option<Cancel>,
    /// When it releases its slot; `None`: never, or done.
    overdue: Option<Instant>,
    /// Whether it counts against its lane.
    holds_slot: bool,
    image: ImageUse,
}

/// What a job has to do with an image.
enum ImageUse {
    Nothing,
    /// It runs it; at its start images had changed this many times.
    Runs(ImageRef, u64),
    /// It changes what the name stands for.
    Changes(ImageRef),
}

struct Manager {
    lanes: [Lane; 4],
    running: Vec<(JobId, Running)>,
    known: Known,
    settings: Arc<Settings>,
    sink: Sink,
    inbox: Sender<Message>,
}

impl Manager {
    fn work(mut self, messages: &Receiver<Message>) {
        loop {
            let next = self.running.iter().filter_map(|(_, job)| job.overdue).min();
            let message = match next {
                None => messages.recv().ok(),
                Some(at) => match messages.recv_timeout(at.saturating_duration_since(Instant::now())) {
                    Ok(message) => Some(message),
                    Err(RecvTimeoutError::Timeout) => None,
                    Err(RecvTimeoutError::Disconnected) => return,
                },
            };
            match message {
                Some(Message::Submit(id, job)) => self.lanes[lane_of(&job)].waiting.push_back((id, job)),
                Some(Message::Cancel(id)) => self.cancel(id),
                Some(Message::Ended(id, image)) => self.ended(id, image),
                Some(Message::SetCli(cli)) => {
                    self.settings = Arc::new(Settings { cli: *cli, ..(*self.settings).clone() });
                }
                Some(Message::Close) => return,
                None => self.free_overdue(),
            }
            self.start_waiting();
        }
    }

    fn start_waiting(&mut self) {
        for lane in [RUNS, PULLS, STOPS, QUERIES] {
            while self.lanes[lane].taken < self.lanes[lane].slots {
                let Some((id, job)) = self.lanes[lane].waiting.pop_front() else { break };
                self.start(lane, id, job);
            }
        }
    }

    fn start(&mut self, lane: usize, id: JobId, job: Job) {
        let endable = matches!(lane, PULLS | QUERIES);
        // Without a descriptor for the flag the call can start all the same; only its deadline ends it then.
        let cancel = endable.then(Cancel::new).and_then(Result::ok);
        let overdue = (lane == STOPS).then(|| Instant::now() + self.settings.overdue);
        let (settings, sink, inbox, flag) =
            (self.settings.clone(), self.sink.clone(), self.inbox.clone(), cancel.clone());
        let shown = job.clone();
        let (image, known) = match &job {
            Job::Run(run) => {
                let image = run.spec.image.clone();
                let known = self.known.get(&image, Instant::now());
                (ImageUse::Runs(image, self.known.changes()), known)
            }
            Job::Pull(pull) => (ImageUse::Changes(pull.image.clone()), None),
            Job::RemoveImage(image) => (ImageUse::Changes(image.clone()), None),
            Job::List
            | Job::Inspect(_)
            | Job::Stop(..)
            | Job::Remove(_)
            | Job::Logs(..)
            | Job::Probe
            | Job::Images
            | Job::GuestUse(..) => (ImageUse::Nothing, None),
        };
        let thread = std::thread::Builder::new().name(format!("job-{}", id.0)).spawn(move || {
            let (outcome, image) = match &job {
                Job::Run(run) => run_checked(&settings, &job, run, known),
                job => (perform(&settings, id, job, flag.as_ref()), None),
            };
            // The slot is released before the outcome is sent: the jobs that follow from it find it free.
            let _ = inbox.send(Message::Ended(id, image));
            sink(id, outcome);
        });
        match thread {
            Ok(_) => {
                self.lanes[lane].taken += 1;
                self.running.push((id, Running { lane, cancel, overdue, holds_slot: true, image }));
            }
            Err(error) => {
                let message =
                    format!("cannot start a thread for {shown}: {error}; raise the limit of processes");
                (self.sink)(id, parse::failed(&shown, Failure { kind: FailureKind::Unavailable, message }));
            }
        }
    }

    fn cancel(&mut self, id: JobId) {
        if let Some((_, running)) = self.running.iter().find(|(running, _)| *running == id) {
            if let Some(cancel) = &running.cancel {
                cancel.cancel();
            }
            return;
        }
        for lane in &mut self.lanes {
            if let Some(at) = lane.waiting.iter().position(|(waiting, _)| *waiting == id) {
                let Some((id, job)) = lane.waiting.remove(at) else { return };
                let message = format!("{job} was cancelled before it began");
                (self.sink)(id, parse::failed(&job, Failure { kind: FailureKind::Deadline, message }));
                return;
            }
        }
    }

    fn ended(&mut self, id: JobId, checked: Option<Checked>) {
        if let Some(at) = self.running.iter().position(|(running, _)| *running == id) {
            let (_, job) = self.running.swap_remove(at);
            self.lanes[job.lane].taken -= usize::from(job.holds_slot);
            match (job.image, checked) {
                (ImageUse::Changes(image), _) => self.known.forget(&image),
                (ImageUse::Runs(image, changes), Some(checked)) => {
                    self.known.keep(&image, checked, changes, Instant::now());
                }
                (ImageUse::Runs(..), None) | (ImageUse::Nothing, _) => {}
            }
        }
    }

    fn free_overdue(&mut self) {
        let now = Instant::now();
        let mut free = self.running.iter().filter(|(_, job)| !job.holds_slot).count();
        for (id, job) in &mut self.running {
            if job.overdue.is_none_or(|at| at > now) {
                continue;
            }
            job.overdue = None;
            if free < OVERDUE_MAX {
                log::warn!("{id} hangs: its slot goes to the next job");
                job.holds_slot = false;
                self.lanes[job.lane].taken -= 1;
                free += 1;
            }
        }
    }
}

/// Looks at the image of a run, unless it is known, and runs just what was looked at. With the outcome comes what a look
/// has found.
fn run_checked(
    settings: &Settings,
    job: &Job,
    run: &RunJob,
    known: Option<Checked>,
) -> (Outcome, Option<Checked>) {
    let began = Instant::now();
    let looked = known.is_none();
    let checked = match known.map_or_else(|| look(settings, job, run), Ok) {
        Ok(checked) => checked,
        Err(failure) => return (parse::failed(job, failure), None),
    };
    if let Err(failure) = ports::look(&settings.root, &run.spec.ports) {
        return (parse::failed(job, failure), looked.then_some(checked));
    }
    if settings.cli.flavour == Flavour::Nerdctl && !run.ended_by_reboot.is_empty() {
        addresses::give_back(&settings.root, &run.ended_by_reboot);
    }
    let left = run.deadline.saturating_sub(began.elapsed());
    let outcome = match settings.cli.run(run, &checked, left) {
        Ok((program, bounds)) => parse::outcome(job, &process::run(&program, &bounds, None)),
        Err(failure) => parse::failed(job, failure),
    };
    let gone = matches!(&outcome, Outcome::Ran(Err(Failure { kind: FailureKind::NoImage, .. })));
    (outcome, (looked && !gone).then_some(checked))
}

fn look(settings: &Settings, job: &Job, run: &RunJob) -> Result<Checked, Failure> {
    let (program, bounds) = settings.cli.call(job)?;
    let facts =
        parse::facts(settings.cli.flavour, job, &run.spec.image, &process::run(&program, &bounds, None))?;
    image_policy::check(facts).map_err(|why| Failure {
        kind: FailureKind::ImageRefused,
        message: error_text::one_line(&format!("image {} is refused: {why}", run.spec.image)),
    })
}

/// Does a job: the call and what has to be done around it.
fn perform(settings: &Settings, id: JobId, job: &Job, cancel: Option<&Cancel>) -> Outcome {
    if let (Job::Logs(container, lines), LogChoice::File { dir }) = (job, &settings.cli.log) {
        let (program, bounds) = settings.cli.deploy_of(container);
        let read = parse::deploy_of(job, &process::run(&program, &bounds, cancel))
            .map(|deploy| logs::tail(dir, &deploy, *lines));
        match read {
            Ok(Ok(tail)) => return Outcome::Logs(Ok(tail)),
            Err(failure) => return Outcome::Logs(Err(failure)),
            // It may be of a time when another log driver was in force.
            Ok(Err(_)) => {}
        }
    }
    if let Job::Pull(job_of_pull) = job {
        return pull::pull(settings, id, job, job_of_pull, cancel);
    }
    let (program, bounds) = match settings.cli.call(job) {
        Ok(call) => call,
        Err(failure) => return parse::failed(job, failure),
    };
    let result = process::run(&program, &bounds, cancel);
    if let Some(error) = failure::whole_text(job, &result) {
        log::debug!("{id} {job}: {error}");
    }
    match parse::outcome(job, &result) {
        Outcome::Removed(Ok(())) => {
            if let (Job::Remove(id), Flavour::Nerdctl) = (job, settings.cli.flavour) {
                addresses::give_back(&settings.root, &[id.clone()].into());
            }
            Outcome::Removed(Ok(()))
        }
        Outcome::Listed(Err(whole @ Failure { kind: FailureKind::Refused, .. })) => {
            Outcome::Listed(list_one_by_one::list(&settings.cli, whole, cancel))
        }
        Outcome::Inspected(Ok(Some(Inspected {
            state: state @ InspectedState::Exited(KILLED),
            oom_killed: None,
        }))) => {
            let killed =
                matches!(job, Job::Inspect(container) if (settings.oom_killed)(&settings.root, container))
                    .then_some(true);
            Outcome::Inspected(Ok(Some(Inspected { state, oom_killed: killed })))
        }
        outcome => outcome,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::inventory::Handover;
    use crate::core::job::{ListedStatus, PullJob};
    use crate::process::{Bounds, Program};
    use crate::types::{RegistryAuth, Secret, Spec};
    use cli::{DEFAULT_PATH, Flavour};
    use std::sync::mpsc::SyncSender;
    use std::sync::mpsc::sync_channel;

    const LONG: Duration = Duration::from_secs(60);

    /// A pool whose CLI is a shell script, in a folder of its own that it finds as $HOME.
    struct Bench {
        pool: Pool,
        dir: PathBuf,
        outcomes: Receiver<(JobId, Outcome)>,
    }

    impl Bench {
        fn new(name: &str, script: &str, overdue: Duration) -> Self {
            let dir = std::env::temp_dir().join(format!("vectorlay-pool-{name}-{}", std::process::id()));
            std::fs::create_dir_all(&dir).unwrap();
            let cli = dir.join("nerdctl");
            // Written by another process: a file that this one has open for writing while another test forks cannot
            // be executed.
            let write = Program {
                path: "/bin/sh".into(),
                args: vec!["-c".into(), "cat >\"$0\" && chmod 700 \"$0\"".into(), cli.clone().into()],
                env: vec![("PATH".into(), DEFAULT_PATH.into())],
                input: Some(format!("#!/bin/sh\n{script}\n").into_bytes()),
            };
            process::run(&write, &Bounds { deadline: LONG, grace: LONG, output: 100, tail: false }, None)
                .unwrap();
            let settings = Settings {
                cli: Cli {
                    path: cli,
                    flavour: Flavour::Nerdctl,
                    namespace: None,
                    address: None,
                    cni_path: None,
                    ctr: Some(dir.join("nerdctl")),
                    network: None,
                    port_address: None,
                    runtime: "r".into(),
                    oom_score_adj: 500,
                    handover: Handover::Vfio,
                    log: LogChoice::File { dir: dir.join("logs") },
                    search_path: DEFAULT_PATH.into(),
                    home: dir.clone().into(),
                    docker_config: dir.join("no-logins"),
                },
                deploys: 1,
                stops: 1,
                queries: 1,
                scratch: dir.join("scratch"),
                pull_stall: Some(LONG),
                overdue,
                root: dir.clone(),
                oom_killed: |_, _| true,
            };
            let (told, outcomes): (SyncSender<_>, _) = sync_channel(64);
            let pool = Pool::start(settings, Arc::new(move |id, o| told.send((id, o)).unwrap())).unwrap();
            Self { pool, dir, outcomes }
        }

        fn next(&self) -> (u64, Outcome) {
            let (id, outcome) = self.outcomes.recv_timeout(LONG).unwrap();
            (id.0, outcome)
        }

        fn submit(&self, id: u64, job: Job) {
            self.pool.submit(JobId(id), job);
        }

        /// Lets the script that waits for this file go on.
        fn touch(&self, name: &str) {
            std::fs::write(self.dir.join(name), "").unwrap();
        }

        fn wait_for(&self, name: &str) {
            let until = Instant::now() + LONG;
            while !self.dir.join(name).exists() {
                assert!(Instant::now() < until, "{name} never came");
                std::thread::yield_now();
            }
        }
    }

    impl Drop for Bench {
        fn drop(&mut self) {
            let _ = std::fs::remove_dir_all(&self.dir);
        }
    }

    fn container(n: u32) -> ContainerId {
        ContainerId::new(&format!("{n:064x}")).unwrap()
    }

    fn pull(auth: Option<RegistryAuth>) -> Job {
        Job::Pull(Box::new(PullJob { image: ImageRef::new("bb:1").unwrap(), auth, deadline: LONG }))
    }

    #[test]
    fn one_container_that_cannot_be_read_hides_no_other() {
        let (one, two) = (container(1), container(2));
        let script = |info: &str, bad: &ContainerId| {
            format!(
                "case \"$*\" in
                *containers*list*) echo {one}; echo {two};;
                *containers*info*) {info};;
                *ps*--filter=id={bad}) ;;
                *ps*--filter=id=*) printf '%s\\t\"r\"\\t\"d1\"\\t\"-\"\\t\"-\"\\tUp\\n' {one}; exit 0;;
                esac
                case \"$*\" in
                *ps*)
                    printf '%s\\n' 'time=\"t\" level=fatal msg=\"network-store error\\nunexpected end of JSON input\"' >&2
                    exit 1;;
                esac"
            )
        };
        let list = |name: &str, script: &str| {
            let bench = Bench::new(name, script, LONG);
            bench.submit(1, Job::List);
            let (_, Outcome::Listed(listed)) = bench.next() else { panic!("no list") };
            listed
        };
        let labels = r#"{"ID":"x","Labels":{"vectorlay.replica":"none","vectorlay.deploy":"d2","vectorlay.spec":"-",
            "vectorlay.gpus":"0000:41:00.0"}}"#;
        let listed = list("piecewise", &script(&format!("echo '{labels}'"), &two)).unwrap();
        let shown: Vec<_> =
            listed.iter().map(|c| (&c.id, c.replica.as_str(), c.deploy.as_str(), c.gpus.len())).collect();
        assert_eq!(shown, [(&one, "r", "d1", 0), (&two, "none", "d2", 1)]);
        assert_eq!(listed[0].status, ListedStatus::Up);
        let said = "the container CLI cannot read it: network-store error unexpected end of JSON input";
        assert_eq!(listed[1].status, ListedStatus::Unclear(said.into()));
        // Gone meanwhile, so that nothing explains why the list failed; and what cannot be told apart.
        let gone = "echo 'ctr: container \"x\" in namespace \"default\": not found' >&2; exit 1";
        for info in [gone, "exit 1", "echo '{'"] {
            let failure = list("piecewise-not", &script(info, &two)).unwrap_err();
            assert_eq!(failure.message, "network-store error unexpected end of JSON input", "{info}");
        }
        assert!(list("piecewise-none", "[ \"$4\" = list ] || { echo no >&2; exit 1; }").is_err());
    }

    #[test]
    fn who_was_killed_is_looked_up_in_the_kernels_log() {
        for (code, oom_killed) in [(7, None), (137, Some(true))] {
            let script = format!("echo '{{\"Status\":\"exited\",\"ExitCode\":{code}}}'");
            let bench = Bench::new("oom", &script, LONG);
            bench.submit(1, Job::Inspect(container(1)));
            let inspected = Inspected { state: InspectedState::Exited(code), oom_killed };
            assert_eq!(bench.next(), (1, Outcome::Inspected(Ok(Some(inspected)))));
        }
    }

    #[test]
    fn a_hanging_stop_blocks_neither_other_lanes_nor_for_ever_its_own() {
        let script = "case $1 in
            stop) touch $HOME/stopping; until [ -e $HOME/go ]; do sleep 0.01; done;;
            rm) echo $4;;
            esac";
        let bench = Bench::new("overdue", script, Duration::from_millis(300));
        bench.submit(1, Job::Stop(container(1), Duration::ZERO));
        bench.wait_for("stopping");
        bench.submit(2, Job::Remove(container(2)));
        bench.submit(3, Job::List);
        assert_eq!(bench.next(), (3, Outcome::Listed(Ok(vec![]))));
        assert_eq!(bench.next(), (2, Outcome::Removed(Ok(()))));
        // Cancelling does not end it, and it is still waited for.
        bench.pool.cancel(JobId(1));
        bench.touch("go");
        assert_eq!(bench.next(), (1, Outcome::Stopped(Ok(()))));
    }

    #[test]
    fn no_more_than_a_few_stops_that_hang_hold_no_slot() {
        let script = "[ $1 != stop ] || { echo >>$HOME/stops; until [ -e $HOME/go ]; do sleep 0.05; done; }";
        let bench = Bench::new("overdue-most", script, Duration::from_millis(1));
        // One more than are let go holds the slot, and the last waits for it.
        let stops = OVERDUE_MAX as u64 + 2;
        (0..stops).for_each(|id| bench.submit(id, Job::Stop(container(1), Duration::ZERO)));
        let begun =
            || std::fs::read_to_string(bench.dir.join("stops")).map_or(0, |text| text.lines().count());
        let until = Instant::now() + LONG;
        while begun() <= OVERDUE_MAX {
            assert!(Instant::now() < until, "{} have begun", begun());
            std::thread::yield_now();
        }
        // The manager has looked at the one with the slot, which was due at once, before it answers this.
        bench.submit(stops, Job::List);
        assert_eq!(bench.next().0, stops);
        assert_eq!(begun(), OVERDUE_MAX + 1);
        bench.touch("go");
        (0..stops).for_each(|_| assert_eq!(bench.next().1, Outcome::Stopped(Ok(()))));
    }

    #[test]
    fn jobs_of_a_lane_take_turns_and_can_be_cancelled() {
        let script = "[ $1 = pull ] && { touch $HOME/pulling; exec sleep 600; }";
        let bench = Bench::new("cancel", script, LONG);
        bench.submit(1, pull(None));
        bench.wait_for("pulling");
        bench.submit(2, pull(None));
        bench.pool.cancel(JobId(2));
        let (id, outcome) = bench.next();
        let Outcome::Pulled(Err(failure)) = outcome else { panic!() };
        assert_eq!((id, failure.message.as_str()), (2, "pull bb:1 was cancelled before it began"));
        bench.pool.cancel(JobId(1));
        let (id, outcome) = bench.next();
        let Outcome::Pulled(Err(failure)) = outcome else { panic!() };
        assert_eq!((id, failure.kind), (1, FailureKind::Deadline));
        bench.pool.cancel(JobId(99));
    }

    #[test]
    fn who_fetches_decides_whether_a_pull_is_quiet() {
        for (release, pull) in [("2.2.2", "pull --quiet bb:1"), ("2.3.5", "pull bb:1")] {
            let script =
                format!("echo \"$@\" >>$HOME/calls; [ $1 != --version ] || echo nerdctl version {release}");
            let bench = Bench::new("fetches", &script, LONG);
            bench.submit(1, self::pull(None));
            assert_eq!(bench.next(), (1, Outcome::Pulled(Ok(()))));
            let calls = std::fs::read_to_string(bench.dir.join("calls")).unwrap();
            let pull = pull.replace(" bb", " docker.io/library/bb");
            assert_eq!(calls, format!("--version\n{pull}\n"), "{release}");
        }
    }

    #[test]
    fn credentials_are_there_for_the_pull_only() {
        let script = "[ $1 = pull ] || exit 1; echo $DOCKER_CONFIG >$HOME/where; cat $DOCKER_CONFIG/config.json >$HOME/config; echo bad hunter2 >&2; exit 1";
        let bench = Bench::new("auth", script, LONG);
        let auth = RegistryAuth {
            server: "s".into(),
            username: "u".into(),
            password: Secret::new("hunter2".into()),
        };
        bench.submit(1, pull(Some(auth)));
        let (_, Outcome::Pulled(Err(failure))) = bench.next() else { panic!() };
        assert_eq!(failure.message, "bad ***");
        let read = |name: &str| std::fs::read_to_string(bench.dir.join(name)).unwrap();
        assert!(read("config").contains("hunter2"));
        assert!(!std::path::Path::new(read("where").trim()).exists());
    }

    #[test]
    fn logs_come_from_the_shims_file_where_there_is_one() {
        let script = "case $1 in container) echo '\"00000000000000d1\"';; logs) echo 2026-11-24T00:19:22.93Z old;; esac";
        let bench = Bench::new("logs", script, LONG);
        let logs =
            |lines: &[&str]| Outcome::Logs(Ok((lines.iter().map(|l| (*l).to_owned()).collect(), false)));
        bench.submit(1, Job::Logs(container(1), 9));
        assert_eq!(bench.next(), (1, logs(&["old"])));
        std::fs::create_dir(bench.dir.join("logs")).unwrap();
        std::fs::write(bench.dir.join("logs/00000000000000d1.log"), "a\nb\n").unwrap();
        bench.submit(2, Job::Logs(container(1), 1));
        assert_eq!(bench.next(), (2, logs(&["b"])));
    }

    #[test]
    fn a_run_is_of_the_image_that_was_looked_at() {
        // Each pull gives the name another digest, and the second one's image a label that steers the host.
        let script = "echo \"$1 $2\" >>$HOME/calls
            pulls=$(grep -c ^pull $HOME/calls)
            digest=sha256:$(printf %064d \"$pulls\")
            label=; [ \"$pulls\" -lt 2 ] || label='\"nerdctl/ports\":\"x\"'
            for last; do :; done
            case $1 in
            image) [ \"$pulls\" = 0 ] && exit
                printf '{\"Image\":{\"Name\":\"%s\",\"Target\":{\"digest\":\"%s\"}},' \"$last\" $digest
                printf '\"ImageConfigDesc\":{\"digest\":\"x\"},'
                printf '\"ImageConfig\":{\"config\":{\"Labels\":{%s}}}}\\n' \"$label\";;
            run) echo \"$last\" >>$HOME/ran; printf '%064d\\n' 7;;
            esac";
        let bench = Bench::new("look", script, LONG);
        let job = || {
            let spec = Spec::new(ImageRef::new("bb:1").unwrap());
            let name = "replica-r".to_owned();
            Job::Run(Box::new(RunJob {
                name,
                spec,
                labels: vec![],
                gpus: vec![],
                ended_by_reboot: [].into(),
                deadline: LONG,
            }))
        };
        let ask = |id, job| {
            bench.submit(id, job);
            match bench.next() {
                (answered, Outcome::Ran(result)) if answered == id => result.map_err(|f| f.kind).map(drop),
                (answered, Outcome::Pulled(result)) if answered == id => result.map_err(|f| f.kind),
                other => panic!("{other:?}"),
            }
        };
        let read = |name: &str| std::fs::read_to_string(bench.dir.join(name)).unwrap_or_default();
        assert_eq!(ask(1, job()), Err(FailureKind::NoImage));
        assert_eq!((ask(2, pull(None)), ask(3, job()), ask(4, job())), (Ok(()), Ok(()), Ok(())));
        assert_eq!(
            read("calls"),
            "image inspect\n--version \npull --quiet\nimage inspect\nrun --detach\nrun --detach\n"
        );
        let digest = format!("sha256:{:064}\n", 1);
        assert_eq!(read("ran"), digest.repeat(2), "not the name, which the CLI could read otherwise by then");
        // A pull ends what is known.
        assert_eq!((ask(5, pull(None)), ask(6, job())), (Ok(()), Err(FailureKind::ImageRefused)));
        assert_eq!(read("ran"), digest.repeat(2));
    }

    #[test]
    fn a_damaged_image_is_removed_and_pulled_again_once() {
        // The pull fails as long as the copy is there.
        let script = |complaint: &str, rmi: &str| {
            format!(
                "echo $1 >>$HOME/calls
                case $1 in
                pull) [ -e $HOME/removed ] || {{ echo 'time=\"t\" level=fatal msg=\"unexpected EOF\"' >&2; exit 1; }};;
                image)
                    echo 'time=\"t\" level=warning msg=\"failed to inspect image config\" error=\"{complaint}\"' >&2
                    echo '{{\"Image\":{{\"Name\":\"docker.io/library/bb:1\"}},\"ImageConfigDesc\":{{\"digest\":\"\"}}}}';;
                rmi) {rmi};;
                esac"
            )
        };
        let pulled = |name: &str, script: &str| {
            let bench = Bench::new(name, script, LONG);
            bench.submit(1, pull(None));
            let (_, Outcome::Pulled(result)) = bench.next() else { panic!("no pull") };
            let calls = std::fs::read_to_string(bench.dir.join("calls")).unwrap();
            (result.map_err(|failure| failure.message), calls.replace("--version\n", "").replace('\n', " "))
        };
        let (result, calls) = pulled("damaged", &script("blob not found: not found", "touch $HOME/removed"));
        assert_eq!((result, calls.as_str()), (Ok(()), "pull image rmi pull "));
        let (result, calls) = pulled("damaged-again", &script("unexpected EOF", "true"));
        assert_eq!((result, calls.as_str()), (Err("unexpected EOF".into()), "pull image rmi pull "));
        let used = script("unexpected EOF", "echo 'image is being used' >&2; exit 1");
        let (result, calls) = pulled("damaged-used", &used);
        let why = result.unwrap_err();
        assert!(why.contains("copy of bb:1 is damaged") && why.ends_with("image is being used"), "{why}");
        assert_eq!(calls, "pull image rmi ");
        // The registry's failure, of an image for another platform.
        let (result, calls) = pulled("undamaged", &script("no match for platform in manifest", "exit 9"));
        assert_eq!((result, calls.as_str()), (Err("unexpected EOF".into()), "pull image "));
    }

    #[test]
    fn a_missing_cli_is_an_engine_that_does_not_answer() {
        let bench = Bench::new("missing", "", LONG);
        std::fs::remove_file(bench.dir.join("nerdctl")).unwrap();
        bench.submit(1, Job::List);
        let (_, Outcome::Listed(Err(failure))) = bench.next() else { panic!() };
        assert_eq!(failure.kind, FailureKind::Unavailable);
    }
}
