//! The pure core.
pub mod facts;
pub mod job;
pub mod operator;
pub mod record;
pub mod wire;
