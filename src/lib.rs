//! The VectorLay node agent.
pub mod commands;
pub mod core;
pub mod digest;
pub mod host;
pub mod process;
pub mod sampler;
pub mod types;
