#!/usr/bin/env bash
# Shows the whole life of a node, with the real messages, and how another one takes over its work: the reference control
# plane, container engines of its own and the agent, on this machine alone. Installs what is missing from Debian, builds,
# cleans up.
#   scripts/demo.sh [--verbose]    with the whole messages, as JSON
# Without colours where NO_COLOR is set or standard output is no terminal.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
# shellcheck source=scripts/engine.sh
. scripts/engine.sh

# Building may take this long at most, and waiting for any one thing, in seconds.
BUILD_S=3600
WAIT_S=120
TOKEN=vtk_demo
REPLICA=hello-1

# Leaves nothing behind, however the script ends.
clean_up() {
    trap - EXIT
    end "${agent:-}"
    end "${other_agent:-}"
    end "${server:-}"
    [ -z "${other_engine:-}" ] || engine_stop "$other_engine"
    [ -z "${VECTORLAY_TEST_ENGINE_DIR:-}" ] || engine_stop
    [ -z "${dir:-}" ] || rm -rf "$dir"
    tell_installed
}

# end PID: asks a process of ours to end and waits for it, not for ever.
end() {
    [ -n "$1" ] || return 0
    kill "$1" 2>/dev/null || return 0
    timeout 40 tail --pid="$1" -f /dev/null || kill -9 "$1" 2>/dev/null || true
    wait "$1" 2>/dev/null || true
}

bold='' plain=''
[ ! -t 1 ] || [ -n "${NO_COLOR:-}" ] || bold=$'\033[1m' plain=$'\033[0m'
step() { printf '\n%s%s%s\n' "$bold" "$*" "$plain"; }
shown() { sed -E 's/^/    /'; }

# told: what a message of the agent says, in a line; `NODE TYPE JSON` is what the control plane prints of it.
told() {
    local line node type payload
    read -r line
    read -r node type payload <<<"$line"
    if [ -n "$verbose" ] || ! jq -e . >/dev/null 2>&1 <<<"$payload"; then
        printf '%s\n' "$line"
        return
    fi
    printf '%s %s: ' "$node" "$type"
    jq -r --arg type "$type" '
        def with_reason($reason): if ($reason // "") == "" then . else . + " (" + $reason + ")" end;
        def count($noun): "\(.) \($noun)" + (if . == 1 then "" else "s" end);
        if $type == "system_info" then
            [(.cpuCores // "?" | count("CPU")), "\(.ramGb // "?") GiB", ((.gpuInfo // []) | length | count("GPU")),
             "\(.storage.total_gb // "?") GB of disk",
             if .dependencies.ready then "ready" else
                "not ready: " + ([.dependencies.checks // {} | to_entries[] | select(.value.installed == false) | .key]
                    | if . == [] then "not checked yet" else "no " + join(", no ") end) end] | join(", ")
        elif $type == "heartbeat" then .status |
            [.state, ((.containers // []) | if . == [] then "no containers" else
                map("\(.replica_id) \(.status)") | join(" and ") end)] | join(", ")
        elif $type == "node_state" then .state | with_reason($p.reason)
        else ([.replica_id, .status, (.exit_code | values | "exit code \(.)"), (.code | values), (.error | values)]
            | map(select(. != null)) | join(", ")) end' --argjson p "$payload" <<<"$payload"
}

# await FILE PATTERN [FROM]: waits for a line of FILE, after line FROM, that matches, and shows it.
await() {
    local line end=$((SECONDS + WAIT_S))
    while ! line=$(tail -n "+$((${3:-0} + 1))" "$1" | grep -m1 -E -- "$2"); do
        [ "$SECONDS" -lt "$end" ] || { tail -n 20 "$dir"/*.log >&2; die "no line like '$2' within $WAIT_S s"; }
        kill -0 "$server" 2>/dev/null || die "the control plane ended: $(tail -n 3 "$dir/server.log")"
        sleep 0.1
    done
    printf '%s\n' "$line" | told | shown
}

lines() { wc -l <"$1"; }

# start_server [FLAG…]: the control plane, which keeps what it knows in a file.
start_server() {
    "$TARGET/debug/control-plane" --token "$TOKEN" --state "$dir/server.json" "$@" </dev/null >>"$dir/server.log" 2>&1 &
    server=$!
}

# The agent, in an environment without the settings of this script's engine.
run_agent() { exec env -i PATH="$PATH" HOME="${HOME:-/root}" "$TARGET/static/$(uname -m)/vectorlay-agent" "$@"; }

# node_agent NAME CLI NAMESPACE: becomes the agent of one of the nodes, each of which has its files by its name.
node_agent() {
    run_agent --instance "$1" --images '*,127.0.0.1:1' --url "$url" --token-file "$dir/token" --state-dir "$dir/$1" \
        --control-socket "$dir/$1.sock" --container-cli "$2" ${3:+--namespace "$3"} --log-dir "$dir/$1-logs" \
        --min-free-gb 0 >>"$dir/$1.log" 2>&1
}

# post PATH JSON: what an operator of the control plane would do.
post() { curl -fsS -m 10 -X POST "$api/nodes/$node/$1" -d "$2" >/dev/null; }

verbose=
case "${1:-}" in
    "") ;;
    --verbose) verbose=1 ;;
    *) die "usage: scripts/demo.sh [--verbose]" ;;
esac
unset VECTORLAY_TEST_ENGINE_DIR
trap clean_up EXIT
trap 'exit 130' INT
trap 'exit 143' TERM
note_installed
need_rust
need curl=curl lspci=pciutils jq=jq
say "building"
bounded "$BUILD_S" "the build" cargo build --locked --quiet --bin control-plane
# Only a static program can be the image of a proof.
scripts/build-static.sh "$(uname -m)"
say "starting a container engine of its own"
engine_start
dir=$(mktemp -d)
: >"$dir/server.log"
: >"$dir/first.log"
printf '%s\n' "$TOKEN" >"$dir/token"
chmod 600 "$dir/token"

step "1. A control plane listens."
start_server
await "$dir/server.log" '^listening on '
await "$dir/server.log" '^api on '
url=$(sed -n 's/^listening on //p' "$dir/server.log" | tail -n 1)
api=$(sed -n 's/^api on //p' "$dir/server.log" | tail -n 1)

step "2. The agent starts on a new node: it has an organisation token, and registers."
namespace=()
[ -z "${VECTORLAY_TEST_NAMESPACE:-}" ] || namespace=(--namespace "$VECTORLAY_TEST_NAMESPACE")
node_agent first "$VECTORLAY_TEST_CLI" "${VECTORLAY_TEST_NAMESPACE:-}" &
agent=$!
await "$dir/server.log" ' registered '
node=$(grep -m1 ' registered ' "$dir/server.log" | cut -d' ' -f2)

step "3. It saves its identity, for root alone."
await "$dir/first.log" 'this node is '
stat -c '%A %U %s bytes  %n' "$dir/first/node.json" | shown

step "4. It connects, says what the machine is, and sends its first heartbeat."
await "$dir/server.log" "^$node system_info"
await "$dir/server.log" "^$node heartbeat"
say "    (The demo's engine starts runc under the name of Kata's runtime. So containers run here without Kata, and the"
say "    node says that it is degraded. A host of yours needs Kata, or the setting runtime with another one's name.)"

step "5. Does a container really start here, in a microVM of its own? One of the agent's own shows it."
{ (run_agent prove --container-cli "$VECTORLAY_TEST_CLI" "${namespace[@]}" --control-socket "$dir/first.sock") || true; } | shown
say "    (A node that lacks nothing does this by itself, and tells the control plane. Nothing of it stays:"
say "    containers with its label: $("$VECTORLAY_TEST_CLI" "${namespace[@]}" ps --all --quiet --filter label=vectorlay.proof | wc -l))"

step "6. The control plane deploys a replica: a real container starts, and the result is reported."
image=${VECTORLAY_TEST_IMAGE:-vectorlay-test/busybox:1}
printf -v deploy '{"replica_id":"%s","image":"%s","env_vars":{"GREETING":"two lines,\\nexactly as sent"}}' \
    "$REPLICA" "$image"
printf 'deploy %s\n' "$deploy" | shown
post deploy "$deploy"
await "$dir/server.log" "^$node replica_status .*starting"
await "$dir/server.log" "^$node deploy_result "
container=$(grep -m1 "^$node deploy_result " "$dir/server.log" | sed -E 's/.*"container_id":"([0-9a-f]+)".*/\1/')
"$VECTORLAY_TEST_CLI" "${namespace[@]}" ps --filter "label=vectorlay.replica" | shown
say "    its environment, read inside the container:"
# shellcheck disable=SC2016 # the container's shell is to expand it
"$VECTORLAY_TEST_CLI" "${namespace[@]}" exec "$container" sh -c 'printf "[%s]\n" "$GREETING"' | shown

step "7. Another replica ends by itself: its exit code is known at once."
post deploy "{\"replica_id\":\"short-1\",\"image\":\"$image\",\"command\":[\"sh\",\"-c\",\"sleep 1; exit 7\"]}"
await "$dir/server.log" "^$node replica_status .*exited"

step "8. An image that does not exist: the engine's own words come back."
post deploy "{\"replica_id\":\"missing-1\",\"image\":\"127.0.0.1:1/no/such:1\"}"
await "$dir/server.log" "^$node deploy_result .*missing-1"

step "9. The control plane is killed. The agent says so, and the container goes on running."
from=$(lines "$dir/first.log")
kill -9 "$server"
wait "$server" 2>/dev/null || true
port=${url#ws://}
port=${port%%/*}
start_server --listen "$port"
await "$dir/first.log" 'next attempt in' "$from"
"$VECTORLAY_TEST_CLI" "${namespace[@]}" ps --filter "label=vectorlay.replica" | shown

step "10. About 5 seconds later it is connected again, and reports the same container."
await "$dir/first.log" 'connected to the control plane' "$from"
api=$(sed -n 's/^api on //p' "$dir/server.log" | tail -n 1)
await "$dir/server.log" "^$node heartbeat .*$REPLICA" "$(grep -n '^listening on' "$dir/server.log" | tail -n 1 | cut -d: -f1)"

step "11. It goes on: the operator's view, then the control plane stops the replica."
# It is degraded here, which is no success. (The agent takes the place of the inner shell.)
{ (run_agent status --control-socket "$dir/first.sock") || true; } | shown
post stop "{\"replica_id\":\"$REPLICA\",\"timeout_s\":5}"
await "$dir/server.log" "^$node stop_result "

step "12. A heartbeat every 30 seconds."
await "$dir/server.log" "^$node heartbeat " "$(lines "$dir/server.log")"

step "13. The agent is told to end: it closes its connection properly and exits."
from=$(lines "$dir/server.log")
kill "$agent"
await "$dir/server.log" ' disconnected ' "$from"
status=0
wait "$agent" || status=$?
agent=
printf 'exit status %s\n' "$status" | shown
[ "$status" = 0 ] || die "the agent ended with status $status"

step "14. A second node, on an engine of its own; and the first one is started again."
other=$(unset VECTORLAY_TEST_ENGINE_DIR && VECTORLAY_TEST_ENGINE=$VECTORLAY_TEST_ENGINE "$ENGINE_SCRIPT" start)
of_other() { (eval "$other" && printf '%s' "${!1:-}"); }
other_engine=$(of_other VECTORLAY_TEST_ENGINE_DIR)
from=$(lines "$dir/server.log")
: >"$dir/second.log"
node_agent second "$(of_other VECTORLAY_TEST_CLI)" "$(of_other VECTORLAY_TEST_NAMESPACE)" &
other_agent=$!
await "$dir/server.log" ' registered ' "$from"
other_node=$(tail -n "+$((from + 1))" "$dir/server.log" | grep -m1 ' registered ' | cut -d' ' -f2)
node_agent first "$VECTORLAY_TEST_CLI" "${VECTORLAY_TEST_NAMESPACE:-}" &
agent=$!
await "$dir/server.log" "^$other_node heartbeat " "$from"
await "$dir/server.log" "^$node heartbeat " "$from"
from=$(lines "$dir/server.log")
post deploy "{\"replica_id\":\"moved-1\",\"image\":\"$image\"}"
await "$dir/server.log" "^$node deploy_result .*moved-1" "$from"

step "15. The first node is gone without a word. After a minute of silence its replica is started on the second one."
from=$(lines "$dir/server.log")
kill -9 "$agent"
wait "$agent" 2>/dev/null || true
await "$dir/server.log" "^$other_node deploy_result .*moved-1" "$from"

step "16. The first node comes back. Its container ran on meanwhile; it is told to stop it."
from=$(lines "$dir/server.log")
node_agent first "$VECTORLAY_TEST_CLI" "${VECTORLAY_TEST_NAMESPACE:-}" &
agent=$!
await "$dir/server.log" "^$node stop_result .*moved-1" "$from"
await "$dir/server.log" "^$other_node heartbeat .*moved-1.*running" "$from"
step "That was the life of two nodes."
