//! The VectorLay node agent.
pub mod core;
pub mod engine;
pub mod process;
pub mod types;
