//! The engine room against a real engine. Which one, the environment says:
//! `VECTORLAY_TEST_CLI` (absolute path of a CLI or of a wrapper around one), `VECTORLAY_TEST_ENGINE` (`docker` or
//! `nerdctl`), `VECTORLAY_TEST_IMAGE` (one with busybox's /bin/sleep, /bin/sh and /bin/cat). Without them the tests
//! are skipped, and counted as skipped. `VECTORLAY_TEST_REGISTRY_AUTH`, `…_USER` and `…_PASSWORD` name a registry that
//! has `busybox:1` for that user only.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

use crate::support::skip::skip;
use vectorlay::core::inventory::GpuUse;
use vectorlay::core::inventory::Handover;
use vectorlay::core::job::{
    Failure, FailureKind, InspectedState, Job, JobId, LABEL_DEPLOY, LABEL_GPUS, LABEL_REPLICA, Listed,
    ListedStatus, Outcome, PullCause, PullJob, RunJob, Vendor,
};
use vectorlay::engine::cli::{Cli, DEFAULT_PATH, Flavour, LogChoice};
use vectorlay::engine::image_policy::Checked;
use vectorlay::engine::watcher::{Event, Watcher};
use vectorlay::engine::{OVERDUE, Pool, Settings};
use vectorlay::process::{self, Bounds, Program};
use vectorlay::types::{ContainerId, EnvName, ImageRef, PciAddress, RegistryAuth, Secret, Spec};

const LONG: Duration = Duration::from_secs(120);

struct Bench {
    cli: Cli,
    image: ImageRef,
    pool: Pool,
    outcomes: Receiver<(JobId, Outcome)>,
    next: std::cell::Cell<u64>,
    scratch: PathBuf,
}

/// The engine, unless there is none to test with.
fn bench(test: &str, change: impl FnOnce(&mut Cli)) -> Option<Bench> {
    let variable = |name: &str| std::env::var(name).ok().filter(|value| !value.is_empty());
    let (Some(path), Some(engine)) = (variable("VECTORLAY_TEST_CLI"), variable("VECTORLAY_TEST_ENGINE"))
    else {
        skip(test, "VECTORLAY_TEST_CLI and VECTORLAY_TEST_ENGINE are not set");
        return None;
    };
    let mut cli = Cli {
        path: path.into(),
        flavour: if engine == "docker" { Flavour::Docker } else { Flavour::Nerdctl },
        namespace: None,
        address: None,
        cni_path: None,
        ctr: None,
        network: Some("none".into()),
        port_address: None,
        runtime: "io.containerd.kata.v2".into(),
        oom_score_adj: 500,
        handover: Handover::Vfio,
        log: LogChoice::JsonFile { max_mib: 1, files: 2 },
        search_path: DEFAULT_PATH.into(),
        home: "/root".into(),
        docker_config: "/run/vectorlay/no-logins".into(),
    };
    change(&mut cli);
    let scratch = std::env::temp_dir().join(format!("vectorlay-real-{test}-{}", std::process::id()));
    let settings = Settings {
        cli: cli.clone(),
        deploys: 2,
        stops: 2,
        queries: 2,
        scratch: scratch.clone(),
        pull_stall: None,
        overdue: OVERDUE,
        root: "/".into(),
        oom_killed: |_, _| false,
    };
    let (told, outcomes) = channel();
    let told = std::sync::Mutex::new(told);
    let sink = Arc::new(move |id, outcome| told.lock().unwrap().send((id, outcome)).unwrap());
    let pool = Pool::start(settings, sink).unwrap();
    let image = ImageRef::new(&variable("VECTORLAY_TEST_IMAGE").unwrap_or("bb:1".into())).unwrap();
    Some(Bench { cli, image, pool, outcomes, next: 1.into(), scratch })
}

impl Bench {
    fn ask(&self, job: Job) -> Outcome {
        let id = JobId(self.next.replace(self.next.get() + 1));
        self.pool.submit(id, job);
        let (answered, outcome) = self.outcomes.recv_timeout(LONG).unwrap();
        assert_eq!(answered, id);
        outcome
    }

    fn job(&self, replica: &str, command: &[&str]) -> RunJob {
        RunJob {
            name: format!("replica-{replica}"),
            spec: Spec {
                command: command.iter().map(|arg| (*arg).to_owned()).collect(),
                ..Spec::new(self.image.clone())
            },
            labels: vec![(LABEL_REPLICA, replica.into()), (LABEL_DEPLOY, format!("deploy-{replica}"))],
            gpus: vec![],
            ended_by_reboot: [].into(),
            deadline: LONG,
        }
    }

    fn run(&self, job: RunJob) -> Result<ContainerId, Failure> {
        match self.ask(Job::Run(Box::new(job))) {
            Outcome::Ran(result) => result,
            other => panic!("{other:?}"),
        }
    }

    fn list(&self, replica: &str) -> Vec<Listed> {
        match self.ask(Job::List) {
            Outcome::Listed(Ok(list)) => {
                list.into_iter().filter(|listed| listed.replica == replica).collect()
            }
            other => panic!("{other:?}"),
        }
    }

    fn state(&self, id: &ContainerId) -> InspectedState {
        match self.ask(Job::Inspect(id.clone())) {
            Outcome::Inspected(Ok(Some(inspected))) => inspected.state,
            other => panic!("{other:?}"),
        }
    }

    fn remove(&self, id: &ContainerId) {
        assert_eq!(self.ask(Job::Remove(id.clone())), Outcome::Removed(Ok(())));
    }

    fn remove_all(&self, replica: &str) {
        for listed in self.list(replica) {
            self.remove(&listed.id);
        }
        assert_eq!(self.list(replica), []);
    }

    /// What a command inside a container prints.
    fn inside(&self, id: &ContainerId, command: &[&str]) -> Vec<u8> {
        self.call(&[&["exec", id.as_str()], command].concat())
    }

    /// What the CLI prints.
    fn call(&self, args: &[&str]) -> Vec<u8> {
        let args = args.iter().map(Into::into).collect();
        let env = vec![("PATH".into(), DEFAULT_PATH.into()), ("HOME".into(), "/root".into())];
        let program = Program { path: self.cli.path.clone(), args, env, input: None };
        let bounds = Bounds { deadline: LONG, grace: LONG, output: 4 << 20, tail: false };
        process::run(&program, &bounds, None).unwrap().stdout
    }
}

impl Drop for Bench {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.scratch);
    }
}

#[test]
fn variables_arrive_byte_for_byte() {
    let Some(bench) = bench("variables_arrive_byte_for_byte", |_| {}) else { return };
    let long = "x".repeat(100 * 1024);
    let variables = [
        ("EMPTY", ""),
        ("LINES", "one\ntwo\n"),
        ("CRLF", "one\r\ntwo\r\n"),
        ("QUOTES", "\"double\" 'single' `back`"),
        ("LEADING", "  \tx"),
        ("TRAILING", "x \t "),
        ("UNICODE_SPACE", "x\u{a0}"),
        ("HASH", "# no comment"),
        ("EQUALS", "a=b=c"),
        ("UTF8", "grüße 日本 🦀"),
        ("BACKSLASH", "a\\nb\\"),
        ("DOLLAR", "$HOME ${HOME} $(id)"),
        ("COMMA", "a,b,\"c"),
        ("CONTROL", "a\u{1b}[31m\u{1}b"),
        ("JSON", "{\"a\": [1, \"two\"]}"),
        ("lower.case-name", "x"),
        ("LONG", &long),
        ("PATH", "/tenant/bin"),
        ("HOME", "/tenant"),
        ("LD_PRELOAD", "/tenant.so"),
        ("NERDCTL_TOML", "/etc/passwd"),
        ("CONTAINERD_NAMESPACE", "other"),
        ("DOCKER_HOST", "tcp://127.0.0.1:1"),
        ("HTTP_PROXY", "http://127.0.0.1:1"),
        ("TMPDIR", "/no/such"),
    ];
    let mut job = bench.job("env", &["/bin/sleep", "1000"]);
    job.spec.env = variables.map(|(n, v)| (EnvName::new(n).unwrap(), Secret::new(v.into()))).to_vec();
    let id = bench.run(job).unwrap();
    let environ = bench.inside(&id, &["/bin/cat", "/proc/1/environ"]);
    bench.remove(&id);
    let seen: Vec<&str> = environ.split(|b| *b == 0).map(|v| std::str::from_utf8(v).unwrap()).collect();
    for (name, value) in variables {
        let expected = format!("{name}={value}");
        let got = seen.iter().find(|v| v.split('=').next() == Some(name));
        assert_eq!(got, Some(&expected.as_str()), "{name}");
    }
}

#[test]
fn the_commands_arguments_are_no_flags() {
    let Some(bench) = bench("the_commands_arguments_are_no_flags", |_| {}) else { return };
    let script = "for a; do echo \"[$a]\"; done; echo to stderr >&2; exit 7";
    let odd = ["--privileged", "", "-v", "--", "two\nlines", "$HOME", "ä"];
    let command: Vec<&str> = ["/bin/sh", "-c", script, "sh"].into_iter().chain(odd).collect();
    let id = bench.run(bench.job("args", &command)).unwrap();
    let until = Instant::now() + LONG;
    while bench.state(&id) != InspectedState::Exited(7) {
        assert!(Instant::now() < until, "it never ended");
    }
    let Outcome::Logs(Ok((mut lines, false))) = bench.ask(Job::Logs(id.clone(), 100)) else { panic!() };
    bench.remove(&id);
    lines.retain(|line| line != "to stderr");
    assert_eq!(lines, ["[--privileged]", "[]", "[-v]", "[--]", "[two", "lines]", "[$HOME]", "[ä]"]);
}

#[test]
fn a_container_from_start_to_removal() {
    let Some(bench) = bench("a_container_from_start_to_removal", |_| {}) else { return };
    let mut job = bench.job("life", &["/bin/sh", "-c", "trap 'exit 3' TERM; while :; do sleep 1; done"]);
    job.spec.memory_mib = Some(64);
    job.spec.millicpus = Some(500);
    job.spec.shm_mib = Some(16);
    job.spec.pids_limit = Some(32);
    job.labels.push((LABEL_GPUS, "0000:41:00.0".into()));
    let id = bench.run(job).unwrap();
    let listed = bench.list("life");
    assert_eq!((listed.len(), &listed[0].id, &listed[0].status), (1, &id, &ListedStatus::Up));
    assert_eq!(listed[0].gpus, [PciAddress::parse("41:00.0").unwrap()]);
    assert_eq!((listed[0].deploy.as_str(), listed[0].spec.as_str()), ("deploy-life", ""));
    let InspectedState::Running(Some(pid)) = bench.state(&id) else { panic!() };

    // Its end is known at once.
    let (told, events) = channel();
    let watcher = Watcher::start(0, move |event| told.send(event).unwrap()).unwrap();
    watcher.watch(id.clone(), pid);
    assert!(events.recv_timeout(Duration::from_millis(300)).is_err());

    // The name is taken as long as it is there, and a second one of that name leaves nothing.
    let clash = bench.run(bench.job("life", &["/bin/sleep", "1"])).unwrap_err();
    assert_eq!(clash.kind, FailureKind::NameTaken, "{clash}");
    assert_eq!(bench.list("life").len(), 1);

    let stop = || bench.ask(Job::Stop(id.clone(), Duration::from_secs(20)));
    assert_eq!(stop(), Outcome::Stopped(Ok(())));
    assert_eq!(events.recv_timeout(LONG).unwrap(), Event::Exited(id.clone()));
    assert_eq!(bench.state(&id), InspectedState::Exited(3));
    assert_eq!(bench.list("life")[0].status, ListedStatus::Exited(3));
    assert_eq!(stop(), Outcome::Stopped(Ok(())), "an ended one is stopped");

    bench.remove(&id);
    bench.remove(&id);
    assert_eq!(bench.ask(Job::Inspect(id.clone())), Outcome::Inspected(Ok(None)));
    let Outcome::Stopped(Err(gone)) = stop() else { panic!() };
    assert_eq!(gone.kind, FailureKind::NoSuchContainer, "{gone}");
    let Outcome::Logs(Err(gone)) = bench.ask(Job::Logs(id.clone(), 1)) else { panic!() };
    assert_eq!(gone.kind, FailureKind::NoSuchContainer, "{gone}");
}

#[test]
fn images_are_listed_oldest_first_and_only_unused_ones_are_removed() {
    let Some(bench) = bench("images_are_listed_oldest_first_and_only_unused_ones_are_removed", |_| {}) else {
        return;
    };
    let spare = ImageRef::new("vectorlay-spare:1").unwrap();
    let place = |image: &ImageRef| {
        let Outcome::Images(Ok(images)) = bench.ask(Job::Images) else { panic!("no images") };
        images.iter().position(|listed| listed == image)
    };
    let remove = |image: &ImageRef| {
        let Outcome::ImageRemoved(result) = bench.ask(Job::RemoveImage(image.clone())) else { panic!() };
        result
    };
    let first = bench.run(bench.job("image", &["/bin/sleep", "1000"])).unwrap();
    bench.call(&["commit", first.as_str(), spare.as_str()]);
    bench.remove(&first);
    let mut job = bench.job("image", &["/bin/sleep", "1000"]);
    job.spec.image = spare.clone();
    let id = bench.run(job).unwrap();
    assert!(place(&bench.image) < place(&spare), "the older one comes first");
    assert!(place(&bench.image).is_some());
    remove(&spare).unwrap_err();
    assert_eq!(bench.ask(Job::Stop(id.clone(), Duration::ZERO)), Outcome::Stopped(Ok(())));
    remove(&spare).unwrap_err();
    assert_eq!(bench.list("image").len(), 1, "its log can still be read");
    bench.remove(&id);
    remove(&spare).unwrap();
    assert_eq!(place(&spare), None);
    assert!(place(&bench.image).is_some());

    // One that was pulled by its digest has no tag.
    let Ok(registry) = std::env::var("VECTORLAY_TEST_REGISTRY") else { return };
    let pull = |image: &str| {
        let image = ImageRef::new(image).unwrap();
        let job = PullJob { image: image.clone(), auth: None, deadline: LONG };
        assert_eq!(bench.ask(Job::Pull(Box::new(job))), Outcome::Pulled(Ok(())));
        image
    };
    let tagged = pull(&format!("{registry}/busybox:1"));
    let listed = bench.call(&["images", "--digests", "--format={{.Repository}}:{{.Tag}} {{.Digest}}"]);
    let listed = String::from_utf8(listed).unwrap();
    let digest =
        listed.lines().find_map(|line| line.strip_prefix(tagged.as_str())).unwrap().trim().to_owned();
    remove(&tagged).unwrap();
    let pinned = pull(&format!("{registry}/busybox@{digest}"));
    assert!(place(&pinned).is_some());
    let mut job = bench.job("pinned", &["/bin/sleep", "1000"]);
    job.spec.image = pinned.clone();
    let id = bench.run(job).unwrap();
    // Docker lets go of one of an image's names, and keeps the image.
    if bench.cli.flavour == Flavour::Nerdctl {
        remove(&pinned).unwrap_err();
        bench.remove(&id);
    }
    remove(&pinned).unwrap();
    assert_eq!(place(&pinned), None);
    bench.remove(&id);
}

#[test]
fn guests_are_asked_how_busy_their_gpus_are() {
    let Some(bench) = bench("guests_are_asked_how_busy_their_gpus_are", |_| {}) else { return };
    let id = bench.run(bench.job("guest", &["/bin/sleep", "1000"])).unwrap();
    let ask = |vendor| bench.ask(Job::GuestUse(id.clone(), vendor));
    let Outcome::GuestUse(Err(_)) = ask(Vendor::Nvidia) else { panic!("an answer without nvidia-smi") };
    assert_eq!(ask(Vendor::Amd), Outcome::GuestUse(Ok(vec![])));
    let smi = "#!/bin/sh\n[ \"$2\" = --format=csv,noheader,nounits ] && echo '37, 1024, 81559'\n";
    bench.inside(
        &id,
        &["/bin/sh", "-c", "printf '%s' \"$0\" > /bin/nvidia-smi && chmod +x /bin/nvidia-smi", smi],
    );
    let known = GpuUse { source: "guest", busy_percent: Some(37), memory_mib: Some((1024, 81_559)) };
    assert_eq!(ask(Vendor::Nvidia), Outcome::GuestUse(Ok(vec![known])));
    // One that hangs, whatever it is told, does not stay in the container.
    let hangs = "#!/bin/sh\ntrap : TERM\nwhile :; do sleep 1000; done\n";
    bench.inside(&id, &["/bin/sh", "-c", "printf '%s' \"$0\" > /bin/nvidia-smi", hangs]);
    let Outcome::GuestUse(Err(_)) = ask(Vendor::Nvidia) else { panic!("an answer from one that hangs") };
    let processes = || String::from_utf8(bench.inside(&id, &["/bin/busybox", "ps"])).unwrap();
    assert!(processes().contains("/bin/sleep 1000"));
    let until = Instant::now() + LONG;
    while processes().contains("nvidia-smi --query") {
        assert!(Instant::now() < until, "it is still at work");
    }
    bench.remove(&id);
}

#[test]
fn failures_are_told_apart() {
    let Some(bench) = bench("failures_are_told_apart", |_| {}) else { return };
    let missing = ImageRef::new("127.0.0.1:1/missing:1").unwrap();
    let mut job = bench.job("missing", &[]);
    job.spec.image = missing.clone();
    let failure = bench.run(job).unwrap_err();
    assert_eq!(failure.kind, FailureKind::NoImage, "{failure}");
    let auth = RegistryAuth {
        server: "127.0.0.1:1".into(),
        username: "u".into(),
        password: Secret::new("hunter2".into()),
    };
    let pull = Job::Pull(Box::new(PullJob { image: missing, auth: Some(auth), deadline: LONG }));
    let Outcome::Pulled(Err(failure)) = bench.ask(pull) else { panic!() };
    assert_eq!(failure.kind, FailureKind::PullRefused(PullCause::Unreachable), "{failure}");
    assert!(failure.message.contains("connection refused"), "{failure}");

    // A command that is not there: whatever is left is found by its label and removed by its ID.
    let failure = bench.run(bench.job("command", &["/no/such"])).unwrap_err();
    assert_eq!(failure.kind, FailureKind::Refused, "{failure}");
    assert!(failure.message.contains("/no/such"), "{failure}");
    for listed in bench.list("command") {
        assert_eq!(bench.state(&listed.id), InspectedState::NoTask);
    }
    bench.remove_all("command");
}

#[test]
fn a_pull_with_credentials() {
    let name = "a_pull_with_credentials";
    let Some(bench) = bench(name, |_| {}) else { return };
    let variable = |part: &str| std::env::var(format!("VECTORLAY_TEST_REGISTRY_{part}"));
    let (Ok(server), Ok(username), Ok(password)) = (variable("AUTH"), variable("USER"), variable("PASSWORD"))
    else {
        return skip(name, "VECTORLAY_TEST_REGISTRY_AUTH, _USER and _PASSWORD are not set");
    };
    let pull = |password: Option<&str>| {
        let auth = password.map(|password| RegistryAuth {
            server: server.clone(),
            username: username.clone(),
            password: Secret::new(password.into()),
        });
        let image = ImageRef::new(&format!("{server}/busybox:1")).unwrap();
        match bench.ask(Job::Pull(Box::new(PullJob { image, auth, deadline: LONG }))) {
            Outcome::Pulled(result) => result.map_err(|failure| failure.kind),
            other => panic!("{other:?}"),
        }
    };
    let unauthorized = Err(FailureKind::PullRefused(PullCause::Unauthorized));
    assert_eq!(pull(None), unauthorized);
    assert_eq!(pull(Some("wrong")), unauthorized);
    assert_eq!(pull(Some(&password)), Ok(()));
    let left = std::fs::read_dir(&bench.scratch).unwrap().count();
    assert_eq!(left, 0, "no credentials stay");
}

#[test]
fn a_missing_runtime() {
    let Some(bench) = bench("a_missing_runtime", |cli| cli.runtime = "io.containerd.nope.v2".into()) else {
        return;
    };
    let failure = bench.run(bench.job("runtime", &["/bin/sleep", "1"])).unwrap_err();
    assert_eq!(failure.kind, FailureKind::Refused, "{failure}");
    bench.remove_all("runtime");
}

#[test]
fn the_names_of_gpus_are_read_one_by_one() {
    let name = "the_names_of_gpus_are_read_one_by_one";
    let Some(bench) = bench(name, |cli| cli.handover = Handover::Nvidia) else { return };
    if bench.cli.flavour != Flavour::Docker {
        return skip(name, "nerdctl takes --gpus only where NVIDIA's tools are");
    }
    let mut job = bench.job("gpus", &["/bin/sleep", "1"]);
    let gpu = |bus: &str, uuid: &str| (PciAddress::parse(&format!("{bus}:00.0")).unwrap(), uuid.to_owned());
    job.gpus = vec![gpu("41", "GPU-a"), gpu("42", "GPU-b")];
    let image = Checked { id: bench.image.canonical().to_owned(), masked: vec![], no_healthcheck: false };
    let (mut program, bounds) = bench.cli.run(&job, &image, LONG).unwrap();
    // Made, but not started: that would take the GPUs.
    program.args.retain(|word| word != "--detach");
    let run = program.args.iter_mut().find(|word| *word == "run").unwrap();
    *run = "create".into();
    let made = process::run(&program, &bounds, None).unwrap();
    let id = ContainerId::new(String::from_utf8_lossy(&made.stdout).trim()).unwrap();
    let format = "--format={{json .HostConfig.DeviceRequests}}";
    program.args = ["container", "inspect", format, id.as_str()].map(Into::into).to_vec();
    program.input = None;
    let told = process::run(&program, &bounds, None).unwrap().stdout;
    bench.remove(&id);
    let told: serde_json::Value = serde_json::from_slice(&told).unwrap();
    assert_eq!(told[0]["DeviceIDs"], serde_json::json!(["GPU-a", "GPU-b"]), "{told}");
    assert_eq!(told.as_array().unwrap().len(), 1, "{told}");
}

/// A CDI specification in one of the folders for them; what was made goes when it is dropped.
struct CdiSpec {
    file: PathBuf,
    made: bool,
}

impl CdiSpec {
    fn new(folder: &str, vendor: &str, text: &str) -> Self {
        let folder = PathBuf::from(folder);
        let made = !folder.exists();
        std::fs::create_dir_all(&folder).unwrap();
        let file = folder.join(format!("{vendor}.yaml"));
        std::fs::write(&file, text).unwrap();
        Self { file, made }
    }
}

impl Drop for CdiSpec {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.file);
        if self.made {
            let _ = std::fs::remove_dir(self.file.parent().unwrap());
        }
    }
}

/// A specification of one device `0`, whose node in a container is /dev/vectorlay-gpu.
fn cdi_spec(version: &str, vendor: &str, node: &str) -> String {
    format!(
        "cdiVersion: {version}\nkind: {vendor}/gpu\ncontainerEdits:\n  env:\n  - A=b\ndevices:\n- name: \"0\"\n  \
         containerEdits:\n    deviceNodes:\n    - path: /dev/vectorlay-gpu\n      hostPath: {node}\n"
    )
}

#[test]
fn a_gpu_by_its_cdi_name() {
    let name = "a_gpu_by_its_cdi_name";
    let Some(bench) = bench(name, |cli| cli.handover = Handover::Cdi) else { return };
    let version = String::from_utf8(bench.call(&["--version"])).unwrap();
    if ["nerdctl version 2.", "nerdctl version v2."].iter().all(|word| !version.starts_with(word))
        || version.contains(" 2.0.")
    {
        return skip(name, &format!("{version} takes no CDI names"));
    }
    let gpu = PciAddress::parse("41:00.0").unwrap();
    let vendor = format!("vectorlay-test-{}.example", std::process::id());
    let run = |device: &str| {
        let mut job = bench.job("cdi", &["/bin/sleep", "1000"]);
        job.gpus = vec![(gpu, device.to_owned())];
        let ran = bench.run(job);
        let listed = ran.as_ref().map(|id| bench.inside(id, &["/bin/sh", "-c", "ls -l /dev/vectorlay-gpu"]));
        let listed = listed.map(|listed| String::from_utf8(listed).unwrap()).map_err(ToString::to_string);
        bench.remove_all("cdi");
        listed
    };
    // A node that every host has stands for the GPU's.
    let _spec = CdiSpec::new("/var/run/cdi", &vendor, &cdi_spec("0.5.0", &vendor, "/dev/null"));
    let listed = run(&format!("{vendor}/gpu=0")).unwrap();
    assert!(listed.starts_with("crw") && listed.contains("1,   3"), "{listed}");
    // Whether there is such a device is the CLI's judgement.
    let refused = run(&format!("{vendor}/gpu=1")).unwrap_err();
    assert!(refused.contains("unresolvable CDI devices"), "{refused}");
}

#[test]
fn logs_in_a_file_of_the_shims() {
    let name = "logs_in_a_file_of_the_shims";
    let dir = std::env::temp_dir().join(format!("vectorlay-real-logs-{}", std::process::id()));
    let Some(bench) = bench(name, |cli| cli.log = LogChoice::File { dir: dir.clone() }) else { return };
    if bench.cli.flavour == Flavour::Docker {
        return skip(name, "Docker has no file:// log driver");
    }
    std::fs::create_dir_all(&dir).unwrap();
    let id =
        bench.run(bench.job("logfile", &["/bin/sh", "-c", "echo out; echo err >&2; sleep 1000"])).unwrap();
    let until = Instant::now() + LONG;
    loop {
        let Outcome::Logs(Ok((mut lines, false))) = bench.ask(Job::Logs(id.clone(), 10)) else { panic!() };
        // The shim copies two pipes side by side: in which order is its own business.
        lines.sort_unstable_by(|a, b| b.cmp(a));
        if lines == ["out", "err"] {
            break;
        }
        assert!(Instant::now() < until, "{lines:?}");
    }
    assert!(dir.join("deploy-logfile.log").exists());
    bench.remove(&id);
    std::fs::remove_dir_all(dir).unwrap();
}
