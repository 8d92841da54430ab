//! No secret leaves the places where it has to be. Every secret there is is planted, a deploy of each kind goes through, and
//! then it is looked for where secrets are usually found.
//!
//! | secret | where it has to be |
//! |---|---|
//! | organisation token, the proxy's password, the key in the URL's query | the configuration file |
//! | node token | node.json |
//! | a registry's password | `config.json` of a pull, while that lasts: root's alone, as its folder |
//! | a variable | the container: its processes, its specification (`inspect`, and what the engine keeps of it) |
//! | a variable of several lines | besides that the environment of the call that starts the container, and of the engine's hooks for it, which get the same |
//!
//! Nothing else on the machine may hold one, and no command line may. There is no key of a TLS client.

use std::collections::BTreeSet;
use std::fs;
use std::io::{Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::process::ExitStatusExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use rustix::process::Signal;
use serde_json::{Value, json};

use crate::support::agent::Node;
use crate::support::control_plane::{ControlPlane, WAIT};
use crate::support::engine::EngineTurn;
use crate::support::images::layer;
use crate::support::processes;
use crate::support::registry::{Manner, Registry};
use crate::support::wait::wait_until;
use crate::world::{World, connected};

const TOKEN: &str = "c4n4ry-0rg4n1s4t10n";
const PROXY: &str = "c4n4ry-pr0xy";
const QUERY: &str = "c4n4ry-qu3ry";
const PASSWORD: &str = "c4n4ry-r3g1stry";
const VARIABLE: &str = "c4n4ry-v4r14bl3";
const LINES: &str = "c4n4ry-l1n3s";
/// The user of both passwords: in base64 they stand behind it.
const USER: &str = "user";
/// How long a pull goes on, in seconds, for the looks at what is there meanwhile.
const PULL_S: usize = 3;

/// A secret: what it is, and the texts that give it away.
struct Canary {
    what: &'static str,
    texts: Vec<String>,
}

fn canaries(node_token: &str) -> Vec<Canary> {
    let plain = |what, text: &str| Canary { what, texts: vec![text.to_owned()] };
    let login = |what, text: &str| Canary {
        what,
        texts: vec![text.to_owned(), data_encoding::BASE64.encode(format!("{USER}:{text}").as_bytes())],
    };
    vec![
        plain("organisation token", TOKEN),
        plain("query", QUERY),
        plain("node token", node_token),
        plain("variable", VARIABLE),
        plain("lines", LINES),
        login("proxy", PROXY),
        login("password", PASSWORD),
    ]
}

/// Which canaries stand in `text`.
fn heard(canaries: &[Canary], text: &str) -> BTreeSet<&'static str> {
    let stands = |canary: &&Canary| canary.texts.iter().any(|one| text.contains(one.as_str()));
    canaries.iter().filter(stands).map(|canary| canary.what).collect()
}

/// The files below `places` in which a canary stands.
fn files(canary: &Canary, places: &[PathBuf]) -> BTreeSet<PathBuf> {
    let mut grep = Command::new("grep")
        .args(["--recursive", "--files-with-matches", "--text", "--fixed-strings", "--no-messages"])
        // Not on a command line, which is looked at as well.
        .args(["--devices=skip", "--file=-", "--"])
        .args(places)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    grep.stdin.take().unwrap().write_all(canary.texts.join("\n").as_bytes()).unwrap();
    let output = grep.wait_with_output().unwrap();
    String::from_utf8(output.stdout).unwrap().lines().map(PathBuf::from).collect()
}

/// An HTTP proxy for one control plane, which wants the password (RFC 9110, sections 9.3.6 and 11.7).
fn start_proxy(target: String) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let wanted = data_encoding::BASE64.encode(format!("{USER}:{PROXY}").as_bytes());
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let (target, wanted) = (target.clone(), wanted.clone());
            std::thread::spawn(move || tunnel(stream.unwrap(), &target, &wanted));
        }
    });
    address
}

fn tunnel(mut client: TcpStream, target: &str, wanted: &str) -> Option<()> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        let mut byte = [0];
        client.read_exact(&mut byte).ok()?;
        head.push(byte[0]);
    }
    if !String::from_utf8_lossy(&head).contains(wanted) {
        return client.write_all(b"HTTP/1.1 407 Proxy Authentication Required\r\n\r\n").ok();
    }
    let mut server = TcpStream::connect(target).ok()?;
    client.write_all(b"HTTP/1.1 200 OK\r\n\r\n").ok()?;
    let (mut up, mut down) = (client.try_clone().ok()?, server.try_clone().ok()?);
    std::thread::spawn(move || std::io::copy(&mut up, &mut down));
    std::io::copy(&mut server, &mut client).ok()?;
    None
}

#[test]
fn no_secret_leaves_its_place() {
    let test = "no_secret_leaves_its_place";
    let Some(layer) = layer(test) else { return };
    let Some(engine) = EngineTurn::alone(test) else { return };
    let registry =
        Registry::start(&engine, &layer, &[("private", Manner::Slow(PULL_S)), ("broken", Manner::Silent)]);
    let mut node = Node::new(test);
    engine.give_to(&mut node);
    let plane = ControlPlane::start(&["--token", TOKEN]);
    let proxy = start_proxy(plane.address().to_owned());
    let settings = json!({
        "url": format!("{}?key={QUERY}", plane.url()),
        "token": TOKEN,
        "proxy": format!("http://{USER}:{PROXY}@{proxy}"),
        "metrics_file": node.path().join("metrics.prom"),
        "images": format!("*,{}", registry.address),
        "pull_stall_s": 5,
        "log_driver": "auto",
    });
    node.unset("images").set("log", "trace");
    fs::write(node.file(), settings.to_string()).unwrap();
    fs::set_permissions(node.file(), fs::Permissions::from_mode(0o600)).unwrap();
    let agent = node.start();
    let id = connected(&plane);
    let mut world = World { agent, plane, node, id, engine };

    let identity = fs::read_to_string(world.node.identity()).unwrap();
    let identity: Value = serde_json::from_str(&identity).unwrap();
    let canaries = Arc::new(canaries(identity["node_token"].as_str().unwrap()));
    // The look itself sees what it is to see.
    assert_eq!(heard(&canaries, &fs::read_to_string(world.node.file()).unwrap()).len(), 3);

    let watch = Watch::start(canaries.clone(), world.agent.pid(), world.plane.pid());
    let login = json!({"server": registry.address, "username": USER, "password": PASSWORD});
    let variables = json!({"PLAIN": VARIABLE, "LINES": format!("{LINES}\nsecond line")});
    let private = json!({
        "image": format!("{}/private:1", registry.address), "registry_auth": login, "env_vars": variables,
    });
    let request = world.ask("private", &private);
    // While it is pulled, the password lies there, and is nobody else's.
    let pulls = vec![PathBuf::from("/run/vectorlay/pulls")];
    let password = canaries.iter().find(|canary| canary.what == "password").unwrap();
    let mut lies = BTreeSet::new();
    wait_until(WAIT, "the pull's credentials are there", || {
        lies = files(password, &pulls);
        !lies.is_empty()
    });
    for file in &lies {
        assert_eq!(file.file_name().unwrap(), "config.json");
        for (place, mode) in [(file.as_path(), 0o600), (file.parent().unwrap(), 0o700)] {
            // It may be gone by now.
            let found = fs::metadata(place).map(|found| found.permissions().mode() & 0o777);
            assert!(
                found.as_ref().is_ok_and(|found| *found == mode) || found.is_err(),
                "{place:?}: {found:?}"
            );
        }
    }
    assert_eq!(world.result(&request)["status"], "running");
    let container = world.engine.containers("private").remove(0);
    // Failures speak most: at the registry, and at the start.
    let mut broken = private.clone();
    broken["image"] = json!(format!("{}/broken:1", registry.address));
    world.fail("broken", &broken, "pull_failed");
    let wrong = json!({"env_vars": variables, "command": ["/no/such/program"]});
    world.fail("wrong", &wrong, "start_failed");
    let said = watch.stop();
    assert_eq!(said.problems, BTreeSet::new());
    for seen in ["the container has the variable", "the call that starts it has the lines"] {
        assert!(said.legitimate.contains(seen), "{seen}: {:?}", said.legitimate);
    }
    assert_eq!(files(password, &pulls), BTreeSet::new(), "the pull is over");

    logs_and_answers(&world, &canaries);
    files_of_the_agent(&world, &canaries);
    labels_and_specifications(&world, &canaries, &container);
    files_of_the_engine(&world, &canaries, &container);

    // Nothing of its memory is left when it crashes.
    world.agent.signal(Signal::ABORT);
    let ended = world.agent.ended(WAIT).unwrap();
    assert_eq!((ended.signal(), ended.core_dumped()), (Some(Signal::ABORT.as_raw()), false));
    let image = format!("{}/private:1", registry.address);
    world.engine.clear();
    world.engine.call(&["rmi", "--force", &image]);
}

/// What the agent says: its log at trace, to the control plane, and to an operator.
fn logs_and_answers(world: &World, canaries: &[Canary]) {
    let none = BTreeSet::new();
    let log = world.agent.text();
    assert!(log.contains(" DEBUG "), "{log}");
    assert_eq!(heard(canaries, &log), none, "in the log");
    for event in ["deploy_result", "replica_status", "heartbeat", "system_info"] {
        let sent = Value::from(world.events(event)).to_string();
        assert_eq!(heard(canaries, &sent), none, "in {event}");
    }
    assert_eq!(heard(canaries, &world.logs("private", 100).to_string()), none, "in the answer to logs");
    let mut found = Vec::new();
    for command in [
        "config",
        "check",
        "info",
        "status",
        "replicas",
        "history",
        "metrics",
        "report",
        "logs private",
        "config --json",
        "check --json",
        "info --json",
        "status --json",
        "replicas --json",
        "history --json",
    ] {
        let words: Vec<&str> = command.split(' ').collect();
        let (_, said) = world.node.said(&words);
        assert!(!said.is_empty() || command == "logs private", "{command} says something");
        found.extend(heard(canaries, &said).into_iter().map(|what| format!("{what} in what {command} says")));
    }
    assert_eq!(found, [""; 0]);
}

/// State, logs, sockets, metrics: each canary in its own file alone, which is root's alone.
fn files_of_the_agent(world: &World, canaries: &[Canary]) {
    let places = [world.node.path().to_owned(), PathBuf::from("/run/vectorlay")];
    for canary in canaries {
        let wanted: BTreeSet<PathBuf> = match canary.what {
            "organisation token" | "proxy" | "query" => [world.node.file()].into(),
            "node token" => [world.node.identity()].into(),
            _ => BTreeSet::new(),
        };
        let found = files(canary, &places);
        assert_eq!(found, wanted, "{}", canary.what);
        for file in found {
            let mode = fs::metadata(&file).unwrap().permissions().mode();
            assert_eq!(mode & 0o077, 0, "{}", file.display());
        }
    }
    for folder in ["state", "logs", "run"] {
        let place = world.node.path().join(folder);
        // Without a log driver of files there is no folder of logs.
        let mode = fs::metadata(&place).map(|found| found.permissions().mode() & 0o077);
        assert!(mode.as_ref().is_ok_and(|mode| *mode == 0) || folder == "logs" && mode.is_err(), "{place:?}");
    }
}

/// Labels hold nothing; the container's own specification has its variables, and nothing else has them.
fn labels_and_specifications(world: &World, canaries: &[Canary], container: &str) {
    let none = BTreeSet::new();
    let mut shown = world.engine.inspect(container);
    assert_eq!(heard(canaries, &shown["Config"]["Labels"].to_string()), none, "in a label");
    let variables = shown["Config"]["Env"].take().to_string();
    // nerdctl 1.7 does not show them.
    let found = heard(canaries, &variables);
    assert!(found.is_empty() || found == ["lines", "variable"].into(), "{found:?}");
    assert_eq!(heard(canaries, &shown.to_string()), none, "in inspect");
    if world.engine.is_docker() {
        return;
    }
    let native = world.engine.text(&["container", "inspect", "--mode=native", container]);
    let mut native: Value = serde_json::from_str(&native).unwrap();
    let spec = &mut native[0]["Spec"];
    assert_eq!(heard(canaries, &spec["process"]["env"].take().to_string()), ["lines", "variable"].into());
    // nerdctl gives its hooks the environment that it has itself.
    assert_eq!(heard(canaries, &spec["hooks"].take().to_string()), ["lines"].into());
    assert_eq!(heard(canaries, &native.to_string()), none, "in containerd's record");
}

/// What the engine keeps on disk: the container's variables where its specification is, and no other secret.
fn files_of_the_engine(world: &World, canaries: &[Canary], container: &str) {
    let root = PathBuf::from(format!("/proc/{}/root", world.engine.daemon()));
    let mut places = vec![PathBuf::from(std::env::var_os("VECTORLAY_TEST_ENGINE_DIR").unwrap())];
    // Those that the engine has to itself (`scripts/engine.sh`).
    let own = ["run/containerd", "run/docker", "var/lib/cni", "var/lib/nerdctl", "etc/cni"];
    places.extend(own.iter().map(|place| root.join(place)).filter(|place| place.is_dir()));
    for canary in canaries {
        let found = files(canary, &places);
        if !["variable", "lines"].contains(&canary.what) {
            assert_eq!(found, BTreeSet::new(), "{}", canary.what);
            continue;
        }
        assert!(!found.is_empty(), "{} is in the container's specification", canary.what);
        let other: Vec<&PathBuf> =
            found.iter().filter(|file| !holds_a_specification(file, container)).collect();
        assert!(other.is_empty(), "{} in {other:?}", canary.what);
    }
}

/// containerd's database, which has every specification; of this container the shim's bundle, the record of the runtime (runc keeps
/// the hooks in it), and Docker's.
fn holds_a_specification(file: &Path, container: &str) -> bool {
    let name = file.file_name().unwrap().to_str().unwrap();
    let is_its = file.parent().and_then(Path::file_name).is_some_and(|folder| folder == container);
    name == "meta.db" || is_its && ["config.json", "config.v2.json", "state.json"].contains(&name)
}

/// What the looks at processes came to.
#[derive(Default)]
struct Seen {
    problems: BTreeSet<String>,
    legitimate: BTreeSet<&'static str>,
}

/// Looks at the command line and the environment of every process, again and again, and at what the agent's children may
/// leave behind.
struct Watch {
    over: Arc<AtomicBool>,
    rounds: Arc<AtomicUsize>,
    thread: JoinHandle<Seen>,
}

impl Watch {
    fn start(canaries: Arc<Vec<Canary>>, agent: u32, plane: u32) -> Self {
        let over = Arc::new(AtomicBool::new(false));
        let rounds = Arc::new(AtomicUsize::new(0));
        let (ends, counts) = (Arc::clone(&over), Arc::clone(&rounds));
        let thread = std::thread::spawn(move || {
            let mut seen = Seen::default();
            while !ends.load(Ordering::Relaxed) {
                // The control plane has the token on its command line, as a test may.
                for process in processes::all().iter().filter(|process| process.pid != plane) {
                    look(process, &canaries, agent, &mut seen);
                }
                counts.fetch_add(1, Ordering::Relaxed);
            }
            seen
        });
        Self { over, rounds, thread }
    }

    fn stop(self) -> Seen {
        let now = self.rounds.load(Ordering::Relaxed);
        wait_until(Duration::from_secs(60), "processes are looked at", || {
            self.rounds.load(Ordering::Relaxed) > now
        });
        self.over.store(true, Ordering::Relaxed);
        self.thread.join().unwrap()
    }
}

fn look(process: &processes::Process, canaries: &[Canary], agent: u32, seen: &mut Seen) {
    let place = format!("/proc/{}", process.pid);
    let argv = &process.argv;
    for what in heard(canaries, argv) {
        seen.problems.insert(format!("{what} on a command line: {argv}"));
    }
    let environment = fs::read(format!("{place}/environ")).unwrap_or_default();
    for what in heard(canaries, &String::from_utf8_lossy(&environment)) {
        // What it was started as may be another program than a moment ago; one that has ended cannot be judged.
        let Some(processes::Process { argv, .. }) = processes::read(process.pid) else { continue };
        let namespace = |pid: &str| fs::read_link(format!("/proc/{pid}/ns/pid")).ok();
        let contained = namespace(&process.pid.to_string()) != namespace("self");
        let starts = process.parent == agent && argv.contains(" run ") && argv.contains("--env=LINES");
        match what {
            "variable" | "lines" if contained => {
                seen.legitimate.insert("the container has the variable");
            }
            "lines" if starts => {
                seen.legitimate.insert("the call that starts it has the lines");
            }
            "lines" if argv.contains("internal oci-hook") => {
                seen.legitimate.insert("a hook has the lines");
            }
            _ => {
                seen.problems.insert(format!("{what} in the environment of {argv:?}"));
            }
        }
    }
    if process.pid == agent || process.parent == agent {
        let limits = fs::read_to_string(format!("{place}/limits")).unwrap_or_default();
        let core = limits.lines().find_map(|line| line.strip_prefix("Max core file size"));
        if core.is_some_and(|core| !core.split_whitespace().take(2).all(|limit| limit == "0")) {
            seen.problems.insert(format!("{argv:?} may leave a core dump: {limits}"));
        }
    }
}
