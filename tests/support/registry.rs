//! A registry as it must not be: on the engine's loopback, by the distribution's protocol (`GET /v2/NAME/manifests/TAG`,
//! `GET /v2/NAME/blobs/DIGEST`), and by the name of the image slow, silent, or one that stops in the middle.
#![allow(dead_code, reason = "each test file uses a part of it")]
#![allow(clippy::disallowed_methods, clippy::unwrap_used, reason = "tests wait as peers do, and fail")]

use std::fs::File;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::sync::Arc;
use std::time::Duration;

use serde_json::{Value, json};

use super::engine::Engine;
use super::images::{OCI_CONFIG, OCI_LAYER, OCI_MANIFEST, description, digest, tar};

/// Bytes of each image's own layer, which no store has yet.
const PADDING: usize = 2 << 20;

/// How the registry gives the layer that is an image's own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Manner {
    /// It accepts the connection and answers nothing at all.
    Silent,
    /// Half of it, and then nothing more.
    Stops,
    /// In this many parts, with a second after each.
    Slow(usize),
}

/// One image.
struct Image {
    name: &'static str,
    manner: Manner,
    manifest: Vec<u8>,
    config: Vec<u8>,
    /// The one with busybox, and the image's own.
    layers: [Vec<u8>; 2],
}

/// Runs until the process ends.
pub struct Registry {
    /// `HOST:PORT`.
    pub address: String,
}

impl Registry {
    /// Starts one where `engine` is, with these images, each `NAME:1`; `layer` is one with busybox.
    pub fn start(engine: &Engine, layer: &[u8], images: &[(&'static str, Manner)]) -> Self {
        let images: Arc<Vec<Image>> =
            Arc::new(images.iter().map(|(name, manner)| image(name, *manner, layer)).collect());
        let network = File::open(format!("/proc/{}/ns/net", engine.daemon())).unwrap();
        // A socket is of the network that its thread is in when it is made.
        let listener = std::thread::spawn(move || {
            rustix::thread::move_into_link_name_space(std::os::fd::AsFd::as_fd(&network), None).unwrap();
            TcpListener::bind("127.0.0.1:0").unwrap()
        });
        let listener = listener.join().unwrap();
        let address = listener.local_addr().unwrap().to_string();
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let images = images.clone();
                std::thread::spawn(move || serve(&stream.unwrap(), &images));
            }
        });
        Self { address }
    }
}

fn image(name: &'static str, manner: Manner, layer: &[u8]) -> Image {
    let mut padding = vec![0; PADDING];
    File::open("/dev/urandom").unwrap().read_exact(&mut padding).unwrap();
    let layers = [layer.to_owned(), tar(&[("padding", &padding)])];
    let digests = layers.each_ref().map(|layer| digest(layer));
    let config = description(&json!({}), &digests.each_ref().map(String::as_str)).to_string().into_bytes();
    let descriptor =
        |kind: &str, bytes: &[u8]| json!({"mediaType": kind, "digest": digest(bytes), "size": bytes.len()});
    let parts: Vec<Value> = layers.iter().map(|layer| descriptor(OCI_LAYER, layer)).collect();
    let manifest = json!({
        "schemaVersion": 2, "mediaType": OCI_MANIFEST, "config": descriptor(OCI_CONFIG, &config), "layers": parts,
    });
    Image { name, manner, manifest: manifest.to_string().into_bytes(), config, layers }
}

/// Answers the requests of one connection.
fn serve(stream: &TcpStream, images: &[Image]) -> Option<()> {
    let mut lines = BufReader::new(stream).lines().map_while(Result::ok);
    loop {
        let request = lines.next()?;
        lines.by_ref().take_while(|line| !line.is_empty()).for_each(drop);
        let mut words = request.split(' ');
        let (method, path) = (words.next()?, words.next()?);
        let send = |kind: &str, body: &[u8], manner: Option<Manner>| {
            let length = body.len();
            let head = format!("HTTP/1.1 200 OK\r\nContent-Type: {kind}\r\nContent-Length: {length}\r\n\r\n");
            let mut out = stream;
            out.write_all(head.as_bytes()).ok()?;
            if method == "HEAD" {
                return Some(());
            }
            match manner {
                None | Some(Manner::Silent) => out.write_all(body).ok(),
                Some(Manner::Stops) => {
                    out.write_all(&body[..length / 2]).ok()?;
                    wait_for_the_end(stream)
                }
                Some(Manner::Slow(parts)) => body.chunks(length.div_ceil(parts)).try_for_each(|part| {
                    out.write_all(part).ok()?;
                    std::thread::sleep(Duration::from_secs(1));
                    Some(())
                }),
            }
        };
        // Docker asks so whether it is a registry.
        if path == "/v2/" {
            send("application/json", b"{}", None)?;
            continue;
        }
        let image = images.iter().find(|image| path.starts_with(&format!("/v2/{}/", image.name)))?;
        if image.manner == Manner::Silent {
            return wait_for_the_end(stream);
        }
        let is = |blob: &[u8]| path.ends_with(&digest(blob));
        match path {
            _ if path.contains("/manifests/") => send(OCI_MANIFEST, &image.manifest, None)?,
            _ if is(&image.config) => send(OCI_CONFIG, &image.config, None)?,
            _ if is(&image.layers[0]) => send(OCI_LAYER, &image.layers[0], None)?,
            _ if is(&image.layers[1]) => send(OCI_LAYER, &image.layers[1], Some(image.manner))?,
            _ => return None,
        }
    }
}

/// Keeps the connection, and sends nothing, until the other side closes it.
fn wait_for_the_end(mut stream: &TcpStream) -> Option<()> {
    std::io::copy(&mut stream, &mut std::io::sink()).ok()?;
    None
}
