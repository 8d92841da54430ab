//! The link under test, and what it says.

use std::path::PathBuf;
use std::sync::mpsc::{Receiver, sync_channel};
use std::time::Duration;

use vectorlay::core::link_api::{Down, LinkCommand, LinkEvent, LinkId, Registration};
use vectorlay::link::{Link, Proxy, Settings, Url, start};
use vectorlay::types::{NodeId, Secret};

/// Longer than every deadline of the link, so that a test that waits this long has failed.
pub const LONG: Duration = Duration::from_secs(40);

pub struct Rig {
    pub link: Link,
    events: Receiver<(LinkId, LinkEvent)>,
}

impl Rig {
    pub fn new(url: &str) -> Self {
        Self::with(url, None, None)
    }

    pub fn with(url: &str, ca_file: Option<PathBuf>, proxy: Option<Proxy>) -> Self {
        let url = Url::websocket(url, true).unwrap();
        let register_url = Url::register_from(&url);
        let (tx, events) = sync_channel(64);
        let settings = Settings { url, register_url, ca_file, proxy };
        let link = start(settings, move |link, event| drop(tx.send((link, event)))).unwrap();
        Self { link, events }
    }

    pub fn dial(&self, link: u64) {
        self.link.command(LinkCommand::Dial {
            link: LinkId(link),
            node: Some(NodeId::new("node-7").unwrap()),
            credential: Some(Secret::new("vtk_secret".into())),
        });
    }

    pub fn send(&self, link: u64, text: impl Into<String>) {
        self.link.command(LinkCommand::Send(LinkId(link), text.into()));
    }

    pub fn any(&self) -> (LinkId, LinkEvent) {
        let (link, event) = self.unconsumed();
        if let LinkEvent::Text(text) = &event {
            self.link.consumed(text.len());
        }
        (link, event)
    }

    /// The next event, as a core gets it that is still busy with it.
    pub fn unconsumed(&self) -> (LinkId, LinkEvent) {
        self.events.recv_timeout(LONG).expect("an event")
    }

    /// Whether nothing has happened that was not looked at yet, but for signs of life.
    pub fn no_event(&self) -> bool {
        self.events.try_iter().all(|(_, event)| event == LinkEvent::Alive)
    }

    /// The next event, which must be of `link`.
    pub fn next(&self, link: u64) -> LinkEvent {
        let (of, event) = self.any();
        assert_eq!(of, LinkId(link), "{event:?}");
        event
    }

    pub fn up(&self, link: u64) {
        self.dial(link);
        assert_eq!(self.next(link), LinkEvent::Up);
    }

    /// The next event that does not only say that the peer is alive.
    pub fn word(&self, link: u64) -> LinkEvent {
        loop {
            match self.next(link) {
                LinkEvent::Alive => {}
                event => return event,
            }
        }
    }

    pub fn down(&self, link: u64) -> Down {
        match self.word(link) {
            LinkEvent::Down(down) => down,
            other => panic!("expected the end, got {other:?}"),
        }
    }

    pub fn register(&self, link: u64) -> Registration {
        self.link.command(LinkCommand::Register {
            link: LinkId(link),
            token: Secret::new("vtk_secret".into()),
            body: r#"{"machine_id":"m"}"#.into(),
        });
        self.registered(link)
    }

    pub fn registered(&self, link: u64) -> Registration {
        match self.next(link) {
            LinkEvent::Registered(answer) => answer,
            other => panic!("expected an answer, got {other:?}"),
        }
    }
}
