//! How busy the GPUs are, where the host can know it: by nvidia-smi for those that NVIDIA's driver has, by sysfs for
//! those that amdgpu has. One that vfio-pci has is invisible to the host, and then nothing is known: never a zero.
//!
//! nvidia-smi may hang, so it runs with a deadline, and the whole is called on a thread that may wait.

use std::path::Path;
use std::time::Duration;

use super::files;
use super::pci::{self, Function};
use crate::core::inventory::GpuUse;
use crate::process::{self, Bounds, Ended, Program};
use crate::types::PciAddress;

/// How nvidia-smi is asked. Its answer is read by [`parse`].
pub const QUERY: [&str; 2] =
    ["--query-gpu=pci.bus_id,utilization.gpu,memory.used,memory.total", "--format=csv,noheader,nounits"];
/// How long nvidia-smi may take: without its persistence daemon it wakes each GPU first, which takes a second or more.
const DEADLINE: Duration = Duration::from_secs(15);
/// From SIGTERM to SIGKILL.
const GRACE: Duration = Duration::from_secs(1);
/// Kept of its output, in bytes: a thousand GPUs.
const OUTPUT_MAX: usize = 64 * 1024;
/// Where nvidia-smi is: installed, in a container image, or brought by NVIDIA's driver container.
const FOLDERS: [&str; 5] =
    ["/usr/bin", "/usr/local/bin", "/usr/local/nvidia/bin", "/run/nvidia/driver/usr/bin", "/opt/bin"];
/// Bytes in a MiB.
const MIB: u64 = 1024 * 1024;

/// Reads the use of the GPUs among `functions`, as far as it is known. `nvidia_smi` gives what nvidia-smi prints; it is
/// called only when NVIDIA's driver has one of them.
pub fn read(
    root: &Path,
    functions: &[Function],
    nvidia_smi: &mut dyn FnMut() -> Option<String>,
) -> Vec<GpuUse> {
    let gpus = || functions.iter().filter(|f| f.is_gpu());
    let of_driver = |name: &'static str| gpus().filter(move |g| g.driver.as_deref() == Some(name));
    let mut found = Vec::new();
    if of_driver("nvidia").next().is_some() {
        let uses = nvidia_smi().map(|text| parse(&text)).unwrap_or_default();
        let ours = |address: &PciAddress| of_driver("nvidia").any(|g| g.address == *address);
        found.extend(uses.into_iter().filter(|(address, _)| ours(address)).map(|(_, known)| known));
    }
    found.extend(of_driver("amdgpu").map(|g| amdgpu(root, g.address)));
    found.retain(|known| known.busy_percent.is_some() || known.memory_mib.is_some());
    found
}

/// What nvidia-smi prints on this machine; `None` where it is missing, fails or hangs, or when `root` is another
/// machine's.
pub fn run_nvidia_smi(root: &Path) -> Option<String> {
    if root != Path::new("/") {
        return None;
    }
    let path = process::find("nvidia-smi", &FOLDERS.map(Path::new))?;
    let args = QUERY.iter().map(Into::into).collect();
    let program = Program { path, args, env: vec![("LC_ALL".into(), "C".into())], input: None };
    let bounds = Bounds { deadline: DEADLINE, grace: GRACE, output: OUTPUT_MAX, tail: false };
    let finished = process::run(&program, &bounds, None).ok()?;
    // With one GPU lost it fails, having printed the others.
    matches!(finished.ended, Ended::Exit(_)).then(|| String::from_utf8_lossy(&finished.stdout).into_owned())
}

/// Reads nvidia-smi's answer to [`QUERY`]: lines such as `00000000:41:00.0, 95, 745, 6144` (percent and MiB). A value
/// that the GPU cannot tell is `[N/A]`, `[Not Supported]` or an error in brackets; errors about whole GPUs are lines of
/// prose on standard output. Anything but a number is not known.
pub fn parse(output: &str) -> Vec<(PciAddress, GpuUse)> {
    let line = |line: &str| {
        let mut fields = line.split(',').map(str::trim);
        let address = PciAddress::parse(fields.next()?).ok()?;
        let busy_percent = fields.next()?.parse().ok().filter(|p| *p <= 100);
        let mut memory = || fields.next()?.parse::<u64>().ok();
        let (used, total) = (memory(), memory());
        Some((address, GpuUse { source: "nvidia-smi", busy_percent, memory_mib: used.zip(total) }))
    };
    output.lines().filter_map(line).collect()
}

/// amdgpu's attributes (kernel documentation, `gpu/amdgpu/driver-misc`): percent and bytes. Some parts answer EBUSY or
/// EINVAL, which is the same as not known.
fn amdgpu(root: &Path, address: PciAddress) -> GpuUse {
    let folder = pci::folder(root, address);
    let mib = |name: &str| files::number::<u64>(&folder.join(name)).map(|bytes| bytes / MIB);
    GpuUse {
        source: "amdgpu",
        busy_percent: files::number(&folder.join("gpu_busy_percent")).filter(|p| *p <= 100),
        memory_mib: mib("mem_info_vram_used").zip(mib("mem_info_vram_total")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    type Known = (Option<u8>, Option<(u64, u64)>);

    /// The percent and the memory of each GPU that nvidia-smi printed.
    fn check(output: &str, expected: &[Known]) {
        let found: Vec<Known> =
            parse(output).iter().map(|(_, known)| (known.busy_percent, known.memory_mib)).collect();
        assert_eq!(found, expected, "{output:?}");
    }

    #[test]
    fn what_nvidia_smi_prints() {
        check("00000000:41:00.0, 95, 745, 6144\n", &[(Some(95), Some((745, 6144)))]);
        check(
            "00000000:41:00.0, 95, 745, 6144\n00000000:C1:00.0, 0, 5, 6144\n",
            &[(Some(95), Some((745, 6144))), (Some(0), Some((5, 6144)))],
        );
        // A GPU split by MIG, an old driver, one that has to be reset.
        check(
            "00000000:41:00.0, [N/A], 745, 6144\n00000000:42:00.0, 7, [N/A], [N/A]\n",
            &[(None, Some((745, 6144))), (Some(7), None)],
        );
        check("00000000:41:00.0, [Not Supported], [Not Supported], [Not Supported]\n", &[(None, None)]);
        check("00000000:41:00.0, [GPU requires reset], [Unknown Error], 6144\n", &[(None, None)]);
        check(
            "Unable to determine the device handle for GPU 0000:41:00.0: Unknown Error\n00000000:42:00.0, 100, 1, 2\n",
            &[(Some(100), Some((1, 2)))],
        );
        check("00000000:41:00.0, 101, 1, 2\n00000000:42:00.0, -1, 1, 2\n", &[(None, Some((1, 2))); 2]);
        check("00000000:41:00.0, 5\n", &[(Some(5), None)]);
        check(
            "NVIDIA-SMI has failed because it couldn't communicate with the NVIDIA driver. Make sure that the latest \
             NVIDIA driver is installed and running.\n",
            &[],
        );
        check("No devices were found\n", &[]);
        check("", &[]);
    }
}
