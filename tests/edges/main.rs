#![allow(clippy::unwrap_used, reason = "what fails here fails the test")]
#![allow(missing_docs)]
//! The rooms that touch the world, each by itself: the host on folders of made-up files, the link against servers on
//! loopback, the engine room against a real engine.

#[path = "../support/mod.rs"]
mod support;

mod engine;
mod gpu_handover;
mod gpu_hosts;
mod gpu_readings;
mod link;
mod vfio_bind;
