#!/usr/bin/env bash
# Tries mutated bytes on every reader of bytes from outside (the folder fuzz), optimised and with overflow checks, for a
# while each, and says how many inputs that were. CI tries a thousand of each; this is the long form.
#   scripts/fuzz.sh [SECONDS [TARGET]]            60 seconds each; all targets, or one
#   scripts/fuzz.sh --libfuzzer TARGET [SECONDS]  by libFuzzer, which looks for inputs that reach new code; that needs
#                                                 nightly Rust and cargo-fuzz
# The seed is the time of day unless VECTORLAY_FUZZ_SEED is set; it is told, and whatever is found says how to repeat it.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
# shellcheck source=scripts/debian.sh
. scripts/debian.sh

# Building may take this long at most, in seconds.
BUILD_S=3600
# What one of libFuzzer's inputs may take, in seconds and in MiB.
INPUT_S=10
INPUT_MB=512

need_rust
export CARGO_TARGET_DIR=$TARGET/fuzz
if [ "${1:-}" = --libfuzzer ]; then
    [ -n "${2:-}" ] || die "usage: scripts/fuzz.sh --libfuzzer TARGET [SECONDS]"
    cargo +nightly fuzz --version >/dev/null 2>&1 || cannot "nightly Rust or cargo-fuzz is missing (cargo install cargo-fuzz)"
    corpus=$CARGO_TARGET_DIR/corpus
    VECTORLAY_FUZZ_SEEDS=$corpus VECTORLAY_FUZZ_TARGET=$2 bounded "$BUILD_S" "the build" cargo test --locked --quiet --test fuzz -- "$2"
    VECTORLAY_FUZZ_TARGET=$2 cargo +nightly fuzz run reader "$corpus/$2" -- -max_total_time="${3:-60}" -timeout="$INPUT_S" \
        -rss_limit_mb="$INPUT_MB"
    exit
fi

export VECTORLAY_FUZZ_SECONDS=${1:-60} VECTORLAY_FUZZ_TARGET=${2:-}
export VECTORLAY_FUZZ_SEED=${VECTORLAY_FUZZ_SEED:-$(date +%s)}
[ ! -w /dev/shm ] || export TMPDIR=/dev/shm
build=(cargo test --locked --quiet --config 'profile.test.opt-level=2' --config 'profile.test.package."*".opt-level=2' --test fuzz)
bounded "$BUILD_S" "the build" "${build[@]}" --no-run
log=$(mktemp)
trap 'rm -f "$log"' EXIT
trap 'exit 130' INT
trap 'exit 143' TERM
status=0
"${build[@]}" -- --nocapture 2>&1 | tee "$log" || status=$?
awk -v seed="$VECTORLAY_FUZZ_SEED" '/^fuzz: .* inputs/ { n += $3; targets++ }
    END { printf "fuzz: %d inputs in %d targets, seed %s\n", n, targets, seed }' "$log"
exit "$status"
