//! Images as a stranger would make them: any configuration, any annotation, any index. Made on the spot as archives
//! and loaded into the engine of the test; no registry has a part in it.
#![allow(dead_code, reason = "each test file uses a part of it")]
#![allow(
    clippy::disallowed_methods,
    clippy::unwrap_used,
    reason = "tests start programs, and fail as they do"
)]

use std::io::{Read as _, Write as _};
use std::path::PathBuf;
use std::process::{Command, Output, Stdio};

use serde_json::{Value, json};

use super::engine::Engine;
use super::skip::skip;

/// What makes the image's default command stay up and end at once on SIGTERM.
const COMMAND: [&str; 3] = ["/bin/sh", "-c", "trap 'exit 0' TERM; echo ready; sleep 2147483 & wait"];
pub const OCI_MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const OCI_INDEX: &str = "application/vnd.oci.image.index.v1+json";
pub const OCI_CONFIG: &str = "application/vnd.oci.image.config.v1+json";
pub const OCI_LAYER: &str = "application/vnd.oci.image.layer.v1.tar";

/// Makes images for one engine. Each is removed when this is dropped.
pub struct Images<'a> {
    engine: &'a Engine,
    folder: PathBuf,
    layer: Vec<u8>,
    layer_digest: String,
    made: Vec<String>,
}

impl<'a> Images<'a> {
    /// None: the engine is not one of `scripts/engine.sh`, which has the layer with busybox; the test is counted as
    /// skipped.
    pub fn of(engine: &'a Engine, test: &str) -> Option<Self> {
        let layer = layer(test)?;
        let folder = engine_folder()?;
        let layer_digest = digest(&layer);
        Some(Self { engine, folder, layer, layer_digest, made: Vec::new() })
    }

    /// Loads an image of busybox with this configuration besides its command (`{"Labels": {"a": "b"}}`), as a Docker
    /// archive, which every engine reads.
    pub fn load(&mut self, name: &str, config: &Value) {
        let config = self.config(config).to_string();
        let list =
            json!([{"Config": "config.json", "RepoTags": [name], "Layers": ["layer.tar"]}]).to_string();
        let archive = tar(&[
            ("manifest.json", list.as_bytes()),
            ("config.json", config.as_bytes()),
            ("layer.tar", &self.layer),
        ]);
        self.feed(name, &archive);
    }

    /// Loads an OCI archive. `entries` makes the index that the name stands for out of the descriptor of the image's
    /// manifest; `annotations` go on manifest and index.
    pub fn load_oci(
        &mut self,
        name: &str,
        config: &Value,
        annotations: &Value,
        entries: impl FnOnce(Value) -> Vec<Value>,
    ) {
        let mut blobs: Vec<(String, Vec<u8>)> = vec![(self.layer_digest.clone(), self.layer.clone())];
        let mut put = |kind: &str, bytes: Vec<u8>| {
            let descriptor = json!({"mediaType": kind, "digest": digest(&bytes), "size": bytes.len()});
            blobs.push((digest(&bytes), bytes));
            descriptor
        };
        let layer = json!({"mediaType": OCI_LAYER, "digest": self.layer_digest, "size": self.layer.len()});
        let config = put(OCI_CONFIG, self.config(config).to_string().into_bytes());
        let manifest = json!({
            "schemaVersion": 2, "mediaType": OCI_MANIFEST, "config": config, "layers": [layer],
            "annotations": annotations,
        });
        let manifest = put(OCI_MANIFEST, manifest.to_string().into_bytes());
        let index = json!({
            "schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": entries(manifest), "annotations": annotations,
        });
        let mut index = put(OCI_INDEX, index.to_string().into_bytes());
        index["annotations"] = json!({
            "io.containerd.image.name": format!("docker.io/{name}"), "org.opencontainers.image.ref.name": "1",
        });
        let top = json!({"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": [index]}).to_string();
        let named: Vec<(String, &[u8])> = blobs
            .iter()
            .map(|(digest, bytes)| (format!("blobs/{}", digest.replace(':', "/")), bytes.as_slice()))
            .collect();
        let mut files: Vec<(&str, &[u8])> =
            vec![("oci-layout", br#"{"imageLayoutVersion":"1.0.0"}"#), ("index.json", top.as_bytes())];
        files.extend(named.iter().map(|(path, bytes)| (path.as_str(), *bytes)));
        self.feed(name, &tar(&files));
    }

    fn config(&self, more: &Value) -> Value {
        description(more, &[&self.layer_digest])
    }

    fn feed(&mut self, name: &str, archive: &[u8]) {
        let output = through(Command::new(self.folder.join("load")), archive);
        assert!(output.status.success(), "{name}: {}", String::from_utf8_lossy(&output.stderr));
        self.made.push(name.to_owned());
    }
}

impl Drop for Images<'_> {
    fn drop(&mut self) {
        self.engine.clear();
        for name in &self.made {
            self.engine.call(&["rmi", "--force", name]);
        }
    }
}

fn engine_folder() -> Option<PathBuf> {
    std::env::var("VECTORLAY_TEST_ENGINE_DIR").ok().map(PathBuf::from)
}

/// The layer with busybox. None: the engine is not one of `scripts/engine.sh`; the test is counted as skipped.
pub fn layer(test: &str) -> Option<Vec<u8>> {
    let layer = engine_folder().and_then(|folder| std::fs::read(folder.join("layer.tar")).ok());
    if layer.is_none() {
        skip(test, "VECTORLAY_TEST_ENGINE_DIR has no layer to make images of");
    }
    layer
}

/// The configuration blob of an image with these layers, by their digests, and this configuration besides its command.
pub fn description(more: &Value, layers: &[&str]) -> Value {
    let mut config = json!({"Cmd": COMMAND, "Env": ["PATH=/bin"]});
    for (key, value) in more.as_object().unwrap() {
        config[key] = value.clone();
    }
    json!({
        "architecture": architecture(), "os": "linux", "created": "2000-01-01T00:00:00Z", "config": config,
        "rootfs": {"type": "layers", "diff_ids": layers},
    })
}

/// This machine, as images name it.
pub fn architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

/// `sha256:…`
pub fn digest(bytes: &[u8]) -> String {
    let output = through(Command::new("sha256sum"), bytes);
    let text = String::from_utf8(output.stdout).unwrap();
    format!("sha256:{}", text.split_whitespace().next().unwrap())
}

/// What a program makes of this input.
fn through(mut program: Command, input: &[u8]) -> Output {
    let mut child = program
        .env_clear()
        .env("PATH", std::env::var_os("PATH").unwrap_or_default())
        .env("HOME", "/root")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut stdin = child.stdin.take().unwrap();
    let (mut stdout, mut stderr) = (child.stdout.take().unwrap(), child.stderr.take().unwrap());
    std::thread::scope(|scope| {
        // It may end before it has read all of it: how it ended says more than a broken pipe.
        scope.spawn(move || stdin.write_all(input).is_ok());
        let said = scope.spawn(move || {
            let mut bytes = Vec::new();
            stderr.read_to_end(&mut bytes).unwrap();
            bytes
        });
        let mut told = Vec::new();
        stdout.read_to_end(&mut told).unwrap();
        Output { status: child.wait().unwrap(), stdout: told, stderr: said.join().unwrap() }
    })
}

/// A tar archive (POSIX ustar): a header of 512 bytes and the content, filled up to 512, for each file.
pub fn tar(files: &[(&str, &[u8])]) -> Vec<u8> {
    let mut archive = Vec::new();
    for (path, content) in files {
        let mut header = [0; 512];
        let mut put = |at: usize, text: &str| header[at..at + text.len()].copy_from_slice(text.as_bytes());
        put(0, path);
        put(100, "0000644\0");
        put(108, "0000000\0");
        put(116, "0000000\0");
        put(124, &format!("{:011o}\0", content.len()));
        put(136, "00000000000\0");
        put(148, "        ");
        put(156, "0");
        put(257, "ustar\0");
        put(263, "00");
        let sum: u32 = header.iter().map(|byte| u32::from(*byte)).sum();
        header[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
        archive.extend_from_slice(&header);
        archive.extend_from_slice(content);
        archive.resize(archive.len().next_multiple_of(512), 0);
    }
    archive.resize(archive.len() + 1024, 0);
    archive
}
