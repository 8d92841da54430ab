//! The status as metrics in Prometheus' text format (<https://prometheus.io/docs/instrumenting/exposition_formats/>).

use std::fmt::Write as _;

use serde_json::Value;

/// Name, type and help of each metric. The man page lists them.
pub const METRICS: &[(&str, &str, &str)] = &[
    ("vectorlay_info", "gauge", "Version and node ID, as labels"),
    ("vectorlay_node_state", "gauge", "1 for the node's state, 0 for the others"),
    ("vectorlay_connected", "gauge", "Whether the control plane is connected"),
    ("vectorlay_uptime_seconds", "gauge", "Time since the agent started"),
    ("vectorlay_connection_age_seconds", "gauge", "Time since the connection was established"),
    ("vectorlay_heartbeat_age_seconds", "gauge", "Time since the last heartbeat was sent"),
    ("vectorlay_reconnects_total", "counter", "Connections after the first since the agent started"),
    ("vectorlay_malformed_messages_total", "counter", "Messages that were ignored as malformed"),
    ("vectorlay_deploys_total", "counter", "Results of deploys by outcome: running or the error code"),
    ("vectorlay_deploys_waiting", "gauge", "Deploys that are queued"),
    ("vectorlay_results_waiting", "gauge", "Results that the control plane has not confirmed"),
    ("vectorlay_replicas", "gauge", "Replicas by status"),
    ("vectorlay_gpu_assignable", "gauge", "Whether the GPU can be allocated, or is"),
    ("vectorlay_gpu_allocated", "gauge", "Whether a replica has the GPU"),
    ("vectorlay_gpu_healthy", "gauge", "Whether the GPU's health is ok"),
    ("vectorlay_gpu_utilization_percent", "gauge", "Mean utilization of the GPUs that can be read"),
    ("vectorlay_gpu_memory_used_bytes", "gauge", "Memory in use on the GPUs that can be read"),
    ("vectorlay_gpu_memory_total_bytes", "gauge", "Memory of the GPUs that can be read"),
];

const STATES: [&str; 4] = ["online", "degraded", "draining", "maintenance"];

/// A sample: labels and value.
type Sample = (Vec<(&'static str, String)>, f64);

/// The metrics of `status`, as the agent answers it. A value that is not known is left out.
pub fn render(status: &Value) -> String {
    let mut out = String::new();
    for (name, kind, help) in METRICS {
        let samples = samples(name, status);
        if samples.is_empty() {
            continue;
        }
        // Writing to a String cannot fail.
        let _ = write!(out, "# HELP {name} {help}\n# TYPE {name} {kind}\n");
        for (labels, value) in samples {
            let labels: Vec<String> =
                labels.iter().map(|(label, value)| format!("{label}=\"{}\"", escaped(value))).collect();
            let labels = if labels.is_empty() { String::new() } else { format!("{{{}}}", labels.join(",")) };
            let _ = writeln!(out, "{name}{labels} {value}");
        }
    }
    out
}

fn samples(name: &str, status: &Value) -> Vec<Sample> {
    let text = |field: &str| status[field].as_str().unwrap_or_default().to_owned();
    let number = |field: &str| status[field].as_f64();
    let plain = |value: Option<f64>| value.map(|value| (Vec::new(), value)).into_iter().collect();
    let flag = |value: bool| if value { 1.0 } else { 0.0 };
    let gib = |field: &str| number(field).map(|gib| gib * f64::from(1 << 30));
    let gpus = |value: &dyn Fn(&Value) -> Option<bool>| {
        let all = status["gpus"].as_array().into_iter().flatten();
        let field = |gpu: &Value, name: &str| gpu[name].as_str().unwrap_or_default().to_owned();
        let labels =
            |gpu: &Value| vec![("pci_address", field(gpu, "pci_address")), ("name", field(gpu, "name"))];
        all.filter_map(|gpu| Some((labels(gpu), flag(value(gpu)?)))).collect::<Vec<Sample>>()
    };
    match name {
        "vectorlay_info" => {
            vec![(vec![("version", text("version")), ("node_id", text("node_id"))], 1.0)]
        }
        "vectorlay_node_state" => {
            let state = text("state");
            let sample = |name: &str| (vec![("state", name.to_owned())], flag(name == state));
            STATES.into_iter().map(sample).collect()
        }
        "vectorlay_connected" => plain(Some(flag(status["link"] == "connected"))),
        "vectorlay_uptime_seconds" => plain(number("uptime_s")),
        "vectorlay_connection_age_seconds" => plain(number("connected_s")),
        "vectorlay_heartbeat_age_seconds" => plain(number("last_heartbeat_s")),
        "vectorlay_reconnects_total" => plain(number("reconnects")),
        "vectorlay_malformed_messages_total" => plain(number("malformed_messages")),
        "vectorlay_deploys_waiting" => plain(number("deploys_waiting")),
        "vectorlay_results_waiting" => plain(number("results_waiting")),
        "vectorlay_deploys_total" => {
            let outcomes = status["deploys"].as_object().into_iter().flatten();
            outcomes
                .filter_map(|(name, count)| Some((vec![("outcome", name.clone())], count.as_f64()?)))
                .collect()
        }
        "vectorlay_replicas" => {
            let all = status["containers"].as_array().map_or(&[][..], Vec::as_slice);
            let mut counts: std::collections::BTreeMap<&str, f64> = std::collections::BTreeMap::new();
            for status in all.iter().filter_map(|replica| replica["status"].as_str()) {
                *counts.entry(status).or_default() += 1.0;
            }
            counts.into_iter().map(|(status, count)| (vec![("status", status.to_owned())], count)).collect()
        }
        "vectorlay_gpu_assignable" => gpus(&|gpu| gpu["assignable"].as_bool()),
        "vectorlay_gpu_allocated" => gpus(&|gpu| Some(gpu["replica_id"].is_string())),
        "vectorlay_gpu_healthy" => gpus(&|gpu| Some(gpu["health"].as_str()? == "ok")),
        "vectorlay_gpu_utilization_percent" => plain(number("gpu_utilization")),
        "vectorlay_gpu_memory_used_bytes" => plain(gib("gpu_memory_used_gb")),
        "vectorlay_gpu_memory_total_bytes" => plain(gib("gpu_memory_total_gb")),
        other => unreachable!("{other} has no sample"),
    }
}

fn escaped(value: &str) -> String {
    value.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n")
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn every_metric_has_its_lines() {
        let status = json!({
            "version": "0.1.0", "node_id": "n-1", "state": "degraded", "link": "connected", "uptime_s": 5,
            "connected_s": 4, "last_heartbeat_s": 3, "reconnects": 2, "malformed_messages": 0,
            "deploys": {"running": 7}, "deploys_waiting": 0, "results_waiting": 1,
            "containers": [{"status": "running"}, {"status": "running"}, {"status": "exited"}],
            "gpus": [{"pci_address": "0000:41:00.0", "name": "H\"100\"", "assignable": true, "replica_id": "a",
                      "health": "suspect"}],
            "gpu_utilization": 50, "gpu_memory_used_gb": 1, "gpu_memory_total_gb": 2,
        });
        let text = render(&status);
        for (name, kind, _) in METRICS {
            assert!(text.contains(&format!("# TYPE {name} {kind}\n{name}")), "{name}\n{text}");
            assert!(!name.ends_with("_total") || *kind == "counter");
        }
        for line in [
            "vectorlay_info{version=\"0.1.0\",node_id=\"n-1\"} 1",
            "vectorlay_node_state{state=\"online\"} 0",
            "vectorlay_node_state{state=\"degraded\"} 1",
            "vectorlay_replicas{status=\"running\"} 2",
            "vectorlay_deploys_total{outcome=\"running\"} 7",
            "vectorlay_gpu_healthy{pci_address=\"0000:41:00.0\",name=\"H\\\"100\\\"\"} 0",
            "vectorlay_gpu_memory_used_bytes 1073741824",
        ] {
            assert!(text.lines().any(|other| other == line), "{line}\n{text}");
        }
    }

    #[test]
    fn what_is_not_known_is_left_out() {
        let text = render(&json!({"state": "online", "link": "waiting", "connected_s": null}));
        assert!(!text.contains("connection_age") && text.contains("vectorlay_connected 0\n"), "{text}");
    }
}
