//! Hashes of specifications: what says that two are the same, and nothing else of them.

use data_encoding::HEXLOWER;

use crate::hmac::{KeyedHash, keyed_hash};
use crate::types::Spec;

/// The key of the hashes of specifications.
#[derive(Debug)]
pub(crate) struct SpecKey(pub(crate) [u8; 32]);

impl SpecKey {
    pub(crate) fn bytes(&self) -> [u8; 32] {
        self.0
    }

    /// `<key>.<hash>`: which key, and what it makes of the specification.
    pub(crate) fn hash(&self, spec: &Spec) -> String {
        let mut hash = KeyedHash::new(&self.0);
        let mut put = |field: &[u8]| {
            hash.update(&(field.len() as u64).to_be_bytes());
            hash.update(field);
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
        let name = keyed_hash(&self.0, b"name of the key");
        format!("{}.{}", HEXLOWER.encode(&name[..4]), HEXLOWER.encode(&hash.finish()[..16]))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::{EnvName, ImageRef, Port, Secret};

    #[test]
    fn the_hash_of_a_specification_never_changes() {
        // Containers that run carry these hashes. Made with Python's hmac module from the same fields.
        let spec = Spec {
            image: ImageRef::new("registry.example/app:1").unwrap(),
            gpu_count: 2,
            env: vec![
                (EnvName::new("A").unwrap(), Secret::new("1".into())),
                (EnvName::new("TOKEN").unwrap(), Secret::new("s3cret".into())),
            ],
            command: vec!["serve".into(), "--port=80".into()],
            millicpus: Some(1500),
            memory_mib: Some(4096),
            shm_mib: None,
            pids_limit: Some(512),
            ports: vec![Port { host: 8080, container: 80, udp: false }],
        };
        assert_eq!(
            SpecKey(*b"0123456789abcdef0123456789abcdef").hash(&spec),
            "568737a9.82c011e3d314483edf11ddb42c0e66aa"
        );
    }
}
