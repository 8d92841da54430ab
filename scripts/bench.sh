#!/usr/bin/env bash
# Measures the agent beside what could be run in its place, in one run and in turn: an agent in Node.js and one in Go
# (tests/bench/), the CLI by hand, and a program that does nothing but beat. Prints tables in Markdown; a goal that is
# missed is marked. Times mean something beside each other only: machines differ, and so do their days.
#   scripts/bench.sh [--quick] [--build] [--previous BINARY] [--compare FILE] [--json FILE] [--markdown FILE]
# --quick       under 2 minutes: a few commands with a stand-in CLI; what else takes long is left out
# --build       builds the tests in an empty folder too, which takes minutes
# --previous    an earlier agent's binary, as one more rival
# --compare     the JSON of an earlier run on this machine: prints how each figure compares
# With an engine (eval "$(scripts/engine.sh start)") deploys and stops are measured with that as well. What is missing on
# this machine (node, go, valgrind) is named and left out. VECTORLAY_BENCH_AGENT: the agent's binary, if not the one that
# scripts/build-static.sh makes now. Ends with 1 only if the agent is worse than a rival of the same run, or than itself
# with fewer replicas, by more than it may be.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
# shellcheck source=scripts/debian.sh
. scripts/debian.sh

# Building each of the programs may take this long at most, in seconds, building the agent in Go with the package that is
# fetched for it, fetching the package `ws`, and measuring.
BUILD_S=3600
GO_S=600
FETCH_S=60
MEASURE_S=1800

options=() skipped=() quick='' build=''
while [ $# -gt 0 ]; do
    case "$1" in
        --quick) quick=1 options+=(--quick=yes) ;;
        --build) build=1 ;;
        --previous | --compare | --json | --markdown)
            [ $# -gt 1 ] || die "$1 needs a file"
            options+=("$1=$(realpath "$2")")
            shift
            ;;
        *) die "usage: scripts/bench.sh [--quick] [--build] [--previous BINARY] [--compare FILE] [--json FILE] [--markdown FILE]" ;;
    esac
    shift
done

need_rust
need gcc=gcc /usr/include/stdlib.h=libc6-dev openssl=openssl
# Not below /tmp: the agent starts no program in a place that others can change.
mkdir -p "$TARGET"
work=$(mktemp -d "$TARGET/bench.XXXXXX")
trap 'rm -rf "$work"' EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

if [ -n "${VECTORLAY_BENCH_AGENT:-}" ]; then
    agent=$VECTORLAY_BENCH_AGENT
else
    scripts/build-static.sh "$(uname -m)" >&2
    agent=$TARGET/static/$(uname -m)/vectorlay-agent
fi
gcc -O2 -static -o "$work/stand-in" tests/bench/cli.c
gcc -O2 -static -o "$work/floor" tests/bench/floor.c
options+=("--folder=$work" "--agent=$agent" "--stand-in=$work/stand-in" "--floor=$work/floor")

if have go && (cd tests/bench/go && CGO_ENABLED=0 timeout "$GO_S" go build -trimpath -ldflags=-s -o "$work/go" .) >&2; then
    options+=("--go=$work/go")
else
    skipped+=("Go")
fi
if have node; then
    mkdir "$work/node"
    cp tests/bench/agent.mjs "$work/node"
    if [ -z "$quick" ] && ! (cd "$work/node" && timeout "$FETCH_S" npm install --silent --no-audit --no-fund ws) >&2; then
        skipped+=("the package ws for Node.js: its agent speaks RFC 6455 by itself")
    fi
    options+=("--node=$work/node/agent.mjs")
else
    skipped+=("Node.js")
fi
have valgrind || skipped+=("instructions (valgrind)")
if [ -n "${VECTORLAY_TEST_CLI:-}" ]; then
    runtime=runc
    [ "$VECTORLAY_TEST_ENGINE" = docker ] || runtime=io.containerd.runc.v2
    options+=("--cli=$VECTORLAY_TEST_CLI" "--image=$VECTORLAY_TEST_IMAGE" "--runtime=$runtime")
else
    skipped+=("a real engine (scripts/engine.sh)")
fi

# A quick run takes what the tests are built with. Else without the checks of debug builds, which look at every replica.
how=(--profile test)
if [ -z "$quick" ]; then
    how=(--config profile.dev.package.vectorlay-agent.debug-assertions=false)
fi
bench=$(bounded "$BUILD_S" "building the benchmark" cargo build --locked --quiet --bench bench "${how[@]}" \
    --message-format=json | sed -n 's/.*"executable":"\([^"]*\)".*/\1/p' | tail -n 1)
[ -n "$bench" ] || die "cargo named no benchmark"

# Processor time too: it says more than the clock on a machine that others use.
if [ -n "$build" ]; then
    say "building the tests in an empty folder"
    TIMEFORMAT='%R %U %S'
    { time CARGO_TARGET_DIR=$work/build bounded "$BUILD_S" "building the tests" \
        cargo test --locked --quiet --no-run >/dev/null 2>"$work/build.log"; } 2>"$work/build.time" ||
        die "the tests cannot be built: $(tail -n 5 "$work/build.log")"
    read -r clock user system <"$work/build.time"
    options+=("--build-clock=$clock" "--build-processor=$(awk "BEGIN { print $user + $system }")"
        "--build-mb=$(du -sm "$work/build" | cut -f1)")
    rm -rf "$work/build"
fi

versions="agent $("$agent" version | tr '\n' ' ')"
! have go || versions+="; $(go version)"
! have node || versions+="; node $(node --version)"
[ -z "${VECTORLAY_TEST_CLI:-}" ] || versions+="; $("$VECTORLAY_TEST_CLI" --version)"
model=$(sed -n 's/^model name[^:]*: //p' /proc/cpuinfo | head -n 1)
timeout "$MEASURE_S" "$bench" "${options[@]}" "--date=$(date -u +%Y-%m-%d)" "--kernel=$(uname -sr)" \
    "--machine=$(nproc) × ${model:-$(uname -m)}, load $(cut -d' ' -f1 /proc/loadavg) at the start" \
    "--disk=$(findmnt -no FSTYPE -T "$work")" "--versions=$versions" "--skipped=$(IFS=,; printf '%s' "${skipped[*]}")"
