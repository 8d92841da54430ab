//! The look at an image before it is run, and what is kept of it.
//!
//! What is run is what was looked at: the look gives the digest that the name stands for just then, and the run is of
//! that digest, whatever the name stands for by then.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use serde_json::Value;

use super::cli::Flavour;
use super::image_policy::Checked;
use crate::types::ImageRef;

/// How long a tag's digest is taken for what it still stands for. The agent's own pulls and removals end it at once;
/// this is for what an operator does with the CLI by hand.
pub const TAG_KEPT: Duration = Duration::from_secs(10);
/// How many images are kept.
const KEPT_MAX: usize = 256;

/// What matters of an image's configuration.
#[derive(Debug, PartialEq, Eq)]
pub struct Facts {
    /// The digest (nerdctl) or ID (Docker) that `run` takes for exactly this image.
    pub id: String,
    /// The keys of its labels.
    pub labels: Vec<String>,
    /// How many volumes it declares.
    pub volumes: usize,
    /// Whether it has a health check.
    pub healthcheck: bool,
    /// Why the CLI could run another configuration than it has shown.
    pub ambiguous: Option<&'static str>,
}

/// Reads what the look at `image` printed; `Ok(None)`: the image is not there.
///
/// nerdctl prints a line of JSON (`--mode=native`, `pkg/inspecttypes/native`) for each name of the same content, and
/// 2.x finds a digest under whatever name: only the line of this name counts. Docker prints one
/// (`docker image inspect`).
///
/// # Errors
/// What is wrong with it.
pub fn read(flavour: Flavour, image: &ImageRef, text: &str) -> Result<Option<Facts>, &'static str> {
    match flavour {
        Flavour::Nerdctl => own_line(image, text)?.map_or(Ok(None), |shown| nerdctl(&shown)),
        Flavour::Docker => docker(&serde_json::from_str(text).map_err(|_| "it is not JSON")?).map(Some),
    }
}

/// Whether nerdctl knows an image of this name and has no configuration of it to show.
pub fn lacks_config(image: &ImageRef, text: &str) -> bool {
    own_line(image, text).is_ok_and(|shown| shown.is_some_and(|shown| !has_config(&shown)))
}

/// What nerdctl shows of this name.
fn own_line(image: &ImageRef, text: &str) -> Result<Option<Value>, &'static str> {
    for line in text.lines().filter(|line| !line.is_empty()) {
        let shown: Value = serde_json::from_str(line).map_err(|_| "a line is not JSON")?;
        if shown["Image"]["Name"] == image.canonical() {
            return Ok(Some(shown));
        }
    }
    Ok(None)
}

fn has_config(shown: &Value) -> bool {
    shown["ImageConfigDesc"]["digest"].as_str().is_some_and(|digest| !digest.is_empty())
}

fn nerdctl(shown: &Value) -> Result<Option<Facts>, &'static str> {
    // Without it there is no configuration for this platform here, and `run` takes the image for missing.
    if !has_config(shown) {
        return Ok(None);
    }
    let id = digest(&shown["Image"]["Target"]["digest"])?;
    let config = &shown["ImageConfig"]["config"];
    let mut labels = keys(&config["Labels"])?;
    // nerdctl 2.1.3 and newer shows a HEALTHCHECK as this label (`addHealthCheckToImageConfig`) and takes
    // `--no-healthcheck`, which also wins over a label of that key. An older one does neither: the label is the
    // image's own, and the flag that it does not know makes the run fail.
    let before = labels.len();
    labels.retain(|key| key != "nerdctl/healthcheck");
    let healthcheck = labels.len() < before;
    Ok(Some(Facts {
        id,
        labels,
        volumes: count(&config["Volumes"])?,
        healthcheck,
        ambiguous: ambiguous(&shown["Index"]),
    }))
}

fn docker(shown: &Value) -> Result<Facts, &'static str> {
    let config = &shown["Config"];
    let healthcheck = !config["Healthcheck"].is_null();
    Ok(Facts {
        id: digest(&shown["Id"])?,
        labels: keys(&config["Labels"])?,
        volumes: count(&config["Volumes"])?,
        healthcheck,
        ambiguous: None,
    })
}

/// nerdctl looks with containerd's `platforms.Only` (amd64, else 386; arm64, else arm) and runs with `OnlyStrict`
/// (amd64). Both take the best entry of an index, and an entry without a platform last, by what its configuration
/// says: with such an entry, or an index within the index, the two can come to different images.
fn ambiguous(index: &Value) -> Option<&'static str> {
    let entries = index["manifests"].as_array()?;
    let is_index = |entry: &Value| {
        let kind = entry["mediaType"].as_str().unwrap_or_default();
        kind.contains("image.index") || kind.contains("manifest.list")
    };
    if entries.iter().any(is_index) {
        Some("its index has an index in it")
    } else if entries.len() > 1 && entries.iter().any(|entry| entry["platform"].is_null()) {
        Some("its index has an entry without a platform")
    } else {
        None
    }
}

fn digest(value: &Value) -> Result<String, &'static str> {
    let fits = |text: &&str| {
        text.split_once(':').is_some_and(|(algorithm, digits)| {
            matches!(algorithm, "sha256" | "sha512")
                && digits.len() >= 64
                && digits.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'))
        })
    };
    value.as_str().filter(fits).map(str::to_owned).ok_or("it has no digest")
}

fn keys(map: &Value) -> Result<Vec<String>, &'static str> {
    match map {
        Value::Null => Ok(Vec::new()),
        Value::Object(map) => Ok(map.keys().cloned().collect()),
        _ => Err("its labels are not an object"),
    }
}

fn count(map: &Value) -> Result<usize, &'static str> {
    match map {
        Value::Null => Ok(0),
        Value::Object(map) => Ok(map.len()),
        _ => Err("its volumes are not an object"),
    }
}

/// The images that were looked at and may be run.
#[derive(Debug, Default)]
pub struct Known {
    images: VecDeque<(String, Checked, Instant)>,
    changes: u64,
}

impl Known {
    /// What is known of an image, if it is certain or fresh.
    pub fn get(&self, image: &ImageRef, now: Instant) -> Option<Checked> {
        let (_, checked, seen) = self.images.iter().find(|(name, ..)| name == image.canonical())?;
        let fresh = image.is_by_digest() || now.saturating_duration_since(*seen) < TAG_KEPT;
        fresh.then(|| checked.clone())
    }

    /// How often images have changed. A look that began at another count tells of the past.
    pub fn changes(&self) -> u64 {
        self.changes
    }

    /// Keeps what a look has found that began when this many changes had been made.
    pub fn keep(&mut self, image: &ImageRef, checked: Checked, changes: u64, now: Instant) {
        if changes != self.changes {
            return;
        }
        self.images.retain(|(name, ..)| name != image.canonical());
        if self.images.len() >= KEPT_MAX {
            self.images.pop_front();
        }
        self.images.push_back((image.canonical().to_owned(), checked, now));
    }

    /// A pull or a removal of this name has ended: it may stand for something else, or for nothing.
    pub fn forget(&mut self, image: &ImageRef) {
        self.changes += 1;
        self.images.retain(|(name, ..)| name != image.canonical());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn image(text: &str) -> ImageRef {
        ImageRef::new(text).unwrap()
    }

    fn a_digest() -> String {
        format!("sha256:{}", "ab".repeat(32))
    }

    fn native(name: &str, config: &Value, index: &Value) -> Value {
        json!({
            "Image": {"Name": name, "Labels": null, "Target": {"mediaType": "m", "digest": a_digest(), "size": 1}},
            "Index": index,
            "ImageConfigDesc": {"mediaType": "c", "digest": "sha256:cd", "size": 1},
            "ImageConfig": {"architecture": "amd64", "os": "linux", "config": config},
        })
    }

    #[test]
    fn what_nerdctl_shows() {
        let entry = |platform: &Value| json!({"mediaType": "application/vnd.oci.image.manifest.v1+json", "platform": platform});
        let amd64 = json!({"architecture": "amd64", "os": "linux"});
        let check = |shown: &Value, labels: &[&str], volumes, healthcheck, ambiguous: bool| {
            let found = read(Flavour::Nerdctl, &image("bb:1"), &format!("{shown}\n")).unwrap().unwrap();
            assert_eq!((found.id.as_str(), found.volumes), (a_digest().as_str(), volumes), "{shown}");
            assert_eq!(
                (&found.labels[..], found.healthcheck),
                (&labels.iter().map(|l| (*l).to_owned()).collect::<Vec<_>>()[..], healthcheck)
            );
            assert_eq!(found.ambiguous.is_some(), ambiguous, "{shown}");
        };
        let name = "docker.io/library/bb:1";
        check(&native(name, &json!({}), &Value::Null), &[], 0, false, false);
        check(&native(name, &json!({"Labels": null, "Volumes": null}), &Value::Null), &[], 0, false, false);
        let config =
            json!({"Labels": {"a": "b", "nerdctl/healthcheck": "{}"}, "Volumes": {"/a": {}, "/b": {}}});
        check(&native(name, &config, &Value::Null), &["a"], 2, true, false);
        let index = |entries: &[Value]| native(name, &json!({}), &json!({"manifests": entries}));
        check(&index(&[entry(&amd64), entry(&amd64)]), &[], 0, false, false);
        check(&index(&[entry(&Value::Null)]), &[], 0, false, false);
        check(&index(&[entry(&amd64), entry(&Value::Null)]), &[], 0, false, true);
        for kind in [
            "application/vnd.oci.image.index.v1+json",
            "application/vnd.docker.distribution.manifest.list.v2+json",
        ] {
            check(&index(&[json!({"mediaType": kind, "platform": amd64})]), &[], 0, false, true);
        }
    }

    #[test]
    fn only_the_name_that_was_asked_for_counts() {
        let other = native("docker.io/library/other:1", &json!({"Labels": {"x": ""}}), &Value::Null);
        let own = native("docker.io/library/bb:1", &json!({}), &Value::Null);
        let find = |text: &str| read(Flavour::Nerdctl, &image("bb:1"), text);
        assert_eq!(find(&format!("{other}\n{own}\n")).unwrap().unwrap().labels, [""; 0]);
        assert_eq!(find(&format!("{other}\n")), Ok(None));
        assert_eq!(find(""), Ok(None));
        let mut bare = own.clone();
        bare["ImageConfigDesc"] = json!({"mediaType": "", "digest": "", "size": 0});
        assert_eq!(find(&format!("{bare}\n")), Ok(None), "nothing for this platform");
        let lacks = |text: &str| lacks_config(&image("bb:1"), text);
        assert!(lacks(&format!("{other}\n{bare}\n")));
        assert!(!lacks(&format!("{own}\n")) && !lacks(&format!("{other}\n")) && !lacks("") && !lacks("x\n"));
        assert!(find("x\n").is_err());
        bare = native("docker.io/library/bb:1", &json!({"Labels": []}), &Value::Null);
        assert!(find(&format!("{bare}\n")).is_err());
        bare["Image"]["Target"]["digest"] = json!("--privileged");
        assert!(find(&format!("{bare}\n")).is_err());
    }

    #[test]
    fn what_docker_shows() {
        let check = |config: Value, labels: &[&str], volumes, healthcheck| {
            let text = json!({"Id": a_digest(), "RepoTags": ["bb:1"], "Config": config}).to_string();
            let found = read(Flavour::Docker, &image("bb:1"), &text).unwrap().unwrap();
            let labels = labels.iter().map(|label| (*label).to_owned()).collect();
            assert_eq!(found, Facts { id: a_digest(), labels, volumes, healthcheck, ambiguous: None });
        };
        check(json!({"Labels": null, "Volumes": null}), &[], 0, false);
        check(json!(null), &[], 0, false);
        check(
            json!({"Labels": {"nerdctl/healthcheck": ""}, "Volumes": {"/a": {}}}),
            &["nerdctl/healthcheck"],
            1,
            false,
        );
        check(json!({"Healthcheck": {"Test": ["CMD", "x"]}}), &[], 0, true);
        for bad in ["", "[]", "{}", r#"{"Id":"x"}"#] {
            assert!(read(Flavour::Docker, &image("bb:1"), bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn what_is_known_holds_for_a_while_and_ends_with_a_pull() {
        let checked = || Checked { id: a_digest(), masked: vec![], no_healthcheck: false };
        let start = Instant::now();
        let mut known = Known::default();
        let (tag, fixed) = (image("bb:1"), image(&format!("bb@{}", a_digest())));
        for image in [&tag, &fixed] {
            known.keep(image, checked(), known.changes(), start);
        }
        assert_eq!(known.get(&image("docker.io/library/bb:1"), start), Some(checked()), "another spelling");
        let later = start + TAG_KEPT;
        assert_eq!((known.get(&tag, later), known.get(&fixed, later)), (None, Some(checked())));
        // A look that began before a pull ended says nothing of what came after.
        let began = known.changes();
        known.forget(&image("bb:1"));
        known.keep(&tag, checked(), began, start);
        assert_eq!(known.get(&tag, start), None);
        for n in 0..KEPT_MAX {
            known.keep(&image(&format!("x:{n}")), checked(), known.changes(), start);
        }
        assert_eq!(known.images.len(), KEPT_MAX);
        assert_eq!(known.get(&fixed, start), None, "the oldest went");
    }
}
