//! What an image's configuration may make the host do: nothing. Pure; the one place where that is decided.
//!
//! Whoever made the image is a stranger, and a microVM does not hold what is obeyed outside of it. nerdctl 2.x and
//! Docker copy an image's labels onto the container, where the CLI's root hooks, containerd's plugins and others read
//! them as orders. So a label in a name space of theirs, or of ours, refuses the image; only where a label on the
//! command line is known to win, in every CLI, is it masked instead. `threat_model.md` has the whole table.

use super::cli::LABELS;
use super::image::Facts;

/// What a label's key may not contain, and who obeys it.
///
/// nerdctl (`pkg/labels/labels.go`) keeps its own orders under this prefix, copies every key that contains it into the
/// OCI annotations (`propagateInternalContainerdLabelsToOCIAnnotations` in `pkg/cmd/container/create.go`), and refuses
/// it in `--label`, so that it cannot be masked. Its hooks (`pkg/ocihook`) write the file that `nerdctl/pid-file`
/// names, publish `nerdctl/ports` and take `nerdctl/ip`, `nerdctl/networks` and more; `rm --volumes` removes what
/// `nerdctl/anonymous-volumes` names.
const ANYWHERE: [(&str, &str); 1] = [("nerdctl/", "nerdctl")];

/// What a label's key may not begin with, and who obeys it.
const PREFIXES: [(&str, &str); 17] = [
    // containerd: restart.* (`plugins/restart`: starts the container again, and `restart.loguri=binary://…` as root),
    // gc.* (`core/metadata/gc.go`), snapshot/* (`core/snapshots`), distribution.source.*.
    ("containerd.io/", "containerd"),
    // containerd: image.config.stop-signal, runc.v2.group (`pkg/shim`: which shim serves it), runtime options.
    ("io.containerd.", "containerd"),
    // containerd's CRI plugin takes containers so marked for its own (`internal/cri/labels`).
    ("io.cri-containerd", "containerd's CRI plugin"),
    ("io.kubernetes.", "Kubernetes"),
    // CDI's annotations (`cdi.k8s.io/…=vendor/class=name`): devices, for containerd, Kata and NVIDIA's runtime.
    ("cdi.k8s.io/", "CDI"),
    // Kata (`src/runtime/virtcontainers/pkg/annotations`, `src/libs/kata-types/src/annotations`): the hypervisor's
    // path, its kernel, its configuration file. The second one is its older form.
    ("io.katacontainers.", "Kata"),
    ("com.github.containers.virtcontainers.", "Kata"),
    // The OCI runtimes: hooks, seccomp and features (`org.opencontainers.runtime-spec`), systemd's properties and
    // CRIU's configuration (runc), crun's handlers, gVisor's flags.
    ("org.opencontainers.runtime", "the OCI runtime"),
    ("org.systemd.property.", "the OCI runtime"),
    ("org.criu.", "the OCI runtime"),
    ("run.oci.", "the OCI runtime"),
    ("dev.gvisor.", "the OCI runtime"),
    // Docker keeps these for itself (docs.docker.com, object labels). Compose's are masked.
    ("com.docker.", "Docker"),
    ("io.docker.", "Docker"),
    ("org.dockerproject.", "Docker"),
    ("desktop.docker.io/", "Docker"),
    ("vectorlay.", "this agent"),
];

/// Labels that `docker compose build` puts into each image that it makes. With them `compose down` of the owner's
/// would take the container for its project's. `--label` wins over the image's in Docker (`daemon/create.go`: merge)
/// and in nerdctl (`withContainerLabels` comes after `WithImageConfigLabels`).
const MASKED: &str = "com.docker.compose.";
/// Most labels that are masked: Compose knows fewer than 20.
const MASKED_MAX: usize = 20;
/// Most anonymous volumes. Each is a folder of the host's into which root copies what the image has in its place.
const VOLUMES_MAX: usize = 16;
/// How much of a label's key is shown.
const SHOWN_MAX: usize = 80;

/// How an image that may be run is run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Checked {
    /// What it is run by: the digest or ID that was looked at.
    pub id: String,
    /// Keys of labels that get a value of ours on the command line.
    pub masked: Vec<String>,
    /// Whether its health check has to be turned off: nerdctl 2.1.3 and newer has systemd run it from the host.
    pub no_healthcheck: bool,
}

/// Whether an image may be run, and how.
///
/// # Errors
/// Why not: names the label, never its value.
pub fn check(facts: Facts) -> Result<Checked, String> {
    let mut masked = Vec::new();
    for key in facts.labels {
        // A container is always given these (an image that was made from one of ours has them).
        if LABELS.contains(&key.as_str()) {
            continue;
        }
        let folded = key.to_ascii_lowercase();
        let order = ANYWHERE.iter().find(|(part, _)| folded.contains(part));
        let order = order.or_else(|| PREFIXES.iter().find(|(prefix, _)| folded.starts_with(prefix)));
        let Some((_, whose)) = order else { continue };
        if can_be_masked(&key) && masked.len() < MASKED_MAX {
            masked.push(key);
        } else {
            return Err(format!(
                "its label {} would give orders to {whose} on the host; build the image without it",
                shown(&key)
            ));
        }
    }
    if facts.volumes > VOLUMES_MAX {
        return Err(format!(
            "it declares {} volumes, which are folders on the host; at most {VOLUMES_MAX} are allowed",
            facts.volumes
        ));
    }
    if let Some(why) = facts.ambiguous {
        return Err(format!("{why}, so it is uncertain which image would run; build it with a plain index"));
    }
    Ok(Checked { id: facts.id, masked, no_healthcheck: facts.healthcheck })
}

fn can_be_masked(key: &str) -> bool {
    let fits = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || matches!(b, b'.' | b'_' | b'-');
    key.starts_with(MASKED) && key.len() <= SHOWN_MAX && key.bytes().all(fits)
}

/// A key for an error text: quoted, in printable ASCII, and not too long.
fn shown(key: &str) -> String {
    let fits = |c: char| if c.is_ascii_graphic() && c != '"' { c } else { '?' };
    let mut text: String = key.chars().take(SHOWN_MAX).map(fits).collect();
    if key.chars().count() > SHOWN_MAX {
        text.push('…');
    }
    format!("\"{text}\"")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn facts(labels: &[&str]) -> Facts {
        Facts {
            id: "sha256:ab".into(),
            labels: labels.iter().map(|key| (*key).to_owned()).collect(),
            volumes: 0,
            healthcheck: false,
            ambiguous: None,
        }
    }

    #[test]
    fn labels_that_are_orders_refuse_the_image() {
        let check = |key: &str, whose: &str| {
            let error = check(facts(&["maintainer", key])).unwrap_err();
            assert!(
                error.contains(&format!(" would give orders to {whose} on the host; ")),
                "{key}: {error}"
            );
            assert!(error.contains(&format!("label \"{key}\"")), "{error}");
        };
        for key in [
            "nerdctl/pid-file",
            "nerdctl/ports",
            "nerdctl/anonymous-volumes",
            "nerdctl/network-namespace",
            "nerdctl/ip",
            "nerdctl/mac-address",
            "nerdctl/mounts",
            "nerdctl/healthcheck",
            "nerdctl/",
            "x.nerdctl/ports",
            "com.docker.compose.nerdctl/ports",
            "io.katacontainers.nerdctl/x",
            "NERDCTL/ports",
        ] {
            check(key, "nerdctl");
        }
        check("containerd.io/restart.status", "containerd");
        check("containerd.io/restart.loguri", "containerd");
        check("containerd.io/gc.root", "containerd");
        check("Containerd.IO/restart.status", "containerd");
        check("io.containerd.image.config.stop-signal", "containerd");
        check("io.cri-containerd.kind", "containerd's CRI plugin");
        check("io.kubernetes.cri.container-type", "Kubernetes");
        check("cdi.k8s.io/gpu", "CDI");
        check("io.katacontainers.config.hypervisor.path", "Kata");
        check("com.github.containers.virtcontainers.pkg.oci.container_type", "Kata");
        check("org.opencontainers.runtime-spec.hooks", "the OCI runtime");
        check("org.systemd.property.ExecStartPre", "the OCI runtime");
        check("org.criu.config", "the OCI runtime");
        check("run.oci.handler", "the OCI runtime");
        check("dev.gvisor.spec.mount", "the OCI runtime");
        check("com.docker.swarm.service.id", "Docker");
        check("com.docker.composer", "Docker");
        check("io.docker.x", "Docker");
        check("desktop.docker.io/binds/0/Source", "Docker");
        check("vectorlay.new", "this agent");
        check("Vectorlay.replica", "this agent");
    }

    #[test]
    fn labels_that_say_something_of_the_image_are_its_own() {
        let labels = [
            "vectorlay.replica",
            "",
            "maintainer",
            "nerdctl",
            "containerd.io",
            "org.opencontainers.image.title",
            "org.opencontainers.image.base.digest",
            "io.k8s.description",
            "io.openshift.tags",
            "io.buildah.version",
            "com.nvidia.cuda.version",
            "com.example.docker",
            "description of vectorlay.",
            "ä",
        ];
        let checked = Checked { id: "sha256:ab".into(), masked: vec![], no_healthcheck: false };
        assert_eq!(check(facts(&labels)), Ok(checked));
    }

    #[test]
    fn composes_labels_are_masked() {
        let keys = ["com.docker.compose.project", "com.docker.compose.config-hash"];
        assert_eq!(check(facts(&keys)).unwrap().masked, keys);
        let many: Vec<String> = (0..=MASKED_MAX).map(|n| format!("com.docker.compose.x{n}")).collect();
        let many: Vec<&str> = many.iter().map(String::as_str).collect();
        assert!(check(facts(&many[..MASKED_MAX])).is_ok());
        assert!(check(facts(&many)).is_err());
        // What could be more than a key on a command line is not put there.
        for key in [
            "com.docker.compose.a=b",
            "com.docker.compose.a,b",
            "com.docker.compose.a\nb",
            "com.docker.compose.ä",
        ] {
            assert!(check(facts(&[key])).is_err(), "{key}");
        }
    }

    #[test]
    fn what_is_shown_of_a_key_is_harmless() {
        let check = |key: &str, expected: &str| {
            let error = check(facts(&[key])).unwrap_err();
            assert_eq!(error.split("label ").nth(1).unwrap().split(" would give").next(), Some(expected));
        };
        check("vectorlay.\u{1b}[2J\n\"ä", "\"vectorlay.?[2J???\"");
        check(&format!("vectorlay.{}", "x".repeat(500)), &format!("\"vectorlay.{}…\"", "x".repeat(70)));
    }

    #[test]
    fn volumes_health_checks_and_doubtful_indexes() {
        let with =
            |volumes, healthcheck, ambiguous| check(Facts { volumes, healthcheck, ambiguous, ..facts(&[]) });
        assert!(!with(VOLUMES_MAX, false, None).unwrap().no_healthcheck);
        assert!(with(0, true, None).unwrap().no_healthcheck);
        let error = with(VOLUMES_MAX + 1, false, None).unwrap_err();
        assert!(error.starts_with("it declares 17 volumes"), "{error}");
        let error = with(0, false, Some("its index has an entry without a platform")).unwrap_err();
        assert!(error.starts_with("its index has an entry without a platform, so it"), "{error}");
    }
}
