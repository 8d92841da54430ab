//! What follows from a proof: whether the container that the node started for itself ran as tenants' containers are to run.
//! Pure.

use serde_json::Value;

/// What a proof is judged by besides what its container said.
#[derive(Debug, Clone)]
pub struct Expected<'a> {
    /// The host's /proc/sys/kernel/random/boot_id.
    pub boot_id: Option<&'a str>,
    /// The runtime's name.
    pub runtime: &'a str,
    /// Whether the runtime is one that isolates with a kernel of its own.
    pub isolates: bool,
    /// Vendor and device of each GPU that was handed over, as `10de:2330`.
    pub gpus: &'a [String],
}

/// A proof's result.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Verdict {
    /// Whether the container had a kernel of its own; `None`: not known.
    pub isolated: Option<bool>,
    /// What is wrong; `None`: nothing.
    pub reason: Option<String>,
}

/// Judges what a proof's container said.
pub fn judge(said: &Value, expected: &Expected<'_>) -> Verdict {
    // Two kernels of the same release are still two: each boot has an ID of its own.
    let boot_id = said["boot_id"].as_str();
    let isolated = boot_id.zip(expected.boot_id).map(|(guest, host)| guest != host);
    let mut seen: Vec<&str> =
        said["pci"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
    let mut missing = Vec::new();
    for gpu in expected.gpus {
        match seen.iter().position(|known| known == gpu) {
            Some(at) => _ = seen.swap_remove(at),
            None => missing.push(gpu.as_str()),
        }
    }
    let reason = match isolated {
        Some(false) if expected.isolates => Some(format!(
            "NOT isolated: with runtime {} a container runs on the host's own kernel; see what lies behind that name, and \
             install Kata Containers",
            expected.runtime
        )),
        None if expected.isolates => {
            Some("it is not known whether the container had a kernel of its own".to_owned())
        }
        _ if !missing.is_empty() => {
            Some(format!("the container does not see the GPU {}", missing.join(", ")))
        }
        Some(_) | None => None,
    };
    Verdict { isolated, reason }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn another_boot_is_another_kernel() {
        let check = |guest: Value, isolates: bool, isolated: Option<bool>, words: Option<&str>| {
            let said = json!({ "boot_id": guest, "pci": [] });
            let expected = Expected { boot_id: Some("host"), runtime: "kata", isolates, gpus: &[] };
            let verdict = judge(&said, &expected);
            assert_eq!(verdict.isolated, isolated);
            match words {
                None => assert_eq!(verdict.reason, None),
                Some(words) => assert!(verdict.reason.unwrap().contains(words)),
            }
        };
        check(json!("guest"), true, Some(true), None);
        check(json!("host"), true, Some(false), Some("NOT isolated: with runtime kata"));
        check(json!("host"), false, Some(false), None);
        check(Value::Null, true, None, Some("not known"));
        check(Value::Null, false, None, None);
    }

    #[test]
    fn each_gpu_is_seen() {
        let said = json!({ "boot_id": "guest", "pci": ["10de:2330", "1002:74a1"] });
        let check = |gpus: &[&str], missing: Option<&str>| {
            let gpus: Vec<String> = gpus.iter().map(|gpu| (*gpu).to_owned()).collect();
            let expected = Expected { boot_id: Some("host"), runtime: "kata", isolates: true, gpus: &gpus };
            assert_eq!(judge(&said, &expected).reason.as_deref(), missing);
        };
        check(&["1002:74a1", "10de:2330"], None);
        check(&["10de:2330", "10de:2330"], Some("the container does not see the GPU 10de:2330"));
        check(&["10de:2204"], Some("the container does not see the GPU 10de:2204"));
    }
}
