//! From a URL to a stream: name, addresses, proxy and TLS under one deadline.
//!
//! ```text
//! lookup (a thread of its own) → connect (all addresses, staggered) → CONNECT (with a proxy) → TLS → upgrade
//! ```
//!
//! Each step waits under the attempt's [`Deadline`], so that none of them can stretch it, and a cancelled attempt ends
//! in all of them. Nothing here is tried twice.

use std::io::{self, Write};
use std::net::{IpAddr, SocketAddr, TcpStream, ToSocketAddrs};
use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::mpsc;
use std::time::{Duration, Instant};

use rustix::event::PollFlags;
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketFlags, SocketType, sockopt};

use super::error::{ConnectFailure, Error, tls_message};
use super::head::{Head, HeadError};
use super::proxy::Proxy;
use super::sock::{Deadline, Sock};
use super::tls::{self, Stream};
use super::url::{Host, Url};
use crate::wait::Wakeup;

/// How long an address is waited for alone before the next one is tried beside it (RFC 8305, section 8): what a black
/// hole costs.
const STAGGER: Duration = Duration::from_millis(250);
/// The most addresses of a name that are tried.
const ADDRESSES_MAX: usize = 16;
/// The most lookups that may hang at the same time; each holds a thread until its resolver gives up.
const LOOKUPS_MAX: usize = 8;
/// How long sent bytes may stay unacknowledged before the kernel ends the connection, in milliseconds. The core's pings
/// notice a dead peer sooner; this is for a close, where they have ended.
const TCP_USER_TIMEOUT_MS: u32 = 20_000;

/// Opens connections by the settings.
#[derive(Debug)]
pub(super) struct Dialer {
    /// Roots besides the built-in ones.
    pub ca_file: Option<PathBuf>,
    /// The proxy.
    pub proxy: Option<Proxy>,
    /// Each lookup that has not come back holds one of these.
    lookups: Arc<()>,
    /// The last warning about the CA file, which is read anew at each attempt.
    ca_warning: Option<String>,
}

impl Dialer {
    /// With these settings.
    pub(super) fn new(ca_file: Option<PathBuf>, proxy: Option<Proxy>) -> Self {
        Self { ca_file, proxy, lookups: Arc::new(()), ca_warning: None }
    }

    /// Connects to the URL's host, through the proxy where it serves that, with TLS where the URL wants it.
    ///
    /// # Errors
    /// [`Error`]: which step failed, and on what.
    pub(super) fn open(&mut self, url: &Url, deadline: &Deadline) -> Result<Stream, Error> {
        // First, so that a bad file costs no connection.
        let config = if url.secure() { Some(self.tls_config()?) } else { None };
        let proxy = self.proxy.as_ref().filter(|proxy| proxy.serves(url.host(), url.port()));
        let (host, port) = proxy.map_or((url.host(), url.port()), |proxy| (proxy.host(), proxy.port()));
        let described = |text: String| match proxy {
            Some(_) => format!("the proxy {text} (setting proxy)"),
            None => text,
        };
        let addresses = self.addresses(host, port, &described(host.to_string()), deadline)?;
        let mut sock = connect(&addresses, &described(format!("{host}:{port}")), deadline)?;
        if let Some(proxy) = proxy {
            tunnel(&mut sock, proxy, url, deadline)?;
        }
        let Some(config) = config else { return Ok(Stream::Plain(sock)) };
        let peer = format!("{}:{}", url.host(), url.port());
        tls::handshake(config, url.host(), sock).map_err(|error| match rustls_error(&error) {
            Some(inner) => {
                let why = tls_message(inner, &url.host().to_string(), self.ca_file.as_deref());
                Error::Tls { peer, why }
            }
            None => step_failed(deadline, "the TLS handshake", "answer to the TLS handshake", &peer, error),
        })
    }

    fn tls_config(&mut self) -> Result<Arc<rustls::ClientConfig>, Error> {
        let (config, warning) = tls::config(self.ca_file.as_deref())?;
        if self.ca_warning != warning {
            if let Some(warning) = &warning {
                log::warn!("{warning}");
            }
            self.ca_warning = warning;
        }
        Ok(config)
    }

    /// All addresses of a host, IPv6 and IPv4 in turn, beginning with the resolver's first choice. `described` is the
    /// host in errors.
    fn addresses(
        &self,
        host: &Host,
        port: u16,
        described: &str,
        deadline: &Deadline,
    ) -> Result<Vec<SocketAddr>, Error> {
        match host {
            Host::Address(address) => Ok(vec![SocketAddr::new(*address, port)]),
            Host::Name(name) => self.look_up(name, port, described, deadline).map(interleaved),
        }
    }

    fn look_up(
        &self,
        name: &str,
        port: u16,
        described: &str,
        deadline: &Deadline,
    ) -> Result<Vec<SocketAddr>, Error> {
        let refused = |source| Error::Lookup { name: described.to_owned(), source };
        if Arc::strong_count(&self.lookups) > LOOKUPS_MAX {
            return Err(Error::LookupsHang { name: described.to_owned() });
        }
        let (answer, answered) = mpsc::sync_channel(1);
        let done = Wakeup::new().map_err(refused)?;
        let (wakeup, held) = (done.clone(), Arc::clone(&self.lookups));
        let question = (name.to_owned(), port);
        std::thread::Builder::new()
            .name("lookup".into())
            .spawn(move || {
                let found = question.to_socket_addrs().map(|all| all.take(ADDRESSES_MAX).collect::<Vec<_>>());
                // The attempt may be over, and then the answer goes nowhere.
                let _ = answer.send(found);
                drop(held);
                wakeup.wake();
            })
            .map_err(refused)?;
        loop {
            match answered.try_recv() {
                Ok(Ok(found)) if found.is_empty() => {
                    return Err(refused(io::Error::new(io::ErrorKind::NotFound, "it has no address")));
                }
                Ok(found) => return found.map_err(refused),
                Err(mpsc::TryRecvError::Disconnected) => {
                    return Err(refused(io::Error::other("the lookup's thread ended")));
                }
                Err(mpsc::TryRecvError::Empty) => {}
            }
            deadline.wait(&[done.as_fd()], PollFlags::IN, None).map_err(|e| {
                let servers = format!("the name servers for {described}");
                step_failed(deadline, "waiting for an answer", "answer", &servers, e)
            })?;
        }
    }
}

/// The error for a step that failed with `source`: the attempt is over, or the connection was lost.
fn step_failed(
    deadline: &Deadline,
    doing: &'static str,
    waiting_for: &'static str,
    peer: &str,
    source: io::Error,
) -> Error {
    deadline.error(waiting_for, peer).unwrap_or_else(|| {
        let closed = source.kind() == io::ErrorKind::UnexpectedEof;
        let source =
            if closed { io::Error::new(source.kind(), "the peer closed the connection") } else { source };
        Error::Lost { doing, peer: peer.to_owned(), source }
    })
}

fn rustls_error(error: &io::Error) -> Option<&rustls::Error> {
    error.get_ref()?.downcast_ref()
}

/// The families in turn, each in its own order (RFC 8305, section 4).
fn interleaved(found: Vec<SocketAddr>) -> Vec<SocketAddr> {
    let first_is_v6 = found.first().is_some_and(SocketAddr::is_ipv6);
    let (first, second): (Vec<_>, Vec<_>) = found.into_iter().partition(|a| a.is_ipv6() == first_is_v6);
    let (mut first, mut second) = (first.into_iter(), second.into_iter());
    let mut all = Vec::new();
    loop {
        let pair = [first.next(), second.next()];
        if pair == [None, None] {
            return all;
        }
        all.extend(pair.into_iter().flatten());
    }
}

/// Connects to the first address that answers. The next one is tried when one fails, or has not answered for
/// [`STAGGER`]; the earlier ones stay in the race.
fn connect(addresses: &[SocketAddr], peer: &str, deadline: &Deadline) -> Result<Sock, Error> {
    let mut waiting: Vec<(OwnedFd, SocketAddr)> = Vec::new();
    let mut failures: Vec<(IpAddr, Errno)> = Vec::new();
    let mut next = addresses.iter();
    let mut next_at = Instant::now();
    loop {
        if (waiting.is_empty() || Instant::now() >= next_at) && next.len() > 0 {
            if let Some(address) = next.next() {
                match start_connect(*address) {
                    Ok(fd) => waiting.push((fd, *address)),
                    Err(errno) => failures.push((address.ip(), errno)),
                }
                next_at = Instant::now() + STAGGER;
            }
            continue;
        }
        if waiting.is_empty() {
            return Err(none_answered(peer, &failures));
        }
        let fds: Vec<_> = waiting.iter().map(|(fd, _)| fd.as_fd()).collect();
        let until_next = (next.len() > 0).then_some(next_at);
        let ready = deadline
            .wait(&fds, PollFlags::OUT, until_next)
            .map_err(|e| step_failed(deadline, "connecting", "answer to the connection", peer, e))?;
        for i in (0..waiting.len()).rev().filter(|i| ready[*i]) {
            let (fd, address) = waiting.swap_remove(i);
            match sockopt::socket_error(&fd).and_then(|inner| inner) {
                Ok(()) => return Ok(Sock::new(configured(fd), deadline.clone())),
                Err(errno) => {
                    failures.push((address.ip(), errno));
                    next_at = Instant::now();
                }
            }
        }
    }
}

fn none_answered(peer: &str, failures: &[(IpAddr, Errno)]) -> Error {
    let tried: Vec<_> =
        failures.iter().map(|(address, errno)| format!("{address}: {}", io::Error::from(*errno))).collect();
    let all_are = |errno| failures.iter().all(|(_, found)| *found == errno);
    let all = if all_are(Errno::CONNREFUSED) {
        ConnectFailure::Refused
    } else if all_are(Errno::NETUNREACH) {
        ConnectFailure::NoRoute
    } else {
        ConnectFailure::Other
    };
    Error::Connect { peer: peer.to_owned(), tried: tried.join("; "), all }
}

fn start_connect(address: SocketAddr) -> Result<OwnedFd, Errno> {
    let family = match address.ip() {
        IpAddr::V4(_) => AddressFamily::INET,
        IpAddr::V6(_) => AddressFamily::INET6,
    };
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let fd = rustix::net::socket_with(family, SocketType::STREAM, flags, None)?;
    match rustix::net::connect(&fd, &address) {
        Ok(()) | Err(Errno::INPROGRESS) => Ok(fd),
        Err(error) => Err(error),
    }
}

fn configured(fd: OwnedFd) -> TcpStream {
    // A connection works without them too.
    let _ = sockopt::set_tcp_nodelay(&fd, true);
    let _ = sockopt::set_tcp_user_timeout(&fd, TCP_USER_TIMEOUT_MS);
    TcpStream::from(fd)
}

/// Asks the proxy for a tunnel.
pub(super) fn tunnel(sock: &mut Sock, proxy: &Proxy, url: &Url, deadline: &Deadline) -> Result<(), Error> {
    let at = format!("{}:{}", proxy.host(), proxy.port());
    let lost =
        |error| step_failed(deadline, "asking the proxy for a tunnel", "answer to CONNECT", &at, error);
    let request = proxy.connect_request(url.host(), url.port());
    sock.write_all(request.expose().as_bytes()).map_err(lost)?;
    let answer = match Head::read(sock) {
        Ok(head) if (200..300).contains(&head.status) => return Ok(()),
        Ok(head) if head.status == 407 => "HTTP 407: it wants a user and password, or others".to_owned(),
        Ok(head) => format!("HTTP {} {}", head.status, head.reason),
        Err(HeadError::Io(error)) => return Err(lost(error)),
        Err(HeadError::Closed(_)) => return Err(lost(io::ErrorKind::UnexpectedEof.into())),
        Err(error) => error.to_string(),
    };
    Err(Error::Proxy { proxy: at, peer: format!("{}:{}", url.host(), url.port()), answer })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::link_api::LinkId;
    use crate::link::shared::Shared;

    #[test]
    fn the_families_take_turns() {
        let check = |found: &str, wanted: &str| {
            let found = found.split(' ').map(|a| SocketAddr::new(a.parse().unwrap(), 1)).collect();
            let all: Vec<_> = interleaved(found).iter().map(|a| a.ip().to_string()).collect();
            assert_eq!(all.join(" "), wanted);
        };
        check("::1", "::1");
        check("::1 ::2 1.1.1.1 ::3", "::1 1.1.1.1 ::2 ::3");
        check("1.1.1.1 2.2.2.2 ::1", "1.1.1.1 ::1 2.2.2.2");
    }

    /// A listener whose queue is full, so that the kernel answers no further connection: a black hole. What is
    /// returned must be kept.
    fn black_hole() -> (OwnedFd, Vec<Sock>, SocketAddr) {
        let fd = begin_listening();
        let address = SocketAddr::try_from(rustix::net::getsockname(&fd).unwrap()).unwrap();
        let mut inside = Vec::new();
        for _ in 0..16 {
            let shared = Shared::new().unwrap();
            let deadline = Deadline::for_attempt(Duration::from_millis(100), &shared, LinkId(1));
            match connect(&[address], "itself", &deadline) {
                Ok(sock) => inside.push(sock),
                Err(_) => return (fd, inside, address),
            }
        }
        panic!("the queue is never full");
    }

    fn begin_listening() -> OwnedFd {
        let fd = rustix::net::socket(AddressFamily::INET, SocketType::STREAM, None).unwrap();
        let any: SocketAddr = "127.0.0.1:0".parse().unwrap();
        rustix::net::bind(&fd, &any).unwrap();
        rustix::net::listen(&fd, 0).unwrap();
        fd
    }

    #[test]
    fn a_black_hole_costs_a_quarter_of_a_second() {
        let (_fd, _inside, hole) = black_hole();
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let good = listener.local_addr().unwrap();
        let refused = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let check = |addresses: &[SocketAddr], at_least: Duration, good: bool| {
            let shared = Shared::new().unwrap();
            let deadline = Deadline::for_attempt(Duration::from_secs(2), &shared, LinkId(1));
            let began = Instant::now();
            let connected = connect(addresses, "them", &deadline);
            let took = began.elapsed();
            assert_eq!(connected.is_ok(), good, "{connected:?}");
            assert!(took >= at_least && took < at_least + Duration::from_secs(1), "{took:?}");
            connected.map(drop).map_err(|error| error.to_string())
        };
        check(&[good], Duration::ZERO, true).unwrap();
        check(&[refused, good], Duration::ZERO, true).unwrap();
        check(&[hole, good], STAGGER, true).unwrap();
        check(&[hole, refused, hole, good], STAGGER * 2, true).unwrap();
        let text = check(&[hole, refused], Duration::from_secs(2), false).unwrap_err();
        assert!(text.contains("no answer to the connection from them within 2 s"), "{text}");
        let text = check(&[refused, refused], Duration::ZERO, false).unwrap_err();
        assert!(text.contains("127.0.0.1: Connection refused (os error 111); 127.0.0.1"), "{text}");
    }

    #[test]
    fn a_lookup_that_hangs_is_left_behind() {
        let dialer = Dialer::new(None, None);
        let shared = Shared::new().unwrap();
        // No deadline at all stands for a resolver that takes longer than there is.
        let deadline = Deadline::for_attempt(Duration::ZERO, &shared, LinkId(1));
        let error = dialer.look_up("localhost", 1, "localhost", &deadline).err().map(|e| e.to_string());
        assert!(error.is_none_or(|text| text.contains("no answer from the name servers for localhost")));
        let hanging = vec![Arc::clone(&dialer.lookups); LOOKUPS_MAX];
        let error = dialer.look_up("localhost", 1, "the proxy localhost", &deadline).unwrap_err();
        assert!(matches!(error, Error::LookupsHang { .. }), "{error}");
        assert!(error.to_string().starts_with("looking up the proxy localhost: earlier lookups"), "{error}");
        drop(hanging);
    }
}
