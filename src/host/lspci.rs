//! What people call a PCI function: the line that plain `lspci` prints for it.
//!
//! The names come from `lspci -D -vmm` where pciutils is installed, else from a pci.ids file, else they are the IDs.
//! The line is composed here from all three, so that it has one shape. Busybox's `lspci` knows neither option and
//! prints neither names nor domains: its answer is a usage error, and counts as no `lspci`.

use std::path::Path;
use std::time::Duration;

use super::pci::Function;
use super::pci_ids;
use crate::process::{self, Bounds, Ended, Program};
use crate::types::PciAddress;

/// How long `lspci` may take: it reads the config space of each device, and one that is dying answers slowly.
const DEADLINE: Duration = Duration::from_secs(5);
/// From SIGTERM to SIGKILL.
const GRACE: Duration = Duration::from_secs(1);
/// Kept of its output, in bytes: 16,000 functions.
const OUTPUT_MAX: usize = 4 * 1024 * 1024;

/// A function's names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Named {
    /// The class (`VGA compatible controller`, or `Class 0300`).
    class: String,
    /// Vendor and device (`NVIDIA Corporation GA102 [GeForce RTX 3090]`, or `Device 10de:2204`).
    device: String,
    /// Whether `device` has a name in it.
    known: bool,
}

impl Named {
    /// Vendor and device by name, or in hexadecimal (`10de:2204`).
    pub fn name(&self, of: &Function) -> String {
        if self.known { self.device.clone() } else { format!("{:04x}:{:04x}", of.vendor, of.device) }
    }

    /// The line that plain `lspci` prints. `domains`: whether any function of the host has a domain other than 0,
    /// for then, and only then, all lines show it.
    pub fn line(&self, of: &Function, domains: bool) -> String {
        let address = of.address.to_string();
        let slot = if domains { &address } else { address.strip_prefix("0000:").unwrap_or(&address) };
        let line = format!("{slot} {}: {}", self.class, self.device);
        if of.revision == 0 { line } else { format!("{line} (rev {:02x})", of.revision) }
    }

    /// libpci's way to put names together (`pci_lookup_name`).
    fn compose(of: &Function, class: String, vendor: Option<&str>, device: Option<&str>) -> Self {
        let text = match (vendor, device) {
            (Some(vendor), Some(device)) => format!("{vendor} {device}"),
            (Some(vendor), None) => format!("{vendor} Device {:04x}", of.device),
            (None, _) => format!("Device {:04x}:{:04x}", of.vendor, of.device),
        };
        Self { class, device: text, known: vendor.is_some() }
    }
}

/// What `lspci -D -vmm` prints on this machine. `None` where it is missing, fails or hangs (busybox's fails), or when
/// `root` is another machine's.
pub fn run(root: &Path) -> Option<String> {
    if root != Path::new("/") {
        return None;
    }
    let dirs = ["/usr/bin", "/usr/sbin", "/bin", "/sbin", "/usr/local/bin", "/usr/local/sbin"].map(Path::new);
    let path = process::find("lspci", &dirs)?;
    let args = vec!["-D".into(), "-vmm".into()];
    let program = Program { path, args, env: vec![("LC_ALL".into(), "C".into())], input: None };
    let bounds = Bounds { deadline: DEADLINE, grace: GRACE, output: OUTPUT_MAX, tail: false };
    let finished = process::run(&program, &bounds, None).ok()?;
    (finished.ended == Ended::Exit(0)).then(|| String::from_utf8_lossy(&finished.stdout).into_owned())
}

/// Names for each of `wanted`, in order. `output` is what `lspci -D -vmm` printed; what it does not name is looked
/// up in the host's pci.ids.
pub fn names(root: &Path, output: Option<&str>, wanted: &[&Function]) -> Vec<Named> {
    let listed = output.map(parse).unwrap_or_default();
    let absent = |f: &&&Function| listed.iter().all(|(address, _)| *address != f.address);
    let missing: Vec<(u16, u16)> = wanted.iter().filter(absent).map(|f| (f.vendor, f.device)).collect();
    let classes: Vec<u16> = wanted.iter().filter(absent).map(|f| f.class).collect();
    let found = if missing.is_empty() {
        pci_ids::Names::default()
    } else {
        pci_ids::lookup(root, &missing, &classes)
    };
    wanted
        .iter()
        .map(|f| match listed.iter().find(|(address, _)| *address == f.address) {
            Some((_, record)) => record.named(f),
            None => from_ids(f, &found),
        })
        .collect()
}

fn from_ids(of: &Function, found: &pci_ids::Names) -> Named {
    let base = u8::try_from(of.class >> 8).ok().and_then(|b| pci_ids::name(&found.bases, b));
    let class = match (pci_ids::name(&found.classes, of.class), base) {
        (Some(class), _) => class.to_owned(),
        (None, Some(base)) => format!("{base} [{:04x}]", of.class),
        (None, None) => format!("Class {:04x}", of.class),
    };
    let vendor = pci_ids::name(&found.vendors, of.vendor);
    let device = pci_ids::name(&found.devices, (of.vendor, of.device));
    Named::compose(of, class, vendor, device)
}

/// One record of `lspci -D -vmm`.
#[derive(Debug, Default)]
struct Record {
    class: String,
    vendor: String,
    device: String,
}

impl Record {
    fn named(&self, of: &Function) -> Named {
        // What has no name is written `Vendor 8086`, `Device 0d57`.
        let vendor = (self.vendor != format!("Vendor {:04x}", of.vendor)).then_some(self.vendor.as_str());
        let device = (self.device != format!("Device {:04x}", of.device)).then_some(self.device.as_str());
        Named::compose(of, self.class.clone(), vendor, device)
    }
}

/// Reads the records: lines of `Key:<tab>value`, an empty line between two records (lspci(8), "machine readable
/// output", verbose form). A record without all four of its keys is left out.
fn parse(output: &str) -> Vec<(PciAddress, Record)> {
    let mut records = Vec::new();
    for block in output.split("\n\n") {
        let mut address = None;
        let mut record = Record::default();
        for line in block.lines() {
            let Some((key, value)) = line.split_once(':') else { continue };
            let value = value.trim();
            match key {
                "Slot" => address = PciAddress::parse(value).ok(),
                "Class" => value.clone_into(&mut record.class),
                "Vendor" => value.clone_into(&mut record.vendor),
                "Device" => value.clone_into(&mut record.device),
                _ => {}
            }
        }
        let whole = [&record.class, &record.vendor, &record.device].iter().all(|v| !v.is_empty());
        if let Some(address) = address.filter(|_| whole) {
            records.push((address, record));
        }
    }
    records
}
