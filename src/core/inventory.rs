//! What the edges tell the core about the host: plain values, each complete in itself. A thing that could not be
//! read is `None` or says so in words; it is never a zero.

use serde_json::{Map, Value, json};

use crate::types::PciAddress;

/// The host's inventory, with its GPUs as they are now. A field that the kernel does not tell is `None`.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Hardware {
    /// The kernel's host name.
    pub hostname: Option<String>,
    /// The first `model name` of /proc/cpuinfo, or what the architecture has instead.
    pub cpu_model: Option<String>,
    /// Online logical CPUs.
    pub cpu_cores: Option<u32>,
    /// MemTotal in GiB, rounded to the nearest integer.
    pub ram_gib: Option<u32>,
    /// MemTotal in MiB, rounded down.
    pub memory_mib: Option<u64>,
    /// `x86_64`, `aarch64`.
    pub arch: Option<String>,
    /// The kernel's release, as `uname -r` prints it.
    pub kernel: Option<String>,
    /// /proc/sys/kernel/random/boot_id.
    pub boot_id: Option<String>,
    /// A stable, non-secret fingerprint of the machine (see `host::identity`); `None` when nothing tells it from others.
    pub machine_id: Option<String>,
    /// The GPUs, by address.
    pub gpus: Vec<Gpu>,
}

impl Hardware {
    /// What it is, in the names of `system_info`.
    pub fn described(&self) -> Map<String, Value> {
        let lines: Vec<&str> = self.gpus.iter().map(|gpu| gpu.line.as_str()).collect();
        object([
            ("hostname", json!(self.hostname)),
            ("cpuModel", json!(self.cpu_model)),
            ("cpuCores", json!(self.cpu_cores)),
            ("ramGb", json!(self.ram_gib)),
            ("gpuInfo", json!(lines)),
            ("arch", json!(self.arch)),
            ("kernel", json!(self.kernel)),
            ("machine_id", json!(self.machine_id)),
            ("boot_id", json!(self.boot_id)),
        ])
    }
}

fn object<const N: usize>(fields: [(&str, Value); N]) -> Map<String, Value> {
    fields.map(|(name, value)| (name.to_owned(), value)).into_iter().collect()
}

/// One GPU, seen without a driver.
#[derive(Debug, Clone, PartialEq)]
pub struct Gpu {
    /// Its PCI address.
    pub address: PciAddress,
    /// The line that plain `lspci` prints for it.
    pub line: String,
    /// Its name from the PCI ID list, else vendor and device in hexadecimal.
    pub name: String,
    /// PCI vendor ID.
    pub vendor_id: u16,
    /// PCI device ID.
    pub device_id: u16,
    /// PCI class, four hexadecimal digits (`0302`).
    pub class: u16,
    /// The bound driver's name.
    pub driver: Option<String>,
    /// Its IOMMU group's number.
    pub iommu_group: Option<u32>,
    /// Every other function of its group, bridges left out.
    pub companions: Vec<PciAddress>,
    /// The NUMA node; `None` where the kernel says -1.
    pub numa_node: Option<u32>,
    /// What the CLI is given for it: `/dev/vfio/N` or `/dev/vfio/devices/vfioN`; for a plain runtime its render nodes,
    /// joined by commas, or its UUID by NVIDIA's driver; or a CDI name (`vendor/class=name`).
    pub device_node: Option<String>,
    /// Whether it can be handed out now, as far as the host tells (who has it is the core's business).
    pub verdict: Verdict,
    /// What its registers and the kernel say about it.
    pub health: Health,
}

impl Gpu {
    /// A GPU that can be handed out by VFIO, alone in its IOMMU group: what tests begin with.
    pub fn example(bus: u8) -> Self {
        Self {
            address: PciAddress { domain: 0, bus, device: 0, function: 0 },
            line: String::new(),
            name: String::new(),
            vendor_id: 0x10de,
            device_id: 0x2330,
            class: 0x0302,
            driver: Some("vfio-pci".into()),
            iommu_group: Some(bus.into()),
            companions: Vec::new(),
            numa_node: None,
            device_node: Some(format!("/dev/vfio/{bus}")),
            verdict: Verdict::Assignable,
            health: Health::Ok,
        }
    }

    /// What it is, in the wire's names: every description of a GPU begins with it.
    pub fn described(&self) -> Map<String, Value> {
        object([
            ("pci_address", self.address.to_string().into()),
            ("vendor_id", format!("{:04x}", self.vendor_id).into()),
            ("device_id", format!("{:04x}", self.device_id).into()),
            ("name", self.name.as_str().into()),
            ("class", format!("{:04x}", self.class).into()),
            ("driver", json!(self.driver)),
            ("iommu_group", json!(self.iommu_group)),
            ("numa_node", json!(self.numa_node)),
            ("health", self.health.as_str().into()),
        ])
    }

    /// [`Gpu::judgement`] in a line for a person: `assignable as /dev/vfio/18`, `assignable as …, but suspect: …`,
    /// `not assignable: …`.
    pub fn summary(&self) -> String {
        let Judgement { assignable, health, reason } = self.judgement();
        let health = match health {
            "ok" => String::new(),
            "unknown" => "health unknown: ".to_owned(),
            word => format!("{word}: "),
        };
        let device = self.device_node.as_deref().map(|device| format!(" as {device}")).unwrap_or_default();
        match reason {
            None => format!("assignable{device}"),
            Some(reason) if assignable => format!("assignable{device}, but {health}{reason}"),
            Some(reason) => format!("not assignable: {health}{reason}"),
        }
    }

    /// What the host says of it, as every report and command shows it. Who has the GPU is not part of it.
    pub fn judgement(&self) -> Judgement {
        let blocked = match &self.verdict {
            Verdict::Assignable => None,
            Verdict::Held(why) | Verdict::Obstructed(why) => Some(why.as_str()),
        };
        let reasons: Vec<&str> = self.health.reason().into_iter().chain(blocked).collect();
        Judgement {
            assignable: blocked.is_none() && !matches!(self.health, Health::Failed(_)),
            health: self.health.as_str(),
            reason: Some(reasons.join("; ")).filter(|reason| !reason.is_empty()),
        }
    }
}

/// What is said of a GPU: [`Gpu::judgement`] by the host alone, which the node's GPU table completes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Judgement {
    /// Whether it can be handed out once nobody has it.
    pub assignable: bool,
    /// The wire's word: `ok`, `suspect`, `failed` or `unknown`.
    pub health: &'static str,
    /// What is wrong, first its health and then what blocks it; `None` when nothing is.
    pub reason: Option<String>,
}

/// How GPUs reach a container.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Handover {
    /// By the VFIO node of each IOMMU group, for a microVM.
    Vfio,
    /// By the host's NVIDIA driver, which knows each GPU by its UUID.
    Nvidia,
    /// By the host's amdgpu driver: /dev/kfd and the render nodes.
    Amd,
    /// By CDI names (Container Device Interface), which the CLI resolves.
    Cdi,
    /// Not at all: deploys with GPUs are refused.
    Disabled,
}

/// Whether a GPU can be handed to a microVM.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// Nothing stands in the way.
    Assignable,
    /// Nothing but that a process has its group open, which may well be a replica's microVM: says which process.
    Held(String),
    /// Something does: the exact obstacle and device, with what to do.
    Obstructed(String),
}

/// A GPU's health, judged without a driver.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Health {
    /// Every reading was taken and is well.
    Ok,
    /// Usable, but something is off: says what.
    Suspect(String),
    /// Not to be handed out: says why.
    Failed(String),
    /// A reading could not be taken: says which.
    Unknown(String),
}

impl Health {
    /// The wire's word.
    pub fn as_str(&self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Suspect(_) => "suspect",
            Self::Failed(_) => "failed",
            Self::Unknown(_) => "unknown",
        }
    }

    /// What is wrong, or was not readable.
    pub fn reason(&self) -> Option<&str> {
        match self {
            Self::Ok => None,
            Self::Suspect(why) | Self::Failed(why) | Self::Unknown(why) => Some(why),
        }
    }
}

/// One dependency of the node, checked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Check {
    /// `containerd`, `nerdctl`, `cni`, `kata-runtime`, `virtiofsd`, `kvm` or `vfio`: the wire's name.
    pub name: &'static str,
    /// What it is, for a person (`Container runtime`).
    pub purpose: &'static str,
    /// Whether this node needs it for what it is configured to do.
    pub required: bool,
    /// Whether it was found.
    pub installed: bool,
    /// Whether it was found and works.
    pub ok: bool,
    /// Its version, where it has one.
    pub version: Option<String>,
    /// Loaded or built-in VFIO modules (`vfio` alone).
    pub modules: Option<u32>,
    /// The microVMs that the runtime makes (`kata-runtime` alone); `None`: it makes none.
    pub microvm: Option<MicroVm>,
    /// What was found, and what to do when it is not ok.
    pub detail: String,
}

impl Check {
    /// As `system_info` and `vectorlay-agent check` show it.
    pub fn described(&self) -> Value {
        let mut map = object([
            ("installed", self.installed.into()),
            ("required", self.required.into()),
            ("ok", self.ok.into()),
            ("detail", self.detail.as_str().into()),
        ]);
        map.extend(self.version.as_deref().map(|version| ("version".to_owned(), version.into())));
        map.extend(self.modules.map(|modules| ("modules".to_owned(), modules.into())));
        map.into()
    }
}

/// The microVMs that a runtime makes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MicroVm {
    /// MiB that each takes besides its container's memory limit: for the guest's system and the hypervisor; `None`: not
    /// known.
    pub overhead_mib: Option<u64>,
}

/// What changes all the time.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Usage {
    /// MemTotal minus MemAvailable, and MemTotal, in GiB, rounded; `None` when /proc/meminfo could not be read.
    pub memory_gib: Option<(u32, u32)>,
    /// The data path's file system.
    pub storage: Option<Storage>,
    /// Bytes that a user without privileges may still write on the data path.
    pub free_bytes: Option<u64>,
    /// The use of the GPUs that the host can see.
    pub gpus: Vec<GpuUse>,
}

/// One GPU's use, as one who can see it says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct GpuUse {
    /// Who says so.
    pub source: &'static str,
    /// Share of time in which something ran on it, in percent.
    pub busy_percent: Option<u8>,
    /// Its memory in use and in all, in MiB.
    pub memory_mib: Option<(u64, u64)>,
}

/// A file system's fill, as `df` counts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Storage {
    /// The path that was asked about.
    pub path: String,
    /// Size in GiB, rounded.
    pub total_gb: u64,
    /// Used in GiB, rounded.
    pub used_gb: u64,
    /// What `df` prints as `Use%`: used / (used + available), rounded up.
    pub usage_percent: u8,
}

impl Storage {
    /// As messages and `vectorlay-agent info` show it.
    pub fn described(&self) -> Value {
        json!({
            "path": self.path,
            "total_gb": self.total_gb,
            "used_gb": self.used_gb,
            "usage_percent": self.usage_percent,
        })
    }
}
