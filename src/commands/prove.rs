//! `vectorlay-agent prove`: whether a container really starts here, in a microVM of its own, found out by starting one.

use std::ffi::OsString;
use std::fs;
use std::io::Write as _;
use std::path::Path;
use std::thread::Builder;
use std::time::Duration;

use serde_json::{Map, Value};
use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::iterator::Signals;

use crate::cli::{Form, PROGRAM};
use crate::config::Config;
use crate::control;
use crate::core::inventory::Gpu;
use crate::core::operator::Request;
use crate::core::proof::{Expected, Verdict, judge};
use crate::engine::proof::{Order, Proved, prove};
use crate::host::shim::means_kata;
use crate::host::{identity, inside};
use crate::process::Cancel;
use crate::setup::{self, Setup};
use crate::types::PciAddress;

/// What the agent is called with in the container of a proof.
const INSIDE: &str = "--inside-a-proof";
/// How long the start may take: what deploys have by default, with GPUs and without.
const DEADLINE: Duration = Duration::from_secs(15 * 60);
const DEADLINE_GPU: Duration = Duration::from_secs(30 * 60);

/// Whether this process is the program of a proof.
pub(super) fn is_inside(arguments: &[OsString]) -> bool {
    arguments == [INSIDE]
}

/// What it prints there.
pub(super) fn report() -> String {
    format!("{}\n", inside::report(Path::new("/")))
}

/// Carries out a proof with these GPUs. Returns what to print, and whether all is as it should be.
pub(super) fn run(config: &Config, addresses: &[PciAddress], form: Form) -> Result<(String, bool), String> {
    let setup = Setup::new(config);
    let gpus = chosen(config, addresses)?;
    let executable =
        fs::read("/proc/self/exe").map_err(|error| format!("cannot read /proc/self/exe: {error}"))?;
    let cancel = Cancel::new().map_err(|error| error.to_string())?;
    end_on_signal(cancel.clone())?;
    let node = |gpu: &Gpu| (gpu.address, gpu.device_node.clone().unwrap_or_default());
    let order = Order {
        cli: &setup.cli,
        executable: &executable,
        argument: INSIDE,
        gpus: gpus.iter().map(node).collect(),
        deadline: if gpus.is_empty() { DEADLINE } else { DEADLINE_GPU },
    };
    let proved = prove(&order, &cancel)?;
    let said: Value = serde_json::from_str(&proved.said)
        .map_err(|error| format!("cannot read what the container's program printed: {error}"))?;
    let kinds: Vec<String> =
        gpus.iter().map(|gpu| format!("{:04x}:{:04x}", gpu.vendor_id, gpu.device_id)).collect();
    let boot_id = identity::boot_id(&config.root);
    let expected = Expected {
        boot_id: boot_id.as_deref(),
        runtime: &config.runtime,
        isolates: means_kata(&config.runtime),
        gpus: &kinds,
    };
    let verdict = judge(&said, &expected);
    let result = result(&said, &proved, &verdict);
    let text = match form {
        Form::Json => format!("{result:#}\n"),
        Form::Text => text(&result),
    };
    Ok((text, verdict.reason.is_none()))
}

/// The GPUs at these addresses, of which nobody else may make use meanwhile: they are free, and a running agent holds them
/// back.
fn chosen(config: &Config, addresses: &[PciAddress]) -> Result<Vec<Gpu>, String> {
    if addresses.is_empty() {
        return Ok(Vec::new());
    }
    let all =
        setup::gpu_reader(config)().ok_or("the GPUs cannot be read; see `vectorlay-agent vfio status`")?;
    let status = control::request(&config.control_socket, &Request::Status).ok();
    let mut chosen: Vec<Gpu> = Vec::new();
    for address in addresses {
        let gpu = all.iter().find(|gpu| gpu.address == *address);
        let gpu = gpu.ok_or_else(|| format!("there is no GPU at {address}; see `{PROGRAM} info`"))?;
        let told = status.as_ref().and_then(|status| {
            status["gpus"].as_array()?.iter().find(|told| told["pci_address"] == address.to_string())
        });
        if let Some(holder) = told.and_then(|told| told["replica_id"].as_str()) {
            return Err(format!("replica {holder} has the GPU {address}; prove it when it is free"));
        }
        let judgement = gpu.judgement();
        if !judgement.assignable {
            let why = judgement.reason.unwrap_or_default();
            return Err(format!("the GPU {address} cannot be handed over: {why}"));
        }
        let is_held_back =
            |told: &Value| told["reason"].as_str().is_some_and(|why| why.starts_with("held back"));
        if status.is_some() && !told.is_some_and(is_held_back) {
            return Err(format!(
                "the running agent could give the GPU {address} to a replica meanwhile: run `{PROGRAM} gpu hold \
                 {address}` first, and `gpu release` afterwards"
            ));
        }
        if !chosen.iter().any(|other| other.address == *address) {
            chosen.push(gpu.clone());
        }
    }
    Ok(chosen)
}

/// SIGINT and SIGTERM end the proof, which then removes what it made. A second one ends the process at once; what is left
/// then, the next proof removes.
fn end_on_signal(cancel: Cancel) -> Result<(), String> {
    let failed = |error: std::io::Error| format!("cannot handle signals: {error}");
    let mut signals = Signals::new([SIGINT, SIGTERM]).map_err(failed)?;
    let wait = move || {
        for signal in signals.forever() {
            if cancel.wait(Duration::ZERO) {
                let _ = signal_hook::low_level::emulate_default_handler(signal);
            }
            cancel.cancel();
            let _ = writeln!(std::io::stderr(), "{PROGRAM}: ending: removing the proof's container");
        }
    };
    Builder::new().name("signals".into()).spawn(wait).map(|_| ()).map_err(failed)
}

fn result(said: &Value, proved: &Proved, verdict: &Verdict) -> Value {
    let millis = |time: Duration| u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
    let fields: [(&str, Value); 6] = [
        ("ok", verdict.reason.is_none().into()),
        ("reason", verdict.reason.clone().into()),
        ("isolated", verdict.isolated.into()),
        ("load_ms", millis(proved.loaded).into()),
        ("start_ms", millis(proved.started).into()),
        ("container", said.clone()),
    ];
    fields.into_iter().map(|(name, value)| (name.to_owned(), value)).collect::<Map<_, _>>().into()
}

fn text(result: &Value) -> String {
    let said = &result["container"];
    let word = |value: &Value| match value {
        Value::Null => "?".to_owned(),
        Value::String(text) => text.clone(),
        Value::Array(items) if items.is_empty() => "none".to_owned(),
        Value::Array(items) => items.iter().filter_map(Value::as_str).collect::<Vec<_>>().join(", "),
        other => other.to_string(),
    };
    let isolated = match result["isolated"].as_bool() {
        Some(true) => "yes: it has a kernel of its own",
        Some(false) => "no: it runs on the host's kernel",
        None => "not known",
    };
    let network = match said["gateway"].as_bool() {
        Some(true) => "its gateway answers",
        Some(false) => "its gateway does not answer",
        None => "without a default route",
    };
    let outcome = match result["reason"].as_str() {
        None => "proved: containers start".to_owned(),
        Some(reason) => format!("not proved: {reason}"),
    };
    format!(
        "isolated   {isolated}\nkernel     {}\nCPUs       {}\nmemory     {} MiB\nGPUs       {}\nnetwork    {}; {network}\n\
         start      {} ms, {} ms to load the image\n\n{outcome}\n",
        word(&said["kernel"]),
        word(&said["cpus"]),
        word(&said["memory_mb"]),
        word(&said["pci"]),
        word(&said["interfaces"]),
        word(&result["start_ms"]),
        word(&result["load_ms"]),
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn what_a_person_sees() {
        let said = json!({
            "kernel": "6.1.62", "cpus": 1, "memory_mb": 1992, "pci": [], "interfaces": ["eth0"], "gateway": true,
        });
        let proved = Proved {
            said: String::new(),
            loaded: Duration::from_millis(80),
            started: Duration::from_millis(1240),
        };
        let verdict = Verdict { isolated: Some(true), reason: None };
        let expected = "\
isolated   yes: it has a kernel of its own
kernel     6.1.62
CPUs       1
memory     1992 MiB
GPUs       none
network    eth0; its gateway answers
start      1240 ms, 80 ms to load the image

proved: containers start
";
        assert_eq!(text(&result(&said, &proved, &verdict)), expected);
        let verdict = Verdict { isolated: Some(false), reason: Some("NOT isolated".into()) };
        let result = result(&Value::Null, &proved, &verdict);
        assert_eq!((&result["ok"], &result["start_ms"]), (&json!(false), &json!(1240)));
        let text = text(&result);
        assert!(text.starts_with("isolated   no: it runs on the host's kernel\nkernel     ?\n"), "{text}");
        assert!(text.ends_with("without a default route\nstart      1240 ms, 80 ms to load the image\n\nnot proved: NOT isolated\n"), "{text}");
    }
}
