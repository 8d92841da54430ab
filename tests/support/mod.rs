//! What several test files share.
pub mod control_plane;
