//! Choices that depend on the host, made again before each round of checks: which CLI, where logs go, how GPUs are passed.
//! An engine that is installed after the agent has started is used like one that was there.

use std::fs::File;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

use crate::config::Config;
use crate::engine::CliSetter;
use crate::engine::cli::{Cli, LogChoice};
use crate::engine::log_watch::{self, Limits};
use crate::host::dependencies::Inputs;
use crate::setup::{self, Setup};
use crate::trust;

/// What is chosen, for a person: topic and choice.
type Said = [(&'static str, String); 3];

pub(super) struct Choices {
    config: Config,
    said: Said,
    /// Where logs go in the end: the choice, or the engine's own logger where the folder for it cannot be used.
    log: LogChoice,
    /// The size of the log files is watched over.
    logs_are_bounded: bool,
}

impl Choices {
    /// Logs the first ones, and makes the folder of log files.
    pub(super) fn new(config: &Config, setup: &Setup) -> Self {
        let said = said(setup);
        for (topic, choice) in &said {
            log::info!("{topic}: {choice}");
        }
        let log = setup::json_file(config);
        let mut choices = Self { config: config.clone(), said, log, logs_are_bounded: false };
        choices.settle_log(setup);
        choices
    }

    /// The CLI as it is to be used.
    pub(super) fn cli(&self, setup: &Setup) -> Cli {
        Cli { log: self.log.clone(), ..setup.cli.clone() }
    }

    /// Makes them for the host as it is now. Looks at files and may run the CLI's `--version`.
    pub(super) fn again(&mut self, cli: &CliSetter) -> Inputs {
        let setup = Setup::new(&self.config);
        let now = said(&setup);
        for ((topic, choice), (_, before)) in now.iter().zip(&self.said) {
            if choice != before {
                log::info!("{topic}: {choice} (the host has changed)");
            }
        }
        if now != self.said {
            self.settle_log(&setup);
            self.said = now;
        }
        cli.set(self.cli(&setup));
        setup.inputs
    }

    fn settle_log(&mut self, setup: &Setup) {
        self.log = match &setup.cli.log {
            LogChoice::File { dir } if make_log_dir(dir) && self.bound_logs(dir, setup) => {
                setup.cli.log.clone()
            }
            LogChoice::File { .. } | LogChoice::JsonFile { .. } => setup::json_file(&self.config),
        };
    }

    /// Sees to it that log files keep to their size. Whether that can be done.
    fn bound_logs(&mut self, dir: &Path, setup: &Setup) -> bool {
        if self.logs_are_bounded {
            return true;
        }
        let (size, min_free) = (self.config.log_size_mb << 20, self.config.min_free_gb << 30);
        let data_path = setup::data_path(&self.config, setup.cli.flavour);
        let started = log_watch::start(dir.to_owned(), Limits::new(size, min_free, dir, &data_path));
        self.logs_are_bounded = started.is_ok();
        if let Err(error) = started {
            log::warn!(
                "cannot limit the size of log files: {error}; the engine keeps the logs instead (json-file)"
            );
        }
        self.logs_are_bounded
    }
}

fn said(setup: &Setup) -> Said {
    [
        ("container CLI", setup.cli.path.display().to_string()),
        ("logs", setup.log_reason.to_owned()),
        ("GPUs", setup.handover_reason.clone()),
    ]
}

/// Makes the folder of log files, for root alone: tenants' output stands in it. Whether it can be used.
fn make_log_dir(dir: &Path) -> bool {
    let shown = dir.display();
    match trust::make_folder(dir).and_then(|folder| File::from(folder).metadata()) {
        Ok(found) if found.permissions().mode() & 0o077 == 0 => true,
        Ok(_) => {
            log::warn!("others may read the containers' logs in {shown}; run `chmod 700 {shown}`");
            true
        }
        Err(error) => {
            log::warn!(
                "the folder of containers' logs cannot be used: {error}; until it can and the agent is restarted, the \
                 engine keeps the logs of new containers (json-file)"
            );
            false
        }
    }
}
