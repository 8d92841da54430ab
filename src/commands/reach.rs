//! Whether the control plane can be reached, for `check`: asked of the agent that runs, else by connecting as it would,
//! which ends at once. So each step is tried: proxy, name, TCP, TLS with the clock, and the token.

use super::check::unknown;
use crate::agent;
use crate::config::Config;
use crate::control;
use crate::core::inventory::Check;
use crate::core::operator::Request;
use crate::link;
use crate::store;

pub(super) fn check(config: &Config) -> Check {
    if config.url.is_none() {
        return Check { detail: "no url is set".to_owned(), ..unknown(false) };
    }
    let settings = match agent::link_settings(config) {
        Ok(settings) => settings,
        Err(error) => return Check { detail: error.to_string(), ..unknown(true) },
    };
    // Shown as the link shows it, without its query.
    let url = settings.url.to_string();
    let reached = match control::request(&config.control_socket, &Request::Status) {
        Ok(status) if status["link"] == "connected" => Ok(()),
        Ok(status) => Err(status["link_trouble"].as_str().unwrap_or("the agent is connecting").to_owned()),
        Err(_) => connect(config, settings),
    };
    match reached {
        Ok(()) => Check { ok: true, detail: format!("connected to {url}"), ..unknown(true) },
        Err(why) => Check { detail: why, ..unknown(true) },
    }
}

fn connect(config: &Config, settings: link::Settings) -> Result<(), String> {
    let identity = store::identity_of(&config.state_dir);
    let (node, token) = identity.map_or((None, None), |known| (Some(known.node_id), known.node_token));
    if node.is_none() && config.token.is_none() {
        return Err("there is neither a node identity nor an organisation token: set token_file".to_owned());
    }
    link::try_once(settings, node.as_ref(), token.as_ref().or(config.token.as_ref()))
        .map_err(|error| error.to_string())
}
