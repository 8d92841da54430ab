//! The agent's program. What it does stands in `commands`.

use std::process::ExitCode;

fn main() -> ExitCode {
    ExitCode::from(vectorlay::commands::main(std::env::args_os().skip(1).collect()))
}

/// The unwinder's walk over the stack, for the backtrace of a panic: it finds no frames. The static binary has no tables
/// to walk by (`scripts/build-static.sh`), and what std would print frames with is left out when nobody gets any.
#[cfg(target_env = "musl")]
#[allow(unsafe_code, reason = "only the C library's name for it is unsafe: nothing is read or written")]
#[unsafe(no_mangle)]
extern "C" fn _Unwind_Backtrace(
    _frame: *const std::ffi::c_void,
    _data: *mut std::ffi::c_void,
) -> std::ffi::c_int {
    0
}
