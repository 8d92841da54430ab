//! `protocol.md` says what a control plane may send: each example and each row of its tables is tried here.

use serde_json::{Value, json};

use super::page::{Row, TO_AGENT, examples, fields, messages, rows};
use super::{Inbound, Unusable, read};

/// No field holds this.
fn wrong() -> Value {
    json!([[true]])
}

fn take(kind: &str, payload: &Value) -> Result<Inbound, String> {
    match read(&json!({"type": kind, "payload": payload}).to_string()) {
        Ok(message) => Ok(message),
        Err(Unusable::Malformed { why, .. }) => Err(why),
        Err(other) => panic!("{kind}: {other:?}"),
    }
}

/// The example of this type with the most fields, and the table's rows for that type.
fn fullest(kind: &str) -> (Value, Vec<Row>) {
    let of_kind = messages(TO_AGENT).into_iter().filter(|(of, _)| of == kind).map(|(_, payload)| payload);
    let table = rows().into_iter().filter(|row| row.part == TO_AGENT && row.kind == kind).collect();
    (of_kind.max_by_key(|payload| fields(payload).len()).unwrap(), table)
}

/// The place of a field: the first element of an array, the first of values by name.
fn at<'v>(payload: &'v mut Value, field: &str) -> &'v mut Value {
    let mut value = payload;
    for part in field.split('.') {
        let (name, of_each) = part.strip_suffix("[]").map_or((part, false), |name| (name, true));
        value = match name {
            "NAME" => value.as_object_mut().unwrap().values_mut().next().unwrap(),
            _ => &mut value[name],
        };
        if of_each {
            value = &mut value[0];
        }
    }
    value
}

fn remove(payload: &mut Value, field: &str) {
    let (parent, name) = field.rsplit_once('.').unwrap_or(("", field));
    let parent = if parent.is_empty() { payload } else { at(payload, parent) };
    let map = parent.as_object_mut().unwrap();
    let name = if name == "NAME" { map.keys().next().unwrap().clone() } else { name.to_owned() };
    map.remove(&name).unwrap();
}

const KINDS: [&str; 4] = ["deploy", "stop", "registration_success", "logs"];

#[test]
fn every_example_is_taken() {
    let mut found = 0;
    for example in examples().iter().filter(|example| example.part == TO_AGENT) {
        assert!(read(&example.text).is_ok(), "{}", example.text);
        found += 1;
    }
    assert!(found >= 9, "{found}");
}

#[test]
fn every_field_is_read_and_its_kind_is_checked() {
    for kind in KINDS {
        let (payload, table) = fullest(kind);
        let named: Vec<&str> = table.iter().map(|row| row.field.as_str()).collect();
        assert_eq!(fields(&payload).iter().map(String::as_str).collect::<Vec<_>>(), {
            let mut named = named.clone();
            named.sort_unstable();
            named
        });
        for field in named {
            let mut payload = payload.clone();
            *at(&mut payload, field) = wrong();
            assert!(take(kind, &payload).is_err(), "{kind}: {field} is not read");
        }
    }
}

#[test]
fn what_is_required_is_missed_and_the_rest_is_not() {
    for kind in KINDS {
        let (payload, table) = fullest(kind);
        for Row { field, default, .. } in table {
            let mut payload = payload.clone();
            remove(&mut payload, &field);
            assert_eq!(take(kind, &payload).is_err(), default == "required", "{kind} without {field}");
        }
    }
}

#[test]
fn the_bounds_in_the_tables_are_the_agents() {
    let mut tried = 0;
    for kind in KINDS {
        let (payload, table) = fullest(kind);
        for Row { field, holds, .. } in table {
            let words: Vec<&str> = holds.split([' ', ',', ':']).collect();
            let Some(to) = words.iter().position(|word| *word == "to") else { continue };
            let numbers = (words[to - 1].parse::<f64>(), words[to + 1].parse::<f64>());
            let (Ok(least), Ok(most)) = numbers else { continue };
            let mut try_one = |value: f64, fits: bool| {
                let mut payload = payload.clone();
                let whole = value.fract() == 0.0;
                *at(&mut payload, &field) = if whole { json!(value as i64) } else { json!(value) };
                assert_eq!(take(kind, &payload).is_ok(), fits, "{kind}: {field} = {value}");
                tried += 1;
            };
            try_one(least, true);
            try_one(most, true);
            try_one(most + 1.0, false);
            try_one(least - 1.0, false);
        }
    }
    assert!(tried >= 28, "{tried}");
}

#[test]
fn lengths_in_the_tables_are_the_agents() {
    let check = |kind: &str, field: &str, fits: Value, too_long: Value| {
        let (payload, _) = fullest(kind);
        for (value, right) in [(fits, true), (too_long, false)] {
            let mut payload = payload.clone();
            *at(&mut payload, field) = value;
            assert_eq!(take(kind, &payload).is_ok(), right, "{kind}: {field}");
        }
    };
    let limit = |kind: &str, field: &str| {
        let (_, table) = fullest(kind);
        let row = table.into_iter().find(|row| row.field == field).unwrap();
        let after = row.holds.split("at most ").nth(1).unwrap().replace(',', "");
        after.split(' ').next().unwrap().parse::<usize>().unwrap()
    };
    for (kind, field) in [
        ("deploy", "replica_id"),
        ("deploy", "request_id"),
        ("registration_success", "node_id"),
        ("registration_success", "node_token"),
    ] {
        let most = limit(kind, field);
        check(kind, field, json!("a".repeat(most)), json!("a".repeat(most + 1)));
    }
    let image = |more: usize| {
        let name = format!("a.b/{}", "a".repeat(251));
        json!(format!("{name}:{}@sha512:{}", "t".repeat(128 + more), "0".repeat(128)))
    };
    assert_eq!(image(0).as_str().unwrap().len(), limit("deploy", "image"));
    check("deploy", "image", image(0), image(1));
    let most = limit("deploy", "command");
    check("deploy", "command", json!(vec!["a"; most]), json!(vec!["a"; most + 1]));
    let variables = |count: usize| (0..count).map(|n| (format!("V{n}"), json!("x"))).collect::<Value>();
    let most = limit("deploy", "env_vars");
    check("deploy", "env_vars", variables(most), variables(most + 1));
}

#[test]
fn types_are_all_there() {
    let mut kinds: Vec<String> = messages(TO_AGENT).into_iter().map(|(kind, _)| kind).collect();
    kinds.sort_unstable();
    kinds.dedup();
    assert_eq!(
        kinds,
        ["deploy", "drain", "logs", "maintenance", "registration_success", "resume", "stop"],
        "what `read` knows"
    );
}
