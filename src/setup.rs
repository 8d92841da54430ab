//! From the settings to what the edges need: which CLI, where logs go, how GPUs are passed, what is checked. The agent and
//! the commands that a person runs make the same choices.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use crate::config::{Config, GpuCdi, GpuHandover, LogDriver};
use crate::core::inventory::{Gpu, GpuUse};
use crate::engine::cli::{
    Cli, DEFAULT_PATH, Flavour, Handover, LogChoice, LogSetting, Shim, cdi_obstacle, choose_log,
};
use crate::host::dependencies::{self, Inputs, Places};
use crate::host::{cdi, gpus, handover, health, lspci, pci, utilization};
use crate::process::{self, Bounds, Program};

/// How long `--version` may take.
const VERSION_DEADLINE: Duration = Duration::from_secs(5);
/// Bytes read of its output.
const VERSION_BYTES: usize = 4096;
/// Files per container of the engine's own logger.
const LOG_FILES: u32 = 3;

#[derive(Debug)]
pub struct Setup {
    pub cli: Cli,
    /// For a person.
    pub log_reason: &'static str,
    /// For a person.
    pub handover_reason: String,
    /// Whether GPUs that have a CDI name are passed by it.
    pub cdi: bool,
    /// How GPUs are passed to containers; `None`: deploys with GPUs are refused.
    pub handover: Option<Handover>,
    /// For the dependency checks.
    pub inputs: Inputs,
    /// The path whose disk usage is reported.
    pub data_path: PathBuf,
}

impl Setup {
    /// Runs the CLI's `--version` if its name does not tell its kind.
    pub fn new(config: &Config) -> Self {
        let search_path = std::env::var_os("PATH").filter(|path| !path.is_empty());
        let search_path = search_path.unwrap_or_else(|| OsString::from(DEFAULT_PATH));
        let places = Places::standard(&search_path.to_string_lossy());
        let folders: Vec<&Path> = places.path.iter().map(PathBuf::as_path).collect();
        let path = process::find(&config.container_cli, &folders)
            .unwrap_or_else(|| Path::new("/usr/local/bin").join(&config.container_cli));
        let home = std::env::var_os("HOME").unwrap_or_else(|| OsString::from("/root"));
        let env = vec![("PATH".into(), search_path.clone()), ("HOME".into(), home.clone())];
        let flavour = Flavour::of_file(&path).or_else(|| Flavour::of_version(&ask_version(&path, &env)?));
        let flavour = flavour.unwrap_or(Flavour::Nerdctl);
        let (handover, mut handover_reason) = choose_handover(config);
        let inputs = Inputs {
            root: config.root.clone(),
            cli: path.to_string_lossy().into_owned(),
            env: env.clone(),
            runtime: config.runtime.clone(),
            gpus_by_vfio: handover == Some(Handover::Vfio),
            has_gpus: |root| pci::functions(root).is_ok_and(|all| all.iter().any(pci::Function::is_gpu)),
            places,
        };
        let mut cdi = false;
        if matches!(handover, Some(Handover::Vfio | Handover::Nvidia)) {
            match no_cdi(config, flavour, &inputs) {
                Some(why) => handover_reason += &format!("; no CDI names: {why}"),
                None => cdi = true,
            }
        }
        let (log, log_reason) = choose_logs(config, flavour, &inputs);
        let cli = Cli {
            path,
            flavour,
            namespace: config.namespace.clone(),
            network: config.network.clone(),
            runtime: config.runtime.clone(),
            handover: handover.unwrap_or(Handover::Vfio),
            log,
            search_path,
            home,
        };
        let data_path = config.data_path.clone().unwrap_or_else(|| data_path(flavour));
        Self { cli, log_reason, handover_reason, cdi, handover, inputs, data_path }
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

/// Why GPUs are not passed by CDI name.
fn no_cdi(config: &Config, flavour: Flavour, inputs: &Inputs) -> Option<String> {
    if config.gpu_cdi == GpuCdi::Never {
        return Some("as configured".to_owned());
    }
    if !(inputs.has_gpus)(&config.root) {
        return Some("the host has no GPUs".to_owned());
    }
    let ask = || ask_version(Path::new(&inputs.cli), &inputs.env);
    let version = (flavour == Flavour::Nerdctl).then(ask).flatten();
    cdi_obstacle(flavour, version.as_deref())
}

fn choose_logs(config: &Config, flavour: Flavour, inputs: &Inputs) -> (LogChoice, &'static str) {
    let setting = match config.log_driver {
        LogDriver::Auto => LogSetting::Auto,
        LogDriver::File => LogSetting::File,
        LogDriver::JsonFile => LogSetting::JsonFile,
    };
    let (file, reason) = choose_log(setting, flavour, shim(inputs));
    let mib = u32::try_from(config.log_size_mb).unwrap_or(u32::MAX);
    let choice = if file {
        LogChoice::File { dir: config.log_dir.clone() }
    } else if mib >= LOG_FILES {
        LogChoice::JsonFile { max_mib: mib / LOG_FILES, files: LOG_FILES }
    } else {
        LogChoice::JsonFile { max_mib: 1, files: mib.max(1) }
    };
    (choice, reason)
}

/// Which shim the runtime's name leads to: one with Kata's name may be a link to another.
fn shim(inputs: &Inputs) -> Shim {
    let path = match dependencies::shim(inputs) {
        dependencies::Shim::Found(path) => path,
        dependencies::Shim::None
        | dependencies::Shim::Unsafe { .. }
        | dependencies::Shim::Elsewhere { .. }
        | dependencies::Shim::Missing { .. } => return Shim::Unknown,
    };
    let target = std::fs::canonicalize(&path).unwrap_or(path);
    if target.file_name().is_some_and(|name| name.to_string_lossy().starts_with("containerd-shim-runc")) {
        return Shim::Runc;
    }
    let program =
        Program { path: target, args: vec!["--version".into()], env: inputs.env.clone(), input: None };
    let bounds = Bounds {
        deadline: VERSION_DEADLINE,
        grace: Duration::from_secs(1),
        output: VERSION_BYTES,
        tail: false,
    };
    let Ok(finished) = process::run(&program, &bounds, None) else { return Shim::Unknown };
    let said = String::from_utf8_lossy(&finished.stdout).into_owned();
    match (said.contains("(Golang)"), said.contains("(Rust)")) {
        (true, _) => Shim::KataGo,
        (false, true) => Shim::KataRust,
        (false, false) => Shim::Unknown,
    }
}

/// How GPUs are passed, and why. With a runtime other than Kata the vendor decides, not the driver, which may be loaded
/// after the agent has started.
fn choose_handover(config: &Config) -> (Option<Handover>, String) {
    let auto = || {
        if config.runtime.contains("kata") {
            return Handover::Vfio;
        }
        let functions = pci::functions(&config.root).unwrap_or_default();
        let has = |vendor| functions.iter().any(|function| function.is_gpu() && function.vendor == vendor);
        if has(pci::AMD) && !has(pci::NVIDIA) { Handover::Amd } else { Handover::Nvidia }
    };
    let why = match config.gpu_handover {
        GpuHandover::Auto => format!("chosen for runtime {}", config.runtime),
        GpuHandover::Vfio | GpuHandover::Nvidia | GpuHandover::Amd | GpuHandover::None => {
            "as configured".to_owned()
        }
    };
    let chosen = match config.gpu_handover {
        GpuHandover::Auto => auto(),
        GpuHandover::Vfio => Handover::Vfio,
        GpuHandover::Nvidia => Handover::Nvidia,
        GpuHandover::Amd => Handover::Amd,
        GpuHandover::None => return (None, format!("none ({why})")),
    };
    let how = match chosen {
        Handover::Vfio => "vfio: --device /dev/vfio/N for each IOMMU group",
        Handover::Nvidia => "nvidia: --gpus with the UUIDs, by the host's driver",
        Handover::Amd => "amd: --device /dev/kfd and the render nodes, by the host's driver",
    };
    (Some(chosen), format!("{how} ({why})"))
}

/// How GPUs are passed, unless by VFIO.
pub fn plain_handover(config: &Config) -> Option<handover::Way> {
    match choose_handover(config).0 {
        Some(Handover::Vfio) => None,
        Some(Handover::Nvidia) => Some(handover::Way::Nvidia),
        Some(Handover::Amd) => Some(handover::Way::Amd),
        None => Some(handover::Way::Nowise),
    }
}

/// `/data` if it is a directory, else the engine's root, else `/`.
fn data_path(flavour: Flavour) -> PathBuf {
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

/// Judges `gpus` by the way in which this node passes them, and with `cdi` gives them their CDI names. `plain` is
/// [`plain_handover`].
pub fn hand_over(root: &Path, plain: Option<handover::Way>, cdi: bool, gpus: &mut [Gpu]) {
    if let Some(way) = plain {
        handover::apply(root, way, gpus);
    }
    if cdi {
        cdi::apply(root, plain, gpus);
    }
}

/// Reads the GPUs at each call; `None` if the bus cannot be read. `cdi`: [`Setup::cdi`].
pub fn gpu_reader(config: &Config, cdi: bool) -> impl FnMut() -> Option<Vec<Gpu>> + Send + 'static {
    let root = config.root.clone();
    let plain = plain_handover(config);
    let mut watch = gpus::Watch::new(&root, health_limits(config));
    move || {
        let now = Instant::now();
        match watch.read(now, &mut || lspci::run(&root)) {
            Ok(inventory) => {
                let mut gpus = inventory.facts();
                hand_over(&root, plain, cdi, &mut gpus);
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
