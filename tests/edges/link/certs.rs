//! Certificates, made by the openssl command.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

/// A server's certificate and key, in PEM.
pub struct Leaf {
    pub pem: String,
    pub key: String,
}

pub struct Certs {
    /// The file of the CA that issued all of them except `self_signed`.
    pub ca_file: PathBuf,
    /// A CA that issued none of them.
    pub other_ca_file: PathBuf,
    pub good: Leaf,
    pub expired: Leaf,
    pub not_yet: Leaf,
    pub wrong_name: Leaf,
    pub self_signed: Leaf,
    pub dir: PathBuf,
}

pub fn certs() -> &'static Certs {
    static CERTS: OnceLock<Certs> = OnceLock::new();
    CERTS.get_or_init(make)
}

const CONFIG: &str = "
[ca]
default_ca = test
[test]
database = index.txt
new_certs_dir = .
rand_serial = yes
unique_subject = no
certificate = ca.pem
private_key = ca.key
default_md = sha256
policy = any
copy_extensions = copy
[any]
commonName = supplied
[req]
distinguished_name = dn
[dn]
[v3_ca]
basicConstraints = critical,CA:TRUE
subjectKeyIdentifier = hash
[v3_leaf]
basicConstraints = critical,CA:FALSE
";

fn make() -> Certs {
    let dir = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("certs-{}", std::process::id()));
    let _ = fs::remove_dir_all(&dir);
    fs::create_dir_all(&dir).unwrap();
    fs::write(dir.join("openssl.cnf"), CONFIG).unwrap();
    fs::write(dir.join("index.txt"), "").unwrap();
    root(&dir, "ca");
    root(&dir, "other-ca");
    let here = "IP:127.0.0.1,DNS:localhost,DNS:node.test";
    Certs {
        good: leaf(&dir, "good", here, "20200101000000Z", "20991231235959Z"),
        expired: leaf(&dir, "expired", here, "20200101000000Z", "20210203040506Z"),
        not_yet: leaf(&dir, "not-yet", here, "20980102030405Z", "20991231235959Z"),
        wrong_name: leaf(&dir, "wrong", "DNS:a.example,DNS:b.example", "20200101000000Z", "20991231235959Z"),
        self_signed: Leaf { pem: read(&dir, "other-ca.pem"), key: read(&dir, "other-ca.key") },
        ca_file: dir.join("ca.pem"),
        other_ca_file: dir.join("other-ca.pem"),
        dir,
    }
}

fn root(dir: &Path, name: &str) {
    let (key, pem, subject) = (format!("{name}.key"), format!("{name}.pem"), format!("/CN={name}"));
    openssl(dir, &["ecparam", "-name", "prime256v1", "-genkey", "-noout", "-out", &key]);
    let new = ["req", "-new", "-x509", "-config", "openssl.cnf", "-extensions", "v3_ca", "-days", "30000"];
    openssl(dir, &[&new[..], &["-key", &key, "-subj", &subject, "-out", &pem]].concat());
}

fn leaf(dir: &Path, name: &str, alt_names: &str, from: &str, until: &str) -> Leaf {
    let (key, csr, pem) = (format!("{name}.key"), format!("{name}.csr"), format!("{name}.pem"));
    openssl(dir, &["ecparam", "-name", "prime256v1", "-genkey", "-noout", "-out", &key]);
    let names = format!("subjectAltName={alt_names}");
    let new = ["req", "-new", "-config", "openssl.cnf", "-subj", "/CN=leaf", "-addext", &names];
    openssl(dir, &[&new[..], &["-key", &key, "-out", &csr]].concat());
    let sign = ["ca", "-batch", "-notext", "-config", "openssl.cnf", "-extensions", "v3_leaf"];
    openssl(dir, &[&sign[..], &["-startdate", from, "-enddate", until, "-in", &csr, "-out", &pem]].concat());
    Leaf { pem: read(dir, &pem), key: read(dir, &key) }
}

fn openssl(dir: &Path, arguments: &[&str]) {
    let out = Command::new("openssl").args(arguments).current_dir(dir).output().expect("the openssl command");
    assert!(out.status.success(), "openssl {arguments:?}: {}", String::from_utf8_lossy(&out.stderr));
}

fn read(dir: &Path, name: &str) -> String {
    fs::read_to_string(dir.join(name)).unwrap()
}
