#![allow(
    missing_docs,
    clippy::unwrap_used,
    clippy::print_stdout,
    clippy::print_stderr,
    clippy::disallowed_methods,
    reason = "a program for developers, which says what it measured"
)]
//! Measures the agent beside what could be run in its place. `scripts/bench.sh` builds all of them and calls this.

#[allow(dead_code, reason = "core_model uses all of it")]
#[path = "../core_model/engine.rs"]
mod engine;
mod events;
mod phases;
mod report;
#[allow(dead_code, reason = "the tests of the core use all of it")]
#[path = "../core/rig.rs"]
mod rig;
mod rivals;
mod server;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Instant;

use report::Figures;
use rivals::{Program, Rival};

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    if let [command, replicas, deploys] = &arguments[..]
        && command == "events"
    {
        events::run(replicas.parse().unwrap(), deploys.parse().unwrap());
        return ExitCode::SUCCESS;
    }
    let options: BTreeMap<&str, &str> =
        arguments.iter().filter_map(|argument| argument.strip_prefix("--")?.split_once('=')).collect();
    let path = |name: &str| options.get(name).map(PathBuf::from);
    let folder = path("folder").expect("--folder: where everything is kept meanwhile");
    let stand_in = path("stand-in").expect("--stand-in: the CLI that does nothing");
    let quick = options.contains_key("quick");
    let mut rivals = vec![Rival::agent("agent", &path("agent").expect("--agent: the binary"))];
    rivals.extend(path("previous").map(|binary| Rival::agent("previous", &binary)));
    rivals.extend(path("go").map(|binary| Rival { name: "Go", program: Program::Go(binary) }));
    rivals.extend(path("node").map(|script| Rival { name: "Node.js", program: Program::NodeJs(script) }));
    rivals.extend(path("floor").map(|binary| Rival { name: "floor", program: Program::Floor(binary) }));

    let began = Instant::now();
    let say = |what: &str| eprintln!("{:>4} s  {what}", began.elapsed().as_secs());
    let mut figures = Figures::default();
    for rival in &rivals {
        if let Some(size) = rival.binary().and_then(|binary| std::fs::metadata(binary).ok()) {
            figures.add("binary", rival.name, None, "MB", size.len() as f64 / 1e6);
        }
    }
    for (option, figure, unit) in [
        ("build-clock", "clean build of the tests", "s"),
        ("build-processor", "the same, processor time", "s"),
        ("build-mb", "the same, its folder", "MB"),
    ] {
        if let Some(value) = options.get(option) {
            figures.add(figure, "agent", None, unit, value.parse().expect("a number"));
        }
    }
    let (counts, rounds, commands): (&[usize], _, _) =
        if quick { (&[0, 100], 1, 15) } else { (&[0, 100, 500], 3, 25) };
    say("commands with the stand-in");
    phases::latency(&folder, &stand_in, &rivals, counts, rounds, commands, &mut figures);
    if let (Some(cli), Some(image), false) = (path("cli"), options.get("image"), quick) {
        say("commands with the engine");
        let runtime = options.get("runtime").copied().unwrap_or("runc");
        phases::engine(&folder, &cli, runtime, image, &rivals, 7, &mut figures);
    }
    say("instructions of the core");
    // A build with the checks of debug builds looks at every replica as long as there are at most 100.
    phases::instructions(&folder, if quick { &[101, 1000] } else { &[0, 100, 1000, 10_000] }, &mut figures);
    if !quick {
        say("idle and hung");
        phases::idle(&folder, &stand_in, &rivals, &[0, 20, 200, 500], 185, &mut figures);
        say("flooded");
        phases::flood(&folder, &stand_in, &rivals, 65, &mut figures);
    }
    say("done");

    let mut head: Vec<(String, String)> = ["date", "machine", "kernel", "disk", "versions", "skipped"]
        .iter()
        .filter_map(|name| Some(((*name).to_owned(), (*options.get(*name)?).to_owned())))
        .filter(|(_, value)| !value.is_empty())
        .collect();
    head.push((
        "repetitions".into(),
        format!("{rounds} rounds of {commands} deploys and stops; medians of rounds"),
    ));
    let before = path("compare").map(|path| serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap());
    let json = figures.json(&head);
    write(path("json"), &format!("{json:#}\n"));
    let text = figures.markdown(&head, before.as_ref());
    print!("{text}");
    write(path("markdown"), &text);
    let broken = figures.broken_limits();
    for limit in &broken {
        eprintln!("too slow: {limit}");
    }
    if broken.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn write(path: Option<PathBuf>, text: &str) {
    if let Some(path) = path.as_deref().filter(|path: &&Path| !path.as_os_str().is_empty()) {
        std::fs::write(path, text).unwrap_or_else(|error| panic!("cannot write {}: {error}", path.display()));
    }
}
