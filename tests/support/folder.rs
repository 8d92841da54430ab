//! Folders of a test's own.
#![allow(dead_code, reason = "each test target uses a part of it")]
#![allow(clippy::print_stderr, clippy::unwrap_used, reason = "says what is kept for a look")]

use std::path::{Path, PathBuf};

/// A folder of the test's own. It is removed when this is dropped, unless the test fails: then it is what there is to
/// look at.
#[derive(Debug)]
pub struct Folder(PathBuf);

impl Folder {
    /// Makes an empty one. `name` tells the tests of one program apart.
    pub fn new(name: &str) -> Self {
        // Short: sockets lie in it, and the kernel takes no path of more than 107 bytes for one (unix(7)).
        let path = std::env::temp_dir().join(format!("vlt-{}-{name}", std::process::id()));
        let _ = std::fs::remove_dir_all(&path);
        std::fs::create_dir_all(&path).unwrap();
        Self(path)
    }

    /// Its path.
    pub fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("kept: {}", self.0.display());
        } else {
            let _ = std::fs::remove_dir_all(&self.0);
        }
    }
}
