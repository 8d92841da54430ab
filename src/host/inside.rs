//! What a program sees of the machine that it runs on, from inside a container: the report of a proof.

use std::net::{Ipv4Addr, UdpSocket};
use std::path::Path;
use std::time::{Duration, Instant};

use serde_json::{Map, Value};

use super::{cpu, files, identity, memory, pci};

/// How long the gateway may take to answer.
const GATEWAY_WITHIN: Duration = Duration::from_secs(2);
/// How long is waited before it is looked again.
const GATEWAY_PAUSE: Duration = Duration::from_millis(20);
/// UDP's port that throws everything away (RFC 863).
const DISCARD: u16 = 9;

/// All of it, as one JSON object. What cannot be read is null.
///
/// `boot_id` tells one running kernel from another. `pci` has vendor and device of each GPU. `uptime_ms` is the time
/// since that kernel's start. `gateway` says whether the default route's gateway answers; without such a route it is null.
pub fn report(root: &Path) -> Value {
    let gpus = pci::functions(root).unwrap_or_default().into_iter().filter(pci::Function::is_gpu);
    let gpus: Vec<String> = gpus.map(|gpu| format!("{:04x}:{:04x}", gpu.vendor, gpu.device)).collect();
    let mut interfaces = files::names(&files::under(root, "/sys/class/net"));
    interfaces.retain(|name| name != "lo");
    let uptime = files::text(&files::under(root, "/proc/uptime"));
    let fields: [(&str, Value); 8] = [
        ("kernel", identity::kernel(root).into()),
        ("boot_id", identity::boot_id(root).into()),
        ("cpus", cpu::online(root).into()),
        ("memory_mb", memory::read(root).map(|memory| memory.total_kib / 1024).into()),
        ("uptime_ms", uptime.and_then(|text| uptime_ms(&text)).into()),
        ("pci", gpus.into()),
        ("interfaces", interfaces.into()),
        ("gateway", gateway(root).map(|gateway| answers(root, gateway)).into()),
    ];
    fields.into_iter().map(|(name, value)| (name.to_owned(), value)).collect::<Map<_, _>>().into()
}

/// /proc/uptime begins with seconds and hundredths (proc_uptime(5)).
fn uptime_ms(text: &str) -> Option<u64> {
    let (seconds, hundredths) = text.split(' ').next()?.split_once('.')?;
    let of_seconds = seconds.parse::<u64>().ok()?.checked_mul(1000)?;
    of_seconds.checked_add(hundredths.parse::<u64>().ok()?.checked_mul(10)?)
}

/// The gateway of the default route. /proc/net/route has addresses in hexadecimal, in the byte order of the machine.
fn gateway(root: &Path) -> Option<Ipv4Addr> {
    let text = files::text(&files::under(root, "/proc/net/route"))?;
    text.lines().skip(1).find_map(|line| {
        let mut fields = line.split_whitespace().skip(1);
        let (destination, gateway) = (fields.next()?, fields.next()?);
        let gateway = u32::from_str_radix(gateway, 16).ok().filter(|gateway| *gateway != 0)?;
        (destination == "00000000").then(|| Ipv4Addr::from(gateway.to_ne_bytes()))
    })
}

/// Whether the gateway's hardware address can be found out: a packet makes the kernel ask for it (ARP), and needs nobody
/// who takes it.
fn answers(root: &Path, gateway: Ipv4Addr) -> bool {
    let Ok(socket) = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)) else { return false };
    if socket.set_read_timeout(Some(GATEWAY_PAUSE)).is_err() {
        return false;
    }
    let until = Instant::now() + GATEWAY_WITHIN;
    while Instant::now() < until {
        // What becomes of it does not matter.
        let _ = socket.send_to(&[0], (gateway, DISCARD));
        let table = files::text(&files::under(root, "/proc/net/arp")).unwrap_or_default();
        if is_resolved(&table, gateway) {
            return true;
        }
        // Nobody answers: this is the pause.
        let _ = socket.recv(&mut [0]);
    }
    false
}

/// Whether /proc/net/arp has the address complete: flag 0x2, ATF_COM.
fn is_resolved(table: &str, address: Ipv4Addr) -> bool {
    let address = address.to_string();
    table.lines().any(|line| {
        let fields: Vec<&str> = line.split_whitespace().collect();
        fields.first() == Some(&address.as_str()) && fields.get(2) == Some(&"0x2")
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::files::fixture::Fixture;
    use serde_json::json;

    #[test]
    fn what_a_guest_sees() {
        let guest = Fixture::new(&[
            ("/proc/sys/kernel/osrelease", "6.1.62\n"),
            ("/proc/sys/kernel/random/boot_id", "3e7a2f60-6b1e-4a57-9d5e-0a7f1b2c3d4e\n"),
            ("/proc/meminfo", "MemTotal: 2097152 kB\nMemAvailable: 1048576 kB\n"),
            ("/proc/uptime", "1.47 0.98\n"),
            ("/sys/devices/system/cpu/online", "0-1\n"),
            ("/sys/class/net/lo/mtu", ""),
            ("/sys/class/net/eth0/mtu", ""),
            ("/sys/bus/pci/devices/0000:01:00.0/vendor", "0x10de\n"),
            ("/sys/bus/pci/devices/0000:01:00.0/device", "0x2330\n"),
            ("/sys/bus/pci/devices/0000:01:00.0/class", "0x030200\n"),
            ("/sys/bus/pci/devices/0000:00:02.0/vendor", "0x1af4\n"),
            ("/sys/bus/pci/devices/0000:00:02.0/device", "0x1041\n"),
            ("/sys/bus/pci/devices/0000:00:02.0/class", "0x020000\n"),
        ]);
        let expected = json!({
            "kernel": "6.1.62", "boot_id": "3e7a2f60-6b1e-4a57-9d5e-0a7f1b2c3d4e", "cpus": 2, "memory_mb": 2048,
            "uptime_ms": 1470, "pci": ["10de:2330"], "interfaces": ["eth0"], "gateway": null,
        });
        assert_eq!(report(guest.path()), expected);
        let nothing = report(Fixture::new(&[]).path());
        assert_eq!(
            (&nothing["kernel"], &nothing["gateway"], &nothing["pci"]),
            (&Value::Null, &Value::Null, &json!([]))
        );
    }

    #[test]
    fn times_that_are_none() {
        assert_eq!(uptime_ms("35.02 1.00"), Some(35_020));
        for odd in
            ["", "35", "x.02 1", "18446744073709551615.00 1", "18446744073709551.9223372036854775807 1"]
        {
            assert_eq!(uptime_ms(odd), None, "{odd}");
        }
    }

    #[test]
    fn the_default_route_and_its_gateway() {
        let host = |route: &str| Fixture::new(&[("/proc/net/route", route)]);
        let head = "Iface\tDestination\tGateway \tFlags\tRefCnt\tUse\tMetric\tMask\n";
        let address = format!("{:08X}", u32::from_ne_bytes([10, 4, 0, 1]));
        let one = host(&format!("{head}eth0\t0004000A\t00000000\t0001\neth0\t00000000\t{address}\t0003\n"));
        assert_eq!(gateway(one.path()), Some(Ipv4Addr::new(10, 4, 0, 1)));
        assert_eq!(gateway(host(&format!("{head}eth0\t0004000A\t00000000\t0001\n")).path()), None);
        let table = "IP address       HW type     Flags       HW address            Mask     Device\n\
             10.4.0.1         0x1         0x2         7a:5d:aa:aa:aa:aa     *        eth0\n\
             10.4.0.9         0x1         0x0         00:00:00:00:00:00     *        eth0\n";
        assert!(is_resolved(table, Ipv4Addr::new(10, 4, 0, 1)));
        for other in [Ipv4Addr::new(10, 4, 0, 9), Ipv4Addr::new(10, 4, 0, 2)] {
            assert!(!is_resolved(table, other));
        }
    }
}
