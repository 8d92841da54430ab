//! A pull: credentials that are there while it lasts, a look whether it still moves, and a copy that was damaged.

use std::path::Path;
use std::time::{Duration, Instant};

use super::Settings;
use super::cli::{Cli, Flavour};
use super::credentials::Credentials;
use super::stall::{Fetches, Stall};
use super::{failure, image_repair, parse, releases};
use crate::core::job::{Failure, FailureKind, Job, JobId, Outcome, PullCause, PullJob};
use crate::process::{self, Bounds, Cancel, Program, Watch};

/// Where the kernel tells of processes.
const PROC: &str = "/proc";

/// Pulls `pull`, which is what `job` holds.
pub(super) fn pull(
    settings: &Settings,
    id: JobId,
    job: &Job,
    pull: &PullJob,
    cancel: Option<&Cancel>,
) -> Outcome {
    let fetches = Fetches::of(settings.cli.flavour, pulls_by_transfer(&settings.cli, cancel));
    let (mut program, bounds) = settings.cli.pull(pull, fetches != Fetches::Containerd);
    let _credentials = match pull.auth.as_ref().map(|auth| Credentials::new(&settings.scratch, id, auth)) {
        None => None,
        Some(Ok(credentials)) => {
            program.env.push(("DOCKER_CONFIG".into(), credentials.dir().into()));
            Some(credentials)
        }
        Some(Err(message)) => {
            return Outcome::Pulled(Err(Failure { kind: FailureKind::Refused, message }));
        }
    };
    let began = Instant::now();
    let call = |bounds: &Bounds| {
        let result = run(&program, bounds, cancel, settings.pull_stall, fetches);
        if let Some(error) = failure::whole_text(job, &result) {
            log::debug!("{id} {job}: {error}");
        }
        parse::outcome(job, &result)
    };
    let outcome = call(&bounds);
    let failed = matches!(
        outcome,
        Outcome::Pulled(Err(Failure {
            kind: FailureKind::Refused | FailureKind::PullRefused(PullCause::NotFound),
            ..
        }))
    );
    if !failed || settings.cli.flavour != Flavour::Nerdctl {
        return outcome;
    }
    match image_repair::remove(&settings.cli, &pull.image, cancel) {
        Ok(None) => outcome,
        Ok(Some(why)) => {
            log::warn!("the copy of {} was damaged and is pulled anew: {why}", pull.image);
            call(&Bounds { deadline: bounds.deadline.saturating_sub(began.elapsed()), ..bounds })
        }
        Err(failure) => Outcome::Pulled(Err(failure)),
    }
}

fn run(
    program: &Program,
    bounds: &Bounds,
    cancel: Option<&Cancel>,
    limit: Option<Duration>,
    fetches: Fetches,
) -> Result<process::Finished, process::Error> {
    let Some(limit) = limit else { return process::run(program, bounds, cancel) };
    let mut stall = Stall::new(Path::new(PROC), fetches, limit, Instant::now());
    let every = stall.every();
    let mut goes_on = |pid, printed: &[u8]| stall.goes_on(Instant::now(), pid, printed);
    process::run_watched(program, bounds, cancel, Some(Watch { every, goes_on: &mut goes_on }))
}

/// Whether this CLI may leave the fetching to containerd. It is asked each time, for a release can be replaced by another
/// at any time; that takes it 30 ms.
fn pulls_by_transfer(cli: &Cli, cancel: Option<&Cancel>) -> bool {
    if cli.flavour != Flavour::Nerdctl {
        return false;
    }
    let (program, bounds) = cli.version();
    let said = process::run(&program, &bounds, cancel);
    said.is_ok_and(|said| releases::pulls_by_transfer(&String::from_utf8_lossy(&said.stdout)))
}
