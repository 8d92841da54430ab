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
    /// Intel: the kernel needs a parameter.
    Intel,
    /// Intel, and the kernel has the parameter already.
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
                f.write_str("the kernel already has intel_iommu=on: turn VT-d on in the firmware")
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
        return Verdict::Obstructed(obstacle);
    }
    let nodes = std::iter::once(of).chain(members).flat_map(vfio_nodes);
    match nodes.filter_map(|n| Some((holders.of(&n)?, n))).next() {
        Some((holder, node)) => Verdict::Held(format!("{node} is held by {holder}; wait for its end")),
        None => Verdict::Assignable,
    }
}

/// The first obstacle between a GPU and a microVM, from the machine's to the device's, and what to do about it.
fn obstacle(
    root: &Path,
    iommu: &Iommu,
    of: &Function,
    members: &[Function],
    node: Option<&str>,
) -> Option<String> {
    let address = of.address;
    let group = match of.group {
        Some(group) if is_noiommu(root, group) => {
            return Some(format!(
                "group {group} of {address} is in VFIO's no-IOMMU mode, which isolates nothing; take \
                 vfio.enable_unsafe_noiommu_mode off the kernel's command line and turn the IOMMU on"
            ));
        }
        Some(group) if iommu.on => group,
        None if iommu.on => {
            return Some(format!(
                "{address} is behind no IOMMU although there is one; turn on what the firmware calls VT-d, AMD-Vi or \
                 SMMU for its slot, or move the card"
            ));
        }
        _ => return Some(format!("the IOMMU is off, so {address} cannot be isolated; {}", iommu.advice)),
    };
    if let Some(sriov) = of.sriov.filter(|s| s.on > 0) {
        let advice = virtual_functions_advice(of);
        return Some(format!("{address} has {} virtual functions switched on; {advice}", sriov.on));
    }
    if !of.has_vfio_driver() {
        return Some(match &of.driver {
            _ if of.boot_display => format!(
                "{address} is the boot display; make another one the primary display in the firmware, or take it with \
                 `vectorlay-agent vfio bind --force {address}`"
            ),
            Some(driver) => {
                format!("{address} is bound to {driver}; run `vectorlay-agent vfio bind {address}`")
            }
            None => format!("{address} has no driver; run `vectorlay-agent vfio bind {address}`"),
        });
    }
    if let Some(member) = members.iter().find(|m| !leaves_group_viable(m)) {
        return Some(format!(
            "{}, in the same IOMMU group {group} as {address}, is bound to {}; run `vectorlay-agent vfio bind \
             {address}`, which binds the whole group",
            member.label(),
            member.driver.as_deref().unwrap_or_default()
        ));
    }
    if node.is_none() {
        return Some(format!(
            "{address} is bound, but /dev/vfio/{group} does not exist; see that the vfio module is loaded and that \
             /dev is a devtmpfs"
        ));
    }
    (!has_backend(root)).then(|| {
        format!(
            "{address} is bound, but the module {BACKEND}, which maps memory for it, is not loaded; run `modprobe \
             {BACKEND}`"
        )
    })
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
