//! Reads what a call of the CLI printed into a job's outcome; [`failure`] says why a call failed. Pure.
//!
//! What cannot be read as a whole is an error, never a part of it: a container or GPU that is left out would count as
//! gone.

use serde_json::Value;

use super::cli::{Flavour, is_nothing};
use super::error_text;
use super::failure::{self, unreadable};
use super::image::{self, Facts};
use crate::core::inventory::GpuUse;
use crate::core::job::{
    Failure, FailureKind, Inspected, InspectedState, Job, LABEL_DEPLOY, LABEL_GPUS, LABEL_REPLICA,
    LABEL_SPEC, Listed, ListedStatus, Outcome, Vendor, gpus_of_label,
};
use crate::process::{Ended, Error, Finished};
use crate::types::{ContainerId, ImageRef, PciAddress};

/// Most bytes of a log that are handed on.
pub const LOG_MAX: usize = 256 * 1024;

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
    label.ok_or_else(|| unreadable("inspect", "a label is not a JSON string"))
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
        Ok(finished) => return Err(failure::of(job, "the engine's image inspect", finished)),
        Err(error) => return Err(failure::no_call(error)),
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
        Ok(finished) => Err(failure::of(job, failure::name(job), finished)),
        Err(error) => Err(failure::no_call(error)),
    }
}

/// `run -d` prints the ID as its last line (nerdctl 2.x may print a container's first output before it).
fn ran(finished: &Finished) -> Result<ContainerId, Failure> {
    let text = String::from_utf8_lossy(&finished.stdout);
    let line = text.lines().rev().find(|line| !line.trim().is_empty()).unwrap_or("");
    ContainerId::new(line.trim()).map_err(|_| unreadable("run", "its last line is not a container ID"))
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
        Err(error) => return Err(failure::no_call(error)),
    };
    let echoed = String::from_utf8_lossy(&finished.stdout).lines().any(|line| line.trim() == id.as_str());
    if finished.ended == Ended::Exit(0) && echoed {
        return Ok(());
    }
    match failure::of(job, failure::name(job), finished) {
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
/// The call's failure, or that a line is not an ID.
pub fn container_ids(result: &Result<Finished, Error>) -> Result<Vec<ContainerId>, Failure> {
    let finished = succeeded(&Job::List, result)?;
    if finished.stdout_cut {
        return Err(unreadable("ctr", "the list is too long"));
    }
    let text = String::from_utf8_lossy(&finished.stdout);
    let id =
        |line: &str| ContainerId::new(line).map_err(|_| unreadable("ctr", "a line is not a container ID"));
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
        serde_json::from_slice(&finished.stdout).map_err(|_| unreadable("ctr", "it is not JSON"))?;
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
        return Err(unreadable("ps", "a line does not have six fields"));
    };
    let id =
        ContainerId::new(id).map_err(|_| unreadable("ps", "a line does not begin with a container ID"))?;
    let label = |field: &str| -> Result<String, Failure> {
        serde_json::from_str(field).map_err(|_| {
            unreadable("ps", &format!("a label of container {} is not a JSON string", id.short()))
        })
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
    for address in gpus_of_label(gpus) {
        // To leave out a GPU that cannot be read would be to hand it out twice.
        addresses.push(PciAddress::parse(address).map_err(|_| {
            unreadable("ps", &format!("the GPUs of container {} are not PCI addresses", id.short()))
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
        serde_json::from_slice(&finished.stdout).map_err(|_| unreadable("inspect", "it is not JSON"))?;
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
mod tests;
