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

/// The configuration for one connection, and a warning about certificates in the CA file that were left out. The file
/// is read anew each time, so that it can be replaced under a running agent.
pub(super) fn config(ca_file: Option<&Path>) -> Result<(Arc<ClientConfig>, Option<String>), Error> {
    let (roots, warning) = roots(ca_file)?;
    let provider = CryptoProvider { key_provider: &NoKeys, ..ring::default_provider() };
    let mut config = ClientConfig::builder_with_provider(Arc::new(provider))
        .with_safe_default_protocol_versions()
        .expect("ring has cipher suites for TLS 1.2 and 1.3")
        .with_root_certificates(roots)
        .with_no_client_auth();
    // Each connection has a configuration of its own: there is nothing to resume.
    config.resumption = Resumption::disabled();
    Ok((Arc::new(config), warning))
}

/// The agent shows no certificate of its own: without this, all that signs with a private key would be in the binary.
#[derive(Debug)]
struct NoKeys;

impl KeyProvider for NoKeys {
    fn load_private_key(&self, _: PrivateKeyDer<'static>) -> Result<Arc<dyn SigningKey>, rustls::Error> {
        Err(rustls::Error::General("no private key is used here".to_owned()))
    }
}

/// The built-in roots and those of the file, and a warning about those that were left out.
fn roots(ca_file: Option<&Path>) -> Result<(RootCertStore, Option<String>), Error> {
    let mut roots = RootCertStore { roots: webpki_roots::TLS_SERVER_ROOTS.to_vec() };
    let Some(path) = ca_file else { return Ok((roots, None)) };
    let (mut good, mut bad) = (0, Vec::new());
    for (i, certificate) in certificates(&read(path)?).enumerate() {
        match certificate.and_then(|certificate| roots.add(certificate).map_err(|e| e.to_string())) {
            Ok(()) => good += 1,
            Err(why) => bad.push(format!("certificate {}: {why}", i + 1)),
        }
    }
    if good == 0 {
        bad.truncate(4);
        let why = if bad.is_empty() { "it has no certificate".to_owned() } else { bad.join("; ") };
        return Err(Error::CaFile { path: path.to_owned(), why });
    }
    let warning = (!bad.is_empty()).then(|| {
        let left_out = bad.len();
        bad.truncate(4);
        format!(
            "ca_file {}: {left_out} of its certificates cannot be used and are left out ({}): replace or remove them",
            path.display(),
            bad.join("; ")
        )
    });
    Ok((roots, warning))
}

fn read(path: &Path) -> Result<String, Error> {
    let bad = |why: String| Error::CaFile { path: path.to_owned(), why };
    let mut pem = Vec::new();
    let file = File::open(path).map_err(|e| bad(e.to_string()))?;
    file.take(CA_FILE_MAX + 1).read_to_end(&mut pem).map_err(|e| bad(e.to_string()))?;
    if pem.len() as u64 > CA_FILE_MAX {
        return Err(bad(format!("it is longer than {CA_FILE_MAX} bytes")));
    }
    // What is not ASCII can only be a comment, or damage.
    Ok(String::from_utf8_lossy(&pem).into_owned())
}

/// The certificates of a PEM file, each read on its own: rustls's own iterator takes one without an end together with
/// the next one.
fn certificates(pem: &str) -> impl Iterator<Item = Result<CertificateDer<'static>, String>> {
    const BEGIN: &str = "-----BEGIN CERTIFICATE-----";
    pem.split(BEGIN).skip(1).map(|rest| {
        CertificateDer::from_pem_slice(format!("{BEGIN}{rest}").as_bytes()).map_err(|e| e.to_string())
    })
}

/// Does the handshake over `sock`, whose deadline bounds it.
///
/// # Errors
/// The socket's error, or rustls's inside of an `io::Error`.
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

    /// Tells the peer that nothing more will be sent, in TLS too.
    pub(super) fn end_writing(&mut self) {
        if let Self::Tls(tls) = self {
            tls.conn.send_close_notify();
            // A peer that has gone already does not need it.
            let _ = tls.flush();
        }
        self.sock().shut_down_writing();
    }
}

impl Read for Stream {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        match self {
            Self::Plain(sock) => sock.read(buf),
            // Most servers end TCP without a close_notify. WebSocket frames and HTTP bodies carry their length, so a
            // cut is noticed one level up.
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
            // rustls returns 0 when its own buffer is full; its callers take that for the end of the connection.
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

    struct Dir(std::path::PathBuf);

    impl Dir {
        fn new(name: &str) -> Self {
            let dir = std::env::temp_dir().join(format!("vectorlay-{name}-{}", std::process::id()));
            std::fs::create_dir_all(&dir).unwrap();
            Self(dir)
        }

        fn file(&self, content: &[u8]) -> std::path::PathBuf {
            let path = self.0.join("ca.pem");
            std::fs::write(&path, content).unwrap();
            path
        }
    }

    impl Drop for Dir {
        fn drop(&mut self) {
            std::fs::remove_dir_all(&self.0).unwrap();
        }
    }

    #[test]
    fn the_files_roots_come_on_top_of_the_built_in_ones() {
        let built_in = webpki_roots::TLS_SERVER_ROOTS.len();
        assert!(built_in > 100);
        assert_eq!(roots(None).unwrap().0.len(), built_in);
        let dir = Dir::new("roots");
        let (roots, warning) = roots(Some(&dir.file(format!("# two of them\n{CA}{CA}").as_bytes()))).unwrap();
        assert_eq!((roots.len(), warning), (built_in + 2, None));
    }

    #[test]
    fn a_bad_certificate_among_good_ones_is_left_out() {
        let built_in = webpki_roots::TLS_SERVER_ROOTS.len();
        let dir = Dir::new("left-out");
        let cut = &CA[..CA.len() / 2];
        for (bad, left_out) in [
            ("-----BEGIN CERTIFICATE-----\n!!!\n-----END CERTIFICATE-----\n", 1),
            ("-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n", 1),
            (cut, 1),
            (&format!("{cut}\n{cut}\u{fffd}\n"), 2),
        ] {
            let file = dir.file(format!("{CA}{bad}{CA}").as_bytes());
            let (roots, warning) = roots(Some(&file)).unwrap();
            let warning = warning.unwrap();
            assert_eq!(roots.len(), built_in + 2, "{warning}");
            assert!(warning.contains(&format!("ca.pem: {left_out} of its")), "{warning}");
            assert!(warning.contains("(certificate 2: "), "{warning}");
        }
    }

    #[test]
    fn a_ca_file_that_cannot_be_used_is_named() {
        let dir = Dir::new("ca");
        let check = |content: Option<&[u8]>, word: &str| {
            let path = dir.file(content.unwrap_or_default());
            if content.is_none() {
                std::fs::remove_file(&path).unwrap();
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
    }
}
