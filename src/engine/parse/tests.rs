use super::*;
use crate::core::job::{PullCause, PullJob, RunJob};
use crate::types::{EnvName, ImageRef, RegistryAuth, Secret, Spec};
use std::time::Duration;

fn id() -> ContainerId {
    ContainerId::new(&"ab".repeat(32)).unwrap()
}

fn run() -> Job {
    let spec = Spec {
        env: vec![(EnvName::new("A").unwrap(), Secret::new("hunter2".into()))],
        command: vec!["dial unix image not available".into()],
        ..Spec::new(ImageRef::new("bb:1").unwrap())
    };
    Job::Run(Box::new(RunJob {
        name: "replica-r".into(),
        spec,
        labels: vec![],
        gpus: vec![],
        ended_by_reboot: [].into(),
        deadline: Duration::from_secs(1),
    }))
}

fn pull() -> Job {
    let auth =
        RegistryAuth { server: "s".into(), username: "u".into(), password: Secret::new("hunter2".into()) };
    Job::Pull(Box::new(PullJob {
        image: ImageRef::new("bb:1").unwrap(),
        auth: Some(auth),
        deadline: Duration::from_secs(1),
    }))
}

fn answer(job: &Job, ended: Ended, stdout: &str, stderr: &str) -> Outcome {
    let finished = Finished {
        ended,
        stdout: stdout.into(),
        stdout_cut: false,
        stderr: stderr.into(),
        stderr_cut: false,
        took: Duration::from_secs(7),
    };
    outcome(job, &Ok(finished))
}

fn fatal(text: &str) -> String {
    format!("time=\"t\" level=fatal msg=\"{text}\"\n")
}

#[test]
fn images_by_tag_or_digest_the_oldest_first() {
    let digest = format!("sha256:{}", "ab".repeat(32));
    let said = format!(
        "2026-11-24 11:46:10 +0000 UTC\treg.example:5000/a\t1\t{digest}\n\
         2026-11-24 11:46:09 +0000 UTC\tb\t<none>\t{digest}\n\
         2026-11-24 11:46:09 +0000 UTC\tc\t2\t<none>\n\
         2026-11-23 00:00:00 +0000 UTC\t<none>\t<none>\t{digest}\n\
         2026-11-22 00:00:00 +0000 UTC\td\t<none>\t<none>\n\nno image\n"
    );
    let Outcome::Images(Ok(images)) = answer(&Job::Images, Ended::Exit(0), &said, "") else { panic!() };
    let names: Vec<&str> = images.iter().map(ImageRef::as_str).collect();
    assert_eq!(names, ["c:2", &format!("b@{digest}"), "reg.example:5000/a:1"]);
}

#[test]
fn guests_say_how_busy_their_gpus_are() {
    type Known = (Option<u8>, Option<(u64, u64)>);
    let check = |vendor, said: &str, expected: &[Known]| {
        let Outcome::GuestUse(Ok(uses)) = answer(&Job::GuestUse(id(), vendor), Ended::Exit(0), said, "")
        else {
            panic!("no answer")
        };
        let found: Vec<_> = uses.iter().map(|gpu| (gpu.busy_percent, gpu.memory_mib)).collect();
        assert_eq!(found, expected, "{said:?}");
    };
    check(
        Vendor::Nvidia,
        "95, 745, 81559\n0, 1, 81559\n",
        &[(Some(95), Some((745, 81559))), (Some(0), Some((1, 81559)))],
    );
    check(
        Vendor::Nvidia,
        "[N/A], 745, 81559\n101, [N/A], 5\n7\n",
        &[(None, Some((745, 81559))), (Some(7), None)],
    );
    check(Vendor::Nvidia, "No devices were found\n\n", &[]);
    check(Vendor::Amd, "31, 1073741824, 206141652992\n, ,\n", &[(Some(31), Some((1024, 196_592)))]);
}

#[test]
fn failures_by_kind() {
    let check = |job: &Job, stderr: &str, kind: FailureKind, words: &str| {
        let failure = match answer(job, Ended::Exit(1), "", stderr) {
            Outcome::Ran(Err(f)) | Outcome::Pulled(Err(f)) | Outcome::Stopped(Err(f)) => f,
            Outcome::Listed(Err(f)) | Outcome::Inspected(Err(f)) | Outcome::Removed(Err(f)) => {
                panic!("{f:?}")
            }
            other => panic!("{other:?}"),
        };
        assert_eq!((failure.kind, failure.message.as_str()), (kind, words), "{stderr}");
    };
    use FailureKind::{NameReserved, NameTaken, NoImage, NoSuchContainer, PullRefused, Refused, Unavailable};
    let full = "failed to create shim task: mkdir /run/x: no space left on device";
    check(&run(), &fatal(full), FailureKind::NoSpace, full);
    let stop = Job::Stop(id(), Duration::ZERO);
    check(&run(), &fatal("image not available: \\\"bb:1\\\""), NoImage, "image not available: \"bb:1\"");
    check(
        &run(),
        "docker: Error response from daemon: No such image: bb:1\n\nRun 'docker run --help'",
        NoImage,
        "No such image: bb:1",
    );
    check(
        &run(),
        &fatal(&format!("name-store error\\nname \\\"dup\\\" is already used by ID \\\"{}\\\"", id())),
        NameTaken,
        &format!("name-store error name \"dup\" is already used by ID \"{}\"", id()),
    );
    // nerdctl 1.7, after a power cut.
    check(
        &run(),
        &fatal("name \\\"dup\\\" is already used by ID \\\"\\\""),
        NameReserved,
        "name \"dup\" is already used by ID \"\"",
    );
    check(
        &run(),
        "docker: Error response from daemon: Conflict. The container name \"/r1\" is already in use by container \"6d\". You have to remove (or rename) that container to be able to reuse that name.",
        NameTaken,
        "Conflict. The container name \"/r1\" is already in use by container \"6d\".",
    );
    let refused =
        "connection error: desc = x dial unix /run/containerd/containerd.sock: connect: connection refused";
    check(&run(), &fatal(refused), Unavailable, refused);
    check(
        &stop,
        &fatal("cannot access containerd socket: no such file"),
        Unavailable,
        "cannot access containerd socket: no such file",
    );
    check(
        &stop,
        "Cannot connect to the Docker daemon at unix:///x. Is it running?",
        Unavailable,
        "Cannot connect to the Docker daemon at unix:///x. Is it running?",
    );
    let registry = "failed to do request: Head x: dial tcp 127.0.0.1:1: connect: connection refused";
    check(&pull(), &fatal(registry), PullRefused(PullCause::Unreachable), registry);
    check(
        &stop,
        &fatal("1 errors:\\nno such container: ab"),
        NoSuchContainer,
        "1 errors: no such container: ab",
    );
    check(
        &stop,
        "Error response from daemon: No such container: ab",
        NoSuchContainer,
        "No such container: ab",
    );
    // What a tenant wrote decides nothing, and what he keeps secret does not come out.
    let tenants = "exec: \\\"dial unix image not available\\\" hunter2: no such file";
    check(&run(), &fatal(tenants), Refused, "exec: \"dial unix image not available\" ***: no such file");
    // An escape in the middle, plain or in Go's quoting, also in a log that lies inside another one.
    for split in
        ["bad hun\u{1b}[1mter2", &fatal("bad hun\\x1b[1mter2"), &fatal("bad hun\\x1b[1m\\x1b[0mter2")]
    {
        check(&run(), split, Refused, "bad ***");
    }
    let inner = fatal("bad hun\\x1b[1mter2").replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "");
    check(&run(), &fatal(&format!("hook failed, stderr: {inner}")), Refused, "hook failed: bad ***");
    check(&pull(), "unauthorized: hunter2", PullRefused(PullCause::Unauthorized), "unauthorized: ***");
    check(&stop, "", Refused, "the engine's stop ended with status 1 and said nothing; see the engine's log");
}

/// The CLI's output is kept up to a bound, and what is cut off may be the image's.
#[test]
fn an_image_that_takes_too_much_to_show_is_not_run() {
    let finished = Finished {
        ended: Ended::Exit(0),
        stdout: b"{\"Image\": {\"Name\": \"".to_vec(),
        stdout_cut: true,
        stderr: Vec::new(),
        stderr_cut: false,
        took: Duration::from_secs(1),
    };
    let failure =
        facts(Flavour::Nerdctl, &run(), &ImageRef::new("bb:1").unwrap(), &Ok(finished)).unwrap_err();
    assert!(failure.message.contains("it prints too much"), "{failure}");
}

#[test]
fn ended_from_outside() {
    let check = |ended, kind, words: &str| {
        let Outcome::Pulled(Err(failure)) = answer(&pull(), ended, "", "layer 1") else { panic!() };
        assert_eq!((failure.kind, failure.message.as_str()), (kind, words));
    };
    check(Ended::Deadline, FailureKind::Deadline, "the engine's pull did not finish within 7 s: layer 1");
    check(Ended::Cancelled, FailureKind::Deadline, "the engine's pull was cancelled after 7 s");
    let stalled = "the engine's pull was given up after 7 s, since nothing came from the registry for as long as \
                   pull_stall_s allows; look at the registry and the way to it";
    check(Ended::Stalled, FailureKind::PullRefused(PullCause::Unreachable), stalled);
    check(Ended::Signal(9), FailureKind::Refused, "the engine's pull was ended by signal 9: layer 1");
    let missing = outcome(&Job::List, &Err("cannot start /x".into()));
    assert!(matches!(missing, Outcome::Listed(Err(Failure { kind: FailureKind::Unavailable, .. }))));
}

#[test]
fn a_run_gives_the_last_line() {
    let check = |stdout: &str, good: bool| {
        let Outcome::Ran(result) = answer(&run(), Ended::Exit(0), stdout, "") else { panic!() };
        assert_eq!(result.ok(), good.then(id), "{stdout}");
    };
    check(&format!("{}\n", id()), true);
    check(&format!("line 0\n{}\n\n", id()), true);
    check("", false);
    check(id().short(), false);
}

#[test]
fn a_removal_is_believed_only_with_its_echo() {
    let check = |ended, stdout: &str, stderr: &str, done: Result<(), FailureKind>| {
        let Outcome::Removed(result) = answer(&Job::Remove(id()), ended, stdout, stderr) else { panic!() };
        assert_eq!(result.map_err(|f| f.kind), done, "{stdout} {stderr}");
    };
    let full = format!("{}\n", id());
    check(Ended::Exit(0), &full, "", Ok(()));
    check(Ended::Exit(0), "", "time=\"t\" level=error msg=\"1 errors:\\nno such container: ab\"", Ok(()));
    check(Ended::Exit(1), "", "Error response from daemon: No such container: ab", Ok(()));
    check(Ended::Exit(0), "", "", Err(FailureKind::Refused));
    check(
        Ended::Exit(0),
        "",
        "time=\"t\" level=error msg=\"1 errors:\\nconnection error: desc = x\"",
        Err(FailureKind::Unavailable),
    );
    check(Ended::Deadline, &full, "", Err(FailureKind::Deadline));
}

#[test]
fn pulls_that_failed_for_a_certain_reason() {
    let check = |error: &str, cause: Option<PullCause>| {
        let Outcome::Pulled(Err(failure)) = answer(&pull(), Ended::Exit(1), "", &fatal(error)) else {
            panic!("{error}")
        };
        assert_eq!(failure.kind, cause.map_or(FailureKind::Refused, FailureKind::PullRefused), "{error}");
    };
    use PullCause::{NoSpace, NotFound, RateLimited, Tls, Unauthorized, Unreachable};
    let resolve = "failed to resolve reference \\\"r.example/x:1\\\": ";
    let head = format!("{resolve}failed to do request: Head \\\"https://r.example/v2/x/manifests/1\\\": ");
    // nerdctl 2.3 on containerd 2 pulls by the transfer service: other beginnings, the same ends.
    check(&format!("{resolve}r.example/x:1: not found"), Some(NotFound));
    check("failed to resolve image: r.example/x:1: not found", Some(NotFound));
    // The node's own copy is damaged.
    check(
        "rpc error: code = NotFound desc = blob sha256:ab expected at /x/ab: blob not found: not found",
        None,
    );
    check("manifest for r.example/x:1 not found: manifest unknown: manifest unknown", Some(NotFound));
    check(
        &format!(
            "{resolve}pulling from host r.example failed with status code [manifests 1]: 401 Unauthorized"
        ),
        Some(Unauthorized),
    );
    check("Head \\\"https://r.example/v2/\\\": no basic auth credentials", Some(Unauthorized));
    check(
        &format!(
            "{resolve}pulling from host registry-1.docker.io failed with status code [manifests 1]: 429 Too Many \
         Requests - Server message: toomanyrequests: You have reached your pull rate limit."
        ),
        Some(RateLimited),
    );
    check(&format!("{head}dial tcp: lookup r.example on 10.0.0.53:53: no such host"), Some(Unreachable));
    check(&format!("{head}dial tcp 10.0.0.1:443: i/o timeout"), Some(Unreachable));
    check(&format!("{head}net/http: TLS handshake timeout"), Some(Unreachable));
    check(
        &format!("{head}tls: failed to verify certificate: x509: certificate signed by unknown authority"),
        Some(Tls),
    );
    check(&format!("{head}http: server gave HTTP response to HTTPS client"), Some(Tls));
    check(
        "failed to extract layer sha256:ab: write /usr/lib/x: no space left on device: unknown",
        Some(NoSpace),
    );
    // Docker Hub says this of what does not exist as well.
    check(
        &format!(
            "{resolve}pull access denied, repository does not exist or may require authorization: server \
         message: insufficient_scope: authorization failed"
        ),
        None,
    );
    // What is missing is in containerd's own store.
    check("failed to get reader: content digest sha256:ab: not found", None);
    check("unexpected media type text/html for sha256:ab", None);
}

#[test]
fn lists_are_whole_or_an_error() {
    let check = |lines: &str| {
        let Outcome::Listed(result) = answer(&Job::List, Ended::Exit(0), lines, "") else { panic!() };
        result
    };
    let a = id();
    let good =
        format!("{a}\t\"r\\t1\"\t\"d\"\t\"none\"\t\"0000:41:00.0+42:00.0\"\tExited (137) 2 hours ago\n");
    let listed = check(&good).unwrap();
    assert_eq!(listed.len(), 1);
    assert_eq!((listed[0].replica.as_str(), listed[0].spec.as_str()), ("r\t1", ""));
    assert_eq!((listed[0].gpus.len(), &listed[0].status), (2, &ListedStatus::Exited(137)));
    assert_eq!(check("").unwrap(), []);
    let line = |gpus: &str| format!("{a}\t\"r\"\t\"d\"\t\"s\"\t{gpus}\tUp\n");
    assert!(check(&line("\"none\"")).unwrap()[0].gpus.is_empty());
    assert!(check(&line("\"\"")).unwrap()[0].gpus.is_empty());
    // A replica may have any name: what is missing has another form.
    for name in ["none", "null", "all", "0", "x"] {
        let listed = check(&format!("{a}\t\"{name}\"\t\"d\"\t\"-\"\t\"-\"\tUp\n")).unwrap();
        let found = &listed[0];
        assert_eq!((found.replica.as_str(), found.spec.as_str(), found.gpus.len()), (name, "", 0));
    }
    for bad in [line("\"nonsense\""), line("none"), format!("{a}\tUp\n"), good.replace("ab", "xy")] {
        assert!(check(&format!("{good}{bad}")).is_err(), "{bad}");
    }
}

#[test]
fn statuses() {
    let check = |text: &str, status| assert_eq!(listed_status(text), status, "{text}");
    let unclear = |text: &str| ListedStatus::Unclear(format!("the engine lists it as {text:?}"));
    check("Up", ListedStatus::Up);
    check("Up 2 minutes", ListedStatus::Up);
    check("Up 2 minutes (Paused)", unclear("Up 2 minutes (Paused)"));
    check("Created", ListedStatus::Created);
    check("Exited (0) Less than a second ago", ListedStatus::Exited(0));
    check("Exited (x)", unclear("Exited (x)"));
    check("Restarting (1) 2 seconds ago", unclear("Restarting (1) 2 seconds ago"));
    check("Unknown", unclear("Unknown"));
    check("", unclear(""));
}

#[test]
fn states() {
    let check = |json: &str, state, oom_killed| {
        let answer = answer(&Job::Inspect(id()), Ended::Exit(0), json, "");
        assert_eq!(answer, Outcome::Inspected(Ok(Some(Inspected { state, oom_killed }))), "{json}");
    };
    check(r#"{"Status":"running","Pid":7,"ExitCode":0}"#, InspectedState::Running(Some(7)), None);
    check(r#"{"Status":"running","Pid":0}"#, InspectedState::Running(None), None);
    check(r#"{"Status":"","Pid":0,"ExitCode":0}"#, InspectedState::NoTask, None);
    check(r#"{"Status":"created","OOMKilled":false,"ExitCode":127}"#, InspectedState::NoTask, Some(false));
    check(
        r#"{"Status":"exited","Pid":29508,"ExitCode":137,"OOMKilled":true}"#,
        InspectedState::Exited(137),
        Some(true),
    );
    let unclear = |said: &str| InspectedState::Unclear(said.into());
    check(r#"{"Status":"paused","Running":true}"#, unclear("the engine says that it is \"paused\""), None);
    // containerd 1.x, where a shim does not answer.
    check(
        r#"{"Status":"unknown","Running":false,"Pid":0}"#,
        unclear("the engine says that it is \"unknown\""),
        None,
    );
    let gone = answer(&Job::Inspect(id()), Ended::Exit(1), "", &fatal("1 errors:\\nno such container: ab"));
    assert_eq!(gone, Outcome::Inspected(Ok(None)));
    for bad in ["", "{}", "[]", r#"{"Status":"exited"}"#] {
        let answer = answer(&Job::Inspect(id()), Ended::Exit(0), bad, "");
        assert!(matches!(answer, Outcome::Inspected(Err(_))), "{bad}");
    }
}

#[test]
fn an_empty_status_is_a_lost_task_only_where_nothing_went_wrong() {
    let check = |stderr: &str, state: InspectedState| {
        // As nerdctl 2.2 prints it.
        let json = r#"{"Status":"","Running":false,"Paused":false,"Restarting":false,"Pid":0,"ExitCode":0,"FinishedAt":""}"#;
        let answer = answer(&Job::Inspect(id()), Ended::Exit(0), json, stderr);
        assert_eq!(answer, Outcome::Inspected(Ok(Some(Inspected { state, oom_killed: None }))), "{stderr}");
    };
    let unclear = |said: &str| InspectedState::Unclear(said.into());
    check("", InspectedState::NoTask);
    check(" \n", InspectedState::NoTask);
    check(
        "time=\"t\" level=warning msg=\"failed to inspect Task\" error=\"context deadline exceeded\" id=ab\n",
        unclear("failed to inspect Task: context deadline exceeded"),
    );
    check(
        "time=\"t\" level=warning msg=\"failed to inspect Status\" error=EOF id=ab\n",
        unclear("failed to inspect Status: EOF"),
    );
    check("something new\n", unclear("something new"));
}

#[test]
fn logs_in_order_of_time() {
    let out = "2026-11-24T00:19:22.93Z one\n2026-11-24T00:19:24Z three\n";
    let err = "time=\"t\" level=warning msg=\"x\"\n2026-11-24T00:19:22.936131149Z two words\n2026-11-24T00:19:25.1Z\n";
    let check = |most, expected: &[&str]| {
        let Outcome::Logs(Ok((lines, cut))) = answer(&Job::Logs(id(), most), Ended::Exit(0), out, err) else {
            panic!()
        };
        assert_eq!(
            (lines.as_slice(), cut),
            (&expected.iter().map(|l| (*l).to_owned()).collect::<Vec<_>>()[..], false)
        );
    };
    check(10, &["one", "two words", "three", ""]);
    check(2, &["three", ""]);
    let long = "x".repeat(LOG_MAX / 2);
    assert_eq!(last_lines(&[&long, &long, "y"], 9), (vec![long.clone(), "y".into()], true));
}
