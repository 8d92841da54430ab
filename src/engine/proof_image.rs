//! The image of a proof: one layer with one file, the agent's own program, as an archive in memory. Pure.
//!
//! The archive has both layouts, with the same blobs: OCI's (image-layout.md of its image specification), which nerdctl
//! loads, and Docker's `manifest.json`, which its daemon takes since 1.10 (`image/tarexport`).

use data_encoding::HEXLOWER;
use ring::digest::{SHA256, digest};

/// Where the program lies in the image.
const PROGRAM: &str = "vectorlay-agent";
/// The image's name, without its tag.
const REPOSITORY: &str = "vectorlay-proof";
/// The media type of a manifest.
const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
/// A tar archive is made of blocks of this size, in bytes.
const BLOCK: usize = 512;

/// An image that can be loaded.
pub struct ProofImage {
    /// Its name with its tag, which is of its content.
    pub name: String,
    /// What `load` takes.
    pub archive: Vec<u8>,
}

/// The image whose container runs `executable`, which must be static, with `argument`. `architecture` is Rust's word.
pub fn make(executable: &[u8], argument: &str, architecture: &str) -> ProofImage {
    let architecture = match architecture {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    };
    let layer = finished(entry(PROGRAM, 0o555, executable));
    let layer_digest = hex(&layer);
    let config = format!(
        r#"{{"created":"1970-01-01T00:00:00Z","architecture":"{architecture}","os":"linux","config":{{"Entrypoint":["/{PROGRAM}","{argument}"]}},"rootfs":{{"type":"layers","diff_ids":["sha256:{layer_digest}"]}}}}"#
    );
    let manifest = format!(
        r#"{{"schemaVersion":2,"mediaType":"{MANIFEST}","config":{{{}}},"layers":[{{{}}}]}}"#,
        descriptor("application/vnd.oci.image.config.v1+json", config.as_bytes()),
        descriptor("application/vnd.oci.image.layer.v1.tar", &layer),
    );
    let tag = &hex(manifest.as_bytes())[..12];
    let name = format!("{REPOSITORY}:{tag}");
    let index = format!(
        r#"{{"schemaVersion":2,"manifests":[{{{},"platform":{{"architecture":"{architecture}","os":"linux"}},"annotations":{{"io.containerd.image.name":"docker.io/library/{name}","org.opencontainers.image.ref.name":"{tag}"}}}}]}}"#,
        descriptor(MANIFEST, manifest.as_bytes()),
    );
    let (config_blob, layer_blob) = (blob(config.as_bytes()), blob(&layer));
    let docker = format!(r#"[{{"Config":"{config_blob}","RepoTags":["{name}"],"Layers":["{layer_blob}"]}}]"#);
    let mut archive = Vec::with_capacity(layer.len() + 16 * BLOCK);
    for (path, content) in [
        ("oci-layout", br#"{"imageLayoutVersion":"1.0.0"}"#.as_slice()),
        ("index.json", index.as_bytes()),
        ("manifest.json", docker.as_bytes()),
        (&config_blob, config.as_bytes()),
        (&blob(manifest.as_bytes()), manifest.as_bytes()),
        (&layer_blob, &layer),
    ] {
        archive.extend(entry(path, 0o444, content));
    }
    ProofImage { name, archive: finished(archive) }
}

/// Whether an ELF program needs no interpreter, so that it runs in an image that has nothing else: it has no program
/// header of type PT_INTERP (elf(5); 64 bits, little-endian).
pub fn is_static(executable: &[u8]) -> bool {
    let number = |at: usize, length: usize| {
        let bytes = executable.get(at..at + length).unwrap_or_default();
        bytes.iter().rev().fold(0, |number, byte| number << 8 | usize::from(*byte))
    };
    let (table, size, count) = (number(0x20, 8), number(0x36, 2), number(0x38, 2));
    const PT_INTERP: usize = 3;
    executable.starts_with(b"\x7fELF\x02\x01")
        && (0..count).all(|n| number(table.saturating_add(n * size), 4) != PT_INTERP)
}

fn hex(bytes: &[u8]) -> String {
    HEXLOWER.encode(digest(&SHA256, bytes).as_ref())
}

/// Where a blob lies.
fn blob(bytes: &[u8]) -> String {
    format!("blobs/sha256/{}", hex(bytes))
}

/// The fields of an OCI descriptor.
fn descriptor(kind: &str, bytes: &[u8]) -> String {
    format!(r#""mediaType":"{kind}","digest":"sha256:{}","size":{}"#, hex(bytes), bytes.len())
}

/// A regular file of root's, as POSIX's ustar has it. Paths here have less than 100 bytes, files less than 8 GiB.
fn entry(path: &str, mode: u32, content: &[u8]) -> Vec<u8> {
    let mut header = vec![0; BLOCK];
    let mut put = |at: usize, text: &str| header[at..at + text.len()].copy_from_slice(text.as_bytes());
    put(0, path);
    put(100, &format!("{mode:07o}"));
    put(108, "0000000");
    put(116, "0000000");
    put(124, &format!("{:011o}", content.len()));
    put(136, "00000000000");
    put(148, "        ");
    put(156, "0");
    put(257, "ustar");
    put(263, "00");
    let sum: u32 = header.iter().map(|byte| u32::from(*byte)).sum();
    header[148..155].copy_from_slice(format!("{sum:06o}\0").as_bytes());
    header.extend(content);
    header.resize(header.len().next_multiple_of(BLOCK), 0);
    header
}

/// An archive with its end.
fn finished(mut archive: Vec<u8>) -> Vec<u8> {
    archive.resize(archive.len() + 2 * BLOCK, 0);
    archive
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};
    use std::io::Write as _;
    use std::process::{Command, Stdio};

    /// What tar makes of an archive's file; without one, its listing.
    fn tar(archive: &[u8], arguments: &[&str]) -> Vec<u8> {
        let mut tar = Command::new("tar");
        let mut child = tar
            .args(arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("tar is installed");
        let mut stdin = child.stdin.take().unwrap();
        let archive = archive.to_vec();
        let writer = std::thread::spawn(move || _ = stdin.write_all(&archive));
        let output = child.wait_with_output().unwrap();
        writer.join().unwrap();
        assert!(output.status.success(), "{arguments:?}");
        output.stdout
    }

    #[test]
    fn both_layouts_lead_to_the_program() {
        let program = vec![7; 3 * BLOCK + 1];
        let image = make(&program, "look", "x86_64");
        let read = |path: &str| tar(&image.archive, &["-xO", "-f", "-", path]);
        let json = |path: &str| -> Value { serde_json::from_slice(&read(path)).unwrap() };
        let listed = &json("index.json")["manifests"][0];
        assert_eq!(
            listed["annotations"]["io.containerd.image.name"],
            format!("docker.io/library/{}", image.name)
        );
        let path = |digest: &Value| digest.as_str().unwrap().replace("sha256:", "blobs/sha256/");
        let manifest = json(&path(&listed["digest"]));
        assert!(image.name.starts_with("vectorlay-proof:") && image.name.len() == 28, "{}", image.name);
        let (config, layer) = (path(&manifest["config"]["digest"]), path(&manifest["layers"][0]["digest"]));
        let docker = json("manifest.json");
        assert_eq!(docker, json!([{"Config": config, "Layers": [layer], "RepoTags": [image.name]}]));
        assert_eq!(manifest["layers"][0]["size"], read(&layer).len());
        let config = json(&config);
        assert_eq!(path(&config["rootfs"]["diff_ids"][0]), layer);
        assert_eq!(
            (&config["architecture"], &config["config"]["Entrypoint"][1]),
            (&json!("amd64"), &json!("look"))
        );
        let listing = String::from_utf8(tar(&read(&layer), &["-tv", "-f", "-", "--numeric-owner"])).unwrap();
        assert!(
            listing.starts_with("-r-xr-xr-x 0/0") && listing.ends_with(" vectorlay-agent\n"),
            "{listing}"
        );
        assert_eq!(tar(&read(&layer), &["-xO", "-f", "-", PROGRAM]), program);
        assert_ne!(make(&program[1..], "look", "x86_64").name, image.name);
        assert_eq!(make(&program, "look", "x86_64").archive, image.archive);
    }

    #[test]
    fn a_program_that_needs_an_interpreter_is_told_apart() {
        let mut elf = b"\x7fELF\x02\x01".to_vec();
        elf.resize(64 + 2 * 56, 0);
        elf[0x20] = 64;
        elf[0x36] = 56;
        elf[0x38] = 2;
        elf[64] = 1;
        assert!(is_static(&elf));
        elf[64 + 56] = 3;
        assert!(!is_static(&elf));
        assert!(!is_static(b"#!/bin/sh\n"));
    }
}
