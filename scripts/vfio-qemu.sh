#!/bin/bash
# Tries `vectorlay-agent vfio` in a virtual machine: software emulation, an Intel IOMMU, a display device of AMD's,
# Debian's cloud kernel, and an initramfs with the agent, busybox and the kernel's VFIO modules.
#
#   scripts/vfio-qemu.sh AGENT      AGENT: a static x86_64 executable (scripts/build-static.sh x86_64 makes one)
#
# Installs what is missing (Debian, as root) and takes about two minutes. Exit status 0: all checks passed.
set -euo pipefail
cd "$(dirname "$0")/.."
agent=${1:-target/static/x86_64/vectorlay-agent}
[ -x "$agent" ] || { echo "vfio-qemu: no executable $agent; run scripts/build-static.sh x86_64" >&2; exit 2; }

missing=()
for need in qemu-system-x86_64:qemu-system-x86 busybox:busybox-static cpio:cpio depmod:kmod gcc:gcc; do
    command -v "${need%%:*}" >/dev/null || missing+=("${need##*:}")
done
[ "$(dpkg-query -W -f '${Status}' libc6-dev 2>/dev/null)" = "install ok installed" ] || missing+=(libc6-dev)
if [ ${#missing[@]} -gt 0 ]; then
    apt-get update -qq
    apt-get install -y -qq --no-install-recommends "${missing[@]}" >/dev/null
fi

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
chmod 755 "$work"
cache=target/vfio-qemu
mkdir -p "$cache"
if ! ls "$cache"/linux-image-*.deb >/dev/null 2>&1; then
    kernel=$(apt-cache depends linux-image-cloud-amd64 | awk '/Depends: linux-image/ { print $2; exit }')
    [ -n "$kernel" ] || { apt-get update -qq; kernel=$(apt-cache depends linux-image-cloud-amd64 | awk '/Depends: linux-image/ { print $2; exit }'); }
    (cd "$cache" && apt-get download -qq "$kernel" 2>/dev/null)
fi
dpkg-deb -x "$cache"/linux-image-*.deb "$work/kernel"
vmlinuz=$(echo "$work"/kernel/boot/vmlinuz-*)
release=${vmlinuz##*/vmlinuz-}

root=$work/root
modules=lib/modules/$release
mkdir -p "$root"/{bin,sbin,proc,sys,dev,tmp,etc,usr/share/misc} "$root/$modules/kernel"
for module in drivers/vfio virt/lib/irqbypass.ko; do
    mkdir -p "$root/$modules/kernel/$(dirname "$module")"
    cp -r "$work/kernel/$modules/kernel/$module" "$root/$modules/kernel/$module"
done
cp "$work/kernel/$modules"/modules.{order,builtin} "$root/$modules/"
depmod -b "$root" "$release" 2>/dev/null
cp "$(command -v busybox)" "$root/bin/busybox"
for applet in sh mount mkdir grep sed cat cut cmp test basename readlink kill sleep usleep poweroff; do
    ln -s busybox "$root/bin/$applet"
done
ln -s ../bin/busybox "$root/sbin/modprobe"
cp "$agent" "$root/bin/vectorlay-agent"
gcc -static -O1 -o "$root/bin/hold" scripts/vfio-qemu/hold.c
install -m 755 scripts/vfio-qemu/init "$root/init"
(cd "$root" && find . | cpio --quiet -o -H newc | gzip -1) > "$work/initramfs"

# boot PARAMETERS…: prints what the machine says; fails when it says that something failed.
boot() {
    local log=$work/console
    timeout 280 qemu-system-x86_64 -accel tcg,thread=multi -machine q35 -cpu max -smp 2 -m 512 -display none \
        -no-reboot -nic none -monitor none -serial "file:$log" -kernel "$vmlinuz" -initrd "$work/initramfs" \
        -append "console=ttyS0 quiet mitigations=off panic=-1 $1" "${@:2}" || true
    tr -d '\r' < "$log" | grep -E '^(ok  |FAILED|vfio-qemu|    \|)' || cat "$log"
    grep -q '^vfio-qemu: passed' "$log"
}

devices=(
    -vga std
    -device pcie-root-port,id=rp1,slot=1
    -device ati-vga,bus=rp1,addr=0.0,multifunction=on
    -device pci-serial,bus=rp1,addr=0.1
)
echo "with an IOMMU:"
boot "intel_iommu=on iommu=pt" -device intel-iommu,intremap=on "${devices[@]}"
echo "without one:"
boot "without_iommu" "${devices[@]}"
