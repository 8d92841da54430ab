//! Each row of the threat model's tables has a test, and each test that it names is there.

use std::fs;
use std::path::{Path, PathBuf};

/// The targets of tests that it names, by their first word: `e2e images::volumes_of_an_image_go_with_its_container`. A
/// name without one is of a unit test: `engine::env::all_together_are_bounded`; a file stands for itself.
const TARGETS: [&str; 4] = ["core", "e2e", "edges", "sources"];

/// The last cells of the rows of all tables whose last column is `test`, each with its row.
fn cells(text: &str) -> Vec<(&str, &str)> {
    let mut found = Vec::new();
    let mut is_of_tests = false;
    for line in text.lines() {
        let Some(row) = line.strip_prefix("| ").and_then(|row| row.strip_suffix('|')) else {
            is_of_tests &= line.starts_with("|---");
            continue;
        };
        let last = row.rsplit('|').next().unwrap().trim();
        if is_of_tests {
            found.push((line, last));
        }
        is_of_tests |= last == "test";
    }
    found
}

/// The file of a module, and what of the name is behind the module.
fn module<'n>(folder: &Path, names: &[&'n str]) -> Option<(PathBuf, Vec<&'n str>)> {
    let (first, rest) = names.split_first()?;
    if let Some(found) = module(&folder.join(first), rest) {
        return Some(found);
    }
    let file = [folder.join(format!("{first}.rs")), folder.join(first).join("mod.rs")]
        .into_iter()
        .find(|file| file.exists())?;
    Some((file, rest.to_vec()))
}

/// The text of a module's tests: its own file's, or that of a file `tests.rs` beside it.
fn tests_of(file: &Path) -> String {
    let beside = if file.ends_with("mod.rs") {
        file.with_file_name("tests.rs")
    } else {
        file.with_extension("").join("tests.rs")
    };
    fs::read_to_string(file).unwrap() + &fs::read_to_string(beside).unwrap_or_default()
}

/// Why there is no such test.
fn missing(root: &Path, name: &str) -> Option<String> {
    if name.contains('/') {
        return (!root.join(name).is_file()).then(|| "no such file".to_owned());
    }
    let (folder, path) = match name.split_once(' ') {
        Some((target, path)) if TARGETS.contains(&target) => (root.join("tests").join(target), path),
        Some(_) => return Some("no target of tests".to_owned()),
        None => (root.join("src"), name),
    };
    let names: Vec<&str> = path.split("::").collect();
    let Some((file, rest)) = module(&folder, &names) else { return Some("no such module".to_owned()) };
    let text = tests_of(&file);
    match rest.as_slice() {
        [] => (!text.contains("#[test]")).then(|| "no test in it".to_owned()),
        [test] => {
            let has = text
                .split("#[test]")
                .skip(1)
                .any(|rest| rest.trim_start().starts_with(&format!("fn {test}(")));
            (!has).then(|| format!("no such test in {}", file.display()))
        }
        _ => Some("no such module".to_owned()),
    }
}

#[test]
fn every_row_has_a_test_that_is_there() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let text = fs::read_to_string(root.join("src/threat_model.md")).unwrap();
    let (mut rows, mut tests) = (0, 0);
    for (row, cell) in cells(&text) {
        rows += 1;
        let is_known = cell.starts_with("the same")
            || cell.starts_with("by hand")
            || cell.is_empty() && row.contains("**Not covered**");
        let names: Vec<&str> = cell.split('`').skip(1).step_by(2).collect();
        assert!(is_known || !names.is_empty(), "no test: {row}");
        for name in names {
            assert_eq!(missing(root, name), None, "{name}: {row}");
            tests += 1;
        }
    }
    assert!(rows > 60 && tests > 90, "{rows} rows, {tests} tests");
}

#[test]
fn what_is_not_there_is_missed() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let check = |name: &str, there: bool| assert_eq!(missing(root, name).is_none(), there, "{name}");
    check("engine::env::all_together_are_bounded", true);
    check("engine::parse::failures_by_kind", true);
    check("store::directory", true);
    check("e2e flood", true);
    check("edges link::deadlines::no_server_can_stretch_a_deadline", true);
    check("scripts/install-test.sh", true);
    check("scripts/no-such-test.sh", false);
    check("engine::env::no_such_test", false);
    check("engine::env::split", false);
    check("engine::nowhere::a", false);
    check("e2e nowhere", false);
    check("core::mod", false);
    check("else flood", false);
}
