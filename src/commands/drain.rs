//! `vectorlay-agent drain --wait`: until the host can be rebooted without interrupting a tenant.

use std::time::{Duration, Instant};

use serde_json::Value;

/// How often the agent is asked.
const ASK_EVERY: Duration = Duration::from_secs(1);

/// Asks for the status until the node is in maintenance and no replica runs. `say` hears of each change.
///
/// # Errors
/// When the deadline passes, another command ends the drain, or the agent does not answer.
pub(super) fn wait(
    deadline: Option<Duration>,
    mut ask: impl FnMut() -> Result<Value, String>,
    mut say: impl FnMut(&str),
) -> Result<Value, String> {
    let began = Instant::now();
    let mut said = String::new();
    loop {
        let status = ask()?;
        let Some(left) = left(&status)? else { return Ok(status) };
        if left != said {
            say(&left);
            said.clone_from(&left);
        }
        if deadline.is_some_and(|deadline| began.elapsed() >= deadline) {
            return Err(format!("the node is not drained in time: {left}"));
        }
        std::thread::sleep(ASK_EVERY);
    }
}

/// What is still to be waited for; `None`: nothing.
fn left(status: &Value) -> Result<Option<String>, String> {
    let number = |name: &str| status[name].as_u64().and_then(|n| usize::try_from(n).ok()).unwrap_or(0);
    let is_drained = match status["state"].as_str() {
        Some("maintenance") => true,
        Some("draining") => false,
        state => return Err(format!("the node is {} again; drain it anew", state.unwrap_or("unknown"))),
    };
    let all = status["containers"].as_array().map_or(&[][..], Vec::as_slice);
    let is_over = |replica: &&Value| matches!(replica["status"].as_str(), Some("exited" | "failed"));
    let running: Vec<&str> = all
        .iter()
        .filter(|replica| !is_over(replica))
        .filter_map(|replica| replica["replica_id"].as_str())
        .collect();
    let mut parts = Vec::new();
    if !running.is_empty() {
        parts.push(format!("{} running: {}", super::counted(running.len(), "replica"), running.join(", ")));
    }
    for (field, noun) in [("deploys_waiting", "deploy"), ("results_waiting", "result")] {
        if number(field) > 0 {
            parts.push(format!("{} waiting", super::counted(number(field), noun)));
        }
    }
    if parts.is_empty() && !is_drained {
        parts.push("accepted commands are being finished".to_owned());
    }
    Ok((!parts.is_empty()).then(|| parts.join("; ")))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn status(state: &str, replicas: &[(&str, &str)]) -> Value {
        let containers: Vec<Value> =
            replicas.iter().map(|(id, status)| json!({"replica_id": id, "status": status})).collect();
        json!({"state": state, "containers": containers, "deploys_waiting": 0, "results_waiting": 0})
    }

    #[test]
    fn it_says_what_is_waited_for() {
        let check =
            |status: Value, expected: Option<&str>| assert_eq!(left(&status).unwrap().as_deref(), expected);
        check(status("draining", &[]), Some("accepted commands are being finished"));
        check(status("draining", &[("a", "running"), ("b", "exited")]), Some("1 replica running: a"));
        check(status("maintenance", &[("a", "running"), ("b", "unknown")]), Some("2 replicas running: a, b"));
        check(status("maintenance", &[("b", "exited"), ("c", "failed")]), None);
        let mut waiting = status("maintenance", &[]);
        waiting["results_waiting"] = 2.into();
        check(waiting, Some("2 results waiting"));
        assert!(left(&status("online", &[])).unwrap_err().contains("online again"));
    }

    #[test]
    fn it_ends_when_nothing_is_left_or_in_time() {
        let mut answers = vec![status("maintenance", &[]), status("draining", &[("a", "running")])];
        let mut said = Vec::new();
        let end = wait(None, || Ok(answers.pop().unwrap()), |line| said.push(line.to_owned()));
        assert_eq!(end, Ok(status("maintenance", &[])));
        assert_eq!(said, ["1 replica running: a"]);
        let running = || Ok(status("maintenance", &[("a", "running")]));
        let error = wait(Some(Duration::ZERO), running, |_| {}).unwrap_err();
        assert_eq!(error, "the node is not drained in time: 1 replica running: a");
    }
}
