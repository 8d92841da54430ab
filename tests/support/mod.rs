//! What the test targets share.
pub mod agent;
pub mod control_plane;
pub mod engine;
pub mod folder;
pub mod host;
pub mod images;
pub mod processes;
pub mod protocol_page;
pub mod registry;
pub mod skip;
pub mod wait;
