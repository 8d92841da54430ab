//! In whose hands a program is: who besides root (and ourselves) could change it, or put another in its place.

use std::ffi::OsString;
use std::fmt;
use std::fs::{Metadata, symlink_metadata};
use std::os::unix::fs::MetadataExt;
use std::path::{Component, Path, PathBuf};

/// As many links as the kernel follows (path_resolution(7)).
const LINKS_MAX: usize = 40;
/// Mode bits: the group may write, everyone may write, and only owners may rename or remove what is in the folder.
const GROUP: u32 = 0o020;
const EVERYONE: u32 = 0o002;
const STICKY: u32 = 0o1000;

/// Who runs programs here. What is in our own hands is as good as in root's; root's rights are no reason to trust the
/// other members of a group that root happens to be in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Own {
    /// The user.
    pub user: u32,
    /// The user's group.
    pub group: u32,
}

impl Own {
    /// This process's.
    pub fn now() -> Self {
        Self { user: rustix::process::geteuid().as_raw(), group: rustix::process::getegid().as_raw() }
    }
}

/// A place on the way to a program that is in other hands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Foreign {
    /// The file, folder or link.
    pub at: PathBuf,
    whose: Whose,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Whose {
    User(u32),
    Group(u32),
    Everyone,
    Unknown,
}

/// `/tmp/x belongs to user 1000`.
impl fmt::Display for Foreign {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ", self.at.display())?;
        match self.whose {
            Whose::User(user) => write!(f, "belongs to user {user}"),
            Whose::Group(group) => write!(f, "can be written by group {group}"),
            Whose::Everyone => f.write_str("can be written by everyone"),
            Whose::Unknown => f.write_str("cannot be looked at"),
        }
    }
}

/// The first place on the way to `program` (an absolute path) that others than root and `own` could change: each
/// folder, each link and what it leads to, and the file itself. Where there is none, nobody can change any of it after
/// this look either, so that what was looked at is what is started.
pub fn foreign(program: &Path, own: Own) -> Option<Foreign> {
    let mut way = PathBuf::from("/");
    let mut left = parts(program);
    let mut links = 0;
    if let Some(whose) = symlink_metadata(&way).map_or(Some(Whose::Unknown), |root| hands(&root, own)) {
        return Some(Foreign { at: way, whose });
    }
    while let Some(part) = left.pop() {
        if part == ".." {
            way.pop();
            continue;
        }
        let at = way.join(part);
        let Ok(metadata) = symlink_metadata(&at) else { return Some(Foreign { at, whose: Whose::Unknown }) };
        if let Some(whose) = hands(&metadata, own) {
            return Some(Foreign { at, whose });
        }
        if !metadata.is_symlink() {
            way = at;
            continue;
        }
        links += 1;
        match std::fs::read_link(&at) {
            Ok(target) if links <= LINKS_MAX => {
                if target.is_absolute() {
                    way = PathBuf::from("/");
                }
                left.append(&mut parts(&target));
            }
            Ok(_) | Err(_) => return Some(Foreign { at, whose: Whose::Unknown }),
        }
    }
    None
}

/// A path's parts, the last one first.
fn parts(path: &Path) -> Vec<OsString> {
    let named = |part: &Component<'_>| matches!(part, Component::Normal(_) | Component::ParentDir);
    path.components().rev().filter(named).map(|part| part.as_os_str().to_owned()).collect()
}

fn hands(metadata: &Metadata, own: Own) -> Option<Whose> {
    if metadata.uid() != 0 && metadata.uid() != own.user {
        return Some(Whose::User(metadata.uid()));
    }
    let mode = metadata.mode();
    // A link's mode says nothing. In a sticky folder, what is root's or ours stays: /tmp is such.
    if metadata.is_symlink() || metadata.is_dir() && mode & STICKY != 0 {
        return None;
    }
    let own_group = metadata.gid() == 0 || own.user != 0 && metadata.gid() == own.group;
    match (mode & EVERYONE != 0, mode & GROUP != 0 && !own_group) {
        (true, _) => Some(Whose::Everyone),
        (false, true) => Some(Whose::Group(metadata.gid())),
        (false, false) => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::files::fixture::Fixture;
    use std::os::unix::fs::{PermissionsExt, chown};

    #[test]
    fn every_place_on_the_way_counts() {
        let own = Own::now();
        let host = Fixture::new(&[
            ("/bin/program", "#!/bin/sh\n"),
            ("/bin/open", "#!/bin/sh\n"),
            ("/shared/program", "#!/bin/sh\n"),
            ("/sticky/in/program", "#!/bin/sh\n"),
            ("/links/good", "-> ../bin/program"),
            ("/links/again", "-> good"),
            ("/links/open", "-> ../bin/open"),
            ("/links/into", "-> ../shared/program"),
            ("/links/folder", "-> ../shared"),
            ("/links/loop", "-> loop"),
            ("/shared/out", "-> ../bin/program"),
        ]);
        let at = |path: &str| host.path().join(path);
        let mode = |path: &str, mode: u32| {
            std::fs::set_permissions(at(path), PermissionsExt::from_mode(mode)).unwrap()
        };
        mode("bin/open", 0o757);
        mode("shared", 0o777);
        mode("sticky", 0o1777);
        let check = |path: &str, expected: Option<(&str, &str)>| {
            let found = foreign(&at(path), own).map(|foreign| foreign.to_string());
            let expected = expected.map(|(path, words)| format!("{} {words}", at(path).display()));
            assert_eq!(found, expected, "{path}");
        };
        let everyone = |path| Some((path, "can be written by everyone"));
        check("bin/program", None);
        check("sticky/in/program", None);
        check("links/good", None);
        check("links/again", None);
        check("bin/open", everyone("bin/open"));
        check("links/open", everyone("bin/open"));
        check("shared/program", everyone("shared"));
        check("links/into", everyone("shared"));
        check("links/folder/program", everyone("shared"));
        // What it leads to is root's, but who may write the folder may lead it elsewhere.
        check("shared/out", everyone("shared"));
        check("links/loop", Some(("links/loop", "cannot be looked at")));
        check("bin/none", Some(("bin/none", "cannot be looked at")));

        // Groups and owners can be given away by root alone.
        if own.user != 0 {
            return;
        }
        mode("bin/open", 0o775);
        check("bin/open", None);
        chown(at("bin/open"), None, Some(50)).unwrap();
        check("bin/open", Some(("bin/open", "can be written by group 50")));
        mode("bin/open", 0o755);
        check("bin/open", None);
        chown(at("sticky/in"), Some(65_534), None).unwrap();
        check("sticky/in/program", Some(("sticky/in", "belongs to user 65534")));
        let nobody = Own { user: 65_534, group: 50 };
        assert_eq!(foreign(&at("sticky/in/program"), nobody), None);
        mode("bin/open", 0o775);
        assert_eq!(foreign(&at("bin/open"), nobody), None);
    }
}
