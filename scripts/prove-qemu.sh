#!/usr/bin/env bash
# Has a container engine of its own start each container in a virtual machine, under the name of Kata's runtime (software
# emulation, Debian's cloud kernel), and `vectorlay-agent prove` find out that it is one.
#   scripts/prove-qemu.sh [AGENT]
# AGENT is a static x86_64 executable (scripts/build-static.sh x86_64 makes it). The engine is Docker. Installs what is
# missing from Debian. Exit status: 0 it is isolated, 77 that cannot be tried here.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
# shellcheck source=scripts/engine.sh
. scripts/engine.sh
# shellcheck source=scripts/guest.sh
. scripts/guest.sh

# One proof may take this long, in seconds: half a minute does where nothing else runs.
PROVE_S=900
# The package of the kernel is that of vfio-qemu.sh.
CACHE=$TARGET/vfio-qemu

clean_up() {
    trap - EXIT
    [ -z "${VECTORLAY_TEST_ENGINE_DIR:-}" ] || engine_stop
    [ -z "${work:-}" ] || rm -rf "$work"
}

install_all() {
    need qemu-system-x86_64=qemu-system-x86 cpio=cpio ldd=libc-bin jq=jq runc=runc
    fetch_kernel
}

# What the runtime goes by, and the root that QEMU has to itself.
make_runtime() {
    local root=$work/root module
    mkdir -p "$root"/{proc,sys,dev,etc,vm,usr/share} "$work/bundles" "$work/base/bin" "$work/base/dev"
    program_into "$root" "$(command -v qemu-system-x86_64)"
    # Its emulation is a module, where Debian has it as one.
    for module in /usr/lib/*/qemu/accel-tcg-x86_64.so; do
        [ ! -e "$module" ] || install -D "$module" "$root$module"
    done
    cp -rL /usr/share/qemu /usr/share/seabios "$root/usr/share/"
    cp "$vmlinuz" "$root/vmlinuz"
    busybox_into "$work/base/bin"
    install scripts/prove-qemu/init "$work/base/init"
    (cd "$work/base" && find . | cpio --quiet -o -H newc) >"$work/base.cpio"
    command -v runc >"$work/runc"
    install -D scripts/prove-qemu/runtime "$work/runtime"
}

[ "$(uname -m)" = x86_64 ] || cannot "only an x86_64 machine can do this"
agent=${1:-$TARGET/static/x86_64/vectorlay-agent}
[ -x "$agent" ] || die "no executable $agent: run scripts/build-static.sh x86_64"
(install_all) || cannot "QEMU or Debian's kernel cannot be had here"

unset VECTORLAY_TEST_ENGINE_DIR
trap clean_up EXIT
trap 'exit 130' INT
trap 'exit 143' TERM
work=$(mktemp -d)
chmod 755 "$work"
unpack_kernel
make_runtime
VECTORLAY_TEST_ENGINE=docker engine_start
sed -i "s|{\"path\": \"runc\"}|{\"path\": \"$work/runtime\"}|" "$VECTORLAY_TEST_ENGINE_DIR/daemon.json"
engine_restart >/dev/null
timeout "$PROVE_S" env -i PATH="$PATH" HOME=/root "$agent" prove --json --container-cli "$VECTORLAY_TEST_CLI" --network none \
    --control-socket "$work/agent.sock" >"$work/proof" || die "it is not proved: $(cat "$work/proof")"
jq . "$work/proof"
jq -e --arg release "$release" '.ok and .isolated and .container.kernel == $release and .start_ms > 0' "$work/proof" \
    >/dev/null || die "that is not what a machine with the kernel $release shows"
left=$("$VECTORLAY_TEST_CLI" ps --all --quiet --filter label=vectorlay.proof)
[ -z "$left" ] || die "something is left: $left"
printf 'prove-qemu: isolated, with kernel %s, in %s ms\n' "$release" "$(jq .start_ms "$work/proof")"
