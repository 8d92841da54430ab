//! Makes one readable line out of what a CLI printed when it failed: its last error, unquoted, without secrets,
//! control characters and colours, as short as a result may be.
//!
//! The CLIs' errors are chains of `what was tried: why it failed: …`, often with a second program's log inside
//! (runc's hooks, CNI). What helps is the end of the chain, so that is what a line always ends with: where it is too
//! long, its middle is cut.

use std::collections::HashSet;

/// Longest line that leaves here, in bytes: it goes into results and logs.
pub const LINE_MAX: usize = 300;
/// How much of the beginning of a longer line is kept, in bytes: what was tried, and on what.
const HEAD_MAX: usize = 90;
/// How many logs may lie in one another.
const NESTED_MAX: usize = 4;
/// Shortest secret that is looked for, in bytes: a shorter one would blacken half of every text.
const SECRET_MIN: usize = 4;
/// Most bytes that are read again to hide secrets, of a text as often as a secret may stand in it.
const HIDING_MAX: usize = 16 * 1024 * 1024;
/// What stands for a text that would take more.
const TOO_MANY_SECRETS: &str =
    "the engine's message is left out: too much of it matches the deploy's variables";

/// The error in a CLI's standard error: the message of the last line of logrus' level `fatal`, else of its level
/// `error` (`nerdctl rm -f` has nothing worse), else the last line that says something. Escapes of Go's quoting are
/// undone, so the text may have several lines. `cut`: the beginning of `stderr` is missing, so its first line is
/// not whole (half a secret could not be recognised).
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
    // A program in Go that breaks off ends with the stacks of all its threads.
    if let Some(panic) =
        lines.iter().rev().find(|line| line.starts_with("panic: ") || line.starts_with("fatal error: "))
    {
        return (*panic).to_owned();
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

/// `text` without escape sequences, which could stand in the middle of a secret, and with every secret replaced by `***`:
/// as it is, on one line, and as Go's quoting shows it, whole and line by line. Takes time in proportion to the texts'
/// lengths, whatever is in them.
pub fn without_secrets(text: &str, secrets: &[&str]) -> String {
    let text: String = without_escapes(text).collect();
    let mut shapes = shapes_in(&text, secrets);
    if shapes.len().saturating_mul(text.len()) > HIDING_MAX {
        return TOO_MANY_SECRETS.to_owned();
    }
    // The longest first: a secret may be a part of another one.
    shapes.sort_by_key(|shape| std::cmp::Reverse(shape.len()));
    shapes.iter().fold(text, |text, shape| text.replace(shape.as_str(), "***"))
}

/// Those shapes of `secrets` that may stand in `text`, each once: what they begin and end with stands there.
fn shapes_in(text: &str, secrets: &[&str]) -> Vec<String> {
    const BITS: u32 = 20;
    let place = |gram: &[u8]| {
        let gram = gram.iter().fold(0u32, |number, byte| number << 8 | u32::from(*byte));
        // Fibonacci hashing.
        (gram.wrapping_mul(0x9e37_79b1) >> (32 - BITS)) as usize
    };
    let mut grams = vec![false; 1 << BITS];
    text.as_bytes().windows(SECRET_MIN).for_each(|gram| grams[place(gram)] = true);
    let mut shapes = HashSet::new();
    let mut consider = |shape: &str| {
        let bytes = shape.as_bytes();
        let is_there = |gram: Option<&[u8; SECRET_MIN]>| gram.is_some_and(|gram| grams[place(gram)]);
        if bytes.len() <= text.len()
            && is_there(bytes.first_chunk())
            && is_there(bytes.last_chunk())
            && !shapes.contains(shape)
        {
            shapes.insert(shape.to_owned());
        }
    };
    for part in secrets.iter().flat_map(|secret| std::iter::once(*secret).chain(secret.lines())) {
        consider(part);
        consider(part.trim());
        if part.contains(|c: char| c.is_control() || matches!(c, '"' | '\\')) {
            let once = quoted(part);
            consider(&once);
            consider(&quoted(&once));
        }
        if part.contains(|c: char| c.is_control()) || part.contains("  ") {
            consider(&unbroken(part));
        }
    }
    shapes.into_iter().collect()
}

/// `text` as one line of at most [`LINE_MAX`] bytes that ends as `text` does.
pub fn one_line(text: &str) -> String {
    shortened(unbroken(text))
}

/// A line of at most [`LINE_MAX`] bytes that ends as `line` does.
pub fn shortened(line: String) -> String {
    if line.len() <= LINE_MAX {
        return line;
    }
    let boundary = |at: &usize| line.is_char_boundary(*at);
    let head = (0..=HEAD_MAX).rev().find(boundary).unwrap_or(0);
    let rest = line.len() + head + '…'.len_utf8() - LINE_MAX;
    let rest = &line[(rest..line.len()).find(boundary).unwrap_or(line.len())..];
    // A link of the chain is kept whole if that costs little.
    let tail = match rest.find(": ") {
        Some(at) if at < rest.len() / 2 => &rest[at + 2..],
        Some(_) | None => rest,
    };
    format!("{}…{tail}", &line[..head])
}

/// The error in `text` with what hides its cause taken away: programs' logs that lie inside, backtraces, the class
/// that containerd appends (`: unknown`), and the queries of URLs, which in presigned ones are credentials.
pub fn cause_last(text: &str) -> String {
    let mut text = innermost(text);
    // Kata's runtime-rs: `…("…\n\nCaused by:\n    0: …\n    1: …\n\nStack backtrace:\n   0: …")`.
    if let Some(at) = text.find("Stack backtrace:") {
        text.truncate(at);
        text = text.replace("\\n", "\n");
    }
    let mut text = text.as_str();
    loop {
        let shorter = text.trim_end();
        let shorter = shorter.strip_suffix(": unknown").unwrap_or(shorter);
        if shorter.len() == text.len() {
            return without_queries(text);
        }
        text = shorter;
    }
}

/// Unpacks logs that lie inside an error: `hook failed: …, stderr: time="…" level=fatal msg="the cause"`.
fn innermost(text: &str) -> String {
    let (mut outer, mut inner) = (String::new(), text.to_owned());
    for _ in 0..NESTED_MAX {
        let Some(at) = inner.rfind(" level=fatal msg=") else { break };
        let Some(message) = logrus_field(&inner[at..], "msg") else { break };
        // The first line of that log is where the error's own words end.
        let mut words = inner[..at].split("time=").next().unwrap_or_default();
        for empty in ["stderr:", "stdout:"] {
            words = words.trim_end_matches([' ', ',']);
            words = words.strip_suffix(empty).unwrap_or(words);
        }
        outer.push_str(words.trim_end_matches([' ', ',', ':']));
        if !outer.is_empty() {
            outer.push_str(": ");
        }
        inner = message;
    }
    outer + &inner
}

/// `text` with the queries of its URLs and their users left out.
fn without_queries(text: &str) -> String {
    let (mut plain, mut rest) = (String::new(), text);
    while let Some(at) = rest.find("://") {
        let (before, after) = rest.split_at(at + 3);
        let ends = |c: char| c.is_whitespace() || matches!(c, '"' | '\'' | '\\' | '>' | ')');
        let (url, behind) = after.split_at(after.find(ends).unwrap_or(after.len()));
        let authority = url.split(['/', '?']).next().unwrap_or_default();
        let url = authority.rfind('@').map_or(url, |at| &url[at + 1..]);
        // The colon of the chain is not the URL's.
        let colon = if url.ends_with(':') { ":" } else { "" };
        plain.push_str(before);
        match url.split_once('?') {
            Some((path, _)) => plain.extend([path, colon]),
            None => plain.push_str(url),
        }
        rest = behind;
    }
    plain + rest
}

/// `text` as one line: colours dropped, white space and control characters made one space each run.
pub fn unbroken(text: &str) -> String {
    let mut line = String::new();
    for c in without_escapes(text) {
        if c.is_control() || c.is_whitespace() {
            if !line.is_empty() && !line.ends_with(' ') {
                line.push(' ');
            }
        } else {
            line.push(c);
        }
    }
    line.truncate(line.trim_end().len());
    line
}

/// `text` without escape sequences (ECMA-48): ESC [ … up to a byte from @ to ~; any other is taken to be of two
/// characters.
fn without_escapes(text: &str) -> impl Iterator<Item = char> {
    let mut chars = text.chars();
    std::iter::from_fn(move || {
        loop {
            let c = chars.next()?;
            if c != '\u{1b}' {
                return Some(c);
            }
            if chars.next() == Some('[') {
                chars.by_ref().find(|c| matches!(c, '@'..='~'));
            }
        }
    })
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
    use rustix::time::{ClockId, clock_gettime};
    use std::time::Duration;

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
        check("panic: nil map\n\ngoroutine 1 [running]:\nmain.main()\n\texit status 2\n", "panic: nil map");
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
        check("\u{1b}[1mhun\u{1b}[31mter\u{1b}c2\u{1b}[0m", &["hunter2"], "***");
        check("on one line", &["on\n\tone  line"], "***");
    }

    #[test]
    fn the_work_of_hiding_is_bounded_whatever_the_secrets_are() {
        let text = "exec: \"no-such-command\": executable file not found in $PATH".repeat(20);
        let lines = |line: fn(usize) -> String| (0..300_000).map(line).collect::<Vec<_>>().join("\n");
        // What does not stand in the text costs a look at its ends.
        let harmless = lines(|n| format!("{n}-canary"));
        assert_eq!(shapes_in(&text, &[&harmless]).len(), 0);
        assert!(without_secrets(&text, &[&harmless]) == text);
        let hostile = lines(|n| format!("exec{n}PATH"));
        assert!(shapes_in(&text, &[&hostile]).len() > 250_000);
        assert!(without_secrets(&text, &[&hostile]) == TOO_MANY_SECRETS);
        // The same one, however often.
        let same = lines(|_| "no-such-command".to_owned());
        assert_eq!(shapes_in(&text, &[&same]).len(), 1);
        assert!(!without_secrets(&text, &[&same]).contains("no-such"));
    }

    /// In the time of this thread, so that a busy machine changes little; the least of some tries.
    #[test]
    fn twice_as_many_lines_take_twice_the_time_to_hide() {
        let time = |work: &dyn Fn() -> String| {
            let now = || Duration::try_from(clock_gettime(ClockId::ThreadCPUTime)).unwrap();
            let once = |_| {
                let began = now();
                assert!(!work().is_empty());
                now() - began
            };
            (0..2).map(once).min().unwrap()
        };
        let text =
            |lines: usize| "exec: \"no-such-command\": executable file not found in $PATH\n".repeat(lines);
        let harmless: fn(usize) -> String = |n| format!("{n}-canary");
        let hostile: fn(usize) -> String = |n| format!("exec{n}PATH");
        let lines = |line: fn(usize) -> String, count| (0..count).map(line).collect::<Vec<_>>().join("\n");
        let doubled = |what: &str, took: [Duration; 2]| {
            println!("{what}: {took:?}");
            assert!(took[1] < 3 * took[0] + Duration::from_millis(5), "{what}: {took:?}");
        };
        for line in [harmless, hostile] {
            let took = [150_000, 300_000].map(|count| {
                let secret = lines(line, count);
                time(&|| without_secrets(&text(20), &[&secret]))
            });
            doubled("150,000 and 300,000 lines of variables", took);
            let secret = lines(line, 10_000);
            let took = [5_000, 10_000].map(|count| time(&|| without_secrets(&text(count), &[&secret])));
            doubled("5,000 and 10,000 lines of an error", took);
        }
    }

    #[test]
    fn one_readable_line() {
        let check = |text: &str, line: &str| assert_eq!(one_line(text), line, "{text:?}");
        check("a\n\tb \r\n c\0\n", "a b c");
        check("\u{1b}[31mred\u{1b}[0m \u{1b}cplain", "red plain");
        check(&"ä".repeat(400), &format!("{}…{}", "ä".repeat(45), "ä".repeat(103)));
        check(&"x".repeat(300), &"x".repeat(300));
        check("\u{1b}[", "");
    }

    #[test]
    fn a_long_line_ends_with_the_cause() {
        let host = "registry.example.internal:5000/team/".to_owned() + &"deep/".repeat(60);
        let error = format!(
            "failed to resolve reference \"{host}app:1\": failed to do request: Head \"https://{host}\": \
             dial tcp: lookup registry.example.internal on 10.0.0.53:53: no such host"
        );
        let line = one_line(&error);
        assert!(line.len() <= LINE_MAX, "{}", line.len());
        assert!(
            line.starts_with("failed to resolve reference \"registry.example.internal:5000/team/"),
            "{line}"
        );
        assert!(
            line.ends_with("/\": dial tcp: lookup registry.example.internal on 10.0.0.53:53: no such host"),
            "{line}"
        );
        for length in 280..400 {
            let line = one_line(&format!("{}: cause", "é: ".repeat(length)));
            assert!(line.len() <= LINE_MAX && line.ends_with(": cause"), "{line}");
        }
    }

    #[test]
    fn the_cause_comes_last_whatever_lies_around_it() {
        let check = |error: &str, told: &str| assert_eq!(one_line(&cause_last(error)), told, "{error}");
        // nerdctl 2.2 on a network of six addresses.
        check(
            "failed to create shim task: OCI runtime create failed: runc create failed: unable to start container \
             process: error during container init: error running hook #0: error running hook: exit status 1, stdout: , \
             stderr: time=\"2026-11-25T03:55:40Z\" level=warning msg=\"Container failed starting. Removing allocated \
             network configuration.\"\ntime=\"2026-11-25T03:55:40Z\" level=fatal msg=\"failed to call cni.Setup: plugin \
             type=\\\"bridge\\\" failed (add): failed to allocate for range 0: no IP addresses available in range set: \
             10.88.0.1-10.88.0.6\": unknown",
            "failed to create shim task: OCI runtime create failed: runc create failed: unable to start…error running \
             hook: exit status 1: failed to call cni.Setup: plugin type=\"bridge\" failed (add): failed to allocate for range 0: no IP addresses available \
             in range set: 10.88.0.1-10.88.0.6",
        );
        // nerdctl 1.7: containerd's class behind the cause.
        check(
            "failed to start shim: failed to resolve runtime path: runtime \"io.containerd.nope.v2\" binary not \
             installed \"containerd-shim-nope-v2\": file does not exist: unknown",
            "failed to start shim: failed to resolve runtime path: runtime \"io.containerd.nope.v2\" binary not \
             installed \"containerd-shim-nope-v2\": file does not exist",
        );
        check(
            "failed to create shim task: Others(\"failed to handle message start sandbox in task handler\\n\\nCaused \
             by:\\n    0: create vm\\n    1: no /dev/kvm\\n\\nStack backtrace:\\n   0: anyhow::error\\n   1: main\"): unknown",
            "failed to create shim task: Others(\"failed to handle message start sandbox in task handler Caused by: 0: \
             create vm 1: no /dev/kvm",
        );
        check(
            "a log inside without its end: stderr: time=\"t\" level=fatal msg=\"broken",
            "a log inside without its end: broken",
        );
        // Kata's Go shim, whose agent in the guest adds the addresses of its own code.
        check(
            "failed to create shim task: the file /no/such was not found Stack backtrace: 0: <unknown> 1: <unknown>: unknown",
            "failed to create shim task: the file /no/such was not found",
        );
        check(
            "failed to create shim task: host system doesn't support vsock: stat /dev/vhost-vsock: no such file or \
             directory: unknown",
            "failed to create shim task: host system doesn't support vsock: stat /dev/vhost-vsock: no such file or directory",
        );
        check("plain", "plain");
    }

    #[test]
    fn urls_lose_their_queries_and_users() {
        let check = |text: &str, told: &str| assert_eq!(cause_last(text), told, "{text}");
        check(
            "failed open: Get \"https://cdn.example/blob/ab?X-Amz-Signature=hunter2&y=1\": dial tcp: i/o timeout",
            "failed open: Get \"https://cdn.example/blob/ab\": dial tcp: i/o timeout",
        );
        check("proxy http://user:hunter2@proxy.example:3128: EOF", "proxy http://proxy.example:3128: EOF");
        check(
            "Get https://h.example/a?token=hunter2: EOF, then http://b/?c",
            "Get https://h.example/a: EOF, then http://b/",
        );
        check("Get https://h.example/a/b@c: EOF", "Get https://h.example/a/b@c: EOF");
    }
}
