#!/usr/bin/env bash
# Boots the initramfs of initramfs.sh in a virtual machine, twice, and sees that it becomes the same node both times:
# address, name and time servers from DHCP, a clock that is decades wrong, TLS, no disk.
#   scripts/initramfs-qemu.sh BUSYBOX [AGENT [CONTROL-PLANE]]
# BUSYBOX is a static one that has ntpd, which Debian's has not. AGENT and CONTROL-PLANE as for vfio-qemu.sh. Takes two
# minutes of two cores. Exit status: 0 all checks passed, 77 it cannot be done here.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
# shellcheck source=scripts/debian.sh
. scripts/debian.sh
PATH=$PATH:/usr/local/sbin:/usr/sbin:/sbin

# One machine may run this long, in seconds.
MACHINE_S=300
CACHE=$TARGET/vfio-qemu
HOST=10.99.0.1
UUID=5f3c8a52-7f0e-4a55-9d53-0c8a8f6c2b11

[ "$(uname -m)" = x86_64 ] || cannot "only an x86_64 machine can do this"
[ -n "${1:-}" ] || die "usage: scripts/initramfs-qemu.sh BUSYBOX [AGENT [CONTROL-PLANE]]"
busybox=$1
agent=${2:-$TARGET/static/x86_64/vectorlay-agent}
plane=${3:-$TARGET/debug/control-plane}
for program in "$busybox" "$agent" "$plane"; do [ -x "$program" ] || die "no executable $program"; done

if [ -z "${INITRAMFS_QEMU_INSIDE:-}" ]; then
    [ "$(id -u)" = 0 ] || cannot "a network of its own needs root"
    (need qemu-system-x86_64=qemu-system-x86 cpio=cpio depmod=kmod openssl=openssl ip=iproute2) ||
        cannot "QEMU cannot be had here"
    # Debian's kernel is unpacked, not installed.
    mkdir -p "$CACHE"
    if ! compgen -G "$CACHE/linux-image-*.deb" >/dev/null; then
        apt_update
        package=$(apt-cache depends linux-image-cloud-amd64 | awk '/Depends: linux-image/ { print $2; exit }')
        (cd "$CACHE" && apt_get download "$package") || cannot "Debian's kernel cannot be had here"
    fi
    # The machine's DHCP and time servers are nobody else's.
    INITRAMFS_QEMU_INSIDE=1 exec unshare --net "$0" "$@"
fi

work=$(mktemp -d)
pids=()
clean_up() {
    for pid in "${pids[@]}"; do kill "$pid" 2>/dev/null || true; done
    rm -rf "$work"
}
trap clean_up EXIT
trap 'exit 130' INT
trap 'exit 143' TERM
background() {
    "$@" </dev/null >>"$work/background" 2>&1 &
    pids+=($!)
}

ip link set lo up
ip tuntap add dev tap0 mode tap
ip addr add "$HOST/24" dev tap0
ip link set tap0 up
cat >"$work/udhcpd.conf" <<CONF
start 10.99.0.10
end 10.99.0.20
interface tap0
lease_file $work/leases
pidfile $work/udhcpd.pid
option subnet 255.255.255.0
option router $HOST
option ntpsrv $HOST
option hostname gpu-from-the-network
CONF
: >"$work/leases"
background "$busybox" udhcpd -f "$work/udhcpd.conf"
background "$busybox" ntpd -n -l
# An authority of the trial's own, and a certificate by it.
(
    cd "$work"
    openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2 -subj /CN=authority -keyout ca.key -out ca.pem
    openssl req -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -subj /CN=trial -keyout key.pem -out request.pem
    printf 'subjectAltName=IP:%s\nbasicConstraints=CA:FALSE\n' "$HOST" >extensions
    openssl x509 -req -in request.pem -CA ca.pem -CAkey ca.key -CAcreateserial -days 2 -extfile extensions -out cert.pem
) >>"$work/background" 2>&1
"$plane" --token vtk_trial --listen "$HOST:7000" --tls-cert "$work/cert.pem" --tls-key "$work/key.pem" \
    --state "$work/plane.json" </dev/null >"$work/plane" 2>&1 &
pids+=($!)

dpkg-deb -x "$CACHE"/linux-image-*.deb "$work/kernel"
release=$(basename "$work"/kernel/lib/modules/*)
depmod -b "$work/kernel" "$release"
mkdir -p "$work/overlay/etc/vectorlay"
cp "$work/ca.pem" "$work/overlay/etc/vectorlay/ca.pem"
echo '{"ca_file": "/etc/vectorlay/ca.pem"}' >"$work/overlay/etc/vectorlay/agent.json"
echo '::once:/trial' >"$work/overlay/etc/inittab.more"
cat >"$work/overlay/trial" <<'TRIAL'
#!/bin/sh
# Ends the agent in several ways, sees it come back and no zombie stay, and switches the machine off.
export PATH=/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
online() { vectorlay-agent status --json 2>/dev/null | grep -q '"link": "connected"'; }
until online; do sleep 1; done
# The console's last lines first.
sleep 3
echo "trial: hostname $(hostname), log socket $(ls /dev/log), root on $(sed -n 's/^\([^ ]*\) \/ .*/\1/p' /proc/mounts | tail -n 1)"
echo "trial: clock $(date -u +%Y-%m-%d)"
for signal in KILL TERM; do
    old=$(cat /run/vectorlay-agent.pid)
    kill -$signal "$old"
    until [ "$(cat /run/vectorlay-agent.pid)" != "$old" ] && online; do sleep 1; done
    echo "trial: back after SIG$signal"
done
# Orphans of a process that ends before them are init's to reap.
sh -c 'for n in 1 2 3 4 5; do sleep 1 & done'
sleep 3
echo "trial: $(grep -l '^State:.Z' /proc/[0-9]*/status 2>/dev/null | wc -l) zombies"
echo "trial: done"
poweroff -f
TRIAL
chmod 755 "$work/overlay/trial"
scripts/initramfs.sh --agent "$agent" --busybox "$busybox" --overlay "$work/overlay" \
    --modules "$work/kernel/lib/modules/$release" --module virtio_pci --module virtio_net --module overlay "$work/initramfs.gz"

# boot NUMBER: the console, in which nothing may have gone wrong.
boot() {
    local console=$work/console-$1
    TMPDIR=$work timeout --kill-after=5 "$MACHINE_S" qemu-system-x86_64 -accel tcg,thread=multi -machine q35 -cpu max \
        -smp 2 -m 512 -uuid "$UUID" -rtc base=2001-01-01T00:00:00 -display none -no-reboot -monitor none \
        -serial "file:$console" -kernel "$work/kernel/boot/vmlinuz-$release" -initrd "$work/initramfs.gz" \
        -netdev tap,id=net,ifname=tap0,script=no,downscript=no -device virtio-net-pci,netdev=net,romfile= \
        -append "console=ttyS0 quiet mitigations=off panic=-1 ip=dhcp vectorlay.url=wss://$HOST:7000/agent vectorlay.token=vtk_trial" \
        </dev/null || true
    tr -d '\r' <"$console" >"$console.text"
    grep -E '^(boot|online|trial): |vectorlay-agent ended' "$console.text" | sed 's/^/    /' || true
}

failed=0
# has NUMBER TEXT
has() {
    if grep -qF "$2" "$work/console-$1.text"; then
        printf 'ok      boot %s: %s\n' "$1" "$2"
    else
        printf 'FAILED  boot %s: %s\n' "$1" "$2"
        failed=1
    fi
}
for number in 1 2; do
    boot "$number"
    for text in "clock set" "online: node " "hostname gpu-from-the-network" "log socket /dev/log" "root on tmpfs" \
        "clock $(date -u +%Y)" "back after SIGKILL" "back after SIGTERM" "0 zombies" "trial: done"; do
        has "$number" "$text"
    done
    [ "$failed" = 0 ] || { tail -n 30 "$work/console-$number.text" "$work/plane" "$work/background"; exit 1; }
done
nodes=$(grep -ho 'online: node [^,]*' "$work"/console-?.text | sort -u)
[ "$(printf '%s\n' "$nodes" | wc -l)" = 1 ] || die "two boots, two nodes: $nodes"
printf 'ok      the same node both times: %s\n' "${nodes#online: node }"
