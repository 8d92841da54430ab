//! Many agents that lose their control plane at the same moment.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::report::{Plan, Random, Row};
use super::rig::{Changes, Rig, SOON};
use crate::support::control_plane::ControlPlane;
use crate::support::engine::Turn;
use crate::support::processes;
use crate::support::wait::wait_for;

/// Their engine has no containers: what counts here are the connections.
const SCRIPT: &str = r#"
case "$1" in
    --version) echo "nerdctl version 2.2.2" ;;
    version) echo '{"Client": {"Version": "v2.2.2"}, "Server": {"Components": [{"Name": "containerd", "Version": "1.7.2"}]}}' ;;
esac
exit 0
"#;
/// Attempts are spread over 5 s ± 20 %: of that window no tenth gets more than this share of the agents, in percent.
const TENTH_MAX_PERCENT: usize = 30;
/// From the end of a connection to the next attempt, with the time to connect on a busy machine.
const BACK_WITHIN: Duration = Duration::from_secs(6 + 6);
/// How long the first heartbeat may take after that.
const FIRST_BEAT: Duration = Duration::from_secs(5);

#[test]
fn the_control_plane_restarts() {
    // So many agents on one machine are a load that nothing else should be measured under, nor they under another.
    let _alone = Turn::alone();
    let (plan, seed) = (Plan::new(), Random::new().seed);
    let agents = plan.pick(25, 100);
    let state = std::env::temp_dir().join(format!("vlf-{}-plane.json", std::process::id()));
    let state_text = state.to_str().unwrap().to_owned();
    let plane = ControlPlane::start(&["--quiet", "--state", &state_text]);
    let address = plane.address().to_owned();
    let plane = Arc::new(plane);
    let mut rigs: Vec<Rig> = (0..agents)
        .map(|_| Rig::off(&plane, None, Changes { script: SCRIPT.to_owned(), ..Changes::default() }))
        .collect();
    for rig in &mut rigs {
        rig.start();
    }
    for rig in &rigs {
        rig.wait_ready(SOON);
    }
    let mut lost = Vec::new();
    let connected = |plane: &ControlPlane, name: &str| -> BTreeMap<String, u64> {
        let news = plane.api_get("/events?since=0");
        let events = news["events"].as_array().unwrap().iter().filter(|event| event["type"] == name);
        // The first of each.
        events.rev().map(|e| (e["node"].as_str().unwrap().to_owned(), e["ms"].as_u64().unwrap())).collect()
    };
    // The rigs hold the old one, so it is ended here and not when it is dropped.
    processes::signal(plane.pid(), rustix::process::Signal::TERM);
    let stopped = Instant::now();
    assert!(
        wait_for(SOON, || processes::read(plane.pid()).is_none_or(|p| p.state == 'Z').then_some(()))
            .is_some()
    );
    let again = ControlPlane::start(&["--quiet", "--state", &state_text, "--listen", &address]);
    let up = stopped.elapsed();
    let back = wait_for(SOON, || (connected(&again, "heartbeat").len() == agents).then(|| stopped.elapsed()));
    let (there, beats) = (connected(&again, "connected"), connected(&again, "heartbeat"));
    if back.is_none() {
        lost.push(format!("{} of {agents} came back", beats.len()));
    }
    let mut times: Vec<u64> = there.values().copied().collect();
    times.sort_unstable();
    if let Some(last) = times.last().map(|ms| up + Duration::from_millis(*ms))
        && last > BACK_WITHIN
    {
        lost.push(format!("the last one came back after {:.1} s", last.as_secs_f32()));
    }
    let window = 200;
    let crowd =
        times.iter().map(|from| times.iter().filter(|t| (*from..*from + window).contains(t)).count()).max();
    let crowd = crowd.unwrap_or(0);
    eprintln!(
        "herd: {agents} agents back between {:?} and {:?} ms, at most {crowd} in {window} ms",
        times.first(),
        times.last()
    );
    if crowd * 100 > agents * TENTH_MAX_PERCENT && crowd > 5 {
        lost.push(format!("{crowd} of {agents} came within {window} ms"));
    }
    let slowest = there.iter().filter_map(|(node, ms)| Some(beats.get(node)? - ms)).max().unwrap_or(0);
    if Duration::from_millis(slowest) > FIRST_BEAT {
        lost.push(format!("a first heartbeat came {slowest} ms after its connection"));
    }
    let recovery = times.iter().map(|ms| up + Duration::from_millis(*ms)).collect();
    for rig in &mut rigs {
        if !rig.end() {
            lost.push("an agent did not end by itself".to_owned());
        }
    }
    let _ = std::fs::remove_file(state);
    let expected = "all back, spread over 4 to 6 s, the first heartbeat at once";
    let fault = plan
        .pick("restart of the control plane with 25 agents", "restart of the control plane with 100 agents");
    let latest_beat = Duration::from_millis(slowest);
    Row { fault, times: 1, expected, lost, latest_beat, recovery, seed }.finish();
}
