//! What is read beside the GPUs themselves: how busy they are.

use crate::support::host::Host;
use vectorlay::core::inventory::GpuUse;
use vectorlay::host::pci;

#[test]
fn use_is_known_where_the_hosts_driver_has_the_gpu() {
    use vectorlay::host::utilization;
    let facts = "
        cpu AuthenticAMD
        iommu ivhd0
        pci 0000:41:00.0 10de:2204 0300 driver=nvidia group=1
        pci 0000:42:00.0 10de:2204 0300 driver=vfio-pci group=2
        pci 0000:85:00.0 1002:74a1 1200 driver=amdgpu group=3
    ";
    let host = Host::new(facts);
    let functions = pci::functions(host.root()).unwrap();
    // The second line is of a GPU that vfio-pci took meanwhile.
    let printed = "00000000:41:00.0, 90, 100, 6144\n00000000:42:00.0, 1, 1, 6144\n";
    let with = |smi: Option<&str>| utilization::read(host.root(), &functions, &mut || smi.map(str::to_owned));
    let nvidia = GpuUse { source: "nvidia-smi", busy_percent: Some(90), memory_mib: Some((100, 6144)) };
    assert_eq!(with(Some(printed)), [nvidia]);
    assert_eq!(with(None), []);

    let folder = "sys/bus/pci/devices/0000:85:00.0";
    host.write(&format!("{folder}/gpu_busy_percent"), "31\n");
    host.write(&format!("{folder}/mem_info_vram_used"), "1073741824\n");
    host.write(&format!("{folder}/mem_info_vram_total"), "206141652992\n");
    let amd = GpuUse { source: "amdgpu", busy_percent: Some(31), memory_mib: Some((1024, 196_592)) };
    assert_eq!(with(Some(printed)), [nvidia, amd]);
    host.write(&format!("{folder}/gpu_busy_percent"), "");
    assert_eq!(with(None), [GpuUse { busy_percent: None, ..amd }]);

    // Without a GPU of NVIDIA's driver nobody asks for it.
    let bound: Vec<_> = functions.into_iter().filter(|g| g.driver.as_deref() == Some("vfio-pci")).collect();
    assert_eq!(utilization::read(host.root(), &bound, &mut || panic!("asked")), []);
}
