//! The state directory's files: `node.json` (who this node is), `state.json` (what the core must not forget) and
//! `replicas.json` (what else it knew of its replicas).
//!
//! A thread does the writing, so that a disk that hangs in fsync hangs nothing else. The core decides what to do about a
//! failed save: the store tries once and reports. It never overwrites a file whose content it did not understand.

mod directory;
pub mod history;
mod identity;
pub mod machine;
pub mod metrics_file;

use std::fs::File;
use std::io::Read;
use std::path::Path;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread::Builder;

pub use directory::{Directory, Found};

use crate::core::identity::Identity;
use crate::core::persistence::{Record, RecordFile, StoreEvent};
use crate::types::Secret;

/// 32 random bytes, for instance a key for the hash of specifications.
///
/// # Errors
/// When /dev/urandom cannot be read.
pub fn random_bytes() -> Result<[u8; 32], String> {
    let mut key = [0; 32];
    File::open("/dev/urandom")
        .and_then(|mut random| random.read_exact(&mut key))
        .map_err(|error| format!("cannot read /dev/urandom: {error}; mount /dev"))?;
    Ok(key)
}

/// The identity in a state directory that another process may have locked, or none does; `None`: there is none to be read.
pub fn identity_of(state_dir: &Path) -> Option<Identity> {
    let text = std::fs::read_to_string(state_dir.join(RecordFile::Node.name())).ok().map(Secret::new)?;
    identity::read(text.expose()).ok()
}

/// The store thread, seen from the main loop.
#[derive(Debug)]
pub struct Store {
    orders: SyncSender<Order>,
    waiting: Waiting,
}

impl Store {
    /// Starts the thread, which holds the directory and its lock until the store is dropped (or the process ends).
    /// `emit` is called on the thread, once per save.
    ///
    /// # Errors
    /// When the thread cannot be started.
    pub fn start(directory: Directory, emit: impl Fn(StoreEvent) + Send + 'static) -> Result<Self, String> {
        // At most one order is under way: the channel is never full.
        let (orders, received) = sync_channel(1);
        Builder::new()
            .name("store".to_owned())
            .spawn(move || serve(directory, &received, &emit))
            .map_err(|error| format!("cannot start the thread store: {error}; raise the limit of tasks"))?;
        Ok(Self { orders, waiting: Waiting::default() })
    }

    /// Has `record` saved; the event carries `seq`. Never blocks. While a save is under way, only the newest record of each
    /// file waits: it contains everything that an older one did.
    pub fn save(&mut self, record: Record, seq: u64) {
        self.waiting.put(record, seq);
        self.send_next();
    }

    /// Call this for each event of the thread: it is ready for the next record.
    pub fn answered(&mut self) {
        self.waiting.under_way = false;
        self.send_next();
    }

    fn send_next(&mut self) {
        if let Some(order) = self.waiting.next() {
            self.orders.try_send(order).expect("the thread lives as long as the process, and one order fits");
        }
    }
}

#[derive(Debug)]
struct Order {
    record: Record,
    seq: u64,
}

/// What waits for the thread. Bounded, because a newer record replaces an older one of the same file.
#[derive(Debug, Default)]
struct Waiting {
    node: Option<Order>,
    state: Option<Order>,
    table: Option<Order>,
    under_way: bool,
}

impl Waiting {
    fn put(&mut self, record: Record, seq: u64) {
        let place = match record.file() {
            RecordFile::Node => &mut self.node,
            RecordFile::State => &mut self.state,
            RecordFile::Table => &mut self.table,
        };
        *place = Some(Order { record, seq });
    }

    /// The next order, unless one is under way. The identity goes first, and last the table, for which nobody waits.
    fn next(&mut self) -> Option<Order> {
        if self.under_way {
            return None;
        }
        let order = self.node.take().or_else(|| self.state.take()).or_else(|| self.table.take());
        self.under_way = order.is_some();
        order
    }
}

/// The thread: one order after the other, until the store is dropped.
fn serve(mut directory: Directory, orders: &Receiver<Order>, emit: &impl Fn(StoreEvent)) {
    for Order { record, seq } in orders {
        let file = record.file();
        let content = match record {
            Record::Node(identity) => identity::write(&identity),
            Record::State(text) | Record::Table(text) => Secret::new(text),
        };
        emit(match directory.save(file, &content) {
            Ok(()) => StoreEvent::Saved(file, seq),
            Err(error) => StoreEvent::SaveFailed(file, seq, error.to_string()),
        });
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::channel;
    use std::time::Duration;

    use super::*;
    use crate::core::identity::Identity;
    use crate::types::NodeId;

    fn identity() -> Identity {
        Identity { node_id: NodeId::new("node-1").unwrap(), node_token: None, spec_key: Some([7; 32]) }
    }

    #[test]
    fn the_newest_of_each_file_waits() {
        let mut waiting = Waiting::default();
        let mut next = |put: &[(RecordFile, u64)], answered: bool| {
            for (file, seq) in put {
                let record = match file {
                    RecordFile::Node => Record::Node(identity()),
                    RecordFile::State => Record::State(seq.to_string()),
                    RecordFile::Table => Record::Table(seq.to_string()),
                };
                waiting.put(record, *seq);
            }
            waiting.under_way &= !answered;
            waiting.next().map(|order| order.seq)
        };
        assert_eq!(next(&[], false), None);
        use RecordFile::{Node, State, Table};
        assert_eq!(next(&[(State, 1)], false), Some(1));
        assert_eq!(next(&[(Table, 9), (State, 2), (Node, 3), (State, 4)], false), None);
        assert_eq!(next(&[], true), Some(3));
        assert_eq!(next(&[(State, 5)], true), Some(5));
        assert_eq!(next(&[], true), Some(9), "the table last");
        assert_eq!(next(&[], true), None);
    }

    #[test]
    fn what_is_saved_is_there_for_the_next_start() {
        let path = std::env::temp_dir().join(format!("vectorlay-store-{}", std::process::id()));
        let (events, received) = channel();
        let emit = move |event| events.send(event).unwrap();
        let mut store = Store::start(Directory::open(&path).unwrap(), emit).unwrap();
        let answer = |store: &mut Store| {
            let event = received.recv_timeout(Duration::from_secs(30)).unwrap();
            store.answered();
            event
        };
        store.save(Record::Node(identity()), 1);
        store.save(Record::State("{\"a\":1}".to_owned()), 2);
        assert_eq!(answer(&mut store), StoreEvent::Saved(RecordFile::Node, 1));
        assert_eq!(answer(&mut store), StoreEvent::Saved(RecordFile::State, 2));
        std::fs::remove_dir_all(&path).unwrap();
        store.save(Record::State("{}".to_owned()), 3);
        let StoreEvent::SaveFailed(RecordFile::State, 3, why) = answer(&mut store) else { panic!() };
        assert!(why.contains("state.json") && why.contains("restart the agent"), "{why}");
    }

    #[test]
    fn random_bytes_differ() {
        assert_ne!(random_bytes().unwrap(), random_bytes().unwrap());
    }
}
