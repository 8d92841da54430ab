//! A CLI that hangs, talks for ever, or lies. A wrapper around the real one does it while a file says so.

use std::fs;
use std::time::{Duration, Instant};

use serde_json::json;

use super::report::{Random, Row};
use super::rig::{BEAT, BEAT_SLACK, Changes, LATE, Rig, SOON};
use crate::support::engine::{Engine, EngineTurn};
use crate::support::processes;
use crate::support::wait::wait_for;

/// How long a deploy may take that is going to hang.
const DEPLOY_S: u64 = 5;
/// The same, where others are to be done before it ends, on a machine that may be busy.
const LONG_DEPLOY_S: u64 = 45;
/// Within this the node has to say that the engine does not answer.
const DEGRADED_WITHIN: Duration = Duration::from_secs(30 + 2);
/// How much the agent may grow from output that never ends, KiB.
const GROWTH_MAX: u64 = 4096;

/// What the wrapper does first. A process that hangs names the wrapper's folder in its argv, so that a leak is seen.
const SCRIPT: &str = r#"
here=${0%/*}/..
mode=
[ ! -e "$here/mode" ] || read -r mode <"$here/mode"
case "$mode $1 $*" in
    "all "*) exec tail -f "$here/never" ;;
    "looks ps "* | "looks inspect "* | "looks container "* | "looks version "*) exec tail -f "$here/never" ;;
    "one run "*--name=replica-*hang*) exec tail -f "$here/never" ;;
    "flood run "*) exec awk 'BEGIN { for (;;) { print "progress"; print "progress" >"/dev/stderr" } }' "$here/never" ;;
    "lie rm "*) shift $(($# - 1)); echo "$1" >>"$here/lies"; echo "$1"; exit 0 ;;
esac
"#;

/// A rig with the wrapper, and its switch.
fn rig(engine: &Engine) -> Rig {
    let rig = Rig::with(engine, Changes { script: SCRIPT.to_owned(), ..Changes::default() });
    fs::write(rig.folder().join("never"), "").unwrap();
    rig
}

fn switch(rig: &Rig, mode: &str) {
    // As a whole: the wrapper never reads half a word.
    let new = rig.folder().join("mode.new");
    fs::write(&new, format!("{mode}\n")).unwrap();
    fs::rename(new, rig.folder().join("mode")).unwrap();
}

/// Checks an outcome.
fn expect(lost: &mut Vec<String>, what: &str, outcome: &str, wanted: &[&str]) {
    if !wanted.contains(&outcome) {
        lost.push(format!("{what}: {outcome} instead of {wanted:?}"));
    }
}

#[test]
fn the_cli_hangs_and_lies() {
    let Some(engine) = EngineTurn::shared("the_cli_hangs_and_lies") else { return };
    // Side by side: they mostly wait.
    std::thread::scope(|scope| {
        scope.spawn(|| hang(&engine, "all"));
        scope.spawn(|| hang(&engine, "looks"));
        scope.spawn(|| one_replica_hangs(&engine));
        scope.spawn(|| talks_for_ever(&engine));
        scope.spawn(|| lies(&engine));
    });
}

/// Every call, or every look, hangs for ever.
fn hang(engine: &Engine, mode: &str) {
    let (seed, rig) = (Random::new().seed, rig(engine));
    let mut lost = Vec::new();
    let (old, new) = (rig.new_replica(), rig.new_replica());
    expect(&mut lost, "the deploy before", &rig.outcome(&rig.deploy(&old), SOON), &["running"]);
    let beats = || rig.view()["messages"]["heartbeat"].as_u64().unwrap();
    switch(&rig, mode);
    let (began, beats_before) = (Instant::now(), beats());
    let deploy = rig.deploy_with(&new, json!({"deploy_timeout_s": DEPLOY_S}));
    let degraded = wait_for(SOON, || rig.reason().contains("does not answer").then(|| began.elapsed()));
    if degraded.is_none_or(|time| time > DEGRADED_WITHIN) {
        lost.push(format!("degraded after {degraded:?}"));
    }
    let outcome = rig.outcome(&deploy, LATE);
    let wanted: &[&str] = if mode == "all" {
        &["timeout", "runtime_unavailable"]
    } else {
        &["running", "timeout", "runtime_unavailable"]
    };
    expect(&mut lost, "the deploy during it", &outcome, wanted);
    if wait_for(BEAT + SOON, || (beats() > beats_before).then_some(())).is_none() {
        lost.push("no heartbeat while it hangs".to_owned());
    }
    switch(&rig, "");
    let mended = Instant::now();
    let recovery = wait_for(LATE, || {
        let status = rig.status()?;
        let well = !status["reason"].as_str()?.contains("does not answer") && rig.open() == 0;
        well.then(|| mended.elapsed())
    });
    if recovery.is_none() {
        lost.push(format!("it did not come back: {}", rig.reason()));
    }
    expect(&mut lost, "the stop after", &rig.outcome(&rig.stop(&old), SOON), &["stopped"]);
    lost.extend(rig.losses(BEAT_SLACK));
    let fault = if mode == "all" {
        "every call of the CLI hangs for ever"
    } else {
        "every look at the engine hangs for ever"
    };
    let expected = "degraded within 30 s and back by itself, deploys fail truly, no process left";
    let (latest_beat, recovery) = (rig.latest_beat(), recovery.into_iter().collect());
    Row { fault, times: 1, expected, lost, latest_beat, recovery, seed }.finish();
}

fn one_replica_hangs(engine: &Engine) {
    let (seed, rig) = (Random::new().seed, rig(engine));
    let mut lost = Vec::new();
    switch(&rig, "one");
    // More than there are places for stops, fewer than for deploys.
    let hung: Vec<String> = (0..4).map(|_| format!("{}hang", rig.new_replica())).collect();
    let began = Instant::now();
    let deploys: Vec<String> = hung
        .iter()
        .map(|replica| rig.deploy_with(replica, json!({"deploy_timeout_s": LONG_DEPLOY_S})))
        .collect();
    let cancelled = rig.stop(&hung[0]);
    for _ in 0..3 {
        let other = rig.new_replica();
        expect(&mut lost, "another's deploy", &rig.outcome(&rig.deploy(&other), SOON), &["running"]);
        expect(&mut lost, "another's stop", &rig.outcome(&rig.stop(&other), SOON), &["stopped"]);
    }
    // Nothing but their own deadline ends those that hang: the others did not wait for it.
    if deploys[1..].iter().any(|deploy| !rig.plane.job(deploy)["result"].is_null()) {
        lost.push(format!("the others were done after {:?}, when some that hang had ended", began.elapsed()));
    }
    for (n, deploy) in deploys.iter().enumerate() {
        let wanted = if n == 0 { "cancelled" } else { "timeout" };
        expect(&mut lost, "a deploy that hangs", &rig.outcome(deploy, LATE), &[wanted]);
    }
    expect(&mut lost, "the stop of one that hangs", &rig.outcome(&cancelled, LATE), &["stopped"]);
    let recovery = vec![began.elapsed()];
    switch(&rig, "");
    expect(&mut lost, "the deploy after", &rig.outcome(&rig.deploy(&hung[1]), SOON), &["running"]);
    lost.extend(rig.losses(BEAT_SLACK));
    let expected = "the others' deploys and stops do not wait for it";
    let (fault, latest_beat) = ("the CLI hangs for some replicas", rig.latest_beat());
    Row { fault, times: 4, expected, lost, latest_beat, recovery, seed }.finish();
}

fn talks_for_ever(engine: &Engine) {
    let (seed, rig) = (Random::new().seed, rig(engine));
    let mut lost = Vec::new();
    let replica = rig.new_replica();
    expect(&mut lost, "the deploy before", &rig.outcome(&rig.deploy(&replica), SOON), &["running"]);
    let before = processes::usage(rig.pid()).unwrap().private_dirty;
    switch(&rig, "flood");
    let began = Instant::now();
    let new = rig.new_replica();
    let deploy = rig.deploy_with(&new, json!({"deploy_timeout_s": DEPLOY_S}));
    let mut most = before;
    let outcome = wait_for(LATE, || {
        most = most.max(processes::usage(rig.pid()).map_or(0, |usage| usage.private_dirty));
        let result = rig.plane.job(&deploy)["result"].clone();
        result["code"].as_str().map(str::to_owned)
    });
    expect(&mut lost, "the deploy during it", &outcome.unwrap_or_default(), &["timeout"]);
    if most > before + GROWTH_MAX {
        lost.push(format!("the agent grew from {before} to {most} KiB"));
    }
    let recovery = vec![began.elapsed()];
    switch(&rig, "");
    expect(&mut lost, "the deploy after", &rig.outcome(&rig.deploy(&new), SOON), &["running"]);
    lost.extend(rig.losses(BEAT_SLACK));
    let expected = "ended at the deadline, memory bounded, no process left";
    let (fault, latest_beat) = ("the CLI prints without end", rig.latest_beat());
    Row { fault, times: 1, expected, lost, latest_beat, recovery, seed }.finish();
}

fn lies(engine: &Engine) {
    let (seed, rig) = (Random::new().seed, rig(engine));
    let mut lost = Vec::new();
    let replica = rig.new_replica();
    expect(&mut lost, "the deploy before", &rig.outcome(&rig.deploy(&replica), SOON), &["running"]);
    switch(&rig, "lie");
    let stop = rig.stop(&replica);
    // A second removal: the look after the first did not believe it.
    let lies = || std::fs::read_to_string(rig.folder().join("lies")).map_or(0, |text| text.lines().count());
    let result = || rig.plane.job(&stop)["result"].clone();
    if wait_for(SOON, || (lies() > 1 || !result().is_null()).then_some(())).is_none() {
        lost.push("a removal that did nothing was not tried again".to_owned());
    }
    let result = result();
    if result["status"] == "stopped" && rig.containers().is_none_or(|containers| !containers.is_empty()) {
        lost.push(format!("called stopped while the container is there: {result}"));
    }
    switch(&rig, "");
    let mended = Instant::now();
    expect(&mut lost, "the stop", &rig.outcome(&stop, LATE), &["stopped"]);
    let gone = wait_for(LATE, || rig.containers()?.is_empty().then(|| mended.elapsed()));
    if gone.is_none() {
        lost.push("the container stays".to_owned());
    }
    lost.extend(rig.losses(BEAT_SLACK));
    let expected = "not believed: removed again until it is gone, told then";
    let fault = "`rm --force` says 0 and does nothing";
    let (latest_beat, recovery) = (rig.latest_beat(), gone.into_iter().collect());
    Row { fault, times: 1, expected, lost, latest_beat, recovery, seed }.finish();
}
