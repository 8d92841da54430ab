//! Binding GPUs to vfio-pci and giving them back: which files are to be written, in which order, and why not.
//!
//! A plan is a list of steps made from an inventory; making one changes nothing. It covers whole IOMMU groups, for
//! that is what is handed out. `driver_override` names the driver for one device; `new_id` is never used, since it
//! grabs every device of that kind.
//!
//! Unbinding a device that a process has open blocks until that process lets go, and not even SIGKILL ends the
//! writer. So holders are looked for first, and each write is done by a process of its own with a deadline: see
//! [`write()`] and `commands::vfio`.

use std::fmt;
use std::fs::{File, OpenOptions};
use std::io::{self, BufRead as _, BufReader, Read as _, Write as _};
use std::path::{Path, PathBuf};

use super::files;
use super::handover;
use super::holders;
use super::iommu::{self, Iommu};
use super::pci::{self, Function};
use crate::types::PciAddress;

/// The driver that devices are bound to, unless the kernel has a variant for them.
pub const DRIVER: &str = "vfio-pci";
/// At most this much of modules.alias is read, in bytes; those of distributions have 1.5 MB.
const ALIASES_MAX: u64 = 16 * 1024 * 1024;
/// At most so many folders are looked at below a device.
const FOLDERS_MAX: usize = 4096;
/// The base class of bridges; of them only "other" ones (0680, NVSwitches) are devices to hand out.
const BRIDGE_BASE: u16 = 0x06;
/// NVSwitches and the like.
const OTHER_BRIDGE: u16 = 0x0680;

/// One step of a plan.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Step {
    /// Load a kernel module.
    Load {
        /// Its name.
        module: String,
        /// Whether it goes on without it: kernels that have only iommufd lack [`iommu::BACKEND`].
        optional: bool,
    },
    /// Write `value` to the file `path`.
    Write {
        /// The file.
        path: PathBuf,
        /// What is written, byte for byte.
        value: String,
        /// The device that it is about.
        device: PciAddress,
    },
    /// Wait until the node by which the group is handed out exists: udev makes it a moment later.
    Await(Node),
}

/// The node in /dev that appears when a group is bound.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Node {
    root: PathBuf,
    group: u32,
    /// A member of the group.
    device: PciAddress,
}

impl Node {
    /// Whether it is there: the group's own, or that of the device where the kernel has device nodes alone. A kernel that
    /// has groups lists them in /sys/class/vfio.
    pub fn exists(&self) -> bool {
        if self.of_group().exists() {
            return true;
        }
        let devices = files::names(&pci::folder(&self.root, self.device).join("vfio-dev"));
        let has_groups = self.root.join("sys/class/vfio").join(self.group.to_string()).exists();
        let node = |name: &String| self.root.join("dev/vfio/devices").join(name);
        !has_groups && devices.iter().any(|name| node(name).exists())
    }

    fn of_group(&self) -> PathBuf {
        self.root.join("dev/vfio").join(self.group.to_string())
    }
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Load { module, .. } => write!(f, "modprobe {module}"),
            // As a shell would have it: an empty echo is the newline that resets an override.
            Self::Write { path, value, .. } => {
                let (space, value) = if value.trim().is_empty() { ("", "") } else { (" ", value.as_str()) };
                write!(f, "echo{space}{value} > {}", path.display())
            }
            Self::Await(node) => write!(f, "wait for {}", node.of_group().display()),
        }
    }
}

/// The steps that bind `wanted` and all else in their groups to vfio-pci, or to the variant of it that the kernel has for a
/// device; none when they are bound already.
/// `force` takes the boot display, and groups with devices that the host may live on, but never one that is in use.
///
/// # Errors
/// Why not, and what to do: then nothing is to be done for any of them.
pub fn bind(
    root: &Path,
    all: &[Function],
    iommu: &Iommu,
    wanted: &[PciAddress],
    force: bool,
) -> Result<Vec<Step>, String> {
    let groups = groups(all, wanted)?;
    if let Some(advice) = iommu.advice() {
        return Err(format!("the IOMMU is off; {advice}, then reboot"));
    }
    if let Some(device) = wanted.iter().find(|w| lacks_isolation(root, all, **w)) {
        return Err(format!(
            "{device} is in no IOMMU group that isolates it; `vectorlay-agent vfio status` says what is missing"
        ));
    }
    let devices: Vec<&Function> = members(all, &groups).filter(|f| !f.has_vfio_driver()).collect();
    for device in &devices {
        may_take(root, device, all, force)?;
    }
    nobody_holds(root, &devices)?;

    let mut steps = Vec::new();
    let variants = if devices.is_empty() { Vec::new() } else { variants(root) };
    let drivers: Vec<String> = devices.iter().map(|device| driver_for(root, device, &variants)).collect();
    let mut missing: Vec<&String> = drivers.iter().collect();
    missing.sort_unstable();
    missing.dedup();
    missing.retain(|driver| !root.join("sys/bus/pci/drivers").join(driver).exists());
    steps.extend(missing.into_iter().map(|driver| Step::Load { module: driver.clone(), optional: false }));
    if !devices.is_empty() && !iommu::has_backend(root) {
        steps.push(Step::Load { module: iommu::BACKEND.to_owned(), optional: true });
    }
    for (device, driver) in devices.into_iter().zip(&drivers) {
        steps.push(write_to(root, device, "driver_override", driver));
        if device.driver.is_some() {
            steps.push(write_to(root, device, "driver/unbind", &device.address.to_string()));
        }
        steps.push(probe(root, device));
    }
    if !steps.is_empty() {
        let member =
            |group: &u32| all.iter().find(|f| f.group == Some(*group) && wanted.contains(&f.address));
        steps.extend(groups.iter().filter_map(|group| {
            let device = member(group)?.address;
            Some(Step::Await(Node { root: root.to_owned(), group: *group, device }))
        }));
    }
    Ok(steps)
}

/// The steps that give `wanted` and all else in their groups back to the drivers that the kernel picks; none when
/// vfio-pci has none of them. `force` takes those that only seem to be in use.
///
/// # Errors
/// Why not, and what to do: then nothing is to be done for any of them.
pub fn unbind(
    root: &Path,
    all: &[Function],
    wanted: &[PciAddress],
    force: bool,
) -> Result<Vec<Step>, String> {
    let groups = groups(all, wanted)?;
    let devices: Vec<&Function> = members(all, &groups).collect();
    nobody_holds(root, &devices)?;
    if let Some(device) = devices.iter().find(|d| d.has_vfio_driver() && d.enabled && !force) {
        return Err(format!(
            "{} seems to be open in a process that cannot be found (its `enable` is not 0), and the kernel would wait \
             for it; stop what uses it, or add --force",
            device.address
        ));
    }
    Ok(restore(root, &devices))
}

/// The steps that undo what has been done for `touched` so far. Nothing is checked: they were free a moment ago.
pub fn undo(root: &Path, all: &[Function], touched: &[PciAddress]) -> Vec<Step> {
    let devices: Vec<&Function> = all.iter().filter(|f| touched.contains(&f.address)).collect();
    restore(root, &devices)
}

/// First all are let go, then each is offered to its own driver: the kernel gives no member of a group to a driver of
/// the host's while another is in a user's hands.
fn restore(root: &Path, devices: &[&Function]) -> Vec<Step> {
    let mut steps = Vec::new();
    let mut probes = Vec::new();
    for device in devices {
        let path = pci::folder(root, device.address).join("driver_override");
        let overridden = files::value(&path).is_some_and(|t| pci::is_vfio_driver(&t));
        if overridden {
            // A newline resets it: an empty write does nothing.
            steps.push(write_to(root, device, "driver_override", "\n"));
        }
        if device.has_vfio_driver() {
            steps.push(write_to(root, device, "driver/unbind", &device.address.to_string()));
        }
        if overridden || device.has_vfio_driver() {
            probes.push(probe(root, device));
        }
    }
    steps.append(&mut probes);
    steps
}

fn write_to(root: &Path, device: &Function, file: &str, value: &str) -> Step {
    let path = pci::folder(root, device.address).join(file);
    Step::Write { path, value: value.to_owned(), device: device.address }
}

fn probe(root: &Path, device: &Function) -> Step {
    let path = root.join("sys/bus/pci/drivers_probe");
    Step::Write { path, value: device.address.to_string(), device: device.address }
}

/// The groups of `wanted`.
fn groups(all: &[Function], wanted: &[PciAddress]) -> Result<Vec<u32>, String> {
    let mut groups = Vec::new();
    for address in wanted {
        let device = all.iter().find(|f| f.address == *address).ok_or_else(|| {
            format!("there is no PCI device {address}; `vectorlay-agent vfio status` lists the GPUs")
        })?;
        groups.extend(device.group);
    }
    groups.sort_unstable();
    groups.dedup();
    Ok(groups)
}

fn lacks_isolation(root: &Path, all: &[Function], address: PciAddress) -> bool {
    let group = all.iter().find(|f| f.address == address).and_then(|f| f.group);
    group.is_none_or(|g| iommu::is_noiommu(root, g))
}

/// The functions of `groups` that are handed out: all but bridges.
fn members<'a>(all: &'a [Function], groups: &'a [u32]) -> impl Iterator<Item = &'a Function> {
    let bridge = |f: &Function| f.class >> 8 == BRIDGE_BASE && f.class != OTHER_BRIDGE;
    all.iter().filter(|f| f.group.is_some_and(|g| groups.contains(&g))).filter(move |f| !bridge(f))
}

fn may_take(root: &Path, device: &Function, all: &[Function], force: bool) -> Result<(), String> {
    if device.sriov.is_some_and(|s| s.on > 0) {
        let advice = iommu::virtual_functions_advice(device);
        return Err(format!("{} has virtual functions switched on; {advice}", device.address));
    }
    if force {
        return Ok(());
    }
    if device.boot_display {
        return Err(format!(
            "{} is the boot display: without it the console goes dark; make another one primary in the firmware, or \
             add --force (and boot with video=efifb:off, since Linux 5.15 with initcall_blacklist=sysfb_init)",
            device.address
        ));
    }
    let Some(group) = device.group else { return Ok(()) };
    // Mass storage and network controllers.
    let lives_on = matches!(device.class >> 8, 0x01 | 0x02);
    if let Some(driver) = device.driver.as_ref().filter(|driver| lives_on && *driver != "pci-stub") {
        return Err(format!(
            "{} ({driver}) is in the same IOMMU group {group}, and the host would lose it; move the card to another \
             slot, or add --force",
            device.label()
        ));
    }
    // A GPU's own USB controller is part of the card that is asked for.
    let slot = |f: &Function| (f.address.domain, f.address.bus, f.address.device);
    if all.iter().any(|f| f.is_gpu() && slot(f) == slot(device)) {
        return Ok(());
    }
    match hangs_below(&pci::folder(root, device.address)) {
        Some(what) => Err(format!(
            "{} is in the same IOMMU group {group}, and the host would lose {what}, which hangs on it; plug that in \
             elsewhere, move the card to another slot, or add --force",
            device.label()
        )),
        None => Ok(()),
    }
}

/// A disk or a network card that hangs on the device in `folder`: it has a folder `block` or `net` somewhere below.
fn hangs_below(folder: &Path) -> Option<String> {
    let mut left = vec![folder.canonicalize().ok()?];
    for _ in 0..FOLDERS_MAX {
        let folder = left.pop()?;
        for entry in std::fs::read_dir(&folder).into_iter().flatten().flatten() {
            // Links lead out of the device, to its driver and to its class.
            if !entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                continue;
            }
            let name = entry.file_name();
            let first = || files::names(&entry.path()).into_iter().next();
            match (name.to_str(), first) {
                (Some("block"), first) if first().is_some() => {
                    return Some(format!("the disk {}", first().unwrap_or_default()));
                }
                (Some("net"), first) if first().is_some() => {
                    return Some(format!("the network card {}", first().unwrap_or_default()));
                }
                _ => left.push(entry.path()),
            }
        }
    }
    None
}

/// The variants of vfio-pci that the running kernel has: lines such as
/// `alias vfio_pci:v000010DEd00002342sv*sd*bc*sc*i* nvgrace_gpu_vfio_pci`, without the first word.
fn variants(root: &Path) -> Vec<(String, String)> {
    let release = files::value(&root.join("proc/sys/kernel/osrelease")).unwrap_or_default();
    let path = root.join("lib/modules").join(release).join("modules.alias");
    let Ok(file) = File::open(path) else { return Vec::new() };
    let lines = BufReader::new(file.take(ALIASES_MAX)).lines().map_while(Result::ok);
    lines
        .filter_map(|line| {
            let (pattern, module) = line.strip_prefix("alias vfio_")?.split_once(' ')?;
            Some((pattern.to_owned(), module.trim().to_owned()))
        })
        .collect()
}

/// The driver for a device: the module whose alias fits it most closely, and vfio-pci where none does. Variants are called
/// as their modules are.
fn driver_for(root: &Path, device: &Function, variants: &[(String, String)]) -> String {
    let own = files::value(&pci::folder(root, device.address).join("modalias"));
    let own = own.unwrap_or_else(|| {
        let (class, sub) = (device.class >> 8, device.class & 0xff);
        format!(
            "pci:v{:08X}d{:08X}sv00000000sd00000000bc{class:02X}sc{sub:02X}i00",
            device.vendor, device.device
        )
    });
    let fitting = variants.iter().filter(|(pattern, _)| fits(pattern, &own));
    let closest = fitting.max_by_key(|(pattern, _)| pattern.bytes().filter(|byte| *byte != b'*').count());
    match closest.map(|(_, module)| module.as_str()) {
        None | Some("vfio_pci" | "vfio-pci") => DRIVER.to_owned(),
        Some(variant) => variant.to_owned(),
    }
}

/// Whether `text` is `pattern`, in which `*` stands for anything.
fn fits(pattern: &str, text: &str) -> bool {
    let mut parts = pattern.split('*');
    let Some(mut left) = parts.next().and_then(|first| text.strip_prefix(first)) else { return false };
    let mut last = None;
    for part in parts {
        match left.find(part) {
            Some(at) => left = &left[at + part.len()..],
            None => return false,
        }
        last = Some(part);
    }
    left.is_empty() || last.is_some_and(|part| part.is_empty() || text.ends_with(part))
}

fn nobody_holds(root: &Path, devices: &[&Function]) -> Result<(), String> {
    let mut nodes: Vec<_> =
        devices.iter().flat_map(|d| iommu::vfio_nodes(d).chain(host_nodes(root, d))).collect();
    nodes.sort_unstable();
    nodes.dedup();
    let holders = holders::find(root, &nodes);
    match nodes.into_iter().find_map(|node| Some((holders.of(&node)?, node))) {
        Some((holder, node)) => Err(format!(
            "{node} is open in {holder}, and the kernel would wait for it; stop that process first"
        )),
        None if !holders.complete => {
            Err("cannot see which processes have the devices open; run this as root, outside of containers"
                .to_owned())
        }
        None => Ok(()),
    }
}

/// The nodes by which processes use a device through the host's driver: DRM, sound, NVIDIA's and AMD's own. The driver
/// waits for them when it is unbound.
fn host_nodes(root: &Path, device: &Function) -> Vec<String> {
    let folder = pci::folder(root, device.address);
    let mut nodes: Vec<String> = files::names(&folder.join("drm"))
        .into_iter()
        .filter(|n| n.starts_with("card") || n.starts_with("renderD"))
        .map(|n| format!("/dev/dri/{n}"))
        .collect();
    for card in files::names(&folder.join("sound")) {
        if let Some(number) = card.strip_prefix("card") {
            let of_card = files::names(&folder.join("sound").join(&card));
            let streams = of_card.into_iter().filter(|n| n.starts_with("pcmC"));
            nodes.extend(streams.chain([format!("controlC{number}")]).map(|n| format!("/dev/snd/{n}")));
        }
    }
    let minor = handover::nvidia_proc_field(root, device.address, "Device Minor:");
    nodes
        .extend(minor.and_then(|minor| minor.parse::<u32>().ok()).map(|minor| format!("/dev/nvidia{minor}")));
    nodes
}

/// Does one write of a plan: what the agent's own executable is started again for. Only the files that plans have are
/// written.
///
/// # Errors
/// What the kernel says; `InvalidInput` for another file.
pub fn write(path: &Path, value: &str) -> io::Result<()> {
    let known = ["driver_override", "unbind", "drivers_probe"];
    let name = path.file_name().and_then(|n| n.to_str()).unwrap_or_default();
    let in_bus = path.to_str().is_some_and(|p| p.contains("/sys/bus/pci/") && !p.contains("/../"));
    if !in_bus || !known.contains(&name) {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    // One write: sysfs takes each for a whole value.
    let mut file = OpenOptions::new().write(true).open(path)?;
    match file.write(value.as_bytes())? {
        n if n == value.len() => Ok(()),
        _ => Err(io::ErrorKind::WriteZero.into()),
    }
}
