#!/usr/bin/env bash
# Builds the agent as a stripped, fully static musl binary: target/static/<arch>/vectorlay-agent, or the
# same below CARGO_TARGET_DIR.
#   scripts/build-static.sh [x86_64|aarch64]    both without an argument
# Fails when a binary is not static or names a path of this machine, and where CI is set also when it is larger than its
# budget.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
# shellcheck source=scripts/debian.sh
. scripts/debian.sh

# The most that one binary may weigh, in bytes: room for readable code, and a sudden growth is still noticed.
MAX_BYTES=2750000
# A cold build takes about a minute of two idle cores; one that takes this long, in seconds, hangs.
BUILD_S=3600

# What `vectorlay-agent version` says of the sources. The commit's date, not today's: the same sources give the same binary.
VECTORLAY_COMMIT=$(git describe --always --dirty --abbrev=12 --exclude='*' 2>/dev/null || true)
VECTORLAY_BUILD_DATE=$(git log -1 --format=%cs 2>/dev/null || true)
: "${VECTORLAY_COMMIT:=unknown}" "${VECTORLAY_BUILD_DATE:=unknown}"
export VECTORLAY_COMMIT VECTORLAY_BUILD_DATE

# build ARCH: compiles, checks and puts the binary in its place.
build() {
    local arch=$1 target=$1-unknown-linux-musl out=$TARGET/static/$1/vectorlay-agent
    need_target "$target"
    choose_compiler "$arch"
    choose_flags "$arch"
    compile "$target"
    check_static "$TARGET/$target/release/vectorlay-agent"
    check_paths "$TARGET/$target/release/vectorlay-agent"
    mkdir -p "${out%/*}"
    cp "$TARGET/$target/release/vectorlay-agent" "$out.new"
    mv "$out.new" "$out"
    check_size "$out"
}

# The standard library for the target; musl itself comes with it.
need_target() {
    local sysroot
    sysroot=$(rustc --print sysroot)
    [ ! -d "$sysroot/lib/rustlib/$1/lib" ] || return 0
    have rustup || die "missing: the Rust target $1 (there is no rustup to add it with)"
    say "adding the Rust target $1"
    timeout 300 rustup target add "$1" >&2 || die "rustup could not add the target $1"
}

# Sets CC and AR. ring compiles C, for which plain gcc will do, with Debian's cross compiler for another architecture.
choose_compiler() {
    local arch=$1 debian=${1/x86_64/x86-64} libc=$1
    [ "$arch" != aarch64 ] || libc=arm64
    [ "$arch" != x86_64 ] || libc=amd64
    if [ "$arch" = "$(uname -m)" ]; then
        need gcc=gcc /usr/include/stdlib.h=libc6-dev
        CC=gcc AR=ar
    else
        need "$arch-linux-gnu-gcc=gcc-$debian-linux-gnu" "/usr/$arch-linux-gnu/include/stdlib.h=libc6-dev-$libc-cross"
        CC=$arch-linux-gnu-gcc AR=$arch-linux-gnu-ar
    fi
}

# Sets FLAGS, for rustc. Rust brings its own musl and its own linker, which knows every architecture. What the flags
# save of the x86_64 binary: no tables for unwinding, which nobody reads, since a panic aborts and the binary is
# stripped, 312 KB; the unwinder, which can do nothing without those tables: its entries lead to abort(), where a panic
# ends anyhow once its message is written, 56 KB; what std prints backtraces with, since src/main.rs has a walk over the
# stack that finds nothing, which counts before the unwinder's own, 190 KB; functions that compile to the same code kept
# once, 11 KB; relocations packed, 82 KB.
choose_flags() {
    local registry
    FLAGS=(
        -C force-unwind-tables=no
        -C link-arg=--script="$PWD/scripts/no-unwind.ld"
        -C link-arg=--no-eh-frame-hdr
        -C link-arg=--allow-multiple-definition
        -C link-arg=--defsym=_Unwind_RaiseException=abort
        -C link-arg=--defsym=_Unwind_Resume=abort
        -C link-arg=--icf=all
        # No panic's message shall name where this machine keeps the sources, its own or the crates'. Those of the
        # standard library are named as it was built, whether or not rustup's rust-src is there.
        --remap-path-prefix="$(rustc --print sysroot)/lib/rustlib/src/rust=/rustc/$(rustc -vV | sed -n 's/^commit-hash: //p')"
        --remap-path-prefix="${CARGO_HOME:-$HOME/.cargo}=/cargo"
        --remap-path-prefix="$PWD=/vectorlay"
    )
    # A crate's name and version say enough: 8 KB less.
    cargo fetch --locked --quiet
    for registry in "${CARGO_HOME:-$HOME/.cargo}"/registry/src/*/; do FLAGS+=(--remap-path-prefix="$registry="); done
    # Rust's aarch64 musl target makes an executable with a fixed address, which has nothing to relocate.
    [ "$1" != x86_64 ] || FLAGS+=(-C link-arg=-zpack-relative-relocs)
}

# Everything is handed over in the environment of this one call, so that other builds here are not disturbed.
compile() {
    local target=$1 lower=${1//-/_} upper
    upper=${lower^^}
    say "building for $target"
    # 0x1f is what cargo splits the encoded flags at: a path may hold spaces.
    bounded "$BUILD_S" "the build for $target" env "CC_$lower=$CC" "AR_$lower=$AR" "CARGO_TARGET_${upper}_LINKER=rust-lld" \
        "CARGO_ENCODED_RUSTFLAGS=$(IFS=$'\x1f'; printf '%s' "${FLAGS[*]}")" \
        CARGO_TARGET_DIR="$TARGET" CARGO_INCREMENTAL=0 \
        cargo build --locked --quiet --release --target "$target" --bin vectorlay-agent
}

# Static means: no interpreter to load it, and no library that it needs.
check_static() {
    need readelf=binutils
    if readelf -lW "$1" | grep -q INTERP; then die "$1 is not static: it names an interpreter"; fi
    if readelf -dW "$1" | grep -q NEEDED; then die "$1 is not static: it needs a library"; fi
    if readelf -SW "$1" | grep -q '\.symtab'; then die "$1 is not stripped"; fi
    case "$1" in
        */x86_64-*) readelf -hW "$1" | grep -q 'Type: *DYN' || die "$1 is not position-independent" ;;
    esac
}

# A panic's message names its source file; none of them may name where this machine keeps it.
check_paths() {
    local path
    for path in "$PWD/" "${CARGO_HOME:-$HOME/.cargo}/" "$(rustc --print sysroot)/"; do
        if grep -qaF -- "$path" "$1"; then die "$1 names a path of this machine: $path"; fi
    done
}

check_size() {
    local bytes
    bytes=$(stat -c %s "$1")
    printf '%s  %s bytes (budget %s)\n' "$1" "$bytes" "$MAX_BYTES"
    [ "$bytes" -gt "$MAX_BYTES" ] || return 0
    # Someone who only builds it is not kept from that: it works all the same.
    [ -z "${CI:-}" ] || die "$1 is $((bytes - MAX_BYTES)) bytes above its budget"
    say "$1 is $((bytes - MAX_BYTES)) bytes above its budget"
}

need_rust
case "${1:-both}" in
    x86_64 | aarch64) build "$1" ;;
    both)
        build x86_64
        build aarch64
        ;;
    *) die "usage: scripts/build-static.sh [x86_64|aarch64]" ;;
esac
