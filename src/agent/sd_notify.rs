//! Tells systemd how the agent is: readiness, a status line, and the watchdog (sd_notify(3)).
//!
//! The protocol is one datagram of `KEY=value` lines to the socket that NOTIFY_SOCKET names. Without that variable nothing
//! is sent. Only the main loop feeds the watchdog, so that a main loop that hangs is noticed.

use std::ffi::OsString;
use std::os::linux::net::SocketAddrExt as _;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::time::{Duration, Instant};

use rustix::time::{ClockId, clock_gettime};
use serde_json::Value;

/// How often the status line is composed at most: a burst of events must not compose it for each.
const REPORT_EVERY: Duration = Duration::from_secs(1);
/// The longest status line, in characters.
const STATUS_CHARS: usize = 200;

#[derive(Debug)]
pub(super) struct SdNotify {
    socket: Option<(UnixDatagram, SocketAddr)>,
    /// How often the watchdog is fed: twice per its timeout, as sd_watchdog_enabled(3) recommends.
    feed_every: Option<Duration>,
    fed: Instant,
    status: String,
    reported: Option<Instant>,
}

impl SdNotify {
    /// `variable` reads the environment.
    pub(super) fn new(now: Instant, variable: impl Fn(&str) -> Option<OsString>) -> Self {
        let socket = variable("NOTIFY_SOCKET").and_then(|name| {
            let address = match name.as_bytes() {
                // An abstract address.
                [b'@', rest @ ..] => SocketAddr::from_abstract_name(rest),
                _ => SocketAddr::from_pathname(&name),
            };
            let socket = UnixDatagram::unbound().and_then(|socket| {
                // A supervisor that does not read must not stop the main loop.
                socket.set_nonblocking(true)?;
                Ok(socket)
            });
            match (socket, address) {
                (Ok(socket), Ok(address)) => Some((socket, address)),
                (Err(error), _) | (_, Err(error)) => {
                    log::warn!("cannot notify the supervisor at {}: {error}", name.display());
                    None
                }
            }
        });
        let number = |name: &str| variable(name)?.to_str()?.parse::<u64>().ok();
        let is_ours = number("WATCHDOG_PID").is_none_or(|pid| pid == u64::from(std::process::id()));
        let timeout = number("WATCHDOG_USEC").filter(|timeout| is_ours && *timeout > 0);
        let feed_every = socket.as_ref().and(timeout).map(|timeout| Duration::from_micros(timeout / 2));
        Self { socket, feed_every, fed: now, status: String::new(), reported: None }
    }

    pub(super) fn ready(&self) {
        self.send("READY=1");
    }

    /// Configuration is being reloaded; [`SdNotify::ready`] ends it.
    pub(super) fn reloading(&self) {
        let now = clock_gettime(ClockId::Monotonic);
        self.send(&format!("RELOADING=1\nMONOTONIC_USEC={}{:06}", now.tv_sec, now.tv_nsec / 1000));
    }

    pub(super) fn stopping(&self) {
        self.send("STOPPING=1");
    }

    /// When [`SdNotify::turn`] must be called at the latest.
    pub(super) fn deadline(&self) -> Option<Instant> {
        self.feed_every.map(|every| self.fed + every)
    }

    /// Once per turn of the main loop.
    pub(super) fn turn(&mut self, now: Instant) {
        if self.deadline().is_some_and(|at| at <= now) {
            self.fed = now;
            self.send("WATCHDOG=1");
        }
    }

    /// Sends the status line if it changed, now and then. `status` gives the core's status.
    pub(super) fn report(&mut self, now: Instant, status: impl FnOnce() -> Value) {
        if self.socket.is_none() || self.reported.is_some_and(|at| at + REPORT_EVERY > now) {
            return;
        }
        self.reported = Some(now);
        let line = status_line(&status());
        if self.status != line {
            self.send(&format!("STATUS={line}"));
            self.status = line;
        }
    }

    fn send(&self, message: &str) {
        if let Some((socket, address)) = &self.socket
            && let Err(error) = socket.send_to_addr(message.as_bytes(), address)
        {
            log::debug!("cannot notify the supervisor: {error}");
        }
    }
}

/// `degraded, connected, 2 replicas running; containerd: does not answer`.
fn status_line(status: &Value) -> String {
    let text = |name: &str| status.get(name).and_then(Value::as_str).unwrap_or_default();
    let replicas = status.get("containers").and_then(Value::as_array).map_or(&[][..], Vec::as_slice);
    let running = replicas.iter().filter(|replica| replica["status"] == "running").count();
    let noun = if running == 1 { "replica" } else { "replicas" };
    let mut line = format!("{}, {}, {running} {noun} running", text("state"), text("link"));
    for why in [text("link_trouble"), text("reason")].into_iter().filter(|why| !why.is_empty()) {
        line += "; ";
        line += why;
    }
    // A line break would begin another variable.
    line.chars().map(|c| if c.is_control() { ' ' } else { c }).take(STATUS_CHARS).collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_supervisor_hears_of_everything_it_asked_for() {
        let path = std::env::temp_dir().join(format!("vectorlay-notify-{}", std::process::id()));
        let supervisor = UnixDatagram::bind(&path).unwrap();
        supervisor.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
        let heard = || {
            let mut bytes = [0; 512];
            let length = supervisor.recv(&mut bytes).unwrap();
            String::from_utf8(bytes[..length].to_vec()).unwrap()
        };
        let environment = |name: &str| match name {
            "NOTIFY_SOCKET" => Some(path.clone().into_os_string()),
            "WATCHDOG_USEC" => Some("20000000".into()),
            _ => None,
        };
        let now = Instant::now();
        let mut ours = SdNotify::new(now, environment);
        assert_eq!(ours.deadline(), Some(now + Duration::from_secs(10)));
        ours.ready();
        assert_eq!(heard(), "READY=1");
        ours.turn(now + Duration::from_secs(9));
        ours.turn(now + Duration::from_secs(10));
        assert_eq!(heard(), "WATCHDOG=1");
        assert_eq!(ours.deadline(), Some(now + Duration::from_secs(20)));
        let status = json!({"state": "degraded", "link": "connected", "link_trouble": null, "reason": "a:\nREADY=1",
            "containers": [{"status": "running"}, {"status": "exited"}]});
        ours.report(now, || status.clone());
        ours.report(now, || unreachable!("too soon"));
        ours.report(now + REPORT_EVERY, || status.clone());
        assert_eq!(heard(), "STATUS=degraded, connected, 1 replica running; a: READY=1");
        ours.reloading();
        assert!(heard().starts_with("RELOADING=1\nMONOTONIC_USEC="));
        ours.stopping();
        assert_eq!(heard(), "STOPPING=1");
        std::fs::remove_file(&path).unwrap();
    }

    #[test]
    fn a_watchdog_for_another_process_is_not_fed() {
        let environment = |name: &str| match name {
            "NOTIFY_SOCKET" => Some("@vectorlay-nobody".into()),
            "WATCHDOG_USEC" => Some("20000000".into()),
            "WATCHDOG_PID" => Some("1".into()),
            _ => None,
        };
        let now = Instant::now();
        let ours = SdNotify::new(now, environment);
        assert!(ours.deadline().is_none());
        // Nobody listens: no error.
        ours.ready();
        SdNotify::new(now, |_| None).report(now, || unreachable!("nobody asked"));
    }
}
