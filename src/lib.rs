//! The VectorLay node agent.
pub mod core;
pub mod process;
pub mod types;
