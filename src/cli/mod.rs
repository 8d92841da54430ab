//! The command line: arguments in, an [`Invocation`] out. Parsing is pure: nothing is read, printed or done here, and a
//! setting's value is checked where all its sources are merged (`config`).

mod completions;
mod table;
mod text;

use std::ffi::OsString;
use std::path::PathBuf;
use std::time::Duration;

use lexopt::Arg;

use self::table::{COMMANDS, CONFIG, FLAGS, Flag};
use crate::config::{self, Kind, Overrides, Setting, TABLE};
use crate::core::operator::Request;
use crate::types::{PciAddress, ReplicaId};

pub const PROGRAM: &str = "vectorlay-agent";
pub const VERSION: &str = env!("CARGO_PKG_VERSION");
/// Of the sources, and of the build; `unknown` where the build did not say (scripts/build-static.sh does).
pub const COMMIT: &str = match option_env!("VECTORLAY_COMMIT") {
    Some(commit) => commit,
    None => "unknown",
};
pub const BUILD_DATE: &str = match option_env!("VECTORLAY_BUILD_DATE") {
    Some(date) => date,
    None => "unknown",
};

#[derive(Debug, PartialEq)]
pub struct Invocation {
    pub command: Command,
    /// What the flags say about the settings.
    pub overrides: Overrides,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Command {
    Run,
    Config(Form),
    Check(Form),
    Info(Form),
    /// Starts a container of the agent's own, with these GPUs.
    Prove(Vec<PciAddress>, Form),
    Status {
        form: Form,
        watch: bool,
    },
    Replicas(Form),
    /// `tail`: lines to begin with.
    Logs {
        replica: ReplicaId,
        follow: bool,
        tail: u32,
    },
    History(Form),
    Metrics,
    Report,
    /// Sent to the running agent, whose status is printed after it.
    Request(Request, Form),
    /// `deadline`: `None` waits for ever.
    DrainAndWait {
        form: Form,
        deadline: Option<Duration>,
    },
    VfioStatus(Form),
    VfioBind(VfioChange),
    VfioUnbind(VfioChange),
    /// Help, version, completion script or man page.
    Print(String),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Form {
    Text,
    Json,
}

/// What to bind to vfio-pci or unbind, and how.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VfioChange {
    pub target: VfioTarget,
    pub dry_run: bool,
    /// Include the boot display, groups with disks or network cards, and GPUs that may be in use.
    pub force: bool,
    /// Do the same at each boot.
    pub persist: bool,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum VfioTarget {
    /// These devices and the rest of their IOMMU groups.
    These(Vec<PciAddress>),
    /// All but the boot display.
    All,
    /// Those noted for each boot, and those that the setting `vfio_bind` names.
    Saved,
}

/// Parses `arguments`, which do not include the program's name.
///
/// # Errors
/// What is wrong with the command line, and the nearest valid name.
pub fn parse(arguments: impl IntoIterator<Item = OsString>) -> Result<Invocation, String> {
    let mut given = Given::default();
    let mut overrides = Overrides::default();
    let mut parser = lexopt::Parser::from_args(arguments);
    loop {
        let flag = match parser.next().map_err(parser_error)? {
            None => break,
            Some(Arg::Value(word)) => {
                given.words.push(utf8(word, "argument")?);
                continue;
            }
            Some(Arg::Short(short)) => match FLAGS.iter().find(|flag| flag.short == Some(short)) {
                Some(flag) => flag.name.to_owned(),
                None => return Err(unknown_flag(&format!("-{short}"), None)),
            },
            Some(Arg::Long(flag)) => flag.to_owned(),
        };
        if let Some(setting) = TABLE.iter().find(|setting| setting.flag() == flag) {
            let value = setting_value(&mut parser, setting)?;
            overrides.flags.push((setting, value));
        } else if flag == CONFIG.name {
            overrides.file = Some(PathBuf::from(parser.value().map_err(parser_error)?));
        } else if let Some(known) = FLAGS.iter().find(|known| known.name == flag) {
            let value = match known.value {
                Some(_) => Some(utf8(parser.value().map_err(parser_error)?, "flag's value")?),
                None => None,
            };
            given.flags.push((known.name, value));
        } else {
            let near = config::nearest(&flag, flag_names().iter().map(String::as_str)).map(str::to_owned);
            return Err(unknown_flag(&format!("--{flag}"), near));
        }
    }
    Ok(Invocation { command: given.command()?, overrides })
}

/// A command line without the settings: words and the commands' own flags, in order.
#[derive(Debug, Default)]
struct Given {
    words: Vec<String>,
    flags: Vec<(&'static str, Option<String>)>,
}

impl Given {
    fn has(&self, flag: &Flag) -> bool {
        self.flags.iter().any(|(name, _)| *name == flag.name)
    }

    /// The flag's value; of several the last.
    fn value(&self, flag: &Flag) -> Option<&str> {
        self.flags.iter().rev().find(|(name, _)| *name == flag.name)?.1.as_deref()
    }

    fn command(&self) -> Result<Command, String> {
        if self.has(&table::VERSION) {
            return Ok(Command::Print(text::version(self.form())));
        }
        if self.has(&table::HELP) {
            return if self.words.is_empty() {
                Ok(Command::Print(text::help()))
            } else {
                help_on(&self.words)
            };
        }
        let (row, arguments) = match self.words.as_slice() {
            [] => (&COMMANDS[0], &[][..]),
            words => match find(words)? {
                Found::Command(row, arguments) => (row, arguments),
                Found::Group(first) => {
                    let offered: Vec<&str> = subcommands(first).collect();
                    return Err(format!("{first} needs a subcommand: {}", offered.join(", ")));
                }
            },
        };
        let foreign = |flag: &&'static str| !row.flags.iter().any(|own| own.name == *flag);
        if let Some(flag) = self.flags.iter().map(|(name, _)| *name).find(|flag| foreign(flag)) {
            return Err(format!("{0} has no flag --{flag}; see `{PROGRAM} help {0}`", row.name));
        }
        let (count, missing) = row.takes.count();
        if let Some(extra) = arguments.get(*count.end()) {
            return Err(unexpected_argument(extra));
        }
        if arguments.len() < *count.start() {
            return Err(format!("{missing}; see `{PROGRAM} help {}`", row.name));
        }
        (row.make)(self, arguments)
    }
}

/// The version for a person, as `vectorlay-agent version` prints it.
pub fn version() -> String {
    text::version(Form::Text)
}

/// Help on the command that `words` begin with, or on the group of commands with that first word.
fn help_on(words: &[String]) -> Result<Command, String> {
    Ok(Command::Print(match find(words)? {
        Found::Command(row, _) => text::help_for(row),
        Found::Group(first) => text::help_for_group(first),
    }))
}

enum Found<'a> {
    /// The command and its arguments.
    Command(&'static table::Row, &'a [String]),
    /// The first word of commands with two, and no second.
    Group(&'a str),
}

fn find(words: &[String]) -> Result<Found<'_>, String> {
    let first = words[0].as_str();
    if let Some(row) = COMMANDS.iter().find(|row| row.name == first) {
        return Ok(Found::Command(row, &words[1..]));
    }
    if subcommands(first).next().is_none() {
        let known = COMMANDS.iter().filter_map(|row| row.name.split(' ').next());
        return Err(unknown_command(first, config::nearest(first, known)));
    }
    let Some(second) = words.get(1) else { return Ok(Found::Group(first)) };
    let both = format!("{first} {second}");
    match COMMANDS.iter().find(|row| row.name == both) {
        Some(row) => Ok(Found::Command(row, &words[2..])),
        None => Err(unknown_command(&both, config::nearest(second, subcommands(first)))),
    }
}

/// The second words of the commands that begin with `first`.
fn subcommands(first: &str) -> impl Iterator<Item = &'static str> {
    let pairs = COMMANDS.iter().filter_map(|row| row.name.split_once(' '));
    pairs.filter(move |(group, _)| *group == first).map(|(_, second)| second)
}

/// A setting's value. A secret is refused: everyone on the host can read a command line.
fn setting_value(parser: &mut lexopt::Parser, setting: &'static Setting) -> Result<String, String> {
    let secret = |instead: &str| {
        let (flag, variable) = (setting.flag(), setting.variable());
        Err(format!("--{flag} would expose a secret to everyone on this host; use {instead}{variable}"))
    };
    if setting.is_secret() {
        return secret("--token-file or ");
    }
    let value = match setting.kind {
        Kind::Bool => parser.optional_value().unwrap_or_else(|| "true".into()),
        Kind::Text
        | Kind::Path
        | Kind::Whole { .. }
        | Kind::Words(_)
        | Kind::Secret
        | Kind::Url
        | Kind::Proxy => parser.value().map_err(parser_error)?,
    };
    let value = utf8(value, "flag's value")?;
    match setting.kind {
        Kind::Proxy if config::has_password(&value) => secret("the configuration file or "),
        _ => Ok(value),
    }
}

fn utf8(text: OsString, what: &str) -> Result<String, String> {
    text.into_string().map_err(|_| format!("{what} is not UTF-8"))
}

/// The names of all flags that can be given.
fn flag_names() -> Vec<String> {
    let settings = TABLE.iter().filter(|setting| !setting.is_secret()).map(Setting::flag);
    settings.chain(FLAGS.iter().chain(&[&CONFIG]).map(|flag| flag.name.to_owned())).collect()
}

fn unknown_command(name: &str, near: Option<&str>) -> String {
    match near {
        Some(near) => format!("unknown command {name:?}; did you mean {near}?"),
        None => format!("unknown command {name:?}; see `{PROGRAM} help`"),
    }
}

/// `near` is without the dashes.
fn unknown_flag(flag: &str, near: Option<String>) -> String {
    match near {
        Some(near) => format!("unknown flag {flag}; did you mean --{near}?"),
        None => format!("unknown flag {flag}; see `{PROGRAM} help`"),
    }
}

fn unexpected_argument(word: &str) -> String {
    format!("unexpected argument {word:?}; see `{PROGRAM} help`")
}

fn parser_error(error: lexopt::Error) -> String {
    match error {
        lexopt::Error::MissingValue { option } => {
            format!("{} needs a value; see `{PROGRAM} help`", option.unwrap_or_default())
        }
        lexopt::Error::UnexpectedValue { option, .. } => format!("{option} takes no value"),
        // lexopt's other errors come from conversions that are not used here.
        _ => "argument is not UTF-8".to_owned(),
    }
}

#[cfg(test)]
mod tests;
