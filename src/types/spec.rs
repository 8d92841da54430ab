//! What a deploy asks for, checked.

use std::fmt;
use std::str::FromStr;

use super::{EnvName, ImageRef, Secret};

/// What a container is made from: everything that shapes it, with defaults filled in.
#[derive(Debug, Clone, PartialEq)]
pub struct Spec {
    /// The image.
    pub image: ImageRef,
    /// How many GPUs it gets.
    pub gpu_count: u32,
    /// Its environment, by name.
    pub env: Vec<(EnvName, Secret)>,
    /// What it runs instead of the image's command.
    pub command: Vec<String>,
    /// CPU limit in thousandths of a CPU; `None`: no limit.
    pub millicpus: Option<u64>,
    /// Memory limit in MiB.
    pub memory_mib: Option<u64>,
    /// Size of /dev/shm in MiB.
    pub shm_mib: Option<u64>,
    /// Most processes.
    pub pids_limit: Option<u32>,
    /// Published ports.
    pub ports: Vec<Port>,
}

impl Spec {
    /// The image alone: its own command, no GPUs, no limits.
    pub fn new(image: ImageRef) -> Self {
        Self {
            image,
            gpu_count: 0,
            env: Vec::new(),
            command: Vec::new(),
            millicpus: None,
            memory_mib: None,
            shm_mib: None,
            pids_limit: None,
            ports: Vec::new(),
        }
    }

    /// The size of its variables and arguments.
    pub fn bytes(&self) -> usize {
        let variables = self.env.iter().map(|(name, value)| name.as_str().len() + value.expose().len() + 2);
        variables.chain(self.command.iter().map(|argument| argument.len() + 1)).sum()
    }
}

/// A published port.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Port {
    /// On the host.
    pub host: u16,
    /// In the container.
    pub container: u16,
    /// `udp` instead of `tcp`.
    pub udp: bool,
}

impl Port {
    /// What it takes of the host.
    pub fn on_host(self) -> HostPort {
        HostPort { number: self.host, udp: self.udp }
    }
}

/// A port of the host, as `8080/tcp`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct HostPort {
    /// Its number.
    pub number: u16,
    /// `udp` instead of `tcp`.
    pub udp: bool,
}

impl fmt::Display for HostPort {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.number, if self.udp { "udp" } else { "tcp" })
    }
}

impl FromStr for HostPort {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        let (number, protocol) = text.split_once('/').ok_or(())?;
        let udp = match protocol {
            "tcp" => false,
            "udp" => true,
            _ => return Err(()),
        };
        Ok(Self { number: number.parse().map_err(|_| ())?, udp })
    }
}

/// Credentials for a registry.
#[derive(Debug, Clone, PartialEq)]
pub struct RegistryAuth {
    /// The registry's host (and port), as it stands in the image reference.
    pub server: String,
    /// The user's name.
    pub username: String,
    /// The password or token.
    pub password: Secret,
}
