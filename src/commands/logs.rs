//! `vectorlay-agent logs REPLICA`: a replica's output, wherever its log driver keeps it.

use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::Path;
use std::time::Duration;

use super::engine::{Container, containers};
use crate::engine::cli::{Cli, log_file};
use crate::engine::logs;
use crate::process;
use crate::types::ReplicaId;

/// How often a file that is followed is looked at.
const LOOK_EVERY: Duration = Duration::from_millis(200);

/// Writes the last `tail` lines of the newest container's output to `out`, and with `follow` what comes after, until the
/// reader or the log goes away. Where the engine keeps the log, its CLI takes the place of this process.
pub(super) fn run(
    cli: &Cli,
    log_dir: &Path,
    replica: &ReplicaId,
    follow: bool,
    tail: u32,
    out: &mut dyn Write,
) -> Result<(), String> {
    let all = containers(cli)?;
    let container = all.into_iter().find(|container| container.replica == replica.as_str());
    let Some(container) = container else {
        return Err(format!("there is no container of replica {replica}; see `vectorlay-agent replicas`"));
    };
    // The setting may have changed since the container was started: the file decides, if there is one.
    match log_file(log_dir, &container.deploy).filter(|file| file.exists()) {
        Some(file) => {
            print_file(log_dir, &container, &file, follow, tail, out).map_err(|error| match error.kind() {
                io::ErrorKind::PermissionDenied => {
                    format!("cannot read {}: {error}; run this as root", file.display())
                }
                _ => format!("cannot show {}: {error}", file.display()),
            })
        }
        None => {
            let program = cli.follow_logs(&container.id, tail, follow);
            Err(format!("cannot start {}: {}", program.path.display(), process::replace(&program)))
        }
    }
}

fn print_file(
    dir: &Path,
    container: &Container,
    file: &Path,
    follow: bool,
    tail: u32,
    out: &mut dyn Write,
) -> io::Result<()> {
    let mut opened = logs::open_log(dir, &container.deploy)?;
    // What is appended after this point is printed by the loop below.
    let mut at = opened.metadata()?.len();
    let (lines, _) = logs::tail(dir, &container.deploy, tail)?;
    for line in lines {
        writeln!(out, "{line}")?;
    }
    out.flush()?;
    if !follow {
        return Ok(());
    }
    loop {
        std::thread::sleep(LOOK_EVERY);
        let size = opened.metadata()?.len();
        if size < at {
            // The agent has shortened the file in place.
            at = 0;
        }
        if size == at && !file.exists() {
            return Ok(());
        }
        opened.seek(SeekFrom::Start(at))?;
        let mut bytes = Vec::new();
        at += (&opened).take(size - at).read_to_end(&mut bytes)? as u64;
        out.write_all(&bytes)?;
        out.flush()?;
    }
}

#[cfg(test)]
mod tests {
    use std::fs::OpenOptions;
    use std::sync::mpsc::{Sender, channel};

    use super::*;
    use crate::types::ContainerId;

    struct Heard(Sender<String>);

    impl Write for Heard {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            let text = String::from_utf8(bytes.to_vec()).unwrap();
            self.0.send(text).map_err(|_| io::ErrorKind::BrokenPipe)?;
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn a_file_is_followed_also_when_it_is_shortened_in_place() {
        let dir = std::env::temp_dir().join(format!("vectorlay-follow-{}", std::process::id()));
        std::fs::create_dir_all(&dir).unwrap();
        let deploy = "00000000000000d1";
        let file = log_file(&dir, deploy).unwrap();
        std::fs::write(&file, "one\ntwo\nthree\n").unwrap();
        let container = Container {
            id: ContainerId::new(&"0123456789abcdef".repeat(4)).unwrap(),
            replica: "a".into(),
            deploy: deploy.into(),
            gpus: vec![],
            image: "x".into(),
            created: None,
            status: "Up".into(),
        };
        let (heard, printed) = channel();
        let (folder, followed) = (dir.clone(), file.clone());
        let follower = std::thread::spawn(move || {
            print_file(&folder, &container, &followed, true, 2, &mut Heard(heard))
        });
        let wait = |wanted: &str| {
            let mut text = String::new();
            while text != wanted {
                text += &printed.recv_timeout(Duration::from_secs(30)).unwrap();
                assert!(wanted.starts_with(&text), "{text:?}");
            }
        };
        wait("two\nthree\n");
        let append = |text: &str| {
            OpenOptions::new().append(true).open(&file).unwrap().write_all(text.as_bytes()).unwrap();
        };
        append("four\n");
        wait("four\n");
        OpenOptions::new().write(true).open(&file).unwrap().set_len(0).unwrap();
        append("5\n");
        wait("5\n");
        std::fs::remove_dir_all(&dir).unwrap();
        follower.join().unwrap().unwrap();
    }
}
