//! Kata Containers as it is installed: which configuration is in force, what that needs of the host, and whether it takes
//! GPUs. Nothing is run and nothing is changed; behaviour is that of kata-containers 3.2 to 4.1.

pub mod config;
pub mod gpus;
pub mod requirements;
