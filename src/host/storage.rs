//! A file system's fill, counted as GNU `df` counts.
//!
//! statvfs(2) on a dead network file system blocks for ever: call it on a thread that may be left behind.

use std::path::Path;

use crate::core::inventory::Storage;

/// What statvfs(2) says, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Fill {
    size: u64,
    free: u64,
    /// Free for a user without privileges.
    available: u64,
}

/// The fill of the file system that `path` is on, and the bytes that a user without privileges may still write there.
/// `None` when the system does not tell.
pub fn read(path: &Path) -> Option<(Storage, u64)> {
    let stat = rustix::fs::statvfs(path).ok()?;
    let fill = fill(stat.f_frsize, stat.f_blocks, stat.f_bfree, stat.f_bavail);
    Some((storage(path, fill), fill.available))
}

fn fill(unit: u64, blocks: u64, free: u64, available: u64) -> Fill {
    // Some file systems report less than nothing as available once the blocks kept for root are in use: the top bit is
    // set then. To a user without privileges that is nothing.
    let available = if available >> 63 == 1 { 0 } else { available };
    let bytes = |count: u64| count.saturating_mul(unit);
    Fill { size: bytes(blocks), free: bytes(free.min(blocks)), available: bytes(available) }
}

fn storage(path: &Path, fill: Fill) -> Storage {
    let used = fill.size - fill.free;
    let reachable = u128::from(used) + u128::from(fill.available);
    let percent = if reachable == 0 { 0 } else { (u128::from(used) * 100).div_ceil(reachable) };
    Storage {
        path: path.to_string_lossy().into_owned(),
        total_gb: gib(fill.size),
        used_gb: gib(used),
        usage_percent: u8::try_from(percent).expect("a part is at most 100 percent of the whole"),
    }
}

fn gib(bytes: u64) -> u64 {
    const GIB: u64 = 1024 * 1024 * 1024;
    bytes.saturating_add(GIB / 2) / GIB
}

#[cfg(test)]
mod tests {
    use super::*;

    const GIB: u64 = 1 << 30;

    #[test]
    fn percent_is_that_of_df() {
        let check = |blocks, free, available, total_gb, used_gb, usage_percent| {
            let storage = storage(Path::new("/data"), fill(4096, blocks, free, available));
            let expected = Storage { path: "/data".into(), total_gb, used_gb, usage_percent };
            assert_eq!(storage, expected, "{blocks} {free} {available}");
        };
        let gib = GIB / 4096;
        check(500 * gib, 380 * gib, 380 * gib, 500, 120, 24);
        // One block over a whole percent counts as the next.
        check(100, 99, 99, 0, 0, 1);
        check(1000, 989, 989, 0, 0, 2);
        // Five percent kept for root: full for everybody else.
        check(100 * gib, 5 * gib, 0, 100, 95, 100);
        check(100 * gib, 4 * gib, (-(gib as i64)) as u64, 100, 96, 100);
        // Reserved blocks shrink what the percentage is of.
        check(100 * gib, 55 * gib, 45 * gib, 100, 45, 50);
        // Nonsense and file systems without blocks.
        check(0, 0, 0, 0, 0, 0);
        check(10, 20, 20, 0, 0, 0);
        check(u64::MAX, 0, u64::MAX >> 1, u64::MAX / GIB, u64::MAX / GIB, 50);
    }

    #[test]
    fn real_file_systems_read_as_df_prints_them() {
        let args = ["--output=size,used,avail,pcent", "-B1"];
        let df = |path: &str| {
            let output = std::process::Command::new("df").args(args).arg(path).output().unwrap();
            String::from_utf8(output.stdout).unwrap()
        };
        let mut compared = 0;
        for path in ["/", "/dev", "/dev/shm", "/tmp", "/run"] {
            if !Path::new(path).exists() {
                continue;
            }
            // Others write meanwhile: one match is enough, and a difference counts only if nothing was seen to change.
            let mut differs = None;
            for _ in 0..20 {
                let printed = df(path);
                let (storage, free_bytes) = read(Path::new(path)).unwrap();
                let fields: Vec<&str> = printed.lines().nth(1).unwrap().split_whitespace().collect();
                let [size, used, available] = [0, 1, 2].map(|at: usize| fields[at].parse::<u64>().unwrap());
                let percent: u8 = fields[3].trim_end_matches('%').parse().unwrap_or(0);
                let ours = (storage.total_gb, storage.used_gb, free_bytes, storage.usage_percent);
                if ours == (gib(size), gib(used), available, percent) {
                    compared += 1;
                    differs = None;
                    break;
                }
                if df(path) == printed {
                    differs = Some((ours, printed));
                }
            }
            assert_eq!(differs, None, "{path}");
        }
        assert!(compared > 0, "every file system changed all the time");
    }
}
