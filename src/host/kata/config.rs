//! Kata's configuration in force: found and read as Kata's two runtimes do (`katautils/config.go` in Go,
//! `kata-types/src/config` in Rust).
//!
//! The file is named by KATA_CONF_FILE in the shim's environment, which a wrapper script sets, or is the first of the
//! runtime's own places that exists. Links are followed first: `config.d` lies beside the link's target. Each file in it
//! counts, whatever its name, in the order of the names, and one that is not valid TOML makes Kata refuse everything.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use toml::de::{DeTable, DeValue};

use crate::host::files;
use crate::host::shim::{Language, Program};

/// Kata refuses a KATA_CONF_FILE that is not one of its own places since this major version.
const SHIPPED_ONLY_SINCE: u32 = 4;
/// The guest's memory in MiB where no file names it (`defaultMemSize` in `katautils/config.go`, and what runtime-rs's
/// own files have).
const DEFAULT_MEMORY_MIB: u64 = 2048;
/// What Kata reckons for QEMU, virtiofsd and its shim, in MiB (the overhead of its own RuntimeClass).
const HYPERVISOR_MIB: u64 = 160;
/// The hypervisor and the agent that runtime-rs takes where none is named.
const RUST_HYPERVISOR: &str = "dragonball";
const RUST_AGENT: &str = "kata";

/// What the configuration says, as far as the checks need it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Config {
    /// Whose it is.
    pub language: Language,
    /// The main file, links followed.
    pub file: PathBuf,
    /// The hypervisor's table in force is `[hypervisor.NAME]`.
    pub name: String,
    /// What is in it.
    pub hypervisor: Hypervisor,
    /// `create_container_timeout`: in Go's `[runtime]`, in Rust's `[agent.NAME]`. Seconds.
    pub start_timeout_s: Option<u64>,
    /// How long the guest's agent may take to answer: Go's `dial_timeout` (seconds), Rust's `reconnect_timeout_ms`.
    pub dial_timeout_ms: Option<u64>,
}

/// A `[hypervisor.NAME]`.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Hypervisor {
    /// The hypervisor's program.
    pub path: Option<String>,
    /// The guest's kernel.
    pub kernel: Option<String>,
    /// The guest's root file system as an image.
    pub image: Option<String>,
    /// The same as an initramfs.
    pub initrd: Option<String>,
    /// How files are shared with the guest (`virtio-fs`, `none`, …).
    pub shared_fs: Option<String>,
    /// virtiofsd's program.
    pub virtio_fs_daemon: Option<String>,
    /// To which kind of port GPUs are plugged before the start.
    pub cold_plug: Option<String>,
    /// To which kind of port GPUs are plugged while the guest runs (Go).
    pub hot_plug: Option<String>,
    /// The same in runtime-rs up to Kata 3.
    pub on_root_bus: bool,
    /// How many root ports the guest gets.
    pub root_ports: u64,
    /// The guest's memory in MiB, to which a container's limit is added.
    pub default_memory: Option<u64>,
}

/// The files as they are merged.
#[derive(Debug, Default)]
struct Merged {
    hypervisors: BTreeMap<String, Hypervisor>,
    /// `create_container_timeout` and the time to dial, by agent.
    agents: BTreeMap<String, (Option<u64>, Option<u64>)>,
    hypervisor_name: Option<String>,
    agent_name: Option<String>,
    start_timeout_s: Option<u64>,
}

impl Config {
    /// Reads what is in force for Kata's shim `program`, which is `language`'s. `version` is Kata's, where it is known.
    ///
    /// # Errors
    /// A sentence that says why Kata has no configuration that it takes, with what to do.
    pub fn read(
        root: &Path,
        program: &Program,
        language: Language,
        version: Option<&str>,
    ) -> Result<Self, String> {
        let file = find(root, program, language, version)?;
        let mut merged = Merged::default();
        merged.add(root, &file, language)?;
        let folder = file.with_file_name("config.d");
        for name in files::names(&files::under(root, &folder)) {
            merged.add(root, &folder.join(name), language)?;
        }
        merged.in_force(language, file)
    }

    /// The name of the table in force, for advice.
    pub fn section(&self) -> String {
        format!("[hypervisor.{}] of {}", self.name, self.file.display())
    }

    /// Whether the microVM runs elsewhere, so that this host needs neither a hypervisor nor a kernel for it.
    pub fn is_remote(&self) -> bool {
        self.name == "remote"
    }

    /// MiB that a microVM takes besides its container's memory limit; none of this host's where it runs elsewhere.
    pub fn overhead_mib(&self) -> u64 {
        if self.is_remote() {
            return 0;
        }
        self.hypervisor.default_memory.unwrap_or(DEFAULT_MEMORY_MIB).saturating_add(HYPERVISOR_MIB)
    }

    /// Whether a virtiofsd of its own shares the container's files with the guest. Go's default is `virtio-fs`; in Rust,
    /// nothing is shared where the key is missing, and `inline-virtio-fs` is part of the hypervisor.
    pub fn needs_virtiofsd(&self) -> bool {
        match (self.hypervisor.shared_fs.as_deref(), self.language) {
            (Some("virtio-fs" | "virtio-fs-nydus" | ""), _) => true,
            (None, Language::Go) => matches!(self.name.as_str(), "qemu" | "clh" | "stratovirt"),
            (Some(_), _) | (None, Language::Rust) => false,
        }
    }
}

/// Where each runtime looks. Go's second place is compiled in, below the prefix that it was built for; packages move it
/// (Fedora's is /usr/share/kata-containers/defaults), and a shim that was copied still has its own.
fn places(root: &Path, program: &Program, language: Language) -> Vec<PathBuf> {
    const FILE: &str = "configuration.toml";
    if language == Language::Rust {
        let folders = ["/etc", "/usr/share/defaults", "/opt/kata/share/defaults"];
        return folders
            .map(|folder| Path::new(folder).join("kata-containers/runtime-rs").join(FILE))
            .to_vec();
    }
    let mut built = Vec::new();
    let prefix = program.target.parent().and_then(Path::parent).unwrap_or(Path::new("/usr"));
    for prefix in [prefix, Path::new("/opt/kata"), Path::new("/usr")] {
        for folder in ["share/defaults/kata-containers", "share/kata-containers/defaults"] {
            built.push(prefix.join(folder).join(FILE));
        }
    }
    built.retain(|place| files::under(root, place).exists());
    let compiled_in = built.iter().find(|place| program.contains(root, &place.to_string_lossy()));
    let second = compiled_in.or(built.first()).cloned();
    std::iter::once(PathBuf::from("/etc/kata-containers").join(FILE)).chain(second).collect()
}

fn find(
    root: &Path,
    program: &Program,
    language: Language,
    version: Option<&str>,
) -> Result<PathBuf, String> {
    let places = places(root, program, language);
    let resolved = || places.iter().filter_map(|place| files::resolve(root, place));
    if let Some(named) = &program.conf_file {
        let shown = named.display();
        let Some(file) = files::resolve(root, named) else {
            return Err(format!(
                "{} sets KATA_CONF_FILE={shown}, which does not exist; correct it",
                program.path.display()
            ));
        };
        let major = version.and_then(|version| version.split('.').next()?.parse::<u32>().ok());
        if major.is_some_and(|major| major >= SHIPPED_ONLY_SINCE) && !resolved().any(|place| place == file) {
            let own = places.iter().map(|place| place.display().to_string()).collect::<Vec<_>>().join(", ");
            return Err(format!(
                "{} sets KATA_CONF_FILE={shown}, which Kata 4 refuses because it is none of its own places ({own}); link \
                 the first of these to it",
                program.path.display()
            ));
        }
        return Ok(file);
    }
    resolved().next().ok_or_else(|| {
        let own = places.iter().map(|place| place.display().to_string()).collect::<Vec<_>>().join(" or ");
        format!(
            "Kata has no configuration; link {own} to the one that it is to use (its archive has several)"
        )
    })
}

impl Merged {
    fn add(&mut self, root: &Path, file: &Path, language: Language) -> Result<(), String> {
        let path = files::under(root, file);
        let shown = file.display();
        if fs::metadata(&path).is_ok_and(|metadata| metadata.is_dir()) {
            return Err(format!("Kata refuses its configuration because {shown} is a folder; remove it"));
        }
        let text = files::read(&path)
            .map_err(|error| format!("Kata's configuration {shown} cannot be read: {error}; correct that"))?;
        let document = DeTable::parse(&text).map_err(|error| {
            let line = error.span().map(|span| 1 + text[..span.start.min(text.len())].matches('\n').count());
            let line = line.map(|line| format!(", line {line}")).unwrap_or_default();
            format!("Kata's configuration {shown} is not valid TOML: {}{line}; correct it", error.message())
        })?;
        self.take(document.get_ref(), language);
        Ok(())
    }

    fn take(&mut self, document: &DeTable<'_>, language: Language) {
        for (name, table) in tables(document, "hypervisor") {
            let hypervisor = self.hypervisors.entry(name.to_owned()).or_default();
            let text = |key: &str, field: &mut Option<String>| {
                if let Some(value) = get(table, key).and_then(DeValue::as_str) {
                    *field = Some(value.to_owned());
                }
            };
            text("path", &mut hypervisor.path);
            text("kernel", &mut hypervisor.kernel);
            text("image", &mut hypervisor.image);
            text("initrd", &mut hypervisor.initrd);
            text("shared_fs", &mut hypervisor.shared_fs);
            text("virtio_fs_daemon", &mut hypervisor.virtio_fs_daemon);
            text("cold_plug_vfio", &mut hypervisor.cold_plug);
            text("hot_plug_vfio", &mut hypervisor.hot_plug);
            let on_root_bus = get(table, "hotplug_vfio_on_root_bus").and_then(DeValue::as_bool);
            hypervisor.on_root_bus = on_root_bus.unwrap_or(hypervisor.on_root_bus);
            hypervisor.root_ports = number(table, "pcie_root_port").unwrap_or(hypervisor.root_ports);
            hypervisor.default_memory = number(table, "default_memory").or(hypervisor.default_memory);
        }
        for (name, table) in tables(document, "agent") {
            let (start_s, dial_ms) = self.agents.entry(name.to_owned()).or_default();
            *start_s = number(table, "create_container_timeout").or(*start_s);
            let dial = match language {
                Language::Go => number(table, "dial_timeout").map(|seconds| seconds.saturating_mul(1000)),
                Language::Rust => number(table, "reconnect_timeout_ms"),
            };
            *dial_ms = dial.or(*dial_ms);
        }
        if let Some(runtime) = get(document, "runtime").and_then(DeValue::as_table) {
            let text = |key: &str| get(runtime, key).and_then(DeValue::as_str).map(str::to_owned);
            self.hypervisor_name = text("hypervisor_name").or_else(|| self.hypervisor_name.take());
            self.agent_name = text("agent_name").or_else(|| self.agent_name.take());
            self.start_timeout_s = number(runtime, "create_container_timeout").or(self.start_timeout_s);
        }
    }

    fn in_force(mut self, language: Language, file: PathBuf) -> Result<Config, String> {
        let shown = file.display();
        let known = self.hypervisors.keys().map(|name| format!("[hypervisor.{name}]")).collect::<Vec<_>>();
        let named = self.hypervisor_name.take().filter(|name| !name.is_empty());
        let name = match language {
            Language::Rust => named.unwrap_or_else(|| RUST_HYPERVISOR.to_owned()),
            Language::Go => match self.hypervisors.keys().next() {
                Some(name) if known.len() == 1 => name.clone(),
                None => {
                    return Err(format!("Kata's configuration {shown} has no [hypervisor.…] table; add one"));
                }
                // They are in a map, of which the one that is read last wins.
                Some(_) => {
                    return Err(format!(
                        "Kata's configuration {shown} has {}, of which Kata takes a different one each time; remove all \
                         but one",
                        known.join(" and ")
                    ));
                }
            },
        };
        let Some(hypervisor) = self.hypervisors.remove(&name) else {
            return Err(format!(
                "Kata's configuration {shown} has no [hypervisor.{name}], which it names as hypervisor_name in [runtime]; \
                 add it, or name one that is there: {}",
                known.join(", ")
            ));
        };
        let agent = match language {
            Language::Rust => {
                let name = self.agent_name.filter(|name| !name.is_empty());
                self.agents.remove(name.as_deref().unwrap_or(RUST_AGENT))
            }
            Language::Go => self.agents.into_values().next(),
        };
        let (in_agent, dial_timeout_ms) = agent.unwrap_or_default();
        let start_timeout_s = match language {
            Language::Go => self.start_timeout_s,
            Language::Rust => in_agent,
        };
        Ok(Config { language, file, name, hypervisor, start_timeout_s, dial_timeout_ms })
    }
}

fn get<'a, 'b>(table: &'a DeTable<'b>, key: &str) -> Option<&'a DeValue<'b>> {
    table.iter().find(|(name, _)| name.get_ref() == key).map(|(_, value)| value.get_ref())
}

/// The tables in the table `name`, by their names.
fn tables<'a, 'b>(document: &'a DeTable<'b>, name: &str) -> impl Iterator<Item = (&'a str, &'a DeTable<'b>)> {
    let inner = get(document, name).and_then(DeValue::as_table).into_iter().flat_map(DeTable::iter);
    inner.filter_map(|(name, value)| Some((name.get_ref().as_ref(), value.get_ref().as_table()?)))
}

fn number(table: &DeTable<'_>, key: &str) -> Option<u64> {
    let number = get(table, key)?.as_integer()?;
    u64::from_str_radix(number.as_str(), number.radix()).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::files::fixture::Fixture;
    use crate::host::shim::{Shim, fixture};

    const GO: &str = "/opt/kata/bin/containerd-shim-kata-v2";
    const RUST: &str = "/opt/kata/runtime-rs/bin/containerd-shim-kata-v2";
    const LINK: &str = "/usr/local/bin/containerd-shim-kata-v2";
    const ETC: &str = "/etc/kata-containers/configuration.toml";
    const ETC_RUST: &str = "/etc/kata-containers/runtime-rs/configuration.toml";
    const SHIPPED: &str = "/opt/kata/share/defaults/kata-containers/configuration.toml";

    fn host(shim: &str, files: &[(&str, &str)]) -> Fixture {
        let host = Fixture::new(files);
        let content = if shim == RUST { fixture::kata_rust() } else { fixture::kata_go() };
        host.program(shim, &content);
        if shim != LINK {
            host.add(LINK, &format!("-> {shim}"));
        }
        host
    }

    fn read_with(host: &Fixture, version: Option<&str>) -> Result<Config, String> {
        let shim = Shim::look_up(host.path(), "io.containerd.kata.v2", true);
        let program = shim.program().unwrap();
        Config::read(host.path(), program, program.kata().unwrap(), version)
    }

    fn read(host: &Fixture) -> Result<Config, String> {
        read_with(host, Some("3.18.0"))
    }

    /// Which file is in force, by the kernel that it names.
    fn kernel(host: &Fixture) -> String {
        read(host).unwrap().hypervisor.kernel.unwrap()
    }

    fn naming(kernel: &str) -> String {
        format!("[hypervisor.qemu]\nkernel = \"{kernel}\"\n[runtime]\nhypervisor_name = \"qemu\"\n")
    }

    #[test]
    fn each_runtime_has_its_own_places() {
        let files: Vec<(&str, String)> = [
            ETC,
            SHIPPED,
            "/usr/share/defaults/kata-containers/configuration.toml",
            ETC_RUST,
            "/usr/share/defaults/kata-containers/runtime-rs/configuration.toml",
            "/opt/kata/share/defaults/kata-containers/runtime-rs/configuration.toml",
        ]
        .map(|path| (path, naming(path)))
        .to_vec();
        let files: Vec<(&str, &str)> = files.iter().map(|(path, text)| (*path, text.as_str())).collect();
        for (shim, order) in [
            (GO, [ETC, SHIPPED].as_slice()),
            // A copy knows the place that was compiled in.
            (LINK, &[ETC, SHIPPED]),
            (RUST, &[files[3].0, files[4].0, files[5].0]),
        ] {
            let host = host(shim, &files);
            for place in order {
                assert_eq!(kernel(&host), *place, "{shim}");
                host.remove(place);
            }
            if shim == RUST {
                let why = read(&host).unwrap_err();
                assert!(why.contains("no configuration") && why.contains(ETC_RUST), "{why}");
            }
        }
        // As Fedora's packages have it.
        let fedora = "/usr/share/kata-containers/defaults/configuration.toml";
        let host = host("/usr/bin/containerd-shim-kata-v2", &[(fedora, &naming("fedora"))]);
        assert_eq!(kernel(&host), "fedora");
    }

    #[test]
    fn a_wrapper_names_the_file_and_kata_4_refuses_others_than_its_own() {
        let wrapper =
            "#!/bin/sh\nKATA_CONF_FILE=/etc/x/y.toml /opt/kata/bin/containerd-shim-kata-v2 \"$@\"\n";
        let host = Fixture::new(&[(LINK, wrapper), (ETC, &naming("etc"))]);
        host.program(GO, &fixture::kata_go());
        let why = read(&host).unwrap_err();
        assert!(why.contains("KATA_CONF_FILE=/etc/x/y.toml, which does not exist"), "{why}");
        host.add("/etc/x/y.toml", &naming("named"));
        assert_eq!(kernel(&host), "named");
        assert!(read_with(&host, None).is_ok());
        let why = read_with(&host, Some("4.1.0")).unwrap_err();
        assert!(why.contains("Kata 4 refuses") && why.contains(ETC), "{why}");
        host.remove(ETC);
        host.add(ETC, "-> /etc/x/y.toml");
        assert!(read_with(&host, Some("4.1.0")).is_ok());
    }

    #[test]
    fn drop_ins_lie_beside_the_links_target_and_have_any_name() {
        let host = host(GO, &[(ETC, "-> /opt/kata/share/defaults/kata-containers/configuration-qemu.toml")]);
        let folder = "/opt/kata/share/defaults/kata-containers";
        host.add(&format!("{folder}/configuration-qemu.toml"), &naming("main"));
        host.add("/etc/kata-containers/config.d/99-not-this.toml", &naming("beside the link"));
        assert_eq!(kernel(&host), "main");
        host.add(&format!("{folder}/config.d/10-this"), "hypervisor.qemu.kernel = 'this'\n");
        assert_eq!(kernel(&host), "this");
        host.add(
            &format!("{folder}/config.d/20-that.toml"),
            "[hypervisor.\"qemu\"]\nkernel = '''\nthat'''\n[ hypervisor . qemu . factory ]\nenable_template = false\n",
        );
        assert_eq!(kernel(&host), "that");
        assert_eq!(
            read(&host).unwrap().section(),
            format!("[hypervisor.qemu] of {folder}/configuration-qemu.toml")
        );
        // What spoils one spoils all.
        host.add(
            &format!("{folder}/config.d/30-broken~"),
            "[hypervisor.qemu]\nkernel = \"a\"\nkernel = \"b\"\n",
        );
        let why = read(&host).unwrap_err();
        assert!(why.contains("30-broken~ is not valid TOML: ") && why.contains(", line 3;"), "{why}");
        host.remove(&format!("{folder}/config.d/30-broken~"));
        host.add(&format!("{folder}/config.d/40-folder/"), "");
        let why = read(&host).unwrap_err();
        assert!(why.contains("40-folder is a folder"), "{why}");
    }

    #[test]
    fn toml_as_toml_is() {
        let text = "
            title = \"\"\"
            [hypervisor.qemu]
            kernel = \"not this\"\"\"\"
            [hypervisor]
            qemu = { kernel = '/k', pcie_root_port = 1_200, \"image\" = \"a\\u0062\" }
            [agent.kata]
            dial_timeout = 0x10 # seconds
            kernel_modules = [
              \"a\", # with a ] in it
            ]
            [runtime]
            create_container_timeout = +60
            enable_debug = true
        ";
        let config = read(&host(GO, &[(ETC, text)])).unwrap();
        let hypervisor = &config.hypervisor;
        assert_eq!((hypervisor.kernel.as_deref(), hypervisor.image.as_deref()), (Some("/k"), Some("ab")));
        assert_eq!(hypervisor.root_ports, 1200);
        assert_eq!((config.start_timeout_s, config.dial_timeout_ms), (Some(60), Some(16_000)));
    }

    #[test]
    fn the_section_in_force() {
        let two = "[hypervisor.qemu]\nkernel = 'q'\n[hypervisor.clh]\nkernel = 'c'\n[agent.kata]\n\
            create_container_timeout = 1200\nreconnect_timeout_ms = 7\ndial_timeout = 9\n[runtime]\n";
        let rust = |more: &str| read(&host(RUST, &[(ETC_RUST, &format!("{two}{more}"))]));
        let config = rust("hypervisor_name = 'clh'\nagent_name = 'kata'\n").unwrap();
        assert_eq!((config.name.as_str(), config.hypervisor.kernel.as_deref()), ("clh", Some("c")));
        // runtime-rs has both times in the agent's table, Go has one in [runtime].
        assert_eq!((config.start_timeout_s, config.dial_timeout_ms), (Some(1200), Some(7)));
        let why = rust("hypervisor_name = 'firecracker'\n").unwrap_err();
        assert!(why.contains("no [hypervisor.firecracker]") && why.contains("[hypervisor.clh]"), "{why}");
        assert!(rust("").unwrap_err().contains("no [hypervisor.dragonball]"));
        let go = |text: &str| read(&host(GO, &[(ETC, text)]));
        let why = go(two).unwrap_err();
        assert!(why.contains("[hypervisor.clh] and [hypervisor.qemu]"), "{why}");
        assert!(go("[runtime]\n").unwrap_err().contains("no [hypervisor.…] table"));
        let config =
            go("[hypervisor.qemu]\n[agent.kata]\ncreate_container_timeout = 1200\ndial_timeout = 9\n")
                .unwrap();
        assert_eq!((config.start_timeout_s, config.dial_timeout_ms), (None, Some(9000)));
    }

    #[test]
    fn who_needs_virtiofsd() {
        let check = |shim: &str, name: &str, line: &str, expected: bool| {
            let text = format!("[hypervisor.{name}]\n{line}\n[runtime]\nhypervisor_name = \"{name}\"\n");
            let config = read(&host(shim, &[(ETC, &text), (ETC_RUST, &text)])).unwrap();
            assert_eq!(config.needs_virtiofsd(), expected, "{shim} {text}");
        };
        check(GO, "qemu", "shared_fs = 'virtio-fs'", true);
        check(GO, "qemu", "", true);
        check(GO, "qemu", "shared_fs = 'none'", false);
        check(GO, "qemu", "shared_fs = 'virtio-9p'", false);
        check(GO, "firecracker", "", false);
        check(RUST, "qemu", "shared_fs = 'virtio-fs-nydus'", true);
        check(RUST, "qemu", "shared_fs = ''", true);
        check(RUST, "qemu", "", false);
        check(RUST, "dragonball", "shared_fs = 'inline-virtio-fs'", false);
    }
}
