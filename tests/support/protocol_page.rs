//! Reads `src/protocol.md`: its examples and the rows of its tables of fields, for the tests that hold the agent and the
//! reference control plane to them.
#![allow(dead_code, reason = "each test uses a part of it")]
#![allow(clippy::unwrap_used, reason = "what fails here fails the test")]

use std::collections::BTreeSet;

use serde_json::Value;

const TEXT: &str = include_str!("../../src/protocol.md");

/// The heading of the part that has what the control plane sends.
pub const TO_AGENT: &str = "Messages from the control plane";
/// The heading of the part that has what the agent sends.
pub const FROM_AGENT: &str = "Messages from the agent";

/// A block of JSON.
#[derive(Debug)]
pub struct Example {
    /// The part that it is in: the heading of the second level.
    pub part: String,
    /// What the block is called after the word `json`; empty for a message.
    pub label: String,
    /// Its text.
    pub text: String,
    /// The same, read.
    pub json: Value,
}

/// A row of a table of fields.
#[derive(Debug)]
pub struct Row {
    /// The part that it is in.
    pub part: String,
    /// The message's type.
    pub kind: String,
    /// The field: `a.b`, `a[].b`, `a.NAME`.
    pub field: String,
    /// What the field holds, in words.
    pub holds: String,
    /// What the third column says: the default, or what stands for unknown.
    pub default: String,
    /// Since when it is there: `base`, or the agent's version.
    pub since: String,
}

/// All examples, in order.
pub fn examples() -> Vec<Example> {
    let (mut found, mut part, mut block) = (Vec::new(), "", None::<(String, String)>);
    for line in TEXT.lines() {
        match (&mut block, line.strip_prefix("```")) {
            (None, Some(info)) => {
                let label = info.strip_prefix("json").unwrap_or_else(|| panic!("{line}: not JSON"));
                block = Some((label.trim().to_owned(), String::new()));
            }
            (Some(_), Some(_)) => {
                let (label, text) = block.take().unwrap();
                let json = serde_json::from_str(&text).unwrap_or_else(|e| panic!("{e} in {text}"));
                found.push(Example { part: part.to_owned(), label, text, json });
            }
            (Some((_, text)), None) => *text += &format!("{line}\n"),
            (None, None) => part = line.strip_prefix("## ").unwrap_or(part),
        }
    }
    assert!(found.len() > 20, "the page has examples");
    found
}

/// The examples of messages in a part: type and payload.
pub fn messages(part: &str) -> Vec<(String, Value)> {
    let of_part = examples().into_iter().filter(|example| example.part == part);
    let message = |example: Example| {
        let kind = example.json["type"].as_str().unwrap_or_else(|| panic!("{}", example.text)).to_owned();
        (kind, example.json["payload"].clone())
    };
    of_part.map(message).collect()
}

/// The rows of all tables whose first column is headed `field`.
pub fn rows() -> Vec<Row> {
    let (mut found, mut part, mut kind, mut in_table) = (Vec::new(), "", "", false);
    for line in TEXT.lines() {
        part = line.strip_prefix("## ").unwrap_or(part);
        kind = line.strip_prefix("### ").unwrap_or(kind);
        if line.starts_with("| field |") {
            in_table = true;
        } else if !line.starts_with('|') {
            in_table = false;
        } else if in_table && !line.starts_with("|---") {
            let cells: Vec<&str> = line.trim_matches('|').split('|').map(str::trim).collect();
            let [field, holds, default, since] = cells[..] else { panic!("four columns: {line}") };
            found.push(Row {
                part: part.to_owned(),
                kind: kind.to_owned(),
                field: field.trim_matches('`').to_owned(),
                holds: holds.to_owned(),
                default: default.to_owned(),
                since: since.to_owned(),
            });
        }
    }
    assert!(found.len() > 80, "the page has tables of fields");
    found
}

/// The words in the first column of the table whose header begins with `header`.
pub fn words(header: &str) -> BTreeSet<String> {
    let table = TEXT.lines().skip_while(|line| !line.starts_with(header)).skip(2);
    let first = |line: &str| line.split('`').nth(1).unwrap_or_else(|| panic!("{line}")).to_owned();
    table.take_while(|line| line.starts_with('|')).map(first).collect()
}

/// The paths of all fields of a payload, as the tables write them.
pub fn fields(payload: &Value) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    walk("", payload, &mut found);
    found
}

/// All values that a field has in a payload.
pub fn values<'v>(payload: &'v Value, field: &str) -> Vec<&'v Value> {
    let mut found = vec![payload];
    for part in field.split('.') {
        let (name, of_each) = part.strip_suffix("[]").map_or((part, false), |name| (name, true));
        found = found
            .into_iter()
            .flat_map(|value| match value {
                Value::Object(map) if name == "NAME" => map.values().collect(),
                _ => value.get(name).into_iter().collect::<Vec<_>>(),
            })
            .flat_map(
                |value| if of_each { value.as_array().into_iter().flatten().collect() } else { vec![value] },
            )
            .collect();
    }
    found
}

fn walk(path: &str, value: &Value, found: &mut BTreeSet<String>) {
    match value {
        Value::Object(map) => {
            for (key, inner) in map {
                // Keys that are no fields but values.
                let is_value = path == "env_vars" || path.ends_with("dependencies.checks");
                let key = if is_value { "NAME" } else { key };
                let path = if path.is_empty() { key.to_owned() } else { format!("{path}.{key}") };
                walk(&path, inner, found);
                found.insert(path);
            }
        }
        Value::Array(items) => items.iter().for_each(|item| walk(&format!("{path}[]"), item, found)),
        _ => {}
    }
}
