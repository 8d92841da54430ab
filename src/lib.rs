//! The VectorLay node agent.
pub mod core;
pub mod protocol;
pub mod types;
