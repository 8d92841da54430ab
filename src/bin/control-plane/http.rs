//! As much HTTP/1.1 as this program serves: one request on a connection, a body with a length, a JSON answer.
//!
//! Format: RFC 9112. Never: chunked bodies, keep-alive, folded header lines.

use std::fmt;
use std::io::{self, Read, Write};

use serde_json::Value;

/// The longest request line and headers, bytes.
const HEAD_MAX: usize = 16 * 1024;
/// The longest body, bytes: a message of the protocol has the same limit.
pub const BODY_MAX: usize = 4 << 20;

/// A request's head.
#[derive(Debug, PartialEq, Eq)]
pub struct Request {
    /// `GET`, `POST`, …
    pub method: String,
    /// The path, without the query.
    pub path: String,
    /// What follows the `?`, or empty.
    pub query: String,
    headers: Vec<(String, String)>,
}

impl Request {
    /// The value of the first header of this name, given in lower case.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(n, _)| n == name).map(|(_, value)| value.as_str())
    }

    /// The token of `Authorization: Bearer …`.
    pub fn bearer(&self) -> Option<&str> {
        let (scheme, token) = self.header("authorization")?.split_once(' ')?;
        scheme.eq_ignore_ascii_case("bearer").then(|| token.trim())
    }

    /// A number from the query.
    pub fn number(&self, name: &str) -> Option<u64> {
        let value = self.query.split('&').find_map(|pair| pair.strip_prefix(name)?.strip_prefix('='))?;
        value.parse().ok()
    }
}

/// Reads a request's head. What was read past it is returned with it.
///
/// # Errors
/// [`HttpError`] when the peer ends, stalls or sends what is no request.
pub fn read_head(stream: &mut impl Read) -> Result<(Request, Vec<u8>), HttpError> {
    let mut bytes = Vec::new();
    loop {
        if let Some((request, length)) = parse_head(&bytes)? {
            let rest = bytes.split_off(length);
            return Ok((request, rest));
        }
        let mut chunk = [0; 1024];
        match stream.read(&mut chunk).map_err(HttpError::Io)? {
            0 => return Err(HttpError::Ended),
            n => bytes.extend_from_slice(&chunk[..n]),
        }
    }
}

/// Reads the body that belongs to `request`; `begun` is what was already read of it.
///
/// # Errors
/// [`HttpError`] when it has no plain length, is too long, or does not arrive.
pub fn read_body(
    stream: &mut impl Read,
    request: &Request,
    mut begun: Vec<u8>,
) -> Result<Vec<u8>, HttpError> {
    if request.header("transfer-encoding").is_some() {
        return Err(HttpError::Malformed("a chunked body"));
    }
    let length = match request.header("content-length") {
        None => 0,
        Some(text) => text.parse::<usize>().map_err(|_| HttpError::Malformed("a bad Content-Length"))?,
    };
    if length > BODY_MAX {
        return Err(HttpError::TooLong);
    }
    let missing = length.saturating_sub(begun.len());
    begun.truncate(length);
    let got = stream.take(missing as u64).read_to_end(&mut begun).map_err(HttpError::Io)?;
    if got == missing { Ok(begun) } else { Err(HttpError::Ended) }
}

/// Answers with JSON and ends the conversation. Each line of `headers` ends with CRLF.
///
/// # Errors
/// What the stream's writes give.
pub fn answer(stream: &mut impl Write, status: u16, headers: &str, body: &Value) -> io::Result<()> {
    let body = body.to_string();
    let text = format!(
        "HTTP/1.1 {status} {}\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\
         Connection: close\r\n{headers}\r\n{body}",
        reason(status),
        body.len()
    );
    stream.write_all(text.as_bytes())?;
    stream.flush()
}

/// Parses a head. `None`: it is not yet complete. With it comes its length in bytes.
fn parse_head(bytes: &[u8]) -> Result<Option<(Request, usize)>, HttpError> {
    let Some(end) = bytes.windows(4).position(|four| four == b"\r\n\r\n") else {
        return if bytes.len() > HEAD_MAX { Err(HttpError::TooLong) } else { Ok(None) };
    };
    let text =
        std::str::from_utf8(&bytes[..end]).map_err(|_| HttpError::Malformed("a head that is not text"))?;
    let mut lines = text.split("\r\n");
    let mut words = lines.next().unwrap_or_default().split(' ');
    let (Some(method), Some(target), Some("HTTP/1.1" | "HTTP/1.0"), None) =
        (words.next(), words.next(), words.next(), words.next())
    else {
        return Err(HttpError::Malformed("a bad request line"));
    };
    if method.is_empty() || !target.starts_with('/') {
        return Err(HttpError::Malformed("a bad request line"));
    }
    let mut headers = Vec::new();
    for line in lines {
        // White space before the colon, and so a folded line, is refused as RFC 9112 5.1 asks.
        match line.split_once(':') {
            Some((name, value)) if !name.is_empty() && !name.contains([' ', '\t']) => {
                headers.push((name.to_ascii_lowercase(), value.trim().to_owned()));
            }
            _ => return Err(HttpError::Malformed("a bad header")),
        }
    }
    let (path, query) = target.split_once('?').unwrap_or((target, ""));
    let request =
        Request { method: method.to_owned(), path: path.to_owned(), query: query.to_owned(), headers };
    Ok(Some((request, end + 4)))
}

fn reason(status: u16) -> &'static str {
    match status {
        200 => "OK",
        201 => "Created",
        400 => "Bad Request",
        401 => "Unauthorized",
        404 => "Not Found",
        409 => "Conflict",
        410 => "Gone",
        426 => "Upgrade Required",
        429 => "Too Many Requests",
        503 => "Service Unavailable",
        _ => "See Status",
    }
}

/// Why a request was not read.
#[derive(Debug)]
pub enum HttpError {
    /// The stream failed, or its deadline passed.
    Io(io::Error),
    /// The peer ended before the request did.
    Ended,
    /// It is longer than this program takes.
    TooLong,
    /// It is no request of the kind that this program takes.
    Malformed(&'static str),
}

impl fmt::Display for HttpError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Io(e) => write!(f, "cannot read the request: {e}"),
            Self::Ended => f.write_str("the request ends early: send all of it"),
            Self::TooLong => {
                f.write_str("the request is too long: 16 KiB of head and 4 MiB of body are taken")
            }
            Self::Malformed(what) => write!(f, "the request has {what}: send plain HTTP/1.1"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_head_is_read_whole_whatever_its_pieces() {
        let text =
            b"POST /a/b?since=12&wait_ms=3 HTTP/1.1\r\nHost: x\r\nAUTHORIZATION: bearer  t \r\nEmpty:\r\n\
                     Content-Length: 5\r\n\r\nhellowho";
        let end = text.len() - 8;
        for cut in 0..end {
            assert!(parse_head(&text[..cut]).unwrap().is_none(), "{cut}");
        }
        let (request, rest) = read_head(&mut &text[..]).unwrap();
        assert_eq!((request.method.as_str(), request.path.as_str()), ("POST", "/a/b"));
        assert_eq!(
            (request.number("since"), request.number("wait_ms"), request.number("wait")),
            (Some(12), Some(3), None)
        );
        assert_eq!(
            (request.header("host"), request.header("empty"), request.bearer()),
            (Some("x"), Some(""), Some("t"))
        );
        assert_eq!(read_body(&mut &b""[..], &request, rest).unwrap(), b"hello");
        assert_eq!(read_body(&mut &b"lo"[..], &request, b"hel".to_vec()).unwrap(), b"hello");
        assert!(matches!(read_body(&mut &b"l"[..], &request, b"hel".to_vec()), Err(HttpError::Ended)));
    }

    #[test]
    fn what_is_no_request_is_refused() {
        for bad in [
            "GET /\r\n\r\n",
            "GET / HTTP/2\r\n\r\n",
            "GET x HTTP/1.1\r\n\r\n",
            "GET / HTTP/1.1 x\r\n\r\n",
            " / HTTP/1.1\r\n\r\n",
            "GET / HTTP/1.1\r\nno colon\r\n\r\n",
            "GET / HTTP/1.1\r\nname : v\r\n\r\n",
            "GET / HTTP/1.1\r\na: b\r\n c: d\r\n\r\n",
            "\r\n\r\n",
        ] {
            assert!(matches!(read_head(&mut bad.as_bytes()), Err(HttpError::Malformed(_))), "{bad:?}");
        }
        assert!(matches!(read_head(&mut &b"GET / HT"[..]), Err(HttpError::Ended)));
        assert!(matches!(read_head(&mut &[b'a'; HEAD_MAX + 2048][..]), Err(HttpError::TooLong)));
    }

    #[test]
    fn bodies_without_a_plain_length_are_refused() {
        let check = |header: &str| {
            let head = format!("POST / HTTP/1.1\r\n{header}\r\n\r\n");
            let (request, rest) = read_head(&mut head.as_bytes()).unwrap();
            read_body(&mut io::repeat(b'x'), &request, rest)
        };
        assert!(matches!(check("Transfer-Encoding: chunked"), Err(HttpError::Malformed(_))));
        assert!(matches!(check("Content-Length: -1"), Err(HttpError::Malformed(_))));
        assert!(matches!(check("Content-Length: 4194305"), Err(HttpError::TooLong)));
        assert_eq!(check("Content-Length: 3").unwrap(), b"xxx");
        assert_eq!(check("X: y").unwrap(), b"");
    }
}
