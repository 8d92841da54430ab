//! The log: one line per message, on standard error.
//!
//! A thread writes it, because the reader of standard error may stop reading: lines are then dropped and counted, and
//! nobody blocks.

use std::io::{self, Write};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread::Builder;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use log::LevelFilter;
use serde_json::json;

use crate::config::LogFormat;
use crate::link::dates;

/// Lines that wait to be written; more are dropped.
const LINES_MAX: usize = 1024;
/// How long writing the last lines may take at the end of the process.
const FLUSH_WITHIN: Duration = Duration::from_secs(1);

/// Dropped lines not yet reported.
static DROPPED: AtomicU64 = AtomicU64::new(0);
/// To the thread that writes.
static LINES: OnceLock<SyncSender<Line>> = OnceLock::new();

enum Line {
    Text(Vec<u8>),
    /// Confirms that everything before it is written.
    Flush(SyncSender<()>),
}

/// Starts the log.
///
/// tungstenite and ureq never log below `info`: they would write whole requests, credentials included.
pub fn start(level: LevelFilter, format: LogFormat) {
    let journal = std::env::var_os("JOURNAL_STREAM").is_some();
    let mut builder = env_logger::Builder::new();
    builder
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
        });
    let (lines, received) = sync_channel(LINES_MAX);
    let thread = Builder::new().name("log".into()).spawn(move || write_lines(&received));
    // If no thread can be started, lines are written by the thread that logs.
    if thread.is_ok() && LINES.set(lines.clone()).is_ok() {
        builder.target(env_logger::Target::Pipe(Box::new(ToThread(lines))));
    }
    // A second start (in a test) keeps the first one's settings.
    drop(builder.try_init());
}

/// Waits until all lines are written, at most [`FLUSH_WITHIN`].
pub fn flush() {
    let Some(lines) = LINES.get() else { return };
    let (done, written) = sync_channel(1);
    if lines.try_send(Line::Flush(done)).is_ok() {
        // The reader of standard error may have stopped: the process ends all the same.
        let _ = written.recv_timeout(FLUSH_WITHIN);
    }
}

/// Passes lines to the thread, and never blocks.
struct ToThread(SyncSender<Line>);

impl Write for ToThread {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        if self.0.try_send(Line::Text(line.to_vec())).is_err() {
            DROPPED.fetch_add(1, Ordering::Relaxed);
        }
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn write_lines(lines: &Receiver<Line>) {
    let mut out = io::stderr();
    for line in lines {
        let dropped = DROPPED.swap(0, Ordering::Relaxed);
        // There is nowhere to report that a line cannot be written.
        if dropped > 0 {
            let _ = writeln!(out, "{dropped} log lines dropped: standard error was not read");
        }
        match line {
            Line::Text(line) => _ = out.write_all(&line),
            Line::Flush(done) => _ = done.try_send(()),
        }
    }
}

fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}
