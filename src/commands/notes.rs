//! What `check` reports besides the dependencies: each GPU's verdict, how GPUs are passed to containers, what Kata's
//! configuration would refuse, where logs go, and a release of the CLI that should be replaced.

use std::time::Instant;

use super::check::Note;
use crate::config::Config;
use crate::core::inventory::Handover;
use crate::host::dependencies;
use crate::host::gpus::Watch;
use crate::host::kata::gpus::findings;
use crate::host::lspci;
use crate::setup::{self, Setup};

/// The notes about this host with these settings.
pub(super) fn all(config: &Config, setup: &Setup) -> Vec<Note> {
    let note = |topic: &str, text: String| Note { topic: topic.to_owned(), text };
    let mut notes = vec![note("logs", setup.log_reason.to_owned())];
    notes.extend(setup::known_hole(setup).map(|text| note("nerdctl", text)));
    let now = Instant::now();
    let inventory =
        Watch::new(&config.root, setup::health_limits(config)).read(now, &mut || lspci::run(&config.root));
    match inventory {
        Err(unreadable) => notes.push(note("GPUs", unreadable.to_string())),
        Ok(inventory) => {
            let mut gpus = inventory.facts();
            setup::hand_over(config, &mut gpus);
            if gpus.is_empty() {
                return notes;
            }
            notes.push(note("hand-over", setup.handover_reason.clone()));
            notes.extend(gpus.iter().map(|gpu| note(&format!("GPU {}", gpu.address), gpu.summary())));
            if setup.handover == Handover::Vfio {
                let devices = gpus.iter().map(|gpu| 1 + gpu.companions.len()).sum::<usize>();
                notes.extend(kata(setup, devices as u64).into_iter().map(|text| note("Kata", text)));
            }
        }
    }
    notes
}

/// What Kata's configuration would refuse, or make fail. That there is none is said by the check of kata-runtime.
fn kata(setup: &Setup, devices: u64) -> Vec<String> {
    let Some(Ok(config)) = dependencies::kata_config(&setup.inputs) else { return Vec::new() };
    findings(&config, devices)
}
