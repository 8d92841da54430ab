//! A connection's bytes: plain or TLS, blocking under one deadline at first, non-blocking afterwards.

use std::fmt;
use std::io::{self, Read, Write};
use std::net::TcpStream;
use std::os::fd::{AsFd, BorrowedFd};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::{ServerConfig, ServerConnection, StreamOwned};

/// A TCP socket whose reads and writes end at a deadline, however slowly the peer drips.
struct Socket {
    tcp: TcpStream,
    deadline: Option<Instant>,
}

/// A peer's byte stream.
pub struct Stream(Kind);

enum Kind {
    Plain(Socket),
    Tls(Box<StreamOwned<ServerConnection, Socket>>),
}

impl Stream {
    /// Takes a fresh connection; all that follows until [`Stream::no_deadline`] ends `limit` from now.
    ///
    /// # Errors
    /// What the socket's options give, or rustls for a configuration that cannot serve.
    pub fn new(tcp: TcpStream, tls: Option<&Arc<ServerConfig>>, limit: Duration) -> io::Result<Self> {
        tcp.set_nodelay(true)?;
        let socket = Socket { tcp, deadline: Some(Instant::now() + limit) };
        Ok(Self(match tls {
            None => Kind::Plain(socket),
            Some(config) => {
                let connection = ServerConnection::new(Arc::clone(config)).map_err(io::Error::other)?;
                Kind::Tls(Box::new(StreamOwned::new(connection, socket)))
            }
        }))
    }

    /// The peer's address, for a person.
    pub fn peer(&self) -> String {
        self.socket().tcp.peer_addr().map_or_else(|error| error.to_string(), |address| address.to_string())
    }

    fn socket(&self) -> &Socket {
        match &self.0 {
            Kind::Plain(socket) => socket,
            Kind::Tls(tls) => &tls.sock,
        }
    }

    /// From here on reads and writes never block; whoever calls them has deadlines of its own.
    ///
    /// # Errors
    /// What the socket's options give.
    pub fn no_deadline(&mut self) -> io::Result<()> {
        let socket = match &mut self.0 {
            Kind::Plain(socket) => socket,
            Kind::Tls(tls) => &mut tls.sock,
        };
        socket.deadline = None;
        socket.tcp.set_nonblocking(true)
    }

    /// Says that no more will be sent, and lets TLS say so too.
    pub fn finish(mut self) {
        if let Kind::Tls(tls) = &mut self.0 {
            tls.conn.send_close_notify();
            let _ = tls.flush();
        }
    }
}

impl AsFd for Stream {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket().tcp.as_fd()
    }
}

impl Read for Stream {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        match &mut self.0 {
            Kind::Plain(socket) => socket.read(buf),
            Kind::Tls(tls) => tls.read(buf),
        }
    }
}

impl Write for Stream {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        match &mut self.0 {
            Kind::Plain(socket) => socket.write(buf),
            Kind::Tls(tls) => match tls.write(buf) {
                // rustls has no room: tungstenite would take 0 for the peer's end.
                Ok(0) if !buf.is_empty() => Err(io::ErrorKind::WouldBlock.into()),
                other => other,
            },
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        match &mut self.0 {
            Kind::Plain(_) => Ok(()),
            Kind::Tls(tls) => tls.flush(),
        }
    }
}

impl Socket {
    fn time_left(&self) -> io::Result<Option<Duration>> {
        let Some(deadline) = self.deadline else { return Ok(None) };
        match deadline.saturating_duration_since(Instant::now()) {
            Duration::ZERO => Err(io::ErrorKind::TimedOut.into()),
            left => Ok(Some(left)),
        }
    }
}

impl Read for Socket {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        if let Some(left) = self.time_left()? {
            self.tcp.set_read_timeout(Some(left))?;
        }
        self.tcp.read(buf)
    }
}

impl Write for Socket {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        if let Some(left) = self.time_left()? {
            self.tcp.set_write_timeout(Some(left))?;
        }
        self.tcp.write(buf)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// The certificate and key to serve TLS with.
pub struct TlsFiles {
    /// PEM certificate chain.
    pub cert: PathBuf,
    /// PEM private key.
    pub key: PathBuf,
}

/// Reads the certificate and its key.
///
/// # Errors
/// [`TlsError`] when a file cannot be read or the two cannot be used together.
pub fn tls_config(files: &TlsFiles) -> Result<Arc<ServerConfig>, TlsError> {
    let pem = |e| TlsError::Pem(e);
    let chain = CertificateDer::pem_file_iter(&files.cert)
        .map_err(pem)?
        .collect::<Result<Vec<_>, _>>()
        .map_err(pem)?;
    let key = PrivateKeyDer::from_pem_file(&files.key).map_err(pem)?;
    ServerConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
        .with_safe_default_protocol_versions()
        .and_then(|builder| builder.with_no_client_auth().with_single_cert(chain, key))
        .map(Arc::new)
        .map_err(TlsError::Unusable)
}

/// Why TLS cannot be served.
#[derive(Debug)]
pub enum TlsError {
    /// A file cannot be read as PEM.
    Pem(rustls::pki_types::pem::Error),
    /// rustls refuses the certificate or the key.
    Unusable(rustls::Error),
}

impl fmt::Display for TlsError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Pem(e) => {
                write!(f, "cannot read the certificate or its key: {e}; check --tls-cert and --tls-key")
            }
            Self::Unusable(e) => {
                write!(f, "cannot serve TLS with this certificate: {e}; check that the key is its own")
            }
        }
    }
}
