//! What the kernel's log says about devices that vfio-pci has.
//!
//! /dev/kmsg is read without waiting, from where the last reading ended. Format (kernel documentation
//! `Documentation/ABI/testing/dev-kmsg`): `priority,sequence,microseconds,flags;text`, then lines that begin with a
//! space. It is never written to.

use std::fs::{File, OpenOptions};
use std::io::{ErrorKind, Read};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use super::pci::is_vfio_driver;
use crate::types::PciAddress;

/// The longest record that the kernel hands out, in bytes; a smaller buffer gets EINVAL.
const RECORD_MAX: usize = 8192;
/// Most records in one reading: more than the kernel's buffer holds on the largest hosts.
const RECORDS_MAX: usize = 65_536;
/// Most findings kept of one reading.
const FINDINGS_MAX: usize = 256;
/// The longest text of a finding that is kept, in bytes.
const TEXT_MAX: usize = 200;

/// How bad a line is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Weight {
    /// Worth a look.
    Suspect,
    /// The device did not come back.
    Failed,
}

/// A line about a device.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finding {
    /// The device.
    pub address: PciAddress,
    /// How bad.
    pub weight: Weight,
    /// The kernel's words.
    pub text: String,
}

/// What the kernel says, and how bad it is. The texts are those of drivers/pci/pci.c (`pci_dev_wait`,
/// `pci_power_up`, `pci_wait_for_pending_transaction`), drivers/pci/setup-res.c and drivers/vfio/pci/.
const PATTERNS: [(&str, Weight); 8] = [
    ("; giving up", Weight::Failed),
    ("device inaccessible", Weight::Failed),
    ("config space inaccessible", Weight::Failed),
    ("can't enable device", Weight::Failed),
    ("can't reserve", Weight::Suspect),
    ("reset recovery", Weight::Suspect),
    ("timed out waiting for pending transaction", Weight::Suspect),
    ("blocked until released by user", Weight::Suspect),
];

/// Reads the log bit by bit.
#[derive(Debug, Default)]
pub struct Reader {
    log: Option<File>,
}

/// One reading.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Reading {
    /// What was found.
    pub findings: Vec<Finding>,
    /// Whether it is the first one: then it goes back to the boot, and what it found may be long over.
    pub history: bool,
}

impl Reader {
    /// What is new since the last call; at the first one, all that the kernel still has. Without the right to read
    /// it (or without a log, as in a container) nothing is found.
    pub fn read(&mut self, root: &Path) -> Reading {
        let mut reading = Reading { findings: Vec::new(), history: self.log.is_none() };
        if self.log.is_none() {
            let mut options = OpenOptions::new();
            let nonblocking = rustix::fs::OFlags::NONBLOCK.bits().cast_signed();
            self.log = options.read(true).custom_flags(nonblocking).open(root.join("dev/kmsg")).ok();
        }
        let Some(log) = &mut self.log else { return reading };
        let mut buffer = [0; RECORD_MAX];
        for _ in 0..RECORDS_MAX {
            match log.read(&mut buffer) {
                Ok(0) => break,
                Ok(length) => scan(&String::from_utf8_lossy(&buffer[..length]), &mut reading.findings),
                // EPIPE: records were overwritten before they were read; the next read goes on behind the gap.
                Err(e) if matches!(e.kind(), ErrorKind::BrokenPipe | ErrorKind::Interrupted) => {}
                Err(_) => break,
            }
        }
        reading
    }
}

/// Finds what is said in `text`, one record or more.
fn scan(text: &str, findings: &mut Vec<Finding>) {
    for line in text.lines().filter(|l| !l.starts_with(' ')) {
        if findings.len() == FINDINGS_MAX {
            return;
        }
        let said = line.split_once(';').and_then(|(_, said)| judge(said));
        findings.extend(said);
    }
}

/// `vfio-pci 0000:41:00.0: not ready 65535ms after FLR; giving up`: driver, device, text.
fn judge(said: &str) -> Option<Finding> {
    let (device, text) = said.split_once(": ")?;
    let (driver, address) = device.rsplit_once(' ')?;
    if !is_vfio_driver(driver) {
        return None;
    }
    let address = PciAddress::parse(address).ok()?;
    let weight = match text.to_ascii_lowercase().split_once("refused to change power state") {
        Some((_, states)) => refused(states)?,
        None => PATTERNS.iter().find(|(part, _)| text.contains(part))?.1,
    };
    let text = text.chars().filter(|c| !c.is_control()).take(TEXT_MAX).collect();
    Some(Finding { address, weight, text })
}

/// Not every device can sleep: `from D0 to D3hot` is not a fault. One that does not wake up (`from D3hot to D0`, and before
/// Linux 5.6 `, currently in D3`) did not come back.
fn refused(states: &str) -> Option<Weight> {
    let states = states.trim();
    (states.ends_with("to d0") || states.contains("currently in d3")).then_some(Weight::Failed)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(line: &str, expected: Option<(&str, Weight)>) {
        let mut findings = Vec::new();
        scan(line, &mut findings);
        let found = findings.first().map(|f| (f.address.to_string(), f.weight));
        assert_eq!(found, expected.map(|(a, w)| (a.to_owned(), w)), "{line}");
    }

    #[test]
    fn only_vfio_lines_about_a_device_count() {
        let failed = Some(("0000:41:00.0", Weight::Failed));
        check("3,901,12345,-;vfio-pci 0000:41:00.0: not ready 65535ms after FLR; giving up\n", failed);
        check(
            "3,9,1,-;vfio-pci 0000:41:00.0: Unable to change power state from D3cold to D0, device inaccessible\n \
             SUBSYSTEM=pci\n DEVICE=+pci:0000:41:00.0\n",
            failed,
        );
        check(
            "4,9,1,-;nvgrace_gpu_vfio_pci 0009:01:00.0: vfio_bar_restore: reset recovery - restoring BARs",
            Some(("0009:01:00.0", Weight::Suspect)),
        );
        let framebuffer =
            "3,9,1,-;vfio-pci 0000:07:00.0: BAR 0: can't reserve [mem 0xe0000000-0xefffffff 64bit pref]";
        check(framebuffer, Some(("0000:07:00.0", Weight::Suspect)));
        check("3,9,1,-;vfio-pci 0000:41:00.0: Refused to change power state, currently in D3", failed);
        check("4,9,1,-;vfio-pci 0000:41:00.0: refused to change power state from D3hot to D0", failed);
        for other in [
            "3,9,1,-;vfio-pci 0000:41:00.0: Refused to change power state from D0 to D3hot",
            "3,9,1,-;nvidia 0000:41:00.0: not ready 65535ms after FLR; giving up",
            "6,9,1,-;vfio-pci 0000:41:00.0: vgaarb: VGA decodes changed: olddecodes=none,decodes=io+mem",
            "6,9,1,-;vfio-pci 0000:41:00.0: enabling device (0000 -> 0003)",
            "3,9,1,-;vfio-pci nonsense: ; giving up",
            " DEVICE=vfio-pci 0000:41:00.0: ; giving up",
            ";",
            "",
        ] {
            check(other, None);
        }
    }
}
