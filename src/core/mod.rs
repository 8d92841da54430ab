//! The pure core.
pub mod facts;
pub mod job;
