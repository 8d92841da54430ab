//! The IOMMU, its groups, and whether a GPU can be handed to a microVM.
//!
//! A group can be handed out ("is viable") when each of its members has no driver, or one that leaves DMA to the
//! user (vfio-pci and its variants, pci-stub, pcieport), or is a PCI bridge: the kernel's rule since Linux 5.19
//! (`iommu_device_claim_dma_owner`, `driver_managed_dma`). The group's node in /dev exists as soon as one member is
//! bound to vfio-pci, so it says nothing about the others. No node is ever opened here: opening a group to see
//! whether it is free takes it from a microVM that is just starting.

use std::fmt;
use std::path::Path;

use super::files;
use super::holders::Holders;
use super::pci::{Function, NVIDIA};
use crate::core::inventory::Verdict;

/// The kernel's IOMMU, as far as devices can be handed out by it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Iommu {
    /// Whether it is on: it has units and groups.
    pub on: bool,
    /// What to do when it is off.
    advice: Advice,
}

/// What turns this machine's IOMMU on.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Advice {
    /// A kernel parameter turns it off: this one has to go.
    Remove(String),
    /// Intel: the kernel has to be told.
    Intel,
    /// Intel, and the kernel was told already.
    IntelFirmware,
    /// AMD: on by default when the firmware offers it.
    AmdFirmware,
    /// Other processors (ARM's SMMU).
    Firmware,
    /// A virtual machine: its own kernel cannot do it alone.
    Hypervisor,
}

impl fmt::Display for Advice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Remove(word) => write!(f, "take {word} off the kernel's command line"),
            Self::Intel => f.write_str(
                "turn VT-d on in the firmware and add intel_iommu=on iommu=pt to the kernel's command line",
            ),
            Self::IntelFirmware => {
                f.write_str("the kernel was told intel_iommu=on: turn VT-d on in the firmware")
            }
            Self::AmdFirmware => f.write_str("turn AMD-Vi (IOMMU) on in the firmware"),
            Self::Firmware => f.write_str("turn the SMMU on in the firmware"),
            Self::Hypervisor => f.write_str(
                "this is a virtual machine: its hypervisor has to give it an IOMMU (on Intel also add \
                 intel_iommu=on iommu=pt to the kernel's command line)",
            ),
        }
    }
}

impl Iommu {
    /// Reads it.
    pub fn read(root: &Path) -> Self {
        let units = files::names(&root.join("sys/class/iommu"));
        let groups = files::names(&root.join("sys/kernel/iommu_groups"));
        Self { on: !units.is_empty() && !groups.is_empty(), advice: Advice::read(root) }
    }

    /// The kernel parameters that are missing on its command line; empty when it is on, or when parameters are not
    /// what is missing.
    pub fn missing_parameters(&self) -> &'static str {
        if !self.on && self.advice == Advice::Intel { "intel_iommu=on iommu=pt" } else { "" }
    }

    /// What turns it on; `None` when it is on.
    pub fn advice(&self) -> Option<String> {
        (!self.on).then(|| self.advice.to_string())
    }
}

impl Advice {
    fn read(root: &Path) -> Self {
        let parameters = files::value(&root.join("proc/cmdline")).unwrap_or_default();
        // Of several, the last one counts.
        let value = |name: &str| {
            let of_name = |word: &str| word.strip_prefix(name)?.strip_prefix('=').map(str::to_owned);
            parameters.split_whitespace().filter_map(of_name).next_back()
        };
        let off = |name: &str| value(name).is_some_and(|v| v.split(',').any(|part| part == "off"));
        if let Some(name) = ["iommu", "intel_iommu", "amd_iommu"].into_iter().find(|n| off(n)) {
            return Self::Remove(format!("{name}=off"));
        }
        let cpu = files::value(&root.join("proc/cpuinfo")).unwrap_or_default();
        let told = value("intel_iommu").is_some_and(|v| v.split(',').any(|part| part == "on"));
        if cpu.split_whitespace().any(|word| word == "hypervisor") {
            Self::Hypervisor
        } else if cpu.contains("GenuineIntel") {
            if told { Self::IntelFirmware } else { Self::Intel }
        } else if cpu.contains("AuthenticAMD") || cpu.contains("HygonGenuine") {
            Self::AmdFirmware
        } else {
            Self::Firmware
        }
    }
}

/// Whether the group gives no isolation at all: VFIO's "no IOMMU" mode makes groups of that name.
pub fn is_noiommu(root: &Path, group: u32) -> bool {
    let name = root.join("sys/kernel/iommu_groups").join(group.to_string()).join("name");
    files::value(&name).is_some_and(|n| n == "vfio-noiommu")
}

/// The node that the CLI's `--device` is given for a GPU: its group's, or its own of the newer interface where the
/// kernel has no group nodes. `None` when neither exists.
pub fn device_node(root: &Path, of: &Function) -> Option<String> {
    let group = of.group.map(|n| format!("/dev/vfio/{n}"));
    let own = of.vfio_device.as_ref().map(|name| format!("/dev/vfio/devices/{name}"));
    let exists = |node: &String| root.join(node.trim_start_matches('/')).exists();
    group.filter(exists).or_else(|| own.filter(exists))
}

/// The module that maps a guest's memory for its devices. kmod's modprobe loads it after vfio by itself, busybox's does
/// not, and without it a hypervisor gets "No such device" only when the microVM starts.
pub const BACKEND: &str = "vfio_iommu_type1";

/// Whether [`BACKEND`] is there, loaded or built in (it has parameters, so it shows either way), or what other machines
/// and newer kernels have instead: POWER's, iommufd.
pub fn has_backend(root: &Path) -> bool {
    let paths = ["sys/module/vfio_iommu_type1", "sys/module/vfio_iommu_spapr_tce", "dev/iommu"];
    paths.iter().any(|p| root.join(p).exists())
}

/// Every node of VFIO by which a process can have `of` or its group, whether it exists or not.
pub fn vfio_nodes(of: &Function) -> impl Iterator<Item = String> {
    let group = of.group.map(|n| format!("/dev/vfio/{n}"));
    group.into_iter().chain(of.vfio_device.as_ref().map(|name| format!("/dev/vfio/devices/{name}")))
}

/// What stands between a GPU and a microVM.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Obstacle {
    /// The IOMMU is off.
    Off {
        /// What turns it on.
        advice: String,
    },
    /// The IOMMU is on, but not for this device.
    NoGroup,
    /// Its group is one of VFIO's "no IOMMU" mode.
    NoIsolation,
    /// It is the boot display, and a driver of the host's or none has it.
    BootDisplay,
    /// Its virtual functions are on.
    VirtualFunctions {
        /// How many.
        on: u32,
    },
    /// It has no driver.
    Unbound,
    /// A driver of the host's has it.
    Driver(String),
    /// A driver of the host's has another member of its group.
    Companion {
        /// The member.
        label: String,
        /// Its driver.
        driver: String,
    },
    /// Its group has no node in /dev.
    NoNode,
    /// [`BACKEND`] is not loaded.
    NoBackend,
}

/// An obstacle together with the device, as text.
struct DescribedObstacle<'a>(&'a Function, &'a Obstacle);

impl fmt::Display for DescribedObstacle<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let address = self.0.address;
        let group = self.0.group.unwrap_or_default();
        match self.1 {
            Obstacle::Off { advice } => {
                write!(f, "the IOMMU is off, so {address} cannot be isolated; {advice}")
            }
            Obstacle::NoGroup => write!(
                f,
                "{address} is behind no IOMMU although there is one; turn on what the firmware calls VT-d, AMD-Vi \
                 or SMMU for its slot, or move the card"
            ),
            Obstacle::NoIsolation => write!(
                f,
                "group {group} of {address} is in VFIO's no-IOMMU mode, which isolates nothing; take \
                 vfio.enable_unsafe_noiommu_mode off the kernel's command line and turn the IOMMU on"
            ),
            Obstacle::BootDisplay => write!(
                f,
                "{address} is the boot display; make another one the primary display in the firmware, or take it \
                 with `vectorlay-agent vfio bind --force {address}`"
            ),
            Obstacle::VirtualFunctions { on } => write!(
                f,
                "{address} has {on} virtual functions switched on; {}",
                virtual_functions_advice(self.0)
            ),
            Obstacle::Unbound => {
                write!(f, "{address} has no driver; run `vectorlay-agent vfio bind {address}`")
            }
            Obstacle::Driver(driver) => {
                write!(f, "{address} is bound to {driver}; run `vectorlay-agent vfio bind {address}`")
            }
            Obstacle::Companion { label, driver } => write!(
                f,
                "{label}, in the same IOMMU group {group} as {address}, is bound to {driver}; run `vectorlay-agent \
                 vfio bind {address}`, which binds the whole group"
            ),
            Obstacle::NoNode => write!(
                f,
                "{address} is bound, but /dev/vfio/{group} does not exist; see that the vfio module is loaded and that \
                 /dev is a devtmpfs"
            ),
            Obstacle::NoBackend => write!(
                f,
                "{address} is bound, but the module {BACKEND}, which maps memory for it, is not loaded; run `modprobe \
                 {BACKEND}`"
            ),
        }
    }
}

/// What to do about virtual functions that are on. NVIDIA's are vGPUs, which need NVIDIA's driver on the host.
pub fn virtual_functions_advice(of: &Function) -> &'static str {
    if of.vendor == NVIDIA {
        "they are NVIDIA's vGPUs, which stay with its driver: switch them off with `nvidia-sriov-manage -d` to hand out the \
         whole GPU"
    } else {
        "bind those to vfio-pci instead, or write 0 to its sriov_numvfs"
    }
}

/// Whether `of` can be handed out. `members` are the other functions of its group; `node` is its [`device_node`].
pub fn verdict(
    root: &Path,
    iommu: &Iommu,
    of: &Function,
    members: &[Function],
    node: Option<&str>,
    holders: &Holders,
) -> Verdict {
    if let Some(obstacle) = obstacle(root, iommu, of, members, node) {
        return Verdict::Obstructed(DescribedObstacle(of, &obstacle).to_string());
    }
    let nodes = std::iter::once(of).chain(members).flat_map(vfio_nodes);
    match nodes.filter_map(|n| Some((holders.of(&n)?, n))).next() {
        Some((holder, node)) => Verdict::Held(format!("{node} is held by {holder}; wait for its end")),
        None => Verdict::Assignable,
    }
}

/// The first obstacle, from the machine's to the device's.
pub fn obstacle(
    root: &Path,
    iommu: &Iommu,
    of: &Function,
    members: &[Function],
    node: Option<&str>,
) -> Option<Obstacle> {
    match of.group {
        Some(group) if is_noiommu(root, group) => return Some(Obstacle::NoIsolation),
        Some(_) if iommu.on => {}
        None if iommu.on => return Some(Obstacle::NoGroup),
        _ => return Some(Obstacle::Off { advice: iommu.advice.to_string() }),
    }
    if let Some(sriov) = of.sriov.filter(|s| s.on > 0) {
        return Some(Obstacle::VirtualFunctions { on: sriov.on });
    }
    if !of.has_vfio_driver() {
        return Some(match &of.driver {
            _ if of.boot_display => Obstacle::BootDisplay,
            Some(driver) => Obstacle::Driver(driver.clone()),
            None => Obstacle::Unbound,
        });
    }
    if let Some(member) = members.iter().find(|m| !leaves_group_viable(m)) {
        let driver = member.driver.clone().unwrap_or_default();
        return Some(Obstacle::Companion { label: member.label(), driver });
    }
    match node {
        None => Some(Obstacle::NoNode),
        Some(_) => (!has_backend(root)).then_some(Obstacle::NoBackend),
    }
}

/// The kernel's rule for one member.
fn leaves_group_viable(member: &Function) -> bool {
    match member.driver.as_deref() {
        None => true,
        Some(driver) => {
            member.is_bridge() || member.has_vfio_driver() || matches!(driver, "pci-stub" | "pcieport")
        }
    }
}
