//! The runtime's shim: the program that containerd starts for each container. It is looked up as containerd looks it up,
//! and it is looked at, never run: its path comes from another process's environment.

use std::fmt;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use super::{containerd_path, files};

/// Where Kata's own archives put their shims (kata-containers `docs/installation.md`).
const KATA_FOLDERS: [&str; 2] = ["/opt/kata/bin", "/opt/kata/runtime-rs/bin"];
/// At most this much of a wrapper script is read, in bytes.
const SCRIPT_MAX: usize = 64 * 1024;
/// At most this much of a program's table of sections, of their names, or of Go's build information, in bytes.
const SECTION_MAX: usize = 256 * 1024;
/// At most this much of a program is searched for a text, in bytes. Kata's shims have 30 to 60 MB.
const SEARCH_MAX: u64 = 128 * 1024 * 1024;
/// How much is searched at a time, in bytes.
const SEARCH_STEP: usize = 1024 * 1024;
/// A wrapper that starts a wrapper is followed so often.
const WRAPPERS_MAX: usize = 4;

/// Where the shim is that a runtime's name stands for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Shim {
    /// The engine's configuration explains the name (`runc`, or what Docker's daemon.json names).
    Unnamed,
    /// containerd finds it.
    Found(Program),
    /// It is installed, but containerd does not look there.
    Elsewhere {
        /// Where it is.
        path: PathBuf,
        /// Where containerd looks.
        searched: Vec<PathBuf>,
    },
    /// It is nowhere.
    Missing {
        /// Its file name.
        name: String,
        /// Where containerd looks.
        searched: Vec<PathBuf>,
    },
    /// nerdctl cannot run containers with a runtime of this name.
    Refused {
        /// The name.
        runtime: String,
        /// The name that works.
        instead: String,
    },
}

/// A shim that containerd finds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Program {
    /// Where containerd finds it.
    pub path: PathBuf,
    /// The program itself, behind links and wrapper scripts.
    pub target: PathBuf,
    /// What it is.
    pub kind: Kind,
    /// What a wrapper script sets as KATA_CONF_FILE, the documented way to give one runtime name its own configuration.
    pub conf_file: Option<PathBuf>,
}

/// What a shim is, by its content.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// runc's.
    Runc,
    /// Kata's.
    Kata(Language),
    /// Another program, or none.
    Other,
    /// Not recognised.
    Unknown,
}

/// Kata has two runtimes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Language {
    /// The one in Go, the default up to Kata 3.
    Go,
    /// runtime-rs, the default since Kata 4.
    Rust,
}

impl fmt::Display for Language {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Go => "Go",
            Self::Rust => "Rust",
        })
    }
}

/// The path and, where they differ, the program behind it.
impl fmt::Display for Program {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.path.display())?;
        if self.target == self.path { Ok(()) } else { write!(f, " -> {}", self.target.display()) }
    }
}

/// Whether `runtime`, a name or a path, means Kata.
pub fn means_kata(runtime: &str) -> bool {
    runtime.contains("kata")
}

impl Shim {
    /// Looks the shim of `runtime` up below `root`, as containerd does. `nerdctl`: whether the CLI is nerdctl, which
    /// takes other names than Docker.
    pub fn look_up(root: &Path, runtime: &str, nerdctl: bool) -> Self {
        let name = match shim_name(runtime) {
            Some(name) => name,
            None if means_kata(runtime) && nerdctl => {
                let name = runtime.rsplit('/').next().unwrap_or(runtime);
                let name = name.strip_prefix("containerd-shim-").unwrap_or(name);
                let name = name.strip_suffix("-v2").unwrap_or(name);
                let instead = format!("io.containerd.{name}.v2");
                return Self::Refused { runtime: runtime.to_owned(), instead };
            }
            // Docker's daemon.json can give Kata's shim any name, such as `kata`.
            None if means_kata(runtime) && !runtime.starts_with('/') => "containerd-shim-kata-v2".to_owned(),
            None if means_kata(runtime) => {
                let path = PathBuf::from(runtime);
                return if files::is_program(root, &path) {
                    Self::Found(Program::look_at(root, path))
                } else {
                    Self::Missing { name: runtime.to_owned(), searched: Vec::new() }
                };
            }
            None => return Self::Unnamed,
        };
        let searched = containerd_path::folders(root, rustix::process::geteuid().as_raw());
        let find = |folders: &mut dyn Iterator<Item = &Path>| {
            folders.map(|folder| folder.join(&name)).find(|path| files::is_program(root, path))
        };
        if let Some(path) = find(&mut searched.iter().map(PathBuf::as_path)) {
            return Self::Found(Program::look_at(root, path));
        }
        let own = containerd_path::SERVICE_PATH.iter().chain(&KATA_FOLDERS).map(Path::new);
        match find(&mut own.into_iter()) {
            Some(path) => Self::Elsewhere { path, searched },
            None => Self::Missing { name, searched },
        }
    }

    /// The shim, if containerd finds it.
    pub fn program(&self) -> Option<&Program> {
        match self {
            Self::Found(program) => Some(program),
            Self::Unnamed | Self::Elsewhere { .. } | Self::Missing { .. } | Self::Refused { .. } => None,
        }
    }

    /// Why containers cannot be started with it, and what to do; `None` when nothing is known to prevent it.
    pub fn obstacle(&self) -> Option<String> {
        match self {
            Self::Unnamed | Self::Found(_) => None,
            Self::Elsewhere { path, searched } => Some(format!(
                "{} is not where containerd looks ({}): run `ln -s {} /usr/local/bin/`",
                path.display(),
                containerd_path::joined(searched),
                path.display()
            )),
            Self::Missing { name, searched } => Some(format!(
                "{name} not found where containerd looks ({})",
                containerd_path::joined(searched)
            )),
            Self::Refused { runtime, instead } => {
                let shim = shim_name(instead).unwrap_or_default();
                Some(format!(
                    "nerdctl cannot run the runtime {runtime}: set runtime to {instead}, and link or wrap the shim as \
                     /usr/local/bin/{shim}"
                ))
            }
        }
    }
}

/// What was chosen for the runtime, for a person.
impl fmt::Display for Shim {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unnamed => f.write_str("started by the engine as it is configured there"),
            Self::Found(program) => program.fmt(f),
            Self::Elsewhere { .. } | Self::Missing { .. } | Self::Refused { .. } => {
                f.write_str(&self.obstacle().unwrap_or_default())
            }
        }
    }
}

/// The shim's file name by containerd's rule (its `BinaryName`): `io.containerd.kata-qemu.v2` is
/// `containerd-shim-kata-qemu-v2`. `None`: containerd has no rule for the name.
fn shim_name(runtime: &str) -> Option<String> {
    let mut parts = runtime.rsplit('.');
    match (parts.next(), parts.next(), parts.next()) {
        (Some(version), Some(name), Some(_)) if !runtime.starts_with('/') => {
            Some(format!("containerd-shim-{name}-{version}"))
        }
        _ => None,
    }
}

impl Program {
    fn look_at(root: &Path, path: PathBuf) -> Self {
        let mut target = files::resolve(root, &path).unwrap_or_else(|| path.clone());
        let mut conf_file = None;
        for _ in 0..WRAPPERS_MAX {
            let Some(script) = script(&files::under(root, &target)) else { break };
            let wrapper = Wrapper::read(&script);
            conf_file = wrapper.conf_file.or(conf_file);
            let Some(next) = wrapper.program.and_then(|next| files::resolve(root, &next)) else { break };
            target = next;
        }
        let kind = kind(root, &target).unwrap_or(Kind::Unknown);
        Self { path, target, kind, conf_file }
    }

    /// Which Kata it is, if it is Kata's.
    pub fn kata(&self) -> Option<Language> {
        match self.kind {
            Kind::Kata(language) => Some(language),
            Kind::Runc | Kind::Other | Kind::Unknown => None,
        }
    }

    /// Whether `text` is in the program, as a file's name that was compiled in is.
    pub fn contains(&self, root: &Path, text: &str) -> bool {
        File::open(files::under(root, &self.target)).is_ok_and(|file| has_text(&file, text.as_bytes()))
    }
}

/// The text of a script; `None` for another program.
fn script(path: &Path) -> Option<String> {
    let start = section(&File::open(path).ok()?, 0, SCRIPT_MAX).ok()?;
    start.starts_with(b"#!").then(|| String::from_utf8_lossy(&start).into_owned())
}

/// What a wrapper script starts, and with which configuration.
#[derive(Debug, Default, PartialEq, Eq)]
struct Wrapper {
    program: Option<PathBuf>,
    conf_file: Option<PathBuf>,
}

impl Wrapper {
    /// Reads words such as `KATA_CONF_FILE=/path` and `/opt/kata/bin/containerd-shim-kata-v2`. A value that the shell has
    /// to work out first (`$X`) is not known.
    fn read(script: &str) -> Self {
        let mut wrapper = Self::default();
        let lines = script.lines().map(str::trim).filter(|line| !line.starts_with('#'));
        for word in lines.flat_map(|line| line.split([' ', '\t', ';', '&'])) {
            let plain = |text: &str| -> Option<PathBuf> {
                let text = text.replace(['"', '\''], "");
                (text.starts_with('/') && !text.contains('$')).then(|| text.into())
            };
            if let Some(value) = word.strip_prefix("KATA_CONF_FILE=") {
                wrapper.conf_file = plain(value).or(wrapper.conf_file);
            } else if let Some(path) = plain(word)
                && path.file_name().is_some_and(|name| name.to_string_lossy().starts_with("containerd-shim-"))
            {
                wrapper.program = Some(path);
            }
        }
        wrapper
    }
}

/// What the program at `path` is. A Go program says so in a section of its own, with the path of its source; another one
/// is Kata's if it says it is (`containerd shim (Rust)` is what it prints for `--version`).
fn kind(root: &Path, path: &Path) -> io::Result<Kind> {
    let name = path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
    let file = File::open(files::under(root, path))?;
    let start = section(&file, 0, 4)?;
    if !start.starts_with(b"\x7fELF") {
        // A script may start anything.
        return Ok(if start.starts_with(b"#!") { Kind::Unknown } else { Kind::Other });
    }
    if let Some(build) = elf_section(&file, b".go.buildinfo")? {
        let build = String::from_utf8_lossy(&build);
        let source = build.split_once("path\t").and_then(|(_, rest)| rest.lines().next()).unwrap_or_default();
        return Ok(if source.contains("kata-containers") {
            Kind::Kata(Language::Go)
        } else if source.contains("containerd-shim-runc") {
            Kind::Runc
        } else if !source.is_empty() {
            Kind::Other
        } else if name.starts_with("containerd-shim-runc") {
            Kind::Runc
        } else {
            Kind::Unknown
        });
    }
    let says_so =
        path.to_string_lossy().contains("/runtime-rs/") || has_text(&file, b"containerd shim (Rust)");
    Ok(if says_so { Kind::Kata(Language::Rust) } else { Kind::Unknown })
}

/// The content of the section `name` of an ELF file (elf(5); 64 bits, little-endian, as x86_64 and aarch64 are).
fn elf_section(file: &File, name: &[u8]) -> io::Result<Option<Vec<u8>>> {
    let header = section(file, 0, 64)?;
    let number = |bytes: &[u8], at: usize, length: usize| -> u64 {
        let bytes = bytes.get(at..at + length).unwrap_or_default();
        bytes.iter().rev().fold(0, |number, byte| number << 8 | u64::from(*byte))
    };
    if header.get(4..6) != Some(&[2, 1]) {
        return Ok(None);
    }
    let (table_at, entry) = (number(&header, 0x28, 8), number(&header, 0x3a, 2) as usize);
    let (count, names_index) = (number(&header, 0x3c, 2) as usize, number(&header, 0x3e, 2) as usize);
    if entry < 64 {
        return Ok(None);
    }
    let table = section(file, table_at, (entry * count).min(SECTION_MAX))?;
    let mut entries = table.chunks_exact(entry);
    let content = |entry: &[u8]| {
        let size = usize::try_from(number(entry, 0x20, 8)).unwrap_or(usize::MAX);
        section(file, number(entry, 0x18, 8), size.min(SECTION_MAX))
    };
    let Some(names) = entries.clone().nth(names_index) else { return Ok(None) };
    let names = content(names)?;
    let is_named = |entry: &&[u8]| {
        let rest = usize::try_from(number(entry, 0, 4)).ok().and_then(|at| names.get(at..));
        rest.is_some_and(|rest| rest.split(|byte| *byte == 0).next() == Some(name))
    };
    entries.find(is_named).map(content).transpose()
}

/// At most `length` bytes from `at` on.
fn section(file: &File, at: u64, length: usize) -> io::Result<Vec<u8>> {
    let mut bytes = vec![0; length];
    let mut read = 0;
    while read < length {
        match file.read_at(&mut bytes[read..], at + read as u64)? {
            0 => break,
            more => read += more,
        }
    }
    bytes.truncate(read);
    Ok(bytes)
}

fn has_text(file: &File, text: &[u8]) -> bool {
    let mut at = 0;
    while at < SEARCH_MAX {
        let Ok(part) = section(file, at, SEARCH_STEP + text.len()) else { return false };
        if part.windows(text.len()).any(|window| window == text) {
            return true;
        }
        if part.len() < SEARCH_STEP + text.len() {
            return false;
        }
        at += SEARCH_STEP as u64;
    }
    false
}

/// Programs that look like shims.
#[cfg(test)]
pub mod fixture {
    /// An ELF file with one more section besides that of the names.
    fn elf(section: &str, content: &[u8]) -> Vec<u8> {
        let names = format!("\0.shstrtab\0{section}\0");
        let names_at = 64 + content.len() as u64;
        let table_at = names_at + names.len() as u64;
        let mut file = b"\x7fELF\x02\x01\x01".to_vec();
        file.resize(64, 0);
        file[0x28..0x30].copy_from_slice(&table_at.to_le_bytes());
        file[0x3a..0x3c].copy_from_slice(&64_u16.to_le_bytes());
        file[0x3c..0x3e].copy_from_slice(&3_u16.to_le_bytes());
        file[0x3e..0x40].copy_from_slice(&1_u16.to_le_bytes());
        file.extend(content);
        file.extend(names.as_bytes());
        for (name, at, size) in [(0, 0, 0), (1, names_at, names.len() as u64), (11, 64, content.len() as u64)]
        {
            let mut entry = [0; 64];
            entry[..4].copy_from_slice(&u32::to_le_bytes(name));
            entry[0x18..0x20].copy_from_slice(&u64::to_le_bytes(at));
            entry[0x20..0x28].copy_from_slice(&u64::to_le_bytes(size));
            file.extend(entry);
        }
        file
    }

    /// A Go program made from the source `path`.
    pub fn go(path: &str) -> Vec<u8> {
        let build =
            format!("\u{fffd} Go buildinf:\x08\x02\0\x08go1.24\x7f0w\npath\t{path}\nbuild\t-compiler=gc\n");
        elf(".go.buildinfo", build.as_bytes())
    }

    /// Kata's shim in Go, with a path that is compiled in.
    pub fn kata_go() -> Vec<u8> {
        let mut program =
            go("github.com/kata-containers/kata-containers/src/runtime/cmd/containerd-shim-kata-v2");
        program.extend(b"xx/opt/kata/share/defaults/kata-containers/configuration.tomlxx");
        program
    }

    /// Kata's shim in Rust.
    pub fn kata_rust() -> Vec<u8> {
        elf(".rodata", b"Kata Containers containerd shim (Rust): id: , version: , commit: ")
    }

    /// runc's shim.
    pub fn runc() -> Vec<u8> {
        go("github.com/containerd/containerd/v2/cmd/containerd-shim-runc-v2")
    }

    /// A program that says nothing about itself.
    pub fn unknown() -> Vec<u8> {
        elf(".rodata", b"hello")
    }
}

#[cfg(test)]
mod tests;
