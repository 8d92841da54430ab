//! Help, man page and shell completion, made from the tables of commands and settings.

use super::table::{COMMANDS, CONFIG, FLAGS, Flag, HELP, Row, Takes, VERSION as VERSION_FLAG};
use super::{PROGRAM, VERSION};
use crate::config::{Kind, Setting, TABLE};

const PURPOSE: &str = "the VectorLay node agent: runs a control plane's deploys on this GPU host";
const SOURCES: &str = "A setting is taken from its flag, else from the environment (VECTORLAY_STATE_DIR), else from the\n\
     kernel command line (vectorlay.state_dir=), else from the configuration file (\"state_dir\").\n";
const EXIT_STATUS: &[(&str, &str)] = &[
    ("0", "success"),
    ("1", "failure; `check`: not ready"),
    ("2", "invalid command line"),
    ("3", "invalid configuration, no identity, or another agent holds the lock"),
    ("4", "the control plane refuses the token"),
];

pub(super) fn version() -> String {
    format!("{PROGRAM} {VERSION}\n")
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
    text.push_str(&format!(".SH SYNOPSIS\n.B {}\n[FLAGS] [COMMAND]\n.SH COMMANDS\n", roff(PROGRAM)));
    for row in COMMANDS {
        let flags: Vec<String> = row.flags.iter().map(|flag| format!(" [--{}]", flag.name)).collect();
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
    text.push_str(".SH EXIT STATUS\n");
    for (status, meaning) in EXIT_STATUS {
        paragraph(&mut text, status, meaning);
    }
    text
}

/// The completion script for bash, to be sourced.
pub(super) fn bash() -> String {
    let mut cases = String::new();
    let (mut paths, mut others) = (vec![format!("--{}", CONFIG.name)], Vec::new());
    for setting in TABLE {
        let flag = format!("--{}", setting.flag());
        match setting.kind {
            Kind::Words(words) => {
                cases.push_str(&format!("        {flag}) words='{}' ;;\n", words.join(" ")))
            }
            Kind::Path => paths.push(flag),
            Kind::Text | Kind::Whole { .. } | Kind::Proxy => others.push(flag),
            Kind::Bool | Kind::Secret => {}
        }
    }
    cases.push_str(&format!("        {}) files=1 ;;\n", paths.join("|")));
    cases.push_str(&format!("        {}) return ;;\n", others.join("|")));
    let mut firsts: Vec<&str> = Vec::new();
    for row in COMMANDS {
        let (first, is_pair) = row.name.split_once(' ').map_or((row.name, false), |(first, _)| (first, true));
        if firsts.contains(&first) {
            continue;
        }
        firsts.push(first);
        if is_pair {
            let pairs = COMMANDS.iter().filter_map(|row| row.name.split_once(' '));
            let seconds: Vec<&str> = pairs.filter(|(a, _)| *a == first).map(|(_, second)| second).collect();
            cases.push_str(&format!("        {first}) words='{}' ;;\n", seconds.join(" ")));
        }
        if row.takes == Takes::Shell {
            cases.push_str(&format!("        {first}) words=bash ;;\n"));
        }
    }
    let flags: Vec<String> = super::flag_names().iter().map(|name| format!("--{name}")).collect();
    let (firsts, flags) = (firsts.join(" "), flags.join(" "));
    format!(
        "# bash completion for {PROGRAM}\n\
         _vectorlay_agent() {{\n    \
             local word=${{COMP_WORDS[COMP_CWORD]}} before=${{COMP_WORDS[COMP_CWORD-1]}} words='' files=''\n    \
             COMPREPLY=()\n    \
             case $before in\n{cases}        \
                 *) words='{firsts} {flags}' ;;\n    \
             esac\n    \
             if [ -n \"$files\" ]; then\n        \
                 COMPREPLY=($(compgen -f -- \"$word\"))\n    \
             else\n        \
                 COMPREPLY=($(compgen -W \"$words\" -- \"$word\"))\n    \
             fi\n\
         }}\n\
         complete -F _vectorlay_agent {PROGRAM}\n"
    )
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
    (format!("--{}", flag.name), flag.doc.to_owned())
}

fn general_flags() -> Vec<(String, String)> {
    let config = (format!("--{} PATH", CONFIG.name), CONFIG.doc.to_owned());
    let (help, version) = (described(&HELP), described(&VERSION_FLAG));
    vec![config, (format!("-h, {}", help.0), help.1), (format!("-V, {}", version.0), version.1)]
}

/// A setting's flag, or its variable if it has no flag.
fn setting_flag(setting: &Setting) -> String {
    let (flag, placeholder) = (setting.flag(), setting.kind.placeholder());
    match setting.kind {
        Kind::Secret => setting.variable(),
        Kind::Bool => format!("--{flag}{placeholder}"),
        Kind::Text | Kind::Path | Kind::Whole { .. } | Kind::Words(_) | Kind::Proxy => {
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
