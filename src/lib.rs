//! The VectorLay node agent.
pub mod cli;
pub mod config;
pub mod control;
pub mod core;
pub mod store;
pub mod types;
