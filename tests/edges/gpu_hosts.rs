//! Hosts of all kinds: which GPUs each has, whether they can be handed out and why not, and how well they are.

use std::time::{Duration, Instant};

use crate::support::host::{Host, config};
use crate::support::skip::skip;
use vectorlay::core::gpus::{Denied, GpuTable};
use vectorlay::core::inventory::{Gpu, Health, Verdict};
use vectorlay::host::gpus::Watch;
use vectorlay::host::health::Limits;
use vectorlay::setup::health_limits;
use vectorlay::types::{PciAddress, ReplicaId};

/// The GPUs of a host that is looked at once.
fn look(facts: &str, lspci: Option<&str>) -> Vec<Gpu> {
    let host = Host::new(facts);
    let mut watch = Watch::new(host.root(), Limits::default());
    watch.read(Instant::now(), &mut || lspci.map(str::to_owned)).unwrap().facts()
}

/// Compares a host's GPUs with `expected`: for each, the plain line, the verdict (`free` with the device node, or a part
/// of what stands in the way) and the health (`ok`, or a word and a part of the text).
fn check(facts: &str, expected: &[(&str, &str, &str)]) {
    check_with(facts, None, expected);
}

fn check_with(facts: &str, lspci: Option<&str>, expected: &[(&str, &str, &str)]) {
    let gpus = look(facts, lspci);
    let lines: Vec<&str> = gpus.iter().map(|g| g.line.as_str()).collect();
    assert_eq!(lines, expected.iter().map(|e| e.0).collect::<Vec<_>>(), "{facts}");
    for (gpu, (_, verdict, health)) in gpus.iter().zip(expected) {
        let found = match &gpu.verdict {
            Verdict::Assignable => format!("free {}", gpu.device_node.as_deref().unwrap_or("without a node")),
            Verdict::Held(why) | Verdict::Obstructed(why) => why.clone(),
        };
        assert!(found.contains(verdict), "{}: {found:?} lacks {verdict:?}", gpu.address);
        let found = match &gpu.health {
            Health::Ok => "ok".to_owned(),
            Health::Suspect(why) => format!("suspect: {why}"),
            Health::Failed(why) => format!("failed: {why}"),
            Health::Unknown(why) => format!("unknown: {why}"),
        };
        let (word, part) = health.split_once(": ").unwrap_or((health, ""));
        assert!(
            found.starts_with(word) && found.contains(part),
            "{}: {found:?} is not {health:?}",
            gpu.address
        );
    }
    // What could not be read is no reason to keep one back.
    let good = |(_, (_, verdict, health)): &(&Gpu, &(&str, &str, &str))| {
        verdict.starts_with("free") && !health.starts_with("failed")
    };
    let free: Vec<PciAddress> = gpus.iter().zip(expected).filter(good).map(|(gpu, _)| gpu.address).collect();
    let mut table = table(&gpus);
    let mut claim = |count| table.claim(&ReplicaId::new("r").unwrap(), count, |_| false);
    let short = |free| Err(Denied::Short { free, total: gpus.len() });
    assert_eq!(claim(free.len() + 1), short(free.len()), "{facts}");
    let mut claimed: Vec<PciAddress> = claim(free.len()).unwrap().into_iter().map(|(gpu, _)| gpu).collect();
    claimed.sort();
    assert_eq!(claimed, free, "{facts}");
    assert_eq!(claim(1), short(0), "{facts}");
}

/// Who has which of a host's GPUs: nobody has any yet.
fn table(gpus: &[Gpu]) -> GpuTable {
    let mut table = GpuTable::default();
    table.reading(Instant::now(), Duration::ZERO, gpus);
    table
}

const CONSUMER: &str = "
    cpu GenuineIntel
    cmdline intel_iommu=on iommu=pt
    iommu dmar0
    ids
    pci 0000:00:01.0 8086:4c01 0604 driver=pcieport group=18 max=16.0x16
    pci 0000:01:00.0 10de:2204 0300 under=0000:00:01.0 rev=a1 driver=vfio-pci group=18 link=2.5x16 max=16.0x16 reset=none
    pci 0000:01:00.1 10de:1aef 0403 under=0000:00:01.0 rev=a1 driver=vfio-pci group=18 reset=none
";
const RTX3090: &str =
    "01:00.0 VGA compatible controller: NVIDIA Corporation GA102 [GeForce RTX 3090] (rev a1)";

#[test]
fn a_consumer_gpu_with_its_audio_function() {
    check(CONSUMER, &[(RTX3090, "free /dev/vfio/18", "ok")]);
    let gpu = &look(CONSUMER, None)[0];
    assert_eq!(gpu.companions.iter().map(ToString::to_string).collect::<Vec<_>>(), ["0000:01:00.1"]);
    assert_eq!((gpu.name.as_str(), gpu.class), ("NVIDIA Corporation GA102 [GeForce RTX 3090]", 0x0300));
    assert_eq!((gpu.iommu_group, gpu.numa_node), (Some(18), None));
}

#[test]
fn a_companion_with_the_hosts_driver_stands_in_the_way() {
    let facts =
        CONSUMER.replace("a1 driver=vfio-pci group=18 reset", "a1 driver=snd_hda_intel group=18 reset");
    let why =
        "0000:01:00.1 (10de:1aef), in the same IOMMU group 18 as 0000:01:00.0, is bound to snd_hda_intel";
    check(&facts, &[(RTX3090, why, "ok")]);
    // Without a driver it is no obstacle, and neither is pci-stub.
    for harmless in ["", "driver=pci-stub"] {
        let facts = facts.replace("driver=snd_hda_intel", harmless);
        check(&facts, &[(RTX3090, "free /dev/vfio/18", "ok")]);
    }
}

#[test]
fn a_group_that_a_process_has_open() {
    let held = "/dev/vfio/18 is held by process 4242 (qemu-system-x86)";
    let facts =
        format!("{CONSUMER}\nholder 4242 qemu-system-x86 /dev/vfio/18\nholder 4242 qemu-system-x86 /dev/kvm");
    check(&facts, &[(RTX3090, held, "ok")]);
    // Another group, and a name that only ends alike, are not it.
    let facts =
        format!("{CONSUMER}\nholder 77 a /dev/vfio/8\nholder 77 a /dev/vfio/118\nholder 77 a /srv/18");
    check(&facts, &[(RTX3090, "free /dev/vfio/18", "ok")]);
}

#[test]
fn a_node_that_is_missing() {
    check(&format!("{CONSUMER}\nnonode 18"), &[(RTX3090, "/dev/vfio/18 does not exist", "ok")]);
    // A kernel without group nodes has a device node for each function.
    let facts = format!("{CONSUMER}\nnonode 18").replace("group=18 link", "group=18 cdev=vfio3 link");
    check(&facts, &[(RTX3090, "free /dev/vfio/devices/vfio3", "ok")]);
    let facts = format!("{facts}\nholder 9 qemu /dev/vfio/devices/vfio3");
    check(&facts, &[(RTX3090, "vfio3 is held by process 9 (qemu)", "ok")]);
}

#[test]
fn a_module_that_is_missing() {
    let host = Host::new(CONSUMER);
    std::fs::remove_dir(host.root().join("sys/module/vfio_iommu_type1")).unwrap();
    let verdict = || {
        let mut watch = Watch::new(host.root(), Limits::default());
        watch.read(Instant::now(), &mut || None).unwrap().gpus.remove(0).gpu.verdict
    };
    assert!(
        matches!(verdict(), Verdict::Obstructed(why) if why.ends_with("run `modprobe vfio_iommu_type1`"))
    );
    host.write("dev/iommu", "");
    assert_eq!(verdict(), Verdict::Assignable);
}

#[test]
fn two_gpus_in_one_group() {
    let facts = "
        cpu AuthenticAMD
        iommu ivhd0
        ids
        pci 0000:21:00.0 10de:2684 0300 rev=a1 driver=vfio-pci group=30
        pci 0000:22:00.0 10de:2684 0300 rev=a1 driver=nvidia group=30
    ";
    let line = |bus| {
        format!("{bus}:00.0 VGA compatible controller: NVIDIA Corporation AD102 [GeForce RTX 4090] (rev a1)")
    };
    let (a, b) = (line("21"), line("22"));
    check(
        facts,
        &[
            (
                &a,
                "0000:22:00.0 (10de:2684), in the same IOMMU group 30 as 0000:21:00.0, is bound to nvidia",
                "ok",
            ),
            (&b, "0000:22:00.0 is bound to nvidia; run `vectorlay-agent vfio bind 0000:22:00.0`", "ok"),
        ],
    );
    let facts = facts.replace("driver=nvidia", "driver=vfio-pci");
    check(&facts, &[(&a, "free /dev/vfio/30", "ok"), (&b, "free /dev/vfio/30", "ok")]);
}

#[test]
fn eight_h100_with_nvswitches() {
    let mut facts = String::from("cpu GenuineIntel\ncmdline intel_iommu=on\niommu dmar0\niommu dmar1\nids\n");
    let buses = ["1b", "43", "52", "61", "9d", "c3", "d1", "df"];
    for (i, bus) in buses.iter().enumerate() {
        let (group, numa) = (40 + i, i / 4);
        facts += &format!(
            "pci 0000:{bus}:00.0 10de:2330 0302 rev=a1 driver=vfio-pci group={group} numa={numa} link=32.0x16 max=32.0x16\n"
        );
    }
    for (i, bus) in ["07", "08", "09", "0a"].iter().enumerate() {
        facts +=
            &format!("pci 0000:{bus}:00.0 10de:22a3 0680 rev=a1 driver=vfio-pci group={} numa=0\n", 60 + i);
    }
    let lines =
        buses.map(|b| format!("{b}:00.0 3D controller: NVIDIA Corporation GH100 [H100 SXM5 80GB] (rev a1)"));
    let nodes: Vec<String> = (0..8).map(|i| format!("free /dev/vfio/{}", 40 + i)).collect();
    let expected: Vec<_> = lines.iter().zip(&nodes).map(|(l, n)| (l.as_str(), n.as_str(), "ok")).collect();
    check(&facts, &expected);
    let gpus = look(&facts, None);
    let numa: Vec<_> = gpus.iter().map(|g| g.numa_node.unwrap()).collect();
    assert_eq!(numa, [0, 0, 0, 0, 1, 1, 1, 1]);
    let mut table = table(&gpus);
    let mut claim = |replica, count| {
        let claimed = table.claim(&ReplicaId::new(replica).unwrap(), count, |_| false).unwrap();
        claimed.iter().map(|(gpu, node)| format!("{:02x} {node}", gpu.bus)).collect::<Vec<_>>().join(", ")
    };
    assert_eq!(claim("a", 1), "1b /dev/vfio/40");
    assert_eq!(claim("b", 4), "9d /dev/vfio/44, c3 /dev/vfio/45, d1 /dev/vfio/46, df /dev/vfio/47");
    assert_eq!(claim("c", 3), "43 /dev/vfio/41, 52 /dev/vfio/42, 61 /dev/vfio/43");
}

#[test]
fn an_nvswitch_in_the_group_is_no_bridge() {
    let facts = "
        cpu AuthenticAMD
        iommu ivhd0
        ids
        pci 0000:1b:00.0 10de:2330 0302 rev=a1 driver=vfio-pci group=5
        pci 0000:07:00.0 10de:22a3 0680 driver=nvidia-nvswitch group=5
    ";
    let line = "1b:00.0 3D controller: NVIDIA Corporation GH100 [H100 SXM5 80GB] (rev a1)";
    check(facts, &[(line, "0000:07:00.0 (10de:22a3), in the same IOMMU group 5", "ok")]);
}

#[test]
fn amd_instinct() {
    let facts = "
        cpu AuthenticAMD
        iommu ivhd0
        ids
        pci 0000:05:00.0 1002:740f 0380 rev=02 driver=vfio-pci group=11
        pci 0000:85:00.0 1002:74a1 1200 driver=vfio-pci group=12
        pci 0000:86:00.0 1002:74a1 1200 driver=amdgpu group=13
        # The processor's own functions have AMD's other vendor ID.
        pci 0000:87:00.0 1022:1480 1300
        pci 0000:88:00.0 1002:1478 0604 driver=pcieport
        # Intel's accelerator of the same class.
        pci 0000:89:00.0 8086:0b25 0880
    ";
    let mi300 =
        "Processing accelerators: Advanced Micro Devices, Inc. [AMD/ATI] Aqua Vanjaram [Instinct MI300X]";
    check(
        facts,
        &[
            (
                "05:00.0 Display controller: Advanced Micro Devices, Inc. [AMD/ATI] Aldebaran/MI200 [Instinct MI210] (rev 02)",
                "free /dev/vfio/11",
                "ok",
            ),
            (&format!("85:00.0 {mi300}"), "free /dev/vfio/12", "ok"),
            (&format!("86:00.0 {mi300}"), "0000:86:00.0 is bound to amdgpu", "ok"),
        ],
    );
}

#[test]
fn an_integrated_gpu_and_a_discrete_one() {
    let facts = "
        cpu AuthenticAMD
        iommu ivhd0
        ids
        pci 0000:03:00.0 1002:7448 0300 driver=vfio-pci group=14
        pci 0000:c5:00.0 1002:1586 0300 rev=c1 driver=amdgpu group=20 boot_vga=1
    ";
    let amd = "Advanced Micro Devices, Inc. [AMD/ATI]";
    let integrated = format!(
        "c5:00.0 VGA compatible controller: {amd} Strix Halo [Radeon Graphics / Radeon 8050S Graphics / Radeon 8060S Graphics] (rev c1)"
    );
    let discrete = format!("03:00.0 VGA compatible controller: {amd} Navi 31 [Radeon Pro W7900]");
    check(
        facts,
        &[
            (&discrete, "free /dev/vfio/14", "ok"),
            (&integrated, "0000:c5:00.0 is the boot display; make another one", "ok"),
        ],
    );
    // Whoever forced it gets it.
    let facts = facts.replace("driver=amdgpu", "driver=vfio-pci");
    check(&facts, &[(&discrete, "free", "ok"), (&integrated, "free /dev/vfio/20", "ok")]);
}

#[test]
fn without_an_iommu_the_parameter_is_named() {
    let cases = [
        ("cpu GenuineIntel\ncmdline quiet", "turn VT-d on in the firmware and add intel_iommu=on iommu=pt"),
        (
            "cpu GenuineIntel\ncmdline intel_iommu=on",
            "already has intel_iommu=on: turn VT-d on in the firmware",
        ),
        ("cpu GenuineIntel\ncmdline intel_iommu=on intel_iommu=off", "take intel_iommu=off off the kernel's"),
        ("cpu AuthenticAMD\ncmdline quiet", "turn AMD-Vi (IOMMU) on in the firmware"),
        ("cpu AuthenticAMD\ncmdline amd_iommu=off", "take amd_iommu=off off"),
        ("cpu AuthenticAMD\ncmdline iommu=off", "take iommu=off off"),
        ("cpu 0x41", "turn the SMMU on in the firmware"),
        ("cpu GenuineIntel fpu hypervisor sse", "its hypervisor has to give it an IOMMU"),
    ];
    for (machine, advice) in cases {
        let facts = format!("{machine}\nids\npci 0000:01:00.0 10de:2204 0300 rev=a1 driver=nvidia");
        check(&facts, &[(RTX3090, advice, "ok")]);
    }
    let facts = "cpu AuthenticAMD\niommu ivhd0\nids\npci 0000:00:02.0 1:1 0600 group=1\npci 0000:01:00.0 10de:2204 0300 rev=a1";
    check(facts, &[(RTX3090, "0000:01:00.0 is behind no IOMMU although there is one", "ok")]);
}

#[test]
fn noiommu_isolates_nothing() {
    let facts = "
        cpu GenuineIntel
        ids
        pci 0000:01:00.0 10de:2204 0300 rev=a1 driver=vfio-pci group=0
        noiommu 0
    ";
    check(facts, &[(RTX3090, "group 0 of 0000:01:00.0 is in VFIO's no-IOMMU mode", "ok")]);
}

#[test]
fn mixed_drivers_and_none() {
    let facts = "
        cpu AuthenticAMD
        iommu ivhd0
        ids
        pci 0000:01:00.0 10de:2204 0300 rev=a1 driver=nvidia group=1
        pci 0000:02:00.0 10de:2204 0300 rev=a1 driver=vfio-pci group=2
        pci 0000:03:00.0 10de:2204 0300 rev=a1 group=3
        pci 0009:01:00.0 10de:2342 0302 rev=a1 driver=nvgrace_gpu_vfio_pci group=4
    ";
    let line = |a: &str| {
        format!("{a} VGA compatible controller: NVIDIA Corporation GA102 [GeForce RTX 3090] (rev a1)")
    };
    check(
        facts,
        &[
            (&line("0000:01:00.0"), "0000:01:00.0 is bound to nvidia", "ok"),
            (&line("0000:02:00.0"), "free /dev/vfio/2", "ok"),
            (&line("0000:03:00.0"), "0000:03:00.0 has no driver", "ok"),
            // A variant driver; a name that the list does not have; and with a second domain all lines show it.
            ("0009:01:00.0 3D controller: NVIDIA Corporation Device 2342 (rev a1)", "free /dev/vfio/4", "ok"),
        ],
    );
}

#[test]
fn virtual_functions() {
    let facts = "
        cpu AuthenticAMD
        iommu ivhd0
        ids
        pci 0000:85:00.0 1002:74a1 1200 driver=gim group=1 sriov=2/8
        pci 0000:85:02.0 1002:74b5 1200 driver=vfio-pci group=2 of=0000:85:00.0
        pci 0000:85:02.1 1002:74b5 1200 group=3 of=0000:85:00.0
    ";
    let amd = "Processing accelerators: Advanced Micro Devices, Inc. [AMD/ATI]";
    check(
        facts,
        &[
            (
                &format!("85:00.0 {amd} Aqua Vanjaram [Instinct MI300X]"),
                "has 2 virtual functions switched on",
                "ok",
            ),
            (&format!("85:02.0 {amd} Aqua Vanjaram [Instinct MI300X VF]"), "free /dev/vfio/2", "ok"),
        ],
    );
    let off = "cpu AuthenticAMD\niommu ivhd0\nids\npci 0000:85:00.0 1002:74a1 1200 driver=vfio-pci group=1 sriov=0/8";
    check(off, &[(&format!("85:00.0 {amd} Aqua Vanjaram [Instinct MI300X]"), "free /dev/vfio/1", "ok")]);
}

#[test]
fn machines_without_gpus() {
    check(
        "cpu GenuineIntel\niommu dmar0\nids\npci 0000:04:00.0 1a03:2000 0300 driver=ast boot_vga=1 group=1",
        &[],
    );
    check(
        "cpu GenuineIntel hypervisor\npci 0000:00:02.0 1af4:1050 0300\npci 0000:00:03.0 1af4:1041 0200",
        &[],
    );
    check("cpu 0x41\niommu smmu3.0x0000000400000000", &[]);
    // No PCI at all, which is no error; and no sysfs, which is one.
    let host = Host::new("cpu 0x41");
    std::fs::remove_dir_all(host.root().join("sys/bus/pci")).unwrap();
    assert!(
        Watch::new(host.root(), Limits::default())
            .read(Instant::now(), &mut || None)
            .unwrap()
            .gpus
            .is_empty()
    );
    std::fs::remove_dir_all(host.root().join("sys/bus")).unwrap();
    let error = Watch::new(host.root(), Limits::default()).read(Instant::now(), &mut || None).unwrap_err();
    assert!(error.to_string().contains("see that /sys is mounted"), "{error}");
}

#[test]
fn an_arm_server() {
    let facts = "
        cpu 0x41
        iommu smmu3.0x0000000005000000
        ids
        pci 0009:01:00.0 10de:2342 0302 rev=a1 driver=nvidia group=7 numa=0
    ";
    check(
        facts,
        &[(
            "0009:01:00.0 3D controller: NVIDIA Corporation Device 2342 (rev a1)",
            "0009:01:00.0 is bound to nvidia",
            "ok",
        )],
    );
}

#[test]
fn bus_number_3d_is_no_3d_controller() {
    let facts = "
        cpu GenuineIntel
        iommu dmar0
        ids
        pci 0000:3d:00.0 10de:1db6 0302 rev=a1 driver=vfio-pci group=1
        pci 0000:3d:00.1 10de:1aef 0403 driver=vfio-pci group=1
        pci 0000:3d:01.0 15b3:1017 0200 driver=mlx5_core group=2
    ";
    let line = "3d:00.0 3D controller: NVIDIA Corporation GV100GL [Tesla V100 PCIe 32GB] (rev a1)";
    check(facts, &[(line, "free /dev/vfio/1", "ok")]);
}

#[test]
fn domains_that_are_longer_or_not_zero() {
    let facts = "
        cpu GenuineIntel
        iommu dmar0
        ids
        pci 0000:01:00.0 10de:2204 0300 rev=a1 driver=vfio-pci group=1
        pci 10000:e1:00.0 8086:0a54 0108 driver=nvme
    ";
    let line = format!("0000:{RTX3090}");
    check(facts, &[(&line, "free /dev/vfio/1", "ok")]);
}

const LSPCI: &str = "Slot:\t0000:00:01.0\nClass:\tPCI bridge\nVendor:\tIntel Corporation\nDevice:\tDevice 4c01\nProgIf:\t00\n\n\
    Slot:\t0000:01:00.0\nClass:\tVGA compatible controller\nVendor:\tNVIDIA Corporation\nDevice:\tGA102 [GeForce RTX 3090]\n\
    SVendor:\tNVIDIA Corporation\nSDevice:\tDevice 1454\nRev:\ta1\nDriver:\tvfio-pci\nNUMANode:\t0\n\n";

#[test]
fn the_same_with_lspci_without_it_and_with_another_one() {
    let ids_alone = look(CONSUMER, None);
    let no_ids = CONSUMER.replace("ids\n", "");
    assert_eq!(look(&no_ids, Some(LSPCI)), ids_alone);
    // Busybox's prints neither names nor keys, and with these options no more than how it is used.
    for useless in
        ["", "01:00.0 Class 0300: 10de:2204\n", "BusyBox v1.36 multi-call binary.\n\nUsage: lspci [-mk]\n"]
    {
        assert_eq!(look(CONSUMER, Some(useless)), ids_alone, "{useless:?}");
    }
    // pciutils without its list of names, and no pciutils either.
    let bare = "Slot:\t0000:01:00.0\nClass:\tClass 0300\nVendor:\tVendor 10de\nDevice:\tDevice 2204\n";
    for output in [None, Some(bare)] {
        let gpus = look(&no_ids, output);
        assert_eq!(gpus[0].line, "01:00.0 Class 0300: Device 10de:2204 (rev a1)", "{output:?}");
        assert_eq!(gpus[0].name, "10de:2204");
    }
    // A vendor that is known alone.
    let half =
        "Slot:\t0000:01:00.0\nClass:\t3D controller\nVendor:\tNVIDIA Corporation\nDevice:\tDevice 2204\n";
    assert_eq!(
        look(&no_ids, Some(half))[0].line,
        "01:00.0 3D controller: NVIDIA Corporation Device 2204 (rev a1)"
    );
}

#[test]
fn lspci_is_asked_once_for_the_same_gpus() {
    let host = Host::new(CONSUMER);
    let mut watch = Watch::new(host.root(), Limits::default());
    let mut asked = 0;
    for _ in 0..3 {
        watch
            .read(Instant::now(), &mut || {
                asked += 1;
                None
            })
            .unwrap();
    }
    host.fact("pci 0000:02:00.0 10de:2684 0300 driver=vfio-pci group=19");
    watch
        .read(Instant::now(), &mut || {
            asked += 1;
            None
        })
        .unwrap();
    assert_eq!(asked, 2);
}

#[test]
fn sick_gpus() {
    let with =
        |what: &str| CONSUMER.replace("link=2.5x16 max=16.0x16 reset=none", &format!("reset=flr {what}"));
    let free = "free /dev/vfio/18";
    let sick = |what: &str, health: &str| check(&with(what), &[(RTX3090, free, health)]);
    sick("config=ones", "failed: fell off the bus");
    sick("config=ones power=D3cold", "failed: D3cold");
    sick("power=D3cold", "ok");
    sick("config=none", "unknown: config space cannot be read");
    sick("link=16.0x8 max=16.0x16", "suspect: 16.0 GT/s x8, the best is 16.0 GT/s x16");
    sick("link=8.0x4 max=16.0x16", "suspect: 8.0 GT/s x4");
    sick("aer=7/0/0", "ok");
    sick("aer=0/0/2", "suspect: 2 fatal and 0 other PCIe errors since boot");
    // A slot that is narrower than the card is no fault of the card.
    let narrow = with("link=16.0x8 max=16.0x16").replace("group=18 max=16.0x16", "group=18 max=16.0x8");
    check(&narrow, &[(RTX3090, free, "ok")]);
    let alone = "cpu AuthenticAMD\niommu ivhd0\nids\npci 0000:01:00.0 10de:2204 0300 rev=a1 driver=vfio-pci group=18 reset=none";
    check(alone, &[(RTX3090, free, "suspect: cannot be reset")]);
}

#[test]
fn health_comes_and_goes() {
    let host = Host::new(&format!(
        "{CONSUMER}\nkmsg 3,5,1,-;vfio-pci 0000:01:00.0: not ready 65535ms after FLR; giving up"
    ));
    let mut watch = Watch::new(host.root(), Limits::default());
    let mut health = || watch.read(Instant::now(), &mut || None).unwrap().gpus.remove(0).gpu.health;
    assert!(matches!(health(), Health::Suspect(text) if text.contains("said since boot")));
    assert_eq!(health(), Health::Ok);
    host.fact("kmsg 3,6,2,-;vfio-pci 0000:01:00.0: not ready 65535ms after bus reset; giving up");
    assert!(matches!(health(), Health::Failed(text) if text.contains("bus reset; giving up")));
    assert_eq!(health(), Health::Ok);
    let config = "sys/bus/pci/devices/0000:01:00.0/config";
    std::fs::write(host.root().join(config), [0xff; 256]).unwrap();
    assert!(matches!(health(), Health::Failed(_)));
    std::fs::write(host.root().join(config), [0; 256]).unwrap();
    assert_eq!(health(), Health::Ok);
}

#[test]
fn the_thresholds_are_settings() {
    let nothing = Host::new("");
    nothing.write("agent.json", "{}");
    let limits = |settings: &[(&str, &str)]| health_limits(&config(nothing.root(), settings));
    assert_eq!(limits(&[]), Limits::default());
    let health = |facts: &str, limits: Limits| {
        let host = Host::new(facts);
        let mut watch = Watch::new(host.root(), limits);
        watch.read(Instant::now(), &mut || None).unwrap().gpus.remove(0).gpu.health
    };
    let with =
        |link: &str| CONSUMER.replace("link=2.5x16 max=16.0x16 reset=none", &format!("reset=flr {link}"));
    let half = || limits(&[("gpu_link_width_percent", "50"), ("gpu_link_speed_percent", "50")]);
    assert!(matches!(health(&with("link=8.0x8 max=16.0x16"), Limits::default()), Health::Suspect(_)));
    assert_eq!(health(&with("link=8.0x8 max=16.0x16"), half()), Health::Ok);
    assert!(matches!(health(&with("link=8.0x4 max=16.0x16"), half()), Health::Suspect(_)));
    assert!(matches!(health(&with("link=5.0x8 max=16.0x16"), half()), Health::Suspect(_)));
    let fatal = || with("aer=0/0/2");
    assert!(matches!(health(&fatal(), Limits::default()), Health::Suspect(_)));
    assert_eq!(health(&fatal(), limits(&[("gpu_fatal_limit", "3")])), Health::Ok);
    assert!(matches!(health(&with("aer=0/3/0"), limits(&[("gpu_nonfatal_limit", "3")])), Health::Suspect(_)));
    assert_eq!(health(&with("aer=0/3/0"), limits(&[("gpu_nonfatal_limit", "4")])), Health::Ok);
    let alone =
        "cpu AuthenticAMD\niommu ivhd0\npci 0000:01:00.0 10de:2204 0300 driver=vfio-pci group=18 reset=none";
    assert!(matches!(health(alone, Limits::default()), Health::Suspect(_)));
    assert!(matches!(health(alone, limits(&[("gpu_require_reset", "true")])), Health::Failed(_)));
}

#[test]
fn corrected_errors_are_counted_by_the_hour() {
    let start = Instant::now();
    let host = Host::new(CONSUMER);
    let mut watch = Watch::new(host.root(), Limits::default());
    let mut health = |minute: u64, corrected: u32| {
        let path = "sys/bus/pci/devices/0000:01:00.0/aer_dev_";
        for (name, total, count) in
            [("correctable", "COR", corrected), ("nonfatal", "NONFATAL", 0), ("fatal", "FATAL", 0)]
        {
            host.write(&format!("{path}{name}"), &format!("RxErr 0\nTOTAL_ERR_{total} {count}\n"));
        }
        let now = start + Duration::from_secs(minute * 60);
        watch.read(now, &mut || None).unwrap().gpus.remove(0).gpu.health
    };
    // What was before the first reading does not count; then 400 in each hour are well.
    for (minute, corrected) in [(0, 100_000), (30, 100_200), (60, 100_400), (90, 100_600), (120, 100_800)] {
        assert_eq!(health(minute, corrected), Health::Ok, "minute {minute}");
    }
    assert_eq!(health(130, 101_279), Health::Ok);
    assert!(matches!(health(140, 101_280), Health::Suspect(text) if text.contains("480 corrected")));
    // Quiet again, it is well with the next hour; counters that begin again are no errors.
    assert!(matches!(health(180, 101_280), Health::Suspect(_)));
    assert_eq!(health(190, 101_280), Health::Ok);
    assert_eq!(health(200, 0), Health::Ok);
    assert_eq!(health(210, 479), Health::Ok);
}

/// What this machine's own lspci prints is what is composed here, for each of its functions.
#[test]
fn lines_are_as_lspci_prints_them() {
    use vectorlay::host::{lspci, pci};
    let run = |args: &[&str]| {
        let output = std::process::Command::new("lspci").args(args).output().ok()?;
        output.status.success().then(|| String::from_utf8(output.stdout).unwrap())
    };
    let (Some(machine), Some(plain)) = (run(&["-D", "-vmm"]), run(&[])) else {
        return skip("lines_are_as_lspci_prints_them", "there is no lspci");
    };
    let root = std::path::Path::new("/");
    let functions = pci::functions(root).unwrap();
    let domains = functions.iter().any(|f| f.address.domain != 0);
    let all: Vec<_> = functions.iter().collect();
    let lines = |output: Option<&str>| -> String {
        let named = lspci::names(root, output, &all);
        named.iter().zip(&all).map(|(n, f)| n.line(f, domains) + "\n").collect()
    };
    assert_eq!(lines(Some(&machine)), plain);
}

#[test]
fn a_card_whose_functions_are_in_different_groups_cannot_be_reset() {
    let facts = "
        cpu AuthenticAMD
        iommu ivhd0
        pci 0000:01:00.0 10de:1f08 0300 driver=vfio-pci group=18 reset=none
        pci 0000:01:00.1 10de:10f9 0403 driver=snd_hda_intel group=18 reset=none
    ";
    let reset = |facts: &str, settings: &[(&str, &str)]| {
        let host = Host::new(facts);
        let limits = health_limits(&config(host.root(), settings));
        let mut watch = Watch::new(host.root(), limits);
        watch.read(Instant::now(), &mut || None).unwrap().gpus.remove(0).gpu.health
    };
    assert_eq!(reset(facts, &[]), Health::Ok, "VFIO resets the card when it has all of its functions");
    let split = facts.replace("driver=snd_hda_intel group=18", "driver=snd_hda_intel group=19");
    let why = |health: Health| health.reason().unwrap_or_default().to_owned();
    let suspect = reset(&split, &[]);
    assert!(matches!(suspect, Health::Suspect(_)), "{suspect:?}");
    assert!(why(suspect).contains("its card's functions lie in different IOMMU groups"));
    assert!(matches!(reset(&split, &[("gpu_require_reset", "true")]), Health::Failed(_)));
    let alone = split.replace("group=18 reset=none", "group=18 reset=bus");
    assert_eq!(reset(&alone, &[]), Health::Ok);
}

#[test]
fn the_link_of_a_card_with_a_switch_of_its_own_is_judged_at_the_slot() {
    // A Radeon since Navi: root port, the card's switch (two ports), the GPU. The link on the card is always the best.
    let navi = |slot: &str, port: &str| {
        format!(
            "cpu AuthenticAMD
            iommu ivhd0
            pci 0000:00:01.1 1022:1483 0604 driver=pcieport {slot} max={port}
            pci 0000:01:00.0 1002:1478 0604 under=0000:00:01.1 driver=pcieport {slot} max=16.0x16
            pci 0000:02:00.0 1002:1479 0604 under=0000:01:00.0 driver=pcieport link=16.0x16 max=16.0x16
            pci 0000:03:00.0 1002:7448 0300 under=0000:02:00.0 driver=vfio-pci group=20 link=16.0x16 max=16.0x16"
        )
    };
    let health = |facts: &str| look(facts, None).remove(0).health;
    assert_eq!(health(&navi("link=16.0x16", "16.0x16")), Health::Ok);
    let narrow = health(&navi("link=16.0x4", "16.0x16"));
    assert!(
        matches!(&narrow, Health::Suspect(why) if why.contains("16.0 GT/s x4, the best is 16.0 GT/s x16")),
        "{narrow:?}"
    );
    // A slot that has no more is no fault, and neither is a link that sleeps.
    assert_eq!(health(&navi("link=16.0x8", "16.0x8")), Health::Ok);
    assert_eq!(health(&navi("link=2.5x16", "16.0x16")), Health::Ok);
}

#[test]
fn a_failed_gpu_with_the_hosts_driver_is_told_as_both() {
    let facts = "
        cpu AuthenticAMD
        iommu ivhd0
        pci 0000:41:00.0 10de:2330 0302 driver=nvidia group=7 config=ones
    ";
    let gpu = look(facts, None).remove(0);
    let summary = gpu.summary();
    for part in ["not assignable: failed: ", "fell off the bus", "is bound to nvidia; run"] {
        assert!(summary.contains(part), "{summary}");
    }
    assert_eq!(gpu.judgement().health, "failed");
}
