//! The table of settings: the one place where a setting's name, kind, default and purpose stand. [`Config`], the
//! help, the man page and the shell completions are made from it.

use std::path::PathBuf;

use super::value::{Kind, Typed, Value};
use crate::types::Secret;

/// What the names of our environment variables begin with.
pub const VARIABLE_PREFIX: &str = "VECTORLAY_";

#[derive(Debug, PartialEq, Eq)]
pub struct Setting {
    /// Its key in the configuration file.
    pub name: &'static str,
    pub kind: Kind,
    /// As a flag would give it; `None`: not set.
    pub default: Option<&'static str>,
    /// One line of help.
    pub doc: &'static str,
}

impl Setting {
    /// The flag, without the dashes.
    pub fn flag(&self) -> String {
        self.name.replace('_', "-")
    }

    /// The environment variable.
    pub fn variable(&self) -> String {
        format!("{VARIABLE_PREFIX}{}", self.name.to_ascii_uppercase())
    }

    /// Whether it has no flag, because everyone on the host can read a command line.
    pub fn is_secret(&self) -> bool {
        matches!(self.kind, Kind::Secret)
    }
}

/// The setting with this name.
pub fn setting(name: &str) -> Option<&'static Setting> {
    TABLE.iter().find(|setting| setting.name == name)
}

/// Declares [`TABLE`] and [`Config`] from one list, so that no setting can be in one of them alone.
macro_rules! settings {
    ($($(#[doc = $doc:literal])+ $name:ident: $type:ty, $kind:expr, $default:expr;)+) => {
        /// The settings in force. Each field has its setting's name, whose ending is the unit.
        #[derive(Debug, Clone, PartialEq)]
        pub struct Config {
            $($(#[doc = $doc])+ pub $name: $type,)+
        }

        pub const TABLE: &[Setting] = &[
            $(Setting { name: stringify!($name), kind: $kind, default: $default, doc: concat!($($doc),+).trim_ascii() },)+
        ];

        impl Config {
            /// `value` returns a setting's checked value by name.
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
    LogFormat {
        Text = "text",
        /// One object per line.
        Json = "json",
    }
}

words! {
    /// Where the containers' output goes.
    LogDriver {
        /// `file` where the shim can write it, else `json-file`.
        Auto = "auto",
        /// The shim writes the file, the agent rotates it.
        File = "file",
        /// The engine's logger with a size limit.
        JsonFile = "json-file",
    }
}

words! {
    /// How GPUs are passed to a container.
    GpuHandover {
        /// `vfio` for Kata, else what the GPU's driver calls for.
        Auto = "auto",
        /// `--device /dev/vfio/N`, for Kata.
        Vfio = "vfio",
        /// `--gpus`, for plain runtimes.
        Nvidia = "nvidia",
        /// /dev/kfd and render nodes, for plain runtimes.
        Amd = "amd",
        /// `--device` with a CDI name, which the CLI looks up.
        Cdi = "cdi",
        /// Deploys with GPUs are refused.
        None = "none",
    }
}

words! {
    /// What a GPU's CDI name ends with.
    GpuCdiName {
        /// Its UUID, which NVIDIA's driver on the host tells.
        Uuid = "uuid",
        /// Its place by PCI address among the GPUs of its vendor and driver, from 0.
        Index = "index",
    }
}

const LEVELS: &[&str] = &["off", "error", "warn", "info", "debug", "trace"];

const fn whole(min: u64, max: u64) -> Kind {
    Kind::Whole { min, max }
}

settings! {
    /// Control plane's URL, wss://host/path
    url: Option<String>, Kind::Url, None;
    /// Registration URL; default derived from url
    register_url: Option<String>, Kind::Url, None;
    /// Organisation token (no flag: everyone on the host can read a command line)
    token: Option<Secret>, Kind::Secret, None;
    /// File with the organisation token; used if token is not set
    token_file: Option<PathBuf>, Kind::Path, None;
    /// PEM file of certificates to trust besides the built-in roots
    ca_file: Option<PathBuf>, Kind::Path, None;
    /// Permit ws:// to hosts other than this one
    allow_insecure: bool, Kind::Bool, Some("false");
    /// HTTP proxy; default $HTTPS_PROXY
    proxy: Option<Secret>, Kind::Proxy, None;
    /// Hosts to reach without the proxy; default $NO_PROXY
    no_proxy: Option<String>, Kind::Text, None;
    /// Directory of the node's identity and records
    state_dir: PathBuf, Kind::Path, Some("/var/lib/vectorlay");
    /// Name of this agent among several on one machine, which makes it a node of its own
    instance: Option<String>, Kind::Text, None;
    /// Unix socket for commands such as status and drain
    control_socket: PathBuf, Kind::Path, Some("/run/vectorlay/agent.sock");
    /// Path whose disk usage is reported; default /data, else the engine's root, else /
    data_path: Option<PathBuf>, Kind::Path, None;
    /// Container CLI, name or path: nerdctl, or one with the same commands (docker)
    container_cli: String, Kind::Text, Some("nerdctl");
    /// containerd namespace; default the CLI's
    namespace: Option<String>, Kind::Text, None;
    /// containerd's socket, as where k3s or RKE2 bring it; default the CLI's
    containerd_address: Option<String>, Kind::Text, None;
    /// Directory of the CNI plugins; default the CLI's
    cni_path: Option<PathBuf>, Kind::Path, None;
    /// Folder of registry logins (DOCKER_CONFIG) for pulls of every deploy; default none
    docker_config: Option<PathBuf>, Kind::Path, None;
    /// Network of the containers; default the CLI's
    network: Option<String>, Kind::Text, None;
    /// Container runtime
    runtime: String, Kind::Text, Some("io.containerd.kata.v2");
    /// Containers' oom_score_adj: above 0 the kernel ends them before the host's own programs
    oom_score_adj: u64, whole(0, 1000), Some("500");
    /// Images that deploys may name: registry[/path],…; * is any but those of this host
    images: String, Kind::Text, Some("*");
    /// Take images by their digest alone
    images_by_digest_only: bool, Kind::Bool, Some("false");
    /// First port of the host that deploys may publish
    port_min: u16, whole(1, 65_535), Some("1024");
    /// Last port of the host that deploys may publish
    port_max: u16, whole(1, 65_535), Some("65535");
    /// Address of the host that ports are published on; default all
    port_address: Option<String>, Kind::Text, None;
    /// Maximum memory of a deploy, in MiB; 0: no limit
    max_memory_mb: u64, whole(0, 1 << 30), Some("0");
    /// Maximum CPUs of a deploy; 0: no limit
    max_cpus: u64, whole(0, 4096), Some("0");
    /// Maximum /dev/shm of a deploy, in MiB; 0: no limit
    max_shm_mb: u64, whole(0, 1 << 30), Some("0");
    /// Maximum processes of a deploy; 0: no limit
    max_pids: u64, whole(0, 1 << 22), Some("0");
    /// Maximum number of a deploy's variables
    max_variables: u64, whole(0, 4096), Some("4096");
    /// Maximum size of a deploy's variables, in KiB
    max_variables_kb: u64, whole(0, 2048), Some("2048");
    /// Maximum size of a deploy's command, in KiB
    max_command_kb: u64, whole(0, 2048), Some("2048");
    /// Maximum replicas on the node; 0: no limit
    max_replicas: u64, whole(0, 4096), Some("0");
    /// Maximum concurrent deploys
    workers: usize, whole(1, 64), Some("8");
    /// Maximum queued deploys; more are refused as busy
    queue_limit: usize, whole(1, 4096), Some("256");
    /// Seconds without a byte from the registry after which a pull is given up; 0: never
    pull_stall_s: u64, whole(0, 86_400), Some("120");
    /// MiB of memory that are promised to no replica
    reserve_memory_mb: u64, whole(0, 16_777_216), Some("1024");
    /// Seconds that running commands may take to finish at shutdown
    grace_s: u64, whole(0, 3600), Some("30");
    /// Seconds that an exited container and its log are kept
    retention_s: u64, whole(0, 604_800), Some("600");
    /// Seconds between comparisons of the replicas with the engine's containers
    reconcile_s: u64, whole(5, 3600), Some("60");
    /// Seconds between dependency checks
    check_s: u64, whole(10, 86_400), Some("300");
    /// Log driver of the containers
    log_driver: LogDriver, Kind::Words(LogDriver::WORDS), Some("auto");
    /// Directory of the container logs that log driver file writes
    log_dir: PathBuf, Kind::Path, Some("/var/log/vectorlay");
    /// MiB of log kept per container
    log_size_mb: u64, whole(1, 102_400), Some("20");
    /// GiB that must be free on the data path to pull an image; 0: no limit
    min_free_gb: u64, whole(0, 1_000_000), Some("5");
    /// Disk usage in percent above which unused images are removed; 0: never
    image_high_percent: u8, whole(0, 99), Some("0");
    /// Disk usage in percent at which removing unused images stops
    image_low_percent: u8, whole(0, 98), Some("0");
    /// How GPUs are passed to containers
    gpu_handover: GpuHandover, Kind::Words(GpuHandover::WORDS), Some("auto");
    /// Kind of the CDI names, before the =, with gpu_handover cdi
    gpu_cdi_kind: String, Kind::Text, Some("nvidia.com/gpu");
    /// Device part of the CDI names, after the =: the GPU's UUID or index
    gpu_cdi_name: GpuCdiName, Kind::Words(GpuCdiName::WORDS), Some("uuid");
    /// Ask inside containers for the utilization of GPUs that the host cannot read
    gpu_guest_utilization: bool, Kind::Bool, Some("false");
    /// Seconds before a failed GPU is tested again
    gpu_retest_s: u64, whole(10, 86_400), Some("600");
    // 8 a minute is where NVIDIA's own health check begins to warn of PCIe replays (DCGM).
    /// Correctable PCIe errors per hour that make a GPU suspect
    gpu_aer_limit: u64, whole(1, 1_000_000), Some("480");
    /// Uncorrectable non-fatal PCIe errors between readings that make a GPU suspect
    gpu_nonfatal_limit: u64, whole(1, 1_000_000), Some("1");
    /// Fatal PCIe errors between readings that make a GPU failed
    gpu_fatal_limit: u64, whole(1, 1_000_000), Some("1");
    /// Percent of its maximum PCIe link width below which a GPU is suspect; 0: never
    gpu_link_width_percent: u8, whole(0, 100), Some("100");
    // Idle cards slow their links down to save power, with a driver in a guest too, and are well.
    /// Percent of its maximum PCIe link speed below which a GPU is suspect; 0: never
    gpu_link_speed_percent: u8, whole(0, 100), Some("0");
    /// Treat a GPU that cannot be reset on its own as failed, not suspect
    gpu_require_reset: bool, Kind::Bool, Some("false");
    /// GPUs for `vfio bind --saved`: comma-separated PCI addresses, or all
    vfio_bind: Option<String>, Kind::Text, None;
    /// Root of the /proc, /sys and /dev that are read
    root: PathBuf, Kind::Path, Some("/");
    /// File for metrics, written at each heartbeat, for node_exporter's textfile collector
    metrics_file: Option<PathBuf>, Kind::Path, None;
    /// Least severe level that is logged
    log: log::LevelFilter, Kind::Words(LEVELS), Some("info");
    /// Log format
    log_format: LogFormat, Kind::Words(LogFormat::WORDS), Some("text");
}
