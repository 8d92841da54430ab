//! What a call of the CLI printed, read into an outcome. Pure.
//!
//! Exit codes say little (nerdctl's is 1 for everything, and 0 for a `rm -f` that failed), so the texts decide, and
//! only where `docs` of the engines give nothing better: matched on parts that all known versions share (nerdctl 1.7
//! to 2.3, Docker 20 to 28), with what a tenant wrote blotted out first, so that an image's command cannot pass for
//! the engine's complaint.

use serde_json::Value;

use super::cli::{Flavour, is_nothing};
use super::error_text;
use super::image::{self, Facts};
use crate::core::inventory::GpuUse;
use crate::core::job::{
    Failure, FailureKind, Inspected, InspectedState, Job, LABEL_DEPLOY, LABEL_GPUS, LABEL_REPLICA,
    LABEL_SPEC, Listed, ListedStatus, Outcome, PullCause, RunJob, Vendor,
};
use crate::process::{Ended, Error, Finished};
use crate::types::{ContainerId, ImageRef, PciAddress};

/// Most bytes of a log that are handed on.
pub const LOG_MAX: usize = 256 * 1024;

/// Parts of what a CLI says when the engine does not answer. A registry that does not is `dial tcp`.
const UNAVAILABLE: [&str; 8] = [
    "cannot access containerd socket",
    "connection error: desc",
    "code = Unavailable",
    "failed to dial \"",
    "dial unix ",
    "error reading from server: EOF",
    "Cannot connect to the Docker daemon",
    "error during connect:",
];
/// The image is not there (`run --pull never`, `image inspect`): nerdctl's words, Docker's.
const NO_IMAGE: [&str; 4] = ["image not available", "no such image", "No such image", "Unable to find image"];
/// The name is taken: nerdctl's words, Docker's.
const NAME_TAKEN: [&str; 2] = ["is already used by ID", "is already in use by container"];

/// Reads the answer to `job`.
pub fn outcome(job: &Job, result: &Result<Finished, Error>) -> Outcome {
    match job {
        Job::Run(_) => Outcome::Ran(succeeded(job, result).and_then(ran)),
        Job::Pull(_) => Outcome::Pulled(succeeded(job, result).map(|_| ())),
        Job::List => Outcome::Listed(list(job, result)),
        Job::Inspect(_) => Outcome::Inspected(match succeeded(job, result).and_then(inspected) {
            Ok(state) => Ok(Some(state)),
            Err(Failure { kind: FailureKind::NoSuchContainer, .. }) => Ok(None),
            Err(failure) => Err(failure),
        }),
        Job::Stop(..) => Outcome::Stopped(succeeded(job, result).map(|_| ())),
        Job::Remove(id) => Outcome::Removed(removed(job, id, result)),
        Job::Logs(_, lines) => Outcome::Logs(succeeded(job, result).map(|f| logs(f, *lines))),
        Job::Probe => Outcome::Probed(succeeded(job, result).map(|_| ())),
        Job::Images => Outcome::Images(succeeded(job, result).map(images)),
        Job::RemoveImage(_) => Outcome::ImageRemoved(succeeded(job, result).map(|_| ())),
        Job::GuestUse(_, vendor) => Outcome::GuestUse(succeeded(job, result).and_then(|f| uses(f, *vendor))),
    }
}

/// The outcome of a job that failed without or before a call.
pub fn failed(job: &Job, failure: Failure) -> Outcome {
    match job {
        Job::Run(_) => Outcome::Ran(Err(failure)),
        Job::Pull(_) => Outcome::Pulled(Err(failure)),
        Job::List => Outcome::Listed(Err(failure)),
        Job::Inspect(_) => Outcome::Inspected(Err(failure)),
        Job::Stop(..) => Outcome::Stopped(Err(failure)),
        Job::Remove(_) => Outcome::Removed(Err(failure)),
        Job::Logs(..) => Outcome::Logs(Err(failure)),
        Job::Probe => Outcome::Probed(Err(failure)),
        Job::Images => Outcome::Images(Err(failure)),
        Job::RemoveImage(_) => Outcome::ImageRemoved(Err(failure)),
        Job::GuestUse(..) => Outcome::GuestUse(Err(failure)),
    }
}

/// The deploy that a container is of, from what [`super::cli::Cli::deploy_of`] printed.
///
/// # Errors
/// The call's failure, as for any look.
pub fn deploy_of(job: &Job, result: &Result<Finished, Error>) -> Result<String, Failure> {
    let finished = succeeded(job, result)?;
    let label: Option<String> = serde_json::from_slice(&finished.stdout).ok();
    label.ok_or_else(|| unreadable("inspect", "a label is no JSON string"))
}

/// What matters of the image of a run, from what the look at it printed.
///
/// # Errors
/// The call's failure; [`FailureKind::NoImage`] when the image is not there.
pub fn facts(
    flavour: Flavour,
    job: &Job,
    image: &ImageRef,
    result: &Result<Finished, Error>,
) -> Result<Facts, Failure> {
    const LOOK: &str = "image inspect";
    let finished = match result {
        Ok(finished) if finished.ended == Ended::Exit(0) => finished,
        Ok(finished) => return Err(failure(job, "the engine's image inspect", finished)),
        Err(error) => return Err(Failure { kind: FailureKind::Unavailable, message: error.to_string() }),
    };
    let text = String::from_utf8_lossy(&finished.stdout);
    // nerdctl prints a line for each name: what is cut off of them may be left out, as long as ours is there.
    let whole =
        if finished.stdout_cut { text.rsplit_once('\n').map_or("", |(whole, _)| whole) } else { &text };
    match image::read(flavour, image, whole) {
        Ok(Some(facts)) => Ok(facts),
        Ok(None) if finished.stdout_cut => Err(unreadable(LOOK, "it prints too much")),
        Ok(None) => {
            Err(Failure { kind: FailureKind::NoImage, message: format!("image not available: {image}") })
        }
        Err(why) => Err(unreadable(LOOK, why)),
    }
}

/// The last `most` of `lines`, as many as fit into [`LOG_MAX`], and whether some of them did not.
pub fn last_lines(lines: &[&str], most: u32) -> (Vec<String>, bool) {
    let mut kept = Vec::new();
    let mut bytes = 0;
    let mut cut = false;
    for line in lines.iter().rev().take(most as usize) {
        bytes += line.len() + 1;
        if bytes > LOG_MAX {
            cut = true;
            break;
        }
        kept.push((*line).to_owned());
    }
    kept.reverse();
    (kept, cut)
}

/// The call's output if it ended with status 0.
fn succeeded<'a>(job: &Job, result: &'a Result<Finished, Error>) -> Result<&'a Finished, Failure> {
    match result {
        Ok(finished) if finished.ended == Ended::Exit(0) => Ok(finished),
        Ok(finished) => Err(failure(job, verb(job), finished)),
        Err(error) => Err(Failure { kind: FailureKind::Unavailable, message: error.to_string() }),
    }
}

fn failure(job: &Job, verb: &str, finished: &Finished) -> Failure {
    let secrets = secrets(job);
    let error = error_text::last_error(&finished.stderr, finished.stderr_cut);
    let bare = error_text::without_secrets(&error, &secrets);
    // Docker's advice on a name that is taken, which is ours and no person's, would stand where the cause does.
    let cause = bare.split(" You have to remove (or rename) that container").next().unwrap_or_default();
    let said = error_text::one_line(&error_text::cause_last(cause));
    let ours = |text: String| if said.is_empty() { text } else { format!("{text}: {said}") };
    let seconds = finished.took.as_secs();
    match finished.ended {
        Ended::Deadline => Failure {
            kind: FailureKind::Deadline,
            message: error_text::one_line(&ours(format!("{} did not finish within {seconds} s", verb))),
        },
        Ended::Cancelled => Failure {
            kind: FailureKind::Deadline,
            message: format!("{} was cancelled after {seconds} s", verb),
        },
        Ended::Signal(signal) => Failure {
            kind: FailureKind::Refused,
            message: error_text::one_line(&ours(format!("{} was ended by signal {signal}", verb))),
        },
        Ended::Exit(code) => Failure {
            kind: kind(job, &bare),
            message: if said.is_empty() {
                format!("{} ended with status {code} and said nothing; see the engine's log", verb)
            } else {
                said
            },
        },
    }
}

/// Whether nerdctl's record of a name holds no container's ID: a power cut leaves it empty or torn. nerdctl 1.7 takes
/// the name for used all the same.
fn reserved_by_nothing(error: &str) -> bool {
    let holder = error.split_once("is already used by ID \"").and_then(|(_, rest)| rest.split('"').next());
    holder.is_some_and(|holder| ContainerId::new(holder).is_err())
}

/// Everything that a call which failed printed on standard error, without secrets and on one line, for the log.
pub fn whole_error(job: &Job, result: &Result<Finished, Error>) -> Option<String> {
    let finished = result.as_ref().ok().filter(|finished| finished.ended != Ended::Exit(0))?;
    let text = String::from_utf8_lossy(&finished.stderr);
    // Half a secret at the beginning could not be recognised.
    let text = if finished.stderr_cut { text.split_once('\n').map_or("", |(_, whole)| whole) } else { &text };
    Some(error_text::unbroken(&error_text::without_secrets(text, &secrets(job))))
        .filter(|text| !text.is_empty())
}

fn kind(job: &Job, error: &str) -> FailureKind {
    let tenants: Vec<&str> = match job {
        Job::Run(run) => run.spec.command.iter().map(String::as_str).collect(),
        Job::Pull(_)
        | Job::List
        | Job::Inspect(_)
        | Job::Stop(..)
        | Job::Remove(_)
        | Job::Logs(..)
        | Job::Probe
        | Job::Images
        | Job::RemoveImage(_)
        | Job::GuestUse(..) => Vec::new(),
    };
    let error = error_text::without_secrets(error, &tenants);
    let says = |parts: &[&str]| parts.iter().any(|part| error.contains(part));
    let run = matches!(job, Job::Run(_));
    let one = matches!(job, Job::Inspect(_) | Job::Stop(..) | Job::Remove(_) | Job::Logs(..));
    if says(&UNAVAILABLE) {
        FailureKind::Unavailable
    } else if run && says(&NO_IMAGE) {
        FailureKind::NoImage
    } else if run && says(&NAME_TAKEN) {
        if reserved_by_nothing(&error) { FailureKind::NameReserved } else { FailureKind::NameTaken }
    } else if one && no_such_container(&error) {
        FailureKind::NoSuchContainer
    } else if matches!(job, Job::Pull(_))
        && let Some(cause) = pull_cause(&error)
    {
        FailureKind::PullRefused(cause)
    } else {
        FailureKind::Refused
    }
}

/// Why an image could not be pulled, where the error leaves no doubt. The parts cannot stand in an image's name, and
/// Go's own words for the network and TLS are the same in every release. Docker Hub answers for a repository that does
/// not exist as for one that needs a login (`insufficient_scope`): that is neither.
fn pull_cause(error: &str) -> Option<PullCause> {
    let says = |parts: &[&str]| parts.iter().any(|part| error.contains(part));
    let cause = error_text::cause_last(error);
    if says(&["no space left on device", "disk quota exceeded"]) {
        Some(PullCause::NoSpace)
    } else if says(&["429 Too Many Requests", "toomanyrequests: "]) {
        Some(PullCause::RateLimited)
    } else if says(&["insufficient_scope", "content digest "]) {
        None
    } else if says(&[
        "401 Unauthorized",
        "403 Forbidden",
        "unauthorized: ",
        "no basic auth credentials",
        "authorization failed",
    ]) {
        Some(PullCause::Unauthorized)
    } else if says(&["TLS handshake timeout"]) {
        Some(PullCause::Unreachable)
    } else if says(&["x509: ", "tls: ", "server gave HTTP response to HTTPS client"]) {
        Some(PullCause::Tls)
    } else if says(&[
        "connection refused",
        "connection reset by peer",
        "no such host",
        "i/o timeout",
        "network is unreachable",
        "no route to host",
    ]) {
        Some(PullCause::Unreachable)
    } else if says(&["404 Not Found", "manifest unknown"]) || cause.ends_with(": not found") {
        Some(PullCause::NotFound)
    } else {
        None
    }
}

/// nerdctl: `no such container: ID`, `no such container ID`, `no such object ID`; Docker: `No such container: ID`.
fn no_such_container(error: &str) -> bool {
    let lower = error.to_ascii_lowercase();
    lower.contains("no such container") || lower.contains("no such object")
}

fn verb(job: &Job) -> &'static str {
    match job {
        Job::Run(_) => "the engine's run",
        Job::Pull(_) => "the engine's pull",
        Job::List => "the engine's list of containers",
        Job::Inspect(_) => "the engine's inspect",
        Job::Stop(..) => "the engine's stop",
        Job::Remove(_) => "the engine's rm",
        Job::Logs(..) => "the engine's logs",
        Job::Probe => "the engine's version",
        Job::Images => "the engine's images",
        Job::RemoveImage(_) => "the engine's rmi",
        Job::GuestUse(..) => "the engine's exec",
    }
}

fn secrets(job: &Job) -> Vec<&str> {
    match job {
        Job::Run(run) => values(run),
        Job::Pull(pull) => pull.auth.iter().map(|auth| auth.password.expose()).collect(),
        Job::List
        | Job::Inspect(_)
        | Job::Stop(..)
        | Job::Remove(_)
        | Job::Logs(..)
        | Job::Probe
        | Job::Images
        | Job::RemoveImage(_)
        | Job::GuestUse(..) => Vec::new(),
    }
}

fn values(run: &RunJob) -> Vec<&str> {
    run.spec.env.iter().map(|(_, value)| value.expose()).collect()
}

fn unreadable(what: &str, why: &str) -> Failure {
    Failure {
        kind: FailureKind::Refused,
        message: format!("cannot read what {what} printed: {why}; check the container CLI's version"),
    }
}

/// `run -d` prints the ID as its last line (nerdctl 2.x may print a container's first output before it).
fn ran(finished: &Finished) -> Result<ContainerId, Failure> {
    let text = String::from_utf8_lossy(&finished.stdout);
    let line = text.lines().rev().find(|line| !line.trim().is_empty()).unwrap_or("");
    ContainerId::new(line.trim()).map_err(|_| unreadable("run", "its last line is no container ID"))
}

/// Lines of the time of making, repository, tag and digest, with tabs between them: names, the oldest first. The engines
/// order them each in its own way; their times are in one form and zone. An image that was pulled by its digest has no
/// tag; one that has neither has no name by which it could be pulled again.
fn images(finished: &Finished) -> Vec<ImageRef> {
    let text = String::from_utf8_lossy(&finished.stdout);
    let line = |line: &str| {
        let fields: Vec<&str> = line.trim_end().split('\t').collect();
        let [made, repository, tag, digest] = fields[..] else { return None };
        let name =
            if tag == "<none>" { format!("{repository}@{digest}") } else { format!("{repository}:{tag}") };
        Some((made.to_owned(), ImageRef::new(&name).ok()?))
    };
    let mut images: Vec<(String, ImageRef)> = text.lines().rev().filter_map(line).collect();
    images.sort_by(|(one, _), (other, _)| one.cmp(other));
    images.into_iter().map(|(_, name)| name).collect()
}

/// Lines of percent, memory in use and in all, with commas between them: MiB by nvidia-smi, bytes by amdgpu. What is no
/// number (`[N/A]`, an error in prose) is not known.
fn uses(finished: &Finished, vendor: Vendor) -> Result<Vec<GpuUse>, Failure> {
    if finished.stdout_cut {
        return Err(unreadable("exec", "it prints too much"));
    }
    let bytes = match vendor {
        Vendor::Nvidia => 1,
        Vendor::Amd => 1024 * 1024,
    };
    let text = String::from_utf8_lossy(&finished.stdout);
    let line = |line: &str| {
        let mut numbers = line.split(',').map(|field| field.trim().parse::<u64>().ok());
        let mut next = || numbers.next().flatten();
        let busy_percent = next().and_then(|percent| u8::try_from(percent).ok()).filter(|p| *p <= 100);
        let memory_mib = next().zip(next()).map(|(used, total)| (used / bytes, total / bytes));
        GpuUse { source: "guest", busy_percent, memory_mib }
    };
    let known = |found: &GpuUse| found.busy_percent.is_some() || found.memory_mib.is_some();
    Ok(text.lines().map(line).filter(known).collect())
}

/// `rm -f` is done when it echoes the ID, or says that there is no such container; its status means nothing.
fn removed(job: &Job, id: &ContainerId, result: &Result<Finished, Error>) -> Result<(), Failure> {
    let finished = match result {
        Ok(finished) => finished,
        Err(error) => return Err(Failure { kind: FailureKind::Unavailable, message: error.to_string() }),
    };
    let echoed = String::from_utf8_lossy(&finished.stdout).lines().any(|line| line.trim() == id.as_str());
    if finished.ended == Ended::Exit(0) && echoed {
        return Ok(());
    }
    match failure(job, verb(job), finished) {
        Failure { kind: FailureKind::NoSuchContainer, .. } => Ok(()),
        failure => Err(failure),
    }
}

/// The containers that a call of `ps` shows.
///
/// # Errors
/// The call's failure, or why its lines cannot be read: never a part of them.
pub fn list(job: &Job, result: &Result<Finished, Error>) -> Result<Vec<Listed>, Failure> {
    succeeded(job, result).and_then(listed)
}

/// The IDs that `ctr containers list --quiet` printed.
///
/// # Errors
/// The call's failure, or that a line is no ID.
pub fn container_ids(result: &Result<Finished, Error>) -> Result<Vec<ContainerId>, Failure> {
    let finished = succeeded(&Job::List, result)?;
    if finished.stdout_cut {
        return Err(unreadable("ctr", "the list is too long"));
    }
    let text = String::from_utf8_lossy(&finished.stdout);
    let id = |line: &str| ContainerId::new(line).map_err(|_| unreadable("ctr", "a line is no container ID"));
    text.lines().filter(|line| !line.is_empty()).map(id).collect()
}

/// A container with the labels that `ctr containers info` printed, and no status; `None`: it is gone.
///
/// # Errors
/// The call's failure, or that its labels cannot be read.
pub fn labelled(result: &Result<Finished, Error>, id: &ContainerId) -> Result<Option<Listed>, Failure> {
    let finished = match succeeded(&Job::List, result) {
        Ok(finished) => finished,
        Err(failure) if failure.message.ends_with(": not found") => return Ok(None),
        Err(failure) => return Err(failure),
    };
    let info: Value =
        serde_json::from_slice(&finished.stdout).map_err(|_| unreadable("ctr", "it is no JSON"))?;
    let label = |name: &str| info["Labels"][name].as_str().unwrap_or_default();
    container(
        id.clone(),
        label(LABEL_REPLICA),
        [label(LABEL_DEPLOY), label(LABEL_SPEC), label(LABEL_GPUS)],
        ListedStatus::Unclear(String::new()),
    )
    .map(Some)
}

/// Lines of ID, replica, deploy, spec, gpus (each a JSON string) and status, with tabs between them.
fn listed(finished: &Finished) -> Result<Vec<Listed>, Failure> {
    if finished.stdout_cut {
        return Err(unreadable("ps", "the list is too long"));
    }
    let text = std::str::from_utf8(&finished.stdout).map_err(|_| unreadable("ps", "it is not UTF-8"))?;
    text.lines().filter(|line| !line.is_empty()).map(listed_line).collect()
}

fn listed_line(line: &str) -> Result<Listed, Failure> {
    let fields: Vec<&str> = line.split('\t').collect();
    let [id, replica, deploy, spec, gpus, status] = fields[..] else {
        return Err(unreadable("ps", "a line has not six fields"));
    };
    let id =
        ContainerId::new(id).map_err(|_| unreadable("ps", "a line does not begin with a container ID"))?;
    let label = |field: &str| -> Result<String, Failure> {
        serde_json::from_str(field)
            .map_err(|_| unreadable("ps", &format!("a label of container {} is no JSON string", id.short())))
    };
    let others = [label(deploy)?, label(spec)?, label(gpus)?];
    container(id.clone(), &label(replica)?, others.each_ref().map(String::as_str), listed_status(status))
}

/// A container by its labels: the replica's ID, and those for deploy, specification and GPUs, which may hold nothing
/// ([`is_nothing`]). A replica's ID always holds what it says.
fn container(
    id: ContainerId,
    replica: &str,
    others: [&str; 3],
    status: ListedStatus,
) -> Result<Listed, Failure> {
    let [deploy, spec, gpus] = others.map(|value| if is_nothing(value) { "" } else { value });
    let mut addresses = Vec::new();
    for address in gpus.split('+').filter(|part| !part.is_empty()) {
        // To leave out a GPU that cannot be read would be to hand it out twice.
        addresses.push(PciAddress::parse(address).map_err(|_| {
            unreadable("ps", &format!("the GPUs of container {} are no PCI addresses", id.short()))
        })?);
    }
    Ok(Listed {
        replica: replica.to_owned(),
        deploy: deploy.to_owned(),
        spec: spec.to_owned(),
        gpus: addresses,
        status,
        id,
    })
}

fn listed_status(status: &str) -> ListedStatus {
    let unclear =
        || ListedStatus::Unclear(error_text::one_line(&format!("the engine lists it as {status:?}")));
    if let Some(rest) = status.strip_prefix("Exited (") {
        let code = rest.split_once(')').and_then(|(code, _)| code.parse().ok());
        return code.map_or_else(unclear, ListedStatus::Exited);
    }
    // Docker: `Up 2 minutes (Paused)`.
    if status == "Up" || (status.starts_with("Up ") && !status.ends_with("(Paused)")) {
        ListedStatus::Up
    } else if status == "Created" {
        ListedStatus::Created
    } else {
        unclear()
    }
}

/// `{{json .State}}`: `Status`, `Running`, `Paused`, `Pid`, `ExitCode`, in Docker also `OOMKilled`. Nothing but a
/// running container's Pid means anything.
///
/// For a container without a task Docker's Status is `created` and nerdctl's is empty. But nerdctl's is empty as well
/// when its questions about the task failed: it then ends with 0 all the same and says so on standard error alone
/// (`failed to inspect Task`, `failed to inspect Status`: its `pkg/containerinspector`). With containerd 1.x a shim that
/// does not answer makes it `unknown`.
fn inspected(finished: &Finished) -> Result<Inspected, Failure> {
    let state: Value =
        serde_json::from_slice(&finished.stdout).map_err(|_| unreadable("inspect", "it is no JSON"))?;
    let Some(status) = state["Status"].as_str() else {
        return Err(unreadable("inspect", "it has no status"));
    };
    let state_now = match status {
        "" if !finished.stderr.trim_ascii().is_empty() || finished.stderr_cut => {
            InspectedState::Unclear(error_text::one_line(&error_text::last_complaint(&finished.stderr)))
        }
        "" | "created" => InspectedState::NoTask,
        "running" => InspectedState::Running(
            state["Pid"].as_i64().and_then(|pid| i32::try_from(pid).ok()).filter(|pid| *pid > 0),
        ),
        "exited" => match state["ExitCode"].as_i64().and_then(|code| i32::try_from(code).ok()) {
            Some(code) => InspectedState::Exited(code),
            None => return Err(unreadable("inspect", "an exited container has no exit code")),
        },
        other => {
            InspectedState::Unclear(error_text::one_line(&format!("the engine says that it is {other:?}")))
        }
    };
    Ok(Inspected { state: state_now, oom_killed: state["OOMKilled"].as_bool() })
}

/// Both streams in order of time. A line without a time is the CLI's own.
fn logs(finished: &Finished, most: u32) -> (Vec<String>, bool) {
    let out = String::from_utf8_lossy(&finished.stdout);
    let err = String::from_utf8_lossy(&finished.stderr);
    let mut lines: Vec<_> = out.lines().chain(err.lines()).filter_map(timed).collect();
    lines.sort_by(|a, b| a.0.cmp(&b.0));
    let lines: Vec<&str> = lines.iter().map(|(_, line)| *line).collect();
    let (lines, cut) = last_lines(&lines, most);
    (lines, cut || finished.stdout_cut || finished.stderr_cut)
}

/// `2026-11-24T00:19:22.936131149Z line`: the time made sortable (nerdctl drops zeros at the end of the fraction), and
/// the line.
fn timed(line: &str) -> Option<(String, &str)> {
    let (time, rest) = line.split_once(' ').unwrap_or((line, ""));
    let time = time.strip_suffix('Z')?;
    let (whole, fraction) = time.split_once('.').unwrap_or((time, ""));
    let shaped =
        whole.len() == 19 && whole.as_bytes()[10] == b'T' && fraction.bytes().all(|b| b.is_ascii_digit());
    shaped.then(|| (format!("{whole}.{fraction:0<9}"), rest))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::job::PullJob;
    use crate::types::{EnvName, ImageRef, RegistryAuth, ReplicaId, Secret, Spec};
    use std::time::Duration;

    fn id() -> ContainerId {
        ContainerId::new(&"ab".repeat(32)).unwrap()
    }

    fn run() -> Job {
        let spec = Spec {
            image: ImageRef::new("bb:1").unwrap(),
            gpu_count: 0,
            env: vec![(EnvName::new("A").unwrap(), Secret::new("hunter2".into()))],
            command: vec!["dial unix image not available".into()],
            millicpus: None,
            memory_mib: None,
            shm_mib: None,
            pids_limit: None,
            ports: vec![],
        };
        Job::Run(Box::new(RunJob {
            replica: ReplicaId::new("r").unwrap(),
            name: "replica-r".into(),
            spec,
            labels: vec![],
            gpus: vec![],
            deadline: Duration::from_secs(1),
        }))
    }

    fn pull() -> Job {
        let auth = RegistryAuth {
            server: "s".into(),
            username: "u".into(),
            password: Secret::new("hunter2".into()),
        };
        Job::Pull(Box::new(PullJob {
            image: ImageRef::new("bb:1").unwrap(),
            auth: Some(auth),
            deadline: Duration::from_secs(1),
        }))
    }

    fn answer(job: &Job, ended: Ended, stdout: &str, stderr: &str) -> Outcome {
        let finished = Finished {
            ended,
            stdout: stdout.into(),
            stdout_cut: false,
            stderr: stderr.into(),
            stderr_cut: false,
            took: Duration::from_secs(7),
        };
        outcome(job, &Ok(finished))
    }

    fn fatal(text: &str) -> String {
        format!("time=\"t\" level=fatal msg=\"{text}\"\n")
    }

    #[test]
    fn images_by_tag_or_digest_the_oldest_first() {
        let digest = format!("sha256:{}", "ab".repeat(32));
        let said = format!(
            "2026-11-24 11:46:10 +0000 UTC\treg.example:5000/a\t1\t{digest}\n\
             2026-11-24 11:46:09 +0000 UTC\tb\t<none>\t{digest}\n\
             2026-11-24 11:46:09 +0000 UTC\tc\t2\t<none>\n\
             2026-11-23 00:00:00 +0000 UTC\t<none>\t<none>\t{digest}\n\
             2026-11-22 00:00:00 +0000 UTC\td\t<none>\t<none>\n\nno image\n"
        );
        let Outcome::Images(Ok(images)) = answer(&Job::Images, Ended::Exit(0), &said, "") else { panic!() };
        let names: Vec<&str> = images.iter().map(ImageRef::as_str).collect();
        assert_eq!(names, ["c:2", &format!("b@{digest}"), "reg.example:5000/a:1"]);
    }

    #[test]
    fn guests_say_how_busy_their_gpus_are() {
        type Known = (Option<u8>, Option<(u64, u64)>);
        let check = |vendor, said: &str, expected: &[Known]| {
            let Outcome::GuestUse(Ok(uses)) = answer(&Job::GuestUse(id(), vendor), Ended::Exit(0), said, "")
            else {
                panic!("no answer")
            };
            let found: Vec<_> = uses.iter().map(|gpu| (gpu.busy_percent, gpu.memory_mib)).collect();
            assert_eq!(found, expected, "{said:?}");
        };
        check(
            Vendor::Nvidia,
            "95, 745, 81559\n0, 1, 81559\n",
            &[(Some(95), Some((745, 81559))), (Some(0), Some((1, 81559)))],
        );
        check(
            Vendor::Nvidia,
            "[N/A], 745, 81559\n101, [N/A], 5\n7\n",
            &[(None, Some((745, 81559))), (Some(7), None)],
        );
        check(Vendor::Nvidia, "No devices were found\n\n", &[]);
        check(Vendor::Amd, "31, 1073741824, 206141652992\n, ,\n", &[(Some(31), Some((1024, 196_592)))]);
    }

    #[test]
    fn failures_by_kind() {
        let check = |job: &Job, stderr: &str, kind: FailureKind, words: &str| {
            let failure = match answer(job, Ended::Exit(1), "", stderr) {
                Outcome::Ran(Err(f)) | Outcome::Pulled(Err(f)) | Outcome::Stopped(Err(f)) => f,
                Outcome::Listed(Err(f)) | Outcome::Inspected(Err(f)) | Outcome::Removed(Err(f)) => {
                    panic!("{f:?}")
                }
                other => panic!("{other:?}"),
            };
            assert_eq!((failure.kind, failure.message.as_str()), (kind, words), "{stderr}");
        };
        use FailureKind::{
            NameReserved, NameTaken, NoImage, NoSuchContainer, PullRefused, Refused, Unavailable,
        };
        let stop = Job::Stop(id(), Duration::ZERO);
        check(&run(), &fatal("image not available: \\\"bb:1\\\""), NoImage, "image not available: \"bb:1\"");
        check(
            &run(),
            "docker: Error response from daemon: No such image: bb:1\n\nRun 'docker run --help'",
            NoImage,
            "No such image: bb:1",
        );
        check(
            &run(),
            &fatal(&format!("name-store error\\nname \\\"dup\\\" is already used by ID \\\"{}\\\"", id())),
            NameTaken,
            &format!("name-store error name \"dup\" is already used by ID \"{}\"", id()),
        );
        // nerdctl 1.7, after a power cut.
        check(
            &run(),
            &fatal("name \\\"dup\\\" is already used by ID \\\"\\\""),
            NameReserved,
            "name \"dup\" is already used by ID \"\"",
        );
        check(
            &run(),
            "docker: Error response from daemon: Conflict. The container name \"/r1\" is already in use by container \"6d\". You have to remove (or rename) that container to be able to reuse that name.",
            NameTaken,
            "Conflict. The container name \"/r1\" is already in use by container \"6d\".",
        );
        let refused = "connection error: desc = x dial unix /run/containerd/containerd.sock: connect: connection refused";
        check(&run(), &fatal(refused), Unavailable, refused);
        check(
            &stop,
            &fatal("cannot access containerd socket: no such file"),
            Unavailable,
            "cannot access containerd socket: no such file",
        );
        check(
            &stop,
            "Cannot connect to the Docker daemon at unix:///x. Is it running?",
            Unavailable,
            "Cannot connect to the Docker daemon at unix:///x. Is it running?",
        );
        let registry = "failed to do request: Head x: dial tcp 127.0.0.1:1: connect: connection refused";
        check(&pull(), &fatal(registry), PullRefused(PullCause::Unreachable), registry);
        check(
            &stop,
            &fatal("1 errors:\\nno such container: ab"),
            NoSuchContainer,
            "1 errors: no such container: ab",
        );
        check(
            &stop,
            "Error response from daemon: No such container: ab",
            NoSuchContainer,
            "No such container: ab",
        );
        // What a tenant wrote decides nothing, and what he keeps secret does not come out.
        let tenants = "exec: \\\"dial unix image not available\\\" hunter2: no such file";
        check(&run(), &fatal(tenants), Refused, "exec: \"dial unix image not available\" ***: no such file");
        check(&pull(), "unauthorized: hunter2", PullRefused(PullCause::Unauthorized), "unauthorized: ***");
        check(
            &stop,
            "",
            Refused,
            "the engine's stop ended with status 1 and said nothing; see the engine's log",
        );
    }

    #[test]
    fn ended_from_outside() {
        let check = |ended, kind, words: &str| {
            let Outcome::Pulled(Err(failure)) = answer(&pull(), ended, "", "layer 1") else { panic!() };
            assert_eq!((failure.kind, failure.message.as_str()), (kind, words));
        };
        check(Ended::Deadline, FailureKind::Deadline, "the engine's pull did not finish within 7 s: layer 1");
        check(Ended::Cancelled, FailureKind::Deadline, "the engine's pull was cancelled after 7 s");
        check(Ended::Signal(9), FailureKind::Refused, "the engine's pull was ended by signal 9: layer 1");
        let missing = outcome(&Job::List, &Err(Error::NotFound { path: "/x".into() }));
        assert!(matches!(missing, Outcome::Listed(Err(Failure { kind: FailureKind::Unavailable, .. }))));
    }

    #[test]
    fn a_run_gives_the_last_line() {
        let check = |stdout: &str, good: bool| {
            let Outcome::Ran(result) = answer(&run(), Ended::Exit(0), stdout, "") else { panic!() };
            assert_eq!(result.ok(), good.then(id), "{stdout}");
        };
        check(&format!("{}\n", id()), true);
        check(&format!("line 0\n{}\n\n", id()), true);
        check("", false);
        check(id().short(), false);
    }

    #[test]
    fn a_removal_is_believed_only_with_its_echo() {
        let check = |ended, stdout: &str, stderr: &str, done: Result<(), FailureKind>| {
            let Outcome::Removed(result) = answer(&Job::Remove(id()), ended, stdout, stderr) else {
                panic!()
            };
            assert_eq!(result.map_err(|f| f.kind), done, "{stdout} {stderr}");
        };
        let full = format!("{}\n", id());
        check(Ended::Exit(0), &full, "", Ok(()));
        check(Ended::Exit(0), "", "time=\"t\" level=error msg=\"1 errors:\\nno such container: ab\"", Ok(()));
        check(Ended::Exit(1), "", "Error response from daemon: No such container: ab", Ok(()));
        check(Ended::Exit(0), "", "", Err(FailureKind::Refused));
        check(
            Ended::Exit(0),
            "",
            "time=\"t\" level=error msg=\"1 errors:\\nconnection error: desc = x\"",
            Err(FailureKind::Unavailable),
        );
        check(Ended::Deadline, &full, "", Err(FailureKind::Deadline));
    }

    #[test]
    fn pulls_that_failed_for_a_certain_reason() {
        let check = |error: &str, cause: Option<PullCause>| {
            let Outcome::Pulled(Err(failure)) = answer(&pull(), Ended::Exit(1), "", &fatal(error)) else {
                panic!("{error}")
            };
            assert_eq!(failure.kind, cause.map_or(FailureKind::Refused, FailureKind::PullRefused), "{error}");
        };
        use PullCause::{NoSpace, NotFound, RateLimited, Tls, Unauthorized, Unreachable};
        let resolve = "failed to resolve reference \\\"r.example/x:1\\\": ";
        let head =
            format!("{resolve}failed to do request: Head \\\"https://r.example/v2/x/manifests/1\\\": ");
        // nerdctl 2.3 on containerd 2 pulls by the transfer service: other beginnings, the same ends.
        check(&format!("{resolve}r.example/x:1: not found"), Some(NotFound));
        check("failed to resolve image: r.example/x:1: not found", Some(NotFound));
        check("manifest for r.example/x:1 not found: manifest unknown: manifest unknown", Some(NotFound));
        check(
            &format!(
                "{resolve}pulling from host r.example failed with status code [manifests 1]: 401 Unauthorized"
            ),
            Some(Unauthorized),
        );
        check("Head \\\"https://r.example/v2/\\\": no basic auth credentials", Some(Unauthorized));
        check(
            &format!(
                "{resolve}pulling from host registry-1.docker.io failed with status code [manifests 1]: 429 Too Many \
             Requests - Server message: toomanyrequests: You have reached your pull rate limit."
            ),
            Some(RateLimited),
        );
        check(&format!("{head}dial tcp: lookup r.example on 10.0.0.53:53: no such host"), Some(Unreachable));
        check(&format!("{head}dial tcp 10.0.0.1:443: i/o timeout"), Some(Unreachable));
        check(&format!("{head}net/http: TLS handshake timeout"), Some(Unreachable));
        check(
            &format!(
                "{head}tls: failed to verify certificate: x509: certificate signed by unknown authority"
            ),
            Some(Tls),
        );
        check(&format!("{head}http: server gave HTTP response to HTTPS client"), Some(Tls));
        check(
            "failed to extract layer sha256:ab: write /usr/lib/x: no space left on device: unknown",
            Some(NoSpace),
        );
        // Docker Hub says this of what does not exist as well.
        check(
            &format!(
                "{resolve}pull access denied, repository does not exist or may require authorization: server \
             message: insufficient_scope: authorization failed"
            ),
            None,
        );
        // What is missing is in containerd's own store.
        check("failed to get reader: content digest sha256:ab: not found", None);
        check("unexpected media type text/html for sha256:ab", None);
    }

    #[test]
    fn lists_are_whole_or_an_error() {
        let check = |lines: &str| {
            let Outcome::Listed(result) = answer(&Job::List, Ended::Exit(0), lines, "") else { panic!() };
            result
        };
        let a = id();
        let good =
            format!("{a}\t\"r\\t1\"\t\"d\"\t\"none\"\t\"0000:41:00.0+42:00.0\"\tExited (137) 2 hours ago\n");
        let listed = check(&good).unwrap();
        assert_eq!(listed.len(), 1);
        assert_eq!((listed[0].replica.as_str(), listed[0].spec.as_str()), ("r\t1", ""));
        assert_eq!((listed[0].gpus.len(), &listed[0].status), (2, &ListedStatus::Exited(137)));
        assert_eq!(check("").unwrap(), []);
        let line = |gpus: &str| format!("{a}\t\"r\"\t\"d\"\t\"s\"\t{gpus}\tUp\n");
        assert!(check(&line("\"none\"")).unwrap()[0].gpus.is_empty());
        assert!(check(&line("\"\"")).unwrap()[0].gpus.is_empty());
        // A replica may have any name: what is missing has another form.
        for name in ["none", "null", "all", "0", "x"] {
            let listed = check(&format!("{a}\t\"{name}\"\t\"d\"\t\"-\"\t\"-\"\tUp\n")).unwrap();
            let found = &listed[0];
            assert_eq!((found.replica.as_str(), found.spec.as_str(), found.gpus.len()), (name, "", 0));
        }
        for bad in [line("\"nonsense\""), line("none"), format!("{a}\tUp\n"), good.replace("ab", "xy")] {
            assert!(check(&format!("{good}{bad}")).is_err(), "{bad}");
        }
    }

    #[test]
    fn statuses() {
        let check = |text: &str, status| assert_eq!(listed_status(text), status, "{text}");
        let unclear = |text: &str| ListedStatus::Unclear(format!("the engine lists it as {text:?}"));
        check("Up", ListedStatus::Up);
        check("Up 2 minutes", ListedStatus::Up);
        check("Up 2 minutes (Paused)", unclear("Up 2 minutes (Paused)"));
        check("Created", ListedStatus::Created);
        check("Exited (0) Less than a second ago", ListedStatus::Exited(0));
        check("Exited (x)", unclear("Exited (x)"));
        check("Restarting (1) 2 seconds ago", unclear("Restarting (1) 2 seconds ago"));
        check("Unknown", unclear("Unknown"));
        check("", unclear(""));
    }

    #[test]
    fn states() {
        let check = |json: &str, state, oom_killed| {
            let answer = answer(&Job::Inspect(id()), Ended::Exit(0), json, "");
            assert_eq!(answer, Outcome::Inspected(Ok(Some(Inspected { state, oom_killed }))), "{json}");
        };
        check(r#"{"Status":"running","Pid":7,"ExitCode":0}"#, InspectedState::Running(Some(7)), None);
        check(r#"{"Status":"running","Pid":0}"#, InspectedState::Running(None), None);
        check(r#"{"Status":"","Pid":0,"ExitCode":0}"#, InspectedState::NoTask, None);
        check(
            r#"{"Status":"created","OOMKilled":false,"ExitCode":127}"#,
            InspectedState::NoTask,
            Some(false),
        );
        check(
            r#"{"Status":"exited","Pid":29508,"ExitCode":137,"OOMKilled":true}"#,
            InspectedState::Exited(137),
            Some(true),
        );
        let unclear = |said: &str| InspectedState::Unclear(said.into());
        check(
            r#"{"Status":"paused","Running":true}"#,
            unclear("the engine says that it is \"paused\""),
            None,
        );
        // containerd 1.x, where a shim does not answer.
        check(
            r#"{"Status":"unknown","Running":false,"Pid":0}"#,
            unclear("the engine says that it is \"unknown\""),
            None,
        );
        let gone =
            answer(&Job::Inspect(id()), Ended::Exit(1), "", &fatal("1 errors:\\nno such container: ab"));
        assert_eq!(gone, Outcome::Inspected(Ok(None)));
        for bad in ["", "{}", "[]", r#"{"Status":"exited"}"#] {
            let answer = answer(&Job::Inspect(id()), Ended::Exit(0), bad, "");
            assert!(matches!(answer, Outcome::Inspected(Err(_))), "{bad}");
        }
    }

    #[test]
    fn an_empty_status_is_a_lost_task_only_where_nothing_went_wrong() {
        let check = |stderr: &str, state: InspectedState| {
            // As nerdctl 2.2 prints it.
            let json = r#"{"Status":"","Running":false,"Paused":false,"Restarting":false,"Pid":0,"ExitCode":0,"FinishedAt":""}"#;
            let answer = answer(&Job::Inspect(id()), Ended::Exit(0), json, stderr);
            assert_eq!(
                answer,
                Outcome::Inspected(Ok(Some(Inspected { state, oom_killed: None }))),
                "{stderr}"
            );
        };
        let unclear = |said: &str| InspectedState::Unclear(said.into());
        check("", InspectedState::NoTask);
        check(" \n", InspectedState::NoTask);
        check(
            "time=\"t\" level=warning msg=\"failed to inspect Task\" error=\"context deadline exceeded\" id=ab\n",
            unclear("failed to inspect Task: context deadline exceeded"),
        );
        check(
            "time=\"t\" level=warning msg=\"failed to inspect Status\" error=EOF id=ab\n",
            unclear("failed to inspect Status: EOF"),
        );
        check("something new\n", unclear("something new"));
    }

    #[test]
    fn logs_in_order_of_time() {
        let out = "2026-11-24T00:19:22.93Z one\n2026-11-24T00:19:24Z three\n";
        let err = "time=\"t\" level=warning msg=\"x\"\n2026-11-24T00:19:22.936131149Z two words\n2026-11-24T00:19:25.1Z\n";
        let check = |most, expected: &[&str]| {
            let Outcome::Logs(Ok((lines, cut))) = answer(&Job::Logs(id(), most), Ended::Exit(0), out, err)
            else {
                panic!()
            };
            assert_eq!(
                (lines.as_slice(), cut),
                (&expected.iter().map(|l| (*l).to_owned()).collect::<Vec<_>>()[..], false)
            );
        };
        check(10, &["one", "two words", "three", ""]);
        check(2, &["three", ""]);
        let long = "x".repeat(LOG_MAX / 2);
        assert_eq!(last_lines(&[&long, &long, "y"], 9), (vec![long.clone(), "y".into()], true));
    }
}
