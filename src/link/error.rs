//! Why an attempt failed: what was attempted, on what, and what to do next.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::dates;
use super::head::Head;
use super::url::Url;
use crate::core::link_api::{Down, DownReason};

/// Where the resolver finds its name servers.
const RESOLV_CONF: &str = "/etc/resolv.conf";

/// Everything that can go wrong on the way to a connection. `Display` ends with what to do next.
#[derive(Debug)]
pub enum Error {
    /// The link thread or its wake-up descriptor could not be made.
    Start(io::Error),
    /// The core cancelled the attempt.
    Cancelled,
    /// The attempt's deadline passed.
    Deadline {
        /// The step that it was in.
        waiting_for: &'static str,
        /// Whose turn it was.
        peer: String,
        /// The time that the whole attempt was given.
        after: Duration,
    },
    /// A name could not be looked up.
    Lookup {
        /// The name, with a word on where it comes from unless it is the URL's host.
        name: String,
        /// The resolver's error.
        source: io::Error,
    },
    /// Earlier lookups never came back, and no more are started.
    LookupsHang {
        /// The name that was to be looked up.
        name: String,
    },
    /// None of a host's addresses accepted a connection.
    Connect {
        /// The host and port.
        peer: String,
        /// Each address that was tried, with its error.
        tried: String,
        /// What all of these errors have in common.
        all: ConnectFailure,
    },
    /// The socket was lost, or could not be prepared, before the connection stood.
    Lost {
        /// The step that failed.
        doing: &'static str,
        /// With which peer.
        peer: String,
        /// The kernel's error.
        source: io::Error,
    },
    /// The proxy did not open a tunnel.
    Proxy {
        /// The proxy's host and port.
        proxy: String,
        /// Where the tunnel was to lead.
        peer: String,
        /// Its status line, or what was wrong with its answer.
        answer: String,
    },
    /// The CA file cannot be used.
    CaFile {
        /// Its path.
        path: PathBuf,
        /// What is wrong with it.
        why: String,
    },
    /// The TLS handshake failed.
    Tls {
        /// The host and port.
        peer: String,
        /// What is wrong with the certificate or the handshake, and what to do.
        why: String,
    },
    /// The setting named here cannot stand in an HTTP header.
    Header(&'static str),
    /// The upgrade was answered with an HTTP status.
    Status {
        /// The URL.
        url: String,
        /// The status.
        status: u16,
        /// How long the server asked to be left alone.
        retry_after: Option<Duration>,
        /// Where a redirect points.
        location: Option<String>,
        /// Whether a registered node asked, and not one that has yet to register.
        as_node: bool,
        /// Whether something between here and the control plane seems to have answered: a control plane answers in
        /// JSON, never with a web page.
        foreign: bool,
    },
    /// The answer to the upgrade does not open a WebSocket.
    Upgrade {
        /// The URL.
        url: String,
        /// What is wrong with it.
        why: String,
    },
}

/// What the failures of a host's addresses have in common.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ConnectFailure {
    /// Nothing listens at any of them (ECONNREFUSED).
    Refused,
    /// This host has no way to any of them (ENETUNREACH): its network is not up.
    NoRoute,
    /// Nothing that says more.
    Other,
}

/// How the clock is set, on hosts with systemd and on those without.
const SET_THE_CLOCK: &str =
    "set it by NTP: timedatectl set-ntp true, chronyd -q, or busybox's ntpd -nqp SERVER";

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Start(source) => {
                write!(f, "starting the link thread: {source}: raise the limits on threads and open files")
            }
            Self::Cancelled => f.write_str("the attempt was cancelled"),
            Self::Deadline { waiting_for, peer, after } => write!(
                f,
                "no {waiting_for} from {peer} within {} s: check the network path, the port and any firewall",
                after.as_secs_f32()
            ),
            Self::Lookup { name, source } if !Path::new(RESOLV_CONF).exists() => write!(
                f,
                "looking up {name}: {source}: there is no {RESOLV_CONF}, so this host knows no name servers: wait for \
                 DHCP, or write it"
            ),
            Self::Lookup { name, source } => {
                write!(f, "looking up {name}: {source}: check that name, {RESOLV_CONF} and the name servers")
            }
            Self::LookupsHang { name } => write!(
                f,
                "looking up {name}: earlier lookups have not come back: check {RESOLV_CONF} and the name servers"
            ),
            Self::Connect { peer, tried, all: ConnectFailure::NoRoute } => write!(
                f,
                "connecting to {peer}: {tried}: this host has no way there yet: check its network card, its address \
                 (DHCP) and its default route"
            ),
            Self::Connect { peer, tried, .. } => write!(
                f,
                "connecting to {peer}: {tried}: check that the server runs there and that no firewall is in between"
            ),
            Self::Lost { doing, peer, source } => {
                write!(
                    f,
                    "{doing} with {peer}: {source}: check the server's own log and what stands in between"
                )
            }
            Self::Proxy { proxy, peer, answer } => {
                write!(
                    f,
                    "the proxy {proxy} did not open a tunnel to {peer}: {answer}: check the proxy setting"
                )
            }
            Self::CaFile { path, why } => {
                write!(
                    f,
                    "reading ca_file {}: {why}: give it PEM certificates, or take the setting out",
                    path.display()
                )
            }
            Self::Tls { peer, why } => write!(f, "TLS with {peer}: {why}"),
            Self::Header(what) => {
                write!(
                    f,
                    "the {what} has a character that an HTTP header cannot carry: check where it is configured"
                )
            }
            Self::Status { url, status, location, as_node, foreign, .. } => {
                write!(f, "{url} answered with HTTP {status}: ")?;
                if *foreign && Error::is_about_the_node(*status) {
                    return f.write_str(
                        "that is not the control plane's own answer, which would be JSON: look at the proxy or firewall \
                         in between",
                    );
                }
                match (status, location) {
                    (300..=399, Some(location)) => {
                        write!(
                            f,
                            "redirects are not followed; it points to {location}: set that as the URL if it is right"
                        )
                    }
                    (300..=399, None) => {
                        f.write_str("redirects are not followed: set the URL that it leads to")
                    }
                    (200..=299, _) => f.write_str("the control plane's socket is not there: check the URL"),
                    (401 | 403, _) if *as_node => f.write_str(
                        "the node's own token, in node.json in the state directory, is refused (the organisation's, \
                         where that file has none): check that this node is still known there; if it was registered \
                         anew elsewhere, move that file away and restart with a token to register again",
                    ),
                    (401 | 403, _) => f.write_str("check the organisation token"),
                    (404 | 405 | 426, _) => f.write_str("check the path in the URL"),
                    (407, _) => f.write_str("a proxy wants credentials: put them into the proxy setting"),
                    (410, _) => f.write_str("the control plane removed this node"),
                    _ => f.write_str("look at the server's own log"),
                }
            }
            Self::Upgrade { url, why } => {
                write!(
                    f,
                    "the upgrade at {url}: {why}: check that the URL is that of the control plane's socket"
                )
            }
        }
    }
}

impl std::error::Error for Error {}

impl Error {
    /// The error for an answer that is not 101.
    pub(super) fn status(url: &Url, head: &Head, as_node: bool) -> Self {
        Self::Status {
            url: url.to_string(),
            status: head.status,
            retry_after: head.value("retry-after").and_then(dates::retry_after_now),
            location: head.value("location").map(shown_location),
            as_node,
            foreign: head.value("content-type").is_some_and(is_html),
        }
    }

    /// The statuses by which a control plane refuses a token or removes a node. They are not believed where they come
    /// as a web page.
    fn is_about_the_node(status: u16) -> bool {
        matches!(status, 401 | 403 | 410)
    }

    /// The event for the core.
    pub(super) fn down(&self) -> Down {
        let (why, retry_after) = match self {
            Self::Status { status, retry_after, foreign: true, .. } if Self::is_about_the_node(*status) => {
                (DownReason::NoConnection, *retry_after)
            }
            Self::Status { status, retry_after, .. } => (DownReason::Http(*status), *retry_after),
            Self::Connect { all: ConnectFailure::Refused, .. } => (DownReason::Refused, None),
            Self::Cancelled => (DownReason::Broken, None),
            _ => (DownReason::NoConnection, None),
        };
        Down { why, retry_after, detail: self.to_string() }
    }
}

/// Whether a `Content-Type` is that of a web page.
pub(super) fn is_html(content_type: &str) -> bool {
    content_type.trim_start().get(..9).is_some_and(|start| start.eq_ignore_ascii_case("text/html"))
}

/// `Location`, fit for a message to a person: no query, no control characters, at most 200 characters.
pub(super) fn shown_location(location: &str) -> String {
    let plain = location.split(['?', '#']).next().unwrap_or_default();
    plain.chars().filter(|c| !c.is_control()).take(200).collect()
}

/// What is wrong with a TLS handshake and what to do. `ca_file` is the setting.
pub(super) fn tls_message(error: &rustls::Error, host: &str, ca_file: Option<&std::path::Path>) -> String {
    use rustls::CertificateError as Certificate;
    use rustls::{AlertDescription, Error as Tls};
    match error {
        Tls::InvalidCertificate(certificate) => match certificate {
            Certificate::ExpiredContext { time, not_after } => format!(
                "the server's certificate expired on {} (this host's clock says {}): renew it there, or set this host's clock if that is wrong",
                dates::utc(not_after.as_secs()),
                dates::utc(time.as_secs())
            ),
            Certificate::NotValidYetContext { time, not_before } => format!(
                "the server's certificate is not valid before {}, but this host's clock says {}: that is probably wrong, {SET_THE_CLOCK}",
                dates::utc(not_before.as_secs()),
                dates::utc(time.as_secs())
            ),
            Certificate::Expired => "the server's certificate expired: renew it there".to_owned(),
            Certificate::NotValidYet => format!(
                "the server's certificate is not valid yet: this host's clock is probably wrong, {SET_THE_CLOCK}"
            ),
            Certificate::NotValidForNameContext { presented, .. } => format!(
                "the server's certificate is not for {host}; it is for {}: use such a name in the URL, or have the certificate issued for {host}",
                names(presented)
            ),
            Certificate::NotValidForName => format!(
                "the server's certificate is not for {host}: use its name in the URL, or have it issued for {host}"
            ),
            Certificate::UnknownIssuer => unknown_issuer(ca_file),
            Certificate::Revoked => "the server's certificate was revoked by its issuer: replace it there".to_owned(),
            Certificate::BadSignature => {
                "the server's certificate is not signed by the issuer that it names: look at what ca_file holds, or replace it there".to_owned()
            }
            // The verifier's own error type is private to it; only its text is there to be looked at.
            Certificate::Other(other) if format!("{other:?}").contains("CaUsedAsEndEntity") => format!(
                "the server uses a CA's certificate as its own (self-signed, `CA:TRUE`): issue it one with `CA:FALSE` and put the CA into {}",
                ca_file.map_or("ca_file".to_owned(), |path| path.display().to_string())
            ),
            other => format!("the server's certificate is refused ({other}): replace it there"),
        },
        Tls::InvalidMessage(_) => {
            "its answer is not TLS: check the port, or that the server has TLS switched on".to_owned()
        }
        Tls::AlertReceived(AlertDescription::ProtocolVersion | AlertDescription::HandshakeFailure)
        | Tls::PeerIncompatible(_) => {
            format!("the server shares no version or cipher with us ({error}): allow TLS 1.2 or 1.3 there")
        }
        Tls::AlertReceived(alert) => format!("the server ended it with the alert {alert:?}: look at its own log"),
        other => format!("{other}: check the server's TLS settings"),
    }
}

fn unknown_issuer(ca_file: Option<&std::path::Path>) -> String {
    let what = "the issuer of the server's certificate is not trusted here (a private CA, or self-signed)";
    match ca_file {
        Some(path) => format!(
            "{what}: neither a public root nor one in {} issued it: put the right CA certificate there",
            path.display()
        ),
        None => format!("{what}: set ca_file to the CA's certificate if you trust it"),
    }
}

/// rustls lists names as `DnsName("a.example")`: the bare names, eight of them at most.
fn names(presented: &[String]) -> String {
    const SHOWN: usize = 8;
    if presented.is_empty() {
        return "nothing".to_owned();
    }
    let mut text = String::new();
    for (i, name) in presented.iter().take(SHOWN).enumerate() {
        let inner = name.split_once('(').map_or(name.as_str(), |(_, rest)| rest.trim_end_matches(')'));
        text.push_str(if i == 0 { "" } else { ", " });
        text.extend(inner.chars().filter(|c| *c != '"' && !c.is_control()).take(253));
    }
    if presented.len() > SHOWN {
        text.push_str(", …");
    }
    text
}
