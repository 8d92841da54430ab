//! A registry's credentials for one pull: both CLIs read them from `config.json` in the folder that DOCKER_CONFIG
//! names, and from nowhere else that is not an argv.
//!
//! The folder is private (0700), on a tmpfs where the caller's is one, and gone when the value is dropped. One that a
//! killed agent left is removed at the next start. What it lies in must be root's, and no link.

use std::fs::{DirBuilder, OpenOptions, read_dir, remove_dir_all};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use serde_json::json;

use crate::core::job::JobId;
use crate::trust;
use crate::types::RegistryAuth;

/// How the folders' names begin.
const PREFIX: &str = "pull-";
/// Docker Hub's entry: both CLIs look for it under the address of its first version.
const DOCKER_HUB: &str = "https://index.docker.io/v1/";

/// A folder with credentials; dropping it removes it.
#[derive(Debug)]
pub struct Credentials {
    dir: PathBuf,
}

impl Credentials {
    /// Puts `auth` into a new folder in `scratch`, which is made when it is missing.
    ///
    /// # Errors
    /// What cannot be written, and what to do; nothing is left then.
    pub fn new(scratch: &Path, job: JobId, auth: &RegistryAuth) -> Result<Self, String> {
        let dir = scratch.join(format!("{PREFIX}{}", job.0));
        let failed = |error: io::Error| {
            let dir = dir.display();
            format!(
                "cannot write registry credentials to {dir}: {error}; see that it is writable and not full"
            )
        };
        trust::make_folder(scratch).map_err(failed)?;
        DirBuilder::new().mode(0o700).create(&dir).map_err(failed)?;
        let credentials = Self { dir: dir.clone() };
        OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(dir.join("config.json"))
            .and_then(|mut file| file.write_all(config(auth).as_bytes()))
            .map_err(failed)?;
        Ok(credentials)
    }

    /// The folder, for DOCKER_CONFIG.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Removes what an earlier agent left in `scratch`. Only one agent may use a folder.
    pub fn clean(scratch: &Path) {
        if let Err(error) = trust::folder(scratch) {
            if error.kind() != io::ErrorKind::NotFound {
                log::warn!("no deploy with registry_auth can be pulled: {error}");
            }
            return;
        }
        let Ok(entries) = read_dir(scratch) else { return };
        for entry in entries.flatten() {
            if entry.file_name().to_str().is_some_and(|name| name.starts_with(PREFIX)) {
                remove(&entry.path());
            }
        }
    }
}

impl Drop for Credentials {
    fn drop(&mut self) {
        remove(&self.dir);
    }
}

fn remove(dir: &Path) {
    if let Err(error) = remove_dir_all(dir) {
        log::warn!("cannot remove registry credentials in {}: {error}; remove the folder", dir.display());
    }
}

/// Docker's `config.json`. User and password may stand there plainly (`cli/config/types.AuthConfig`), so that a colon
/// in the user's name does no harm.
fn config(auth: &RegistryAuth) -> String {
    let server = match auth.server.as_str() {
        "docker.io" | "index.docker.io" | "registry-1.docker.io" => DOCKER_HUB,
        other => other,
    };
    let entry = json!({ "username": auth.username, "password": auth.password.expose() });
    json!({ "auths": { server: entry } }).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::Secret;
    use std::os::unix::fs::PermissionsExt;

    fn auth(server: &str) -> RegistryAuth {
        RegistryAuth {
            server: server.into(),
            username: "a:b".into(),
            password: Secret::new("hunter2\"".into()),
        }
    }

    #[test]
    fn private_while_it_lives_and_then_gone() {
        let scratch = std::env::temp_dir().join(format!("vectorlay-credentials-{}", std::process::id()));
        let credentials = Credentials::new(&scratch, JobId(7), &auth("r.example:5000")).unwrap();
        let mode = |path: &Path| path.metadata().unwrap().permissions().mode() & 0o777;
        let file = credentials.dir().join("config.json");
        assert_eq!((mode(credentials.dir()), mode(&file)), (0o700, 0o600));
        let text = std::fs::read_to_string(&file).unwrap();
        assert_eq!(text, r#"{"auths":{"r.example:5000":{"password":"hunter2\"","username":"a:b"}}}"#);
        drop(credentials);
        assert!(!file.exists());
        // What a killed agent leaves.
        std::mem::forget(Credentials::new(&scratch, JobId(8), &auth("x")).unwrap());
        Credentials::clean(&scratch);
        assert_eq!(read_dir(&scratch).unwrap().count(), 0);
        remove_dir_all(&scratch).unwrap();
        Credentials::clean(&scratch);
    }

    #[test]
    fn nothing_is_written_through_a_link_or_into_others_hands() {
        let place = std::env::temp_dir().join(format!("vectorlay-credentials-link-{}", std::process::id()));
        let (real, link, open) = (place.join("real"), place.join("link"), place.join("open"));
        std::fs::create_dir_all(&real).unwrap();
        std::fs::create_dir(&open).unwrap();
        std::os::unix::fs::symlink(&real, &link).unwrap();
        std::fs::set_permissions(&open, std::fs::Permissions::from_mode(0o777)).unwrap();
        std::fs::create_dir(real.join("pull-9")).unwrap();
        for scratch in [&link, &open] {
            assert!(Credentials::new(scratch, JobId(1), &auth("x")).is_err());
            Credentials::clean(scratch);
        }
        assert!(real.join("pull-9").exists() && read_dir(&open).unwrap().next().is_none());
        remove_dir_all(&place).unwrap();
    }

    #[test]
    fn docker_hub_has_an_address_of_its_own() {
        assert!(config(&auth("docker.io")).contains("\"https://index.docker.io/v1/\""));
    }

    #[test]
    fn says_where_it_could_not_write() {
        let error = Credentials::new(Path::new("/proc/no"), JobId(1), &auth("x")).unwrap_err();
        assert!(
            error.to_string().starts_with("cannot write registry credentials to /proc/no/pull-1: "),
            "{error}"
        );
    }
}
