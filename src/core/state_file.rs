//! The state file: what the engine cannot know, as one JSON document. Accepted commands and their outcome until it has
//! arrived, what was wanted of the node, and a last-known table as a hint. It holds no secret.

use std::str::FromStr as _;
use std::time::Instant;

use serde_json::{Map, Value, json};

use super::node::Mode;
use super::outbox::{Entry, ResultKind};
use super::persistence::STATE_VERSION;
use super::private_images::PrivateImages;
use super::replica::Replica;
use crate::types::{PciAddress, ReplicaId, RequestId};

/// Writes the document.
pub(crate) fn write<'a>(
    mode: Mode,
    held_back: impl Iterator<Item = PciAddress>,
    replicas: impl Iterator<Item = (&'a ReplicaId, &'a Replica)>,
    results: impl Iterator<Item = &'a Entry>,
    private_images: &PrivateImages,
    boot_id: Option<&str>,
) -> String {
    let result = |entry: &Entry| {
        json!({
            "type": entry.kind.as_str(),
            "replica": entry.replica.as_str(),
            "request": entry.request.as_ref().map(RequestId::as_str),
            "spec": entry.spec_hash,
            "payload": entry.payload,
        })
    };
    let held_back: Vec<String> = held_back.map(|gpu| gpu.to_string()).collect();
    let replicas: Map<String, Value> =
        replicas.map(|(id, replica)| (id.to_string(), replica.to_record())).collect();
    let results: Vec<Value> = results.map(result).collect();
    let mut document = json!({
        "version": STATE_VERSION,
        "mode": mode.as_str(),
        "gpus_held_back": held_back,
        "replicas": replicas,
        "results": results,
    });
    if let Some(private) = private_images.record() {
        document["private_images"] = private;
    }
    if let Some(boot_id) = boot_id {
        document["boot_id"] = boot_id.into();
    }
    document.to_string()
}

/// What an earlier process left.
#[derive(Debug, Default)]
pub(crate) struct Restored {
    pub(crate) mode: Option<Mode>,
    pub(crate) held_back: Vec<PciAddress>,
    pub(crate) replicas: Vec<Replica>,
    pub(crate) results: Vec<Entry>,
    pub(crate) private_images: PrivateImages,
    /// Which boot of the host it was written in.
    pub(crate) boot_id: Option<String>,
    /// What could not be read and was left out.
    pub(crate) troubles: Vec<String>,
}

/// Reads the document. What in it cannot be read is left out and named.
pub(crate) fn read(now: Instant, text: &str) -> Restored {
    let mut restored = Restored::default();
    let Ok(Value::Object(record)) = serde_json::from_str(text) else {
        restored.troubles.push("the record is not a JSON object: starting without it".to_owned());
        return restored;
    };
    if record.get("version").and_then(Value::as_u64) != Some(STATE_VERSION) {
        let trouble = "the record has another version: what it has in common with this one is used";
        restored.troubles.push(trouble.to_owned());
    }
    restored.mode = record.get("mode").and_then(Value::as_str).and_then(|word| Mode::from_str(word).ok());
    let array = |name: &str| record.get(name).and_then(Value::as_array).into_iter().flatten();
    for gpu in array("gpus_held_back").filter_map(Value::as_str) {
        match PciAddress::parse(gpu) {
            Ok(gpu) => restored.held_back.push(gpu),
            Err(invalid) => restored.troubles.push(format!("a GPU held back: {invalid}")),
        }
    }
    for value in array("results") {
        match result(value) {
            Some(entry) => restored.results.push(entry),
            None => restored.troubles.push("a result in the record cannot be read".to_owned()),
        }
    }
    restored.private_images = PrivateImages::restore(record.get("private_images"));
    restored.boot_id = record.get("boot_id").and_then(Value::as_str).map(str::to_owned);
    for (id, value) in record.get("replicas").and_then(Value::as_object).into_iter().flatten() {
        if let Some(repository) = value.pointer("/pending/private").and_then(Value::as_str) {
            restored.private_images.add(repository);
        }
        match ReplicaId::new(id) {
            Ok(id) => restored.replicas.push(Replica::from_record(now, id, value)),
            Err(invalid) => restored.troubles.push(format!("a replica in the record: {invalid}")),
        }
    }
    restored
}

fn result(value: &Value) -> Option<Entry> {
    let kind = ResultKind::from_str(value.get("type")?.as_str()?).ok()?;
    let replica = ReplicaId::new(value.get("replica")?.as_str()?).ok()?;
    let request = value.get("request").and_then(Value::as_str).and_then(|text| RequestId::new(text).ok());
    let payload = value.get("payload")?.as_object()?.clone();
    let spec = value.get("spec").and_then(Value::as_str).unwrap_or_default();
    Some(Entry::new(kind, replica, request, payload).about(spec))
}

#[cfg(test)]
mod tests {
    use super::super::cx::Cx;
    use super::*;

    /// Written by the agent before its core was divided into machines: one replica in each state that is saved.
    const V1: &str = include_str!("../../tests/core/fixtures/state-v1.json");

    #[test]
    fn a_file_of_an_earlier_agent_is_read_and_written_again_as_it_was() {
        let now = Cx::example().now;
        let restored = read(now, V1);
        assert_eq!(restored.troubles, [""; 0]);
        assert_eq!(restored.replicas.iter().map(Replica::illegal).collect::<Vec<_>>(), [None; 8]);
        let ids: Vec<ReplicaId> =
            restored.replicas.iter().map(|replica| ReplicaId::new(replica.id().as_str()).unwrap()).collect();
        let written = write(
            restored.mode.unwrap(),
            restored.held_back.into_iter(),
            ids.iter().zip(&restored.replicas),
            restored.results.iter(),
            &restored.private_images,
            restored.boot_id.as_deref(),
        );
        let [written, original] = [written.as_str(), V1].map(|text| text.parse::<Value>().unwrap());
        assert_eq!(written, original);
    }
}
