//! The command line.

use std::ffi::OsString;
use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;

use lexopt::prelude::*;

use crate::faults::Faults;
use crate::fleet::Rules;
use crate::stream::TlsFiles;

/// What `--help` prints.
pub const HELP: &str = "\
control-plane: the reference control plane for vectorlay-agent

  --listen ADDR          where agents connect and register (default 127.0.0.1:0, a free port)
  --api ADDR             the local HTTP API, loopback only (default 127.0.0.1:0)
  --tls-cert FILE        PEM certificate chain: serve wss and https to agents
  --tls-key FILE         its PEM key
  --token TOKEN          an organisation token (may be repeated)
  --token-file FILE      organisation tokens, one a line
  --state FILE           keep nodes, tokens and jobs in FILE across restarts
  --offline-after-s N    seconds without a heartbeat until a node is offline (default 60)
  --register-over WHERE  http (default), or socket: POST …/register answers 404
  --no-node-token        issue no tokens to nodes
  --no-request-ids       send commands without request_id
  --no-reschedule        leave the replicas of a node that is offline where they are
  --quiet                do not print heartbeats

To try an agent's patience:
  --http-status N        answer each request of an agent with status N
  --retry-after S        … and this Retry-After
  --accept-silent        accept connections of agents and say nothing
  --ignore-pings         answer no ping

Commands are read from standard input: type help.";

/// The command line, checked.
pub struct Options {
    /// Where agents connect.
    pub listen: SocketAddr,
    /// Where the API listens.
    pub api: SocketAddr,
    /// TLS for agents.
    pub tls: Option<TlsFiles>,
    /// Where nodes, tokens and jobs are kept.
    pub state: Option<PathBuf>,
    /// Whether nodes register over the socket alone.
    pub register_over_socket: bool,
    /// Whether heartbeats are left out of what is printed.
    pub quiet: bool,
    /// What the fleet goes by.
    pub rules: Rules,
    /// Faults to show to agents.
    pub faults: Faults,
}

/// Reads the command line. `None`: help was asked for.
///
/// # Errors
/// [`UsageError`] for an unknown option, a bad value, or a token file that cannot be read.
pub fn parse(args: impl IntoIterator<Item = OsString>) -> Result<Option<Options>, UsageError> {
    let any_port = SocketAddr::from(([127, 0, 0, 1], 0));
    let mut options = Options {
        listen: any_port,
        api: any_port,
        tls: None,
        state: None,
        register_over_socket: false,
        quiet: false,
        rules: Rules::default(),
        faults: Faults::default(),
    };
    let (mut cert, mut key) = (None, None);
    let mut parser = lexopt::Parser::from_iter(args);
    while let Some(arg) = parser.next()? {
        match arg {
            Long("listen") => options.listen = parser.value()?.parse()?,
            Long("api") => options.api = parser.value()?.parse()?,
            Long("tls-cert") => cert = Some(PathBuf::from(parser.value()?)),
            Long("tls-key") => key = Some(PathBuf::from(parser.value()?)),
            Long("token") => options.rules.tokens.push(parser.value()?.string()?),
            Long("token-file") => options.rules.tokens.append(&mut tokens(parser.value()?.into())?),
            Long("state") => options.state = Some(PathBuf::from(parser.value()?)),
            Long("offline-after-s") => {
                options.rules.offline_after_ms = u64::from(parser.value()?.parse::<u32>()?) * 1000;
            }
            Long("register-over") => match parser.value()?.string()?.as_str() {
                "http" => options.register_over_socket = false,
                "socket" => options.register_over_socket = true,
                _ => return Err(UsageError::RegisterOver),
            },
            Long("no-node-token") => options.rules.node_tokens = false,
            Long("no-request-ids") => options.rules.request_ids = false,
            Long("no-reschedule") => options.rules.reschedule = false,
            Long("quiet") => options.quiet = true,
            Long("http-status") => options.faults.http_status = Some(parser.value()?.parse()?),
            Long("retry-after") => options.faults.retry_after_s = Some(parser.value()?.parse()?),
            Long("accept-silent") => options.faults.accept_silent = true,
            Long("ignore-pings") => options.faults.ignore_pings = true,
            Long("help") | Short('h') => return Ok(None),
            _ => return Err(arg.unexpected().into()),
        }
    }
    options.tls = match (cert, key) {
        (Some(cert), Some(key)) => Some(TlsFiles { cert, key }),
        (None, None) => None,
        _ => return Err(UsageError::HalfTls),
    };
    if !options.api.ip().is_loopback() {
        return Err(UsageError::OpenApi);
    }
    Ok(Some(options))
}

fn tokens(file: PathBuf) -> Result<Vec<String>, UsageError> {
    let text = std::fs::read_to_string(&file).map_err(|error| UsageError::TokenFile(file, error))?;
    Ok(text.lines().map(str::trim).filter(|line| !line.is_empty()).map(str::to_owned).collect())
}

/// Why the command line was refused.
#[derive(Debug)]
pub enum UsageError {
    /// An unknown option or a bad value.
    Argument(lexopt::Error),
    /// `--register-over` with another word.
    RegisterOver,
    /// A certificate without a key, or the reverse.
    HalfTls,
    /// The API has no authentication, so it stays on the machine.
    OpenApi,
    /// The token file cannot be read.
    TokenFile(PathBuf, io::Error),
}

impl From<lexopt::Error> for UsageError {
    fn from(error: lexopt::Error) -> Self {
        Self::Argument(error)
    }
}

impl fmt::Display for UsageError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Argument(e) => write!(f, "{e}; see --help"),
            Self::RegisterOver => f.write_str("--register-over takes http or socket; see --help"),
            Self::HalfTls => f.write_str("--tls-cert and --tls-key belong together: give both"),
            Self::OpenApi => f.write_str("the API has no authentication: give --api a loopback address"),
            Self::TokenFile(file, e) => {
                write!(f, "cannot read tokens from {}: {e}; check the path", file.display())
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(line: &str) -> Result<Option<Options>, UsageError> {
        parse(std::iter::once("control-plane").chain(line.split_whitespace()).map(OsString::from))
    }

    #[test]
    fn the_command_line() {
        let options =
            parsed("--token a --token b --offline-after-s 2 --no-node-token --register-over socket");
        let options = options.unwrap().unwrap();
        assert_eq!(options.rules.tokens, ["a", "b"]);
        assert_eq!(options.rules.offline_after_ms, 2000);
        assert!(options.register_over_socket && !options.rules.node_tokens && options.rules.request_ids);
        assert!(parsed("--help").unwrap().is_none());
        for bad in
            ["--listne x", "--listen here", "--register-over tcp", "--tls-key k", "--api 0.0.0.0:80", "x"]
        {
            assert!(parsed(bad).is_err(), "{bad}");
        }
    }
}
