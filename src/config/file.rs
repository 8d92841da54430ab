//! The configuration file: one JSON object, whose keys are settings.

use std::io;
use std::path::{Path, PathBuf};

use serde_json::{Map, Value as Json};

use super::table::Setting;
use super::value::Value;
use super::{DEFAULT_FILE, Source, invalid_json, near, setting, token};

/// The largest file, in bytes.
pub(super) const FILE_MAX: u64 = 1024 * 1024;

pub(super) struct File {
    path: PathBuf,
    exists: bool,
    keys: Map<String, Json>,
}

impl File {
    /// Reads `named`, or the default file if there is one.
    ///
    /// # Errors
    /// When the file cannot be read or parsed, or has an unknown key.
    pub(super) fn strict(named: Option<PathBuf>) -> Result<Self, String> {
        let file = Self::read(named)?;
        match file.keys.keys().find(|key| setting(key).is_none()) {
            Some(key) => Err(unknown(&file.path, key)),
            None => Ok(file),
        }
    }

    /// Reads as much as is valid; the rest is warned about.
    pub(super) fn lenient(named: Option<PathBuf>, warnings: &mut Vec<String>) -> Self {
        let mut ignored = |error: String| warnings.push(format!("{error}; ignored"));
        let mut file = Self::read(named).unwrap_or_else(|error| {
            ignored(error);
            Self { path: PathBuf::new(), exists: false, keys: Map::new() }
        });
        let path = &file.path;
        file.keys.retain(|key, json| {
            let error = match setting(key) {
                None => unknown(path, key),
                Some(setting) if !json.is_null() && Value::read_json(setting.kind, json).is_none() => {
                    invalid_json(setting, &Source::File(path.clone()), json)
                }
                Some(_) => return true,
            };
            ignored(error);
            false
        });
        file
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Its path, if there is such a file.
    pub(super) fn found(self) -> Option<PathBuf> {
        self.exists.then_some(self.path)
    }

    /// The setting's value, not yet checked; `null` counts as not set.
    pub(super) fn value(&self, setting: &Setting) -> Option<&Json> {
        self.keys.get(setting.name).filter(|json| !json.is_null())
    }

    fn read(named: Option<PathBuf>) -> Result<Self, String> {
        let is_named = named.is_some();
        let path = named.unwrap_or_else(|| PathBuf::from(DEFAULT_FILE));
        let shown = path.display();
        let bytes = match token::read_regular(&path, FILE_MAX + 1) {
            Ok(bytes) => bytes,
            Err(error) if !is_named && error.kind() == io::ErrorKind::NotFound => {
                return Ok(Self { path, exists: false, keys: Map::new() });
            }
            Err(error) => {
                return Err(format!(
                    "cannot read the configuration file {shown}: {error}; correct its path or permissions"
                ));
            }
        };
        if bytes.len() as u64 > FILE_MAX {
            return Err(format!("the configuration file {shown} is larger than {FILE_MAX} bytes"));
        }
        // serde_json's message names the place and what was expected there, never a value.
        let invalid = |why: &str| format!("the configuration file {shown} is not a JSON object: {why}");
        match serde_json::from_slice(&bytes).map_err(|error| invalid(&error.to_string()))? {
            Json::Object(keys) => Ok(Self { path, exists: true, keys }),
            _ => Err(invalid("it must be one object { … }")),
        }
    }
}

fn unknown(path: &Path, key: &str) -> String {
    let path = path.display();
    match near(key) {
        Some(near) => format!("unknown setting {key:?} in {path}; did you mean {}?", near.name),
        None => format!("unknown setting {key:?} in {path}; see `vectorlay-agent help`"),
    }
}
