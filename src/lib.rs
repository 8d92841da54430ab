//! The VectorLay node agent.
pub mod cli;
pub mod commands;
pub mod config;
pub mod control;
pub mod core;
pub mod digest;
pub mod engine;
pub mod host;
pub mod link;
pub mod process;
pub mod protocol;
pub mod sampler;
pub mod store;
pub mod types;
