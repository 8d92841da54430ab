//! The watch over what runs: how its end is noticed, confirmed and reported, and what is done when the engine cannot
//! say.

use std::time::Duration;

use super::lifecycle::{Effect, INSPECT_RETRY, Step};
use super::outcome::{Exit, Report};
use super::state::{ExitWatch, Replica, ReplicaState, Reported};
use crate::core::Action;
use crate::core::job::{Failure, FailureKind, Inspected, InspectedState, Job};
use crate::types::ContainerId;

/// The engine learns of an exit a little after the kernel: it is asked again after this, then after twice as long.
const CONFIRM_FIRST: Duration = Duration::from_millis(20);
/// The exit code that Kata gives a program of whose end its guest did not tell.
const MICROVM_ENDED: i32 = 255;
/// How often the engine is asked before it is believed rather than the kernel.
const CONFIRM_TRIES: u32 = 8;

impl Replica {
    pub(super) fn watch(&mut self, new: ExitWatch) {
        if let ReplicaState::Running(_, watch) = &mut self.state {
            *watch = new;
        }
    }

    /// Its container seems to have ended: asks the engine.
    pub(super) fn confirm_exit(&mut self, s: &Step<'_>) {
        self.watch(ExitWatch::ConfirmAt(s.cx.now, 0));
    }

    /// The engine said how a running container is.
    pub(super) fn inspected(
        &mut self,
        s: &mut Step<'_>,
        container: ContainerId,
        watch: ExitWatch,
        result: Result<Option<Inspected>, Failure>,
    ) {
        let again = s.cx.now + INSPECT_RETRY;
        let new = match (result, watch) {
            (Ok(None), _) => {
                self.vanished(s, container);
                return;
            }
            // Kata tells of the program's end before the hypervisor ends. If the engine still said "running" after the
            // hypervisor was gone, Kata never reported the program's end.
            (
                Ok(Some(Inspected { state: InspectedState::Exited(MICROVM_ENDED), .. })),
                ExitWatch::Confirming(_, tries),
            ) if s.around.microvm && tries > 0 => {
                self.exited(s, container, Exit { microvm_ended: true, ..Exit::default() });
                return;
            }
            (Ok(Some(Inspected { state: InspectedState::Exited(code), oom_killed })), _) => {
                self.exited(s, container, Exit::of_program(Some(code), oom_killed));
                return;
            }
            // The task is lost, by its shim's end (a reboot would have ended this process too): how the program ended is
            // not known. Believed when it is said twice, since what follows is the container's removal.
            (Ok(Some(Inspected { state: InspectedState::NoTask, .. })), ExitWatch::ConfirmingNoTask(_)) => {
                self.exited(s, container, Exit { microvm_ended: s.around.microvm, ..Exit::default() });
                return;
            }
            (Ok(Some(Inspected { state: InspectedState::NoTask, .. })), _) => ExitWatch::NoTaskAt(again),
            (Ok(Some(Inspected { state: InspectedState::Running(pid), .. })), watch) => match (watch, pid) {
                (ExitWatch::Confirming(_, tries), _) if tries < CONFIRM_TRIES => {
                    ExitWatch::ConfirmAt(s.cx.now + CONFIRM_FIRST * 2u32.pow(tries), tries + 1)
                }
                (ExitWatch::Confirming(..), _) => ExitWatch::InspectAt(again),
                (ExitWatch::Verifying(_, before), Some(pid)) if pid == before => ExitWatch::Armed,
                (_, Some(pid)) => {
                    s.cx.act(Action::Watch(container.clone(), pid));
                    ExitWatch::Verifying(s.job(&self.id, Job::Inspect(container)), pid)
                }
                (_, None) => ExitWatch::Unsupported,
            },
            (Ok(Some(Inspected { state: InspectedState::Unclear(said), .. })), _) => {
                self.lost_from_sight(s, &container, &said);
                return;
            }
            (
                Err(Failure { kind: FailureKind::Deadline | FailureKind::Refused, message }),
                ExitWatch::Confirming(..) | ExitWatch::ConfirmingNoTask(_),
            ) => {
                self.lost_from_sight(s, &container, &message);
                return;
            }
            (Err(_), ExitWatch::Confirming(_, tries)) => ExitWatch::ConfirmAt(again, tries),
            (Err(_), ExitWatch::ConfirmingNoTask(_)) => ExitWatch::NoTaskAt(again),
            (Err(_), _) => ExitWatch::InspectAt(again),
        };
        self.watch(new);
    }

    /// The engine cannot say how a container is that ran: nothing is reported or removed, and the listings that follow
    /// decide.
    fn lost_from_sight(&mut self, s: &mut Step<'_>, container: &ContainerId, said: &str) {
        self.reported = Reported::Running;
        self.enter(s.cx, ReplicaState::Unverified(None));
        self.unclear_again(s, container, said, None);
        s.effect(Effect::Save);
    }

    /// Notes why a replica's state is not known, and lists again before long. `before`: why it was not known until now.
    pub(super) fn unclear_again(
        &mut self,
        s: &mut Step<'_>,
        container: &ContainerId,
        said: &str,
        before: Option<String>,
    ) {
        let short = container.short();
        if before.is_none() {
            s.cx.warn(format!(
                "replica {}: the engine cannot say whether container {short} runs: {said}; it is left as it is and asked \
                 about again",
                self.id
            ));
        }
        // The first message stays: what follows is often less to the point, and each change would be reported.
        let unclear = before.unwrap_or_else(|| format!("container {short}: {said}"));
        self.state = ReplicaState::Unverified(Some(unclear));
        s.effect(Effect::ListAgain(s.cx.now + INSPECT_RETRY));
    }

    pub(super) fn exited(&mut self, s: &mut Step<'_>, container: ContainerId, exit: Exit) {
        s.cx.act(Action::Unwatch(container.clone()));
        let until = s.cx.now + s.cx.settings.retention;
        self.enter(s.cx, ReplicaState::Exited(container, exit, until));
        if !matches!(self.reported, Reported::Exited | Reported::Failed) {
            self.reported = if exit.status() == "failed" { Reported::Failed } else { Reported::Exited };
            s.report(Report::Exited(exit));
        }
        s.effect(Effect::Save);
    }

    /// Its container is gone, and the agent did not remove it. Another of its containers may still be there: a listing
    /// tells before anything is concluded.
    fn vanished(&mut self, s: &mut Step<'_>, container: ContainerId) {
        s.cx.act(Action::Unwatch(container));
        s.report(Report::Vanished);
        self.reported = Reported::Nothing;
        self.enter(s.cx, ReplicaState::Unverified(None));
        s.effect(Effect::Save);
    }
}
