//! From the settings to what the edges need: which CLI, where logs go, how GPUs are passed, what is checked. The agent and
//! the commands that a person runs make the same choices.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use data_encoding::HEXLOWER;

use crate::config::{Config, GpuCdiName, GpuHandover, LogDriver};
use crate::core::inventory::{Gpu, GpuUse, Handover};
use crate::engine::cli::{Cli, DEFAULT_PATH, Flavour, LogChoice, LogSetting, choose_log};
use crate::engine::releases;
use crate::hmac::keyed_hash;
use crate::host::dependencies::{Inputs, SearchDirs};
use crate::host::handover::{self, CdiNames};
use crate::host::shim::{Kind, Language, means_kata};
use crate::host::{gpus, health, lspci, pci, utilization};
use crate::process::{self, Bounds, Program};

/// How long `--version` may take.
const VERSION_DEADLINE: Duration = Duration::from_secs(5);
/// Bytes read of its output.
const VERSION_BYTES: usize = 4096;
/// Files per container of the engine's own logger.
const LOG_FILES: u32 = 3;
/// The folder for credentials while a pull runs, with one in it for each state directory: a tmpfs on every host.
const SCRATCH: &str = "/run/vectorlay/pulls";

#[derive(Debug)]
pub struct Setup {
    pub cli: Cli,
    /// For a person.
    pub log_reason: &'static str,
    /// For a person.
    pub handover_reason: String,
    /// How GPUs are passed to containers.
    pub handover: Handover,
    /// For the dependency checks.
    pub inputs: Inputs,
}

impl Setup {
    /// Runs the CLI's `--version` if its name does not tell its kind.
    pub fn new(config: &Config) -> Self {
        let search_path = std::env::var_os("PATH").filter(|path| !path.is_empty());
        let search_path = search_path.unwrap_or_else(|| OsString::from(DEFAULT_PATH));
        let dirs = SearchDirs::standard(&search_path.to_string_lossy());
        let folders: Vec<&Path> = dirs.path.iter().map(PathBuf::as_path).collect();
        let path = process::find(&config.container_cli, &folders)
            .unwrap_or_else(|| Path::new("/usr/local/bin").join(&config.container_cli));
        let ctr = process::find("ctr", &folders);
        let home = std::env::var_os("HOME").unwrap_or_else(|| OsString::from("/root"));
        let docker_config = config.docker_config.clone().unwrap_or_else(|| scratch(config));
        let mut env = vec![
            ("PATH".into(), search_path.clone()),
            ("HOME".into(), home.clone()),
            ("DOCKER_CONFIG".into(), docker_config.clone().into()),
        ];
        // For the checks; the CLI's own calls have it as a flag.
        let address = config.containerd_address.as_ref();
        env.extend(address.map(|address| ("CONTAINERD_ADDRESS".into(), address.into())));
        let flavour = Flavour::of_file(&path).or_else(|| Flavour::of_version(&ask_version(&path, &env)?));
        let flavour = flavour.unwrap_or(Flavour::Nerdctl);
        let (handover, handover_reason) = choose_handover(config);
        let inputs = Inputs {
            root: config.root.clone(),
            cli: path.to_string_lossy().into_owned(),
            nerdctl: flavour == Flavour::Nerdctl,
            env: env.clone(),
            runtime: config.runtime.clone(),
            network: config.network.clone(),
            namespace: config.namespace.clone(),
            cni_path: config.cni_path.clone(),
            gpus_by_vfio: handover == Handover::Vfio,
            has_gpus: |root| pci::functions(root).is_ok_and(|all| all.iter().any(pci::Function::is_gpu)),
            dirs,
        };
        let (log, log_reason) = choose_logs(config, flavour, &inputs);
        let cli = Cli {
            path,
            flavour,
            namespace: config.namespace.clone(),
            address: config.containerd_address.clone(),
            cni_path: config.cni_path.clone(),
            ctr,
            network: config.network.clone(),
            port_address: config.port_address.clone(),
            runtime: config.runtime.clone(),
            oom_score_adj: config.oom_score_adj,
            handover,
            log,
            search_path,
            home,
            docker_config,
        };
        Self { cli, log_reason, handover_reason, handover, inputs }
    }
}

fn ask_version(path: &Path, env: &[(OsString, OsString)]) -> Option<String> {
    let program =
        Program { path: path.to_owned(), args: vec!["--version".into()], env: env.to_vec(), input: None };
    let bounds = Bounds {
        deadline: VERSION_DEADLINE,
        grace: Duration::from_secs(1),
        output: VERSION_BYTES,
        tail: false,
    };
    let finished = process::run(&program, &bounds, None).ok()?;
    Some(String::from_utf8_lossy(&finished.stdout).into_owned())
}

/// What is known to be wrong with the container CLI's release. Asks it for its version.
pub fn known_hole(setup: &Setup) -> Option<String> {
    let flavour = setup.cli.flavour;
    let ask = || ask_version(&setup.cli.path, &setup.inputs.env);
    let said = (flavour == Flavour::Nerdctl).then(ask).flatten();
    releases::known_hole(flavour, said.as_deref())
}

fn choose_logs(config: &Config, flavour: Flavour, inputs: &Inputs) -> (LogChoice, &'static str) {
    let setting = match config.log_driver {
        LogDriver::Auto => LogSetting::Auto,
        LogDriver::File => LogSetting::File,
        LogDriver::JsonFile => LogSetting::JsonFile,
    };
    let (file, reason) = choose_log(setting, flavour, writes_log_files(inputs));
    let choice = if file { LogChoice::File { dir: config.log_dir.clone() } } else { json_file(config) };
    (choice, reason)
}

/// The engine's own logger, bounded by the settings.
pub fn json_file(config: &Config) -> LogChoice {
    let mib = u32::try_from(config.log_size_mb).unwrap_or(u32::MAX);
    if mib >= LOG_FILES {
        LogChoice::JsonFile { max_mib: mib / LOG_FILES, files: LOG_FILES }
    } else {
        LogChoice::JsonFile { max_mib: 1, files: mib.max(1) }
    }
}

/// This agent's folder for credentials: agents with other state directories have others. Nothing else is ever in it, so
/// that it is also where a CLI finds no registry logins.
pub fn scratch(config: &Config) -> PathBuf {
    let hash = keyed_hash(&[0; 32], config.state_dir.as_os_str().as_encoded_bytes());
    Path::new(SCRATCH).join(HEXLOWER.encode(&hash[..8]))
}

/// Whether the runtime's shim can write logs to files itself (`file://`): runc's and Kata's in Go can, Kata's in Rust
/// knows only `binary://` and FIFOs. `None`: the shim is not recognised.
fn writes_log_files(inputs: &Inputs) -> Option<bool> {
    match inputs.shim().program()?.kind {
        Kind::Runc | Kind::Kata(Language::Go) => Some(true),
        Kind::Kata(Language::Rust) => Some(false),
        Kind::Other | Kind::Unknown => None,
    }
}

/// How GPUs are passed, and why. With a runtime other than Kata the vendor decides, not the driver, which may be loaded
/// after the agent has started.
fn choose_handover(config: &Config) -> (Handover, String) {
    let auto = || {
        if means_kata(&config.runtime) {
            return Handover::Vfio;
        }
        let functions = pci::functions(&config.root).unwrap_or_default();
        let has = |vendor| functions.iter().any(|function| function.is_gpu() && function.vendor == vendor);
        if has(pci::AMD) && !has(pci::NVIDIA) { Handover::Amd } else { Handover::Nvidia }
    };
    let (chosen, why) = match config.gpu_handover {
        GpuHandover::Auto => (auto(), format!("chosen for runtime {}", config.runtime)),
        GpuHandover::Vfio => (Handover::Vfio, AS_CONFIGURED.to_owned()),
        GpuHandover::Nvidia => (Handover::Nvidia, AS_CONFIGURED.to_owned()),
        GpuHandover::Amd => (Handover::Amd, AS_CONFIGURED.to_owned()),
        GpuHandover::Cdi => (Handover::Cdi, AS_CONFIGURED.to_owned()),
        GpuHandover::None => (Handover::Disabled, AS_CONFIGURED.to_owned()),
    };
    let how = match chosen {
        Handover::Vfio => "vfio: --device /dev/vfio/N for each IOMMU group",
        Handover::Nvidia => "nvidia: --gpus with the UUIDs, by the host's driver",
        Handover::Amd => "amd: --device /dev/kfd and the render nodes, by the host's driver",
        Handover::Cdi => "cdi: --device with CDI names, which the CLI looks up",
        Handover::Disabled => "none",
    };
    (chosen, format!("{how} ({why})"))
}

const AS_CONFIGURED: &str = "as configured";

/// The path whose disk usage is reported: without a setting `/data` if it is a directory, else the engine's root, else `/`.
pub fn data_path(config: &Config, flavour: Flavour) -> PathBuf {
    if let Some(path) = &config.data_path {
        return path.clone();
    }
    let engine = match flavour {
        Flavour::Nerdctl => "/var/lib/containerd",
        Flavour::Docker => "/var/lib/docker",
    };
    ["/data", engine].map(PathBuf::from).into_iter().find(|path| path.is_dir()).unwrap_or_else(|| "/".into())
}

pub fn health_limits(config: &Config) -> health::Limits {
    health::Limits {
        link_width_percent: config.gpu_link_width_percent,
        link_speed_percent: config.gpu_link_speed_percent,
        correctable_errors: config.gpu_aer_limit,
        nonfatal_errors: config.gpu_nonfatal_limit,
        fatal_errors: config.gpu_fatal_limit,
        require_reset: config.gpu_require_reset,
    }
}

/// Judges `gpus`, as an inventory found them, for the configured way of handing them over.
pub fn hand_over(config: &Config, gpus: &mut [Gpu]) {
    let names =
        CdiNames { kind: config.gpu_cdi_kind.clone(), by_uuid: config.gpu_cdi_name == GpuCdiName::Uuid };
    handover::apply(&config.root, choose_handover(config).0, &names, gpus);
}

/// Takes the GPUs' inventory again and again; `None` when the bus could not be read.
pub fn gpu_reader(config: &Config) -> impl FnMut() -> Option<Vec<Gpu>> + Send + 'static {
    let config = config.clone();
    let mut watch = gpus::Watch::new(&config.root, health_limits(&config));
    move || {
        let now = Instant::now();
        match watch.read(now, &mut || lspci::run(&config.root)) {
            Ok(inventory) => {
                let mut gpus = inventory.facts();
                hand_over(&config, &mut gpus);
                Some(gpus)
            }
            Err(unreadable) => {
                log::warn!("{unreadable}");
                None
            }
        }
    }
}

/// Reads the utilization of the GPUs that the host can read.
pub fn utilization_reader(config: &Config) -> impl FnMut() -> Vec<GpuUse> + Send + 'static {
    let root = config.root.clone();
    move || {
        let functions = pci::functions(&root).unwrap_or_default();
        utilization::read(&root, &functions, &mut || utilization::run_nvidia_smi(&root))
    }
}
