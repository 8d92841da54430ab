//! Reading the token's file, and small files in general.

use std::fs::{self, File};
use std::io::{self, Read};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use super::value::{Kind, VALUE_MAX, Value};

#[derive(Debug)]
pub(super) enum Found {
    Token(Value),
    Absent,
    Unreadable(io::Error),
    /// The content is not a token.
    NotAToken,
}

/// Whether everyone on this host can read `path`; `false` if its mode is unknown.
pub(super) fn is_world_readable(path: &Path) -> bool {
    fs::metadata(path).is_ok_and(|metadata| metadata.permissions().mode() & 0o004 != 0)
}

/// Reads the token in `path`, without the line end.
pub(super) fn read(path: &Path) -> Found {
    match read_regular(path, VALUE_MAX as u64 + 2) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Found::Absent,
        Err(error) => Found::Unreadable(error),
        Ok(bytes) => {
            let token = std::str::from_utf8(&bytes)
                .ok()
                .and_then(|text| Value::read(Kind::Secret, text.trim_end_matches(['\r', '\n'])));
            match token {
                Some(token) => Found::Token(token),
                None => Found::NotAToken,
            }
        }
    }
}

/// The first `most` bytes of the regular file `path`. A pipe or device, which could block, is an error.
pub(super) fn read_regular(path: &Path, most: u64) -> io::Result<Vec<u8>> {
    if !fs::metadata(path)?.is_file() {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "not a regular file"));
    }
    let mut bytes = Vec::new();
    File::open(path)?.take(most).read_to_end(&mut bytes)?;
    Ok(bytes)
}
