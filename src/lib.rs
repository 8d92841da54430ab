//! The VectorLay node agent.
pub mod core;
pub mod link;
pub mod types;
