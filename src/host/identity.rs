//! Who this machine is: a fingerprint that survives reinstallation and network boots, and the kernel's own names.
//!
//! The fingerprint is a hash made for this application alone (as `sd_id128_get_machine_app_specific` does), so that it
//! can be shown without giving the serial numbers away. It is made from the first of these that the machine has:
//!
//! 1. the product UUID (DMI, or the device tree of a virtual machine),
//! 2. the serial numbers of product and board, with their vendor and model,
//! 3. /etc/machine-id, which a network boot may make anew each time,
//! 4. the lowest address burnt into a network card.
//!
//! Firmware is full of placeholders ("To be filled by O.E.M."): those count as absent, or half a fleet would be one
//! node.

use std::path::Path;

use data_encoding::HEXLOWER;

use super::files;
use crate::hmac::{HASH_BYTES, keyed_hash};

/// Makes the hash this application's own. Changing it gives every machine a new identity.
const KEY: &[u8; HASH_BYTES] = b"vectorlay-agent machine id, v1 \0";
/// Length of the fingerprint before it is written in hexadecimal, in bytes.
const FINGERPRINT_BYTES: usize = 16;

/// The machine's fingerprint: 32 hexadecimal digits, the same at each boot. `None` when nothing tells it from another.
/// The kernel shows UUID and serials to root alone: another user gets a fingerprint from the lesser sources.
pub fn machine_id(root: &Path) -> Option<String> {
    let (kind, value) = None
        .or_else(|| product_uuid(root).map(|value| ("uuid", value)))
        .or_else(|| serials(root).map(|value| ("serial", value)))
        .or_else(|| os_machine_id(root).map(|value| ("machine-id", value)))
        .or_else(|| lowest_mac(root).map(|value| ("mac", value)))?;
    let hash = keyed_hash(KEY, format!("{kind}\0{value}").as_bytes());
    Some(HEXLOWER.encode(&hash[..FINGERPRINT_BYTES]))
}

/// The fingerprint of one of several agents on a machine, which are nodes of their own. An agent without a name has the
/// machine's.
pub fn of_instance(machine_id: String, instance: Option<&str>) -> String {
    let Some(name) = instance else { return machine_id };
    let hash = keyed_hash(KEY, format!("instance\0{machine_id}\0{name}").as_bytes());
    HEXLOWER.encode(&hash[..FINGERPRINT_BYTES])
}

/// The kernel's ID of this boot.
pub fn boot_id(root: &Path) -> Option<String> {
    files::value(&files::under(root, "/proc/sys/kernel/random/boot_id"))
}

/// The kernel's host name, which is `(none)` until somebody sets one.
pub fn hostname(root: &Path) -> Option<String> {
    files::value(&files::under(root, "/proc/sys/kernel/hostname")).filter(|name| name != "(none)")
}

/// The kernel's release, as `uname -r` prints it.
pub fn kernel(root: &Path) -> Option<String> {
    files::value(&files::under(root, "/proc/sys/kernel/osrelease"))
}

/// UUIDs that boards of many makers share. (UUIDs of one repeated digit are rejected separately.)
const BOGUS_UUIDS: [&str; 6] = [
    "03000200-0400-0500-0006-000700080009",
    "00010203-0405-0607-0809-0a0b0c0d0e0f",
    "03020100-0504-0706-0809-0a0b0c0d0e0f",
    "10000000-0000-8000-0040-000000000000",
    "fefefefe-fefe-fefe-fefe-fefefefefefe",
    "12345678-1234-5678-90ab-cddeefaabbcc",
];

/// What stands where a maker did not fill in a serial number, in lower case. (Serials of one repeated character are
/// rejected separately.)
const BOGUS_SERIALS: [&str; 18] = [
    "to be filled by o.e.m.",
    "to be filled by o.e.m",
    "default string",
    "system serial number",
    "chassis serial number",
    "base board serial number",
    "not specified",
    "not applicable",
    "not available",
    "none",
    "n/a",
    "unknown",
    "invalid",
    "oem",
    "o.e.m.",
    "0123456789",
    "123456789",
    "1234567890",
];

fn product_uuid(root: &Path) -> Option<String> {
    let uuid = files::value(&files::under(root, "/sys/class/dmi/id/product_uuid"))
        .or_else(|| files::value(&files::under(root, "/proc/device-tree/vm,uuid")))?
        .to_ascii_lowercase();
    let digits = uuid.bytes().filter(|b| *b != b'-');
    let formed =
        uuid.len() == 36 && digits.clone().count() == 32 && digits.clone().all(|b| b.is_ascii_hexdigit());
    let bogus = BOGUS_UUIDS.contains(&uuid.as_str()) || all_alike(digits);
    (formed && !bogus).then_some(uuid)
}

/// The serials of product and board together; a chassis' serial is left out, for it may hold several machines. Serials
/// are a maker's own numbering, so his name and the model go with them.
fn serials(root: &Path) -> Option<String> {
    let dmi = |name: &str| {
        files::value(&files::under(root, format!("/sys/class/dmi/id/{name}"))).unwrap_or_default()
    };
    let serial = |name: &str| Some(dmi(name)).filter(|serial| is_serial(serial)).unwrap_or_default();
    let (product, board) = (serial("product_serial"), serial("board_serial"));
    if !(product.is_empty() && board.is_empty()) {
        return Some([dmi("sys_vendor"), dmi("product_name"), product, board].join("\0"));
    }
    let tree = files::value(&files::under(root, "/proc/device-tree/serial-number"))
        .filter(|serial| is_serial(serial))?;
    let model = files::value(&files::under(root, "/proc/device-tree/model")).unwrap_or_default();
    Some([model, tree].join("\0"))
}

fn is_serial(text: &str) -> bool {
    let text = text.trim().to_ascii_lowercase();
    let bogus = BOGUS_SERIALS.contains(&text.as_str()) || all_alike(text.bytes());
    !bogus && text.bytes().any(|b| b.is_ascii_alphanumeric())
}

/// `uninitialized` (machine-id(5): the first boot has not come so far) and everything else that is not 32 hexadecimal
/// digits is not an ID.
fn os_machine_id(root: &Path) -> Option<String> {
    let id = files::value(&files::under(root, "/etc/machine-id"))?.to_ascii_lowercase();
    let formed = id.len() == 32 && id.bytes().all(|b| b.is_ascii_hexdigit());
    (formed && !all_alike(id.bytes())).then_some(id)
}

/// The lowest address, rather than all of them: a card that is added, or whose driver loads late, then mostly changes
/// nothing.
fn lowest_mac(root: &Path) -> Option<String> {
    let macs = files::names(&files::under(root, "/sys/class/net")).into_iter().filter_map(|card| {
        let folder = format!("/sys/class/net/{card}");
        let read = |name: &str| files::value(&files::under(root, format!("{folder}/{name}")));
        let exists = |name: &str| files::under(root, format!("{folder}/{name}")).exists();
        // A card has a device; a virtual function's address is made up by its host. Type 1 is Ethernet.
        if !exists("device") || exists("device/physfn") || read("type").as_deref() != Some("1") {
            return None;
        }
        // In a bond all cards show one address, and the bond knows their own. Assignment type 0 is "burnt in"
        // (Documentation/ABI/testing/sysfs-class-net).
        let own = read("bonding_slave/perm_hwaddr").or_else(|| {
            let burnt_in = read("addr_assign_type").as_deref() == Some("0");
            if burnt_in { read("address") } else { None }
        })?;
        is_global_mac(&own).then(|| own.to_ascii_lowercase())
    });
    macs.min()
}

/// Whether it is an address that a maker gave to one card: not multicast, not locally administered (as those of the
/// network over USB to a board's own controller are, which are the same on many boards), not zero.
fn is_global_mac(mac: &str) -> bool {
    let bytes: Vec<u8> = mac.split(':').filter_map(|byte| u8::from_str_radix(byte, 16).ok()).collect();
    mac.len() == 17 && bytes.len() == 6 && bytes[0] & 3 == 0 && bytes.iter().any(|byte| *byte != 0)
}

fn all_alike(mut bytes: impl Iterator<Item = u8>) -> bool {
    let Some(first) = bytes.next() else { return true };
    bytes.all(|byte| byte == first)
}

#[cfg(test)]
mod tests {
    use super::super::files::fixture::Fixture;
    use super::*;

    const UUID: (&str, &str) = ("/sys/class/dmi/id/product_uuid", "4C4C4544-0043-4A10-8052-B4C04F503432\n");
    const SERIAL: (&str, &str) = ("/sys/class/dmi/id/product_serial", "7CJRP42\n");
    const ETC: (&str, &str) = ("/etc/machine-id", "3d1219c7c4c5404aaa1f6d2a48adfda4\n");

    fn id(files: &[(&str, &str)]) -> Option<String> {
        machine_id(Fixture::new(files).path())
    }

    fn card(name: &str, address: &str, assigned: &str) -> [(String, String); 4] {
        let file = |file: &str, content: &str| (format!("/sys/class/net/{name}/{file}"), content.to_owned());
        [
            file("address", address),
            file("addr_assign_type", assigned),
            file("type", "1\n"),
            file("device/", ""),
        ]
    }

    fn id_of_cards(cards: &[[(String, String); 4]], more: &[(&str, &str)]) -> Option<String> {
        let own = cards.iter().flatten().map(|(path, content)| (path.as_str(), content.as_str()));
        id(&own.chain(more.iter().copied()).collect::<Vec<_>>())
    }

    #[test]
    fn named_agents_are_other_nodes() {
        let machine = "0123456789abcdef0123456789abcdef";
        assert_eq!(of_instance(machine.to_owned(), None), machine);
        let (a, b) = (of_instance(machine.to_owned(), Some("a")), of_instance(machine.to_owned(), Some("b")));
        assert!(a != b && a != machine && a.len() == machine.len());
        assert_eq!(of_instance(machine.to_owned(), Some("a")), a);
    }

    #[test]
    fn the_best_source_alone_decides() {
        let uuid = id(&[UUID]).unwrap();
        assert_eq!(uuid, "4407b6dda6361ebcccba765dd73d52b1");
        let lower = (UUID.0, "4c4c4544-0043-4a10-8052-b4c04f503432");
        assert_eq!(id(&[lower, SERIAL, ETC]), Some(uuid.clone()), "letters' case and lesser sources");
        assert_eq!(
            id(&[("/proc/device-tree/vm,uuid", "4c4c4544-0043-4a10-8052-b4c04f503432\0")]),
            Some(uuid)
        );
        let serial = id(&[SERIAL]);
        assert!(serial.is_some());
        assert_eq!(id(&[SERIAL, ETC]), serial);
        assert_ne!(id(&[SERIAL, ("/sys/class/dmi/id/sys_vendor", "Dell Inc.\n")]), serial);
        assert_eq!(id(&[]), None);
    }

    #[test]
    fn placeholders_count_as_absent() {
        let expected = id(&[ETC]);
        assert!(expected.is_some());
        let check = |name: &str, value: &str| {
            let path = format!("/sys/class/dmi/id/{name}");
            assert_eq!(id(&[(&path, value), ETC]), expected, "{name} {value:?}");
        };
        for uuid in BOGUS_UUIDS {
            check("product_uuid", &uuid.to_ascii_uppercase());
        }
        check("product_uuid", "00000000-0000-0000-0000-000000000000\n");
        check("product_uuid", "FFFFFFFF-FFFF-FFFF-FFFF-FFFFFFFFFFFF\n");
        check("product_uuid", "Not Settable\n");
        check("product_uuid", "");
        for serial in
            ["To be filled by O.E.M.", "Default string ", "0000000", "xxxxxxxx", "N/A", " ", "..", "0"]
        {
            check("product_serial", serial);
            check("board_serial", serial);
        }
        // A chassis may hold four machines.
        check("chassis_serial", "7CJRP42\n");
    }

    #[test]
    fn machine_ids_that_are_none() {
        for bad in ["uninitialized\n", "", "3d1219c7\n", "00000000000000000000000000000000\n"] {
            assert_eq!(id(&[("/etc/machine-id", bad)]), None, "{bad:?}");
        }
    }

    #[test]
    fn serials_of_boards_without_dmi() {
        let board = |serial| id(&[("/proc/device-tree/serial-number", serial), ETC]);
        assert_ne!(board("1421920\0"), id(&[ETC]));
        assert_eq!(board("1421920\0"), board("1421920"));
        assert_eq!(board("0000000000000000\0"), id(&[ETC]));
    }

    #[test]
    fn only_addresses_burnt_into_cards_count() {
        let card_a = || card("eth1", "3C:EC:EF:00:00:01\n", "0\n");
        let expected = id_of_cards(&[card_a()], &[]);
        assert!(expected.is_some());
        let check = |address: &str, assigned: &str| {
            let other = card("eth0", address, assigned);
            assert_eq!(id_of_cards(&[other, card_a()], &[]), expected, "{address:?} {assigned:?}");
        };
        check("3c:ec:ef:00:00:02\n", "0\n");
        check("02:00:00:00:00:01\n", "0\n");
        check("01:00:5e:00:00:01\n", "0\n");
        check("00:00:00:00:00:00\n", "0\n");
        check("00:00:00:00:00:01\n", "1\n");
        check("00:00:00:00:00:01\n", "3\n");
        check("00:00:01\n", "0\n");
        // A lower one of a card's own does count, and in a bond it is the one that the bond keeps.
        let lower = card("eth0", "3c:ec:ef:00:00:00\n", "0\n");
        assert_ne!(id_of_cards(&[lower, card_a()], &[]), expected);
        let bonded = card("eth1", "aa:aa:aa:aa:aa:aa\n", "3\n");
        let own = ("/sys/class/net/eth1/bonding_slave/perm_hwaddr", "3c:ec:ef:00:00:01\n");
        assert_eq!(id_of_cards(&[bonded], &[own]), expected);
        // A virtual function and a bridge.
        let function = card("eth0", "00:00:00:00:00:01\n", "0\n");
        let physical = ("/sys/class/net/eth0/device/physfn/", "");
        assert_eq!(id_of_cards(&[function, card_a()], &[physical]), expected);
        let bridge = [
            ("/sys/class/net/br0/address", "00:00:00:00:00:01\n"),
            ("/sys/class/net/br0/addr_assign_type", "0\n"),
            ("/sys/class/net/br0/type", "1\n"),
        ];
        assert_eq!(id_of_cards(&[card_a()], &bridge), expected);
    }

    #[test]
    fn the_kernels_names() {
        let host = Fixture::new(&[
            ("/proc/sys/kernel/hostname", "gpu-07\n"),
            ("/proc/sys/kernel/osrelease", "6.1.0-28-amd64\n"),
            ("/proc/sys/kernel/random/boot_id", "5d4a2b1e-0000-4000-8000-000000000001\n"),
        ]);
        assert_eq!(hostname(host.path()).as_deref(), Some("gpu-07"));
        assert_eq!(kernel(host.path()).as_deref(), Some("6.1.0-28-amd64"));
        assert_eq!(boot_id(host.path()).as_deref(), Some("5d4a2b1e-0000-4000-8000-000000000001"));
        // What is not known is absent, never a word or a zero.
        let nothing = Fixture::new(&[("/proc/sys/kernel/hostname", "(none)\n")]);
        let known = super::super::hardware(nothing.path(), None, Vec::new());
        let arch = known.arch.clone();
        assert_eq!(known, crate::core::inventory::Hardware { arch, ..Default::default() });
    }
}
