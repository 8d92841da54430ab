//! Keyed hashes (HMAC-SHA256, RFC 2104) of values that others may see but must not be able to recover: the machine's
//! fingerprint and the label with a specification's hash. Not for passwords.

use ring::hmac::{Context, HMAC_SHA256, Key};

/// Length of a key and of a hash, in bytes.
pub const HASH_BYTES: usize = 32;

/// A hash in the making. Secrets can be added piece by piece, without a copy of them all in one buffer.
pub struct KeyedHash(Context);

impl KeyedHash {
    /// A hash of nothing yet.
    pub fn new(key: &[u8; HASH_BYTES]) -> Self {
        Self(Context::with_key(&Key::new(HMAC_SHA256, key)))
    }

    /// Adds `data`.
    pub fn update(&mut self, data: &[u8]) {
        self.0.update(data);
    }

    /// The hash of everything that was added.
    pub fn finish(self) -> [u8; HASH_BYTES] {
        self.0.sign().as_ref().try_into().expect("SHA-256 gives 32 bytes")
    }
}

/// The hash of `data`.
pub fn keyed_hash(key: &[u8; HASH_BYTES], data: &[u8]) -> [u8; HASH_BYTES] {
    let mut hash = KeyedHash::new(key);
    hash.update(data);
    hash.finish()
}

#[cfg(test)]
mod tests {
    use data_encoding::HEXLOWER;

    use super::*;

    #[test]
    fn hashes_are_those_of_hmac_sha256() {
        let check = |key: u8, data: &[u8], expected: &str| {
            assert_eq!(HEXLOWER.encode(&keyed_hash(&[key; HASH_BYTES], data)), expected, "{key} {data:?}");
        };
        // Made with Python's hmac module.
        check(
            b'k',
            b"The quick brown fox",
            "783c20952b76375a966db56000df30dd7fc5f35f8950b1881731e52d9e40d233",
        );
        check(0, b"", "b613679a0814d9ec772f95d778c35fc5ff1697c493715653c6c712144292c5ad");
        let mut pieces = KeyedHash::new(&[b'k'; HASH_BYTES]);
        pieces.update(b"The quick");
        pieces.update(b" brown fox");
        assert_eq!(pieces.finish(), keyed_hash(&[b'k'; HASH_BYTES], b"The quick brown fox"));
    }
}
