//! What the protocol says that an agent's messages look like, as a table, and a check against it.
//!
//! A control plane in service would not do this: unknown fields are ignored there. This one is also the peer in the
//! agent's tests, and a misspelt optional field would otherwise go unseen for ever.

use serde_json::Value;

/// What a field holds.
#[derive(Clone, Copy)]
enum Is {
    Text,
    Int,
    Bool,
    List,
    Object,
    OneOf(&'static [&'static str]),
    /// The same, or `null`: not known.
    OrNull(&'static Is),
}

use Is::{Bool, Int, List, Object, OneOf, OrNull, Text};

const INT_OR_NULL: Is = OrNull(&Int);
const TEXT_OR_NULL: Is = OrNull(&Text);

/// A field: whether it must be there, its path (`*` is each element or each key), and what it holds.
type Field = (bool, &'static str, Is);

const MUST: bool = true;
const MAY: bool = false;

const NODE_STATES: Is = OneOf(&["online", "degraded", "draining", "maintenance"]);
const REPLICA_STATES: Is =
    OneOf(&["pulling", "starting", "running", "stopping", "exited", "failed", "unknown"]);
const CODES: Is = OneOf(&[
    "invalid",
    "busy",
    "no_gpu",
    "no_memory",
    "no_cpu",
    "no_disk",
    "not_allowed",
    "image_refused",
    "not_ready",
    "draining",
    "conflict",
    "pull_failed",
    "start_failed",
    "timeout",
    "cancelled",
    "interrupted",
    "runtime_unavailable",
]);

const PULL_CAUSES: Is =
    OneOf(&["not_found", "unauthorized", "rate_limited", "unreachable", "tls", "no_space"]);

const SYSTEM_INFO: &[Field] = &[
    (MUST, "hostname", TEXT_OR_NULL),
    (MUST, "cpuModel", TEXT_OR_NULL),
    (MUST, "cpuCores", INT_OR_NULL),
    (MUST, "ramGb", INT_OR_NULL),
    (MUST, "gpuInfo", List),
    (MUST, "gpuInfo/*", Text),
    (MUST, "storage", OrNull(&Object)),
    (MUST, "storage/path", Text),
    (MUST, "storage/total_gb", Int),
    (MUST, "storage/used_gb", Int),
    (MUST, "storage/usage_percent", Int),
    (MUST, "dependencies", Object),
    (MUST, "dependencies/ready", Bool),
    (MUST, "dependencies/checks", Object),
    (MUST, "dependencies/checks/containerd", Object),
    (MUST, "dependencies/checks/nerdctl", Object),
    (MUST, "dependencies/checks/kata-runtime", Object),
    (MUST, "dependencies/checks/virtiofsd", Object),
    (MUST, "dependencies/checks/vfio", Object),
    (MUST, "dependencies/checks/*", Object),
    (MUST, "dependencies/checks/*/installed", Bool),
    (MAY, "dependencies/checks/*/version", TEXT_OR_NULL),
    (MAY, "dependencies/checks/*/modules", Int),
    (MAY, "dependencies/checks/*/required", Bool),
    (MAY, "dependencies/checks/*/ok", Bool),
    (MAY, "dependencies/checks/*/detail", TEXT_OR_NULL),
    (MAY, "node_id", TEXT_OR_NULL),
    (MAY, "agent_version", Text),
    (MAY, "protocol_version", Int),
    (MAY, "machine_id", TEXT_OR_NULL),
    (MAY, "boot_id", TEXT_OR_NULL),
    (MAY, "arch", TEXT_OR_NULL),
    (MAY, "kernel", TEXT_OR_NULL),
    (MAY, "state", NODE_STATES),
    (MAY, "runtime", Text),
    (MAY, "gpus", List),
    (MUST, "gpus/*/pci_address", Text),
    (MAY, "gpus/*/vendor_id", Text),
    (MAY, "gpus/*/device_id", Text),
    (MAY, "gpus/*/name", TEXT_OR_NULL),
    (MAY, "gpus/*/class", Text),
    (MAY, "gpus/*/driver", TEXT_OR_NULL),
    (MAY, "gpus/*/iommu_group", INT_OR_NULL),
    (MAY, "gpus/*/numa_node", INT_OR_NULL),
    (MAY, "gpus/*/assignable", Bool),
    (MAY, "gpus/*/health", OneOf(&["ok", "suspect", "failed", "unknown"])),
    (MAY, "gpus/*/reason", TEXT_OR_NULL),
    (MAY, "gpus/*/replica_id", TEXT_OR_NULL),
];

const HEARTBEAT: &[Field] = &[
    (MUST, "status", Object),
    (MUST, "status/containers", List),
    (MUST, "status/containers/*/replica_id", Text),
    (MUST, "status/containers/*/status", REPLICA_STATES),
    (MAY, "status/containers/*/exit_code", INT_OR_NULL),
    (MAY, "status/containers/*/oom_killed", Bool),
    (MAY, "status/containers/*/gpus", List),
    (MAY, "status/containers/*/gpus/*", Text),
    (MUST, "status/gpu_utilization", INT_OR_NULL),
    (MAY, "status/gpu_utilization_source", TEXT_OR_NULL),
    (MAY, "status/gpu_memory_used_gb", INT_OR_NULL),
    (MAY, "status/gpu_memory_total_gb", INT_OR_NULL),
    (MUST, "status/memory_used_gb", INT_OR_NULL),
    (MUST, "status/memory_total_gb", INT_OR_NULL),
    (MAY, "status/memory_free_mb", INT_OR_NULL),
    (MUST, "status/storage", OrNull(&Object)),
    (MUST, "status/storage/path", Text),
    (MUST, "status/storage/total_gb", Int),
    (MUST, "status/storage/used_gb", Int),
    (MUST, "status/storage/usage_percent", Int),
    (MAY, "status/state", NODE_STATES),
    (MAY, "status/gpus_total", Int),
    (MAY, "status/gpus_free", Int),
    (MAY, "status/containers_age_s", INT_OR_NULL),
];

const DEPLOY_RESULT: &[Field] = &[
    (MUST, "replica_id", Text),
    (MUST, "status", OneOf(&["running", "failed"])),
    (MAY, "error", Text),
    (MAY, "request_id", Text),
    (MAY, "container_id", Text),
    (MAY, "code", CODES),
    (MAY, "detail_code", PULL_CAUSES),
    (MAY, "duration_ms", Int),
    (MAY, "warnings", List),
    (MAY, "warnings/*", Text),
    (MAY, "gpus", List),
    (MAY, "gpus/*", Text),
];

const STOP_RESULT: &[Field] = &[
    (MUST, "replica_id", Text),
    (MUST, "status", OneOf(&["stopped", "failed"])),
    (MAY, "error", Text),
    (MAY, "code", CODES),
    (MAY, "request_id", Text),
];

const REPLICA_STATUS: &[Field] = &[
    (MUST, "replica_id", Text),
    (MUST, "status", REPLICA_STATES),
    (MAY, "exit_code", INT_OR_NULL),
    (MAY, "oom_killed", Bool),
    (MAY, "reason", Text),
];

const NODE_STATE: &[Field] = &[(MUST, "state", NODE_STATES), (MUST, "reason", TEXT_OR_NULL)];

const LOGS: &[Field] = &[
    (MUST, "replica_id", Text),
    (MAY, "request_id", Text),
    (MAY, "error", Text),
    (MUST, "lines", List),
    (MUST, "lines/*", Text),
    (MUST, "truncated", Bool),
];

/// The types that an agent sends.
const TYPES: &[(&str, &[Field])] = &[
    ("system_info", SYSTEM_INFO),
    ("heartbeat", HEARTBEAT),
    ("deploy_result", DEPLOY_RESULT),
    ("stop_result", STOP_RESULT),
    ("replica_status", REPLICA_STATUS),
    ("node_state", NODE_STATE),
    ("logs", LOGS),
];

/// The name of the type in the contract, if it has one.
pub fn known(name: &str) -> Option<&'static str> {
    TYPES.iter().map(|(known, _)| *known).find(|known| *known == name)
}

/// All that is wrong with a message; empty when nothing is.
pub fn check(name: &str, payload: &Value) -> Vec<String> {
    let Some((_, fields)) = TYPES.iter().find(|(known, _)| *known == name) else {
        return vec!["unknown type".to_owned()];
    };
    let mut wrong = Vec::new();
    walk(fields, &mut Vec::new(), payload, &mut wrong);
    let result = matches!(name, "deploy_result" | "stop_result");
    if result && (payload["status"] == "failed") != payload["error"].is_string() {
        wrong.push("error does not go with status".to_owned());
    }
    wrong
}

/// Checks `value`, which lies at `path`, and what is below it.
fn walk<'v>(fields: &[Field], path: &mut Vec<&'v str>, value: &'v Value, wrong: &mut Vec<String>) {
    let here = |pattern: &str| covers(pattern, path) == Some(0);
    for (_, _, is) in fields.iter().filter(|(_, pattern, _)| here(pattern)) {
        if !holds(*is, value) {
            wrong.push(format!("{}: wrong kind of value", path.join("/")));
            return;
        }
    }
    let children: Vec<(&str, &Value)> = match value {
        Value::Object(map) => map.iter().map(|(key, child)| (key.as_str(), child)).collect(),
        Value::Array(items) => items.iter().map(|child| ("*", child)).collect(),
        _ => return,
    };
    for (must, pattern, _) in fields {
        // The parent of the last segment is here: then that segment has to be among the children.
        let last = pattern.rsplit('/').next().unwrap_or(pattern);
        let missing = *must && last != "*" && !children.iter().any(|(key, _)| *key == last);
        if missing && covers(pattern, path) == Some(1) && value.is_object() {
            wrong.push(format!("{}/{last}: missing", path.join("/")));
        }
    }
    for (key, child) in children {
        path.push(key);
        if fields.iter().any(|(_, pattern, _)| covers(pattern, path).is_some()) {
            walk(fields, path, child, wrong);
        } else {
            wrong.push(format!("{}: unknown field", path.join("/").escape_debug()));
        }
        path.pop();
    }
}

/// How many segments `pattern` goes on after `path`, when it begins like it.
fn covers(pattern: &str, path: &[&str]) -> Option<usize> {
    let mut segments = pattern.split('/');
    for part in path {
        let segment = segments.next()?;
        if segment != "*" && segment != *part {
            return None;
        }
    }
    Some(segments.count())
}

fn holds(is: Is, value: &Value) -> bool {
    match is {
        Text => value.is_string(),
        Int => value.is_i64() || value.is_u64(),
        Bool => value.is_boolean(),
        List => value.is_array(),
        Object => value.is_object(),
        OrNull(is) => value.is_null() || holds(*is, value),
        OneOf(words) => value.as_str().is_some_and(|word| words.contains(&word)),
    }
}

#[cfg(test)]
#[path = "../../../tests/support/protocol_page.rs"]
mod page;

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use serde_json::json;

    use super::*;

    fn system_info() -> Value {
        let mut messages = page::messages(page::FROM_AGENT).into_iter();
        messages.find(|(name, _)| name == "system_info").unwrap().1
    }

    #[test]
    fn every_example_of_the_protocol_is_right() {
        let messages = page::messages(page::FROM_AGENT);
        for (name, payload) in &messages {
            assert_eq!(check(name, payload), [""; 0], "{name} {payload}");
        }
        let shown: BTreeSet<&str> = messages.iter().map(|(name, _)| name.as_str()).collect();
        assert_eq!(shown, TYPES.iter().map(|(name, _)| *name).collect());
    }

    #[test]
    fn the_table_has_the_protocols_fields() {
        for (name, fields) in TYPES {
            let written = |pattern: &str| {
                pattern.replace("checks/*", "checks/NAME").replace("/*/", "[].").replace('/', ".")
            };
            // What stands for the fields below it, and the elements of a list, have no row of their own.
            let below = |pattern: &str, field: &str| {
                field.strip_prefix(pattern).is_some_and(|rest| rest.starts_with('/') && !rest.ends_with("/*"))
            };
            let under_another_name = |pattern: &str| {
                let path: Vec<&str> = pattern.split('/').collect();
                fields.iter().any(|(_, field, _)| *field != pattern && covers(field, &path) == Some(0))
            };
            let is_leaf = |pattern: &str| {
                !fields.iter().any(|(_, field, _)| below(pattern, field)) && !under_another_name(pattern)
            };
            let leaves: BTreeSet<String> = fields
                .iter()
                .filter(|(_, pattern, _)| !pattern.ends_with("/*") && is_leaf(pattern))
                .map(|(_, pattern, _)| written(pattern))
                .collect();
            let all: BTreeSet<String> = fields.iter().map(|(_, pattern, _)| written(pattern)).collect();
            let rows = page::rows();
            let of_type = |row: &&page::Row| row.part == page::FROM_AGENT && row.kind == *name;
            let told: BTreeSet<String> = rows.iter().filter(of_type).map(|row| row.field.clone()).collect();
            assert_eq!(leaves.difference(&told).collect::<Vec<_>>(), [""; 0], "{name}: not in the protocol");
            assert_eq!(told.difference(&all).collect::<Vec<_>>(), [""; 0], "{name}: only in the protocol");
        }
        let OneOf(codes) = CODES else { panic!("words") };
        assert_eq!(page::words("| code | meaning |"), codes.iter().map(|code| (*code).to_owned()).collect());
        let OneOf(causes) = PULL_CAUSES else { panic!("words") };
        assert_eq!(
            page::words("| detail_code | meaning |"),
            causes.iter().map(|cause| (*cause).to_owned()).collect()
        );
        let OneOf(states) = NODE_STATES else { panic!("words") };
        assert_eq!(page::words("| state | meaning |"), states.iter().map(|s| (*s).to_owned()).collect());
    }

    #[test]
    fn what_is_wrong_is_named() {
        let check_wrong = |name: &str, payload: Value, said: &str| {
            assert_eq!(check(name, &payload), [said], "{name} {payload}");
        };
        let result = |extra: &str, value: Value| {
            let mut payload = json!({"replica_id": "a", "status": "running"});
            payload[extra] = value;
            payload
        };
        check_wrong("deploy_result", result("requestId", json!("r")), "requestId: unknown field");
        check_wrong("deploy_result", result("status", json!("ok")), "status: wrong kind of value");
        check_wrong("deploy_result", result("error", json!("e")), "error does not go with status");
        check_wrong("deploy_result", result("duration_ms", json!(1.5)), "duration_ms: wrong kind of value");
        check_wrong("deploy_result", result("gpus", json!([1])), "gpus/*: wrong kind of value");
        check_wrong("deploy_result", json!({"status": "running"}), "/replica_id: missing");
        check_wrong("telemetry", json!({}), "unknown type");

        let at = |pointer: &str, value: Value| {
            let mut payload = system_info();
            *payload.pointer_mut(pointer).unwrap() = value;
            payload
        };
        check_wrong("system_info", at("/ramGb", json!("512")), "ramGb: wrong kind of value");
        check_wrong(
            "system_info",
            at("/dependencies/checks/vfio", json!({"modules": 4})),
            "dependencies/checks/vfio/installed: missing",
        );
        check_wrong(
            "system_info",
            at("/storage", json!({"path": "/", "total_gb": 1, "used_gb": 1})),
            "storage/usage_percent: missing",
        );
    }
}
