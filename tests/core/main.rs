#![allow(clippy::unwrap_used, reason = "what fails here fails the test")]
#![allow(missing_docs)]
//! The core's promises one by one, as lists of events and what must come of them. `core_model` plays random ones.

mod earlier_calls;
mod ending;
#[allow(dead_code, reason = "core_model uses all of it")]
#[path = "../core_model/engine.rs"]
mod engine;
mod engine_lost;
mod exits;
mod guests;
mod images;
mod liveness;
mod microvms;
mod node_states;
mod redelivery;
mod registration;
mod restart;
mod rig;
mod room;
mod starting;
mod table;
