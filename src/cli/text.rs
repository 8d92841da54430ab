//! Help, man page and shell completion, made from the tables of commands and settings.

use serde_json::json;

use super::table::{COMMANDS, CONFIG, FLAGS, Flag, HELP, Row, VERSION as VERSION_FLAG};
use super::{BUILD_DATE, COMMIT, Form, PROGRAM, VERSION};
use crate::config::{DEFAULT_FILE, Kind, Setting, TABLE};
use crate::protocol::PROTOCOL_VERSION;

const PURPOSE: &str = "the VectorLay node agent: runs a control plane's deploys on this GPU host";
const SOURCES: &str = "A setting is taken from its flag, else from the environment (VECTORLAY_STATE_DIR), else from the\n\
     kernel command line (vectorlay.state_dir=), else from the configuration file (\"state_dir\").\n";
const DESCRIPTION: &str = "The agent connects this host to a control plane, runs the containers that it deploys through \
     nerdctl on containerd, and reports what the host and they are. Containers keep running while the agent is stopped, \
     restarted or upgraded.\n";
const FILES: &[(&str, &str)] = &[
    (DEFAULT_FILE, "Configuration: one JSON object whose keys are settings"),
    ("/var/lib/vectorlay/node.json", "The node's identity; keep it"),
    ("/var/lib/vectorlay/state.json", "Accepted commands and results that have not arrived"),
    ("/var/lib/vectorlay/replicas.json", "What was last known of the other replicas"),
    ("/var/lib/vectorlay/history.jsonl", "What the node was and when; `history` shows it"),
    ("/run/vectorlay/agent.sock", "Socket for commands such as status and drain, for root"),
    ("/run/vectorlay-agent.lock", "Held by the machine's one agent"),
    ("/var/log/vectorlay", "Output of the replicas, with the log driver file"),
    ("/etc/vectorlay/vfio-bind", "GPUs that `vfio bind --saved` binds at boot"),
];
const ENVIRONMENT: &[(&str, &str)] = &[
    ("VECTORLAY_CONFIG", "Path of the configuration file"),
    ("VECTORLAY_...", "Each setting, in capitals: VECTORLAY_STATE_DIR, VECTORLAY_TOKEN"),
    ("HTTPS_PROXY, NO_PROXY", "Used if the settings proxy and no_proxy are not set"),
    ("CREDENTIALS_DIRECTORY", "Folder of systemd credentials, in which the file token is read"),
    ("NOTIFY_SOCKET, WATCHDOG_USEC", "The supervisor's, as in sd_notify(3)"),
    ("NO_COLOR", "`status` uses no colour if this is set"),
];
const SIGNALS: &[(&str, &str)] = &[
    (
        "SIGTERM, SIGINT",
        "End: finish running commands within grace_s, deliver results; a second one ends at once",
    ),
    ("SIGHUP", "Check the dependencies now; end, if standard error is a terminal, which was closed then"),
];
const EXAMPLES: &[(&str, &str)] = &[
    ("Check a new host:", "vectorlay-agent check"),
    ("Reboot without interrupting a tenant:", "vectorlay-agent drain --wait --deadline 2h && reboot"),
    ("Follow a replica's output:", "vectorlay-agent logs web-1 --follow"),
    ("What happened last night:", "vectorlay-agent history"),
    ("A file to send when asking for help:", "vectorlay-agent report > report.txt"),
    ("Complete command lines in bash:", "source <(vectorlay-agent completions bash)"),
];
const EXIT_STATUS: &[(&str, &str)] = &[
    ("0", "success"),
    ("1", "failure; `check`: not ready; `status`: not online or not connected; `drain --wait`: not in time"),
    ("2", "invalid command line"),
    ("3", "invalid configuration, no identity, or another agent holds the lock"),
    ("4", "the control plane refuses the token"),
];

pub(super) fn version(form: Form) -> String {
    match form {
        Form::Text => format!(
            "{PROGRAM} {VERSION}\ncommit {COMMIT}\nbuilt {BUILD_DATE}\nprotocol version {PROTOCOL_VERSION}\n"
        ),
        Form::Json => {
            let version = json!({
                "version": VERSION,
                "commit": COMMIT,
                "built": BUILD_DATE,
                "protocol_version": PROTOCOL_VERSION,
            });
            format!("{version:#}\n")
        }
    }
}

pub(super) fn help() -> String {
    let mut text =
        format!("{PROGRAM} {VERSION}, {PURPOSE}\n\nUsage: {PROGRAM} [FLAGS] [COMMAND]\n\nCommands:\n");
    columns(&mut text, COMMANDS.iter().map(|row| (synopsis(row), row.doc.to_owned())).collect());
    text.push_str("\nFlags:\n");
    columns(&mut text, general_flags());
    text.push_str("\nSettings:\n");
    columns(&mut text, TABLE.iter().map(|setting| (setting_flag(setting), setting_doc(setting))).collect());
    text.push_str(&format!("\n{SOURCES}\nExit status:\n"));
    columns(&mut text, EXIT_STATUS.iter().map(|(a, b)| ((*a).to_owned(), (*b).to_owned())).collect());
    text
}

pub(super) fn help_for(row: &Row) -> String {
    let mut text = format!("{PROGRAM} {}\n\n{}.\n", synopsis(row), row.doc);
    if !row.flags.is_empty() {
        text.push_str("\nFlags:\n");
        columns(&mut text, row.flags.iter().map(|flag| described(flag)).collect());
    }
    text.push_str(&format!("\nEvery command takes the settings' flags too: see `{PROGRAM} help`.\n"));
    text
}

/// Help on all commands that begin with the word `first`.
pub(super) fn help_for_group(first: &str) -> String {
    let mut text = format!("{PROGRAM} {first} COMMAND\n\nCommands:\n");
    let rows = COMMANDS.iter().filter(|row| row.name.split(' ').next() == Some(first));
    columns(&mut text, rows.map(|row| (synopsis(row), row.doc.to_owned())).collect());
    text.push_str(&format!("\nThe flags of each: see `{PROGRAM} help {first} COMMAND`.\n"));
    text
}

/// The man page, in the man macros of roff (man(7)).
pub(super) fn man() -> String {
    let mut text = format!(".TH VECTORLAY\\-AGENT 8 \"\" \"{PROGRAM} {VERSION}\"\n");
    text.push_str(&format!(".SH NAME\n{} \\- {}\n", roff(PROGRAM), roff(PURPOSE)));
    text.push_str(&format!(".SH SYNOPSIS\n.B {}\n[FLAGS] [COMMAND]\n", roff(PROGRAM)));
    text.push_str(&format!(".SH DESCRIPTION\n{}", roff(DESCRIPTION)));
    text.push_str(".SH COMMANDS\n");
    for row in COMMANDS {
        let flags: Vec<String> = row.flags.iter().map(|flag| format!(" [{}]", described(flag).0)).collect();
        paragraph(&mut text, &format!("{}{}", synopsis(row), flags.concat()), row.doc);
    }
    text.push_str(".SH FLAGS\n");
    let commands_own = FLAGS.iter().filter(|flag| flag.name != HELP.name && flag.name != VERSION_FLAG.name);
    for (flag, doc) in commands_own.map(|flag| described(flag)).chain(general_flags()) {
        paragraph(&mut text, &flag, &doc);
    }
    text.push_str(&format!(".SH SETTINGS\n{}", roff(SOURCES)));
    for setting in TABLE {
        paragraph(&mut text, &setting_flag(setting), &setting_doc(setting));
    }
    for (section, entries) in
        [("EXIT STATUS", EXIT_STATUS), ("FILES", FILES), ("ENVIRONMENT", ENVIRONMENT), ("SIGNALS", SIGNALS)]
    {
        text.push_str(&format!(".SH {section}\n"));
        for (head, body) in entries {
            paragraph(&mut text, head, body);
        }
    }
    text.push_str(".SH EXAMPLES\n");
    for (body, command) in EXAMPLES {
        text.push_str(&format!(".TP\n{}\n.B {}\n", roff(body), roff(command)));
    }
    text
}

/// Two columns. The second starts on a new line if the first is too wide.
fn columns(text: &mut String, rows: Vec<(String, String)>) {
    const WIDTH: usize = 30;
    for (left, right) in rows {
        if left.chars().count() <= WIDTH {
            text.push_str(&format!("  {left:WIDTH$}  {right}\n"));
        } else {
            text.push_str(&format!("  {left}\n  {:WIDTH$}  {right}\n", ""));
        }
    }
}

fn synopsis(row: &Row) -> String {
    format!("{} {}", row.name, row.takes.placeholder()).trim_end().to_owned()
}

fn described(flag: &Flag) -> (String, String) {
    let short = flag.short.map(|short| format!("-{short}, ")).unwrap_or_default();
    let value = flag.value.map(|value| format!(" {value}")).unwrap_or_default();
    (format!("{short}--{}{value}", flag.name), flag.doc.to_owned())
}

fn general_flags() -> Vec<(String, String)> {
    vec![described(&CONFIG), described(&HELP), described(&VERSION_FLAG)]
}

/// A setting's flag, or its variable if it has no flag.
fn setting_flag(setting: &Setting) -> String {
    let (flag, placeholder) = (setting.flag(), setting.kind.placeholder());
    match setting.kind {
        Kind::Secret => setting.variable(),
        Kind::Bool => format!("--{flag}{placeholder}"),
        Kind::Text | Kind::Path | Kind::Whole { .. } | Kind::Words(_) | Kind::Url | Kind::Proxy => {
            format!("--{flag} {placeholder}")
        }
    }
}

fn setting_doc(setting: &Setting) -> String {
    match setting.default {
        Some(default) => format!("{} [{default}]", setting.doc),
        None => setting.doc.to_owned(),
    }
}

fn paragraph(text: &mut String, head: &str, body: &str) {
    text.push_str(&format!(".TP\n.B {}\n{}\n", roff(head), roff(body)));
}

/// Escapes what roff would interpret: backslashes, dashes, and dots and quotes at the start of a line.
fn roff(text: &str) -> String {
    let escaped = text.replace('\\', "\\e").replace('-', "\\-").replace('…', "...");
    let lines = escaped
        .split('\n')
        .map(|line| if line.starts_with(['.', '\'']) { format!("\\&{line}") } else { line.to_owned() });
    lines.collect::<Vec<_>>().join("\n")
}
