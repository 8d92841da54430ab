//! The same commands as the API's, as lines on standard input.

use std::io::{self, BufRead as _, Write as _};
use std::os::unix::net::UnixStream;

use serde_json::{Value, json};

use crate::api;
use crate::hub::Hub;
use crate::say;

const HELP: &str = "\
nodes                      all nodes
show NODE                  all that is known of one
jobs                       all jobs and their results
deploy NODE JSON           {\"replica_id\":…,\"image\":…}
stop NODE REPLICA          stop a replica
logs NODE REPLICA [LINES]  the end of its output
drain NODE                 take no new work; maintenance when nothing accepted is unfinished
maintenance NODE           take no new work; replicas run on, as they do while draining
resume NODE                back to work
remove NODE                forget the node
close NODE                 close its connection
cut NODE                   drop its connection
send NODE TEXT             send TEXT as a frame
quit                       end";

/// Reads commands until `quit`, which rings `stopper`. The end of the input ends only the reading.
pub fn run(hub: &Hub, mut stopper: UnixStream) {
    for line in io::stdin().lock().lines() {
        let Ok(line) = line else { return };
        match parse(&line) {
            Command::Nothing => {}
            Command::Help => say(HELP),
            Command::Quit => {
                // Nobody listens any more: then the program is ending already.
                let _ = stopper.write_all(b"q");
                return;
            }
            Command::Ask(method, path, body) => print(&api::route(hub, method, &path, 0, &body).1),
        }
    }
}

/// What a line asks for.
#[derive(Debug, PartialEq, Eq)]
enum Command {
    Nothing,
    Help,
    Quit,
    /// A request to the API: method, path, body.
    Ask(&'static str, String, String),
}

fn parse(line: &str) -> Command {
    let (word, rest) = split(line);
    let (node, argument) = split(rest);
    let post = |body: String| Command::Ask("POST", format!("/nodes/{node}/{word}"), body);
    match (word, node.is_empty()) {
        ("", _) => Command::Nothing,
        ("quit", _) => Command::Quit,
        ("nodes" | "jobs", _) => Command::Ask("GET", format!("/{word}"), String::new()),
        ("show", false) => Command::Ask("GET", format!("/nodes/{node}"), String::new()),
        ("stop", false) => post(json!({"replica_id": argument}).to_string()),
        ("logs", false) => {
            let (replica, lines) = split(argument);
            post(json!({"replica_id": replica, "tail": lines.parse().unwrap_or(100_u64)}).to_string())
        }
        ("deploy" | "drain" | "maintenance" | "resume" | "remove" | "close" | "cut" | "send", false) => {
            post(argument.to_owned())
        }
        _ => Command::Help,
    }
}

fn split(text: &str) -> (&str, &str) {
    let text = text.trim();
    text.split_once(char::is_whitespace).map_or((text, ""), |(word, rest)| (word, rest.trim_start()))
}

/// A list's entries each on a line, anything else spread out.
fn print(answer: &Value) {
    let list = answer.as_object().and_then(|fields| fields.values().find_map(Value::as_array));
    match list {
        Some(entries) if answer.as_object().is_some_and(|fields| fields.len() == 1) => {
            entries.iter().for_each(|entry| say(&entry.to_string()));
        }
        _ => say(&format!("{answer:#}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_requests() {
        let check = |line: &str, method, path: &str, body: &str| {
            assert_eq!(parse(line), Command::Ask(method, path.to_owned(), body.to_owned()), "{line}");
        };
        check("nodes", "GET", "/nodes", "");
        check(" show  n1 ", "GET", "/nodes/n1", "");
        check("deploy n1  {\"a\": 1}", "POST", "/nodes/n1/deploy", "{\"a\": 1}");
        check("stop n1 r1", "POST", "/nodes/n1/stop", "{\"replica_id\":\"r1\"}");
        check("logs n1 r1 5", "POST", "/nodes/n1/logs", "{\"replica_id\":\"r1\",\"tail\":5}");
        check("drain n1", "POST", "/nodes/n1/drain", "");
        check("send n1 not json", "POST", "/nodes/n1/send", "not json");
        assert_eq!(parse("quit"), Command::Quit);
        assert_eq!(parse("  "), Command::Nothing);
        for other in ["help", "show", "deploy", "reboot n1"] {
            assert_eq!(parse(other), Command::Help, "{other}");
        }
    }
}
