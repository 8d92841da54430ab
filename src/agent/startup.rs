//! What the core starts from: the state directory's files, and the machine's identity.

use std::path::Path;
use std::sync::mpsc::channel;
use std::thread::Builder;
use std::time::Duration;

use serde_json::{Value, json};

use super::Error;
use crate::config::Config;
use crate::core::persistence::{RecordFile, STATE_VERSION};
use crate::core::{Mode, Origin};
use crate::host::identity;
use crate::store::{self, Directory, Found};

/// How long a new node's fingerprint may take before the node registers without one.
const FINGERPRINT_WITHIN: Duration = Duration::from_secs(10);

/// Takes the state directory's lock and reads its files.
pub(super) fn open(config: &Config) -> Result<(Directory, Origin), Error> {
    let mut directory = Directory::open(&config.state_dir).map_err(Error::Configuration)?;
    let file = config.state_dir.join(RecordFile::Node.name());
    let advice = format!(
        "restore {} from a backup, or give an organisation token (VECTORLAY_TOKEN, or a file named by token_file) to \
         register this node as a new one",
        file.display()
    );
    let known = match directory.load_identity().map_err(Error::Configuration)? {
        Found::Good(identity) => Some(identity),
        Found::Absent if config.token.is_none() => {
            return Err(Error::Configuration(format!("this node has no identity: {advice}")));
        }
        Found::Absent => None,
        Found::Damaged(what) | Found::Newer(what) if config.token.is_none() => {
            return Err(Error::Configuration(format!("this node's identity is unusable: {what}; {advice}")));
        }
        Found::Damaged(what) | Found::Newer(what) => {
            log::error!("this node's identity is unusable: {what}; registering as a new node");
            None
        }
    };
    let found = directory.load_json(RecordFile::State).map_err(Error::Configuration)?;
    let record = record(found, directory.last_mode());
    let table = match directory.load_json(RecordFile::Table) {
        Ok(Found::Good(text)) => Some(text),
        Ok(Found::Absent) => None,
        Ok(Found::Damaged(what) | Found::Newer(what)) | Err(what) => {
            log::error!("the table of replicas is unusable: {what}");
            None
        }
    };
    let seed = store::random_bytes().map_err(Error::Configuration)?;
    let fresh_key = store::random_bytes().map_err(Error::Configuration)?;
    let seed = seed.iter().take(8).fold(0, |seed, byte| seed << 8 | u64::from(*byte));
    // A known node is recognised by its ID; only a new one must be sure of its fingerprint before it registers.
    let machine_id =
        if known.is_none() { fingerprint(&config.root, config.instance.as_deref()) } else { None };
    let (token, boot_id) = (config.token.clone(), identity::boot_id(&config.root));
    Ok((directory, Origin { identity: known, fresh_key, token, record, table, seed, machine_id, boot_id }))
}

/// The record for the core. A node that was in maintenance stays there whatever became of its record: somebody may be
/// working on it.
fn record(found: Found<String>, last_mode: Option<String>) -> Option<String> {
    let trouble = match found {
        Found::Absent => return None,
        Found::Good(text) => {
            let mut value: Value = serde_json::from_str(&text).unwrap_or_default();
            let is_known = |mode: &str| mode.parse::<Mode>().is_ok();
            let mode = value.get("mode").and_then(Value::as_str);
            if mode.is_none_or(is_known) {
                return Some(text);
            }
            log::error!("the record has an unknown mode; the last known one is kept");
            value["mode"] =
                last_mode.as_deref().filter(|mode| is_known(mode)).unwrap_or("maintenance").into();
            return Some(value.to_string());
        }
        Found::Damaged(what) | Found::Newer(what) => what,
    };
    log::error!(
        "the record of accepted commands is unusable: {trouble}; recovering from the containers' labels"
    );
    let mode = last_mode.filter(|mode| mode != Mode::Online.as_str())?;
    // A word that a newer version wrote is not taken for `online`.
    let mode = mode.parse().unwrap_or(Mode::Maintenance);
    log::warn!("the node stays in state {}, as last saved", mode.as_str());
    Some(json!({ "version": STATE_VERSION, "mode": mode.as_str() }).to_string())
}

/// The machine's fingerprint, read before everything else: the rest of the hardware can take as long as its slowest driver,
/// and a node that registered without a fingerprint could not be found again.
fn fingerprint(root: &Path, instance: Option<&str>) -> Option<String> {
    let (answer, answered) = channel();
    let (root, instance) = (root.to_owned(), instance.map(str::to_owned));
    let read = move || {
        let id = identity::machine_id(&root).map(|id| identity::of_instance(id, instance.as_deref()));
        // Nobody listens any more after the deadline.
        let _ = answer.send(id);
    };
    if let Err(error) = Builder::new().name("fingerprint".into()).spawn(read) {
        log::warn!("cannot read this machine's identity: {error}");
        return None;
    }
    let Ok(id) = answered.recv_timeout(FINGERPRINT_WITHIN) else {
        log::warn!(
            "this machine's identity cannot be read within {FINGERPRINT_WITHIN:?}; registering without it"
        );
        return None;
    };
    if id.is_none() {
        log::warn!(
            "this machine has no UUID, serial number, machine-id or network card to know it by: keep {} if it is to stay \
             the same node",
            RecordFile::Node
        );
    }
    id
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_node_in_maintenance_stays_there_whatever_its_record_is() {
        let check = |found: Found<String>, last: Option<&str>, expected: Option<&str>| {
            let told = format!("{found:?} {last:?}");
            let text = record(found, last.map(str::to_owned));
            let mode = text.map(|text| serde_json::from_str::<Value>(&text).unwrap()["mode"].clone());
            assert_eq!(mode, expected.map(Value::from), "{told}");
        };
        let good = |mode: &str| Found::Good(format!(r#"{{"version":1,"mode":"{mode}"}}"#));
        let damaged = || Found::Damaged("x".to_owned());
        check(Found::Absent, Some("maintenance"), None);
        check(good("online"), Some("maintenance"), Some("online"));
        check(good("maintenance"), None, Some("maintenance"));
        check(good("frozen"), Some("draining"), Some("draining"));
        check(good("frozen"), None, Some("maintenance"));
        check(damaged(), None, None);
        check(damaged(), Some("online"), None);
        check(damaged(), Some("maintenance"), Some("maintenance"));
        check(damaged(), Some("frozen"), Some("maintenance"));
        check(Found::Newer("x".to_owned()), Some("draining"), Some("draining"));
    }
}
