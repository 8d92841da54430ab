//! The table of settings: the one place where a setting's name, kind, default and purpose stand. [`Config`], the
//! help, the man page and the shell completion are made from it.

use std::path::PathBuf;

use super::value::{Kind, Typed, Value};
use crate::types::Secret;

/// One setting.
#[derive(Debug, PartialEq, Eq)]
pub struct Row {
    /// Its name, as it stands in the configuration file.
    pub name: &'static str,
    /// What it takes.
    pub kind: Kind,
    /// Its default in the form that a flag takes; `None`: not set.
    pub default: Option<&'static str>,
    /// What it is for, in one line.
    pub doc: &'static str,
}

impl Row {
    /// The flag, without the dashes.
    pub fn flag(&self) -> String {
        self.name.replace('_', "-")
    }

    /// The environment variable.
    pub fn variable(&self) -> String {
        format!("{}{}", super::VARIABLE_PREFIX, self.name.to_ascii_uppercase())
    }

    /// Whether it has no flag, because a command line can be read by everyone.
    pub fn is_secret(&self) -> bool {
        matches!(self.kind, Kind::Secret)
    }
}

/// The row of the setting `name`.
pub fn row(name: &str) -> Option<&'static Row> {
    TABLE.iter().find(|row| row.name == name)
}

/// Declares [`TABLE`] and [`Config`] from one list, so that no setting can be in one of them alone.
macro_rules! settings {
    ($($(#[doc = $doc:literal])+ $name:ident: $type:ty, $kind:expr, $default:expr;)+) => {
        /// The settings in force. Each field has its setting's name; what the name's ending says is its unit.
        #[derive(Debug, Clone, PartialEq)]
        pub struct Config {
            $($(#[doc = $doc])+ pub $name: $type,)+
        }

        /// All settings.
        pub const TABLE: &[Row] = &[
            $(Row { name: stringify!($name), kind: $kind, default: $default, doc: concat!($($doc),+).trim_ascii() },)+
        ];

        impl Config {
            /// From checked values, asked for by name.
            pub(super) fn from_values<'a>(value: impl Fn(&str) -> Option<&'a Value>) -> Self {
                Self { $($name: Typed::typed(value(stringify!($name))),)+ }
            }
        }
    };
}

/// Declares an enum whose variants are a setting's words.
macro_rules! words {
    ($(#[$meta:meta])* $name:ident { $($(#[$variant_meta:meta])* $variant:ident = $word:literal,)+ }) => {
        $(#[$meta])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        pub enum $name {
            $($(#[$variant_meta])* $variant,)+
        }

        impl $name {
            /// The words that the setting takes.
            pub const WORDS: &[&str] = &[$($word),+];
        }

        impl Typed for $name {
            fn typed(value: Option<&Value>) -> Self {
                match String::typed(value).as_str() {
                    $($word => Self::$variant,)+
                    other => unreachable!("{other} passed the check of WORDS"),
                }
            }
        }
    };
}

words! {
    /// The form of the log.
    LogFormat {
        /// Lines for people and the journal.
        Text = "text",
        /// One JSON object a line.
        Json = "json",
    }
}

words! {
    /// What keeps the containers' output.
    LogDriver {
        /// `file` where the shim can write it, else `json-file`.
        Auto = "auto",
        /// The shim writes the file, the agent rotates it.
        File = "file",
        /// The engine's own logger with a size limit.
        JsonFile = "json-file",
    }
}

words! {
    /// How GPUs are handed to a container.
    GpuHandover {
        /// `vfio` for Kata, else what the GPU's driver calls for.
        Auto = "auto",
        /// The VFIO group's device.
        Vfio = "vfio",
        /// `--gpus`, for plain runtimes.
        Nvidia = "nvidia",
        /// /dev/kfd and render nodes, for plain runtimes.
        Amd = "amd",
        /// Not at all: deploys with GPUs are refused.
        None = "none",
    }
}

words! {
    /// Whether GPUs are given to the CLI by their CDI names.
    GpuCdi {
        /// Where the host has them and the CLI takes them.
        Auto = "auto",
        /// Never.
        Never = "never",
    }
}

const LEVELS: &[&str] = &["off", "error", "warn", "info", "debug", "trace"];

const fn whole(min: u64, max: u64) -> Kind {
    Kind::Whole { min, max }
}

settings! {
    /// The control plane, wss://host/path
    url: Option<String>, Kind::Text, None;
    /// Where new nodes register; by default made from url
    register_url: Option<String>, Kind::Text, None;
    /// The organisation's token (has no flag: a command line can be read by everyone)
    token: Option<Secret>, Kind::Secret, None;
    /// A file with the organisation's token; used when token is not set
    token_file: Option<PathBuf>, Kind::Path, None;
    /// PEM certificates to trust in addition to the built-in roots
    ca_file: Option<PathBuf>, Kind::Path, None;
    /// Permit ws:// to hosts other than this one
    allow_insecure: bool, Kind::Bool, Some("false");
    /// The HTTP proxy to dial through; by default HTTPS_PROXY
    proxy: Option<Secret>, Kind::Proxy, None;
    /// Hosts that are dialled without the proxy; by default NO_PROXY
    no_proxy: Option<String>, Kind::Text, None;
    /// Where the node's identity and its records are kept
    state_dir: PathBuf, Kind::Path, Some("/var/lib/vectorlay");
    /// The operator's socket
    control_socket: PathBuf, Kind::Path, Some("/run/vectorlay/agent.sock");
    /// Whose space is reported; by default /data, else the engine's root, else /
    data_path: Option<PathBuf>, Kind::Path, None;
    /// The container CLI, by name or path: nerdctl or one of the same vocabulary (docker)
    container_cli: String, Kind::Text, Some("nerdctl");
    /// The CLI's namespace; by default its own
    namespace: Option<String>, Kind::Text, None;
    /// The containers' network; by default the CLI's own
    network: Option<String>, Kind::Text, None;
    /// The containers' runtime
    runtime: String, Kind::Text, Some("io.containerd.kata.v2");
    /// Deploys at once
    workers: usize, whole(1, 64), Some("8");
    /// Deploys that may wait; past it they are refused as busy
    queue_limit: usize, whole(1, 4096), Some("256");
    /// Seconds that commands under way get to finish when the agent is told to end
    grace_s: u64, whole(0, 3600), Some("30");
    /// Seconds that an exited container and its log are kept
    retention_s: u64, whole(0, 604_800), Some("600");
    /// Seconds between two comparisons of the replicas with the engine's containers
    reconcile_s: u64, whole(5, 3600), Some("60");
    /// Seconds between two checks of the dependencies
    check_s: u64, whole(10, 86_400), Some("300");
    /// What keeps the containers' output
    log_driver: LogDriver, Kind::Words(LogDriver::WORDS), Some("auto");
    /// Where the containers' logs are written by the log driver file
    log_dir: PathBuf, Kind::Path, Some("/var/log/vectorlay");
    /// MiB of log kept for each container
    log_size_mb: u64, whole(1, 102_400), Some("20");
    /// GiB that must be free on the data path for a deploy that pulls; 0: no limit
    min_free_gb: u64, whole(0, 1_000_000), Some("5");
    /// Use of the data path, in percent, above which unused images are removed; 0: never
    image_high_percent: u8, whole(0, 99), Some("0");
    /// Use of the data path, in percent, down to which unused images are removed
    image_low_percent: u8, whole(0, 98), Some("0");
    /// How GPUs are handed to containers
    gpu_handover: GpuHandover, Kind::Words(GpuHandover::WORDS), Some("auto");
    /// Whether GPUs are handed over by CDI names, where the host and the CLI have them
    gpu_cdi: GpuCdi, Kind::Words(GpuCdi::WORDS), Some("auto");
    /// Ask inside the containers for the use of GPUs that the host cannot see
    gpu_guest_utilization: bool, Kind::Bool, Some("false");
    /// Seconds until a failed GPU is tested again
    gpu_retest_s: u64, whole(10, 86_400), Some("600");
    // 8 a minute is where NVIDIA's own health check begins to warn of PCIe replays (DCGM).
    /// Correctable PCIe errors in an hour that make a GPU suspect
    gpu_aer_limit: u64, whole(1, 1_000_000), Some("480");
    /// Uncorrected, not fatal PCIe errors between two readings that make a GPU suspect
    gpu_nonfatal_limit: u64, whole(1, 1_000_000), Some("1");
    /// Fatal PCIe errors between two readings that make a GPU failed
    gpu_fatal_limit: u64, whole(1, 1_000_000), Some("1");
    /// Percent of its best width below which a PCIe link makes a GPU suspect; 0: never
    gpu_link_width_percent: u8, whole(0, 100), Some("100");
    // Idle cards slow their links down to save power, with a driver in a guest too, and are well.
    /// Percent of its best speed below which a PCIe link makes a GPU suspect; 0: never
    gpu_link_speed_percent: u8, whole(0, 100), Some("0");
    /// Whether a GPU that cannot be reset by itself is failed instead of suspect
    gpu_require_reset: bool, Kind::Bool, Some("false");
    /// GPUs for `vfio bind --saved`: PCI addresses joined by commas, or all
    vfio_bind: Option<String>, Kind::Text, None;
    /// Where /proc, /sys and /dev are read
    root: PathBuf, Kind::Path, Some("/");
    /// The least severe messages that are logged
    log: log::LevelFilter, Kind::Words(LEVELS), Some("info");
    /// The form of the log
    log_format: LogFormat, Kind::Words(LogFormat::WORDS), Some("text");
}
