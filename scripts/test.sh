#!/usr/bin/env bash
# Runs every test: unit, integration, and end to end with the static binary and a container engine of their own.
#   scripts/test.sh [NAME…]    only the tests whose names contain one of these; all of them are built even so
# Installs what is missing from Debian. The last line is the counts; the exit status is 0 only if nothing failed and
# there was something to run.
#
# A test that cannot run here adds a line `NAME: why` to the file $VECTORLAY_TEST_SKIPS and returns: it is listed and
# counted as skipped, not as passed. So are ignored ones. What else tests find in their environment: engine.sh says,
# and VECTORLAY_TEST_AGENT is the static binary (VECTORLAY_TEST_AGENT_AARCH64 the one for that architecture).
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
# shellcheck source=scripts/engine.sh
. scripts/engine.sh

# Building the tests, and running them, may take this long at most, in seconds.
BUILD_S=3600
TEST_S=3600

# Leaves nothing behind, however the script ends, and says the counts last. What ended before the tests counts as one
# that failed.
total="0 passed, 1 failed, 0 skipped"
# shellcheck disable=SC2317 # the trap calls it
clean_up() {
    [ -z "${VECTORLAY_TEST_ENGINE_DIR:-}" ] || engine_stop
    [ -z "${log:-}" ] || rm -f "$log" "$VECTORLAY_TEST_SKIPS"
    tell_installed
    printf '%s\n' "$total"
}

# Adds up what cargo said about each test program, takes what tests skipped from what passed, prints the counts.
counts() {
    awk -v status="$status" -v skips="$(sort -u "$VECTORLAY_TEST_SKIPS" | wc -l)" '
        /^test result: / {
            for (i = 2; i <= NF; i++) {
                if ($i == "passed;") passed += $(i - 1)
                if ($i == "failed;") failed += $(i - 1)
                if ($i == "ignored;") skipped += $(i - 1)
            }
        }
        # A test program that died said nothing about its tests.
        END { if (status != 0 && failed == 0) failed = 1
              printf "%d passed, %d failed, %d skipped\n", passed - skips, failed, skipped + skips }' "$log"
}

# One that is left from `eval "$(scripts/engine.sh start)"` is not ours to stop.
unset VECTORLAY_TEST_ENGINE_DIR
trap clean_up EXIT
trap 'exit 130' INT
trap 'exit 143' TERM
note_installed
need_rust
need lspci=pciutils openssl=openssl
log=$(mktemp)
VECTORLAY_TEST_SKIPS=$(mktemp)
export VECTORLAY_TEST_SKIPS

arch=$(uname -m)
scripts/build-static.sh
export VECTORLAY_TEST_AGENT=$TARGET/static/$arch/vectorlay-agent
# The other architecture's binary runs as a program of its own under QEMU.
need qemu-aarch64-static=qemu-user-static
export VECTORLAY_TEST_AGENT_AARCH64=$TARGET/static/aarch64/vectorlay-agent
bounded "$BUILD_S" "building the tests" cargo test --locked --quiet --no-run
engine_start
engine_registry
say "engine: $VECTORLAY_TEST_ENGINE ($VECTORLAY_TEST_CLI)"

# Most tests wait for an engine or a deadline and leave the processors idle.
export RUST_TEST_THREADS=${RUST_TEST_THREADS:-$((3 * $(nproc)))}
status=0
timeout "$TEST_S" cargo test --locked --no-fail-fast -- "$@" 2>&1 | tee "$log" || status=$?
[ "$status" != 124 ] || say "the tests were stopped after $TEST_S seconds"
total=$(counts)
if [ "$status" = 0 ] && [ "$total" = "0 passed, 0 failed, 0 skipped" ]; then
    say "no test's name contains: $*; cargo test -- --list names them all"
    status=1
fi
sort -u "$VECTORLAY_TEST_SKIPS" | sed 's/^/skipped: /'
exit "$status"
