//! Runs a program: the only place that starts one.
//!
//! A program gets a process group of its own, an environment that is wholly ours, and no descriptor but the three
//! standard ones. What it prints is read while it runs and kept up to a bound. It is over when its process has ended,
//! whoever may still hold its pipes; whatever it left in its group is then killed, before the process is reaped (until
//! then the group's number cannot belong to anybody else). At the deadline, or when it is cancelled, the group gets
//! SIGTERM, then SIGKILL.
//!
//! It never waits without a deadline, never reads to the end of a pipe, never goes through a shell, and starts nothing that
//! another user could have put there.

use std::ffi::OsString;
use std::fs::File;
use std::io::{self, Read, Seek, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags};
use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, memfd_create};
use rustix::process::{Pid, PidfdFlags, Signal, kill_process_group, pidfd_open};

use crate::trust;
use crate::wait::{Wakeup, poll_until};

/// Read from one pipe at one wake-up, in bytes: a program that prints without end cannot hide the deadline.
const PUMP: usize = 64 * 1024;
/// Read from one pipe after the program's end, in bytes: a pipe holds at most as much (`fs.pipe-max-size`).
const LAST_PUMP: usize = 1024 * 1024;
/// How long a program may take to die of SIGKILL before it is left to [`STUCK`]. Only one that the kernel holds in an
/// uninterruptible wait takes longer.
const KILL_WAIT: Duration = Duration::from_secs(2);
/// Refuse to start programs once this many survive SIGKILL.
const STUCK_MAX: usize = 64;

/// Programs that SIGKILL has not ended yet. Each call reaps those that have ended meanwhile.
static STUCK: Mutex<Vec<Child>> = Mutex::new(Vec::new());

/// What to run.
#[derive(Debug)]
pub struct Program {
    /// The executable's absolute path: nothing is looked up on a PATH.
    pub path: PathBuf,
    /// Its arguments, without the program's name.
    pub args: Vec<OsString>,
    /// Its whole environment.
    pub env: Vec<(OsString, OsString)>,
    /// What it finds on its standard input: a sealed file in memory, which it may also open anew as
    /// `/proc/self/fd/0`. `None`: /dev/null.
    pub input: Option<Vec<u8>>,
}

/// What it may take.
#[derive(Debug, Clone, Copy)]
pub struct Bounds {
    /// From the start until it is told to end.
    pub deadline: Duration,
    /// From SIGTERM until SIGKILL.
    pub grace: Duration,
    /// Bytes kept of each stream: the first ones of standard output, the last ones of standard error.
    pub output: usize,
    /// The last ones of standard output too.
    pub tail: bool,
}

/// How it ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ended {
    /// By itself, with this status.
    Exit(i32),
    /// By a signal that was not ours.
    Signal(i32),
    /// It was ended at its deadline.
    Deadline,
    /// It was ended because [`Cancel::cancel`] was called.
    Cancelled,
    /// It was ended because its [`Watch`] saw that it does not go on.
    Stalled,
}

/// A program that has ended (or, after a deadline, one that not even SIGKILL ends).
#[derive(Debug)]
pub struct Finished {
    /// How.
    pub ended: Ended,
    /// The first bytes of its standard output.
    pub stdout: Vec<u8>,
    /// Whether it printed more than that.
    pub stdout_cut: bool,
    /// The last bytes of its standard error.
    pub stderr: Vec<u8>,
    /// Whether it printed more than that.
    pub stderr_cut: bool,
    /// How long it ran.
    pub took: Duration,
}

/// Why a program could not be run, with what to do about it. A program that fails is not an error: see
/// [`Finished::ended`].
pub type Error = String;

/// A flag that ends a program from another thread. Clones are the same flag; once raised it stays so.
#[derive(Debug, Clone)]
pub struct Cancel(Wakeup);

impl Cancel {
    /// A flag that is not raised.
    ///
    /// # Errors
    /// The kernel's, without a free descriptor.
    pub fn new() -> io::Result<Self> {
        Wakeup::new().map(Self)
    }

    /// Waits until the flag is raised, at most for `time`; says whether it is.
    pub fn wait(&self, time: Duration) -> bool {
        let until = Instant::now() + time;
        loop {
            let mut fds = [PollFd::new(&self.0, PollFlags::IN)];
            // What cannot be waited for is not raised; the callers' own deadlines bound how often they ask.
            if poll_until(&mut fds, Some(until)).is_err() || !fds[0].revents().is_empty() {
                return !fds[0].revents().is_empty();
            }
            if Instant::now() >= until {
                return false;
            }
        }
    }

    /// Raises the flag; never blocks.
    pub fn cancel(&self) {
        self.0.wake();
    }
}

/// Looks after a program while it runs.
pub struct Watch<'a> {
    /// How long one look comes after the other.
    pub every: Duration,
    /// Whether the program with this process ID, which has printed this, goes on. It must not block.
    pub goes_on: &'a mut dyn FnMut(u32, &[u8]) -> bool,
}

/// Runs `program` to its end and says how it ended. Returns at the latest after the deadline, the grace time and two
/// seconds.
///
/// # Errors
/// [`Error`] when it could not be started or watched.
pub fn run(program: &Program, bounds: &Bounds, cancel: Option<&Cancel>) -> Result<Finished, Error> {
    run_watched(program, bounds, cancel, None)
}

/// The same with a look after it, which can end it before its deadline.
///
/// # Errors
/// As for [`run`].
pub fn run_watched(
    program: &Program,
    bounds: &Bounds,
    cancel: Option<&Cancel>,
    after: Option<Watch<'_>>,
) -> Result<Finished, Error> {
    if !program.path.is_absolute() {
        return Err(format!("cannot start {}: give its absolute path", program.path.display()));
    }
    trust::program(&program.path).map_err(|why| format!("cannot start a program: {why}"))?;
    may_start(reap_stuck())?;
    let mut child = start(program)?;
    let started = Instant::now();
    let watched = Streams::new(&mut child, bounds)
        .and_then(|streams| Ok((pidfd_open(Pid::from_child(&child), PidfdFlags::empty())?, streams)));
    let failed = |child, source: io::Error| {
        give_up(child);
        let path = program.path.display();
        Err(if source.raw_os_error() == Some(rustix::io::Errno::NOSYS.raw_os_error()) {
            format!("cannot watch {path}: this kernel has no pidfd_open; use Linux 5.3 or later")
        } else {
            format!("cannot watch {path}, so it was killed: {source}; free memory or descriptors")
        })
    };
    let (pidfd, mut streams) = match watched {
        Ok(both) => both,
        Err(source) => return failed(child, source),
    };
    let end = watch(&child, pidfd.as_fd(), &mut streams, started, bounds, cancel, after);
    let ended = match end {
        Err(source) => return failed(child, source),
        Ok(End::Stuck(forced)) => {
            give_up(child);
            forced
        }
        Ok(End::Dead(forced)) => {
            streams.pump(LAST_PUMP);
            signal_group(&child, Signal::KILL);
            match (child.try_wait(), forced) {
                (Ok(Some(_)), Some(forced)) => forced,
                (Ok(Some(status)), None) => natural_end(status),
                (Ok(None), _) => return failed(child, io::ErrorKind::WouldBlock.into()),
                (Err(source), _) => return failed(child, source),
            }
        }
    };
    let (stdout, stdout_cut) = streams.out.finish();
    let (stderr, stderr_cut) = streams.err.finish();
    Ok(Finished { ended, stdout, stdout_cut, stderr, stderr_cut, took: started.elapsed() })
}

/// Replaces this process by the program, which gets our standard input and outputs. Returns only why that failed.
pub fn replace(program: &Program) -> io::Error {
    if let Err(why) = trust::program(&program.path) {
        return io::Error::new(io::ErrorKind::PermissionDenied, why);
    }
    Command::new(&program.path)
        .args(&program.args)
        .env_clear()
        .envs(program.env.iter().map(|(name, value)| (name, value)))
        .exec()
}

/// The first of `dirs` that holds an executable file called `name`, joined with it; a `name` with a `/` is taken as it
/// is. `None` when there is no such file.
pub fn find(name: &str, dirs: &[&Path]) -> Option<PathBuf> {
    let executable =
        |path: &PathBuf| path.metadata().is_ok_and(|m| m.is_file() && m.permissions().mode() & 0o111 != 0);
    if name.contains('/') {
        return Some(PathBuf::from(name)).filter(executable);
    }
    dirs.iter().map(|dir| dir.join(name)).find(executable)
}

fn start(program: &Program) -> Result<Child, Error> {
    let input = match &program.input {
        None => Stdio::null(),
        Some(bytes) => Stdio::from(sealed(bytes).map_err(|error| {
            format!("cannot keep a program's input in memory: {error}; free memory or descriptors")
        })?),
    };
    // Whatever is added here must keep std on posix_spawn: a fork would copy the agent's page tables, and between fork
    // and exec nothing but async-signal-safe code may run. So no pre_exec, no uid, no PATH look-up.
    Command::new(&program.path)
        .args(&program.args)
        .env_clear()
        .envs(program.env.iter().map(|(name, value)| (name, value)))
        .current_dir("/")
        .process_group(0)
        .stdin(input)
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(|error| {
            let path = program.path.display();
            match error.kind() {
                io::ErrorKind::NotFound => {
                    format!("cannot start {path}: there is no such program; install it or correct its path")
                }
                _ => format!("cannot start {path}: {error}; see that it may be executed here"),
            }
        })
}

/// A file in memory that nobody can change any more, close-on-exec, read from its beginning.
fn sealed(bytes: &[u8]) -> io::Result<File> {
    let mut file = File::from(memfd_create("input", MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING)?);
    file.write_all(bytes)?;
    file.rewind()?;
    fcntl_add_seals(&file, SealFlags::WRITE | SealFlags::GROW | SealFlags::SHRINK | SealFlags::SEAL)?;
    Ok(file)
}

/// What the watching came to; inside, why the program was ended by us, if it was.
enum End {
    Dead(Option<Ended>),
    Stuck(Ended),
}

/// What is being waited for.
#[derive(Clone, Copy)]
enum Phase {
    Running,
    Terminated(Ended),
    Killed(Ended),
}

fn watch(
    child: &Child,
    pidfd: BorrowedFd<'_>,
    streams: &mut Streams,
    started: Instant,
    bounds: &Bounds,
    cancel: Option<&Cancel>,
    mut after: Option<Watch<'_>>,
) -> io::Result<End> {
    let mut phase = Phase::Running;
    let mut limit = started + bounds.deadline;
    let mut next_look = after.as_ref().map(|after| started + after.every);
    loop {
        let wake = wait(
            pidfd,
            streams,
            cancel.filter(|_| matches!(phase, Phase::Running)),
            next_look.map_or(limit, |look| look.min(limit)),
        )?;
        if wake.dead {
            return Ok(End::Dead(match phase {
                Phase::Running => None,
                Phase::Terminated(why) | Phase::Killed(why) => Some(why),
            }));
        }
        streams.pump(PUMP);
        let now = Instant::now();
        let mut stalls = false;
        if let (Some(look), Some(after)) = (next_look, &mut after)
            && now >= look
        {
            stalls = !(after.goes_on)(child.id(), &streams.out.kept);
            next_look = (!stalls).then_some(now + after.every);
        }
        if now < limit && !wake.cancelled && !stalls {
            continue;
        }
        phase = match phase {
            Phase::Running => {
                signal_group(child, Signal::TERM);
                limit = now + bounds.grace;
                next_look = None;
                Phase::Terminated(if wake.cancelled {
                    Ended::Cancelled
                } else if stalls {
                    Ended::Stalled
                } else {
                    Ended::Deadline
                })
            }
            Phase::Terminated(why) => {
                signal_group(child, Signal::KILL);
                limit = now + KILL_WAIT;
                Phase::Killed(why)
            }
            Phase::Killed(why) => return Ok(End::Stuck(why)),
        };
    }
}

struct Wake {
    dead: bool,
    cancelled: bool,
}

/// Sleeps until the program ends, prints something, is cancelled, or `limit` has come.
fn wait(
    pidfd: BorrowedFd<'_>,
    streams: &Streams,
    cancel: Option<&Cancel>,
    limit: Instant,
) -> io::Result<Wake> {
    let read = |fd| PollFd::from_borrowed_fd(fd, PollFlags::IN);
    // Where there is nothing to watch, the pidfd stands in.
    let cancel_fd = cancel.map_or(pidfd, |c| c.0.as_fd());
    let mut fds = [
        read(pidfd),
        read(cancel_fd),
        read(streams.out.fd().unwrap_or(pidfd)),
        read(streams.err.fd().unwrap_or(pidfd)),
    ];
    poll_until(&mut fds, Some(limit))?;
    let ready = |at: usize| !fds[at].revents().is_empty();
    Ok(Wake { dead: ready(0), cancelled: cancel.is_some() && ready(1) })
}

fn natural_end(status: ExitStatus) -> Ended {
    match (status.code(), status.signal()) {
        (Some(code), _) => Ended::Exit(code),
        (None, signal) => Ended::Signal(signal.unwrap_or(0)),
    }
}

/// Sends `signal` to the program's group. Its leader must not have been reaped: until then the number is its own.
fn signal_group(child: &Child, signal: Signal) {
    // It fails only when nobody in the group is left to be told.
    let _ = kill_process_group(Pid::from_child(child), signal);
}

/// Kills what is left of a program and leaves it to later calls to reap it.
fn give_up(child: Child) {
    signal_group(&child, Signal::KILL);
    stuck().push(child);
}

/// Reaps what has ended meanwhile; returns how many have not.
fn reap_stuck() -> usize {
    let mut stuck = stuck();
    stuck.retain_mut(|child| matches!(child.try_wait(), Ok(None)));
    stuck.len()
}

/// Whether one more program may be started beside those that cannot be ended.
fn may_start(stuck: usize) -> Result<(), Error> {
    if stuck < STUCK_MAX {
        return Ok(());
    }
    Err(format!(
        "{stuck} programs hang in the kernel and not even SIGKILL ends them; look at the kernel's log and reboot"
    ))
}

fn stuck() -> MutexGuard<'static, Vec<Child>> {
    STUCK.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Both of a program's streams.
struct Streams {
    out: Stream,
    err: Stream,
}

impl Streams {
    fn new(child: &mut Child, bounds: &Bounds) -> io::Result<Self> {
        let (limit, keep) = (bounds.output, if bounds.tail { Keep::Tail } else { Keep::Head });
        let out = child.stdout.take().map(OwnedFd::from);
        let err = child.stderr.take().map(OwnedFd::from);
        Ok(Self { out: Stream::new(out, limit, keep)?, err: Stream::new(err, limit, Keep::Tail)? })
    }

    fn pump(&mut self, most: usize) {
        self.out.pump(most);
        self.err.pump(most);
    }
}

#[derive(Clone, Copy)]
enum Keep {
    Head,
    Tail,
}

/// A pipe's reading end and what is kept of what came out of it.
struct Stream {
    /// `None` once it has ended.
    pipe: Option<File>,
    kept: Vec<u8>,
    limit: usize,
    keep: Keep,
    cut: bool,
}

impl Stream {
    fn new(pipe: Option<OwnedFd>, limit: usize, keep: Keep) -> io::Result<Self> {
        if let Some(fd) = &pipe {
            rustix::io::ioctl_fionbio(fd, true)?;
        }
        Ok(Self { pipe: pipe.map(File::from), kept: Vec::new(), limit, keep, cut: false })
    }

    fn fd(&self) -> Option<BorrowedFd<'_>> {
        self.pipe.as_ref().map(AsFd::as_fd)
    }

    /// Takes what is there, up to about `most` bytes; never blocks.
    fn pump(&mut self, most: usize) {
        let mut buffer = [0u8; 8192];
        let mut taken = 0;
        while taken < most {
            let Some(pipe) = &mut self.pipe else { return };
            match pipe.read(&mut buffer) {
                Ok(0) => self.pipe = None,
                Ok(n) => {
                    taken += n;
                    self.take(&buffer[..n]);
                }
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => return,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(_) => self.pipe = None,
            }
        }
    }

    fn take(&mut self, bytes: &[u8]) {
        match self.keep {
            Keep::Head => {
                let room = self.limit - self.kept.len();
                self.cut |= bytes.len() > room;
                self.kept.extend_from_slice(&bytes[..bytes.len().min(room)]);
            }
            Keep::Tail => {
                self.kept.extend_from_slice(bytes);
                // Twice the bound may lie here for a while, so that not every read moves the whole tail.
                if self.kept.len() > 2 * self.limit {
                    self.shorten();
                }
            }
        }
    }

    fn shorten(&mut self) {
        if let Some(over) = self.kept.len().checked_sub(self.limit).filter(|over| *over > 0) {
            self.kept.drain(..over);
            self.cut = true;
        }
    }

    fn finish(mut self) -> (Vec<u8>, bool) {
        self.shorten();
        (self.kept, self.cut)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LONG: Duration = Duration::from_secs(60);

    fn shell(script: &str) -> Program {
        Program {
            path: "/bin/sh".into(),
            args: vec!["-c".into(), script.into()],
            env: vec![("PATH".into(), "/usr/bin:/bin".into())],
            input: None,
        }
    }

    fn bounds(deadline: Duration, grace: Duration) -> Bounds {
        Bounds { deadline, grace, output: 64 * 1024, tail: false }
    }

    fn ok(program: &Program) -> Finished {
        run(program, &bounds(LONG, LONG), None).unwrap()
    }

    /// The state letter of `/proc/PID/stat`; `None` when there is no such process.
    fn state(pid: &str) -> Option<char> {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        stat.rsplit_once(") ")?.1.chars().next()
    }

    /// Waits for a process that was killed to be gone or a zombie of init's.
    fn ends(pid: &str) -> bool {
        let until = Instant::now() + LONG;
        while Instant::now() < until {
            if matches!(state(pid), None | Some('Z')) {
                return true;
            }
            std::thread::yield_now();
        }
        false
    }

    #[test]
    fn tells_how_it_ended() {
        let check = |script: &str, ended: Ended| assert_eq!(ok(&shell(script)).ended, ended, "{script}");
        check("exit 0", Ended::Exit(0));
        check("exit 7", Ended::Exit(7));
        check("kill -9 $$", Ended::Signal(9));
    }

    #[test]
    fn keeps_both_streams_apart() {
        let finished = ok(&shell("echo out; echo err >&2"));
        assert_eq!((finished.stdout.as_slice(), finished.stderr.as_slice()), (&b"out\n"[..], &b"err\n"[..]));
        assert!(!finished.stdout_cut);
    }

    #[test]
    fn ends_it_at_the_deadline() {
        let started = Instant::now();
        let finished =
            run(&shell("echo $$; sleep 600"), &bounds(Duration::from_millis(200), LONG), None).unwrap();
        assert_eq!(finished.ended, Ended::Deadline);
        assert!(finished.took >= Duration::from_millis(200));
        assert!(started.elapsed() < LONG, "SIGTERM ended it, not SIGKILL");
        // Reaped, not left as a zombie.
        assert_eq!(state(String::from_utf8(finished.stdout).unwrap().trim()), None);
    }

    #[test]
    fn kills_what_ignores_sigterm_with_its_children() {
        let script = "trap '' TERM; sleep 600 & echo $$ $!; while :; do wait; done";
        let brief = Duration::from_millis(200);
        let finished = run(&shell(script), &bounds(brief, brief), None).unwrap();
        assert_eq!(finished.ended, Ended::Deadline);
        assert!(finished.took >= 2 * brief);
        let printed = String::from_utf8(finished.stdout).unwrap();
        let (leader, other) = printed.trim().split_once(' ').unwrap();
        assert_eq!(state(leader), None);
        assert!(ends(other));
    }

    #[test]
    fn does_not_wait_for_a_grandchild_that_holds_the_pipe() {
        let finished = ok(&shell("sleep 600 & echo $!"));
        assert_eq!(finished.ended, Ended::Exit(0));
        assert!(finished.took < LONG);
        // It was in the group, so it is gone as well.
        assert!(ends(String::from_utf8(finished.stdout).unwrap().trim()));
        // One that left the group holds the pipe and is none of our business.
        let away = ok(&shell("setsid sleep 20 & echo here"));
        assert_eq!(away.stdout, b"here\n");
        assert!(away.took < Duration::from_secs(15));
    }

    #[test]
    fn bounds_output_without_end() {
        let script = "while :; do echo yyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyy; done";
        let finished = run(&shell(script), &bounds(Duration::from_millis(300), LONG), None).unwrap();
        assert_eq!(finished.ended, Ended::Deadline);
        assert_eq!((finished.stdout.len(), finished.stdout_cut), (64 * 1024, true));
    }

    #[test]
    fn keeps_the_tail_of_a_long_standard_error() {
        let script = "i=0; while [ $i -lt 20000 ]; do echo line $i >&2; i=$((i+1)); done";
        let small = Bounds { deadline: LONG, grace: LONG, output: 100, tail: false };
        let finished = run(&shell(script), &small, None).unwrap();
        assert_eq!(finished.stderr.len(), 100);
        assert!(finished.stderr.ends_with(b"line 19998\nline 19999\n"));
    }

    #[test]
    fn input_can_be_read_and_opened_but_not_changed() {
        let bytes: Vec<u8> = (0..200_000u32).map(|i| (i % 251) as u8).collect();
        let with_input = |script: &str| Program { input: Some(bytes.clone()), ..shell(script) };
        let big = Bounds { deadline: LONG, grace: LONG, output: 1 << 20, tail: false };
        for script in ["cat", "cat /proc/self/fd/0"] {
            let finished = run(&with_input(script), &big, None).unwrap();
            assert!(finished.stdout == bytes, "{script}");
        }
        assert_ne!(ok(&with_input("echo x >/proc/self/fd/0")).ended, Ended::Exit(0));
        // Without input it is /dev/null; a file in memory that is meant for another program does not reach it.
        let _held = sealed(b"secret").unwrap();
        let script = "readlink /proc/$$/fd/0; for f in /proc/$$/fd/*; do readlink $f; done | grep -c memfd";
        assert_eq!(ok(&shell(script)).stdout, b"/dev/null\n0\n");
    }

    #[test]
    fn environment_and_group_are_its_own() {
        let program = Program {
            path: "/usr/bin/env".into(),
            args: vec![],
            env: vec![("A".into(), "x\ny".into())],
            input: None,
        };
        assert_eq!(ok(&program).stdout, b"A=x\ny\n");
        let finished = ok(&shell("echo $$; cut -d' ' -f5 /proc/$$/stat"));
        let printed = String::from_utf8(finished.stdout).unwrap();
        let (pid, group) = printed.trim().split_once('\n').unwrap();
        assert_eq!(pid, group);
    }

    #[test]
    fn can_be_cancelled_from_another_thread_and_before_the_start() {
        let cancel = Cancel::new().unwrap();
        let other = cancel.clone();
        let thread = std::thread::spawn(move || run(&shell("sleep 600"), &bounds(LONG, LONG), Some(&other)));
        cancel.cancel();
        assert_eq!(thread.join().unwrap().unwrap().ended, Ended::Cancelled);
        let again = run(&shell("sleep 600"), &bounds(LONG, LONG), Some(&cancel)).unwrap();
        assert_eq!(again.ended, Ended::Cancelled);
    }

    #[test]
    fn one_that_does_not_go_on_is_ended_before_its_deadline() {
        let mut looks = 0;
        let mut goes_on = |pid: u32, printed: &[u8]| {
            looks += 1;
            assert!(state(&pid.to_string()).is_some());
            !(looks > 2 && printed == b"x\n")
        };
        let watch = Watch { every: Duration::from_millis(20), goes_on: &mut goes_on };
        let finished =
            run_watched(&shell("echo x; sleep 600"), &bounds(LONG, LONG), None, Some(watch)).unwrap();
        assert_eq!(finished.ended, Ended::Stalled);
        assert!(looks > 2, "{looks}");
        let mut goes_on = |_: u32, _: &[u8]| true;
        let watch = Watch { every: Duration::from_millis(20), goes_on: &mut goes_on };
        let brief = bounds(Duration::from_millis(200), LONG);
        let finished = run_watched(&shell("sleep 600"), &brief, None, Some(watch)).unwrap();
        assert_eq!(finished.ended, Ended::Deadline);
    }

    #[test]
    fn says_what_cannot_be_started() {
        let program = |path: &str| Program { path: path.into(), ..shell("") };
        let check = |path: &str, starts: &str| {
            let error = run(&program(path), &bounds(LONG, LONG), None).unwrap_err();
            assert!(error.to_string().starts_with(starts), "{error}");
        };
        check("/no/such", "cannot start /no/such: there is no such program");
        check("sh", "cannot start sh: give its absolute path");
        check("/etc/passwd", "cannot start /etc/passwd: Permission denied");
    }

    #[test]
    fn one_that_was_given_up_is_reaped_by_a_later_call() {
        let child = start(&shell("sleep 600")).unwrap();
        let pid = child.id().to_string();
        give_up(child);
        let until = Instant::now() + LONG;
        while state(&pid).is_some() {
            assert!(Instant::now() < until, "still there");
            assert_eq!(ok(&shell(":")).ended, Ended::Exit(0));
        }
    }

    #[test]
    fn no_more_are_started_beside_many_that_cannot_be_ended() {
        assert_eq!(may_start(STUCK_MAX - 1), Ok(()));
        assert!(may_start(STUCK_MAX).unwrap_err().contains("reboot"));
    }

    #[test]
    fn finds_executables_only() {
        let dirs = [Path::new("/no/such"), Path::new("/etc"), Path::new("/bin")];
        assert_eq!(find("sh", &dirs), Some("/bin/sh".into()));
        assert_eq!(find("hostname-of-nobody", &dirs), None);
        assert_eq!(find("/bin/sh", &[]), Some("/bin/sh".into()));
        assert_eq!(find("/etc/passwd", &[]), None);
        assert_eq!(find("passwd", &[Path::new("/etc")]), None);
    }
}
