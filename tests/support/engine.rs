//! The container engine of a test: `scripts/engine.sh` starts it and says in the environment where it is. An agent
//! takes every container with our labels for its own, so tests take turns: each finds the engine without such
//! containers and leaves it so. The faults, whose agents see their own containers alone, share their turn.
#![allow(dead_code, reason = "each test file uses a part of it")]
#![allow(
    clippy::print_stderr,
    clippy::unwrap_used,
    reason = "tests start programs, say what they skip, and fail"
)]

use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::{Condvar, Mutex, PoisonError};

use serde_json::Value;

use super::agent::{Node, wait_until};
use super::control_plane::WAIT;
use super::skip::skip;

/// The label that makes a container an agent's.
pub const LABEL: &str = "vectorlay.replica";

/// A test's turn with the engine.
///
/// Must be held once by a test: one that waits for a second turn may wait for itself.
#[derive(Debug)]
pub struct Turn {
    alone: bool,
}

/// Who has the engine now.
struct Users {
    alone: bool,
    sharing: usize,
}

static USERS: Mutex<Users> = Mutex::new(Users { alone: false, sharing: 0 });
static USERS_CHANGED: Condvar = Condvar::new();

impl Turn {
    /// Waits until nobody has the engine.
    pub fn alone() -> Self {
        Self::take(true)
    }

    /// Waits until nobody has the engine alone. For tests that see no containers but their own.
    pub fn shared() -> Self {
        Self::take(false)
    }

    fn take(alone: bool) -> Self {
        // A test that failed in its turn is no reason for the others to fail.
        let users = USERS.lock().unwrap_or_else(PoisonError::into_inner);
        let busy = |users: &mut Users| users.alone || alone && users.sharing > 0;
        let mut users = USERS_CHANGED.wait_while(users, busy).unwrap_or_else(PoisonError::into_inner);
        users.alone = alone;
        users.sharing += usize::from(!alone);
        Self { alone }
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        let mut users = USERS.lock().unwrap_or_else(PoisonError::into_inner);
        users.alone = false;
        users.sharing -= usize::from(!self.alone);
        USERS_CHANGED.notify_all();
    }
}

/// The engine while a test has it alone.
pub struct Engine {
    cli: PathBuf,
    /// An image that stays up and ends at once on SIGTERM.
    pub image: String,
    /// Containers without our label, made by the test.
    foreign: Mutex<Vec<String>>,
    _turn: Turn,
}

impl Engine {
    /// Waits for the test's turn. None: there is no engine to test with, and the test is counted as skipped.
    pub fn take(test: &str) -> Option<Self> {
        let variable = |name: &str| std::env::var(name).ok().filter(|value| !value.is_empty());
        let (Some(cli), Some(image)) = (variable("VECTORLAY_TEST_CLI"), variable("VECTORLAY_TEST_IMAGE"))
        else {
            skip(test, "VECTORLAY_TEST_CLI and VECTORLAY_TEST_IMAGE are not set");
            return None;
        };
        let engine = Self { cli: cli.into(), image, foreign: Mutex::default(), _turn: Turn::alone() };
        engine.clear();
        Some(engine)
    }

    /// Whether it is Docker.
    pub fn is_docker(&self) -> bool {
        self.cli.file_name().is_some_and(|name| name == "docker")
    }

    /// The CLI's path.
    pub fn path(&self) -> &Path {
        &self.cli
    }

    /// Makes the agent of `node` use it.
    pub fn give_to(&self, node: &mut Node) {
        node.set("container-cli", self.cli.to_str().unwrap()).set("network", "none");
    }

    /// Calls the CLI.
    pub fn call(&self, arguments: &[&str]) -> Output {
        Command::new(&self.cli)
            .args(arguments)
            .env_clear()
            .env("PATH", std::env::var_os("PATH").unwrap_or_default())
            .env("HOME", "/root")
            .stdin(Stdio::null())
            .output()
            .unwrap()
    }

    /// Calls the CLI, which has to succeed: its standard output.
    pub fn text(&self, arguments: &[&str]) -> String {
        let output = self.call(arguments);
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{arguments:?}: {stderr}");
        String::from_utf8(output.stdout).unwrap()
    }

    /// The full IDs of a replica's containers, whatever their state.
    pub fn containers(&self, replica: &str) -> Vec<String> {
        self.labelled(&format!("label={LABEL}={replica}"))
    }

    /// The full IDs of all containers with our label.
    pub fn all(&self) -> Vec<String> {
        self.labelled(&format!("label={LABEL}"))
    }

    fn labelled(&self, filter: &str) -> Vec<String> {
        let ids = self.text(&["ps", "--all", "--no-trunc", "--quiet", "--filter", filter]);
        ids.lines().map(str::to_owned).collect()
    }

    /// All that the engine tells of a container.
    pub fn inspect(&self, id: &str) -> Value {
        let text = self.text(&["inspect", id]);
        serde_json::from_str::<Value>(&text).unwrap()[0].take()
    }

    /// The process that stands for a running container: another one if it was started anew.
    pub fn pid(&self, id: &str) -> u64 {
        let state = &self.inspect(id)["State"];
        assert_eq!(state["Running"], true, "{state}");
        state["Pid"].as_u64().unwrap()
    }

    /// What a command in a container prints.
    pub fn inside(&self, id: &str, command: &[&str]) -> Vec<u8> {
        let output = self.call(&[&["exec", id], command].concat());
        assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
        output.stdout
    }

    /// Starts a container that is no agent's.
    pub fn start_foreign(&self, name: &str) -> String {
        let id = self.text(&["run", "--detach", "--network=none", "--name", name, &self.image]);
        let id = id.trim().to_owned();
        self.foreign.lock().unwrap().push(id.clone());
        id
    }

    /// Removes every container with our label.
    pub fn clear(&self) {
        wait_until(WAIT, "the engine has no container of ours", || {
            let ids = self.all();
            for id in &ids {
                self.call(&["rm", "--force", id]);
            }
            ids.is_empty()
        });
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        for id in self.foreign.lock().unwrap().iter() {
            self.call(&["rm", "--force", id]);
        }
        if !std::thread::panicking() {
            self.clear();
        }
    }
}

/// A CLI before the engine's own, whose calls of one kind wait as long as it is shut.
pub struct Gate {
    folder: PathBuf,
}

impl Gate {
    /// Makes one for `verb`, open at first, and makes the agent of `node` use it.
    pub fn new(engine: &Engine, node: &mut Node, verb: &str) -> Self {
        let folder = node.path().join("gate");
        std::fs::create_dir(&folder).unwrap();
        let (real, here) = (engine.path().display(), folder.display());
        // One whose folder is gone belongs to a test that is over.
        let script = format!(
            "#!/bin/sh\n\
             if [ \"$1\" = {verb} ] && echo >>'{here}/calls' && [ -e '{here}/shut' ]; then\n\
                 echo >>'{here}/waiting'\n\
                 while [ -e '{here}/shut' ]; do sleep 0.05; done\n\
                 [ -d '{here}' ] || exit 1\n\
             fi\n\
             exec '{real}' \"$@\"\n"
        );
        let path = folder.join(engine.path().file_name().unwrap());
        std::fs::write(&path, script).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
        engine.give_to(node);
        node.set("container-cli", path.to_str().unwrap());
        Self { folder }
    }

    /// Makes calls wait from now on.
    pub fn shut(&self) {
        std::fs::write(self.folder.join("shut"), "").unwrap();
    }

    /// Lets those that wait go on, and all others.
    pub fn open(&self) {
        std::fs::remove_file(self.folder.join("shut")).unwrap();
    }

    /// Waits until this many calls have come to a shut gate.
    pub fn wait_for(&self, count: usize) {
        wait_until(WAIT, "calls wait", || self.count("waiting") >= count);
    }

    /// How many calls of this kind were made.
    pub fn calls(&self) -> usize {
        self.count("calls")
    }

    fn count(&self, file: &str) -> usize {
        std::fs::read_to_string(self.folder.join(file)).map_or(0, |text| text.lines().count())
    }
}
