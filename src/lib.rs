//! The VectorLay node agent.
pub mod types;
