//! What the process does about itself first of all: its memory holds tokens and tenants' variables.

use std::os::fd::BorrowedFd;

use rustix::io::{FdFlags, fcntl_setfd};
use rustix::process::{DumpableBehavior, Resource, Rlimit, set_dumpable_behavior, setrlimit};

/// Gives this process no core dump, nor the programs that it starts, and lets no descriptor that it inherited reach one
/// of those. Must be called before there are other threads. What the kernel refuses is returned for the log.
pub fn harden() -> Vec<String> {
    let mut failed = Vec::new();
    let mut note = |what: &str, result: rustix::io::Result<()>| {
        if let Err(errno) = result {
            failed.push(format!("cannot {what}: {errno}"));
        }
    };
    // Programs inherit the limit; the attribute (PR_SET_DUMPABLE(2const)) ends with exec, and is what counts where
    // core_pattern names a program.
    let none = Rlimit { current: Some(0), maximum: Some(0) };
    note("close inherited descriptors on exec", close_on_exec());
    note("forbid core dumps (RLIMIT_CORE)", setrlimit(Resource::Core, none));
    note("forbid core dumps (PR_SET_DUMPABLE)", set_dumpable_behavior(DumpableBehavior::NotDumpable));
    failed
}

/// Marks every descriptor but the three standard ones. rustix has no close_range(2), which Linux knows since 5.9 only.
fn close_on_exec() -> rustix::io::Result<()> {
    let open = std::fs::read_dir("/proc/self/fd");
    let open =
        open.map_err(|error| rustix::io::Errno::from_io_error(&error).unwrap_or(rustix::io::Errno::IO))?;
    for number in open.flatten().filter_map(|entry| entry.file_name().to_str()?.parse().ok()) {
        if number > 2 {
            // SAFETY: the kernel has just listed it, and nobody else is there to close it: this is the only thread, and
            // the listing's own descriptor is open until the loop has ended.
            #[allow(unsafe_code)]
            let descriptor = unsafe { BorrowedFd::borrow_raw(number) };
            fcntl_setfd(descriptor, FdFlags::CLOEXEC)?;
        }
    }
    Ok(())
}
