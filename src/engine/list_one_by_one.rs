//! A list of the containers made one by one, for when the CLI cannot make one as a whole.
//!
//! nerdctl 2.1 and later read a file of each container for its ports (`LoadPortMappings`): where one such file is
//! damaged, every `ps` that would show its container fails, `--quiet` or not, and so does its `inspect`. The error
//! does not say whose file it is. containerd itself is not concerned: its own client, `ctr`, names the containers with
//! our label and shows the labels of one.

use std::time::{Duration, Instant};

use super::cli::Cli;
use super::parse;
use crate::core::job::{Failure, FailureKind, Job, Listed, ListedStatus};
use crate::process::{self, Cancel};

/// How long all pieces may take together.
const DEADLINE: Duration = Duration::from_secs(60);

/// Lists the containers one by one after a list as a whole has failed with `whole`. One that cannot be read is in the
/// list with its labels, and with the CLI's words in the place of its status.
///
/// # Errors
/// `whole`, where the list would not be sure to be complete: without `ctr`, and where none of the containers that it
/// names explains the failure (it may be asking another containerd than the CLI does).
pub fn list(cli: &Cli, whole: Failure, cancel: Option<&Cancel>) -> Result<Vec<Listed>, Failure> {
    let until = Instant::now() + DEADLINE;
    let Some((program, bounds)) = cli.container_ids() else { return Err(whole) };
    let Ok(ids) = parse::container_ids(&process::run(&program, &bounds, cancel)) else { return Err(whole) };
    let mut listed = Vec::new();
    let mut unreadable = 0;
    for id in ids {
        if Instant::now() >= until {
            return Err(whole);
        }
        let (program, bounds) = cli.list_one(&id);
        match parse::list(&Job::List, &process::run(&program, &bounds, cancel)) {
            Ok(found) => listed.extend(found),
            Err(Failure { kind: FailureKind::Refused, message }) => {
                let Some((program, bounds)) = cli.container_labels(&id) else { return Err(whole) };
                match parse::labelled(&process::run(&program, &bounds, cancel), &id) {
                    Ok(Some(container)) => {
                        unreadable += 1;
                        let status =
                            ListedStatus::Unclear(format!("the container CLI cannot read it: {message}"));
                        listed.push(Listed { status, ..container });
                    }
                    // It is gone meanwhile.
                    Ok(None) => {}
                    Err(_) => return Err(whole),
                }
            }
            Err(_) => return Err(whole),
        }
    }
    if unreadable == 0 { Err(whole) } else { Ok(listed) }
}
