//! Whether something on the host uses a port that is to be published.
//!
//! nerdctl 1.7 and 2.0 publish such a port all the same: the rules of CNI's portmap then lead what is meant for the
//! host's own service into the container, on each of the host's addresses, loopback included. Later releases and Docker
//! refuse by themselves.
//!
//! The kernel's tables (proc(5), `/proc/net/tcp` and its like) are of the network namespace that the agent is in: the
//! host's, where the CLI publishes. What binds between the look and the start is not seen.

use std::io;
use std::path::Path;

use super::socket_tables;
use crate::core::job::{Failure, FailureKind};
use crate::types::{HostPort, Port};

/// Looks for sockets at the host's side of `ports`, in the tables below `root`.
///
/// # Errors
/// [`FailureKind::PortInUse`] for the first port that is in use; another kind when that cannot be told.
pub fn look(root: &Path, ports: &[Port]) -> Result<(), Failure> {
    for (udp, tables) in
        [(false, ["proc/net/tcp", "proc/net/tcp6"]), (true, ["proc/net/udp", "proc/net/udp6"])]
    {
        let wanted: Vec<HostPort> =
            ports.iter().filter(|port| port.udp == udp).map(|port| port.on_host()).collect();
        if wanted.is_empty() {
            continue;
        }
        for table in tables {
            let path = root.join(table);
            match in_use(&path, &wanted) {
                Ok(None) => {}
                Ok(Some(port)) => {
                    let message = format!(
                        "port {port} of the host is in use by a program there (`ss -lntup` shows it): choose another"
                    );
                    return Err(Failure { kind: FailureKind::PortInUse, message });
                }
                Err(error) => {
                    let message = format!(
                        "cannot tell whether port {} of the host is free: {}: {error}",
                        wanted[0],
                        path.display()
                    );
                    return Err(Failure { kind: FailureKind::Refused, message });
                }
            }
        }
    }
    Ok(())
}

/// The first of `wanted`, which are of the table's protocol, that a socket in the table uses.
fn in_use(table: &Path, wanted: &[HostPort]) -> io::Result<Option<HostPort>> {
    let udp = wanted.first().is_some_and(|port| port.udp);
    socket_tables::find(table, |line| {
        let port = HostPort { number: bound(line, udp)?, udp };
        wanted.contains(&port).then_some(port)
    })
}

/// The port at which the socket of a table's line takes what comes: of TCP one that listens, of UDP one that is connected
/// to no peer.
///
/// `sl local_address rem_address st …`: addresses as hexadecimal `ADDRESS:PORT`, the state as one of the kernel's
/// `TCP_LISTEN` (0A) and `TCP_CLOSE` (07), which is what a UDP socket without a peer has.
fn bound(line: &str, udp: bool) -> Option<u16> {
    let mut fields = line.split_ascii_whitespace().skip(1);
    let (local, state) = (fields.next()?, fields.nth(1)?);
    if state != if udp { "07" } else { "0A" } {
        return None;
    }
    let (_, port) = local.rsplit_once(':')?;
    u16::from_str_radix(port, 16).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::{TcpListener, UdpSocket};

    const TCP: &str = "\
  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode
   0: 0100007F:1F90 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 7 1 0 100 0 0 10 0
   1: 0200A8C0:0016 0100A8C0:D431 01 00000000:00000000 02:00000000 00000000     0        0 8 2 0 20 4 30 10 -1
 100: 0200A8C0:1F91 0100A8C0:D431 06 00000000:00000000 03:00000000 00000000     0        0 0 3 0
";
    const TCP6: &str = "\
  sl  local_address                         remote_address                        st tx_queue rx_queue
   0: 00000000000000000000000000000000:01BB 00000000000000000000000000000000:0000 0A 00000000:00000000
";
    const UDP: &str = "\
   sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode ref pointer drops
  418: 00000000:0035 00000000:0000 07 00000000:00000000 00:00000000 00000000   101        0 9 2 0 0
  419: 0200A8C0:D000 0808080A:0035 01 00000000:00000000 00:00000000 00000000   101        0 9 2 0 0
";

    fn folder(name: &str) -> std::path::PathBuf {
        let folder = std::env::temp_dir().join(format!("vectorlay-ports-{name}-{}", std::process::id()));
        std::fs::create_dir_all(folder.join("proc/net")).unwrap();
        folder
    }

    #[test]
    fn tables_are_read() {
        let ports = |table: &str, udp| table.lines().filter_map(|line| bound(line, udp)).collect::<Vec<_>>();
        assert_eq!(ports(TCP, false), [8080], "what listens, at loopback too; not what is connected");
        assert_eq!(ports(TCP6, false), [443]);
        assert_eq!(ports(UDP, true), [53], "what has no peer");
        for odd in ["", "0:", "0: 1 2 0A", "0: :1F900 x 0A", "0: 0100007F:zz x 0A", "0: 0100007F:1F90 x"] {
            assert_eq!(bound(odd, false), None, "{odd}");
        }
    }

    #[test]
    fn ports_in_use_are_named_with_their_protocol() {
        let root = folder("named");
        let port = |host, udp| Port { host, container: 80, udp };
        // A machine without the tables, and one without IPv6.
        assert_eq!(look(&root, &[port(8080, false)]), Ok(()));
        std::fs::write(root.join("proc/net/tcp"), TCP).unwrap();
        std::fs::write(root.join("proc/net/udp"), UDP).unwrap();
        let said = |ports: &[Port]| look(&root, ports).map_err(|failure| (failure.kind, failure.message));
        let in_use = |port: &str| {
            let why = format!(
                "port {port} of the host is in use by a program there (`ss -lntup` shows it): choose another"
            );
            Err((FailureKind::PortInUse, why))
        };
        assert_eq!(said(&[port(9, false), port(8080, false)]), in_use("8080/tcp"));
        assert_eq!(said(&[port(8080, true), port(53, false), port(22, false)]), Ok(()));
        assert_eq!(said(&[port(53, true)]), in_use("53/udp"));
        std::fs::write(root.join("proc/net/tcp6"), TCP6).unwrap();
        assert_eq!(said(&[port(443, false)]), in_use("443/tcp"));
        // A table that cannot be read does not prove that the port is free.
        std::fs::remove_file(root.join("proc/net/udp")).unwrap();
        std::fs::create_dir(root.join("proc/net/udp")).unwrap();
        assert_eq!(said(&[port(54, true)]).unwrap_err().0, FailureKind::Refused);
        std::fs::remove_dir_all(root).unwrap();
    }

    #[test]
    fn this_machines_sockets_are_seen() {
        let tcp = TcpListener::bind("127.0.0.1:0").unwrap();
        let udp = UdpSocket::bind("0.0.0.0:0").unwrap();
        for (host, udp) in
            [(tcp.local_addr().unwrap().port(), false), (udp.local_addr().unwrap().port(), true)]
        {
            let kind = |port| look(Path::new("/"), &[port]).map_err(|failure| failure.kind);
            assert_eq!(kind(Port { host, container: 1, udp }), Err(FailureKind::PortInUse));
        }
    }
}
