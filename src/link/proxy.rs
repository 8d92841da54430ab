//! The HTTP proxy between this host and the control plane: its settings, and when it is used. Pure.
//!
//! Only `CONNECT` is spoken (RFC 9110, section 9.3.6), to a proxy that is itself reached without TLS.

use std::fmt::Write;
use std::net::IpAddr;

use data_encoding::BASE64;
use percent_encoding::percent_decode_str;
use zeroize::Zeroizing;

use super::url::{BadUrl, Host, split_port};
use crate::types::Secret;

/// An HTTP proxy that tunnels by `CONNECT`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Proxy {
    host: Host,
    port: u16,
    /// `user:password`, in base64.
    credentials: Option<Secret>,
    exceptions: Vec<Exception>,
}

/// An entry of `NO_PROXY`: hosts that are reached without the proxy, on every port or on one.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Exception {
    hosts: Hosts,
    port: Option<u16>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Hosts {
    All,
    /// The name and all names under it.
    Domain(String),
    /// Addresses that share the first bits of this one.
    Network(IpAddr, u8),
}

impl Proxy {
    /// Reads `[http://][user:password@]host[:port]` (port 80 by default, user and password percent-encoded), and
    /// `no_proxy`: a list of domains, addresses, networks (`10.0.0.0/8`) or `*`, separated by commas or white space;
    /// all but networks may end with `:port`. A domain stands for the names under it too, with or without a dot or
    /// `*.` before it. An entry of another form is ignored, as curl and Go's net/http do.
    ///
    /// # Errors
    /// [`BadUrl`] when the proxy has another form or scheme.
    pub fn new(proxy: &str, no_proxy: &str) -> Result<Self, BadUrl> {
        let rest = match proxy.split_once("://") {
            Some((scheme, rest)) if scheme.eq_ignore_ascii_case("http") => rest,
            Some(_) => return Err(BadUrl("is not an HTTP proxy: write http://[user:password@]host:port")),
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
                if !percent_encoded(user) {
                    return Err(BadUrl(
                        "has a '%' in its user or password that is not followed by two hex digits",
                    ));
                }
                let mut decoded = Zeroizing::new(percent_decode_str(user).collect::<Vec<u8>>());
                if !decoded.contains(&b':') {
                    decoded.push(b':');
                }
                Some(Secret::new(BASE64.encode(&decoded)))
            }
            None => None,
        };
        let entries = no_proxy.split(|c: char| c == ',' || c.is_whitespace());
        Ok(Self { host, port, credentials, exceptions: entries.filter_map(Exception::parse).collect() })
    }

    /// Its host.
    pub fn host(&self) -> &Host {
        &self.host
    }

    /// Its port.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Whether `host:port` is reached through it. This machine itself never is.
    pub fn serves(&self, host: &Host, port: u16) -> bool {
        !host.is_loopback() && !self.exceptions.iter().any(|exception| exception.covers(host, port))
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

impl Exception {
    fn parse(entry: &str) -> Option<Self> {
        if let Some((address, bits)) = entry.split_once('/') {
            let network = Hosts::network(address, Some(bits.parse().ok()?))?;
            return Some(Self { hosts: network, port: None });
        }
        if let Some(address) = Hosts::network(entry, None) {
            return Some(Self { hosts: address, port: None });
        }
        let (host, port) = match entry.rsplit_once(':') {
            Some((host, port)) => (host, Some(port.parse().ok()?)),
            None => (entry, None),
        };
        let hosts = if host == "*" {
            Hosts::All
        } else if let Some(address) = Hosts::network(host, None) {
            address
        } else {
            let name = host.trim_start_matches('*').trim_start_matches('.').trim_end_matches('.');
            if name.is_empty() || name.contains([':', '[', ']']) {
                return None;
            }
            Hosts::Domain(name.to_ascii_lowercase())
        };
        Some(Self { hosts, port })
    }

    fn covers(&self, host: &Host, port: u16) -> bool {
        self.port.is_none_or(|only| only == port) && self.hosts.cover(host)
    }
}

impl Hosts {
    /// The addresses that share the first `bits` of `address` (all of them by default), which may stand in brackets.
    fn network(address: &str, bits: Option<u8>) -> Option<Self> {
        let bare = address.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')).unwrap_or(address);
        let address: IpAddr = bare.parse().ok()?;
        let longest = if address.is_ipv4() { 32 } else { 128 };
        let bits = bits.unwrap_or(longest);
        (bits <= longest).then_some(Self::Network(address, bits))
    }

    fn cover(&self, host: &Host) -> bool {
        match (self, host) {
            (Self::All, _) => true,
            (Self::Domain(domain), Host::Name(name)) => {
                name.strip_suffix(domain.as_str()).is_some_and(|rest| rest.is_empty() || rest.ends_with('.'))
            }
            (Self::Network(network, bits), Host::Address(address)) => match (network, address.to_canonical())
            {
                (IpAddr::V4(network), IpAddr::V4(address)) => {
                    let differ = u32::from(*network) ^ u32::from(address);
                    differ.checked_shr(32 - u32::from(*bits)).unwrap_or(0) == 0
                }
                (IpAddr::V6(network), IpAddr::V6(address)) => {
                    let differ = u128::from(*network) ^ u128::from(address);
                    differ.checked_shr(128 - u32::from(*bits)).unwrap_or(0) == 0
                }
                _ => false,
            },
            (Self::Domain(_), Host::Address(_)) | (Self::Network(..), Host::Name(_)) => false,
        }
    }
}

/// Whether each `%` begins a `%XX`.
fn percent_encoded(text: &str) -> bool {
    let two_digits =
        |rest: &str| rest.as_bytes().get(..2).is_some_and(|two| two.iter().all(u8::is_ascii_hexdigit));
    text.split('%').skip(1).all(two_digits)
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
        let check = |no_proxy: &str, authority: &str, serves: bool| {
            let proxy = Proxy::new("http://p", no_proxy).unwrap();
            let (host, port) = split_port(authority, 443).unwrap();
            assert_eq!(proxy.serves(&Host::parse(host).unwrap(), port), serves, "{no_proxy:?} {authority}");
        };
        check("", "a.example.com", true);
        check("", "localhost", false);
        check("", "127.0.0.9", false);
        check("*", "a.example.com", false);
        for list in ["example.com", ".example.com", "*.example.com", "x, EXAMPLE.com", "x\texample.com."] {
            check(list, "a.example.com", false);
            check(list, "example.com:8443", false);
            check(list, "badexample.com", true);
        }
        check("10.0.0.0/8,[2001:db8::]/32", "10.9.9.9", false);
        check("10.0.0.0/8,2001:db8::/32", "11.9.9.9", true);
        check("10.0.0.0/8,2001:db8::/32", "[2001:db8::9]", false);
        check("10.0.0.0/8,2001:db8::/32", "[2001:db9::9]", true);
        check("10.0.0.0/8", "[::ffff:10.1.2.3]", false);
        check("10.1.2.3", "10.1.2.3", false);
        check("10.1.2.3", "10.1.2.4", true);
        check("0.0.0.0/0", "10.1.2.4", false);
        check("::/0", "10.1.2.4", true);
        check("10.0.0.0/99,/,a/b,10.0.0.0/x,,:,:80,*:x", "10.1.2.4", true);
    }

    #[test]
    fn an_exception_can_be_for_one_port() {
        for (list, authority) in [
            ("cp.example.com:8443", "cp.example.com:8443"),
            (".example.com:8443", "cp.example.com:8443"),
            ("*.example.com:8443", "cp.example.com:8443"),
            ("10.1.2.3:8443", "10.1.2.3:8443"),
            ("[2001:db8::1]:8443", "[2001:db8::1]:8443"),
            ("*:8443", "anything.example:8443"),
        ] {
            let proxy = Proxy::new("http://p", list).unwrap();
            let (host, port) = split_port(authority, 443).unwrap();
            let host = Host::parse(host).unwrap();
            assert!(!proxy.serves(&host, port), "{list} {authority}");
            assert!(proxy.serves(&host, 443), "{list} {host}:443");
        }
        // Without brackets the last group of an IPv6 address is not a port.
        let proxy = Proxy::new("http://p", "2001:db8::1:443").unwrap();
        assert!(proxy.serves(&Host::parse("[2001:db8::1]").unwrap(), 443));
        assert!(!proxy.serves(&Host::parse("[2001:db8::1:443]").unwrap(), 8443));
    }
}
