//! Addresses of the control plane, read and checked once. Pure.

use std::fmt;
use std::net::{IpAddr, Ipv6Addr};

/// A host as it stands in a URL.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Host {
    /// A name, in lower case.
    Name(String),
    /// An address.
    Address(IpAddr),
}

impl Host {
    /// Reads a host: a name, an IPv4 address, or an IPv6 address in brackets.
    pub(super) fn parse(text: &str) -> Result<Self, BadUrl> {
        if let Some(inner) = text.strip_prefix('[').and_then(|t| t.strip_suffix(']')) {
            let address: Ipv6Addr = inner
                .parse()
                .map_err(|_| BadUrl("has something other than an IPv6 address between '[' and ']'"))?;
            return Ok(Self::Address(address.into()));
        }
        if let Ok(address) = text.parse::<IpAddr>() {
            return match address {
                IpAddr::V4(_) => Ok(Self::Address(address)),
                IpAddr::V6(_) => Err(BadUrl("has an IPv6 address without '[' and ']'")),
            };
        }
        let label = |l: &str| {
            (1..=63).contains(&l.len())
                && l.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_'))
        };
        if text.is_empty() {
            return Err(BadUrl("has no host"));
        }
        if text.len() > 253 || !text.strip_suffix('.').unwrap_or(text).split('.').all(label) {
            return Err(BadUrl(
                "has a host that is neither a name nor an address (write names beyond ASCII as xn--…)",
            ));
        }
        Ok(Self::Name(text.trim_end_matches('.').to_ascii_lowercase()))
    }

    /// Whether it names this machine, so that nothing sent there leaves it.
    pub fn is_loopback(&self) -> bool {
        match self {
            Self::Name(name) => name == "localhost",
            Self::Address(address) => address.to_canonical().is_loopback(),
        }
    }
}

impl fmt::Display for Host {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Name(name) => f.write_str(name),
            Self::Address(IpAddr::V4(address)) => write!(f, "{address}"),
            Self::Address(IpAddr::V6(address)) => write!(f, "[{address}]"),
        }
    }
}

/// A URL of the control plane: where to connect, whether with TLS, and what to ask for there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Url {
    scheme: Scheme,
    host: Host,
    port: u16,
    target: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Scheme {
    Ws,
    Wss,
    Http,
    Https,
}

impl Scheme {
    const ALL: [(&str, Self); 4] =
        [("ws", Self::Ws), ("wss", Self::Wss), ("http", Self::Http), ("https", Self::Https)];

    fn name(self) -> &'static str {
        match self {
            Self::Ws => "ws",
            Self::Wss => "wss",
            Self::Http => "http",
            Self::Https => "https",
        }
    }

    fn secure(self) -> bool {
        matches!(self, Self::Wss | Self::Https)
    }

    fn port(self) -> u16 {
        if self.secure() { 443 } else { 80 }
    }
}

/// Why a URL was refused. `Display` says what is wrong and what to write instead, never the URL itself, for it may
/// hold a password.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BadUrl(pub(super) &'static str);

impl fmt::Display for BadUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.0)
    }
}

impl std::error::Error for BadUrl {}

impl Url {
    /// Reads the control plane's WebSocket URL, `wss://host[:port][/path][?query]`.
    ///
    /// # Errors
    /// [`BadUrl`] when it has another form, another scheme, a user or a fragment, and for `ws://` to anything but
    /// loopback unless `allow_insecure`.
    pub fn websocket(text: &str, allow_insecure: bool) -> Result<Self, BadUrl> {
        Self::parse(text, allow_insecure, |scheme| match scheme {
            Scheme::Ws | Scheme::Wss => Ok(()),
            Scheme::Http | Scheme::Https => Err(BadUrl(
                "is not a WebSocket URL: write wss:// instead of https:// (ws:// instead of http://)",
            )),
        })
    }

    /// Reads the registration's URL, `https://host[:port][/path][?query]`.
    ///
    /// # Errors
    /// As for [`Url::websocket`], with `https` and `http`.
    pub fn http(text: &str, allow_insecure: bool) -> Result<Self, BadUrl> {
        Self::parse(text, allow_insecure, |scheme| match scheme {
            Scheme::Http | Scheme::Https => Ok(()),
            Scheme::Ws | Scheme::Wss => {
                Err(BadUrl("is not an HTTP URL: write https:// instead of wss:// (http:// instead of ws://)"))
            }
        })
    }

    /// The default registration URL, as the protocol has it: `ws` replaced by `http`, the last path segment by
    /// `register`, no query.
    pub fn register_from(websocket: &Self) -> Self {
        let path = websocket.target.split('?').next().unwrap_or("/");
        let folder = path.rfind('/').map_or("/", |slash| &path[..=slash]);
        let scheme = if websocket.scheme.secure() { Scheme::Https } else { Scheme::Http };
        Self {
            scheme,
            host: websocket.host.clone(),
            port: websocket.port,
            target: format!("{folder}register"),
        }
    }

    /// The host.
    pub fn host(&self) -> &Host {
        &self.host
    }

    /// The port, the scheme's own where none is written.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Whether TLS is used.
    pub fn secure(&self) -> bool {
        self.scheme.secure()
    }

    /// The whole URL, its query too.
    pub(super) fn full(&self) -> String {
        format!("{}://{}{}", self.scheme.name(), self.authority(), self.target)
    }

    /// Path and query, as they stand in a request.
    pub(super) fn target(&self) -> &str {
        &self.target
    }

    /// For the `Host` header: the port is left out where it is the scheme's own.
    pub(super) fn authority(&self) -> String {
        if self.port == self.scheme.port() {
            self.host.to_string()
        } else {
            format!("{}:{}", self.host, self.port)
        }
    }

    /// `fits` judges the scheme before anything else is judged.
    fn parse(
        text: &str,
        allow_insecure: bool,
        fits: fn(Scheme) -> Result<(), BadUrl>,
    ) -> Result<Self, BadUrl> {
        let (scheme, rest) = text.split_once("://").ok_or(BadUrl("has no scheme: write wss://host/path"))?;
        let scheme = Scheme::ALL
            .iter()
            .find(|(name, _)| name.eq_ignore_ascii_case(scheme))
            .ok_or(BadUrl("has a scheme other than wss, ws, https and http"))?
            .1;
        fits(scheme)?;
        let (authority, target) = rest.split_at(rest.find(['/', '?', '#']).unwrap_or(rest.len()));
        if authority.contains('@') {
            return Err(BadUrl("has a user or password before '@': take it out and use the token setting"));
        }
        let (host, port) = split_port(authority, scheme.port())?;
        let host = Host::parse(host)?;
        let allowed = |b: u8| b.is_ascii_alphanumeric() || b"-._~:/?@!$&'()*+,;=%".contains(&b);
        if target.contains('#') {
            return Err(BadUrl("has a fragment ('#…'), which no server sees: take it out"));
        }
        if !target.bytes().all(allowed) {
            return Err(BadUrl("has a character in its path that a URL cannot have: write it as %XX"));
        }
        if !scheme.secure() && !allow_insecure && !host.is_loopback() {
            return Err(BadUrl(
                "would send the token unencrypted: use wss:// (https://), or set allow_insecure where the network is trusted",
            ));
        }
        let slash = if target.starts_with('/') { "" } else { "/" };
        Ok(Self { scheme, host, port, target: format!("{slash}{target}") })
    }
}

/// For people: without the query, in which a secret may stand.
impl fmt::Display for Url {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}://{}", self.scheme.name(), self.authority())?;
        match self.target.split_once('?') {
            Some((path, _)) => write!(f, "{path}?…"),
            None => f.write_str(&self.target),
        }
    }
}

/// Splits `host:port`, the host in brackets where it is an IPv6 address.
pub(super) fn split_port(authority: &str, default: u16) -> Result<(&str, u16), BadUrl> {
    let after_bracket = authority.rfind(']').map_or(0, |i| i + 1);
    match authority[after_bracket..].rfind(':') {
        // Two colons without a bracket: an IPv6 address, which Host::parse refuses in its own words.
        Some(i) if after_bracket > 0 || authority.matches(':').count() == 1 => {
            let (host, port) = authority.split_at(after_bracket + i);
            let port = &port[1..];
            let digits = !port.is_empty() && port.bytes().all(|b| b.is_ascii_digit());
            let port = if digits { port.parse().ok().filter(|p| *p > 0) } else { None };
            Ok((host, port.ok_or(BadUrl("has a port that is not a number from 1 to 65535"))?))
        }
        _ => Ok((authority, default)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn good_urls_are_read_and_written_back() {
        let check = |text: &str, shown: &str, port: u16| {
            let url = Url::websocket(text, true).unwrap();
            assert_eq!((url.full().as_str(), url.port()), (shown, port), "{text}");
        };
        check("wss://cp.example.com/api/node/ws", "wss://cp.example.com/api/node/ws", 443);
        check("WSS://CP.Example.com.:443", "wss://cp.example.com/", 443);
        check("ws://a:8080?x=1", "ws://a:8080/?x=1", 8080);
        check("wss://[::1]:99/", "wss://[::1]:99/", 99);
        check("wss://[2001:db8::1]", "wss://[2001:db8::1]/", 443);
        check("wss://10.0.0.1:80/a%20b", "wss://10.0.0.1:80/a%20b", 80);
        let url = Url::websocket("wss://a/ws?key=hunter2", false).unwrap();
        assert_eq!(url.to_string(), "wss://a/ws?…");
    }

    #[test]
    fn bad_urls_are_refused_in_words() {
        let check = |text: &str, word: &str| {
            let error = Url::websocket(text, true).unwrap_err().to_string();
            assert!(error.contains(word), "{text}: {error}");
        };
        check("", "scheme");
        check("cp.example.com", "scheme");
        check("ftp://a", "scheme");
        check("https://a", "wss://");
        check("http://u@a:x", "is not a WebSocket URL: write wss://");
        check("wss://", "no host");
        check("wss:///path", "no host");
        check("wss://user:hunter2@a/", "token");
        check("wss://a:0/", "port");
        check("wss://a:65536/", "port");
        check("wss://a:/", "port");
        check("wss://a:+1/", "port");
        check("wss://[::1", "neither a name");
        check("wss://[::g]", "IPv6");
        check("wss://::1/", "IPv6");
        check("wss://fe80::1:80/", "IPv6");
        check("wss://a b/", "neither a name");
        check("wss://ü/", "xn--");
        check("wss://a..b/", "neither a name");
        check("wss://a/#x", "fragment");
        check("wss://a/x y", "%XX");
        check("wss://a/\r\nX: y", "%XX");
        assert!(!Url::websocket("wss://u:hunter2@a/", true).unwrap_err().to_string().contains("hunter2"));
        assert!(Url::http("wss://a", true).unwrap_err().to_string().contains("https://"));
    }

    #[test]
    fn plain_text_stays_on_this_machine() {
        for near in ["ws://localhost/", "ws://127.3.2.1:1/", "ws://[::1]/", "ws://[::ffff:127.0.0.1]/"] {
            assert!(Url::websocket(near, false).is_ok(), "{near}");
        }
        for far in ["ws://localhost.example.com/", "ws://10.0.0.1/", "ws://[::]/", "ws://127.0.0.1.nip.io/"] {
            assert!(Url::websocket(far, false).is_err(), "{far}");
            assert!(Url::websocket(far, true).is_ok(), "{far}");
        }
        assert!(Url::http("http://10.0.0.1/register", false).is_err());
        // A wrong scheme is reported before anything else.
        let error = Url::websocket("http://cp.example.com/ws", false).unwrap_err().to_string();
        assert!(error.contains("ws:// instead of http://"), "{error}");
    }

    #[test]
    fn the_registration_is_beside_the_socket() {
        let check = |websocket: &str, register: &str| {
            let url = Url::register_from(&Url::websocket(websocket, true).unwrap());
            assert_eq!(url.to_string(), register);
            assert_eq!(Url::http(register, true).unwrap(), url);
        };
        check("wss://a/api/node/ws", "https://a/api/node/register");
        check("wss://a/ws?x=/y", "https://a/register");
        check("wss://a", "https://a/register");
        check("ws://[::1]:81/x/", "http://[::1]:81/x/register");
    }
}
