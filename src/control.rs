//! The control socket: how `vectorlay-agent status`, `drain` and the like reach the running agent.
//!
//! One conversation at a time, each under one deadline: one line of JSON in (`{"request":"gpu-hold","address":
//! "0000:41:00.0"}`), one line of JSON out (the core's answer, or `{"error": …}`). Only root and the agent's own user are
//! served. It decides nothing: the request becomes an event, and the core's answer comes back through [`Control::reply`].

use std::fs::{self, Permissions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::thread::Builder;
use std::time::{Duration, Instant};

use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};
use serde_json::Value;

use crate::core::operator::{ControlId, Request};
use crate::trust;
use crate::types::PciAddress;

/// How long one conversation may take, the core's answer included.
const CONVERSATION: Duration = Duration::from_secs(2);
/// How much of it is left to report that the core did not answer.
const TIMEOUT_REPLY: Duration = Duration::from_millis(500);
/// How long a command waits for its answer.
const ANSWER: Duration = Duration::from_secs(5);
// Another conversation may have to end first.
const _: () = assert!(ANSWER.as_millis() > 2 * CONVERSATION.as_millis());
/// The longest request, in bytes.
const REQUEST_MAX: usize = 4096;
/// The longest answer, in bytes.
const ANSWER_MAX: usize = 1024 * 1024;
/// Asks for the agent's last log lines.
const LOG_REQUEST: &str = "log";
/// Pause after a failed accept (for instance because no descriptor is free).
const ACCEPT_PAUSE: Duration = Duration::from_secs(1);

/// The control thread, seen from the main loop. Dropping it removes the socket.
#[derive(Debug)]
pub struct Control {
    replies: SyncSender<(ControlId, String)>,
    path: PathBuf,
}

impl Control {
    /// Makes the socket (mode 0600; its folder, if missing, 0700) and starts the thread. The socket of an agent that has
    /// ended is replaced, one with a listener is not. `emit` is called on the thread.
    ///
    /// # Errors
    /// When the socket cannot be made, or something else is in its place.
    /// `recent_log` gives the agent's last log lines, which the core does not know.
    pub fn start(
        path: &Path,
        recent_log: fn() -> Vec<String>,
        emit: impl Fn(ControlId, Request) + Send + 'static,
    ) -> Result<Self, String> {
        let listener = listen(path)?;
        // One reply is awaited at a time; late ones are dropped before the next request is passed on.
        let (replies, received) = sync_channel(1);
        Builder::new()
            .name("control".to_owned())
            .spawn(move || serve(&listener, &received, recent_log, &emit))
            .map_err(|error| format!("cannot start the thread control: {error}; raise the limit of tasks"))?;
        Ok(Self { replies, path: path.to_owned() })
    }

    /// Answers a request with one line of JSON. Never blocks; an answer that nobody waits for is dropped.
    pub fn reply(&self, id: ControlId, line: String) {
        let _ = self.replies.try_send((id, line));
    }
}

impl Drop for Control {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.path);
    }
}

/// Sends a request to the running agent and waits for its answer.
///
/// # Errors
/// When no agent answers, or it refuses.
pub fn request(path: &Path, request: &Request) -> Result<Value, String> {
    let answer = exchange(path, &request_line(request))?;
    let Some(error) = answer.get("error").and_then(Value::as_str) else { return Ok(answer) };
    // `gpu-hold` on the socket is `gpu hold` on the command line.
    let command = request.as_str().replace('-', " ");
    let advice = if request.address().is_some() { "; see `vectorlay-agent status`" } else { "" };
    Err(format!("{command}: {error}{advice}"))
}

/// The running agent's last log lines, oldest first.
///
/// # Errors
/// When no agent answers, or it does not know the request.
pub fn recent_log(path: &Path) -> Result<Vec<String>, String> {
    let answer = exchange(path, &serde_json::json!({ "request": LOG_REQUEST }).to_string())?;
    match answer.get("log").and_then(Value::as_array) {
        Some(lines) => Ok(lines.iter().filter_map(Value::as_str).map(str::to_owned).collect()),
        None => Err(answer["error"].as_str().unwrap_or("the agent's answer has no log").to_owned()),
    }
}

fn exchange(path: &Path, line: &str) -> Result<Value, String> {
    let deadline = Instant::now() + ANSWER;
    let shown = path.display();
    let failed = |error: io::Error| {
        let advice = match error.kind() {
            io::ErrorKind::PermissionDenied => "run this as root",
            _ => "try again, and look at its log",
        };
        format!("no answer from the agent at {shown}: {error}; {advice}")
    };
    let mut stream = match connect(path) {
        Ok(stream) => stream,
        Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused) => {
            return Err(format!("no agent is running at {shown}; start it, or give --control-socket"));
        }
        Err(error) => return Err(failed(error)),
    };
    write_line(&mut stream, line, deadline).map_err(failed)?;
    let line = read_line(&mut stream, ANSWER_MAX, deadline).map_err(failed)?;
    serde_json::from_slice(&line)
        .map_err(|_| format!("the answer from {shown} is not JSON; is another program listening there?"))
}

fn listen(path: &Path) -> Result<UnixListener, String> {
    let shown = path.display();
    let failed = |error: io::Error| {
        format!("cannot make the control socket {shown}: {error}; set control_socket to another path")
    };
    if let Some(parent) = path.parent() {
        trust::make_folder(parent).map_err(failed)?;
    }
    match fs::symlink_metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(failed(error)),
        Ok(metadata) if !metadata.file_type().is_socket() => {
            return Err(format!("{shown} is not a socket; move it away, or set another control_socket"));
        }
        Ok(_) => match connect(path) {
            Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
                fs::remove_file(path).map_err(failed)?;
            }
            Ok(_) | Err(_) => {
                return Err(format!(
                    "another agent listens at {shown}; stop it, or set another control_socket"
                ));
            }
        },
    }
    let listener = UnixListener::bind(path).map_err(failed)?;
    fs::set_permissions(path, Permissions::from_mode(0o600)).map_err(failed)?;
    Ok(listener)
}

/// Connects without blocking: connect(2) would block while the listener's queue is full.
fn connect(path: &Path) -> io::Result<UnixStream> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = rustix::net::socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
    rustix::net::connect(&socket, &SocketAddrUnix::new(path)?)?;
    let stream = UnixStream::from(socket);
    stream.set_nonblocking(false)?;
    Ok(stream)
}

/// The thread: one conversation after the other, until the process ends.
fn serve(
    listener: &UnixListener,
    replies: &Receiver<(ControlId, String)>,
    recent_log: fn() -> Vec<String>,
    emit: &impl Fn(ControlId, Request),
) {
    let mut id = ControlId(0);
    loop {
        match listener.accept() {
            Ok((mut stream, _)) => {
                id.0 += 1;
                let deadline = Instant::now() + CONVERSATION;
                let line = answer(&mut stream, id, deadline, replies, recent_log, emit);
                if let Err(error) = line.and_then(|line| write_line(&mut stream, &line, deadline)) {
                    log::debug!("control socket: {id} ended early: {error}");
                }
            }
            Err(error) => {
                log::warn!("control socket: cannot accept a connection: {error}");
                std::thread::sleep(ACCEPT_PAUSE);
            }
        }
    }
}

/// Reads one request and returns the line that answers it.
fn answer(
    stream: &mut UnixStream,
    id: ControlId,
    deadline: Instant,
    replies: &Receiver<(ControlId, String)>,
    recent_log: fn() -> Vec<String>,
    emit: &impl Fn(ControlId, Request),
) -> io::Result<String> {
    let peer = rustix::net::sockopt::socket_peercred(&*stream)?;
    if !peer.uid.is_root() && peer.uid != rustix::process::geteuid() {
        return Ok(refusal("only root and the agent's own user may ask"));
    }
    let request = match read_request(&read_line(stream, REQUEST_MAX, deadline)?) {
        Ok(Asked::Log) => return Ok(serde_json::json!({ "log": recent_log() }).to_string()),
        Ok(Asked::Core(request)) => request,
        Err(error) => return Ok(refusal(&error)),
    };
    while replies.try_recv().is_ok() {}
    if !matches!(request, Request::Status) {
        log::info!("operator: {request} (user {}, process {})", peer.uid.as_raw(), peer.pid.as_raw_nonzero());
    }
    emit(id, request);
    loop {
        match replies.recv_timeout(left(deadline).saturating_sub(TIMEOUT_REPLY)) {
            Ok((of, line)) if of == id => return Ok(line),
            Ok(_) => {}
            Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => {
                return Ok(refusal("the agent is too busy to answer; try again, and look at its log"));
            }
        }
    }
}

fn refusal(error: &str) -> String {
    serde_json::json!({ "error": error }).to_string()
}

fn request_line(request: &Request) -> String {
    let mut object = serde_json::Map::new();
    object.insert("request".to_owned(), request.as_str().into());
    if let Some(address) = request.address() {
        object.insert("address".to_owned(), address.to_string().into());
    }
    Value::Object(object).to_string()
}

/// What a request asks for.
#[derive(Debug)]
pub enum Asked {
    /// What the core answers.
    Core(Request),
    /// The agent's last log lines.
    Log,
}

/// Reads a line of the socket: `{"request": NAME, "address"?: PCI address}`.
///
/// # Errors
/// What is wrong with it, for whoever asked.
pub fn read_request(line: &[u8]) -> Result<Asked, String> {
    let value: Value =
        serde_json::from_slice(line).map_err(|error| format!("the request is not JSON: {error}"))?;
    let text = |field: &str| {
        value.get(field).and_then(Value::as_str).ok_or_else(|| format!("missing field `{field}`"))
    };
    let address = || PciAddress::parse(text("address")?).map_err(|error| error.to_string());
    Ok(Asked::Core(match text("request")? {
        "status" => Request::Status,
        "drain" => Request::Drain,
        "maintenance" => Request::Maintenance,
        "resume" => Request::Resume,
        "gpu-hold" => Request::GpuHold(address()?),
        "gpu-release" => Request::GpuRelease(address()?),
        "recheck" => Request::Recheck,
        LOG_REQUEST => return Ok(Asked::Log),
        _ => return Err("unknown request; the running agent may be older than this command".to_owned()),
    }))
}

fn left(deadline: Instant) -> Duration {
    deadline.saturating_duration_since(Instant::now())
}

/// The time left until the deadline, as a socket's timeout, which cannot be zero.
fn timeout(deadline: Instant) -> io::Result<Option<Duration>> {
    match left(deadline) {
        Duration::ZERO => Err(io::ErrorKind::TimedOut.into()),
        left => Ok(Some(left)),
    }
}

/// Reads up to a newline or the end, at most `most` bytes.
fn read_line(stream: &mut UnixStream, most: usize, deadline: Instant) -> io::Result<Vec<u8>> {
    let mut line = Vec::new();
    let mut part = [0; 1024];
    loop {
        stream.set_read_timeout(timeout(deadline)?)?;
        let count = match stream.read(&mut part) {
            Ok(count) => count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(timed_out(error)),
        };
        let end = part[..count].iter().position(|byte| *byte == b'\n');
        line.extend_from_slice(&part[..end.unwrap_or(count)]);
        if line.len() > most {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "the line is too long"));
        }
        if count == 0 || end.is_some() {
            return Ok(line);
        }
    }
}

fn write_line(stream: &mut UnixStream, line: &str, deadline: Instant) -> io::Result<()> {
    let line = format!("{line}\n");
    let mut rest = line.as_bytes();
    while !rest.is_empty() {
        stream.set_write_timeout(timeout(deadline)?)?;
        match stream.write(rest) {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(count) => rest = &rest[count..],
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(timed_out(error)),
        }
    }
    Ok(())
}

/// A socket's timeout is reported as `WouldBlock`, whose text would mislead.
fn timed_out(error: io::Error) -> io::Error {
    if error.kind() == io::ErrorKind::WouldBlock { io::ErrorKind::TimedOut.into() } else { error }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::{Sender, channel};

    use super::*;

    fn place(test: &str) -> PathBuf {
        std::env::temp_dir()
            .join(format!("vectorlay-control-{test}-{}", std::process::id()))
            .join("agent.sock")
    }

    fn agent(path: &Path) -> (Control, Receiver<(ControlId, Request)>) {
        let (events, received): (Sender<_>, _) = channel();
        let control = Control::start(
            path,
            || vec!["one".to_owned()],
            move |id, request| events.send((id, request)).unwrap(),
        )
        .unwrap();
        (control, received)
    }

    const SOON: Duration = Duration::from_secs(30);

    #[test]
    fn a_request_is_asked_and_answered() {
        let path = place("talk");
        let (control, received) = agent(&path);
        let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
        assert_eq!((mode(&path), mode(path.parent().unwrap())), (0o600, 0o700));
        let gpu = PciAddress::parse("0000:41:00.0").unwrap();
        for request in [
            Request::Status,
            Request::Drain,
            Request::Maintenance,
            Request::Resume,
            Request::GpuHold(gpu),
            Request::GpuRelease(gpu),
            Request::Recheck,
        ] {
            let asked = path.clone();
            let client = std::thread::spawn(move || super::request(&asked, &request));
            let (id, received_request) = received.recv_timeout(SOON).unwrap();
            assert_eq!(received_request, request);
            control.reply(ControlId(id.0 + 100), "{\"of\":\"another\"}".to_owned());
            // The first of two replies fills the channel until the thread has taken it.
            let reply = (id, "{\"ok\":true}".to_owned());
            control.replies.send(reply).unwrap();
            assert_eq!(client.join().unwrap().unwrap()["ok"], true);
        }
        assert_eq!(recent_log(&path).unwrap(), ["one"]);
        assert!(received.try_recv().is_err());
        drop(control);
        assert!(super::request(&path, &Request::Status).unwrap_err().contains("no agent is running"));
        fs::remove_dir_all(path.parent().unwrap()).unwrap();
    }

    #[test]
    fn bad_requests_are_refused_and_silent_ones_ended() {
        let path = place("bad");
        let (control, received) = agent(&path);
        let check = |sent: &[u8], expected: &str| {
            let mut stream = connect(&path).unwrap();
            stream.write_all(sent).unwrap();
            // Nothing comes back on a connection that is reset because not all of the request was read.
            let line = read_line(&mut stream, ANSWER_MAX, Instant::now() + SOON).unwrap_or_default();
            let line = String::from_utf8(line).unwrap();
            assert!(line.contains(expected), "{sent:?}: {line}");
        };
        check(b"\n", "not JSON");
        check(b"{\"request\":1}\n", "missing field `request`");
        check(b"{\"request\":\"fly\"}\n", "unknown request");
        check(b"{\"request\":\"gpu-hold\"}\n", "missing field `address`");
        check(b"{\"request\":\"gpu-hold\",\"address\":\"x\"}\n", "PCI address");
        check(&[b'x'; 2 * REQUEST_MAX], "");
        check(b"{\"request\":", "");
        assert!(received.try_recv().is_err());
        // One that the core does not answer, either.
        check(b"{\"request\":\"status\"}\n", "too busy");
        assert_eq!(received.recv_timeout(SOON).unwrap().1, Request::Status);
        drop(control);
        fs::remove_dir_all(path.parent().unwrap()).unwrap();
    }

    #[test]
    fn only_a_socket_without_a_listener_is_replaced() {
        let path = place("stale");
        let folder = path.parent().unwrap();
        // Through a link in the folder's place nothing is made.
        std::os::unix::fs::symlink("/", folder).unwrap();
        assert!(listen(&path).unwrap_err().contains("is a link"));
        fs::remove_file(folder).unwrap();
        fs::create_dir_all(folder).unwrap();
        drop(UnixListener::bind(&path).unwrap());
        let (control, _received) = agent(&path);
        assert!(listen(&path).unwrap_err().contains("another agent listens"));
        drop(control);
        fs::write(&path, "precious").unwrap();
        assert!(listen(&path).unwrap_err().contains("is not a socket"));
        assert_eq!(fs::read(&path).unwrap(), b"precious");
        fs::remove_dir_all(path.parent().unwrap()).unwrap();
    }
}
