//! The log: one line per message, on standard error.
//!
//! A thread writes it, because the reader of standard error may stop reading: lines are then dropped and counted, and
//! nobody blocks.

use std::collections::VecDeque;
use std::fs::File;
use std::io::{self, IsTerminal, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::MetadataExt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Mutex, OnceLock, PoisonError};
use std::thread::Builder;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use log::{Level, LevelFilter, Record};
use serde_json::json;

use crate::config::LogFormat;
use crate::link::dates;

/// Lines that wait to be written; more are dropped.
const LINES_MAX: usize = 1024;
/// How long writing the last lines may take at the end of the process.
const FLUSH_WITHIN: Duration = Duration::from_secs(1);
/// Lines kept in memory for `report`, and the bytes kept of each.
const RECENT_LINES: usize = 500;
const RECENT_BYTES: usize = 512;

/// Dropped lines not yet reported.
static DROPPED: AtomicU64 = AtomicU64::new(0);
/// To the thread that writes.
static LINES: OnceLock<SyncSender<Line>> = OnceLock::new();
/// The last lines, oldest first.
static RECENT: Mutex<VecDeque<String>> = Mutex::new(VecDeque::new());

enum Line {
    Text(Vec<u8>),
    /// Confirms that everything before it is written.
    Flush(SyncSender<()>),
}

/// What stands before a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Prefix {
    /// Time and level.
    Time,
    /// `<4>`, from which the journal takes the priority (sd-daemon(3)); it has a time of its own.
    Priority,
}

/// Starts the log.
///
/// tungstenite and ureq never log below `info`: they would write whole requests, credentials included.
pub fn start(level: LevelFilter, format: LogFormat) {
    let prefix = if is_journal(std::env::var("JOURNAL_STREAM").ok().as_deref(), &io::stderr()) {
        Prefix::Priority
    } else {
        Prefix::Time
    };
    let mut builder = env_logger::Builder::new();
    builder
        .filter_level(level)
        .filter_module("tungstenite", level.min(LevelFilter::Info))
        .filter_module("ureq", level.min(LevelFilter::Info))
        .format(move |out, record| {
            let line = line(format, prefix, now(), record);
            remember(&line);
            writeln!(out, "{line}")
        });
    let (lines, received) = sync_channel(LINES_MAX);
    let thread = Builder::new().name("log".into()).spawn(move || write_lines(&received, io::stderr()));
    // If no thread can be started, lines are written by the thread that logs.
    if thread.is_ok() && LINES.set(lines.clone()).is_ok() {
        builder.target(env_logger::Target::Pipe(Box::new(ToThread(lines))));
    }
    // A second start (in a test) keeps the first one's settings.
    drop(builder.try_init());
}

/// The last lines that were logged, oldest first.
pub fn recent() -> Vec<String> {
    RECENT.lock().unwrap_or_else(PoisonError::into_inner).iter().cloned().collect()
}

/// Whether standard error is a terminal.
pub fn on_terminal() -> bool {
    io::stderr().is_terminal()
}

fn remember(line: &str) {
    let mut recent = RECENT.lock().unwrap_or_else(PoisonError::into_inner);
    if recent.len() >= RECENT_LINES {
        recent.pop_front();
    }
    let end =
        line.char_indices().map(|(at, c)| at + c.len_utf8()).take_while(|end| *end <= RECENT_BYTES).last();
    recent.push_back(line[..end.unwrap_or(0)].to_owned());
}

/// Whether `stderr` is the journal's socket: the variable names its device and inode (systemd.exec(5)). It is inherited by
/// whatever a service starts, also where standard error leads elsewhere.
fn is_journal(variable: Option<&str>, stderr: &impl AsFd) -> bool {
    let Some((device, inode)) = variable.and_then(|text| text.split_once(':')) else { return false };
    let metadata = stderr.as_fd().try_clone_to_owned().and_then(|fd| File::from(fd).metadata());
    metadata.is_ok_and(|m| device.parse() == Ok(m.dev()) && inode.parse() == Ok(m.ino()))
}

/// One message as a line. A line break in it would begin a line of its own, which could be forged.
fn line(format: LogFormat, prefix: Prefix, now: Duration, record: &Record<'_>) -> String {
    let message = record.args().to_string().replace('\n', "\\n").replace('\r', "\\r");
    match (format, prefix) {
        (LogFormat::Text, Prefix::Priority) => format!("<{}>{message}", priority(record.level())),
        (LogFormat::Text, Prefix::Time) => {
            format!("{} {:<5} {message}", dates::utc(now.as_secs()), record.level())
        }
        (LogFormat::Json, prefix) => {
            let object = json!({
                "time": rfc3339(now),
                "level": record.level().as_str(),
                "message": record.args().to_string(),
            });
            match prefix {
                Prefix::Priority => format!("<{}>{object}", priority(record.level())),
                Prefix::Time => object.to_string(),
            }
        }
    }
}

/// syslog(3)'s number.
fn priority(level: Level) -> u8 {
    match level {
        Level::Error => 3,
        Level::Warn => 4,
        Level::Info => 6,
        Level::Debug | Level::Trace => 7,
    }
}

/// `2026-11-24T05:51:50.120Z`, of the time since 1970.
fn rfc3339(time: Duration) -> String {
    let shown = dates::utc(time.as_secs());
    format!("{}.{:03}Z", shown.trim_end_matches(" UTC").replace(' ', "T"), time.subsec_millis())
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

fn write_lines(lines: &Receiver<Line>, mut out: impl Write) {
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

/// Since 1970.
fn now() -> Duration {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_that_nobody_reads_are_dropped_and_counted() {
        let (lines, received) = sync_channel(2);
        let mut log = ToThread(lines);
        for line in ["a\n", "b\n", "c\n", "d\n"] {
            assert_eq!(log.write(line.as_bytes()).unwrap(), 2);
        }
        drop(log);
        let mut out = Vec::new();
        write_lines(&received, &mut out);
        assert_eq!(out, b"2 log lines dropped: standard error was not read\na\nb\n");
    }

    const NOW: Duration = Duration::from_millis(1_764_042_710_120);

    fn logged(format: LogFormat, prefix: Prefix, level: Level, message: &str) -> String {
        line(format, prefix, NOW, &Record::builder().level(level).args(format_args!("{message}")).build())
    }

    #[test]
    fn the_journal_takes_the_priority_from_the_line() {
        let check = |level, expected: &str| {
            assert_eq!(logged(LogFormat::Text, Prefix::Priority, level, "x"), expected);
        };
        check(Level::Error, "<3>x");
        check(Level::Warn, "<4>x");
        check(Level::Info, "<6>x");
        check(Level::Debug, "<7>x");
        let json = logged(LogFormat::Json, Prefix::Priority, Level::Warn, "x");
        assert!(json.starts_with("<4>{"), "{json}");
    }

    #[test]
    fn json_has_times_that_machines_read() {
        let text = logged(LogFormat::Json, Prefix::Time, Level::Info, "a\nb");
        let value: serde_json::Value = serde_json::from_str(&text).unwrap();
        assert_eq!(value, json!({"time": "2025-11-25T03:51:50.120Z", "level": "INFO", "message": "a\nb"}));
    }

    #[test]
    fn a_message_cannot_forge_a_line() {
        let text = logged(LogFormat::Text, Prefix::Time, Level::Info, "a\n2025 ERROR b\r");
        assert_eq!(text, "2025-11-25 03:51:50 UTC INFO  a\\n2025 ERROR b\\r");
    }

    #[test]
    fn only_the_journals_own_socket_is_the_journal() {
        let file = File::open("/dev/null").unwrap();
        let metadata = file.metadata().unwrap();
        let named = format!("{}:{}", metadata.dev(), metadata.ino());
        assert!(is_journal(Some(&named), &file));
        for other in ["", "1:2", "x", &format!("{}:{}", metadata.dev(), metadata.ino() + 1)] {
            assert!(!is_journal(Some(other), &file), "{other}");
        }
        assert!(!is_journal(None, &file));
    }

    #[test]
    fn the_last_lines_are_kept_and_bounded() {
        for number in 0..RECENT_LINES + 10 {
            remember(&format!("{number} {}", "ü".repeat(RECENT_BYTES)));
        }
        let lines = recent();
        assert_eq!(lines.len(), RECENT_LINES);
        assert!(lines.iter().all(|line| line.len() <= RECENT_BYTES && line.len() > RECENT_BYTES - 2));
        assert!(lines[RECENT_LINES - 1].starts_with(&format!("{} ", RECENT_LINES + 9)));
    }
}
