//! Small files of the host, read under `root`, so that tests can stand in a folder for the machine.
//!
//! A read is bounded in length but not in time: whoever reads what may hang does so on a thread of its own.

use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use super::sysfs;

/// Read of one file at most, in bytes. The longest in use is /proc/cpuinfo: about 1.4 KB for each CPU.
pub(super) const FILE_MAX: u64 = 1024 * 1024;

/// Where `path`, an absolute one, is under `root`.
pub fn under(root: &Path, path: &str) -> PathBuf {
    root.join(path.trim_start_matches('/'))
}

/// The file's text, with replacement characters where it is not UTF-8; what is beyond 1 MiB is left out.
///
/// # Errors
/// What the system says of opening or reading it.
pub fn text(root: &Path, path: &str) -> io::Result<String> {
    bytes(&under(root, path)).map(|bytes| String::from_utf8_lossy(&bytes).into_owned())
}

/// A value that stands alone in its file, without white space and NULs around it (the device tree's strings end with
/// a NUL). `None` when the file cannot be read or is empty.
pub fn value(root: &Path, path: &str) -> Option<String> {
    let text = text(root, path).ok()?;
    let value = text.trim_matches(|c: char| c.is_whitespace() || c == '\0');
    Some(value.to_owned()).filter(|value| !value.is_empty())
}

/// The names in a folder, sorted; none when it cannot be read.
pub fn names(root: &Path, folder: &str) -> Vec<String> {
    sysfs::names(&under(root, folder))
}

/// The file's first MiB.
pub(super) fn bytes(path: &Path) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    File::open(path)?.take(FILE_MAX).read_to_end(&mut bytes)?;
    Ok(bytes)
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
        let host = Fixture::new(&[("/a/b", "x \0\n"), ("/a/empty", "\n"), ("/c/", "")]);
        assert_eq!(text(host.path(), "/a/b").unwrap(), "x \0\n");
        assert_eq!(value(host.path(), "/a/b").as_deref(), Some("x"));
        assert_eq!(value(host.path(), "/a/empty"), None);
        assert_eq!(value(host.path(), "/a/none"), None);
        assert_eq!(names(host.path(), "/a"), ["b", "empty"]);
        assert!(names(host.path(), "/none").is_empty());
        assert!(text(host.path(), "/c").is_err());
        assert_eq!(under(Path::new("/"), "/proc/x"), Path::new("/proc/x"));
    }
}
