//! Runs the agent's own binary for a test: with a state directory, an operator's socket and a configuration file of
//! its own, its log kept, and killed when the test is over.
//!
//! ```no_run
//! let mut node = Node::new("name");
//! node.set("url", plane.url()).env("VECTORLAY_TOKEN", TOKEN);
//! let mut agent = node.start();
//! agent.wait_line(WAIT, |line| line.contains("connected"));
//! agent.signal(Signal::TERM);
//! assert_eq!(agent.wait_exit(WAIT), 0);
//! ```
#![allow(dead_code, reason = "each test file uses a part of it")]
#![allow(
    clippy::print_stdout,
    clippy::unwrap_used,
    reason = "tests start programs, read clocks, show logs, and fail"
)]

use std::collections::BTreeMap;
use std::fs::OpenOptions;
use std::io::{BufRead as _, BufReader, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::sync::{Arc, Condvar, Mutex};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

use super::folder::Folder;
use super::wait::{wait_for, wait_until};

/// How much of a log a failing test shows, in lines.
const SHOWN: usize = 80;

/// Where an agent lives: what stays when its process ends.
pub struct Node {
    folder: Folder,
    settings: Vec<(String, String)>,
    environment: BTreeMap<String, String>,
    /// What the agent is started with, such as `ip netns exec NAME`.
    pub around: Vec<String>,
    /// The agent's binary; by default the one that VECTORLAY_TEST_AGENT names, else this build's.
    pub binary: Option<PathBuf>,
}

impl Node {
    /// One that knows no control plane, has no token, and whose container CLI does not exist.
    pub fn new(name: &str) -> Self {
        let folder = Folder::new(name);
        let mut node = Self {
            folder,
            settings: Vec::new(),
            environment: BTreeMap::new(),
            around: Vec::new(),
            binary: None,
        };
        std::fs::write(node.file(), "{}").unwrap();
        for (setting, part) in [
            ("state-dir", "state"),
            ("control-socket", "run/agent.sock"),
            ("log-dir", "logs"),
            ("container-cli", "missing/docker"),
        ] {
            let path = node.path().join(part);
            node.set(setting, path.to_str().unwrap());
        }
        // Tests run side by side, on a machine that may have an agent of its own.
        let folder = node.path().file_name().unwrap().to_str().unwrap().to_owned();
        // At most 64 characters; what differs is at the end.
        node.set("instance", &folder[folder.len().saturating_sub(64)..]);
        let path = node.path().to_str().unwrap().to_owned();
        node.set("data-path", &path).set("log", "debug").set("min-free-gb", "0");
        // The registries of the tests, and the port at which there is none.
        node.set("images", "*,127.0.0.1:5000,127.0.0.1:5001,127.0.0.1:1");
        let file = node.file();
        node.env("VECTORLAY_CONFIG", file.to_str().unwrap());
        node.env("PATH", &std::env::var("PATH").unwrap_or_default()).env("HOME", "/root");
        node
    }

    /// A folder for the test's own files.
    pub fn path(&self) -> &Path {
        self.folder.path()
    }

    /// The state directory; the agent makes it.
    pub fn state(&self) -> PathBuf {
        self.path().join("state")
    }

    /// The node's identity.
    pub fn identity(&self) -> PathBuf {
        self.state().join("node.json")
    }

    /// The configuration file.
    pub fn file(&self) -> PathBuf {
        self.path().join("agent.json")
    }

    /// Gives a setting by its flag.
    pub fn set(&mut self, flag: &str, value: &str) -> &mut Self {
        self.settings.retain(|(known, _)| known != flag);
        self.settings.push((flag.to_owned(), value.to_owned()));
        self
    }

    /// Takes a flag back.
    pub fn unset(&mut self, flag: &str) -> &mut Self {
        self.settings.retain(|(known, _)| known != flag);
        self
    }

    /// Gives a variable of the environment, which has no others.
    pub fn env(&mut self, name: &str, value: &str) -> &mut Self {
        self.environment.insert(name.to_owned(), value.to_owned());
        self
    }

    /// Starts the agent.
    pub fn start(&self) -> Agent {
        let mut child = self.program(&[]).stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
        let stderr = child.stderr.take().unwrap();
        let log = Arc::new(Log::default());
        let written = Arc::clone(&log);
        std::thread::spawn(move || {
            for line in BufReader::new(stderr).split(b'\n').map_while(Result::ok) {
                written.lines.lock().unwrap().push(String::from_utf8_lossy(&line).into_owned());
                written.news.notify_all();
            }
            *written.over.lock().unwrap() = true;
            written.news.notify_all();
        });
        Agent { child, log, log_file: self.path().join("agent.log") }
    }

    /// Runs a command of the agent's (`check`, `status`, …) with the same settings.
    pub fn run(&self, arguments: &[&str]) -> Output {
        self.program(arguments).output().unwrap()
    }

    /// The same: its exit status, and standard output and error together.
    pub fn said(&self, arguments: &[&str]) -> (i32, String) {
        let output = self.run(arguments);
        let text = [output.stdout, output.stderr].concat();
        (output.status.code().unwrap(), String::from_utf8(text).unwrap())
    }

    /// The agent's binary.
    pub fn binary(&self) -> PathBuf {
        let named = || std::env::var_os("VECTORLAY_TEST_AGENT").filter(|path| !path.is_empty());
        let built = || env!("CARGO_BIN_EXE_vectorlay-agent").into();
        self.binary.clone().or_else(|| named().map(PathBuf::from)).unwrap_or_else(built)
    }

    /// The agent's program with these arguments and the settings.
    pub fn program(&self, arguments: &[&str]) -> Command {
        let binary = self.binary();
        let around = self.around.iter().map(String::as_str);
        let words: Vec<&str> = around.chain([binary.to_str().unwrap()]).collect();
        let mut program = Command::new(words[0]);
        program.args(&words[1..]).args(arguments);
        program.args(self.settings.iter().map(|(flag, value)| format!("--{flag}={value}")));
        program.env_clear().envs(&self.environment).stdin(Stdio::null());
        program
    }
}

/// A running agent; it is killed when this is dropped.
pub struct Agent {
    child: Child,
    log: Arc<Log>,
    /// Where all of it is written if the test fails.
    log_file: PathBuf,
}

#[derive(Default)]
struct Log {
    lines: Mutex<Vec<String>>,
    over: Mutex<bool>,
    news: Condvar,
}

impl Agent {
    /// The process ID.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// What it has logged, line by line.
    pub fn log(&self) -> Vec<String> {
        self.log.lines.lock().unwrap().clone()
    }

    /// The same as one text.
    pub fn text(&self) -> String {
        self.log().join("\n")
    }

    /// Waits until it has logged such a line.
    pub fn wait_line(&self, deadline: Duration, wanted: impl Fn(&str) -> bool) -> String {
        let end = Instant::now() + deadline;
        let mut lines = self.log.lines.lock().unwrap();
        let mut seen = 0;
        loop {
            if let Some(line) = lines[seen..].iter().find(|line| wanted(line)) {
                return line.clone();
            }
            seen = lines.len();
            let left = end.saturating_duration_since(Instant::now());
            assert!(!left.is_zero(), "no such line within {deadline:?}");
            lines = self.log.news.wait_timeout(lines, left).unwrap().0;
        }
    }

    /// Sends it a signal.
    pub fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.child), signal).unwrap();
    }

    /// Waits until it has ended by itself; `None` at the deadline.
    pub fn ended(&mut self, deadline: Duration) -> Option<ExitStatus> {
        wait_for(deadline, || self.child.try_wait().unwrap())
    }

    /// Waits until it has ended by itself and all of its log is there: its exit status.
    pub fn wait_exit(&mut self, deadline: Duration) -> i32 {
        let status = self.ended(deadline).unwrap_or_else(|| panic!("it did not end within {deadline:?}"));
        wait_until(deadline, "the agent's log ends", || *self.log.over.lock().unwrap());
        status.code().unwrap_or_else(|| panic!("{status}"))
    }

    /// Kills it with SIGKILL.
    pub fn kill(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        self.kill();
        if std::thread::panicking() {
            let lines = self.log();
            let from = lines.len().saturating_sub(SHOWN);
            println!("the end of the agent's log:\n{}", lines[from..].join("\n"));
            let mut file = OpenOptions::new().append(true).create(true).open(&self.log_file).unwrap();
            file.write_all((lines.join("\n") + "\n").as_bytes()).unwrap();
        }
    }
}
