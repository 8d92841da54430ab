//! Reads the part of YAML in which tools write what programs read: JSON, and block mappings and lists with values on one
//! line, in printable ASCII. Anything else (tabs, Windows' line ends, flow style, anchors, tags, values over several
//! lines, escapes) is not understood, never guessed.

use serde_json::{Map, Value};

/// How deep blocks may lie in each other.
const DEPTH_MAX: u8 = 16;

/// The document; `None`: not understood. A plain value that YAML takes for a number or a word of its own (`0`, `true`)
/// is null here: what it is depends on the reader.
pub fn parse(text: &str) -> Option<Value> {
    if !text.bytes().all(|b| b == b'\n' || (b' '..=b'~').contains(&b)) {
        return None;
    }
    if text.starts_with('{') {
        return json(text);
    }
    let mut lines = Vec::new();
    for line in text.strip_prefix("---\n").unwrap_or(text).split('\n') {
        // Where there are quotes, `#` may be in them.
        let line = if line.contains(['"', '\'']) { line } else { line.split(" #").next()? };
        let line = line.trim_end_matches(' ');
        let text = line.trim_start_matches(' ');
        if !text.is_empty() && !text.starts_with('#') {
            lines.push((line.len() - text.len(), text));
        }
    }
    let mut reader = Reader { lines, at: 0 };
    let value = reader.node(0)?;
    (reader.at == reader.lines.len()).then_some(value)
}

/// JSON that YAML reads in the same way: without escapes, each key once and on the line of its colon.
fn json(text: &str) -> Option<Value> {
    let value: Value = serde_json::from_str(text).ok().filter(|_| !text.contains('\\'))?;
    let mut length = 0;
    for (n, part) in text.split('"').enumerate() {
        if n % 2 == 1 {
            length += part.len() + 2;
        } else if part.contains(':') && !part.trim_start_matches(' ').starts_with(':') {
            return None;
        } else {
            length += part.bytes().filter(|b| !b" \n".contains(b)).count();
        }
    }
    // Of a key that is there twice one value is lost.
    (value.to_string().len() == length).then_some(value)
}

struct Reader<'a> {
    /// Each line's indentation and the rest of it.
    lines: Vec<(usize, &'a str)>,
    at: usize,
}

impl Reader<'_> {
    /// What begins at this line, as far as it is not indented less.
    fn node(&mut self, depth: u8) -> Option<Value> {
        let &(indent, text) = self.lines.get(self.at).filter(|_| depth < DEPTH_MAX)?;
        let value = if is_item(text) {
            self.list(indent, depth)?
        } else if !text.starts_with(['"', '\'']) && key(text).is_some() {
            self.mapping(indent, depth)?
        } else {
            self.at += 1;
            scalar(text)?
        };
        // A line that is indented more goes on with a value: that is not understood.
        self.lines.get(self.at).is_none_or(|(next, _)| *next <= indent).then_some(value)
    }

    fn list(&mut self, indent: usize, depth: u8) -> Option<Value> {
        let mut items = Vec::new();
        while let Some(&(_, text)) = self.lines.get(self.at).filter(|(i, text)| *i == indent && is_item(text))
        {
            let rest = text[1..].trim_start_matches(' ');
            if rest.is_empty() {
                self.at += 1;
                items.push(self.nested(indent + 1, depth)?);
            } else {
                // What is behind the dash stands as if it were on a line of its own.
                self.lines[self.at] = (indent + text.len() - rest.len(), rest);
                items.push(self.node(depth + 1)?);
            }
        }
        Some(Value::Array(items))
    }

    fn mapping(&mut self, indent: usize, depth: u8) -> Option<Value> {
        let mut map = Map::new();
        while let Some(&(_, text)) =
            self.lines.get(self.at).filter(|(i, text)| *i == indent && !is_item(text))
        {
            let (key, rest) = key(text)?;
            self.at += 1;
            let value = if rest.is_empty() {
                // A list may stand right below its key.
                let list = self.lines.get(self.at).is_some_and(|(i, text)| *i == indent && is_item(text));
                self.nested(indent + usize::from(!list), depth)?
            } else {
                scalar(rest)?
            };
            if map.insert(key.to_owned(), value).is_some() {
                return None;
            }
        }
        Some(Value::Object(map))
    }

    /// What follows if it is indented by `least` or more, else null.
    fn nested(&mut self, least: usize, depth: u8) -> Option<Value> {
        match self.lines.get(self.at) {
            Some((indent, _)) if *indent >= least => self.node(depth + 1),
            _ => Some(Value::Null),
        }
    }
}

fn is_item(text: &str) -> bool {
    text == "-" || text.starts_with("- ")
}

/// A plain key and what stands behind its colon.
fn key(text: &str) -> Option<(&str, &str)> {
    let (key, rest) = text.split_once(": ").or_else(|| Some((text.strip_suffix(':')?, "")))?;
    let fits = |b: u8| b.is_ascii_alphanumeric() || b"._-/".contains(&b);
    (!key.is_empty() && key.bytes().all(fits)).then_some((key, rest.trim_start_matches(' ')))
}

fn scalar(text: &str) -> Option<Value> {
    for quote in ['"', '\''] {
        if let Some(rest) = text.strip_prefix(quote) {
            let inner = rest.strip_suffix(quote)?;
            return (!inner.contains([quote, '\\'])).then(|| inner.into());
        }
    }
    if text == "{}" {
        return Some(Value::Object(Map::new()));
    }
    if text == "[]" {
        return Some(Value::Array(Vec::new()));
    }
    if text.starts_with(|c| "&*!|>%@`{}[],?#:".contains(c))
        || is_item(text)
        || text.contains(": ")
        || text.contains(" #")
        || text.ends_with(':')
    {
        return None;
    }
    let words = ["null", "true", "false", "yes", "no", "on", "off", "y", "n", "~", "=", "<<"];
    let other = is_number(text) || words.iter().any(|word| text.eq_ignore_ascii_case(word));
    Some(if other { Value::Null } else { text.into() })
}

/// Whether YAML may take it for a number. A version, of three of them, is none.
fn is_number(text: &str) -> bool {
    let digits = |part: &str| !part.is_empty() && part.bytes().all(|b| b.is_ascii_digit());
    if text.split('.').count() == 3 && text.split('.').all(digits) {
        return false;
    }
    let rest = text.trim_start_matches(['-', '+']);
    let word = rest.starts_with('.') && !rest.starts_with("./") && !rest.starts_with("..");
    word || rest.trim_start_matches('.').starts_with(|c: char| c.is_ascii_digit())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn check(text: &str, expected: Value) {
        assert_eq!(parse(text), Some(expected), "{text}");
    }

    #[test]
    fn blocks() {
        check("a: b\n", json!({"a": "b"}));
        check("---\n# about\na: b # more\n\nc:\n", json!({"a": "b", "c": null}));
        check("a:\n- b\n- c\nd: e", json!({"a": ["b", "c"], "d": "e"}));
        check(
            "a:\n    - b\n    - c: d\n      e:\n        - f\n",
            json!({"a": ["b", {"c": "d", "e": ["f"]}]}),
        );
        check(
            "a:\n- b:\n    c: d\n  e: f\n- e: g\n",
            json!({"a": [{"b": {"c": "d"}, "e": "f"}, {"e": "g"}]}),
        );
        check("- - a\n  - b\n-\n  c: d\n-\n- e", json!([["a", "b"], {"c": "d"}, null, "e"]));
        check("a: b   \n  \nc: d", json!({"a": "b", "c": "d"}));
    }

    #[test]
    fn values() {
        let value = |text: &str, expected: Value| check(&format!("a: {text}"), json!({"a": expected}));
        for text in ["\"0\"", "'0'"] {
            value(text, "0".into());
        }
        for text in [
            "/dev/a:b",
            "--folder",
            "a=b,c",
            "nvidia.com/gpu",
            "x#y",
            "it's",
            "nosuid",
            "0.5.0",
            "../a",
            "./a",
        ] {
            value(text, text.into());
        }
        for text in [
            "0",
            "-1",
            ".5",
            "0x10",
            "1:30",
            "true",
            "No",
            "~",
            "NULL",
            "0000:41:00.0",
            "1.5",
            "-.inf",
            ".NaN",
            "=",
        ] {
            value(text, Value::Null);
        }
        value("{}", json!({}));
        value("[]", json!([]));
        value("\"# no comment\"", "# no comment".into());
    }

    #[test]
    fn json_is_yaml() {
        check("{\"a\": [\"b: c\", {\"d\" : 1}],\n \"e\":{} }\n", json!({"a": ["b: c", {"d": 1}], "e": {}}));
        for text in [
            "{",
            "{'a': 1}",
            "{a: b}",
            "{\"a\": 1, \"a\": 1}",
            "{\"a\\n\": 1}",
            "{\"a\"\n: 1}",
            "{\"a\":\t1}",
        ] {
            assert_eq!(parse(text), None, "{text}");
        }
    }

    #[test]
    fn what_is_not_understood() {
        let deep = |n: usize| "- ".repeat(n) + "a";
        assert!(parse(&deep(15)).is_some());
        let long = deep(100_000);
        for text in [
            "",
            "a",
            "a: b: c",
            "a: [b]",
            "a: {b: c}",
            "a: &x b",
            "a: *x",
            "a: !t b",
            "a: |\n  b",
            "a: >\n  b",
            "a: b\n  c",
            "a: \"b\n",
            "a: \"b\\n\"",
            "a: 'it''s'",
            "a: \"b\" # c",
            "\"a\": b",
            "? a\n: b",
            "a b: c",
            "a: b\na: c",
            "a: b\n- c",
            "- a\nb: c",
            "a:\n    b: c\n  d: e",
            "a:\n\tb: c",
            "a: b\n---\na: c",
            "a: @b",
            "<<: *x",
            "a: - b",
            "a: -",
            "a: it's # c",
            "a: b\t",
            "a: b\t# c",
            "a:\tb",
            "- \tb",
            "a:\r\n- b\r\n",
            "a: b\rc: d",
            "a: b\u{c}",
            "a: b\u{a0}",
            "a: b\u{85}c: d",
            "a: b\u{2028}c: d",
            "\u{feff}a: b",
            "a: \"\0\"",
            "a: \"\u{7f}\"",
            &long,
        ] {
            let parsed = parse(text).filter(|value| !value.is_string());
            assert_eq!(parsed, None, "{}", &text[..text.len().min(40)]);
        }
    }
}
