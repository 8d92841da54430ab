#!/usr/bin/env bash
# Tries the agent's GPUs in virtual machines: software emulation, an Intel IOMMU, a display device of AMD's, Debian's
# cloud kernel.
#   scripts/vfio-qemu.sh [AGENT [CONTROL-PLANE]]
# AGENT is a static x86_64 executable (scripts/build-static.sh x86_64 makes it), CONTROL-PLANE the reference control
# plane, of any build. Three machines, one after the other:
#   binding  `vectorlay-agent vfio` on real devices, from an initramfs      vfio-qemu/init
#   off      the same without an IOMMU
#   node     the agent, the control plane and Docker, from a disk            vfio-qemu/node
# Installs what is missing from Debian, and takes three minutes of two cores. Exit status: 0 all checks passed, 77 they
# cannot be done here, and the last line says why.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
# shellcheck source=scripts/debian.sh
. scripts/debian.sh
# shellcheck source=scripts/guest.sh
. scripts/guest.sh
PATH=$PATH:/usr/local/sbin:/usr/sbin:/sbin

# One machine may run this long, in seconds: two minutes do where nothing else runs.
MACHINE_S=600
CACHE=$TARGET/vfio-qemu
# What the agent's machine is made of, as Debian has it; libraries come along.
PROGRAMS=(dockerd /usr/bin/docker containerd containerd-shim-runc-v2 runc jq lspci)
MODULES=(kernel/drivers/vfio kernel/virt/lib/irqbypass.ko kernel/drivers/virtio kernel/drivers/block/virtio_blk.ko
    kernel/fs/overlayfs)

install_all() {
    need qemu-system-x86_64=qemu-system-x86 cpio=cpio depmod=kmod gcc=gcc /usr/include/stdlib.h=libc6-dev \
        mke2fs=e2fsprogs ldd=libc-bin dockerd=docker.io /usr/bin/docker=docker.io runc=runc \
        containerd=containerd jq=jq lspci=pciutils /usr/share/misc/pci.ids=pci.ids
}

# modules_into FOLDER
modules_into() {
    local module to=$1/lib/modules/$release from=$work/kernel/lib/modules/$release
    for module in "${MODULES[@]}"; do
        mkdir -p "$to/${module%/*}"
        cp -r "$from/$module" "$to/$module"
    done
    cp "$from"/modules.{order,builtin} "$to/"
    depmod -b "$1" "$release" 2>/dev/null
}

# The initramfs that all of them begin with.
make_initramfs() {
    local root=$work/initramfs
    mkdir -p "$root"/{bin,sbin,proc,sys,dev,tmp,etc,new}
    modules_into "$root"
    busybox_into "$root/bin"
    ln -s ../bin/busybox "$root/sbin/modprobe"
    cp "$agent" "$root/bin/vectorlay-agent"
    cp "$work/hold" "$root/bin/hold"
    cp scripts/vfio-qemu/checks "$root/checks"
    install scripts/vfio-qemu/init "$root/init"
    (cd "$root" && find . | cpio --quiet -o -H newc | gzip -1) >"$work/initramfs.gz"
}

# The disk of the agent's machine: runc cannot change its root on an initramfs.
make_disk() {
    local root=$work/disk program
    mkdir -p "$root"/{bin,sbin,proc,sys,dev,tmp,run,etc/docker,root,var/lib,usr/bin,usr/share/misc}
    busybox_into "$root/bin"
    ln -s ../bin/busybox "$root/sbin/modprobe"
    tar -C "$root" -cf "$work/image.tar" bin
    mv "$work/image.tar" "$root/image.tar"
    modules_into "$root"
    for program in "${PROGRAMS[@]}"; do program_into "$root" "$(command -v "$program")"; done
    program_into "$root" "$agent"
    program_into "$root" "$plane"
    program_into "$root" "$work/hold"
    cp /usr/share/misc/pci.ids "$root/usr/share/misc/"
    printf '%s\n' root:x:0:0:root:/root:/bin/sh >"$root/etc/passwd"
    printf '%s\n' root:x:0: >"$root/etc/group"
    cat >"$root/etc/docker/daemon.json" <<END
{
    "bridge": "none", "iptables": false, "ip6tables": false, "log-level": "warn",
    "exec-opts": ["native.cgroupdriver=cgroupfs"],
    "runtimes": {"io.containerd.kata.v2": {"path": "runc"}}
}
END
    cp scripts/vfio-qemu/checks "$root/checks"
    install scripts/vfio-qemu/node "$root/node"
    mke2fs -q -F -t ext4 -d "$root" "$work/disk.img" 700M >/dev/null
    rm -r "$root"
}

# boot NAME MEMORY PARAMETERS ARGUMENT…: prints what the machine says; fails when a check failed.
boot() {
    local log=$work/console begun=$SECONDS
    printf '%s:\n' "$1"
    TMPDIR=$work timeout --kill-after=5 "$MACHINE_S" qemu-system-x86_64 -accel tcg,thread=multi -machine q35 -cpu max \
        -smp 2 -m "$2" -display none -no-reboot -nic none -monitor none -serial "file:$log" -kernel "$vmlinuz" \
        -initrd "$work/initramfs.gz" -append "console=ttyS0 quiet mitigations=off panic=-1 machine=$1 $3" \
        -vga std -device pcie-root-port,id=rp1,slot=1 \
        -device ati-vga,bus=rp1,addr=0.0,multifunction=on -device pci-serial,bus=rp1,addr=0.1 \
        "${@:4}" </dev/null || true
    tr -d '\r' <"$log" | grep -E '^(ok  |FAILED|vfio-qemu|    \|)' || tail -n 50 "$log"
    printf '%s: %s s\n' "$1" $((SECONDS - begun))
    grep -q '^vfio-qemu: passed' "$log"
}

[ "$(uname -m)" = x86_64 ] || cannot "only an x86_64 machine can do this"
agent=${1:-$TARGET/static/x86_64/vectorlay-agent}
plane=${2:-$TARGET/debug/control-plane}
built "$agent" "scripts/build-static.sh x86_64"
built "$plane" "cargo build --bin control-plane"
(install_all && fetch_kernel) || cannot "QEMU, Docker or Debian's kernel cannot be had here"

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
trap 'exit 130' INT
trap 'exit 143' TERM
chmod 755 "$work"
unpack_kernel
gcc -static -O1 -o "$work/hold" scripts/vfio-qemu/hold.c
make_initramfs
make_disk

iommu=(-device "intel-iommu,intremap=on")
failed=0
for machine in ${VFIO_QEMU_MACHINES:-binding off node}; do
    case "$machine" in
        binding) boot binding 512 "intel_iommu=on iommu=pt" "${iommu[@]}" ;;
        off) boot off 512 "" ;;
        node) boot node 1536 "intel_iommu=on iommu=pt" "${iommu[@]}" \
            -drive "file=$work/disk.img,format=raw,if=virtio,snapshot=on" ;;
    esac || failed=1
done
exit "$failed"
