//! The HTTP proxy between this host and the control plane: its settings, and when it is used. Pure.
//!
//! Only `CONNECT` is spoken (RFC 9110, section 9.3.6), to a proxy that is itself reached without TLS.

use std::fmt::Write;
use std::net::IpAddr;

use super::url::{BadUrl, Host, split_port};
use crate::types::Secret;

/// An HTTP proxy that tunnels by `CONNECT`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Proxy {
    host: Host,
    port: u16,
    /// `user:password`, in base64.
    credentials: Option<Secret>,
    direct: Vec<Direct>,
}

/// An entry of the list of hosts that are reached without the proxy.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Direct {
    Everything,
    /// The name and all names under it.
    Domain(String),
    /// Addresses whose first bits are these.
    Network(IpAddr, u8),
}

impl Proxy {
    /// Reads `[http://][user:password@]host[:port]` (port 80 by default, user and password percent-encoded), and
    /// `no_proxy`: names, addresses, networks (`10.0.0.0/8`) or `*`, separated by commas. Entries of the list that
    /// are none of these are ignored, as every other program does.
    ///
    /// # Errors
    /// [`BadUrl`] when the proxy has another form or scheme.
    pub fn new(proxy: &str, no_proxy: &str) -> Result<Self, BadUrl> {
        let rest = match proxy.split_once("://") {
            Some((scheme, rest)) if scheme.eq_ignore_ascii_case("http") => rest,
            Some(_) => return Err(BadUrl("is no HTTP proxy: write http://[user:password@]host:port")),
            None => proxy,
        };
        let rest = rest.strip_suffix('/').unwrap_or(rest);
        let (user, authority) = match rest.rsplit_once('@') {
            Some((user, authority)) => (Some(user), authority),
            None => (None, rest),
        };
        let (host, port) = split_port(authority, 80)?;
        let host = Host::parse(host)?;
        let credentials = match user {
            Some(user) => {
                let decoded = percent_decoded(user)
                    .ok_or(BadUrl("has a '%' in its user or password that begins no %XX"))?;
                let decoded = if decoded.contains(&b':') { decoded } else { [&decoded[..], b":"].concat() };
                Some(Secret::new(base64(&decoded)))
            }
            None => None,
        };
        let direct = no_proxy.split([',', ' ']).filter_map(|entry| Direct::parse(entry.trim())).collect();
        Ok(Self { host, port, credentials, direct })
    }

    /// Its host.
    pub fn host(&self) -> &Host {
        &self.host
    }

    /// Its port.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Whether `host` is reached through it. This machine itself never is.
    pub fn serves(&self, host: &Host) -> bool {
        !host.is_loopback() && !self.direct.iter().any(|direct| direct.covers(host))
    }

    /// The request that opens a tunnel to `host:port`.
    pub(super) fn connect_request(&self, host: &Host, port: u16) -> Secret {
        let mut text = format!("CONNECT {host}:{port} HTTP/1.1\r\nHost: {host}:{port}\r\n");
        if let Some(credentials) = &self.credentials {
            let _ = write!(text, "Proxy-Authorization: Basic {}\r\n", credentials.expose());
        }
        text.push_str("\r\n");
        Secret::new(text)
    }
}

impl Direct {
    fn parse(entry: &str) -> Option<Self> {
        if entry == "*" {
            return Some(Self::Everything);
        }
        let (address, bits) = match entry.split_once('/') {
            Some((address, bits)) => (address, Some(bits.parse::<u8>().ok()?)),
            None => (entry, None),
        };
        if let Ok(address) = address.trim_matches(['[', ']']).parse::<IpAddr>() {
            let longest = if address.is_ipv4() { 32 } else { 128 };
            return Some(Self::Network(address, bits.unwrap_or(longest).min(longest)));
        }
        // `.example.com`, `*.example.com` and `example.com` all mean the domain and what is under it.
        let name = entry.trim_start_matches('*').trim_start_matches('.');
        (!name.is_empty() && bits.is_none()).then(|| Self::Domain(name.to_ascii_lowercase()))
    }

    fn covers(&self, host: &Host) -> bool {
        match (self, host) {
            (Self::Everything, _) => true,
            (Self::Domain(domain), Host::Name(name)) => {
                name.strip_suffix(domain.as_str()).is_some_and(|rest| rest.is_empty() || rest.ends_with('.'))
            }
            (Self::Network(IpAddr::V4(net), bits), Host::Address(IpAddr::V4(address))) => {
                let differ = u32::from(*net) ^ u32::from(*address);
                differ.checked_shr(32 - u32::from(*bits)).unwrap_or(0) == 0
            }
            (Self::Network(IpAddr::V6(net), bits), Host::Address(IpAddr::V6(address))) => {
                let differ = u128::from(*net) ^ u128::from(*address);
                differ.checked_shr(128 - u32::from(*bits)).unwrap_or(0) == 0
            }
            (Self::Domain(_), Host::Address(_)) | (Self::Network(..), _) => false,
        }
    }
}

fn percent_decoded(text: &str) -> Option<Vec<u8>> {
    let mut out = Vec::with_capacity(text.len());
    let mut bytes = text.bytes();
    while let Some(byte) = bytes.next() {
        if byte == b'%' {
            let digit = |b: Option<u8>| char::from(b?).to_digit(16);
            let value = digit(bytes.next())? * 16 + digit(bytes.next())?;
            out.push(u8::try_from(value).ok()?);
        } else {
            out.push(byte);
        }
    }
    Some(out)
}

/// RFC 4648, section 4.
fn base64(bytes: &[u8]) -> String {
    const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut out = String::new();
    for chunk in bytes.chunks(3) {
        let group = chunk.iter().enumerate().fold(0u32, |acc, (i, b)| acc | u32::from(*b) << (16 - 8 * i));
        for i in 0..4 {
            let index = (group >> (18 - 6 * i)) as usize & 63;
            out.push(if i <= chunk.len() { char::from(ALPHABET[index]) } else { '=' });
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn proxies_are_read() {
        let check = |text: &str, host: &str, port: u16, auth: Option<&str>| {
            let proxy = Proxy::new(text, "").unwrap();
            assert_eq!((proxy.host().to_string().as_str(), proxy.port()), (host, port), "{text}");
            assert_eq!(proxy.credentials.as_ref().map(Secret::expose), auth, "{text}");
        };
        check("http://proxy:3128", "proxy", 3128, None);
        check("proxy:3128/", "proxy", 3128, None);
        check("http://10.0.0.1", "10.0.0.1", 80, None);
        check("http://[::1]:3128", "[::1]", 3128, None);
        // RFC 7617, section 2.
        check("http://Aladdin:open%20sesame@p:1", "p", 1, Some("QWxhZGRpbjpvcGVuIHNlc2FtZQ=="));
        check("http://user:p@ss@p:1", "p", 1, Some("dXNlcjpwQHNz"));
        check("http://user@p:1", "p", 1, Some("dXNlcjo="));
        for bad in ["https://p:1", "socks5://p", "http://", "http://u:%zz@p", "http://p:x", "http://a b"] {
            assert!(Proxy::new(bad, "").is_err(), "{bad}");
        }
        let proxy = Proxy::new("http://u:hunter2@p", "").unwrap();
        assert!(!format!("{proxy:?}").contains("aHVudGVy"), "{proxy:?}");
        let request = proxy.connect_request(&Host::parse("[::1]").unwrap(), 443);
        assert!(request.expose().starts_with("CONNECT [::1]:443 HTTP/1.1\r\nHost: [::1]:443\r\nProxy-"));
    }

    #[test]
    fn some_hosts_are_reached_directly() {
        let check = |no_proxy: &str, host: &str, serves: bool| {
            let proxy = Proxy::new("http://p", no_proxy).unwrap();
            assert_eq!(proxy.serves(&Host::parse(host).unwrap()), serves, "{no_proxy:?} {host}");
        };
        check("", "a.example.com", true);
        check("", "localhost", false);
        check("", "127.0.0.9", false);
        check("*", "a.example.com", false);
        for list in ["example.com", ".example.com", "*.example.com", "x, EXAMPLE.com"] {
            check(list, "a.example.com", false);
            check(list, "badexample.com", true);
        }
        check("10.0.0.0/8,[2001:db8::]/32", "10.9.9.9", false);
        check("10.0.0.0/8,2001:db8::/32", "11.9.9.9", true);
        check("10.0.0.0/8,2001:db8::/32", "[2001:db8::9]", false);
        check("10.0.0.0/8,2001:db8::/32", "[2001:db9::9]", true);
        check("10.1.2.3", "10.1.2.3", false);
        check("10.1.2.3", "10.1.2.4", true);
        check("0.0.0.0/0", "10.1.2.4", false);
        check("10.0.0.0/99,/,a/b,10.0.0.0/x,,", "10.1.2.4", true);
    }
}
