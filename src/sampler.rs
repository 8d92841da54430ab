//! Looks at the host when told to, and never keeps anybody waiting: what it reads may hang.
//!
//! Each kind of sample has its own thread, so that a GPU driver that hangs does not hide the dependencies; within a
//! sample of use, memory, storage and GPUs do not hide each other either. A kind that hangs sends nothing: the
//! receiver goes on with the last sample, and knows its age.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread::Builder;
use std::time::{Duration, Instant};

use crate::core::inventory::{Gpu, GpuUse, Hardware, Usage};
use crate::core::{Event, Sample};
use crate::host::background::BackgroundReader;
use crate::host::dependencies::{self, Checker};
use crate::host::{self, memory, storage};

/// How long a sample of use waits for the storage's and the GPUs' part. What comes later is not in it.
const PART_DEADLINE: Duration = Duration::from_secs(2);

/// Takes an inventory of the GPUs. `None`: it could not be taken, and nothing is known anew about any of them.
pub type ReadGpus = Box<dyn FnMut() -> Option<Vec<Gpu>> + Send>;
/// Reads the use of the GPUs that can be read.
pub type ReadUtilization = Box<dyn FnMut() -> Vec<GpuUse> + Send>;
/// Says what the dependency checks depend on, as the host is now.
pub type MakeInputs = Box<dyn FnMut() -> dependencies::Inputs + Send>;
/// Takes the events, from any of the sampler's threads. It may block.
pub type Emit = Arc<dyn Fn(Event) + Send + Sync>;

/// What is looked at.
pub struct Sources {
    /// Where /proc and /sys are read.
    pub root: PathBuf,
    /// The agent's name among several on this machine.
    pub instance: Option<String>,
    /// The path whose file system is reported, looked for at each reading: the engine's may come later than the agent.
    pub data_path: Box<dyn FnMut() -> PathBuf + Send>,
    /// What the dependency checks depend on: asked for before each round of them.
    pub checks: MakeInputs,
    /// The GPUs' inventory.
    pub gpus: ReadGpus,
    /// The GPUs' use.
    pub utilization: ReadUtilization,
}

/// The threads. They end when this is dropped and what they read has come back.
#[derive(Debug)]
pub struct Sampler {
    usage: SyncSender<()>,
    checks: SyncSender<()>,
    hardware: SyncSender<()>,
}

impl Sampler {
    /// Starts the threads; nothing is looked at before the first order.
    ///
    /// # Errors
    /// The kernel's, when it gives no thread.
    pub fn start(sources: Sources, emit: Emit) -> io::Result<Self> {
        let Sources { root, instance, mut data_path, mut checks, gpus, utilization } = sources;
        let mut usage = UsageReader {
            root: root.clone(),
            storage: BackgroundReader::start("sampler-storage", move || storage::read(&data_path()))?,
            utilization: BackgroundReader::start("sampler-gpu-use", utilization)?,
        };
        let mut checker = None;
        let mut inventory = Inventory { root, instance, read: gpus, last: Vec::new() };
        let (to_usage, to_checks, to_hardware) = (Arc::clone(&emit), Arc::clone(&emit), emit);
        Ok(Self {
            usage: serve("sampler-usage", move || to_usage(Event::Usage(usage.read())))?,
            checks: serve("sampler-checks", move || {
                let inputs = Arc::new(checks());
                let checker = checker.get_or_insert_with(|| Checker::new(Arc::clone(&inputs)));
                checker.round_with(inputs, &mut |check| to_checks(Event::Check(check)));
                to_checks(Event::ChecksDone);
            })?,
            hardware: serve("sampler-hardware", move || {
                to_hardware(Event::Hardware(Box::new(inventory.hardware())));
            })?,
        })
    }

    /// Orders a sample; never blocks. While one of the kind is being taken, one more can wait; further orders mean
    /// that same one.
    pub fn order(&self, sample: Sample) {
        let orders = match sample {
            Sample::Usage => &self.usage,
            Sample::Checks => &self.checks,
            Sample::Hardware => &self.hardware,
        };
        // Full: one is waiting already. The thread itself ends only after this sender.
        let _ = orders.try_send(());
    }
}

/// Starts a thread that does `work` for each order.
fn serve(name: &str, mut work: impl FnMut() + Send + 'static) -> io::Result<SyncSender<()>> {
    let (sender, orders): (SyncSender<()>, Receiver<()>) = sync_channel(1);
    let thread = Builder::new().name(name.to_owned());
    thread.spawn(move || orders.iter().for_each(|()| work()))?;
    Ok(sender)
}

struct UsageReader {
    root: PathBuf,
    storage: BackgroundReader<Option<(crate::core::inventory::Storage, u64)>>,
    utilization: BackgroundReader<Vec<GpuUse>>,
}

impl UsageReader {
    fn read(&mut self) -> Usage {
        let until = Instant::now() + PART_DEADLINE;
        self.storage.order();
        self.utilization.order();
        let memory = memory::read(&self.root);
        let (storage, free_bytes) = self.storage.answer(until).flatten().unzip();
        Usage {
            memory_gib: memory.map(|memory| (memory.used_gib(), memory.total_gib())),
            storage,
            free_bytes,
            gpus: self.utilization.answer(until).unwrap_or_default(),
        }
    }
}

struct Inventory {
    root: PathBuf,
    instance: Option<String>,
    read: ReadGpus,
    last: Vec<Gpu>,
}

impl Inventory {
    /// An inventory that fails leaves the last one standing: a bus that could not be listed is not a bus without GPUs.
    fn hardware(&mut self) -> Hardware {
        match (self.read)() {
            Some(gpus) => self.last = gpus,
            None => log::warn!(
                "cannot list the PCI devices under {}: the GPUs are taken to be as they were",
                self.root.display()
            ),
        }
        host::hardware(&self.root, self.instance.as_deref(), self.last.clone())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::inventory::{Health, Verdict};
    use crate::host::dependencies::SearchDirs;
    use crate::host::files::fixture::Fixture;
    use crate::types::PciAddress;
    use std::path::Path;
    use std::sync::mpsc::{Sender, channel};

    const LONG: Duration = Duration::from_secs(20);

    fn gpu() -> Gpu {
        Gpu {
            address: PciAddress::parse("41:00.0").unwrap(),
            line: String::new(),
            name: String::new(),
            vendor_id: 0x10de,
            device_id: 0x2204,
            class: 0x300,
            driver: None,
            iommu_group: None,
            companions: Vec::new(),
            numa_node: None,
            device_node: None,
            verdict: Verdict::Assignable,
            health: Health::Ok,
        }
    }

    const USE: GpuUse = GpuUse { source: "amdgpu", busy_percent: Some(78), memory_mib: None };

    fn sources(root: &Path, gpus: ReadGpus, utilization: ReadUtilization) -> Sources {
        let inputs = dependencies::Inputs {
            root: root.to_owned(),
            cli: "nerdctl".into(),
            nerdctl: true,
            env: Vec::new(),
            runtime: "runc".into(),
            network: None,
            namespace: None,
            cni_path: None,
            gpus_by_vfio: false,
            has_gpus: |_| false,
            dirs: SearchDirs { path: Vec::new(), kata: Vec::new(), virtiofsd: Vec::new() },
        };
        Sources {
            root: root.to_owned(),
            instance: None,
            data_path: Box::new({
                let path = root.to_owned();
                move || path.clone()
            }),
            checks: Box::new(move || inputs.clone()),
            gpus,
            utilization,
        }
    }

    fn start(sources: Sources) -> (Sampler, Receiver<Event>) {
        let (sender, events): (Sender<Event>, _) = channel();
        let emit = move |event| drop(sender.send(event));
        (Sampler::start(sources, Arc::new(emit)).unwrap(), events)
    }

    #[test]
    fn every_kind_of_sample_is_taken() {
        let host = Fixture::new(&[
            ("/proc/meminfo", "MemTotal: 67108864 kB\nMemAvailable: 41943040 kB\n"),
            ("/proc/sys/kernel/hostname", "gpu-07\n"),
        ]);
        let sources = sources(host.path(), Box::new(|| Some(vec![gpu()])), Box::new(|| vec![USE]));
        let (sampler, events) = start(sources);
        let next = || events.recv_timeout(LONG).unwrap();

        sampler.order(Sample::Usage);
        let Event::Usage(usage) = next() else { panic!("not a sample of use") };
        assert_eq!((usage.memory_gib, usage.gpus), (Some((24, 64)), vec![USE]));
        assert!(usage.storage.is_some_and(|storage| storage.path == host.path().to_str().unwrap()));
        assert!(usage.free_bytes.is_some());

        sampler.order(Sample::Hardware);
        let Event::Hardware(hardware) = next() else { panic!("not the hardware") };
        assert_eq!((hardware.hostname.as_deref(), hardware.gpus.len()), (Some("gpu-07"), 1));

        for _ in 0..2 {
            sampler.order(Sample::Checks);
            for _ in dependencies::names() {
                assert!(matches!(next(), Event::Check(_)));
            }
            assert!(matches!(next(), Event::ChecksDone));
        }
    }

    #[test]
    fn gpus_that_hang_hide_nothing_else() {
        let host = Fixture::new(&[("/proc/meminfo", "MemTotal: 67108864 kB\nMemAvailable: 67108864 kB\n")]);
        let (release, held) = channel::<()>();
        let (release_use, held_use) = channel::<()>();
        let gpus = move || held.recv().ok().map(|()| vec![gpu()]);
        let utilization = move || held_use.recv().map_or_else(|_| Vec::new(), |()| vec![USE]);
        let (sampler, events) = start(sources(host.path(), Box::new(gpus), Box::new(utilization)));
        // More orders than can wait, to a thread that hangs: none blocks.
        (0..100).for_each(|_| sampler.order(Sample::Hardware));
        sampler.order(Sample::Usage);
        let Event::Usage(usage) = events.recv_timeout(LONG).unwrap() else { panic!("not use") };
        assert_eq!((usage.memory_gib, usage.gpus), (Some((0, 64)), vec![]));
        assert!(usage.storage.is_some());
        release.send(()).unwrap();
        assert!(matches!(events.recv_timeout(LONG).unwrap(), Event::Hardware(_)));
        drop((release, release_use));
    }

    #[test]
    fn a_failed_inventory_leaves_the_last_one_standing() {
        let host = Fixture::new(&[]);
        let mut answers = [Some(vec![gpu()]), None, Some(Vec::new())].into_iter();
        let read: ReadGpus = Box::new(move || answers.next().unwrap());
        let mut inventory =
            Inventory { root: host.path().to_owned(), instance: None, read, last: Vec::new() };
        let counts: Vec<usize> = (0..3).map(|_| inventory.hardware().gpus.len()).collect();
        assert_eq!(counts, [1, 1, 0]);
    }
}
