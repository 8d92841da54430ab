//! `vectorlay-agent history`: uptime, the last outages and whose cause they were, from the state directory's history file.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use super::engine::{span, table};
use crate::cli::Form;
use crate::link::dates;

const WINDOWS: [(&str, u64); 3] = [("24 h", 86_400), ("7 d", 7 * 86_400), ("30 d", 30 * 86_400)];
/// Outages and other events that are shown, the newest.
const SHOWN: usize = 20;
/// Characters of a reason; `--json` has all of it.
const REASON_CHARS: usize = 80;

/// A stretch of time in one state.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Stretch {
    from: u64,
    to: u64,
    state: String,
    cause: String,
    reason: String,
}

/// `lines` are the file's; `alive` is the agent's last sign of life; both times are in seconds since 1970.
pub(super) fn render(lines: &[Value], alive: Option<u64>, now: u64, form: Form) -> String {
    let stretches = stretches(lines, alive, now);
    match form {
        Form::Text => text(lines, &stretches, now),
        Form::Json => {
            let uptime: BTreeMap<&str, Value> =
                WINDOWS.iter().map(|(name, window)| (*name, shares(&stretches, now, *window))).collect();
            let all: Vec<Value> = stretches
                .iter()
                .map(|s| json!({"from": s.from, "to": s.to, "state": s.state, "cause": s.cause, "reason": s.reason}))
                .collect();
            let events: Vec<&Value> = lines.iter().filter(|line| line.get("state").is_none()).collect();
            format!("{:#}\n", json!({ "uptime": uptime, "states": all, "events": events }))
        }
    }
}

/// From each record of a state to the next. The last one lasts until now if the agent lives, else until its last sign of
/// life, and from there on the node is offline.
fn stretches(lines: &[Value], alive: Option<u64>, now: u64) -> Vec<Stretch> {
    /// Signs of life come with each heartbeat; after three without one the agent is taken for dead.
    const SILENCE: u64 = 90;
    let text = |line: &Value, name: &str| line[name].as_str().unwrap_or_default().to_owned();
    let states =
        lines.iter().filter_map(|line| Some((line["time"].as_u64()?, line.get("state")?.as_str()?, line)));
    let mut all: Vec<Stretch> = Vec::new();
    for (time, state, line) in states {
        // A clock that was set back would make time run backwards.
        let from = all.last().map_or(time, |last| time.max(last.from));
        if let Some(last) = all.last_mut() {
            last.to = from;
        }
        let (cause, reason) = (text(line, "cause"), text(line, "reason"));
        all.push(Stretch { from, to: from, state: state.to_owned(), cause, reason });
    }
    if let Some(last) = all.last_mut() {
        let dead = alive.filter(|alive| alive + SILENCE < now && last.state != "offline");
        last.to = dead.unwrap_or(now).max(last.from);
        if let Some(alive) = dead {
            let reason = "the agent is not running".to_owned();
            let state = "offline".to_owned();
            let from = alive.max(last.from);
            all.push(Stretch { from, to: now.max(from), state, cause: "agent".to_owned(), reason });
        }
    }
    all.retain(|stretch| stretch.from < stretch.to);
    all
}

/// Percent of the window by state, of the part that is recorded; `up` is every state but offline.
fn shares(stretches: &[Stretch], now: u64, window: u64) -> Value {
    let begin = now.saturating_sub(window);
    let mut seconds: BTreeMap<&str, u64> = BTreeMap::new();
    for stretch in stretches {
        let inside = stretch.to.min(now).saturating_sub(stretch.from.max(begin));
        *seconds.entry(&stretch.state).or_default() += inside;
    }
    let recorded: u64 = seconds.values().sum();
    if recorded == 0 {
        return json!({ "recorded_s": 0 });
    }
    let percent = |part: u64| (part as f64 * 10_000.0 / recorded as f64).round() / 100.0;
    let offline = seconds.get("offline").copied().unwrap_or(0);
    let states: BTreeMap<&str, f64> = seconds.iter().map(|(state, part)| (*state, percent(*part))).collect();
    json!({ "recorded_s": recorded, "up_percent": percent(recorded - offline), "states_percent": states })
}

fn text(lines: &[Value], stretches: &[Stretch], now: u64) -> String {
    if stretches.is_empty() {
        return "nothing is recorded yet\n".to_owned();
    }
    let mut rows = vec![["WINDOW", "UP", "OF RECORDED", "STATES"].map(str::to_owned).to_vec()];
    for (name, window) in WINDOWS {
        let shares = shares(stretches, now, window);
        let up = shares["up_percent"].as_f64().map_or_else(|| "-".to_owned(), |up| format!("{up} %"));
        let states = shares["states_percent"].as_object().into_iter().flatten();
        let states: Vec<String> =
            states.filter_map(|(state, percent)| Some(format!("{state} {} %", percent.as_f64()?))).collect();
        let recorded = span(shares["recorded_s"].as_u64().unwrap_or(0));
        rows.push(vec![name.to_owned(), up, recorded, states.join(", ")]);
    }
    let mut out = table(&rows);
    let outages: Vec<&Stretch> = stretches.iter().filter(|stretch| stretch.state != "online").collect();
    if !outages.is_empty() {
        out += "\n";
        let mut rows = vec![["FROM", "FOR", "STATE", "CAUSE", "REASON"].map(str::to_owned).to_vec()];
        for outage in outages.iter().rev().take(SHOWN) {
            let cause = if outage.cause.is_empty() { "-" } else { &outage.cause };
            let length = span(outage.to - outage.from);
            rows.push(vec![
                dates::utc(outage.from),
                length,
                outage.state.clone(),
                cause.to_owned(),
                shortened(&outage.reason),
            ]);
        }
        out += &table(&rows);
    }
    let events: Vec<String> = lines.iter().filter_map(event).collect();
    if !events.is_empty() {
        out += "\n";
        out += &events[events.len().saturating_sub(SHOWN)..].concat();
    }
    out
}

fn shortened(text: &str) -> String {
    match text.char_indices().nth(REASON_CHARS) {
        Some((at, _)) => format!("{}…", &text[..at]),
        None => text.to_owned(),
    }
}

/// A GPU's or a deploy's line.
fn event(line: &Value) -> Option<String> {
    let time = dates::utc(line["time"].as_u64()?);
    let text = |name: &str| line[name].as_str().unwrap_or_default();
    let colon = if text("reason").is_empty() { "" } else { ": " };
    if line.get("gpu").is_some() {
        Some(format!("{time}  GPU {} {}{colon}{}\n", text("gpu"), text("health"), shortened(text("reason"))))
    } else if line.get("outcome").is_some() {
        Some(format!(
            "{time}  deploy of {} {}{colon}{}\n",
            text("replica"),
            text("outcome"),
            shortened(text("reason"))
        ))
    } else {
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(time: u64, state: &str, cause: &str) -> Value {
        json!({"time": time, "state": state, "cause": cause, "reason": ""})
    }

    #[test]
    fn uptime_is_of_what_is_recorded() {
        let now = 1_000_000;
        let lines = [
            line(now - 4000, "online", ""),
            line(now - 2000, "offline", "network"),
            line(now - 1000, "degraded", "engine"),
        ];
        let all = stretches(&lines, Some(now - 10), now);
        assert_eq!(
            shares(&all, now, 86_400),
            json!({"recorded_s": 4000, "up_percent": 75.0,
                   "states_percent": {"online": 50.0, "offline": 25.0, "degraded": 25.0}})
        );
        assert_eq!(shares(&all, now, 1500)["up_percent"], 66.67);
        assert_eq!(shares(&[], now, 1500), json!({"recorded_s": 0}));
    }

    #[test]
    fn an_agent_that_is_gone_is_offline_since_its_last_sign_of_life() {
        let now = 10_000;
        let check = |alive: Option<u64>, expected: &[(u64, u64, &str)]| {
            let all = stretches(&[line(1000, "online", "")], alive, now);
            let found: Vec<(u64, u64, &str)> = all.iter().map(|s| (s.from, s.to, s.state.as_str())).collect();
            assert_eq!(found, expected);
        };
        check(Some(9_990), &[(1000, 10_000, "online")]);
        check(Some(4_000), &[(1000, 4_000, "online"), (4_000, 10_000, "offline")]);
        check(None, &[(1000, 10_000, "online")]);
        // A clock that was set back.
        let lines = [line(1000, "online", ""), line(500, "offline", ""), line(2000, "online", "")];
        assert!(stretches(&lines, Some(now), now).iter().all(|s| s.from < s.to));
    }

    #[test]
    fn outages_are_shown_with_cause_and_length() {
        let lines = [
            line(100, "online", ""),
            json!({"time": 150, "gpu": "0000:41:00.0", "health": "failed", "reason": "off the bus"}),
            json!({"time": 160, "replica": "a", "outcome": "no_gpu", "reason": ""}),
            line(200, "offline", "host reboot"),
            line(320, "online", ""),
        ];
        let text = render(&lines, Some(400), 400, Form::Text);
        for part in [
            "24 h    60 %  5 min        offline 40 %, online 60 %",
            "1970-01-01 00:03:20 UTC  2 min  offline  host reboot",
            "GPU 0000:41:00.0 failed: off the bus",
            "deploy of a no_gpu\n",
        ] {
            assert!(text.contains(part), "{part}\n{text}");
        }
        let value: Value = serde_json::from_str(&render(&lines, Some(400), 400, Form::Json)).unwrap();
        assert_eq!(value["uptime"]["24 h"]["up_percent"], 60.0);
        assert_eq!(render(&[], None, 400, Form::Text), "nothing is recorded yet\n");
    }
}
