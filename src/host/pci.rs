//! The PCI functions of the host, as sysfs shows them under `/sys/bus/pci/devices`.
//!
//! It reads only, and nothing that wakes or touches a device: kernel documentation
//! `Documentation/ABI/testing/sysfs-bus-pci` names each attribute.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use super::files;
use crate::types::PciAddress;

/// NVIDIA's PCI vendor ID.
pub const NVIDIA: u16 = 0x10de;
/// AMD's (ATI's) PCI vendor ID for GPUs. Its processors and chipsets have 1022.
pub const AMD: u16 = 0x1002;
/// The class of a PCI-to-PCI bridge and of a PCIe port.
pub const BRIDGE: u16 = 0x0604;
/// The class that AMD's Instinct MI300 and later have: processing accelerators.
const ACCELERATOR: u16 = 0x1200;
/// The base class of display controllers: VGA 0300, 3D 0302, other 0380.
const DISPLAY_BASE: u16 = 0x03;
/// Most functions that are looked at: a host with 16 GPUs and all their virtual functions has some 2,000.
const FUNCTIONS_MAX: usize = 16_384;

/// One PCI function.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Function {
    /// Its address.
    pub address: PciAddress,
    /// Base class and subclass (`0302`).
    pub class: u16,
    /// Vendor ID.
    pub vendor: u16,
    /// Device ID.
    pub device: u16,
    /// Revision.
    pub revision: u8,
    /// The bound driver.
    pub driver: Option<String>,
    /// The IOMMU group; `None`: it is behind no IOMMU that is on.
    pub group: Option<u32>,
    /// The NUMA node; `None` where the kernel says -1.
    pub numa_node: Option<u32>,
    /// Whether the console is on it: the firmware chose it as the boot display, or it drives a screen and is not a VGA
    /// controller, of which the firmware's choice is not known.
    pub boot_display: bool,
    /// Virtual functions that are switched on and that it could have at most; `None` when it has no SR-IOV.
    pub sriov: Option<Sriov>,
    /// Whether something has switched it on (`enable`). While a VFIO driver has it, that is a process that opened it;
    /// but some drivers forget to switch their device off when they let it go.
    pub enabled: bool,
    /// The physical function that it is a virtual function of.
    pub physical: Option<PciAddress>,
    /// Its character device of VFIO's newer interface (`vfio3`; Linux 6.1 and later, while bound to vfio-pci).
    pub vfio_device: Option<String>,
}

/// SR-IOV of a physical function.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Sriov {
    /// Virtual functions that are on.
    pub on: u32,
    /// Virtual functions that it could have.
    pub most: u32,
}

impl Function {
    /// Whether it is a GPU that this node may offer: class 03xx or 1200 by NVIDIA or AMD.
    ///
    /// A virtual function is one only while a VFIO driver has it: then somebody has set it up to be handed out.
    /// Those without a driver or with the host's are parts of their physical function, and counting them would make
    /// one card sixteen.
    pub fn is_gpu(&self) -> bool {
        let class = self.class >> 8 == DISPLAY_BASE || self.class == ACCELERATOR;
        let vendor = matches!(self.vendor, NVIDIA | AMD);
        let whole = self.physical.is_none() || self.has_vfio_driver();
        class && vendor && whole
    }

    /// Whether it is a bridge, which needs no driver of its own for its group to be handed out.
    pub fn is_bridge(&self) -> bool {
        self.class == BRIDGE
    }

    /// Whether vfio-pci or one of its variants has it.
    pub fn has_vfio_driver(&self) -> bool {
        self.driver.as_deref().is_some_and(is_vfio_driver)
    }

    /// `0000:41:00.1 (10de:1aef)`, for messages.
    pub fn label(&self) -> String {
        format!("{} ({:04x}:{:04x})", self.address, self.vendor, self.device)
    }
}

/// Whether `driver` is vfio-pci or a variant of it (`mlx5-vfio-pci`, `nvgrace_gpu_vfio_pci`): the kernel's variants
/// all end so, with either sign.
pub fn is_vfio_driver(driver: &str) -> bool {
    driver.ends_with("vfio-pci") || driver.ends_with("vfio_pci")
}

/// The folder of one function's attributes.
pub fn folder(root: &Path, address: PciAddress) -> PathBuf {
    root.join("sys/bus/pci/devices").join(address.to_string())
}

/// All functions, by address. One that goes away while it is read is left out. A machine whose kernel has no PCI at
/// all has none.
///
/// # Errors
/// When the bus cannot be listed: then nothing is known, which is not the same as no device.
pub fn functions(root: &Path) -> Result<Vec<Function>, String> {
    let path = root.join("sys/bus/pci/devices");
    let failed = |error: io::Error| {
        let path = path.display();
        format!("cannot list the PCI devices in {path}: {error}; see that /sys is mounted and readable")
    };
    let entries = match fs::read_dir(&path) {
        Ok(entries) => entries,
        Err(e) if e.kind() == io::ErrorKind::NotFound && root.join("sys/bus").is_dir() => {
            return Ok(Vec::new());
        }
        Err(error) => return Err(failed(error)),
    };
    let mut functions = Vec::new();
    for entry in entries.take(FUNCTIONS_MAX) {
        let entry = entry.map_err(failed)?;
        functions.extend(read(&entry.path()));
    }
    functions.sort_by_key(|function| function.address);
    Ok(functions)
}

/// Whether the console is on this function. `boot_vga` is there for class 0300 alone, `boot_display` since Linux 6.17 for
/// all. Without either, a frame buffer or a screen that is connected says so; neither is there while a VFIO driver has it.
fn is_console(folder: &Path, class: u16) -> bool {
    let chosen = ["boot_vga", "boot_display"].map(|name| files::number::<u32>(&folder.join(name)));
    if chosen.contains(&Some(1)) || chosen.iter().any(Option::is_some) || class >> 8 != DISPLAY_BASE {
        return chosen.contains(&Some(1));
    }
    let drm = folder.join("drm");
    let connected = |card: &String| {
        let connectors = files::names(&drm.join(card)).into_iter().filter(|name| name.starts_with("card"));
        connectors
            .map(|name| drm.join(card).join(name).join("status"))
            .any(|status| files::value(&status).as_deref() == Some("connected"))
    };
    files::names(&folder.join("graphics")).iter().any(|name| name.starts_with("fb"))
        || files::names(&drm).iter().any(connected)
}

/// Reads one function's folder.
fn read(folder: &Path) -> Option<Function> {
    let at = |name: &str| folder.join(name);
    let word = |name: &str| files::hex(&at(name)).and_then(|v| u16::try_from(v).ok());
    let address = PciAddress::parse(folder.file_name()?.to_str()?).ok()?;
    let most = files::number(&at("sriov_totalvfs"));
    let on = files::number(&at("sriov_numvfs")).unwrap_or(0);
    // 24 bits: the last eight are the programming interface.
    let class = u16::try_from(files::hex(&at("class"))? >> 8).ok()?;
    Some(Function {
        address,
        class,
        vendor: word("vendor")?,
        device: word("device")?,
        revision: word("revision").and_then(|v| u8::try_from(v).ok()).unwrap_or(0),
        driver: files::link_name(&at("driver")),
        group: files::link_name(&at("iommu_group")).and_then(|n| n.parse().ok()),
        numa_node: files::number(&at("numa_node")),
        boot_display: is_console(folder, class),
        sriov: most.map(|most| Sriov { on, most }),
        enabled: files::number::<u32>(&at("enable")).is_some_and(|n| n > 0),
        physical: files::link_name(&at("physfn")).and_then(|n| PciAddress::parse(&n).ok()),
        vfio_device: files::names(&at("vfio-dev")).into_iter().find(|n| n.starts_with("vfio")),
    })
}
