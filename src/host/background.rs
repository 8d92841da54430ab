//! A reading on a thread of its own, so that one that hangs does not hold up the others.

use std::io;
use std::sync::mpsc::{Receiver, SyncSender, TryRecvError, sync_channel};
use std::thread::Builder;
use std::time::Instant;

/// The thread and the channels to it. The thread ends when this is dropped and its reading has come back.
#[derive(Debug)]
pub struct BackgroundReader<T> {
    orders: SyncSender<()>,
    answers: Receiver<T>,
    /// Whether a reading has been ordered and has not come back.
    under_way: bool,
}

impl<T: Send + 'static> BackgroundReader<T> {
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

    /// Asks for a reading; never blocks. While one is under way no second one is started; one that came back too late is
    /// out of date, and dropped.
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
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::mpsc::channel;
    use std::time::Duration;

    const LONG: Duration = Duration::from_secs(20);
    const SHORT: Duration = Duration::from_millis(20);

    fn read<T: Send + 'static>(reader: &mut BackgroundReader<T>, within: Duration) -> Option<T> {
        reader.order();
        reader.answer(Instant::now() + within)
    }

    #[test]
    fn a_reading_that_hangs_is_waited_for_and_not_repeated() {
        let (release, held) = channel();
        let (calls, called) = channel();
        let mut reader = BackgroundReader::start("test", move || {
            calls.send(()).unwrap();
            held.recv().unwrap()
        })
        .unwrap();
        assert_eq!(read(&mut reader, SHORT), None::<u32>);
        called.recv_timeout(LONG).unwrap();
        // It comes back after it was asked for again: that is the answer.
        reader.order();
        release.send(1).unwrap();
        assert_eq!(reader.answer(Instant::now() + LONG), Some(1));
        assert!(called.try_recv().is_err());
        // It comes back before the next question. Seen then, it is dropped as too old; in no case is it given twice.
        assert_eq!(read(&mut reader, SHORT), None);
        called.recv_timeout(LONG).unwrap();
        release.send(2).unwrap();
        release.send(3).unwrap();
        let answer = std::iter::repeat_with(|| read(&mut reader, LONG)).find(|answer| *answer != Some(2));
        assert_eq!(answer, Some(Some(3)));
        // Without an order there is nothing to wait for.
        assert_eq!(reader.answer(Instant::now() + LONG), None);
    }
}
