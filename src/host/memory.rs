//! The machine's memory, from /proc/meminfo.

use std::path::Path;

use super::files;

/// What the kernel says of its memory, in KiB.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Memory {
    /// `MemTotal`: what the kernel can use, a little less than what is built in.
    pub total_kib: u64,
    /// `MemAvailable`: what a new program could get without swapping.
    pub available_kib: u64,
}

impl Memory {
    /// `MemTotal` in GiB, rounded to the nearest.
    pub fn total_gib(self) -> u32 {
        gib(self.total_kib)
    }

    /// `MemTotal` minus `MemAvailable` in GiB, rounded to the nearest.
    pub fn used_gib(self) -> u32 {
        gib(self.total_kib.saturating_sub(self.available_kib))
    }
}

/// Reads /proc/meminfo. `None` when it cannot be read or lacks one of the two lines.
pub fn read(root: &Path) -> Option<Memory> {
    parse(&files::text(&files::under(root, "/proc/meminfo"))?)
}

/// The lines are `MemTotal:       24683656 kB` (proc_meminfo(5)); `kB` means KiB.
fn parse(text: &str) -> Option<Memory> {
    let kib = |name: &str| {
        let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))?;
        line.trim().strip_suffix("kB")?.trim().parse().ok()
    };
    Some(Memory { total_kib: kib("MemTotal")?, available_kib: kib("MemAvailable")? })
}

fn gib(kib: u64) -> u32 {
    const GIB: u64 = 1024 * 1024;
    u32::try_from(kib.saturating_add(GIB / 2) / GIB).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gibibytes_are_rounded_to_the_nearest() {
        let check = |total: &str, available: &str, expected: Option<(u32, u32)>| {
            let text =
                format!("MemTotalX: 1 kB\nMemTotal:  {total}\nMemFree: 5 kB\nMemAvailable: {available}\n");
            assert_eq!(parse(&text).map(|m| (m.used_gib(), m.total_gib())), expected, "{text}");
        };
        // A host with 512 GiB built in.
        check("527994136 kB", "500000000 kB", Some((27, 504)));
        check("24683656 kB", "23000000 kB", Some((2, 24)));
        check("1572863 kB", "1572863 kB", Some((0, 1)));
        check("1572864 kB", "0 kB", Some((2, 2)));
        check("1048576 kB", "2097152 kB", Some((0, 1)));
        check("18446744073709551615 kB", "0 kB", Some((u32::MAX, u32::MAX)));
        check("", "0 kB", None);
        check("12 kB", "x kB", None);
        check("12", "1 kB", None);
        // Before Linux 3.14 there was no such line.
        assert_eq!(parse("MemTotal: 12 kB\n"), None);
    }
}
