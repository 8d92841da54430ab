//! The state file: nodes, their tokens, and jobs, so that a restart loses none of them.

use std::fmt;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use crate::fleet::Fleet;

/// Loads the file into an empty fleet. A file that is not there is a first start.
///
/// # Errors
/// [`StateError`] when it cannot be read or is not what [`save`] wrote.
pub fn load(file: &Path, fleet: &mut Fleet) -> Result<(), StateError> {
    let bytes = match fs::read(file) {
        Ok(bytes) => bytes,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(e) => return Err(StateError::Read(file.to_owned(), e)),
    };
    let loaded = serde_json::from_slice(&bytes).is_ok_and(|saved| fleet.load(&saved));
    if loaded { Ok(()) } else { Err(StateError::Damaged(file.to_owned())) }
}

/// Replaces the file as a whole: after a crash there is the old one or the new one. It holds tokens, so it is its
/// owner's alone.
///
/// # Errors
/// [`StateError`] when it cannot be written.
pub fn save(file: &Path, fleet: &Fleet) -> Result<(), StateError> {
    let mut name = file.as_os_str().to_owned();
    name.push(".new");
    let new = PathBuf::from(name);
    let folder = file.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let write = || {
        let mut out = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&new)?;
        out.write_all(fleet.save().to_string().as_bytes())?;
        out.sync_all()?;
        fs::rename(&new, file)?;
        File::open(folder)?.sync_all()
    };
    write().map_err(|e| StateError::Write(file.to_owned(), e))
}

/// What is wrong with the state file.
#[derive(Debug)]
pub enum StateError {
    /// It is there and cannot be read.
    Read(PathBuf, io::Error),
    /// It holds something else.
    Damaged(PathBuf),
    /// It cannot be written.
    Write(PathBuf, io::Error),
}

impl fmt::Display for StateError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Read(file, e) => {
                write!(f, "cannot read the state file {}: {e}; check its path and owner", file.display())
            }
            Self::Damaged(file) => {
                write!(f, "the state file {} is damaged; move it away to start without it", file.display())
            }
            Self::Write(file, e) => {
                write!(f, "cannot save to {}: {e}; check its folder and disk", file.display())
            }
        }
    }
}
