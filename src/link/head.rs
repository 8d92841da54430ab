//! The head of an HTTP/1.1 answer, read by ourselves where the connection goes on to be something else behind it: the
//! upgrade's answer and a proxy's answer to CONNECT.
//!
//! It is read byte by byte, so that nothing behind it is swallowed, and leniently: folded lines (RFC 9112, section
//! 5.2), spaces before a colon and bare line feeds are taken as what they mean, and lines that are not fields are
//! skipped. Interim answers (100, 103) are skipped as RFC 9110, section 15.2, asks of every client.

use std::fmt;
use std::io::{self, Read};

use httparse::{EMPTY_HEADER, ParserConfig, Response, Status};

/// The longest head that is read, interim answers included, in bytes.
pub(super) const HEAD_MAX: usize = 64 << 10;
/// The most fields of one answer.
const FIELDS_MAX: usize = 128;

/// An answer's status and fields.
#[derive(Debug)]
pub(super) struct Head {
    pub(super) status: u16,
    /// What stands behind the status, at most 100 characters, without control characters.
    pub(super) reason: String,
    /// Whether it is HTTP/1.1 and not 1.0.
    pub(super) is_http_1_1: bool,
    /// In the order in which they came; names as they were written.
    fields: Vec<(String, String)>,
}

/// Why a head could not be read.
#[derive(Debug)]
pub(super) enum HeadError {
    /// The connection failed.
    Io(io::Error),
    /// The peer closed the connection, after this many bytes.
    Closed(usize),
    /// It is longer than [`HEAD_MAX`].
    TooLong,
    /// It is not HTTP/1: why.
    NotHttp(String),
}

impl fmt::Display for HeadError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Io(error) if error.kind() == io::ErrorKind::ConnectionReset => {
                f.write_str("the connection was reset without an answer")
            }
            Self::Io(error) => error.fmt(f),
            Self::Closed(0) => f.write_str("the connection was closed without an answer"),
            Self::Closed(_) => f.write_str("the connection was closed in the middle of the answer"),
            Self::TooLong => write!(f, "the head of the answer is longer than {HEAD_MAX} bytes"),
            Self::NotHttp(why) => write!(f, "the answer is not HTTP ({why})"),
        }
    }
}

impl Head {
    /// Reads the first answer that is not an interim one.
    pub(super) fn read(stream: &mut dyn Read) -> Result<Self, HeadError> {
        let mut left = HEAD_MAX;
        loop {
            let text = read_text(stream, left)?;
            left -= text.len();
            let head = Self::parse(&text)?;
            // 101 is the final answer to an upgrade.
            if !(100..200).contains(&head.status) || head.status == 101 {
                return Ok(head);
            }
        }
    }

    fn parse(text: &[u8]) -> Result<Self, HeadError> {
        let mut fields = [EMPTY_HEADER; FIELDS_MAX];
        let mut response = Response::new(&mut fields);
        let mut config = ParserConfig::default();
        config
            .allow_obsolete_multiline_headers_in_responses(true)
            .allow_spaces_after_header_name_in_responses(true)
            .ignore_invalid_headers_in_responses(true);
        match config.parse_response(&mut response, text) {
            Ok(Status::Complete(_)) => {}
            Ok(Status::Partial) => return Err(HeadError::NotHttp("it ends too soon".to_owned())),
            Err(error) => return Err(HeadError::NotHttp(error.to_string())),
        }
        let fields = response.headers.iter();
        Ok(Self {
            status: response.code.unwrap_or(0),
            reason: response.reason.unwrap_or("").chars().filter(|c| !c.is_control()).take(100).collect(),
            is_http_1_1: response.version == Some(1),
            fields: fields.map(|field| (field.name.to_owned(), plain(field.value))).collect(),
        })
    }

    /// The values of all fields of this name.
    pub(super) fn values<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a str> {
        self.fields.iter().filter(|(n, _)| n.eq_ignore_ascii_case(name)).map(|(_, value)| value.as_str())
    }

    /// The first value of this name.
    pub(super) fn value(&self, name: &str) -> Option<&str> {
        let found = self.fields.iter().find(|(n, _)| n.eq_ignore_ascii_case(name));
        found.map(|(_, value)| value.as_str())
    }

    /// The elements of a field that is a list, in all of its lines (RFC 9110, section 5.6.1: empty ones do not count).
    pub(super) fn list<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a str> {
        self.values(name).flat_map(|value| value.split(',')).map(str::trim).filter(|item| !item.is_empty())
    }
}

/// The bytes up to the first empty line, at most `most` of them.
fn read_text(stream: &mut dyn Read, most: usize) -> Result<Vec<u8>, HeadError> {
    const START: &[u8] = b"HTTP/";
    let mut text = Vec::new();
    let mut byte = [0];
    while !text.ends_with(b"\n\r\n") && !text.ends_with(b"\n\n") {
        if text.len() >= most {
            return Err(HeadError::TooLong);
        }
        match stream.read(&mut byte) {
            Ok(0) => return Err(HeadError::Closed(text.len())),
            Ok(_) => text.push(byte[0]),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(HeadError::Io(error)),
        }
        // Another protocol's greeting may never have an empty line.
        let begun = text.len().min(START.len());
        if text[..begun] != START[..begun] {
            return Err(HeadError::NotHttp("it does not begin with HTTP/".to_owned()));
        }
    }
    Ok(text)
}

/// A field's value on one line.
fn plain(value: &[u8]) -> String {
    let text = String::from_utf8_lossy(value);
    text.split(|c: char| c.is_control()).map(str::trim).collect::<Vec<_>>().join(" ").trim().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn head(text: &str) -> Result<Head, String> {
        Head::read(&mut text.as_bytes()).map_err(|error| error.to_string())
    }

    #[test]
    fn fields_in_every_form() {
        let read = head(
            "HTTP/1.1 200 Fine\r\nA: 1\r\na : 2,, 3\r\nFolded: x,\r\n  y\r\nnot a field\r\nEmpty:\r\nLast:\t z \r\n\r\n",
        )
        .unwrap();
        assert_eq!((read.status, read.reason.as_str(), read.is_http_1_1), (200, "Fine", true));
        assert_eq!(read.list("A").collect::<Vec<_>>(), ["1", "2", "3"]);
        assert_eq!(read.list("folded").collect::<Vec<_>>(), ["x", "y"]);
        assert_eq!(
            (read.value("empty"), read.value("LAST"), read.value("none")),
            (Some(""), Some("z"), None)
        );
        assert_eq!(read.list("empty").count(), 0);
    }

    #[test]
    fn nothing_behind_the_head_is_read() {
        for text in ["HTTP/1.1 101 S\r\nA: b\r\n\r\nrest", "HTTP/1.1 101 S\nA: b\n\nrest"] {
            let mut stream = text.as_bytes();
            assert_eq!(Head::read(&mut stream).unwrap().value("a"), Some("b"));
            assert_eq!(stream, b"rest");
        }
    }

    #[test]
    fn interim_answers_are_skipped() {
        let interim = "HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nLink: </x>\r\n\r\n";
        let last = head(&format!("{interim}HTTP/1.1 101 Switching\r\n\r\n")).unwrap();
        assert_eq!((last.status, last.value("link")), (101, None));
        let endless = "HTTP/1.1 100 Continue\r\n\r\n".repeat(HEAD_MAX / 20);
        assert!(head(&endless).unwrap_err().contains("longer"));
    }

    #[test]
    fn answers_that_are_none() {
        let check = |text: &str, says: &str| {
            let error = head(text).unwrap_err();
            assert!(error.contains(says), "{text:?}: {error}");
        };
        check("", "without an answer");
        check("HTTP/1.1 101 Sw", "in the middle");
        check("HTTP/1.1 101 S\r\n", "in the middle");
        check("SSH-2.0-OpenSSH_9.2\r\n", "not HTTP");
        check("HTTP/2 200\r\n\r\n", "not HTTP");
        check("HTTP/1.1 x\r\n\r\n", "not HTTP");
        check(&format!("HTTP/1.1 200 OK\r\nA: {}\r\n\r\n", "x".repeat(HEAD_MAX)), "longer");
        check(&format!("HTTP/1.1 200 OK\r\n{}\r\n", "A: b\r\n".repeat(FIELDS_MAX + 1)), "not HTTP");
    }
}
