//! GPUs for plain runtimes, which share the host's driver instead of taking the device from it: what the container CLI
//! is given for each, and what stands in the way. [`super::iommu`] judges the same for microVMs.

use std::fmt;
use std::path::Path;

use super::pci::{self, AMD, NVIDIA};
use super::sysfs;
use crate::core::inventory::{Gpu, Verdict};
use crate::types::PciAddress;

/// The node that all of AMD's GPUs share for computing.
const KFD: &str = "/dev/kfd";

/// How GPUs reach a container without VFIO.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Way {
    /// By NVIDIA's driver: each is named by its UUID.
    Nvidia,
    /// By amdgpu: each by its render node; /dev/kfd comes with any of them.
    Amd,
    /// Not at all.
    Nowise,
}

impl Way {
    /// The vendor whose GPUs it is for, its name, the driver, and the setting's word.
    const fn needs(self) -> (u16, &'static str, &'static str) {
        match self {
            Self::Nvidia => (NVIDIA, "NVIDIA", "nvidia"),
            Self::Amd => (AMD, "AMD", "amdgpu"),
            Self::Nowise => (0, "", ""),
        }
    }
}

/// Judges `gpus` anew, for a node that hands them over in this `way`.
pub fn apply(root: &Path, way: Way, gpus: &mut [Gpu]) {
    for gpu in gpus {
        (gpu.device_node, gpu.verdict) = match device(root, way, gpu) {
            Ok(device) => (Some(device), Verdict::Assignable),
            Err(obstacle) => (None, Verdict::Obstructed(obstacle.to_string())),
        };
    }
}

/// What stands between a GPU and a container.
#[derive(Debug)]
enum Obstacle {
    /// The settings.
    Nowise,
    /// It is another vendor's.
    Vendor(PciAddress, Way),
    /// The vendor's driver does not have it; this one does.
    Driver(PciAddress, Way, Option<String>),
    /// NVIDIA's driver does not say its UUID.
    NoUuid(PciAddress),
    /// amdgpu made no render node for it.
    NoRenderNode(PciAddress),
    /// There is no [`KFD`].
    NoKfd(PciAddress),
}

impl fmt::Display for Obstacle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Nowise => {
                f.write_str("this node hands out no GPUs; change the setting gpu_handover if it should")
            }
            Self::Vendor(address, way) => write!(
                f,
                "{address} is not by {vendor}, whose GPUs this node hands out; change the setting gpu_handover to \
                 hand out others instead",
                vendor = way.needs().1
            ),
            Self::Driver(address, way, found) => {
                let wanted = way.needs().2;
                match found.as_deref() {
                    Some(driver) if pci::is_vfio_driver(driver) => write!(
                        f,
                        "{address} is bound to {driver}; give it back to {wanted} with `vectorlay-agent vfio unbind \
                         {address}`, or set gpu_handover to vfio"
                    ),
                    Some(driver) => {
                        write!(
                            f,
                            "{address} is bound to {driver}; it takes the driver {wanted} to hand it over"
                        )
                    }
                    None => write!(f, "{address} has no driver; run `modprobe {wanted}`"),
                }
            }
            Self::NoUuid(address) => write!(
                f,
                "NVIDIA's driver does not say the UUID of {address}, which it has not started; start \
                 nvidia-persistenced, and look for NVRM in the kernel's log if that does not help"
            ),
            Self::NoRenderNode(address) => write!(
                f,
                "amdgpu has no render node for {address}; look for amdgpu in the kernel's log, and see that /dev is a \
                 devtmpfs"
            ),
            Self::NoKfd(address) => write!(
                f,
                "{KFD}, which computing on {address} takes, does not exist; load amdgpu with a kernel that has \
                 CONFIG_HSA_AMD, or one with ROCm's driver"
            ),
        }
    }
}

/// What the CLI is given for a GPU.
fn device(root: &Path, way: Way, gpu: &Gpu) -> Result<String, Obstacle> {
    let address = gpu.address;
    let (vendor, _, driver) = way.needs();
    if way == Way::Nowise {
        return Err(Obstacle::Nowise);
    }
    if gpu.vendor_id != vendor {
        return Err(Obstacle::Vendor(address, way));
    }
    if gpu.driver.as_deref() != Some(driver) {
        return Err(Obstacle::Driver(address, way, gpu.driver.clone()));
    }
    if way == Way::Nvidia {
        return uuid(root, address).ok_or(Obstacle::NoUuid(address));
    }
    let node = render_node(root, address).ok_or(Obstacle::NoRenderNode(address))?;
    if root.join(KFD.trim_start_matches('/')).exists() { Ok(node) } else { Err(Obstacle::NoKfd(address)) }
}

/// The number of a GPU's node: N of /dev/nvidiaN.
pub(super) fn nvidia_minor(root: &Path, address: PciAddress) -> Option<u32> {
    told(root, address, "Device Minor:")?.parse().ok()
}

/// The UUID is `GPU-` and the usual digits, which are question marks as long as the driver has not started the GPU.
fn uuid(root: &Path, address: PciAddress) -> Option<String> {
    let uuid = told(root, address, "GPU UUID:")?;
    let digits = uuid.strip_prefix("GPU-")?;
    let fits = digits.len() == 36 && digits.bytes().all(|b| b.is_ascii_hexdigit() || b == b'-');
    fits.then_some(uuid)
}

/// What NVIDIA's driver tells about a GPU, in lines of `Name: \t value`.
fn told(root: &Path, address: PciAddress, name: &str) -> Option<String> {
    let file = root.join("proc/driver/nvidia/gpus").join(address.to_string()).join("information");
    let text = sysfs::text(&file)?;
    Some(text.lines().find_map(|line| line.strip_prefix(name))?.trim().to_owned())
}

/// The DRM subsystem lists the nodes of a device in its folder (`card1`, `renderD129`).
fn render_node(root: &Path, address: PciAddress) -> Option<String> {
    let names = sysfs::names(&pci::folder(root, address).join("drm"));
    let number = |name: &str| name.strip_prefix("renderD")?.parse::<u32>().ok();
    let node = names.iter().find_map(|name| number(name)).map(|number| format!("dev/dri/renderD{number}"))?;
    root.join(&node).exists().then(|| format!("/{node}"))
}
