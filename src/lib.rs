//! The VectorLay node agent.
pub mod config;
pub mod core;
pub mod store;
pub mod types;
