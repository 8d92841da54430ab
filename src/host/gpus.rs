//! The host's GPUs: what they are, whether each can be handed out, and how well it is; all without a driver for them.
//!
//! A GPU is a function of class 03xx or 1200 by NVIDIA or AMD (see [`Function::is_gpu`]). Audio and USB functions,
//! NVSwitches and bridges are members of its IOMMU group, never GPUs. Nothing is decided by a name.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use super::health::{self, Errors, Limits, Reading};
use super::holders::{self, Holders};
use super::iommu::{self, Iommu};
use super::kernel_log;
use super::lspci::{self, Named};
use super::pci::{self, Function};
use crate::core::inventory::Gpu;
use crate::types::PciAddress;

/// Corrected errors are counted in this time.
const HOUR: Duration = Duration::from_secs(3600);

/// Watches the GPUs: takes an inventory again and again, and knows what was so at the last one.
#[derive(Debug)]
pub struct Watch {
    root: PathBuf,
    limits: Limits,
    /// Names do not change while the device at an address is the same.
    names: Vec<((PciAddress, u16, u16), Named)>,
    errors: Vec<(PciAddress, Counted)>,
    log: kernel_log::Reader,
}

/// What a GPU's error counters were: at the last reading, but for corrected errors at the last full hour.
#[derive(Debug)]
struct Counted {
    before: Errors,
    hour_began: Instant,
}

/// All GPUs at one moment.
#[derive(Debug)]
pub struct Inventory {
    /// The GPUs, by address.
    pub gpus: Vec<Seen>,
    /// Every PCI function of the host, by address.
    pub functions: Vec<Function>,
    /// The IOMMU.
    pub iommu: Iommu,
    /// Who has the nodes of VFIO open.
    pub holders: Holders,
}

/// One GPU with all that was seen of it.
#[derive(Debug)]
pub struct Seen {
    /// What the core gets to know.
    pub gpu: Gpu,
    /// Its PCI function.
    pub function: Function,
    /// The other functions of its IOMMU group, bridges too.
    pub members: Vec<Function>,
    /// Its registers.
    pub reading: Reading,
}

impl Inventory {
    /// What the core gets to know.
    pub fn facts(&self) -> Vec<Gpu> {
        self.gpus.iter().map(|s| s.gpu.clone()).collect()
    }
}

impl Watch {
    /// Watches the GPUs of the host whose files are under `root`.
    pub fn new(root: &Path, limits: Limits) -> Self {
        Self {
            root: root.to_owned(),
            limits,
            names: Vec::new(),
            errors: Vec::new(),
            log: kernel_log::Reader::default(),
        }
    }

    /// Takes an inventory at the time `now`. `lspci` gives what `lspci -D -vmm` prints, `None` where that is missing; it is called only
    /// when a GPU has no name yet.
    ///
    /// # Errors
    /// When the PCI bus cannot be listed: then nothing is known about any GPU.
    pub fn read(
        &mut self,
        now: Instant,
        lspci: &mut dyn FnMut() -> Option<String>,
    ) -> Result<Inventory, String> {
        let functions = pci::functions(&self.root)?;
        let iommu = Iommu::read(&self.root);
        let gpus: Vec<&Function> = functions.iter().filter(|f| f.is_gpu()).collect();
        self.name(&gpus, lspci);
        let domains = functions.iter().any(|f| f.address.domain != 0);
        let log = self.log.read(&self.root);

        let groups: Vec<Vec<Function>> = gpus.iter().map(|g| members(g, &functions)).collect();
        let nodes: Vec<String> =
            gpus.iter().copied().chain(groups.iter().flatten()).flat_map(iommu::vfio_nodes).collect();
        let holders = holders::find(&self.root, &nodes);

        let mut seen = Vec::with_capacity(gpus.len());
        for (function, members) in gpus.iter().copied().zip(groups) {
            let address = function.address;
            let reading = health::read(&self.root, function, &functions);
            let about: Vec<_> = log.findings.iter().filter(|f| f.address == address).collect();
            let before = self.errors.iter().find(|(of, _)| *of == address).map(|(_, c)| c.before);
            let health = health::judge(&reading, before, &about, log.history, &self.limits);
            if let Some(errors) = reading.errors {
                self.count(address, errors, now);
            }
            let node = iommu::device_node(&self.root, function);
            let verdict = iommu::verdict(&self.root, &iommu, function, &members, node.as_deref(), &holders);
            let named = self.named(function).expect("each GPU was given a name above");
            let gpu = Gpu {
                address,
                line: named.line(function, domains),
                name: named.name(function),
                vendor_id: function.vendor,
                device_id: function.device,
                class: function.class,
                driver: function.driver.clone(),
                iommu_group: function.group,
                companions: members.iter().filter(|m| !m.is_bridge()).map(|m| m.address).collect(),
                numa_node: function.numa_node,
                device_node: node,
                verdict,
                health,
            };
            seen.push(Seen { gpu, function: function.clone(), members, reading });
        }
        Ok(Inventory { gpus: seen, functions, iommu, holders })
    }

    /// Keeps `errors` for the next reading to compare with.
    fn count(&mut self, address: PciAddress, errors: Errors, now: Instant) {
        let Some((_, counted)) = self.errors.iter_mut().find(|(of, _)| *of == address) else {
            self.errors.push((address, Counted { before: errors, hour_began: now }));
            return;
        };
        let hour_over = now.saturating_duration_since(counted.hour_began) >= HOUR;
        // Less than before: the device was found anew, and its counters began again.
        if hour_over || errors.correctable < counted.before.correctable {
            *counted = Counted { before: errors, hour_began: now };
        } else {
            counted.before = Errors { correctable: counted.before.correctable, ..errors };
        }
    }

    /// Sees to it that each of `gpus` has a name.
    fn name(&mut self, gpus: &[&Function], lspci: &mut dyn FnMut() -> Option<String>) {
        let new: Vec<&Function> = gpus.iter().copied().filter(|g| self.named(g).is_none()).collect();
        if new.is_empty() {
            return;
        }
        let output = lspci();
        let named = lspci::names(&self.root, output.as_deref(), &new);
        self.names.extend(new.iter().map(|g| key(g)).zip(named));
    }

    fn named(&self, gpu: &Function) -> Option<&Named> {
        self.names.iter().find(|(of, _)| *of == key(gpu)).map(|(_, named)| named)
    }
}

fn key(of: &Function) -> (PciAddress, u16, u16) {
    (of.address, of.vendor, of.device)
}

/// The other functions of `of`'s IOMMU group.
fn members(of: &Function, all: &[Function]) -> Vec<Function> {
    let same = |f: &&Function| of.group.is_some() && f.group == of.group && f.address != of.address;
    all.iter().filter(same).cloned().collect()
}
