//! What a person, or the supervisor, runs: from the command line to an exit status. The only place that chooses one.
//!
//! A command returns what it prints, and it is printed in one place, so that a full disk behind `>` is an error and a closed
//! pipe is not.

mod check;
mod info;
mod notes;
mod status;
pub mod vfio;

use std::ffi::OsString;
use std::fmt::Display;
use std::io::{self, Write};
use std::path::Path;

use crate::cli::{self, Command, Form, PROGRAM};
use crate::config::{self, Config, Loaded, Need};
use crate::core::operator::Request;
use crate::setup::{self, Setup};
use crate::{agent, control, host, logging};

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
    let invocation = match cli::parse(arguments) {
        Ok(invocation) => invocation,
        Err(error) => return failed(&error, USAGE),
    };
    if let Command::Print(text) = &invocation.command {
        return print(text, OK);
    }
    let need = match invocation.command {
        Command::Status(_) | Command::Request(..) => Need::Socket,
        _ => Need::All,
    };
    match config::load(&invocation.overrides, std::env::vars_os(), need) {
        Ok(loaded) => {
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
            let setup = Setup::new(config);
            let notes = notes::all(config, &setup);
            let (text, ready) = check::run(setup.inputs, &notes, form);
            print(&text, if ready { OK } else { FAILED })
        }
        Command::Info(form) => {
            let gpus = setup::gpu_reader(config)().unwrap_or_default();
            let storage = host::storage::read(&Setup::new(config).data_path);
            let storage = storage.as_ref().map(|(storage, _)| storage);
            let mut hardware = host::hardware(&config.root, gpus);
            let instance = config.instance.as_deref();
            let machine_id = hardware.machine_id.take();
            hardware.machine_id = machine_id.map(|id| host::identity::of_instance(id, instance));
            print(&info::render(&hardware, storage, form), OK)
        }
        Command::Status(form) => request(config, &Request::Status, form),
        Command::Request(asked, form) => request(config, &asked, form),
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
                agent::Error::Settings(_) | agent::Error::State(_) | agent::Error::NoIdentity(_) => {
                    CONFIGURATION
                }
                agent::Error::TokenRefused(_) => TOKEN_REFUSED,
                agent::Error::Start(..) => FAILED,
            }
        }
    }
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
        Err(error) => failed(&format!("cannot write to standard output: {error}"), FAILED),
    }
}

/// A reader that does not read to the end (`… | head`) is no error.
fn print_to(out: &mut dyn Write, text: &str) -> io::Result<()> {
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        result => result,
    }
}

/// Runs a command that prints while it works, and that must not stop half-way because nobody reads it.
fn progress<E: Display>(work: impl FnOnce(&mut dyn Write) -> Result<(), E>) -> u8 {
    let mut out = Progress(Ok(()));
    match (work(&mut out), out.0) {
        (Err(error), _) => failed(&error, FAILED),
        (Ok(()), Err(error)) => failed(&format!("cannot write to standard output: {error}"), FAILED),
        (Ok(()), Ok(())) => OK,
    }
}

/// Standard output that never fails, and remembers why it should have.
struct Progress(io::Result<()>);

impl Write for Progress {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if let Err(error) = io::stdout().write_all(bytes)
            && error.kind() != io::ErrorKind::BrokenPipe
        {
            self.0 = Err(error);
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
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
