//! What a listing of the containers means for one replica: exits, removal and its proof. What it means for one that an
//! earlier process left is `recovery`.

use std::time::Duration;

use super::lifecycle::{Effect, Step};
use super::state::{Desired, ExitWatch, Removal, RemovalStep, Replica, ReplicaState, Reported};
use crate::core::Action;
use crate::core::cx::JobOwner;
use crate::core::job::{Job, Listed, ListedStatus};
use crate::types::ContainerId;

/// How long a call of an earlier process may go on making a container that is not wanted any more.
pub(super) const UNWANTED_CALL_TIMEOUT: Duration = Duration::from_secs(60);
/// The pause before the second removal of a container that is still there; doubled for each that follows.
const REMOVE_PAUSE_FIRST: Duration = Duration::from_millis(125);
/// The longest of these pauses.
const REMOVE_PAUSE_MAX: Duration = Duration::from_secs(30);

/// What a complete listing shows of a replica.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Shown<'a> {
    /// The tick at which the listing was asked for.
    pub(crate) began: u64,
    /// It is the first of this process.
    pub(crate) first: bool,
    /// The containers that carry the replica's label.
    pub(crate) containers: &'a [Listed],
    /// A CLI call of an earlier process is at work on the replica.
    pub(crate) leftover_call: bool,
    /// One is at work for the deploy that waits behind it.
    pub(crate) successor_call: bool,
}

impl Replica {
    /// A listing came back. It says nothing about what has changed since it was asked for.
    pub(super) fn on_listed(&mut self, s: &mut Step<'_>, shown: &Shown<'_>) {
        if self.changed_at > shown.began {
            return;
        }
        if self.ends_shims {
            for container in shown.containers {
                s.cx.act(Action::EndShim(container.id.clone()));
            }
        }
        match self.state.clone() {
            ReplicaState::Unverified(_) => self.recover(s, shown),
            ReplicaState::Running(container, watch) => {
                let is_up = |c: &Listed| c.id == container && c.status == ListedStatus::Up;
                let asked = self.job().is_some()
                    || matches!(watch, ExitWatch::ConfirmAt(..) | ExitWatch::NoTaskAt(_));
                if !asked && !shown.containers.iter().any(is_up) {
                    self.confirm_exit(s);
                }
                remove_leftovers(s, &container, shown.containers);
            }
            ReplicaState::Exited(container, ..) => {
                if let Some(up) = shown.containers.iter().find(|c| c.status == ListedStatus::Up) {
                    // Someone started it again by hand.
                    let now = s.cx.now;
                    self.reported = Reported::Running;
                    self.enter(s.cx, ReplicaState::Running(up.id.clone(), ExitWatch::InspectAt(now)));
                    s.effect(Effect::Save);
                } else if !shown.containers.iter().any(|c| c.id == container) {
                    self.remove_listed(
                        s,
                        shown,
                        Removal { step: RemovalStep::AwaitingListing(0), attempts: 0 },
                    );
                }
            }
            ReplicaState::Removing(removal) => {
                if let RemovalStep::AwaitingListing(needs) | RemovalStep::Proving(needs) = removal.step
                    && needs <= shown.began
                {
                    self.remove_listed(s, shown, removal);
                }
            }
            ReplicaState::AwaitingLeftoverCall(_)
            | ReplicaState::Queued
            | ReplicaState::Pulling(_)
            | ReplicaState::Starting(_)
            | ReplicaState::ResolvingNameConflict(..)
            | ReplicaState::Stopping(..) => {}
        }
    }

    /// A listing that began after a replica was to go: removes what it shows, or concludes.
    fn remove_listed(&mut self, s: &mut Step<'_>, shown: &Shown<'_>, removal: Removal) {
        if shown.leftover_call {
            // The call may still make a container: nothing is proven before it is over.
            let until = s.cx.now + UNWANTED_CALL_TIMEOUT;
            self.enter(s.cx, ReplicaState::AwaitingLeftoverCall(until));
            return;
        }
        let attempts = removal.attempts;
        match (shown.containers.first(), removal.step) {
            (None, _) => s.effect(Effect::Gone),
            // It ended and its retention is over, but someone started it again.
            (Some(_), _)
                if self.desired == Desired::Present
                    && shown.containers.iter().any(|c| c.status == ListedStatus::Up) =>
            {
                self.enter(s.cx, ReplicaState::Unverified(None));
            }
            // The engine claims that it was removed, and something is still there: a pause before the next removal.
            (Some(_), RemovalStep::Proving(_)) => {
                let pause = REMOVE_PAUSE_FIRST * 2u32.pow(attempts.min(8));
                let step = RemovalStep::PauseUntil(s.cx.now + pause.min(REMOVE_PAUSE_MAX));
                self.state = ReplicaState::Removing(Removal { step, attempts });
            }
            (Some(first), _) => {
                let job = Job::Remove(first.id.clone());
                let job = s.cx.start_job(job, JobOwner::Replica(self.id.clone()));
                let step = RemovalStep::Called(job);
                self.enter(s.cx, ReplicaState::Removing(Removal { step, attempts }));
            }
        }
    }
}

/// Containers that carry a running replica's label, never ran, and are not its container.
pub(super) fn remove_leftovers(s: &mut Step<'_>, container: &ContainerId, containers: &[Listed]) {
    for leftover in containers {
        if leftover.id != *container && leftover.status == ListedStatus::Created {
            s.effect(Effect::RemoveLeftover(leftover.id.clone()));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::cx::Cx;
    use crate::core::job::Outcome;
    use crate::core::replica::{Input, Surroundings};
    use crate::types::ReplicaId;

    #[test]
    fn a_removal_is_proven_by_a_later_listing_and_repeated_after_a_pause() {
        let mut cx = Cx::example();
        let mut replica = Replica::unknown(ReplicaId::new("r").unwrap());
        let around = Surroundings { node: None, too_little_space: None, microvm: false };
        let created = [Listed {
            id: ContainerId::new(&format!("{:064x}", 1)).unwrap(),
            replica: "r".into(),
            deploy: "d".into(),
            spec: "k.1".into(),
            gpus: Vec::new(),
            status: ListedStatus::Created,
        }];
        let shown = Shown {
            began: 1,
            first: true,
            containers: &created,
            leftover_call: false,
            successor_call: false,
        };
        replica.apply(&mut cx, around, Input::Listed(&shown));
        replica.apply(&mut cx, around, Input::Listed(&shown));
        let job = replica.job().expect("it is being removed");
        replica.apply(&mut cx, around, Input::Outcome(job, Outcome::Removed(Ok(()))));
        replica.apply(&mut cx, around, Input::Listed(&shown));
        assert_eq!(replica.job(), None, "not at once again");
        let [.., pause] = replica.timers(true);
        assert!(pause.is_some_and(|at| at > cx.now));
    }
}
