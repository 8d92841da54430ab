//! Names from a `pci.ids` file, where the host has one. The file (1.5 MB) is streamed, never held.
//!
//! Format (its own header, and pciutils' `pci.ids(5)`): `vvvv  Vendor`, then indented by one tab `dddd  Device`, by
//! two a subsystem; `C cc  Class` with `ss  Subclass` below it; `#` begins a comment.

use std::fs::File;
use std::io::{self, BufRead, BufReader, Read};
use std::path::Path;

/// Where distributions keep it, below the root.
const PLACES: [&str; 3] = ["usr/share/misc/pci.ids", "usr/share/hwdata/pci.ids", "usr/local/share/pci.ids"];
/// The longest file that is read, in bytes: ten times today's.
const FILE_MAX: u64 = 16 * 1024 * 1024;

/// The names that were found for what was asked.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Names {
    /// Vendor names by ID.
    pub vendors: Vec<(u16, String)>,
    /// Device names by vendor and device ID.
    pub devices: Vec<((u16, u16), String)>,
    /// Names of base classes.
    pub bases: Vec<(u8, String)>,
    /// Names of classes.
    pub classes: Vec<(u16, String)>,
}

/// The name of `id` in one of the lists.
pub fn name<K: PartialEq>(list: &[(K, String)], id: K) -> Option<&str> {
    list.iter().find(|(listed, _)| *listed == id).map(|(_, name)| name.as_str())
}

/// Looks `devices` (vendor and device ID) and `classes` up in the first file there is. Without one, or with one that
/// cannot be read to its end, what was found so far: names are for people, and nothing is decided by them.
pub fn lookup(root: &Path, devices: &[(u16, u16)], classes: &[u16]) -> Names {
    let mut names = Names::default();
    if let Some(file) = PLACES.iter().find_map(|p| File::open(root.join(p)).ok()) {
        // An unreadable rest is the same as names that are not listed.
        let _ = scan(BufReader::new(file.take(FILE_MAX)), devices, classes, &mut names);
    }
    names
}

/// The block that the lines below belong to.
enum Block {
    Vendor(u16),
    Class(u8),
    Skipped,
}

fn scan(
    mut file: impl BufRead,
    devices: &[(u16, u16)],
    classes: &[u16],
    names: &mut Names,
) -> io::Result<()> {
    let mut block = Block::Skipped;
    let mut line = Vec::new();
    while file.read_until(b'\n', &mut line)? > 0 {
        take(&line, &mut block, devices, classes, names);
        line.clear();
    }
    Ok(())
}

fn take(line: &[u8], block: &mut Block, devices: &[(u16, u16)], classes: &[u16], names: &mut Names) {
    let Some((depth, key, name)) = split(line) else { return };
    match depth {
        0 => {
            *block = Block::Skipped;
            if let Some(base) = key.strip_prefix("C ") {
                let Ok(base) = u8::from_str_radix(base, 16) else { return };
                if classes.iter().any(|c| c >> 8 == u16::from(base)) {
                    *block = Block::Class(base);
                    names.bases.push((base, name));
                }
            } else if let Ok(vendor) = u16::from_str_radix(key, 16)
                && devices.iter().any(|d| d.0 == vendor)
            {
                *block = Block::Vendor(vendor);
                names.vendors.push((vendor, name));
            }
        }
        1 => match *block {
            Block::Vendor(vendor) => {
                let device = u16::from_str_radix(key, 16).map(|d| (vendor, d));
                if let Some(device) = device.ok().filter(|d| devices.contains(d)) {
                    names.devices.push((device, name));
                }
            }
            Block::Class(base) => {
                let class = u8::from_str_radix(key, 16).map(|s| u16::from(base) << 8 | u16::from(s));
                if let Some(class) = class.ok().filter(|c| classes.contains(c)) {
                    names.classes.push((class, name));
                }
            }
            Block::Skipped => {}
        },
        // Subsystems and programming interfaces.
        _ => {}
    }
}

/// The number of tabs, the key and the name of a line; `None` for comments, empty lines and lines that are not UTF-8.
fn split(line: &[u8]) -> Option<(usize, &str, String)> {
    let text = std::str::from_utf8(line).ok()?.trim_end();
    let body = text.trim_start_matches('\t');
    if body.is_empty() || body.starts_with('#') {
        return None;
    }
    let (key, name) = body.split_once("  ")?;
    Some((text.len() - body.len(), key, name.trim().to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    const FILE: &str = "# PCI IDs\n\n1002  Advanced Micro Devices, Inc. [AMD/ATI]\n\t74a1  Aqua Vanjaram [Instinct MI300X]\n\
        10de  NVIDIA Corporation\n\t2204  GA102 [GeForce RTX 3090]\n\t\t10de 2204  Founders Edition\n\
        \t2205  GA102 [GeForce RTX 3080 Ti 20GB]\n10df  Emulex Corporation\n\t2204  Not this one\n\
        C 03  Display controller\n\t00  VGA compatible controller\n\t\t00  VGA controller\n\t02  3D controller\n\
        C 12  Processing accelerators\n\t00  Processing accelerators\n";

    fn check(device: (u16, u16), class: u16, expected: [Option<&str>; 4]) {
        let mut names = Names::default();
        scan(FILE.as_bytes(), &[device], &[class], &mut names).unwrap();
        let base = u8::try_from(class >> 8).unwrap();
        let found = [
            name(&names.vendors, device.0),
            name(&names.devices, device),
            name(&names.bases, base),
            name(&names.classes, class),
        ];
        assert_eq!(found, expected, "{device:x?} {class:x}");
    }

    #[test]
    fn finds_what_was_asked_and_nothing_of_a_neighbour() {
        let (nvidia, display) = (Some("NVIDIA Corporation"), Some("Display controller"));
        let vga = Some("VGA compatible controller");
        check((0x10de, 0x2204), 0x0300, [nvidia, Some("GA102 [GeForce RTX 3090]"), display, vga]);
        check((0x10de, 0x2901), 0x0302, [nvidia, None, display, Some("3D controller")]);
        check((0x10de, 0x74a1), 0x0310, [nvidia, None, display, None]);
        check((0x1234, 0x2204), 0x0000, [None, None, None, None]);
        let amd = Some("Advanced Micro Devices, Inc. [AMD/ATI]");
        let accelerators = Some("Processing accelerators");
        let mi300 = Some("Aqua Vanjaram [Instinct MI300X]");
        check((0x1002, 0x74a1), 0x1200, [amd, mi300, accelerators, accelerators]);
    }

    #[test]
    fn rubbish_is_no_name() {
        let mut names = Names::default();
        let rubbish = b"\xff\xfe\n10de\n\t\n\tzzzz  x\nC zz  y\n10de  \n\t2204".as_slice();
        scan(rubbish, &[(0x10de, 0x2204)], &[0x300], &mut names).unwrap();
        assert_eq!(names.devices, []);
    }
}
