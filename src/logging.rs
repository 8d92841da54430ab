//! The log: one line for each message, on standard error.

use std::io::Write;
use std::time::{SystemTime, UNIX_EPOCH};

use log::LevelFilter;
use serde_json::json;

use crate::config::LogFormat;
use crate::link::dates;

/// Starts the log.
///
/// Under the journal, which has its own, lines carry no time. tungstenite's lines below `info` are left out whatever
/// is asked for: it writes whole requests, credentials included.
pub fn start(level: LevelFilter, format: LogFormat) {
    let journal = std::env::var_os("JOURNAL_STREAM").is_some();
    let started = env_logger::Builder::new()
        .filter_level(level)
        .filter_module("tungstenite", level.min(LevelFilter::Info))
        .filter_module("ureq", level.min(LevelFilter::Info))
        .format(move |out, record| {
            let now = now();
            match format {
                LogFormat::Text if journal => writeln!(out, "{:<5} {}", record.level(), record.args()),
                LogFormat::Text => {
                    writeln!(out, "{} {:<5} {}", dates::shown(now), record.level(), record.args())
                }
                LogFormat::Json => {
                    let line = json!({
                        "time": dates::shown(now),
                        "level": record.level().as_str(),
                        "message": record.args().to_string(),
                    });
                    writeln!(out, "{line}")
                }
            }
        })
        .try_init();
    // A second start (a test in the same process) keeps the first one's settings.
    drop(started);
}

#[allow(clippy::disallowed_methods, reason = "a line of the log carries the time")]
fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}
