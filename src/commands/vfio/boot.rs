//! Which devices are to be bound, and the list of those to bind at each boot.

use std::fs;
use std::io::{self, Write};
use std::path::Path;

use super::say;
use crate::cli::VfioTarget;
use crate::host::gpus::Inventory;
use crate::host::{files, pci};
use crate::types::PciAddress;

/// Where `bind --persist` notes the devices, below the root: a line `0000:41:00.0 10de:2204` each.
pub const SAVED: &str = "etc/vectorlay/vfio-bind";

/// The devices to bind. `setting` is the setting `vfio_bind`.
pub(super) fn wanted(
    what: &VfioTarget,
    setting: Option<&str>,
    inventory: &Inventory,
    root: &Path,
    out: &mut dyn Write,
) -> Vec<PciAddress> {
    let all = || -> Vec<PciAddress> {
        let gpus = inventory.gpus.iter().map(|s| &s.function);
        gpus.filter(|f| !f.boot_display || f.has_vfio_driver()).map(|f| f.address).collect()
    };
    match what {
        VfioTarget::These(addresses) => addresses.clone(),
        VfioTarget::All => all(),
        VfioTarget::Saved => {
            let mut wanted = saved(root, inventory, out);
            match setting {
                Some("all") => wanted.extend(all()),
                Some(list) => {
                    for word in list.split(',').filter(|w| !w.is_empty()) {
                        match PciAddress::parse(word) {
                            Ok(address) => wanted.push(address),
                            Err(e) => say(out, &format!("vfio_bind: {e}; skipped")),
                        }
                    }
                }
                None => {}
            }
            // A removed card must not keep the others from being bound.
            wanted.retain(|a| inventory.functions.iter().any(|f| f.address == *a));
            wanted.sort_unstable();
            wanted.dedup();
            wanted
        }
    }
}

/// The noted devices that still exist.
fn saved(root: &Path, inventory: &Inventory, out: &mut dyn Write) -> Vec<PciAddress> {
    let mut found = Vec::new();
    let text = files::value(&root.join(SAVED)).unwrap_or_default();
    for line in text.lines().filter(|l| !l.trim_start().starts_with('#')) {
        let Some((address, ids)) = line.split_once(' ') else { continue };
        let same = |f: &&pci::Function| f.address.to_string() == address && ids_of(f) == ids.trim();
        match inventory.functions.iter().find(same) {
            Some(function) => found.push(function.address),
            None => say(out, &format!("{line}: no such device; skipped")),
        }
    }
    found
}

fn ids_of(f: &pci::Function) -> String {
    format!("{:04x}:{:04x}", f.vendor, f.device)
}

/// Changes the note for the next boot, atomically.
pub(super) fn note(
    root: &Path,
    inventory: &Inventory,
    change: impl FnOnce(&mut Vec<PciAddress>),
) -> Result<(), String> {
    let path = root.join(SAVED);
    let failed = |error: io::Error| {
        format!("cannot note the devices in {}: {error}; make it writable", path.display())
    };
    let mut noted = saved(root, inventory, &mut io::sink());
    change(&mut noted);
    let line = |a: &PciAddress| {
        let function = inventory.functions.iter().find(|f| f.address == *a)?;
        Some(format!("{a} {}\n", ids_of(function)))
    };
    noted.sort_unstable();
    noted.dedup();
    let text: String = noted.iter().filter_map(line).collect();
    let new = path.with_extension("new");
    if let Some(folder) = path.parent() {
        fs::create_dir_all(folder).map_err(failed)?;
    }
    fs::File::create(&new)
        .and_then(|mut file| file.write_all(text.as_bytes()).and_then(|()| file.sync_all()))
        .and_then(|()| fs::rename(&new, &path))
        .map_err(failed)
}

/// How to have the note used at boot.
pub(super) fn help(wanted: &[PciAddress]) -> String {
    let list: Vec<String> = wanted.iter().map(ToString::to_string).collect();
    format!(
        "noted in /{SAVED}; run `vectorlay-agent vfio bind --saved` at each boot, before the agent\n\
         (on a host without a disk, use the kernel parameter vectorlay.vfio_bind={} instead)",
        list.join(",")
    )
}
