#!/usr/bin/env bash
# Tries install.sh without a virtual machine:
#   - into the folder of a system, for each init, by dash and by busybox ash;
#   - from archives that are signed, by whom they should and by others, damaged, or not signed at all;
#   - under busybox init as PID 1 of namespaces of its own, with the agent and the reference control plane: install,
#     again, upgrade, a broken upgrade, uninstall. There is no container engine: the node is degraded, and connected.
#   scripts/install-test.sh [AGENT CONTROL-PLANE]    without them, or not as root, only the first part
# systemd is tried by install-systemd.sh, OpenRC by install-openrc.sh. Needs a static busybox. The last line says how many checks passed and failed.
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
        is "$init: ... the others stay" jq -e '. == {url: "wss://other.example/", token_file: "/etc/vectorlay/token", workers: 3,
            allow_insecure: true, namespace: "with\\slash"}' "$root/etc/vectorlay/agent.json"
        is "$init: one more setting" installer --init $init --binary "$work/program" --set grace_s=60
        is "$init: ... the others stay" jq -e '.url == "wss://other.example/" and .workers == 3 and .grace_s == 60' \
            "$root/etc/vectorlay/agent.json"
        is "$init: the first settings again" installer --init $init --binary "$work/program" --url 'wss://c.example/a"b'
        is "$init: another URL" installer --init $init --binary "$work/program" --url wss://other.example/
        is "$init: the earlier settings are kept" has /etc/vectorlay/agent.json.previous c.example
        is "$init: uninstall" installer --init $init --uninstall
        for file in $files /usr/local/bin/vectorlay-agent; do is "$init: $file is gone" absent "$file"; done
        is "$init: uninstall where nothing is installed" installer --init $init --uninstall
        is "$init: ... it says so" out_has "nothing is installed here"
        is "$init: the table is as it was" fails has /etc/inittab vectorlay
        is "$init: the settings are kept" has /etc/vectorlay/agent.json other.example
        refuses "$init: purging asks first" installer --init $init --uninstall --purge
        is "$init: purge" installer --init $init --uninstall --purge --yes
        is "$init: nothing is left" absent /etc/vectorlay
        is "$init: no lock is left" absent /run/vectorlay-install
    done
    root=$work/root-none
    rm -rf "$root"
    mkdir -p "$root"
    refuses "no settings" installer --init openrc --binary "$work/program"
    refuses "no program" installer --init openrc --binary "$work/none" --url wss://x/
    refuses "two from standard input" installer --init openrc --binary "$work/program" --config - --token-file -
    refuses "a setting without a value" installer --init openrc --binary "$work/program" --url wss://x/ --set workers
    refuses "a token file that is not there" installer --init openrc --binary "$work/program" --url wss://x/ --token-file "$work/none"
    is "... in one line" [ "$(wc -l <"$work/last")" = 1 ]
    refuses "an empty token" installer --init openrc --binary "$work/program" --url wss://x/ --token-file /dev/null
    printf '{"url": "wss://x/"}\n' >"$work/settings"
    refuses "settings that name no token" installer --init openrc --binary "$work/program" --config "$work/settings" --token-file "$work/token"
    mkdir -p "$root/etc/vectorlay"
    printf '{"url": "wss://x/",\n"images": ["a", "b"]}\n' | tee "$work/settings" >"$root/etc/vectorlay/agent.json"
    refuses "settings that cannot be merged" installer --init openrc --binary "$work/program" --set workers=3
    is "... it says so" out_has "nothing was changed"
    is "... and nothing was" cmp "$work/settings" "$root/etc/vectorlay/agent.json"
    mkdir -p "$root/run/vectorlay-install"
    refuses "a second one at the same time" installer --init openrc --binary "$work/program" --url wss://x/
    is "... and it says what to do" out_has "rmdir"
}

# signatures: SHELL installs from archives that are signed by a key of the trial's own, or are not as they should be.
signatures() {
    local archive=$work/archive arch name
    arch=$(uname -m)
    # made: a new root, and an archive signed by the maintainer, without a list of signers.
    made() {
        root=$work/root-signed
        rm -rf "$root" "$archive"
        mkdir -p "$root/etc/runlevels" "$archive/bin/$arch"
        cp scripts/install.sh scripts/vectorlay-agent.openrc "$archive/"
        cp "$work/program" "$archive/bin/$arch/vectorlay-agent"
        sums
        sign maintainer
    }
    sums() { (cd "$archive" && find . -type f ! -name 'SHA256SUMS*' -printf '%P\n' | xargs sha256sum >SHA256SUMS); }
    sign() {
        rm -f "$archive/SHA256SUMS.sig"
        ssh-keygen -q -Y sign -f "$work/$1" -n vectorlay-release "$archive/SHA256SUMS" 2>/dev/null
    }
    from_archive() { $shell "$archive/install.sh" --root "$root" --url wss://x/ "$@" >"$work/last" 2>&1 || { cat "$work/last"; return 1; }; }
    # turned_away WHAT SAYS ARGUMENT…: nothing is installed, and it says why.
    turned_away() {
        refuses "$1" from_archive "${@:3}"
        is "$1: says why" out_has "$2"
        is "$1: nothing is installed" absent /usr/local/bin/vectorlay-agent
    }
    for name in maintainer stranger; do
        [ -e "$work/$name" ] || ssh-keygen -q -t ed25519 -N '' -C "$name" -f "$work/$name"
        echo "vectorlay namespaces=\"vectorlay-release\" $(cat "$work/$name.pub")" >"$work/by-$name"
    done

    made
    is "signed by one who may" from_archive --signers "$work/by-maintainer"
    is "it says so" out_has "signed by vectorlay"
    is "it is there" cmp "$work/program" "$root/usr/local/bin/vectorlay-agent"
    is "the list is kept" cmp "$work/by-maintainer" "$root/etc/vectorlay/allowed_signers"
    is "the list that is kept counts" from_archive
    rm "$archive/SHA256SUMS.sig"
    refuses "from then on a signature is needed" from_archive
    is "... it says so" out_has "a signature is required"
    sign stranger
    refuses "... and one by somebody else is none" from_archive
    is "... until another list is named" from_archive --signers "$work/by-stranger"

    made
    cp "$work/by-maintainer" "$archive/allowed_signers"
    is "the list beside the script" from_archive --require-signature
    is "... is not kept" absent /etc/vectorlay/allowed_signers
    made
    cp "$work/by-stranger" "$archive/allowed_signers"
    turned_away "a bad signature where none is required" "is not good"
    made
    turned_away "signed by a stranger" "is not good" --signers "$work/by-stranger"
    echo more >>"$archive/bin/$arch/vectorlay-agent"
    turned_away "another program" "its SHA-256 is not" --signers "$work/by-maintainer"
    sums
    turned_away "another program, with its sums" "is not good" --signers "$work/by-maintainer"
    made
    echo "# more" >>"$archive/vectorlay-agent.openrc"
    turned_away "another service" "its SHA-256 is not" --signers "$work/by-maintainer"
    made
    echo another >"$work/another"
    turned_away "a program from elsewhere" "its SHA-256 is not" --signers "$work/by-maintainer" --binary "$work/another"
    sed 's/vectorlay-release/other/' "$work/by-maintainer" >"$work/by-other"
    turned_away "a key for something else" "is not good" --signers "$work/by-other"
    sed 's/^vectorlay /vectorlay valid-before="20200101" /' "$work/by-maintainer" >"$work/by-other"
    turned_away "a key of the past" "is not good" --signers "$work/by-other"
    turned_away "a list that names nobody" "names nobody" --signers /dev/null
    turned_away "no list" "nothing says who may sign" --require-signature
    is "without a list, and none required" from_archive
    is "... it says that it was not checked" out_has "the signature is not checked"
    made
    rm "$archive/SHA256SUMS.sig"
    turned_away "no signature" "a signature is required" --require-signature
    is "no signature, and none required" from_archive
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
    cp scripts/install-test/trial "$root/t/trial"
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

need jq=jq dash=dash ssh-keygen=openssh-client
busybox=$(command -v busybox || true)
for shell in dash "${busybox:+$busybox ash}"; do
    [ -n "$shell" ] || continue
    into_folder
    signatures
done
if [ -z "${2:-}" ]; then
    say "not tried: under busybox init (no AGENT and CONTROL-PLANE were given)"
elif [ "$(id -u)" != 0 ] || [ ! -x /bin/busybox ] || readelf -lW /bin/busybox | grep -q INTERP; then
    say "not tried: under busybox init (that needs root and a static /bin/busybox)"
else
    under_busybox "$1" "$2"
fi
printf '%s passed, %s failed\n' "$PASSED" "$FAILED"
[ "$FAILED" = 0 ]
