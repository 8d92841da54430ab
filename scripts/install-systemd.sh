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
# shellcheck source=scripts/install-systemd/system
. scripts/install-systemd/system
PATH=$PATH:/usr/local/sbin:/usr/sbin:/sbin

# The container may run this long, in seconds.
TRIAL_S=900
CACHE=$TARGET/install-systemd

agent=${1:-$TARGET/static/$(uname -m)/vectorlay-agent}
plane=${2:-$TARGET/debug/control-plane}
built "$agent" "scripts/build-static.sh $(uname -m)"
built "$plane" "cargo build --bin control-plane"
[ "$(id -u)" = 0 ] || cannot "a container needs root"
have nerdctl || cannot "there is no nerdctl on the PATH"
(need systemd-nspawn=systemd-container mmdebstrap=mmdebstrap) || cannot "systemd-nspawn or mmdebstrap cannot be had here"

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
trap 'exit 130' INT
trap 'exit 143' TERM
root=$work/root
make_system "$root" 'sh ./node >/t/said 2>&1; systemctl poweroff --force' || cannot "Debian's packages cannot be had here"
install "$plane" "$root/usr/local/bin/control-plane"
install "$agent" "$root/t/vectorlay-agent"
install scripts/install.sh scripts/vectorlay-agent.service scripts/vectorlay-vfio.service scripts/install-systemd/node \
    "$root/t/"

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
