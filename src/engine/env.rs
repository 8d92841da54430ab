//! Splits a container's variables over the two ways that do not put a value on an argv.
//!
//! The env-file carries a variable exactly only within the rules of its readers (nerdctl `pkg/flagutil` parseEnvVars:
//! trims each line on both sides; Docker `cli/pkg/kvfile`: trims its beginning; both with Go's `bufio.Scanner`). The
//! rest is inherited: `--env=NAME` with the value in the CLI's own environment. That environment runs host programs
//! as root (the CLI itself, OCI hooks, CNI plugins, iptables), so no name goes there that could steer one of them.

use std::ffi::OsString;

use crate::core::job::{Failure, FailureKind};
use crate::types::{EnvName, Secret};

/// Longest line of an env-file, in bytes: Go's `bufio.MaxScanTokenSize` less the newline.
const LINE_MAX: usize = 65_535;
/// Longest `NAME=value`, in bytes: the kernel's MAX_ARG_STRLEN (32 pages) less the NUL; holds inside the container too.
const VARIABLE_MAX: usize = 131_071;
/// Most bytes of all variables and arguments together: execve takes a quarter of the stack's limit (2 MiB where that
/// is 8 MiB), pointers and what the image brings included.
const TOTAL_MAX: usize = 1_900_000;

/// Beginnings of names that steer a host program. Compared in upper case.
const RESERVED_PREFIXES: [&str; 25] = [
    "BASH",
    "BUILDKIT_",
    "BUILDX_",
    "CNI_",
    "CONTAINERD_",
    "DBUS_",
    "DOCKER_",
    "GLIBC_",
    "GO",
    "KATA_",
    "LC_",
    "LD_",
    "LISTEN_",
    "MALLOC_",
    "NERDCTL_",
    "NODE_",
    "OPENSSL_",
    "OTEL_",
    "PERL5",
    "PYTHON",
    "ROOTLESSKIT_",
    "SSL_CERT_",
    "VECTORLAY_",
    "XDG_",
    "XTABLES_",
];
/// Whole names that do.
const RESERVED: [&str; 21] = [
    "ENV",
    "GCONV_PATH",
    "HOME",
    "HOSTALIASES",
    "IFS",
    "LANG",
    "LANGUAGE",
    "LOCPATH",
    "LOGNAME",
    "NETCONFPATH",
    "NLSPATH",
    "NOTIFY_SOCKET",
    "PATH",
    "PWD",
    "RES_OPTIONS",
    "SHELL",
    "SSLKEYLOGFILE",
    "TMPDIR",
    "TZ",
    "USER",
    "LOCALDOMAIN",
];

/// How a container's variables reach the CLI.
#[derive(Debug, Default, PartialEq)]
pub struct Split {
    /// The env-file's bytes; `None`: there is nothing to put in it.
    pub file: Option<Vec<u8>>,
    /// What goes into the CLI's environment, each with an `--env=NAME`.
    pub inherited: Vec<(OsString, OsString)>,
}

/// Splits `env`.
///
/// # Errors
/// [`FailureKind::Impossible`] that names the variable (names are not secrets) and says why: a NUL in its value, too
/// long, or one that only the CLI's environment could carry under a name that steers host programs.
pub fn split(env: &[(EnvName, Secret)], command: &[String]) -> Result<Split, Failure> {
    let mut file = Vec::new();
    let mut inherited = Vec::new();
    let mut total = 0;
    for argument in command {
        if argument.contains('\0') {
            return Err(impossible("an argument of the command has a NUL in it; remove it".to_owned()));
        }
        if argument.len() > VARIABLE_MAX {
            return Err(impossible(format!(
                "an argument of the command is longer than {VARIABLE_MAX} bytes; shorten it"
            )));
        }
        total += argument.len() + 1;
    }
    for (name, value) in env {
        let (name, value) = (name.as_str(), value.expose());
        let size = name.len() + 1 + value.len();
        if value.contains('\0') {
            return Err(impossible(format!(
                "the value of variable {name} has a NUL in it; encode it, in base64 say"
            )));
        }
        if size > VARIABLE_MAX {
            return Err(impossible(format!(
                "variable {name} has {size} bytes and the kernel takes {VARIABLE_MAX}; shorten it"
            )));
        }
        total += size + 1;
        if fits_a_line(name, value) {
            file.extend_from_slice(name.as_bytes());
            file.push(b'=');
            file.extend_from_slice(value.as_bytes());
            file.push(b'\n');
        } else if steers_the_host(name) {
            return Err(impossible(format!(
                "the value of variable {name} has a newline, ends in white space or is longer than {LINE_MAX} bytes, and \
                 under this name the host's own programs would read it; encode it or use another name"
            )));
        } else {
            inherited.push((name.into(), value.into()));
        }
    }
    if total > TOTAL_MAX {
        return Err(impossible(format!(
            "variables and command have {total} bytes together and {TOTAL_MAX} can be carried; shorten them"
        )));
    }
    Ok(Split { file: Some(file).filter(|file| !file.is_empty()), inherited })
}

/// Whether both readers give the variable back byte for byte.
fn fits_a_line(name: &str, value: &str) -> bool {
    name.len() + 1 + value.len() <= LINE_MAX
        && !name.starts_with(['#', '\u{feff}'])
        && !value.contains('\n')
        // Go's unicode.IsSpace and Rust's is_whitespace are the same property, White_Space.
        && !value.ends_with(char::is_whitespace)
}

fn steers_the_host(name: &str) -> bool {
    let upper = name.to_ascii_uppercase();
    // Credentials for Google's libraries are JSON of several lines, and the Go runtime has no such name.
    let prefixed = RESERVED_PREFIXES.iter().any(|p| upper.starts_with(p)) && !upper.starts_with("GOOGLE_");
    prefixed || upper.ends_with("_PROXY") || RESERVED.contains(&upper.as_str())
}

fn impossible(message: String) -> Failure {
    Failure { kind: FailureKind::Impossible, message }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn one(name: &str, value: &str) -> Result<Split, Failure> {
        split(&[(EnvName::new(name).unwrap(), Secret::new(value.into()))], &[])
    }

    #[test]
    fn what_a_line_carries_exactly_goes_into_the_file() {
        let check = |name: &str, value: &str| {
            let file = Some(format!("{name}={value}\n").into_bytes());
            assert_eq!(one(name, value), Ok(Split { file, inherited: vec![] }), "{name}");
        };
        check("A", "");
        check("A", "  leading, #, =, \"quotes\", 'more', \\, $HOME, ä, \t tab, \r in between");
        check("PATH", "/tenant/bin");
        check("LD_PRELOAD", "/x.so");
        check("A", &"x".repeat(LINE_MAX - 2));
    }

    #[test]
    fn what_it_does_not_is_inherited() {
        let check = |name: &str, value: &str| {
            let inherited = vec![(name.into(), value.into())];
            assert_eq!(one(name, value), Ok(Split { file: None, inherited }), "{name}");
        };
        check("A", "two\nlines");
        check("A", "crlf\r\n");
        check("A", "cr\r");
        check("A", "trailing ");
        check("A", "trailing\u{2028}");
        check("A", "\t");
        check("#A", "x");
        check("\u{feff}A", "x");
        check("A", &"x".repeat(LINE_MAX - 1));
        check("A", &"x".repeat(VARIABLE_MAX - 2));
        check("GOOGLE_CREDENTIALS", "{\n}");
    }

    #[test]
    fn what_neither_may_carry_is_refused_by_name_without_its_value() {
        let check = |name: &str, value: &str, why: &str| {
            let failure = one(name, value).unwrap_err();
            assert_eq!(failure.kind, FailureKind::Impossible);
            assert!(failure.message.contains(name) && failure.message.contains(why), "{failure}");
            assert!(!failure.message.contains("hunter2"), "{failure}");
        };
        for name in [
            "PATH",
            "http_proxy",
            "NERDCTL_TOML",
            "LD_PRELOAD",
            "GODEBUG",
            "CNI_PATH",
            "TMPDIR",
            "XTABLES_LIBDIR",
        ] {
            check(name, "hunter2\n", "the host's own programs");
        }
        check("A", "hunter2\0", "NUL");
        check("A", &"hunter2".repeat(20_000), "140002 bytes");
    }

    #[test]
    fn all_together_are_bounded() {
        let many = |count: usize| -> Vec<(EnvName, Secret)> {
            let variable = |i| (EnvName::new(&format!("A{i}")).unwrap(), Secret::new("x".repeat(100_000)));
            (0..count).map(variable).collect()
        };
        assert!(split(&many(18), &[]).is_ok());
        assert_eq!(split(&many(19), &[]).unwrap_err().kind, FailureKind::Impossible);
        assert_eq!(split(&many(18), &["x".repeat(100_000)]).unwrap_err().kind, FailureKind::Impossible);
        assert_eq!(split(&[], &["a\0".into()]).unwrap_err().kind, FailureKind::Impossible);
        assert_eq!(split(&[], &[]), Ok(Split::default()));
    }
}
