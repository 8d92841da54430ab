//! Why a call of the CLI failed, from what it printed on standard error. Pure.
//!
//! Exit codes say little (nerdctl's is 1 for everything, and 0 for a `rm -f` that failed), so the texts decide, where
//! the engines' documentation gives nothing better: by parts that all known versions share (nerdctl 1.7 to 2.3, Docker
//! 20 to 28). What a tenant wrote is blotted out first, so that an image's command cannot pass for the engine's
//! complaint.

use super::error_text;
use crate::core::job::{Failure, FailureKind, Job, PullCause};
use crate::process::{Ended, Error, Finished};
use crate::types::ContainerId;

/// Parts of what a CLI says when the engine does not answer. For a registry that does not it is `dial tcp`.
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

/// The disk is full: the kernel's words for ENOSPC and EDQUOT.
const NO_SPACE: [&str; 2] = ["no space left on device", "disk quota exceeded"];

/// What went wrong in a call that did not succeed. `call`: what it was, as in [`name`].
pub(super) fn of(job: &Job, call: &str, finished: &Finished) -> Failure {
    let secrets = secrets(job);
    let error = error_text::last_error(&finished.stderr, finished.stderr_cut);
    let bare = error_text::without_secrets(&error, &secrets);
    // Docker's advice on a name that is taken would stand where the cause does, and the name is the agent's to free.
    let cause = bare.split(" You have to remove (or rename) that container").next().unwrap_or_default();
    // Unquoted and on one line it may show what it did not before; cut, half of it.
    let line = error_text::unbroken(&error_text::cause_last(cause));
    let said = error_text::shortened(error_text::without_secrets(&line, &secrets));
    let ours = |text: String| if said.is_empty() { text } else { format!("{text}: {said}") };
    let seconds = finished.took.as_secs();
    match finished.ended {
        Ended::Deadline => Failure {
            kind: FailureKind::Deadline,
            message: error_text::one_line(&ours(format!("{call} did not finish within {seconds} s"))),
        },
        Ended::Cancelled => Failure {
            kind: FailureKind::Deadline,
            message: format!("{call} was cancelled after {seconds} s"),
        },
        Ended::Stalled => Failure {
            kind: FailureKind::PullRefused(PullCause::Unreachable),
            message: format!(
                "{call} was given up after {seconds} s, since nothing came from the registry for as long as \
                 pull_stall_s allows; look at the registry and the way to it"
            ),
        },
        Ended::Signal(signal) => Failure {
            kind: FailureKind::Refused,
            message: error_text::one_line(&ours(format!("{call} was ended by signal {signal}"))),
        },
        Ended::Exit(code) => Failure {
            kind: kind(job, &bare),
            message: if said.is_empty() {
                format!("{call} ended with status {code} and said nothing; see the engine's log")
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
pub(super) fn whole_text(job: &Job, result: &Result<Finished, Error>) -> Option<String> {
    let finished = result.as_ref().ok().filter(|finished| finished.ended != Ended::Exit(0))?;
    let text = String::from_utf8_lossy(&finished.stderr);
    // Half a secret at the beginning could not be recognised.
    let text = if finished.stderr_cut { text.split_once('\n').map_or("", |(_, whole)| whole) } else { &text };
    let secrets = secrets(job);
    let line = error_text::unbroken(&error_text::without_secrets(text, &secrets));
    Some(error_text::without_secrets(&line, &secrets)).filter(|text| !text.is_empty())
}

fn kind(job: &Job, error: &str) -> FailureKind {
    let tenants: Vec<&str> = if let Job::Run(run) = job {
        run.spec.command.iter().map(String::as_str).collect()
    } else {
        Vec::new()
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
    } else if run && says(&NO_SPACE) {
        FailureKind::NoSpace
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
/// not exist as for one that needs a login (`insufficient_scope`): that is neither. A blob that is not found is one of
/// the node's own copy.
fn pull_cause(error: &str) -> Option<PullCause> {
    let says = |parts: &[&str]| parts.iter().any(|part| error.contains(part));
    let cause = error_text::cause_last(error);
    if says(&NO_SPACE) {
        Some(PullCause::NoSpace)
    } else if says(&["429 Too Many Requests", "toomanyrequests: "]) {
        Some(PullCause::RateLimited)
    } else if says(&["insufficient_scope", "content digest ", "blob not found"]) {
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

/// The call for a job, for messages.
pub(super) fn name(job: &Job) -> &'static str {
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
    if let Job::Run(run) = job {
        run.spec.env.iter().map(|(_, value)| value.expose()).collect()
    } else if let Job::Pull(pull) = job {
        pull.auth.iter().map(|auth| auth.password.expose()).collect()
    } else {
        Vec::new()
    }
}

/// What a call left no answer for: the CLI could not be started, or not be read.
pub(super) fn no_call(error: &Error) -> Failure {
    Failure { kind: FailureKind::Unavailable, message: error.clone() }
}

/// A call that succeeded and printed something else than what its version was known to print.
pub(super) fn unreadable(what: &str, why: &str) -> Failure {
    Failure {
        kind: FailureKind::Refused,
        message: format!("cannot read what {what} printed: {why}; check the container CLI's version"),
    }
}
