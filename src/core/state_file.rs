//! The state file: what the engine cannot know, as one JSON document. Accepted commands and their outcome until it has
//! arrived, and what was wanted of the node. It holds no secret.
//!
//! The replicas of which all is told stand in a second document, the table: a hint, which counts only beside a state file
//! that says so. (A state file without `table` has all replicas itself, as those of earlier agents have.)

use std::collections::{BTreeMap, BTreeSet};
use std::str::FromStr as _;
use std::time::Instant;

use serde_json::{Map, Value, json};

use super::node::Mode;
use super::outbox::{Entry, ResultKind};
use super::persistence::{RecordFile, STATE_VERSION};
use super::private_images::PrivateImages;
use super::replica::Replica;
use crate::types::{PciAddress, ReplicaId, RequestId};

/// Writes the document. `gone`: the table has the replicas that are not named here, except for these.
pub(crate) fn write<'a>(
    mode: Mode,
    held_back: impl Iterator<Item = PciAddress>,
    replicas: &[&Replica],
    gone: Option<&[&ReplicaId]>,
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
    let results: Vec<Value> = results.map(result).collect();
    let mut document = json!({
        "version": STATE_VERSION,
        "mode": mode.as_str(),
        "gpus_held_back": held_back,
        "replicas": records(replicas.iter().copied()),
        "results": results,
    });
    if let Some(gone) = gone {
        let gone: Vec<&str> = gone.iter().map(|id| id.as_str()).collect();
        document["table"] = json!({ "gone": gone });
    }
    if let Some(private) = private_images.record() {
        document["private_images"] = private;
    }
    if let Some(boot_id) = boot_id {
        document["boot_id"] = boot_id.into();
    }
    document.to_string()
}

/// Writes the table.
pub(crate) fn write_table<'a>(replicas: impl Iterator<Item = &'a Replica>) -> String {
    json!({ "version": STATE_VERSION, "replicas": records(replicas) }).to_string()
}

fn records<'a>(replicas: impl Iterator<Item = &'a Replica>) -> Map<String, Value> {
    replicas.map(|replica| (replica.id().to_string(), replica.to_record())).collect()
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
    /// There is a table beside the state file.
    pub(crate) table: Option<Table>,
    /// What could not be read and was left out.
    pub(crate) troubles: Vec<String>,
}

/// What the state file makes of the table.
#[derive(Debug, Default)]
pub(crate) struct Table {
    /// Replicas of the table that the state file says nothing of.
    pub(crate) untouched: Vec<ReplicaId>,
    /// Replicas that the table may have and that are gone.
    pub(crate) gone: BTreeSet<ReplicaId>,
}

/// Reads the document, and the table where it counts. What in them cannot be read is left out and named.
pub(crate) fn read(now: Instant, text: &str, table: Option<&str>) -> Restored {
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
    let mut replicas = replicas(now, record.get("replicas"), &mut restored);
    if let Some(said) = record.get("table") {
        let gone = said.get("gone").and_then(Value::as_array).into_iter().flatten().filter_map(Value::as_str);
        let gone: BTreeSet<ReplicaId> = gone.filter_map(|id| ReplicaId::new(id).ok()).collect();
        if let Some(table) = table.and_then(|text| serde_json::from_str::<Value>(text).ok()) {
            let tabled = self::replicas(now, table.get("replicas"), &mut restored);
            let untouched: BTreeMap<ReplicaId, Replica> = tabled
                .into_iter()
                .filter(|(id, _)| !replicas.contains_key(id) && !gone.contains(id))
                .collect();
            restored.table = Some(Table { untouched: untouched.keys().cloned().collect(), gone });
            replicas.extend(untouched);
        } else {
            let file = RecordFile::Table;
            restored.troubles.push(format!(
                "{file} is missing or damaged: the replicas in it are known by their containers' labels alone"
            ));
        }
    }
    restored.replicas = replicas.into_values().collect();
    restored
}

fn replicas(now: Instant, records: Option<&Value>, restored: &mut Restored) -> BTreeMap<ReplicaId, Replica> {
    let mut replicas = BTreeMap::new();
    for (id, value) in records.and_then(Value::as_object).into_iter().flatten() {
        if let Some(repository) = value.pointer("/pending/private").and_then(Value::as_str) {
            restored.private_images.add(repository);
        }
        match ReplicaId::new(id) {
            Ok(id) => _ = replicas.insert(id.clone(), Replica::from_record(now, id, value)),
            Err(invalid) => restored.troubles.push(format!("a replica in the record: {invalid}")),
        }
    }
    replicas
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
        let restored = read(now, V1, Some(r#"{"replicas":{"of-a-later-agent":{}}}"#));
        assert_eq!(restored.troubles, [""; 0]);
        assert_eq!(restored.replicas.iter().map(Replica::illegal).collect::<Vec<_>>(), [None; 8]);
        let replicas: Vec<&Replica> = restored.replicas.iter().collect();
        let written = write(
            restored.mode.unwrap(),
            restored.held_back.into_iter(),
            &replicas,
            None,
            restored.results.iter(),
            &restored.private_images,
            restored.boot_id.as_deref(),
        );
        let [written, original] = [written.as_str(), V1].map(|text| text.parse::<Value>().unwrap());
        assert_eq!(written, original);
    }
    #[test]
    fn what_the_state_file_says_of_a_replica_counts_and_not_the_table() {
        let table = r#"{"version":1,"replicas":{"a":{"deploy":"a1","ran":true},"b":{"deploy":"b1"},"c":{"deploy":"c1"}}}"#;
        let state = r#"{"version":1,"mode":"online","replicas":{"b":{"deploy":"b2"},"d":{"deploy":"d1"}},"table":{"gone":["c","e"]}}"#;
        let check = |state: &str, table: Option<&str>, deploys: &[&str], troubles: usize| {
            let restored = read(Cx::example().now, state, table);
            assert_eq!(restored.replicas.iter().map(Replica::deploy_id).collect::<Vec<_>>(), deploys);
            assert_eq!(restored.troubles.len(), troubles, "{:?}", restored.troubles);
            restored.table
        };
        let found = check(state, Some(table), &["a1", "b2", "d1"], 0).unwrap();
        let id = |id: &str| ReplicaId::new(id).unwrap();
        assert_eq!(found.untouched, [id("a")]);
        assert_eq!(found.gone, BTreeSet::from([id("c"), id("e")]));
        for lost in [None, Some("{\"repl")] {
            assert!(check(state, lost, &["b2", "d1"], 1).is_none(), "the state file has all again");
        }
        let complete = state.replace("table", "of_another_time");
        assert!(check(&complete, Some(table), &["b2", "d1"], 0).is_none(), "it does not count");
    }
}
