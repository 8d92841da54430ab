//! Hosts made of short tables of facts: the files and links of /sys, /proc and /dev that the agent reads, in a
//! temporary folder. One fact a line:
//!
//! ```text
//! cpu GenuineIntel                    vendor of the processor, and flags
//! cmdline intel_iommu=on              the kernel's command line
//! iommu dmar0                         a unit of the IOMMU
//! ids                                 a pci.ids file
//! pci 0000:01:00.0 10de:2204 0300 …   a function: address, vendor and device, class, then KEY=VALUE:
//!     under= (its port) rev= driver= group= numa= boot_vga= sriov=on/most enable= of=(its physical function) cdev=
//!     link= max= (16.0x16) power= reset= (none, or names joined by +) config= (ones, none) aer=cor/nonfatal/fatal
//!     below=usb1/1-1/net/eth1 (a folder below it) screen= (connected) boot_display=
//! noiommu 3                           group 3 is one of VFIO's no-IOMMU mode
//! nonode 18                           /dev/vfio/18 is missing
//! holder 4242 qemu /dev/vfio/18       a process that has a file open
//! kmsg 3,1,1,-;vfio-pci …             a record of the kernel's log
//! uuid 0000:41:00.0 GPU-…             what NVIDIA's driver says of a GPU
//! render 0000:41:00.0 128             the number of a render node of amdgpu's
//! file dev/kfd                        an empty file
//! file nogroups                       the kernel's VFIO has device nodes alone
//! ```
//! A group with a member that vfio-pci or a variant has gets its node in /dev/vfio, and VFIO's other module is loaded.
#![allow(dead_code, clippy::unwrap_used, reason = "each test uses a part of it")]

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};

use vectorlay::config::{self, Config, Overrides};

static COUNT: AtomicU32 = AtomicU32::new(0);

/// A host's files; they go when it is dropped.
pub struct Host {
    root: PathBuf,
}

impl Drop for Host {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.root);
    }
}

/// The configuration of a node on the host under `root`, with these settings.
pub fn config(root: &Path, settings: &[(&str, &str)]) -> Config {
    let root = root.to_str().unwrap();
    let settings = settings.iter().copied().chain([("root", root)]);
    let flags = settings.map(|(name, value)| (config::setting(name).unwrap(), value.to_owned())).collect();
    let file = Path::new(root).join("agent.json");
    fs::write(&file, "{}").unwrap();
    let overrides = Overrides { file: Some(file), flags };
    config::load(&overrides, [], config::Need::All).unwrap().config
}

/// This machine below `root`, but with these of its files, by their paths without the first `/`, replaced by others.
pub fn machine(root: &Path, replaced: &[(&str, &Path)]) -> PathBuf {
    mirror(Path::new("/"), root, replaced);
    root.to_owned()
}

fn mirror(real: &Path, here: &Path, replaced: &[(&str, &Path)]) {
    fs::create_dir_all(here).unwrap();
    // /proc changes while it is read.
    let mut names: Vec<_> = fs::read_dir(real).unwrap().flatten().map(|entry| entry.file_name()).collect();
    names.extend(replaced.iter().filter_map(|(path, _)| Some(path.split('/').next()?.into())));
    names.sort_unstable();
    names.dedup();
    for name in names {
        let below: Vec<(&str, &Path)> = replaced
            .iter()
            .filter_map(|(path, to)| Some((path.strip_prefix(name.to_str()?)?, *to)))
            .filter(|(rest, _)| rest.is_empty() || rest.starts_with('/'))
            .map(|(rest, to)| (rest.trim_start_matches('/'), to))
            .collect();
        match below.as_slice() {
            [] => symlink(real.join(&name), here.join(&name)).unwrap(),
            [("", to)] => symlink(to, here.join(&name)).unwrap(),
            below => mirror(&real.join(&name), &here.join(&name), below),
        }
    }
}

impl Host {
    /// Builds the host that `facts` describe.
    pub fn new(facts: &str) -> Self {
        let name = format!("vectorlay-host-{}-{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
        let host = Self { root: std::env::temp_dir().join(name) };
        for folder in ["sys/bus/pci/devices", "sys/class/iommu", "sys/kernel/iommu_groups", "dev", "proc"] {
            fs::create_dir_all(host.root.join(folder)).unwrap();
        }
        for line in facts.lines().map(str::trim).filter(|l| !l.is_empty() && !l.starts_with('#')) {
            host.fact(line);
        }
        host
    }

    /// The folder to read instead of `/`.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// Adds one fact, or changes it.
    pub fn fact(&self, line: &str) {
        let (word, rest) = line.split_once(' ').unwrap_or((line, ""));
        match word {
            "cpu" => {
                let (vendor, flags) = rest.split_once(' ').unwrap_or((rest, "fpu"));
                let key = if vendor.starts_with("0x") { "CPU implementer" } else { "vendor_id" };
                self.write(
                    "proc/cpuinfo",
                    &format!("processor\t: 0\n{key}\t: {vendor}\nflags\t\t: {flags}\n"),
                );
            }
            "cmdline" => self.write("proc/cmdline", &format!("{rest}\n")),
            "iommu" => fs::create_dir_all(self.root.join("sys/class/iommu").join(rest)).unwrap(),
            "ids" => self.write("usr/share/misc/pci.ids", PCI_IDS),
            "pci" => self.function(rest),
            "noiommu" => self.write(&format!("sys/kernel/iommu_groups/{rest}/name"), "vfio-noiommu\n"),
            "nonode" => fs::remove_file(self.root.join("dev/vfio").join(rest)).unwrap(),
            "holder" => {
                let words: Vec<&str> = rest.split(' ').collect();
                self.write(&format!("proc/{}/comm", words[0]), &format!("{}\n", words[1]));
                let folder = self.root.join("proc").join(words[0]).join("fd");
                fs::create_dir_all(&folder).unwrap();
                let number = fs::read_dir(&folder).unwrap().count();
                symlink(words[2], folder.join(number.to_string())).unwrap();
            }
            "kmsg" => {
                let before = fs::read_to_string(self.root.join("dev/kmsg")).unwrap_or_default();
                self.write("dev/kmsg", &format!("{before}{rest}\n"));
            }
            "uuid" => {
                let (address, uuid) = rest.split_once(' ').unwrap();
                let text = format!(
                    "Model: \t\t NVIDIA H100\nIRQ:   \t\t 42\nGPU UUID: \t {uuid}\nDevice Minor: \t 0\n"
                );
                self.write(&format!("proc/driver/nvidia/gpus/{address}/information"), &text);
            }
            "render" => {
                let (address, number) = rest.split_once(' ').unwrap();
                let drm = self.root.join("sys/bus/pci/devices").join(address).join("drm");
                fs::create_dir_all(drm.join(format!("renderD{number}"))).unwrap();
                fs::create_dir_all(drm.join("card1")).unwrap();
                self.write(&format!("dev/dri/renderD{number}"), "");
            }
            "file" => self.write(rest, ""),
            _ => panic!("no such fact: {line}"),
        }
    }

    /// Writes a file below the root.
    pub fn write(&self, path: &str, text: &str) {
        let path = self.root.join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }

    /// Takes a function away, as one that fell out of its slot.
    pub fn remove(&self, address: &str) {
        fs::remove_file(self.root.join("sys/bus/pci/devices").join(address)).unwrap();
    }

    fn function(&self, rest: &str) {
        let words: Vec<&str> = rest.split_whitespace().collect();
        let (address, (vendor, device), class) = (words[0], words[1].split_once(':').unwrap(), words[2]);
        let get = |key: &str| words[3..].iter().find_map(|w| w.strip_prefix(key)?.strip_prefix('='));
        let link = self.root.join("sys/bus/pci/devices").join(address);
        let bus = self.root.join("sys/bus/pci/devices");
        let parent = match get("under") {
            Some(port) => fs::canonicalize(bus.join(port)).unwrap(),
            None => self.root.join(format!("sys/devices/pci{}", &address[..address.len() - 5])),
        };
        let folder = parent.join(address);
        fs::create_dir_all(&folder).unwrap();
        if !link.exists() {
            symlink(&folder, &link).unwrap();
        }
        let put = |name: &str, text: &str| fs::write(folder.join(name), format!("{text}\n")).unwrap();
        put("class", &format!("0x{class}00"));
        put("vendor", &format!("0x{vendor}"));
        put("device", &format!("0x{device}"));
        put("revision", &format!("0x{}", get("rev").unwrap_or("00")));
        put("numa_node", get("numa").unwrap_or("-1"));
        put("driver_override", "(null)");
        put("enable", get("enable").unwrap_or("0"));
        put("power_state", get("power").unwrap_or("D0"));
        if class == "0300" {
            put("boot_vga", get("boot_vga").unwrap_or("0"));
        }
        match get("reset").unwrap_or("flr") {
            "none" => {}
            methods => put("reset_method", &methods.replace('+', " ")),
        }
        match get("config") {
            None => fs::write(folder.join("config"), [0x10; 256]).unwrap(),
            Some("ones") => fs::write(folder.join("config"), [0xff; 256]).unwrap(),
            Some(_) => {}
        }
        if let Some((on, most)) = get("sriov").and_then(|v| v.split_once('/')) {
            put("sriov_numvfs", on);
            put("sriov_totalvfs", most);
        }
        for (key, prefix) in [("link", "current_link"), ("max", "max_link")] {
            if let Some((speed, width)) = get(key).and_then(|v| v.split_once('x')) {
                put(&format!("{prefix}_speed"), &format!("{speed} GT/s PCIe"));
                put(&format!("{prefix}_width"), width);
            }
        }
        if let Some(aer) = get("aer") {
            let names = [("correctable", "COR"), ("nonfatal", "NONFATAL"), ("fatal", "FATAL")];
            for (count, (file, total)) in aer.split('/').zip(names) {
                put(&format!("aer_dev_{file}"), &format!("RxErr {count}\nTOTAL_ERR_{total} {count}"));
            }
        }
        if let Some(physical) = get("of") {
            symlink(bus.join(physical), folder.join("physfn")).unwrap();
        }
        if let Some(cdev) = get("cdev") {
            fs::create_dir_all(folder.join("vfio-dev").join(cdev)).unwrap();
            self.write(&format!("dev/vfio/devices/{cdev}"), "");
        }
        if let Some(below) = get("below") {
            fs::create_dir_all(folder.join(below)).unwrap();
        }
        if let Some(status) = get("screen") {
            fs::create_dir_all(folder.join("drm/card0/card0-HDMI-A-1")).unwrap();
            put("drm/card0/card0-HDMI-A-1/status", status);
        }
        if let Some(chosen) = get("boot_display") {
            put("boot_display", chosen);
        }
        self.group(&folder, address, get("group"), get("driver"));
        if let Some(driver) = get("driver") {
            self.bind(&folder, driver);
        }
    }

    fn group(&self, folder: &Path, address: &str, group: Option<&str>, driver: Option<&str>) {
        let Some(group) = group else { return };
        let path = self.root.join("sys/kernel/iommu_groups").join(group);
        fs::create_dir_all(path.join("devices")).unwrap();
        let _ = symlink(folder, path.join("devices").join(address));
        let _ = symlink(&path, folder.join("iommu_group"));
        if driver.is_some_and(|d| d.ends_with("vfio-pci") || d.ends_with("vfio_pci")) {
            if self.root.join("nogroups").exists() {
                fs::create_dir_all(folder.join("vfio-dev").join(format!("vfio{group}"))).unwrap();
                self.write(&format!("dev/vfio/devices/vfio{group}"), "");
            } else {
                self.write(&format!("dev/vfio/{group}"), "");
                fs::create_dir_all(self.root.join("sys/class/vfio").join(group)).unwrap();
            }
            fs::create_dir_all(self.root.join("sys/module/vfio_iommu_type1")).unwrap();
        }
    }

    /// Makes `driver` the driver of the function in `folder`.
    fn bind(&self, folder: &Path, driver: &str) {
        let path = self.root.join("sys/bus/pci/drivers").join(driver);
        fs::create_dir_all(&path).unwrap();
        let link = folder.join("driver");
        let _ = fs::remove_file(&link);
        symlink(path, link).unwrap();
    }

    /// What the kernel does when `text` is written to one of the files by which drivers are bound. `native` names the
    /// driver that takes a function without an override.
    pub fn kernel(
        &self,
        path: &Path,
        text: &str,
        native: &dyn Fn(&str) -> Option<&'static str>,
    ) -> Result<(), String> {
        let devices = self.root.join("sys/bus/pci/devices");
        match path.file_name().unwrap().to_str().unwrap() {
            "driver_override" => {
                let text = if text.trim().is_empty() { "(null)" } else { text.trim() };
                fs::write(path, format!("{text}\n")).map_err(|e| e.to_string())
            }
            "unbind" => {
                let link = devices.join(text.trim()).join("driver");
                let bound = fs::read_link(&link).map_err(|e| e.to_string())?;
                let group = fs::read_link(link.with_file_name("iommu_group")).unwrap();
                fs::remove_file(&link).map_err(|e| e.to_string())?;
                let bound = bound.to_str().unwrap();
                if bound.ends_with("vfio-pci") || bound.ends_with("vfio_pci") {
                    let _ = fs::remove_file(self.root.join("dev/vfio").join(group.file_name().unwrap()));
                }
                Ok(())
            }
            "drivers_probe" => {
                let folder = devices.join(text.trim());
                let set = fs::read_to_string(folder.join("driver_override")).map_err(|e| e.to_string())?;
                let set = Some(set.trim()).filter(|t| *t != "(null)");
                if let Some(driver) = set.or_else(|| native(text.trim())) {
                    self.bind(&folder, driver);
                    let group = fs::read_link(folder.join("iommu_group")).unwrap();
                    let group = group.file_name().unwrap().to_str();
                    self.group(&folder, text.trim(), group, Some(driver));
                }
                Ok(())
            }
            other => Err(format!("{other}: no such attribute")),
        }
    }
}

/// The names of the devices that the tables use, as pci.ids has them.
pub const PCI_IDS: &str = "\
# The list of PCI IDs, a few lines of it
1002  Advanced Micro Devices, Inc. [AMD/ATI]
\t1586  Strix Halo [Radeon Graphics / Radeon 8050S Graphics / Radeon 8060S Graphics]
\t740f  Aldebaran/MI200 [Instinct MI210]
\t74a1  Aqua Vanjaram [Instinct MI300X]
\t74b5  Aqua Vanjaram [Instinct MI300X VF]
\t7448  Navi 31 [Radeon Pro W7900]
10de  NVIDIA Corporation
\t1aef  GA102 High Definition Audio Controller
\t1db6  GV100GL [Tesla V100 PCIe 32GB]
\t2204  GA102 [GeForce RTX 3090]
\t\t10de 147d  GeForce RTX 3090 Founders Edition
\t22a3  GH100 [H100 NVSwitch]
\t2330  GH100 [H100 SXM5 80GB]
\t2684  AD102 [GeForce RTX 4090]
1a03  ASPEED Technology, Inc.
\t2000  ASPEED Graphics Family
C 03  Display controller
\t00  VGA compatible controller
\t\t00  VGA controller
\t02  3D controller
\t80  Display controller
C 12  Processing accelerators
\t00  Processing accelerators
";
