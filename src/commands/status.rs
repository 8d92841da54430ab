//! `vectorlay-agent status`: the running agent's answer.

use std::fmt::Write as _;

use serde_json::Value;

use super::engine::span;
use crate::cli::Form;

/// Characters of a reason per line.
const WIDTH: usize = 100;

/// Whether the node is online and connected.
pub(super) fn is_well(answer: &Value) -> bool {
    answer["state"] == "online" && answer["link"] == "connected"
}

pub(super) fn render(answer: &Value, form: Form) -> String {
    match form {
        Form::Text => render_text(answer),
        Form::Json => format!("{answer:#}\n"),
    }
}

fn render_text(answer: &Value) -> String {
    let text = |name: &str| match answer.get(name) {
        Some(Value::String(text)) => text.clone(),
        None | Some(Value::Null) => "-".to_owned(),
        Some(other) => other.to_string(),
    };
    let mut out = String::new();
    let mut line = |name: &str, value: String| {
        // Writing to a String cannot fail.
        let _ = writeln!(out, "{name:<12} {value}");
    };
    line("node", text("node_id"));
    line("version", text("version"));
    for (name, why) in [("state", "reason"), ("link", "link_trouble")] {
        line(name, text(name));
        for part in wrapped(answer.get(why).and_then(Value::as_str).unwrap_or_default()) {
            line("", part);
        }
    }
    let number = |name: &str| answer.get(name).and_then(Value::as_u64);
    let count = |name: &str, noun: &str| match number(name).and_then(|n| usize::try_from(n).ok()) {
        Some(number) => super::counted(number, noun),
        None => format!("unknown {noun}s"),
    };
    line("", format!("to {}", text("url")));
    if let Some(connected) = number("connected_s") {
        let beat = number("last_heartbeat_s").map(|ago| format!(", last heartbeat {} ago", span(ago)));
        line("", format!("for {}{}", span(connected), beat.unwrap_or_default()));
    }
    line("", format!("{} since the agent started", count("reconnects", "reconnect")));
    line("uptime", number("uptime_s").map_or_else(|| "-".to_owned(), span));
    line(
        "waiting",
        format!("{}, {}", count("deploys_waiting", "deploy"), count("results_waiting", "result")),
    );
    line(
        "replicas",
        match number("containers_age_s") {
            None => "not listed yet".to_owned(),
            Some(age) => format!("as of {} ago", span(age)),
        },
    );
    for container in list(answer, "containers") {
        let code = container.get("exit_code").map(|code| format!(" ({code})")).unwrap_or_default();
        let gpus: Vec<&str> = list(container, "gpus").iter().filter_map(Value::as_str).collect();
        let gpus = if gpus.is_empty() { String::new() } else { format!("  {}", gpus.join(", ")) };
        let status = field(container, "status") + &code;
        line("", format!("{status:<10} {}{gpus}", field(container, "replica_id")));
    }
    for gpu in list(answer, "gpus") {
        let user = match gpu.get("replica_id").and_then(Value::as_str) {
            Some(replica) => format!("used by {replica}"),
            None if gpu.get("assignable") == Some(&Value::Bool(true)) => {
                with_reason("free", gpu.get("reason"))
            }
            None => with_reason("not assignable", gpu.get("reason")),
        };
        line("GPU", format!("{} {}: {user}", field(gpu, "pci_address"), field(gpu, "name")));
    }
    out
}

/// Lines of at most [`WIDTH`] characters, unless one word is longer.
fn wrapped(text: &str) -> Vec<String> {
    let mut lines: Vec<String> = Vec::new();
    for word in text.split_whitespace() {
        match lines.last_mut() {
            Some(line) if line.chars().count() + 1 + word.chars().count() <= WIDTH => {
                line.push(' ');
                line.push_str(word);
            }
            _ => lines.push(word.to_owned()),
        }
    }
    lines
}

fn with_reason(word: &str, reason: Option<&Value>) -> String {
    match reason.and_then(Value::as_str).filter(|reason| !reason.is_empty()) {
        Some(reason) => format!("{word}: {reason}"),
        None => word.to_owned(),
    }
}

fn list<'a>(answer: &'a Value, name: &str) -> &'a [Value] {
    answer.get(name).and_then(Value::as_array).map_or(&[], Vec::as_slice)
}

fn field(value: &Value, name: &str) -> String {
    value.get(name).and_then(Value::as_str).unwrap_or("-").to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn the_table_shows_what_the_agent_said() {
        let answer = json!({
            "node_id": "n-1", "version": "0.1.0", "state": "degraded", "reason": "containerd: gone",
            "link": "connected", "link_trouble": null,
            "url": "wss://cp/agent", "connected_s": 125, "last_heartbeat_s": 5, "reconnects": 1, "uptime_s": 130, "containers_age_s": 3, "results_waiting": 0,
            "deploys_waiting": 1,
            "containers": [{"replica_id": "a", "status": "running"},
                           {"replica_id": "b", "status": "exited", "exit_code": 7}],
            "gpus": [{"pci_address": "0000:41:00.0", "name": "H100", "assignable": true, "replica_id": "a"},
                     {"pci_address": "0000:42:00.0", "name": "H100", "assignable": false, "reason": "D3cold"}],
        });
        let text = render(&answer, Form::Text);
        for part in [
            "state        degraded\n             containerd: gone\n",
            "as of 3 s ago",
            "to wss://cp/agent",
            "for 2 min, last heartbeat 5 s ago",
            "1 reconnect since",
            "waiting      1 deploy, 0 results",
            "running    a",
            "exited (7) b",
            "used by a",
            "not assignable: D3cold",
        ] {
            assert!(text.contains(part), "{part:?} in\n{text}");
        }
    }

    #[test]
    fn what_is_not_known_is_said_and_what_is_long_is_wrapped() {
        let reason = format!("nerdctl: missing; {}kata-runtime: missing", "much more ".repeat(30));
        let answer =
            json!({"state": "degraded", "reason": reason, "link": "waiting", "containers_age_s": null});
        let text = render(&answer, Form::Text);
        assert!(text.contains("replicas     not listed yet\n"), "{text}");
        assert!(text.lines().all(|line| line.chars().count() <= 13 + WIDTH), "{text}");
        assert!(!is_well(&answer) && is_well(&json!({"state": "online", "link": "connected"})));
        assert!(!is_well(&json!({"state": "online", "link": "waiting"})));
        let words: Vec<&str> = text.split_whitespace().collect();
        assert!(words.join(" ").contains(&format!("state degraded {reason} link waiting")), "{text}");
    }
}
