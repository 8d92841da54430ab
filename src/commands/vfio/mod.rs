//! `vectorlay-agent vfio status|bind|unbind`: prepares a host so that its GPUs can be handed to microVMs.
//!
//! Nothing is bound unless asked. `--dry-run` prints each step as a shell line. Each write is done by the agent's own
//! executable, started again with [`WRITE_COMMAND`] and a deadline, because the kernel can block the writer for ever;
//! when one hangs or fails, what was done before is undone, except for the device that hangs.
//!
//! To survive a reboot, `bind --persist` notes the devices in [`boot::SAVED`] with their IDs (an address can belong to
//! another device after a card was added), and `bind --saved` binds those and what the setting `vfio_bind` names: run it
//! before the agent, as `ExecStartPre=` in its unit or in a boot script. In an image that is
//! booted over the network the setting takes the note's place, as the kernel parameter `vectorlay.vfio_bind=` (addresses
//! joined by commas, or `all`).

pub mod boot;
mod status;

use std::ffi::OsString;
use std::fmt;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use crate::cli::{Form, VfioChange, VfioTarget};
use crate::config::Config;
use crate::host::gpus::{Inventory, Watch};
use crate::host::health::Limits;
use crate::host::vfio::{self, Step};
use crate::host::{lspci, pci};
use crate::process::{self, Bounds, Ended, Program};
use crate::setup;
use crate::types::PciAddress;

/// The hidden command that does one write: `vectorlay-agent vfio-write PATH VALUE`.
pub const WRITE_COMMAND: &str = "vfio-write";
/// How long a write may take: drivers of large GPUs take their time to let go.
const WRITE_DEADLINE: Duration = Duration::from_secs(60);
/// How long modprobe may take.
const LOAD_DEADLINE: Duration = Duration::from_secs(30);
/// How long udev may take to make a node.
const NODE_DEADLINE: Duration = Duration::from_secs(10);
/// How often a node is looked for.
const NODE_LOOK: Duration = Duration::from_millis(50);
/// From SIGTERM to SIGKILL.
const GRACE: Duration = Duration::from_secs(1);
/// Kept of what a program says, in bytes.
const OUTPUT_MAX: usize = 4096;

/// Performs a step.
pub type Perform<'a> = dyn FnMut(&Step) -> Result<(), Failure> + 'a;

/// Why a step failed.
#[derive(Debug)]
pub enum Failure {
    /// It did not end within this time.
    Hung(Duration),
    /// The message of the kernel, or of the program that was run, or why it could not be run.
    Said(String),
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Hung(limit) => {
                let seconds = limit.as_secs();
                write!(f, "not done within {seconds} s: the device is still in use; see the kernel's log")
            }
            Self::Said(text) => f.write_str(text),
        }
    }
}

/// Each GPU, and why it cannot be allocated, judged by the configured limits and for the configured hand-over, as `check`
/// judges it.
///
/// # Errors
/// When the PCI bus cannot be read.
pub fn status(config: &Config, form: Form) -> Result<String, String> {
    let mut inventory = inventory(&config.root, setup::health_limits(config))?;
    let mut judged = inventory.facts();
    setup::hand_over(config, &mut judged);
    inventory.gpus.iter_mut().zip(judged).for_each(|(seen, gpu)| seen.gpu = gpu);
    Ok(match form {
        Form::Text => status::text(&inventory, &config.root),
        Form::Json => status::json(&inventory),
    })
}

/// Binds devices to vfio-pci on the host under `root`, and writes each step to `out`. `setting` is the value of the setting
/// `vfio_bind`.
///
/// # Errors
/// What to tell the operator; for a refusal nothing was changed.
pub fn bind(
    change: &VfioChange,
    setting: Option<&str>,
    root: &Path,
    out: &mut dyn Write,
) -> Result<(), String> {
    bind_with(change, setting, root, out, &mut perform)
}

/// [`bind`] with steps performed by `perform`.
///
/// # Errors
/// As [`bind`].
pub fn bind_with(
    change: &VfioChange,
    setting: Option<&str>,
    root: &Path,
    out: &mut dyn Write,
    perform: &mut Perform<'_>,
) -> Result<(), String> {
    let inventory = inventory(root, Limits::default())?;
    let mut wanted = boot::wanted(&change.target, setting, &inventory, root, out);
    if wanted.is_empty() && matches!(change.target, VfioTarget::Saved) {
        // This runs at each boot of every host: without an IOMMU it is an error only where there is something to bind.
        say(out, "no GPUs to bind");
        return Ok(());
    }
    let plan = |wanted: &[PciAddress]| {
        vfio::bind(root, &inventory.functions, &inventory.iommu, wanted, change.force)
    };
    let asked = wanted.len();
    // Of GPUs that are not named one by one, one that cannot be bound does not keep the others from being bound.
    let one_by_one = !matches!(change.target, VfioTarget::These(_)) && inventory.iommu.on;
    if one_by_one {
        wanted.retain(|device| match plan(&[*device]) {
            Ok(_) => true,
            Err(refusal) => {
                say(out, &format!("{device} is left out: {refusal}"));
                false
            }
        });
    }
    let steps = plan(&wanted)?;
    carry_out(&steps, change.dry_run, root, out, perform)?;
    if change.persist && !change.dry_run && !wanted.is_empty() {
        boot::note(root, &inventory, |noted| noted.extend(&wanted))?;
        say(out, &boot::help(&wanted));
    }
    match asked - wanted.len() {
        0 => Ok(()),
        left_out => Err(format!("{left_out} of {asked} GPUs are left out; see above for the reasons")),
    }
}

/// Returns devices to the host's drivers.
///
/// # Errors
/// As [`bind`].
pub fn unbind(change: &VfioChange, root: &Path, out: &mut dyn Write) -> Result<(), String> {
    unbind_with(change, root, out, &mut perform)
}

/// [`unbind`] with steps performed by `perform`.
///
/// # Errors
/// As [`bind`].
pub fn unbind_with(
    change: &VfioChange,
    root: &Path,
    out: &mut dyn Write,
    perform: &mut Perform<'_>,
) -> Result<(), String> {
    let inventory = inventory(root, Limits::default())?;
    let wanted = boot::wanted(&change.target, None, &inventory, root, out);
    let steps = vfio::unbind(root, &inventory.functions, &wanted, change.force)?;
    carry_out(&steps, change.dry_run, root, out, perform)?;
    if change.persist && !change.dry_run {
        boot::note(root, &inventory, |noted| noted.retain(|a| !wanted.contains(a)))?;
    }
    Ok(())
}

/// Performs the one write for which this executable was started again. `None` if `arguments` (without the program's name)
/// are an ordinary command line.
pub fn as_writer(arguments: &[OsString]) -> Option<io::Result<()>> {
    match arguments {
        [command, path, value] if command == WRITE_COMMAND => Some(match value.to_str() {
            Some(value) => vfio::write(Path::new(path), value),
            None => Err(io::ErrorKind::InvalidInput.into()),
        }),
        _ => None,
    }
}

fn inventory(root: &Path, limits: Limits) -> Result<Inventory, String> {
    let mut watch = Watch::new(root, limits);
    watch.read(Instant::now(), &mut || lspci::run(root))
}

/// Writes a line of progress. That it cannot be written must not leave a host half bound: the caller's `out` remembers.
fn say(out: &mut dyn Write, line: &str) {
    let _ = writeln!(out, "{line}");
}

/// Performs the steps, or only prints them. After a failure earlier steps are undone.
fn carry_out(
    steps: &[Step],
    dry_run: bool,
    root: &Path,
    out: &mut dyn Write,
    perform: &mut Perform<'_>,
) -> Result<(), String> {
    if steps.is_empty() {
        say(out, "nothing to do");
        return Ok(());
    }
    let mut touched = Vec::new();
    for step in steps {
        say(out, &step.to_string());
        if dry_run {
            continue;
        }
        if let Step::Write { device, .. } = step {
            touched.push(*device);
        }
        if let Err(why) = perform(step) {
            if let Step::Load { module, optional: true } = step {
                say(out, &format!("continuing without {module}: {why}"));
                continue;
            }
            if let (Failure::Hung(_), Step::Write { device, .. }) = (&why, step) {
                // The kernel holds this one: another write to it would hang as well.
                touched.retain(|t| t != device);
            }
            let left = take_back(root, &touched, perform);
            let undone = if left.is_empty() {
                "earlier steps are undone".to_owned()
            } else {
                format!("undo by hand: {}", left.join("; "))
            };
            return Err(format!("`{step}` failed: {why}; {undone}"));
        }
    }
    Ok(())
}

/// Undoes the steps on the devices `touched`. Returns those that failed.
fn take_back(root: &Path, touched: &[PciAddress], perform: &mut Perform<'_>) -> Vec<String> {
    match pci::functions(root) {
        Ok(now) => {
            let steps = vfio::undo(root, &now, touched);
            steps.iter().filter(|s| perform(s).is_err()).map(ToString::to_string).collect()
        }
        Err(_) => touched.iter().map(|t| format!("vectorlay-agent vfio unbind {t}")).collect(),
    }
}

/// Performs one step on this machine.
fn perform(step: &Step) -> Result<(), Failure> {
    match step {
        Step::Load { module, .. } => {
            let dirs = ["/usr/sbin", "/sbin", "/usr/bin", "/bin"].map(Path::new);
            let path = process::find("modprobe", &dirs).ok_or_else(|| {
                Failure::Said("modprobe is missing; install kmod, or load vfio-pci at boot".to_owned())
            })?;
            start(path, vec![module.into()], LOAD_DEADLINE)
        }
        Step::Write { path, value, .. } => {
            // This very executable, also when its file was replaced meanwhile.
            let args = vec![WRITE_COMMAND.into(), path.into(), value.into()];
            start("/proc/self/exe".into(), args, WRITE_DEADLINE)
        }
        Step::Await(node) => {
            let end = Instant::now() + NODE_DEADLINE;
            while !node.exists() {
                if Instant::now() >= end {
                    return Err(Failure::Hung(NODE_DEADLINE));
                }
                std::thread::sleep(NODE_LOOK);
            }
            Ok(())
        }
    }
}

fn start(path: PathBuf, args: Vec<OsString>, deadline: Duration) -> Result<(), Failure> {
    // modprobe runs `install` lines of modprobe.d with a shell.
    let env = vec![("PATH".into(), "/usr/sbin:/usr/bin:/sbin:/bin".into())];
    let program = Program { path, args, env, input: None };
    let bounds = Bounds { deadline, grace: GRACE, output: OUTPUT_MAX, tail: false };
    let finished = process::run(&program, &bounds, None).map_err(Failure::Said)?;
    match finished.ended {
        Ended::Exit(0) => Ok(()),
        Ended::Deadline | Ended::Cancelled | Ended::Stalled => Err(Failure::Hung(deadline)),
        Ended::Exit(status) => {
            let text = String::from_utf8_lossy(&finished.stderr);
            let text = text.trim();
            let text = if text.is_empty() { format!("exit status {status}") } else { text.to_owned() };
            Err(Failure::Said(text))
        }
        Ended::Signal(signal) => Err(Failure::Said(format!("ended by signal {signal}"))),
    }
}
