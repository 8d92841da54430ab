//! The machine's processors.

use std::path::Path;

use super::files;

/// What the processor calls itself, or what is known of it where it does not (ARM).
pub fn model(root: &Path) -> Option<String> {
    let text = files::text(&files::under(root, "/proc/cpuinfo")).unwrap_or_default();
    named(&text)
        .or_else(|| arm(&text))
        .or_else(|| files::value(&files::under(root, "/proc/device-tree/model")))
}

/// How many logical CPUs are online: what the kernel can schedule on.
pub fn online(root: &Path) -> Option<u32> {
    let listed = files::value(&files::under(root, "/sys/devices/system/cpu/online"));
    listed.and_then(|list| count(&list)).or_else(|| {
        let text = files::text(&files::under(root, "/proc/cpuinfo"))?;
        let processors = text.lines().filter_map(field).filter(|(name, _)| *name == "processor").count();
        u32::try_from(processors).ok().filter(|count| *count > 0)
    })
}

/// A line of /proc/cpuinfo: `model name\t: AMD EPYC`.
fn field(line: &str) -> Option<(&str, &str)> {
    let (name, value) = line.split_once(':')?;
    Some((name.trim(), value.trim())).filter(|(_, value)| !value.is_empty())
}

/// The first model name. x86 pads it with spaces, inside too. (`cpu model` is MIPS's and LoongArch's word.)
fn named(cpuinfo: &str) -> Option<String> {
    let mut fields = cpuinfo.lines().filter_map(field);
    let (_, name) = fields.find(|(name, _)| matches!(*name, "model name" | "Model Name" | "cpu model"))?;
    Some(name.split_whitespace().collect::<Vec<_>>().join(" "))
}

/// 64-bit ARM has only numbers: who designed the core, and which it is (the main ID register, MIDR_EL1). The numbers
/// are those of the kernel's arch/arm64/include/asm/cputype.h; only cores that servers have are named.
fn arm(cpuinfo: &str) -> Option<String> {
    let number = |wanted: &str| {
        let (_, value) = cpuinfo.lines().filter_map(field).find(|(name, _)| *name == wanted)?;
        u32::from_str_radix(value.strip_prefix("0x")?, 16).ok()
    };
    let (designer, part) = (number("CPU implementer")?, number("CPU part")?);
    let name = match (designer, part) {
        (0x41, 0xd08) => "ARM Cortex-A72",
        (0x41, 0xd0c) => "ARM Neoverse N1",
        (0x41, 0xd40) => "ARM Neoverse V1",
        (0x41, 0xd42) => "ARM Cortex-A78AE",
        (0x41, 0xd49) => "ARM Neoverse N2",
        (0x41, 0xd4f) => "ARM Neoverse V2",
        (0x41, 0xd83) => "ARM Neoverse V3AE",
        (0x41, 0xd84) => "ARM Neoverse V3",
        (0x41, 0xd8e) => "ARM Neoverse N3",
        (0x46, 0x001) => "Fujitsu A64FX",
        (0x48, 0xd01) => "HiSilicon Kunpeng 920",
        (0x4e, 0x004) => "NVIDIA Carmel",
        (0xc0, 0xac3) => "Ampere-1",
        (0xc0, 0xac4) => "Ampere-1a",
        _ => return Some(format!("ARM, implementer {designer:#04x}, part {part:#05x}")),
    };
    Some(name.to_owned())
}

/// How many numbers a list like `0-3,5,7-9` names (the kernel's "cpulist", Documentation/admin-guide/cputopology.rst).
fn count(list: &str) -> Option<u32> {
    list.split(',').try_fold(0u32, |sum, range| {
        let (first, last) = range.split_once('-').unwrap_or((range, range));
        let (first, last): (u32, u32) = (first.parse().ok()?, last.parse().ok()?);
        sum.checked_add(last.checked_sub(first)?.checked_add(1)?)
    })
}

#[cfg(test)]
mod tests {
    use super::super::files::fixture::Fixture;
    use super::*;

    #[test]
    fn models_of_several_machines() {
        let check = |cpuinfo: &str, device_tree: &str, expected: &str| {
            let host = Fixture::new(&[("/proc/cpuinfo", cpuinfo), ("/proc/device-tree/model", device_tree)]);
            assert_eq!(model(host.path()).as_deref(), Some(expected), "{cpuinfo}");
        };
        let x86 =
            "processor\t: 0\nmodel\t\t: 1\nmodel name\t: Intel(R)  Xeon(R) CPU   @ 2.20GHz \nflags : a:b\n";
        check(x86, "", "Intel(R) Xeon(R) CPU @ 2.20GHz");
        let grace = "processor\t: 0\nBogoMIPS\t: 2000.00\nCPU implementer\t: 0x41\nCPU architecture: 8\nCPU variant\t: 0x0\nCPU part\t: 0xd4f\n";
        check(grace, "", "ARM Neoverse V2");
        check("CPU implementer\t: 0x61\nCPU part\t: 0x022\n", "", "ARM, implementer 0x61, part 0x022");
        check("processor : 0\n", "Some Board\0", "Some Board");
        assert_eq!(model(Fixture::new(&[]).path()), None);
    }

    #[test]
    fn online_cpus_are_counted() {
        let check = |list: &str, expected: u32| {
            let host = Fixture::new(&[
                ("/sys/devices/system/cpu/online", list),
                ("/proc/cpuinfo", "processor\t: 0\n\nprocessor\t: 1\nmodel name: processor\n"),
            ]);
            assert_eq!(online(host.path()), Some(expected), "{list:?}");
        };
        check("0-127\n", 128);
        check("0\n", 1);
        check("0-3,5,7-9\n", 8);
        // What cannot be read is counted in /proc/cpuinfo.
        for bad in ["", "\n", "3-0\n", "0-\n", "x\n", "0-4294967295\n"] {
            check(bad, 2);
        }
        assert_eq!(online(Fixture::new(&[]).path()), None);
    }
}
