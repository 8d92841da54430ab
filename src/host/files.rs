//! The one reader of small files: of sysfs, of procfs, and of configuration. A file that is missing or cannot be read is
//! `None`, never an empty value and never a zero.
//!
//! A read is bounded in length but not in time: read a file that may hang on a thread of its own.

use std::ffi::OsString;
use std::fs::{self, File};
use std::io::{self, Read};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::str::FromStr;

/// At most this much of one file is read, in bytes. The longest in use are /proc/cpuinfo, with about 1.4 KB for each
/// CPU, and Kata's configuration, with 40 KB.
const FILE_MAX: u64 = 1024 * 1024;

/// As many links as the kernel follows (path_resolution(7)).
const LINKS_MAX: usize = 40;

/// Where the absolute path `path` is under `root`, so that a folder can stand for the machine in tests.
pub fn under(root: &Path, path: impl AsRef<Path>) -> PathBuf {
    let path = path.as_ref();
    root.join(path.strip_prefix("/").unwrap_or(path))
}

/// The file's first MiB as text, with replacement characters where it is not UTF-8.
///
/// # Errors
/// What the system says of opening or reading it.
pub fn read(path: &Path) -> io::Result<String> {
    bytes(path).map(|bytes| String::from_utf8_lossy(&bytes).into_owned())
}

/// The file's first MiB.
///
/// # Errors
/// As [`read`].
pub fn bytes(path: &Path) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    File::open(path)?.take(FILE_MAX).read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// The file's text; `None` when it cannot be read.
pub fn text(path: &Path) -> Option<String> {
    read(path).ok()
}

/// A value that stands alone in its file, without the white space and NULs around it (the device tree's strings end with
/// a NUL). `None` when the file cannot be read or holds no value.
pub fn value(path: &Path) -> Option<String> {
    let text = text(path)?;
    let value = text.trim_matches(|c: char| c.is_whitespace() || c == '\0');
    Some(value.to_owned()).filter(|value| !value.is_empty())
}

/// A decimal number.
pub fn number<T: FromStr>(path: &Path) -> Option<T> {
    value(path)?.parse().ok()
}

/// A hexadecimal number, written as `vendor` and `class` in sysfs are (`0x10de`).
pub fn hex(path: &Path) -> Option<u32> {
    let text = value(path)?;
    u32::from_str_radix(text.strip_prefix("0x").unwrap_or(&text), 16).ok()
}

/// The last part of a link's target: of `driver` the driver's name, of `iommu_group` the group's number.
pub fn link_name(path: &Path) -> Option<String> {
    fs::read_link(path).ok()?.file_name()?.to_str().map(str::to_owned)
}

/// Where `path` leads when every link on the way is followed, as an absolute path below `root`; `None` when something on
/// the way is missing. Links are followed as if `root` were `/`.
pub fn resolve(root: &Path, path: &Path) -> Option<PathBuf> {
    let parts = |path: &Path| -> Vec<OsString> {
        path.components().rev().map(|part| part.as_os_str().to_owned()).filter(|part| part != "/").collect()
    };
    let mut resolved = PathBuf::from("/");
    let mut left = parts(path);
    let mut links = 0;
    while let Some(part) = left.pop() {
        if part == ".." {
            resolved.pop();
            continue;
        }
        let at = resolved.join(&part);
        let there = under(root, &at);
        if !fs::symlink_metadata(&there).ok()?.is_symlink() {
            resolved = at;
            continue;
        }
        links += 1;
        let target = fs::read_link(&there).ok().filter(|_| links <= LINKS_MAX)?;
        if target.is_absolute() {
            resolved = PathBuf::from("/");
        }
        left.append(&mut parts(&target));
    }
    Some(resolved)
}

/// Whether the file at `path` below `root` is one that can be run. Links are followed below `root`.
pub fn is_program(root: &Path, path: &Path) -> bool {
    let metadata = resolve(root, path).and_then(|path| fs::metadata(under(root, path)).ok());
    metadata.is_some_and(|metadata| metadata.is_file() && metadata.mode() & 0o111 != 0)
}

/// The names in a folder, sorted; empty when it cannot be listed.
pub fn names(path: &Path) -> Vec<String> {
    let entries = fs::read_dir(path).into_iter().flatten().flatten();
    let mut names: Vec<String> = entries.filter_map(|entry| entry.file_name().into_string().ok()).collect();
    names.sort_unstable();
    names
}

/// Folders that stand for a machine.
#[cfg(test)]
pub mod fixture {
    use super::*;
    use std::sync::atomic::{AtomicU32, Ordering};

    /// A folder that is removed when it is dropped.
    pub struct Fixture(PathBuf);

    impl Fixture {
        /// A folder with these files: path and content. A path that ends in `/` is an empty folder, content that
        /// begins with `-> ` a link, with `#!` an executable.
        pub fn new(files: &[(&str, &str)]) -> Self {
            static NEXT: AtomicU32 = AtomicU32::new(0);
            let name =
                format!("vectorlay-host-{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
            let fixture = Self(std::env::temp_dir().join(name));
            std::fs::create_dir_all(&fixture.0).unwrap();
            files.iter().for_each(|(path, content)| fixture.add(path, content));
            fixture
        }

        /// Adds one more.
        pub fn add(&self, path: &str, content: &str) {
            use std::os::unix::fs::PermissionsExt;
            let full = under(&self.0, path);
            if path.ends_with('/') {
                return std::fs::create_dir_all(full).unwrap();
            }
            std::fs::create_dir_all(full.parent().unwrap()).unwrap();
            if let Some(target) = content.strip_prefix("-> ") {
                return std::os::unix::fs::symlink(target, full).unwrap();
            }
            std::fs::write(&full, content).unwrap();
            if content.starts_with("#!") {
                std::fs::set_permissions(&full, PermissionsExt::from_mode(0o755)).unwrap();
            }
        }

        /// Adds a program with this content.
        pub fn program(&self, path: &str, content: &[u8]) {
            use std::os::unix::fs::PermissionsExt;
            let full = under(&self.0, path);
            std::fs::create_dir_all(full.parent().unwrap()).unwrap();
            std::fs::write(&full, content).unwrap();
            std::fs::set_permissions(&full, PermissionsExt::from_mode(0o755)).unwrap();
        }

        /// Removes a file or a folder.
        pub fn remove(&self, path: &str) {
            let full = under(&self.0, path);
            if full.is_dir() && !full.is_symlink() {
                return std::fs::remove_dir_all(full).unwrap();
            }
            std::fs::remove_file(full).unwrap();
        }

        /// Where it is.
        pub fn path(&self) -> &Path {
            &self.0
        }
    }

    impl Drop for Fixture {
        fn drop(&mut self) {
            let _ = std::fs::remove_dir_all(&self.0);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::fixture::Fixture;
    use super::*;

    #[test]
    fn files_are_read_under_root() {
        let host = Fixture::new(&[
            ("/a/b", "x \0\n"),
            ("/a/empty", "\n"),
            ("/c/", ""),
            ("/n", "-1\n"),
            ("/h", "0x10de\n"),
            ("/l", "-> ../drivers/vfio-pci"),
        ]);
        let at = |path: &str| under(host.path(), path);
        assert_eq!(read(&at("/a/b")).unwrap(), "x \0\n");
        assert_eq!(value(&at("/a/b")).as_deref(), Some("x"));
        assert_eq!(value(&at("/a/empty")), None);
        assert_eq!(value(&at("/a/none")), None);
        assert_eq!(names(&at("/a")), ["b", "empty"]);
        assert!(names(&at("/none")).is_empty());
        assert!(read(&at("/c")).is_err());
        assert_eq!((number(&at("/n")), number::<u32>(&at("/a/b"))), (Some(-1), None));
        assert_eq!((hex(&at("/h")), hex(&at("/n"))), (Some(0x10de), None));
        assert_eq!(link_name(&at("/l")).as_deref(), Some("vfio-pci"));
        assert_eq!(under(Path::new("/"), "/proc/x"), Path::new("/proc/x"));
    }
    #[test]
    fn links_are_followed_below_root() {
        let host = Fixture::new(&[
            ("/opt/kata/bin/shim", "#!/bin/sh\n"),
            ("/opt/plain", "text"),
            ("/usr/local/bin/shim", "-> /opt/kata/bin/shim"),
            ("/usr/local/bin/again", "-> shim"),
            ("/usr/local/bin/up", "-> ../../../opt/./kata/bin/shim"),
            ("/lib", "-> /usr/local"),
            ("/loop", "-> loop"),
            ("/gone", "-> /no/such"),
        ]);
        let check = |path: &str, expected: Option<&str>| {
            let found = resolve(host.path(), Path::new(path));
            assert_eq!(found.as_deref(), expected.map(Path::new), "{path}");
        };
        let shim = Some("/opt/kata/bin/shim");
        for path in ["/opt/kata/bin/shim", "/usr/local/bin/shim", "/usr/local/bin/up", "/lib/bin/again"] {
            check(path, shim);
            assert!(is_program(host.path(), Path::new(path)));
        }
        check("/opt/../../opt", Some("/opt"));
        check("/loop", None);
        check("/gone", None);
        check("/no/such", None);
        for path in ["/opt", "/opt/plain", "/loop", "/gone"] {
            assert!(!is_program(host.path(), Path::new(path)), "{path}");
        }
    }
}
