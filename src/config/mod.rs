//! The settings: one table, four sources, and where each value came from.
//!
//! ```text
//! flag --state-dir  >  VECTORLAY_STATE_DIR  >  vectorlay.state_dir= (kernel)  >  state_dir in the file  >  default
//! ```
//!
//! Order of resolution: the file's path (`--config`, else `VECTORLAY_CONFIG`, else [`DEFAULT_FILE`]), the file, then
//! `root` (not from the kernel command line, which is read below it: `<root>/proc/cmdline`), then the rest, and last the
//! token. An empty environment variable or kernel parameter counts as not set, as does `null` in the file; an empty flag
//! or text in the file is an error. Invalid values are errors. Unknown variables and kernel parameters are only warned
//! about, because a rack must still boot.
//!
//! This reads files and nothing else: no name is resolved, no directory is made.

mod cmdline;
mod file;
mod nearest;
mod show;
mod source;
mod table;
mod token;
mod value;

use std::ffi::OsString;
use std::io;
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use self::file::File;
pub use self::nearest::nearest;
pub use self::show::{json, text};
pub use self::source::Source;
pub use self::table::{
    Config, GpuCdiName, GpuHandover, LogDriver, LogFormat, Setting, TABLE, VARIABLE_PREFIX, setting,
};
use self::value::public_url;
pub use self::value::{Kind, VALUE_MAX, Value, has_password};
use crate::core::allowed::image_prefix;

/// The configuration file that is read, if it exists, when none is named.
pub const DEFAULT_FILE: &str = "/etc/vectorlay/agent.json";
/// The variable that names the configuration file.
pub const FILE_VARIABLE: &str = "VECTORLAY_CONFIG";
/// Bytes read of the kernel command line (kernels have 4 KiB at most).
const CMDLINE_MAX: u64 = 64 * 1024;

/// What the command line says about the settings.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Overrides {
    /// `--config`.
    pub file: Option<PathBuf>,
    /// The other flags in their order; of several equal ones the last wins.
    pub flags: Vec<(&'static Setting, String)>,
}

#[derive(Debug)]
pub struct Loaded {
    pub config: Config,
    /// In the table's order.
    pub settings: Vec<Effective>,
    /// The configuration file, if one was read.
    pub file: Option<PathBuf>,
    /// To be logged.
    pub warnings: Vec<String>,
    /// Why there is no token although a file was named. Commands that need no token run without it.
    pub token_error: Option<String>,
}

/// How much of the settings a command needs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Need {
    All,
    /// The running agent's socket: mistakes in the configuration file are only warnings.
    Socket,
}

/// A setting's value and source.
#[derive(Debug)]
pub struct Effective {
    pub setting: &'static Setting,
    pub value: Option<Value>,
    pub source: Source,
}

/// Merges the four sources. `environment` is the whole environment of the process.
///
/// # Errors
/// For a file that cannot be read, is not a JSON object or has an unknown key; for a value of the wrong type or range;
/// for settings that contradict each other. With [`Need::Socket`] only for values that are not the file's.
pub fn load(
    overrides: &Overrides,
    environment: impl IntoIterator<Item = (OsString, OsString)>,
    need: Need,
) -> Result<Loaded, String> {
    let environment = variables(environment);
    let mut warnings = Vec::new();
    let named = given(&environment, FILE_VARIABLE).filter(|path| !path.is_empty());
    let named = overrides.file.clone().or_else(|| named.map(PathBuf::from));
    let file = match need {
        Need::All => File::strict(named)?,
        Need::Socket => File::lenient(named, &mut warnings),
    };
    let mut sources = Sources { overrides, environment: &environment, cmdline: Vec::new(), file: &file };

    let root = sources.effective(known("root"))?;
    let root_path = root.value.as_ref().map_or_else(String::new, |value| value.shown(root.setting.kind));
    sources.cmdline = kernel_parameters(&Path::new(&root_path).join("proc/cmdline"), &mut warnings);
    sources.warn_of_unknown(&mut warnings);

    let mut settings = Vec::with_capacity(TABLE.len());
    let mut token_error = None;
    for setting in TABLE {
        let mut effective = sources.effective(setting)?;
        match setting.name {
            "token" => token_error = sources.find_token(&mut effective, &mut warnings)?,
            "proxy" => sources.find_common(&mut effective, &["HTTPS_PROXY", "https_proxy"])?,
            "no_proxy" => sources.find_common(&mut effective, &["NO_PROXY", "no_proxy"])?,
            _ => {}
        }
        settings.push(effective);
    }
    warn_of_readable_secrets(&settings, &mut warnings);
    let value_of =
        |name: &str| settings.iter().find(|s| s.setting.name == name).and_then(|s| s.value.as_ref());
    let config = Config::from_values(value_of);
    if need == Need::All {
        check_together(&config)?;
    }
    Ok(Loaded { config, settings, file: file.found(), warnings, token_error })
}

impl Config {
    /// The entries of `images`.
    pub fn image_entries(&self) -> impl Iterator<Item = &str> {
        self.images.split(',').map(str::trim)
    }

    /// The control plane's URL, which only a running agent needs.
    ///
    /// # Errors
    /// When it is not set.
    pub fn required_url(&self) -> Result<&str, String> {
        self.url.as_deref().ok_or_else(|| {
            "setting url is missing; give --url, VECTORLAY_URL, or url in the configuration file".to_owned()
        })
    }
}

/// Rules about several settings at once.
fn check_together(config: &Config) -> Result<(), String> {
    let cli = Path::new(&config.container_cli).file_name();
    let docker = cli.is_some_and(|name| name == "docker");
    if config.namespace.is_some() && docker {
        return Err("namespace is set, but docker has no namespaces; remove it".to_owned());
    }
    if config.containerd_address.is_some() && docker {
        return Err("containerd_address is set, but docker does not use it; remove it".to_owned());
    }
    let is_name = |name: &str| {
        name.len() <= 64 && name.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_'))
    };
    if config.instance.as_deref().is_some_and(|name| !is_name(name)) {
        return Err("instance must be 1 to 64 letters, digits, '-' and '_'".to_owned());
    }
    if let Some(entry) = config.image_entries().find(|entry| image_prefix(entry).is_none()) {
        return Err(format!(
            "images: {entry:?} is neither * nor a registry with or without a path, such as docker.io/library"
        ));
    }
    if config.port_min > config.port_max {
        return Err("port_min must not be above port_max".to_owned());
    }
    if config.port_address.as_deref().is_some_and(|address| address.parse::<IpAddr>().is_err()) {
        return Err("port_address must be an address of this host, such as 10.0.0.7".to_owned());
    }
    let (high, low) = (config.image_high_percent, config.image_low_percent);
    if high > 0 && !(1..high).contains(&low) {
        return Err(format!("image_low_percent must be from 1 to {}, below image_high_percent", high - 1));
    }
    Ok(())
}

/// The four sources. The values of the first three are still text.
struct Sources<'a> {
    overrides: &'a Overrides,
    environment: &'a [(String, OsString)],
    cmdline: Vec<(String, String)>,
    file: &'a File,
}

impl Sources<'_> {
    /// The setting's value from its strongest source.
    fn effective(&self, setting: &'static Setting) -> Result<Effective, String> {
        let flags = &self.overrides.flags;
        if let Some((_, text)) = flags.iter().rev().find(|(given, _)| given.name == setting.name) {
            let absolute = match setting.kind {
                Kind::Path => {
                    std::path::absolute(text).ok().and_then(|path| path.to_str().map(str::to_owned))
                }
                _ => None,
            };
            // A path that begins with '-' is a flag whose value is missing.
            let text = absolute.filter(|_| !text.starts_with('-')).unwrap_or_else(|| text.clone());
            return Effective::parse(setting, &text, Source::Flag);
        }
        let variable = given(self.environment, &setting.variable()).filter(|value| !value.is_empty());
        if let Some(value) = variable {
            return Effective::parse_os(setting, value, Source::Environment);
        }
        let parameter = given(&self.cmdline, setting.name).filter(|text| !text.is_empty());
        if let Some(text) = parameter.filter(|_| setting.name != "root") {
            return Effective::parse(setting, text, Source::KernelCommandLine);
        }
        if let Some(json) = self.file.value(setting) {
            let source = Source::File(self.file.path().to_owned());
            let Some(value) = Value::read_json(setting.kind, json) else {
                return Err(invalid_json(setting, &source, json));
            };
            return Ok(Effective { setting, value: Some(value), source });
        }
        match setting.default {
            Some(text) => Effective::parse(setting, text, Source::Default),
            None => Ok(Effective { setting, value: None, source: Source::Default }),
        }
    }

    /// Takes the value from a variable that other programs use too.
    fn find_common(&self, effective: &mut Effective, names: &[&'static str]) -> Result<(), String> {
        if effective.value.is_some() {
            return Ok(());
        }
        for name in names {
            if let Some(value) = given(self.environment, name).filter(|value| !value.is_empty()) {
                *effective = Effective::parse_os(effective.setting, value, Source::Variable(name))?;
                return Ok(());
            }
        }
        Ok(())
    }

    /// Takes the token from `token_file`, else from systemd's credentials. A missing file is not an error: a registered node
    /// needs no token, and the file may be removed then. Returns why a file is unusable; most commands need no token.
    fn find_token(
        &self,
        token: &mut Effective,
        warnings: &mut Vec<String>,
    ) -> Result<Option<String>, String> {
        if token.value.is_some() {
            return Ok(None);
        }
        let named = self.effective(known("token_file"))?;
        let named = named.value.map(|value| PathBuf::from(value.shown(Kind::Path)));
        let credentials = given(self.environment, "CREDENTIALS_DIRECTORY").filter(|path| !path.is_empty());
        let credentials = credentials.map(|path| Path::new(path).join("token"));
        for (path, is_named) in [(named, true), (credentials, false)] {
            let Some(path) = path else { continue };
            let shown = path.display();
            let unusable = match token::read(&path) {
                token::Found::Token(value) => {
                    token.value = Some(value);
                    token.source = Source::Content(path);
                    return Ok(None);
                }
                token::Found::Absent => {
                    if is_named {
                        warnings.push(format!("token_file {shown} does not exist; no token is read from it"));
                    }
                    continue;
                }
                token::Found::Unreadable(error) => {
                    format!(
                        "cannot read the token file {shown}: {error}; correct its permissions or the path"
                    )
                }
                token::Found::NotAToken => {
                    let expected = Kind::Secret.expected();
                    format!("{shown} does not contain {expected}; write the organisation token into it")
                }
            };
            token.source = Source::Unusable(path);
            return Ok(Some(unusable));
        }
        Ok(None)
    }

    fn warn_of_unknown(&self, warnings: &mut Vec<String>) {
        for (name, _) in self.environment {
            let Some(lower) = name.strip_prefix(VARIABLE_PREFIX).map(str::to_ascii_lowercase) else {
                continue;
            };
            // scripts/engine.sh exports variables for the tests.
            if setting(&lower).is_none() && name != FILE_VARIABLE && !lower.starts_with("test_") {
                let near = near(&lower).map(|setting| setting.variable());
                warnings.push(format!("unknown environment variable {name}{}", did_you_mean(near)));
            }
        }
        for (name, _) in &self.cmdline {
            if setting(name).is_none() {
                let near = near(name).map(|setting| format!("vectorlay.{}", setting.name));
                warnings.push(format!("unknown kernel parameter vectorlay.{name}{}", did_you_mean(near)));
            } else if name == "root" {
                warnings.push(
                    "kernel parameter vectorlay.root has no effect: the command line is read below root"
                        .to_owned(),
                );
            }
        }
    }
}

impl Effective {
    fn parse(setting: &'static Setting, text: &str, source: Source) -> Result<Self, String> {
        match Value::read(setting.kind, text) {
            Some(value) => Ok(Self { setting, value: Some(value), source }),
            None => Err(invalid(setting, &source, Some(format!("{text:?}")))),
        }
    }

    fn parse_os(setting: &'static Setting, text: &OsString, source: Source) -> Result<Self, String> {
        match text.to_str() {
            Some(text) => Self::parse(setting, text, source),
            None => Err(invalid(setting, &source, None)),
        }
    }
}

/// The message about an invalid value. `quoted` is the value as it may be shown; a secret never is.
fn invalid(setting: &Setting, source: &Source, quoted: Option<String>) -> String {
    // The beginning of a long value is enough to find it.
    const SHOWN_CHARS: usize = 80;
    let shown = match setting.kind {
        Kind::Secret | Kind::Proxy => None,
        Kind::Url => quoted.map(|text| public_url(&text)),
        Kind::Text | Kind::Path | Kind::Bool | Kind::Whole { .. } | Kind::Words(_) => {
            quoted.map(|text| text.chars().take(SHOWN_CHARS).collect::<String>())
        }
    };
    format!(
        "invalid setting {}, from {}: {} is not {}",
        setting.name,
        source.describe(setting),
        shown.as_deref().unwrap_or("the value"),
        setting.kind.expected()
    )
}

/// The same for a value of the configuration file, whose type may be the mistake.
fn invalid_json(setting: &Setting, source: &Source, json: &serde_json::Value) -> String {
    let kind = match json {
        serde_json::Value::Null | serde_json::Value::Bool(_) => "word",
        serde_json::Value::Number(_) => "number",
        serde_json::Value::String(_) => "text",
        serde_json::Value::Array(_) => "list",
        serde_json::Value::Object(_) => "object",
    };
    invalid(setting, source, Some(format!("the {kind} {json}")))
}

fn known(name: &str) -> &'static Setting {
    setting(name).expect("a setting of the table")
}

/// The value given under `name`.
fn given<'a, V>(all: &'a [(String, V)], name: &str) -> Option<&'a V> {
    all.iter().find(|(given, _)| given == name).map(|(_, value)| value)
}

/// The variables that matter here, by name. None of their names is anything but UTF-8.
fn variables(all: impl IntoIterator<Item = (OsString, OsString)>) -> Vec<(String, OsString)> {
    const COMMON: [&str; 5] = ["HTTPS_PROXY", "https_proxy", "NO_PROXY", "no_proxy", "CREDENTIALS_DIRECTORY"];
    let named = all.into_iter().filter_map(|(name, value)| Some((name.into_string().ok()?, value)));
    let ours = named.filter(|(name, _)| name.starts_with(VARIABLE_PREFIX) || COMMON.contains(&name.as_str()));
    let mut ours: Vec<_> = ours.collect();
    ours.sort_by(|a, b| a.0.cmp(&b.0));
    ours
}

/// Our parameters on the kernel command line; none where that file does not exist (a test's folder).
fn kernel_parameters(path: &Path, warnings: &mut Vec<String>) -> Vec<(String, String)> {
    match token::read_regular(path, CMDLINE_MAX) {
        Ok(bytes) => cmdline::parameters(&String::from_utf8_lossy(&bytes)),
        Err(error) => {
            if error.kind() != io::ErrorKind::NotFound {
                let path = path.display();
                warnings.push(format!("cannot read {path}: {error}; no kernel parameter is applied"));
            }
            Vec::new()
        }
    }
}

/// Warns of the files that hold a secret and that everyone can read.
fn warn_of_readable_secrets(settings: &[Effective], warnings: &mut Vec<String>) {
    for Effective { setting, value, source } in settings {
        let (Source::File(path) | Source::Content(path)) = source else { continue };
        let secret = value.as_ref().is_some_and(|value| match value {
            Value::Secret(secret) => setting.is_secret() || public_url(secret.expose()) != secret.expose(),
            Value::Text(text) => setting.kind == Kind::Url && public_url(text) != *text,
            Value::Bool(_) | Value::Whole(_) => false,
        });
        if secret && token::is_world_readable(path) {
            let (name, path) = (setting.name, path.display());
            warnings
                .push(format!("everyone on this host can read the {name} in {path}; run `chmod 600 {path}`"));
        }
    }
}

fn near(name: &str) -> Option<&'static Setting> {
    nearest(name, TABLE.iter().map(|setting| setting.name)).and_then(setting)
}

fn did_you_mean(name: Option<String>) -> String {
    name.map_or_else(String::new, |name| format!("; did you mean {name}?"))
}

#[cfg(test)]
mod tests;
