//! Job in, argv out: what each job is on the command line of nerdctl and of Docker's CLI. Pure.
//!
//! Nothing from outside can become a flag: a flag and its value from outside are one argument, positional values (image,
//! container) are of types that begin with a letter or a digit, and both CLIs stop reading flags at the image
//! (`SetInterspersed(false)` in their `run`), so what follows is the container's command, whatever it looks like.

use std::ffi::{OsStr, OsString};
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::env;
use super::image_policy::Checked;
use crate::core::inventory::Handover;
use crate::core::job::{
    Failure, Job, LABEL_DEPLOY, LABEL_GPUS, LABEL_IMAGE, LABEL_NODE, LABEL_PROOF, LABEL_REPLICA, LABEL_SPEC,
    PullJob, RunJob, Vendor, is_deploy_id,
};
use crate::process::{Bounds, Program};
use crate::types::{ContainerId, ImageRef};

/// The PATH of the CLI where no other is configured.
pub const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
/// The value of a label of ours that has nothing to say. It is always written: a container inherits the labels of
/// its image, which a tenant makes, and the CLIs drop an empty value, but one on the command line wins.
/// No value of ours has this form; the word `none` would be one (a replica, or a node, may be called so).
pub const LABEL_NONE: &str = "-";
/// The same until release 0.1.0, in the labels whose values tenants do not choose.
const LABEL_NONE_BEFORE: &str = "none";

/// Whether a label for a deploy, a specification or GPUs says that there is none.
pub fn is_nothing(label: &str) -> bool {
    matches!(label, LABEL_NONE | LABEL_NONE_BEFORE)
}
/// Where containerd listens, and the namespace that nerdctl uses, where nothing is configured.
const DEFAULT_ADDRESS: &str = "/run/containerd/containerd.sock";
const DEFAULT_NAMESPACE: &str = "default";
/// The labels that every container of ours is given.
pub const LABELS: [&str; 6] = [LABEL_REPLICA, LABEL_DEPLOY, LABEL_SPEC, LABEL_GPUS, LABEL_NODE, LABEL_IMAGE];

/// How long a query (list, inspect, logs) may take. The CLI itself gives up on a silent engine after 10 s.
const QUERY_DEADLINE: Duration = Duration::from_secs(20);
/// How long a container may take to say how busy its GPUs are.
const GUEST_DEADLINE: Duration = Duration::from_secs(10);
/// How long the engine may take to say that it is there.
const PROBE_DEADLINE: Duration = Duration::from_secs(10);
/// How long a stop may take beyond the time that the container has for itself.
const STOP_EXTRA: Duration = Duration::from_secs(30);
/// How long a removal may take. Ending one leaks the shim, so it is long.
const REMOVE_DEADLINE: Duration = Duration::from_secs(120);
/// How long an image of a few MB may take to load: the disk may be busy with a pull.
const LOAD_DEADLINE: Duration = Duration::from_secs(120);
/// From SIGTERM until SIGKILL. Neither CLI needs the time.
const GRACE: Duration = Duration::from_secs(3);
/// Size at which json-file changes its file where nothing is configured, in MiB.
pub const DEFAULT_LOG_MIB: u32 = 10;
/// How many files json-file keeps where nothing is configured.
pub const DEFAULT_LOG_FILES: u32 = 3;
/// Bytes kept of a call's streams.
const OUTPUT: usize = 64 * 1024;
/// Bytes kept of a list: 4,000 containers and more.
const LIST_OUTPUT: usize = 2 * 1024 * 1024;
/// Bytes kept of a log.
const LOGS_OUTPUT: usize = 1024 * 1024;

/// Whose vocabulary the CLI speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Flavour {
    /// nerdctl, on containerd.
    Nerdctl,
    /// Docker's CLI.
    Docker,
}

impl Flavour {
    /// From the CLI's file name; `None` when it names neither.
    pub fn of_file(path: &Path) -> Option<Self> {
        let name = path.file_name()?.to_str()?;
        if name.contains("nerdctl") {
            Some(Self::Nerdctl)
        } else if name.contains("docker") {
            Some(Self::Docker)
        } else {
            None
        }
    }

    /// From what `--version` prints: `nerdctl version 2.2.2`, `Docker version 28.2.2, build e6534b4`.
    pub fn of_version(text: &str) -> Option<Self> {
        if text.starts_with("nerdctl version ") {
            Some(Self::Nerdctl)
        } else if text.starts_with("Docker version ") {
            Some(Self::Docker)
        } else {
            None
        }
    }
}

/// The bounds that most calls have in common.
fn bounds(deadline: Duration, output: usize) -> Bounds {
    Bounds { deadline, grace: GRACE, output, tail: false }
}

/// How a container is queried. `timeout`, because a process that an abandoned `exec` has started stays in the
/// container.
const ASK: &str = "command -v timeout >/dev/null && exec timeout -s KILL 8 sh -c \"$0\"; exec sh -c \"$0\"";
/// The query for NVIDIA's GPUs.
const NVIDIA_USE: &str =
    "nvidia-smi --query-gpu=utilization.gpu,memory.used,memory.total --format=csv,noheader,nounits";
/// Prints of each of amdgpu's cards what nvidia-smi prints, its memory in bytes.
const AMD_USE: &str = "cd /sys/class/drm && for d in card*/device; do [ -e $d/gpu_busy_percent ] && echo \
    $(cat $d/gpu_busy_percent), $(cat $d/mem_info_vram_used), $(cat $d/mem_info_vram_total); done; true";

/// Where a container's output goes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum LogChoice {
    /// The shim appends to a file in this folder, named after the deploy. The agent bounds it.
    File {
        /// The folder, an absolute path.
        dir: PathBuf,
    },
    /// The engine's json-file, which the engine itself keeps within bounds.
    JsonFile {
        /// Size at which a file is changed, in MiB.
        max_mib: u32,
        /// How many files are kept.
        files: u32,
    },
}

/// What the operator wants for logs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LogSetting {
    /// [`LogSetting::File`] where it is known to work, else [`LogSetting::JsonFile`].
    Auto,
    /// `file://`.
    File,
    /// `json-file`.
    JsonFile,
}

/// Whether `file://` is used for logs, and why or why not, for a person. `shim_writes`: whether the runtime's shim can
/// write such files, where that is known; Kata's runtime-rs is the one that cannot.
pub fn choose_log(setting: LogSetting, flavour: Flavour, shim_writes: Option<bool>) -> (bool, &'static str) {
    match (setting, flavour, shim_writes) {
        (LogSetting::JsonFile, _, _) => {
            (false, "json-file, as configured: with nerdctl 2.x logs end when containerd restarts")
        }
        (LogSetting::Auto | LogSetting::File, Flavour::Docker, _) => {
            (false, "json-file: Docker has no file:// log driver")
        }
        (LogSetting::File, Flavour::Nerdctl, Some(false)) => {
            (false, "json-file: Kata's runtime-rs cannot write file:// logs, so the setting is not followed")
        }
        (LogSetting::File, Flavour::Nerdctl, Some(true) | None) => (true, "file, as configured"),
        (LogSetting::Auto, Flavour::Nerdctl, Some(true)) => {
            (true, "file: the shim writes it, so logs outlive a restart of containerd")
        }
        (LogSetting::Auto, Flavour::Nerdctl, Some(false)) => {
            (false, "json-file: Kata's runtime-rs cannot write file:// logs")
        }
        (LogSetting::Auto, Flavour::Nerdctl, None) => (
            false,
            "json-file: it is not known whether this shim can write file:// logs; set the log driver if it can",
        ),
    }
}

/// A container CLI and how it is to be used.
#[derive(Debug, Clone)]
pub struct Cli {
    /// Its absolute path.
    pub path: PathBuf,
    /// Its vocabulary.
    pub flavour: Flavour,
    /// containerd's namespace; `None`: the CLI's own. nerdctl only.
    pub namespace: Option<String>,
    /// containerd's socket; `None`: the CLI's own. nerdctl only.
    pub address: Option<String>,
    /// The folder of the CNI plugins; `None`: the CLI's own. nerdctl only.
    pub cni_path: Option<PathBuf>,
    /// containerd's own client, where there is one.
    pub ctr: Option<PathBuf>,
    /// The containers' network; `None`: the CLI's own.
    pub network: Option<String>,
    /// The address of the host that ports are published on; `None`: all of them.
    pub port_address: Option<String>,
    /// The containers' runtime.
    pub runtime: String,
    /// The containers' score for the kernel's choice when memory runs out. Without it they inherit containerd's, which
    /// under systemd is -999: the kernel would end all of the host first.
    pub oom_score_adj: u64,
    /// How GPUs are handed over.
    pub handover: Handover,
    /// Where the containers' output goes.
    pub log: LogChoice,
    /// PATH for the CLI and the host programs that it runs ([`DEFAULT_PATH`]).
    pub search_path: OsString,
    /// HOME for it.
    pub home: OsString,
    /// Where it looks for registry logins: not in HOME, whose logins are the owner's and no tenant's.
    pub docker_config: PathBuf,
}

impl Cli {
    /// The call that does `job`, and what it may take. A pull's credentials are not in it. A run begins with a look at
    /// its image, which is what this gives for it; [`Self::run`] is the rest.
    ///
    /// # Errors
    /// [`crate::core::job::FailureKind::Impossible`] when the job cannot be put on a command line.
    pub fn call(&self, job: &Job) -> Result<(Program, Bounds), Failure> {
        Ok(match job {
            Job::Run(run) => {
                // What cannot be carried is said before an image is pulled for it.
                env::split(&run.spec.env, &run.spec.command)?;
                let (program, look) = self.look_at(&run.spec.image);
                (program, Bounds { deadline: look.deadline.min(run.deadline), ..look })
            }
            Job::Pull(pull) => self.pull(pull, true),
            Job::List => (self.list(), bounds(QUERY_DEADLINE, LIST_OUTPUT)),
            Job::Inspect(id) => {
                (self.inspect(id, "{{json .State}}".to_owned()), bounds(QUERY_DEADLINE, OUTPUT))
            }
            Job::Stop(id, timeout) => {
                // A fraction of a second is not worth a SIGKILL: round up.
                let seconds = timeout.as_secs() + u64::from(timeout.subsec_nanos() > 0);
                let args = ["stop".into(), "-t".into(), seconds.to_string(), id.as_str().to_owned()];
                (self.plain(args), bounds(Duration::from_secs(seconds) + STOP_EXTRA, OUTPUT))
            }
            Job::Remove(id) => {
                // --volumes: else the anonymous volumes of the image stay for ever, with a tenant's data in them.
                let args = ["rm".into(), "--force".into(), "--volumes".into(), id.as_str().to_owned()];
                (self.plain(args), bounds(REMOVE_DEADLINE, OUTPUT))
            }
            Job::Logs(id, lines) => {
                // The time tells the container's lines from the CLI's own, and puts both streams in order.
                let tail = format!("--tail={lines}");
                let args = ["logs".into(), "--timestamps".into(), tail, id.as_str().to_owned()];
                (self.plain(args), Bounds { tail: true, ..bounds(QUERY_DEADLINE, LOGS_OUTPUT) })
            }
            Job::Probe => {
                // Both CLIs ask the engine for its version and fail where it does not answer.
                let args = ["version".into(), "--format={{json .}}".to_owned()];
                (self.plain(args), bounds(PROBE_DEADLINE, OUTPUT))
            }
            Job::Images => {
                let format = "--format={{.CreatedAt}}\t{{.Repository}}\t{{.Tag}}\t{{.Digest}}".to_owned();
                // Docker tells digests only when it is asked for them.
                let args = ["images".into(), "--digests".into(), format];
                (self.plain(args), bounds(QUERY_DEADLINE, LIST_OUTPUT))
            }
            Job::RemoveImage(image) => {
                (self.plain(["rmi".into(), image.canonical().to_owned()]), bounds(REMOVE_DEADLINE, OUTPUT))
            }
            Job::GuestUse(id, vendor) => (self.guest_use(id, *vendor), bounds(GUEST_DEADLINE, OUTPUT)),
        })
    }

    /// The call that prints, as JSON, which deploy a container is of: its log file is named after it.
    pub fn deploy_of(&self, id: &ContainerId) -> (Program, Bounds) {
        let program = self.inspect(id, format!("{{{{json (index .Config.Labels \"{LABEL_DEPLOY}\")}}}}"));
        (program, bounds(QUERY_DEADLINE, OUTPUT))
    }

    /// The call that describes our containers for a person: a line of JSON values each, separated by tabs: ID, replica,
    /// deploy, GPUs, image as the deploy named it, image as the engine names it, creation time, status.
    pub fn describe(&self) -> (Program, Bounds) {
        let format = format!(
            "{{{{json .ID}}}}\t{}\t{}\t{}\t{}\t{{{{json .Image}}}}\t{{{{json .CreatedAt}}}}\t{{{{json .Status}}}}",
            json_label(LABEL_REPLICA),
            json_label(LABEL_DEPLOY),
            json_label(LABEL_GPUS),
            json_label(LABEL_IMAGE),
        );
        (self.ps(LABEL_REPLICA, &format), bounds(QUERY_DEADLINE, LIST_OUTPUT))
    }

    /// The call that prints a container's log to its own standard output; to be exec'ed.
    pub fn follow_logs(&self, id: &ContainerId, tail: u32, follow: bool) -> Program {
        let tail = format!("--tail={tail}");
        if follow {
            self.plain(["logs".into(), "--follow".into(), tail, id.as_str().to_owned()])
        } else {
            self.plain(["logs".into(), tail, id.as_str().to_owned()])
        }
    }

    /// The call that loads the images of an archive.
    pub fn load(&self, archive: Vec<u8>) -> (Program, Bounds) {
        let program = self.plain(["load".to_owned()]);
        let bounds = bounds(LOAD_DEADLINE, OUTPUT);
        (Program { input: Some(archive), ..program }, bounds)
    }

    /// The call that ends when a container has.
    pub fn wait(&self, id: &ContainerId, deadline: Duration) -> (Program, Bounds) {
        let program = self.plain(["wait".to_owned(), id.as_str().to_owned()]);
        (program, bounds(deadline, OUTPUT))
    }

    /// The call that prints the ID and the label of each container of a proof, with a tab between them.
    pub fn list_proofs(&self) -> (Program, Bounds) {
        let format = format!("{{{{.ID}}}}\t{{{{.Label \"{LABEL_PROOF}\"}}}}");
        (self.ps(LABEL_PROOF, &format), bounds(QUERY_DEADLINE, OUTPUT))
    }

    fn guest_use(&self, id: &ContainerId, vendor: Vendor) -> Program {
        let question = match vendor {
            Vendor::Nvidia => NVIDIA_USE,
            Vendor::Amd => AMD_USE,
        };
        let args = ["exec".into(), id.as_str().into(), "sh".into(), "-c".into(), ASK.into(), question.into()];
        self.plain(args)
    }

    /// The call that prints all of an image's configuration as JSON: see [`super::image::read`].
    pub fn look_at(&self, image: &ImageRef) -> (Program, Bounds) {
        let mode = match self.flavour {
            // The other mode of nerdctl's does not tell the digest that `run` goes by.
            Flavour::Nerdctl => Some("--mode=native".to_owned()),
            Flavour::Docker => None,
        };
        let args = ["image".to_owned(), "inspect".to_owned()].into_iter().chain(mode);
        let args = args.chain(["--format={{json .}}".to_owned(), image.canonical().to_owned()]);
        (self.plain(args), bounds(QUERY_DEADLINE, LIST_OUTPUT))
    }

    /// The call that runs `job` with the image that was looked at and checked, within what is left of its time.
    ///
    /// # Errors
    /// [`crate::core::job::FailureKind::Impossible`] when the job cannot be put on a command line.
    pub fn run(&self, job: &RunJob, image: &Checked, left: Duration) -> Result<(Program, Bounds), Failure> {
        let split = env::split(&job.spec.env, &job.spec.command)?;
        let mut args = self.global_args();
        args.extend(["run".into(), "--detach".into()]);
        let mut flag = |name: &str, value: &str| args.push(format!("--{name}={value}").into());
        flag("name", &job.name);
        flag("runtime", &self.runtime);
        flag("pull", "never");
        let is_proof = job.labels.iter().any(|(name, _)| *name == LABEL_PROOF);
        let labels = if is_proof { &[LABEL_PROOF][..] } else { &LABELS };
        for label in labels {
            let value =
                job.labels.iter().find(|(name, _)| name == label).map_or(LABEL_NONE, |(_, value)| value);
            flag("label", &format!("{label}={value}"));
        }
        for label in &image.masked {
            flag("label", &format!("{label}={LABEL_NONE}"));
        }
        if image.no_healthcheck {
            flag("no-healthcheck", "true");
        }
        if let Some(network) = &self.network {
            flag("network", network);
        }
        // nerdctl sets HOSTNAME to the container's host name, whatever the variables say; Docker does not.
        let hostname = job.spec.env.iter().find(|(name, _)| name.as_str() == "HOSTNAME");
        if let Some((_, value)) = hostname.filter(|(_, value)| is_host_name(value.expose()))
            && self.flavour == Flavour::Nerdctl
        {
            flag("hostname", value.expose());
        }
        self.log_flags(job, &mut flag);
        let spec = &job.spec;
        if let Some(millicpus) = spec.millicpus {
            flag("cpus", &format!("{}.{:03}", millicpus / 1000, millicpus % 1000));
        }
        // Docker's go-units: `m` is a MiB here.
        if let Some(mib) = spec.memory_mib {
            flag("memory", &format!("{mib}m"));
        }
        if let Some(mib) = spec.shm_mib {
            self.shm_flag(mib, &mut flag);
        }
        flag("oom-score-adj", &self.oom_score_adj.to_string());
        if let Some(limit) = spec.pids_limit {
            flag("pids-limit", &limit.to_string());
        }
        let address = self.port_address.as_ref().map(|address| match address.contains(':') {
            true => format!("[{address}]:"),
            false => format!("{address}:"),
        });
        let address = address.unwrap_or_default();
        for port in &spec.ports {
            let protocol = if port.udp { "udp" } else { "tcp" };
            flag("publish", &format!("{address}{}:{}/{protocol}", port.host, port.container));
        }
        self.gpu_flags(job, &mut flag);
        if split.file.is_some() {
            flag("env-file", "/proc/self/fd/0");
        }
        for (name, _) in &split.inherited {
            args.push(joined("--env=", name));
        }
        // After the deploy's own: the last one counts.
        args.extend(self.visible_gpus(job).map(OsString::from));
        args.push(image.id.as_str().into());
        args.extend(spec.command.iter().map(OsString::from));
        let mut program = self.program(args);
        program.env.extend(split.inherited);
        program.input = split.file;
        Ok((program, bounds(left, OUTPUT)))
    }

    /// Kata's runtimes put a /dev/shm of their own, of 64 MiB, in the place of any mount whose destination is the text
    /// `/dev/shm` (Kata 3.2 to 4.1: `handleShm` in virtcontainers/kata_agent.go, `is_shm_volume` in runtime-rs'
    /// volume/shm_volume.rs); so `--shm-size` has no effect. One at `/dev/shm/` is not that text, and a tmpfs is mounted in
    /// the guest as it stands in the specification (`mount_from` in the agent's rustjail/src/mount.rs), of the guest's
    /// memory. nerdctl (1.7 to 2.3) gives the destination as it is to the runtime and leaves out its own /dev/shm, whose
    /// cleaned path is the same (`withMounts` in its pkg/cmd/container/run_mount.go); Docker mounts it over its own.
    ///
    /// A bind mount would have the size of what it is bound to (`getShmSize`), but what nerdctl mounts for
    /// `--ipc=shareable` is in the mount namespace that systemd gives the agent, which Kata's shim does not see.
    fn shm_flag(&self, mib: u64, flag: &mut dyn FnMut(&str, &str)) {
        if self.runtime.contains("kata") {
            flag("tmpfs", &format!("/dev/shm/:size={mib}m,mode=1777"));
        } else {
            flag("shm-size", &format!("{mib}m"));
        }
    }

    fn log_flags(&self, job: &RunJob, flag: &mut dyn FnMut(&str, &str)) {
        let (max_mib, files) = match &self.log {
            LogChoice::File { dir } => match log_file(dir, deploy(job)) {
                Some(path) => return flag("log-driver", &format!("file://{}", path.display())),
                None => (DEFAULT_LOG_MIB, DEFAULT_LOG_FILES),
            },
            LogChoice::JsonFile { max_mib, files } => (*max_mib, *files),
        };
        flag("log-driver", "json-file");
        flag("log-opt", &format!("max-size={max_mib}m"));
        flag("log-opt", &format!("max-file={files}"));
    }

    fn gpu_flags(&self, job: &RunJob, flag: &mut dyn FnMut(&str, &str)) {
        let mut nodes: Vec<&str> = job.gpus.iter().map(|(_, node)| node.as_str()).collect();
        nodes.sort_unstable();
        nodes.dedup();
        // The container device file gives no GPU and opens the IOMMU's interface.
        nodes.retain(|node| *node != "/dev/vfio/vfio");
        if nodes.is_empty() {
            return;
        }
        match self.handover {
            Handover::Vfio | Handover::Cdi => nodes.iter().for_each(|node| flag("device", node)),
            // The quotes are part of the value: it is read as CSV.
            Handover::Nvidia => flag("gpus", &format!("\"device={}\"", nodes.join(","))),
            Handover::Amd => {
                flag("device", "/dev/kfd");
                nodes.iter().flat_map(|nodes| nodes.split(',')).for_each(|node| flag("device", node));
            }
            // Without GPUs to hand out no deploy has one.
            Handover::Disabled => {}
        }
    }

    /// NVIDIA's container runtime, where it is the host's, hands over the GPUs that this variable names, and each CUDA
    /// image names all of them. A microVM has its own.
    fn visible_gpus(&self, job: &RunJob) -> Option<String> {
        let named = |node: &&str| self.handover == Handover::Nvidia && !node.contains('=');
        let ids: Vec<&str> = job.gpus.iter().map(|(_, node)| node.as_str()).filter(named).collect();
        let ids = if ids.is_empty() { "void".to_owned() } else { ids.join(",") };
        (!self.runtime.contains("kata")).then(|| format!("--env=NVIDIA_VISIBLE_DEVICES={ids}"))
    }

    /// The call that pulls. Without `quiet` it prints how far it is.
    pub fn pull(&self, job: &PullJob, quiet: bool) -> (Program, Bounds) {
        let quiet = quiet.then(|| "--quiet".to_owned());
        let args = std::iter::once("pull".to_owned()).chain(quiet).chain([job.image.canonical().to_owned()]);
        (self.plain(args), Bounds { tail: true, ..bounds(job.deadline, OUTPUT) })
    }

    /// The call that prints the CLI's release, and needs no engine for it.
    pub fn version(&self) -> (Program, Bounds) {
        (self.program(vec!["--version".into()]), bounds(QUERY_DEADLINE, OUTPUT))
    }

    /// The same as a list, of one container.
    pub fn list_one(&self, id: &ContainerId) -> (Program, Bounds) {
        let mut program = self.list();
        program.args.push(format!("--filter=id={id}").into());
        (program, bounds(QUERY_DEADLINE, OUTPUT))
    }

    fn list(&self) -> Program {
        // As JSON, a value with a tab or a newline in it cannot spoil a line.
        let format = format!(
            "{{{{.ID}}}}\t{}\t{}\t{}\t{}\t{{{{.Status}}}}",
            json_label(LABEL_REPLICA),
            json_label(LABEL_DEPLOY),
            json_label(LABEL_SPEC),
            json_label(LABEL_GPUS),
        );
        self.ps(LABEL_REPLICA, &format)
    }

    /// A list of all containers that have this label, a line of this format for each.
    fn ps(&self, label: &str, format: &str) -> Program {
        let (filter, format) = (format!("--filter=label={label}"), format!("--format={format}"));
        self.plain(["ps".into(), "--all".into(), "--no-trunc".into(), filter, format])
    }

    fn inspect(&self, id: &ContainerId, format: String) -> Program {
        let args =
            ["container".into(), "inspect".into(), format!("--format={format}"), id.as_str().to_owned()];
        self.plain(args)
    }

    /// A call with nothing but arguments.
    fn plain(&self, args: impl IntoIterator<Item = String>) -> Program {
        self.program(self.global_args().into_iter().chain(args.into_iter().map(OsString::from)).collect())
    }

    fn program(&self, args: Vec<OsString>) -> Program {
        let env = vec![
            ("PATH".into(), self.search_path.clone()),
            ("HOME".into(), self.home.clone()),
            ("DOCKER_CONFIG".into(), self.docker_config.clone().into()),
        ];
        Program { path: self.path.clone(), args, env, input: None }
    }

    fn global_args(&self) -> Vec<OsString> {
        if self.flavour == Flavour::Docker {
            return Vec::new();
        }
        let flag =
            |name: &str, value: Option<&OsStr>| value.map(|value| joined(&format!("--{name}="), value));
        [
            flag("address", self.address.as_deref().map(OsStr::new)),
            flag("namespace", self.namespace.as_deref().map(OsStr::new)),
            flag("cni-path", self.cni_path.as_deref().map(Path::as_os_str)),
        ]
        .into_iter()
        .flatten()
        .collect()
    }

    /// The call that prints the IDs of the containers with our label, by containerd's own client; `None`: there is none.
    pub fn container_ids(&self) -> Option<(Program, Bounds)> {
        self.ctr(["list".into(), "--quiet".into(), format!("labels.\"{LABEL_REPLICA}\"")])
    }

    /// The call that prints all that containerd knows of one container, as JSON.
    pub fn container_labels(&self, id: &ContainerId) -> Option<(Program, Bounds)> {
        self.ctr(["info".into(), id.as_str().into()])
    }

    fn ctr(&self, args: impl IntoIterator<Item = String>) -> Option<(Program, Bounds)> {
        let path = self.ctr.clone().filter(|_| self.flavour == Flavour::Nerdctl)?;
        let address = self.address.as_deref().unwrap_or(DEFAULT_ADDRESS);
        let namespace = self.namespace.as_deref().unwrap_or(DEFAULT_NAMESPACE);
        let global =
            [format!("--address={address}"), format!("--namespace={namespace}"), "containers".into()];
        let program = Program { path, ..self.plain([]) };
        let args = global.into_iter().chain(args).map(OsString::from).collect();
        Some((Program { args, ..program }, bounds(QUERY_DEADLINE, LIST_OUTPUT)))
    }
}

/// What prints a label's value as JSON in a format of `ps`.
fn json_label(name: &str) -> String {
    format!("{{{{json (.Label \"{name}\")}}}}")
}

/// Whether a value can be a container's host name (RFC 1123; Linux has room for 64 bytes).
fn is_host_name(text: &str) -> bool {
    let label = |label: &str| {
        !label.is_empty()
            && !label.starts_with('-')
            && !label.ends_with('-')
            && label.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-')
    };
    text.len() <= 63 && text.split('.').all(label)
}

/// The log file of a deploy; `None` when this is no ID of a deploy.
pub fn log_file(dir: &Path, deploy: &str) -> Option<PathBuf> {
    is_deploy_id(deploy).then(|| dir.join(format!("{deploy}.log")))
}

fn deploy(job: &RunJob) -> &str {
    job.labels.iter().find(|(name, _)| *name == LABEL_DEPLOY).map_or("", |(_, value)| value)
}

fn joined(flag: &str, value: &OsStr) -> OsString {
    let mut whole = OsString::from(flag);
    whole.push(value);
    whole
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::{EnvName, ImageRef, PciAddress, Port, Secret, Spec};

    const DEPLOY: &str = "00000000000000d1";

    fn cli(flavour: Flavour) -> Cli {
        Cli {
            path: "/usr/bin/cli".into(),
            flavour,
            namespace: Some("ns".into()),
            address: None,
            cni_path: None,
            ctr: None,
            network: None,
            port_address: None,
            runtime: "io.containerd.kata.v2".into(),
            oom_score_adj: 500,
            handover: Handover::Vfio,
            log: LogChoice::JsonFile { max_mib: 10, files: 3 },
            search_path: DEFAULT_PATH.into(),
            home: "/root".into(),
            docker_config: "/none".into(),
        }
    }

    fn job() -> RunJob {
        RunJob {
            name: "replica-r".into(),
            spec: Spec::new(ImageRef::new("bb:1").unwrap()),
            labels: vec![(LABEL_REPLICA, "r".into()), (LABEL_DEPLOY, DEPLOY.into())],
            gpus: vec![],
            ended_by_reboot: [].into(),
            deadline: Duration::from_secs(900),
        }
    }

    fn text(program: &Program) -> Vec<String> {
        program.args.iter().map(|arg| arg.to_str().unwrap().to_owned()).collect()
    }

    fn id() -> ContainerId {
        ContainerId::new(&"ab".repeat(32)).unwrap()
    }

    fn image() -> Checked {
        Checked { id: "sha256:ab".into(), masked: vec![], no_healthcheck: false }
    }

    fn run_args(cli: &Cli, job: &RunJob) -> Vec<String> {
        text(&cli.run(job, &image(), Duration::ZERO).unwrap().0)
    }

    #[test]
    fn a_plain_run() {
        let args = run_args(&cli(Flavour::Nerdctl), &job());
        let expected = "--namespace=ns run --detach --name=replica-r --runtime=io.containerd.kata.v2 --pull=never \
             --label=vectorlay.replica=r --label=vectorlay.deploy=00000000000000d1 --label=vectorlay.spec=- \
             --label=vectorlay.gpus=- --label=vectorlay.node=- --label=vectorlay.image=- --log-driver=json-file --log-opt=max-size=10m \
             --log-opt=max-file=3 --oom-score-adj=500 sha256:ab";
        assert_eq!(args.join(" "), expected);
        assert_eq!(run_args(&cli(Flavour::Docker), &job())[0], "run");
    }

    #[test]
    fn a_run_of_an_image_that_has_to_be_held_back() {
        let image =
            Checked { masked: vec!["com.docker.compose.project".into()], no_healthcheck: true, ..image() };
        let (program, bounds) = cli(Flavour::Docker).run(&job(), &image, Duration::from_secs(3)).unwrap();
        let args = text(&program);
        for flag in ["--label=com.docker.compose.project=-", "--no-healthcheck=true"] {
            assert!(args.iter().any(|arg| arg == flag), "{flag} in {args:?}");
        }
        assert_eq!(bounds.deadline, Duration::from_secs(3));
    }

    #[test]
    fn a_run_begins_with_a_look_at_its_image() {
        let check = |flavour, line: &str| {
            let (program, bounds) = cli(flavour).call(&Job::Run(Box::new(job()))).unwrap();
            assert_eq!(text(&program).join(" "), line);
            assert_eq!(bounds.deadline, QUERY_DEADLINE);
        };
        check(
            Flavour::Nerdctl,
            "--namespace=ns image inspect --mode=native --format={{json .}} docker.io/library/bb:1",
        );
        check(Flavour::Docker, "image inspect --format={{json .}} docker.io/library/bb:1");
        let mut job = job();
        job.spec.command = vec!["a\0".into()];
        assert!(cli(Flavour::Docker).call(&Job::Run(Box::new(job))).is_err());
    }

    #[test]
    fn a_proof_is_run_as_a_deploy_is_but_for_its_label() {
        let cli = cli(Flavour::Nerdctl);
        let proof = RunJob { labels: vec![(LABEL_PROOF, "7-99".into())], ..job() };
        let without_labels = |job: &RunJob| {
            let mut args = run_args(&cli, job);
            args.retain(|arg| !arg.starts_with("--label="));
            args
        };
        assert_eq!(without_labels(&proof), without_labels(&job()));
        let args = run_args(&cli, &proof);
        let labels: Vec<&String> = args.iter().filter(|arg| arg.starts_with("--label=")).collect();
        assert_eq!(labels, ["--label=vectorlay.proof=7-99"]);
    }

    #[test]
    fn nvidias_runtime_hands_over_what_was_claimed() {
        let gpu = PciAddress::parse("41:00.0").unwrap();
        let check = |runtime: &str, handover, nodes: &[&str], expected: Option<&str>| {
            let mut job = job();
            job.gpus = nodes.iter().map(|node| (gpu, (*node).to_owned())).collect();
            let cli = Cli { handover, runtime: runtime.into(), ..cli(Flavour::Docker) };
            let args = run_args(&cli, &job);
            let found = args.iter().find_map(|arg| arg.strip_prefix("--env=NVIDIA_VISIBLE_DEVICES="));
            assert_eq!(found, expected, "{runtime} {nodes:?}");
        };
        check("nvidia", Handover::Nvidia, &[], Some("void"));
        check("nvidia", Handover::Nvidia, &["GPU-a", "GPU-b"], Some("GPU-a,GPU-b"));
        check("nvidia", Handover::Nvidia, &["nvidia.com/gpu=GPU-a"], Some("void"));
        check("runc", Handover::Amd, &["/dev/dri/renderD128"], Some("void"));
        check("io.containerd.kata.v2", Handover::Vfio, &["/dev/vfio/1"], None);
    }

    #[test]
    fn everything_that_shapes_a_container() {
        let mut job = job();
        job.spec.env = vec![
            (EnvName::new("A").unwrap(), Secret::new("hunter2".into())),
            (EnvName::new("B").unwrap(), Secret::new("two\nlines".into())),
        ];
        job.spec.command = vec!["--privileged".into(), String::new(), "-v".into()];
        job.spec.millicpus = Some(1_050);
        job.spec.memory_mib = Some(512);
        job.spec.shm_mib = Some(64);
        job.spec.pids_limit = Some(100);
        job.spec.ports =
            vec![Port { host: 80, container: 8080, udp: false }, Port { host: 53, container: 53, udp: true }];
        let gpu = PciAddress::parse("41:00.0").unwrap();
        job.gpus =
            ["/dev/vfio/12", "/dev/vfio/vfio", "/dev/vfio/12"].map(|node| (gpu, node.to_owned())).to_vec();
        let mut cli = cli(Flavour::Docker);
        cli.network = Some("net".into());
        cli.log = LogChoice::File { dir: "/var/log/v".into() };
        let (program, _) = cli.run(&job, &image(), Duration::ZERO).unwrap();
        let args = text(&program);
        let from = args.iter().position(|arg| arg.starts_with("--network")).unwrap();
        let expected = [
            "--network=net",
            "--log-driver=file:///var/log/v/00000000000000d1.log",
            "--cpus=1.050",
            "--memory=512m",
            "--tmpfs=/dev/shm/:size=64m,mode=1777",
            "--oom-score-adj=500",
            "--pids-limit=100",
            "--publish=80:8080/tcp",
            "--publish=53:53/udp",
            "--device=/dev/vfio/12",
            "--env-file=/proc/self/fd/0",
            "--env=B",
            "sha256:ab",
            "--privileged",
            "",
            "-v",
        ];
        assert_eq!(args[from..], expected);
        assert_eq!(program.input.as_deref(), Some(&b"A=hunter2\n"[..]));
        let env: Vec<_> = program.env.iter().map(|(name, _)| name.to_str().unwrap()).collect();
        assert_eq!(env, ["PATH", "HOME", "DOCKER_CONFIG", "B"]);
    }

    #[test]
    fn shared_memory_for_plain_runtimes() {
        let mut job = job();
        job.spec.shm_mib = Some(64);
        let args = run_args(&Cli { runtime: "runc".into(), ..cli(Flavour::Docker) }, &job);
        assert!(args.iter().any(|arg| arg == "--shm-size=64m"), "{args:?}");
    }

    #[test]
    fn gpus_for_plain_runtimes() {
        let gpu = PciAddress::parse("41:00.0").unwrap();
        let check = |handover, nodes: &[&str], expected: &[&str]| {
            let mut job = job();
            job.gpus = nodes.iter().map(|node| (gpu, (*node).to_owned())).collect();
            let args = run_args(&Cli { handover, ..cli(Flavour::Docker) }, &job);
            let gpus: Vec<_> =
                args.iter().filter(|a| a.starts_with("--gpus") || a.starts_with("--device")).collect();
            assert_eq!(gpus, expected);
        };
        check(Handover::Nvidia, &["GPU-b", "GPU-a"], &["--gpus=\"device=GPU-a,GPU-b\""]);
        check(
            Handover::Cdi,
            &["nvidia.com/gpu=1", "nvidia.com/gpu=0"],
            &["--device=nvidia.com/gpu=0", "--device=nvidia.com/gpu=1"],
        );
        check(Handover::Vfio, &["/dev/vfio/12", "/dev/vfio/12"], &["--device=/dev/vfio/12"]);
        check(
            Handover::Amd,
            &["/dev/dri/renderD128", "/dev/dri/renderD130,/dev/dri/renderD131"],
            &[
                "--device=/dev/kfd",
                "--device=/dev/dri/renderD128",
                "--device=/dev/dri/renderD130",
                "--device=/dev/dri/renderD131",
            ],
        );
        check(Handover::Disabled, &[], &[]);
        check(Handover::Amd, &[], &[]);
    }

    #[test]
    fn the_other_calls() {
        let check = |job: Job, line: &str, seconds: u64| {
            let (program, bounds) = cli(Flavour::Nerdctl).call(&job).unwrap();
            assert_eq!(text(&program).join(" "), format!("--namespace=ns {line}"));
            assert_eq!(bounds.deadline, Duration::from_secs(seconds));
            assert_eq!(program.env[2], ("DOCKER_CONFIG".into(), "/none".into()));
        };
        let a = "ab".repeat(32);
        check(Job::Stop(id(), Duration::from_millis(10_001)), &format!("stop -t 11 {a}"), 41);
        check(Job::Stop(id(), Duration::ZERO), &format!("stop -t 0 {a}"), 30);
        check(Job::Remove(id()), &format!("rm --force --volumes {a}"), 120);
        check(Job::Inspect(id()), &format!("container inspect --format={{{{json .State}}}} {a}"), 20);
        check(Job::Logs(id(), 100), &format!("logs --timestamps --tail=100 {a}"), 20);
        let pull =
            PullJob { image: ImageRef::new("bb:1").unwrap(), auth: None, deadline: Duration::from_secs(7) };
        check(Job::Pull(Box::new(pull)), "pull --quiet docker.io/library/bb:1", 7);
        let image = ImageRef::new("a/b:2").unwrap();
        check(Job::RemoveImage(image), "rmi docker.io/a/b:2", 120);
    }

    #[test]
    fn where_containerd_is() {
        let elsewhere = |flavour| Cli {
            address: Some("/run/k3s/containerd/containerd.sock".into()),
            cni_path: Some("/opt/rke2/cni".into()),
            ctr: Some("/usr/bin/ctr".into()),
            ..cli(flavour)
        };
        let (program, _) = elsewhere(Flavour::Nerdctl).call(&Job::Probe).unwrap();
        assert_eq!(
            text(&program)[..4],
            [
                "--address=/run/k3s/containerd/containerd.sock",
                "--namespace=ns",
                "--cni-path=/opt/rke2/cni",
                "version"
            ]
        );
        let (program, _) = elsewhere(Flavour::Nerdctl).container_ids().unwrap();
        assert_eq!(
            text(&program).join(" "),
            "--address=/run/k3s/containerd/containerd.sock --namespace=ns containers list --quiet \
             labels.\"vectorlay.replica\""
        );
        let (program, _) = Cli { namespace: None, ctr: Some("/c".into()), ..cli(Flavour::Nerdctl) }
            .container_labels(&id())
            .unwrap();
        assert!(text(&program).join(" ").starts_with(
            "--address=/run/containerd/containerd.sock --namespace=default containers info abab"
        ));
        let (program, _) = elsewhere(Flavour::Docker).call(&Job::Probe).unwrap();
        assert_eq!(text(&program)[0], "version");
        assert!(elsewhere(Flavour::Docker).container_ids().is_none());
        assert!(cli(Flavour::Nerdctl).container_ids().is_none());
    }

    #[test]
    fn host_names() {
        for good in ["a", "gpu-07", "A.b-c.9"] {
            assert!(is_host_name(good), "{good}");
        }
        for bad in ["", "-a", "a-", "a..b", "a_b", "a b", "ä", &"x".repeat(64)] {
            assert!(!is_host_name(bad), "{bad}");
        }
    }

    #[test]
    fn log_drivers() {
        use Flavour::{Docker, Nerdctl};
        let check = |setting, flavour, shim, file| assert_eq!(choose_log(setting, flavour, shim).0, file);
        check(LogSetting::Auto, Nerdctl, Some(true), true);
        check(LogSetting::Auto, Nerdctl, Some(false), false);
        check(LogSetting::Auto, Nerdctl, None, false);
        check(LogSetting::Auto, Docker, Some(true), false);
        check(LogSetting::File, Nerdctl, None, true);
        check(LogSetting::File, Nerdctl, Some(false), false);
        check(LogSetting::File, Docker, Some(true), false);
        check(LogSetting::JsonFile, Nerdctl, Some(true), false);
    }

    #[test]
    fn which_cli_it_is() {
        assert_eq!(Flavour::of_file(Path::new("/opt/nerdctl-2.2")), Some(Flavour::Nerdctl));
        assert_eq!(Flavour::of_file(Path::new("/usr/bin/docker")), Some(Flavour::Docker));
        assert_eq!(Flavour::of_file(Path::new("/docker/bin/cli")), None);
        assert_eq!(Flavour::of_version("nerdctl version 2.2.2\n"), Some(Flavour::Nerdctl));
        assert_eq!(Flavour::of_version("Docker version 28.2.2, build e6534b4"), Some(Flavour::Docker));
        assert_eq!(Flavour::of_version("podman version 4.3.1"), None);
    }

    #[test]
    fn log_files_stay_in_their_folder() {
        let dir = Path::new("/l");
        assert_eq!(log_file(dir, DEPLOY), Some("/l/00000000000000d1.log".into()));
        for bad in ["", "..", "../00000000000d1", "d1", "00000000000000D1", "00000000000000d1.1"] {
            assert_eq!(log_file(dir, bad), None, "{bad}");
        }
    }
}
