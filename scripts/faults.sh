#!/usr/bin/env bash
# The fault suite in full: the real agent and a real engine, hurt again and again. Prints a table: what was injected, how
# often, what was expected, what was lost (0), the latest heartbeat's delay, the time to recover. Takes about ten
# minutes.
#   scripts/faults.sh [NAME…]    only the faults whose tests' names contain one of these
# VECTORLAY_TEST_ROUNDS (default 200) and VECTORLAY_TEST_SEED may be set; so may VECTORLAY_TEST_AGENT, the binary to hurt
# (default: the static one, built first) and VECTORLAY_TEST_ENGINE (nerdctl or docker).
# The exit status is 0 only if nothing was lost.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
# shellcheck source=scripts/engine.sh
. scripts/engine.sh

# The faults may take this long together, in seconds.
FAULTS_S=7200

clean_up() {
    [ -z "${VECTORLAY_TEST_ENGINE_DIR:-}" ] || engine_stop
    [ -z "${report:-}" ] || rm -f "$report"
}

unset VECTORLAY_TEST_ENGINE_DIR
need_rust
trap clean_up EXIT
trap 'exit 130' INT
trap 'exit 143' TERM
report=$(mktemp)
export VECTORLAY_TEST_REPORT=$report VECTORLAY_TEST_ROUNDS=${VECTORLAY_TEST_ROUNDS:-200}
if [ -z "${VECTORLAY_TEST_AGENT:-}" ]; then
    arch=$(uname -m)
    scripts/build-static.sh "$arch"
    export VECTORLAY_TEST_AGENT=$TARGET/static/$arch/vectorlay-agent
fi
cargo test --locked --quiet --no-run --test e2e
tests=$(cargo test --locked --quiet --test e2e -- --list faults:: | sed -n 's/: test$//p' | grep -Fv soak::)
if [ $# -gt 0 ]; then
    tests=$(grep -Ff <(printf '%s\n' "$@") <<<"$tests") || die "no fault's name contains: $*"
fi
engine_start
say "engine: $VECTORLAY_TEST_ENGINE; $VECTORLAY_TEST_ROUNDS rounds"

status=0
# shellcheck disable=SC2086 # names without blanks
timeout "$FAULTS_S" cargo test --locked --test e2e --no-fail-fast -- --nocapture --test-threads 4 --exact $tests ||
    status=$?
[ "$status" != 124 ] || say "the faults were stopped after $FAULTS_S seconds"
{
    printf 'injected\ttimes\texpected\tlost\tlatest heartbeat\trecovery (median)\tseed\n'
    sort "$report"
} | column -t -s "$(printf '\t')"
clean_up
trap - EXIT
exit "$status"
