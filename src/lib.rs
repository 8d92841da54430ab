//! The VectorLay node agent.
pub mod commands;
pub mod core;
pub mod host;
pub mod process;
pub mod types;
