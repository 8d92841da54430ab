//! Why an attempt failed: what was attempted, on what, and what to do next.

use std::fmt;
use std::io;
use std::path::PathBuf;
use std::time::Duration;

use super::dates;
use crate::core::link_api::{Down, DownReason};

/// Everything that can go wrong on the way to a connection.
#[derive(Debug)]
pub enum Error {
    /// The link thread or its wake-up descriptor could not be made.
    Start(io::Error),
    /// The attempt was given up from outside.
    GivenUp,
    /// The attempt's deadline passed.
    Deadline {
        /// What it was waiting for.
        waiting_for: &'static str,
        /// On which peer.
        peer: String,
        /// How long it took in all.
        after: Duration,
    },
    /// A name could not be looked up.
    Lookup {
        /// The name, and whose it is where that is not the URL's host.
        name: String,
        /// What the resolver said.
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
        /// Each address tried and what came of it.
        tried: String,
    },
    /// The socket was lost, or could not be prepared, before the connection stood.
    Lost {
        /// What was under way.
        doing: &'static str,
        /// With which peer.
        peer: String,
        /// What the kernel said.
        source: io::Error,
    },
    /// The proxy did not open a tunnel.
    Proxy {
        /// The proxy's host and port.
        proxy: String,
        /// Where the tunnel was to lead.
        peer: String,
        /// Its answer: a status line, or what was wrong with it.
        answer: String,
    },
    /// The CA file cannot be used.
    CaFile {
        /// Its path.
        path: PathBuf,
        /// What is wrong with it.
        why: String,
    },
    /// TLS failed: what is wrong with the certificate, or with the handshake, and what to do.
    Tls {
        /// The host.
        peer: String,
        /// What was wrong.
        why: String,
    },
    /// The token or the node's ID cannot stand in an HTTP header.
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
        /// Whether it was asked as a node that is registered, and not as one that registers.
        as_node: bool,
    },
    /// The answer to the upgrade was none.
    Upgrade {
        /// The URL.
        url: String,
        /// What was wrong.
        why: String,
    },
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Start(source) => {
                write!(f, "starting the link thread: {source}: raise the limits on threads and open files")
            }
            Self::GivenUp => f.write_str("the attempt was given up"),
            Self::Deadline { waiting_for, peer, after } => write!(
                f,
                "no {waiting_for} from {peer} within {} s: check the network path, the port and any firewall",
                after.as_secs_f32()
            ),
            Self::Lookup { name, source } => write!(
                f,
                "looking up {name}: {source}: check that name, /etc/resolv.conf and the name servers"
            ),
            Self::LookupsHang { name } => write!(
                f,
                "looking up {name}: earlier lookups have not come back: check /etc/resolv.conf and the name servers"
            ),
            Self::Connect { peer, tried } => write!(
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
                write!(f, "the proxy {proxy} opened no tunnel to {peer}: {answer}: check the proxy setting")
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
                    "the {what} has a character that no HTTP header can carry: check where it is configured"
                )
            }
            Self::Status { url, status, location, as_node, .. } => {
                write!(f, "{url} answered with HTTP {status}: ")?;
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
                    (200..=299, _) => f.write_str("no socket is served there: check the URL"),
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

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::Start(source) | Self::Lookup { source, .. } | Self::Lost { source, .. } => Some(source),
            Self::GivenUp
            | Self::Deadline { .. }
            | Self::LookupsHang { .. }
            | Self::Connect { .. }
            | Self::Proxy { .. }
            | Self::CaFile { .. }
            | Self::Tls { .. }
            | Self::Header(_)
            | Self::Status { .. }
            | Self::Upgrade { .. } => None,
        }
    }
}

impl Error {
    /// What the core is told.
    pub(super) fn down(&self) -> Down {
        let (why, retry_after) = match self {
            Self::Status { status, retry_after, .. } => (DownReason::Http(*status), *retry_after),
            Self::GivenUp => (DownReason::Broken, None),
            _ => (DownReason::NoConnection, None),
        };
        Down { why, retry_after, detail: self.to_string() }
    }
}

/// What is wrong with a TLS handshake, in an operator's words. `ca_file` is what the setting says, for the advice.
pub(super) fn tls_words(error: &rustls::Error, host: &str, ca_file: Option<&std::path::Path>) -> String {
    use rustls::CertificateError as Certificate;
    use rustls::{AlertDescription, Error as Tls};
    match error {
        Tls::InvalidCertificate(certificate) => match certificate {
            Certificate::ExpiredContext { time, not_after } => format!(
                "the server's certificate expired on {} (this host's clock says {}): renew it there, or set this host's clock if that is wrong",
                dates::shown(not_after.as_secs()),
                dates::shown(time.as_secs())
            ),
            Certificate::NotValidYetContext { time, not_before } => format!(
                "the server's certificate is not valid before {}, but this host's clock says {}: that is probably wrong, set the clock (timedatectl set-ntp true)",
                dates::shown(not_before.as_secs()),
                dates::shown(time.as_secs())
            ),
            Certificate::Expired => "the server's certificate expired: renew it there".to_owned(),
            Certificate::NotValidYet => {
                "the server's certificate is not valid yet: this host's clock is probably wrong, set it (timedatectl set-ntp true)".to_owned()
            }
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
            // The verifier's own error type is not ours to name; its text is all that there is.
            Certificate::Other(other) if format!("{other:?}").contains("CaUsedAsEndEntity") => format!(
                "the server uses a CA's certificate as its own (self-signed, `CA:TRUE`): issue it one with `CA:FALSE` and put the CA into {}",
                ca_file.map_or("ca_file".to_owned(), |path| path.display().to_string())
            ),
            other => format!("the server's certificate is refused ({other}): replace it there"),
        },
        Tls::InvalidMessage(_) => {
            "what it answers is not TLS: check the port, or that the server has TLS switched on".to_owned()
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
    let what =
        "the server's certificate is issued by nobody that is trusted here (a private CA, or self-signed)";
    match ca_file {
        Some(path) => format!(
            "{what}: neither a public root nor one in {} issued it: put the right CA certificate there",
            path.display()
        ),
        None => format!("{what}: set ca_file to the CA's certificate if it is one that you trust"),
    }
}

/// `DnsName("a.example")`, as rustls lists them, without what stands around the names; eight of them at most.
fn names(presented: &[String]) -> String {
    const SHOWN: usize = 8;
    if presented.is_empty() {
        return "no name at all".to_owned();
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
