//! The command line: one table of commands, and the settings' flags from their table. Parsing is pure: arguments
//! in, an [`Invocation`] out; nothing is read, printed or done here, and a setting's value is judged where all
//! sources are (`config`).

mod text;

use std::ffi::OsString;
use std::fmt;
use std::io::{self, Write};
use std::path::PathBuf;

use lexopt::Arg;

use crate::config::{self, Kind, Overrides, Row, TABLE};
use crate::core::operator::Request;
use crate::types::PciAddress;

/// The program's name.
pub const PROGRAM: &str = "vectorlay-agent";
/// The program's version.
pub const VERSION: &str = env!("CARGO_PKG_VERSION");

/// A command line, understood.
#[derive(Debug, PartialEq)]
pub struct Invocation {
    /// What to do.
    pub command: Command,
    /// What it says about the settings.
    pub overrides: Overrides,
}

/// What a person, or the supervisor, asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Command {
    /// Run the agent.
    Run,
    /// Show the settings in force.
    Config(Form),
    /// Check the dependencies and GPUs.
    Check(Form),
    /// Show the hardware.
    Info(Form),
    /// Ask the running agent how the node is.
    Status(Form),
    /// Ask the running agent for something else.
    Ask(Request),
    /// Show which devices are bound to VFIO.
    VfioStatus(Form),
    /// Bind GPUs to VFIO.
    VfioBind(VfioChange),
    /// Give GPUs back to their own drivers.
    VfioUnbind(VfioChange),
    /// Print this text: help, version, completion or man page.
    Print(String),
}

/// For whom an answer is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Form {
    /// For people.
    Text,
    /// For machines.
    Json,
}

/// What to bind or unbind, and how.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VfioChange {
    /// Which GPUs.
    pub what: VfioTarget,
    /// Only show what would be written.
    pub dry_run: bool,
    /// The boot display, groups with disks or networks, and what only seems to be in use, too.
    pub force: bool,
    /// At each boot from now on, too.
    pub persist: bool,
}

/// Which GPUs to bind or unbind.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum VfioTarget {
    /// These, with all else in their groups.
    These(Vec<PciAddress>),
    /// All but the boot display.
    All,
    /// Those noted for each boot, and those that the setting `vfio_bind` names.
    Saved,
}

/// Understands `arguments` (without the program's name).
///
/// # Errors
/// [`UsageError`], which names the nearest known word.
pub fn parse(arguments: impl IntoIterator<Item = OsString>) -> Result<Invocation, UsageError> {
    let mut given = Given::default();
    let mut overrides = Overrides::default();
    let mut parser = lexopt::Parser::from_args(arguments);
    loop {
        let flag = match parser.next().map_err(usage_error)? {
            None => break,
            Some(Arg::Value(word)) => {
                given.words.push(utf8(word, "an argument")?);
                continue;
            }
            Some(Arg::Short('h')) => "help".to_owned(),
            Some(Arg::Short('V')) => "version".to_owned(),
            Some(Arg::Short(other)) => return Err(UsageError::UnknownFlag(format!("-{other}"), None)),
            Some(Arg::Long(flag)) => flag.to_owned(),
        };
        if let Some(row) = TABLE.iter().find(|row| row.flag() == flag) {
            let value = setting_value(&mut parser, row)?;
            overrides.flags.push((row, value));
        } else if flag == CONFIG.name {
            overrides.file = Some(PathBuf::from(parser.value().map_err(usage_error)?));
        } else if let Some(known) = FLAGS.iter().find(|known| known.name == flag) {
            given.flags.push(known.name);
        } else {
            let near = config::nearest(&flag, flag_names().iter().map(String::as_str)).map(str::to_owned);
            return Err(UsageError::UnknownFlag(format!("--{flag}"), near));
        }
    }
    Ok(Invocation { command: given.command()?, overrides })
}

/// Writes `text`. That nobody reads it to the end (`… | head`) is no error.
///
/// # Errors
/// When it cannot be written for another reason.
pub fn print(out: &mut dyn Write, text: &str) -> io::Result<()> {
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        result => result,
    }
}

/// A flag that belongs to commands.
struct Flag {
    name: &'static str,
    doc: &'static str,
}

const JSON: Flag = Flag { name: "json", doc: "Answer in JSON" };
const ALL: Flag = Flag { name: "all", doc: "All GPUs instead of single ones" };
const DRY_RUN: Flag = Flag { name: "dry-run", doc: "Only show what would be written" };
const FORCE: Flag = Flag {
    name: "force",
    doc: "The boot display, groups with disks or networks, and what only seems to be in use, too",
};
const PERSIST: Flag = Flag { name: "persist", doc: "At each boot from now on, too" };
const SAVED: Flag = Flag {
    name: "saved",
    doc: "Those of --persist and of the setting vfio_bind: for the boot, before the agent",
};
const HELP: Flag = Flag { name: "help", doc: "Show help, for a command where one is given" };
const SHOW_VERSION: Flag = Flag { name: "version", doc: "Show the version" };
/// Stands in the help with these, but takes a value.
const CONFIG: Flag =
    Flag { name: "config", doc: "The configuration file; by default /etc/vectorlay/agent.json" };

/// All of them that take no value.
const FLAGS: &[&Flag] = &[&JSON, &ALL, &DRY_RUN, &FORCE, &PERSIST, &SAVED, &HELP, &SHOW_VERSION];

/// What a command takes after its words.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Takes {
    Nothing,
    Address,
    Addresses,
    CommandName,
    Shell,
}

impl Takes {
    fn placeholder(self) -> &'static str {
        match self {
            Self::Nothing => "",
            Self::Address => "ADDRESS",
            Self::Addresses => "ADDRESS…",
            Self::CommandName => "[COMMAND]",
            Self::Shell => "bash",
        }
    }
}

/// One command.
struct CommandRow {
    /// One word or two.
    words: &'static str,
    takes: Takes,
    flags: &'static [&'static Flag],
    doc: &'static str,
    make: fn(&Given, &[String]) -> Result<Command, UsageError>,
}

const fn command(
    words: &'static str,
    takes: Takes,
    flags: &'static [&'static Flag],
    doc: &'static str,
    make: fn(&Given, &[String]) -> Result<Command, UsageError>,
) -> CommandRow {
    CommandRow { words, takes, flags, doc, make }
}

const BIND_FLAGS: &[&Flag] = &[&ALL, &SAVED, &DRY_RUN, &FORCE, &PERSIST];
const UNBIND_FLAGS: &[&Flag] = &[&ALL, &DRY_RUN, &FORCE, &PERSIST];

/// All commands; the first is the one that is meant when none is given.
const COMMANDS: &[CommandRow] = &[
    command("run", Takes::Nothing, &[], "Run the agent (this is also done without a command)", |_, _| {
        Ok(Command::Run)
    }),
    command(
        "config",
        Takes::Nothing,
        &[&JSON],
        "Show the settings in force and their sources",
        |given, _| Ok(Command::Config(given.form())),
    ),
    command(
        "check",
        Takes::Nothing,
        &[&JSON],
        "Check whether this node is ready, and what to do",
        |given, _| Ok(Command::Check(given.form())),
    ),
    command("info", Takes::Nothing, &[&JSON], "Show the hardware", |given, _| {
        Ok(Command::Info(given.form()))
    }),
    command("status", Takes::Nothing, &[&JSON], "Ask the running agent how the node is", |given, _| {
        Ok(Command::Status(given.form()))
    }),
    command(
        "drain",
        Takes::Nothing,
        &[],
        "Take no more deploys; maintenance once what was accepted is done",
        |_, _| Ok(Command::Ask(Request::Drain)),
    ),
    command("maintenance", Takes::Nothing, &[], "Take no more deploys; replicas run on", |_, _| {
        Ok(Command::Ask(Request::Maintenance))
    }),
    command("resume", Takes::Nothing, &[], "Take deploys again", |_, _| Ok(Command::Ask(Request::Resume))),
    command("recheck", Takes::Nothing, &[], "Have the dependencies checked now", |_, _| {
        Ok(Command::Ask(Request::Recheck))
    }),
    command("gpu hold", Takes::Address, &[], "Hand a GPU out no more", |_, arguments| {
        Ok(Command::Ask(Request::GpuHold(address(&arguments[0])?)))
    }),
    command("gpu release", Takes::Address, &[], "Hand a GPU out again", |_, arguments| {
        Ok(Command::Ask(Request::GpuRelease(address(&arguments[0])?)))
    }),
    command("vfio status", Takes::Nothing, &[&JSON], "Show what is bound to VFIO", |given, _| {
        Ok(Command::VfioStatus(given.form()))
    }),
    command("vfio bind", Takes::Addresses, BIND_FLAGS, "Bind GPUs' groups to VFIO", |given, arguments| {
        Ok(Command::VfioBind(given.change(arguments)?))
    }),
    command(
        "vfio unbind",
        Takes::Addresses,
        UNBIND_FLAGS,
        "Give GPUs back to their own drivers",
        |given, arguments| Ok(Command::VfioUnbind(given.change(arguments)?)),
    ),
    command("help", Takes::CommandName, &[], "Show help", |_, arguments| {
        if arguments.is_empty() {
            return Ok(Command::Print(text::help()));
        }
        help_on(arguments)
    }),
    command("version", Takes::Nothing, &[], "Show the version", |_, _| Ok(Command::Print(text::version()))),
    command("completions", Takes::Shell, &[], "Print a script for the shell's completion", |_, arguments| {
        match arguments[0].as_str() {
            "bash" => Ok(Command::Print(text::bash())),
            other => Err(UsageError::NotOffered { what: other.to_owned(), offered: "bash" }),
        }
    }),
    command("man", Takes::Nothing, &[], "Print the man page", |_, _| Ok(Command::Print(text::man()))),
];

/// The words and the commands' flags of a command line.
#[derive(Debug, Default)]
struct Given {
    words: Vec<String>,
    flags: Vec<&'static str>,
}

impl Given {
    fn has(&self, flag: &Flag) -> bool {
        self.flags.contains(&flag.name)
    }

    fn form(&self) -> Form {
        if self.has(&JSON) { Form::Json } else { Form::Text }
    }

    fn change(&self, arguments: &[String]) -> Result<VfioChange, UsageError> {
        let what = match (arguments.first(), self.has(&ALL), self.has(&SAVED)) {
            (Some(all), false, false) if all == "all" => {
                return Err(UsageError::NotOffered { what: all.clone(), offered: "--all" });
            }
            (Some(_), false, false) => {
                VfioTarget::These(arguments.iter().map(|text| address(text)).collect::<Result<_, _>>()?)
            }
            (None, true, false) => VfioTarget::All,
            (None, false, true) => VfioTarget::Saved,
            (Some(extra), _, _) => return Err(UsageError::Unexpected(extra.clone())),
            (None, true, true) => return Err(UsageError::Unexpected("--saved".to_owned())),
            (None, false, false) => return Err(UsageError::Missing("the GPUs' PCI addresses or --all")),
        };
        let (dry_run, force, persist) = (self.has(&DRY_RUN), self.has(&FORCE), self.has(&PERSIST));
        Ok(VfioChange { what, dry_run, force, persist })
    }

    fn command(&self) -> Result<Command, UsageError> {
        if self.has(&SHOW_VERSION) {
            return Ok(Command::Print(text::version()));
        }
        if self.words.is_empty() && self.has(&HELP) {
            return Ok(Command::Print(text::help()));
        }
        if self.has(&HELP) {
            return help_on(&self.words);
        }
        let (row, arguments) =
            if self.words.is_empty() { (&COMMANDS[0], &[][..]) } else { find(&self.words)? };
        if let Some(flag) = self.flags.iter().find(|flag| !row.flags.iter().any(|own| own.name == **flag)) {
            return Err(UsageError::NotForCommand { flag, command: row.words });
        }
        let most = match row.takes {
            Takes::Nothing => 0,
            Takes::Address | Takes::Shell => 1,
            Takes::Addresses | Takes::CommandName => usize::MAX,
        };
        if let Some(extra) = arguments.get(most) {
            return Err(UsageError::Unexpected(extra.clone()));
        }
        match row.takes {
            Takes::Address if arguments.is_empty() => Err(UsageError::Missing("the GPU's PCI address")),
            Takes::Shell if arguments.is_empty() => Err(UsageError::Missing("the shell's name (bash)")),
            Takes::Nothing | Takes::Address | Takes::Shell | Takes::Addresses | Takes::CommandName => {
                (row.make)(self, arguments)
            }
        }
    }
}

/// Help on the command that `words` begin with, or on all that have their first word.
fn help_on(words: &[String]) -> Result<Command, UsageError> {
    match find(words) {
        Err(UsageError::Incomplete { command, .. }) => Ok(Command::Print(text::help_for_group(&command))),
        found => found.map(|(row, _)| Command::Print(text::help_for(row))),
    }
}

/// The command that `words` begin with, and the rest of them.
fn find(words: &[String]) -> Result<(&'static CommandRow, &[String]), UsageError> {
    let first = words[0].as_str();
    if let Some(row) = COMMANDS.iter().find(|row| row.words == first) {
        return Ok((row, &words[1..]));
    }
    let second_words =
        || COMMANDS.iter().filter_map(|row| row.words.split_once(' ')).filter(|(a, _)| *a == first);
    if second_words().next().is_none() {
        let known = COMMANDS.iter().filter_map(|row| row.words.split(' ').next());
        return Err(UsageError::UnknownCommand(words[0].clone(), config::nearest(first, known)));
    }
    let Some(second) = words.get(1) else {
        let offered: Vec<&str> = second_words().map(|(_, second)| second).collect();
        return Err(UsageError::Incomplete { command: words[0].clone(), offered: offered.join(", ") });
    };
    let both = format!("{first} {second}");
    match COMMANDS.iter().find(|row| row.words == both) {
        Some(row) => Ok((row, &words[2..])),
        None => {
            let near = config::nearest(second, second_words().map(|(_, second)| second));
            Err(UsageError::UnknownCommand(both, near))
        }
    }
}

/// A setting's value. A secret is refused, for everyone can read a command line.
fn setting_value(parser: &mut lexopt::Parser, row: &'static Row) -> Result<String, UsageError> {
    if row.is_secret() {
        return Err(UsageError::Secret(row));
    }
    let value = match row.kind {
        Kind::Bool => parser.optional_value().unwrap_or_else(|| "true".into()),
        Kind::Text | Kind::Path | Kind::Whole { .. } | Kind::Words(_) | Kind::Secret | Kind::Proxy => {
            parser.value().map_err(usage_error)?
        }
    };
    let value = utf8(value, "a flag's value")?;
    match row.kind {
        Kind::Proxy if config::has_password(&value) => Err(UsageError::Secret(row)),
        _ => Ok(value),
    }
}

fn utf8(text: OsString, what: &'static str) -> Result<String, UsageError> {
    text.into_string().map_err(|_| UsageError::NotUtf8(what))
}

fn address(text: &str) -> Result<PciAddress, UsageError> {
    PciAddress::parse(text).map_err(|_| UsageError::NotAnAddress(text.to_owned()))
}

/// The names of all flags that can be given.
fn flag_names() -> Vec<String> {
    let settings = TABLE.iter().filter(|row| !row.is_secret()).map(Row::flag);
    settings.chain(FLAGS.iter().chain(&[&CONFIG]).map(|flag| flag.name.to_owned())).collect()
}

fn usage_error(error: lexopt::Error) -> UsageError {
    match error {
        lexopt::Error::MissingValue { option } => UsageError::NoValue(option.unwrap_or_default()),
        // Of the rest only a value for a flag that takes none can occur here.
        lexopt::Error::UnexpectedValue { option, .. } => UsageError::TakesNoValue(option),
        _ => UsageError::NotUtf8("an argument"),
    }
}

/// What is wrong with a command line.
#[derive(Debug, PartialEq, Eq)]
pub enum UsageError {
    /// No command has this name; the nearest that one has.
    UnknownCommand(String, Option<&'static str>),
    /// No flag has this name; the nearest that one has, without dashes.
    UnknownFlag(String, Option<String>),
    /// The command needs a second word.
    Incomplete {
        /// The first word.
        command: String,
        /// The second words.
        offered: String,
    },
    /// The flag belongs to other commands.
    NotForCommand {
        /// The flag, without dashes.
        flag: &'static str,
        /// The command.
        command: &'static str,
    },
    /// The setting holds a secret and has no flag.
    Secret(&'static Row),
    /// The flag needs a value.
    NoValue(String),
    /// The flag takes no value.
    TakesNoValue(String),
    /// The command needs this.
    Missing(&'static str),
    /// There is a word too many.
    Unexpected(String),
    /// The word is no PCI address.
    NotAnAddress(String),
    /// The word is none of those offered.
    NotOffered {
        /// The word.
        what: String,
        /// The words that are.
        offered: &'static str,
    },
    /// This is no UTF-8.
    NotUtf8(&'static str),
}

impl fmt::Display for UsageError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::UnknownCommand(word, near) => {
                write!(f, "{word:?} is no command; ")?;
                match near {
                    Some(near) => write!(f, "did you mean {near}?"),
                    None => write!(f, "see `{PROGRAM} help`"),
                }
            }
            Self::UnknownFlag(flag, near) => {
                write!(f, "there is no flag {flag}; ")?;
                match near {
                    Some(near) => write!(f, "did you mean --{near}?"),
                    None => write!(f, "see `{PROGRAM} help`"),
                }
            }
            Self::Incomplete { command, offered } => {
                write!(f, "{command} needs a second word; give one of {offered}")
            }
            Self::NotForCommand { flag, command } => {
                write!(f, "{command} has no flag --{flag}; see `{PROGRAM} help {command}`")
            }
            Self::Secret(row) => {
                let (flag, variable) = (row.flag(), row.variable());
                write!(f, "--{flag} would show a secret to everyone on this machine; ")?;
                match row.kind {
                    Kind::Secret => write!(f, "give it with --token-file or {variable}"),
                    _ => write!(f, "give it with {variable} or in the configuration file"),
                }
            }
            Self::NoValue(flag) => write!(f, "{flag} needs a value; see `{PROGRAM} help`"),
            Self::TakesNoValue(flag) => write!(f, "{flag} takes no value; leave it out"),
            Self::Missing(what) => write!(f, "{what} must be given; see `{PROGRAM} help`"),
            Self::Unexpected(word) => write!(f, "{word:?} is one word too many; see `{PROGRAM} help`"),
            Self::NotAnAddress(word) => {
                write!(f, "{word:?} is not a PCI address such as 0000:41:00.0; see `{PROGRAM} info`")
            }
            Self::NotOffered { what, offered } => write!(f, "{what:?} is not offered; use {offered}"),
            Self::NotUtf8(what) => write!(f, "{what} is not UTF-8; write it in UTF-8"),
        }
    }
}

impl std::error::Error for UsageError {}

#[cfg(test)]
mod tests;
