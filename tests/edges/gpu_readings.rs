//! What is read beside the GPUs themselves: how busy they are, and whether Kata would take them.

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

#[test]
fn each_kata_has_its_own_configuration() {
    use vectorlay::host::kata_config::{Runtime, Settings, find, findings};
    let host = Host::new("");
    let path = |runtime, shim: &str| {
        find(host.root(), runtime, shim.as_ref()).map(|p| p.to_str().unwrap().to_owned())
    };
    let (go, rust) =
        ("/opt/kata/bin/containerd-shim-kata-v2", "/opt/kata/runtime-rs/bin/containerd-shim-kata-v2");
    assert_eq!((path(Runtime::Go, go), path(Runtime::Rust, rust)), (None, None));
    let built = "/opt/kata/share/defaults/kata-containers/configuration.toml";
    host.write(&built[1..], "[hypervisor.qemu]\ncold_plug_vfio = \"no-port\"\n");
    assert_eq!((path(Runtime::Go, go).as_deref(), path(Runtime::Rust, rust)), (Some(built), None));
    assert_eq!(path(Runtime::Go, "/usr/bin/containerd-shim-kata-v2"), None);
    let etc = "/etc/kata-containers/configuration.toml";
    host.write(
        &etc[1..],
        "[hypervisor.qemu]\ncold_plug_vfio = \"no-port\"\n[agent.kata]\ndial_timeout = 1200\n",
    );
    assert_eq!(path(Runtime::Go, go).as_deref(), Some(etc));
    let own = "/opt/kata/share/defaults/kata-containers/runtime-rs/configuration.toml";
    host.write(&own[1..], "");
    assert_eq!(path(Runtime::Rust, rust).as_deref(), Some(own));

    // What lies in config.d comes after it, by name.
    let drop_in = |name: &str, text: &str| host.write(&format!("etc/kata-containers/config.d/{name}"), text);
    drop_in("20-gpu.toml", "[hypervisor.qemu]\ncold_plug_vfio = \"root-port\"\npcie_root_port = 4\n");
    drop_in(
        "10-gpu.toml",
        "[hypervisor.qemu]\npcie_root_port = 2\n[runtime]\ncreate_container_timeout = 1200\n",
    );
    drop_in("30-gpu.txt", "[hypervisor.qemu]\ncold_plug_vfio = \"no-port\"\n");
    let settings = Settings::read(host.root(), etc.as_ref());
    assert_eq!(findings(settings.as_ref(), Runtime::Go, 4), []);
}
