//! GPUs for plain runtimes: what the container CLI is given for each, and what stands in the way.
#![allow(clippy::unwrap_used, clippy::disallowed_methods)]

#[path = "support/host.rs"]
mod host;

use std::time::Instant;

use host::Host;
use vectorlay::core::facts::{Gpu, Verdict};
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
