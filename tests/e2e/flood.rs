//! A peer that sends without end: memory stays bounded, heartbeats come in time, and a flood of what cannot be used ends
//! the connection.

use std::io::{self, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

use serde_json::Value;
use tungstenite::Message;
use tungstenite::protocol::{Role, WebSocket};

use crate::support::agent::{Agent, Node};
use crate::support::control_plane::WAIT;

/// Reads only: another thread writes to the same connection, and an automatic pong must not fall between its frames.
struct ReadOnly(TcpStream);

impl Read for ReadOnly {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        self.0.read(buf)
    }
}

impl Write for ReadOnly {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        Ok(buf.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// An agent whose control plane sends `frame` again and again from the first message on; and what the agent sends.
fn flooded(name: &str, frame: Vec<u8>) -> (Node, Agent, Receiver<Message>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("ws://{}/ws", listener.local_addr().unwrap());
    let (tx, received) = channel();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let stream = stream.unwrap();
            if tungstenite::accept(stream.try_clone().unwrap()).is_err() {
                continue;
            }
            let (mut raw, frame) = (stream.try_clone().unwrap(), frame.clone());
            let mut socket = WebSocket::from_raw_socket(ReadOnly(stream), Role::Server, None);
            std::thread::spawn(move || while raw.write_all(&frame).is_ok() {});
            while let Ok(message) = socket.read() {
                let is_close = message.is_close();
                if tx.send(message).is_err() || is_close {
                    break;
                }
            }
        }
    });
    let mut node = Node::new(name);
    std::fs::create_dir(node.state()).unwrap();
    std::fs::write(node.identity(), r#"{"node_id":"node-1"}"#).unwrap();
    node.set("url", &url).set("log", "info");
    let agent = node.start();
    (node, agent, received)
}

fn frame(text: &str) -> Vec<u8> {
    let mut bytes = Vec::new();
    let mut socket = WebSocket::from_raw_socket(io::Cursor::new(&mut bytes), Role::Server, None);
    socket.send(Message::text(text)).unwrap();
    bytes
}

/// Waits for the agent's next message of this type.
fn next(received: &Receiver<Message>, kind: &str, deadline: Duration) {
    let end = Instant::now() + deadline;
    loop {
        let left = end.saturating_duration_since(Instant::now());
        let message = received.recv_timeout(left).unwrap_or_else(|_| panic!("no {kind} within {deadline:?}"));
        let read = message.to_text().ok().and_then(|text| serde_json::from_str::<Value>(text).ok());
        if read.is_some_and(|value| value["type"] == kind) {
            return;
        }
    }
}

/// The most memory that it ever had resident, in MiB.
fn peak_mib(agent: &Agent) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{}/status", agent.pid())).unwrap();
    let line = status.lines().find(|line| line.starts_with("VmHWM:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap() / 1024
}

#[test]
fn large_messages_neither_fill_memory_nor_hold_up_heartbeats() {
    // As long as a message may be, and in itself nothing wrong: fields that the agent does not know are ignored. A tree
    // of its values would take 128 MiB.
    let lists = vec!["[]"; (4 << 20) / 3 - 100].join(",");
    let text = format!(r#"{{"type":"resume","payload":{{"later":[{lists}]}}}}"#);
    assert!(text.len() > 4_190_000 && text.len() <= 4 << 20);
    let began = Instant::now();
    let (_node, agent, received) = flooded("flood-large", frame(&text));
    next(&received, "heartbeat", WAIT);
    // The second one is due 30 s after the agent's start. What a test build on a busy machine needs for a message or two
    // comes on top; behind a full queue it would be a minute and more.
    next(&received, "heartbeat", Duration::from_secs(60));
    let late = began.elapsed().saturating_sub(Duration::from_secs(30));
    let peak = peak_mib(&agent);
    println!("the second heartbeat {late:?} late, at most {peak} MiB resident");
    assert!(late < Duration::from_secs(15), "{late:?}");
    assert!(peak < 64, "{peak} MiB");
    assert!(agent.text().matches("resume").count() < 20, "{}", agent.text());
}

#[test]
fn empty_messages_end_the_connection_and_fill_no_log() {
    let (_node, agent, received) = flooded("flood-empty", frame("").repeat(1000));
    // Twice: the agent comes back, and the backoff is that of a failure.
    for _ in 0..2 {
        let close = loop {
            if let Message::Close(frame) = received.recv_timeout(WAIT).unwrap() {
                break frame.unwrap();
            }
        };
        assert_eq!(u16::from(close.code), 1008);
    }
    agent.wait_line(WAIT, |line| line.contains("floods this node"));
    let ignored = agent.log().iter().filter(|line| line.contains("is not a JSON message")).count();
    assert!((1..=2).contains(&ignored), "{}", agent.text());
    assert!(agent.text().len() < 64 << 10, "{} bytes of log", agent.text().len());
}
