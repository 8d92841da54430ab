//! Servers: each runs its handler in a thread for each connection.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use rustls::pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject};
use rustls::{ServerConfig, ServerConnection, StreamOwned};
use tungstenite::WebSocket;
use tungstenite::protocol::WebSocketConfig;

use super::certs::Leaf;
use super::rig::LONG;

pub trait Duplex: Read + Write + Send {}
impl<T: Read + Write + Send> Duplex for T {}
pub type Boxed = Box<dyn Duplex>;

/// Serves TCP.
pub fn tcp(at: &str, handler: impl Fn(TcpStream) + Send + Sync + 'static) -> SocketAddr {
    let listener = TcpListener::bind(at).unwrap();
    let address = listener.local_addr().unwrap();
    let handler = Arc::new(handler);
    thread::spawn(move || {
        for stream in listener.incoming() {
            let (stream, handler) = (stream.unwrap(), Arc::clone(&handler));
            stream.set_read_timeout(Some(LONG)).unwrap();
            stream.set_write_timeout(Some(LONG)).unwrap();
            stream.set_nodelay(true).unwrap();
            thread::spawn(move || handler(stream));
        }
    });
    address
}

/// Serves WebSockets over plain TCP.
pub fn ws(handler: impl Fn(WebSocket<TcpStream>) + Send + Sync + 'static) -> String {
    let address = tcp("127.0.0.1:0", move |stream| handler(tungstenite::accept(stream).unwrap()));
    format!("ws://{address}/api/ws")
}

/// Serves TLS; connections whose handshake fails are dropped.
pub fn tls(leaf: &Leaf, handler: impl Fn(Boxed) + Send + Sync + 'static) -> SocketAddr {
    let config = server_config(leaf);
    tcp("127.0.0.1:0", move |stream| {
        let connection = ServerConnection::new(Arc::clone(&config)).unwrap();
        let mut tls = StreamOwned::new(connection, stream);
        while tls.conn.is_handshaking() {
            if tls.conn.complete_io(&mut tls.sock).is_err() {
                return;
            }
        }
        handler(Box::new(tls));
    })
}

/// Serves WebSockets over TLS.
pub fn wss(leaf: &Leaf, handler: impl Fn(WebSocket<Boxed>) + Send + Sync + 'static) -> SocketAddr {
    tls(leaf, move |stream| {
        let config = WebSocketConfig::default();
        if let Ok(socket) = tungstenite::accept_with_config(stream, Some(config)) {
            handler(socket);
        }
    })
}

fn server_config(leaf: &Leaf) -> Arc<ServerConfig> {
    let chain = CertificateDer::pem_slice_iter(leaf.pem.as_bytes()).map(Result::unwrap).collect();
    let key = PrivateKeyDer::from_pem_slice(leaf.key.as_bytes()).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = ServerConfig::builder_with_provider(provider).with_safe_default_protocol_versions().unwrap();
    Arc::new(config.with_no_client_auth().with_single_cert(chain, key).unwrap())
}

/// Reads an HTTP request: its head in lower case, and its body where it says how long that is.
pub fn request(stream: &mut dyn Read) -> (String, String) {
    let (head, body) = request_as_sent(stream);
    (head.to_lowercase(), body)
}

/// As [`request`], with the head as it was sent.
pub fn request_as_sent(stream: &mut dyn Read) -> (String, String) {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        let mut byte = [0];
        if stream.read(&mut byte).unwrap_or(0) == 0 {
            break;
        }
        head.push(byte[0]);
    }
    let head = String::from_utf8(head).unwrap();
    let length = head
        .to_lowercase()
        .lines()
        .find_map(|l| l.strip_prefix("content-length: ")?.parse().ok())
        .unwrap_or(0);
    let mut body = vec![0; length];
    stream.read_exact(&mut body).unwrap();
    (head, String::from_utf8(body).unwrap())
}

/// Serves HTTP: the same answer to every request.
pub fn http(answer: impl Into<Vec<u8>>) -> SocketAddr {
    let answer = answer.into();
    tcp("127.0.0.1:0", move |mut stream| {
        request(&mut stream);
        let _ = stream.write_all(&answer);
    })
}

/// Writes byte by byte, `pause` apart, until the peer has gone.
pub fn drip(stream: &mut dyn Write, bytes: impl Iterator<Item = u8>, pause: Duration) {
    for byte in bytes {
        if stream.write_all(&[byte]).is_err() {
            return;
        }
        thread::sleep(pause);
    }
}
