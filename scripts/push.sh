#!/bin/sh
# Runs install.sh on many hosts over ssh: copies it with the program for the host's architecture, runs it, removes what
# was copied, and prints a line for each host, its last one. As root, or as a user who may sudo without a password.
#   push.sh [--jobs N] [--token-file FILE] [--ssh COMMAND] HOST… -- ARGUMENT-OF-INSTALL.SH…
#   push.sh --token-file token gpu1 gpu2 -- --url wss://control.example/agent
#   push.sh gpu1 gpu2 -- --upgrade
#   --token-file FILE   given to each host on install.sh's standard input, never as an argument
#   --jobs N            hosts at once (8)
#   --ssh COMMAND       by default `ssh -o BatchMode=yes -o ConnectTimeout=15`; ~/.ssh/config is the place for the rest
# From the folder of an archive made by bundle.sh, or from the sources after build-static.sh. Exit status 0 when every
# host is done, else 1.
set -eu

here=$(cd "$(dirname "$0")" && pwd)
ssh='ssh -o BatchMode=yes -o ConnectTimeout=15' jobs=8 token='' hosts='' arguments=''

die() {
    printf '%s: %s\n' "${0##*/}" "$*" >&2
    exit 1
}
# For the shell at the other end.
quoted() { printf "'%s'" "$(printf '%s' "$1" | sed "s/'/'\\\\''/g")"; }

value() { [ $# -ge 2 ] || die "$1 needs a value"; }
while [ $# -gt 0 ]; do
    case "$1" in
        --jobs) value "$@"; jobs=$2; shift ;;
        --token-file) value "$@"; token=$2; shift ;;
        --ssh) value "$@"; ssh=$2; shift ;;
        --) shift; break ;;
        -h | --help) sed -n '2,/^set /s/^# \{0,1\}//p' "$0"; exit 0 ;;
        -*) die "unknown argument $1; those for install.sh stand after --" ;;
        *) hosts="$hosts $1" ;;
    esac
    shift
done
for argument in "$@"; do arguments="$arguments $(quoted "$argument")"; done
case "$jobs" in '' | 0 | *[!0-9]*) die "--jobs takes a number" ;; esac
[ -n "$hosts" ] || die "name the hosts"
[ -z "$token" ] || [ -s "$token" ] || die "there is no token in $token"
[ -z "$token" ] || arguments="$arguments --token-file -"

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

# The program for an architecture: of the archive, or built here.
program() {
    for candidate in "$here/bin/$1/vectorlay-agent" "$here/../target/static/$1/vectorlay-agent"; do
        [ ! -f "$candidate" ] || { printf '%s' "$candidate"; return 0; }
    done
    return 1
}

# pack ARCHITECTURE: what is copied, as a tar file; made once for each architecture, before any host needs it.
pack() {
    folder=$work/$1
    mkdir -p "$folder/bin/$1"
    cp "$here/install.sh" "$here"/vectorlay-* "$folder/"
    for file in SHA256SUMS SHA256SUMS.sig allowed_signers; do
        [ ! -e "$here/$file" ] || cp "$here/$file" "$folder/"
    done
    cp "$(program "$1")" "$folder/bin/$1/vectorlay-agent"
    tar -C "$folder" -cf "$work/$1.tar" .
}
for arch in x86_64 aarch64; do
    if program $arch >/dev/null; then pack $arch; fi
done

# one HOST NUMBER: prints what happened there; its last line is the host's line. What ssh itself says, such as a warning
# about the host's key, is kept apart from the answers.
one() {
    noise=$work/noise.$2
    # shellcheck disable=SC2086 # the command has several words
    arch=$($ssh "$1" uname -m </dev/null 2>"$noise") || { echo "no connection: $(tail -n 1 "$noise")"; return 1; }
    [ -f "$work/$arch.tar" ] || { echo "there is no program for $arch here"; return 1; }
    # shellcheck disable=SC2086,SC2016 # the variable is the other shell's
    folder=$($ssh "$1" 'folder=$(mktemp -d) && tar -C "$folder" -xf - && echo "$folder"' <"$work/$arch.tar" 2>"$noise") ||
        { echo "cannot copy: $(tail -n 1 "$noise")"; return 1; }
    # Runs by sh, for the folder may be on a file system that is mounted noexec.
    # shellcheck disable=SC2086
    $ssh "$1" "root=; [ \"\$(id -u)\" = 0 ] || root='sudo -n'; \$root sh $folder/install.sh$arguments; status=\$?; rm -rf $folder; exit \$status" \
        <"${token:-/dev/null}" 2>&1
}

# Runs as many at once as are allowed; the lines come as the hosts get done.
report() {
    if one "$1" "$2" >"$work/said.$2"; then how=''; else how='FAILED: ' && : >"$work/failed"; fi
    printf '%s: %s%s\n' "$1" "$how" "$(tail -n 1 "$work/said.$2")"
}
number=0
for host in $hosts; do
    number=$((number + 1))
    report "$host" $number &
    # POSIX has no `wait -n`: a batch at a time.
    [ $((number % jobs)) != 0 ] || wait
done
wait
[ ! -e "$work/failed" ]
