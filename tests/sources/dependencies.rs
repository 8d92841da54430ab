//! The crates that are linked are what `deny.toml` allows. `cargo deny` says the same, and more; it takes minutes to
//! build, so that a fresh clone is held to the file by this.

use std::collections::{BTreeMap, BTreeSet};
use std::process::Command;

const POLICY: &str = include_str!("../../deny.toml");
const TARGETS: [&str; 2] = ["x86_64-unknown-linux-musl", "aarch64-unknown-linux-musl"];

/// The first string in each line of the list `key`.
fn list(key: &str) -> Vec<&'static str> {
    let lines = POLICY.lines().skip_while(|line| *line != format!("{key} = [")).skip(1);
    let found: Vec<&str> =
        lines.take_while(|line| *line != "]").filter_map(|line| line.split('"').nth(1)).collect();
    assert!(!found.is_empty(), "deny.toml has a list {key}");
    found
}

/// All crates that are built for a target: name, version and where from (nothing: the registry), and licence.
fn built(target: &str) -> BTreeSet<(String, String)> {
    let edges = ["--edges=normal,build", "--prefix=none", "--format={p}|{l}"];
    let mut cargo = Command::new(env!("CARGO"));
    let output = cargo.args(["tree", "--locked", "--target", target]).args(edges).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let text = String::from_utf8(output.stdout).unwrap();
    let split = |line: &str| {
        let (package, licence) = line.split_once('|')?;
        Some((package.replace(" (proc-macro)", ""), licence.replace(" (*)", "")))
    };
    text.lines().filter_map(split).collect()
}

/// Whether an SPDX expression (annex D of the SPDX specification) can be met by allowed licences alone.
fn met(expression: &str, allowed: &[&str]) -> bool {
    let spaced = expression.replace('(', " ( ").replace(')', " ) ").replace('/', " OR ");
    let mut words = spaced.split_whitespace().peekable();
    any_of(&mut words, allowed) && words.next().is_none()
}

type Words<'t> = std::iter::Peekable<std::str::SplitWhitespace<'t>>;

fn any_of(words: &mut Words, allowed: &[&str]) -> bool {
    let mut met = all_of(words, allowed);
    while words.next_if(|word| *word == "OR").is_some() {
        met |= all_of(words, allowed);
    }
    met
}

fn all_of(words: &mut Words, allowed: &[&str]) -> bool {
    let mut met = one(words, allowed);
    while words.next_if(|word| *word == "AND").is_some() {
        met &= one(words, allowed);
    }
    met
}

fn one(words: &mut Words, allowed: &[&str]) -> bool {
    let word = words.next().unwrap_or_default();
    if word == "(" {
        let met = any_of(words, allowed);
        assert_eq!(words.next(), Some(")"));
        return met;
    }
    // An exception makes it another licence.
    let excepted = words.next_if(|word| *word == "WITH").and_then(|_| words.next()).is_some();
    allowed.contains(&word) && !excepted
}

#[test]
fn licences_sources_and_names_are_as_the_policy_says() {
    let (allowed, banned, twice) = (list("allow"), list("deny"), list("skip"));
    for target in TARGETS {
        let mut versions: BTreeMap<String, u32> = BTreeMap::new();
        for (package, licence) in built(target) {
            let (name, rest) = package.split_once(" v").unwrap();
            if name == env!("CARGO_PKG_NAME") {
                continue;
            }
            assert!(!rest.contains('('), "{package} is not from the registry");
            assert!(!banned.contains(&name), "{name} is banned by deny.toml");
            assert!(met(&licence, &allowed), "{package}: {licence:?} is not allowed by deny.toml");
            *versions.entry(name.to_owned()).or_default() += 1;
        }
        assert!(versions.len() > 30, "{target}: {}", versions.len());
        let doubled: Vec<&str> =
            versions.iter().filter(|(_, count)| **count > 1).map(|(name, _)| name.as_str()).collect();
        assert_eq!(doubled, twice, "{target}: crates in two versions");
    }
}

#[test]
fn expressions_of_licences_are_judged() {
    let check = |expression: &str, right: bool| {
        assert_eq!(met(expression, &["MIT", "ISC"]), right, "{expression}");
    };
    check("MIT", true);
    check("GPL-3.0-only", false);
    check("Apache-2.0 OR MIT", true);
    check("Apache-2.0/MIT", true);
    check("Apache-2.0 AND MIT", false);
    check("(Apache-2.0 OR MIT) AND ISC", true);
    check("MIT OR ISC AND GPL-3.0-only", true);
    check("(MIT OR ISC) AND GPL-3.0-only", false);
    check("MIT WITH exception OR GPL-3.0-only", false);
    check("GPL-3.0-only WITH exception OR MIT", true);
    check("MIT ISC", false);
    check("", false);
}
