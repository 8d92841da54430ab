#!/usr/bin/env bash
# Lives a node's life on a machine of its own: Debian with systemd in QEMU, by software emulation, with containerd, nerdctl
# and runc; the reference control plane runs outside of it.
#   scripts/systemd-qemu.sh [BUNDLE [CONTROL-PLANE]]
# BUNDLE is what scripts/bundle.sh makes, CONTROL-PLANE of any build. What is tried stands in systemd-qemu/node: install from
# the bundle, upgrades, ends of the agent and of the engine, memory and disk used up, no network for three minutes, a reboot,
# a power cut, uninstall; a display device behind an IOMMU is bound by its unit and handed to a container. Needs root and
# nerdctl on the PATH, installs what else is missing from Debian, and takes half an hour of two cores that have nothing else
# to do; on a machine that has, SYSTEMD_QEMU_S lets it run longer. Exit status: 0 all checks passed, 77 it cannot be done
# here.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
# shellcheck source=scripts/debian.sh
. scripts/debian.sh
# shellcheck source=scripts/install-systemd/system
. scripts/install-systemd/system
PATH=$PATH:/usr/local/sbin:/usr/sbin:/sbin

# The machine may run this long, in seconds, and the control plane take to listen.
MACHINE_S=${SYSTEMD_QEMU_S:-2400}
LISTENS_S=20
CACHE=$TARGET/systemd-qemu

[ "$(uname -m)" = x86_64 ] || cannot "only an x86_64 machine can do this"
bundle=${1:-$(find "$TARGET/bundle" -name 'vectorlay-*.tar.gz' 2>/dev/null | sort | tail -n 1)}
plane=${2:-$TARGET/debug/control-plane}
[ -f "$bundle" ] || die "no bundle $bundle: run scripts/bundle.sh"
built "$plane" "cargo build --bin control-plane"
[ "$(id -u)" = 0 ] || cannot "making a system needs root"
have nerdctl || cannot "there is no nerdctl on the PATH"
(need qemu-system-x86_64=qemu-system-x86 mmdebstrap=mmdebstrap mke2fs=e2fsprogs) || cannot "QEMU or mmdebstrap cannot be had here"

work=$(mktemp -d)
pids=()
clean_up() {
    for pid in "${pids[@]}"; do kill "$pid" 2>/dev/null || true; done
    rm -rf "$work"
}
trap clean_up EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

: >"$work/plane"
"$plane" --token vtk_trial --no-reschedule --quiet </dev/null >"$work/plane" 2>&1 &
pids+=($!)
for _ in $(seq "$LISTENS_S"); do
    grep -q '^api on' "$work/plane" && break
    sleep 1
done
port_of() { sed -n "s/^$1.*127\.0\.0\.1:\([0-9]*\).*/\1/p" "$work/plane"; }
agents=$(port_of "listening on") api=$(port_of "api on")
[ -n "$api" ] || die "the control plane does not listen: $(cat "$work/plane")"

root=$work/root
make_system "$root" "sh ./node >/dev/ttyS1 2>&1 || echo failed >/dev/ttyS1" udev kmod initramfs-tools linux-image-cloud-amd64 \
    jq || cannot "Debian's packages cannot be had here"
install scripts/systemd-qemu/node "$root/t/"
cp "$bundle" "$root/t/bundle.tar.gz"
# From inside, QEMU's own network has this machine at 10.0.2.2.
printf '%s\n' "URL=ws://10.0.2.2:$agents/agent" "API=http://10.0.2.2:$api" >"$root/t/addresses"
printf '[Match]\nName=e*\n[Network]\nAddress=10.0.2.15/24\nGateway=10.0.2.2\n' >"$root/etc/systemd/network/trial.network"
ln -s /lib/systemd/system/systemd-networkd.service "$root/etc/systemd/system/multi-user.target.wants/systemd-networkd.service"
cp "$root"/boot/vmlinuz-* "$work/vmlinuz"
cp "$root"/boot/initrd.img-* "$work/initrd"
# Nothing is kept back for root: a full disk is full.
mke2fs -q -F -t ext4 -m 0 -d "$root" "$work/disk" 3G
rm -r "$root"

: >"$work/said"
tail -n +1 -f "$work/said" &
pids+=($!)
begun=$SECONDS
# On a reset it boots again, and finds its disk as it was cut off.
TMPDIR=$work timeout --kill-after=5 "$MACHINE_S" qemu-system-x86_64 -accel tcg,thread=multi -machine q35 -cpu max -smp 2 \
    -m 1536 -display none -monitor none -kernel "$work/vmlinuz" -initrd "$work/initrd" \
    -append "root=/dev/vda rw console=ttyS0 quiet systemd.show_status=0 mitigations=off panic=-1 intel_iommu=on iommu=pt" \
    -vga std -device intel-iommu,intremap=on -device pcie-root-port,id=rp1,slot=1 -device ati-vga,bus=rp1,addr=0.0 \
    -drive "file=$work/disk,format=raw,if=virtio" -nic user,model=virtio-net-pci -serial "file:$work/console" \
    -chardev "file,id=said,path=$work/said,append=on" -serial chardev:said </dev/null || true
printf 'it took %s s\n' $((SECONDS - begun))
grep -q '^systemd-qemu: passed' "$work/said" || {
    tail -n 20 "$work/console"
    grep -v heartbeat "$work/plane" | tail -n 30 | cut -c 1-300
    exit 1
}
