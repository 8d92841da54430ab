//! Whether a place belongs to root (or to the agent's own user) alone, so that nobody else can put something of theirs
//! where the agent reads, writes or starts a program.
//!
//! Looked at are the thing itself and each folder on the way to it, as it is written and as it is where links lead
//! elsewhere. What passes can be used by its path: only the owners that were permitted can change what it leads to.

use std::fs::{DirBuilder, Metadata};
use std::io::{self, ErrorKind};
use std::os::fd::OwnedFd;
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::Path;

use rustix::fs::{Mode, OFlags};

/// Mode bits (inode(7)).
const GROUP_WRITES: u32 = 0o020;
const OTHERS_WRITE: u32 = 0o002;
/// In such a folder only the owner of a file can rename or remove it.
const STICKY: u32 = 0o1000;

/// Whose place it has to be.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Writers {
    /// Root's or ours alone.
    Owner,
    /// A group may write there as well: /var/log is the group `syslog`'s on Ubuntu.
    OwnerAndGroup,
}

/// Checks a program that is about to be started. One that does not exist passes: starting it says so.
///
/// # Errors
/// For a person: what others can change, and what to do.
pub fn program(path: &Path) -> Result<(), String> {
    way(path, Writers::Owner, false)?;
    match path.canonicalize() {
        Ok(real) if real != path => way(&real, Writers::Owner, false),
        Ok(_) | Err(_) => Ok(()),
    }
}

/// Opens a folder in which the agent keeps files. It must be no link.
///
/// # Errors
/// [`ErrorKind::PermissionDenied`] for a folder that others can change, with what to do; else the kernel's.
pub fn folder(path: &Path) -> io::Result<OwnedFd> {
    let parent = path.parent().unwrap_or(path);
    let refused = |why: String| io::Error::new(ErrorKind::PermissionDenied, why);
    way(parent, Writers::OwnerAndGroup, true).map_err(refused)?;
    if let Ok(real) = parent.canonicalize() {
        way(&real, Writers::OwnerAndGroup, true).map_err(refused)?;
    }
    if path.is_symlink() {
        return Err(refused(format!("{} is a link; name the folder that it leads to", path.display())));
    }
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let handle = rustix::fs::open(path, flags, Mode::empty())?;
    let file = std::fs::File::from(handle);
    judge(path, &file.metadata()?, Writers::Owner, false).map_err(refused)?;
    Ok(file.into())
}

/// The same; makes the folder (mode 0700) if it is missing.
///
/// # Errors
/// As [`folder`].
pub fn make_folder(path: &Path) -> io::Result<OwnedFd> {
    match folder(path) {
        Err(error) if error.kind() == ErrorKind::NotFound => {
            // What is there of the way has passed.
            DirBuilder::new().recursive(true).mode(0o700).create(path)?;
            folder(path)
        }
        result => result,
    }
}

/// Whether a file's owner is root or this process's own user.
pub fn is_ours(uid: u32) -> bool {
    uid == 0 || uid == rustix::process::geteuid().as_raw()
}

/// Checks `path` and every folder above it; what does not exist passes. `on_the_way`: `path` is such a folder itself.
fn way(path: &Path, writers: Writers, on_the_way: bool) -> Result<(), String> {
    for (depth, place) in path.ancestors().enumerate() {
        match place.symlink_metadata() {
            Ok(found) => judge(place, &found, writers, on_the_way || depth > 0)?,
            Err(error) if error.kind() == ErrorKind::NotFound => {}
            Err(error) => return Err(format!("cannot look at {}: {error}", place.display())),
        }
    }
    Ok(())
}

/// `on_the_way`: something of ours lies in it, which a sticky bit protects.
fn judge(place: &Path, found: &Metadata, writers: Writers, on_the_way: bool) -> Result<(), String> {
    let shown = place.display();
    if !is_ours(found.uid()) {
        let (owner, group) = (found.uid(), if found.is_dir() { "folder" } else { "file" });
        return Err(format!(
            "the {group} {shown} belongs to user {owner}; make it root's (chown root {shown})"
        ));
    }
    let mode = found.mode();
    // A link has no mode of its own.
    if found.is_symlink() || on_the_way && mode & STICKY != 0 {
        return Ok(());
    }
    let by_group = writers == Writers::Owner && mode & GROUP_WRITES != 0 && found.gid() != 0;
    if mode & OTHERS_WRITE != 0 || by_group {
        return Err(format!("others than root can write {shown}; run `chmod go-w {shown}`"));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::{self, Permissions};
    use std::os::unix::fs::{PermissionsExt, chown, symlink};
    use std::path::PathBuf;

    struct Place(PathBuf);

    impl Place {
        fn new(name: &str) -> Self {
            let path = std::env::temp_dir().join(format!("vectorlay-trust-{name}-{}", std::process::id()));
            let _ = fs::remove_dir_all(&path);
            fs::create_dir(&path).unwrap();
            Self(path)
        }

        fn folder(&self, name: &str, mode: u32) -> PathBuf {
            let path = self.0.join(name);
            fs::create_dir(&path).unwrap();
            fs::set_permissions(&path, Permissions::from_mode(mode)).unwrap();
            path
        }
    }

    impl Drop for Place {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.0);
        }
    }

    fn is_root() -> bool {
        rustix::process::geteuid().is_root()
    }

    #[test]
    fn a_program_that_others_could_replace_is_none() {
        let place = Place::new("program");
        let check = |path: &Path, expected: Option<&str>| match (program(path), expected) {
            (Ok(()), None) => {}
            (Err(why), Some(says)) => assert!(why.contains(says), "{why}"),
            (result, _) => panic!("{}: {result:?}", path.display()),
        };
        let good = place.folder("good", 0o755).join("cli");
        fs::write(&good, "").unwrap();
        check(&good, None);
        check(Path::new("/bin/sh"), None);
        check(Path::new("/no/such/program"), None);
        let open = place.folder("open", 0o777).join("cli");
        fs::write(&open, "").unwrap();
        check(&open, Some("open; run `chmod go-w"));
        // In a sticky folder others can make files, but not replace ours.
        let sticky = place.folder("sticky", 0o1777).join("cli");
        fs::write(&sticky, "").unwrap();
        check(&sticky, None);
        fs::set_permissions(&sticky, Permissions::from_mode(0o757)).unwrap();
        check(&sticky, Some("sticky/cli; run"));
        // Where a link leads counts as well as where it lies.
        let link = place.0.join("link");
        symlink(&open, &link).unwrap();
        check(&link, Some("open; run"));
        let inside = place.0.join("open/inside");
        symlink(&good, &inside).unwrap();
        check(&inside, Some("open; run"));
        if is_root() {
            let group = place.folder("group", 0o775);
            let cli = group.join("cli");
            fs::write(&cli, "").unwrap();
            check(&cli, None);
            chown(&group, Some(0), Some(50)).unwrap();
            check(&cli, Some("group; run"));
            chown(&good, Some(65_534), None).unwrap();
            check(&good, Some("belongs to user 65534"));
        }
    }

    #[test]
    fn a_folder_is_no_link_and_nobody_elses() {
        let place = Place::new("folder");
        let refused = |path: &Path, says: &str| {
            let error = make_folder(path).unwrap_err();
            assert!(
                error.kind() == ErrorKind::PermissionDenied && error.to_string().contains(says),
                "{error}"
            );
        };
        let made = place.0.join("a/b");
        assert!(make_folder(&made).is_ok());
        assert_eq!(fs::metadata(&made).unwrap().permissions().mode() & 0o777, 0o700);
        let link = place.0.join("link");
        symlink(&made, &link).unwrap();
        refused(&link, "is a link");
        let open = place.folder("open", 0o777);
        refused(&open, "open; run `chmod");
        refused(&open.join("below"), "open; run `chmod");
        assert!(!open.join("below").exists(), "nothing is made there");
        // Nobody else could have made one there in its place.
        assert!(make_folder(&place.folder("sticky", 0o1777).join("ours")).is_ok());
        if is_root() {
            let foreign = place.folder("foreign", 0o700);
            chown(&foreign, Some(65_534), None).unwrap();
            refused(&foreign, "belongs to user 65534");
            refused(&foreign.join("below"), "belongs to user 65534");
            // Ubuntu's /var/log.
            let group = place.folder("group", 0o775);
            chown(&group, Some(0), Some(50)).unwrap();
            refused(&group, "group; run");
            assert!(make_folder(&group.join("below")).is_ok());
        }
    }
}
