//! The commands and their flags: one table, from which help, man page and completions are made.

use std::ops::RangeInclusive;
use std::time::Duration;

use super::{Command, Form, Given, VfioChange, VfioTarget, completions, text};
use crate::core::operator::Request;
use crate::types::{PciAddress, ReplicaId};

/// A flag that belongs to commands.
pub(super) struct Flag {
    pub(super) name: &'static str,
    /// One letter for it.
    pub(super) short: Option<char>,
    /// What stands for its value in the help, if it takes one.
    pub(super) value: Option<&'static str>,
    pub(super) doc: &'static str,
}

const fn flag(name: &'static str, doc: &'static str) -> Flag {
    Flag { name, short: None, value: None, doc }
}

pub(super) const JSON: Flag = flag("json", "Print JSON");
pub(super) const HELP: Flag =
    Flag { short: Some('h'), ..flag("help", "Show help, on a command if one is given") };
pub(super) const VERSION: Flag = Flag { short: Some('V'), ..flag("version", "Show the version") };
pub(super) const CONFIG: Flag =
    Flag { value: Some("PATH"), ..flag("config", "Configuration file; default /etc/vectorlay/agent.json") };
const ALL: Flag = flag("all", "All GPUs");
const DRY_RUN: Flag = flag("dry-run", "Show what would be written, and write nothing");
const FORCE: Flag = flag(
    "force",
    "Include the boot display, groups with disks or network cards, and GPUs that may be in use",
);
const PERSIST: Flag = flag("persist", "Do the same at each boot");
const SAVED: Flag = flag("saved", "GPUs noted by --persist and by the setting vfio_bind; run this at boot");
const WATCH: Flag = flag("watch", "Show it again every 2 seconds");
const FOLLOW: Flag = Flag { short: Some('f'), ..flag("follow", "Wait for more output") };
const TAIL: Flag = Flag { value: Some("NUMBER"), ..flag("tail", "Lines to begin with; default 100") };
const WAIT: Flag =
    flag("wait", "Wait until the host can be rebooted: nothing is left to do, no replica runs");
const DEADLINE: Flag =
    Flag { value: Some("TIME"), ..flag("deadline", "Wait at most this long, such as 90s, 10m or 2h") };

/// Every flag of a command.
pub(super) const FLAGS: &[&Flag] = &[
    &JSON, &ALL, &DRY_RUN, &FORCE, &PERSIST, &SAVED, &WATCH, &FOLLOW, &TAIL, &WAIT, &DEADLINE, &HELP,
    &VERSION,
];

pub(super) const SHELLS: [&str; 3] = ["bash", "zsh", "fish"];
/// Lines of a log that are shown if no number is given.
const TAIL_LINES: u32 = 100;

/// What a command takes after its name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Takes {
    Nothing,
    Address,
    Addresses,
    CommandName,
    Replica,
    Shell,
}

impl Takes {
    pub(super) fn placeholder(self) -> &'static str {
        match self {
            Self::Nothing => "",
            Self::Address => "ADDRESS",
            Self::Addresses => "ADDRESS…",
            Self::CommandName => "[COMMAND]",
            Self::Replica => "REPLICA",
            Self::Shell => "SHELL",
        }
    }

    /// How many arguments, and what is missing where there are fewer.
    pub(super) fn count(self) -> (RangeInclusive<usize>, &'static str) {
        match self {
            Self::Nothing => (0..=0, ""),
            Self::Address => (1..=1, "missing PCI address"),
            // The command itself says which flag can take the addresses' place.
            Self::Addresses | Self::CommandName => (0..=usize::MAX, ""),
            Self::Replica => (1..=1, "missing replica ID"),
            Self::Shell => (1..=1, "missing shell: bash, zsh or fish"),
        }
    }
}

/// One command.
pub(super) struct Row {
    /// One word or two.
    pub(super) name: &'static str,
    pub(super) takes: Takes,
    pub(super) flags: &'static [&'static Flag],
    pub(super) doc: &'static str,
    pub(super) make: Make,
}

/// Makes the command of its flags and arguments, whose number is right.
type Make = fn(&Given, &[String]) -> Result<Command, String>;

const fn row(
    name: &'static str,
    takes: Takes,
    flags: &'static [&'static Flag],
    doc: &'static str,
    make: Make,
) -> Row {
    Row { name, takes, flags, doc, make }
}

const BIND_FLAGS: &[&Flag] = &[&ALL, &SAVED, &DRY_RUN, &FORCE, &PERSIST];
const UNBIND_FLAGS: &[&Flag] = &[&ALL, &DRY_RUN, &FORCE, &PERSIST];

/// All commands. The first is the default.
pub(super) const COMMANDS: &[Row] = &[
    row("run", Takes::Nothing, &[], "Run the agent; the default command", |_, _| Ok(Command::Run)),
    row("config", Takes::Nothing, &[&JSON], "Show each setting's value and source", |given, _| {
        Ok(Command::Config(given.form()))
    }),
    row(
        "check",
        Takes::Nothing,
        &[&JSON],
        "Check whether this host is ready, and how to mend it",
        |given, _| Ok(Command::Check(given.form())),
    ),
    row(
        "prove",
        Takes::Addresses,
        &[&JSON],
        "Start a container as deploys do, with these GPUs if any are given, and show what it sees",
        |given, arguments| {
            let gpus = arguments.iter().map(|text| address(text)).collect::<Result<_, _>>()?;
            Ok(Command::Prove(gpus, given.form()))
        },
    ),
    row("info", Takes::Nothing, &[&JSON], "Show the hardware", |given, _| Ok(Command::Info(given.form()))),
    row(
        "status",
        Takes::Nothing,
        &[&JSON, &WATCH],
        "Show the running agent's state; succeeds if it is online and connected",
        |given, _| Ok(Command::Status { form: given.form(), watch: given.has(&WATCH) }),
    ),
    row("replicas", Takes::Nothing, &[&JSON], "List the replicas' containers", |given, _| {
        Ok(Command::Replicas(given.form()))
    }),
    row("logs", Takes::Replica, &[&FOLLOW, &TAIL], "Show a replica's output", |given, arguments| {
        let replica = ReplicaId::new(&arguments[0]).map_err(|error| error.to_string())?;
        let tail = match given.value(&TAIL) {
            None => TAIL_LINES,
            Some(text) => text.parse().map_err(|_| format!("--tail {text:?} is not a number of lines"))?,
        };
        Ok(Command::Logs { replica, follow: given.has(&FOLLOW), tail })
    }),
    row(
        "history",
        Takes::Nothing,
        &[&JSON],
        "Show uptime, the last outages and whose cause they were",
        |given, _| Ok(Command::History(given.form())),
    ),
    row("metrics", Takes::Nothing, &[], "Print the running agent's metrics for Prometheus", |_, _| {
        Ok(Command::Metrics)
    }),
    row("report", Takes::Nothing, &[], "Print all that support needs, without secrets", |_, _| {
        Ok(Command::Report)
    }),
    row(
        "drain",
        Takes::Nothing,
        &[&JSON, &WAIT, &DEADLINE],
        "Accept no new deploys, finish the accepted ones, then enter maintenance",
        |given, _| {
            let deadline = given.value(&DEADLINE).map(duration).transpose()?;
            match (given.has(&WAIT), deadline) {
                (false, Some(_)) => Err("--deadline needs --wait".to_owned()),
                (false, None) => Ok(Command::Request(Request::Drain, given.form())),
                (true, deadline) => Ok(Command::DrainAndWait { form: given.form(), deadline }),
            }
        },
    ),
    row(
        "maintenance",
        Takes::Nothing,
        &[&JSON],
        "Accept no new deploys; replicas keep running",
        |given, _| Ok(Command::Request(Request::Maintenance, given.form())),
    ),
    row("resume", Takes::Nothing, &[&JSON], "Accept deploys again", |given, _| {
        Ok(Command::Request(Request::Resume, given.form()))
    }),
    row("recheck", Takes::Nothing, &[&JSON], "Check the dependencies now", |given, _| {
        Ok(Command::Request(Request::Recheck, given.form()))
    }),
    row("gpu hold", Takes::Address, &[&JSON], "Stop allocating a GPU", |given, arguments| {
        Ok(Command::Request(Request::GpuHold(address(&arguments[0])?), given.form()))
    }),
    row("gpu release", Takes::Address, &[&JSON], "Resume allocating a GPU", |given, arguments| {
        Ok(Command::Request(Request::GpuRelease(address(&arguments[0])?), given.form()))
    }),
    row(
        "vfio status",
        Takes::Nothing,
        &[&JSON],
        "Show the IOMMU and each GPU's driver, group and health",
        |given, _| Ok(Command::VfioStatus(given.form())),
    ),
    row(
        "vfio bind",
        Takes::Addresses,
        BIND_FLAGS,
        "Bind GPUs, with their whole IOMMU groups, to vfio-pci",
        |given, arguments| Ok(Command::VfioBind(vfio_change(given, arguments)?)),
    ),
    row(
        "vfio unbind",
        Takes::Addresses,
        UNBIND_FLAGS,
        "Return GPUs to the host's drivers",
        |given, arguments| Ok(Command::VfioUnbind(vfio_change(given, arguments)?)),
    ),
    row("help", Takes::CommandName, &[], "Show help, on a command if one is given", |_, arguments| {
        if arguments.is_empty() {
            return Ok(Command::Print(text::help()));
        }
        super::help_on(arguments)
    }),
    row("version", Takes::Nothing, &[&JSON], "Show version, commit and protocol version", |given, _| {
        Ok(Command::Print(text::version(given.form())))
    }),
    row(
        "completions",
        Takes::Shell,
        &[],
        "Print the completion script for bash, zsh or fish",
        |_, arguments| match arguments[0].as_str() {
            "bash" => Ok(Command::Print(completions::bash())),
            "zsh" => Ok(Command::Print(completions::zsh())),
            "fish" => Ok(Command::Print(completions::fish())),
            other => Err(format!("unknown shell {other:?}; use bash, zsh or fish")),
        },
    ),
    row("man", Takes::Nothing, &[], "Print the man page", |_, _| Ok(Command::Print(text::man()))),
];

impl Given {
    pub(super) fn form(&self) -> Form {
        if self.has(&JSON) { Form::Json } else { Form::Text }
    }
}

fn vfio_change(given: &Given, arguments: &[String]) -> Result<VfioChange, String> {
    let target = match (arguments, given.has(&ALL), given.has(&SAVED)) {
        ([], false, false) => return Err("missing PCI address; give addresses or --all".to_owned()),
        ([], true, false) => VfioTarget::All,
        ([], false, true) => VfioTarget::Saved,
        ([], true, true) => return Err("--all and --saved exclude each other; give one".to_owned()),
        ([first, ..], false, false) if first == "all" => {
            return Err("invalid PCI address \"all\"; use --all".to_owned());
        }
        (given, false, false) => {
            VfioTarget::These(given.iter().map(|text| address(text)).collect::<Result<_, _>>()?)
        }
        ([first, ..], _, _) => return Err(super::unexpected_argument(first)),
    };
    Ok(VfioChange {
        target,
        dry_run: given.has(&DRY_RUN),
        force: given.has(&FORCE),
        persist: given.has(&PERSIST),
    })
}

fn address(text: &str) -> Result<PciAddress, String> {
    PciAddress::parse(text)
        .map_err(|_| format!("invalid PCI address {text:?}; give one such as 0000:41:00.0"))
}

/// `90s`, `10m`, `2h`, or seconds without a unit.
fn duration(text: &str) -> Result<Duration, String> {
    let (number, unit) = match text.char_indices().next_back() {
        Some((at, 's')) => (&text[..at], 1),
        Some((at, 'm')) => (&text[..at], 60),
        Some((at, 'h')) => (&text[..at], 3600),
        _ => (text, 1),
    };
    let seconds = number.parse::<u64>().ok().and_then(|number| number.checked_mul(unit));
    // Longer than a year is a typing error.
    let seconds = seconds.filter(|seconds| *seconds <= 366 * 24 * 3600);
    seconds
        .map(Duration::from_secs)
        .ok_or_else(|| format!("invalid time {text:?}; give one such as 90s, 10m or 2h"))
}
