#![no_main]
#![allow(missing_docs)]
#![allow(clippy::unwrap_used, reason = "what fails here is a finding")]
//! The targets of `targets.rs` for libFuzzer: VECTORLAY_FUZZ_TARGET says which.

#[allow(dead_code, reason = "core_model uses all of it")]
#[path = "../tests/core_model/engine.rs"]
mod engine;
#[path = "../tests/support/host.rs"]
mod host;
#[allow(dead_code, reason = "the tests of the core use all of it")]
#[path = "../tests/core/rig.rs"]
mod rig;
mod targets;

use std::path::PathBuf;
use std::sync::LazyLock;

use libfuzzer_sys::fuzz_target;

static TARGET: LazyLock<&targets::Target> = LazyLock::new(|| {
    let name = std::env::var("VECTORLAY_FUZZ_TARGET").unwrap_or_default();
    let names: Vec<&str> = targets::TARGETS.iter().map(|target| target.name).collect();
    let target = targets::TARGETS.iter().find(|target| target.name == name);
    target.unwrap_or_else(|| panic!("VECTORLAY_FUZZ_TARGET is {name:?} and must be one of {names:?}"))
});

static SCRATCH: LazyLock<PathBuf> = LazyLock::new(|| {
    let folder = std::env::temp_dir().join(format!("vectorlay-libfuzzer-{}", std::process::id()));
    std::fs::create_dir_all(&folder).unwrap();
    folder
});

fuzz_target!(|bytes: &[u8]| TARGET.try_bytes(bytes, &SCRATCH));
