//! The kernel's tables of sockets: `/proc/net/tcp` and its like (proc(5)).

use std::fs::File;
use std::io::{self, BufRead, BufReader, Read as _};
use std::path::Path;

/// At most this much of one table is read, in bytes: 100,000 sockets. Those that listen are the first of TCP's.
const TABLE_MAX: u64 = 16 * 1024 * 1024;

/// The first thing that `wanted` makes of a table's lines. A table that is not there has none: a kernel without IPv6 has
/// no table for it.
///
/// # Errors
/// When the table is there and cannot be read.
pub(super) fn find<T>(table: &Path, mut wanted: impl FnMut(&str) -> Option<T>) -> io::Result<Option<T>> {
    let file = match File::open(table) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error),
    };
    let mut lines = BufReader::new(file.take(TABLE_MAX));
    let mut line = Vec::new();
    while lines.read_until(b'\n', &mut line)? > 0 {
        if let Some(found) = wanted(&String::from_utf8_lossy(&line)) {
            return Ok(Some(found));
        }
        line.clear();
    }
    Ok(None)
}
