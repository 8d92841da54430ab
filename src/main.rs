//! The command line: argv to a command; the only place that sets an exit code.
fn main() {}
