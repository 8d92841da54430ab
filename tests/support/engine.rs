//! The container engine of a test: `scripts/engine.sh` starts it and says in the environment where it is. An agent
//! takes every container with our labels for its own, so tests take turns: each finds the engine without such
//! containers and leaves it so. The faults, whose agents see their own containers alone, share their turn.
#![allow(dead_code, reason = "each test file uses a part of it")]
#![allow(
    clippy::print_stderr,
    clippy::unwrap_used,
    reason = "tests start programs, say what they skip, and fail"
)]

use std::ops::Deref;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::{Condvar, Mutex, PoisonError};

use serde_json::Value;

use super::agent::Node;
use super::control_plane::WAIT;
use super::skip::skip;
use super::wait::wait_until;

/// How long one call of the CLI by a test may take, in seconds.
const CALL_S: &str = "60";
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

/// A container engine.
#[derive(Debug, Clone)]
pub struct Engine {
    cli: PathBuf,
    /// `docker` or `nerdctl`.
    pub kind: String,
    /// An image that stays up and ends at once on SIGTERM.
    pub image: String,
    pid_file: PathBuf,
    restart: PathBuf,
}

/// A test's turn with the engine of the environment.
#[derive(Debug)]
pub struct EngineTurn {
    engine: Engine,
    /// Containers without our label, made by the test.
    foreign: Mutex<Vec<String>>,
    turn: Turn,
}

impl Deref for EngineTurn {
    type Target = Engine;

    fn deref(&self) -> &Engine {
        &self.engine
    }
}

impl EngineTurn {
    /// Waits until the test has the engine alone. None: there is no engine, and the test is counted as skipped.
    pub fn alone(test: &str) -> Option<Self> {
        let taken = Self::take(test, Turn::alone)?;
        taken.clear();
        Some(taken)
    }

    /// The same for a test whose agents see no containers but their own.
    pub fn shared(test: &str) -> Option<Self> {
        Self::take(test, Turn::shared)
    }

    fn take(test: &str, turn: impl FnOnce() -> Turn) -> Option<Self> {
        let found = Engine::read(|name| std::env::var(name).ok().filter(|value| !value.is_empty()));
        let Some(engine) = found else {
            skip(test, "no engine: VECTORLAY_TEST_CLI and its like are not set (scripts/engine.sh)");
            return None;
        };
        Some(Self { engine, foreign: Mutex::default(), turn: turn() })
    }

    /// Starts a container that is no agent's.
    pub fn start_foreign(&self, name: &str) -> String {
        self.start_foreign_with(name, "none", &[])
    }

    /// The same in this network, with a command of its own.
    pub fn start_foreign_with(&self, name: &str, network: &str, command: &[&str]) -> String {
        let run = ["run", "--detach", "--network", network, "--name", name, &self.image];
        let id = self.text(&[&run, command].concat());
        let id = id.trim().to_owned();
        self.foreign.lock().unwrap().push(id.clone());
        id
    }
}

impl Drop for EngineTurn {
    fn drop(&mut self) {
        for id in self.foreign.lock().unwrap().iter() {
            self.call(&["rm", "--force", id]);
        }
        if self.turn.alone && !std::thread::panicking() {
            self.clear();
        }
    }
}

/// One more engine, that nobody else uses; it is stopped when this is dropped.
pub struct OwnEngine {
    engine: Engine,
    dir: String,
}

impl Deref for OwnEngine {
    type Target = Engine;

    fn deref(&self) -> &Engine {
        &self.engine
    }
}

impl OwnEngine {
    /// Starts one of the kind of `like`.
    pub fn start(like: &Engine) -> Self {
        let output = Self::script(&like.kind, &["start"]);
        let text = String::from_utf8(output.stdout).unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let variable = |name: &str| {
            let value = |line: &str| {
                line.strip_prefix("export ")?.strip_prefix(name)?.strip_prefix('=').map(str::to_owned)
            };
            text.lines().find_map(value)
        };
        Self { engine: Engine::read(variable).unwrap(), dir: variable("VECTORLAY_TEST_ENGINE_DIR").unwrap() }
    }

    /// Does to it what a reboot of the host does.
    pub fn reboot(&self) {
        let output = Self::script(&self.engine.kind, &["reboot", &self.dir]);
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    }

    /// Its folder.
    pub fn dir(&self) -> &Path {
        Path::new(&self.dir)
    }

    /// A path as the engine sees it, which has some folders of its own.
    pub fn inside(&self, path: &str) -> PathBuf {
        let holder = std::fs::read_to_string(self.dir().join("holder.pid")).unwrap();
        format!("/proc/{}/root{path}", holder.trim()).into()
    }

    fn script(kind: &str, args: &[&str]) -> Output {
        let script = concat!(env!("CARGO_MANIFEST_DIR"), "/scripts/engine.sh");
        let mut command = Command::new("timeout");
        command.args(["-k", "5", "300", "bash", script]).args(args);
        command.env_remove("VECTORLAY_TEST_ENGINE_DIR").env("VECTORLAY_TEST_ENGINE", kind);
        command.output().unwrap()
    }
}

impl Drop for OwnEngine {
    fn drop(&mut self) {
        Self::script(&self.engine.kind, &["stop", &self.dir]);
    }
}

impl Engine {
    /// The engine that these variables of `scripts/engine.sh` describe.
    fn read(variable: impl Fn(&str) -> Option<String>) -> Option<Self> {
        Some(Self {
            cli: variable("VECTORLAY_TEST_CLI")?.into(),
            kind: variable("VECTORLAY_TEST_ENGINE")?,
            image: variable("VECTORLAY_TEST_IMAGE")?,
            pid_file: variable("VECTORLAY_TEST_ENGINE_PID_FILE")?.into(),
            restart: variable("VECTORLAY_TEST_ENGINE_RESTART")?.into(),
        })
    }

    /// The daemon's process.
    pub fn daemon(&self) -> u32 {
        std::fs::read_to_string(&self.pid_file).unwrap().trim().parse().unwrap()
    }

    /// Stops the daemon if it runs, and starts it again.
    pub fn restart(&self) {
        let output = Command::new("timeout").args(["-k", "1", "150"]).arg(&self.restart).output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    }

    /// Whether it is Docker.
    pub fn is_docker(&self) -> bool {
        self.kind == "docker"
    }

    /// The CLI's path.
    pub fn path(&self) -> &Path {
        &self.cli
    }

    /// Makes the agent of `node` use it.
    pub fn give_to(&self, node: &mut Node) {
        node.set("container-cli", self.cli.to_str().unwrap()).set("network", "none");
    }

    /// Calls the CLI, with a deadline.
    pub fn call(&self, arguments: &[&str]) -> Output {
        Command::new("timeout")
            .args(["-k", "1", CALL_S])
            .arg(&self.cli)
            .args(arguments)
            .env_clear()
            .env("PATH", std::env::var_os("PATH").unwrap_or_default())
            .env("HOME", "/root")
            .stdin(Stdio::null())
            .output()
            .unwrap()
    }

    /// Calls the CLI: its standard output, if it succeeded.
    pub fn ask(&self, arguments: &[&str]) -> Option<String> {
        let output = self.call(arguments);
        output.status.success().then(|| String::from_utf8(output.stdout).unwrap())
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
