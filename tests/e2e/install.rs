//! `scripts/install-test.sh`: the installer in a folder, and under busybox init with the static agent. systemd has a
//! script of its own, `scripts/install-systemd.sh`, which makes a Debian system first.

use std::process::Command;

use crate::support::skip::skip;

#[test]
fn installs_upgrades_goes_back_and_uninstalls() {
    let name = "installs_upgrades_goes_back_and_uninstalls";
    let Ok(agent) = std::env::var("VECTORLAY_TEST_AGENT") else {
        return skip(name, "VECTORLAY_TEST_AGENT is not set");
    };
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/scripts/install-test.sh");
    let plane = env!("CARGO_BIN_EXE_control-plane");
    let done = Command::new(script).args([agent.as_str(), plane]).output().unwrap();
    let (said, errors) = (String::from_utf8_lossy(&done.stdout), String::from_utf8_lossy(&done.stderr));
    assert!(done.status.success(), "{said}{errors}");
    if let Some(why) = errors.lines().find(|line| line.starts_with("not tried: ")) {
        skip(name, why);
    }
}
