//! The pure core.
pub mod facts;
pub mod job;
pub mod record;
pub mod wire;
