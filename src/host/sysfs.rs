//! Reads single attributes of sysfs and procfs: small files and links, each bounded. An attribute that is missing or
//! cannot be read is `None`: it is never an empty value and never a zero.

use std::fs::{self, File};
use std::io::Read;
use std::path::Path;

/// The longest attribute, in bytes: sysfs has no longer ones than a page.
const ATTRIBUTE_MAX: u64 = 4096;

/// The text of a small file, without white space around it.
pub fn text(path: &Path) -> Option<String> {
    long_text(path, ATTRIBUTE_MAX).map(|text| text.trim().to_owned())
}

/// The first `max` bytes of a file as text.
pub fn long_text(path: &Path, max: u64) -> Option<String> {
    let mut bytes = Vec::new();
    File::open(path).ok()?.take(max).read_to_end(&mut bytes).ok()?;
    Some(String::from_utf8_lossy(&bytes).into_owned())
}

/// A decimal number.
pub fn number<T: std::str::FromStr>(path: &Path) -> Option<T> {
    text(path)?.parse().ok()
}

/// A hexadecimal number, as `vendor` and `class` have it (`0x10de`).
pub fn hex(path: &Path) -> Option<u32> {
    let text = text(path)?;
    u32::from_str_radix(text.strip_prefix("0x").unwrap_or(&text), 16).ok()
}

/// The last part of what a link points to: the driver's name of `driver`, the group's number of `iommu_group`.
pub fn link_name(path: &Path) -> Option<String> {
    fs::read_link(path).ok()?.file_name()?.to_str().map(str::to_owned)
}

/// The names in a folder, sorted; empty when it cannot be listed.
pub fn names(path: &Path) -> Vec<String> {
    let entries = fs::read_dir(path).into_iter().flatten().flatten();
    let mut names: Vec<_> = entries.filter_map(|e| e.file_name().into_string().ok()).collect();
    names.sort_unstable();
    names
}
