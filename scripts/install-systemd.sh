#!/usr/bin/env bash
# Tries installing and running under systemd for real: Debian with systemd as PID 1 of a container (systemd-nspawn), and in
# that containerd, nerdctl and runc. The kernel is this machine's, so all that the unit forbids is forbidden in earnest.
#   scripts/install-systemd.sh [AGENT [CONTROL-PLANE]]
# AGENT is a static executable for this machine (scripts/build-static.sh makes it), CONTROL-PLANE the reference control
# plane, of any build. What is tried stands in install-systemd/node: install, deploy, logs, signals, upgrade, a broken
# upgrade, a hanging agent, drain, uninstall. Needs root and nerdctl on the PATH, installs what else is missing from
# Debian, and takes three minutes, the first time some more. Exit status: 0 all checks passed, 77 it cannot be done here.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
# shellcheck source=scripts/debian.sh
. scripts/debian.sh
PATH=$PATH:/usr/local/sbin:/usr/sbin:/sbin

# The container may run this long, in seconds, and making its system take.
TRIAL_S=900
SYSTEM_S=1200
CANNOT=77
CACHE=$TARGET/install-systemd
PACKAGES=systemd,systemd-sysv,dbus,iproute2,iptables,containerd,runc,containernetworking-plugins,procps,pciutils,curl,busybox-static

cannot() {
    say "$*"
    exit "$CANNOT"
}

agent=${1:-$TARGET/static/$(uname -m)/vectorlay-agent}
plane=${2:-$TARGET/debug/control-plane}
[ -x "$agent" ] || die "no executable $agent: run scripts/build-static.sh $(uname -m)"
[ -x "$plane" ] || die "no executable $plane: run cargo build --bin control-plane"
[ "$(id -u)" = 0 ] || cannot "a container needs root"
have nerdctl || cannot "there is no nerdctl on the PATH"
(need systemd-nspawn=systemd-container mmdebstrap=mmdebstrap) || cannot "systemd-nspawn or mmdebstrap cannot be had here"

# The system is made once and kept.
mkdir -p "$CACHE"
if [ ! -e "$CACHE/debian.tar" ]; then
    say "making a Debian system"
    timeout "$SYSTEM_S" mmdebstrap --quiet --variant=minbase --include="$PACKAGES" bookworm "$CACHE/debian.tar.new" ||
        cannot "Debian's packages cannot be had here"
    mv "$CACHE/debian.tar.new" "$CACHE/debian.tar"
fi

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
trap 'exit 130' INT
trap 'exit 143' TERM
root=$work/root
mkdir "$root"
tar -C "$root" -xf "$CACHE/debian.tar"
: >"$root/etc/machine-id"
install "$(command -v nerdctl)" "$root/usr/local/bin/nerdctl"
install "$plane" "$root/usr/local/bin/control-plane"
mkdir "$root/t"
install "$agent" "$root/t/vectorlay-agent"
install scripts/install.sh scripts/vectorlay-agent.service scripts/vectorlay-vfio.service scripts/install-systemd/node \
    "$root/t/"
# An image whose programs are busybox's.
mkdir -p "$work/image/bin" "$work/image/etc"
cp "$root/bin/busybox" "$work/image/bin/busybox"
for applet in sh sleep echo cat; do ln -s busybox "$work/image/bin/$applet"; done
echo 'root:x:0:0:root:/:/bin/sh' >"$work/image/etc/passwd"
tar -C "$work/image" -cf "$root/t/image.tar" .
cat >"$root/etc/systemd/system/trial.service" <<'UNIT'
[Unit]
After=multi-user.target
[Service]
Type=oneshot
ExecStart=/bin/sh -c 'cd /t && sh ./node >/t/said 2>&1; systemctl poweroff --force'
[Install]
WantedBy=graphical.target
UNIT
mkdir -p "$root/etc/systemd/system/graphical.target.wants"
ln -s ../trial.service "$root/etc/systemd/system/graphical.target.wants/trial.service"
ln -sf /lib/systemd/system/graphical.target "$root/etc/systemd/system/default.target"

# Its own network, and cgroups v2, whose containerd part systemd hands down. The system calls are those that containers
# in it need.
begun=$SECONDS
SYSTEMD_NSPAWN_UNIFIED_HIERARCHY=1 timeout --kill-after=5 "$TRIAL_S" systemd-nspawn --quiet --directory "$root" --boot \
    --register=no --keep-unit --private-network --capability=all --system-call-filter="@mount @keyring bpf" \
    --console=pipe </dev/null >"$work/console" 2>&1 || true
cat "$root/t/said" || true
printf 'it took %s s\n' $((SECONDS - begun))
grep -q '^install-systemd: passed' "$root/t/said" || {
    tail -n 5 "$work/console"
    exit 1
}
