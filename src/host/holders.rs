//! Which process has a device node open, found by the links in `/proc/*/fd` alone: the node itself is never opened.

use std::fmt;
use std::fs;
use std::path::Path;

use super::files;

/// Most descriptors that are looked at, of all processes together: some seconds of work.
const DESCRIPTORS_MAX: usize = 2_000_000;

/// A process that has a node open.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Holder {
    /// Its process ID.
    pub pid: u32,
    /// Its name, as the kernel keeps it (15 bytes).
    pub command: String,
}

impl fmt::Display for Holder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "process {} ({})", self.pid, self.command)
    }
}

/// The holders of some nodes.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Holders {
    by_node: Vec<(String, Holder)>,
    /// Whether all processes could be looked at; not so without root's rights.
    pub complete: bool,
}

impl Holders {
    /// Who has `node` open.
    pub fn of(&self, node: &str) -> Option<&Holder> {
        self.by_node.iter().find(|(held, _)| held == node).map(|(_, holder)| holder)
    }
}

/// Looks for processes that have one of `nodes` (`/dev/vfio/18`) open; one holder of each is enough. A link is
/// compared without `/dev`, since a process with a /dev of its own may show it below another folder.
pub fn find(root: &Path, nodes: &[String]) -> Holders {
    let mut holders = Holders { by_node: Vec::new(), complete: true };
    if nodes.is_empty() {
        return holders;
    }
    let proc = root.join("proc");
    let mut left = DESCRIPTORS_MAX;
    let Ok(entries) = fs::read_dir(&proc) else {
        holders.complete = false;
        return holders;
    };
    for pid in entries.flatten().filter_map(|e| e.file_name().to_str()?.parse::<u32>().ok()) {
        let process = proc.join(pid.to_string());
        let descriptors = match fs::read_dir(process.join("fd")) {
            Ok(descriptors) => descriptors,
            // It has ended meanwhile, which is as good as a look.
            Err(_) if !process.exists() => continue,
            Err(_) => {
                holders.complete = false;
                continue;
            }
        };
        for descriptor in descriptors.flatten() {
            if left == 0 {
                holders.complete = false;
                return holders;
            }
            left -= 1;
            let Ok(target) = fs::read_link(descriptor.path()) else { continue };
            let Some(target) = target.to_str() else { continue };
            if let Some(node) = nodes.iter().find(|n| target.ends_with(n.trim_start_matches("/dev")))
                && holders.of(node).is_none()
            {
                let command = files::value(&process.join("comm")).unwrap_or_default();
                holders.by_node.push((node.clone(), Holder { pid, command }));
            }
        }
    }
    holders
}
