//! Versions, read out of what programs print. Pure.

use serde_json::Value;

/// The first word of the first line that looks like a version: a digit, or `v` and a digit (which is left out).
///
/// That is where all of these have it: `containerd github.com/containerd/containerd/v2 v2.0.5 fb4c30d`,
/// `nerdctl version 2.2.2`, `Docker version 28.2.2, build e6534b4`, `kata-runtime  : 3.18.0`, `virtiofsd 1.14.0`,
/// `virtiofsd version 7.2.17 (Debian 1:7.2+dfsg-7)`.
pub fn first(text: &str) -> Option<String> {
    text.lines().next()?.split_whitespace().find_map(version)
}

/// Whether `--version` was answered by the virtiofsd in C that QEMU had up to 7.2: it says `version` before its number,
/// the one in Rust does not. Kata starts it with options such as `--shared-dir=`, which only the one in Rust knows
/// (kata-containers `virtiofsd.go`; QEMU's says `unknown option`).
pub fn is_qemus_virtiofsd(text: &str) -> bool {
    text.starts_with("virtiofsd version ")
}

/// The server's side of `version --format '{{json .}}'`.
#[derive(Debug, PartialEq, Eq)]
pub struct Server {
    /// containerd's version, where it is among the components.
    pub containerd: Option<String>,
}

/// Reads nerdctl's and Docker's form: `{"Client":{…},"Server":{"Components":[{"Name":"containerd","Version":"…"}]}}`.
/// `None` when there is no server, or it is not JSON.
pub fn server(json: &str) -> Option<Server> {
    let answer: Value = serde_json::from_str(json).ok()?;
    let server = answer.get("Server").filter(|server| server.is_object())?;
    let components = server.get("Components").and_then(Value::as_array).into_iter().flatten();
    let containerd = components.into_iter().find(|component| component["Name"] == "containerd");
    Some(Server { containerd: containerd.and_then(|component| version(component["Version"].as_str()?)) })
}

fn version(word: &str) -> Option<String> {
    let word = word.trim_end_matches([',', ';', ':']);
    let number = word.strip_prefix('v').unwrap_or(word);
    number.starts_with(|c: char| c.is_ascii_digit()).then(|| number.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_in_what_programs_print() {
        let check =
            |text: &str, expected: Option<&str>| assert_eq!(first(text).as_deref(), expected, "{text:?}");
        check(
            "containerd github.com/containerd/containerd 1.6.20~ds1 1.6.20~ds1-1+deb12u3\n",
            Some("1.6.20~ds1"),
        );
        check("containerd github.com/containerd/containerd/v2 v2.0.5 fb4c30d4ede3\n", Some("2.0.5"));
        check("containerd containerd.io 1.7.22 7f7fdf5\n", Some("1.7.22"));
        check("nerdctl version 2.2.2\n", Some("2.2.2"));
        check("nerdctl version <unknown>\n", None);
        check("Docker version 28.2.2, build e6534b4\n", Some("28.2.2"));
        check("kata-runtime  : 3.18.0\n   commit   : acae4480\n   OCI specs: 1.2.0\n", Some("3.18.0"));
        check("virtiofsd 1.14.0\n", Some("1.14.0"));
        check("virtiofsd version 7.2.17 (Debian 1:7.2+dfsg-7+deb12u13)\nusing FUSE 7.36\n", Some("7.2.17"));
        check("", None);
        check("\n1.2\n", None);
    }

    #[test]
    fn virtiofsds_are_told_apart() {
        let check = |text: &str, qemus: bool| assert_eq!(is_qemus_virtiofsd(text), qemus, "{text:?}");
        check("virtiofsd version 7.2.22 (Debian 1:7.2+dfsg-7+deb12u18+b3)\n", true);
        check("virtiofsd 1.14.0\n", false);
        check("", false);
    }

    #[test]
    fn servers_that_answer() {
        let check = |json: &str, expected: Option<Option<&str>>| {
            let read = server(json);
            assert_eq!(read.as_ref().map(|s| s.containerd.as_deref()), expected, "{json}");
        };
        check(
            r#"{"Client":{"Version":"2.2.2","Components":[{"Name":"buildctl","Version":""}]},"Server":{"Components":[{"Name":"containerd","Version":"v1.7.22","Details":{"GitCommit":"a"}},{"Name":"runc","Version":"1.1.5"}]}}"#,
            Some(Some("1.7.22")),
        );
        check(
            r#"{"Client":{},"Server":{"Platform":{"Name":""},"Components":[{"Name":"Engine","Version":"20.10.24+dfsg1"},{"Name":"containerd","Version":"1.6.20~ds1"}],"Version":"20.10.24"}}"#,
            Some(Some("1.6.20~ds1")),
        );
        check(r#"{"Server":{}}"#, Some(None));
        check(r#"{"Server":{"Components":[{"Name":"containerd"},7]}}"#, Some(None));
        check(r#"{"Client":{"Version":"28.2.2"},"Server":null}"#, None);
        check("[]", None);
        check("Client:\n Version: 1\n", None);
    }
}
