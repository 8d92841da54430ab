//! The files of the state directory: what the core has written to them, and what it hears of the writing.

use std::fmt;

use super::identity::Identity;

/// A file of the state directory.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum RecordFile {
    /// `node.json`.
    Node,
    /// `state.json`.
    State,
}

impl RecordFile {
    /// Its name in the directory.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Node => "node.json",
            Self::State => "state.json",
        }
    }
}

impl fmt::Display for RecordFile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// A file's whole new content.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Record {
    /// Of `node.json`.
    Node(Identity),
    /// Of `state.json`: one JSON value, at most [`STATE_MAX`] bytes.
    State(String),
}

/// Version of `state.json`. A file with a higher one is kept aside untouched.
pub const STATE_VERSION: u64 = 1;
/// Maximum size of `state.json` in bytes.
pub const STATE_MAX: usize = 4 * 1024 * 1024;

impl Record {
    /// The file that it is for.
    pub fn file(&self) -> RecordFile {
        match self {
            Self::Node(_) => RecordFile::Node,
            Self::State(_) => RecordFile::State,
        }
    }
}

/// What became of saving. The number is the one that the record was given; it stands for all earlier ones of the
/// same file too, which were not saved one by one if they came too fast.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum StoreEvent {
    /// It is on the disk.
    Saved(RecordFile, u64),
    /// It is not known to be on the disk; what was there before still is, whole. Says why and what to do.
    SaveFailed(RecordFile, u64, String),
}

impl fmt::Display for StoreEvent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Saved(file, seq) => write!(f, "saved {file} {seq}"),
            Self::SaveFailed(file, seq, _) => write!(f, "save failed {file} {seq}"),
        }
    }
}
