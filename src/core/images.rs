//! Room for images: between a high and a low mark of the data path's use, images are removed, the oldest first, one
//! at a time. The engine itself refuses to remove one that a container uses. Off by default.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use super::cx::{Cx, JobOwner};
use super::job::{Job, JobId, Outcome};
use super::{Action, Sample};
use crate::types::ImageRef;

/// The pause after a round that did not make enough room.
const ROUND_PAUSE: Duration = Duration::from_secs(600);

/// The clean-up of images.
#[derive(Debug, Default)]
pub(crate) struct Images {
    state: State,
    /// No new round before this.
    not_before: Option<Instant>,
}

#[derive(Debug, Default)]
enum State {
    /// There is room.
    #[default]
    Idle,
    /// The images are being listed, or one is being removed; those that are left.
    Waiting(JobId, VecDeque<ImageRef>),
    /// One was removed: how much room there is now is being read.
    Measuring(VecDeque<ImageRef>),
}

impl Images {
    /// A reading of the data path's use arrived: begins, goes on or ends. `deploying`: an image may have been pulled
    /// that no container uses yet.
    pub(crate) fn on_usage(&mut self, cx: &mut Cx, percent: Option<u8>, deploying: bool) {
        let (Some((high, low)), Some(percent)) = (cx.settings.image_marks, percent) else { return };
        match std::mem::take(&mut self.state) {
            State::Idle => {
                let resting = self.not_before.is_some_and(|at| at > cx.now);
                if percent >= high && !resting && !deploying {
                    let job = cx.start_job(Job::Images, JobOwner::Images);
                    self.state = State::Waiting(job, VecDeque::new());
                }
            }
            waiting @ State::Waiting(..) => self.state = waiting,
            State::Measuring(images) if percent > low => self.remove_next(cx, images, deploying),
            State::Measuring(_) => {}
        }
    }

    /// The images were listed, or one was removed, or was not.
    pub(crate) fn on_outcome(&mut self, cx: &mut Cx, job: JobId, outcome: Outcome, deploying: bool) {
        let State::Waiting(asked, images) = std::mem::take(&mut self.state) else { return };
        if asked != job {
            self.state = State::Waiting(asked, images);
            return;
        }
        match outcome {
            Outcome::Images(Ok(images)) => self.remove_next(cx, images.into(), deploying),
            Outcome::Images(Err(_)) => self.not_before = Some(cx.now + ROUND_PAUSE),
            _ => {
                self.state = State::Measuring(images);
                cx.act(Action::Sample(Sample::Usage));
            }
        }
    }

    fn remove_next(&mut self, cx: &mut Cx, mut images: VecDeque<ImageRef>, deploying: bool) {
        match images.pop_front() {
            Some(_) if deploying => {}
            None => self.not_before = Some(cx.now + ROUND_PAUSE),
            Some(image) => {
                let job = cx.start_job(Job::RemoveImage(image), JobOwner::Images);
                self.state = State::Waiting(job, images);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_round_ends_where_a_deploy_begins() {
        let mut cx = Cx::example();
        cx.settings.image_marks = Some((80, 60));
        let mut images = Images::default();
        images.on_usage(&mut cx, Some(79), false);
        images.on_usage(&mut cx, Some(85), true);
        assert!(cx.actions.is_empty());
        images.on_usage(&mut cx, Some(85), false);
        let listed = vec![ImageRef::new("a:1").unwrap(), ImageRef::new("b:1").unwrap()];
        images.on_outcome(&mut cx, JobId(1), Outcome::Images(Ok(listed)), false);
        assert!(matches!(
            &cx.actions[..],
            [Action::Job(_, Job::Images), Action::Job(_, Job::RemoveImage(_))]
        ));
        images.on_outcome(&mut cx, JobId(2), Outcome::ImageRemoved(Ok(())), false);
        images.on_usage(&mut cx, Some(70), true);
        assert_eq!(cx.actions.len(), 3, "a reading, and no removal");
        assert!(matches!(images.state, State::Idle));
    }
}
