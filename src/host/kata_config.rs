//! Whether Kata's configuration lets a GPU into a microVM, so that an operator hears it before a customer does.
//!
//! Kata's two runtimes look for their configuration in different places, and by default neither has a port to plug a
//! VFIO device into: a run then fails with `Bus 'pcie.0' does not support hotplugging`. Only the few keys in question
//! are read; the file is never changed.

use std::fmt;
use std::path::{Path, PathBuf};

use super::sysfs;

/// The longest configuration file that is read, in bytes: shipped ones have 40 KB.
const FILE_MAX: u64 = 1024 * 1024;
/// Most files in `config.d` that are read.
const DROP_INS_MAX: usize = 64;
/// What NVIDIA's own configuration allows for a start, in seconds: a guest with a VFIO device pins all of its memory
/// first, which takes about a second for each 10 GiB.
const ENOUGH_S: u64 = 1200;

/// Kata's two runtimes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Runtime {
    /// The one in Go, the default up to Kata 3.
    Go,
    /// runtime-rs, the default since Kata 4.
    Rust,
}

impl Runtime {
    /// Seconds for a container's start when the configuration says nothing.
    const fn default_timeout_s(self) -> u64 {
        match self {
            Self::Go => 60,
            Self::Rust => 30,
        }
    }

    /// Seconds until the guest's agent must answer when the configuration says nothing. runtime-rs counts in
    /// milliseconds.
    const fn default_dial_ms(self) -> u64 {
        match self {
            Self::Go => 45_000,
            Self::Rust => 3_000,
        }
    }
}

/// The configuration's file: the first that exists in the runtime's order. `shim` is the shim's path, links followed.
pub fn find(root: &Path, runtime: Runtime, shim: &Path) -> Option<PathBuf> {
    let places: Vec<PathBuf> = match runtime {
        Runtime::Go => {
            // Compiled in is the prefix that it was installed under: the folder above bin/.
            let prefix = shim.parent().and_then(Path::parent);
            let built = prefix.map(|p| p.join("share/defaults/kata-containers/configuration.toml"));
            let etc = PathBuf::from("/etc/kata-containers/configuration.toml");
            std::iter::once(etc).chain(built).collect()
        }
        Runtime::Rust => ["/etc", "/usr/share/defaults", "/opt/kata/share/defaults"]
            .map(|p| Path::new(p).join("kata-containers/runtime-rs/configuration.toml"))
            .to_vec(),
    };
    places.into_iter().find(|p| below(root, p).exists())
}

fn below(root: &Path, path: &Path) -> PathBuf {
    root.join(path.strip_prefix("/").unwrap_or(path))
}

/// The keys in question.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Settings {
    cold_plug: Option<String>,
    hot_plug: Option<String>,
    /// What `hot_plug` was called up to Kata 3.1, and in runtime-rs.
    on_root_bus: bool,
    root_ports: u64,
    start_timeout_s: Option<u64>,
    dial_timeout_ms: Option<u64>,
}

impl Settings {
    /// Reads the file and those in `config.d` beside it, which come after it in the order of their names. `None` when
    /// the file cannot be read.
    pub fn read(root: &Path, file: &Path) -> Option<Self> {
        let mut settings = Self::default();
        settings.add(&sysfs::long_text(&below(root, file), FILE_MAX)?);
        let folder = below(root, file).with_file_name("config.d");
        let names = sysfs::names(&folder).into_iter().filter(|n| n.ends_with(".toml"));
        for name in names.take(DROP_INS_MAX) {
            settings.add(&sysfs::long_text(&folder.join(name), FILE_MAX).unwrap_or_default());
        }
        Some(settings)
    }

    /// Takes the keys of one file. TOML: `[table]`, `key = value`, `#` begins a comment. The keys in question have
    /// strings without escapes, numbers and booleans; nothing else is looked at.
    fn add(&mut self, text: &str) {
        let mut table = String::new();
        for line in text.lines().map(str::trim) {
            if let Some(name) = line.strip_prefix('[').and_then(|l| l.split(']').next()) {
                name.trim().clone_into(&mut table);
            } else if let Some((key, value)) = line.split_once('=') {
                self.set(&table, key.trim(), bare(value));
            }
        }
    }

    fn set(&mut self, table: &str, key: &str, value: &str) {
        let number = value.parse::<u64>().ok();
        let room = table.split('.').next().unwrap_or_default();
        match (room, key) {
            ("hypervisor", "cold_plug_vfio") => self.cold_plug = Some(value.to_owned()),
            ("hypervisor", "hot_plug_vfio") => self.hot_plug = Some(value.to_owned()),
            ("hypervisor", "hotplug_vfio_on_root_bus") => self.on_root_bus = value == "true",
            ("hypervisor", "pcie_root_port") => self.root_ports = number.unwrap_or(self.root_ports),
            ("runtime", "create_container_timeout") => self.start_timeout_s = number,
            ("agent", "dial_timeout") => self.dial_timeout_ms = number.map(|s| s.saturating_mul(1000)),
            ("agent", "reconnect_timeout_ms") => self.dial_timeout_ms = number,
            _ => {}
        }
    }
}

/// The value without quotes and without what comes after it.
fn bare(value: &str) -> &str {
    let value = value.trim();
    match value.strip_prefix('"') {
        Some(quoted) => quoted.split('"').next().unwrap_or_default(),
        None => value.split('#').next().unwrap_or_default().trim(),
    }
}

/// What stands in the way of a deploy with GPUs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Finding {
    /// There is no configuration.
    NoFile,
    /// There is no port to plug a device into.
    NoPort,
    /// Both kinds of plugging are on, which Kata refuses.
    BothPlugs,
    /// Fewer root ports than devices.
    TooFewPorts {
        /// How many there are.
        ports: u64,
        /// How many devices all GPUs and their companions are.
        devices: u64,
    },
    /// The start's deadline is short for a large guest.
    ShortStart {
        /// Its seconds.
        seconds: u64,
    },
    /// The agent in the guest has to answer soon, which a large guest does not.
    ShortDial {
        /// Milliseconds.
        milliseconds: u64,
    },
}

impl Finding {
    /// Whether Kata refuses every deploy with a GPU; if not, it is one that fails with large guests or many GPUs.
    pub fn refuses_all(&self) -> bool {
        match self {
            Self::NoFile | Self::NoPort | Self::BothPlugs => true,
            Self::TooFewPorts { ports, .. } => *ports == 0,
            Self::ShortStart { .. } | Self::ShortDial { .. } => false,
        }
    }
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoFile => f.write_str(
                "Kata has no readable configuration, so it cannot take GPUs; install Kata's own for NVIDIA GPUs or \
                 its default one",
            ),
            Self::NoPort => f.write_str(
                "Kata has no port for GPUs (cold_plug_vfio and hot_plug_vfio are no-port); set cold_plug_vfio = \
                 \"root-port\" in its [hypervisor.qemu]",
            ),
            Self::BothPlugs => {
                f.write_str("Kata takes either cold_plug_vfio or hot_plug_vfio; set hot_plug_vfio = \"no-port\"")
            }
            Self::TooFewPorts { ports, devices } => write!(
                f,
                "Kata has {ports} root ports, and the GPUs with their companions are {devices} devices; set \
                 pcie_root_port = {devices}"
            ),
            Self::ShortStart { seconds } => write!(
                f,
                "Kata gives a start {seconds} s, too little for large guests with GPUs; set \
                 create_container_timeout = {ENOUGH_S} in [runtime]"
            ),
            Self::ShortDial { milliseconds } => write!(
                f,
                "Kata waits {}.{} s for the guest's agent, too little for large guests with GPUs; set dial_timeout = \
                 {ENOUGH_S} (runtime-rs: reconnect_timeout_ms = {ENOUGH_S}000) in [agent.kata]",
                milliseconds / 1000,
                milliseconds % 1000 / 100
            ),
        }
    }
}

/// What in `settings` stands in the way; `None` means that there is no configuration. `devices` is the number of
/// functions that all GPUs' groups have together.
pub fn findings(settings: Option<&Settings>, runtime: Runtime, devices: u64) -> Vec<Finding> {
    let Some(settings) = settings else { return vec![Finding::NoFile] };
    let on = |plug: &Option<String>| plug.as_deref().filter(|p| !matches!(*p, "" | "no-port")).is_some();
    let (cold, hot) = (on(&settings.cold_plug), on(&settings.hot_plug) || settings.on_root_bus);
    let mut found = Vec::new();
    if cold && on(&settings.hot_plug) {
        found.push(Finding::BothPlugs);
    }
    if !cold && !hot {
        found.push(Finding::NoPort);
    }
    // A bridge and a switch bring ports of their own.
    let plugs = [&settings.cold_plug, &settings.hot_plug];
    let at_root = settings.on_root_bus || plugs.iter().any(|p| p.as_deref() == Some("root-port"));
    if at_root && settings.root_ports < devices {
        found.push(Finding::TooFewPorts { ports: settings.root_ports, devices });
    }
    let seconds = settings.start_timeout_s.unwrap_or(runtime.default_timeout_s());
    if seconds < ENOUGH_S {
        found.push(Finding::ShortStart { seconds });
    }
    let milliseconds = settings.dial_timeout_ms.unwrap_or(runtime.default_dial_ms());
    if milliseconds < ENOUGH_S * 1000 {
        found.push(Finding::ShortDial { milliseconds });
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    const NVIDIA: &str = "[hypervisor.qemu]\npath = \"/opt/kata/bin/qemu\"\nenable_annotations = [\"a\", \"b\"]\n\
        cold_plug_vfio = \"root-port\" # as shipped\n# hot_plug_vfio = \"root-port\"\npcie_root_port = 8\n\
        [agent.kata]\ndial_timeout = 1200\n[runtime]\ncreate_container_timeout = 1200\n";

    fn check(text: &str, runtime: Runtime, devices: u64, expected: &[Finding]) {
        let mut settings = Settings::default();
        settings.add(text);
        assert_eq!(findings(Some(&settings), runtime, devices), expected, "{text}");
    }

    #[test]
    fn what_kata_would_refuse() {
        use Finding::{BothPlugs, NoPort, ShortDial, ShortStart, TooFewPorts};
        let (go, rust) = (Runtime::Go, Runtime::Rust);
        check(NVIDIA, go, 8, &[]);
        check(NVIDIA, go, 16, &[TooFewPorts { ports: 8, devices: 16 }]);
        let go_short = [ShortStart { seconds: 60 }, ShortDial { milliseconds: 45_000 }];
        let defaults = "[hypervisor.qemu]\ncold_plug_vfio=\"no-port\"\nhot_plug_vfio = \"no-port\"\n#pcie_root_port = 0\n";
        check(defaults, go, 1, &[&[NoPort], go_short.as_slice()].concat());
        check("", rust, 1, &[NoPort, ShortStart { seconds: 30 }, ShortDial { milliseconds: 3000 }]);
        check(&NVIDIA.replace("# hot", "hot"), go, 8, &[BothPlugs]);
        check(
            &NVIDIA.replace("cold", "hot").replace("8", "0"),
            go,
            1,
            &[TooFewPorts { ports: 0, devices: 1 }],
        );
        // A bridge has ports of its own.
        let bridge = NVIDIA.replace("cold_plug_vfio = \"root-port\"", "hot_plug_vfio = \"bridge-port\"");
        check(&bridge.replace("8", "0"), go, 4, &[]);
        // As it was called before.
        check(
            &NVIDIA.replace("cold_plug_vfio = \"root-port\"", "hotplug_vfio_on_root_bus = true"),
            go,
            2,
            &[],
        );
        let milliseconds = "[agent.kata]\nreconnect_timeout_ms = 1200000\n[runtime]\ncreate_container_timeout=1200\n\
            [hypervisor.qemu]\ncold_plug_vfio=\"root-port\"\npcie_root_port=1";
        check(milliseconds, rust, 1, &[]);
        // Keys of other tables, and rubbish.
        let rubbish = "[x]\ncold_plug_vfio = \"root-port\"\n=\n[\n[]\nhypervisor = \"";
        check(rubbish, go, 1, &[&[NoPort], go_short.as_slice()].concat());
        assert_eq!(findings(None, go, 1), [Finding::NoFile]);
    }

    #[test]
    fn texts_end_with_what_to_do() {
        let ports = Finding::TooFewPorts { ports: 2, devices: 16 };
        assert!(ports.to_string().ends_with("set pcie_root_port = 16") && !ports.refuses_all());
        assert!(
            Finding::NoPort.to_string().contains("cold_plug_vfio = \"root-port\"")
                && Finding::NoPort.refuses_all()
        );
    }
}
