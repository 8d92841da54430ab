//! GPUs for plain runtimes: what the container CLI is given for each, and what stands in the way.

use std::time::Instant;

use crate::support::host::Host;
use vectorlay::core::inventory::{Gpu, Verdict};
use vectorlay::host::cdi;
use vectorlay::host::gpus::Watch;
use vectorlay::host::handover::{self, Way};
use vectorlay::host::health::Limits;

const UUID: &str = "GPU-6fd12f47-0a8e-4e4a-8f9f-1b3a5a6f1c2d";

fn judged(way: Way, facts: &str) -> Vec<Gpu> {
    let host = Host::new(facts);
    let mut gpus =
        Watch::new(host.root(), Limits::default()).read(Instant::now(), &mut || None).unwrap().facts();
    handover::apply(host.root(), way, &mut gpus);
    gpus
}

/// The host's one GPU is handed over by `device`.
fn given(way: Way, facts: &str, device: &str) {
    let gpu = judged(way, facts).remove(0);
    assert_eq!((gpu.verdict, gpu.device_node.as_deref()), (Verdict::Assignable, Some(device)), "{facts}");
}

/// The host's one GPU is not handed over, for a reason with these words.
fn kept(way: Way, facts: &str, words: &str) {
    let gpu = judged(way, facts).remove(0);
    let Verdict::Obstructed(why) = gpu.verdict else { panic!("{:?} for {facts}", gpu.verdict) };
    assert!(why.contains(words), "{why:?} lacks {words:?}");
    assert_eq!(gpu.device_node, None);
}

#[test]
fn by_nvidias_driver() {
    let bound = "pci 0000:41:00.0 10de:2330 0302 driver=nvidia group=7";
    given(Way::Nvidia, &format!("{bound}\nuuid 0000:41:00.0 {UUID}"), UUID);
    // Without an IOMMU it is as good.
    given(
        Way::Nvidia,
        &format!("pci 0000:41:00.0 10de:2330 0302 driver=nvidia\nuuid 0000:41:00.0 {UUID}"),
        UUID,
    );
    // The driver has not started it, has nothing to say, or says what is no UUID and could be more than one name.
    for uuid in ["GPU-????????-????-????-????-????????????", "GPU-1,all", "N/A"] {
        kept(
            Way::Nvidia,
            &format!("{bound}\nuuid 0000:41:00.0 {uuid}"),
            "does not say the UUID of 0000:41:00.0",
        );
    }
    kept(Way::Nvidia, bound, "start nvidia-persistenced");
    kept(Way::Nvidia, &bound.replace("=nvidia", "=vfio-pci"), "`vectorlay-agent vfio unbind 0000:41:00.0`");
    kept(Way::Nvidia, &bound.replace("=nvidia", "=nouveau"), "bound to nouveau; it takes the driver nvidia");
    kept(Way::Nvidia, &bound.replace("driver=nvidia ", ""), "has no driver; run `modprobe nvidia`");
    kept(
        Way::Nvidia,
        "pci 0000:05:00.0 1002:740f 0380 driver=amdgpu\nrender 0000:05:00.0 128",
        "not by NVIDIA",
    );
}

#[test]
fn by_amdgpu() {
    let bound = "pci 0000:05:00.0 1002:740f 0380 driver=amdgpu";
    let all = format!("{bound}\nrender 0000:05:00.0 129\nfile dev/kfd");
    given(Way::Amd, &all, "/dev/dri/renderD129");
    kept(
        Way::Amd,
        &format!("{bound}\nrender 0000:05:00.0 129"),
        "/dev/kfd, which computing on 0000:05:00.0 takes",
    );
    kept(Way::Amd, &format!("{bound}\nfile dev/kfd"), "no render node for 0000:05:00.0");
    kept(
        Way::Amd,
        &all.replace("driver=amdgpu", "driver=radeon"),
        "bound to radeon; it takes the driver amdgpu",
    );
    kept(Way::Amd, &all.replace("driver=amdgpu", "driver=vfio-pci"), "set gpu_handover to vfio");
    kept(
        Way::Amd,
        &format!("pci 0000:41:00.0 10de:2330 0302 driver=nvidia\nuuid 0000:41:00.0 {UUID}"),
        "not by AMD",
    );
}

#[test]
fn not_at_all() {
    kept(
        Way::Nowise,
        "pci 0000:05:00.0 1002:740f 0380 driver=vfio-pci group=1\niommu ivhd0",
        "hands out no GPUs",
    );
}

/// The CDI names of a host's GPUs, by address, with these files of specifications.
fn named(plain: Option<Way>, facts: &str, files: &[(&str, &str)]) -> Vec<Option<String>> {
    let host = Host::new(facts);
    files.iter().for_each(|(path, text)| host.write(path, text));
    let mut gpus =
        Watch::new(host.root(), Limits::default()).read(Instant::now(), &mut || None).unwrap().facts();
    if let Some(way) = plain {
        handover::apply(host.root(), way, &mut gpus);
    }
    cdi::apply(host.root(), plain, &mut gpus);
    gpus.into_iter().map(|gpu| gpu.cdi_name).collect()
}

#[test]
fn by_the_cdi_names_of_vfio_nodes() {
    let facts = "iommu dmar0
        pci 0000:41:00.0 10de:2330 0302 driver=vfio-pci group=7
        pci 0000:42:00.0 10de:2330 0302 driver=vfio-pci group=8
        pci 0000:43:00.0 10de:2330 0302 driver=nvidia group=9";
    let spec = "cdiVersion: 0.5.0
containerEdits: {}
devices:
- containerEdits:
    deviceNodes:
    - path: /dev/vfio/8
  name: \"0\"
kind: nvidia.com/pgpu
";
    let name = Some("nvidia.com/pgpu=0".to_owned());
    assert_eq!(named(None, facts, &[("var/run/cdi/nvidia.yaml", spec)]), [None, name, None]);
    assert_eq!(named(None, facts, &[]), [None, None, None]);
    // Another way hands over no VFIO nodes.
    assert_eq!(named(Some(Way::Nvidia), facts, &[("var/run/cdi/nvidia.yaml", spec)]), [None, None, None]);
}

#[test]
fn by_the_cdi_names_of_nvidias_driver() {
    let facts = format!("pci 0000:41:00.0 10de:2330 0302 driver=nvidia\nuuid 0000:41:00.0 {UUID}");
    let spec = |uuid: &str, node: &str| {
        format!(
            r#"{{"cdiVersion": "0.5.0", "kind": "nvidia.com/gpu", "devices": [{{"name": "{uuid}",
            "containerEdits": {{"deviceNodes": [{{"path": "{node}"}}, {{"path": "/dev/dri/card0"}}]}}}}]}}"#
        )
    };
    let with = |spec: String| named(Some(Way::Nvidia), &facts, &[("etc/cdi/nvidia.json", &spec)]);
    assert_eq!(with(spec(UUID, "/dev/nvidia0")), [Some(format!("nvidia.com/gpu={UUID}"))]);
    assert_eq!(with(spec(UUID, "/dev/nvidia1")), [None]);
    assert_eq!(with(spec("0", "/dev/nvidia0")), [None]);
}
