#!/usr/bin/env bash
# The soak: deploys and stops in a loop with faults among them, while the agent's memory, descriptors, threads and
# children are measured. Prints a table and a verdict.
#   scripts/soak.sh [--minutes N]    default 20
# VECTORLAY_TEST_SEED, VECTORLAY_TEST_AGENT (the binary; default: the static one, built first) and VECTORLAY_TEST_ENGINE
# (nerdctl or docker) may be set. The exit status is 0 only if all stayed flat and nothing was lost.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
# shellcheck source=scripts/engine.sh
. scripts/engine.sh

# What the start and the end of a soak may take beyond its minutes, in seconds.
EXTRA_S=900

clean_up() { [ -z "${VECTORLAY_TEST_ENGINE_DIR:-}" ] || engine_stop; }

minutes=20
case "${1:-}" in
    "") ;;
    --minutes) minutes=${2:-} ;;
    *) minutes= ;;
esac
case "$minutes" in
    "" | *[!0-9]* | 0) die "usage: scripts/soak.sh [--minutes N]" ;;
esac

unset VECTORLAY_TEST_ENGINE_DIR
need_rust
trap clean_up EXIT
trap 'exit 130' INT
trap 'exit 143' TERM
if [ -z "${VECTORLAY_TEST_AGENT:-}" ]; then
    arch=$(uname -m)
    scripts/build-static.sh "$arch"
    export VECTORLAY_TEST_AGENT=$TARGET/static/$arch/vectorlay-agent
fi
cargo test --locked --quiet --no-run --test e2e
engine_start
say "engine: $VECTORLAY_TEST_ENGINE; $minutes minutes"
export VECTORLAY_TEST_SOAK_S=$((minutes * 60))
timeout $((minutes * 60 + EXTRA_S)) cargo test --locked --quiet --test e2e -- --ignored --exact --nocapture faults::soak::soak
