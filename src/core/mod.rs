//! The pure core.
pub mod facts;
pub mod job;
pub mod wire;
