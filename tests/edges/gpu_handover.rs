//! GPUs for plain runtimes: what the container CLI is given for each, and what stands in the way.

use std::time::Instant;

use crate::support::host::Host;
use vectorlay::core::inventory::{Gpu, Handover, Verdict};
use vectorlay::host::gpus::Watch;
use vectorlay::host::handover::{self, CdiNames};
use vectorlay::host::health::Limits;

const UUID: &str = "GPU-6fd12f47-0a8e-4e4a-8f9f-1b3a5a6f1c2d";

fn no_names() -> CdiNames {
    CdiNames { kind: "nvidia.com/gpu".to_owned(), by_uuid: true }
}

fn judged_with(handover: Handover, names: &CdiNames, facts: &str) -> Vec<Gpu> {
    let host = Host::new(facts);
    let mut gpus =
        Watch::new(host.root(), Limits::default()).read(Instant::now(), &mut || None).unwrap().facts();
    handover::apply(host.root(), handover, names, &mut gpus);
    gpus
}

fn judged(handover: Handover, facts: &str) -> Vec<Gpu> {
    judged_with(handover, &no_names(), facts)
}

/// The host's one GPU is handed over by `device`.
fn given(handover: Handover, facts: &str, device: &str) {
    let gpu = judged(handover, facts).remove(0);
    assert_eq!((gpu.verdict, gpu.device_node.as_deref()), (Verdict::Assignable, Some(device)), "{facts}");
}

/// The host's one GPU is not handed over, for a reason with these words.
fn kept(handover: Handover, facts: &str, words: &str) {
    let gpu = judged(handover, facts).remove(0);
    let Verdict::Obstructed(why) = gpu.verdict else { panic!("{:?} for {facts}", gpu.verdict) };
    assert!(why.contains(words), "{why:?} lacks {words:?}");
    assert_eq!(gpu.device_node, None);
}

#[test]
fn by_nvidias_driver() {
    let bound = "pci 0000:41:00.0 10de:2330 0302 driver=nvidia group=7";
    given(Handover::Nvidia, &format!("{bound}\nuuid 0000:41:00.0 {UUID}"), UUID);
    // Without an IOMMU it is as good.
    given(
        Handover::Nvidia,
        &format!("pci 0000:41:00.0 10de:2330 0302 driver=nvidia\nuuid 0000:41:00.0 {UUID}"),
        UUID,
    );
    // The driver has not started it, has nothing to say, or says what is no UUID and could be more than one name.
    for uuid in ["GPU-????????-????-????-????-????????????", "GPU-1,all", "N/A"] {
        kept(
            Handover::Nvidia,
            &format!("{bound}\nuuid 0000:41:00.0 {uuid}"),
            "does not tell the UUID of 0000:41:00.0",
        );
    }
    kept(Handover::Nvidia, bound, "start nvidia-persistenced");
    kept(
        Handover::Nvidia,
        &bound.replace("=nvidia", "=vfio-pci"),
        "`vectorlay-agent vfio unbind 0000:41:00.0`",
    );
    kept(
        Handover::Nvidia,
        &bound.replace("=nvidia", "=nouveau"),
        "bound to nouveau, but its driver must be nvidia",
    );
    kept(Handover::Nvidia, &bound.replace("driver=nvidia ", ""), "has no driver; run `modprobe nvidia`");
    kept(
        Handover::Nvidia,
        "pci 0000:05:00.0 1002:740f 0380 driver=amdgpu\nrender 0000:05:00.0 128",
        "not made by NVIDIA",
    );
}

#[test]
fn by_amdgpu() {
    let bound = "pci 0000:05:00.0 1002:740f 0380 driver=amdgpu";
    let all = format!("{bound}\nrender 0000:05:00.0 129\nfile dev/kfd");
    given(Handover::Amd, &all, "/dev/dri/renderD129");
    kept(
        Handover::Amd,
        &format!("{bound}\nrender 0000:05:00.0 129"),
        "/dev/kfd, without which nothing can compute on 0000:05:00.0",
    );
    kept(Handover::Amd, &format!("{bound}\nfile dev/kfd"), "no render node for 0000:05:00.0");
    kept(
        Handover::Amd,
        &all.replace("driver=amdgpu", "driver=radeon"),
        "bound to radeon, but its driver must be amdgpu",
    );
    kept(Handover::Amd, &all.replace("driver=amdgpu", "driver=vfio-pci"), "set gpu_handover to vfio");
    kept(
        Handover::Amd,
        &format!("pci 0000:41:00.0 10de:2330 0302 driver=nvidia\nuuid 0000:41:00.0 {UUID}"),
        "not made by AMD",
    );
}

#[test]
fn not_at_all() {
    kept(
        Handover::Disabled,
        "pci 0000:05:00.0 1002:740f 0380 driver=vfio-pci group=1\niommu ivhd0",
        "hands out no GPUs",
    );
}

/// What the host's GPUs are handed over by with these CDI names.
fn named(by_uuid: bool, kind: &str, facts: &str) -> Vec<Result<String, String>> {
    let names = CdiNames { kind: kind.to_owned(), by_uuid };
    judged_with(Handover::Cdi, &names, facts)
        .into_iter()
        .map(|gpu| match gpu.verdict {
            Verdict::Obstructed(why) | Verdict::Held(why) => Err(why),
            Verdict::Assignable => Ok(gpu.device_node.unwrap()),
        })
        .collect()
}

#[test]
fn by_cdi_names() {
    let facts = format!(
        "iommu dmar0
        pci 0000:41:00.0 10de:2330 0302 driver=nvidia group=7
        uuid 0000:41:00.0 {UUID}
        pci 0000:42:00.0 10de:2330 0302 driver=vfio-pci group=8
        pci 0000:43:00.0 10de:2330 0302 driver=nvidia group=9
        pci 0000:85:00.0 1002:74a1 1200 driver=amdgpu group=3"
    );
    let by_uuid = named(true, "nvidia.com/gpu", &facts);
    assert_eq!(by_uuid[0], Ok(format!("nvidia.com/gpu={UUID}")));
    for other in &by_uuid[1..] {
        assert!(other.as_ref().unwrap_err().contains("set gpu_cdi_name to index"), "{other:?}");
    }
    // NVIDIA's tools number what their driver has, by address; the others are numbered apart.
    let names = ["0", "0", "1", "0"].map(|index| Ok(format!("vendor.com/pgpu={index}")));
    assert_eq!(named(false, "vendor.com/pgpu", &facts), names);
}

#[test]
fn each_partition_of_a_card_is_handed_over_with_it() {
    let facts = "pci 0000:85:00.0 1002:74a1 1200 driver=amdgpu group=3\nrender 0000:85:00.0 128\nfile dev/kfd\n\
        pci 0000:86:00.0 1002:74a1 1200 driver=amdgpu group=4\nrender 0000:86:00.0 136\n";
    // The compute driver lists a processor, the partitions of two cards (bus 0x85 and 0x86), and one in another domain.
    let nodes = [
        (0, 0, 0, 0),
        (1, 0, 0x8500, 128),
        (2, 0, 0x1000_8500, 129),
        (3, 0, 0x2000_8500, 130),
        (4, 0, 0x8600, 136),
        (5, 0, 0x1000_8600, 137),
        (6, 1, 0x3000_8500, 144),
    ];
    let host = Host::new(facts);
    for (node, domain, location, minor) in nodes {
        let text = format!(
            "cpu_cores_count 0\nsimd_count 152\nlocation_id {location}\ndomain {domain}\ndrm_render_minor {minor}\n"
        );
        host.write(&format!("sys/class/kfd/kfd/topology/nodes/{node}/properties"), &text);
        host.write(&format!("dev/dri/renderD{minor}"), "");
    }
    let mut gpus =
        Watch::new(host.root(), Limits::default()).read(Instant::now(), &mut || None).unwrap().facts();
    handover::apply(host.root(), Handover::Amd, &no_names(), &mut gpus);
    let given: Vec<_> = gpus.iter().map(|gpu| gpu.device_node.as_deref().unwrap()).collect();
    assert_eq!(
        given,
        [
            "/dev/dri/renderD128,/dev/dri/renderD129,/dev/dri/renderD130",
            "/dev/dri/renderD136,/dev/dri/renderD137"
        ]
    );
}
