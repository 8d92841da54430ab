//! What is measured side by side, each in a folder of its own with a stand-in CLI, and what can be seen of its processes.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use crate::server::{Server, now_ns};

/// How often each of them sends a heartbeat, in seconds: the agent's is not to be set.
pub const BEAT_S: u64 = 30;
/// How long a start may take until the first heartbeat, and then until no more calls are made.
const START: Duration = Duration::from_secs(60);
const QUIET: Duration = Duration::from_millis(1500);

/// The kernel's unit of processor time for user space, on every architecture (USER_HZ).
const TICKS_A_SECOND: f64 = 100.0;

#[derive(Clone)]
pub enum Program {
    /// The agent's binary, and the flags that it knows.
    Agent(PathBuf, String),
    NodeJs(PathBuf),
    Go(PathBuf),
    Floor(PathBuf),
}

/// One of those that are compared.
#[derive(Clone)]
pub struct Rival {
    pub name: &'static str,
    pub program: Program,
}

impl Rival {
    pub fn agent(name: &'static str, binary: &Path) -> Self {
        let help = Command::new(binary).arg("--help").output().expect("the agent's binary runs");
        let help = String::from_utf8_lossy(&help.stdout).into_owned();
        Self { name, program: Program::Agent(binary.to_owned(), help) }
    }

    pub fn can_deploy(&self) -> bool {
        !matches!(self.program, Program::Floor(_))
    }

    pub fn binary(&self) -> Option<&Path> {
        match &self.program {
            Program::Agent(binary, _) | Program::Go(binary) | Program::Floor(binary) => Some(binary),
            Program::NodeJs(_) => None,
        }
    }
}

/// The CLI that a rival calls.
#[derive(Clone, Copy)]
pub enum Cli<'a> {
    /// The stand-in, with this many containers that are there already.
    StandIn(&'a Path, usize),
    /// A real one, and its runtime.
    Real(&'a Path, &'a str),
}

/// When a call of the stand-in began and ended.
pub struct Call {
    pub verb: String,
    pub began_ns: u64,
    pub ended_ns: u64,
}

/// A rival at work. It ends when this is dropped.
pub struct Running {
    pub node: String,
    pub folder: PathBuf,
    child: Child,
}

impl Drop for Running {
    fn drop(&mut self) {
        // Calls that hang end with the file.
        let _ = fs::remove_file(self.folder.join("hang"));
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Running {
    /// Starts one in `folder`, which is made.
    pub fn start(rival: &Rival, folder: &Path, server: &Server, ca: Option<&Path>, cli: Cli<'_>) -> Self {
        let node = folder.file_name().unwrap().to_str().unwrap().to_owned();
        for part in ["id", "name", "state"] {
            fs::create_dir_all(folder.join(part)).unwrap();
        }
        let path = match cli {
            Cli::StandIn(binary, containers) => {
                fs::copy(binary, folder.join("docker")).unwrap();
                fs::write(folder.join("pid"), std::process::id().to_string()).unwrap();
                for n in 0..containers {
                    let (id, name) = (format!("{n:064x}"), format!("replica-there-{n}"));
                    let line = format!("{id} {name} there-{n} d{n} none none\n");
                    fs::write(folder.join("id").join(&id), &line).unwrap();
                    fs::write(folder.join("name").join(&name), &line).unwrap();
                }
                folder.join("docker")
            }
            Cli::Real(path, _) => path.to_owned(),
        };
        let scheme = if ca.is_some() { "wss" } else { "ws" };
        let url = format!("{scheme}://127.0.0.1:{}/agent", server.port);
        let beat = BEAT_S.to_string();
        let mut command = match &rival.program {
            Program::Agent(binary, flags) => {
                let identity = format!("{{\"node_id\":\"{node}\",\"spec_key\":\"{}\"}}", "07".repeat(32));
                fs::write(folder.join("state/node.json"), identity).unwrap();
                fs::write(folder.join("agent.json"), "{}").unwrap();
                let mut command = Command::new(binary);
                let under = |part: &str| folder.join(part).to_str().unwrap().to_owned();
                let runtime = if let Cli::Real(_, runtime) = cli { runtime } else { "runc" };
                for (flag, value) in [
                    ("config", under("agent.json")),
                    ("url", url.clone()),
                    ("state-dir", under("state")),
                    ("control-socket", under("agent.sock")),
                    ("log-dir", under("logs")),
                    ("container-cli", path.to_str().unwrap().to_owned()),
                    ("runtime", runtime.to_owned()),
                    ("instance", node.clone()),
                    ("data-path", under("")),
                    ("min-free-gb", "0".to_owned()),
                    ("log", "warn".to_owned()),
                    ("ca-file", ca.map_or_else(String::new, |ca| ca.to_str().unwrap().to_owned())),
                ] {
                    if flags.contains(&format!("--{flag}")) && !value.is_empty() {
                        command.arg(format!("--{flag}={value}"));
                    }
                }
                command
            }
            Program::NodeJs(script) => {
                let mut command = Command::new("node");
                command.arg(script).args([&url, &node]).arg(&path).arg(&beat);
                command
            }
            Program::Go(binary) => {
                let mut command = Command::new(binary);
                command.args([&url, &node]).arg(&path).arg(&beat);
                command
            }
            Program::Floor(binary) => {
                let mut command = Command::new(binary);
                command.args([&server.port.to_string(), &node, &beat]);
                command
            }
        };
        if let Some(ca) = ca {
            command.env("NODE_EXTRA_CA_CERTS", ca).env("SSL_CERT_FILE", ca);
        }
        let log = fs::File::create(folder.join("log")).unwrap();
        let child = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log).spawn();
        Self { node, folder: folder.to_owned(), child: child.expect("a rival starts") }
    }

    /// Waits until it is connected, has sent a heartbeat, and makes no more calls.
    pub fn settle(&self, server: &Server) {
        let beat = server.wait(&self.node, 0, START, |message| message.kind == "heartbeat");
        assert!(
            beat.is_some(),
            "{} sends no heartbeat: see {}",
            self.node,
            self.folder.join("log").display()
        );
        let end = Instant::now() + START;
        let calls = || fs::metadata(self.folder.join("calls")).map_or(0, |file| file.len());
        let (mut seen, mut since) = (calls(), Instant::now());
        while since.elapsed() < QUIET && Instant::now() < end {
            std::thread::sleep(Duration::from_millis(50));
            if calls() != seen {
                (seen, since) = (calls(), Instant::now());
            }
        }
    }

    /// The calls of the stand-in since `since_ns` that have ended, the earliest first.
    pub fn calls(&self, since_ns: u64) -> Vec<Call> {
        let text = fs::read_to_string(self.folder.join("calls")).unwrap_or_default();
        let mut open: BTreeMap<&str, Vec<u64>> = BTreeMap::new();
        let mut calls = Vec::new();
        for line in text.lines() {
            let [what, verb, at] = line.split(' ').collect::<Vec<_>>()[..] else { continue };
            let at: u64 = at.parse().unwrap();
            match what {
                "B" => open.entry(verb).or_default().push(at),
                // Of calls with one verb that overlap it does not matter which is which.
                _ => {
                    let Some(began_ns) = open.get_mut(verb).and_then(Vec::pop) else { continue };
                    calls.push(Call { verb: verb.to_owned(), began_ns, ended_ns: at });
                }
            }
        }
        calls.retain(|call| call.began_ns >= since_ns && call.ended_ns <= now_ns());
        calls.sort_by_key(|call| call.began_ns);
        calls
    }

    /// Resident memory and the private and dirty part of it, in bytes.
    pub fn memory(&self) -> (f64, f64) {
        let text = fs::read_to_string(format!("/proc/{}/smaps_rollup", self.child.id())).unwrap();
        let field = |name: &str| -> f64 {
            let line = text.lines().find(|line| line.starts_with(name)).unwrap();
            line.split_whitespace().nth(1).unwrap().parse::<f64>().unwrap() * 1024.0
        };
        (field("Rss:"), field("Private_Dirty:"))
    }

    /// Processor time of it and of its children that have ended, in seconds (proc(5), `stat`, fields 14 to 17).
    pub fn cpu(&self) -> f64 {
        let text = fs::read_to_string(format!("/proc/{}/stat", self.child.id())).unwrap();
        let fields = text.rsplit_once(')').unwrap().1.split_whitespace().skip(11).take(4);
        let ticks: u64 = fields.map(|field| field.parse::<u64>().unwrap()).sum();
        ticks as f64 / TICKS_A_SECOND
    }

    /// How often its threads gave up the processor by themselves, by their names: woke, and slept again.
    pub fn wakeups(&self) -> BTreeMap<String, f64> {
        let mut wakeups = BTreeMap::new();
        for task in fs::read_dir(format!("/proc/{}/task", self.child.id())).unwrap() {
            let Ok(text) = fs::read_to_string(task.unwrap().path().join("status")) else { continue };
            let field = |name: &str| {
                let line = text.lines().find(|line| line.starts_with(name)).unwrap();
                line.split_once(':').unwrap().1.trim().to_owned()
            };
            let count: f64 = field("voluntary_ctxt_switches").parse().unwrap();
            *wakeups.entry(field("Name")).or_default() += count;
        }
        wakeups
    }
}
