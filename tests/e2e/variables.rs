//! A container's variables arrive byte for byte, nobody else on the machine sees them, and none of them steers the
//! programs that the engine runs on the host.

use std::collections::BTreeMap;
use std::os::unix::process::CommandExt as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread::JoinHandle;

use serde_json::{Value, json};

use crate::support::control_plane::WAIT;
use crate::support::wait::wait_until;
use crate::world::World;

/// What no one but the container may see. In every secret value of a test.
const CANARY: &str = "c4n4ry-0f-th3-t3n4nt";

#[test]
fn variables_arrive_byte_for_byte_and_nobody_else_sees_them() {
    let name = "variables_arrive_byte_for_byte_and_nobody_else_sees_them";
    // Everything that can be logged is logged.
    let Some((world, ())) = World::with(name, |node, _| _ = node.set("log", "trace")) else { return };
    let before = world.deploy("before", &json!({}));
    let secret = |text: &str| text.replace('@', CANARY);
    let long = format!("{CANARY}{}", "x".repeat(100 * 1024 - CANARY.len()));
    let values = [
        ("EMPTY", String::new()),
        ("LINES", secret("@\ntwo\n\n")),
        ("CRLF", secret("@\r\ntwo\r\n")),
        ("QUOTES", secret("\"@\" 'single' `back`")),
        ("UNBALANCED", secret("\"@")),
        ("LEADING", secret("  \t@")),
        ("TRAILING", secret("@ \t ")),
        ("BLANK", "   ".to_owned()),
        ("TABS", secret("\t@\t")),
        ("HASH", secret("# @")),
        ("EQUALS", secret("=@==b")),
        ("UTF8", secret("grüße @ 日本 🦀")),
        ("BACKSLASH", secret("@\\n\\")),
        ("DOLLAR", secret("$HOME ${HOME} $(id) @")),
        ("COMMA", secret("@,b")),
        ("ESCAPE", secret("\u{1b}[31m@\u{1}")),
        ("JSON", secret("{\"a\": [1, \"@\"]}")),
        ("lower.case-name", secret("@")),
        ("LONG", long),
        // Names that would steer a host's program, with values that need not pass through one.
        ("DOCKER_HOST", secret("tcp://@")),
        ("LD_PRELOAD", secret("/@.so")),
        ("HTTPS_PROXY", secret("http://@")),
    ];
    let mut env: BTreeMap<&str, Value> = values.iter().map(|(name, value)| (*name, json!(value))).collect();
    // What is no text is taken as its JSON text, null as the empty one.
    let others =
        [("NUMBER", json!(17)), ("FRACTION", json!(0.5)), ("TRUE", json!(true)), ("NULL", Value::Null)];
    env.extend(others);

    // The watch itself sees what it is to see.
    let watch = Watch::start();
    let mut bait = std::process::Command::new("sleep").arg("1000").arg0(CANARY).spawn().unwrap();
    let before_it = watch.rounds();
    wait_until(WAIT, "the watch has looked", || watch.rounds() > before_it + 1);
    bait.kill().unwrap();
    bait.wait().unwrap();
    assert_ne!(watch.stop(), [""; 0]);

    let watch = Watch::start();
    let container = world.deploy("secret", &json!({"env_vars": env}));
    let after = world.deploy("after", &json!({}));
    assert!(watch.rounds() > 0);
    assert_eq!(watch.stop(), [""; 0], "these command lines had a variable's value");

    let environ = world.engine.inside(&container, &["/bin/cat", "/proc/1/environ"]);
    let seen: Vec<&str> = environ.split(|byte| *byte == 0).map(|one| str::from_utf8(one).unwrap()).collect();
    let texts = [("NUMBER", "17"), ("FRACTION", "0.5"), ("TRUE", "true"), ("NULL", "")];
    let texts = texts.map(|(name, value)| (name, value.to_owned()));
    for (name, value) in values.iter().chain(&texts) {
        let got: Vec<_> = seen.iter().filter(|one| one.split('=').next() == Some(name)).collect();
        assert_eq!(got, [&format!("{name}={value}")], "{name}");
    }

    for other in [&before, &after] {
        assert!(
            !world.engine.inspect(other).to_string().contains(CANARY),
            "in the spec of another container"
        );
    }
    assert!(!world.agent.text().contains(CANARY), "in the log");
    for entry in std::fs::read_dir(world.node.state()).unwrap() {
        let path = entry.unwrap().path();
        let bytes = std::fs::read(&path).unwrap();
        assert!(!bytes.windows(CANARY.len()).any(|part| part == CANARY.as_bytes()), "in {}", path.display());
    }
}

#[test]
fn a_variable_that_would_steer_the_host_is_refused() {
    let Some(world) = World::start("a_variable_that_would_steer_the_host_is_refused") else { return };
    let lines = format!("{CANARY}\nmore");
    let names = [
        "PATH",
        "HOME",
        "LD_PRELOAD",
        "LD_LIBRARY_PATH",
        "DOCKER_HOST",
        "DOCKER_CONFIG",
        "NERDCTL_TOML",
        "CONTAINERD_ADDRESS",
        "CONTAINERD_NAMESPACE",
        "CNI_PATH",
        "NETCONFPATH",
        "TMPDIR",
        "GODEBUG",
        "XTABLES_LIBDIR",
        "BUILDKIT_HOST",
        "https_proxy",
        "SSL_CERT_FILE",
        "XDG_RUNTIME_DIR",
        "NOTIFY_SOCKET",
    ];
    for name in names {
        let error = world.fail("a", &json!({"env_vars": {name: lines}}), "invalid");
        assert!(error.contains(name) && !error.contains(CANARY), "{error}");
    }
    for name in ["", "-v", "--privileged", "A B", "A=B", "A\nB", "A\0B"] {
        let error = world.fail("a", &json!({"env_vars": {name: CANARY}}), "invalid");
        assert!(!error.contains(CANARY), "{error}");
    }
    for value in [json!("a\0b"), json!(["list"]), json!({"an": "object"}), json!("x".repeat(200_000))] {
        world.fail("a", &json!({"env_vars": {"NAME": value}}), "invalid");
    }
    assert!(!world.agent.text().contains(CANARY));
    // Nothing of that did any harm to the connection.
    assert_eq!(world.wait_node(WAIT, |_| true)["connects"], 1);
}

/// Looks at the command line of every process, again and again, for the canary.
struct Watch {
    over: Arc<AtomicBool>,
    rounds: Arc<AtomicUsize>,
    thread: JoinHandle<Vec<String>>,
}

impl Watch {
    fn start() -> Self {
        let over = Arc::new(AtomicBool::new(false));
        let rounds = Arc::new(AtomicUsize::new(0));
        let (ends, counts) = (Arc::clone(&over), Arc::clone(&rounds));
        let thread = std::thread::spawn(move || {
            let mut seen = Vec::new();
            while !ends.load(Ordering::Relaxed) {
                for entry in std::fs::read_dir("/proc").unwrap().flatten() {
                    let line = std::fs::read(entry.path().join("cmdline")).unwrap_or_default();
                    let line = String::from_utf8_lossy(&line);
                    if line.contains(CANARY) {
                        seen.push(format!("{}: {line}", entry.path().display()));
                    }
                }
                counts.fetch_add(1, Ordering::Relaxed);
            }
            seen
        });
        Self { over, rounds, thread }
    }

    fn rounds(&self) -> usize {
        self.rounds.load(Ordering::Relaxed)
    }

    fn stop(self) -> Vec<String> {
        self.over.store(true, Ordering::Relaxed);
        self.thread.join().unwrap()
    }
}
