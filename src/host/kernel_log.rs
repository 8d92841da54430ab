//! What the kernel's log says about devices that vfio-pci has, and about containers that it ended for want of memory.
//!
//! /dev/kmsg is read without waiting, from where the last reading ended. Format (kernel documentation
//! `Documentation/ABI/testing/dev-kmsg`): `priority,sequence,microseconds,flags;text`, then lines that begin with a
//! space. It is never written to.

use std::fs::{File, OpenOptions};
use std::io::{ErrorKind, Read};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use super::pci::is_vfio_driver;
use crate::types::{ContainerId, PciAddress};

/// The longest record that the kernel hands out, in bytes; a smaller buffer gets EINVAL.
const RECORD_MAX: usize = 8192;
/// Most records in one reading: more than the kernel's buffer holds on the largest hosts.
const RECORDS_MAX: usize = 65_536;
/// Most findings kept of one reading.
const FINDINGS_MAX: usize = 256;
/// The longest text of a finding that is kept, in characters.
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

/// Whether the log says that a process of this container was ended for want of memory, in its own cgroup or on the whole
/// host. Under load the kernel leaves such lines out (ten in 5 s are written), so that `false` proves nothing.
pub fn says_oom_killed(root: &Path, container: &ContainerId) -> bool {
    let mut killed = false;
    read_records(&mut open(root), &mut |text| killed |= is_oom_kill(text, container));
    killed
}

/// `oom-kill:constraint=…,oom_memcg=/PATH,task_memcg=/PATH,task=NAME,pid=N,uid=N` (mm/oom_kill.c, `dump_oom_summary`,
/// since 4.20). The container's cgroup has its ID in its name, with either driver of cgroups and in both versions. The
/// names that follow are a tenant's.
fn is_oom_kill(text: &str, container: &ContainerId) -> bool {
    let said = text.split_once(';').map_or("", |(_, said)| said);
    let cgroup = said.strip_prefix("oom-kill:").and_then(|said| said.split_once(",task_memcg="));
    cgroup.is_some_and(|(_, rest)| rest.split(",task=").next().unwrap_or("").contains(container.as_str()))
}

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
            self.log = open(root);
        }
        read_records(&mut self.log, &mut |text| scan(text, &mut reading.findings));
        reading
    }
}

fn open(root: &Path) -> Option<File> {
    let mut options = OpenOptions::new();
    let nonblocking = rustix::fs::OFlags::NONBLOCK.bits().cast_signed();
    options.read(true).custom_flags(nonblocking).open(root.join("dev/kmsg")).ok()
}

/// Hands on what the log has that was not read yet, a record at a time.
fn read_records(log: &mut Option<File>, each: &mut dyn FnMut(&str)) {
    let Some(log) = log else { return };
    let mut buffer = [0; RECORD_MAX];
    for _ in 0..RECORDS_MAX {
        match log.read(&mut buffer) {
            Ok(0) => break,
            Ok(length) => each(&String::from_utf8_lossy(&buffer[..length])),
            // EPIPE: records were overwritten before they were read; the next read goes on behind the gap.
            Err(e) if matches!(e.kind(), ErrorKind::BrokenPipe | ErrorKind::Interrupted) => {}
            Err(_) => break,
        }
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
    fn a_container_that_was_ended_for_want_of_memory_is_named_by_its_cgroup() {
        let id = "3f".repeat(32);
        let container = ContainerId::new(&id).unwrap();
        let line = |cgroup: &str, task: &str| {
            format!(
                "6,2210,5012,-;oom-kill:constraint=CONSTRAINT_MEMCG,nodemask=(null),cpuset=x,mems_allowed=0,\
                 oom_memcg={cgroup},task_memcg={cgroup},task={task},pid=4711,uid=0"
            )
        };
        for cgroup in [
            format!("/system.slice/nerdctl-{id}.scope"),
            format!("/default/{id}"),
            format!("/docker/{id}/below"),
        ] {
            assert!(is_oom_kill(&line(&cgroup, "sh"), &container), "{cgroup}");
        }
        for other in [
            line(&format!("/default/{}", "40".repeat(32)), "sh"),
            line("/user.slice", &id),
            format!("6,1,1,-;Memory cgroup out of memory: Killed process 4711 (sh) /default/{id}"),
        ] {
            assert!(!is_oom_kill(&other, &container), "{other}");
        }
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
