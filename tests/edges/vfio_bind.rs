//! `vfio status|bind|unbind` on hosts in a folder, where a few lines play the kernel.

use std::time::{Duration, Instant};

use crate::support::host::{Host, config};
use vectorlay::cli::{Form, VfioChange, VfioTarget};
use vectorlay::commands::vfio::{self, Failure};
use vectorlay::core::inventory::Verdict;
use vectorlay::host::gpus::Watch;
use vectorlay::host::health::Limits;
use vectorlay::host::vfio::Step;
use vectorlay::types::PciAddress;

const DESKTOP: &str = "
    cpu AuthenticAMD
    iommu ivhd0
    ids
    pci 0000:00:01.0 1022:1483 0604 driver=pcieport group=18
    pci 0000:01:00.0 10de:2204 0300 under=0000:00:01.0 rev=a1 driver=nvidia group=18
    pci 0000:01:00.1 10de:1aef 0403 under=0000:00:01.0 rev=a1 driver=snd_hda_intel group=18
    pci 0000:02:00.0 10de:2684 0300 group=19
    pci 0000:c5:00.0 1002:1586 0300 driver=amdgpu group=20 boot_vga=1
";

fn native(address: &str) -> Option<&'static str> {
    match address {
        "0000:01:00.0" => Some("nvidia"),
        "0000:01:00.1" => Some("snd_hda_intel"),
        "0000:c5:00.0" => Some("amdgpu"),
        _ => None,
    }
}

/// What is asked for.
#[derive(Clone)]
enum Request {
    Bind(VfioChange),
    Unbind(VfioChange),
}

/// Runs a command; the kernel refuses a write of which `refuses` says so.
fn run(
    host: &Host,
    request: &Request,
    refuses: &dyn Fn(&Step) -> Option<Failure>,
) -> (Result<(), String>, String) {
    run_with(host, request, None, refuses)
}

fn run_with(
    host: &Host,
    request: &Request,
    setting: Option<&str>,
    refuses: &dyn Fn(&Step) -> Option<Failure>,
) -> (Result<(), String>, String) {
    let mut out = Vec::new();
    let mut perform = |step: &Step| {
        if let Some(failure) = refuses(step) {
            return Err(failure);
        }
        match step {
            Step::Load { module, optional: false } => {
                host.write(&format!("sys/bus/pci/drivers/{module}/bind"), "");
                Ok(())
            }
            Step::Load { module, .. } => Err(Failure::Said(format!("{module} not found"))),
            Step::Write { path, value, .. } => host.kernel(path, value, &native).map_err(Failure::Said),
            Step::Await(node) => {
                assert!(node.exists(), "{step}");
                Ok(())
            }
        }
    };
    let result = match request {
        Request::Bind(change) => vfio::bind_with(change, setting, host.root(), &mut out, &mut perform),
        Request::Unbind(change) => vfio::unbind_with(change, host.root(), &mut out, &mut perform),
    };
    (result, String::from_utf8(out).unwrap().replace(host.root().to_str().unwrap(), ""))
}

fn change(what: VfioTarget) -> VfioChange {
    VfioChange { target: what, dry_run: false, force: false, persist: false }
}

fn these(addresses: &[&str]) -> VfioChange {
    change(VfioTarget::These(addresses.iter().map(|a| PciAddress::parse(a).unwrap()).collect()))
}

fn bind(addresses: &[&str]) -> Request {
    Request::Bind(these(addresses))
}

fn forced(addresses: &[&str]) -> Request {
    Request::Bind(VfioChange { force: true, ..these(addresses) })
}

fn unbind(addresses: &[&str]) -> Request {
    Request::Unbind(these(addresses))
}

/// Which driver has each function, and which GPUs are free.
fn state(host: &Host) -> String {
    let inventory = Watch::new(host.root(), Limits::default()).read(Instant::now(), &mut || None).unwrap();
    let free = inventory.gpus.iter().filter(|s| s.gpu.verdict == Verdict::Assignable).count();
    let drivers: Vec<_> = inventory.functions.iter().map(|f| f.driver.as_deref().unwrap_or("-")).collect();
    format!("{} free {free}", drivers.join(" "))
}

const BEFORE: &str = "pcieport nvidia snd_hda_intel - amdgpu free 0";
const OK: &dyn Fn(&Step) -> Option<Failure> = &|_| None;

#[test]
fn binds_the_whole_group_and_gives_it_back() {
    let host = Host::new(DESKTOP);
    assert_eq!(state(&host), BEFORE);
    let (result, said) = run(&host, &bind(&["01:00.0"]), OK);
    result.unwrap();
    assert_eq!(state(&host), "pcieport vfio-pci vfio-pci - amdgpu free 1");
    let device = "/sys/bus/pci/devices/0000:01:00";
    let expected = format!(
        "modprobe vfio-pci\nmodprobe vfio_iommu_type1\ncontinuing without vfio_iommu_type1: vfio_iommu_type1 not found\n\
         echo vfio-pci > {device}.0/driver_override\necho 0000:01:00.0 > {device}.0/driver/unbind\n\
         echo 0000:01:00.0 > /sys/bus/pci/drivers_probe\n\
         echo vfio-pci > {device}.1/driver_override\necho 0000:01:00.1 > {device}.1/driver/unbind\n\
         echo 0000:01:00.1 > /sys/bus/pci/drivers_probe\n\
         wait for /dev/vfio/18\n"
    );
    assert_eq!(said, expected);

    let (result, said) = run(&host, &bind(&["01:00.0"]), OK);
    assert_eq!((result.is_ok(), said.as_str()), (true, "nothing to do\n"));

    // Named by its companion, it is the same group.
    let (result, said) = run(&host, &unbind(&["01:00.1"]), OK);
    result.unwrap();
    assert_eq!(state(&host), BEFORE);
    assert!(said.starts_with(&format!(
        "echo > {device}.0/driver_override\necho 0000:01:00.0 > {device}.0/driver/unbind\n"
    )));
    let (_, said) = run(&host, &unbind(&["01:00.0"]), OK);
    assert_eq!(said, "nothing to do\n");
}

#[test]
fn a_dry_run_prints_the_same_and_changes_nothing() {
    let (dry, wet) = (Host::new(DESKTOP), Host::new(DESKTOP));
    let request = Request::Bind(VfioChange { dry_run: true, persist: true, ..change(VfioTarget::All) });
    let (result, printed) = run(&dry, &request, &|step| panic!("performed {step}"));
    result.unwrap();
    assert_eq!(state(&dry), BEFORE);
    assert!(!dry.root().join("etc").exists());
    let (result, done) = run(&wet, &Request::Bind(change(VfioTarget::All)), OK);
    result.unwrap();
    // All but the boot display.
    assert_eq!(state(&wet), "pcieport vfio-pci vfio-pci vfio-pci amdgpu free 2");
    let note = "continuing without vfio_iommu_type1: vfio_iommu_type1 not found\n";
    assert_eq!(printed, done.replace(note, ""));
}

/// A refusal that contains `part`; nothing is written.
fn refused(host: &Host, request: &Request, part: &str) {
    let before = state(host);
    let (result, said) = run(host, request, &|step| panic!("performed {step}"));
    let error = result.unwrap_err();
    assert!(error.contains(part), "{error} lacks {part:?}");
    assert_eq!((said.as_str(), state(host)), ("", before));
}

#[test]
fn refuses_what_would_hurt() {
    let host = Host::new(DESKTOP);
    refused(&host, &bind(&["c5:00.0"]), "0000:c5:00.0 is the boot display");
    refused(&host, &bind(&["01:00.0", "09:00.0"]), "there is no PCI device 0000:09:00.0");
    // All or nothing.
    refused(&host, &bind(&["01:00.0", "c5:00.0"]), "boot display");
    run(&host, &forced(&["c5:00.0"]), OK).0.unwrap();
    assert_eq!(state(&host), "pcieport nvidia snd_hda_intel - vfio-pci free 1");

    let facts = "
        cpu AuthenticAMD
        iommu ivhd0
        pci 0000:01:00.0 10de:2204 0300 driver=nvidia group=18
        pci 0000:02:00.0 8086:1533 0200 driver=igb group=18
    ";
    refused(
        &Host::new(facts),
        &bind(&["01:00.0"]),
        "0000:02:00.0 (8086:1533) (igb) is in the same IOMMU group 18",
    );
    let no_iommu = "cpu GenuineIntel\ncmdline quiet\npci 0000:01:00.0 10de:2204 0300 driver=nvidia";
    refused(&Host::new(no_iommu), &bind(&["01:00.0"]), "add intel_iommu=on iommu=pt");
    let virtual_on =
        "cpu AuthenticAMD\niommu ivhd0\npci 0000:85:00.0 1002:74a1 1200 driver=gim group=1 sriov=2/8";
    refused(&Host::new(virtual_on), &bind(&["85:00.0"]), "virtual functions switched on; bind those");
    // vGPUs are NVIDIA's business.
    let virtual_on = virtual_on.replace("1002:74a1 1200 driver=gim", "10de:2237 0302 driver=nvidia");
    refused(&Host::new(&virtual_on), &bind(&["85:00.0"]), "NVIDIA's vGPUs, which stay with its driver");
}

#[test]
fn refuses_what_the_hosts_disk_or_network_hangs_on() {
    let with = |controller: &str, below: &str| {
        Host::new(&format!(
            "cpu AuthenticAMD
            iommu ivhd0
            pci 0000:01:00.0 10de:1e07 0300 driver=nvidia group=18
            pci {controller} 10de:1ad6 0c03 driver=xhci_hcd group=18 {below}"
        ))
    };
    let disk = "below=usb1/1-4/1-4:1.0/host6/target6:0:0/6:0:0:0/block/sda";
    let network = "below=usb2/2-1/2-1:1.0/net/enx001122334455";
    for (below, what) in [(disk, "the disk sda"), (network, "the network card enx001122334455")] {
        let host = with("0000:00:14.0", below);
        let why = format!(
            "0000:00:14.0 (10de:1ad6) is in the same IOMMU group 18, and the host would lose {what}, which hangs on it"
        );
        refused(&host, &bind(&["01:00.0"]), &why);
        run(&host, &forced(&["01:00.0"]), OK).0.unwrap();
    }
    // A hub, a keyboard or an empty card reader is nothing that the host lives on, and what hangs on the card's own port
    // goes with the card.
    for (controller, below) in [
        ("0000:00:14.0", ""),
        ("0000:00:14.0", "below=usb1/1-4/1-4:1.0/input/input3"),
        ("0000:00:14.0", "below=usb1/1-4/block"),
        ("0000:01:00.2", disk),
    ] {
        run(&with(controller, below), &bind(&["01:00.0"]), OK).0.unwrap();
    }
}

#[test]
fn a_console_without_a_vga_controller_is_the_boot_display_too() {
    let with = |console: &str| {
        Host::new(&format!(
            "cpu AuthenticAMD\niommu ivhd0\npci 0000:c5:00.0 1002:150e 0380 driver=amdgpu group=20 {console}"
        ))
    };
    for console in ["below=graphics/fb0", "screen=connected", "boot_display=1"] {
        let host = with(console);
        refused(&host, &bind(&["c5:00.0"]), "0000:c5:00.0 is the boot display");
        assert!(status(&host, &[], Form::Text).contains("0000:c5:00.0 is the boot display"), "{console}");
        let (result, said) = run(&host, &Request::Bind(change(VfioTarget::All)), OK);
        result.unwrap();
        assert_eq!(said, "nothing to do\n", "{console}");
        run(&host, &forced(&["c5:00.0"]), OK).0.unwrap();
    }
    for headless in ["", "screen=disconnected", "screen=connected boot_display=0"] {
        run(&with(headless), &bind(&["c5:00.0"]), OK).0.unwrap();
    }
}

/// Four GPUs, of which two cannot be bound.
const MIXED: &str = "
    cpu AuthenticAMD
    iommu ivhd0
    pci 0000:01:00.0 10de:2330 0302 driver=nvidia group=1
    pci 0000:02:00.0 10de:2330 0302 driver=nvidia group=2
    pci 0000:02:00.1 8086:a282 0106 driver=ahci group=2
    pci 0000:03:00.0 1002:74a1 1200 driver=gim group=3 sriov=2/8
    pci 0000:04:00.0 10de:2330 0302 group=4
";

#[test]
fn one_that_cannot_be_bound_keeps_no_other_from_it() {
    let saved = Request::Bind(change(VfioTarget::Saved));
    for (request, setting) in [(Request::Bind(change(VfioTarget::All)), None), (saved, Some("all"))] {
        let host = Host::new(MIXED);
        let (result, said) = run_with(&host, &request, setting, OK);
        let error = result.unwrap_err();
        assert_eq!(error, "2 of 4 GPUs are left out; see above for the reasons");
        assert_eq!(state(&host), "vfio-pci nvidia ahci gim vfio-pci free 2");
        let first = "0000:02:00.0 is left out: 0000:02:00.1 (8086:a282) (ahci) is in the same IOMMU group 2";
        let second = "0000:03:00.0 is left out: 0000:03:00.0 has virtual functions switched on";
        assert!(said.starts_with(first) && said.contains(second), "{said}");
    }
    // Those that are named one by one are all bound or none, and without an IOMMU none can be.
    let host = Host::new(MIXED);
    refused(&host, &bind(&["01:00.0", "02:00.0"]), "in the same IOMMU group 2");
    let host = Host::new(&MIXED.replace("iommu ivhd0", ""));
    refused(&host, &Request::Bind(change(VfioTarget::All)), "the IOMMU is off");
    // Only what was bound is noted.
    let host = Host::new(MIXED);
    let request = Request::Bind(VfioChange { persist: true, ..change(VfioTarget::All) });
    run(&host, &request, OK).0.unwrap_err();
    let noted = std::fs::read_to_string(host.root().join("etc/vectorlay/vfio-bind")).unwrap();
    assert_eq!(noted, "0000:01:00.0 10de:2330\n0000:04:00.0 10de:2330\n");
}

#[test]
fn the_driver_that_the_kernel_has_for_the_device() {
    let host = Host::new(
        "cpu 0x41
        iommu smmu3
        pci 0009:01:00.0 10de:2342 0302 group=9
        pci 0009:01:00.1 10de:22bb 0403 driver=snd_hda_intel group=9",
    );
    host.write("proc/sys/kernel/osrelease", "6.8.0-nv\n");
    host.write(
        "lib/modules/6.8.0-nv/modules.alias",
        "# Aliases\nalias pci:v000010DEd*sv*sd*bc03sc*i* nouveau\n\
         alias vfio_pci:v000010DEd00002342sv*sd*bc*sc*i* nvgrace_gpu_vfio_pci\n\
         alias vfio_pci:v000015B3d0000101Esv*sd*bc*sc*i* mlx5_vfio_pci\nalias vfio_pci:v*d*sv*sd*bc*sc*i* vfio_pci\n",
    );
    host.write(
        "sys/bus/pci/devices/0009:01:00.0/modalias",
        "pci:v000010DEd00002342sv000010DEsd000016EBbc03sc02i00\n",
    );
    let (result, said) = run(&host, &bind(&["0009:01:00.0"]), OK);
    result.unwrap();
    assert_eq!(state(&host), "nvgrace_gpu_vfio_pci vfio-pci free 1");
    assert!(said.starts_with("modprobe nvgrace_gpu_vfio_pci\nmodprobe vfio-pci\n"), "{said}");
    run(&host, &unbind(&["0009:01:00.0"]), OK).0.unwrap();
    assert!(!state(&host).contains("vfio"), "{}", state(&host));
}

#[test]
fn a_kernel_with_device_nodes_alone() {
    let host = Host::new(DESKTOP);
    host.fact("file nogroups");
    let (result, said) = run(&host, &bind(&["01:00.0"]), OK);
    result.unwrap();
    assert!(said.ends_with("wait for /dev/vfio/18\n"), "{said}");
    assert!(status(&host, &[], Form::Text).contains("assignable as /dev/vfio/devices/vfio18"));
}

#[test]
fn refuses_what_a_process_uses() {
    let host = Host::new(DESKTOP);
    host.write(
        "proc/driver/nvidia/gpus/0000:01:00.0/information",
        "Model: \t\t NVIDIA\nDevice Minor: \t 3\n",
    );
    host.fact("holder 812 nvidia-persiste /dev/nvidia3");
    refused(&host, &bind(&["01:00.0"]), "/dev/nvidia3 is open in process 812 (nvidia-persiste)");
    // Not even when forced.
    refused(&host, &forced(&["01:00.0"]), "/dev/nvidia3 is open");
    std::fs::remove_dir_all(host.root().join("proc/812")).unwrap();

    host.write("sys/bus/pci/devices/0000:01:00.1/sound/card1/pcmC1D3p/dev", "");
    host.fact("holder 900 pipewire /dev/snd/pcmC1D3p");
    refused(&host, &bind(&["01:00.0"]), "/dev/snd/pcmC1D3p is open in process 900");
    std::fs::remove_dir_all(host.root().join("proc/900")).unwrap();

    run(&host, &bind(&["01:00.0"]), OK).0.unwrap();
    host.fact("holder 4242 qemu-system-x86 /dev/vfio/18");
    refused(&host, &unbind(&["01:00.0"]), "/dev/vfio/18 is open in process 4242 (qemu-system-x86)");
}

#[test]
fn refuses_to_let_go_of_what_seems_to_be_open() {
    let host = Host::new(&DESKTOP.replace("driver=nvidia group=18", "driver=vfio-pci group=18 enable=1"));
    refused(&host, &unbind(&["01:00.0"]), "0000:01:00.0 seems to be open");
    let forced = Request::Unbind(VfioChange { force: true, ..these(&["01:00.0"]) });
    run(&host, &forced, OK).0.unwrap();
    assert_eq!(state(&host), BEFORE);
    // A driver of the host's switches its device on, and that is no obstacle.
    let host = Host::new(&DESKTOP.replace("driver=nvidia group=18", "driver=nvidia group=18 enable=1"));
    run(&host, &bind(&["01:00.0"]), OK).0.unwrap();
}

#[test]
fn a_failure_on_the_way_is_undone() {
    let host = Host::new(DESKTOP);
    let fails_at = |part: &'static str, failure: fn() -> Failure| {
        move |step: &Step| step.to_string().contains(part).then(failure)
    };
    let said = || Failure::Said("Device or resource busy".into());
    let hung = || Failure::Hung(Duration::from_secs(60));

    let (result, _) = run(&host, &bind(&["01:00.0"]), &fails_at("00.1/driver/unbind", said));
    let error = result.unwrap_err().to_string();
    assert!(error.contains("busy") && error.ends_with("earlier steps are undone"), "{error}");
    assert_eq!(state(&host), BEFORE);

    let (result, _) = run(&host, &bind(&["01:00.0"]), &fails_at("wait for", hung));
    assert!(result.unwrap_err().to_string().contains("not done within 60 s"));
    assert_eq!(state(&host), BEFORE);

    // The device whose write hangs is not touched again.
    let hangs = |step: &Step| step.to_string().contains("00.1/driver").then(hung);
    let (result, _) = run(&host, &bind(&["01:00.0"]), &hangs);
    let error = result.unwrap_err().to_string();
    assert!(error.ends_with("earlier steps are undone"), "{error}");
    assert_eq!(state(&host), BEFORE);

    // What cannot be undone is told.
    let nothing_goes = |step: &Step| match step {
        Step::Write { path, value, .. } if path.ends_with("driver_override") && value != "vfio-pci" => {
            Some(said())
        }
        other => other.to_string().contains("00.1/driver_override").then(said),
    };
    let error = run(&host, &bind(&["01:00.0"]), &nothing_goes).0.unwrap_err().to_string();
    assert!(error.contains("undo by hand: echo > "), "{error}");
}

#[test]
fn what_was_noted_is_bound_at_boot() {
    let host = Host::new(DESKTOP);
    let persist = |addresses| Request::Bind(VfioChange { persist: true, ..these(addresses) });
    let (result, said) = run(&host, &persist(&["02:00.0"]), OK);
    result.unwrap();
    assert!(
        said.contains("vfio bind --saved") && said.contains("vectorlay.vfio_bind=0000:02:00.0"),
        "{said}"
    );
    run(&host, &persist(&["01:00.0"]), OK).0.unwrap();
    let noted = || std::fs::read_to_string(host.root().join(vfio::boot::SAVED)).unwrap();
    assert_eq!(noted(), "0000:01:00.0 10de:2204\n0000:02:00.0 10de:2684\n");

    // The next boot: another card sits at one of the addresses.
    let saved = Request::Bind(change(VfioTarget::Saved));
    let next = Host::new(&DESKTOP.replace("10de:2684", "10de:2330"));
    next.write(vfio::boot::SAVED, &noted());
    let (result, said) = run(&next, &saved, OK);
    result.unwrap();
    assert!(said.starts_with("0000:02:00.0 10de:2684: no such device; skipped"), "{said}");
    assert_eq!(state(&next), "pcieport vfio-pci vfio-pci - amdgpu free 1");

    let (result, _) = run(&host, &Request::Unbind(VfioChange { persist: true, ..these(&["01:00.0"]) }), OK);
    result.unwrap();
    assert_eq!(noted(), "0000:02:00.0 10de:2684\n");

    // Most hosts have nothing noted, and need no IOMMU for that.
    let plain = Host::new("cpu GenuineIntel\ncmdline quiet");
    let (result, said) = run(&plain, &saved, &|step| panic!("performed {step}"));
    result.unwrap();
    assert_eq!(said, "no GPUs to bind\n");

    // A diskless image has the setting alone, on the kernel's command line.
    let cases = [
        (None, BEFORE),
        (Some("0000:02:00.0"), "pcieport nvidia snd_hda_intel vfio-pci amdgpu free 1"),
        (Some("01:00.0,nonsense,77:00.0,"), "pcieport vfio-pci vfio-pci - amdgpu free 1"),
        (Some("all"), "pcieport vfio-pci vfio-pci vfio-pci amdgpu free 2"),
    ];
    for (setting, expected) in cases {
        let host = Host::new(DESKTOP);
        let (result, said) = run_with(&host, &saved, setting, OK);
        result.unwrap();
        assert_eq!(state(&host), expected, "{setting:?}: {said}");
    }
}

/// What `vfio status` prints.
fn status(host: &Host, settings: &[(&str, &str)], form: Form) -> String {
    vfio::status(&config(host.root(), settings), form).unwrap()
}

#[test]
fn status_tells_each_gpu_and_its_obstacle() {
    let host = Host::new(DESKTOP);
    run(&host, &bind(&["01:00.0"]), OK).0.unwrap();
    let said = status(&host, &[], Form::Text);
    for part in [
        "IOMMU: on\n",
        "0000:01:00.0 NVIDIA Corporation GA102 [GeForce RTX 3090]: assignable as /dev/vfio/18\n    driver vfio-pci, IOMMU \
         group 18 with 0000:01:00.1 (10de:1aef) vfio-pci, D0, reset by flr, health ok\n",
        "0000:02:00.0 NVIDIA Corporation AD102 [GeForce RTX 4090]: not assignable: 0000:02:00.0 has no driver; run",
        "0000:c5:00.0 is the boot display",
    ] {
        assert!(said.contains(part), "{said} lacks {part:?}");
    }
    let json = status(&host, &[], Form::Json);
    assert!(json.starts_with("{\n  \""), "it is indented as the others' is: {json}");
    let json: serde_json::Value = serde_json::from_str(&json).unwrap();
    assert_eq!((&json["iommu"]["on"], json["gpus"].as_array().unwrap().len()), (&true.into(), 3));
    let gpu = &json["gpus"][0];
    assert_eq!(
        (&gpu["assignable"], &gpu["device_node"], &gpu["class"]),
        (&true.into(), &"/dev/vfio/18".into(), &"0300".into())
    );
    assert!(json["gpus"][2]["reason"].as_str().unwrap().contains("boot display"));

    let host = Host::new("cpu GenuineIntel\ncmdline quiet\npci 0000:01:00.0 10de:2204 0300 driver=nvidia");
    let said = status(&host, &[], Form::Text);
    assert!(said.contains("missing kernel parameters: intel_iommu=on iommu=pt\n"), "{said}");
}

#[test]
fn status_judges_by_the_settings_as_check_does() {
    let host = Host::new(
        "cpu AuthenticAMD\niommu ivhd0\npci 0000:01:00.0 10de:2204 0300 driver=vfio-pci group=18 reset=none",
    );
    let said = status(&host, &[], Form::Text);
    assert!(said.contains("assignable as /dev/vfio/18, but suspect: it cannot be reset"), "{said}");
    for (settings, words) in [
        (("gpu_require_reset", "true"), "not assignable: failed: it cannot be reset"),
        (("gpu_handover", "none"), "not assignable: suspect: it cannot be reset"),
        (
            ("gpu_handover", "nvidia"),
            "give it back to nvidia with `vectorlay-agent vfio unbind 0000:01:00.0`",
        ),
    ] {
        let said = status(&host, &[settings], Form::Text);
        assert!(said.contains(words), "{said}");
        let json: serde_json::Value = serde_json::from_str(&status(&host, &[settings], Form::Json)).unwrap();
        assert_eq!(json["gpus"][0]["assignable"], false);
    }
}

#[test]
fn the_hidden_command_writes_to_these_files_alone() {
    use vectorlay::host::vfio::write;
    let host = Host::new(DESKTOP);
    let path = host.root().join("sys/bus/pci/devices/0000:01:00.0/driver_override");
    write(&path, "vfio-pci").unwrap();
    assert!(std::fs::read_to_string(&path).unwrap().starts_with("vfio-pci"));
    for wrong in ["etc/passwd", "sys/bus/pci/devices/0000:01:00.0/remove", "sys/bus/pci/../../kernel/unbind"]
    {
        host.write(wrong, "");
        assert!(write(&host.root().join(wrong), "x").is_err(), "{wrong}");
    }
}

#[test]
fn only_the_hidden_command_is_a_writer() {
    let check = |arguments: &[&str], is: bool| {
        let arguments: Vec<_> = arguments.iter().map(Into::into).collect();
        assert_eq!(vfio::as_writer(&arguments).is_some(), is, "{arguments:?}");
    };
    check(&["vfio-write", "/nowhere/sys/bus/pci/drivers_probe", "x"], true);
    check(&["vfio-write", "/nowhere"], false);
    check(&["vfio", "bind", "01:00.0"], false);
    check(&[], false);
}
