use super::*;
use crate::host::files::fixture::Fixture;

const KATA: &str = "io.containerd.kata.v2";
const LINK: &str = "/usr/local/bin/containerd-shim-kata-v2";

fn found(host: &Fixture, runtime: &str) -> Program {
    match Shim::look_up(host.path(), runtime, true) {
        Shim::Found(program) => program,
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_program_is_known_by_its_content() {
    let check = |content: &[u8], kind: Kind| {
        let host = Fixture::new(&[]);
        // A copy: its path says nothing.
        host.program(LINK, content);
        assert_eq!(found(&host, KATA).kind, kind);
    };
    check(&fixture::kata_go(), Kind::Kata(Language::Go));
    check(&fixture::kata_rust(), Kind::Kata(Language::Rust));
    check(&fixture::runc(), Kind::Runc);
    check(&fixture::go("example.com/other/shim"), Kind::Other);
    check(&fixture::unknown(), Kind::Unknown);
    check(b"#!/bin/sh\nexit 0\n", Kind::Unknown);
    check(b"", Kind::Other);
    check(b"\x7fELF", Kind::Unknown);
    // Damaged ones end no search.
    let mut damaged = fixture::kata_go();
    damaged[0x28..0x30].copy_from_slice(&u64::MAX.to_le_bytes());
    check(&damaged, Kind::Unknown);
    let mut huge = fixture::kata_go();
    huge[0x3a..0x3e].copy_from_slice(&[0xff; 4]);
    check(&huge, Kind::Unknown);
}

#[test]
fn real_programs_are_told_apart() {
    let runc = Path::new("/usr/bin/containerd-shim-runc-v2");
    if runc.exists() {
        assert_eq!(kind(Path::new("/"), runc).unwrap(), Kind::Runc);
    }
    // The tests themselves: Rust, with the text of Kata's shim in them.
    let own = std::env::current_exe().unwrap();
    assert_eq!(kind(Path::new("/"), &own).unwrap(), Kind::Kata(Language::Rust));
    assert_eq!(elf_section(&File::open(own).unwrap(), b".go.buildinfo").unwrap(), None);
}

#[test]
fn links_and_wrappers_are_followed() {
    let host = Fixture::new(&[
        (LINK, "-> /opt/kata/runtime-rs/bin/containerd-shim-kata-v2"),
        (
            "/usr/local/bin/containerd-shim-kata-qemu-v2",
            "#!/usr/bin/env bash\n# KATA_CONF_FILE=/no\nexport KATA_CONF_FILE=\"/etc/kata/qemu.toml\"\n\
             exec '/opt/kata/bin/containerd-shim-kata-v2' \"$@\"\n",
        ),
        (
            "/usr/local/bin/containerd-shim-kata-odd-v2",
            "#!/bin/sh\nKATA_CONF_FILE=$HOME/x.toml /usr/local/bin/containerd-shim-kata-qemu-v2 \"$@\"\n",
        ),
    ]);
    host.program("/opt/kata/runtime-rs/bin/containerd-shim-kata-v2", &fixture::unknown());
    host.program("/opt/kata/bin/containerd-shim-kata-v2", &fixture::kata_go());
    let program = found(&host, KATA);
    assert_eq!(program.to_string(), format!("{LINK} -> /opt/kata/runtime-rs/bin/containerd-shim-kata-v2"));
    // The archive's folder for runtime-rs is as good as the program's word.
    assert_eq!((program.kata(), program.conf_file), (Some(Language::Rust), None));
    for name in ["kata-qemu", "kata-odd"] {
        let program = found(&host, &format!("io.containerd.{name}.v2"));
        assert_eq!(program.target, Path::new("/opt/kata/bin/containerd-shim-kata-v2"));
        assert_eq!(program.kata(), Some(Language::Go));
        assert_eq!(program.conf_file.as_deref(), Some(Path::new("/etc/kata/qemu.toml")));
        assert!(program.contains(host.path(), "/opt/kata/share/defaults/kata-containers/configuration.toml"));
        assert!(!program.contains(host.path(), "/usr/share/defaults/kata-containers/configuration.toml"));
    }
}

#[test]
fn where_it_is() {
    let host = Fixture::new(&[]);
    let obstacle =
        |runtime: &str, nerdctl| Shim::look_up(host.path(), runtime, nerdctl).obstacle().unwrap_or_default();
    assert!(
        obstacle(KATA, true).starts_with("containerd-shim-kata-v2 not found where containerd looks (/usr/")
    );
    host.program("/opt/kata/bin/containerd-shim-kata-v2", &fixture::kata_go());
    assert!(
        obstacle(KATA, true).ends_with("run `ln -s /opt/kata/bin/containerd-shim-kata-v2 /usr/local/bin/`")
    );
    host.add(LINK, "-> /opt/kata/bin/containerd-shim-kata-v2");
    assert_eq!(obstacle(KATA, true), "");
    // containerd's own PATH is what counts.
    host.add("/proc/17/comm", "containerd\n");
    host.add("/proc/17/status", "PPid:\t1\nUid:\t0\t0\t0\t0\n");
    host.add("/proc/17/exe", "-> /snap/bin/containerd");
    host.add("/proc/17/environ", "PATH=/snap/sbin\0");
    assert!(obstacle(KATA, true).contains("is not where containerd looks (/snap/sbin:/snap/bin)"));
    // Names that nerdctl cannot run, and what Docker makes of them.
    let refused = obstacle("kata-qemu-nvidia-gpu", true);
    assert!(refused.contains("set runtime to io.containerd.kata-qemu-nvidia-gpu.v2"), "{refused}");
    let refused = obstacle("/opt/kata/bin/containerd-shim-kata-v2", true);
    assert!(refused.contains("set runtime to io.containerd.kata.v2"), "{refused}");
    assert_eq!(obstacle("/opt/kata/bin/containerd-shim-kata-v2", false), "");
    assert!(obstacle("/no/containerd-shim-kata-v2", false).contains("not found"));
    assert!(obstacle("kata", false).contains("is not where containerd looks"));
    for plain in ["runc", "crun", "nvidia", "/usr/bin/crun", ""] {
        assert_eq!(Shim::look_up(host.path(), plain, true), Shim::Unnamed);
    }
    assert!(obstacle("io.containerd.runc.v2", true).contains("containerd-shim-runc-v2 not found"));
}
