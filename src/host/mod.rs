//! What the host is and how full it is. Everything is read, nothing is ever changed, and nothing is guessed: what could
//! not be read is absent.
//!
//! Any of this may hang (a dead disk, a driver that does not answer), so it is called on threads that can be left
//! behind: see `sampler`.

pub mod background;
pub mod cni;
pub mod containerd_path;
pub mod cpu;
pub mod dependencies;
pub mod files;
pub mod gpus;
pub mod handover;
pub mod health;
pub mod holders;
pub mod identity;
pub mod inside;
pub mod iommu;
pub mod kata;
pub mod kernel_log;
pub mod lspci;
pub mod memory;
pub mod pci;
pub mod pci_ids;
pub mod shim;
pub mod storage;
pub mod utilization;
pub mod vfio;

use std::path::Path;

use crate::core::inventory::{Gpu, Hardware};

/// What the machine is, with the GPUs that an inventory found. `instance` is the agent's name among several on the machine.
pub fn hardware(root: &Path, instance: Option<&str>, gpus: Vec<Gpu>) -> Hardware {
    let memory = memory::read(root);
    Hardware {
        hostname: identity::hostname(root),
        cpu_model: cpu::model(root),
        cpu_cores: cpu::online(root),
        ram_gib: memory.map(memory::Memory::total_gib),
        memory_mib: memory.map(|memory| memory.total_kib / 1024),
        arch: Some(std::env::consts::ARCH.to_owned()),
        kernel: identity::kernel(root),
        boot_id: identity::boot_id(root),
        machine_id: identity::machine_id(root).map(|id| identity::of_instance(id, instance)),
        gpus,
    }
}
