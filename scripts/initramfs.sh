#!/bin/sh
# Builds an initramfs that boots a machine without a disk to a registered node: a static busybox as init, the agent, and
# what the operator adds. For a PXE server, beside a kernel; or as a further archive after the initramfs of a kernel's
# own, for the kernel unpacks several one after the other.
#
#   initramfs.sh --agent FILE --busybox FILE [--overlay DIR]… [--modules DIR --module NAME…] [OUTPUT]
#   --agent FILE     the agent's static binary for the machines' architecture
#   --busybox FILE   a static busybox for it, with at least: init ash mount modprobe udhcpc ip ntpd syslogd switch_root
#   --overlay DIR    a folder that is laid over it: containerd, nerdctl, CNI plugins and Kata; /etc/vectorlay/agent.json;
#                    certificates. A containerd in it is started and supervised; lines for init's table are taken from
#                    its /etc/inittab.more.
#   --modules DIR    a kernel's modules (/lib/modules/RELEASE), of which those named with --module are taken, with what
#                    they need, and loaded at boot in this order: network cards, vfio-pci, vhost-vsock, overlay, …
#   OUTPUT           by default vectorlay-initramfs.gz
#
# Parameters of the kernel at boot, besides the agent's own (vectorlay.url=, vectorlay.token=, …):
#   ip=dhcp          (the default) asks on every network card, the one of BOOTIF= first; or as the kernel documents it:
#                    ip=ADDRESS::GATEWAY:NETMASK:HOSTNAME:DEVICE:off:DNS
#   vectorlay.ntp=A,B         whom to ask for the time; by default DHCP's option 42. Without either the clock stays.
#   vectorlay.hostname=NAME   by default ip='s, else DHCP's, else made of the first card's address
#   vectorlay.modules=A,B     more modules to load
set -eu
umask 022

here=$(cd "$(dirname "$0")" && pwd)
# What the boot scripts call.
APPLETS="init sh ash mount mkdir cat cut sed grep ln cp rm sleep timeout modprobe udhcpc ip ntpd syslogd switch_root hostname kill date"

die() {
    printf '%s: %s\n' "${0##*/}" "$*" >&2
    exit 1
}
value() { [ $# -ge 2 ] || die "$1 needs a value"; }

agent='' busybox='' modules='' names='' overlays='' output=vectorlay-initramfs.gz
newline='
'
while [ $# -gt 0 ]; do
    case "$1" in
        --agent) value "$@"; agent=$2; shift ;;
        --busybox) value "$@"; busybox=$2; shift ;;
        --overlay) value "$@"; overlays=$overlays$2$newline; shift ;;
        --modules) value "$@"; modules=${2%/}; shift ;;
        --module) value "$@"; names="$names $2"; shift ;;
        -h | --help) sed -n '2,/^set /s/^# \{0,1\}//p' "$0"; exit 0 ;;
        -*) die "unknown argument $1; see the head of this script" ;;
        *) output=$1 ;;
    esac
    shift
done
[ -f "$agent" ] || die "name the agent's static binary with --agent"
[ -f "$busybox" ] || die "name a static busybox with --busybox"
[ -z "$names" ] || [ -d "$modules" ] || die "name the kernel's modules with --modules"
command -v cpio >/dev/null || die "missing: cpio"
for file in "$agent" "$busybox"; do
    # An ELF file that needs an interpreter names it: there are no libraries in the image.
    ! grep -qaE '/lib(64)?/ld-(linux|musl)' "$file" || die "$file is not static"
done

root=$(mktemp -d)
trap 'rm -rf "$root"' EXIT
trap 'exit 130' INT
trap 'exit 143' TERM
chmod 755 "$root"
mkdir -p "$root/bin" "$root/sbin" "$root/usr/bin" "$root/usr/sbin" "$root/usr/local/bin" "$root/etc/vectorlay" "$root/proc" \
    "$root/sys" "$root/dev" "$root/run" "$root/tmp" "$root/root" "$root/var/lib" "$root/var/log" "$root/new" "$root/lib"
chmod 1777 "$root/tmp"
ln -s ../run "$root/var/run"

cp "$busybox" "$root/bin/busybox"
chmod 755 "$root/bin/busybox"
# Asked of the program itself, so it must run here, as one for another architecture does under QEMU's user emulation.
known=$("$root/bin/busybox" --list) || die "$busybox does not run here"
for applet in $APPLETS; do
    printf '%s\n' "$known" | grep -qx "$applet" || die "$busybox has no $applet; take one that has (Debian's has no ntpd)"
done
for applet in $known; do
    [ "$applet" = busybox ] || ln -s busybox "$root/bin/$applet"
done
# Where init's own lines and the kernel (modprobe) look.
ln -s ../bin/busybox "$root/sbin/init"
ln -s ../bin/busybox "$root/sbin/modprobe"
cp "$agent" "$root/usr/local/bin/vectorlay-agent"
cp "$here/vectorlay-supervise" "$root/usr/local/bin/vectorlay-supervise"
cp "$here/initramfs/init" "$root/init"
cp "$here/initramfs/boot" "$here/initramfs/dhcp" "$here/initramfs/clock" "$here/initramfs/online" \
    "$root/etc/vectorlay/"
cp "$here/initramfs/inittab" "$root/etc/inittab"
chmod 755 "$root/usr/local/bin/vectorlay-agent" "$root/usr/local/bin/vectorlay-supervise" "$root/init" \
    "$root/etc/vectorlay/boot" "$root/etc/vectorlay/dhcp" "$root/etc/vectorlay/clock" "$root/etc/vectorlay/online"
printf '%s\n' root:x:0:0:root:/root:/bin/sh >"$root/etc/passwd"
printf '%s\n' root:x:0: >"$root/etc/group"
printf '%s\n' '127.0.0.1 localhost' '::1 localhost' >"$root/etc/hosts"

# Modules with what they need, and the order to load them in.
: >"$root/etc/vectorlay/modules"
if [ -n "$names" ]; then
    release=${modules##*/}
    base=${modules%/lib/modules/*}
    [ "$base" != "$modules" ] || die "--modules takes a folder …/lib/modules/RELEASE, not $modules"
    for tool in modprobe depmod; do command -v $tool >/dev/null || die "missing: $tool (kmod)"; done
    for name in $names; do
        printf '%s\n' "$name" >>"$root/etc/vectorlay/modules"
        modprobe -d "${base:-/}" -S "$release" --show-depends "$name" >"$root/new/depends" ||
            die "$modules has no module $name"
        # `insmod FILE OPTIONS`; what is built into the kernel is `builtin NAME`.
        sed -n 's/^insmod \([^ ]*\).*/\1/p' "$root/new/depends" | while IFS= read -r file; do
            inside=${file#"$base"}
            mkdir -p "$root${inside%/*}"
            cp "$file" "$root$inside"
        done
    done
    rm "$root/new/depends"
    mkdir -p "$root/lib/modules/$release"
    cp "$modules"/modules.order "$modules"/modules.builtin* "$root/lib/modules/$release/"
    depmod -b "$root" "$release"
fi

printf '%s' "$overlays" | while IFS= read -r overlay; do
    [ -d "$overlay" ] || die "there is no folder $overlay"
    cp -Rp "$overlay/." "$root/"
done
for containerd in usr/local/bin/containerd usr/bin/containerd; do
    if [ -e "$root/$containerd" ]; then
        echo "::respawn:/usr/local/bin/vectorlay-supervise containerd /$containerd" >>"$root/etc/inittab"
        break
    fi
done

if [ -e "$root/etc/inittab.more" ]; then
    cat "$root/etc/inittab.more" >>"$root/etc/inittab"
    rm "$root/etc/inittab.more"
fi

(cd "$root" && find . | LC_ALL=C sort | cpio --quiet -o -H newc -R +0:+0) | gzip -9 >"$output.new"
mv "$output.new" "$output"
printf '%s: %s bytes\n' "$output" "$(stat -c %s "$output")"
