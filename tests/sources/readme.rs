//! What the README and the unit file say is so.

use std::collections::BTreeSet;
use std::process::Command;

use vectorlay::config::TABLE;

use crate::skip::skip;

const README: &str = include_str!("../../README.md");
const DESIGN: &str = include_str!("../../src/design.md");

/// The rows of all tables whose header begins with `header`, as cells without backquotes.
fn table(text: &str, header: &str) -> Vec<Vec<String>> {
    let parts = text.split("\n\n").filter(|part| part.starts_with(header));
    let rows = parts.flat_map(|part| part.lines().skip(2));
    let cells = |line: &str| {
        line.trim_matches('|').split(" | ").map(|cell| cell.trim().replace('`', "")).collect::<Vec<_>>()
    };
    rows.map(cells).collect()
}

#[test]
fn every_setting_stands_there_with_its_default() {
    let told: Vec<(String, String)> =
        table(README, "| setting |").iter().map(|row| (row[0].clone(), row[1].clone())).collect();
    let known: Vec<(String, String)> =
        TABLE.iter().map(|row| (row.name.to_owned(), row.default.unwrap_or_default().to_owned())).collect();
    assert_eq!(told, known);
}

#[test]
fn every_dependency_has_its_reason() {
    let manifest = include_str!("../../Cargo.toml");
    let dependencies: BTreeSet<String> = manifest
        .lines()
        .skip_while(|line| *line != "[dependencies]")
        .skip(1)
        .take_while(|line| !line.is_empty())
        .map(|line| line.split(' ').next().unwrap_or_default().to_owned())
        .collect();
    let reasons: BTreeSet<String> = table(DESIGN, "| crate |")
        .iter()
        .flat_map(|row| row[0].split(", ").map(str::to_owned).collect::<Vec<_>>())
        .collect();
    assert_eq!(dependencies, reasons);
}

#[test]
fn every_script_that_it_names_is_there() {
    let named = README.split(|c: char| !(c.is_ascii_alphanumeric() || "/-._".contains(c)));
    let mut found = 0;
    for script in named.filter(|word| word.starts_with("scripts/") && word.contains('.')) {
        assert!(std::path::Path::new(script).exists(), "{script}");
        found += 1;
    }
    assert!(found > 5, "the README names its scripts");
}

#[test]
fn systemd_understands_the_units() {
    if Command::new("systemd-analyze").arg("--version").output().is_err() {
        return skip("systemd_understands_the_units", "there is no systemd-analyze");
    }
    let units = [
        ("vectorlay-agent.service", include_str!("../../scripts/vectorlay-agent.service")),
        ("vectorlay-vfio.service", include_str!("../../scripts/vectorlay-vfio.service")),
    ];
    let dir = std::env::temp_dir().join(format!("vectorlay-unit-{}", std::process::id()));
    std::fs::create_dir_all(&dir).unwrap();
    for (name, unit) in units {
        let path = dir.join(name);
        std::fs::write(&path, unit.replace("/usr/local/bin/vectorlay-agent", "/bin/true")).unwrap();
        let verified = Command::new("systemd-analyze").arg("verify").arg(&path).output().unwrap();
        // It ends with 0 on keys that it does not know: what it says is what counts.
        let said = String::from_utf8_lossy(&verified.stderr);
        let ours: Vec<&str> = said.lines().filter(|line| line.contains("vectorlay-")).collect();
        assert!(verified.status.success() && ours.is_empty(), "{said}");
        // What systemd 252 makes of them stands in the design, below 4.0; newer releases weigh a little differently.
        let rated = Command::new("systemd-analyze")
            .args(["security", "--offline=true", "--threshold=42", "--no-pager"])
            .arg(&path)
            .output()
            .unwrap();
        let said = String::from_utf8_lossy(&rated.stdout);
        let errors = String::from_utf8_lossy(&rated.stderr);
        let is_old = errors.contains("unrecognized option");
        assert!(rated.status.success() || is_old, "{}{errors}", said.lines().last().unwrap_or_default());
    }
    std::fs::remove_dir_all(&dir).unwrap();
}
