//! One setting's value: what it may be, and how it is read from text and from JSON.

use std::path::PathBuf;

use crate::types::Secret;

/// The longest value, in bytes.
pub const VALUE_MAX: usize = 4096;

/// What values a setting takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Text without control characters that is not empty and does not begin with `-`.
    Text,
    /// A path: absolute, except on a command line.
    Path,
    /// `true` or `false`; a flag alone means `true`.
    Bool,
    /// A whole number from `min` to `max`.
    Whole { min: u64, max: u64 },
    /// One of these words.
    Words(&'static [&'static str]),
    /// Printable ASCII without spaces, never shown.
    Secret,
    /// A URL, shown without user and query, in which secrets may stand.
    Url,
    /// An HTTP proxy's URL, which may contain a password.
    Proxy,
}

impl Kind {
    /// Stands for the value in the help.
    pub fn placeholder(&self) -> String {
        match self {
            Self::Text => "TEXT".to_owned(),
            Self::Path => "PATH".to_owned(),
            Self::Bool => "[=BOOL]".to_owned(),
            Self::Whole { .. } => "NUMBER".to_owned(),
            Self::Words(words) => words.join("|"),
            Self::Secret => "SECRET".to_owned(),
            Self::Url | Self::Proxy => "URL".to_owned(),
        }
    }

    /// What a value must be; completes "is not …".
    pub fn expected(&self) -> String {
        match self {
            Self::Text | Self::Url => {
                format!("text of 1 to {VALUE_MAX} bytes without control characters and a leading '-'")
            }
            Self::Path => "an absolute path".to_owned(),
            Self::Bool => "true or false".to_owned(),
            Self::Whole { min, max } => format!("a whole number from {min} to {max}"),
            Self::Words(words) => format!("one of {}", words.join(", ")),
            Self::Secret => format!("1 to {VALUE_MAX} printable ASCII characters without spaces"),
            Self::Proxy => "a URL of printable ASCII characters such as http://host:3128".to_owned(),
        }
    }
}

/// A checked value.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Value {
    /// Of [`Kind::Text`], [`Kind::Path`], [`Kind::Words`] and [`Kind::Url`].
    Text(String),
    /// Of [`Kind::Bool`].
    Bool(bool),
    /// Of [`Kind::Whole`].
    Whole(u64),
    /// Of [`Kind::Secret`] and [`Kind::Proxy`].
    Secret(Secret),
}

impl Value {
    /// Reads `text` as `kind`; `None` when it is not what the kind expects.
    pub fn read(kind: Kind, text: &str) -> Option<Self> {
        let plain = !text.is_empty()
            && text.len() <= VALUE_MAX
            && !text.starts_with('-')
            && !text.contains(char::is_control);
        match kind {
            Kind::Text | Kind::Url => plain.then(|| Self::Text(text.to_owned())),
            Kind::Path => (plain && text.starts_with('/')).then(|| Self::Text(text.to_owned())),
            Kind::Bool => match text {
                "true" | "yes" | "on" | "1" => Some(Self::Bool(true)),
                "false" | "no" | "off" | "0" => Some(Self::Bool(false)),
                _ => None,
            },
            Kind::Whole { min, max } => {
                let digits = !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
                let number = if digits { text.parse().ok() } else { None };
                number.filter(|n| (min..=max).contains(n)).map(Self::Whole)
            }
            Kind::Words(words) => words.contains(&text).then(|| Self::Text(text.to_owned())),
            Kind::Secret | Kind::Proxy => {
                let fits =
                    !text.is_empty() && text.len() <= VALUE_MAX && text.bytes().all(|b| b.is_ascii_graphic());
                fits.then(|| Self::Secret(Secret::new(text.to_owned())))
            }
        }
    }

    /// Reads a value of the configuration file as `kind`; `None` when it has another type or range.
    pub fn read_json(kind: Kind, json: &serde_json::Value) -> Option<Self> {
        match (kind, json) {
            (Kind::Bool, serde_json::Value::Bool(value)) => Some(Self::Bool(*value)),
            (Kind::Whole { .. }, serde_json::Value::Number(number)) => Self::read(kind, &number.to_string()),
            (Kind::Bool | Kind::Whole { .. }, _) => None,
            (_, serde_json::Value::String(text)) => Self::read(kind, text),
            (_, _) => None,
        }
    }

    /// The value for display: a secret as `***`, a URL without user, password and query.
    pub fn shown(&self, kind: Kind) -> String {
        match self {
            Self::Text(text) if kind == Kind::Url => public_url(text),
            Self::Text(text) => text.clone(),
            Self::Bool(value) => value.to_string(),
            Self::Whole(number) => number.to_string(),
            Self::Secret(secret) if kind == Kind::Proxy => public_url(secret.expose()),
            Self::Secret(secret) => secret.to_string(),
        }
    }
}

/// Whether a proxy's URL contains a user or a password.
pub fn has_password(url: &str) -> bool {
    url.contains('@')
}

/// A URL as it may be shown. What stands before the last `@` may be a password, whatever characters are in it; so too much
/// is hidden where there is one in a path or query.
pub fn public_url(url: &str) -> String {
    let (hidden, rest) = url.rsplit_once('@').map_or(("", url), |(before, rest)| (before, rest));
    let scheme = hidden.find("://").map_or("", |at| &hidden[..at + 3]);
    let user = if hidden.is_empty() && rest.len() == url.len() { "" } else { "***@" };
    match rest.split_once('?') {
        Some((path, _)) => format!("{scheme}{user}{path}?…"),
        None => format!("{scheme}{user}{rest}"),
    }
}

/// Makes a field of `Config` from a checked value. Only a setting with a default has a type without `None`, and each type
/// belongs to one kind; the test `defaults_and_limits_fit_their_fields` tries every setting.
pub(super) trait Typed {
    fn typed(value: Option<&Value>) -> Self;
}

impl Typed for Option<String> {
    fn typed(value: Option<&Value>) -> Self {
        match value {
            Some(Value::Text(text)) => Some(text.clone()),
            None | Some(Value::Bool(_) | Value::Whole(_) | Value::Secret(_)) => None,
        }
    }
}

impl Typed for String {
    fn typed(value: Option<&Value>) -> Self {
        Option::<Self>::typed(value).expect("a text with a default")
    }
}

impl Typed for Option<PathBuf> {
    fn typed(value: Option<&Value>) -> Self {
        Option::<String>::typed(value).map(PathBuf::from)
    }
}

impl Typed for PathBuf {
    fn typed(value: Option<&Value>) -> Self {
        String::typed(value).into()
    }
}

impl Typed for log::LevelFilter {
    fn typed(value: Option<&Value>) -> Self {
        String::typed(value).parse().expect("one of the levels' names")
    }
}

impl Typed for Option<Secret> {
    fn typed(value: Option<&Value>) -> Self {
        match value {
            Some(Value::Secret(secret)) => Some(secret.clone()),
            None | Some(Value::Bool(_) | Value::Whole(_) | Value::Text(_)) => None,
        }
    }
}

impl Typed for bool {
    fn typed(value: Option<&Value>) -> Self {
        value == Some(&Value::Bool(true))
    }
}

impl Typed for u64 {
    fn typed(value: Option<&Value>) -> Self {
        match value {
            Some(Value::Whole(number)) => Some(*number),
            None | Some(Value::Bool(_) | Value::Text(_) | Value::Secret(_)) => None,
        }
        .expect("a number with a default")
    }
}

impl Typed for usize {
    fn typed(value: Option<&Value>) -> Self {
        u64::typed(value).try_into().expect("in the table's range")
    }
}

impl Typed for u16 {
    fn typed(value: Option<&Value>) -> Self {
        u64::typed(value).try_into().expect("in the table's range")
    }
}

impl Typed for u8 {
    fn typed(value: Option<&Value>) -> Self {
        u64::typed(value).try_into().expect("in the table's range")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_is_read_by_kind() {
        let check = |kind: Kind, good: &[&str], bad: &[&str]| {
            for text in good {
                assert!(Value::read(kind, text).is_some(), "{kind:?} {text:?}");
            }
            for text in bad {
                assert!(Value::read(kind, text).is_none(), "{kind:?} {text:?}");
            }
        };
        let long = "a".repeat(VALUE_MAX + 1);
        check(Kind::Text, &["a", "ä b", "wss://h/p"], &["", "-a", "--runtime", "a\n", "a\0", &long]);
        check(Kind::Path, &["/", "/a b"], &["", "a", "./a", "-", "/a\n"]);
        check(Kind::Bool, &["true", "false", "1", "0", "yes", "no"], &["", "TRUE", "2", "maybe"]);
        check(
            Kind::Whole { min: 2, max: 10 },
            &["2", "10", "007"],
            &["", "1", "11", "+3", "-3", "3.0", "3 ", "99999999999999999999999"],
        );
        check(Kind::Words(&["a", "b"]), &["a", "b"], &["", "c", "A"]);
        check(Kind::Secret, &["vtk_1", "-x"], &["", "a b", "a\n", "ä", &long]);
    }

    #[test]
    fn json_has_types() {
        let check = |kind: Kind, json: &str, good: bool| {
            let json: serde_json::Value = serde_json::from_str(json).unwrap();
            assert_eq!(Value::read_json(kind, &json).is_some(), good, "{kind:?} {json}");
        };
        let whole = Kind::Whole { min: 1, max: 64 };
        check(whole, "8", true);
        check(whole, "\"8\"", false);
        check(whole, "8.5", false);
        check(whole, "-8", false);
        check(whole, "65", false);
        check(Kind::Bool, "true", true);
        check(Kind::Bool, "\"true\"", false);
        check(Kind::Bool, "1", false);
        check(Kind::Text, "\"a\"", true);
        check(Kind::Text, "\"\"", false);
        check(Kind::Text, "1", false);
        check(Kind::Text, "[\"a\"]", false);
    }

    #[test]
    fn urls_are_shown_without_users_and_queries() {
        let check = |url: &str, shown: &str| {
            for kind in [Kind::Proxy, Kind::Url] {
                assert_eq!(Value::read(kind, url).unwrap().shown(kind), shown);
            }
        };
        check("wss://a/b?token=hunter2", "wss://a/b?…");
        check("wss://u:hun/ter?2@a/b?c", "wss://***@a/b?…");
        check("wss://a/b?c=hunter2@d", "wss://***@d");
        check("@a", "***@a");
        check("http://proxy:3128", "http://proxy:3128");
        check("http://user:pa@ss@proxy:3128", "http://***@proxy:3128");
        check("user:pass@proxy:3128", "***@proxy:3128");
    }
}
