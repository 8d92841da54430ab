//! A connection that ends, one that says nothing any more, and a peer that talks nonsense.

use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::kills::ask_something;
use super::report::{Plan, Random, Row};
use super::rig::{BEAT, BEAT_SLACK, Changes, LATE, Rig, SOON};
use crate::support::control_plane::ControlPlane;
use crate::support::engine::EngineTurn;
use crate::support::skip::skip;
use crate::support::wait::wait_for;

/// Agents whose connections are cut side by side: each is away for 5 s.
const AGENTS: u32 = 4;
/// The server's patience: no heartbeat may be later than this, whatever happens to the link.
const OFFLINE_AFTER: Duration = Duration::from_secs(60);
/// From a disconnect to the next attempt at the latest, with the time to connect.
const RECONNECT: Duration = Duration::from_secs(6 + 3);
/// From the last packet until the agent gives the connection up: 15 s and what a busy machine adds.
const NOTICE: Duration = Duration::from_secs(15 + 4);

#[test]
fn the_connection_is_cut() {
    let Some(engine) = EngineTurn::shared("the_connection_is_cut") else { return };
    let (plan, seed) = (Plan::new(), Random::new().seed);
    let plane = Arc::new(ControlPlane::start(&["--quiet"]));
    let rounds = plan.rounds.div_ceil(AGENTS);
    let all: Vec<(Vec<String>, Vec<Duration>, Duration)> = std::thread::scope(|scope| {
        let agent = |n: u64| {
            let (plane, engine) = (&plane, &engine);
            scope.spawn(move || {
                let rig = Rig::on(plane, Some(engine), Changes::default());
                cut(&rig, Random::seeded(seed + n), rounds)
            })
        };
        let threads: Vec<_> = (0..u64::from(AGENTS)).map(agent).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    });
    let lost = all.iter().flat_map(|(lost, ..)| lost.clone()).collect();
    let recovery = all.iter().flat_map(|(_, recovery, _)| recovery.clone()).collect();
    let latest_beat = all.iter().map(|(.., late)| *late).max().unwrap();
    let expected = "back within 6 s and a moment, results arrive once";
    let (fault, times) = ("cut of the connection during deploys and stops", rounds * AGENTS);
    Row { fault, times, expected, lost, latest_beat, recovery, seed }.finish();
}

fn cut(rig: &Rig, mut random: Random, rounds: u32) -> (Vec<String>, Vec<Duration>, Duration) {
    let (mut replicas, mut recovery, mut lost) = (Vec::new(), Vec::new(), Vec::new());
    for round in 0..rounds {
        ask_something(rig, &mut random, &mut replicas);
        std::thread::sleep(random.time(Duration::from_millis(700)));
        let before = rig.connects();
        let began = Instant::now();
        rig.plane.api_post(&format!("/nodes/{}/cut", rig.node), &json!({}));
        // Work is asked for while it is away, too.
        if random.one_in(2) {
            ask_something(rig, &mut random, &mut replicas);
        }
        match wait_for(SOON, || (rig.connects() > before && rig.ready()).then(|| began.elapsed())) {
            Some(away) if away <= RECONNECT => {}
            away => lost.push(format!("round {round}: away for {away:?}")),
        }
        match rig.recovered(began, LATE) {
            Some(time) => recovery.push(time),
            None => lost.push(format!("round {round}: no recovery")),
        }
    }
    lost.extend(rig.losses(BEAT_SLACK));
    let late = rig.latest_beat();
    (lost, recovery, late)
}

/// A network namespace with a cable to this one; all goes when it is dropped.
struct Cable {
    name: String,
    host: String,
}

impl Cable {
    /// Lays it. `None`: the machine does not let us.
    fn lay() -> Option<Self> {
        // Of the addresses for benchmarks of networks (RFC 2544).
        let id = std::process::id();
        let (high, low) = (id / 63 % 256, id % 63 * 4);
        let cable = Self { name: format!("vlf{id}"), host: format!("198.18.{high}.{}", low + 1) };
        let (name, host) = (&cable.name, &cable.host);
        let peer = format!("198.18.{high}.{}", low + 2);
        let laid = [
            format!("ip netns add {name}"),
            format!("ip link add {name}h type veth peer name {name}n netns {name}"),
            format!("ip addr add {host}/30 dev {name}h"),
            format!("ip link set {name}h up"),
            format!("ip -n {name} addr add {peer}/30 dev {name}n"),
            format!("ip -n {name} link set {name}n up"),
            format!("ip -n {name} link set lo up"),
            format!("ip netns exec {name} iptables -w -S"),
        ];
        laid.iter().all(|line| run(line)).then_some(cable)
    }

    /// All packets are lost from now on, or no more: the ends hear nothing of it.
    fn drop_all(&self, on: bool) {
        let how = if on { "-I" } else { "-D" };
        for chain in ["INPUT", "OUTPUT"] {
            assert!(run(&format!("ip netns exec {} iptables -w {how} {chain} -j DROP", self.name)));
        }
    }
}

impl Drop for Cable {
    fn drop(&mut self) {
        run(&format!("ip link del {}h", self.name));
        run(&format!("ip netns del {}", self.name));
    }
}

fn run(line: &str) -> bool {
    let output = Command::new("timeout").arg("20").args(line.split(' ')).output().unwrap();
    if !output.status.success() {
        eprintln!("{line}: {}", String::from_utf8_lossy(&output.stderr).trim());
    }
    output.status.success()
}

#[test]
fn packets_are_dropped() {
    let Some(engine) = EngineTurn::shared("packets_are_dropped") else { return };
    let Some(cable) = Cable::lay() else { return skip("packets_are_dropped", "no network namespaces here") };
    let (plan, mut random) = (Plan::new(), Random::new());
    let plane = Arc::new(ControlPlane::start(&["--quiet", "--listen", &format!("{}:0", cable.host)]));
    let through = ["ip", "netns", "exec", &cable.name].map(str::to_owned).to_vec();
    let settings = vec![("allow-insecure", "true".to_owned())];
    let rig = Rig::on(&plane, Some(&engine), Changes { through, settings, ..Changes::default() });
    let (mut replicas, mut recovery, mut lost) = (Vec::new(), Vec::new(), Vec::new());
    let times = plan.pick(1, 10);
    for round in 0..times {
        // The results of these come when nothing gets through any more.
        ask_something(&rig, &mut random, &mut replicas);
        std::thread::sleep(random.time(Duration::from_millis(300)));
        let before = rig.connects();
        let dropped = Instant::now();
        cable.drop_all(true);
        ask_something(&rig, &mut random, &mut replicas);
        let link = || rig.status().map(|status| status["link"].clone());
        let noticed = wait_for(SOON, || (link()? != "connected").then(|| dropped.elapsed()));
        if noticed.is_none_or(|time| time > NOTICE) {
            lost.push(format!("round {round}: the silence was noticed after {noticed:?}"));
        }
        // Attempts fail meanwhile, sometimes.
        std::thread::sleep(random.time(Duration::from_secs(plan.pick(3, 12))));
        cable.drop_all(false);
        let mended = Instant::now();
        if wait_for(SOON, || (rig.connects() > before && rig.ready()).then_some(())).is_none() {
            lost.push(format!("round {round}: no new connection"));
        }
        match rig.recovered(mended, LATE) {
            Some(time) => recovery.push(time),
            None => lost.push(format!("round {round}: no recovery")),
        }
    }
    lost.extend(rig.losses(OFFLINE_AFTER - BEAT));
    let expected = "given up after 15 s, connected anew, results arrive once";
    let latest_beat = rig.latest_beat();
    let fault = "half-open: all packets dropped";
    Row { fault, times, expected, lost, latest_beat, recovery, seed: random.seed }.finish();
}

#[test]
fn the_peer_talks_nonsense() {
    let Some(engine) = EngineTurn::shared("the_peer_talks_nonsense") else { return };
    let (mut random, rig) = (Random::new(), Rig::new(&engine));
    // More than 1,000 in a minute are a flood, which ends the connection.
    let times = 900;
    let path = format!("/nodes/{}/send", rig.node);
    let mut lost = Vec::new();
    let replica = rig.new_replica();
    if rig.outcome(&rig.deploy(&replica), SOON) != "running" {
        lost.push("the deploy before it failed".to_owned());
    }
    let before = rig.status().unwrap()["malformed_messages"].as_u64().unwrap();
    let began = Instant::now();
    for _ in 0..times {
        let (status, answer) = rig.plane.api_post_text(&path, &nonsense(&mut random));
        assert_eq!(status, 200, "{answer}");
    }
    // The last of them is behind what is asked for now.
    let other = rig.new_replica();
    if rig.outcome(&rig.deploy(&other), SOON) != "running" {
        lost.push("a deploy after it failed".to_owned());
    }
    let recovery = vec![began.elapsed()];
    let counted = rig.status().unwrap()["malformed_messages"].as_u64().unwrap() - before;
    if counted != u64::from(times) {
        lost.push(format!("{counted} of {times} were counted as malformed"));
    }
    if rig.connects() != 1 {
        lost.push("the connection did not last".to_owned());
    }
    lost.extend(rig.losses(BEAT_SLACK));
    let expected = "ignored and counted, the connection lasts, work goes on";
    let latest_beat = rig.latest_beat();
    let fault = "malformed messages";
    Row { fault, times, expected, lost, latest_beat, recovery, seed: random.seed }.finish();
}

/// Something that is no message of the protocol.
fn nonsense(random: &mut Random) -> String {
    let kind = random.below(10);
    let odd = |random: &mut Random| match random.below(8) {
        0 => Value::Null,
        1 => json!(random.below(u64::MAX)),
        2 => json!([[], {}, "x"]),
        3 => json!(""),
        4 => json!("x".repeat(usize::try_from(random.below(5000)).unwrap())),
        5 => json!({"replica_id": {"replica_id": 7}}),
        6 => json!(-1.5e300),
        _ => json!(true),
    };
    match kind {
        0 => "{\"type\":\"deploy\",\"payload\":{\"replica_id\":".to_owned(),
        1 => "[".repeat(usize::try_from(random.below(3000)).unwrap() + 1),
        2 => format!("\u{0}\u{7f}\u{202e}{}", random.below(1000)),
        3 => json!({"type": odd(random), "payload": {}}).to_string(),
        4 => json!({"type": "deploy", "payload": odd(random)}).to_string(),
        5 => json!({"type": "stop", "payload": {"replica_id": [odd(random)]}}).to_string(),
        6 => {
            json!({"type": "deploy", "payload": {"image": odd(random), "env_vars": odd(random)}}).to_string()
        }
        7 => json!({"type": "reboot", "payload": {"x": odd(random)}}).to_string(),
        8 => json!([{"type": "stop"}, odd(random)]).to_string(),
        _ => json!({"payload": {"replica_id": "a"}, "typ": odd(random)}).to_string(),
    }
}
