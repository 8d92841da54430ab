//! What the host's owner allows a deploy to ask for: settings against a specification, as a pure function.

use std::net::IpAddr;
use std::ops::RangeInclusive;

use crate::protocol::Deploy;
use crate::types::{ImageRef, Spec};

/// Stands in [`Allowed::images`] for every registry but those of this host and its links.
pub const ANY_REGISTRY: &str = "*";
/// Names of Docker Hub in credentials; images have the first.
const DOCKER_HUB: [&str; 3] = ["docker.io", "index.docker.io", "registry-1.docker.io"];

/// The owner's settings. A limit that is `None` does not exist.
#[derive(Debug, Clone)]
pub struct Allowed {
    /// `registry[/path]` ([`image_prefix`]): what the names of images may begin with, up to a `/`.
    pub images: Vec<String>,
    /// Whether an image must be named by its digest.
    pub by_digest_only: bool,
    /// Ports of the host that may be published.
    pub ports: RangeInclusive<u16>,
    /// MiB of memory.
    pub memory_mib: Option<u64>,
    /// CPUs.
    pub cpus: Option<u64>,
    /// MiB of /dev/shm.
    pub shm_mib: Option<u64>,
    /// Processes.
    pub pids: Option<u64>,
    /// Variables.
    pub variables: u64,
    /// Size of the variables, in KiB.
    pub variables_kib: u64,
    /// Size of the command, in KiB.
    pub command_kib: u64,
    /// Replicas on the node.
    pub replicas: Option<u64>,
}

impl Allowed {
    /// Why this deploy is not allowed: a sentence that names the setting. `others`: replicas that are there besides;
    /// `microvm`: a deploy without a limit of its own has what its microVM has.
    pub(crate) fn refuses(&self, deploy: &Deploy, others: usize, microvm: bool) -> Option<String> {
        let spec = &deploy.spec;
        let server = deploy.auth.as_ref().map(|auth| auth.server.as_str());
        self.refuses_image(&spec.image)
            .or_else(|| server.filter(|server| !self.allows_server(server)).map(not_a_server))
            .or_else(|| self.refuses_port(spec))
            .or_else(|| self.refuses_size(spec, others, microvm))
    }

    fn refuses_image(&self, image: &ImageRef) -> Option<String> {
        let repository = image.repository();
        let listed = self.images.iter().any(|prefix| lies_in(repository, prefix));
        if !listed && !self.allows_any(host(repository)) {
            return Some(format!("images of {repository} are not allowed on this node (setting images)"));
        }
        let by_tag = self.by_digest_only && !image.is_by_digest();
        by_tag.then(|| {
            "this node takes images by their digest alone (setting images_by_digest_only)".to_owned()
        })
    }

    fn allows_server(&self, server: &str) -> bool {
        let server = server.split_once("://").map_or(server, |(_, rest)| rest);
        let server = host(server);
        let server = if DOCKER_HUB.contains(&server) { DOCKER_HUB[0] } else { server };
        self.images.iter().any(|prefix| lies_in(prefix, server)) || self.allows_any(server)
    }

    /// Whether a registry need not be listed.
    fn allows_any(&self, registry: &str) -> bool {
        self.images.iter().any(|prefix| prefix == ANY_REGISTRY) && !is_local(registry)
    }

    fn refuses_port(&self, spec: &Spec) -> Option<String> {
        let port = spec.ports.iter().find(|port| !self.ports.contains(&port.host))?;
        let (first, last) = (self.ports.start(), self.ports.end());
        Some(format!(
            "port {} of the host may not be published on this node: {first} to {last} may (settings port_min, port_max)",
            port.host
        ))
    }

    fn refuses_size(&self, spec: &Spec, others: usize, microvm: bool) -> Option<String> {
        let kib = |bytes: usize| Some((bytes as u64).div_ceil(1024));
        let variables: usize =
            spec.env.iter().map(|(name, value)| name.as_str().len() + value.expose().len() + 2).sum();
        let millicpus = self.cpus.map(|cpus| cpus * 1000);
        // What is asked for, the most of it, whether asking for none means that there is no limit, and the names.
        let table = [
            (spec.memory_mib, self.memory_mib, !microvm, "memory_mb", "max_memory_mb"),
            (spec.millicpus, millicpus, !microvm, "cpus", "max_cpus"),
            (spec.pids_limit.map(u64::from), self.pids, !microvm, "pids_limit", "max_pids"),
            (spec.shm_mib, self.shm_mib, false, "shm_size_mb", "max_shm_mb"),
            (
                Some(spec.env.len() as u64),
                Some(self.variables),
                false,
                "the number of env_vars",
                "max_variables",
            ),
            (kib(variables), Some(self.variables_kib), false, "the size of env_vars", "max_variables_kb"),
            (
                kib(spec.bytes() - variables),
                Some(self.command_kib),
                false,
                "the size of command",
                "max_command_kb",
            ),
            (Some(others as u64 + 1), self.replicas, false, "the number of replicas", "max_replicas"),
        ];
        table.into_iter().find_map(|(asked, most, needed, what, setting)| {
            let most = most?;
            match asked {
                Some(asked) if asked <= most => None,
                None if !needed => None,
                Some(_) => Some(format!("{what} is above what this node allows (setting {setting})")),
                None => {
                    Some(format!("{what} must be given: this node has a limit for it (setting {setting})"))
                }
            }
        })
    }
}

/// An entry of the setting `images` as it is compared: [`ANY_REGISTRY`], or `registry[/path]` by the grammar of image
/// references. `None`: it is none.
pub fn image_prefix(entry: &str) -> Option<String> {
    // With two more parts it is a reference, whatever it names.
    const REST: &str = "/a/b";
    if entry == ANY_REGISTRY {
        return Some(entry.to_owned());
    }
    let image = ImageRef::new(&format!("{}{REST}", entry.trim_end_matches('/'))).ok()?;
    image.repository().strip_suffix(REST).map(str::to_owned)
}

/// Whether `path` is `folder`, or lies in it.
fn lies_in(path: &str, folder: &str) -> bool {
    path.strip_prefix(folder).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
}

fn host(repository: &str) -> &str {
    repository.split('/').next().unwrap_or_default()
}

fn not_a_server(server: &str) -> String {
    format!("credentials for {server} are not taken on this node (setting images)")
}

/// Whether `host[:port]` is this host or on one of its links by its name alone: asking there would try the ports of the
/// host and its neighbours for a stranger. A name that looks like a number is no name: some resolvers take `127.1` and
/// `0x7f000001` for addresses.
fn is_local(authority: &str) -> bool {
    let host = match authority.strip_prefix('[') {
        Some(rest) => rest.split(']').next().unwrap_or_default(),
        None => authority.split(':').next().unwrap_or_default(),
    };
    let host = host.trim_end_matches('.').to_ascii_lowercase();
    match host.parse::<IpAddr>().map(|address| address.to_canonical()) {
        Ok(IpAddr::V4(address)) => {
            address.is_loopback() || address.is_link_local() || address.octets()[0] == 0
        }
        Ok(IpAddr::V6(address)) => {
            address.is_loopback() || address.is_unspecified() || address.is_unicast_link_local()
        }
        Err(_) => {
            let last = host.rsplit('.').next().unwrap_or_default();
            last == "localhost" || last.starts_with(|first: char| first.is_ascii_digit())
        }
    }
}

impl Allowed {
    /// No limit but those of the protocol.
    pub fn everything() -> Self {
        Self {
            images: vec![ANY_REGISTRY.to_owned()],
            by_digest_only: false,
            ports: 1..=u16::MAX,
            memory_mib: None,
            cpus: None,
            shm_mib: None,
            pids: None,
            variables: u64::MAX,
            variables_kib: u64::MAX,
            command_kib: u64::MAX,
            replicas: None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::{Inbound, read};

    fn deploy(fields: &str) -> Deploy {
        let text = format!(r#"{{"type":"deploy","payload":{{"replica_id":"r","image":"bb:1"{fields}}}}}"#);
        match read(&text) {
            Ok(Inbound::Deploy(deploy)) => *deploy,
            other => panic!("{text}: {other:?}"),
        }
    }

    /// Whether a node with such settings refuses a deploy with such fields, and which setting it names.
    fn check(change: impl FnOnce(&mut Allowed), fields: &str, setting: Option<&str>) {
        check_in(true, change, fields, setting);
    }

    fn check_in(microvm: bool, change: impl FnOnce(&mut Allowed), fields: &str, setting: Option<&str>) {
        let mut allowed = Allowed::everything();
        change(&mut allowed);
        let why = allowed.refuses(&deploy(fields), 2, microvm);
        assert_eq!(why.is_some(), setting.is_some(), "{fields}: {why:?}");
        if let (Some(why), Some(setting)) = (why, setting) {
            assert!(
                why.contains(&format!("setting {setting})")) || why.contains(&format!("settings {setting}")),
                "{why}"
            );
        }
    }

    #[test]
    fn each_limit_by_its_setting() {
        check(|_| {}, "", None);
        for (fields, most) in [(r#","memory_mb":64"#, 64), (r#","memory_mb":65"#, 65)] {
            let refused = (most > 64).then_some("max_memory_mb");
            check(|a| a.memory_mib = Some(64), fields, refused);
        }
        check(|a| a.cpus = Some(2), r#","cpus":2"#, None);
        check(|a| a.cpus = Some(2), r#","cpus":2.001"#, Some("max_cpus"));
        check(|a| a.shm_mib = Some(2), r#","shm_size_mb":3"#, Some("max_shm_mb"));
        check(|a| a.shm_mib = Some(2), "", None);
        check(|a| a.pids = Some(2), r#","pids_limit":3"#, Some("max_pids"));
        check(|a| a.variables = 1, r#","env_vars":{"A":1}"#, None);
        check(|a| a.variables = 1, r#","env_vars":{"A":1,"B":2}"#, Some("max_variables"));
        let long = "x".repeat(1021);
        check(|a| a.variables_kib = 1, &format!(r#","env_vars":{{"A":"{long}"}}"#), None);
        check(
            |a| a.variables_kib = 1,
            &format!(r#","env_vars":{{"A":"{long}x"}}"#),
            Some("max_variables_kb"),
        );
        check(|a| a.command_kib = 1, &format!(r#","command":["{long}xx"]"#), None);
        check(|a| a.command_kib = 1, &format!(r#","command":["{long}xxx"]"#), Some("max_command_kb"));
        check(|a| a.replicas = Some(3), "", None);
        check(|a| a.replicas = Some(2), "", Some("max_replicas"));
        // Outside a microVM no limit is above every limit.
        check(|a| a.memory_mib = Some(64), "", None);
        for (setting, change) in [
            ("max_memory_mb", (|a: &mut Allowed| a.memory_mib = Some(1)) as fn(&mut Allowed)),
            ("max_cpus", |a| a.cpus = Some(1)),
            ("max_pids", |a| a.pids = Some(1)),
        ] {
            check_in(false, change, "", Some(setting));
        }
    }

    #[test]
    fn ports_of_the_owners_range() {
        let ports = |port: u16| {
            format!(r#","ports":[{{"host":2000,"container":1}},{{"host":{port},"container":80}}]"#)
        };
        for (port, refused) in [(1023, true), (1024, false), (3000, false), (3001, true)] {
            check(|a| a.ports = 1024..=3000, &ports(port), refused.then_some("port_min"));
        }
    }

    #[test]
    fn images_by_prefix() {
        let refused = |images: &[&str], image: &str| {
            let images = images.iter().map(|entry| image_prefix(entry).unwrap()).collect();
            let allowed = Allowed { images, ..Allowed::everything() };
            allowed.refuses_image(&ImageRef::new(image).unwrap()).is_some()
        };
        for (images, image, expected) in [
            (&["registry.example/team"][..], "registry.example/team/app:1", false),
            (&["registry.example/team/"], "registry.example/team:1", false),
            (&["registry.example/team"], "registry.example/teammate/app", true),
            (&["registry.example"], "registry.example:5000/team/app", true),
            (&["registry.example:5000"], "registry.example:5000/team/app", false),
            (&["docker.io/library"], "nginx", false),
            (&["docker.io/library"], "someone/nginx", true),
            (&["docker.io"], "someone/nginx", false),
            (&["index.docker.io/library"], "docker.io/library/nginx", false),
            (&["a.example", "b.example"], "b.example/x", false),
            (&["*"], "a.example/x", false),
            (&["*"], "10.0.0.1:5000/x", false),
            (&["*"], "127.0.0.1:5000/x", true),
            (&["*"], "127.1:5000/x", true),
            (&["*"], "0x7f000001:5000/x", true),
            (&["*"], "0.0.0.0:5000/x", true),
            (&["*"], "localhost/x", true),
            (&["*"], "a.localhost:1/x", true),
            (&["*"], "169.254.169.254/x", true),
            (&["*"], "[::1]:5000/x", true),
            (&["*"], "[fe80::1]:5000/x", true),
            (&["*"], "[::ffff:127.0.0.1]:5000/x", true),
            (&["*", "127.0.0.1:5000"], "127.0.0.1:5000/x", false),
            (&["*", "127.0.0.1:5000"], "127.0.0.1:5001/x", true),
        ] {
            // Not every form of an address is one by the grammar of references.
            if ImageRef::new(image).is_ok() {
                assert_eq!(refused(images, image), expected, "{images:?} {image}");
            }
        }
        for (entry, prefix) in [
            ("", None),
            ("a b", None),
            ("https://a.example", None),
            ("a.example/app:1", None),
            ("*", Some("*")),
            ("docker.io", Some("docker.io")),
            ("team", Some("docker.io/team")),
        ] {
            assert_eq!(image_prefix(entry).as_deref(), prefix, "{entry}");
        }
    }

    #[test]
    fn by_digest_alone() {
        check(|a| a.by_digest_only = true, "", Some("images_by_digest_only"));
        let digest = format!(r#","image":"bb@sha256:{}""#, "a".repeat(64));
        check(|a| a.by_digest_only = true, &digest, None);
    }

    #[test]
    fn credentials_go_where_images_may_come_from() {
        let auth = |server: &str| {
            format!(r#","registry_auth":{{"server":"{server}","username":"u","password":"hunter2"}}"#)
        };
        let listed = |a: &mut Allowed| a.images = vec!["registry.example/team".into(), "docker.io".into()];
        for server in
            ["registry.example", "https://registry.example/v2/", "docker.io", "https://index.docker.io/v1/"]
        {
            check(listed, &auth(server), None);
        }
        for server in ["other.example", "registry.example:5000", "127.0.0.1:5000"] {
            check(listed, &auth(server), Some("images"));
        }
        check(|_| {}, &auth("other.example"), None);
        for server in ["127.0.0.1:1", "https://169.254.169.254/latest", "[::1]:1", "localhost"] {
            check(|_| {}, &auth(server), Some("images"));
        }
    }
}
