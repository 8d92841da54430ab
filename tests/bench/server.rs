//! The control plane of the benchmark: takes whatever connects by its `X-Node-Id`, notes when each message arrived, and
//! says what it is told to.

use std::collections::BTreeMap;
use std::io::{ErrorKind, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Condvar, Mutex};
use std::time::{Duration, Instant};

use rustix::time::{ClockId, clock_gettime};
use rustls::{ServerConfig, ServerConnection, StreamOwned};
use serde_json::{Value, json};

/// How long a TLS connection waits for its peer before it looks whether there is something to say.
const TLS_TURN: Duration = Duration::from_millis(20);

/// CLOCK_MONOTONIC in nanoseconds, the same in all processes.
pub fn now_ns() -> u64 {
    let now = clock_gettime(ClockId::Monotonic);
    u64::try_from(now.tv_sec).unwrap() * 1_000_000_000 + u64::try_from(now.tv_nsec).unwrap()
}

pub struct Message {
    pub at_ns: u64,
    pub kind: String,
    pub payload: Value,
}

#[derive(Default)]
struct Node {
    messages: Vec<Message>,
    out: Option<Out>,
}

enum Out {
    /// Written at once by whoever says something, a whole frame at a time.
    Plain(Arc<Mutex<TcpStream>>),
    /// By the connection's own thread.
    Tls(Sender<Vec<u8>>),
}

#[derive(Default)]
struct Nodes {
    all: Mutex<BTreeMap<String, Node>>,
    news: Condvar,
}

pub struct Server {
    pub port: u16,
    nodes: Arc<Nodes>,
}

impl Server {
    pub fn start(tls: Option<Arc<ServerConfig>>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let nodes = Arc::<Nodes>::default();
        let served = Arc::clone(&nodes);
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let (stream, nodes, tls) = (stream.unwrap(), Arc::clone(&served), tls.clone());
                std::thread::spawn(move || serve(stream, &nodes, tls));
            }
        });
        Self { port, nodes }
    }

    /// Says something to a node that is connected; gives the time right before.
    pub fn send(&self, node: &str, kind: &str, payload: &Value) -> u64 {
        let frame = frame(1, json!({ "type": kind, "payload": payload }).to_string().as_bytes());
        let mut all = self.nodes.all.lock().unwrap();
        let at = now_ns();
        match all.get_mut(node).and_then(|node| node.out.as_mut()).expect("it is connected") {
            Out::Plain(stream) => stream.lock().unwrap().write_all(&frame).unwrap(),
            Out::Tls(queue) => queue.send(frame).unwrap(),
        }
        at
    }

    /// Sends a node that is connected without TLS messages of `length` bytes for so long, as fast as it takes them; says
    /// how many.
    pub fn flood(&self, node: &str, length: usize, time: Duration) -> usize {
        let out = match &self.nodes.all.lock().unwrap()[node].out {
            Some(Out::Plain(stream)) => Arc::clone(stream),
            Some(Out::Tls(_)) | None => panic!("{node} is not connected without TLS"),
        };
        let empty = json!({ "type": "flood", "payload": { "text": "" } }).to_string();
        let text = empty.replace("\"\"", &format!("\"{}\"", "x".repeat(length - empty.len())));
        let message = frame(1, text.as_bytes());
        let end = Instant::now() + time;
        let mut sent = 0;
        while Instant::now() < end {
            out.lock().unwrap().write_all(&message).unwrap();
            sent += 1;
        }
        sent
    }

    /// Waits for a message of a node that `wanted` accepts, among those since `since_ns`.
    pub fn wait(
        &self,
        node: &str,
        since_ns: u64,
        within: Duration,
        wanted: impl Fn(&Message) -> bool,
    ) -> Option<(u64, Value)> {
        let end = Instant::now() + within;
        let mut all = self.nodes.all.lock().unwrap();
        loop {
            let messages = all.get(node).map_or(&[][..], |node| &node.messages);
            let found = messages.iter().rev().take_while(|message| message.at_ns >= since_ns);
            if let Some(found) = found.filter(|message| wanted(message)).last() {
                return Some((found.at_ns, found.payload.clone()));
            }
            let left = end.checked_duration_since(Instant::now())?;
            all = self.nodes.news.wait_timeout(all, left).unwrap().0;
        }
    }

    /// When a node's messages of this kind arrived.
    pub fn arrivals(&self, node: &str, kind: &str) -> Vec<u64> {
        let all = self.nodes.all.lock().unwrap();
        let messages = all.get(node).map_or(&[][..], |node| &node.messages);
        messages.iter().filter(|message| message.kind == kind).map(|message| message.at_ns).collect()
    }
}

trait Stream: Read + Write {}
impl<T: Read + Write> Stream for T {}

fn serve(socket: TcpStream, nodes: &Nodes, tls: Option<Arc<ServerConfig>>) {
    socket.set_nodelay(true).unwrap();
    let plain = Arc::new(Mutex::new(socket.try_clone().unwrap()));
    let answers = tls.is_none().then(|| Arc::clone(&plain));
    let (queue, queued) = channel();
    let (mut stream, out): (Box<dyn Stream>, Out) = match tls {
        None => (Box::new(socket), Out::Plain(plain)),
        Some(config) => {
            let mut socket = socket;
            let mut connection = ServerConnection::new(config).unwrap();
            if connection.complete_io(&mut socket).is_err() {
                return;
            }
            socket.set_read_timeout(Some(TLS_TURN)).unwrap();
            (Box::new(StreamOwned::new(connection, socket)), Out::Tls(queue))
        }
    };
    let mut buffer = Vec::new();
    let mut node = None;
    let mut out = Some(out);
    let mut begun = Vec::new();
    while read_more(&mut *stream, &mut buffer, &queued) {
        let at_ns = now_ns();
        if node.is_none() {
            let Some(end) = buffer.windows(4).position(|four| four == b"\r\n\r\n") else { continue };
            let head: Vec<u8> = buffer.drain(..end + 4).collect();
            let head = String::from_utf8_lossy(&head).into_owned();
            let header = |name: &str| {
                let found = head.lines().filter_map(|line| line.split_once(": "));
                let mut found = found.filter(|(key, _)| key.eq_ignore_ascii_case(name));
                found.next().map(|(_, value)| value.to_owned())
            };
            let key = header("sec-websocket-key").unwrap_or_default();
            let accept = tungstenite::handshake::derive_accept_key(key.as_bytes());
            let answer = format!(
                "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
                 Sec-WebSocket-Accept: {accept}\r\n\r\n"
            );
            stream.write_all(answer.as_bytes()).unwrap();
            let id = header("x-node-id").unwrap_or_default();
            nodes.all.lock().unwrap().entry(id.clone()).or_default().out = out.take();
            node = Some(id);
        }
        let Some(id) = &node else { continue };
        while let Some((first, body)) = take_frame(&mut buffer) {
            let (is_last, kind) = (first & 128 != 0, first & 15);
            if kind <= 1 && !is_last {
                begun.extend(body);
                continue;
            }
            let (kind, body) = match kind {
                0 => (1, [std::mem::take(&mut begun), body].concat()),
                whole => (whole, body),
            };
            let mut all = nodes.all.lock().unwrap();
            let entry = all.entry(id.clone()).or_default();
            match (kind, serde_json::from_slice::<Value>(&body)) {
                (1, Ok(mut message)) => {
                    let kind = message["type"].as_str().unwrap_or_default().to_owned();
                    let payload = message["payload"].take();
                    entry.messages.push(Message { at_ns, kind, payload });
                    nodes.news.notify_all();
                }
                (9, _) => {
                    let pong = frame(10, &body);
                    drop(all);
                    // Failing here shows as a connection that ends.
                    let _ = match &answers {
                        Some(plain) => plain.lock().unwrap().write_all(&pong),
                        None => stream.write_all(&pong),
                    };
                }
                _ => {}
            }
        }
    }
}

/// Reads what there is; says whether the connection stands.
fn read_more(stream: &mut dyn Stream, buffer: &mut Vec<u8>, queued: &Receiver<Vec<u8>>) -> bool {
    let mut chunk = [0; 64 * 1024];
    loop {
        match stream.read(&mut chunk) {
            Ok(0) => return false,
            Ok(length) => {
                buffer.extend_from_slice(&chunk[..length]);
                return true;
            }
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {
                for frame in queued.try_iter() {
                    if stream.write_all(&frame).is_err() {
                        return false;
                    }
                }
            }
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(_) => return false,
        }
    }
}

/// A whole frame of a client (RFC 6455, section 5.2), unmasked, if one is there: its first byte and what it carries.
fn take_frame(buffer: &mut Vec<u8>) -> Option<(u8, Vec<u8>)> {
    let (length, at) = match *buffer.get(1)? & 127 {
        126 => (usize::from(u16::from_be_bytes(buffer.get(2..4)?.try_into().ok()?)), 4),
        127 => (usize::try_from(u64::from_be_bytes(buffer.get(2..10)?.try_into().ok()?)).ok()?, 10),
        short => (usize::from(short), 2),
    };
    let mask: [u8; 4] = buffer.get(at..at + 4)?.try_into().ok()?;
    let body = buffer.get(at + 4..at + 4 + length)?;
    let body = body.iter().zip(mask.iter().cycle()).map(|(byte, mask)| byte ^ mask).collect();
    let first = buffer[0];
    buffer.drain(..at + 4 + length);
    Some((first, body))
}

fn frame(kind: u8, body: &[u8]) -> Vec<u8> {
    let mut frame = vec![0x80 | kind];
    match u16::try_from(body.len()) {
        Ok(short @ 0..=125) => frame.push(u8::try_from(short).unwrap()),
        Ok(long) => {
            frame.push(126);
            frame.extend(long.to_be_bytes());
        }
        Err(_) => {
            frame.push(127);
            frame.extend((body.len() as u64).to_be_bytes());
        }
    }
    frame.extend_from_slice(body);
    frame
}
