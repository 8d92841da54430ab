//! Nothing is left behind by a thousand connections.

use std::fs;
use std::net::TcpListener;
use std::process::Command;
use std::sync::mpsc::sync_channel;
use std::thread;
use std::time::{Duration, Instant};

use vectorlay::core::link_api::{DownReason, LinkCommand, LinkEvent, LinkId};
use vectorlay::link::{Settings, Url, start};

/// Set in the process of this test alone.
const ALONE: &str = "VECTORLAY_TEST_ALONE";
const DIALS: u64 = 1_000;
const LONG: Duration = Duration::from_secs(60);

fn counted() -> (usize, usize) {
    (fs::read_dir("/proc/self/fd").unwrap().count(), fs::read_dir("/proc/self/task").unwrap().count())
}

fn resident_kib() -> u64 {
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|l| l.starts_with("VmRSS:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}

#[test]
fn a_thousand_connections_leave_nothing_behind() {
    // In a process of its own: descriptors and threads are counted.
    if std::env::var_os(ALONE).is_none() {
        let name = concat!(module_path!(), "::a_thousand_connections_leave_nothing_behind");
        let (_target, name) = name.split_once("::").unwrap();
        let this = std::env::current_exe().unwrap();
        let output =
            Command::new(this).args(["--exact", name, "--nocapture"]).env(ALONE, "1").output().unwrap();
        let said = [output.stdout, output.stderr].concat();
        let said = String::from_utf8_lossy(&said);
        assert!(output.status.success() && said.contains("1 passed"), "{said}");
        println!("{said}");
        return;
    }
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    thread::spawn(move || {
        // Every other connection is closed at once, the rest after the upgrade.
        for (i, stream) in listener.incoming().enumerate() {
            if i % 2 == 1 {
                let _ = tungstenite::accept(stream.unwrap());
            }
        }
    });
    // A name, so that each attempt starts a lookup's thread.
    let url = Url::websocket(&format!("ws://localhost:{port}/"), false).unwrap();
    let (tx, events) = sync_channel(16);
    let settings = Settings { register_url: Url::register_from(&url), url, ca_file: None, proxy: None };
    let link = start(settings, move |link, event| drop(tx.send((link, event)))).unwrap();
    let round = |number: u64| {
        let number = LinkId(number);
        link.command(LinkCommand::Dial { link: number, node: None, credential: None });
        loop {
            match events.recv_timeout(LONG).unwrap() {
                (of, LinkEvent::Down(down)) => {
                    assert_eq!(of, number);
                    return down.why;
                }
                (of, _) => assert_eq!(of, number),
            }
        }
    };
    for i in 0..20 {
        round(i);
    }
    let (before, resident) = (counted(), resident_kib());
    let upgraded = (20..20 + DIALS).filter(|i| round(*i) == DownReason::Broken).count();
    assert!(upgraded as u64 >= DIALS / 3, "{upgraded}");
    let began = Instant::now();
    // The last lookup's thread may still be ending.
    while counted() != before && began.elapsed() < LONG {
        thread::yield_now();
    }
    assert_eq!(counted(), before);
    let grown = resident_kib().saturating_sub(resident);
    println!("{DIALS} connections, {upgraded} of them upgraded; {grown} KiB more resident");
    assert!(grown < 2048, "{grown} KiB");
    drop(link);
    while counted().1 >= before.1 && began.elapsed() < LONG {
        thread::yield_now();
    }
    assert_eq!(counted().1, before.1 - 1);
}
