//! What several test files share.
pub mod agent;
pub mod control_plane;
pub mod engine;
