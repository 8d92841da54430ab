//! JSON objects and arrays taken apart without a tree of their values: what is kept borrows from the text.

use std::collections::BTreeMap;
use std::fmt;

use serde::de::{Deserialize, Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde_json::value::RawValue;

/// The fields that the protocol has; all others are skipped.
const KNOWN: [&str; 25] = [
    "command",
    "container",
    "cpus",
    "deploy_timeout_s",
    "env_vars",
    "gpu_count",
    "host",
    "image",
    "memory_mb",
    "node_id",
    "node_token",
    "password",
    "pids_limit",
    "ports",
    "protocol",
    "pull",
    "registry_auth",
    "replica_id",
    "request_id",
    "server",
    "shm_size_mb",
    "stop_timeout_s",
    "tail",
    "timeout_s",
    "username",
];

/// `text` as a `T`; `None` when it is anything else.
pub(super) fn parse<'a, T: Deserialize<'a>>(text: &'a str) -> Option<T> {
    serde_json::from_str(text).ok()
}

/// An object's known fields. Where a name stands twice, the last one counts.
#[derive(Default)]
pub(super) struct Fields<'a>(BTreeMap<&'static str, &'a RawValue>);

impl<'a> Fields<'a> {
    /// The field's JSON text, unless it is absent or `null`.
    pub(super) fn get(&self, name: &str) -> Option<&'a str> {
        debug_assert!(KNOWN.contains(&name), "{name} is read but not known");
        self.0.get(name).map(|raw| raw.get()).filter(|text| *text != "null")
    }
}

impl<'de> Deserialize<'de> for Fields<'de> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Reader;
        impl<'de> Visitor<'de> for Reader {
            type Value = Fields<'de>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Fields<'de>, A::Error> {
                let mut fields = BTreeMap::new();
                while let Some(name) = map.next_key::<String>()? {
                    match KNOWN.iter().find(|known| **known == name) {
                        Some(known) => drop(fields.insert(*known, map.next_value()?)),
                        None => drop(map.next_value::<IgnoredAny>()?),
                    }
                }
                Ok(Fields(fields))
            }
        }
        deserializer.deserialize_map(Reader)
    }
}

/// An array of at most `MAX` values; a longer one is an error, found before the rest is read.
pub(super) struct List<'a, const MAX: usize>(pub(super) Vec<&'a RawValue>);

impl<'de, const MAX: usize> Deserialize<'de> for List<'de, MAX> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Reader<const MAX: usize>;
        impl<'de, const MAX: usize> Visitor<'de> for Reader<MAX> {
            type Value = List<'de, MAX>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "an array of at most {MAX}")
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Self::Value, A::Error> {
                let mut list = Vec::new();
                while let Some(value) = seq.next_element()? {
                    if list.len() == MAX {
                        return Err(serde::de::Error::invalid_length(MAX + 1, &self));
                    }
                    list.push(value);
                }
                Ok(List(list))
            }
        }
        deserializer.deserialize_seq(Reader)
    }
}

/// An object's entries by name, whatever they are called; no more than `MAX` are kept. Where a name stands twice, the
/// last one counts.
pub(super) struct Entries<'a, const MAX: usize> {
    pub(super) entries: BTreeMap<String, &'a RawValue>,
    /// Whether there are more than `MAX`.
    pub(super) too_many: bool,
}

impl<'de, const MAX: usize> Deserialize<'de> for Entries<'de, MAX> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Reader<const MAX: usize>;
        impl<'de, const MAX: usize> Visitor<'de> for Reader<MAX> {
            type Value = Entries<'de, MAX>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
                let mut read = Entries { entries: BTreeMap::new(), too_many: false };
                while let Some(name) = map.next_key::<String>()? {
                    if read.entries.len() < MAX || read.entries.contains_key(&name) {
                        read.entries.insert(name, map.next_value()?);
                    } else {
                        map.next_value::<IgnoredAny>()?;
                        read.too_many = true;
                    }
                }
                Ok(read)
            }
        }
        deserializer.deserialize_map(Reader)
    }
}
