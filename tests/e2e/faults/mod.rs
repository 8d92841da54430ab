//! The fault suite: the real agent, a real engine, the reference control plane, and what goes wrong between them.
//!
//! A test here injects one fault again and again while replicas are deployed and stopped, and holds the agent to its
//! promise: each accepted command gets exactly one outcome, no container is lost, doubled or left behind, no process
//! is leaked, heartbeats stay on time. Each adds a row to the report (see [`report`]), and fails if anything was lost.
//!
//! `cargo test` runs the short form; `scripts/faults.sh` sets the numbers of the full one:
//! `VECTORLAY_TEST_ROUNDS` (how often; also makes the long waits long), `VECTORLAY_TEST_SEED`,
//! `VECTORLAY_TEST_REPORT` (a file for the rows). The engine is that of `scripts/engine.sh`; without one the tests that
//! need it are skipped, and counted as skipped.

mod cli;
mod containers;
mod disk;
mod engine;
mod herd;
mod kills;
mod link;
mod report;
mod rig;
mod soak;
