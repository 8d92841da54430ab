//! Image references, by the grammar of `distribution/reference` (`regexp.go`, `normalize.go`), which Docker, nerdctl
//! and containerd share: `[domain/]path[:tag][@digest]`.
//!
//! The CLIs accept far more as an image. nerdctl 2.x loads `oci-archive:///path` from the host's files and asks IPFS for
//! `ipfs://…`, `ipns://…` and whatever decodes as a CID; and both CLIs take the first characters of a digest (`a`,
//! `sha256`) as the ID of any image that has it. So they are only ever given the canonical form
//! ([`ImageRef::canonical`]). It always contains a `/` and a `:`, which a digest, the beginning of one, and a CID in
//! any multibase do not, and it never begins like a path or a URL.

use std::fmt;

use super::Invalid;

/// The longest image reference, in bytes: a name of 255, a tag of 128, a digest of 135.
pub const IMAGE_MAX: usize = 520;
/// The longest domain and path together, in bytes (`RepositoryNameTotalLengthMax`).
const NAME_MAX: usize = 255;
/// The longest tag.
const TAG_MAX: usize = 128;
/// The registry of a name without a domain.
const DEFAULT_DOMAIN: &str = "docker.io";
/// Its old name.
const LEGACY_DOMAIN: &str = "index.docker.io";
/// What stands before a path of one component there.
const OFFICIAL: &str = "library/";
/// The digests that name content, and how many hexadecimal digits they have.
const DIGESTS: [(&str, usize); 2] = [("sha256", 64), ("sha512", 128)];

/// A checked image reference.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ImageRef {
    given: String,
    canonical: String,
}

impl ImageRef {
    /// Checks `text`.
    ///
    /// # Errors
    /// [`Invalid`], which says which part of it is wrong.
    pub fn new(text: &str) -> Result<Self, Invalid> {
        let invalid = |why| Invalid::new("image", why);
        if text.is_empty() {
            return Err(invalid("is empty"));
        }
        if text.len() > IMAGE_MAX {
            return Err(invalid("is longer than 520 bytes"));
        }
        let (tagged, digest) = match text.split_once('@') {
            Some((tagged, digest)) => (tagged, Some(digest)),
            None => (text, None),
        };
        if digest.is_some_and(|digest| !is_digest(digest)) {
            return Err(invalid("has a digest other than sha256: or sha512: with all its lower-case digits"));
        }
        let (domain, rest) = split_domain(tagged);
        if !domain.is_none_or(is_domain) {
            return Err(invalid(
                "has a registry that is not a host name or an address, with or without a port",
            ));
        }
        let (path, tag) = match rest.split_once(':') {
            Some((path, tag)) => (path, Some(tag)),
            None => (rest, None),
        };
        if tag.is_some_and(|tag| !is_tag(tag)) {
            return Err(invalid("has a tag that is not 1 to 128 letters, digits, '_', '.' and '-'"));
        }
        if !path.split('/').all(is_path_component) {
            return Err(invalid(
                "is not [registry/]path[:tag][@digest] with a path of lower-case letters and digits, with single \
                 separators between them",
            ));
        }
        if domain.is_none() && (is_id(path) || DIGESTS.iter().any(|(algorithm, _)| *algorithm == path)) {
            return Err(invalid(
                "is an image's ID; name the image, by its digest (name@sha256:…) if need be",
            ));
        }
        let domain = match domain {
            None | Some(LEGACY_DOMAIN) => DEFAULT_DOMAIN,
            Some(domain) => domain,
        };
        let official = if domain == DEFAULT_DOMAIN && !path.contains('/') { OFFICIAL } else { "" };
        let name = format!("{domain}/{official}{path}");
        if name.len() > NAME_MAX {
            return Err(invalid("has a registry and path of more than 255 bytes"));
        }
        // Where there is a digest the tag says nothing (ParseDockerRef).
        let canonical = match digest {
            Some(digest) => format!("{name}@{digest}"),
            None => format!("{name}:{}", tag.unwrap_or("latest")),
        };
        Ok(Self { given: text.to_owned(), canonical })
    }

    /// The reference as it was given.
    pub fn as_str(&self) -> &str {
        &self.given
    }

    /// What it stands for, in full: `docker.io/library/busybox:latest`. A digest takes the place of the tag.
    pub fn canonical(&self) -> &str {
        &self.canonical
    }

    /// What all of its tags and digests are in: `docker.io/library/busybox`.
    pub fn repository(&self) -> &str {
        let (name, _) =
            self.canonical.split_once('@').or_else(|| self.canonical.rsplit_once(':')).unwrap_or_default();
        name
    }

    /// Whether it names content, which never changes, rather than a tag.
    pub fn is_by_digest(&self) -> bool {
        self.canonical.contains('@')
    }
}

impl fmt::Display for ImageRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.given)
    }
}

/// `splitDockerDomain`: what stands before the first `/` is a domain if it has a `.` or a `:` or is `localhost`. Newer
/// versions also take an upper-case first component for one, older ones for a bad path: here it is a bad path.
fn split_domain(name: &str) -> (Option<&str>, &str) {
    match name.split_once('/') {
        Some((first, rest)) if first == "localhost" || first.contains(['.', ':']) => (Some(first), rest),
        Some(_) | None => (None, name),
    }
}

/// `host [":" port]`, where the host is a domain name, an IPv4 address, or an IPv6 address in brackets.
fn is_domain(text: &str) -> bool {
    let (host, port) = match text.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
        Some((address, rest)) => {
            let fits = |b: u8| b.is_ascii_hexdigit() || b == b':';
            if address.is_empty() || !address.bytes().all(fits) {
                return false;
            }
            (None, rest)
        }
        None => {
            let end = text.find(':').unwrap_or(text.len());
            (Some(&text[..end]), &text[end..])
        }
    };
    let is_component = |part: &str| {
        let ends = |b: Option<&u8>| b.is_some_and(u8::is_ascii_alphanumeric);
        let bytes = part.as_bytes();
        ends(bytes.first())
            && ends(bytes.last())
            && bytes.iter().all(|b| b.is_ascii_alphanumeric() || *b == b'-')
    };
    let is_port = |port: &str| {
        port.bytes().all(|b| b.is_ascii_digit()) && port.parse::<u16>().is_ok_and(|number| number > 0)
    };
    host.is_none_or(|host| host.split('.').all(is_component))
        && (port.is_empty() || port.strip_prefix(':').is_some_and(is_port))
}

/// `alphanumeric [separator alphanumeric]*`, lower case; a separator is `.`, `_`, `__` or any number of `-`.
fn is_path_component(text: &str) -> bool {
    let is_plain = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit();
    let mut separator = String::new();
    for c in text.chars() {
        if c.is_ascii() && is_plain(c as u8) {
            let good =
                matches!(separator.as_str(), "" | "." | "_" | "__") || separator.bytes().all(|b| b == b'-');
            if !good {
                return false;
            }
            separator.clear();
        } else if matches!(c, '.' | '_' | '-') {
            separator.push(c);
        } else {
            return false;
        }
    }
    let begins = text.bytes().next().is_some_and(is_plain);
    begins && separator.is_empty()
}

/// `[\w][\w.-]{0,127}`.
fn is_tag(text: &str) -> bool {
    let is_word = |b: u8| b.is_ascii_alphanumeric() || b == b'_';
    text.len() <= TAG_MAX
        && text.bytes().next().is_some_and(is_word)
        && text.bytes().all(|b| is_word(b) || matches!(b, b'.' | b'-'))
}

fn is_digest(text: &str) -> bool {
    text.split_once(':').is_some_and(|(algorithm, digits)| {
        DIGESTS.contains(&(algorithm, digits.len())) && digits.bytes().all(is_lower_hex)
    })
}

/// 64 hexadecimal digits, which no repository may be called.
fn is_id(text: &str) -> bool {
    text.len() == 64 && text.bytes().all(is_lower_hex)
}

fn is_lower_hex(b: u8) -> bool {
    matches!(b, b'0'..=b'9' | b'a'..=b'f')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn references_and_what_they_stand_for() {
        let check = |text: &str, canonical: &str| {
            let image = ImageRef::new(text).unwrap();
            assert_eq!((image.as_str(), image.canonical()), (text, canonical));
            assert_eq!(image.is_by_digest(), canonical.contains('@'));
            let rest = canonical.strip_prefix(image.repository()).unwrap();
            assert!(rest.starts_with([':', '@']) && !rest.contains('/'), "{rest}");
            // What is canonical stands for itself.
            assert_eq!(ImageRef::new(canonical).unwrap().canonical(), canonical);
        };
        let digest = format!("sha256:{}", "0123456789abcdef".repeat(4));
        let long = format!("sha512:{}", "0123456789abcdef".repeat(8));
        check("bb", "docker.io/library/bb:latest");
        check("bb:1", "docker.io/library/bb:1");
        check("a/b", "docker.io/a/b:latest");
        check("docker.io/bb", "docker.io/library/bb:latest");
        check("index.docker.io/bb:1", "docker.io/library/bb:1");
        check("docker.io/library/bb:1", "docker.io/library/bb:1");
        check("localhost/bb", "localhost/bb:latest");
        check("localhost:5000/a/b:Tag_1.2-3", "localhost:5000/a/b:Tag_1.2-3");
        check("Reg.Example/a__b/c.d/e---f", "Reg.Example/a__b/c.d/e---f:latest");
        check("[::1]:5000/x:1", "[::1]:5000/x:1");
        check("127.0.0.1:65535/x", "127.0.0.1:65535/x:latest");
        check(&format!("ghcr.io/o/i@{digest}"), &format!("ghcr.io/o/i@{digest}"));
        check(&format!("bb:1@{digest}"), &format!("docker.io/library/bb@{digest}"));
        check(&format!("bb@{long}"), &format!("docker.io/library/bb@{long}"));
        // The beginnings of IDs and content identifiers are names like any other, once they are written in full.
        check("a", "docker.io/library/a:latest");
        check("deadbeef", "docker.io/library/deadbeef:latest");
        check("bafkreigh2akiscaildc", "docker.io/library/bafkreigh2akiscaildc:latest");
        check(&format!("x:{}", "t".repeat(128)), &format!("docker.io/library/x:{}", "t".repeat(128)));
    }

    #[test]
    fn everything_else_is_refused() {
        let digits = "0123456789abcdef".repeat(4);
        let bad = [
            // Flags, paths, and characters that no name has.
            "",
            " ",
            "-v",
            "--privileged",
            "/x",
            "/dev/zero",
            "./x",
            "../x",
            ".",
            "..",
            "a b",
            "a\n",
            "\u{1b}[2J",
            "a\0",
            "a;b",
            "$(x)",
            "a,b",
            "a=b",
            "a\\b",
            "a\"b",
            "a|b",
            "a*",
            "a+b",
            "ä",
            "a%2fb",
            "a?b",
            "a#b",
            // Schemes.
            "oci-archive:///etc/shadow",
            "oci-archive://x",
            "oci-archive:/x:1",
            "docker-archive:///x",
            "docker-archive:x:y",
            "oci:/x",
            "dir:/x",
            "ipfs://bafkreigh2akiscaildc",
            "ipns://x",
            "ipfs:/x",
            "/ipfs/x",
            "http://x/y",
            "https://reg/x:1",
            "file:///x",
            "docker://x",
            "containerd://x",
            "docker-daemon:x:y",
            "oci-archive://localhost/x",
            // IDs.
            &digits,
            &format!("sha256:{digits}"),
            "sha256:abc",
            "sha256",
            "sha512:0",
            // Paths.
            "UPPER/bad",
            "a/B",
            "Bad",
            "a//b",
            "a/",
            "/a",
            "reg.example/",
            "reg.example//a",
            "a/-b",
            "a/b-",
            "a._b",
            "a___b",
            "a..b",
            "_a",
            "a_",
            "-a/b",
            "a:b/c/",
            "localhost/",
            "localhost//x",
            // Registries.
            "reg.example:/a",
            "reg.example:0/a",
            "reg.example:65536/a",
            "reg.example:1x/a",
            "reg.example:-1/a",
            "-reg.example/a",
            "reg-.example/a",
            "reg..example/a",
            ".example/a",
            "[::1/a",
            "[]/a",
            "[::1]x/a",
            "[fe80::1%25eth0]/a",
            "[::1]:/a",
            "::1/a",
            "user@reg.example/a",
            "user:pw@reg.example/a",
            // Tags and digests.
            "a:",
            "a:b:c",
            "UPPER/Bad::x",
            "a:.b",
            "a:-b",
            "a:b/c:",
            "a@",
            "a@sha256",
            "a@sha256:",
            "@",
            "a@sha256:0123456789abcdef",
            &format!("a@md5:{digits}"),
            &format!("a@sha256:{}", digits.to_uppercase()),
            &format!("a@sha256:{digits}0"),
            &format!("a@sha256:{digits}@sha256:{digits}"),
            &format!("@sha256:{digits}"),
            &format!("a:@sha256:{digits}"),
            &format!("x:{}", "t".repeat(129)),
            // Lengths.
            &"a".repeat(256),
            &"a".repeat(521),
            &format!("reg.example/{}", "a".repeat(244)),
        ];
        for text in bad {
            let refused = ImageRef::new(text);
            let Err(error) = refused else { panic!("{text:?} is taken for {refused:?}") };
            assert!(error.to_string().starts_with("image "), "{error}");
        }
    }
}
