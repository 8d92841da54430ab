//! Asks a program for its version, or the engine whether it is there, and takes the answer as text.

use std::cell::Cell;
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::Inputs;
use crate::process::{self, Bounds, Ended, Program};

/// From SIGTERM to SIGKILL at the deadline: a program that prints its version has nothing to clean up.
pub const GRACE: Duration = Duration::from_millis(100);
/// Kept of each stream, in bytes.
const OUTPUT: usize = 64 * 1024;
/// At most so much of a program's last line is passed on, in characters.
const LINE_MAX: usize = 300;

/// What a probe works with.
pub struct ProbeCx<'a> {
    /// What the checks depend on.
    pub inputs: &'a Inputs,
    /// For each program.
    pub deadline: Duration,
    /// Whether a program did not answer in time. That says more about how busy the host is than about the program.
    pub missed: Cell<bool>,
}

impl<'a> ProbeCx<'a> {
    /// One with which nothing was asked yet.
    pub fn new(inputs: &'a Inputs, deadline: Duration) -> Self {
        Self { inputs, deadline, missed: Cell::new(false) }
    }

    /// An executable file of that name in `folders`, or the file itself where `name` is a path.
    pub fn find(&self, name: &str, folders: &[PathBuf]) -> Option<PathBuf> {
        process::find(name, &folders.iter().map(PathBuf::as_path).collect::<Vec<_>>())
    }

    /// Runs `path`, which must be absolute, and returns what it printed (on standard error where standard output is
    /// empty).
    ///
    /// # Errors
    /// A sentence for a person: it could not be started, had no answer in time, or failed; then its own last line, as a
    /// quote.
    pub fn ask(&self, path: &Path, args: &[&str]) -> Result<String, String> {
        let program = Program {
            path: path.to_owned(),
            args: args.iter().map(OsString::from).collect(),
            env: self.inputs.env.clone(),
            input: None,
        };
        let bounds = Bounds { deadline: self.deadline, grace: GRACE, output: OUTPUT, tail: false };
        let finished = process::run(&program, &bounds, None).map_err(|error| error.to_string())?;
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        match finished.ended {
            Ended::Exit(0) if finished.stdout.is_empty() => Ok(text(&finished.stderr)),
            Ended::Exit(0) => Ok(text(&finished.stdout)),
            Ended::Exit(code) => {
                let said = if finished.stderr.is_empty() { &finished.stdout } else { &finished.stderr };
                Err(if said.trim_ascii().is_empty() {
                    format!("exit status {code}")
                } else {
                    quoted(&text(said))
                })
            }
            Ended::Signal(signal) => Err(format!("ended by signal {signal}")),
            Ended::Deadline | Ended::Cancelled | Ended::Stalled => {
                self.missed.set(true);
                Err(format!("no answer within {} s", self.deadline.as_secs_f32()))
            }
        }
    }

    /// What to do about a program that did not work: one that is only slow is not broken.
    pub fn advice(&self, otherwise: &'static str) -> &'static str {
        if self.missed.get() { "the host is too busy or its disk too slow" } else { otherwise }
    }
}

/// A program's last line as a quote: `it says "no such socket"`.
pub fn quoted(text: &str) -> String {
    match last_line(text) {
        line if line.is_empty() => "it says nothing".to_owned(),
        line => format!("it says \"{}\"", line.replace('"', "'")),
    }
}

/// The last line before the usage that is not empty, without logrus' frame (`time="…" level=fatal msg="…"`), printable and bounded.
fn last_line(text: &str) -> String {
    // Behind a complaint, usage is of no help.
    let text = text.split_once("\nUsage").map_or(text, |(complaint, _)| complaint);
    let line = text.lines().map(str::trim).rfind(|line| !line.is_empty()).unwrap_or_default();
    let message = line.split_once(" msg=\"").and_then(|(_, rest)| rest.strip_suffix('"'));
    let plain = message.map_or_else(|| line.to_owned(), |message| message.replace("\\\"", "\""));
    plain.chars().map(|c| if c.is_control() { ' ' } else { c }).take(LINE_MAX).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_line_are_readable() {
        let check = |text: &str, expected: &str| assert_eq!(last_line(text), expected, "{text:?}");
        check(
            "time=\"2026-11-24T05:54:42Z\" level=warning msg=\"x\"\ntime=\"2026-11-24T05:54:42Z\" level=fatal msg=\"cannot access containerd socket \\\"/run/containerd/containerd.sock\\\": no such file or directory\"\n",
            "cannot access containerd socket \"/run/containerd/containerd.sock\": no such file or directory",
        );
        check("Cannot connect to the Docker daemon.\n\n", "Cannot connect to the Docker daemon.");
        check("a\u{1b}[31mb\tc\r\n", "a [31mb c");
        check(&"ä".repeat(1000), &"ä".repeat(300));
        check(
            "flag provided but not defined: -version\nUsage of containerd-shim-runc-v2:\n  -v\tshow the version\n",
            "flag provided but not defined: -version",
        );
        check("Usage: x\n  -v  show\n", "-v  show");
        check("", "");
    }

    #[test]
    fn quotes_look_like_quotes() {
        let check = |text: &str, expected: &str| assert_eq!(quoted(text), expected, "{text:?}");
        check("level=fatal msg=\"cannot access \\\"/run/x\\\"\"\n", "it says \"cannot access '/run/x'\"");
        check("not run; all is well\n", "it says \"not run; all is well\"");
        check("\n", "it says nothing");
    }
}
