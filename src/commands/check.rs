//! `vectorlay-agent check`: the dependencies, and whether the node is ready.

use std::sync::Arc;

use serde_json::{Map, Value, json};

use crate::cli::Form;
use crate::core::inventory::Check;
use crate::host::dependencies::{self, Checker, Inputs};

/// A line below the table: a choice or finding besides the dependencies.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Note {
    /// For instance `log driver`.
    pub(super) topic: String,
    pub(super) text: String,
}

/// The row of the control plane, which is no dependency that a node reports; nothing is known of it yet.
pub(super) fn unknown(required: bool) -> Check {
    Check {
        name: "link",
        purpose: "Control plane",
        required,
        installed: required,
        ok: false,
        version: None,
        modules: None,
        microvm: None,
        detail: String::new(),
    }
}

/// Checks everything once. Returns what to print and whether the node is ready. `reached` follows the dependencies, and
/// `notes` the table, after the note about the runtime.
pub(super) fn run(inputs: Inputs, reached: Check, notes: &[Note], form: Form) -> (String, bool) {
    let inputs = Arc::new(inputs);
    let mut checks = Vec::new();
    Checker::new(Arc::clone(&inputs)).round(&mut |check| checks.push(check));
    let place = |check: &Check| dependencies::names().position(|name| name == check.name);
    checks.sort_by_key(place);
    checks.push(reached);
    let mut all = vec![runtime(&inputs)];
    all.extend_from_slice(notes);
    let text = match form {
        Form::Text => render(&checks, &all),
        Form::Json => render_json(&checks, &all),
    };
    (text, dependencies::ready(&checks))
}

fn runtime(inputs: &Inputs) -> Note {
    Note { topic: "runtime".to_owned(), text: format!("{}: {}", inputs.runtime, inputs.shim()) }
}

fn render(checks: &[Check], notes: &[Note]) -> String {
    let versions: Vec<String> = checks.iter().map(version).collect();
    let width =
        |texts: &mut dyn Iterator<Item = &str>| texts.map(|text| text.chars().count()).max().unwrap_or(0);
    let names = width(&mut checks.iter().map(|check| check.name));
    let widest = width(&mut versions.iter().map(String::as_str));
    let mut text = String::new();
    for (check, version) in checks.iter().zip(&versions) {
        let mark = match (check.ok, check.required) {
            (true, _) => '✓',
            (false, true) => '✗',
            (false, false) => '–',
        };
        text += &format!("{:names$} {mark} {version:widest$}  {}\n", check.name, check.purpose);
        if mark == '✗' {
            text += &format!("{:names$}   {}\n", "", check.detail);
        }
    }
    text.push('\n');
    let topics = width(&mut notes.iter().map(|note| note.topic.as_str()));
    for note in notes {
        text += &format!("{:topics$}  {}\n", note.topic, note.text);
    }
    let missing: Vec<&str> =
        checks.iter().filter(|check| check.required && !check.ok).map(|check| check.name).collect();
    text += &match missing.as_slice() {
        [] => "\nready\n".to_owned(),
        missing => format!("\nnot ready: {}\n", missing.join(", ")),
    };
    text
}

fn version(check: &Check) -> String {
    match (&check.version, check.modules) {
        (Some(version), _) => version.clone(),
        (None, Some(1)) => "1 module".to_owned(),
        (None, Some(modules)) => format!("{modules} modules"),
        (None, None) => String::new(),
    }
}

/// `ready` and `checks` as in the `dependencies` of `system_info`, and the notes in a list for each topic.
fn render_json(checks: &[Check], notes: &[Note]) -> String {
    let checks_by_name: Map<String, Value> =
        checks.iter().map(|check| (check.name.to_owned(), check.described())).collect();
    let mut notes_by_topic = Map::new();
    for note in notes {
        let of_topic = notes_by_topic.entry(note.topic.clone()).or_insert_with(|| json!([]));
        of_topic.as_array_mut().into_iter().for_each(|texts| texts.push(note.text.as_str().into()));
    }
    let ready = dependencies::ready(checks);
    format!("{:#}\n", json!({ "ready": ready, "checks": checks_by_name, "notes": notes_by_topic }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::dependencies::SearchDirs;
    use crate::host::files::fixture::Fixture;
    use crate::host::shim::fixture;

    fn checks() -> Vec<Check> {
        let check =
            |name, purpose, required, installed, ok, version: Option<&str>, modules, detail: &str| Check {
                name,
                purpose,
                required,
                installed,
                ok,
                version: version.map(str::to_owned),
                modules,
                microvm: None,
                detail: detail.to_owned(),
            };
        vec![
            check("containerd", "Container runtime", true, true, true, Some("1.7.2"), None, "answers"),
            check("kata-runtime", "MicroVM runtime", true, false, false, None, None, "install it"),
            check("vfio", "GPU hand-over", false, false, false, None, Some(0), "not needed"),
        ]
    }

    #[test]
    fn the_table_that_operators_know() {
        let notes = [Note { topic: "log driver".into(), text: "file".into() }];
        let expected = "\
containerd   ✓ 1.7.2      Container runtime
kata-runtime ✗            MicroVM runtime
               install it
vfio         – 0 modules  GPU hand-over

log driver  file

not ready: kata-runtime
";
        assert_eq!(render(&checks(), &notes), expected);
        assert!(render(&checks()[..1], &[]).ends_with("containerd ✓ 1.7.2  Container runtime\n\n\nready\n"));
    }

    #[test]
    fn json_for_machines() {
        let note = |topic: &str, text: &str| Note { topic: topic.into(), text: text.into() };
        let notes = [note("Kata", "a"), note("log driver", "file"), note("Kata", "b")];
        let value: Value = serde_json::from_str(&render_json(&checks(), &notes)).unwrap();
        let expected = json!({
            "ready": false,
            "checks": {
                "containerd":
                    {"installed": true, "required": true, "ok": true, "detail": "answers", "version": "1.7.2"},
                "kata-runtime": {"installed": false, "required": true, "ok": false, "detail": "install it"},
                "vfio":
                    {"installed": false, "required": false, "ok": false, "detail": "not needed", "modules": 0},
            },
            "notes": {"log driver": ["file"], "Kata": ["a", "b"]},
        });
        assert_eq!(value, expected);
    }

    #[test]
    fn a_host_that_has_all_of_it_is_ready() {
        let host = Fixture::new(&[("/bin/nerdctl", "#!/bin/sh\necho '{\"Server\":{}}'\n")]);
        host.program("/usr/bin/containerd-shim-runc-v2", &fixture::runc());
        let inputs = Inputs {
            root: host.path().to_owned(),
            cli: "nerdctl".into(),
            nerdctl: true,
            env: Vec::new(),
            runtime: "io.containerd.runc.v2".into(),
            network: Some("none".into()),
            namespace: None,
            cni_path: None,
            gpus_by_vfio: true,
            has_gpus: |_| false,
            dirs: SearchDirs { path: vec![host.path().join("bin")], kata: Vec::new(), virtiofsd: Vec::new() },
        };
        let (text, ready) = run(inputs, unknown(false), &[], Form::Text);
        let runtime = "\nruntime  io.containerd.runc.v2: /usr/bin/containerd-shim-runc-v2\n";
        assert!(ready && text.contains(runtime) && text.ends_with("\nready\n"), "{text}");
    }
}
