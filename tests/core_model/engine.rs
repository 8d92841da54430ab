//! A container engine as bad as the real ones: it loses names, leaves half-made containers behind, says that it
//! removed what it did not remove, goes away and freezes.

use std::collections::{BTreeMap, BTreeSet};

use vectorlay::core::inventory::GpuUse;
use vectorlay::core::job::{
    Failure, FailureKind, Inspected, InspectedState, Job, LABEL_DEPLOY, LABEL_REPLICA, LABEL_SPEC, Listed,
    ListedStatus, Outcome, RunJob,
};
use vectorlay::engine::parse;
use vectorlay::types::{ContainerId, ImageRef, PciAddress};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    Well,
    /// Every call fails at once.
    Away,
    /// No call comes back before its deadline.
    Frozen,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Status {
    Created,
    Up(i32),
    Exited(i32),
}

#[derive(Debug, Clone)]
pub struct Container {
    pub name: String,
    pub replica: String,
    pub deploy: String,
    pub spec: String,
    pub image: String,
    pub gpus: Vec<PciAddress>,
    pub memory_mib: u64,
    pub status: Status,
    /// It ended by itself, and nobody here told it to.
    pub by_itself: bool,
}

/// What goes wrong with a call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    Nothing,
    Refused,
    /// `run`: a container in status Created stays. `rm -f`, `stop`: says 0 and does nothing.
    Half,
    /// `run`: it is created, its name is free again, and it never runs.
    Nameless,
    /// `run`: ends at once.
    Short,
    Impossible,
    /// Ended at its deadline.
    Deadline,
}

#[derive(Debug)]
pub struct Engine {
    pub mode: Mode,
    pub containers: BTreeMap<ContainerId, Container>,
    /// Containers whose shim does not answer.
    pub hung: BTreeSet<ContainerId>,
    /// Names that are taken by a container that does not exist.
    pub ghosts: BTreeMap<String, ContainerId>,
    pub images: BTreeSet<String>,
    made: u64,
    pids: i32,
}

pub const GHOSTS_MAX: usize = 2;

impl Engine {
    pub fn new() -> Self {
        let images = ["img:a", "img:b"].map(str::to_owned).into();
        let (containers, hung, ghosts) = Default::default();
        Self { mode: Mode::Well, containers, hung, ghosts, images, made: 0, pids: 100 }
    }

    pub fn of<'a>(&'a self, replica: &'a str) -> impl Iterator<Item = (&'a ContainerId, &'a Container)> + 'a {
        self.containers.iter().filter(move |(_, container)| container.replica == replica)
    }

    fn uses(&self, image: &ImageRef) -> bool {
        self.containers.values().any(|container| container.image == image.as_str())
    }

    pub fn fresh_id(&mut self) -> ContainerId {
        self.made += 1;
        ContainerId::new(&format!("{:064x}", self.made)).unwrap()
    }

    fn named(&self, name: &str) -> Option<ContainerId> {
        let living = self.containers.iter().find(|(_, container)| container.name == name);
        living.map(|(id, _)| id.clone()).or_else(|| self.ghosts.get(name).cloned())
    }

    /// What containerd makes of a container whose shim was killed.
    pub fn end_shim(&mut self, id: &ContainerId) {
        self.hung.remove(id);
        if let Some(container) = self.containers.get_mut(id) {
            container.status = Status::Exited(137);
        }
    }

    /// Carries a call out.
    pub fn call(&mut self, job: &Job, fault: Fault) -> Outcome {
        if self.mode == Mode::Away {
            return failed(job, FailureKind::Unavailable, "connection refused");
        }
        if fault == Fault::Deadline {
            return self.killed(job, 0);
        }
        let refused = matches!(fault, Fault::Refused | Fault::Impossible);
        if refused && !matches!(job, Job::Run(_)) {
            return failed(job, FailureKind::Refused, "internal error");
        }
        if let Job::Stop(id, _) | Job::Remove(id) = job
            && self.hung.contains(id)
        {
            return failed(job, FailureKind::Refused, "context deadline exceeded");
        }
        match job {
            Job::Run(run) => Outcome::Ran(self.run(run, fault)),
            Job::Pull(pull) => {
                let image = pull.image.as_str();
                if image == "img:nope" || fault != Fault::Nothing {
                    return failed(job, FailureKind::Refused, "pull: not found");
                }
                self.images.insert(image.to_owned());
                Outcome::Pulled(Ok(()))
            }
            Job::List => Outcome::Listed(Ok(self.list())),
            Job::Inspect(id) => Outcome::Inspected(Ok(self.containers.get(id).map(|container| Inspected {
                state: match container.status {
                    _ if self.hung.contains(id) => {
                        InspectedState::Unclear("failed to inspect Task: context deadline exceeded".into())
                    }
                    Status::Created => InspectedState::NoTask,
                    Status::Up(pid) => InspectedState::Running(Some(pid)),
                    Status::Exited(code) => InspectedState::Exited(code),
                },
                oom_killed: None,
            }))),
            Job::Stop(id, _) => match self.containers.get_mut(id) {
                None => failed(job, FailureKind::NoSuchContainer, "no such container"),
                Some(_) if fault == Fault::Half => Outcome::Stopped(Ok(())),
                Some(container) => {
                    if let Status::Up(_) = container.status {
                        container.status = Status::Exited(137);
                    }
                    Outcome::Stopped(Ok(()))
                }
            },
            Job::Remove(id) => {
                if fault != Fault::Half {
                    self.containers.remove(id);
                }
                Outcome::Removed(Ok(()))
            }
            Job::Logs(..) => Outcome::Logs(Ok((Vec::new(), false))),
            Job::Probe => Outcome::Probed(Ok(())),
            Job::Images => {
                let images = self.images.iter().map(|image| ImageRef::new(image).unwrap());
                Outcome::Images(Ok(images.collect()))
            }
            Job::RemoveImage(image) if self.uses(image) => {
                failed(job, FailureKind::Refused, "conflict: image is being used")
            }
            Job::RemoveImage(image) => {
                self.images.remove(image.as_str());
                Outcome::ImageRemoved(Ok(()))
            }
            Job::GuestUse(..) => Outcome::GuestUse(Ok(vec![guest_use(50)])),
        }
    }

    /// What a call leaves that was ended at its deadline: by `luck`, one thing or the other.
    pub fn killed(&mut self, job: &Job, luck: u32) -> Outcome {
        if let Job::Run(run) = job
            && self.mode == Mode::Well
        {
            match luck % 4 {
                0 => {}
                1 => {
                    let under =
                        |name: &&String| **name == run.name || name.starts_with(&format!("{}-", run.name));
                    if self.named(&run.name).is_none()
                        && self.ghosts.keys().filter(under).count() < GHOSTS_MAX
                    {
                        let id = self.fresh_id();
                        self.ghosts.insert(run.name.clone(), id);
                    }
                }
                2 => _ = self.run(run, Fault::Half),
                _ => _ = self.run(run, Fault::Nothing),
            }
        }
        failed(job, FailureKind::Deadline, "ended at its deadline")
    }

    fn run(&mut self, run: &RunJob, fault: Fault) -> Result<ContainerId, Failure> {
        let failure = |kind, message: &str| Err(Failure { kind, message: message.to_owned() });
        match fault {
            Fault::Impossible => return failure(FailureKind::Impossible, "a variable cannot be carried"),
            Fault::Refused => return failure(FailureKind::Refused, "port is already allocated"),
            Fault::Nothing | Fault::Half | Fault::Nameless | Fault::Short | Fault::Deadline => {}
        }
        if !self.images.contains(run.spec.image.as_str()) {
            return failure(FailureKind::NoImage, "image not available");
        }
        if let Some(holder) = self.named(&run.name) {
            let words = format!("name \"{}\" is already used by ID \"{holder}\"", run.name);
            return failure(FailureKind::NameTaken, &words);
        }
        let label = |key: &str| {
            run.labels.iter().find(|(name, _)| *name == key).map_or(String::new(), |(_, value)| value.clone())
        };
        let id = self.fresh_id();
        self.pids += 1;
        let status = match fault {
            Fault::Half | Fault::Nameless => Status::Created,
            Fault::Short => Status::Exited(3),
            Fault::Nothing | Fault::Refused | Fault::Impossible | Fault::Deadline => Status::Up(self.pids),
        };
        let container = Container {
            name: if fault == Fault::Nameless { String::new() } else { run.name.clone() },
            replica: label(LABEL_REPLICA),
            deploy: label(LABEL_DEPLOY),
            spec: label(LABEL_SPEC),
            image: run.spec.image.as_str().to_owned(),
            gpus: run.gpus.iter().map(|(address, _)| *address).collect(),
            memory_mib: run.spec.memory_mib.unwrap_or(0),
            status,
            by_itself: fault == Fault::Short,
        };
        self.containers.insert(id.clone(), container);
        if status == Status::Created { failure(FailureKind::Refused, "cannot start task") } else { Ok(id) }
    }

    fn list(&self) -> Vec<Listed> {
        let one = |(id, container): (&ContainerId, &Container)| Listed {
            id: id.clone(),
            replica: container.replica.clone(),
            deploy: container.deploy.clone(),
            spec: container.spec.clone(),
            gpus: container.gpus.clone(),
            status: match container.status {
                _ if self.hung.contains(id) => ListedStatus::Unclear("Unknown".into()),
                Status::Created => ListedStatus::Created,
                Status::Up(_) => ListedStatus::Up,
                Status::Exited(code) => ListedStatus::Exited(code),
            },
        };
        self.containers.iter().map(one).collect()
    }
}

/// What a guest says of a GPU of 80 GiB with a quarter in use.
pub fn guest_use(percent: u8) -> GpuUse {
    GpuUse { source: "guest", busy_percent: Some(percent), memory_mib: Some((20 * 1024, 80 * 1024)) }
}

pub fn failed(job: &Job, kind: FailureKind, message: &str) -> Outcome {
    let failure = Failure { kind, message: message.to_owned() };
    match job {
        // `rm -f` says 0 whatever happens, except at its deadline.
        Job::Remove(_) if kind == FailureKind::Unavailable => Outcome::Removed(Ok(())),
        _ => parse::failed(job, failure),
    }
}
