//! Tests that cannot run on this machine.
#![allow(dead_code, reason = "each test target uses a part of it")]
#![allow(clippy::print_stderr, clippy::unwrap_used, reason = "says what is skipped")]

use std::fs::OpenOptions;
use std::io::Write as _;

/// Counts a test as skipped instead of passed: adds a line to the file that VECTORLAY_TEST_SKIPS names.
pub fn skip(test: &str, why: &str) {
    eprintln!("skipped: {test}: {why}");
    if let Some(path) = std::env::var_os("VECTORLAY_TEST_SKIPS").filter(|path| !path.is_empty()) {
        let mut file = OpenOptions::new().append(true).create(true).open(path).unwrap();
        // In one write: tests run side by side.
        file.write_all(format!("{test}: {why}\n").as_bytes()).unwrap();
    }
}

/// Whether there is an `openssl` command to make certificates with; if not, the test is counted as skipped.
pub fn has_openssl(test: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let found = std::env::split_paths(&path).any(|folder| folder.join("openssl").is_file());
    if !found {
        skip(test, "no openssl command");
    }
    found
}
