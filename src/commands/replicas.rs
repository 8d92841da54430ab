//! `vectorlay-agent replicas`: each replica's container, from the engine, and its status, from the agent if it runs.

use serde_json::{Value, json};

use super::engine::{Container, now, span, table};
use crate::cli::Form;

/// `status` is the running agent's answer, or why there is none.
pub(super) fn render(containers: &[Container], status: Result<&Value, &str>, form: Form) -> String {
    match form {
        Form::Text => text(containers, status, now()),
        Form::Json => {
            let all = containers.iter().map(|container| {
                json!({
                    "replica_id": container.replica,
                    "status": known(&container.replica, status),
                    "engine_status": container.status,
                    "container_id": container.id.as_str(),
                    "deploy": container.deploy,
                    "image": container.image,
                    "created": container.created,
                    "gpus": container.gpus,
                })
            });
            let (all, missing) = (all.collect::<Vec<_>>(), without_container(containers, status));
            format!("{:#}\n", json!({ "replicas": all, "without_container": missing }))
        }
    }
}

fn text(containers: &[Container], status: Result<&Value, &str>, now: u64) -> String {
    let header = ["REPLICA", "STATUS", "ENGINE", "AGE", "IMAGE", "GPUS", "CONTAINER"];
    let mut rows = vec![header.map(str::to_owned).to_vec()];
    for container in containers {
        let age = container.created.map_or_else(|| "-".to_owned(), |at| span(now.saturating_sub(at)));
        let gpus = if container.gpus.is_empty() { "-".to_owned() } else { container.gpus.join(",") };
        rows.push(vec![
            container.replica.clone(),
            known(&container.replica, status).unwrap_or("-").to_owned(),
            container.status.clone(),
            age,
            container.image.clone(),
            gpus,
            container.id.short().to_owned(),
        ]);
    }
    for (replica, status) in without_container(containers, status) {
        rows.push([replica, status, "-", "-", "-", "-", "-"].map(str::to_owned).to_vec());
    }
    let mut out = table(&rows);
    if let Err(why) = status {
        out += &format!("\nnote: {why}\n");
    }
    out
}

/// What the agent says of the replica.
fn known<'a>(replica: &str, status: Result<&'a Value, &str>) -> Option<&'a str> {
    let all = status.ok()?["containers"].as_array()?;
    all.iter().find(|known| known["replica_id"] == replica)?["status"].as_str()
}

/// Replicas that the agent knows and the engine does not: queued, pulling, or gone a moment ago.
fn without_container<'a>(
    containers: &[Container],
    status: Result<&'a Value, &str>,
) -> Vec<(&'a str, &'a str)> {
    let all = status.ok().and_then(|status| status["containers"].as_array()).into_iter().flatten();
    let pairs = all.filter_map(|known| Some((known["replica_id"].as_str()?, known["status"].as_str()?)));
    pairs.filter(|(id, _)| !containers.iter().any(|container| container.replica == *id)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::ContainerId;

    #[test]
    fn a_row_for_each_replica() {
        let container = Container {
            id: ContainerId::new(&"0123456789abcdef".repeat(4)).unwrap(),
            replica: "web-1".into(),
            deploy: "d1".into(),
            gpus: vec!["0000:41:00.0".into()],
            image: "nginx:1".into(),
            created: Some(1000),
            status: "Up".into(),
        };
        let status = json!({"containers": [{"replica_id": "web-1", "status": "running"},
                                           {"replica_id": "b", "status": "pulling"}]});
        let expected = "\
REPLICA  STATUS   ENGINE  AGE    IMAGE    GPUS          CONTAINER
web-1    running  Up      1 min  nginx:1  0000:41:00.0  0123456789ab
b        pulling  -       -      -        -             -
";
        let containers = [container];
        assert_eq!(text(&containers, Ok(&status), 1060), expected);
        let alone = text(&containers, Err("no agent is running"), 1060);
        assert!(
            alone.contains("web-1    -       Up") && alone.ends_with("\nnote: no agent is running\n"),
            "{alone}"
        );
        let value: Value = serde_json::from_str(&render(&containers, Ok(&status), Form::Json)).unwrap();
        assert_eq!(value["replicas"][0]["gpus"], json!(["0000:41:00.0"]));
        assert_eq!(value["without_container"], json!([["b", "pulling"]]));
    }
}
