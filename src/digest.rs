//! A keyed hash (HMAC-SHA256), for values that others may see but that must not give away what they were made from:
//! the machine's fingerprint and a specification's label. Not for passwords.
//!
//! The one implementation of SHA-256 in the program is that of the TLS provider, which shows it as the HMAC of a TLS
//! 1.3 cipher suite; that is what is used here, so that no second one is linked in.

use rustls::SupportedCipherSuite;
use rustls::crypto::ring::cipher_suite::TLS13_AES_128_GCM_SHA256;
use rustls::crypto::tls13::OkmBlock;

/// Length of a key and of a hash, in bytes.
pub const HASH_BYTES: usize = 32;

/// HMAC-SHA256 of `data` under `key` (RFC 2104).
pub fn keyed_hash(key: &[u8; HASH_BYTES], data: &[u8]) -> [u8; HASH_BYTES] {
    let SupportedCipherSuite::Tls13(suite) = TLS13_AES_128_GCM_SHA256 else {
        unreachable!("a suite whose name begins with TLS13 is one of TLS 1.3")
    };
    let tag = suite.hkdf_provider.hmac_sign(&OkmBlock::new(key), data);
    tag.as_ref().try_into().expect("SHA-256 gives 32 bytes")
}

/// `bytes` in lower-case hexadecimal.
pub fn hex(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    let digits = |byte: u8| [DIGITS[usize::from(byte >> 4)], DIGITS[usize::from(byte & 15)]];
    bytes.iter().flat_map(|byte| digits(*byte)).map(char::from).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hashes_are_those_of_hmac_sha256() {
        let check = |key: u8, data: &[u8], expected: &str| {
            assert_eq!(hex(&keyed_hash(&[key; HASH_BYTES], data)), expected, "{key} {data:?}");
        };
        // Made with Python's hmac module.
        check(
            b'k',
            b"The quick brown fox",
            "783c20952b76375a966db56000df30dd7fc5f35f8950b1881731e52d9e40d233",
        );
        check(0, b"", "b613679a0814d9ec772f95d778c35fc5ff1697c493715653c6c712144292c5ad");
    }
}
