//! The status as metrics in Prometheus' text format (<https://prometheus.io/docs/instrumenting/exposition_formats/>).

use std::collections::BTreeMap;
use std::fmt::Write as _;

use serde_json::Value;

/// A metric: name, type, help, and how its samples are read from the status.
pub type Metric = (&'static str, &'static str, &'static str, fn(&Value) -> Vec<Sample>);

/// A sample: labels and value.
pub type Sample = (Vec<(&'static str, String)>, f64);

/// All metrics, in the order in which they are printed. The man page lists them.
#[rustfmt::skip]
pub const METRICS: &[Metric] = &[
    ("vectorlay_info", "gauge", "Version and node ID, as labels", info),
    ("vectorlay_node_state", "gauge", "1 for the node's state, 0 for the others", node_state),
    ("vectorlay_connected", "gauge", "Whether the control plane is connected",
        |status| plain(Some(flag(status["link"] == "connected")))),
    ("vectorlay_uptime_seconds", "gauge", "Time since the agent started", |status| plain(status["uptime_s"].as_f64())),
    ("vectorlay_connection_age_seconds", "gauge", "Time since the connection was established",
        |status| plain(status["connected_s"].as_f64())),
    ("vectorlay_heartbeat_age_seconds", "gauge", "Time since the last heartbeat was sent",
        |status| plain(status["last_heartbeat_s"].as_f64())),
    ("vectorlay_reconnects_total", "counter", "Connections after the first since the agent started",
        |status| plain(status["reconnects"].as_f64())),
    ("vectorlay_malformed_messages_total", "counter", "Messages that were ignored as malformed",
        |status| plain(status["malformed_messages"].as_f64())),
    ("vectorlay_deploys_total", "counter", "Results of deploys by outcome: running or the error code", deploys),
    ("vectorlay_deploys_waiting", "gauge", "Deploys that are queued", |status| plain(status["deploys_waiting"].as_f64())),
    ("vectorlay_results_waiting", "gauge", "Results that the control plane has not confirmed",
        |status| plain(status["results_waiting"].as_f64())),
    ("vectorlay_replicas", "gauge", "Replicas by status", replicas),
    ("vectorlay_gpu_assignable", "gauge", "Whether the GPU can be allocated, or is",
        |status| gpus(status, |gpu| gpu["assignable"].as_bool())),
    ("vectorlay_gpu_allocated", "gauge", "Whether a replica has the GPU",
        |status| gpus(status, |gpu| Some(gpu["replica_id"].is_string()))),
    ("vectorlay_gpu_healthy", "gauge", "Whether the GPU's health is ok",
        |status| gpus(status, |gpu| Some(gpu["health"].as_str()? == "ok"))),
    ("vectorlay_gpu_utilization_percent", "gauge", "Mean utilization of the GPUs that can be read",
        |status| plain(status["gpu_utilization"].as_f64())),
    ("vectorlay_gpu_memory_used_bytes", "gauge", "Memory in use on the GPUs that can be read",
        |status| plain(bytes(&status["gpu_memory_used_gb"]))),
    ("vectorlay_gpu_memory_total_bytes", "gauge", "Memory of the GPUs that can be read",
        |status| plain(bytes(&status["gpu_memory_total_gb"]))),
];

const STATES: [&str; 4] = ["online", "degraded", "draining", "maintenance"];

/// The metrics of `status`, as the agent answers it. A value that is not known is left out.
pub fn render(status: &Value) -> String {
    let mut out = String::new();
    for (name, kind, help, samples) in METRICS {
        let samples = samples(status);
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

fn plain(value: Option<f64>) -> Vec<Sample> {
    value.map(|value| (Vec::new(), value)).into_iter().collect()
}

fn flag(value: bool) -> f64 {
    if value { 1.0 } else { 0.0 }
}

fn bytes(gib: &Value) -> Option<f64> {
    gib.as_f64().map(|gib| gib * f64::from(1 << 30))
}

fn text(value: &Value) -> String {
    value.as_str().unwrap_or_default().to_owned()
}

fn info(status: &Value) -> Vec<Sample> {
    vec![(vec![("version", text(&status["version"])), ("node_id", text(&status["node_id"]))], 1.0)]
}

fn node_state(status: &Value) -> Vec<Sample> {
    let sample = |state: &str| (vec![("state", state.to_owned())], flag(status["state"] == state));
    STATES.into_iter().map(sample).collect()
}

fn deploys(status: &Value) -> Vec<Sample> {
    let outcomes = status["deploys"].as_object().into_iter().flatten();
    outcomes.filter_map(|(name, count)| Some((vec![("outcome", name.clone())], count.as_f64()?))).collect()
}

fn replicas(status: &Value) -> Vec<Sample> {
    let all = status["containers"].as_array().map_or(&[][..], Vec::as_slice);
    let mut counts: BTreeMap<&str, f64> = BTreeMap::new();
    for status in all.iter().filter_map(|replica| replica["status"].as_str()) {
        *counts.entry(status).or_default() += 1.0;
    }
    counts.into_iter().map(|(status, count)| (vec![("status", status.to_owned())], count)).collect()
}

/// One sample for each GPU of which `value` is known.
fn gpus(status: &Value, value: fn(&Value) -> Option<bool>) -> Vec<Sample> {
    let labels = |gpu: &Value| vec![("pci_address", text(&gpu["pci_address"])), ("name", text(&gpu["name"]))];
    let all = status["gpus"].as_array().into_iter().flatten();
    all.filter_map(|gpu| Some((labels(gpu), flag(value(gpu)?)))).collect()
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
        for (name, kind, ..) in METRICS {
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
