#![doc = include_str!("protocol.md")]

// The shapes of the wire stay here: the core works on the checked values.
//
// A message may be hostile. Reading one takes time in proportion to its length, and little memory beside it: fields
// are found in the text as it is, unknown ones are skipped where they stand, and lists stop at their limits. (A tree
// of `serde_json::Value` can take thirty times the bytes of its text.)

mod fields;

use std::borrow::Cow;
use std::time::Duration;

use serde::Deserialize;
use serde_json::value::RawValue;
use serde_json::{Value, json};

use self::fields::{Fields, parse};
use crate::types::{
    EnvName, HostPort, ImageRef, NodeId, Port, RegistryAuth, ReplicaId, RequestId, Secret, Spec,
};

/// The protocol's version, sent in `system_info`.
pub const PROTOCOL_VERSION: u32 = 1;
/// The longest message that is read, in bytes; a longer one closes the connection with code 1009.
pub const MESSAGE_MAX: usize = 4 * 1024 * 1024;
/// The server marks a node offline after this long without a heartbeat.
pub const OFFLINE_AFTER: Duration = Duration::from_secs(60);
/// The most GPUs that one deploy can ask for.
pub const GPU_COUNT_MAX: u64 = 64;
/// The most variables, arguments and ports of one deploy.
pub const LIST_MAX: usize = 4096;
/// Most published ports of a deploy: each is three rules of the firewall, which a program adds one by one.
pub const PORTS_MAX: usize = 64;
/// The most bytes of variables and arguments of one deploy: about what a program can be started with.
pub const SPEC_MAX: usize = 2_000_000;
/// The longest token, in bytes: it has to fit into a header.
pub const TOKEN_MAX: usize = 4096;
/// The most lines in an answer to `logs`.
pub const LOG_LINES_MAX: u64 = 1000;
/// The longest timeout that a command can ask for: a day.
pub const TIMEOUT_MAX: Duration = Duration::from_secs(86_400);

/// A message from the server, by its type.
#[derive(Debug, Clone, PartialEq)]
pub enum Inbound {
    Deploy(Box<Deploy>),
    Stop(Stop),
    /// `registration_success`.
    Registered {
        node: NodeId,
        /// The node's own token, where the server issues one.
        token: Option<Secret>,
    },
    Drain,
    Maintenance,
    Resume,
    Logs {
        replica: ReplicaId,
        request: Option<RequestId>,
        /// At most [`LOG_LINES_MAX`] lines.
        tail: u32,
    },
}

impl Inbound {
    pub fn replica(&self) -> Option<&ReplicaId> {
        match self {
            Self::Deploy(deploy) => Some(&deploy.replica),
            Self::Stop(stop) => Some(&stop.replica),
            Self::Logs { replica, .. } => Some(replica),
            Self::Registered { .. } | Self::Drain | Self::Maintenance | Self::Resume => None,
        }
    }

    /// The size of its variables and arguments, in bytes.
    pub fn bytes(&self) -> usize {
        match self {
            Self::Deploy(deploy) => deploy.spec.bytes(),
            Self::Stop(_)
            | Self::Logs { .. }
            | Self::Registered { .. }
            | Self::Drain
            | Self::Maintenance
            | Self::Resume => 0,
        }
    }
}

/// When an image is pulled.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pull {
    /// When the node does not have it.
    Missing,
    /// Before every start.
    Always,
    Never,
}

/// `deploy`, checked.
#[derive(Debug, Clone, PartialEq)]
pub struct Deploy {
    pub replica: ReplicaId,
    /// Echoed in the result.
    pub request: Option<RequestId>,
    pub spec: Spec,
    /// Credentials for the image's registry.
    pub auth: Option<RegistryAuth>,
    pub pull: Pull,
    /// From SIGTERM to SIGKILL, for a stop that names no time of its own.
    pub stop_timeout: Option<Duration>,
    /// For pull and start together.
    pub deploy_timeout: Option<Duration>,
}

/// `stop`, checked.
#[derive(Debug, Clone, PartialEq)]
pub struct Stop {
    pub replica: ReplicaId,
    /// Echoed in the result.
    pub request: Option<RequestId>,
    /// From SIGTERM to SIGKILL.
    pub timeout: Option<Duration>,
}

/// The type of a malformed command that is owed an answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Command {
    Deploy,
    Stop,
}

/// Why a message cannot be acted on.
#[derive(Debug, Clone, PartialEq)]
pub enum Unusable {
    /// It is not JSON, or not an object with a `type`.
    NotAMessage,
    /// The agent does not know its type.
    UnknownType,
    /// Its payload has the wrong shape.
    Malformed {
        /// The message's type.
        kind: &'static str,
        /// The command, replica and request that are owed an answer, where they can be read.
        owed: Option<(Command, ReplicaId, Option<RequestId>)>,
        /// Which field is wrong and how, without its value.
        why: String,
    },
}

#[derive(Deserialize)]
struct Envelope<'a> {
    #[serde(rename = "type", borrow)]
    kind: Cow<'a, str>,
    #[serde(borrow)]
    payload: Option<&'a RawValue>,
}

/// Reads a message.
///
/// # Errors
/// [`Unusable`] when it is not one that can be acted on.
pub fn read(text: &str) -> Result<Inbound, Unusable> {
    let envelope: Envelope<'_> = parse(text).ok_or(Unusable::NotAMessage)?;
    let kind = match envelope.kind.as_ref() {
        "deploy" => "deploy",
        "stop" => "stop",
        "registration_success" => "registration_success",
        "drain" => return Ok(Inbound::Drain),
        "maintenance" => return Ok(Inbound::Maintenance),
        "resume" => return Ok(Inbound::Resume),
        "logs" => "logs",
        _ => return Err(Unusable::UnknownType),
    };
    let Some(fields) = envelope.payload.and_then(|raw| parse(raw.get())) else {
        return Err(Unusable::Malformed { kind, owed: None, why: "the payload is not an object".into() });
    };
    let payload = Payload(fields);
    let read = match kind {
        "deploy" => payload.deploy().map(|deploy| Inbound::Deploy(Box::new(deploy))),
        "stop" => payload.stop().map(Inbound::Stop),
        "logs" => payload.logs(),
        _ => payload.registered(),
    };
    read.map_err(|why| Unusable::Malformed { kind, owed: payload.owed(kind), why })
}

/// A payload under reading. Errors are sentences for the result's `error`, without the value.
struct Payload<'a>(Fields<'a>);

impl Payload<'_> {
    fn owed(&self, kind: &str) -> Option<(Command, ReplicaId, Option<RequestId>)> {
        let command = match kind {
            "deploy" => Command::Deploy,
            "stop" => Command::Stop,
            _ => return None,
        };
        Some((command, self.replica().ok()?, self.request().ok().flatten()))
    }

    fn text(&self, name: &str) -> Result<Option<String>, String> {
        let Some(raw) = self.0.get(name) else { return Ok(None) };
        parse(raw).ok_or_else(|| format!("{name} is not a string")).map(Some)
    }

    fn whole(&self, name: &str, least: u64, most: u64) -> Result<Option<u64>, String> {
        let Some(raw) = self.0.get(name) else { return Ok(None) };
        // A server that computes in floating point may write 2.0.
        let whole = parse::<u64>(raw).or_else(|| {
            parse::<f64>(raw).filter(|f| f.fract() == 0.0 && *f >= 0.0 && *f < 9e15).map(|f| f as u64)
        });
        match whole {
            Some(number) if (least..=most).contains(&number) => Ok(Some(number)),
            _ => Err(format!("{name} is not a whole number from {least} to {most}")),
        }
    }

    fn seconds(&self, name: &str) -> Result<Option<Duration>, String> {
        let Some(raw) = self.0.get(name) else { return Ok(None) };
        match parse(raw).map(Duration::try_from_secs_f64) {
            Some(Ok(time)) if time <= TIMEOUT_MAX => Ok(Some(time)),
            _ => Err(format!("{name} is not a number of seconds from 0 to {}", TIMEOUT_MAX.as_secs())),
        }
    }

    fn replica(&self) -> Result<ReplicaId, String> {
        let text = self.text("replica_id")?.ok_or("replica_id is missing")?;
        ReplicaId::new(&text).map_err(|e| e.to_string())
    }

    fn request(&self) -> Result<Option<RequestId>, String> {
        self.text("request_id")?.map(|text| RequestId::new(&text).map_err(|e| e.to_string())).transpose()
    }

    fn registered(&self) -> Result<Inbound, String> {
        let node = self.text("node_id")?.ok_or("node_id is missing")?;
        let node = NodeId::new(&node).map_err(|e| e.to_string())?;
        Ok(Inbound::Registered { node, token: self.token()? })
    }

    fn token(&self) -> Result<Option<Secret>, String> {
        let Some(token) = self.text("node_token")?.map(Secret::new) else { return Ok(None) };
        if !is_token(token.expose()) {
            return Err(format!("node_token is not printable ASCII of at most {TOKEN_MAX} bytes"));
        }
        Ok(Some(token))
    }

    fn stop(&self) -> Result<Stop, String> {
        Ok(Stop { replica: self.replica()?, request: self.request()?, timeout: self.seconds("timeout_s")? })
    }

    fn logs(&self) -> Result<Inbound, String> {
        let tail = self.whole("tail", 0, u64::from(u32::MAX))?.unwrap_or(100).min(LOG_LINES_MAX);
        Ok(Inbound::Logs {
            replica: self.replica()?,
            request: self.request()?,
            tail: u32::try_from(tail).unwrap_or(u32::MAX),
        })
    }

    fn deploy(&self) -> Result<Deploy, String> {
        let image = self.text("image")?.ok_or("image is missing")?;
        let pull = match self.text("pull")?.as_deref() {
            None | Some("missing") => Pull::Missing,
            Some("always") => Pull::Always,
            Some("never") => Pull::Never,
            Some(_) => return Err("pull is none of missing, always and never".into()),
        };
        let small = |value: Option<u64>| value.map(|v| u32::try_from(v).unwrap_or(u32::MAX));
        let deploy = Deploy {
            replica: self.replica()?,
            request: self.request()?,
            spec: Spec {
                image: ImageRef::new(&image).map_err(|e| e.to_string())?,
                gpu_count: small(self.whole("gpu_count", 0, GPU_COUNT_MAX)?).unwrap_or(0),
                env: self.env()?,
                command: self.command()?,
                millicpus: self.millicpus()?,
                memory_mib: self.whole("memory_mb", 1, 1 << 30)?,
                shm_mib: self.whole("shm_size_mb", 1, 1 << 30)?,
                pids_limit: small(self.whole("pids_limit", 1, 1 << 22)?),
                ports: self.ports()?,
            },
            auth: self.auth()?,
            pull,
            stop_timeout: self.seconds("stop_timeout_s")?,
            deploy_timeout: self.seconds("deploy_timeout_s")?,
        };
        if deploy.spec.bytes() > SPEC_MAX {
            return Err(format!("env_vars and command have more than {SPEC_MAX} bytes together"));
        }
        Ok(deploy)
    }

    fn millicpus(&self) -> Result<Option<u64>, String> {
        let Some(raw) = self.0.get("cpus") else { return Ok(None) };
        match parse::<f64>(raw) {
            Some(cpus) if (0.001..=4096.0).contains(&cpus) => Ok(Some((cpus * 1000.0).round() as u64)),
            _ => Err("cpus is not a number from 0.001 to 4096".into()),
        }
    }

    fn list(&self, name: &str) -> Result<Vec<&RawValue>, String> {
        let Some(raw) = self.0.get(name) else { return Ok(Vec::new()) };
        let list = parse::<fields::List<'_, LIST_MAX>>(raw);
        Ok(list.ok_or_else(|| format!("{name} is not an array of at most {LIST_MAX}"))?.0)
    }

    fn command(&self) -> Result<Vec<String>, String> {
        let read = |raw: &RawValue| match parse::<String>(raw.get()) {
            Some(text) if !text.contains('\0') => Ok(text),
            _ => Err("command is not an array of strings without NUL".to_owned()),
        };
        self.list("command")?.into_iter().map(read).collect()
    }

    fn ports(&self) -> Result<Vec<Port>, String> {
        let read = |raw: &RawValue| {
            let port: Fields<'_> = parse(raw.get())?;
            let number = |name: &str| parse::<u16>(port.get(name)?).filter(|number| *number > 0);
            let udp = match port.get("protocol").map(parse::<String>) {
                None => false,
                Some(protocol) => match protocol?.as_str() {
                    "tcp" => false,
                    "udp" => true,
                    _ => return None,
                },
            };
            Some(Port { host: number("host")?, container: number("container")?, udp })
        };
        let wrong =
            "ports is not an array of {host, container, protocol} with ports from 1 to 65535 and tcp or udp";
        let ports = self.list("ports")?;
        if ports.len() > PORTS_MAX {
            return Err(format!("ports has more than {PORTS_MAX} entries"));
        }
        let ports: Vec<Port> = ports
            .into_iter()
            .map(|raw| read(raw).ok_or_else(|| wrong.to_owned()))
            .collect::<Result<_, _>>()?;
        let mut taken: Vec<HostPort> = ports.iter().map(|port| port.on_host()).collect();
        taken.sort_unstable();
        match taken.windows(2).find(|pair| pair[0] == pair[1]) {
            Some(pair) => Err(format!("ports has port {} of the host twice", pair[0])),
            None => Ok(ports),
        }
    }

    fn auth(&self) -> Result<Option<RegistryAuth>, String> {
        let Some(raw) = self.0.get("registry_auth") else { return Ok(None) };
        let auth: Fields<'_> = parse(raw).unwrap_or_default();
        let text = |name: &str| {
            auth.get(name)
                .and_then(parse::<String>)
                // A password may be a key file of several lines.
                .filter(|text| name == "password" || !text.chars().any(char::is_control))
                .ok_or_else(|| format!("registry_auth has no usable {name}"))
        };
        let server = text("server")?;
        if server.is_empty() || !server.bytes().all(|b| b.is_ascii_graphic()) {
            return Err("registry_auth has no usable server".into());
        }
        let username = text("username")?;
        Ok(Some(RegistryAuth { server, username, password: Secret::new(text("password")?) }))
    }

    /// `env_vars`, by name. Numbers keep the text that stands in the message: 1e3 stays 1e3.
    fn env(&self) -> Result<Vec<(EnvName, Secret)>, String> {
        let wrong = || "env_vars is not an object of strings, numbers, booleans and nulls".to_owned();
        let Some(raw) = self.0.get("env_vars") else { return Ok(Vec::new()) };
        let read: fields::Entries<'_, LIST_MAX> = parse(raw).ok_or_else(wrong)?;
        if read.too_many {
            return Err(format!("env_vars has more than {LIST_MAX} variables"));
        }
        let one = |(name, value): (String, &RawValue)| {
            let value = match value.get().as_bytes()[0] {
                b'"' => parse::<String>(value.get()).ok_or_else(wrong)?,
                b'n' => String::new(),
                b'{' | b'[' => return Err(wrong()),
                _ => value.get().to_owned(),
            };
            let value = Secret::new(value);
            if value.expose().contains('\0') {
                return Err("a variable's value has a NUL character".to_owned());
            }
            Ok((EnvName::new(&name).map_err(|e| e.to_string())?, value))
        };
        read.entries.into_iter().map(one).collect()
    }
}

/// Whether `text` can be a node's token, which has to stand in an HTTP header: printable ASCII without spaces.
pub fn is_token(text: &str) -> bool {
    !text.is_empty() && text.len() <= TOKEN_MAX && text.bytes().all(|b| b.is_ascii_graphic())
}

/// The text of an outbound message.
pub fn write(kind: &str, payload: Value) -> String {
    json!({ "type": kind, "payload": payload }).to_string()
}

#[cfg(test)]
#[path = "../tests/support/protocol_page.rs"]
mod page;
#[cfg(test)]
mod page_tests;

#[cfg(test)]
mod tests {
    use super::*;

    fn deploy(payload: &str) -> Result<Deploy, String> {
        match read(&format!(r#"{{"type":"deploy","payload":{payload}}}"#)) {
            Ok(Inbound::Deploy(deploy)) => Ok(*deploy),
            Ok(other) => panic!("read as {other:?}"),
            Err(Unusable::Malformed { why, .. }) => Err(why),
            Err(other) => panic!("{other:?}"),
        }
    }

    fn env(vars: &str) -> Vec<(String, String)> {
        let read = deploy(&format!(r#"{{"replica_id":"r","image":"i","env_vars":{vars}}}"#)).unwrap();
        read.spec.env.iter().map(|(n, v)| (n.to_string(), v.expose().to_owned())).collect()
    }

    #[test]
    fn part_a_alone_is_enough() {
        let read = deploy(r#"{"replica_id":"abc-123","image":"bb:1","unknown":{"x":[1]}}"#).unwrap();
        assert_eq!(read.replica.as_str(), "abc-123");
        assert_eq!((read.spec.gpu_count, read.spec.env.len(), read.pull), (0, 0, Pull::Missing));
        assert_eq!(read.request, None);
    }

    #[test]
    fn values_of_variables_keep_their_json_text() {
        let check = |json: &str, value: &str| {
            assert_eq!(env(&format!(r#"{{"A":{json}}}"#)), [("A".into(), value.into())], "{json}");
        };
        check(r#""a\nb \"q\" ü\u00fc""#, "a\nb \"q\" üü");
        check("12", "12");
        check("1e3", "1e3");
        check("1.0", "1.0");
        check("123456789012345678901234567890", "123456789012345678901234567890");
        check("-0", "-0");
        check("true", "true");
        check("null", "");
        check(r#""""#, "");
        assert_eq!(env("null"), []);
    }

    #[test]
    fn what_is_refused_names_the_field_and_never_the_value() {
        let check = |payload: &str, says: &str| {
            let why = deploy(payload).expect_err(payload);
            assert!(why.contains(says), "{payload}: {why}");
            assert!(!why.contains("s3cret"), "{why}");
        };
        check("{}", "image is missing");
        check(r#"{"image":"i"}"#, "replica_id is missing");
        check(r#"{"replica_id":7,"image":"i"}"#, "replica_id is not a string");
        check(r#"{"replica_id":"--rm","image":"i"}"#, "replica_id does not begin");
        check(r#"{"replica_id":"r","image":"--s3cret"}"#, "image is not [registry/]path");
        check(r#"{"replica_id":"r","image":"i","gpu_count":-1}"#, "gpu_count is not a whole number");
        check(r#"{"replica_id":"r","image":"i","gpu_count":1.5}"#, "gpu_count");
        check(r#"{"replica_id":"r","image":"i","gpu_count":1e99}"#, "gpu_count");
        check(r#"{"replica_id":"r","image":"i","env_vars":[]}"#, "env_vars");
        check(r#"{"replica_id":"r","image":"i","env_vars":{"A":["s3cret"]}}"#, "env_vars");
        check(r#"{"replica_id":"r","image":"i","env_vars":{"A":"s3cret\u0000"}}"#, "NUL");
        check(r#"{"replica_id":"r","image":"i","env_vars":{"A=B":"s3cret"}}"#, "variable's name");
        check(r#"{"replica_id":"r","image":"i","cpus":0}"#, "cpus");
        check(r#"{"replica_id":"r","image":"i","command":"sh"}"#, "command");
        check(r#"{"replica_id":"r","image":"i","ports":[{"host":0,"container":80}]}"#, "ports");
        check(
            r#"{"replica_id":"r","image":"i","ports":[{"host":1,"container":80,"protocol":"x"}]}"#,
            "ports",
        );
        check(
            r#"{"replica_id":"r","image":"i","ports":[{"host":1,"container":80},{"host":1,"container":81}]}"#,
            "ports has port 1/tcp of the host twice",
        );
        check(r#"{"replica_id":"r","image":"i","registry_auth":{"server":"s","username":"u"}}"#, "password");
        check(r#"{"replica_id":"r","image":"i","stop_timeout_s":-1}"#, "stop_timeout_s");
        check(r#"{"replica_id":"r","image":"i","pull":"maybe"}"#, "pull");
    }

    #[test]
    fn a_malformed_command_with_a_replica_is_owed_an_answer() {
        let text = r#"{"type":"deploy","payload":{"replica_id":"r","request_id":"q","image":7}}"#;
        let Err(Unusable::Malformed { owed, .. }) = read(text) else { panic!("it was read") };
        let request = RequestId::new("q").unwrap();
        assert_eq!(owed, Some((Command::Deploy, ReplicaId::new("r").unwrap(), Some(request))));
        for silent in [r#"{"type":"deploy","payload":{"image":"i"}}"#, r#"{"type":"deploy","payload":[]}"#] {
            let Err(Unusable::Malformed { owed, .. }) = read(silent) else { panic!("it was read") };
            assert_eq!(owed, None);
        }
    }

    #[test]
    fn what_is_no_message_is_told_apart() {
        for text in ["", "{", "[]", "7", r#"{"payload":{}}"#, r#"{"type":7}"#, &"[".repeat(100_000)] {
            assert_eq!(read(text), Err(Unusable::NotAMessage), "{:.20}", text);
        }
        assert_eq!(read(r#"{"type":"reboot","payload":{}}"#), Err(Unusable::UnknownType));
        assert_eq!(read(r#"{"type":"drain"}"#), Ok(Inbound::Drain));
    }

    #[test]
    fn hostile_messages_are_refused_at_their_limits() {
        let refused = |payload: &str, says: &str| {
            let why = deploy(payload).expect_err("it was read");
            assert!(why.contains(says), "{why}");
        };
        let list = |entry: &str, count: usize| [entry].repeat(count).join(",");
        let vars =
            |count: usize| (0..count).map(|i| format!(r#""V{i}":"#) + "1").collect::<Vec<_>>().join(",");
        let with = |field: &str| format!(r#"{{"replica_id":"r","image":"i",{field}}}"#);
        refused(
            &with(&format!(r#""command":[{}]"#, list(r#""x""#, LIST_MAX + 1))),
            "command is not an array",
        );
        refused(&with(&format!(r#""ports":[{}]"#, list("[]", 200_000))), "ports is not an array");
        let ports = |count: usize| {
            let ports: Vec<String> =
                (1..=count).map(|port| format!(r#"{{"host":{port},"container":80}}"#)).collect();
            with(&format!(r#""ports":[{}]"#, ports.join(",")))
        };
        refused(&ports(PORTS_MAX + 1), "more than 64 entries");
        assert!(deploy(&ports(PORTS_MAX)).is_ok());
        refused(&with(&format!(r#""env_vars":{{{}}}"#, vars(LIST_MAX + 1))), "more than 4096 variables");
        refused(
            &with(&format!(r#""env_vars":{}"#, "[".repeat(100_000) + &"]".repeat(100_000))),
            "env_vars is not",
        );
        refused(&with(&format!(r#""registry_auth":[{}]"#, list("1", 200_000))), "registry_auth");
        assert_eq!(
            deploy(&with(&format!(r#""env_vars":{{{}}}"#, vars(LIST_MAX)))).unwrap().spec.env.len(),
            LIST_MAX
        );
        // What the agent does not know may be as long as a message.
        let unknown = with(&format!(r#""later":[{}],{}"#, list("{}", 200_000), vars(100_000)));
        assert_eq!(deploy(&unknown).unwrap().replica.as_str(), "r");
    }

    #[test]
    fn where_a_name_stands_twice_the_last_one_counts() {
        let read =
            deploy(r#"{"image":"a","replica_id":"r","image":"b","env_vars":{"A":"1","A":"2"}}"#).unwrap();
        assert_eq!(read.spec.image.as_str(), "b");
        assert_eq!(env(r#"{"A":"1","\u0041":2}"#), [("A".into(), "2".into())]);
        assert_eq!(read.spec.env.len(), 1);
    }
}
