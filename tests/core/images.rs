//! Room for images: between the marks the oldest go, one at a time, and never one that a container uses.

use vectorlay::core::inventory::{Storage, Usage};

use crate::rig::{Rig, SECOND, Start};

/// A node that keeps its data path between 60 and 80 percent, and how full that is.
fn node(percent: u8) -> Rig {
    let mut rig = Rig::start(Start { image_marks: Some((80, 60)), ..Start::default() });
    rig.connect();
    rig.engine.images = ["img:1", "img:2", "img:3", "img:a"].map(str::to_owned).into();
    fill(&mut rig, percent);
    rig
}

fn fill(rig: &mut Rig, usage_percent: u8) {
    let storage = Storage { path: "/".into(), total_gb: 100, used_gb: usage_percent.into(), usage_percent };
    rig.usage = Usage { free_bytes: Some(1 << 40), storage: Some(storage), ..Usage::default() };
}

/// The images that were ordered to be removed since this was last asked.
fn removed(rig: &mut Rig) -> Vec<String> {
    let started = std::mem::take(&mut rig.started).into_iter();
    started.filter_map(|job| job.strip_prefix("remove image ").map(str::to_owned)).collect()
}

#[test]
fn below_the_high_mark_nothing_is_removed() {
    let mut rig = node(79);
    rig.beat();
    assert_eq!(removed(&mut rig), [""; 0]);
}

#[test]
fn without_marks_nothing_is_removed() {
    let mut rig = Rig::online();
    fill(&mut rig, 99);
    rig.beat();
    assert_eq!(removed(&mut rig), [""; 0]);
    assert_eq!(rig.under_way("images"), 0);
}

#[test]
fn images_go_one_at_a_time_until_the_low_mark_is_reached() {
    let mut rig = node(80);
    rig.hold("remove image");
    rig.beat();
    assert_eq!(removed(&mut rig), ["img:1"], "the first that the engine names");
    rig.beat();
    assert_eq!(removed(&mut rig), [""; 0], "one at a time");
    fill(&mut rig, 61);
    rig.release("remove image");
    assert_eq!(removed(&mut rig)[..1], ["img:2"], "still above the low mark");

    let mut rig = node(80);
    rig.hold("remove image");
    rig.beat();
    fill(&mut rig, 60);
    rig.release("remove image");
    assert_eq!(removed(&mut rig), ["img:1"], "the low mark is reached");
    assert!(rig.engine.images.contains("img:2"));
}

#[test]
fn an_image_in_use_stays_and_the_next_round_is_ten_minutes_later() {
    let mut rig = node(50);
    rig.deploy("r", "q1");
    fill(&mut rig, 99);
    rig.beat();
    assert_eq!(removed(&mut rig), ["img:1", "img:2", "img:3", "img:a"]);
    assert_eq!(rig.engine.images.iter().collect::<Vec<_>>(), ["img:a"], "the engine refused it");
    assert_eq!(rig.up("r"), 1);
    rig.wait(599 * SECOND);
    rig.beat();
    assert_eq!(removed(&mut rig), [""; 0]);
    rig.wait(2 * SECOND);
    rig.beat();
    assert_eq!(removed(&mut rig), ["img:a"]);
}

#[test]
fn no_image_is_removed_while_a_deploy_is_under_way() {
    let mut rig = node(90);
    rig.hold("run");
    rig.deploy("r", "q1");
    rig.beat();
    assert_eq!(removed(&mut rig), [""; 0]);
    rig.release("run");
    rig.hold("remove image");
    rig.beat();
    assert_eq!(removed(&mut rig), ["img:1"]);
    rig.hold("run");
    rig.deploy("s", "q2");
    rig.release("remove image");
    assert_eq!(removed(&mut rig), [""; 0], "a deploy that came meanwhile ends the round");
    rig.release("run");
    assert_eq!(rig.sent(), ["deploy_result r running q1", "deploy_result s running q2"]);
}
