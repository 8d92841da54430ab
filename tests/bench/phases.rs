//! What is measured, and how.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use serde_json::json;

use crate::report::Figures;
use crate::rivals::{BEAT_S, Cli, Program, Rival, Running};
use crate::server::{Server, now_ns};

/// How long a command may take.
const ANSWER: Duration = Duration::from_secs(60);
/// The pause between two commands with the stand-in, so that what follows one does not fall into the next.
const PAUSE: Duration = Duration::from_millis(15);
/// The largest message that the protocol allows, in bytes.
const MESSAGE_MAX: usize = 4 * 1024 * 1024;
const IMAGE: &str = "docker.io/bench/image:1";

/// Commands with the stand-in: what a rival adds before a call, after it, and between the calls of a stop.
pub fn latency(
    folder: &Path,
    stand_in: &Path,
    rivals: &[Rival],
    counts: &[usize],
    rounds: usize,
    commands: usize,
    figures: &mut Figures,
) {
    let server = Server::start(None);
    for round in 0..rounds {
        for &count in counts {
            for rival in rivals.iter().filter(|rival| rival.can_deploy()) {
                let place = folder.join(format!("latency-{round}-{count}-{}", rival.name));
                let running = Running::start(rival, &place, &server, None, Cli::StandIn(stand_in, count));
                running.settle(&server);
                let mut samples: BTreeMap<&str, Vec<f64>> = BTreeMap::new();
                for n in 0..commands {
                    let replica = format!("r{n}");
                    let mut command = |kind: &str, last: &[&str], names: [&'static str; 3]| {
                        let deploy =
                            json!({ "replica_id": replica, "image": IMAGE, "gpu_count": 0, "env_vars": {} });
                        let payload =
                            if kind == "deploy" { deploy } else { json!({ "replica_id": replica }) };
                        let sent = server.send(&running.node, kind, &payload);
                        let answer = format!("{kind}_result");
                        let (arrived, said) = server
                            .wait(&running.node, sent, ANSWER, |m| {
                                m.kind == answer && m.payload["replica_id"] == replica.as_str()
                            })
                            .expect("a command is answered");
                        assert!(said["status"] != "failed", "{}: {said}", rival.name);
                        std::thread::sleep(PAUSE);
                        let calls = running.calls(sent);
                        let ours: Vec<_> = calls.iter().filter(|call| call.ended_ns < arrived).collect();
                        let first = ours.first().expect("the CLI was called").began_ns;
                        let last =
                            ours.iter().rfind(|call| last.contains(&call.verb.as_str())).unwrap().ended_ns;
                        for (name, from, to) in
                            [(names[0], sent, first), (names[1], last, arrived), (names[2], sent, arrived)]
                        {
                            samples.entry(name).or_default().push((to - from) as f64 / 1e6);
                        }
                    };
                    let names = ["command received → CLI started", "CLI ended → result on the wire", ""];
                    command("deploy", &["run"], names);
                    command("stop", &["ps", "rm", "stop"], ["", "", "stop received → stopped on the wire"]);
                }
                samples.remove("");
                for (name, samples) in samples {
                    figures.add(name, rival.name, Some(count), "ms", median(samples));
                }
                drop(running);
                let _ = fs::remove_dir_all(&place);
            }
        }
    }
}

/// Deploys and stops with a real engine, each rival's beside the same by hand.
pub fn engine(
    folder: &Path,
    cli: &Path,
    runtime: &str,
    image: &str,
    rivals: &[Rival],
    rounds: usize,
    figures: &mut Figures,
) {
    let server = Server::start(None);
    let call = |args: &[&str]| {
        let began = Instant::now();
        let output = Command::new(cli).args(args).output().expect("the CLI runs");
        let error = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.success(), "{args:?}: {error}");
        began.elapsed().as_secs_f64() * 1e3
    };
    for round in 0..=rounds {
        let mut add = |what: &str, rival: &str, value: f64| {
            // The first round only warms what is shared.
            if round > 0 {
                figures.add(what, rival, None, "ms", value);
            }
        };
        let name = format!("bench-bare-{round}");
        let runtime_flag = format!("--runtime={runtime}");
        add(
            "deploy",
            "bare CLI",
            call(&["run", "-d", "--name", &name, &runtime_flag, "--pull=never", image]),
        );
        add("stop", "bare CLI", call(&["stop", "-t", "10", &name]) + call(&["rm", &name]));
        for rival in rivals.iter().filter(|rival| rival.can_deploy()) {
            let place = folder.join(format!("engine-{round}-{}", rival.name));
            let running = Running::start(rival, &place, &server, None, Cli::Real(cli, runtime));
            running.settle(&server);
            let replica = format!("bench-{round}-{}", rival.name.replace([' ', '.'], "-"));
            for kind in ["deploy", "stop"] {
                let deploy = json!({ "replica_id": replica, "image": image, "gpu_count": 0, "env_vars": {} });
                let payload = if kind == "deploy" { deploy } else { json!({ "replica_id": replica }) };
                let sent = server.send(&running.node, kind, &payload);
                let answer = format!("{kind}_result");
                let (arrived, said) =
                    server.wait(&running.node, sent, ANSWER, |m| m.kind == answer).expect("it is answered");
                assert!(said["status"] != "failed", "{}: {said}", rival.name);
                add(kind, rival.name, (arrived - sent) as f64 / 1e6);
                // What a rival does after a deploy (asking for the process) is no part of the stop.
                std::thread::sleep(Duration::from_millis(500));
            }
            drop(running);
            let _ = fs::remove_dir_all(&place);
        }
    }
}

/// All of them beside each other, connected by TLS (the floor has none) and idle, or with all workers hung.
pub fn idle(
    folder: &Path,
    stand_in: &Path,
    rivals: &[Rival],
    counts: &[usize],
    seconds: u64,
    figures: &mut Figures,
) {
    let (ca, config) = certificate(folder);
    let (secured, plain) = (Server::start(Some(config)), Server::start(None));
    let mut started = Vec::new();
    for rival in rivals {
        let all = counts.iter().map(|count| (*count, false)).chain([(0, true)]);
        // The floor knows no replicas, and does nothing that could hang.
        let all = all.filter(|(count, hung)| rival.can_deploy() || *count == 0 && !hung);
        for (count, hung) in all {
            let place =
                folder.join(format!("idle-{}-{count}-{}", rival.name, if hung { "hung" } else { "well" }));
            let (server, ca) = if rival.can_deploy() { (&secured, Some(&*ca)) } else { (&plain, None) };
            let running = Running::start(rival, &place, server, ca, Cli::StandIn(stand_in, count));
            started.push((rival, count, hung, running, server));
        }
    }
    for (.., hung, running, server) in &started {
        running.settle(server);
        if *hung {
            fs::write(running.folder.join("hang"), "").unwrap();
            for n in 0..32 {
                let deploy =
                    json!({ "replica_id": format!("h{n}"), "image": IMAGE, "gpu_count": 0, "env_vars": {} });
                server.send(&running.node, "deploy", &deploy);
            }
        }
    }
    let began = now_ns();
    let cpu: Vec<(f64, BTreeMap<String, f64>)> =
        started.iter().map(|(.., running, _)| (running.cpu(), running.wakeups())).collect();
    std::thread::sleep(Duration::from_secs(seconds));
    let hours = seconds as f64 / 3600.0;
    for ((rival, count, hung, running, server), (cpu, wakeups)) in started.iter().zip(cpu) {
        let scene = match (count, hung) {
            (_, true) => "all workers hung",
            (500.., false) => "500 replicas",
            (_, false) => "idle",
        };
        let beats: Vec<u64> = server.arrivals(&running.node, "heartbeat");
        for late in lateness(&beats) {
            figures.add(&format!("heartbeat lateness, {scene}"), rival.name, None, "ms", late);
        }
        if *hung {
            let missed =
                (seconds / BEAT_S).saturating_sub(beats.iter().filter(|at| **at > began).count() as u64);
            figures.add("heartbeats missed, all workers hung", rival.name, None, "", missed as f64);
            continue;
        }
        let (resident, dirty) = running.memory();
        figures.add("resident", rival.name, Some(*count), "MB", resident / 1e6);
        figures.add("private and dirty", rival.name, Some(*count), "MB", dirty / 1e6);
        figures.add(
            "processor time in an hour",
            rival.name,
            Some(*count),
            "s",
            (running.cpu() - cpu) / hours,
        );
        let mut all = 0.0;
        for (thread, later) in running.wakeups() {
            let more = (later - wakeups.get(&thread).copied().unwrap_or(0.0)) / hours;
            all += more;
            if rival.name == "agent" && more > 0.0 {
                figures.add(&format!("wake-ups in an hour of {thread}"), rival.name, Some(*count), "", more);
            }
        }
        figures.add("wake-ups in an hour", rival.name, Some(*count), "", all);
        let mut verbs: BTreeMap<String, usize> = BTreeMap::new();
        for call in running.calls(began) {
            *verbs.entry(call.verb).or_default() += 1;
        }
        let calls = verbs.values().sum::<usize>() as f64;
        figures.add("CLI calls in an hour", rival.name, Some(*count), "", calls / hours);
        for (verb, calls) in verbs {
            let figure = format!("CLI calls in an hour of {verb}");
            figures.add(&figure, rival.name, Some(*count), "", calls as f64 / hours);
        }
    }
}

/// How long after its own schedule each heartbeat came, in milliseconds: the earliest shows where that is.
fn lateness(beats: &[u64]) -> Vec<f64> {
    // The first comes with the connection.
    let beats = beats.iter().skip(1).zip(1..);
    let offsets: Vec<f64> = beats.map(|(at, n)| *at as f64 / 1e6 - (n * BEAT_S * 1000) as f64).collect();
    let earliest = offsets.iter().copied().fold(f64::INFINITY, f64::min);
    offsets.into_iter().map(|offset| offset - earliest).collect()
}

/// Each agent's heartbeats while it gets messages of nearly 4 MiB as fast as it takes them, beside the floor, which
/// gets none.
pub fn flood(folder: &Path, stand_in: &Path, rivals: &[Rival], seconds: u64, figures: &mut Figures) {
    let floor = rivals.iter().find(|rival| !rival.can_deploy());
    for rival in rivals.iter().filter(|rival| matches!(rival.program, Program::Agent(..))) {
        let server = Server::start(None);
        let start = |rival: &Rival| {
            let place = folder.join(format!("flood-{}", rival.name));
            Running::start(rival, &place, &server, None, Cli::StandIn(stand_in, 0))
        };
        let (flooded, floor) = (start(rival), floor.map(start));
        flooded.settle(&server);
        let sent = server.flood(&flooded.node, MESSAGE_MAX, Duration::from_secs(seconds));
        figures.add("messages of 4 MiB in a second", rival.name, None, "", sent as f64 / seconds as f64);
        for (running, name) in
            [Some((&flooded, rival.name)), floor.as_ref().map(|floor| (floor, "floor"))].into_iter().flatten()
        {
            let beats = server.arrivals(&running.node, "heartbeat");
            for late in lateness(&beats) {
                figures.add("heartbeat lateness, flooded", name, None, "ms", late);
            }
        }
        drop((flooded, floor));
        fs::remove_dir_all(folder.join("flood-floor")).unwrap();
    }
}

/// Instructions of the core for one deploy and its heartbeat-free way to a confirmed result, under valgrind; none where it
/// is missing. See [`crate::events`].
pub fn instructions(folder: &Path, counts: &[usize], figures: &mut Figures) {
    for &count in counts {
        let run = |deploys: usize| {
            let output = Command::new("valgrind")
                .args(["--tool=callgrind", "--toggle-collect=vectorlay::core::Core::handle"])
                .arg(format!("--callgrind-out-file={}", folder.join("callgrind").display()))
                .arg(std::env::current_exe().unwrap())
                .args(["events", &count.to_string(), &deploys.to_string()])
                .output()
                .ok()?;
            let text = String::from_utf8_lossy(&output.stderr).into_owned();
            let line = text.lines().find_map(|line| line.split_once("Collected : "))?;
            line.1.trim().parse::<f64>().ok().filter(|count| *count > 0.0)
        };
        // What the start costs is in both.
        let (few, many) = (5, 15);
        let Some((first, second)) = run(few).zip(run(many)) else {
            eprintln!("skipped: instructions of the core need valgrind, and a binary that it can read");
            return;
        };
        let each = (second - first) / (many - few) as f64;
        figures.add("instructions of the core for a deploy", "agent", Some(count), "", each);
    }
}

fn certificate(folder: &Path) -> (std::path::PathBuf, std::sync::Arc<rustls::ServerConfig>) {
    let path = |name: &str| folder.join(name).to_str().unwrap().to_owned();
    let (ca, key, der, key_der) = (path("ca.pem"), path("key.pem"), path("ca.der"), path("key.der"));
    let openssl = |args: &[&str]| {
        let output = Command::new("openssl").args(args).output().expect("openssl is there");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    };
    openssl(&[
        "req",
        "-x509",
        "-newkey",
        "ec",
        "-pkeyopt",
        "ec_paramgen_curve:prime256v1",
        "-nodes",
        "-days",
        "2",
        "-subj",
        "/CN=bench",
        "-addext",
        "subjectAltName=IP:127.0.0.1",
        "-keyout",
        &key,
        "-out",
        &ca,
    ]);
    openssl(&["x509", "-in", &ca, "-outform", "DER", "-out", &der]);
    openssl(&["pkcs8", "-topk8", "-nocrypt", "-in", &key, "-outform", "DER", "-out", &key_der]);
    let chain = vec![fs::read(&der).unwrap().into()];
    let key = rustls::pki_types::PrivateKeyDer::try_from(fs::read(&key_der).unwrap()).unwrap();
    let provider = std::sync::Arc::new(rustls::crypto::ring::default_provider());
    let config = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(chain, key)
        .unwrap();
    (ca.into(), std::sync::Arc::new(config))
}

fn median(mut samples: Vec<f64>) -> f64 {
    samples.sort_by(f64::total_cmp);
    samples.get(samples.len() / 2).copied().unwrap_or(f64::NAN)
}
