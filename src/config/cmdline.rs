//! Settings on the kernel command line: `vectorlay.state_dir=/mnt/state`.
//!
//! The format (`Documentation/admin-guide/kernel-parameters.rst`): words separated by white space; double quotes
//! keep white space together and stand either around the value (`k="a b"`) or around the whole word (`"k=a b"`);
//! `-` and `_` in a name are the same; the last of several equal names wins; a name alone means `true`. The kernel
//! shows the line as it was given, quotes included.

const PREFIX: &str = "vectorlay.";

/// Names and values of our parameters: each name once, without the prefix, with `_` for `-`.
pub fn parameters(line: &str) -> Vec<(String, String)> {
    let mut found: Vec<(String, String)> = Vec::new();
    for word in words(line) {
        let (name, value) = word.split_once('=').unwrap_or((&word, "true"));
        if let Some(name) = name.strip_prefix(PREFIX) {
            let name = name.replace('-', "_");
            found.retain(|(earlier, _)| *earlier != name);
            found.push((name, value.to_owned()));
        }
    }
    found
}

/// Splits at white space outside double quotes and takes the quotes away. An unclosed quote ends with the line.
fn words(line: &str) -> Vec<String> {
    let mut words = Vec::new();
    let mut word = String::new();
    let mut quoted = false;
    for c in line.chars() {
        match c {
            '"' => quoted = !quoted,
            c if c.is_ascii_whitespace() && !quoted => words.push(std::mem::take(&mut word)),
            c => word.push(c),
        }
    }
    words.push(word);
    words.retain(|word| !word.is_empty());
    words
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_of_ours() {
        let check = |line: &str, expected: &[(&str, &str)]| {
            let expected: Vec<_> = expected.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
            assert_eq!(parameters(line), expected, "{line:?}");
        };
        check("", &[]);
        check("BOOT_IMAGE=/vmlinuz root=/dev/sda1 ro quiet\n", &[]);
        check("ro vectorlay.url=wss://a/b quiet\n", &[("url", "wss://a/b")]);
        check("vectorlay.state-dir=/a vectorlay.state_dir=/b", &[("state_dir", "/b")]);
        check("vectorlay.data_path=\"/a b\"", &[("data_path", "/a b")]);
        check("\"vectorlay.data_path=/a b\" ro", &[("data_path", "/a b")]);
        check("vectorlay.url=wss://a/?k=v", &[("url", "wss://a/?k=v")]);
        check("vectorlay.allow_insecure", &[("allow_insecure", "true")]);
        check("vectorlay.token=", &[("token", "")]);
        check("vectorlay.url=\"unclosed a", &[("url", "unclosed a")]);
        check("xvectorlay.url=a vectorlay=b Vectorlay.url=c", &[]);
        check("ro -- vectorlay.workers=3", &[("workers", "3")]);
    }
}
