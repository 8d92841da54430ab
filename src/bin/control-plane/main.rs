//! The reference control plane: what the agent's tests and demo talk to, and what someone who writes a control
//! plane of their own reads. It is the protocol's other side, and it shares no type with the agent: JSON is read and
//! written by hand here, so that a misspelt field cannot pass at both ends.
//!
//! ```text
//!        agents                               operator, tests
//!          │ ws(s), POST …/register              │ HTTP on loopback, lines on standard input
//!   ┌──────▼──────┐                       ┌──────▼──────┐
//!   │ agents.rs   │                       │ api.rs      │
//!   │ session.rs  │                       │ console.rs  │
//!   └──────┬──────┘                       └──────┬──────┘
//!          │       a thread for each connection  │
//!          └──────────────►  hub.rs  ◄───────────┘   the one lock; saves, sends, prints what a change asks for
//!                              │
//!                          fleet.rs                  pure: node.rs, jobs.rs, placement.rs, events.rs, contract.rs
//! ```
//!
//! Reading order: [`fleet`] says what a control plane decides, [`session`] how a connection is served, [`agents`]
//! how a node gets in. It is no production server: one process, one file, one lock.

// Clocks and threads are kept to few rooms in the agent. Here only `fleet` and what is below it has none.

mod agents;
mod api;
mod console;
mod contract;
mod events;
mod faults;
mod fleet;
mod http;
mod hub;
mod jobs;
mod mailbox;
mod node;
mod options;
mod placement;
mod session;
mod state;
mod stream;

use std::fmt;
use std::io::{self, Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::unix::net::UnixStream;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use signal_hook::consts::{SIGINT, SIGTERM};

use hub::Hub;
use options::Options;

/// How often nodes are looked at for missing heartbeats.
const TICK: Duration = Duration::from_millis(200);
/// How many connections each of the two ports serves at once.
const CONNECTIONS_MAX: usize = 1024;

fn main() -> ExitCode {
    env_logger::Builder::new().filter_level(log::LevelFilter::Info).parse_default_env().init();
    let options = match options::parse(std::env::args_os()) {
        Ok(Some(options)) => options,
        Ok(None) => {
            say(options::HELP);
            return ExitCode::SUCCESS;
        }
        Err(error) => {
            log::error!("{error}");
            return ExitCode::from(2);
        }
    };
    match serve(options) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            log::error!("{error}");
            ExitCode::FAILURE
        }
    }
}

/// Runs until a signal or `quit`.
fn serve(options: Options) -> Result<(), Failure> {
    let (mut stop, stopper) = stop_pipe().map_err(Failure::Signals)?;
    let agents = listen(options.listen)?;
    let api = listen(options.api)?;
    let tls = match &options.tls {
        Some(files) => Some(stream::tls_config(files).map_err(Failure::Tls)?),
        None => None,
    };
    let scheme = if tls.is_some() { "wss" } else { "ws" };
    say(&format!("listening on {scheme}://{}/agent", address(&agents)?));
    say(&format!("api on http://{}", address(&api)?));

    let hub = Arc::new(Hub::new(options).map_err(Failure::State)?);
    let for_agents = Arc::clone(&hub);
    acceptor("agents", agents, move |tcp| agents::serve(&for_agents, tcp, tls.as_ref()))?;
    let for_api = Arc::clone(&hub);
    acceptor("api", api, move |tcp| api::serve(&for_api, tcp))?;
    let for_console = Arc::clone(&hub);
    start("console", move || console::run(&for_console, stopper))?;

    // A byte in the pipe means stop; until then each timeout of the read is a tick.
    stop.set_read_timeout(Some(TICK)).map_err(Failure::Signals)?;
    loop {
        match stop.read(&mut [0]) {
            Ok(_) => break,
            Err(e) if matches!(e.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) => {}
            Err(e) => return Err(Failure::Signals(e)),
        }
        hub.with(fleet::Fleet::tick);
    }
    hub.shut_down();
    Ok(())
}

/// Prints one line to standard output. A reader that went away is no reason to stop serving.
pub fn say(line: &str) {
    let mut out = io::stdout().lock();
    let _ = out.write_all(line.as_bytes()).and_then(|()| out.write_all(b"\n")).and_then(|()| out.flush());
}

/// Starts a named thread.
pub fn start(name: &str, body: impl FnOnce() + Send + 'static) -> Result<(), Failure> {
    match std::thread::Builder::new().name(name.to_owned()).spawn(body) {
        Ok(_) => Ok(()),
        Err(error) => Err(Failure::Thread(error)),
    }
}

/// The pipe that ends the program: both signals write to it, and whoever holds the second end may.
fn stop_pipe() -> io::Result<(UnixStream, UnixStream)> {
    let (reader, writer) = UnixStream::pair()?;
    for signal in [SIGTERM, SIGINT] {
        signal_hook::low_level::pipe::register(signal, writer.try_clone()?)?;
    }
    Ok((reader, writer))
}

fn listen(address: SocketAddr) -> Result<TcpListener, Failure> {
    TcpListener::bind(address).map_err(|error| Failure::Listen(address, error))
}

fn address(listener: &TcpListener) -> Result<SocketAddr, Failure> {
    listener.local_addr().map_err(Failure::Thread)
}

/// Accepts for ever, with a thread for each connection, up to [`CONNECTIONS_MAX`].
fn acceptor(
    name: &'static str,
    listener: TcpListener,
    serve: impl Fn(TcpStream) + Send + Sync + 'static,
) -> Result<(), Failure> {
    let serve = Arc::new(serve);
    start(name, move || {
        for tcp in listener.incoming() {
            // Each thread holds one of these for as long as it runs.
            let serve = Arc::clone(&serve);
            if Arc::strong_count(&serve) > CONNECTIONS_MAX + 2 {
                log::warn!("{CONNECTIONS_MAX} connections are open: one more was dropped");
                continue;
            }
            let served = match tcp {
                Ok(tcp) => start(name, move || serve(tcp)),
                Err(error) => Err(Failure::Thread(error)),
            };
            if let Err(error) = served {
                log::warn!("a connection was not accepted: {error}");
                // Out of descriptors or threads: give those in use the time to end.
                std::thread::sleep(TICK);
            }
        }
    })
}

/// Why the program cannot run.
#[derive(Debug)]
pub enum Failure {
    /// The address cannot be listened on.
    Listen(SocketAddr, io::Error),
    /// The certificate or its key cannot be used.
    Tls(stream::TlsError),
    /// The state file cannot be used.
    State(state::StateError),
    /// Signals cannot be handled.
    Signals(io::Error),
    /// The system gives no thread or descriptor.
    Thread(io::Error),
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Listen(address, e) => write!(f, "cannot listen on {address}: {e}; choose another address"),
            Self::Tls(e) => e.fmt(f),
            Self::State(e) => e.fmt(f),
            Self::Signals(e) => write!(f, "cannot handle signals: {e}; check the limit of open files"),
            Self::Thread(e) => write!(f, "cannot serve: {e}; check the limits of threads and open files"),
        }
    }
}
