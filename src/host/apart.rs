//! A reading on a thread of its own, so that one that hangs holds up no other.

use std::io;
use std::sync::mpsc::{Receiver, SyncSender, TryRecvError, sync_channel};
use std::thread::Builder;
use std::time::{Duration, Instant};

/// The thread and the channels to it. The thread ends when this is dropped and its reading has come back.
#[derive(Debug)]
pub struct Apart<T> {
    orders: SyncSender<()>,
    answers: Receiver<T>,
    /// Whether a reading has been ordered and has not come back.
    under_way: bool,
}

impl<T: Send + 'static> Apart<T> {
    /// Starts a thread called `name` for `read`.
    ///
    /// # Errors
    /// What the system says when no thread can be started.
    pub fn start(name: &str, mut read: impl FnMut() -> T + Send + 'static) -> io::Result<Self> {
        let (orders, ordered) = sync_channel::<()>(1);
        let (answer, answers) = sync_channel(1);
        Builder::new()
            .name(name.to_owned())
            .spawn(move || while ordered.recv().is_ok() && answer.send(read()).is_ok() {})?;
        Ok(Self { orders, answers, under_way: false })
    }

    /// Asks for a reading; never blocks. One that is still under way is waited for instead of a second; one that came
    /// back after its time is old, and dropped.
    pub fn order(&mut self) {
        if self.under_way {
            match self.answers.try_recv() {
                Ok(_) => self.under_way = false,
                Err(TryRecvError::Empty | TryRecvError::Disconnected) => return,
            }
        }
        self.under_way = self.orders.try_send(()).is_ok();
    }

    /// The reading that was ordered, if it comes before `until`.
    pub fn answer(&mut self, until: Instant) -> Option<T> {
        if !self.under_way {
            return None;
        }
        let answer = self.answers.recv_timeout(until.saturating_duration_since(Instant::now())).ok();
        self.under_way = answer.is_none();
        answer
    }

    /// Orders a reading and waits for it.
    pub fn read(&mut self, within: Duration) -> Option<T> {
        let until = Instant::now() + within;
        self.order();
        self.answer(until)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::mpsc::channel;

    const LONG: Duration = Duration::from_secs(20);
    const SHORT: Duration = Duration::from_millis(20);

    #[test]
    fn a_reading_that_hangs_is_waited_for_and_not_repeated() {
        let (release, held) = channel();
        let (calls, called) = channel();
        let mut apart = Apart::start("test", move || {
            calls.send(()).unwrap();
            held.recv().unwrap()
        })
        .unwrap();
        assert_eq!(apart.read(SHORT), None::<u32>);
        called.recv_timeout(LONG).unwrap();
        // It comes back after it was asked for again: that is the answer.
        apart.order();
        release.send(1).unwrap();
        assert_eq!(apart.answer(Instant::now() + LONG), Some(1));
        assert!(called.try_recv().is_err());
        // It comes back before the next question. Seen then, it is dropped as too old; in no case is it given twice.
        assert_eq!(apart.read(SHORT), None);
        called.recv_timeout(LONG).unwrap();
        release.send(2).unwrap();
        release.send(3).unwrap();
        let answer = std::iter::repeat_with(|| apart.read(LONG)).find(|answer| *answer != Some(2));
        assert_eq!(answer, Some(Some(3)));
        // Without an order there is nothing to wait for.
        assert_eq!(apart.answer(Instant::now() + LONG), None);
    }
}
