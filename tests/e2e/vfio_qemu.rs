//! The agent on a real IOMMU: `scripts/vfio-qemu.sh` boots virtual machines with a display device of AMD's. It takes
//! some minutes and installs packages, so it is done only where `scripts/test.sh` runs the tests.

use std::process::Command;

use crate::support::skip::skip;

/// The script's exit status where it cannot be done.
const CANNOT: i32 = 77;

#[test]
fn a_gpu_goes_from_hand_to_hand() {
    let name = "a_gpu_goes_from_hand_to_hand";
    let Ok(agent) = std::env::var("VECTORLAY_TEST_AGENT") else {
        return skip(name, "VECTORLAY_TEST_AGENT is not set");
    };
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/scripts/vfio-qemu.sh");
    let plane = env!("CARGO_BIN_EXE_control-plane");
    let done = Command::new(script).args([agent.as_str(), plane]).output().unwrap();
    let (said, errors) = (String::from_utf8_lossy(&done.stdout), String::from_utf8_lossy(&done.stderr));
    if done.status.code() == Some(CANNOT) {
        return skip(name, errors.lines().last().unwrap_or_default());
    }
    assert!(done.status.success(), "{said}{errors}");
    // Each machine says how it went: none may be left out.
    assert_eq!(said.matches("vfio-qemu: passed").count(), 3, "{said}");
}
