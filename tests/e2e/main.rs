#![allow(clippy::unwrap_used, reason = "what fails here fails the test")]
#![allow(clippy::print_stderr, reason = "says what was skipped and measured")]
#![allow(missing_docs)]
//! Whole programs: the agent's binary, the reference control plane's, and mostly a real container engine. One file for
//! each promise. The tests that use the engine take turns (see `support/engine.rs`); the others run beside them.

#[path = "../support/mod.rs"]
mod support;
mod world;

mod allowed;
mod budgets;
mod canaries;
mod contract;
mod control_plane;
mod damaged;
mod delivery;
mod deploy;
mod drain;
mod exits;
mod faults;
mod flood;
mod frozen_shim;
mod gpus;
mod half_open;
mod hardening;
mod heartbeat;
mod hostile;
mod identity;
mod images;
mod install;
mod log_size;
mod looks;
mod names;
mod operate;
mod ports;
mod prove;
mod ready;
mod rebooted;
mod reconnect;
mod restarts;
mod secured;
mod settings;
mod stalled;
mod stopping;
mod unreadable;
mod variables;
mod vfio_qemu;
