//! The command line: argv to a command. The only place that sets an exit code: 0 a clean end, 1 a failure (and `check`
//! not ready), 2 usage, 3 configuration, identity or a held lock, 4 the token refused.

use std::ffi::OsString;
use std::io::{self, Write};
use std::process::ExitCode;

use vectorlay::agent;
use vectorlay::cli::{self, Command, Form, Invocation};
use vectorlay::commands::{check, info, remarks, status, vfio};
use vectorlay::config::{self, Config, Loaded, Need};
use vectorlay::control;
use vectorlay::core::operator::Request;
use vectorlay::host;
use vectorlay::logging;
use vectorlay::setup::{self, Setup};

const FAILED: u8 = 1;
const USAGE: u8 = 2;
const CONFIGURATION: u8 = 3;
const TOKEN_REFUSED: u8 = 4;

fn main() -> ExitCode {
    let arguments: Vec<OsString> = std::env::args_os().skip(1).collect();
    if let Some(written) = vfio::as_writer(&arguments) {
        return ended(written, FAILED);
    }
    let invocation = match cli::parse(arguments) {
        Ok(invocation) => invocation,
        Err(error) => return failed(&error, USAGE),
    };
    let mut out = io::stdout().lock();
    if let Command::Print(text) = &invocation.command {
        return ended(cli::print(&mut out, text), FAILED);
    }
    let need = match invocation.command {
        Command::Status(_) | Command::Ask(_) => Need::Socket,
        _ => Need::All,
    };
    match config::load(&invocation.overrides, std::env::vars_os(), need) {
        Ok(loaded) => {
            let code = run(&invocation, loaded, &mut out);
            logging::flush();
            code
        }
        Err(error) => failed(&error, CONFIGURATION),
    }
}

fn run(invocation: &Invocation, loaded: Loaded, out: &mut dyn Write) -> ExitCode {
    let Loaded { config, settings, warnings, token_error } = loaded;
    logging::start(config.log, config.log_format);
    for warning in warnings {
        log::warn!("{warning}");
    }
    match &invocation.command {
        Command::Run => match token_error {
            Some(error) => failed(&error, CONFIGURATION),
            None => run_agent(&config),
        },
        Command::Config(form) => {
            let text = match form {
                Form::Text => config::text(&settings),
                Form::Json => format!("{:#}\n", config::json(&settings)),
            };
            match (cli::print(out, &text), token_error) {
                (Ok(()), Some(error)) => failed(&error, CONFIGURATION),
                (printed, _) => ended(printed, FAILED),
            }
        }
        Command::Check(form) => {
            let setup = Setup::new(&config);
            let remarks = remarks::all(&config, &setup);
            let ready = check::run(setup.inputs, &remarks, *form == Form::Json, out);
            if ready { ExitCode::SUCCESS } else { ExitCode::from(FAILED) }
        }
        Command::Info(form) => {
            let hardware =
                host::hardware(&config.root, setup::gpu_reader(&config, false)().unwrap_or_default());
            let storage = host::storage::read(&Setup::new(&config).data_path);
            info::run(&hardware, storage.as_ref().map(|(storage, _)| storage), *form == Form::Json, out);
            ExitCode::SUCCESS
        }
        Command::Status(form) => ask(&config, Request::Status, *form, out),
        Command::Ask(request) => ask(&config, *request, Form::Text, out),
        Command::VfioStatus(form) => ended(vfio::status(&config.root, *form, out), FAILED),
        Command::VfioBind(change) => {
            ended(vfio::bind(change, config.vfio_bind.as_deref(), &config.root, out), FAILED)
        }
        Command::VfioUnbind(change) => ended(vfio::unbind(change, &config.root, out), FAILED),
        Command::Print(text) => ended(cli::print(out, text), FAILED),
    }
}

fn run_agent(config: &Config) -> ExitCode {
    match agent::run(config) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            log::error!("{error}");
            ExitCode::from(match error {
                agent::Error::Settings(_) | agent::Error::State(_) | agent::Error::NoIdentity(_) => {
                    CONFIGURATION
                }
                agent::Error::TokenRefused(_) => TOKEN_REFUSED,
                agent::Error::Start(..) => FAILED,
            })
        }
    }
}

fn ask(config: &Config, request: Request, form: Form, out: &mut dyn Write) -> ExitCode {
    match control::ask(&config.control_socket, request) {
        Ok(answer) => {
            status::run(&answer, form == Form::Json, out);
            ExitCode::SUCCESS
        }
        Err(error) => failed(&error, FAILED),
    }
}

fn ended<E: std::fmt::Display>(result: Result<(), E>, code: u8) -> ExitCode {
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => failed(&error, code),
    }
}

fn failed(error: &dyn std::fmt::Display, code: u8) -> ExitCode {
    // Standard error may be closed; nothing is left to be said to then.
    let _ = writeln!(io::stderr(), "vectorlay-agent: {error}");
    ExitCode::from(code)
}
