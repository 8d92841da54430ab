//! The steps of a run, what must hold when the faults are over, and what must still be possible then.

use std::time::Duration;

use serde_json::Value;
use vectorlay::core::link_api::DownReason;
use vectorlay::core::operator::Request;
use vectorlay::core::random::Random;

use crate::engine::{Fault, Mode, Status};
use crate::server::{Kind, PLAIN, REPLICAS};
use crate::world::{GPUS, World, address};

/// What can happen, and how often it does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Op {
    Advance,
    CarryOut,
    Report,
    Serve,
    Receive,
    Deploy,
    Stop,
    Again,
    Disk,
    Dial,
    Cut,
    Crash,
    Engine,
    End,
    RemoveByHand,
    /// A container's shim stops answering, or answers again.
    Shim,
    Sampler,
    Watcher,
    Scan,
    Orphan,
    Operator,
    Terminate,
    Noise,
    Host,
    /// What is under way goes on well for a while.
    Lull,
}

const WEIGHTS: [(Op, u64); 25] = [
    (Op::Advance, 14),
    (Op::CarryOut, 22),
    (Op::Report, 22),
    (Op::Serve, 12),
    (Op::Receive, 12),
    (Op::Deploy, 8),
    (Op::Stop, 4),
    (Op::Again, 3),
    (Op::Disk, 14),
    (Op::Dial, 6),
    (Op::Cut, 2),
    (Op::Crash, 1),
    (Op::Engine, 2),
    (Op::End, 3),
    (Op::RemoveByHand, 1),
    (Op::Shim, 2),
    (Op::Sampler, 10),
    (Op::Watcher, 6),
    (Op::Scan, 6),
    (Op::Orphan, 3),
    (Op::Operator, 1),
    (Op::Terminate, 1),
    (Op::Noise, 1),
    (Op::Host, 1),
    (Op::Lull, 5),
];

#[derive(Debug, Clone, Copy)]
pub struct Step(Op, u32, u32);

/// The steps of `seed`.
pub fn make(seed: u64, count: usize) -> Vec<Step> {
    let mut random = Random::new(seed);
    let total: u64 = WEIGHTS.iter().map(|(_, weight)| weight).sum();
    let mut one = || {
        let mut left = random.below(total);
        let op = WEIGHTS.iter().find(|(_, weight)| {
            let found = left < *weight;
            left = left.saturating_sub(*weight);
            found
        });
        Step(op.unwrap().0, random.bits() as u32, random.bits() as u32)
    };
    (0..count).map(|_| one()).collect()
}

/// What came of a run.
#[derive(Default)]
pub struct Played {
    /// What went wrong.
    pub broken: Option<String>,
    /// What happened, if that was asked for.
    pub trace: Vec<String>,
    /// Events that the core was given.
    pub events: u64,
}

/// Plays a run.
pub fn play(seed: u64, run: &[Step], trace: bool) -> Played {
    let mut world = World::new(seed);
    world.trace = trace.then(Vec::new);
    for step in run {
        world.say(|| format!("### {step:?}"));
        act(&mut world, *step);
        if world.broken.is_some() {
            break;
        }
    }
    if world.broken.is_none() {
        finish(&mut world);
    }
    Played { broken: world.broken, trace: world.trace.unwrap_or_default(), events: world.events }
}

fn fault(n: u32) -> Fault {
    match n % 24 {
        0 => Fault::Refused,
        1 => Fault::Half,
        2 => Fault::Nameless,
        3 => Fault::Short,
        4 => Fault::Deadline,
        5 => Fault::Impossible,
        _ => Fault::Nothing,
    }
}

fn act(world: &mut World, Step(op, a, b): Step) {
    let pick = |n: usize| a as usize % n.max(1);
    match op {
        Op::Advance => {
            let ms = match b % 8 {
                0 | 1 => a % 50,
                2 | 3 => a % 1000,
                4 | 5 => a % 6_000,
                6 => a % 20_000,
                _ => a % 90_000,
            };
            world.advance(Duration::from_millis(ms.into()));
        }
        Op::CarryOut if world.flights() > 0 => world.carry_out(pick(world.flights()), Some(fault(b)), a),
        Op::Report if world.flights() > 0 => {
            let n = pick(world.flights());
            if b % 2 == 0 {
                world.carry_out(n, Some(fault(b / 2)), a);
            }
            world.report(n);
        }
        Op::CarryOut | Op::Report => {}
        Op::Serve => world.serve(1 + pick(8)),
        Op::Receive => world.receive(1 + pick(4)),
        Op::Deploy => {
            let replica = REPLICAS[pick(REPLICAS.len())];
            if world.server.open().filter(|n| world.server.tasks[*n].replica == replica).count()
                < limit(replica)
            {
                let image =
                    ["img:a", "img:b", "img:a", "img:b", "img:a", "img:far", "img:nope"][b as usize % 7];
                let gpus = [0, 0, 1, 2, 0, 3][(b / 8) as usize % 6];
                let more = [
                    "",
                    r#","memory_mb":3000"#,
                    r#","memory_mb":5000"#,
                    r#","deploy_timeout_s":20"#,
                    r#","pull":"always""#,
                    r#","pull":"never""#,
                ];
                let n = world.server.new_deploy(replica, image, gpus, more[(b / 64) as usize % 6]);
                world.post(n);
            }
        }
        Op::Stop => {
            let replica = REPLICAS[pick(REPLICAS.len())];
            if world.server.open().filter(|n| world.server.tasks[*n].replica == replica).count()
                < limit(replica)
            {
                let n = world.server.new_stop(replica);
                world.post(n);
            }
        }
        Op::Again => {
            let open: Vec<usize> = world.server.open().collect();
            if let Some(n) = open.get(pick(open.len())) {
                world.post(*n);
            }
        }
        Op::Disk => world.disk(if b % 16 == 0 { 1 } else { 0 }),
        Op::Dial => world.dialed([0, 0, 0, 0, 0, 0, 1, 2, 3, 4][pick(10)]),
        Op::Cut => world
            .cut(b % 4 == 0, [DownReason::Broken, DownReason::Closed(4001), DownReason::Violation][pick(3)]),
        Op::Crash => world.crash(a),
        Op::Engine => world.engine.mode = [Mode::Well, Mode::Well, Mode::Away, Mode::Frozen][pick(4)],
        Op::End => world.meddle(a, false),
        Op::RemoveByHand => world.meddle(a, true),
        Op::Shim => world.hang_or_thaw(a),
        Op::Sampler => world.sampler(),
        Op::Watcher => world.watch_event(b % 8 == 0),
        Op::Scan => world.scan(),
        Op::Orphan => world.orphan(a, fault(b)),
        Op::Operator => {
            let gpu = address(pick(GPUS));
            let requests = [
                Request::Status,
                Request::Drain,
                Request::Maintenance,
                Request::Resume,
                Request::Resume,
                Request::GpuHold(gpu),
                Request::GpuRelease(gpu),
                Request::Recheck,
            ];
            _ = world.control(requests[b as usize % requests.len()]);
        }
        Op::Terminate => {
            if b % 2 == 0 {
                world.terminate();
            }
        }
        Op::Noise => {
            let texts = [
                "{",
                r#"{"type":"reboot"}"#,
                r#"{"type":"deploy","payload":{"image":7}}"#,
                r#"{"type":"logs","payload":{"replica_id":"r1","request_id":"l"}}"#,
                r#"{"type":"registration_success","payload":{"node_id":"node-2"}}"#,
            ];
            world.post_text(texts[pick(texts.len())]);
        }
        Op::Host => match b % 5 {
            0 => _ = world.missing_gpus.insert(pick(GPUS)),
            1 => world.missing_gpus.clear(),
            2 => _ = world.failed_gpus.insert(pick(GPUS)),
            3 => world.failed_gpus.clear(),
            _ => world.low_disk = !world.low_disk,
        },
        Op::Lull => {
            for n in 0..6 + a % 20 {
                match (n + b) % 6 {
                    0 => world.serve(20),
                    1 => world.receive(20),
                    2 => world.disk(0),
                    3 if world.flights() > 0 => {
                        world.carry_out(0, Some(Fault::Nothing), 0);
                        world.report(0);
                    }
                    4 => world.dialed(0),
                    _ => {
                        world.scan();
                        world.sampler();
                    }
                }
            }
        }
    }
}

/// Commands without a request ID are told apart by their order alone: one at a time.
fn limit(replica: &str) -> usize {
    if replica == PLAIN { 1 } else { 4 }
}

/// The faults are over: everything comes to rest, and what is said is what is there.
fn finish(world: &mut World) {
    world.calm_down();
    // One that is being ended, or whose last save failed, gets that behind it first.
    world.advance(Duration::from_secs(60));
    for _ in 0..GPUS {
        _ = world.control(Request::Resume);
    }
    for n in 0..GPUS {
        _ = world.control(Request::GpuRelease(address(n)));
    }
    rest(world, "after the faults");
    // What the faults left behind is in nobody's way.
    let stops: Vec<usize> = REPLICAS.iter().map(|replica| world.server.new_stop(replica)).collect();
    deliver(world, &stops, "stopped", "a stop when all is well");
    empty(world, "after all was stopped");
    let deploys: Vec<usize> =
        (0..4).map(|n| world.server.new_deploy(REPLICAS[n], "img:a", (n % 2) as u32, "")).collect();
    deliver(world, &deploys, "running", "a deploy when all is well");
    let up = world.engine.containers.values().filter(|c| matches!(c.status, Status::Up(_))).count();
    if world.broken.is_none() && up != 4 {
        world.broken = Some(format!("4 replicas were reported as running, and {up} run"));
    }
    let stops: Vec<usize> = REPLICAS.iter().map(|replica| world.server.new_stop(replica)).collect();
    deliver(world, &stops, "stopped", "the last stop");
    empty(world, "at the end");
}

fn deliver(world: &mut World, tasks: &[usize], expected: &str, what: &str) {
    if world.broken.is_some() {
        return;
    }
    for n in tasks {
        world.post(*n);
    }
    rest(world, what);
    for n in tasks {
        let task = &world.server.tasks[*n];
        let good = task.outcome.as_ref().is_some_and(|outcome| outcome.starts_with(expected));
        if world.broken.is_none() && !good {
            let why = format!("{what} of {} had the outcome {:?}", task.replica, task.outcome);
            world.broken = Some(why);
        }
    }
}

/// Time passes until nothing is left to be done; then the server's picture is compared with the engine.
fn rest(world: &mut World, when: &str) {
    if world.broken.is_some() {
        return;
    }
    for _ in 0..200 {
        world.advance(Duration::from_secs(15));
        if world.broken.is_some() {
            return;
        }
        if world.server.open().next().is_none() {
            break;
        }
    }
    world.advance(Duration::from_secs(150));
    if world.broken.is_some() {
        return;
    }
    if let Some(n) = world.server.open().next() {
        let task = &world.server.tasks[n];
        let kind = if task.kind == Kind::Deploy { "deploy" } else { "stop" };
        world.broken =
            Some(format!("{when} a {kind} of {} has no outcome ({:?})", task.replica, task.request));
        return;
    }
    world.beat();
    let status = world.control(Request::Status);
    compare(world, &status, when);
}

fn compare(world: &mut World, status: &Value, when: &str) {
    let mut wrong = None;
    for (field, least) in [("results_waiting", 0), ("deploys_waiting", 0)] {
        if status[field] != least {
            wrong = Some(format!("{when} {field} is {}", status[field]));
        }
    }
    let told = world.server.heartbeat.clone().unwrap_or_default();
    let told = told["containers"].as_array().cloned().unwrap_or_default();
    for container in &told {
        let replica = container["replica_id"].as_str().unwrap();
        let real: Vec<Status> = world.engine.of(replica).map(|(_, c)| c.status).collect();
        let agrees = match (container["status"].as_str().unwrap(), real.as_slice()) {
            ("running", [Status::Up(_)]) => true,
            ("exited", [Status::Exited(code)]) => container["exit_code"] == *code,
            _ => false,
        };
        if !agrees {
            wrong = Some(format!("{when} {replica} is told as {} and is {real:?}", container["status"]));
        }
    }
    for (id, container) in &world.engine.containers {
        if !told.iter().any(|told| told["replica_id"] == container.replica.as_str()) {
            wrong = Some(format!("{when} container {} of {} is not told", id.short(), container.replica));
        }
        if let (Status::Exited(code), true) = (container.status, container.by_itself)
            && world.server.exits.get(&container.replica) != Some(&format!("exited:{code}"))
        {
            let heard = world.server.exits.get(&container.replica);
            wrong =
                Some(format!("{when} the exit of {} with {code} was told as {heard:?}", container.replica));
        }
    }
    // Without request IDs a result that is sent twice counts for another deploy; a record that is lost takes with it
    // what was begun and what was seen.
    let weak = |replica: &str| world.server.tasks.iter().any(|task| task.replica == replica && task.weak);
    for replica in REPLICAS.into_iter().filter(|replica| *replica != PLAIN && !weak(replica)) {
        let told = world.server.running.contains(replica);
        let up = world.engine.of(replica).any(|(_, container)| matches!(container.status, Status::Up(_)));
        if up && !told {
            wrong = Some(format!("{when} {replica} runs, and by the results it does not"));
        }
        let there = world.engine.of(replica).next().is_some() || world.server.exits.contains_key(replica);
        if told && !there {
            wrong = Some(format!("{when} {replica} is gone, and by the results it runs"));
        }
    }
    let free = world.server.heartbeat.as_ref().map(|h| h["gpus_free"].as_u64().unwrap_or_default());
    let mut held: Vec<usize> = Vec::new();
    for container in world.engine.containers.values() {
        held.extend((0..GPUS).filter(|n| container.gpus.contains(&address(*n))));
    }
    // The last two share a group.
    if held.contains(&4) != held.contains(&5) {
        held.push(4);
    }
    if free != Some((GPUS - held.len()) as u64) {
        wrong = Some(format!("{when} {} GPUs are in use and {free:?} are free", held.len()));
    }
    if let Some(wrong) = wrong {
        world.broken.get_or_insert(wrong);
    }
}

fn empty(world: &mut World, when: &str) {
    if world.broken.is_none() && !world.engine.containers.is_empty() {
        let left: Vec<&str> = world.engine.containers.values().map(|c| c.replica.as_str()).collect();
        world.broken = Some(format!("{when} containers are left: {left:?}"));
    }
}
