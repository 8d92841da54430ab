//! Faults that an agent has to live with, asked for on the command line.

use std::io::{self, Read, Write};
use std::net::TcpStream;
use std::os::fd::{AsFd, BorrowedFd};

use crate::stream::Stream;

/// Which faults are shown.
#[derive(Default)]
pub struct Faults {
    /// Each request is answered with this status.
    pub http_status: Option<u16>,
    /// … and with this `Retry-After`, in seconds.
    pub retry_after_s: Option<u32>,
    /// Connections are accepted and nothing is said.
    pub accept_silent: bool,
    /// No ping is answered.
    pub ignore_pings: bool,
}

impl Faults {
    /// The header lines that go with [`Faults::http_status`].
    pub fn headers(&self) -> String {
        self.retry_after_s.map(|s| format!("Retry-After: {s}\r\n")).unwrap_or_default()
    }

    /// Holds the connection, silently, until the peer gives up.
    pub fn say_nothing(&self, mut tcp: TcpStream) {
        while !matches!(tcp.read(&mut [0; 1024]), Ok(0) | Err(_)) {}
    }
}

/// A stream that can leave out the pongs that tungstenite writes by itself.
///
/// A server's frames are not masked, and tungstenite hands over whole frames: each call of `write` that begins at a
/// frame's beginning sees its header, and a pong (RFC 6455 5.5: at most 125 bytes) entirely.
pub struct PongFilter {
    stream: Stream,
    on: bool,
    /// What is still to come of the frame that was begun, bytes.
    left: u64,
}

impl PongFilter {
    /// Filters if `on`.
    pub fn new(stream: Stream, on: bool) -> Self {
        Self { stream, on, left: 0 }
    }

    /// The stream itself.
    pub fn into_inner(self) -> Stream {
        self.stream
    }
}

impl Write for PongFilter {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        if !self.on {
            return self.stream.write(buf);
        }
        if self.left == 0 {
            let (pong, length) = frame(buf);
            if pong {
                return Ok(buf.len().min(usize::try_from(length).unwrap_or(usize::MAX)));
            }
            self.left = length;
        }
        let end = buf.len().min(usize::try_from(self.left).unwrap_or(usize::MAX));
        let written = self.stream.write(&buf[..end])?;
        self.left -= written as u64;
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.stream.flush()
    }
}

impl Read for PongFilter {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        self.stream.read(buf)
    }
}

impl AsFd for PongFilter {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.stream.as_fd()
    }
}

/// Whether an unmasked frame is a pong, and its length with the header (RFC 6455 5.2).
fn frame(bytes: &[u8]) -> (bool, u64) {
    let pong = bytes.first().is_some_and(|first| first & 0x0f == 0xa);
    let number = |range: std::ops::Range<usize>| {
        bytes.get(range).unwrap_or_default().iter().fold(0, |sum, byte| (sum << 8) | u64::from(*byte))
    };
    let length = match bytes.get(1) {
        Some(127) => 10 + number(2..10),
        Some(126) => 4 + number(2..4),
        Some(short) => 2 + u64::from(*short),
        None => bytes.len() as u64,
    };
    (pong, length)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_are_told_apart() {
        assert_eq!(frame(&[0x8a, 3, 1, 2, 3]), (true, 5));
        assert_eq!(frame(&[0x81, 5, b'h']), (false, 7));
        assert_eq!(frame(&[0x81, 126, 1, 0, b'x']), (false, 260));
        assert_eq!(frame(&[0x81, 127, 0, 0, 0, 0, 0, 1, 0, 0]), (false, 65_546));
        assert_eq!(frame(&[0x88, 2, 3, 0xf4]), (false, 4));
    }
}
