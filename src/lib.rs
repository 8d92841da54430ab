//! The VectorLay node agent.
pub mod core;
pub mod host;
pub mod process;
pub mod types;
