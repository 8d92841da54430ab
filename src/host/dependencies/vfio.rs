//! VFIO: the kernel's modules, and whether there is an IOMMU for them to work with. Only files are read.

use std::collections::BTreeSet;
use std::path::Path;

use super::unknown;
use super::version_query::ProbeCx;
use crate::core::inventory::Check;
use crate::host::files;

/// The check. Modules are counted that are loaded or built in.
pub(super) fn check(cx: &ProbeCx<'_>) -> Check {
    let inputs = cx.inputs;
    let modules = modules(&inputs.root);
    let mut check = unknown("vfio", inputs);
    check.required = inputs.gpus_by_vfio && (inputs.has_gpus)(&inputs.root);
    let count = modules.iter().filter(|name| *name != "iommufd").count();
    check.modules = u32::try_from(count).ok();
    check.installed = count > 0;
    match obstacle(&inputs.root, &modules) {
        None => {
            check.ok = true;
            check.detail = modules.join(", ");
        }
        Some(obstacle) if check.required => check.detail = obstacle,
        Some(obstacle) => check.detail = format!("not needed here ({obstacle})"),
    }
    check
}

/// What stands in the way of handing any device to a microVM, with what to do.
fn obstacle(root: &Path, modules: &[String]) -> Option<String> {
    let has = |name: &str| modules.iter().any(|module| module == name);
    // A variant for one device (`nvgrace_gpu_vfio_pci`) does for it what vfio_pci does for all others.
    let driver = modules.iter().any(|name| name.ends_with("vfio_pci"));
    if !driver || !has("vfio") || !(has("vfio_iommu_type1") || has("iommufd")) {
        return Some(
            "modules are missing: run `modprobe vfio-pci`, and write vfio-pci to /etc/modules-load.d/vfio.conf"
                .to_owned(),
        );
    }
    if files::names(&files::under(root, "/sys/class/iommu")).is_empty() {
        let cpuinfo = files::text(&files::under(root, "/proc/cpuinfo")).unwrap_or_default();
        let how = if cpuinfo.contains("GenuineIntel") {
            "turn on VT-d in the firmware and put intel_iommu=on on the kernel's command line"
        } else if cpuinfo.contains("AuthenticAMD") {
            "turn on the IOMMU (AMD-Vi) in the firmware, and see that amd_iommu=off is not on the kernel's command line"
        } else {
            "turn on the IOMMU (SMMU) in the firmware"
        };
        return Some(format!("the IOMMU is off: {how}"));
    }
    if files::names(&files::under(root, "/sys/kernel/iommu_groups")).is_empty() {
        return Some(
            "the IOMMU is on but no device is in a group: see that iommu=off is not on the kernel's command line"
                .to_owned(),
        );
    }
    None
}

/// The names of VFIO's modules (and iommufd, its newer ground) that the running kernel has loaded or built in, with `_`
/// for `-`.
///
/// A built-in module shows in /sys/module only if it has parameters or a version: modules.builtin lists them all
/// (`kernel/drivers/vfio/pci/vfio-pci.ko`), and where that file is missing the driver's own folder gives it away.
fn modules(root: &Path) -> Vec<String> {
    let release = files::value(&files::under(root, "/proc/sys/kernel/osrelease")).unwrap_or_default();
    let builtin = files::text(&files::under(root, format!("/lib/modules/{release}/modules.builtin")))
        .unwrap_or_default();
    let builtin =
        builtin.lines().filter_map(|line| line.rsplit('/').next()?.strip_suffix(".ko").map(str::to_owned));
    let loaded = files::names(&files::under(root, "/sys/module"));
    let driver = files::under(root, "/sys/bus/pci/drivers/vfio-pci").exists();
    let shown: &[&str] = if driver { &["vfio", "vfio_pci"] } else { &[] };
    let found = loaded.into_iter().chain(builtin).map(|name| name.replace('-', "_"));
    let of_vfio = |name: &String| name.starts_with("vfio") || name.ends_with("vfio_pci") || name == "iommufd";
    let all: BTreeSet<_> = found.filter(of_vfio).chain(shown.iter().map(|name| (*name).to_owned())).collect();
    all.into_iter().collect()
}

#[cfg(test)]
mod tests {
    use super::super::tests::inputs;
    use super::*;
    use crate::host::files::fixture::Fixture;
    use std::time::Duration;

    const IOMMU: [(&str, &str); 2] = [("/sys/class/iommu/dmar0/", ""), ("/sys/kernel/iommu_groups/7/", "")];

    fn look(files: &[(&str, &str)], gpus: bool) -> Check {
        let host = Fixture::new(files);
        let mut inputs = inputs(host.path());
        inputs.has_gpus = if gpus { |_| true } else { |_| false };
        check(&ProbeCx::new(&inputs, Duration::from_secs(1)))
    }

    fn loaded(names: &[&str]) -> Vec<(String, String)> {
        names.iter().map(|name| (format!("/sys/module/{name}/"), String::new())).collect()
    }

    #[test]
    fn modules_loaded_and_built_in() {
        let check = |modules: &[&str], more: &[(&str, &str)], count: u32, ok: bool| {
            let modules = loaded(modules);
            let all: Vec<(&str, &str)> = modules
                .iter()
                .map(|(p, c)| (p.as_str(), c.as_str()))
                .chain(more.iter().copied())
                .chain(IOMMU)
                .collect();
            let check = look(&all, true);
            assert_eq!((check.modules, check.ok, check.installed), (Some(count), ok, count > 0), "{check:?}");
        };
        // Linux 6.1, and 6.2 and later, which have no vfio_virqfd.
        check(&["vfio", "vfio_pci", "vfio_pci_core", "vfio_iommu_type1", "vfio_virqfd", "kvm"], &[], 5, true);
        check(&["vfio", "vfio_pci", "vfio_pci_core", "vfio_iommu_type1"], &[], 4, true);
        // Built in: some are seen in /sys/module, all in the list, which writes them with a dash.
        let release = ("/proc/sys/kernel/osrelease", "6.8.0\n");
        let list = (
            "/lib/modules/6.8.0/modules.builtin",
            "kernel/drivers/vfio/vfio.ko\nkernel/drivers/vfio/vfio_iommu_type1.ko\nkernel/drivers/vfio/pci/vfio-pci-core.ko\nkernel/drivers/vfio/pci/vfio-pci.ko\nkernel/fs/ext4/ext4.ko\n",
        );
        check(&["vfio_pci", "vfio_iommu_type1"], &[release, list], 4, true);
        // Another kernel's list says nothing about this one.
        check(&[], &[("/proc/sys/kernel/osrelease", "6.9.0\n"), list], 0, false);
        // No list at all.
        check(&["vfio_iommu_type1"], &[("/sys/bus/pci/drivers/vfio-pci/", "")], 3, true);
        // Only the newer ground, and a variant driver.
        check(&["vfio", "iommufd", "vfio_pci_core", "nvgrace_gpu_vfio_pci"], &[], 3, true);
        check(&["vfio", "vfio_pci", "vfio_pci_core"], &[], 3, false);
        check(&["vfio", "vfio_iommu_type1"], &[], 2, false);
        check(&["kvm"], &[], 0, false);
    }

    #[test]
    fn the_iommu_must_be_on() {
        let modules = loaded(&["vfio", "vfio_pci", "vfio_iommu_type1"]);
        let check = |more: &[(&str, &str)], expected: &str| {
            let all: Vec<(&str, &str)> =
                modules.iter().map(|(p, c)| (p.as_str(), c.as_str())).chain(more.iter().copied()).collect();
            let check = look(&all, true);
            assert!(!check.ok && check.required && check.detail.contains(expected), "{check:?}");
        };
        check(
            &[("/proc/cpuinfo", "vendor_id\t: GenuineIntel\n"), ("/sys/class/iommu/", "")],
            "intel_iommu=on",
        );
        check(&[("/proc/cpuinfo", "vendor_id\t: AuthenticAMD\n")], "AMD-Vi");
        check(&[("/proc/cpuinfo", "CPU implementer : 0x41\n")], "SMMU");
        check(&[IOMMU[0]], "no device is in a group");
        // The kernel's form without isolation has groups but no IOMMU.
        check(&[("/sys/kernel/iommu_groups/0/name", "vfio-noiommu\n")], "the IOMMU is off");
    }

    #[test]
    fn a_host_without_gpus_does_not_need_it() {
        let check = look(&[], false);
        assert!(!check.required && !check.ok && check.detail.starts_with("not needed here"), "{check:?}");
    }
}
