//! What `check` reports besides the dependencies: each GPU's verdict, how GPUs are passed to containers, what Kata's
//! configuration would refuse, and where logs go.

use std::time::Instant;

use super::check::Note;
use crate::config::Config;
use crate::core::inventory::{Gpu, Health, Verdict};
use crate::engine::cli::Handover;
use crate::host::dependencies::{self, Shim};
use crate::host::gpus::Watch;
use crate::host::kata_config::{self, Runtime};
use crate::host::lspci;
use crate::setup::{self, Setup};

/// The notes about this host with these settings.
pub(super) fn all(config: &Config, setup: &Setup) -> Vec<Note> {
    let note = |topic: &str, text: String| Note { topic: topic.to_owned(), text };
    let mut notes = vec![note("logs", setup.log_reason.to_owned())];
    let now = Instant::now();
    let inventory =
        Watch::new(&config.root, setup::health_limits(config)).read(now, &mut || lspci::run(&config.root));
    match inventory {
        Err(unreadable) => notes.push(note("GPUs", unreadable.to_string())),
        Ok(inventory) => {
            let mut gpus = inventory.facts();
            setup::hand_over(&config.root, setup::plain_handover(config), setup.cdi, &mut gpus);
            if gpus.is_empty() {
                return notes;
            }
            let named = gpus.iter().filter(|gpu| gpu.cdi_name.is_some()).count();
            let mut how = setup.handover_reason.clone();
            if setup.cdi {
                how += &match named {
                    0 => "; no CDI names: the host has none for its GPUs".to_owned(),
                    _ => format!("; by CDI names: {named} of {}", gpus.len()),
                };
            }
            notes.push(note("hand-over", how));
            notes.extend(gpus.iter().map(|gpu| note(&format!("GPU {}", gpu.address), judge(gpu))));
            if setup.handover == Some(Handover::Vfio) {
                let devices = gpus.iter().map(|gpu| 1 + gpu.companions.len()).sum::<usize>();
                notes.extend(kata(config, setup, devices as u64).map(|text| note("Kata", text)));
            }
        }
    }
    notes
}

fn judge(gpu: &Gpu) -> String {
    let verdict = match &gpu.verdict {
        Verdict::Assignable => match &gpu.cdi_name {
            Some(name) => format!("assignable as {name}"),
            None => "assignable".to_owned(),
        },
        Verdict::Held(why) | Verdict::Obstructed(why) => why.clone(),
    };
    match &gpu.health {
        Health::Ok => verdict,
        Health::Suspect(why) => format!("{verdict}; suspect: {why}"),
        Health::Failed(why) => format!("{verdict}; failed: {why}"),
        Health::Unknown(why) => format!("{verdict}; health unknown: {why}"),
    }
}

/// What Kata's configuration would refuse or break.
fn kata(config: &Config, setup: &Setup, devices: u64) -> impl Iterator<Item = String> {
    let shim = match dependencies::shim(&setup.inputs) {
        Shim::Found(path) => Some(std::fs::canonicalize(&path).unwrap_or(path)),
        Shim::None | Shim::Unsafe { .. } | Shim::Elsewhere { .. } | Shim::Missing { .. } => None,
    };
    let is_kata = |name: &str| name.contains("kata");
    let shim = shim.filter(|path| path.file_name().is_some_and(|name| is_kata(&name.to_string_lossy())));
    let findings = shim.map(|shim| {
        let runtime = if shim.to_string_lossy().contains("runtime-rs") { Runtime::Rust } else { Runtime::Go };
        let file = kata_config::find(&config.root, runtime, &shim);
        let settings = file.and_then(|file| kata_config::Settings::read(&config.root, &file));
        kata_config::findings(settings.as_ref(), runtime, devices)
    });
    findings.unwrap_or_default().into_iter().map(|finding| finding.to_string())
}
