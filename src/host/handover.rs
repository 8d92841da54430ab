//! What the container CLI is given for each GPU where the runtime shares the host's driver, or where CDI names are used,
//! and what stands in the way. [`super::iommu`] judges the same for microVMs.

use std::collections::BTreeSet;
use std::path::Path;

use super::files;
use super::pci::{self, AMD, NVIDIA};
use crate::core::inventory::{Gpu, Handover, Verdict};
use crate::types::PciAddress;

/// The node that all of AMD's GPUs share for computing.
const KFD: &str = "/dev/kfd";
/// Where amdgpu lists what computes: a folder for each CPU and each GPU, or for each partition of a GPU.
const KFD_TOPOLOGY: &str = "/sys/class/kfd/kfd/topology/nodes";

/// How CDI names are made. What they stand for is in files that the CLI reads; whether it knows them is its judgement.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CdiNames {
    /// `vendor/class`.
    pub kind: String,
    /// The device's name is the GPU's UUID; otherwise its index.
    pub by_uuid: bool,
}

/// Judges `gpus` anew for this way of handing them over; an inventory judges them for [`Handover::Vfio`].
pub fn apply(root: &Path, handover: Handover, cdi: &CdiNames, gpus: &mut [Gpu]) {
    let devices: Vec<Result<String, String>> = match handover {
        Handover::Vfio => return,
        Handover::Nvidia => gpus.iter().map(|gpu| nvidia(root, gpu)).collect(),
        Handover::Amd => gpus.iter().map(|gpu| amd(root, gpu)).collect(),
        Handover::Cdi => gpus.iter().map(|gpu| cdi_name(root, cdi, gpu, gpus)).collect(),
        Handover::Disabled => {
            let why = "this node hands out no GPUs; change the setting gpu_handover if it should";
            gpus.iter().map(|_| Err(why.to_owned())).collect()
        }
    };
    for (gpu, device) in gpus.iter_mut().zip(devices) {
        (gpu.device_node, gpu.verdict) = match device {
            Ok(device) => (Some(device), Verdict::Assignable),
            Err(obstacle) => (None, Verdict::Obstructed(obstacle)),
        };
    }
}

/// The UUID by which NVIDIA's tools know the GPU.
fn nvidia(root: &Path, gpu: &Gpu) -> Result<String, String> {
    has_driver(gpu, NVIDIA, "NVIDIA", "nvidia")?;
    uuid(root, gpu.address)
}

/// The GPU's render nodes, joined by commas: a card that is split into partitions has one for each.
fn amd(root: &Path, gpu: &Gpu) -> Result<String, String> {
    has_driver(gpu, AMD, "AMD", "amdgpu")?;
    let address = gpu.address;
    let nodes = render_nodes(root, address);
    if nodes.is_empty() {
        return Err(format!(
            "amdgpu has no render node for {address}; look for amdgpu in the kernel's log, and see that /dev is a \
             devtmpfs"
        ));
    }
    if !files::under(root, KFD).exists() {
        return Err(format!(
            "{KFD}, without which nothing can compute on {address}, does not exist; load amdgpu with a kernel that has \
             CONFIG_HSA_AMD, or one with ROCm's driver"
        ));
    }
    Ok(nodes.join(","))
}

/// `nvidia.com/gpu=GPU-…` or `nvidia.com/gpu=0`. The index is the GPU's place, by address, among those with the same
/// vendor and driver: the order in which NVIDIA's and AMD's tools number them.
fn cdi_name(root: &Path, names: &CdiNames, gpu: &Gpu, all: &[Gpu]) -> Result<String, String> {
    let name = if names.by_uuid {
        uuid(root, gpu.address)
            .map_err(|why| format!("{why}; or set gpu_cdi_name to index if the CDI names are numbers"))?
    } else {
        let before = |other: &&Gpu| {
            (other.vendor_id, &other.driver) == (gpu.vendor_id, &gpu.driver) && other.address < gpu.address
        };
        all.iter().filter(before).count().to_string()
    };
    Ok(format!("{}={name}", names.kind))
}

fn has_driver(gpu: &Gpu, vendor: u16, maker: &str, wanted: &str) -> Result<(), String> {
    let address = gpu.address;
    if gpu.vendor_id != vendor {
        return Err(format!(
            "{address} is not made by {maker}, whose GPUs this node hands out; change the setting gpu_handover to hand \
             out others instead"
        ));
    }
    match gpu.driver.as_deref() {
        Some(driver) if driver == wanted => Ok(()),
        Some(driver) if pci::is_vfio_driver(driver) => Err(format!(
            "{address} is bound to {driver}; give it back to {wanted} with `vectorlay-agent vfio unbind {address}`, or \
             set gpu_handover to vfio"
        )),
        Some(driver) => Err(format!("{address} is bound to {driver}, but its driver must be {wanted}")),
        None => Err(format!("{address} has no driver; run `modprobe {wanted}`")),
    }
}

/// The UUID is `GPU-` and the usual digits, which are question marks as long as the driver has not started the GPU.
fn uuid(root: &Path, address: PciAddress) -> Result<String, String> {
    let fits = |uuid: &String| {
        uuid.strip_prefix("GPU-").is_some_and(|digits| {
            digits.len() == 36 && digits.bytes().all(|b| b.is_ascii_hexdigit() || b == b'-')
        })
    };
    nvidia_proc_field(root, address, "GPU UUID:").filter(fits).ok_or_else(|| {
        format!(
            "NVIDIA's driver does not tell the UUID of {address}, because it does not have or has not started that GPU; \
             start nvidia-persistenced, and look for NVRM in the kernel's log if that does not help"
        )
    })
}

/// What NVIDIA's driver tells about a GPU, in lines of `Name: \t value`.
pub(super) fn nvidia_proc_field(root: &Path, address: PciAddress, name: &str) -> Option<String> {
    let file = files::under(root, format!("/proc/driver/nvidia/gpus/{address}/information"));
    let text = files::text(&file)?;
    Some(text.lines().find_map(|line| line.strip_prefix(name))?.trim().to_owned())
}

/// The card's own render node is listed by DRM in the device's folder (`renderD129`). Those of its partitions (MI300 in
/// DPX, QPX or CPX mode) belong to platform devices (`amdgpu_xcp.N`), so the compute driver is asked: its `location_id`
/// is bus, device and function, with the partition's number in the top four bits (kernel `kfd_topology.c`).
fn render_nodes(root: &Path, address: PciAddress) -> Vec<String> {
    let own = files::names(&pci::folder(root, address).join("drm"));
    let own = own.iter().filter_map(|name| name.strip_prefix("renderD")?.parse::<u32>().ok());
    let topology = files::under(root, KFD_TOPOLOGY);
    let location = u32::from(address.bus) << 8 | u32::from(address.device) << 3 | u32::from(address.function);
    let partitions = files::names(&topology).into_iter().filter_map(|node| {
        let text = files::text(&topology.join(node).join("properties"))?;
        let property = |name: &str| -> Option<u32> {
            let value = |line: &str| line.strip_prefix(name)?.strip_prefix(' ')?.trim().parse().ok();
            text.lines().find_map(value)
        };
        let same = property("domain")? == address.domain && property("location_id")? & 0xffff == location;
        property("drm_render_minor").filter(|minor| same && *minor > 0)
    });
    let numbers: BTreeSet<u32> = own.chain(partitions).collect();
    let nodes = numbers.into_iter().map(|number| format!("/dev/dri/renderD{number}"));
    nodes.filter(|node| files::under(root, node).exists()).collect()
}
