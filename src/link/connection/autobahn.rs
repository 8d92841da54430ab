//! An echo client for Autobahn's test suite, made of the link's own parts: dialling, upgrade, limits, and the answers to
//! what a peer does wrong.
//!
//! ```text
//! wstest -m fuzzingserver -s spec.json      (autobahntestsuite 0.8.2 for Python 2.7; "url": "ws://127.0.0.1:9001")
//! VECTORLAY_AUTOBAHN_URL=ws://127.0.0.1:9001 cargo test --lib autobahn -- --ignored
//! ```
//!
//! Of the 301 cases without compression (12 and 13 are for that, and the agent does not ask for it) 292 are OK, 2 OK but
//! not strict (6.4.3 and 6.4.4: text that is not UTF-8 is refused with its message and not with its fragment), 3
//! informational. 4 fail as they are meant to: their messages of 8 and 16 MiB (9.1.5, 9.1.6, 9.2.5, 9.2.6) are beyond
//! the agent's limit of 4 MiB.

use std::io;
use std::time::Duration;

use rustix::event::PollFd;

use super::super::dial::Dialer;
use super::super::upgrade::upgrade;
use super::super::url::Url;
use super::*;
use crate::wait::poll_until;

const LONG: Duration = Duration::from_secs(60);

/// Connects to `url` and echoes until the connection ends; returns the last text that came.
fn echo(url: &str) -> Option<String> {
    let url = Url::websocket(url, false).unwrap();
    let (shared, link) = (Shared::new().unwrap(), LinkId(1));
    let deadline = Deadline::for_attempt(LONG, &shared, link);
    let stream = Dialer::new(None, None).open(&url, &deadline).unwrap();
    let mut connection = Connection::new(link, upgrade(stream, &url, None, None, &deadline).unwrap());
    let mut last = None;
    loop {
        connection.socket.get_mut().sock_mut().allow(BYTES_PER_TURN);
        match connection.socket.read() {
            Ok(Message::Close(frame)) => {
                connection.closed_by_peer(frame.as_ref(), &shared);
                return last;
            }
            Ok(message) if message.is_text() || message.is_binary() => {
                last = message.to_text().ok().map(str::to_owned);
                connection.write(message);
            }
            Ok(_) => {}
            Err(WsError::Io(e)) if e.kind() == io::ErrorKind::WouldBlock => {
                let blocked = connection.socket.flush().is_err();
                let flags = if blocked { PollFlags::IN | PollFlags::OUT } else { PollFlags::IN };
                let mut fds = [PollFd::from_borrowed_fd(connection.as_fd(), flags)];
                poll_until(&mut fds, Some(Instant::now() + LONG)).unwrap();
                assert!(!fds[0].revents().is_empty(), "the suite is silent");
            }
            Err(error) => {
                connection.failed_read(&error, &shared);
                return last;
            }
        }
    }
}

#[test]
#[ignore = "needs Autobahn's fuzzingserver at VECTORLAY_AUTOBAHN_URL"]
fn echoes_for_the_fuzzing_server() {
    let server = std::env::var("VECTORLAY_AUTOBAHN_URL").unwrap();
    let cases: u32 = echo(&format!("{server}/getCaseCount")).unwrap().parse().unwrap();
    for case in 1..=cases {
        echo(&format!("{server}/runCase?case={case}&agent=vectorlay-agent"));
    }
    echo(&format!("{server}/updateReports?agent=vectorlay-agent"));
    println!("{cases} cases");
}
