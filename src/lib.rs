//! The VectorLay node agent.
pub mod core;
pub mod types;
