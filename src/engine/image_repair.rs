//! An image of which the engine's copy is damaged: its manifest or configuration is recorded, but missing on the disk,
//! or not what it was (a power cut, a bad disk).
//!
//! nerdctl (1.7 to 2.3, on containerd 1.6 and 2.3) takes such an image for missing, and each pull of it fails on what is
//! recorded, with the words of a registry or network that fails (`not found`, `unexpected EOF`). Removed and pulled
//! again it is well. That a pull failed for this proves nothing; what the engine says of its own copy does.

use super::cli::Cli;
use super::{error_text, image, parse};
use crate::core::job::{Failure, FailureKind, Job, Outcome};
use crate::process::{self, Cancel, Ended};
use crate::types::ImageRef;

/// What nerdctl complains of when it reads a part of a copy that is missing or damaged.
const COMPLAINTS: [&str; 4] =
    ["blob not found", "unexpected EOF", "invalid character", "unexpected end of JSON input"];

/// Removes the engine's copy of an image if it is damaged: what the engine says of it. `Ok(None)`: it is not damaged, as
/// far as can be told, and was left alone.
///
/// # Errors
/// It is damaged and cannot be removed: a container uses it.
pub fn remove(cli: &Cli, image: &ImageRef, cancel: Option<&Cancel>) -> Result<Option<String>, Failure> {
    let (program, bounds) = cli.look_at(image);
    let Ok(shown) = process::run(&program, &bounds, cancel) else { return Ok(None) };
    let said = String::from_utf8_lossy(&shown.stderr);
    let complaint = said.lines().rev().find(|line| COMPLAINTS.iter().any(|part| line.contains(part)));
    let lacks_config = || image::lacks_config(image, &String::from_utf8_lossy(&shown.stdout));
    let Some(complaint) = complaint.filter(|_| shown.ended == Ended::Exit(0) && lacks_config()) else {
        return Ok(None);
    };
    let job = Job::RemoveImage(image.clone());
    let (program, bounds) = cli.call(&job)?;
    match parse::outcome(&job, &process::run(&program, &bounds, cancel)) {
        Outcome::ImageRemoved(Err(failure)) => {
            let why = format!(
                "the node's copy of {image} is damaged; stop what uses it and deploy again: {}",
                failure.message
            );
            Err(Failure { kind: FailureKind::Refused, message: error_text::one_line(&why) })
        }
        _ => Ok(Some(error_text::one_line(&error_text::last_complaint(complaint.as_bytes())))),
    }
}
