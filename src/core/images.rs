//! Room for images: between a high and a low mark of the data path's use, images are removed, the oldest first, one
//! at a time. The engine itself refuses to remove one that a container uses. Off by default.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use super::job::{Failure, Job, JobId};
use super::{Action, Core, Purpose, Sample};
use crate::types::ImageRef;

/// How long after a round that did not make enough room the next one begins.
const ROUND_PAUSE: Duration = Duration::from_secs(600);

/// The clean-up of images.
#[derive(Debug, Default)]
pub(super) struct Images {
    state: State,
    /// No new round before this.
    not_before: Option<Instant>,
}

#[derive(Debug, Default)]
enum State {
    /// There is room.
    #[default]
    Idle,
    /// The images are being listed, or one is being removed.
    Asking(JobId, VecDeque<ImageRef>),
    /// One was removed: the room is being looked at.
    Looking(VecDeque<ImageRef>),
}

impl Core {
    /// A reading of the data path's use arrived: begins, goes on or ends.
    pub(super) fn make_room(&mut self, now: Instant, out: &mut Vec<Action>) {
        let Some((high, low)) = self.settings.image_marks else { return };
        let Some(percent) = self.node.usage_percent() else { return };
        match std::mem::take(&mut self.images.state) {
            State::Idle => {
                let resting = self.images.not_before.is_some_and(|at| at > now);
                if percent >= high && !resting && !self.deploying() {
                    let job = self.submit(Job::Images, Purpose::Images, out);
                    self.images.state = State::Asking(job, VecDeque::new());
                }
            }
            asking @ State::Asking(..) => self.images.state = asking,
            State::Looking(images) if percent > low => self.remove_next(now, images, out),
            State::Looking(_) => {}
        }
    }

    /// The images were listed, or one was removed, or was not.
    pub(super) fn room_answer(
        &mut self,
        now: Instant,
        job: JobId,
        listed: Option<Result<Vec<ImageRef>, Failure>>,
        out: &mut Vec<Action>,
    ) {
        let State::Asking(asked, images) = std::mem::take(&mut self.images.state) else { return };
        if asked != job {
            self.images.state = State::Asking(asked, images);
            return;
        }
        match listed {
            Some(Ok(images)) => self.remove_next(now, images.into(), out),
            Some(Err(_)) => self.images.not_before = Some(now + ROUND_PAUSE),
            None => {
                self.images.state = State::Looking(images);
                self.sample(Sample::Usage, now, out);
            }
        }
    }

    fn remove_next(&mut self, now: Instant, mut images: VecDeque<ImageRef>, out: &mut Vec<Action>) {
        match images.pop_front() {
            // An image that was just pulled for a deploy is used by no container yet.
            Some(_) if self.deploying() => {}
            None => self.images.not_before = Some(now + ROUND_PAUSE),
            Some(image) => {
                let job = self.submit(Job::RemoveImage(image), Purpose::Images, out);
                self.images.state = State::Asking(job, images);
            }
        }
    }
}
