#!/usr/bin/env bash
# Tries install.sh without a virtual machine:
#   - into the folder of a system, for each init, by dash and by busybox ash;
#   - under busybox init as PID 1 of namespaces of its own, with the agent and the reference control plane: install,
#     again, upgrade, a broken upgrade, uninstall. There is no container engine: the node is degraded, and connected.
#   scripts/install-test.sh [AGENT CONTROL-PLANE]    without them, or not as root, only the first part
# systemd is tried by install-systemd.sh. Needs a static busybox. The last line says how many checks passed and failed.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
# shellcheck source=scripts/debian.sh
. scripts/debian.sh
exec </dev/null

TRIAL_S=600
PASSED=0
FAILED=0
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

# is WHAT COMMAND…
is() {
    if "${@:2}" >"$work/out" 2>&1; then
        PASSED=$((PASSED + 1))
    else
        FAILED=$((FAILED + 1))
        printf 'FAILED  %s: %s\n' "$shell" "$1"
        tail -n 8 "$work/out" | sed 's/^/    | /'
    fi
}
refuses() { is "$1" fails "${@:2}"; }
fails() { ! "$@"; }
mode() { [ "$(stat -c %a "$root$1")" = "$2" ]; }
has() { grep -qF -- "$2" "$root$1"; }
out_has() { grep -qF -- "$1" "$work/last"; }
absent() { [ ! -e "$root$1" ] && [ ! -L "$root$1" ]; }
installer() { $shell scripts/install.sh --root "$root" "$@" >"$work/last" 2>&1 || { cat "$work/last"; return 1; }; }

# into_folder: SHELL installs into a folder, for each init.
into_folder() {
    local init files
    printf 'the program\n' >"$work/program"
    printf 'vtk_secret\n' >"$work/token"
    for init in systemd openrc busybox; do
        root=$work/root-$init
        mkdir -p "$root/etc"
        echo '::sysinit:/bin/true' >"$root/etc/inittab"
        is "$init: install" installer --init $init --binary "$work/program" --url 'wss://c.example/a"b' \
            --token-file "$work/token" --set workers=3 --set allow_insecure=true --set namespace=with\\slash
        is "$init: the program" cmp "$work/program" "$root/usr/local/bin/vectorlay-agent"
        is "$init: the program's mode" mode /usr/local/bin/vectorlay-agent 755
        is "$init: the token's mode" mode /etc/vectorlay/token 600
        is "$init: settings" jq -e '. == {url: "wss://c.example/a\"b", token_file: "/etc/vectorlay/token", workers: 3,
            allow_insecure: true, namespace: "with\\slash"}' "$root/etc/vectorlay/agent.json"
        is "$init: the token is in no other file" fails grep -rl vtk_secret "$root" --exclude=token
        case $init in
            systemd) files="/etc/systemd/system/vectorlay-agent.service /etc/systemd/system/vectorlay-vfio.service
                /etc/systemd/system/multi-user.target.wants/vectorlay-agent.service" ;;
            openrc) files="/etc/init.d/vectorlay-agent /etc/runlevels/default/vectorlay-agent" ;;
            busybox) files=/usr/local/bin/vectorlay-supervise ;;
        esac
        for file in $files; do is "$init: $file" fails absent "$file"; done
        [ $init != busybox ] || is "inittab" has /etc/inittab "::respawn:/usr/local/bin/vectorlay-supervise"
        find "$root" -type f -exec ls -l --time-style=full-iso {} + | sort >"$work/before"
        is "$init: again" installer --init $init --binary "$work/program"
        find "$root" -type f -exec ls -l --time-style=full-iso {} + | sort >"$work/after"
        is "$init: again, nothing is written" cmp "$work/before" "$work/after"
        is "$init: other settings" installer --init $init --binary "$work/program" --url wss://other.example/
        is "$init: the earlier settings are kept" has /etc/vectorlay/agent.json.previous c.example
        is "$init: uninstall" installer --init $init --uninstall
        for file in $files /usr/local/bin/vectorlay-agent; do is "$init: $file is gone" absent "$file"; done
        is "$init: the table is as it was" fails has /etc/inittab vectorlay
        is "$init: the settings are kept" has /etc/vectorlay/agent.json other.example
        refuses "$init: purging asks first" installer --init $init --uninstall --purge
        is "$init: purge" installer --init $init --uninstall --purge --yes
        is "$init: nothing is left" absent /etc/vectorlay
        is "$init: no lock is left" absent /run/vectorlay-install
    done
    root=$work/root-none
    mkdir -p "$root"
    refuses "no settings" installer --init openrc --binary "$work/program"
    refuses "no program" installer --init openrc --binary "$work/none" --url wss://x/
    refuses "two from standard input" installer --init openrc --binary "$work/program" --config - --token-file -
    refuses "a setting without a value" installer --init openrc --binary "$work/program" --url wss://x/ --set workers
    refuses "an empty token" installer --init openrc --binary "$work/program" --url wss://x/ --token-file /dev/null
    printf '{"url": "wss://x/"}\n' >"$work/settings"
    refuses "settings that name no token" installer --init openrc --binary "$work/program" --config "$work/settings" --token-file "$work/token"
    mkdir -p "$root/run/vectorlay-install"
    refuses "a second one at the same time" installer --init openrc --binary "$work/program" --url wss://x/
    is "... and it says what to do" out_has "rmdir"
}

# A system of busybox alone, whose init is PID 1.
under_busybox() {
    local busybox=/bin/busybox applet
    root=$work/system
    mkdir -p "$root"/{bin,sbin,proc,dev,sys,tmp,run,root,t,usr/local/bin,etc,var/lib,var/log}
    cp "$busybox" "$root/bin/busybox"
    for applet in $("$busybox" --list); do [ "$applet" = busybox ] || ln -s busybox "$root/bin/$applet"; done
    cp -a /dev/null /dev/zero /dev/urandom /dev/random "$root/dev/"
    ln -s ../bin/busybox "$root/sbin/init"
    cp scripts/install.sh scripts/vectorlay-supervise "$root/t/"
    cp "$1" "$root/t/vectorlay-agent"
    echo '::once:/t/trial' >"$root/etc/inittab"
    cat >"$root/t/trial" <<'TRIAL'
#!/bin/sh
export PATH=/usr/local/bin:/sbin:/bin
exec >/t/said 2>&1
is() {
    what=$1 out=/t/out
    shift
    # What the last command said stays to be asked about.
    [ "$1" != said ] || out=/dev/null
    if "$@" >$out 2>&1; then echo "ok $what"; else echo "FAILED $what"; tail -n 15 /t/out; fi
}
refuses() { what=$1; shift; if "$@" >/t/out 2>&1; then echo "FAILED $what"; cat /t/out; else echo "ok $what"; fi; }
said() { grep -qF "$1" /t/out; }
connected() { vectorlay-agent status --json | grep -q '"link": "connected"'; }
pid() { cat /run/vectorlay-agent.pid; }
install() { echo vtk_trial | /t/install.sh --url ws://127.0.0.1:7000/agent --token-file - "$@"; }
refuses "a wrong setting" install --set wrokers=3
is "... is named" said wrokers
is "install" install --set min_free_gb=0
is "... says that it is connected" said "connected: node "
is "... it is" connected
old=$(pid)
is "again" install --set min_free_gb=0
is "... changes nothing" said "nothing to change"
is "... and restarts nothing" [ "$(pid)" = "$old" ]
cp /t/vectorlay-agent /t/newer
echo x >>/t/newer
is "upgrade" /t/install.sh --upgrade --binary /t/newer
is "... is healthy" said "healthy: node "
is "... is running" cmp /t/newer "/proc/$(pid)/exe"
is "... the earlier program is kept" cmp /t/vectorlay-agent /usr/local/bin/vectorlay-agent.previous
printf '#!/bin/sh\n[ "$1" != --version ] || { echo 9.9.9; exit 0; }\nexit 1\n' >/t/broken
refuses "a broken upgrade" /t/install.sh --upgrade --binary /t/broken --wait 20
is "... says so" said "the earlier one is back"
is "... is undone" cmp /t/newer /usr/local/bin/vectorlay-agent
is "... the node is connected" connected
refuses "a program of another machine" /t/install.sh --upgrade --binary /t/install.sh.no
old=$(pid)
kill "$old"
n=0
until { [ "$(pid)" != "$old" ] && connected; } >/dev/null 2>&1 || [ $n = 60 ]; do sleep 1; n=$((n + 1)); done
is "an agent that ends is started again" connected
is "uninstall" /t/install.sh --uninstall
is "... the identity is kept" [ -e /var/lib/vectorlay/node.json ]
refuses "... it runs no more" connected
sleep 7
is "... and does not come back" [ ! -e "/proc/$(pid)" ]
is "install again" install --set min_free_gb=0
is "... is the same node" connected
is "purge" /t/install.sh --uninstall --purge --yes
is "... leaves nothing" sh -c '! find /etc /usr /var -name "*vectorlay*" | grep .'
echo end
poweroff -f
TRIAL
    chmod 755 "$root/t/trial"
    # PID 1's end takes all of it along.
    # shellcheck disable=SC2016 # the variables are the inner shell's
    timeout --kill-after=5 "$TRIAL_S" unshare --pid --mount --net --ipc --uts --fork sh -c '
        ip link set lo up
        "$2" --token vtk_trial --listen 127.0.0.1:7000 --state "$1/t/plane.json" </dev/null >"$1/t/plane" 2>&1 &
        mount -t proc proc "$1/proc"
        mount -t tmpfs tmpfs "$1/run"
        exec chroot "$1" /sbin/init' sh "$root" "$(realpath "$2")" >"$work/init" 2>&1 || true
    grep -v '^ok' "$root/t/said" | grep -v '^end$' || true
    PASSED=$((PASSED + $(grep -c '^ok' "$root/t/said" || true)))
    FAILED=$((FAILED + $(grep -c '^FAILED' "$root/t/said" || true)))
    tail -n 1 "$root/t/said" | grep -qx end || { FAILED=$((FAILED + 1)); say "the trial under busybox init did not end"; cat "$work/init"; }
}

need jq=jq dash=dash
busybox=$(command -v busybox || true)
for shell in dash "${busybox:+$busybox ash}"; do [ -z "$shell" ] || into_folder; done
if [ -z "${2:-}" ]; then
    say "not tried: under busybox init (no AGENT and CONTROL-PLANE were given)"
elif [ "$(id -u)" != 0 ] || [ ! -x /bin/busybox ] || readelf -lW /bin/busybox | grep -q INTERP; then
    say "not tried: under busybox init (that needs root and a static /bin/busybox)"
else
    under_busybox "$1" "$2"
fi
printf '%s passed, %s failed\n' "$PASSED" "$FAILED"
[ "$FAILED" = 0 ]
