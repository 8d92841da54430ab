//! A GPU's health, judged without a driver for it: from its config space, its power state, its link, the kernel's
//! counters of PCIe errors, its reset methods, and the kernel's log.
//!
//! A reading is taken by [`read`]; [`judge`] is a pure function of it. What takes a GPU out and puts it back is the
//! core's: a GPU that is well again at a later reading is judged well again, for only what is new since the reading
//! before can make it fail. What lies before the first reading makes it suspect at most.
//!
//! Reading the config space wakes a sleeping device for a moment, as the kernel does by itself (`pci_read_config`).

use std::fs::File;
use std::io::Read;
use std::path::Path;

use super::files;
use super::kernel_log::{Finding, Weight};
use super::pci::{self, Function};
use crate::core::inventory::Health;
use crate::types::PciAddress;

/// The standard header of the config space, which everybody may read, in bytes.
const CONFIG_HEADER: usize = 64;

/// What counts as a fault.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Limits {
    /// A link narrower than this share of its best, in percent, is suspect. 0: never.
    pub link_width_percent: u8,
    /// The same for the link's speed. By default it is not judged: idle cards slow their links down to save power,
    /// with a driver in a guest too, and are well.
    pub link_speed_percent: u8,
    /// So many corrected errors in an hour are suspect.
    pub correctable_errors: u64,
    /// So many uncorrected errors that are not fatal between two readings are suspect.
    pub nonfatal_errors: u64,
    /// So many fatal errors between two readings mean failed.
    pub fatal_errors: u64,
    /// Whether a GPU that cannot be reset by itself counts as failed, instead of suspect.
    pub require_reset: bool,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            link_width_percent: 100,
            link_speed_percent: 0,
            // 8 a minute is where NVIDIA's own health check begins to warn of PCIe replays (DCGM).
            correctable_errors: 480,
            nonfatal_errors: 1,
            fatal_errors: 1,
            require_reset: false,
        }
    }
}

/// The first bytes of the config space.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Config {
    /// It answers.
    Answers,
    /// Nothing but ones: no device answers at that address any more. A virtual function's IDs read so too, but not
    /// the rest of it.
    AllOnes,
    /// It could not be read.
    Unreadable(String),
}

/// A PCIe link.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Link {
    /// Tenths of GT/s (25 for 2.5 GT/s).
    pub speed: u16,
    /// Lanes.
    pub width: u16,
}

impl std::fmt::Display for Link {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}.{} GT/s x{}", self.speed / 10, self.speed % 10, self.width)
    }
}

/// The kernel's counters of PCIe errors (AER) since the device was found.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Errors {
    /// Corrected by the link itself.
    pub correctable: u64,
    /// A transaction was lost.
    pub nonfatal: u64,
    /// The link was lost.
    pub fatal: u64,
}

/// How a GPU can be reset between two tenants.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Reset {
    /// By itself, in these ways (`flr bus`).
    Alone(String),
    /// Only together with the other functions of its card, which VFIO does when it has all of them.
    WithCard,
    /// Not at all: only together with the other functions of its card, but these lie in other IOMMU groups.
    Split,
    /// In no way that the kernel knows.
    None,
}

/// One reading of a GPU.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reading {
    /// Its config space.
    pub config: Config,
    /// Its power state (`D0`, `D3hot`, `D3cold`; Linux 5.11 and later).
    pub power: Option<String>,
    /// Its link, or that of a port above it which is further below its best: Radeons since Navi have a switch of their own
    /// on the card, and what the slot gives is seen at the switch.
    pub link: Option<Link>,
    /// The best link that both ends of that can have.
    pub best: Option<Link>,
    /// Its error counters; `None` where it has no AER or the firmware keeps it to itself.
    pub errors: Option<Errors>,
    /// How it can be reset.
    pub reset: Reset,
}

/// Takes a reading of `of`. `card` are all functions of the host; those at the same place are its card.
pub fn read(root: &Path, of: &Function, all: &[Function]) -> Reading {
    let folder = pci::folder(root, of.address);
    // First, for it wakes the device.
    let config = config(&folder.join("config"));
    let (link, best) = weakest_link(&folder).unzip();
    let at = |f: &Function| (f.address.domain, f.address.bus, f.address.device);
    let siblings = || all.iter().filter(|f| at(f) == at(of) && f.address != of.address);
    // Before Linux 5.15 there is only `reset`, which exists when there is a way.
    let methods = folder.join("reset_method");
    let reset = match files::value(&methods) {
        Some(methods) => Reset::Alone(methods),
        None if !methods.exists() && folder.join("reset").exists() => Reset::Alone("reset".to_owned()),
        _ if of.physical.is_some() || siblings().next().is_none() => Reset::None,
        _ if siblings().all(|sibling| sibling.group == of.group) => Reset::WithCard,
        _ => Reset::Split,
    };
    let power = files::value(&folder.join("power_state")).filter(|p| p != "unknown");
    Reading { config, power, link, best, errors: errors(&folder), reset }
}

/// Of the links between the function and the root port the one that is furthest below the best that both of its ends can
/// have, by width and then by speed, with that best. A function's folder lies in that of the port above it.
fn weakest_link(folder: &Path) -> Option<(Link, Link)> {
    let folder = folder.canonicalize().ok()?;
    let is_function = |folder: &&Path| {
        let name = folder.file_name().and_then(|name| name.to_str());
        name.is_some_and(|name| PciAddress::parse(name).is_ok())
    };
    let links = folder.ancestors().take_while(is_function).filter_map(|below| {
        let current = link(below, "current_link")?;
        let own = link(below, "max_link")?;
        let best = match below.parent().and_then(|above| link(above, "max_link")) {
            Some(port) => Link { speed: own.speed.min(port.speed), width: own.width.min(port.width) },
            None => own,
        };
        Some((current, best))
    });
    let percent = |part: u16, whole: u16| u32::from(part) * 100 / u32::from(whole.max(1));
    links.min_by_key(|(current, best)| {
        (percent(current.width, best.width), percent(current.speed, best.speed))
    })
}

fn config(path: &Path) -> Config {
    let mut header = [0; CONFIG_HEADER];
    match File::open(path).and_then(|mut file| file.read_exact(&mut header)) {
        Ok(()) if header.iter().all(|b| *b == 0xff) => Config::AllOnes,
        Ok(()) => Config::Answers,
        Err(e) => Config::Unreadable(e.to_string()),
    }
}

/// `16.0 GT/s PCIe` and `16`; a link that is down or that the function does not have reads `Unknown` and 0 or 255.
fn link(folder: &Path, prefix: &str) -> Option<Link> {
    let speed = files::value(&folder.join(format!("{prefix}_speed")))?;
    let (whole, rest) = speed.split_once(' ')?.0.split_once('.').unwrap_or((speed.split_once(' ')?.0, "0"));
    let tenth: u16 = rest.parse().ok().filter(|t| *t < 10)?;
    let speed = whole.parse::<u16>().ok()?.checked_mul(10)?.checked_add(tenth)?;
    let width = files::number(&folder.join(format!("{prefix}_width")))?;
    // PCIe has no wider ones.
    (1..=32).contains(&width).then_some(Link { speed, width })
}

/// Lines of `Name count`, the last one `TOTAL_ERR_COR 0`, `TOTAL_ERR_NONFATAL 0` or `TOTAL_ERR_FATAL 0`
/// (Documentation/ABI/testing/sysfs-bus-pci-devices-aer_stats).
fn errors(folder: &Path) -> Option<Errors> {
    let total = |name: &str| -> Option<u64> {
        let text = files::value(&folder.join(name))?;
        let total = text.lines().find_map(|l| l.strip_prefix("TOTAL_ERR_")?.split_once(' '));
        total?.1.trim().parse().ok()
    };
    Some(Errors {
        correctable: total("aer_dev_correctable")?,
        nonfatal: total("aer_dev_nonfatal")?,
        fatal: total("aer_dev_fatal")?,
    })
}

/// What was found, by weight.
#[derive(Default)]
struct Complaints {
    failed: Vec<String>,
    unknown: Vec<String>,
    suspect: Vec<String>,
}

/// Judges a reading. `before`: the error counters of the reading before (of corrected errors,
/// of an hour ago), `None` at the first one. `log`: what the
/// kernel said about the device since then; `history`: whether that goes back to the boot.
pub fn judge(
    reading: &Reading,
    before: Option<Errors>,
    log: &[&Finding],
    history: bool,
    limits: &Limits,
) -> Health {
    let mut complaints = Complaints::default();
    registers(reading, &mut complaints);
    links(reading, limits, &mut complaints);
    counters(reading.errors, before, limits, &mut complaints);
    let unresettable = match reading.reset {
        Reset::Alone(_) | Reset::WithCard => None,
        Reset::None => Some("no reset method"),
        Reset::Split => Some("its card's functions lie in different IOMMU groups"),
    };
    if let Some(why) = unresettable {
        let text = format!("it cannot be reset between two tenants ({why})");
        if limits.require_reset { complaints.failed.push(text) } else { complaints.suspect.push(text) }
    }
    for finding in log {
        match finding.weight {
            Weight::Failed if !history => {
                complaints.failed.push(format!("the kernel says: {}", finding.text));
            }
            Weight::Failed | Weight::Suspect => {
                let when = if history { "said since boot" } else { "says" };
                complaints.suspect.push(format!("the kernel {when}: {}", finding.text));
            }
        }
    }
    let Complaints { failed, unknown, suspect } = complaints;
    if !failed.is_empty() {
        Health::Failed(failed.join("; "))
    } else if !unknown.is_empty() {
        Health::Unknown(unknown.join("; "))
    } else if !suspect.is_empty() {
        Health::Suspect(suspect.join("; "))
    } else {
        Health::Ok
    }
}

fn registers(reading: &Reading, complaints: &mut Complaints) {
    let cold = reading.power.as_deref() == Some("D3cold");
    match &reading.config {
        // A sleeping one that answers was woken by the reading: all is well.
        Config::Answers => {}
        Config::AllOnes if cold => complaints.failed.push(
            "it has no power (D3cold) and does not wake up; power the machine off and on, or check the card's \
             power cables"
                .to_owned(),
        ),
        Config::AllOnes => complaints.failed.push(
            "it fell off the bus (its config space reads all ones); reboot, and if that does not help power the \
             machine off or reseat the card"
                .to_owned(),
        ),
        Config::Unreadable(why) => {
            complaints.unknown.push(format!("its config space cannot be read: {why}"));
        }
    }
}

fn links(reading: &Reading, limits: &Limits, complaints: &mut Complaints) {
    let (Some(link), Some(best)) = (reading.link, reading.best) else { return };
    let below = |is: u16, of: u16, percent: u8| u32::from(is) * 100 < u32::from(of) * u32::from(percent);
    if below(link.width, best.width, limits.link_width_percent)
        || below(link.speed, best.speed, limits.link_speed_percent)
    {
        complaints
            .suspect
            .push(format!("its link runs at {link}, the best is {best}; reseat the card or its riser"));
    }
}

fn counters(now: Option<Errors>, before: Option<Errors>, limits: &Limits, complaints: &mut Complaints) {
    let Some(now) = now else { return };
    let Some(before) = before else {
        // How old these are nobody knows; corrected ones gather over months and say nothing.
        if now.fatal >= limits.fatal_errors.max(1) || now.nonfatal >= limits.nonfatal_errors.max(1) {
            let text = format!("{} fatal and {} other PCIe errors since boot", now.fatal, now.nonfatal);
            complaints.suspect.push(text);
        }
        return;
    };
    let more = |now: u64, before: u64, limit: u64| {
        let new = now.saturating_sub(before);
        (new >= limit.max(1)).then_some(new)
    };
    if let Some(new) = more(now.fatal, before.fatal, limits.fatal_errors) {
        complaints.failed.push(format!("{new} fatal PCIe errors since the last reading"));
    }
    if let Some(new) = more(now.nonfatal, before.nonfatal, limits.nonfatal_errors) {
        complaints.suspect.push(format!("{new} uncorrected PCIe errors since the last reading"));
    }
    if let Some(new) = more(now.correctable, before.correctable, limits.correctable_errors) {
        complaints.suspect.push(format!("{new} corrected PCIe errors within an hour"));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::PciAddress;

    fn well() -> Reading {
        let link = Some(Link { speed: 160, width: 16 });
        Reading {
            config: Config::Answers,
            power: Some("D0".into()),
            link,
            best: link,
            errors: Some(Errors::default()),
            reset: Reset::Alone("flr bus".into()),
        }
    }

    /// Judges what `change` makes of a GPU in full health that was read before.
    fn check(change: impl Fn(&mut Reading), word: &str, part: &str) {
        let mut reading = well();
        change(&mut reading);
        let (found, text) = split(judge(&reading, Some(Errors::default()), &[], false, &Limits::default()));
        assert_eq!(found, word, "{reading:?}: {text}");
        assert!(text.contains(part), "{text:?} lacks {part:?}");
    }

    fn split(health: Health) -> (&'static str, String) {
        match health {
            Health::Ok => ("ok", String::new()),
            Health::Suspect(text) => ("suspect", text),
            Health::Failed(text) => ("failed", text),
            Health::Unknown(text) => ("unknown", text),
        }
    }

    #[test]
    fn each_reading_alone() {
        let link = |speed, width| Some(Link { speed, width });
        check(|_| {}, "ok", "");
        check(|r| r.config = Config::AllOnes, "failed", "fell off the bus");
        check(
            |r| (r.config, r.power) = (Config::AllOnes, Some("D3cold".into())),
            "failed",
            "no power (D3cold)",
        );
        check(|r| r.power = Some("D3cold".into()), "ok", "");
        check(|r| r.power = None, "ok", "");
        check(|r| r.config = Config::Unreadable("denied".into()), "unknown", "denied");
        check(|r| r.link = link(160, 8), "suspect", "16.0 GT/s x8, the best is 16.0 GT/s x16");
        check(|r| r.link = link(25, 16), "ok", "");
        check(|r| (r.link, r.best) = (link(160, 8), link(160, 8)), "ok", "");
        check(|r| r.link = None, "ok", "");
        check(|r| r.errors = None, "ok", "");
        check(|r| r.errors = Some(Errors { fatal: 1, ..Errors::default() }), "failed", "1 fatal");
        check(|r| r.errors = Some(Errors { nonfatal: 1, ..Errors::default() }), "suspect", "1 uncorrected");
        check(|r| r.errors = Some(Errors { correctable: 479, ..Errors::default() }), "ok", "");
        check(|r| r.errors = Some(Errors { correctable: 480, ..Errors::default() }), "suspect", "corrected");
        check(|r| r.reset = Reset::None, "suspect", "cannot be reset");
        check(|r| r.reset = Reset::WithCard, "ok", "");
        check(|r| r.reset = Reset::Split, "suspect", "different IOMMU groups");
        // The worst is what is said.
        check(|r| (r.reset, r.config) = (Reset::None, Config::AllOnes), "failed", "fell off");
    }

    #[test]
    fn old_news_makes_suspect_at_most_and_a_quiet_reading_clears_it() {
        let errors = Some(Errors { fatal: 3, nonfatal: 2, correctable: 1_000_000 });
        let reading = Reading { errors, ..well() };
        let limits = Limits::default();
        let (word, text) = split(judge(&reading, None, &[], true, &limits));
        assert_eq!((word, text.as_str()), ("suspect", "3 fatal and 2 other PCIe errors since boot"));
        assert_eq!(judge(&reading, errors, &[], false, &limits), Health::Ok);
        // The device was found anew, its counters began again.
        assert_eq!(judge(&well(), errors, &[], false, &limits), Health::Ok);

        let address = PciAddress::parse("41:00.0").unwrap();
        let finding = Finding { address, weight: Weight::Failed, text: "not ready; giving up".into() };
        let judged =
            |history| split(judge(&well(), Some(Errors::default()), &[&finding], history, &limits)).0;
        assert_eq!((judged(true), judged(false)), ("suspect", "failed"));
    }

    #[test]
    fn thresholds_are_settings() {
        let slow = Reading { link: Some(Link { speed: 25, width: 16 }), reset: Reset::None, ..well() };
        let limits = Limits { link_speed_percent: 50, require_reset: true, ..Limits::default() };
        let (word, text) = split(judge(&slow, None, &[], false, &limits));
        assert_eq!(word, "failed", "{text}");
        let limits = Limits { require_reset: false, ..limits };
        let (word, text) = split(judge(&slow, None, &[], false, &limits));
        assert_eq!(word, "suspect");
        assert!(text.contains("2.5 GT/s x16") && text.contains("reset"), "{text}");
    }
}
