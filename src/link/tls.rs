//! TLS: the trusted roots, the configuration, and the stream that carries everything else.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::path::Path;
use std::sync::Arc;

use rustls::client::Resumption;
use rustls::crypto::{CryptoProvider, KeyProvider, ring};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, pem::PemObject};
use rustls::sign::SigningKey;
use rustls::{ClientConfig, ClientConnection, RootCertStore, StreamOwned};

use super::error::Error;
use super::sock::Sock;
use super::url::Host;

/// The longest CA file that is read, in bytes. All of Debian's roots together take 220 KB.
const CA_FILE_MAX: u64 = 2 << 20;

/// A connection, with TLS or without.
#[derive(Debug)]
pub(super) enum Stream {
    /// Plain TCP.
    Plain(Sock),
    /// TLS over TCP.
    Tls(Box<StreamOwned<ClientConnection, Sock>>),
}

/// The configuration for one connection. The CA file is read anew each time, so that it can be replaced under a
/// running agent.
pub(super) fn config(ca_file: Option<&Path>) -> Result<Arc<ClientConfig>, Error> {
    let roots = roots(ca_file)?;
    let provider = CryptoProvider { key_provider: &NoKeys, ..ring::default_provider() };
    let mut config = ClientConfig::builder_with_provider(Arc::new(provider))
        .with_safe_default_protocol_versions()
        .expect("ring has cipher suites for TLS 1.2 and 1.3")
        .with_root_certificates(roots)
        .with_no_client_auth();
    // Each connection has a configuration of its own: there is nothing to resume.
    config.resumption = Resumption::disabled();
    Ok(Arc::new(config))
}

/// The agent shows no certificate of its own: without this, all that signs with a private key would be in the binary.
#[derive(Debug)]
struct NoKeys;

impl KeyProvider for NoKeys {
    fn load_private_key(&self, _: PrivateKeyDer<'static>) -> Result<Arc<dyn SigningKey>, rustls::Error> {
        Err(rustls::Error::General("no private key is used here".to_owned()))
    }
}

/// The built-in roots and those of the file, both.
fn roots(ca_file: Option<&Path>) -> Result<RootCertStore, Error> {
    let mut roots = RootCertStore { roots: webpki_roots::TLS_SERVER_ROOTS.to_vec() };
    if let Some(path) = ca_file {
        add_file(&mut roots, path)?;
    }
    Ok(roots)
}

fn add_file(roots: &mut RootCertStore, path: &Path) -> Result<(), Error> {
    let bad = |why: String| Error::CaFile { path: path.to_owned(), why };
    let mut pem = Vec::new();
    let file = File::open(path).map_err(|e| bad(e.to_string()))?;
    file.take(CA_FILE_MAX + 1).read_to_end(&mut pem).map_err(|e| bad(e.to_string()))?;
    if pem.len() as u64 > CA_FILE_MAX {
        return Err(bad(format!("it is longer than {CA_FILE_MAX} bytes")));
    }
    let before = roots.len();
    for (i, certificate) in CertificateDer::pem_slice_iter(&pem).enumerate() {
        let added = match certificate {
            Ok(certificate) => roots.add(certificate).map_err(|e| e.to_string()),
            Err(e) => Err(e.to_string()),
        };
        added.map_err(|e| bad(format!("certificate {}: {e}", i + 1)))?;
    }
    if roots.len() == before {
        return Err(bad("it has no certificate".to_owned()));
    }
    Ok(())
}

/// Does the handshake over `sock`, whose patience bounds it.
///
/// # Errors
/// What the socket or rustls says; rustls's own errors are inside of the `io::Error`.
pub(super) fn handshake(config: Arc<ClientConfig>, host: &Host, sock: Sock) -> io::Result<Stream> {
    let name = match host {
        Host::Name(name) => ServerName::try_from(name.clone()).map_err(io::Error::other)?,
        Host::Address(address) => ServerName::from(*address),
    };
    let connection = ClientConnection::new(config, name).map_err(io::Error::other)?;
    let mut tls = Box::new(StreamOwned::new(connection, sock));
    while tls.conn.is_handshaking() {
        tls.conn.complete_io(&mut tls.sock)?;
    }
    Ok(Stream::Tls(tls))
}

impl Stream {
    /// The socket underneath.
    pub(super) fn sock(&self) -> &Sock {
        match self {
            Self::Plain(sock) => sock,
            Self::Tls(tls) => &tls.sock,
        }
    }

    /// The socket underneath.
    pub(super) fn sock_mut(&mut self) -> &mut Sock {
        match self {
            Self::Plain(sock) => sock,
            Self::Tls(tls) => &mut tls.sock,
        }
    }

    /// Says that nothing more will be sent, in TLS's words where it is spoken.
    pub(super) fn end_writing(&mut self) {
        if let Self::Tls(tls) = self {
            tls.conn.send_close_notify();
            // Whoever does not take it any more does not need it.
            let _ = tls.flush();
        }
        self.sock().shut_down_writing();
    }
}

impl Read for Stream {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        match self {
            Self::Plain(sock) => sock.read(buf),
            // Most servers end TCP without TLS's own word for it. WebSocket frames and HTTP bodies carry their
            // length, so a cut is noticed one level up.
            Self::Tls(tls) => match tls.read(buf) {
                Err(e) if e.kind() == io::ErrorKind::UnexpectedEof => Ok(0),
                other => other,
            },
        }
    }
}

impl Write for Stream {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        match self {
            Self::Plain(sock) => sock.write(buf),
            // rustls says 0 when its own buffer is full; everybody else takes that for the end of the connection.
            Self::Tls(tls) => match tls.write(buf) {
                Ok(0) if !buf.is_empty() => Err(io::ErrorKind::WouldBlock.into()),
                other => other,
            },
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        match self {
            Self::Plain(sock) => sock.flush(),
            Self::Tls(tls) => tls.flush(),
        }
    }
}

impl AsFd for Stream {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.sock().as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A CA of its own, made by `openssl req -x509`; its key was thrown away.
    const CA: &str = "\
-----BEGIN CERTIFICATE-----
MIIBbzCCARWgAwIBAgIUOlZGYakHgxLvwI9kexMtYsMHoEAwCgYIKoZIzj0EAwIw
DDEKMAgGA1UEAwwBdDAgFw0yNjExMjQwNjEzNDlaGA8yMTA5MDExMzA2MTM0OVow
DDEKMAgGA1UEAwwBdDBZMBMGByqGSM49AgEGCCqGSM49AwEHA0IABNlUNY6cbeoQ
UEPpUMT88wulJL0+9PurgEM4kZlQIKMdel+ICZktka0U+N64fuvkzMn/1/oNaeg1
XqwKFikW83ujUzBRMB0GA1UdDgQWBBStJKLUvXGCEUcsnPokI6tMBn/vKDAfBgNV
HSMEGDAWgBStJKLUvXGCEUcsnPokI6tMBn/vKDAPBgNVHRMBAf8EBTADAQH/MAoG
CCqGSM49BAMCA0gAMEUCICRZAiSGwPTUzhalpvPoXSe6Nx1gHtyEKV8F/b8MquNu
AiEAhZrt88VoI5evrF2cUwOgKMNAkBlZlgDS4zOtE+VsiSI=
-----END CERTIFICATE-----
";

    #[test]
    fn the_files_roots_come_on_top_of_the_built_in_ones() {
        let built_in = webpki_roots::TLS_SERVER_ROOTS.len();
        assert!(built_in > 100);
        assert_eq!(roots(None).unwrap().len(), built_in);
        let path = std::env::temp_dir().join(format!("vectorlay-roots-{}.pem", std::process::id()));
        std::fs::write(&path, format!("# two of them\n{CA}{CA}")).unwrap();
        assert_eq!(roots(Some(&path)).unwrap().len(), built_in + 2);
        std::fs::remove_file(&path).unwrap();
    }

    #[test]
    fn a_ca_file_that_is_none_is_named() {
        let dir = std::env::temp_dir().join(format!("vectorlay-ca-{}", std::process::id()));
        std::fs::create_dir_all(&dir).unwrap();
        let check = |content: Option<&[u8]>, word: &str| {
            let path = dir.join("ca.pem");
            match content {
                Some(content) => std::fs::write(&path, content).unwrap(),
                None => drop(std::fs::remove_file(&path)),
            }
            let error = config(Some(&path)).unwrap_err().to_string();
            assert!(error.contains("ca.pem") && error.contains(word), "{error}");
        };
        check(None, "No such file");
        check(Some(b""), "no certificate");
        check(Some(b"hello"), "no certificate");
        check(Some(b"-----BEGIN CERTIFICATE-----\n!!!\n-----END CERTIFICATE-----\n"), "certificate 1");
        check(Some(b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"), "certificate 1");
        check(Some(&vec![b' '; 3 << 20]), "longer");
        std::fs::remove_dir_all(&dir).unwrap();
    }
}
