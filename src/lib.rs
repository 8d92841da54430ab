//! The VectorLay node agent.
pub mod cli;
pub mod commands;
pub mod config;
pub mod control;
pub mod core;
pub mod host;
pub mod process;
pub mod store;
pub mod types;
