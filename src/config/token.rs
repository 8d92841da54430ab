//! Tokens that stand in files of their own.

use std::fs::{self, File};
use std::io::{self, Read};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use super::value::{Kind, VALUE_MAX, Value};

/// What came of looking for a token in a file.
#[derive(Debug)]
pub(super) enum Found {
    /// The token, and whether everyone on this machine can read the file.
    Token(Value, WorldReadable),
    /// There is no such file.
    Absent,
    /// It could not be read.
    Unreadable(io::Error),
    /// What it holds is no token.
    NotAToken,
}

/// Whether a file can be read by everyone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum WorldReadable {
    /// It can.
    Yes,
    /// It cannot.
    No,
}

/// Whether everyone can read `path`; a file that cannot be looked at counts as `No`.
pub(super) fn world_readable(path: &Path) -> WorldReadable {
    match fs::metadata(path) {
        Ok(metadata) if metadata.permissions().mode() & 0o004 != 0 => WorldReadable::Yes,
        Ok(_) | Err(_) => WorldReadable::No,
    }
}

/// Reads the token in `path`; line ends after it are left out.
pub(super) fn read(path: &Path) -> Found {
    match read_regular(path, VALUE_MAX as u64 + 2) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Found::Absent,
        Err(error) => Found::Unreadable(error),
        Ok(bytes) => {
            let token = std::str::from_utf8(&bytes)
                .ok()
                .and_then(|text| Value::read(Kind::Secret, text.trim_end_matches(['\r', '\n'])));
            match token {
                Some(token) => Found::Token(token, world_readable(path)),
                None => Found::NotAToken,
            }
        }
    }
}

/// The first `most` bytes of the regular file `path`; a pipe or device, which could keep us waiting, is refused.
pub(super) fn read_regular(path: &Path, most: u64) -> io::Result<Vec<u8>> {
    if !fs::metadata(path)?.is_file() {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "it is not a regular file"));
    }
    let mut bytes = Vec::new();
    File::open(path)?.take(most).read_to_end(&mut bytes)?;
    Ok(bytes)
}
