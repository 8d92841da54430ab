#!/usr/bin/env bash
# Tries installing and running under OpenRC for real: Debian with sysvinit's init as PID 1 of a container (systemd-nspawn)
# and OpenRC for its services. There is no container engine: the node is degraded, and connected.
#   scripts/install-openrc.sh [AGENT [CONTROL-PLANE]]
# AGENT and CONTROL-PLANE as for install-systemd.sh. What is tried stands in install-test/trial, and is the same as under
# busybox init; that the service stops, starts and reloads as an operator would have it comes on top. Needs root, installs what
# is missing from Debian, and takes a minute, the first time some more. Exit status: 0 all checks passed, 77 it cannot be
# done here.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
# shellcheck source=scripts/debian.sh
. scripts/debian.sh
PATH=$PATH:/usr/local/sbin:/usr/sbin:/sbin

# Making the system, and trying it, may take this long, in seconds.
SYSTEM_S=1200
TRIAL_S=600
CACHE=$TARGET/install-openrc

agent=${1:-$TARGET/static/$(uname -m)/vectorlay-agent}
plane=${2:-$TARGET/debug/control-plane}
built "$agent" "scripts/build-static.sh $(uname -m)"
built "$plane" "cargo build --bin control-plane"
[ "$(id -u)" = 0 ] || cannot "a container needs root"
(need systemd-nspawn=systemd-container mmdebstrap=mmdebstrap) || cannot "systemd-nspawn or mmdebstrap cannot be had here"

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
trap 'exit 130' INT
trap 'exit 143' TERM
root=$work/root
mkdir -p "$CACHE" "$root"
if [ ! -e "$CACHE/debian.tar" ]; then
    say "making a Debian system"
    timeout "$SYSTEM_S" mmdebstrap --quiet --format=tar --variant=minbase \
        --include=openrc,sysvinit-core,sysvinit-utils,procps,iproute2 bookworm "$CACHE/debian.tar.new" ||
        cannot "Debian's packages cannot be had here"
    mv "$CACHE/debian.tar.new" "$CACHE/debian.tar"
fi
tar -C "$root" -xf "$CACHE/debian.tar"
mkdir "$root/t"
install scripts/install.sh scripts/vectorlay-agent.openrc scripts/install-test/trial "$root/t/"
install "$agent" "$root/t/vectorlay-agent"
install "$plane" "$root/usr/local/bin/control-plane"
cat >"$root/t/begin" <<'BEGIN'
#!/bin/sh
# The last thing that init starts.
/usr/local/bin/control-plane --token vtk_trial --listen 127.0.0.1:7000 --state /t/plane.json </dev/null >/t/plane 2>&1 &
exec /t/trial openrc
BEGIN
chmod 755 "$root/t/begin"
echo 'tr:2345:once:/t/begin' >>"$root/etc/inittab"

begun=$SECONDS
timeout --kill-after=5 "$TRIAL_S" systemd-nspawn --quiet --directory "$root" --boot --register=no --keep-unit \
    --private-network --console=pipe </dev/null >"$work/console" 2>&1 || true
cat "$root/t/said" || true
printf 'it took %s s\n' $((SECONDS - begun))
if ! tail -n 1 "$root/t/said" | grep -qx end || grep -q ^FAILED "$root/t/said"; then
    tail -n 20 "$work/console"
    exit 1
fi
