//! Which repositories gave an image only for a password.
//!
//! What is on the host is there for every tenant, so an image that one of them had to prove a right to is not simply
//! there for the next. Before it is used the registry is asked again, with whatever that deploy has: a pull of what is
//! there already only fetches its digest. By repository, since the engines also find an image by another of its tags'
//! digest. The list outlives the process, as the images do.

use std::collections::BTreeSet;

use serde_json::{Value, json};

use super::job::{Failure, FailureKind};
use super::replica::{Code, Refusal, Work};
use crate::protocol::Pull;

/// How many repositories are remembered. With more, every image is taken for one of them.
const MAX: usize = 1024;

/// The repositories whose images are asked for at the registry before each use.
#[derive(Debug, Default)]
pub(crate) struct PrivateImages {
    repositories: BTreeSet<String>,
    /// Some could not be remembered.
    full: bool,
}

/// What a deploy does first.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum First {
    /// It runs what is there, and pulls if nothing is.
    Run,
    /// It asks the registry.
    Pull,
}

impl PrivateImages {
    /// What a deploy does first about its image.
    ///
    /// # Errors
    /// When it may not ask, and may not use what is there without having asked.
    pub(crate) fn first(&self, work: &Work) -> Result<First, Refusal> {
        let private = self.full || self.repositories.contains(work.spec.image.repository());
        match work.pull {
            Pull::Always => Ok(First::Pull),
            Pull::Missing if private || work.auth.is_some() => Ok(First::Pull),
            Pull::Missing => Ok(First::Run),
            Pull::Never if private => Err(Refusal::new(
                Code::PullFailed,
                format!(
                    "{} came with credentials, and pull is never: deploy it with registry_auth and pull missing",
                    work.spec.image
                ),
            )),
            Pull::Never => Ok(First::Run),
        }
    }

    /// The pull of a deploy ended. Says whether that is to be recorded.
    pub(crate) fn pulled(&mut self, work: &Work, result: &Result<(), Failure>) -> bool {
        let repository = work.spec.image.repository();
        match (&work.auth, result) {
            // Its registry gives it to everyone.
            (None, Ok(())) => self.repositories.remove(repository),
            (None, Err(_)) => false,
            // One that was ended from outside may have been done.
            (
                Some(_),
                Ok(()) | Err(Failure { kind: FailureKind::Deadline | FailureKind::Unavailable, .. }),
            ) => self.add(repository),
            // A wrong password makes nobody's image a private one.
            (Some(_), Err(_)) => false,
        }
    }

    /// An earlier process may have pulled from here with credentials, and not have lived to see the end.
    pub(crate) fn add(&mut self, repository: &str) -> bool {
        if self.repositories.contains(repository) || self.full {
            false
        } else if self.repositories.len() < MAX {
            self.repositories.insert(repository.to_owned())
        } else {
            self.full = true;
            true
        }
    }

    /// For the state file; `None`: there are none.
    pub(crate) fn record(&self) -> Option<Value> {
        let any = self.full || !self.repositories.is_empty();
        any.then(|| json!({"repositories": self.repositories, "full": self.full}))
    }

    /// From the record of an earlier process; one of before there was such a list has none.
    pub(crate) fn restore(record: Option<&Value>) -> Self {
        let names = record.and_then(|record| record.get("repositories")).and_then(Value::as_array);
        let names = names.into_iter().flatten().filter_map(Value::as_str).map(str::to_owned);
        let full = record.and_then(|record| record.get("full")).and_then(Value::as_bool) == Some(true);
        Self { repositories: names.collect(), full }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::{ImageRef, RegistryAuth, Secret, Spec};

    fn work(image: &str, pull: Pull, with_auth: bool) -> Work {
        let auth = RegistryAuth {
            server: "reg.example".into(),
            username: "u".into(),
            password: Secret::new("hunter2".into()),
        };
        let spec = Spec::new(ImageRef::new(image).unwrap());
        Work {
            spec,
            auth: with_auth.then_some(auth),
            pull,
            gpus: Vec::new(),
            ended_by_reboot: BTreeSet::new(),
        }
    }

    #[test]
    fn what_came_with_a_password_is_asked_for_again() {
        let mut images = PrivateImages::default();
        let digest = format!("reg.example/a@sha256:{}", "0".repeat(64));
        let names = ["reg.example/a:1", "reg.example/a:2", "reg.example/a", digest.as_str()];
        for name in names {
            assert_eq!(images.first(&work(name, Pull::Missing, false)), Ok(First::Run));
            assert_eq!(images.first(&work(name, Pull::Never, false)), Ok(First::Run));
            assert_eq!(images.first(&work(name, Pull::Missing, true)), Ok(First::Pull));
            assert_eq!(images.first(&work(name, Pull::Always, false)), Ok(First::Pull));
        }
        let failed = |kind| Err(Failure { kind, message: "no".into() });
        // A wrong password, and a pull that nobody had to prove anything for.
        assert!(!images.pulled(&work(names[0], Pull::Missing, true), &failed(FailureKind::Refused)));
        assert!(!images.pulled(&work(names[0], Pull::Missing, false), &Ok(())));
        assert_eq!(images.first(&work(names[0], Pull::Missing, false)), Ok(First::Run));
        assert!(images.pulled(&work(names[0], Pull::Missing, true), &failed(FailureKind::Deadline)));
        assert!(!images.pulled(&work(names[0], Pull::Missing, true), &Ok(())), "it is known");
        assert!(!images.pulled(&work(names[0], Pull::Missing, false), &failed(FailureKind::Refused)));
        let mut images = PrivateImages::restore(images.record().as_ref());
        for name in names {
            assert_eq!(images.first(&work(name, Pull::Missing, false)), Ok(First::Pull));
            for auth in [false, true] {
                assert!(images.first(&work(name, Pull::Never, auth)).is_err());
            }
        }
        for name in ["reg.example/a/b:1", "reg.example/ab:1", "other.example/a:1"] {
            assert_eq!(images.first(&work(name, Pull::Missing, false)), Ok(First::Run), "{name}");
        }
        assert!(images.pulled(&work("reg.example/a:3", Pull::Missing, false), &Ok(())));
        assert_eq!(images.first(&work("reg.example/a:1", Pull::Missing, false)), Ok(First::Run));
    }

    #[test]
    fn what_cannot_be_remembered_makes_all_of_them_private() {
        let mut images = PrivateImages::default();
        for n in 0..MAX {
            assert!(images.add(&format!("reg.example/x{n}")));
        }
        assert!(!images.add("reg.example/x0"));
        assert_eq!(images.first(&work("bb", Pull::Missing, false)), Ok(First::Run));
        assert!(images.add("reg.example/one-more"));
        let images = PrivateImages::restore(images.record().as_ref());
        assert_eq!(images.first(&work("bb", Pull::Missing, false)), Ok(First::Pull));
        for older in [None, Some(&json!(7)), Some(&json!({"repositories": {}}))] {
            assert_eq!(
                PrivateImages::restore(older).first(&work("bb", Pull::Missing, false)),
                Ok(First::Run)
            );
        }
    }
}
