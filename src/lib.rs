//! The VectorLay node agent: the bridge between the control plane and a GPU host. How it is built, what happens when, and
//! where to find it stands in `design.md` beside this file.
//!
//! Everything that happens becomes an [`core::Event`] in one channel. The main loop ([`agent`]) takes one, hands it with
//! the time to the pure [`core`], and carries out the [`core::Action`]s that come back. The core decides and does
//! nothing; the edges do and decide nothing. No state is shared between threads.
//!
//! A folder is a room, and imports point one way:
//!
//! ```text
//! main ─► commands, agent, setup ─► edges ─► core ─► protocol ─► types
//! ```
//!
//! In reading order:
//!
//! - [`types`]: values that are checked once and trusted afterwards; [`protocol`]: the wire
//! - [`core`]: every decision; [`hmac`]: the keyed hash that it compares specifications by
//! - [`agent`]: the threads and the main loop; [`setup`]: from the settings to what the edges need
//! - the edges: [`link`] (the control plane), [`engine`] (the container CLI), [`host`] (what the machine is),
//!   [`sampler`] (which reads it on threads that may hang), [`store`] (the state directory), [`control`] (the
//!   operator's socket), [`process`], the only place that starts a program, [`wait`], with which they wait for
//!   descriptors, [`trust`], which tells whose a file is, and [`hardening`], what the process does about itself first
//! - what a person uses: [`cli`], [`config`], [`commands`], [`logging`]

pub mod types;

pub mod protocol;

pub mod core;
pub mod hmac;

pub mod agent;
pub mod setup;

pub mod control;
pub mod engine;
pub mod hardening;
pub mod host;
pub mod link;
pub mod process;
pub mod sampler;
pub mod store;
pub mod trust;
pub mod wait;

pub mod cli;
pub mod commands;
pub mod config;
pub mod logging;
