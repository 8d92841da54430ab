//! Settings from real files in a folder of the test's own.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::sync::atomic::{AtomicU32, Ordering};

use super::file::FILE_MAX;
use super::*;

/// A folder that is the host's root, with a kernel command line and a configuration file.
struct Host {
    root: PathBuf,
    flags: Vec<(&'static Setting, String)>,
    environment: Vec<(OsString, OsString)>,
}

impl Host {
    fn new(test: &str) -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        let root = std::env::temp_dir().join(format!("vectorlay-{test}-{}-{count}", std::process::id()));
        fs::create_dir_all(root.join("proc")).unwrap();
        let flags = vec![(setting("root").unwrap(), root.to_str().unwrap().to_owned())];
        Self { root, flags, environment: Vec::new() }.file("{}").cmdline("ro quiet")
    }

    fn write(self, path: &str, text: &str) -> Self {
        fs::write(self.root.join(path), text).unwrap();
        self
    }

    fn file(self, text: &str) -> Self {
        self.write("agent.json", text)
    }

    fn cmdline(self, text: &str) -> Self {
        self.write("proc/cmdline", text)
    }

    fn flag(mut self, name: &str, value: &str) -> Self {
        self.flags.push((setting(name).unwrap(), value.to_owned()));
        self
    }

    fn env(mut self, name: &str, value: &str) -> Self {
        self.environment.push((name.into(), value.into()));
        self
    }

    fn path(&self, name: &str) -> String {
        self.root.join(name).to_str().unwrap().to_owned()
    }

    fn load(&self) -> Result<Loaded, String> {
        self.load_for(Need::All)
    }

    fn load_for(&self, need: Need) -> Result<Loaded, String> {
        let overrides = Overrides { file: Some(self.root.join("agent.json")), flags: self.flags.clone() };
        load(&overrides, self.environment.clone(), need)
    }

    fn error(&self) -> String {
        self.load().unwrap_err()
    }

    /// What is wrong with the token's file, which ends nothing but running.
    fn token_error(&self) -> String {
        let loaded = self.load().unwrap();
        assert_eq!(loaded.config.token, None);
        loaded.token_error.unwrap()
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.root);
    }
}

fn source_of(loaded: &Loaded, name: &str) -> Source {
    loaded.settings.iter().find(|s| s.setting.name == name).unwrap().source.clone()
}

#[test]
fn the_strongest_source_wins() {
    let mut host = Host::new("order");
    let mut check = |change: fn(Host) -> Host, workers: usize, source: &str| {
        host = change(std::mem::replace(&mut host, Host::new("unused")));
        let loaded = host.load().unwrap();
        assert_eq!(loaded.config.workers, workers);
        let described = source_of(&loaded, "workers").describe(setting("workers").unwrap());
        assert!(described.starts_with(source), "{described}");
        assert_eq!(loaded.warnings, Vec::<String>::new());
    };
    check(|host| host, 8, "default");
    check(|host| host.file(r#"{"workers": 1}"#), 1, "workers in /");
    check(|host| host.cmdline("vectorlay.workers=2"), 2, "vectorlay.workers on the kernel command line");
    check(|host| host.env("VECTORLAY_WORKERS", "3"), 3, "VECTORLAY_WORKERS");
    check(|host| host.flag("workers", "4"), 4, "--workers");
    check(|host| host.flag("workers", "5"), 5, "--workers");
}

#[test]
fn an_empty_variable_or_null_is_not_set() {
    let host = Host::new("empty")
        .env("VECTORLAY_WORKERS", "")
        .cmdline("vectorlay.workers=")
        .file(r#"{"workers": 3, "namespace": null}"#);
    let loaded = host.load().unwrap();
    assert_eq!((loaded.config.workers, loaded.config.namespace), (3, None));
}

#[test]
fn wrong_values_name_setting_source_value_and_what_is_expected() {
    let check = |host: Host, parts: &[&str]| {
        let error = host.error();
        for part in parts {
            assert!(error.contains(part), "{error:?} lacks {part:?}");
        }
    };
    let new = || Host::new("wrong");
    check(new().flag("workers", "0"), &["workers", "--workers", "\"0\"", "from 1 to 64"]);
    check(new().env("VECTORLAY_WORKERS", "x"), &["VECTORLAY_WORKERS", "\"x\"", "whole number"]);
    check(new().cmdline("vectorlay.log=loud"), &["kernel command line", "\"loud\"", "off, error, warn"]);
    check(new().file(r#"{"workers":"8"}"#), &["agent.json", "the text \"8\" is not a whole number"]);
    check(new().file(r#"{"workers":true}"#), &["the word true is not a whole number"]);
    check(new().file(r#"{"url":5}"#), &["agent.json", "the number 5 is not text"]);
    check(new().file(r#"{"url":["a"]}"#), &["the list [\"a\"] is not text"]);
    check(new().file(r#"{"allow_insecure":"yes"}"#), &["allow_insecure", "true or false"]);
    check(new().file(r#"{"state_dir":"state"}"#), &["state_dir", "\"state\"", "an absolute path"]);
    check(new().flag("url", ""), &["--url", "1 to 4096 bytes"]);
    check(new().flag("state_dir", "--json"), &["--state-dir", "\"--json\"", "absolute path"]);
    check(new().file(r#"{"wrokers":1}"#), &["\"wrokers\"", "agent.json", "did you mean workers?"]);
    check(new().file(r#"{"xyzzy":1}"#), &["\"xyzzy\"", "vectorlay-agent help"]);
    check(new().file("{\"workers\":1"), &["agent.json", "line 1"]);
    check(new().file("[]"), &["agent.json", "must be one object"]);
    check(new().file(&" ".repeat(FILE_MAX as usize + 1)), &["agent.json", "larger than 1048576 bytes"]);
    let docker = new().flag("namespace", "tenants").flag("container_cli", "/usr/bin/docker");
    check(docker, &["namespace", "docker"]);
    check(new().flag("instance", "../a"), &["instance", "letters"]);
    check(new().flag("image_high_percent", "80"), &["image_low_percent"]);
    check(new().flag("image_high_percent", "80").flag("image_low_percent", "80"), &["image_low_percent"]);
}

#[test]
fn only_running_needs_a_url() {
    let check = |host: Host, expected: Option<&str>| {
        let config = host.load().unwrap().config;
        assert_eq!(config.required_url().ok(), expected);
    };
    check(Host::new("url"), None);
    check(Host::new("url").flag("url", "wss://host/ws"), Some("wss://host/ws"));
}

#[test]
fn a_named_file_must_exist_and_be_a_file() {
    let host = Host::new("named");
    fs::remove_file(host.root.join("agent.json")).unwrap();
    assert!(host.error().contains("agent.json"));
    fs::create_dir(host.root.join("agent.json")).unwrap();
    assert!(host.error().contains("not a regular file"));
}

#[test]
fn the_file_can_be_named_by_the_environment() {
    let host = Host::new("variable").file(r#"{"workers": 3}"#);
    let environment = [(FILE_VARIABLE.into(), host.path("agent.json").into())];
    let overrides = Overrides { file: None, flags: host.flags.clone() };
    let loaded = load(&overrides, environment, Need::All).unwrap();
    assert_eq!((loaded.config.workers, loaded.warnings.len()), (3, 0));
}

#[test]
fn a_relative_path_is_taken_from_a_flag_alone() {
    let loaded = Host::new("relative").flag("state_dir", "state").load().unwrap();
    assert_eq!(loaded.config.state_dir, std::env::current_dir().unwrap().join("state"));
}

#[test]
fn unknown_variables_and_kernel_words_only_warn() {
    let host = Host::new("unknown")
        .env("VECTORLAY_WORKRES", "2")
        .env("VECTORLAY_CONFIG", "")
        .env("VECTORLAY_TEST_ENGINE_DIR", "/x")
        .cmdline("vectorlay.ulr=wss://x vectorlay.root=/mnt vectorlay.xyzzy");
    assert_eq!(
        host.load().unwrap().warnings,
        [
            "unknown environment variable VECTORLAY_WORKRES; did you mean VECTORLAY_WORKERS?",
            "unknown kernel parameter vectorlay.ulr; did you mean vectorlay.url?",
            "kernel parameter vectorlay.root has no effect: the command line is read below root",
            "unknown kernel parameter vectorlay.xyzzy",
        ]
    );
}

fn token(loaded: &Loaded) -> Option<&str> {
    loaded.config.token.as_ref().map(|token| token.expose())
}

#[test]
fn the_token_from_the_strongest_place() {
    let host = Host::new("token").write("a", "from-file\n").write("token", "from-credentials\r\n");
    let credentials = host.path("");
    let host = host.env("CREDENTIALS_DIRECTORY", &credentials);
    assert_eq!(token(&host.load().unwrap()), Some("from-credentials"));
    let path = host.path("a");
    let host = host.env("VECTORLAY_TOKEN_FILE", &path);
    let loaded = host.load().unwrap();
    assert_eq!(token(&loaded), Some("from-file"));
    assert_eq!(source_of(&loaded, "token"), Source::Content(path.into()));
    let host = host.env("VECTORLAY_TOKEN", "direct");
    assert_eq!(token(&host.load().unwrap()), Some("direct"));
}

#[test]
fn a_token_file_that_is_gone_is_no_error() {
    let host = Host::new("gone").flag("token_file", "/nonexistent/token");
    let loaded = host.load().unwrap();
    assert_eq!(token(&loaded), None);
    assert!(loaded.warnings[0].contains("/nonexistent/token"), "{:?}", loaded.warnings);
}

#[test]
fn a_token_file_without_a_token_is_an_error_that_does_not_show_it() {
    for content in ["", "\n", "se cret", "sécret", "secret\nsecret2\n", &"s".repeat(VALUE_MAX + 1)] {
        let host = Host::new("bad").write("token", content);
        let path = host.path("token");
        let error = host.flag("token_file", &path).token_error();
        assert!(error.contains(&path) && !error.contains("cret"), "{error}");
    }
    let error = Host::new("bad").env("VECTORLAY_TOKEN", "se cret").error();
    assert!(error.contains("VECTORLAY_TOKEN") && !error.contains("cret\""), "{error}");
}

#[test]
fn a_token_file_that_cannot_be_read_is_shown_as_such() {
    let host = Host::new("unreadable");
    let path = host.path("");
    let host = host.flag("token_file", &path);
    assert!(host.token_error().contains("not a regular file"));
    let shown = text(&host.load().unwrap().settings);
    let line = shown.lines().find(|line| line.starts_with("token ")).unwrap();
    assert!(line.contains(&path) && line.ends_with("which cannot be used"), "{line}");
}

#[test]
fn the_socket_is_found_whatever_the_file_is_like() {
    let check = |file: &str, socket: &str, said: &[&str]| {
        let host = Host::new("socket").file(file).env("VECTORLAY_WORKERS", "3");
        let loaded = host.load_for(Need::Socket).unwrap();
        assert_eq!(loaded.config.control_socket, PathBuf::from(socket), "{file}");
        assert_eq!(loaded.config.workers, 3, "{file}");
        assert_eq!(loaded.warnings.len(), said.len(), "{:?}", loaded.warnings);
        for (warning, said) in loaded.warnings.iter().zip(said) {
            assert!(warning.contains(said) && warning.ends_with("; ignored"), "{warning}");
        }
    };
    let usual = "/run/vectorlay/agent.sock";
    check("{}", usual, &[]);
    check("{\"control_socket\": \"/x\"", usual, &["is not a JSON object"]);
    check("[]", usual, &["must be one object"]);
    check(r#"{"control_socket": "/x", "wrokers": 1, "url": null}"#, "/x", &["did you mean workers?"]);
    check(r#"{"control_socket": "/x", "log": "loud", "workers": 0}"#, "/x", &["\"loud\"", "the number 0"]);
    check(r#"{"control_socket": 5}"#, usual, &["the number 5"]);
    check(r#"{"namespace": "x", "container_cli": "docker"}"#, usual, &[]);
    // A wrong flag is still a mistake: another socket may have been meant.
    let host = Host::new("socket").flag("control_socket", "");
    assert!(host.load_for(Need::Socket).unwrap_err().contains("--control-socket"));
    fs::remove_file(host.root.join("agent.json")).unwrap();
    let host = Host { flags: vec![], environment: vec![], root: host.root.clone() };
    assert!(host.load_for(Need::Socket).unwrap().warnings[0].contains("agent.json"));
}

#[test]
fn a_secret_that_everyone_can_read_is_warned_of() {
    let check = |mode: u32, warnings: usize| {
        let host = Host::new("mode").write("token", "t\n");
        let path = host.path("token");
        fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
        let host = host.flag("token_file", &path);
        assert_eq!(host.load().unwrap().warnings.len(), warnings, "{mode:o}");
    };
    check(0o600, 0);
    check(0o640, 0);
    check(0o644, 1);
    let file = |settings: &str, warnings: &[&str]| {
        let host = Host::new("mode").file(settings);
        let path = host.path("agent.json");
        fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).unwrap();
        let expected = |what: &&str| {
            format!("everyone on this host can read the {what} in {path}; run `chmod 600 {path}`")
        };
        assert_eq!(
            host.load().unwrap().warnings,
            warnings.iter().map(expected).collect::<Vec<_>>(),
            "{settings}"
        );
    };
    file(r#"{"token":"t"}"#, &["token"]);
    file(r#"{"url":"wss://a/b?key=c","proxy":"http://u:p@h:1"}"#, &["url", "proxy"]);
    file(r#"{"url":"wss://a/b","proxy":"http://h:1"}"#, &[]);
}

#[test]
fn proxies_of_the_environment() {
    let host = Host::new("proxy").env("https_proxy", "http://u:pw@low:1").env("NO_PROXY", "a,b");
    let loaded = host.load().unwrap();
    assert_eq!(loaded.config.proxy.as_ref().unwrap().expose(), "http://u:pw@low:1");
    assert_eq!(loaded.config.no_proxy.as_deref(), Some("a,b"));
    let host = host.env("HTTPS_PROXY", "http://up:1").env("VECTORLAY_PROXY", "http://own:1");
    assert_eq!(host.load().unwrap().config.proxy.unwrap().expose(), "http://own:1");
}

#[test]
fn what_is_shown_has_no_secret() {
    let host = Host::new("show")
        .env("VECTORLAY_TOKEN", "hunter2")
        .env("VECTORLAY_PROXY", "http://u:hunter2@proxy:1")
        .flag("register_url", "https://cp/register?key=hunter2")
        .flag("workers", "4");
    let loaded = host.load().unwrap();
    let text = text(&loaded.settings);
    let shown = |name: &str| -> Vec<&str> {
        let line = text.lines().find(|line| line.split_whitespace().next() == Some(name)).unwrap();
        line.split_whitespace().skip(1).collect()
    };
    assert_eq!(shown("workers"), ["4", "--workers"]);
    assert_eq!(shown("token"), ["***", "VECTORLAY_TOKEN"]);
    assert_eq!(shown("proxy"), ["http://***@proxy:1", "VECTORLAY_PROXY"]);
    assert_eq!(shown("namespace"), ["-", "default"]);
    assert_eq!(text.lines().count(), TABLE.len());
    let json = json(&loaded.settings);
    assert_eq!(json["workers"], serde_json::json!({"value": 4, "source": "--workers"}));
    assert_eq!(json["token"]["value"], "***");
    assert_eq!(json["register_url"]["value"], "https://cp/register?…");
    for all in [text, json.to_string()] {
        assert!(!all.contains("hunter2"), "{all}");
    }
    let error = Host::new("show").flag("url", "wss://u:hunter2@cp/?hunter2\n").load().unwrap_err();
    assert!(error.contains("***@cp/?…") && !error.contains("hunter2"), "{error}");
}

#[test]
fn defaults_and_limits_fit_their_fields() {
    for setting in TABLE {
        let values: Vec<String> = match setting.kind {
            Kind::Whole { min, max } => vec![min.to_string(), max.to_string()],
            Kind::Words(words) => words.iter().map(|word| (*word).to_owned()).collect(),
            Kind::Bool => vec!["true".to_owned()],
            Kind::Text if setting.name == "instance" => vec!["b".to_owned()],
            Kind::Text if setting.name == "images" => vec!["*, a.example/b".to_owned()],
            Kind::Text if setting.name == "port_address" => vec!["10.0.0.7".to_owned(), "::1".to_owned()],
            Kind::Text | Kind::Path | Kind::Secret | Kind::Url | Kind::Proxy => vec!["/x".to_owned()],
        };
        if setting.name == "root" {
            continue;
        }
        for value in values {
            let host = Host::new("limits").flag(setting.name, &value);
            let host = match setting.name {
                "image_high_percent" if value != "0" => host.flag("image_low_percent", "1"),
                "port_max" => host.flag("port_min", "1"),
                _ => host,
            };
            let loaded = host.load();
            assert!(loaded.is_ok(), "{} {value}: {}", setting.name, loaded.unwrap_err());
        }
    }
}

#[test]
fn what_the_owner_allows_is_checked() {
    let check = |name: &str, value: &str, says: &str| {
        let error = Host::new("allowed").flag(name, value).load().unwrap_err();
        assert!(error.contains(says), "{error}");
    };
    check("images", "docker.io,https://a.example", "https://a.example");
    check("images", "docker.io,", "\"\"");
    check("port_max", "1000", "port_min");
    check("port_address", "localhost", "port_address");
}

#[test]
fn the_table_is_in_order() {
    for setting in TABLE {
        assert!(
            !setting.doc.is_empty() && !setting.doc.ends_with('.') && setting.doc.len() <= 90,
            "{setting:?}"
        );
        let plain = setting.name.bytes().all(|b| b.is_ascii_lowercase() || b == b'_');
        assert!(plain && TABLE.iter().filter(|other| other.name == setting.name).count() == 1, "{setting:?}");
        if let Some(default) = setting.default {
            assert!(Value::read(setting.kind, default).is_some(), "{setting:?}");
        }
    }
}
