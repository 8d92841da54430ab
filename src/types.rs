//! Values that are checked once, where they enter, and trusted afterwards.
//!
//! Nothing here does I/O. Each type's constructor is its whole check; whoever holds the value need not check it
//! again, and none of them can be mistaken for a flag by a command line that it is put on.

mod image_ref;
mod spec;

use std::fmt;

use zeroize::Zeroizing;

pub use image_ref::{IMAGE_MAX, ImageRef};
pub use spec::{HostPort, Port, RegistryAuth, Spec};

/// Why a value from outside was refused. `Display` says what was wrong with it, never the value itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Invalid {
    what: &'static str,
    why: &'static str,
}

impl Invalid {
    const fn new(what: &'static str, why: &'static str) -> Self {
        Self { what, why }
    }
}

impl fmt::Display for Invalid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.what, self.why)
    }
}

impl std::error::Error for Invalid {}

/// The longest replica ID: with `replica-` and a suffix it stays under containerd's 76 for an identifier.
pub const REPLICA_ID_MAX: usize = 64;
/// The longest node ID and request ID, in bytes.
pub const ID_MAX: usize = 128;

/// Declares a checked string with the accessors that all of them share.
macro_rules! checked_string {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub struct $name(String);

        impl $name {
            /// The value as text.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }
    };
}

/// Declares an enum whose variants stand for words on the wire or in a file.
macro_rules! word_enum {
    (
        $(#[$meta:meta])*
        $vis:vis enum $name:ident { $($(#[$variant_meta:meta])* $variant:ident = $word:literal,)+ }
    ) => {
        $(#[$meta])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        $vis enum $name {
            $($(#[$variant_meta])* $variant,)+
        }

        impl $name {
            /// Its word.
            $vis const fn as_str(self) -> &'static str {
                match self {
                    $(Self::$variant => $word,)+
                }
            }
        }

        impl std::str::FromStr for $name {
            type Err = ();

            fn from_str(word: &str) -> Result<Self, ()> {
                match word {
                    $($word => Ok(Self::$variant),)+
                    _ => Err(()),
                }
            }
        }
    };
}
pub(crate) use word_enum;

checked_string! {
    /// A replica's ID, as the control plane names it. Fit to be a part of a container's name:
    /// `[a-zA-Z0-9][a-zA-Z0-9_.-]*`, at most [`REPLICA_ID_MAX`] bytes (nerdctl's and Docker's rule for names).
    ReplicaId
}

impl ReplicaId {
    /// Checks `text`.
    ///
    /// # Errors
    /// [`Invalid`] when it is empty, too long or has a character that a container name cannot have.
    pub fn new(text: &str) -> Result<Self, Invalid> {
        let invalid = |why| Invalid::new("replica_id", why);
        if text.is_empty() {
            return Err(invalid("is empty"));
        }
        if text.len() > REPLICA_ID_MAX {
            return Err(invalid("is longer than 64 bytes"));
        }
        if !text.as_bytes()[0].is_ascii_alphanumeric() {
            return Err(invalid("does not begin with a letter or a digit"));
        }
        if !text.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'.' | b'-')) {
            return Err(invalid("has a character other than letters, digits, '_', '.' and '-'"));
        }
        Ok(Self(text.to_owned()))
    }
}

checked_string! {
    /// The node's ID, as the control plane gave it. Fit for an HTTP header and a log line: printable ASCII without
    /// spaces, at most [`ID_MAX`] bytes.
    NodeId
}

impl NodeId {
    /// Checks `text`.
    ///
    /// # Errors
    /// [`Invalid`] when it is empty, too long, or not printable ASCII.
    pub fn new(text: &str) -> Result<Self, Invalid> {
        printable("node_id", text, ID_MAX).map(Self)
    }
}

checked_string! {
    /// What ties a result to its command. Printable ASCII without spaces, at most [`ID_MAX`] bytes.
    RequestId
}

impl RequestId {
    /// Checks `text`.
    ///
    /// # Errors
    /// [`Invalid`] when it is empty, too long, or not printable ASCII.
    pub fn new(text: &str) -> Result<Self, Invalid> {
        printable("request_id", text, ID_MAX).map(Self)
    }
}

fn printable(what: &'static str, text: &str, max: usize) -> Result<String, Invalid> {
    if text.is_empty() {
        Err(Invalid::new(what, "is empty"))
    } else if text.len() > max {
        Err(Invalid::new(what, "is longer than 128 bytes"))
    } else if !text.bytes().all(|b| b.is_ascii_graphic()) {
        Err(Invalid::new(what, "has a character that is not printable ASCII"))
    } else {
        Ok(text.to_owned())
    }
}

checked_string! {
    /// A container's full ID: 64 hexadecimal digits, as `run -d` prints it.
    ContainerId
}

impl ContainerId {
    /// Checks `text`.
    ///
    /// # Errors
    /// [`Invalid`] when it is not 64 lower-case hexadecimal digits.
    pub fn new(text: &str) -> Result<Self, Invalid> {
        if text.len() == 64 && text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f')) {
            Ok(Self(text.to_owned()))
        } else {
            Err(Invalid::new("container ID", "is not 64 hexadecimal digits"))
        }
    }

    /// The first 12 digits, as people write them.
    pub fn short(&self) -> &str {
        &self.0[..12]
    }
}

checked_string! {
    /// The name of an environment variable for a container: not empty, without `=`, NUL and control characters.
    EnvName
}

impl EnvName {
    /// Checks `text`.
    ///
    /// # Errors
    /// [`Invalid`] when it is empty, begins with `-`, or has `=`, NUL, another control character or white space.
    pub fn new(text: &str) -> Result<Self, Invalid> {
        let invalid = |why| Invalid::new("a variable's name", why);
        if text.is_empty() {
            return Err(invalid("is empty"));
        }
        if text.starts_with('-') {
            return Err(invalid("begins with '-'"));
        }
        if text.chars().any(|c| c == '=' || c.is_control() || c.is_whitespace()) {
            return Err(invalid("has '=', white space or a control character"));
        }
        Ok(Self(text.to_owned()))
    }
}

/// A PCI function's address, `domain:bus:device.function`. Domains can be longer than four digits (Intel VMD:
/// `10000:e1:00.0`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PciAddress {
    /// PCI domain (segment).
    pub domain: u32,
    /// Bus, 0 to 255.
    pub bus: u8,
    /// Device, 0 to 31.
    pub device: u8,
    /// Function, 0 to 7.
    pub function: u8,
}

impl PciAddress {
    /// Reads `0000:41:00.0`, `41:00.0` (domain 0) or nvidia-smi's `00000000:41:00.0`, in either case.
    ///
    /// # Errors
    /// [`Invalid`] when the text has another form or a part is out of range.
    pub fn parse(text: &str) -> Result<Self, Invalid> {
        let invalid = || Invalid::new("PCI address", "is not of the form 0000:41:00.0");
        let (rest, function) = text.rsplit_once('.').ok_or_else(invalid)?;
        let (rest, device) = rest.rsplit_once(':').ok_or_else(invalid)?;
        let (domain, bus) = rest.rsplit_once(':').unwrap_or(("0", rest));
        let hex = |digits: &str, longest: usize, max: u32| -> Result<u32, Invalid> {
            let plain = !digits.is_empty()
                && digits.len() <= longest
                && digits.bytes().all(|b| b.is_ascii_hexdigit());
            let value = if plain { u32::from_str_radix(digits, 16).ok() } else { None };
            value.filter(|v| *v <= max).ok_or_else(invalid)
        };
        let byte = |value: u32| u8::try_from(value).map_err(|_| invalid());
        Ok(Self {
            domain: hex(domain, 8, u32::MAX)?,
            bus: byte(hex(bus, 2, 0xff)?)?,
            device: byte(hex(device, 2, 0x1f)?)?,
            function: byte(hex(function, 1, 7)?)?,
        })
    }
}

impl fmt::Display for PciAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:04x}:{:02x}:{:02x}.{:x}", self.domain, self.bus, self.device, self.function)
    }
}

/// A secret: prints as `***`, and its bytes are zeroed when it is dropped.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(Zeroizing<String>);

impl Secret {
    /// Takes `text` as a secret.
    pub fn new(text: String) -> Self {
        Self(Zeroizing::new(text))
    }

    /// The secret itself, for the one place that needs it.
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("***")
    }
}

impl fmt::Display for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("***")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_that_could_be_a_flag_or_a_path_is_a_replica_id() {
        for good in ["a", "abc-123", "0.1_x", &"a".repeat(64)] {
            assert_eq!(ReplicaId::new(good).unwrap().as_str(), good);
        }
        for bad in ["", "-a", ".a", "_a", "a b", "a/b", "ä", "a\n", "a=b", "a,b", &"a".repeat(65)] {
            assert!(ReplicaId::new(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn names_of_variables() {
        for good in ["A", "lower.case-name", "Ü", "#A"] {
            assert!(EnvName::new(good).is_ok(), "{good:?}");
        }
        for bad in ["", "A=B", "A\0", "A\nB", " A", "A B", "-A", "A\u{a0}"] {
            assert!(EnvName::new(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn pci_addresses_of_all_writers() {
        let check = |text: &str, shown: &str| assert_eq!(PciAddress::parse(text).unwrap().to_string(), shown);
        check("41:00.0", "0000:41:00.0");
        check("0000:3d:1f.7", "0000:3d:1f.7");
        check("00000000:C1:00.0", "0000:c1:00.0");
        check("10000:e1:00.0", "10000:e1:00.0");
        for bad in
            ["", "41:00", "41:20.0", "41:00.8", "0000:141:00.0", "+1:00.0", "::.", "g1:00.0", "41:00.0 "]
        {
            assert!(PciAddress::parse(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn secrets_do_not_print() {
        let secret = Secret::new("hunter2".into());
        assert_eq!(format!("{secret} {secret:?}"), "*** ***");
        assert_eq!(secret.expose(), "hunter2");
    }
}
