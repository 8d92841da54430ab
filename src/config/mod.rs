//! The settings: one table, four sources, and where each value came from.
//!
//! ```text
//! flag --state-dir  >  VECTORLAY_STATE_DIR  >  vectorlay.state_dir= at the kernel  >  state_dir in the file  >  default
//! ```
//!
//! The order of resolution: the file's path (`--config`, else `VECTORLAY_CONFIG`, else [`DEFAULT_FILE`]), the file,
//! then `root` (which the kernel command line cannot set, being read below it: `<root>/proc/cmdline`), then the
//! rest, and last the token. An empty environment variable or kernel word counts as not set, so does `null` in the
//! file; an empty flag or text in the file is an error. What nobody can have meant is an error; unknown variables
//! and kernel words are only warned about, for a rack must still boot.
//!
//! It reads files and nothing else: no names are looked up, no directory is made.

mod cmdline;
mod nearest;
mod show;
mod table;
mod token;
mod value;

use std::ffi::OsString;
use std::fmt;
use std::io;
use std::path::{Path, PathBuf};

pub use nearest::nearest;
pub use show::{json, text};
pub use table::{Config, GpuCdi, GpuHandover, LogDriver, LogFormat, Row, TABLE, row};
pub use value::{Kind, Source, VALUE_MAX, Value, has_password};

/// The configuration file that is read, if it exists, when none is named.
pub const DEFAULT_FILE: &str = "/etc/vectorlay/agent.json";
/// What the names of our environment variables begin with.
pub const VARIABLE_PREFIX: &str = "VECTORLAY_";
/// The variable that names the configuration file.
pub const FILE_VARIABLE: &str = "VECTORLAY_CONFIG";
/// The largest configuration file, in bytes.
const FILE_MAX: u64 = 1024 * 1024;
/// The most that is read of the kernel command line (kernels have 4 KiB at most).
const CMDLINE_MAX: u64 = 64 * 1024;

/// What the command line says about the settings.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Overrides {
    /// `--config`.
    pub file: Option<PathBuf>,
    /// The other flags in their order; of several equal ones the last wins.
    pub flags: Vec<(&'static Row, String)>,
}

/// The settings in force.
#[derive(Debug)]
pub struct Loaded {
    /// Their values.
    pub config: Config,
    /// Each with its source, in the table's order.
    pub settings: Vec<Setting>,
    /// What is to be logged.
    pub warnings: Vec<String>,
    /// Why there is no token though a file was named: what needs none goes on without it.
    pub token_error: Option<Error>,
}

/// How much of the settings a command needs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Need {
    /// All of them.
    All,
    /// Where the running agent listens: what is wrong in the configuration file is a warning.
    Socket,
}

/// One setting in force.
#[derive(Debug)]
pub struct Setting {
    /// Its row.
    pub row: &'static Row,
    /// Its value, if it has one.
    pub value: Option<Value>,
    /// Where that came from.
    pub source: Source,
}

/// Merges the four sources. `environment` is the process's, whole.
///
/// # Errors
/// [`Error`] for a file that cannot be read, is no JSON object or has an unknown key; for a value of the wrong type
/// or range; for settings that do not go together. With [`Need::Socket`] only for values that are not the file's.
pub fn load(
    overrides: &Overrides,
    environment: impl IntoIterator<Item = (OsString, OsString)>,
    need: Need,
) -> Result<Loaded, Error> {
    let environment = variables(environment);
    let mut warnings = Vec::new();
    let file = match need {
        Need::All => File::read(overrides, &environment)?.known()?,
        Need::Socket => File::what_is_good(overrides, &environment, &mut warnings),
    };
    let mut sources = Sources { overrides, environment: &environment, cmdline: Vec::new(), file: &file };

    let root_row = row("root").expect("a row of the table");
    let root = sources.setting(root_row)?;
    let root_path = root.value.as_ref().map_or_else(String::new, |value| value.shown(root_row.kind));
    sources.cmdline = kernel_words(&Path::new(&root_path).join("proc/cmdline"), &mut warnings);
    sources.warn_of_unknown(&mut warnings);

    let mut settings = Vec::with_capacity(TABLE.len());
    let mut token_error = None;
    for row in TABLE {
        let mut setting = sources.setting(row)?;
        match row.name {
            "token" => token_error = sources.find_token(&mut setting, &mut warnings)?,
            "proxy" => sources.find_common(&mut setting, &["HTTPS_PROXY", "https_proxy"])?,
            "no_proxy" => sources.find_common(&mut setting, &["NO_PROXY", "no_proxy"])?,
            _ => {}
        }
        settings.push(setting);
    }
    let value_of = |name: &str| settings.iter().find(|s| s.row.name == name).and_then(|s| s.value.as_ref());
    let config = Config::from_values(value_of);
    if need == Need::All {
        check_together(&config)?;
    }
    Ok(Loaded { config, settings, warnings, token_error })
}

impl Config {
    /// The control plane's URL, without which the agent cannot run (though all the other commands can).
    ///
    /// # Errors
    /// [`Error::NoUrl`].
    pub fn required_url(&self) -> Result<&str, Error> {
        self.url.as_deref().ok_or(Error::NoUrl)
    }
}

/// A rule about several settings at once.
fn check_together(config: &Config) -> Result<(), Error> {
    let cli = Path::new(&config.container_cli).file_name();
    if config.namespace.is_some() && cli.is_some_and(|name| name == "docker") {
        return Err(Error::Together("namespace is set, but docker has none; leave namespace out"));
    }
    let (high, low) = (config.image_high_percent, config.image_low_percent);
    if high > 0 && !(1..high).contains(&low) {
        return Err(Error::Together(
            "image_high_percent is set, but image_low_percent is not between 0 and it; set it, or leave both out",
        ));
    }
    Ok(())
}

/// The four sources. Of the first three the values are still text.
struct Sources<'a> {
    overrides: &'a Overrides,
    environment: &'a [(String, OsString)],
    cmdline: Vec<(String, String)>,
    file: &'a File,
}

impl Sources<'_> {
    /// The strongest value of `row`.
    fn setting(&self, row: &'static Row) -> Result<Setting, Error> {
        let flags = &self.overrides.flags;
        if let Some((_, text)) = flags.iter().rev().find(|(given, _)| given.name == row.name) {
            let absolute = match row.kind {
                Kind::Path => {
                    std::path::absolute(text).ok().and_then(|path| path.to_str().map(str::to_owned))
                }
                _ => None,
            };
            // A path that begins with '-' is a flag that lost its value.
            let text = absolute.filter(|_| !text.starts_with('-')).unwrap_or_else(|| text.clone());
            return Setting::read(row, &text, Source::Flag);
        }
        let variable = given(self.environment, &row.variable()).filter(|value| !value.is_empty());
        if let Some(value) = variable {
            let text = value.to_str().ok_or_else(|| Error::value(row, &Source::Environment, None))?;
            return Setting::read(row, text, Source::Environment);
        }
        if let Some(text) =
            given(&self.cmdline, row.name).filter(|text| !text.is_empty() && row.name != "root")
        {
            return Setting::read(row, text, Source::KernelCommandLine);
        }
        if let Some(json) = self.file.keys.get(row.name).filter(|json| !json.is_null()) {
            let source = Source::File(self.file.path.clone());
            let Some(value) = Value::read_json(row.kind, json) else {
                return Err(Error::json_value(row, &source, json));
            };
            return Ok(Setting { row, value: Some(value), source });
        }
        match row.default {
            Some(text) => Setting::read(row, text, Source::Default),
            None => Ok(Setting { row, value: None, source: Source::Default }),
        }
    }

    /// Takes the value from a variable that is not ours alone.
    fn find_common(&self, setting: &mut Setting, names: &[&'static str]) -> Result<(), Error> {
        if setting.value.is_some() {
            return Ok(());
        }
        for name in names {
            if let Some(value) = given(self.environment, name).filter(|value| !value.is_empty()) {
                let source = Source::Variable(name);
                let text = value.to_str().ok_or_else(|| Error::value(setting.row, &source, None))?;
                *setting = Setting::read(setting.row, text, source)?;
                return Ok(());
            }
        }
        Ok(())
    }

    /// Takes the token from `token_file`, else from systemd's credentials. A file that is not there is no error: a
    /// node that is registered needs no token, and it may be taken away then. One that cannot be used is returned: most
    /// commands need no token either.
    fn find_token(&self, setting: &mut Setting, warnings: &mut Vec<String>) -> Result<Option<Error>, Error> {
        if setting.value.is_some() {
            if let Source::File(path) = &setting.source {
                warn_if_world_readable(path, token::world_readable(path), warnings);
            }
            return Ok(None);
        }
        let named = self.setting(row("token_file").expect("a row of the table"))?;
        let named = named.value.map(|value| PathBuf::from(value.shown(Kind::Path)));
        let credentials = given(self.environment, "CREDENTIALS_DIRECTORY").filter(|path| !path.is_empty());
        let credentials = credentials.map(|path| Path::new(path).join("token"));
        for (path, is_named) in [(named, true), (credentials, false)] {
            let Some(path) = path else { continue };
            let unusable = match token::read(&path) {
                token::Found::Token(value, readable) => {
                    warn_if_world_readable(&path, readable, warnings);
                    setting.value = Some(value);
                    setting.source = Source::Content(path);
                    return Ok(None);
                }
                token::Found::Absent if is_named => {
                    warnings.push(format!(
                        "token_file {} does not exist: no token is read from it",
                        path.display()
                    ));
                    continue;
                }
                token::Found::Absent => continue,
                token::Found::Unreadable(source) => Error::TokenUnreadable { path: path.clone(), source },
                token::Found::NotAToken => Error::NotAToken { path: path.clone() },
            };
            setting.source = Source::Unusable(path);
            return Ok(Some(unusable));
        }
        Ok(None)
    }

    /// Names the variables and kernel words that no setting has.
    fn warn_of_unknown(&self, warnings: &mut Vec<String>) {
        for (name, _) in self.environment {
            let Some(setting) = name.strip_prefix(VARIABLE_PREFIX) else { continue };
            let setting = setting.to_ascii_lowercase();
            // The tests' own, as scripts/engine.sh exports them, are nobody's typing error.
            if row(&setting).is_none() && name != FILE_VARIABLE && !setting.starts_with("test_") {
                let near = near(&setting).map(|row| row.variable());
                warnings
                    .push(format!("the environment's {name} is no setting{}", did_you_mean(near.as_deref())));
            }
        }
        for (name, _) in &self.cmdline {
            if row(name).is_none() {
                let near = near(name).map(|row| format!("vectorlay.{}", row.name));
                let hint = did_you_mean(near.as_deref());
                warnings.push(format!("vectorlay.{name} on the kernel command line is no setting{hint}"));
            } else if name == "root" {
                warnings.push(
                    "vectorlay.root on the kernel command line has no effect: the line is read below root"
                        .to_owned(),
                );
            }
        }
    }
}

impl Setting {
    fn read(row: &'static Row, text: &str, source: Source) -> Result<Self, Error> {
        match Value::read(row.kind, text) {
            Some(value) => Ok(Self { row, value: Some(value), source }),
            None => Err(Error::value(row, &source, Some(format!("{text:?}")))),
        }
    }
}

/// The configuration file, read.
struct File {
    path: PathBuf,
    keys: serde_json::Map<String, serde_json::Value>,
}

impl File {
    fn read(overrides: &Overrides, environment: &[(String, OsString)]) -> Result<Self, Error> {
        let variable = given(environment, FILE_VARIABLE).filter(|path| !path.is_empty());
        let named = overrides.file.clone().or_else(|| variable.map(PathBuf::from));
        let is_named = named.is_some();
        let path = named.unwrap_or_else(|| PathBuf::from(DEFAULT_FILE));
        let bytes = match token::read_regular(&path, FILE_MAX + 1) {
            Ok(bytes) => bytes,
            Err(error) if !is_named && error.kind() == io::ErrorKind::NotFound => {
                return Ok(Self { path, keys: serde_json::Map::new() });
            }
            Err(source) => return Err(Error::FileUnreadable { path, source }),
        };
        if bytes.len() as u64 > FILE_MAX {
            return Err(Error::FileTooLarge { path });
        }
        // serde_json's text names the place and what was expected there, never a value.
        let json: serde_json::Value = serde_json::from_slice(&bytes)
            .map_err(|error| Error::FileSyntax { path: path.clone(), what: error.to_string() })?;
        let serde_json::Value::Object(keys) = json else {
            return Err(Error::FileSyntax { path, what: "it is not one object { … }".to_owned() });
        };
        Ok(Self { path, keys })
    }

    /// Itself, unless a key is no setting.
    fn known(self) -> Result<Self, Error> {
        match self.keys.keys().find(|key| row(key).is_none()) {
            Some(key) => Err(Error::UnknownKey { path: self.path, key: key.clone() }),
            None => Ok(self),
        }
    }

    /// What can be used of it; the rest is told.
    fn what_is_good(
        overrides: &Overrides,
        environment: &[(String, OsString)],
        warnings: &mut Vec<String>,
    ) -> Self {
        let mut file = Self::read(overrides, environment).unwrap_or_else(|error| {
            warnings.push(format!("{error}; going on without it"));
            Self { path: PathBuf::new(), keys: serde_json::Map::new() }
        });
        let path = &file.path;
        file.keys.retain(|key, json| {
            let error = match row(key) {
                None => Error::UnknownKey { path: path.clone(), key: key.clone() },
                Some(row) if !json.is_null() && Value::read_json(row.kind, json).is_none() => {
                    Error::json_value(row, &Source::File(path.clone()), json)
                }
                Some(_) => return true,
            };
            warnings.push(format!("{error}; going on without it"));
            false
        });
        file
    }
}

/// What was given under `name`.
fn given<'a, V>(all: &'a [(String, V)], name: &str) -> Option<&'a V> {
    all.iter().find(|(given, _)| given == name).map(|(_, value)| value)
}

/// The variables that matter here, by name. A name that is not UTF-8 is none of them.
fn variables(all: impl IntoIterator<Item = (OsString, OsString)>) -> Vec<(String, OsString)> {
    const COMMON: [&str; 5] = ["HTTPS_PROXY", "https_proxy", "NO_PROXY", "no_proxy", "CREDENTIALS_DIRECTORY"];
    let named = all.into_iter().filter_map(|(name, value)| Some((name.into_string().ok()?, value)));
    let ours = named.filter(|(name, _)| name.starts_with(VARIABLE_PREFIX) || COMMON.contains(&name.as_str()));
    let mut ours: Vec<_> = ours.collect();
    ours.sort_by(|a, b| a.0.cmp(&b.0));
    ours
}

/// Our words on the kernel command line. A host without that file (a test's folder) has none.
fn kernel_words(path: &Path, warnings: &mut Vec<String>) -> Vec<(String, String)> {
    match token::read_regular(path, CMDLINE_MAX) {
        Ok(bytes) => cmdline::ours(&String::from_utf8_lossy(&bytes)),
        Err(error) => {
            if error.kind() != io::ErrorKind::NotFound {
                warnings.push(format!(
                    "no setting is read from the kernel command line {}: {error}",
                    path.display()
                ));
            }
            Vec::new()
        }
    }
}

fn warn_if_world_readable(path: &Path, readable: token::WorldReadable, warnings: &mut Vec<String>) {
    if readable == token::WorldReadable::Yes {
        let path = path.display();
        warnings.push(format!("everyone on this machine can read the token in {path}: chmod 600 {path}"));
    }
}

fn near(name: &str) -> Option<&'static Row> {
    nearest(name, TABLE.iter().map(|row| row.name)).and_then(row)
}

fn did_you_mean(name: Option<&str>) -> String {
    name.map_or_else(String::new, |name| format!("; did you mean {name}?"))
}

/// Why there is no configuration.
#[derive(Debug)]
pub enum Error {
    /// The configuration file cannot be read.
    FileUnreadable {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The configuration file has more than 1 MiB.
    FileTooLarge {
        /// The file.
        path: PathBuf,
    },
    /// The configuration file is no JSON object.
    FileSyntax {
        /// The file.
        path: PathBuf,
        /// What is wrong, and where.
        what: String,
    },
    /// The configuration file has a key that is no setting.
    UnknownKey {
        /// The file.
        path: PathBuf,
        /// The key.
        key: String,
    },
    /// A value has the wrong type or range.
    Value {
        /// The setting.
        row: &'static Row,
        /// Where the value came from, in words.
        source: String,
        /// The value in quotes; `None` for one that must not be shown, or cannot.
        value: Option<String>,
    },
    /// The token's file is there but cannot be read.
    TokenUnreadable {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The token's file does not hold a token.
    NotAToken {
        /// The file.
        path: PathBuf,
    },
    /// There is no `url`.
    NoUrl,
    /// Settings that do not go together: which, and what to do.
    Together(&'static str),
}

impl Error {
    /// Of a value in the configuration file, which has a type of its own.
    fn json_value(row: &'static Row, source: &Source, json: &serde_json::Value) -> Self {
        let kind = match json {
            serde_json::Value::Null | serde_json::Value::Bool(_) => "word",
            serde_json::Value::Number(_) => "number",
            serde_json::Value::String(_) => "text",
            serde_json::Value::Array(_) => "list",
            serde_json::Value::Object(_) => "object",
        };
        Self::value(row, source, Some(format!("the {kind} {json}")))
    }

    fn value(row: &'static Row, source: &Source, quoted: Option<String>) -> Self {
        // A wrong value may be long; what it begins with is enough to find it.
        const SHOWN_CHARS: usize = 80;
        let shown = match row.kind {
            Kind::Secret | Kind::Proxy => None,
            Kind::Text | Kind::Path | Kind::Bool | Kind::Whole { .. } | Kind::Words(_) => {
                quoted.map(|text| text.chars().take(SHOWN_CHARS).collect())
            }
        };
        Self::Value { row, source: source.describe(row), value: shown }
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::FileUnreadable { path, source } => {
                let path = path.display();
                write!(
                    f,
                    "reading the configuration file {path}: {source}; correct its path or its permissions"
                )
            }
            Self::FileTooLarge { path } => {
                let path = path.display();
                write!(f, "the configuration file {path} has more than {FILE_MAX} bytes; name the right file")
            }
            Self::FileSyntax { path, what } => {
                write!(f, "the configuration file {} is no JSON object: {what}; correct it", path.display())
            }
            Self::UnknownKey { path, key } => {
                let path = path.display();
                write!(f, "{key:?} in the configuration file {path} is no setting; ")?;
                match near(key) {
                    Some(row) => write!(f, "did you mean {}?", row.name),
                    None => f.write_str("see `vectorlay-agent help` for all of them"),
                }
            }
            Self::Value { row, source, value } => {
                write!(f, "setting {}, from {source}: ", row.name)?;
                match value {
                    Some(value) => f.write_str(value)?,
                    None => f.write_str("the value")?,
                }
                write!(f, " is not {}; correct it or leave it out", row.kind.expected())
            }
            Self::TokenUnreadable { path, source } => {
                let path = path.display();
                write!(f, "reading the token in {path}: {source}; correct its permissions or the path")
            }
            Self::NotAToken { path } => {
                let (path, expected) = (path.display(), Kind::Secret.expected());
                write!(f, "what {path} holds is not {expected}; write the organisation's token into it")
            }
            Self::NoUrl => f.write_str(
                "the control plane's url is not set; give it with --url, with VECTORLAY_URL, or in the configuration file",
            ),
            Self::Together(what) => f.write_str(what),
        }
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::FileUnreadable { source, .. } | Self::TokenUnreadable { source, .. } => Some(source),
            Self::FileTooLarge { .. }
            | Self::FileSyntax { .. }
            | Self::UnknownKey { .. }
            | Self::Value { .. }
            | Self::NotAToken { .. }
            | Self::NoUrl
            | Self::Together(_) => None,
        }
    }
}

#[cfg(test)]
mod tests;
