//! The readers of bytes from outside. Each target gives the bytes to the code that reads them in the agent, and says what
//! must be so of the outcome, whatever they are; that nothing panics goes without saying.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::time::Instant;

use vectorlay::config::{self, Need, Overrides};
use vectorlay::control;
use vectorlay::core::inventory::Handover;
use vectorlay::core::job::{Job, PullJob, RunJob, Vendor};
use vectorlay::core::link_api::LinkEvent;
use vectorlay::core::proof;
use vectorlay::engine::cli::Flavour;
use vectorlay::engine::leftover_calls::{self, Caller};
use vectorlay::engine::{addresses, error_text, image, image_policy, logs, parse, ports, releases};
use vectorlay::host::dependencies::versions;
use vectorlay::host::handover::CdiNames;
use vectorlay::host::health::Limits;
use vectorlay::host::kata::config::Config as KataConfig;
use vectorlay::host::kata::{gpus as kata_gpus, requirements};
use vectorlay::host::kernel_log::{self, says_oom_killed};
use vectorlay::host::shim::{Kind, Language, Program, Shim};
use vectorlay::host::{self, cni, containerd_path, gpus, handover, holders, lspci, memory, pci, utilization};
use vectorlay::link::{self, Host, Proxy, Url, dates, replay};
use vectorlay::process::{Ended, Finished};
use vectorlay::protocol;
use vectorlay::store;
use vectorlay::types::{ContainerId, EnvName, HostPort, ImageRef, Port, RegistryAuth, Secret, Spec};

use crate::host as fixture;
use crate::rig::{Rig, SECOND, Start};

/// A reader.
pub struct Target {
    pub name: &'static str,
    /// The first byte says which of so many variants is tried; with 0 there is one.
    pub choices: u8,
    /// The files whose text literals are the seeds.
    pub sources: &'static [&'static str],
    /// The variant, the bytes, and a folder of the target's own.
    pub run: fn(u8, &[u8], &Path),
}

impl Target {
    /// Tries an input.
    pub fn try_bytes(&self, input: &[u8], scratch: &Path) {
        match (self.choices, input.split_first()) {
            (0, _) => (self.run)(0, input, scratch),
            (choices, Some((choice, bytes))) => (self.run)(choice % choices, bytes, scratch),
            (_, None) => (self.run)(0, b"", scratch),
        }
    }
}

pub const TARGETS: &[Target] = &[
    target("messages", 0, &["src/protocol.md", "src/protocol.rs", "tests/core/table.rs"], messages),
    target("protocol", 0, &["src/protocol.md", "src/protocol.rs"], protocol),
    target("frames", 4, &["src/protocol.md", "tests/edges/link/connected.rs"], frames),
    target("upgrade_answer", 0, &["src/link/upgrade.rs", "src/link/head.rs"], upgrade_answer),
    target("proxy_answer", 0, &["src/link/head.rs", "tests/edges/link/secured.rs"], proxy_answer),
    target(
        "registration_answer",
        0,
        &["src/link/register.rs", "src/link/head.rs", "tests/edges/link/registering.rs"],
        registration_answer,
    ),
    target("http_dates", 0, &["src/link/dates.rs"], http_dates),
    target("url", 0, &["src/link/url.rs"], url),
    target("proxy", 0, &["src/link/proxy.rs"], proxy),
    target("certificates", 0, &["src/link/tls.rs"], certificates),
    target("image_name", 0, &["src/types/image_ref.rs", "tests/e2e/hostile.rs"], image_name),
    target(
        "cli_output",
        48,
        &["src/engine/parse/tests.rs", "src/engine/failure.rs", "tests/edges/engine.rs"],
        cli_output,
    ),
    target("error_text", 0, &["src/engine/error_text.rs", "src/engine/parse/tests.rs"], error_text),
    target(
        "image_inspect",
        2,
        &["src/engine/image.rs", "src/engine/image_policy.rs", "src/engine/parse/tests.rs"],
        image_inspect,
    ),
    target("versions", 0, &["src/host/dependencies/versions.rs", "src/engine/releases.rs"], program_versions),
    target("proof_report", 0, &["src/core/proof.rs", "src/host/inside.rs"], proof_report),
    target("lspci", 0, &["src/host/lspci.rs"], lspci_output),
    target("pci_ids", 0, &["src/host/pci_ids.rs", "tests/support/host.rs"], pci_ids),
    target("nvidia_smi", 0, &["src/host/utilization.rs"], nvidia_smi),
    target(
        "sysfs",
        FACTS_FILES.len() as u8,
        &["src/host/health.rs", "src/host/identity.rs", "src/host/inside.rs", "tests/support/host.rs"],
        sysfs,
    ),
    target("kernel_log", 0, &["src/host/kernel_log.rs"], kernel_log_records),
    target("kernel_tables", 4, &["src/engine/ports.rs"], kernel_tables),
    target(
        "processes",
        PROCESS_FILES.len() as u8,
        &["src/engine/leftover_calls.rs", "src/host/containerd_path.rs"],
        processes,
    ),
    target("cni", CNI_FILES.len() as u8, &["src/host/cni.rs"], networks),
    target("addresses", 0, &["src/engine/addresses.rs"], leased_addresses),
    target("kata_config", 3, &["src/host/kata/config.rs", "src/host/kata/gpus.rs"], kata_config),
    target("shim", 2, &["src/host/shim.rs", "src/host/shim/tests.rs"], shim),
    target("container_log", 0, &["src/engine/logs.rs"], container_log),
    target("node_json", 0, &["src/store/identity.rs"], node_json),
    target("state", 0, &["tests/core/fixtures/state-v1.json", "src/core/state_file.rs"], state),
    target("history", 0, &["src/store/history.rs"], history),
    target("settings", 2, &["src/config/tests.rs", "src/config/table.rs", "src/config/cmdline.rs"], settings),
    target("control_request", 0, &["src/control.rs"], control_request),
];

const fn target(
    name: &'static str,
    choices: u8,
    sources: &'static [&'static str],
    run: fn(u8, &[u8], &Path),
) -> Target {
    Target { name, choices, sources, run }
}

// --- from the network ---

/// A node of which a peer asks whatever it likes goes on, and is the same node for the next process.
fn messages(_: u8, bytes: &[u8], _: &Path) {
    let mut rig = Rig::online();
    for line in String::from_utf8_lossy(bytes).split('\n').take(64) {
        match line.strip_prefix('~').and_then(|seconds| seconds.parse::<u64>().ok()) {
            Some(seconds) => rig.wait(SECOND * seconds.min(300) as u32),
            None => rig.link(LinkEvent::Text(line.to_owned())),
        }
    }
    lives(&mut rig);
    let mut next = rig.restart();
    next.connect();
    lives(&mut next);
    assert!(!next.log.iter().any(|line| line.contains("record")), "its own record: {:?}", next.log);
}

fn lives(rig: &mut Rig) {
    rig.wait(60 * SECOND);
    rig.beat();
    assert!(rig.end.is_none(), "it ended: {:?}", rig.log);
    assert!(rig.everything_sent().iter().any(|line| line.starts_with("heartbeat")), "it is silent");
}

fn protocol(_: u8, bytes: &[u8], _: &Path) {
    if let Err(unusable) = protocol::read(&String::from_utf8_lossy(bytes)) {
        drop(format!("{unusable:?}"));
    }
}

/// The bytes as they are, and framed: in one message, in pieces, with a close frame behind them.
fn frames(choice: u8, bytes: &[u8], _: &Path) {
    fn frame(first: u8, payload: &[u8]) -> Vec<u8> {
        let mut frame = vec![first];
        match payload.len() {
            length @ 0..126 => frame.push(length as u8),
            length => frame.extend([&[126], &(length as u16).to_be_bytes()[..]].concat()),
        }
        [frame.as_slice(), payload].concat()
    }
    let bytes = &bytes[..bytes.len().min(30_000)];
    let half = bytes.len() / 2;
    let sent = match choice {
        0 => bytes.to_vec(),
        1 => frame(0x81, bytes),
        2 => [frame(0x01, &bytes[..half]), frame(0x89, b"ping"), frame(0x80, &bytes[half..])].concat(),
        _ => [frame(0x82, bytes), frame(0x88, &bytes[..bytes.len().min(125)])].concat(),
    };
    let (events, down) = replay::frames(&sent).unwrap();
    let text = events
        .iter()
        .filter_map(|event| if let LinkEvent::Text(text) = event { Some(text.len()) } else { None });
    assert!(text.sum::<usize>() <= sent.len());
    is_plain(&down.detail);
}

fn peer() -> Url {
    Url::http("https://cp.example/register", false).unwrap()
}

fn upgrade_answer(_: u8, bytes: &[u8], _: &Path) {
    for answer in [bytes.to_vec(), [b"HTTP/1.1 101 Switching Protocols\r\n", bytes, b"\r\n\r\n"].concat()] {
        if let Err(why) = replay::upgrade_answer(&peer(), &answer) {
            is_plain(&why);
        }
    }
}

fn proxy_answer(_: u8, bytes: &[u8], _: &Path) {
    let proxy = Proxy::new("http://user:pa55word@proxy.example:3128", "").unwrap();
    if let Err(why) = replay::proxy_answer(&peer(), &proxy, bytes) {
        is_plain(&why);
        assert!(!why.contains("pa55word"), "{why}");
    }
}

fn registration_answer(_: u8, bytes: &[u8], _: &Path) {
    for answer in [bytes.to_vec(), [b"HTTP/1.1 200 OK\r\n\r\n", bytes].concat()] {
        drop(replay::registration(&peer(), &answer).unwrap());
    }
}

fn http_dates(_: u8, bytes: &[u8], _: &Path) {
    let text = String::from_utf8_lossy(bytes);
    let wait = dates::retry_after(&text, 1_790_000_000);
    assert!(wait.is_none_or(|wait| wait <= dates::RETRY_AFTER_MAX), "{wait:?}");
    if let Some(seconds) = dates::seconds(&text) {
        dates::utc(seconds);
    }
}

fn url(_: u8, bytes: &[u8], _: &Path) {
    let text = String::from_utf8_lossy(bytes);
    if let Ok(url) = Url::websocket(&text, true) {
        let shown = url.to_string();
        assert!(shown.starts_with("ws://") || shown.starts_with("wss://"), "{shown}");
        is_plain(&shown);
        let register = Url::register_from(&url).to_string();
        assert_eq!(Url::http(&register, true).unwrap().to_string(), register);
    }
    drop(Url::http(&text, false));
}

fn proxy(_: u8, bytes: &[u8], _: &Path) {
    let text = String::from_utf8_lossy(bytes);
    let (proxy, exceptions) = text.split_once('\n').unwrap_or((&text, &text));
    let Ok(proxy) = Proxy::new(proxy, exceptions) else { return };
    let loopback = Host::Address([127, 0, 0, 1].into());
    assert!(!proxy.serves(&loopback, 443), "this machine is never reached through it");
    let others = [Host::Name("cp.example".into()), Host::Address([10, 1, 2, 3].into())];
    for host in others.into_iter().chain([Host::Address("::ffff:10.1.2.3".parse().unwrap())]) {
        proxy.serves(&host, 443);
    }
}

fn certificates(_: u8, bytes: &[u8], scratch: &Path) {
    const BEGIN: &[u8] = b"-----BEGIN CERTIFICATE-----\n";
    let file = write(scratch, "ca.pem", &[BEGIN, bytes, b"\n-----END CERTIFICATE-----\n"].concat());
    if let Err(error) = link::check_ca_file(&file) {
        assert!(!error.to_string().is_empty());
    }
}

// --- from the engine ---

fn image_name(_: u8, bytes: &[u8], _: &Path) {
    let text = String::from_utf8_lossy(bytes);
    let Ok(image) = ImageRef::new(&text) else { return };
    assert_eq!(image.as_str(), text);
    assert!(!image.canonical().starts_with('-') && !image.canonical().contains("://"), "{image}");
    assert!(image.canonical().bytes().all(|byte| byte.is_ascii_graphic()), "{image}");
    let again = ImageRef::new(image.canonical()).unwrap();
    assert_eq!((again.canonical(), again.repository()), (image.canonical(), image.repository()));
}

const SECRET: &str = "pa55\"w\\ord\nof two lines";

fn jobs() -> [Job; 12] {
    let id = || ContainerId::new(&"0123456789abcdef".repeat(4)).unwrap();
    let image = || ImageRef::new("r.example/a:1").unwrap();
    let secret = || Secret::new(SECRET.to_owned());
    let mut spec = Spec::new(image());
    spec.env = vec![(EnvName::new("PASSWORD").unwrap(), secret())];
    spec.command = vec!["image not available".to_owned()];
    let run = RunJob {
        name: "replica-r".to_owned(),
        spec,
        labels: Vec::new(),
        gpus: Vec::new(),
        ended_by_reboot: BTreeSet::new(),
        deadline: SECOND,
    };
    let auth = RegistryAuth { server: "r.example".to_owned(), username: "u".to_owned(), password: secret() };
    [
        Job::Run(Box::new(run)),
        Job::Pull(Box::new(PullJob { image: image(), auth: Some(auth), deadline: SECOND })),
        Job::List,
        Job::Inspect(id()),
        Job::Stop(id(), SECOND),
        Job::Remove(id()),
        Job::Logs(id(), 100),
        Job::Probe,
        Job::Images,
        Job::RemoveImage(image()),
        Job::GuestUse(id(), Vendor::Nvidia),
        Job::GuestUse(id(), Vendor::Amd),
    ]
}

fn printed(ended: Ended, stdout: &[u8], stderr: &[u8], cut: bool) -> Finished {
    Finished {
        ended,
        stdout: stdout.to_vec(),
        stdout_cut: cut,
        stderr: stderr.to_vec(),
        stderr_cut: cut,
        took: SECOND,
    }
}

/// What each call may print, on either stream. An error is one line for a result and the log, and says no secret.
fn cli_output(choice: u8, bytes: &[u8], _: &Path) {
    let jobs = jobs();
    let job = &jobs[usize::from(choice) % jobs.len()];
    let finished = match usize::from(choice) / jobs.len() {
        0 => printed(Ended::Exit(0), bytes, b"", false),
        1 => printed(Ended::Exit(1), b"", bytes, false),
        2 => printed(Ended::Exit(0), bytes, bytes, true),
        _ => printed(Ended::Signal(9), bytes, &[SECRET.as_bytes(), bytes].concat(), false),
    };
    let result = Ok(finished);
    let outcome = parse::outcome(job, &result);
    let text = outcome.to_string();
    assert!(text.len() <= 2 * error_text::LINE_MAX, "{text}");
    is_plain(&text);
    // What a call was not given, nothing can hide.
    let knows = matches!(job, Job::Run(_) | Job::Pull(_));
    assert!(!knows || !text.contains("of two lines"), "{text}");
    drop(parse::list(job, &result));
    drop(parse::container_ids(&result));
    drop(parse::deploy_of(job, &result));
    if let Job::Inspect(id) = job {
        drop(parse::labelled(&result, id));
    }
}

fn error_text(_: u8, bytes: &[u8], _: &Path) {
    let whole = String::from_utf8_lossy(bytes);
    let (text, secret) = whole.split_once("\n---\n").unwrap_or((&whole, "pa55word"));
    drop(error_text::last_complaint(bytes));
    let error = error_text::last_error(text.as_bytes(), false);
    drop(error_text::last_error(text.as_bytes(), true));
    let line = error_text::one_line(&error_text::cause_last(&error));
    assert!(line.len() <= error_text::LINE_MAX, "{} bytes", line.len());
    is_plain(&line);
    for text in [text, &error] {
        let hidden = error_text::without_secrets(text, &[secret]);
        // A secret may itself be a part of what stands in its place.
        if secret.len() >= 4
            && !secret.contains(['*', '\u{1b}'])
            && !"what the engine said is left out: too much of it is like the deploy's variables"
                .contains(secret)
        {
            assert!(!hidden.contains(secret), "{secret:?} in {hidden:?}");
        }
    }
}

fn image_inspect(choice: u8, bytes: &[u8], _: &Path) {
    let flavour = if choice == 0 { Flavour::Nerdctl } else { Flavour::Docker };
    let image = ImageRef::new("r.example/a:1").unwrap();
    let text = String::from_utf8_lossy(bytes);
    let _ = image::lacks_config(&image, &text);
    let result = Ok(printed(Ended::Exit(0), bytes, b"", false));
    let Ok(facts) = parse::facts(flavour, &Job::Probe, &image, &result) else { return };
    let orders = facts.labels.iter().any(|key| key.to_ascii_lowercase().contains("nerdctl/"));
    let checked = image_policy::check(facts);
    assert!(!orders || checked.is_err(), "orders to the host are taken: {text}");
}

fn program_versions(_: u8, bytes: &[u8], _: &Path) {
    let text = String::from_utf8_lossy(bytes);
    drop((versions::first(&text), versions::server(&text)));
    versions::is_qemus_virtiofsd(&text);
    for flavour in [Flavour::Nerdctl, Flavour::Docker] {
        drop(releases::known_hole(flavour, Some(&text)));
    }
    Flavour::of_version(&text);
}

/// What a container says of the machine that it ran on: only a kernel of another boot isolates.
fn proof_report(_: u8, bytes: &[u8], _: &Path) {
    let Ok(said) = serde_json::from_slice::<serde_json::Value>(bytes) else { return };
    let gpus = ["10de:2330".to_owned(), "10de:2330".to_owned()];
    let expected = proof::Expected { boot_id: Some("host"), runtime: "kata", isolates: true, gpus: &gpus };
    let verdict = proof::judge(&said, &expected);
    let is_well = verdict.reason.is_none();
    assert!(!is_well || verdict.isolated == Some(true) && said["boot_id"] != "host", "{said}");
}

// --- from the host ---

const FACTS: &str = "cpu GenuineIntel\ncmdline intel_iommu=on\niommu dmar0\nids
    pci 0000:00:01.0 8086:1901 0604 driver=pcieport group=1
    pci 0000:01:00.0 10de:2204 0300 under=0000:00:01.0 rev=a1 driver=vfio-pci group=1 numa=0 link=16.0x16 max=16.0x16 aer=0/0/0 power=D0 reset=flr
    pci 0000:01:00.1 10de:1aef 0403 under=0000:00:01.0 driver=vfio-pci group=1
    pci 0000:03:00.0 1002:73bf 0300 driver=amdgpu group=3
    holder 4242 qemu /dev/vfio/1\nfile dev/kfd\nrender 0000:03:00.0 128\nuuid 0000:01:00.0 GPU-1";

/// What is replaced by the bytes.
const FACTS_FILES: [&str; 28] = [
    "sys/bus/pci/devices/0000:01:00.0/class",
    "sys/bus/pci/devices/0000:01:00.0/vendor",
    "sys/bus/pci/devices/0000:01:00.0/config",
    "sys/bus/pci/devices/0000:01:00.0/current_link_speed",
    "sys/bus/pci/devices/0000:01:00.0/current_link_width",
    "sys/bus/pci/devices/0000:01:00.0/max_link_speed",
    "sys/bus/pci/devices/0000:01:00.0/aer_dev_correctable",
    "sys/bus/pci/devices/0000:01:00.0/aer_dev_fatal",
    "sys/bus/pci/devices/0000:01:00.0/power_state",
    "sys/bus/pci/devices/0000:01:00.0/reset_method",
    "sys/bus/pci/devices/0000:01:00.0/numa_node",
    "sys/bus/pci/devices/0000:03:00.0/gpu_busy_percent",
    "sys/bus/pci/devices/0000:03:00.0/mem_info_vram_total",
    "sys/class/dmi/id/product_uuid",
    "sys/class/dmi/id/product_name",
    "sys/class/dmi/id/board_serial",
    "etc/machine-id",
    "proc/sys/kernel/random/boot_id",
    "proc/sys/kernel/hostname",
    "proc/version",
    "proc/meminfo",
    "proc/uptime",
    "proc/cpuinfo",
    "proc/cmdline",
    "proc/modules",
    "proc/4242/comm",
    "proc/driver/nvidia/gpus/0000:01:00.0/information",
    "sys/devices/system/cpu/online",
];

thread_local! {
    static HOST: fixture::Host = fixture::Host::new(FACTS);
}

fn sysfs(choice: u8, bytes: &[u8], _: &Path) {
    HOST.with(|host| {
        let root = host.root();
        let _restored = Replaced::new(&root.join(FACTS_FILES[usize::from(choice)]), bytes);
        let mut watch = gpus::Watch::new(root, Limits::default());
        let inventory = watch.read(Instant::now(), &mut || None).unwrap();
        drop(utilization::read(root, &inventory.functions, &mut || None));
        let mut facts = inventory.facts();
        let cdi = CdiNames { kind: "nvidia.com/gpu".to_owned(), by_uuid: true };
        for way in [Handover::Nvidia, Handover::Amd, Handover::Cdi, Handover::Disabled] {
            handover::apply(root, way, &cdi, &mut facts);
        }
        let hardware = host::hardware(root, None, facts);
        for text in [&hardware.hostname, &hardware.machine_id].into_iter().flatten() {
            assert!(!text.is_empty(), "unknown is not empty");
        }
        let _ = memory::read(root);
        let inside = host::inside::report(root);
        assert!(inside["pci"].is_array(), "{inside}");
        drop(holders::find(root, &["/dev/vfio/1".to_owned()]));
    });
}

thread_local! {
    static FUNCTIONS: Vec<pci::Function> = HOST.with(|host| pci::functions(host.root()).unwrap());
}

fn lspci_output(_: u8, bytes: &[u8], scratch: &Path) {
    FUNCTIONS.with(|functions| {
        let wanted: Vec<&pci::Function> = functions.iter().collect();
        let named = lspci::names(scratch, Some(&String::from_utf8_lossy(bytes)), &wanted);
        assert_eq!(named.len(), wanted.len());
        for (name, function) in named.iter().zip(wanted) {
            assert!(!name.line(function, true).is_empty() && !name.name(function).is_empty());
        }
    });
}

fn pci_ids(_: u8, bytes: &[u8], scratch: &Path) {
    write(scratch, "usr/share/misc/pci.ids", bytes);
    FUNCTIONS.with(|functions| {
        let wanted: Vec<&pci::Function> = functions.iter().collect();
        assert_eq!(lspci::names(scratch, None, &wanted).len(), wanted.len());
    });
}

fn nvidia_smi(_: u8, bytes: &[u8], _: &Path) {
    for (_, known) in utilization::parse(&String::from_utf8_lossy(bytes)) {
        assert!(known.busy_percent.is_none_or(|percent| percent <= 100));
    }
}

fn kernel_log_records(_: u8, bytes: &[u8], scratch: &Path) {
    write(scratch, "dev/kmsg", bytes);
    let reading = kernel_log::Reader::default().read(scratch);
    assert!(reading.findings.len() <= 256);
    reading.findings.iter().for_each(|finding| assert!(finding.text.chars().count() <= 200));
    says_oom_killed(scratch, &ContainerId::new(&"ab".repeat(32)).unwrap());
}

fn kernel_tables(choice: u8, bytes: &[u8], scratch: &Path) {
    let name = ["proc/net/tcp", "proc/net/tcp6", "proc/net/udp", "proc/net/udp6"][usize::from(choice)];
    let _removed = Replaced::new(&scratch.join(name), bytes);
    let wanted = [8080, 443, 53].map(|host| Port { host, container: 80, udp: choice > 1 });
    if let Err(failure) = ports::look(scratch, &wanted) {
        let shown = |port: &Port| HostPort { number: port.host, udp: port.udp }.to_string();
        assert!(wanted.iter().any(|port| failure.message.contains(&shown(port))), "{}", failure.message);
    }
}

const PROCESS_FILES: [&str; 5] = ["cmdline", "environ", "status", "stat", "comm"];

/// The files of a process of any user's.
fn processes(choice: u8, bytes: &[u8], scratch: &Path) {
    let label = "--label\0vectorlay.node=n\0--label\0vectorlay.replica=r\0--label\0vectorlay.deploy=0123456789abcdef\0";
    let files = [
        format!("/usr/local/bin/nerdctl\0run\0-d\0{label}"),
        "PATH=/usr/bin:/opt/kata/bin\0".to_owned(),
        "Name:\tnerdctl\nUid:\t0\t0\t0\t0\n".to_owned(),
        "77 (nerdctl) S 1 77 77 0 -1 0 0 0 0 0 0 0 0 0 20 0 1 0 4711 0 0\n".to_owned(),
        "containerd\n".to_owned(),
    ];
    for (n, (name, usual)) in PROCESS_FILES.iter().zip(&files).enumerate() {
        let zeros = String::from_utf8_lossy(bytes).replace("\\0", "\0").into_bytes();
        let content = if n == usize::from(choice) { &zeros } else { usual.as_bytes() };
        write(scratch, &format!("proc/77/{name}"), content);
    }
    let caller = Caller {
        cli: PathBuf::from("/usr/local/bin/nerdctl"),
        flavour: Flavour::Nerdctl,
        node: Some("n".to_owned()),
    };
    drop(leftover_calls::calls(scratch, &caller).unwrap());
    drop(
        leftover_calls::leaks(scratch, &BTreeSet::from([ContainerId::new(&"ab".repeat(32)).unwrap()]))
            .unwrap(),
    );
    for folder in containerd_path::folders(scratch, 0) {
        assert!(folder.is_absolute(), "{}", folder.display());
    }
}

const CNI_FILES: [&str; 3] =
    ["etc/cni/net.d/nerdctl-bridge.conflist", "etc/cni/net.d/10-other.conf", "etc/nerdctl/nerdctl.toml"];

fn networks(choice: u8, bytes: &[u8], scratch: &Path) {
    let _removed = Replaced::new(&scratch.join(CNI_FILES[usize::from(choice)]), bytes);
    for network in [None, Some("bridge"), Some("other")] {
        drop(cni::look(scratch, network, Some("vectorlay"), None));
    }
}

/// Only the record of a container that is gone is removed.
fn leased_addresses(_: u8, bytes: &[u8], scratch: &Path) {
    let gone = ContainerId::new(&"ab".repeat(32)).unwrap();
    let file = write(scratch, "var/lib/cni/networks/bridge/10.4.0.7", bytes);
    addresses::give_back(scratch, &BTreeSet::from([gone.clone()]));
    assert!(
        file.exists() || String::from_utf8_lossy(bytes).contains(gone.as_str()),
        "somebody else's is removed"
    );
}

fn kata_config(choice: u8, bytes: &[u8], scratch: &Path) {
    let (language, file) = match choice {
        0 => (Language::Go, "etc/kata-containers/configuration.toml"),
        1 => (Language::Rust, "etc/kata-containers/runtime-rs/configuration.toml"),
        _ => (Language::Go, "etc/kata-containers/config.d/50-more.toml"),
    };
    const USUAL: &[u8] = b"[hypervisor.qemu]\npath = \"/usr/bin/qemu\"\n[runtime]\n";
    write(scratch, "etc/kata-containers/configuration.toml", USUAL);
    let _removed = Replaced::new(&scratch.join(file), bytes);
    let shim = PathBuf::from("/opt/kata/bin/containerd-shim-kata-v2");
    let program = Program { path: shim.clone(), target: shim, kind: Kind::Kata(language), conf_file: None };
    if let Ok(config) = KataConfig::read(scratch, &program, language, Some("3.18.0")) {
        drop((config.section(), config.overhead_mib(), config.needs_virtiofsd()));
        drop((kata_gpus::findings(&config, 2), requirements::missing_files(scratch, &config)));
        drop(requirements::vsock_obstacle(scratch, &config));
    }
}

/// A program or a script in the place of the runtime's shim; the first kilobyte may be an ELF file's.
fn shim(choice: u8, bytes: &[u8], scratch: &Path) {
    const ELF: &[u8] = b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0\x02\0\x3e\0\x01\0\0\0";
    let start: &[u8] = if choice == 0 { ELF } else { b"#!/bin/sh\n" };
    let file = write(scratch, "usr/local/bin/containerd-shim-kata-v2", &[start, bytes].concat());
    fs::set_permissions(&file, fs::Permissions::from_mode(0o755)).unwrap();
    let found = Shim::look_up(scratch, "io.containerd.kata.v2", true);
    drop((found.to_string(), found.obstacle()));
    if let Some(program) = found.program() {
        let _ = (program.kata(), program.contains(scratch, "configuration.toml"));
    }
}

fn container_log(_: u8, bytes: &[u8], scratch: &Path) {
    const DEPLOY: &str = "0123456789abcdef";
    write(scratch, &format!("{DEPLOY}.log"), bytes);
    for most in [0, 1, 1000] {
        let (lines, _) = logs::tail(scratch, DEPLOY, most).unwrap();
        assert!(lines.len() <= most as usize);
    }
}

// --- from the state directory, and the operator ---

fn node_json(_: u8, bytes: &[u8], scratch: &Path) {
    write(scratch, "node.json", bytes);
    if let Some(identity) = store::identity_of(scratch) {
        assert!(!identity.node_id.as_str().is_empty());
    }
}

/// `state.json` and, behind a line of `---`, `replicas.json`. What they say wrong is left out, and what the core makes of
/// them it can read itself.
fn state(_: u8, bytes: &[u8], _: &Path) {
    let text = String::from_utf8_lossy(bytes);
    let (record, table) =
        text.split_once("\n---\n").map_or((&*text, None), |(record, table)| (record, Some(table)));
    let start =
        Start { record: Some(record.to_owned()), table: table.map(str::to_owned), ..Start::default() };
    let mut rig = Rig::start(start);
    rig.connect();
    rig.wait(60 * SECOND);
    rig.deploy("new", "q-new");
    lives(&mut rig);
    let mut next = rig.restart();
    next.connect();
    lives(&mut next);
    assert!(!next.log.iter().any(|line| line.contains("record")), "its own record: {:?}", next.log);
}

fn history(_: u8, bytes: &[u8], scratch: &Path) {
    write(scratch, "history.jsonl", bytes);
    store::history::read(scratch).unwrap();
}

/// A configuration file and, behind a line of `---`, the kernel's command line and variables of the environment, a line
/// each.
fn settings(choice: u8, bytes: &[u8], scratch: &Path) {
    let text = String::from_utf8_lossy(bytes);
    let (file, rest) = text.split_once("\n---\n").unwrap_or((&text, &text));
    let path = write(scratch, "agent.json", file.as_bytes());
    write(scratch, "proc/cmdline", rest.as_bytes());
    let environment = rest.lines().filter_map(|line| line.split_once('='));
    let environment: Vec<_> = environment.map(|(name, value)| (name.into(), value.into())).collect();
    let root = scratch.to_str().unwrap().to_owned();
    let flags = vec![(config::setting("root").unwrap(), root)];
    let overrides = Overrides { file: Some(path), flags };
    let need = if choice == 0 { Need::All } else { Need::Socket };
    match config::load(&overrides, environment, need) {
        Ok(loaded) => {
            let shown = config::text(&loaded.settings) + &config::json(&loaded.settings).to_string();
            if let Some(token) = &loaded.config.token {
                let token = token.expose();
                // Shorter ones, and words of the table, stand there anyway.
                let is_own = token.len() > 12 && !text.replacen(token, "", 1).contains(token);
                assert!(!is_own || !shown.contains(token), "the token {token:?} is shown: {shown}");
            }
        }
        Err(error) => assert!(!error.is_empty()),
    }
}

fn control_request(_: u8, bytes: &[u8], _: &Path) {
    if let Err(error) = control::read_request(bytes) {
        is_plain(&error);
    }
}

// --- what they share ---

/// A file with other content, until this is dropped.
struct Replaced(PathBuf, Option<Vec<u8>>);

impl Replaced {
    fn new(file: &Path, content: &[u8]) -> Self {
        let before = fs::read(file).ok();
        write(file.parent().unwrap(), file.file_name().unwrap().to_str().unwrap(), content);
        Self(file.to_owned(), before)
    }
}

impl Drop for Replaced {
    fn drop(&mut self) {
        match &self.1 {
            Some(before) => fs::write(&self.0, before).unwrap(),
            None => fs::remove_file(&self.0).unwrap(),
        }
    }
}

/// Puts a file below the folder.
fn write(folder: &Path, name: &str, content: &[u8]) -> PathBuf {
    let path = folder.join(name);
    if fs::write(&path, content).is_err() {
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, content).unwrap();
    }
    path
}

/// What is shown to a person, or sent, is one line without anything that a terminal obeys.
fn is_plain(text: &str) {
    assert!(!text.contains(char::is_control), "{text:?}");
}
