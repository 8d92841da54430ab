//! A proof: starts a container from an image that is the agent itself, exactly as a deploy would, has it say what it sees,
//! and removes everything again. The container carries one label of its own and none of a replica's, so that nothing here
//! can be taken for a tenant's, and its program ends by itself, whatever becomes of who started it.
//!
//! The label names the process that made it, by number and start time. What a process left that is gone, the next proof
//! removes.

use std::path::Path;
use std::time::{Duration, Instant};

use super::cli::{Cli, LogChoice};
use super::leftover_calls::{self, Process};
use super::proof_image::{self, ProofImage};
use super::{failure, housekeeping, image_policy, parse};
use crate::core::job::{Failure, Job, LABEL_PROOF, Outcome, RunJob};
use crate::process::{self, Bounds, Cancel, Ended, Finished, Program};
use crate::types::{ContainerId, ImageRef, PciAddress, Spec};

/// How long everything of a proof may take to be gone.
const REMOVAL_DEADLINE: Duration = Duration::from_secs(180);
/// How long the program may take once its container runs. It looks around and waits 2 s for its gateway.
const PROGRAM_DEADLINE: Duration = Duration::from_secs(60);
/// nerdctl's logger may write a little after the program's end.
const LOG_DEADLINE: Duration = Duration::from_secs(5);
/// The pause before something is looked at again.
const PAUSE: Duration = Duration::from_millis(200);
/// Lines of the container's output that are read.
const LOG_LINES: u32 = 20;

/// What is to be proved.
#[derive(Debug)]
pub struct Order<'a> {
    /// The CLI, as deploys use it.
    pub cli: &'a Cli,
    /// The agent's program, which has to be static.
    pub executable: &'a [u8],
    /// What it is called with, to print one JSON object and end.
    pub argument: &'a str,
    /// The GPUs to hand over: address and what `--device` is given.
    pub gpus: Vec<(PciAddress, String)>,
    /// How long the start may take.
    pub deadline: Duration,
}

/// What came of it.
#[derive(Debug)]
pub struct Proved {
    /// The JSON object that the program printed.
    pub said: String,
    /// How long the image took to load.
    pub loaded: Duration,
    /// How long `run` took.
    pub started: Duration,
}

/// Proves that a container can be started. Raised, `cancel` ends what can be ended without leaving anything behind; the
/// removal is carried out in any case.
///
/// # Errors
/// What did not work, in the engine's words, and whether something is left.
pub fn prove(order: &Order<'_>, cancel: &Cancel) -> Result<Proved, String> {
    if !proof_image::is_static(order.executable) {
        return Err(
            "this build of the agent is not static, so it cannot be an image; use a released one".to_owned()
        );
    }
    // The engine's own log: the folder of log files is kept tidy by the running agent.
    let cli = Cli { log: LogChoice::JsonFile { max_mib: 1, files: 1 }, ..order.cli.clone() };
    let proc = Path::new("/proc");
    let pid = i32::try_from(std::process::id()).unwrap_or(i32::MAX);
    let owner = leftover_calls::process(proc, pid).ok_or("cannot read /proc; mount it")?;
    remove_all(&cli, owner)?;
    let image = proof_image::make(order.executable, order.argument, std::env::consts::ARCH);
    let name = ImageRef::new(&image.name).map_err(|error| error.to_string())?;
    let proved = attempt(order, &cli, owner, image, &name, cancel);
    let removed = remove_all(&cli, owner);
    if let Ok((program, bounds)) = cli.call(&Job::RemoveImage(name)) {
        // Another proof may be using it. Like every unused image it is removed when room is needed.
        let _ = process::run(&program, &bounds, None);
    }
    match (proved, removed) {
        (proved, Ok(())) => proved,
        (Ok(_), Err(left)) => Err(left),
        (Err(why), Err(left)) => Err(format!("{why}; and {left}")),
    }
}

fn attempt(
    order: &Order<'_>,
    cli: &Cli,
    owner: Process,
    image: ProofImage,
    name: &ImageRef,
    cancel: &Cancel,
) -> Result<Proved, String> {
    let began = Instant::now();
    call(cli.load(image.archive), "the engine's load", Some(cancel))?;
    let loaded = began.elapsed();
    let run = RunJob {
        name: format!("vectorlay-proof-{}-{}", owner.pid, owner.started),
        spec: Spec::new(name.clone()),
        labels: vec![(LABEL_PROOF, label(owner))],
        gpus: order.gpus.clone(),
        ended_by_reboot: Default::default(),
        deadline: order.deadline,
    };
    let job = Job::Run(Box::new(run.clone()));
    let (look, bounds) = cli.call(&job).map_err(message)?;
    let facts = parse::facts(cli.flavour, &job, name, &process::run(&look, &bounds, Some(cancel)))
        .map_err(message)?;
    let checked = image_policy::check(facts)?;
    let began = Instant::now();
    // Ended half-way it would leave more behind than it does when it fails.
    let (program, bounds) = cli.run(&run, &checked, order.deadline).map_err(message)?;
    let container = match parse::outcome(&job, &process::run(&program, &bounds, None)) {
        Outcome::Ran(started) => started.map_err(message)?,
        other => return Err(format!("the engine's run: {other}")),
    };
    let started = began.elapsed();
    call(cli.wait(&container, PROGRAM_DEADLINE), "the engine's wait", Some(cancel))?;
    let said = output(cli, &container, cancel)?;
    Ok(Proved { said, loaded, started })
}

/// The JSON object that the program printed.
fn output(cli: &Cli, container: &ContainerId, cancel: &Cancel) -> Result<String, String> {
    let job = Job::Logs(container.clone(), LOG_LINES);
    let until = Instant::now() + LOG_DEADLINE;
    loop {
        let (program, bounds) = cli.call(&job).map_err(message)?;
        let lines = match parse::outcome(&job, &process::run(&program, &bounds, Some(cancel))) {
            Outcome::Logs(read) => read.map_err(message)?.0,
            other => return Err(format!("the engine's logs: {other}")),
        };
        // Each line begins with its time.
        if let Some(said) = lines.iter().find_map(|line| line.find('{').map(|at| &line[at..])) {
            return Ok(said.to_owned());
        }
        if Instant::now() >= until || cancel.wait(PAUSE) {
            let last = lines.last().map_or_else(|| "nothing".to_owned(), |line| format!("{line:?}"));
            return Err(format!("the container's program ended without its report; it printed {last}"));
        }
    }
}

/// Removes the containers of this process's proofs, and of those whose process is gone, until none is left.
fn remove_all(cli: &Cli, owner: Process) -> Result<(), String> {
    let until = Instant::now() + REMOVAL_DEADLINE;
    let pause = Cancel::new().map_err(|error| error.to_string())?;
    let mut hangs = false;
    loop {
        let listed = call(cli.list_proofs(), "the engine's list of containers", None)?;
        let text = String::from_utf8_lossy(&listed.stdout);
        let is_over = |made_by: &str| made_by == label(owner) || !is_alive(made_by);
        let line = |line: &str| {
            let (id, made_by) = line.split_once('\t')?;
            ContainerId::new(id).ok().filter(|_| is_over(made_by))
        };
        let left: Vec<ContainerId> = text.lines().filter_map(line).collect();
        let Some(first) = left.first() else { return Ok(()) };
        if Instant::now() >= until {
            let first = first.short();
            return Err(format!("container {first} of a proof cannot be removed; see the engine's log"));
        }
        for container in left {
            if hangs {
                housekeeping::end_shim(Path::new("/"), container.clone());
            }
            let (program, bounds) = cli.call(&Job::Remove(container)).map_err(message)?;
            // What it says proves nothing: the next list does.
            let _ = process::run(&program, &bounds, None);
        }
        // The first removal may only not have been seen yet.
        hangs = Instant::now() + REMOVAL_DEADLINE / 2 >= until;
        pause.wait(PAUSE);
    }
}

fn label(process: Process) -> String {
    format!("{}-{}", process.pid, process.started)
}

/// Whether the process that a label names is there.
fn is_alive(label: &str) -> bool {
    let pid = label.split('-').next().and_then(|pid| pid.parse().ok());
    pid.and_then(|pid| leftover_calls::process(Path::new("/proc"), pid))
        .is_some_and(|process| self::label(process) == label)
}

fn call(call: (Program, Bounds), what: &str, cancel: Option<&Cancel>) -> Result<Finished, String> {
    let (program, bounds) = call;
    let finished = process::run(&program, &bounds, cancel).map_err(|error| error.to_string())?;
    match finished.ended {
        Ended::Exit(0) => Ok(finished),
        Ended::Exit(_) | Ended::Signal(_) | Ended::Deadline | Ended::Cancelled | Ended::Stalled => {
            Err(failure::of(&Job::Probe, what, &finished).message)
        }
    }
}

fn message(failure: Failure) -> String {
    failure.message
}
