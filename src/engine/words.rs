//! Makes one readable line out of what a CLI printed when it failed: its last error, unquoted, without secrets,
//! control characters and colours, cut to a length.

/// Longest line that leaves here, in bytes: it goes into results and logs.
pub const WORDS_MAX: usize = 300;
/// Shortest secret that is looked for, in bytes: a shorter one would blacken half of every text.
const SECRET_MIN: usize = 4;

/// The error in a CLI's standard error: the message of the last line of logrus' level `fatal`, else of its level
/// `error` (`nerdctl rm -f` has nothing worse), else the last line that says something. Escapes of Go's quoting are
/// undone, so the text may have several lines. `cut`: the beginning of `stderr` is missing, so its first line is no
/// whole one (half a secret could not be recognised).
pub fn last_error(stderr: &[u8], cut: bool) -> String {
    let text = String::from_utf8_lossy(stderr);
    let mut lines: Vec<&str> = text.split(['\n', '\r']).collect();
    if cut && !lines.is_empty() {
        lines.remove(0);
    }
    let message =
        |level: &str| lines.iter().rev().find(|l| l.contains(level)).and_then(|l| logrus_field(l, "msg"));
    if let Some(found) = message(" level=fatal ").or_else(|| message(" level=error ")) {
        return found;
    }
    // Docker's last word is a hint at its help.
    let says = |line: &&&str| {
        let line = line.trim();
        !line.is_empty() && !line.starts_with("See 'docker") && !line.starts_with("Run 'docker")
    };
    let mut line = lines.iter().rev().find(says).map_or("", |line| line.trim());
    for prefix in ["docker: ", "Error response from daemon: "] {
        line = line.strip_prefix(prefix).unwrap_or(line);
    }
    line.to_owned()
}

/// The last thing that a call which ended well complained of: the message of the last logrus line of level `warning` or
/// worse with its cause (`msg: error`), else the last line that says something.
pub fn last_complaint(stderr: &[u8]) -> String {
    let text = String::from_utf8_lossy(stderr);
    let grave =
        |line: &&str| ["warning", "error", "fatal"].iter().any(|l| line.contains(&format!(" level={l} ")));
    let Some(line) = text.lines().rev().find(grave) else { return last_error(stderr, false) };
    match (logrus_field(line, "msg"), logrus_field(line, "error")) {
        (Some(message), Some(cause)) => format!("{message}: {cause}"),
        (Some(message), None) => message,
        (None, _) => line.to_owned(),
    }
}

/// `text` with every secret replaced by `***`, as it is and as Go's quoting shows it, whole and line by line.
pub fn without_secrets(text: &str, secrets: &[&str]) -> String {
    let mut shapes: Vec<String> = Vec::new();
    for secret in secrets {
        for part in std::iter::once(*secret).chain(secret.lines()) {
            let once = quoted(part);
            shapes.extend([quoted(&once), once, part.trim().to_owned(), part.to_owned()]);
        }
    }
    shapes.retain(|shape| shape.len() >= SECRET_MIN);
    // The longest first: a secret may be a part of another one.
    shapes.sort_by_key(|shape| std::cmp::Reverse(shape.len()));
    shapes.iter().fold(text.to_owned(), |text, shape| text.replace(shape.as_str(), "***"))
}

/// `text` as one line of at most [`WORDS_MAX`] bytes: colours dropped, white space and control characters made one
/// space each run.
pub fn one_line(text: &str) -> String {
    let mut line = String::new();
    let mut chars = text.chars();
    while let Some(c) = chars.next() {
        if c == '\u{1b}' {
            // ECMA-48: ESC [ … up to a byte from @ to ~; any other escape is taken to be of two characters.
            if chars.next() == Some('[') {
                chars.by_ref().find(|c| matches!(c, '@'..='~'));
            }
        } else if c.is_control() || c.is_whitespace() {
            if !line.is_empty() && !line.ends_with(' ') {
                line.push(' ');
            }
        } else {
            line.push(c);
        }
    }
    line.truncate(line.trim_end().len());
    if line.len() > WORDS_MAX {
        let mut end = WORDS_MAX - '…'.len_utf8();
        while !line.is_char_boundary(end) {
            end -= 1;
        }
        line.truncate(end);
        line.push('…');
    }
    line
}

/// A field of a line of logrus' text format: `time="…" level=fatal msg="…" error="…"`, quoted as Go's `%q` where need
/// be.
fn logrus_field(line: &str, name: &str) -> Option<String> {
    let (_, rest) = line.split_once(&format!(" {name}="))?;
    let Some(rest) = rest.strip_prefix('"') else {
        return Some(rest.split(' ').next().unwrap_or_default().to_owned());
    };
    let mut message = String::new();
    let mut chars = rest.chars();
    while let Some(c) = chars.next() {
        match c {
            '"' => break,
            '\\' => match chars.next()? {
                'n' => message.push('\n'),
                't' => message.push('\t'),
                'r' => message.push('\r'),
                'x' => message.push(code(&mut chars, 2)),
                'u' => message.push(code(&mut chars, 4)),
                'U' => message.push(code(&mut chars, 8)),
                'a' | 'b' | 'f' | 'v' => message.push(' '),
                other => message.push(other),
            },
            other => message.push(other),
        }
    }
    Some(message)
}

fn code(chars: &mut std::str::Chars<'_>, digits: usize) -> char {
    let hex: String = chars.by_ref().take(digits).collect();
    u32::from_str_radix(&hex, 16).ok().and_then(char::from_u32).unwrap_or('\u{fffd}')
}

fn quoted(text: &str) -> String {
    let mut quoted = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '"' => quoted.push_str("\\\""),
            '\\' => quoted.push_str("\\\\"),
            '\n' => quoted.push_str("\\n"),
            '\r' => quoted.push_str("\\r"),
            '\t' => quoted.push_str("\\t"),
            other => quoted.push(other),
        }
    }
    quoted
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_error_of_each_cli() {
        let check =
            |stderr: &str, error: &str| assert_eq!(last_error(stderr.as_bytes(), false), error, "{stderr}");
        check(
            "time=\"t\" level=info msg=\"fetch failed\" error=\"x\" host=\"h\"\n\
             time=\"t\" level=fatal msg=\"failed to resolve reference \\\"127.0.0.1:5000/nope:1\\\": not found\"\n",
            "failed to resolve reference \"127.0.0.1:5000/nope:1\": not found",
        );
        check(
            "time=\"t\" level=error msg=\"1 errors:\\nno such container: a\"\n",
            "1 errors:\nno such container: a",
        );
        check("time=\"t\" level=fatal msg=EOF extra=1\n", "EOF");
        check("time=\"t\" level=fatal msg=\"\\u00e4\\x41\\\\\"", "\u{e4}A\\");
        check("time=\"t\" level=fatal msg=\"unfinished\\", "time=\"t\" level=fatal msg=\"unfinished\\");
        check(
            "docker: Error response from daemon: No such image: x:1\n\nRun 'docker run --help' for more information\n",
            "No such image: x:1",
        );
        check("docker: Error response from daemon: Conflict.\nSee 'docker run --help'.\n", "Conflict.");
        check("layer 1\rlayer 2\n\n", "layer 2");
        check("", "");
        assert_eq!(last_error(b"half a line", true), "");
        assert_eq!(last_error(b"half\nwhole\n", true), "whole");
    }

    #[test]
    fn complaints_of_calls_that_ended_well() {
        let check =
            |stderr: &str, said: &str| assert_eq!(last_complaint(stderr.as_bytes()), said, "{stderr}");
        check(
            "time=\"2026-11-25T01:00:00Z\" level=warning msg=\"failed to inspect Task\" \
             error=\"rpc error: code = DeadlineExceeded desc = context deadline exceeded\" id=abc\n",
            "failed to inspect Task: rpc error: code = DeadlineExceeded desc = context deadline exceeded",
        );
        check("time=\"t\" level=info msg=\"x\"\ntime=\"t\" level=error msg=EOF\n", "EOF");
        check("some warning\n", "some warning");
    }

    #[test]
    fn secrets_do_not_pass_in_any_quoting() {
        let check = |text: &str, secrets: &[&str], shown: &str| {
            assert_eq!(without_secrets(text, secrets), shown, "{text}");
        };
        check("token hunter2 bad", &["hunter2"], "token *** bad");
        check("port 80", &["80"], "port 80");
        check("a hunter2hunter2", &["hunter2", "hunter2hunter2"], "a ***");
        check("said \\\"se\\\\\\\"cret\\\"", &["se\"cret"], "said \\\"***\\\"");
        check("only the second line", &["first line\nthe second\nx"], "only *** line");
        check("spaces padded gone", &["  padded  "], "spaces *** gone");
    }

    #[test]
    fn one_readable_line() {
        let check = |text: &str, line: &str| assert_eq!(one_line(text), line, "{text:?}");
        check("a\n\tb \r\n c\0\n", "a b c");
        check("\u{1b}[31mred\u{1b}[0m \u{1b}cplain", "red plain");
        check(&"ä".repeat(400), &format!("{}…", "ä".repeat(148)));
        check(&"x".repeat(300), &"x".repeat(300));
        check("\u{1b}[", "");
    }
}
