//! What a person runs.
pub mod vfio;
