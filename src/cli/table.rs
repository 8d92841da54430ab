//! The commands and their flags: one table, from which help, man page and completions are made.

use std::ops::RangeInclusive;

use super::{Command, Form, Given, VfioChange, VfioTarget, text};
use crate::core::operator::Request;
use crate::types::PciAddress;

/// A flag that belongs to commands.
pub(super) struct Flag {
    pub(super) name: &'static str,
    pub(super) doc: &'static str,
}

pub(super) const JSON: Flag = Flag { name: "json", doc: "Print JSON" };
pub(super) const HELP: Flag = Flag { name: "help", doc: "Show help, on a command if one is given" };
pub(super) const VERSION: Flag = Flag { name: "version", doc: "Show the version" };
/// The only flag here that takes a value.
pub(super) const CONFIG: Flag =
    Flag { name: "config", doc: "Configuration file; default /etc/vectorlay/agent.json" };
const ALL: Flag = Flag { name: "all", doc: "All GPUs" };
const DRY_RUN: Flag = Flag { name: "dry-run", doc: "Show what would be written, and write nothing" };
const FORCE: Flag = Flag {
    name: "force",
    doc: "Include the boot display, groups with disks or network cards, and GPUs that may be in use",
};
const PERSIST: Flag = Flag { name: "persist", doc: "Do the same at each boot" };
const SAVED: Flag =
    Flag { name: "saved", doc: "GPUs noted by --persist and by the setting vfio_bind; run this at boot" };

/// Every flag that takes no value.
pub(super) const FLAGS: &[&Flag] = &[&JSON, &ALL, &DRY_RUN, &FORCE, &PERSIST, &SAVED, &HELP, &VERSION];

/// What a command takes after its name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Takes {
    Nothing,
    Address,
    Addresses,
    CommandName,
    Shell,
}

impl Takes {
    pub(super) fn placeholder(self) -> &'static str {
        match self {
            Self::Nothing => "",
            Self::Address => "ADDRESS",
            Self::Addresses => "ADDRESS…",
            Self::CommandName => "[COMMAND]",
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
            Self::Shell => (1..=1, "missing shell; use bash"),
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
pub(super) const COMMANDS: &[Row] =
    &[
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
        row("info", Takes::Nothing, &[&JSON], "Show the hardware", |given, _| {
            Ok(Command::Info(given.form()))
        }),
        row("status", Takes::Nothing, &[&JSON], "Show the state of the running agent", |given, _| {
            Ok(Command::Status(given.form()))
        }),
        row(
            "drain",
            Takes::Nothing,
            &[&JSON],
            "Accept no new deploys, finish the accepted ones, then enter maintenance",
            |given, _| Ok(Command::Request(Request::Drain, given.form())),
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
        row("version", Takes::Nothing, &[], "Show the version", |_, _| Ok(Command::Print(text::version()))),
        row("completions", Takes::Shell, &[], "Print a shell's completion script", |_, arguments| {
            match arguments[0].as_str() {
                "bash" => Ok(Command::Print(text::bash())),
                other => Err(format!("unknown shell {other:?}; use bash")),
            }
        }),
        row("man", Takes::Nothing, &[], "Print the man page", |_, _| Ok(Command::Print(text::man()))),
    ];

impl Given {
    fn form(&self) -> Form {
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
