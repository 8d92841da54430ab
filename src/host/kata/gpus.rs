//! Whether Kata's configuration lets a GPU into a microVM, so that an operator hears it before a customer does. By default
//! there is no port to plug a VFIO device into, and a run fails with `Bus 'pcie.0' does not support hotplugging`.

use std::fmt;

use super::config::Config;
use crate::host::shim::Language;

/// What NVIDIA's own configuration allows for a start, in seconds: a guest with a VFIO device pins all of its memory
/// first, which takes about a second for each 10 GiB.
const ENOUGH_S: u64 = 1200;
/// The Go runtime makes the root ports that a container's devices need by itself (since Kata 3.2), but no more
/// (`maxPCIeRootPort`).
const GO_PORTS_MAX: u64 = 16;

/// What stands in the way of a deploy with GPUs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Finding {
    /// There is no port to plug a device into.
    NoPort,
    /// This hypervisor takes no GPUs.
    Hypervisor,
    /// Both kinds of plugging are on, which Kata refuses.
    BothPlugs,
    /// A kind of port that runtime-rs does not have.
    OnlyRootPort {
        /// What is configured.
        port: String,
    },
    /// Fewer root ports than devices.
    TooFewPorts {
        /// How many there are.
        ports: u64,
        /// How many devices all GPUs and their companions are.
        devices: u64,
    },
    /// More devices than root ports can be.
    TooManyDevices {
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

/// A finding, and the configuration that it is about.
#[derive(Debug)]
pub struct Described<'a>(pub &'a Finding, pub &'a Config);

impl fmt::Display for Described<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self(finding, config) = self;
        let section = config.section();
        match finding {
            Finding::NoPort => {
                write!(f, "Kata has no port for GPUs: set cold_plug_vfio = \"root-port\" in {section}")
            }
            Finding::Hypervisor => write!(
                f,
                "Kata's hypervisor {} takes no GPUs: use a configuration for QEMU instead of {}",
                config.name,
                config.file.display()
            ),
            Finding::BothPlugs => write!(
                f,
                "Kata takes either cold_plug_vfio or hot_plug_vfio: set hot_plug_vfio = \"no-port\" in {section}"
            ),
            Finding::OnlyRootPort { port } => write!(
                f,
                "Kata's runtime-rs has no {port} for GPUs: set cold_plug_vfio = \"root-port\" in {section}"
            ),
            Finding::TooFewPorts { ports, devices } => write!(
                f,
                "Kata has {ports} root ports, and the GPUs with their companions are {devices} devices: set \
                 pcie_root_port = {devices} in {section}"
            ),
            Finding::TooManyDevices { devices } => write!(
                f,
                "the GPUs with their companions are {devices} devices, and Kata's Go runtime has at most {GO_PORTS_MAX} \
                 root ports: a deploy with all of them fails"
            ),
            Finding::ShortStart { seconds } => write!(
                f,
                "Kata gives a start {seconds} s, too little for large guests with GPUs: set create_container_timeout = \
                 {ENOUGH_S} in {} of {}",
                match config.language {
                    Language::Go => "[runtime]",
                    Language::Rust => "[agent.kata]",
                },
                config.file.display()
            ),
            Finding::ShortDial { milliseconds } => write!(
                f,
                "Kata waits {}.{} s for the guest's agent, too little for large guests with GPUs: set {} in [agent.kata] \
                 of {}",
                milliseconds / 1000,
                milliseconds % 1000 / 100,
                match config.language {
                    Language::Go => format!("dial_timeout = {ENOUGH_S}"),
                    Language::Rust => format!("reconnect_timeout_ms = {ENOUGH_S}000"),
                },
                config.file.display()
            ),
        }
    }
}

/// What in the configuration stands in the way. `devices` is the number of functions that all GPUs' groups have together.
pub fn findings(config: &Config, devices: u64) -> Vec<Finding> {
    let hypervisor = &config.hypervisor;
    // Dragonball refuses root ports, Firecracker has no PCI, and a remote one has GPUs of its own.
    match config.name.as_str() {
        "remote" => return Vec::new(),
        "dragonball" | "firecracker" => return vec![Finding::Hypervisor],
        _ => {}
    }
    let on = |plug: &Option<String>| plug.clone().filter(|port| !matches!(port.as_str(), "" | "no-port"));
    let (cold, hot) = match config.language {
        Language::Go => (on(&hypervisor.cold_plug), on(&hypervisor.hot_plug)),
        // Up to Kata 3 it had `hotplug_vfio_on_root_bus`, which comes to a root port.
        Language::Rust => (on(&hypervisor.cold_plug), hypervisor.on_root_bus.then(|| "root-port".to_owned())),
    };
    let mut found = Vec::new();
    match (&cold, &hot, config.language) {
        (Some(_), Some(_), Language::Go) => found.push(Finding::BothPlugs),
        (None, None, _) => found.push(Finding::NoPort),
        (Some(port), _, Language::Rust) if port != "root-port" => {
            found.push(Finding::OnlyRootPort { port: port.clone() });
        }
        _ => {}
    }
    // A bridge and a switch bring ports of their own.
    let at_root = [&cold, &hot].into_iter().flatten().any(|port| port == "root-port");
    match config.language {
        Language::Go if at_root && devices > GO_PORTS_MAX => found.push(Finding::TooManyDevices { devices }),
        Language::Rust if at_root && hypervisor.root_ports < devices => {
            found.push(Finding::TooFewPorts { ports: hypervisor.root_ports, devices });
        }
        Language::Go | Language::Rust => {}
    }
    // Where the configuration says nothing, Go's defaults are 60 s and 45 s, Rust's 30 s and 3 s.
    let (start_s, dial_ms) = match config.language {
        Language::Go => (60, 45_000),
        Language::Rust => (30, 3_000),
    };
    // Go takes 0 as not set.
    let seconds = config.start_timeout_s.filter(|seconds| *seconds > 0).unwrap_or(start_s);
    if seconds < ENOUGH_S {
        found.push(Finding::ShortStart { seconds });
    }
    let milliseconds = config.dial_timeout_ms.filter(|milliseconds| *milliseconds > 0).unwrap_or(dial_ms);
    if milliseconds < ENOUGH_S * 1000 {
        found.push(Finding::ShortDial { milliseconds });
    }
    found
}

#[cfg(test)]
mod tests {
    use super::super::config::Hypervisor;
    use super::Finding::{
        BothPlugs, Hypervisor as NoGpus, NoPort, OnlyRootPort, ShortDial, ShortStart, TooFewPorts,
        TooManyDevices,
    };
    use super::*;

    fn config(language: Language, name: &str, cold: &str, hot: &str, root_ports: u64) -> Config {
        let some = |port: &str| Some(port.to_owned()).filter(|port| !port.is_empty());
        let hypervisor =
            Hypervisor { cold_plug: some(cold), hot_plug: some(hot), root_ports, ..Hypervisor::default() };
        Config {
            language,
            file: "/etc/kata-containers/configuration.toml".into(),
            name: name.to_owned(),
            hypervisor,
            start_timeout_s: Some(1200),
            dial_timeout_ms: Some(1_200_000),
        }
    }

    #[test]
    fn what_kata_would_refuse() {
        let check = |config: &Config, devices: u64, expected: &[Finding]| {
            assert_eq!(findings(config, devices), expected, "{config:?}");
        };
        // NVIDIA's configurations of Kata 4 as shipped.
        check(&config(Language::Rust, "qemu", "root-port", "", 8), 8, &[]);
        check(&config(Language::Go, "qemu", "root-port", "", 8), 8, &[]);
        // runtime-rs needs the number, Go makes as many as it needs, up to its limit.
        check(
            &config(Language::Rust, "qemu", "root-port", "", 8),
            16,
            &[TooFewPorts { ports: 8, devices: 16 }],
        );
        check(&config(Language::Go, "qemu", "root-port", "", 0), 16, &[]);
        check(
            &config(Language::Go, "qemu", "no-port", "root-port", 0),
            17,
            &[TooManyDevices { devices: 17 }],
        );
        check(&config(Language::Go, "qemu", "", "bridge-port", 0), 20, &[]);
        check(&config(Language::Go, "qemu", "root-port", "root-port", 0), 1, &[BothPlugs]);
        check(&config(Language::Go, "qemu", "no-port", "no-port", 4), 1, &[NoPort]);
        check(&config(Language::Rust, "qemu", "", "root-port", 4), 1, &[NoPort]);
        check(
            &config(Language::Rust, "qemu", "switch-port", "", 4),
            1,
            &[OnlyRootPort { port: "switch-port".into() }],
        );
        check(&config(Language::Rust, "dragonball", "root-port", "", 0), 1, &[NoGpus]);
        check(&config(Language::Go, "firecracker", "", "", 0), 1, &[NoGpus]);
        check(&config(Language::Go, "remote", "", "", 0), 1, &[]);
        let mut old = config(Language::Rust, "qemu", "", "", 2);
        old.hypervisor.on_root_bus = true;
        check(&old, 2, &[]);
        // Defaults are short for large guests.
        for (language, seconds, milliseconds) in [(Language::Go, 60, 45_000), (Language::Rust, 30, 3_000)] {
            let mut silent = config(language, "qemu", "root-port", "", 8);
            (silent.start_timeout_s, silent.dial_timeout_ms) = (None, Some(0));
            check(&silent, 1, &[ShortStart { seconds }, ShortDial { milliseconds }]);
        }
    }

    #[test]
    fn advice_names_the_section_in_force() {
        let config = config(Language::Rust, "qemu", "root-port", "", 2);
        let said = |finding: &Finding| Described(finding, &config).to_string();
        let ports = TooFewPorts { ports: 2, devices: 16 };
        assert!(said(&ports).ends_with(
            "set pcie_root_port = 16 in [hypervisor.qemu] of /etc/kata-containers/configuration.toml"
        ));
        assert!(said(&ShortStart { seconds: 30 }).contains("1200 in [agent.kata] of /etc/"));
        assert!(said(&ShortDial { milliseconds: 3_000 }).contains("waits 3.0 s"));
    }
}
