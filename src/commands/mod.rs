//! What a person, or the supervisor, runs: from the command line to an exit status. The only place that chooses one.
//!
//! A command returns what it prints, and it is printed in one place, so that a full disk behind `>` is an error and a closed
//! pipe is not.

mod check;
mod drain;
mod engine;
mod history;
mod info;
mod logs;
mod notes;
mod prove;
mod reach;
mod replicas;
mod report;
mod status;
pub mod vfio;

use std::ffi::OsString;
use std::fmt::Display;
use std::io::{self, IsTerminal, Write};
use std::path::Path;
use std::time::Duration;

use crate::cli::{self, Command, Form, PROGRAM};
use crate::config::{self, Config, Loaded, Need};
use crate::core::operator::Request;
use crate::setup::{self, Setup};
use crate::{agent, control, hardening, host, logging, store};

/// The exit statuses. The help and the man page list them too.
const OK: u8 = 0;
const FAILED: u8 = 1;
const USAGE: u8 = 2;
const CONFIGURATION: u8 = 3;
const TOKEN_REFUSED: u8 = 4;

/// Runs the command line `arguments`, which do not include the program's name. Returns the exit status.
pub fn main(arguments: Vec<OsString>) -> u8 {
    if let Some(written) = vfio::as_writer(&arguments) {
        return written.map_or_else(|error| failed(&error, FAILED), |()| OK);
    }
    if prove::is_inside(&arguments) {
        return print(&prove::report(), OK);
    }
    let invocation = match cli::parse(arguments) {
        Ok(invocation) => invocation,
        Err(error) => return failed(&error, USAGE),
    };
    if let Command::Print(text) = &invocation.command {
        return print(text, OK);
    }
    let need = match invocation.command {
        Command::Status { .. } | Command::Request(..) | Command::DrainAndWait { .. } | Command::Metrics => {
            Need::Socket
        }
        _ => Need::All,
    };
    let unhardened = hardening::harden();
    match config::load(&invocation.overrides, std::env::vars_os(), need) {
        Ok(mut loaded) => {
            loaded.warnings.extend(unhardened);
            let code = run(invocation.command, loaded);
            logging::flush();
            code
        }
        Err(error) => failed(&error, CONFIGURATION),
    }
}

fn run(command: Command, loaded: Loaded) -> u8 {
    logging::start(loaded.config.log, loaded.config.log_format);
    for warning in &loaded.warnings {
        log::warn!("{warning}");
    }
    let config = &loaded.config;
    match command {
        Command::Run => match loaded.token_error {
            Some(error) => failed(&error, CONFIGURATION),
            None => run_agent(config, loaded.file.as_deref()),
        },
        Command::Config(form) => {
            let text = match form {
                Form::Text => config::text(&loaded.settings),
                Form::Json => format!("{:#}\n", config::json(&loaded.settings)),
            };
            match (print(&text, OK), loaded.token_error) {
                (OK, Some(error)) => failed(&error, CONFIGURATION),
                (code, _) => code,
            }
        }
        Command::Check(form) => {
            let (text, ready) = check(config, form);
            print(&text, if ready { OK } else { FAILED })
        }
        Command::Prove(gpus, form) => match prove::run(config, &gpus, form) {
            Ok((text, proved)) => print(&text, if proved { OK } else { FAILED }),
            Err(error) => failed(&error, FAILED),
        },
        Command::Info(form) => print(&info(config, form), OK),
        Command::Status { form, watch: false } => show_status(config, form),
        Command::Status { form, watch: true } => watch_status(config, form),
        Command::Replicas(form) => {
            let status = control::request(&config.control_socket, &Request::Status);
            match engine::containers(&Setup::new(config).cli) {
                Ok(all) => print(&replicas::render(&all, status.as_ref().map_err(String::as_str), form), OK),
                Err(error) => failed(&error, FAILED),
            }
        }
        Command::Logs { replica, follow, tail } => {
            let cli = Setup::new(config).cli;
            let mut out = Progress::until_closed();
            match (logs::run(&cli, &config.log_dir, &replica, follow, tail, &mut out), out.error) {
                // Nobody reads on: that is how following ends.
                (_, Some(error)) if error.kind() == io::ErrorKind::BrokenPipe => OK,
                (Err(error), _) => failed(&error, FAILED),
                (Ok(()), Some(error)) => failed(&cannot_write(&error), FAILED),
                (Ok(()), None) => OK,
            }
        }
        Command::History(form) => match history(config, form) {
            Ok(text) => print(&text, OK),
            Err(error) => failed(&error, FAILED),
        },
        Command::Metrics => match control::request(&config.control_socket, &Request::Status) {
            Ok(status) => print(&agent::metrics::render(&status), OK),
            Err(error) => failed(&error, FAILED),
        },
        Command::Report => print(&report(&loaded), OK),
        Command::Request(asked, form) => request(config, &asked, form),
        Command::DrainAndWait { form, deadline } => drain_and_wait(config, form, deadline),
        Command::VfioStatus(form) => match vfio::status(config, form) {
            Ok(text) => print(&text, OK),
            Err(error) => failed(&error, FAILED),
        },
        Command::VfioBind(change) => {
            progress(|out| vfio::bind(&change, config.vfio_bind.as_deref(), &config.root, out))
        }
        Command::VfioUnbind(change) => progress(|out| vfio::unbind(&change, &config.root, out)),
        Command::Print(text) => print(&text, OK),
    }
}

fn run_agent(config: &Config, file: Option<&Path>) -> u8 {
    match agent::run(config, file) {
        Ok(()) => OK,
        Err(error) => {
            log::error!("{error}");
            match error {
                agent::Error::Configuration(_) => CONFIGURATION,
                agent::Error::TokenRefused(_) => TOKEN_REFUSED,
                agent::Error::Start(..) => FAILED,
            }
        }
    }
}

/// What to print, and whether the host is ready.
fn check(config: &Config, form: Form) -> (String, bool) {
    let setup = Setup::new(config);
    let notes = notes::all(config, &setup);
    check::run(setup.inputs, reach::check(config), &notes, form)
}

fn info(config: &Config, form: Form) -> String {
    let gpus = setup::gpu_reader(config)().unwrap_or_default();
    let storage = host::storage::read(&setup::data_path(config, Setup::new(config).cli.flavour));
    let hardware = host::hardware(&config.root, config.instance.as_deref(), gpus);
    info::render(&hardware, storage.as_ref().map(|(storage, _)| storage), form)
}

fn history(config: &Config, form: Form) -> Result<String, String> {
    let (lines, alive) = store::history::read(&config.state_dir)
        .map_err(|error| format!("cannot read the history in {}: {error}", config.state_dir.display()))?;
    Ok(history::render(&lines, alive, engine::now(), form))
}

fn show_status(config: &Config, form: Form) -> u8 {
    match control::request(&config.control_socket, &Request::Status) {
        Ok(status) => {
            print(&status::render(&status, form), if status::is_well(&status) { OK } else { FAILED })
        }
        Err(error) => failed(&error, FAILED),
    }
}

/// Shows the status again and again, until the reader goes away or Ctrl-C.
fn watch_status(config: &Config, form: Form) -> u8 {
    const SHOW_EVERY: Duration = Duration::from_secs(2);
    // Clears a terminal and goes to its top (ECMA-48); elsewhere one status follows the other.
    let clear = if io::stdout().is_terminal() { "\x1b[2J\x1b[H" } else { "" };
    loop {
        let text = match control::request(&config.control_socket, &Request::Status) {
            Ok(status) => status::render(&status, form),
            Err(error) => format!("{error}\n"),
        };
        let mut out = io::stdout().lock();
        let written = out.write_all(format!("{clear}{text}").as_bytes()).and_then(|()| out.flush());
        match written {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => return OK,
            Err(error) => return failed(&cannot_write(&error), FAILED),
        }
        drop(out);
        std::thread::sleep(SHOW_EVERY);
    }
}

fn drain_and_wait(config: &Config, form: Form, deadline: Option<Duration>) -> u8 {
    let socket = &config.control_socket;
    let ask = || control::request(socket, &Request::Status);
    let say = |line: &str| {
        // For people, who may have closed it.
        let _ = writeln!(io::stderr(), "{PROGRAM}: waiting: {line}");
    };
    let waited = control::request(socket, &Request::Drain).and_then(|_| drain::wait(deadline, ask, say));
    match waited {
        Ok(status) => print(&status::render(&status, form), OK),
        Err(error) => failed(&error, FAILED),
    }
}

fn report(loaded: &Loaded) -> String {
    let config = &loaded.config;
    let socket = &config.control_socket;
    let status = control::request(socket, &Request::Status).map(|status| status::render(&status, Form::Text));
    report::render(&[
        ("version", Ok(cli::version())),
        ("settings", Ok(config::text(&loaded.settings))),
        ("check", Ok(check(config, Form::Text).0)),
        ("hardware", Ok(info(config, Form::Text))),
        ("GPUs", vfio::status(config, Form::Text).map_err(|e| e.to_string())),
        ("status", status),
        ("history", history(config, Form::Text)),
        ("log of the agent", control::recent_log(socket).map(|lines| lines.join("\n") + "\n")),
        ("log of the kernel about GPUs", report::kernel_lines(&config.root)),
    ])
}

/// Sends a request to the running agent and prints the status that it answers with.
fn request(config: &Config, request: &Request, form: Form) -> u8 {
    match control::request(&config.control_socket, request) {
        Ok(answer) => print(&status::render(&answer, form), OK),
        Err(error) => failed(&error, FAILED),
    }
}

/// Prints `text` and returns `code`, or [`FAILED`] if it cannot be printed.
fn print(text: &str, code: u8) -> u8 {
    match print_to(&mut io::stdout().lock(), text) {
        Ok(()) => code,
        Err(error) => failed(&cannot_write(&error), FAILED),
    }
}

/// A reader that does not read to the end (`… | head`) is not an error.
fn print_to(out: &mut dyn Write, text: &str) -> io::Result<()> {
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        result => result,
    }
}

/// Runs a command that prints while it works, and that must not stop half-way because nobody reads it.
fn progress<E: Display>(work: impl FnOnce(&mut dyn Write) -> Result<(), E>) -> u8 {
    let mut out = Progress { error: None, ends_when_closed: false };
    match (work(&mut out), out.error) {
        (Err(error), _) => failed(&error, FAILED),
        (Ok(()), Some(error)) if error.kind() != io::ErrorKind::BrokenPipe => {
            failed(&cannot_write(&error), FAILED)
        }
        (Ok(()), _) => OK,
    }
}

/// Standard output that remembers why it failed.
struct Progress {
    error: Option<io::Error>,
    /// Whether a failed write fails the work, too.
    ends_when_closed: bool,
}

impl Progress {
    fn until_closed() -> Self {
        Self { error: None, ends_when_closed: true }
    }

    fn note(&mut self, result: io::Result<()>) -> io::Result<()> {
        match result {
            Ok(()) => Ok(()),
            Err(error) => {
                let kind = error.kind();
                self.error = Some(error);
                if self.ends_when_closed { Err(kind.into()) } else { Ok(()) }
            }
        }
    }
}

impl Write for Progress {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = io::stdout().write_all(bytes);
        self.note(written).map(|()| bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        let flushed = io::stdout().flush();
        self.note(flushed)
    }
}

fn cannot_write(error: &io::Error) -> String {
    format!("cannot write to standard output: {error}")
}

fn failed(error: &dyn Display, code: u8) -> u8 {
    // If standard error is closed, nobody can be told.
    let _ = writeln!(io::stderr(), "{PROGRAM}: {error}");
    code
}

/// `1 replica`, `2 replicas`.
fn counted(number: usize, noun: &str) -> String {
    format!("{number} {noun}{}", if number == 1 { "" } else { "s" })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_closed_pipe_is_no_failure_and_a_full_disk_is_one() {
        struct Failing(io::ErrorKind);
        impl Write for Failing {
            fn write(&mut self, _: &[u8]) -> io::Result<usize> {
                Err(self.0.into())
            }
            fn flush(&mut self) -> io::Result<()> {
                Ok(())
            }
        }
        assert!(print_to(&mut Failing(io::ErrorKind::BrokenPipe), "x").is_ok());
        assert!(print_to(&mut Failing(io::ErrorKind::StorageFull), "x").is_err());
    }
}
