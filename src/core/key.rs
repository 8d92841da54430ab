//! Hashes of specifications: what says that two are the same, and nothing else of them.

use super::job::Spec;
use crate::digest::{hex, keyed_hash};

/// The key of the hashes of specifications.
#[derive(Debug)]
pub(super) struct Key(pub(super) [u8; 32]);

impl Key {
    pub(super) fn bytes(&self) -> [u8; 32] {
        self.0
    }

    /// `<key>.<hash>`: which key, and what it makes of the specification.
    pub(super) fn hash(&self, spec: &Spec) -> String {
        let mut bytes = Vec::new();
        let mut put = |field: &[u8]| {
            bytes.extend((field.len() as u64).to_be_bytes());
            bytes.extend(field);
        };
        put(spec.image.as_str().as_bytes());
        put(&spec.gpu_count.to_be_bytes());
        put(&(spec.env.len() as u64).to_be_bytes());
        for (name, value) in &spec.env {
            put(name.as_str().as_bytes());
            put(value.expose().as_bytes());
        }
        put(&(spec.command.len() as u64).to_be_bytes());
        for argument in &spec.command {
            put(argument.as_bytes());
        }
        let limits = [spec.millicpus, spec.memory_mib, spec.shm_mib, spec.pids_limit.map(u64::from)];
        for limit in limits {
            put(&limit.map_or_else(Vec::new, |limit| limit.to_be_bytes().to_vec()));
        }
        for port in &spec.ports {
            let [h1, h2] = port.host.to_be_bytes();
            let [c1, c2] = port.container.to_be_bytes();
            put(&[h1, h2, c1, c2, u8::from(port.udp)]);
        }
        let hash = hex(&keyed_hash(&self.0, &bytes));
        bytes.fill(0);
        std::hint::black_box(&bytes);
        format!("{}.{}", &hex(&keyed_hash(&self.0, b"name of the key"))[..8], &hash[..32])
    }
}
