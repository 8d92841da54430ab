//! Command lines, and the texts made from the tables.

use std::os::unix::ffi::OsStringExt;
use std::process::Command as Process;

use super::*;

fn parsed(line: &str) -> Result<Invocation, String> {
    parse(line.split_whitespace().map(OsString::from))
}

fn gpu() -> PciAddress {
    PciAddress::parse("0000:41:00.0").unwrap()
}

#[test]
fn commands() {
    let check = |line: &str, expected: Command| assert_eq!(parsed(line).unwrap().command, expected, "{line}");
    check("", Command::Run);
    check("run", Command::Run);
    check("--workers 3", Command::Run);
    check("config", Command::Config(Form::Text));
    check("--json config", Command::Config(Form::Json));
    check("check --json", Command::Check(Form::Json));
    check("info", Command::Info(Form::Text));
    check("status --json --control-socket /x", Command::Status { form: Form::Json, watch: false });
    check("drain", Command::Request(Request::Drain, Form::Text));
    check("status --watch", Command::Status { form: Form::Text, watch: true });
    check("drain --wait", Command::DrainAndWait { form: Form::Text, deadline: None });
    let deadline = Some(Duration::from_secs(600));
    check("drain --deadline 10m --wait --json", Command::DrainAndWait { form: Form::Json, deadline });
    let replica = || ReplicaId::new("web-1").unwrap();
    check("logs web-1", Command::Logs { replica: replica(), follow: false, tail: 100 });
    check("logs -f --tail 5 web-1", Command::Logs { replica: replica(), follow: true, tail: 5 });
    check("replicas --json", Command::Replicas(Form::Json));
    check("history", Command::History(Form::Text));
    check("version --json", Command::Print(text::version(Form::Json)));
    check("maintenance", Command::Request(Request::Maintenance, Form::Text));
    check("resume", Command::Request(Request::Resume, Form::Text));
    check("recheck", Command::Request(Request::Recheck, Form::Text));
    check("gpu hold 41:00.0", Command::Request(Request::GpuHold(gpu()), Form::Text));
    check("gpu release 0000:41:00.0", Command::Request(Request::GpuRelease(gpu()), Form::Text));
    check("vfio status", Command::VfioStatus(Form::Text));
    let change = VfioChange {
        target: VfioTarget::These(vec![gpu(), gpu()]),
        dry_run: true,
        force: false,
        persist: false,
    };
    check("vfio bind 41:00.0 --dry-run 41:00.0", Command::VfioBind(change));
    let change = VfioChange { target: VfioTarget::All, dry_run: false, force: false, persist: true };
    check("vfio unbind --all --persist", Command::VfioUnbind(change));
    let change = VfioChange { target: VfioTarget::Saved, dry_run: false, force: true, persist: false };
    check("vfio bind --saved --force", Command::VfioBind(change));
    for line in ["--version", "-V", "version", "run --version"] {
        check(line, Command::Print(text::version(Form::Text)));
    }
    for line in ["--help", "-h", "help", "--workers 3 -h"] {
        check(line, Command::Print(text::help()));
    }
    let Command::Print(help) = parsed("vfio bind --help").unwrap().command else { panic!() };
    assert!(help.starts_with("vectorlay-agent vfio bind ADDRESS…\n") && help.contains("--dry-run"), "{help}");
    check("help vfio bind", Command::Print(help));
    for (word, lines) in [
        ("vfio", &["vfio status ", "vfio bind ADDRESS…", "vfio unbind "][..]),
        ("gpu", &["gpu hold ", "gpu release "]),
    ] {
        let Command::Print(help) = parsed(&format!("help {word}")).unwrap().command else { panic!() };
        assert!(lines.iter().all(|line| help.contains(&format!("\n  {line}"))), "{help}");
        check(&format!("{word} --help"), Command::Print(help));
    }
}

#[test]
fn flags_of_settings() {
    let check = |line: &str, expected: &[(&str, &str)]| {
        let overrides = parsed(line).unwrap().overrides;
        let flags: Vec<_> =
            overrides.flags.iter().map(|(setting, value)| (setting.name, value.as_str())).collect();
        assert_eq!(flags, expected, "{line}");
    };
    check("--state-dir /a --state-dir=/b", &[("state_dir", "/a"), ("state_dir", "/b")]);
    check("--allow-insecure run", &[("allow_insecure", "true")]);
    check("--allow-insecure=false run", &[("allow_insecure", "false")]);
    check("run --url=", &[("url", "")]);
    check("--proxy http://host:1", &[("proxy", "http://host:1")]);
    check("check --log debug --json", &[("log", "debug")]);
    assert_eq!(parsed("--config /x").unwrap().overrides.file, Some(PathBuf::from("/x")));
}

#[test]
fn wrong_lines_say_what_was_meant() {
    let check = |line: &str, expected: &str| {
        let error = parsed(line).unwrap_err();
        assert!(error.contains(expected), "{line}: {error}");
    };
    check("--state-dri /x", "unknown flag --state-dri; did you mean --state-dir?");
    check("--state_dir /x", "did you mean --state-dir?");
    check("--jsno", "did you mean --json?");
    check("--xyzzy", "see `vectorlay-agent help`");
    check("-x", "unknown flag -x");
    check("chekc", "unknown command \"chekc\"; did you mean check?");
    check("xyzzy", "see `vectorlay-agent help`");
    check("help chekc", "did you mean check?");
    check("vfio", "vfio needs a subcommand: status, bind, unbind");
    check("vfio bnid", "did you mean bind?");
    check("run --json", "run has no flag --json");
    check("--json", "run has no flag --json");
    check("check now", "unexpected argument \"now\"");
    check("gpu hold", "missing PCI address");
    check("gpu hold x", "invalid PCI address \"x\"");
    check("gpu hold 41:00.0 42:00.0", "unexpected argument \"42:00.0\"");
    check("vfio bind", "missing PCI address; give addresses or --all");
    check("vfio bind all", "invalid PCI address \"all\"; use --all");
    check("gpu hold all", "invalid PCI address \"all\"");
    check("vfoi --help", "did you mean vfio?");
    check("vfio bind --all 41:00.0", "unexpected argument");
    check("vfio bind --all --saved", "exclude each other");
    check("completions tcsh", "unknown shell \"tcsh\"; use bash, zsh or fish");
    check("drain --deadline 5m", "--deadline needs --wait");
    check("drain --wait --deadline soon", "invalid time \"soon\"");
    check("drain --wait --deadline 99999999h", "invalid time");
    check("logs", "missing replica ID");
    check("logs /etc", "replica_id");
    check("logs a --tail x", "--tail");
    check("check --tail 5", "check has no flag --tail");
    check("completions", "bash");
    check("--workers", "--workers needs a value");
    check("--config", "--config needs a value");
    check("check --json=1", "--json takes no value");
    check("--token vtk_hunter2", "--token-file or VECTORLAY_TOKEN");
    check("--token=vtk_hunter2", "--token-file or VECTORLAY_TOKEN");
    check("--proxy http://u:hunter2@h:1", "VECTORLAY_PROXY");
    for line in ["--token=hunter2", "--proxy=http://u:hunter2@h:1"] {
        assert!(!format!("{0} {0:?}", parsed(line).unwrap_err()).contains("hunter2"), "{line}");
    }
}

#[test]
fn what_is_not_utf8_is_an_error() {
    let bad = || OsString::from_vec(vec![b'a', 0xff]);
    let check = |line: Vec<OsString>| assert!(parse(line.clone()).is_err(), "{line:?}");
    check(vec![bad()]);
    check(vec!["--url".into(), bad()]);
    check(vec!["gpu".into(), "hold".into(), bad()]);
    check(vec![OsString::from_vec(b"--url=\xff".to_vec())]);
    check(vec![OsString::from_vec(b"--\xff".to_vec())]);
    check(vec![OsString::from_vec(b"-\xff".to_vec())]);
}

#[test]
fn help_and_man_page_have_all_of_it() {
    let (help, man) = (text::help(), text::man());
    for setting in TABLE {
        let name = if setting.is_secret() { setting.variable() } else { format!("--{}", setting.flag()) };
        assert!(help.contains(&name) && help.contains(setting.doc), "{name}");
        assert!(man.contains(&name.replace('-', "\\-")), "{name}");
    }
    for row in COMMANDS {
        assert!(help.contains(&format!("  {}", row.name)) && !row.doc.ends_with('.'), "{}", row.name);
        assert!(man.contains(&format!(".B {}", row.name)), "{}", row.name);
        assert!(row.flags.iter().all(|flag| FLAGS.iter().any(|known| known.name == flag.name)));
    }
    assert!(!help.contains("--token ") && help.lines().all(|line| line.chars().count() <= 130), "{help}");
}

#[test]
fn names_are_given_once() {
    let mut names = flag_names();
    let count = names.len();
    names.sort();
    names.dedup();
    assert_eq!(names.len(), count);
}

#[test]
fn bash_completes() {
    let check = |words: &[&str], expected: &[&str]| {
        let script = format!(
            "{}\nCOMP_WORDS=(vectorlay-agent \"$@\"); COMP_CWORD=$#; _vectorlay_agent; echo \"${{COMPREPLY[@]}}\"",
            completions::bash()
        );
        let Ok(run) = Process::new("bash").arg("-c").arg(script).arg("bash").args(words).output() else {
            println!("skipped: bash_completes needs bash");
            return;
        };
        assert!(run.status.success() && run.stderr.is_empty(), "{run:?}");
        let found = String::from_utf8(run.stdout).unwrap();
        assert_eq!(found.split_whitespace().collect::<Vec<_>>(), expected, "{words:?}");
    };
    check(&["che"], &["check"]);
    check(&["vfio", ""], &["status", "bind", "unbind"]);
    check(&["gpu", "h"], &["hold"]);
    check(&["--log-driver", "f"], &["file"]);
    check(&["--state-d"], &["--state-dir"]);
    check(&["--tok"], &["--token-file"]);
    check(&["--state-dir", "/proc/self/statu"], &["/proc/self/status"]);
    check(&["--workers", ""], &[]);
    check(&["completions", ""], &["bash", "zsh", "fish"]);
    check(
        &["vfio", "bind", "--p"],
        &["--persist", "--proxy", "--port-min", "--port-max", "--port-address", "--pull-stall-s"],
    );
    check(&["--workers", "3", "vfio", "b"], &["bind"]);
    check(&["check", "--j"], &["--json"]);
    check(&["run", "--j"], &[]);
}

/// Whether the shell understands the script; there may be no such shell here.
fn parses(shell: &str, script: &str) {
    let path = std::env::temp_dir().join(format!("vectorlay-completion-{}.{shell}", std::process::id()));
    std::fs::write(&path, script).unwrap();
    let run = Process::new(shell).arg("-n").arg(&path).output();
    std::fs::remove_file(&path).unwrap();
    match run {
        Ok(run) => assert!(run.status.success() && run.stderr.is_empty(), "{shell}: {run:?}"),
        Err(_) => println!("skipped: completions need {shell}"),
    }
}

#[test]
fn the_shells_parse_their_completions() {
    parses("bash", &completions::bash());
    parses("zsh", &completions::zsh());
    parses("fish", &completions::fish());
    for script in [completions::bash(), completions::zsh(), completions::fish()] {
        for word in ["drain", "unbind", "deadline", "state-dir", "json-file"] {
            assert!(script.contains(word), "{word} in {script}");
        }
    }
}
