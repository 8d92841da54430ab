//! An engine that is away, frozen, or back again.

use crate::engine::Mode;
use crate::rig::{Rig, SECOND};

#[test]
fn its_silence_is_noticed_within_30_s_and_its_return_by_itself() {
    let mut rig = Rig::online();
    rig.engine.mode = Mode::Away;
    rig.wait(30 * SECOND);
    assert_eq!(rig.state(), "degraded");
    rig.engine.mode = Mode::Well;
    rig.wait(10 * SECOND);
    assert_eq!(rig.state(), "online");
}

#[test]
fn a_deploy_fails_at_once_and_the_next_one_works_when_it_is_back() {
    let mut rig = Rig::online();
    rig.engine.mode = Mode::Away;
    rig.deploy("r", "q1");
    assert_eq!(rig.sent(), ["deploy_result r failed:runtime_unavailable q1"]);
    assert_eq!(rig.state(), "degraded");
    rig.deploy("r", "q2");
    rig.engine.mode = Mode::Well;
    rig.wait(11 * SECOND);
    assert_eq!(rig.sent(), ["deploy_result r running q2"]);
}

#[test]
fn what_runs_is_left_alone_while_it_is_away() {
    let mut rig = Rig::online();
    rig.deploy("r", "q1");
    rig.engine.mode = Mode::Away;
    rig.wait(600 * SECOND);
    assert_eq!(rig.containers(), ["r running"]);
    rig.engine.mode = Mode::Well;
    rig.wait(60 * SECOND);
    assert_eq!(rig.up("r"), 1);
    assert_eq!(rig.sent(), ["deploy_result r running q1"]);
}

#[test]
fn a_stop_meanwhile_fails_at_its_deadline_and_is_done_with_its_time_afterwards() {
    let mut rig = Rig::online();
    rig.deploy("r", "q1");
    rig.engine.mode = Mode::Away;
    rig.stop("r", "q2");
    rig.wait(71 * SECOND);
    assert_eq!(rig.sent(), ["deploy_result r running q1", "stop_result r failed:timeout q2"]);
    rig.started.clear();
    rig.engine.mode = Mode::Well;
    rig.wait(6 * SECOND);
    let calls: Vec<&String> =
        rig.started.iter().filter(|job| job.starts_with("stop") || job.starts_with("remove")).collect();
    assert!(calls[0].starts_with("stop"), "{calls:?}");
    assert!(rig.engine.containers.is_empty());
}

#[test]
fn one_hung_call_does_not_hold_up_the_others() {
    let mut rig = Rig::online();
    rig.hold("run replica-r");
    rig.deploy("r", "q1");
    rig.deploy("s", "q2");
    rig.stop("s", "q3");
    assert_eq!(rig.sent(), ["deploy_result s running q2", "stop_result s stopped q3"]);
}
