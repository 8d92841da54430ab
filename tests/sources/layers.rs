//! Imports point one way: `main → commands, agent → edges → core → protocol → types`, and only the files named here start
//! programs and threads, or read a clock. This reads the sources and says which line breaks that.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

/// What has no edge at all: pure.
const PURE: [&str; 4] = ["types", "hmac", "protocol", "core"];
/// What touches the world. None of them knows another but [`EDGES_MAY`].
const EDGES: [&str; 10] =
    ["control", "engine", "hardening", "host", "link", "process", "sampler", "store", "trust", "wait"];
/// Who may know what besides itself and [`PURE`]: programs are started by `process` for everyone, whoever waits for
/// descriptors does it by `wait`, whose a file is tells `trust`, and the sampler's threads do nothing but call a room that may
/// hang.
const EDGES_MAY: [(&str, &str); 10] = [
    ("control", "trust"),
    ("engine", "process"),
    ("engine", "trust"),
    ("engine", "wait"),
    ("host", "process"),
    ("link", "wait"),
    ("process", "trust"),
    ("process", "wait"),
    ("sampler", "host"),
    ("store", "trust"),
];
/// What chooses and shows. Nothing below knows them.
const TOP: [&str; 6] = ["agent", "cli", "commands", "config", "logging", "setup"];
/// What those among them that are no more than tables may know besides [`PURE`].
const TABLES_MAY: [(&str, &[&str]); 3] =
    [("config", &[]), ("cli", &["config"]), ("logging", &["config", "link"])];
/// What no pure room names: files, sockets, processes, threads.
const FORBIDDEN: [&str; 10] = [
    "std::fs",
    "std::net",
    "std::os",
    "std::process",
    "std::thread",
    "std::env",
    "std::time::SystemTime",
    "rustix::",
    "signal_hook::",
    "ureq::",
];
/// Programs, clocks and threads: each with the files and folders below src that may name it. A thread that is not in this
/// table could be one that nobody ends; a clock that is not, a decision that no test can drive.
const RESERVED: [(&str, &[&str]); 7] = [
    ("process::Command", &["process.rs"]),
    (
        "Instant::now",
        &[
            "agent/",
            "commands/",
            "control.rs",
            "engine/",
            "host/",
            "link/",
            "process.rs",
            "sampler.rs",
            "setup.rs",
            "wait.rs",
        ],
    ),
    ("SystemTime::now", &["commands/", "link/dates.rs", "logging.rs", "store/history.rs"]),
    ("thread::spawn", &[]),
    ("thread::scope", &[]),
    (
        "thread::Builder",
        &[
            "agent/",
            "commands/prove.rs",
            "control.rs",
            "engine/",
            "host/",
            "link/",
            "logging.rs",
            "sampler.rs",
            "store/",
        ],
    ),
    ("thread::sleep", &["commands/", "control.rs"]),
];

fn sources(folder: &Path, found: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            sources(&path, found);
        } else if path.extension().is_some_and(|ending| ending == "rs") {
            found.push(path);
        }
    }
}

/// The text without comments, and without what is only there for unit tests.
fn code(text: &str) -> String {
    let mut parts = text.split("\n#[cfg(test)]\n");
    let mut kept = parts.next().unwrap().to_owned();
    for part in parts {
        // Up to the item's end: the first line but attributes, or the brace that closes it.
        let first = part.lines().find(|line| !line.starts_with("#[")).unwrap_or_default();
        let end = if first.ends_with(';') { ";\n" } else { "\n}\n" };
        kept += part.split_once(end).map_or("", |(_, rest)| rest);
    }
    kept.lines().map(|line| line.split("//").next().unwrap()).collect::<Vec<_>>().join("\n")
}

/// Every path that the code names, with the groups of `use` written out.
fn paths(code: &str) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    let plain = code.replace(['\n', '\t'], " ");
    for statement in plain.split("use ").skip(1).map(|rest| rest.split(';').next().unwrap()) {
        expand("", &statement.replace(' ', ""), &mut found);
    }
    let fits = |c: char| c.is_alphanumeric() || c == '_' || c == ':';
    found.extend(plain.split(|c| !fits(c)).filter(|word| word.contains("::")).map(str::to_owned));
    found
}

/// `a::{b, c::{d}}` is `a::b` and `a::c::d`.
fn expand(prefix: &str, tree: &str, found: &mut BTreeSet<String>) {
    let Some((head, group)) = tree.split_once('{') else {
        found.insert(format!("{prefix}{tree}"));
        return;
    };
    let group = group.strip_suffix('}').unwrap_or(group);
    let (mut depth, mut start) = (0, 0);
    for (at, c) in group.char_indices().chain([(group.len(), ',')]) {
        match c {
            '{' => depth += 1,
            '}' => depth -= 1,
            ',' if depth == 0 => {
                if start < at {
                    expand(&format!("{prefix}{head}"), &group[start..at], found);
                }
                start = at + 1;
            }
            _ => {}
        }
    }
}

/// Whether `room` may know `other`.
fn may(room: &str, other: &str) -> bool {
    if room == other || PURE.contains(&other) && !PURE.contains(&room) {
        return true;
    }
    match room {
        "types" | "hmac" => false,
        "protocol" => other == "types",
        "core" => PURE.contains(&other),
        _ if EDGES.contains(&room) => EDGES_MAY.contains(&(room, other)),
        _ => match TABLES_MAY.iter().find(|(table, _)| *table == room) {
            Some((_, known)) => known.contains(&other),
            None => EDGES.contains(&other) || TOP.contains(&other),
        },
    }
}

/// The reserved name in `path` that the file `name` may not use.
fn reserved(name: &str, path: &str) -> Option<&'static str> {
    let is_named = |word: &str| path == word || path.ends_with(&format!("::{word}"));
    RESERVED
        .iter()
        .find(|(word, files)| is_named(word) && !files.iter().any(|file| name.starts_with(file)))
        .map(|(word, _)| *word)
}

#[test]
fn imports_point_one_way() {
    let src = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut files = Vec::new();
    sources(&src, &mut files);
    let rooms: Vec<&str> = PURE.iter().chain(&EDGES).chain(&TOP).copied().collect();
    let mut wrong = Vec::new();
    let mut seen = BTreeSet::new();
    for file in &files {
        let inner = file.strip_prefix(&src).unwrap();
        let name = inner.display().to_string();
        let room = name.split('/').next().unwrap().trim_end_matches(".rs").to_owned();
        // Programs of their own, and the page of orientation.
        if ["main", "lib", "bin"].contains(&room.as_str()) || name.ends_with("tests.rs") {
            continue;
        }
        assert!(rooms.contains(&room.as_str()), "{name}: say in this test which layer {room} is of");
        seen.insert(room.clone());
        let code = code(&std::fs::read_to_string(file).unwrap());
        for path in paths(&code) {
            let rest = path.strip_prefix("crate::").or_else(|| {
                // Above a file that stands alone is the crate itself.
                inner.parent().filter(|folder| folder.as_os_str().is_empty())?;
                path.strip_prefix("super::")
            });
            let other = rest.map(|rest| rest.split("::").next().unwrap());
            if let Some(other) = other.filter(|other| rooms.contains(other) && !may(&room, other)) {
                wrong.push(format!("src/{name}: {room} may not know {other} ({path})"));
            }
            if let Some(word) = reserved(&name, &path) {
                wrong.push(format!("src/{name} may not name {word} ({path})"));
            }
            let forbidden = FORBIDDEN.iter().find(|word| path.starts_with(**word) || path.ends_with(**word));
            // An address is a value.
            let pure = PURE.contains(&room.as_str()) && path != "std::net::IpAddr" && path != "IpAddr";
            if let Some(word) = forbidden.filter(|_| pure) {
                wrong.push(format!("src/{name}: {room} is pure and names {word} ({path})"));
            }
        }
    }
    assert_eq!(wrong, [""; 0], "\n{}", wrong.join("\n"));
    assert_eq!(seen.iter().map(String::as_str).collect::<Vec<_>>(), {
        let mut all = rooms.clone();
        all.sort_unstable();
        all
    });
}

#[test]
fn the_reference_control_plane_shares_nothing_with_the_agent() {
    let mut files = Vec::new();
    sources(&Path::new(env!("CARGO_MANIFEST_DIR")).join("src/bin/control-plane"), &mut files);
    assert!(!files.is_empty());
    for file in files {
        let code = code(&std::fs::read_to_string(&file).unwrap());
        let shared: Vec<String> =
            paths(&code).into_iter().filter(|path| path.starts_with("vectorlay")).collect();
        assert_eq!(shared, [""; 0], "{}", file.display());
    }
}

#[test]
fn what_is_only_there_for_tests_is_left_out() {
    let text = "a();\n#[cfg(test)]\n#[path = \"x\"]\nmod page;\nb(); // c()\n\n#[cfg(test)]\nimpl A {\n    d();\n}\n\
                e();\n#[cfg(test)]\nmod tests {\n    f();\n}\n";
    let code = code(text);
    for (word, there) in [("a()", true), ("page", false), ("b()", true), ("c()", false), ("d()", false)] {
        assert_eq!(code.contains(word), there, "{word} in {code}");
    }
    assert!(code.contains("e()") && !code.contains("f()"), "{code}");
}

#[test]
fn paths_are_found_in_every_form() {
    let text = "use crate::a::{self, B, c::{D, e::F}};\nuse std::fs;\nlet x = crate::g::h(std::net::I);";
    let found = paths(&code(text));
    for path in [
        "crate::a::self",
        "crate::a::B",
        "crate::a::c::D",
        "crate::a::c::e::F",
        "std::fs",
        "crate::g::h",
        "std::net::I",
    ] {
        assert!(found.contains(path), "{path} in {found:?}");
    }
    assert!(may("sampler", "host") && may("agent", "link") && may("core", "protocol"));
    for (room, other) in
        [("core", "link"), ("link", "store"), ("types", "core"), ("process", "host"), ("host", "agent")]
    {
        assert!(!may(room, other), "{room} {other}");
    }
    let check = |name: &str, path: &str, expected: Option<&str>| assert_eq!(reserved(name, path), expected);
    check("core/mod.rs", "std::time::Instant::now", Some("Instant::now"));
    check("core/mod.rs", "Instant::now", Some("Instant::now"));
    check("core/mod.rs", "std::time::Instant", None);
    check("link/dial.rs", "Instant::now", None);
    check("link/dial.rs", "std::process::Command", Some("process::Command"));
    check("process.rs", "std::process::Command", None);
}
