//! What an operator asks of the running agent.

use std::fmt;

use crate::types::PciAddress;

/// Names one request, for its reply. Never used again within a process.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct ControlId(pub u64);

impl fmt::Display for ControlId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "request {}", self.0)
    }
}

/// The requests.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Request {
    Status,
    /// Finish what was accepted, take no new deploys, then go to maintenance.
    Drain,
    /// Take no new deploys.
    Maintenance,
    /// Take deploys again.
    Resume,
    /// Stop allocating this GPU.
    GpuHold(PciAddress),
    /// Resume allocating this GPU.
    GpuRelease(PciAddress),
    /// Check the dependencies now and send `system_info` again.
    Recheck,
}

impl Request {
    /// Its name on the socket.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Status => "status",
            Self::Drain => "drain",
            Self::Maintenance => "maintenance",
            Self::Resume => "resume",
            Self::GpuHold(_) => "gpu-hold",
            Self::GpuRelease(_) => "gpu-release",
            Self::Recheck => "recheck",
        }
    }

    /// The GPU that it is about.
    pub const fn address(self) -> Option<PciAddress> {
        match self {
            Self::GpuHold(address) | Self::GpuRelease(address) => Some(address),
            Self::Status | Self::Drain | Self::Maintenance | Self::Resume | Self::Recheck => None,
        }
    }
}

impl fmt::Display for Request {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())?;
        match self.address() {
            Some(address) => write!(f, " {address}"),
            None => Ok(()),
        }
    }
}
