//! Completion scripts for bash, zsh and fish, made from the tables of commands and settings. All three know which command
//! takes which flags and arguments.

use super::table::{COMMANDS, CONFIG, FLAGS, SHELLS, Takes};
use super::{PROGRAM, subcommands};
use crate::config::{Kind, Setting, TABLE};

/// What can follow a flag.
enum Value {
    Nothing,
    Words(&'static [&'static str]),
    Path,
    Other,
}

/// Every flag's name, value and help.
fn flags() -> Vec<(String, Value, &'static str)> {
    let of_setting = |setting: &Setting| match setting.kind {
        Kind::Words(words) => Value::Words(words),
        Kind::Path => Value::Path,
        Kind::Text | Kind::Whole { .. } | Kind::Url | Kind::Proxy => Value::Other,
        Kind::Bool | Kind::Secret => Value::Nothing,
    };
    let settings = TABLE.iter().filter(|setting| !setting.is_secret());
    let settings = settings.map(|setting| (setting.flag(), of_setting(setting), setting.doc));
    let own = FLAGS.iter().map(|flag| {
        let value = if flag.value.is_some() { Value::Other } else { Value::Nothing };
        (flag.name.to_owned(), value, flag.doc)
    });
    settings.chain(own).chain([(CONFIG.name.to_owned(), Value::Path, CONFIG.doc)]).collect()
}

/// The flags of settings and those that every command takes.
fn general_flags() -> Vec<String> {
    let settings = TABLE.iter().filter(|setting| !setting.is_secret()).map(Setting::flag);
    settings.chain(["config", "help", "version"].map(str::to_owned)).collect()
}

/// The first words of commands, each once.
fn first_words() -> Vec<&'static str> {
    let mut all: Vec<&str> = COMMANDS.iter().filter_map(|row| row.name.split(' ').next()).collect();
    all.dedup();
    all
}

/// For bash and zsh: the flags that take a value, the arms of `case $before in` (what can follow a flag) and of
/// `case $command in` (what can follow a command). `words`, `paths` and `nothing` are the shell's way to offer.
fn arms(words: impl Fn(&str) -> String, paths: &str) -> (String, String, String) {
    let (mut with_value, mut before) = (Vec::new(), String::new());
    for (flag, value, _) in flags() {
        let offered = match value {
            Value::Nothing => continue,
            Value::Words(all) => words(&all.join(" ")),
            Value::Path => paths.to_owned(),
            Value::Other => ":".to_owned(),
        };
        before += &format!("        --{flag}) {offered}; return ;;\n");
        with_value.push(format!("--{flag}"));
    }
    let mut command = format!("        '') offered='{}' ;;\n", first_words().join(" "));
    for first in first_words() {
        let seconds: Vec<&str> = subcommands(first).collect();
        if !seconds.is_empty() {
            command += &format!("        '{first}') offered='{}' ;;\n", seconds.join(" "));
        }
    }
    for row in COMMANDS {
        let arguments = match row.takes {
            Takes::Shell => SHELLS.join(" "),
            Takes::CommandName => first_words().join(" "),
            Takes::Nothing | Takes::Address | Takes::Addresses | Takes::Replica => String::new(),
        };
        let own: Vec<String> = row.flags.iter().map(|flag| format!("--{}", flag.name)).collect();
        if !arguments.is_empty() || !own.is_empty() {
            command += &format!("        '{}') offered='{arguments}' own='{}' ;;\n", row.name, own.join(" "));
        }
    }
    (with_value.join("|"), before, command)
}

/// To be sourced.
pub(super) fn bash() -> String {
    let offer = |all: &str| format!("COMPREPLY=($(compgen -W '{all}' -- \"$word\"))");
    let (with_value, before, command) = arms(offer, "COMPREPLY=($(compgen -f -- \"$word\"))");
    let general: Vec<String> = general_flags().iter().map(|flag| format!("--{flag}")).collect();
    format!(
        r#"# bash completion for {PROGRAM}
_vectorlay_agent() {{
    local word=${{COMP_WORDS[COMP_CWORD]}} before=${{COMP_WORDS[COMP_CWORD-1]}}
    local command='' offered='' own='' i
    COMPREPLY=()
    case $before in
{before}    esac
    for ((i = 1; i < COMP_CWORD; i++)); do
        case ${{COMP_WORDS[i]}} in
        {with_value}) ((i++)) ;;
        -*) ;;
        *) command+="${{command:+ }}${{COMP_WORDS[i]}}" ;;
        esac
    done
    case $command in
{command}    esac
    case $word in
    -*) offered="$own {general}" ;;
    esac
    COMPREPLY=($(compgen -W "$offered" -- "$word"))
}}
complete -F _vectorlay_agent {PROGRAM}
"#,
        general = general.join(" ")
    )
}

/// To be sourced, or kept as `_vectorlay-agent` in a folder of `fpath`.
pub(super) fn zsh() -> String {
    let offer = |all: &str| format!("compadd -- {all}");
    let (with_value, before, command) = arms(offer, "_files");
    let general: Vec<String> = general_flags().iter().map(|flag| format!("--{flag}")).collect();
    format!(
        r#"#compdef {PROGRAM}
_vectorlay_agent() {{
    local word=${{words[CURRENT]}} before=${{words[CURRENT-1]}} command='' offered='' own='' i
    case $before in
{before}    esac
    for ((i = 2; i < CURRENT; i++)); do
        case ${{words[i]}} in
        {with_value}) ((i++)) ;;
        -*) ;;
        *) command+="${{command:+ }}${{words[i]}}" ;;
        esac
    done
    case $command in
{command}    esac
    case $word in
    -*) offered="$own {general}" ;;
    esac
    compadd -- ${{=offered}}
}}
if [[ $funcstack[1] == _vectorlay-agent ]]; then
    _vectorlay_agent "$@"
else
    compdef _vectorlay_agent {PROGRAM}
fi
"#,
        general = general.join(" ")
    )
}

/// To be kept as `vectorlay-agent.fish` in a folder of `fish_complete_path`.
pub(super) fn fish() -> String {
    let quoted = |text: &str| format!("'{}'", text.replace('\\', "\\\\").replace('\'', "\\'"));
    let mut script = format!("# fish completion for {PROGRAM}\ncomplete -c {PROGRAM} -f\n");
    let mut line = |condition: &str, what: &str, doc: &str| {
        script += &format!("complete -c {PROGRAM} -n {} {what} -d {}\n", quoted(condition), quoted(doc));
    };
    let seen = |word: &str| format!("__fish_seen_subcommand_from {word}");
    for row in COMMANDS {
        let condition = match row.name.split_once(' ') {
            None => {
                line("__fish_use_subcommand", &format!("-a {}", row.name), row.doc);
                seen(row.name)
            }
            Some((first, second)) => {
                let seconds: Vec<&str> = subcommands(first).collect();
                if seconds.first() == Some(&second) {
                    line(
                        "__fish_use_subcommand",
                        &format!("-a {first}"),
                        &format!("{first} {}", seconds.join(", ")),
                    );
                }
                let open = format!("{}; and not {}", seen(first), seen(&seconds.join(" ")));
                line(&open, &format!("-a {second}"), row.doc);
                format!("{}; and {}", seen(first), seen(second))
            }
        };
        match row.takes {
            Takes::Shell => line(&condition, &format!("-a {}", quoted(&SHELLS.join(" "))), "shell"),
            Takes::CommandName => {
                line(&condition, &format!("-a {}", quoted(&first_words().join(" "))), "command");
            }
            Takes::Nothing | Takes::Address | Takes::Addresses | Takes::Replica => {}
        }
        for flag in row.flags {
            let value = if flag.value.is_some() { " -x" } else { "" };
            line(&condition, &format!("-l {}{value}", flag.name), flag.doc);
        }
    }
    let general = general_flags();
    for (flag, value, doc) in flags().into_iter().filter(|(flag, ..)| general.contains(flag)) {
        let value = match value {
            Value::Nothing => String::new(),
            Value::Words(words) => format!(" -x -a {}", quoted(&words.join(" "))),
            Value::Path => " -r -F".to_owned(),
            Value::Other => " -x".to_owned(),
        };
        line("true", &format!("-l {flag}{value}"), doc);
    }
    script
}
