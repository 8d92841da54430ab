//! Whether Kata's configuration lets a GPU into a microVM, so that an operator hears it before a customer does. By default
//! there is no port to plug a VFIO device into, and a run fails with `Bus 'pcie.0' does not support hotplugging`.

use super::config::Config;
use crate::host::shim::Language;

/// What NVIDIA's own configuration allows for a start, in seconds: a guest with a VFIO device pins all of its memory
/// first, which takes about a second for each 10 GiB.
const ENOUGH_S: u64 = 1200;
/// The Go runtime makes the root ports that a container's devices need by itself (since Kata 3.2), but no more
/// (`maxPCIeRootPort`).
const GO_PORTS_MAX: u64 = 16;

/// What in the configuration stands in the way of deploys with GPUs, and what to set instead. `devices` is the number of
/// functions that all GPUs' groups have together.
pub fn findings(config: &Config, devices: u64) -> Vec<String> {
    let hypervisor = &config.hypervisor;
    let (file, section) = (config.file.display(), config.section());
    // Dragonball refuses root ports, Firecracker has no PCI, and a remote one has GPUs of its own.
    match config.name.as_str() {
        "remote" => return Vec::new(),
        name @ ("dragonball" | "firecracker") => {
            return vec![format!(
                "Kata's hypervisor {name} takes no GPUs: use a configuration for QEMU instead of {file}"
            )];
        }
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
        (Some(_), Some(_), Language::Go) => found.push(format!(
            "Kata takes either cold_plug_vfio or hot_plug_vfio: set hot_plug_vfio = \"no-port\" in {section}"
        )),
        (None, None, _) => {
            found.push(format!("Kata has no port for GPUs: set cold_plug_vfio = \"root-port\" in {section}"))
        }
        (Some(port), _, Language::Rust) if port != "root-port" => found.push(format!(
            "Kata's runtime-rs has no {port} for GPUs: set cold_plug_vfio = \"root-port\" in {section}"
        )),
        _ => {}
    }
    // A bridge and a switch bring ports of their own.
    let at_root = [&cold, &hot].into_iter().flatten().any(|port| port == "root-port");
    match config.language {
        Language::Go if at_root && devices > GO_PORTS_MAX => found.push(format!(
            "the GPUs with their companions are {devices} devices, and Kata's Go runtime has at most {GO_PORTS_MAX} root \
             ports: a deploy with all of them fails"
        )),
        Language::Rust if at_root && hypervisor.root_ports < devices => found.push(format!(
            "Kata has {} root ports, and the GPUs with their companions are {devices} devices: set pcie_root_port = \
             {devices} in {section}",
            hypervisor.root_ports
        )),
        Language::Go | Language::Rust => {}
    }
    // Where the configuration says nothing, Go's defaults are 60 s and 45 s, Rust's 30 s and 3 s.
    let (start_s, dial_ms, table, dial) = match config.language {
        Language::Go => (60, 45_000, "[runtime]", format!("dial_timeout = {ENOUGH_S}")),
        Language::Rust => (30, 3_000, "[agent.kata]", format!("reconnect_timeout_ms = {ENOUGH_S}000")),
    };
    // Go takes 0 as not set.
    let seconds = config.start_timeout_s.filter(|seconds| *seconds > 0).unwrap_or(start_s);
    if seconds < ENOUGH_S {
        found.push(format!(
            "Kata gives a start {seconds} s, too little for large guests with GPUs: set create_container_timeout = \
             {ENOUGH_S} in {table} of {file}"
        ));
    }
    let milliseconds = config.dial_timeout_ms.filter(|milliseconds| *milliseconds > 0).unwrap_or(dial_ms);
    if milliseconds < ENOUGH_S * 1000 {
        found.push(format!(
            "Kata waits {}.{} s for the guest's agent, too little for large guests with GPUs: set {dial} in [agent.kata] \
             of {file}",
            milliseconds / 1000,
            milliseconds % 1000 / 100
        ));
    }
    found
}

#[cfg(test)]
mod tests {
    use super::super::config::Hypervisor;
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
        const BOTH_PLUGS: &str = "Kata takes either cold_plug_vfio or hot_plug_vfio: ";
        const NO_PORT: &str =
            "Kata has no port for GPUs: set cold_plug_vfio = \"root-port\" in [hypervisor.qemu] of ";
        let check = |config: &Config, devices: u64, expected: &[&str]| {
            let found = findings(config, devices);
            assert_eq!(found.len(), expected.len(), "{found:?}");
            for (found, expected) in found.iter().zip(expected) {
                assert!(found.contains(expected), "{found} lacks {expected:?}");
            }
        };
        // NVIDIA's configurations of Kata 4 as shipped.
        check(&config(Language::Rust, "qemu", "root-port", "", 8), 8, &[]);
        check(&config(Language::Go, "qemu", "root-port", "", 8), 8, &[]);
        // runtime-rs needs the number, Go makes as many as it needs, up to its limit.
        check(
            &config(Language::Rust, "qemu", "root-port", "", 8),
            16,
            &[
                "8 root ports, and the GPUs with their companions are 16 devices: set pcie_root_port = 16 in [hypervisor.qemu] of /etc/kata-containers/configuration.toml",
            ],
        );
        check(&config(Language::Go, "qemu", "root-port", "", 0), 16, &[]);
        check(
            &config(Language::Go, "qemu", "no-port", "root-port", 0),
            17,
            &["are 17 devices, and Kata's Go runtime has at most 16 root ports"],
        );
        check(&config(Language::Go, "qemu", "", "bridge-port", 0), 20, &[]);
        check(&config(Language::Go, "qemu", "root-port", "root-port", 0), 1, &[BOTH_PLUGS]);
        check(&config(Language::Go, "qemu", "no-port", "no-port", 4), 1, &[NO_PORT]);
        check(&config(Language::Rust, "qemu", "", "root-port", 4), 1, &[NO_PORT]);
        check(
            &config(Language::Rust, "qemu", "switch-port", "", 4),
            1,
            &["runtime-rs has no switch-port for GPUs"],
        );
        check(
            &config(Language::Rust, "dragonball", "root-port", "", 0),
            1,
            &["hypervisor dragonball takes no GPUs"],
        );
        check(&config(Language::Go, "firecracker", "", "", 0), 1, &["hypervisor firecracker takes no GPUs"]);
        check(&config(Language::Go, "remote", "", "", 0), 1, &[]);
        let mut old = config(Language::Rust, "qemu", "", "", 2);
        old.hypervisor.on_root_bus = true;
        check(&old, 2, &[]);
        // Defaults are short for large guests.
        let go = [
            "a start 60 s, ",
            "1200 in [runtime] of /etc/",
            "waits 45.0 s for",
            "dial_timeout = 1200 in [agent.kata] of",
        ];
        let rust = [
            "a start 30 s, ",
            "1200 in [agent.kata] of /etc/",
            "waits 3.0 s for",
            "reconnect_timeout_ms = 1200000 in",
        ];
        for (language, [start, section, dial, setting]) in [(Language::Go, go), (Language::Rust, rust)] {
            let mut silent = config(language, "qemu", "root-port", "", 8);
            (silent.start_timeout_s, silent.dial_timeout_ms) = (None, Some(0));
            check(&silent, 1, &[start, dial]);
            check(&silent, 1, &[section, setting]);
        }
    }
}
