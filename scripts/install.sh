#!/bin/sh
# Installs, upgrades or removes the VectorLay agent on this host, as root and without a network of its own. For dash and
# busybox ash; the service is systemd's, OpenRC's or busybox init's, whichever the host runs.
#
#   install.sh --url wss://control.example/agent --token-file FILE [--set NAME=VALUE]…
#   install.sh --config FILE [--token-file FILE]
#       Checks, installs, starts, and waits until the node is connected. FILE may be - for standard input (one of the
#       two): secrets are never given as arguments. Run again it changes only what is different: --url, --token-file and
#       --set change these settings and leave the others; --config replaces them all. What the program does not take, or
#       a token that the control plane refuses, is turned away before anything is changed. Archives of images in the folder images beside this script
#       (bundle.sh --image) are loaded, for the container CLI and namespace of the settings.
#   install.sh --upgrade [--binary FILE]
#       Replaces the program. If the new one does not report healthy in time (connected, the node's state not worse
#       than before), the old one is put back and the exit status is 1. Replicas run on either way.
#   install.sh --uninstall [--leave-replicas | --drain] [--purge] [--yes]
#       Refuses while replicas run, unless they are to be left running, or the node is to be drained first: no new
#       deploys, and a wait until the control plane has stopped the last replica. --purge removes the node's identity,
#       settings, token and logs as well; it asks, unless --yes.
#
#   --binary FILE    the program; otherwise the one that lies beside this script, for this architecture
#   --signers FILE   who may sign what is installed; kept as /etc/vectorlay/allowed_signers. Where that is, and with
#   --require-signature, nothing is installed that is not in a SHA256SUMS with a good signature. Otherwise a signature
#                    is checked where there is one, against the list beside this script (see there)
#   --wait SECONDS   how long the node may take to connect, or to report healthy, or to be drained (120; drain 600)
#   --no-start       install everything, start nothing
#   --root DIR       install into a system's folder, such as an image's, and start nothing; --init KIND then says what
#                    starts its services: systemd, openrc or busybox
# Exit status: 0 done; 1 failed, and the last line says what to do; 2 wrong arguments.
set -eu
umask 022

NAME=vectorlay-agent
BIN=/usr/local/bin
CONFIG=/etc/vectorlay/agent.json
TOKEN=/etc/vectorlay/token
STATE=/var/lib/vectorlay
LOGS=/var/log/vectorlay
SIGNERS=/etc/vectorlay/allowed_signers
# Whose signature counts and for what, as in the list of signers.
SIGNER=vectorlay
SIGNS=vectorlay-release
UNITS=/etc/systemd/system
# The oldest kernel that the agent runs on: it needs pidfd_open.
KERNEL_MAJOR=5
KERNEL_MINOR=3
# A node counts as healthy after so many good answers in a row, a second apart.
GOOD_ANSWERS=5

here=$(cd "$(dirname "$0")" && pwd)

say() { printf '%s\n' "$*"; }
die() {
    printf '%s: %s\n' "${0##*/}" "$*" >&2
    exit 1
}
usage() {
    printf '%s: %s; see the head of this script\n' "${0##*/}" "$*" >&2
    exit 2
}

# --- arguments ---

action=install root='' init='' binary='' url='' config='' token='' wait_s='' settings='' start=1 drain='' leave='' purge='' yes=''
signers='' signed=''
newline='
'
value() { [ $# -ge 2 ] || usage "$1 needs a value"; }
while [ $# -gt 0 ]; do
    case "$1" in
        --upgrade) action=upgrade ;;
        --uninstall) action=uninstall ;;
        --url) value "$@"; url=$2; shift ;;
        --set)
            value "$@"
            case "$2" in *=*) ;; *) usage "--set takes NAME=VALUE, not $2" ;; esac
            settings=$settings$2$newline
            shift
            ;;
        --config) value "$@"; config=$2; shift ;;
        --token-file) value "$@"; token=$2; shift ;;
        --binary) value "$@"; binary=$2; shift ;;
        --signers) value "$@"; signers=$2; signed=1; shift ;;
        --require-signature) signed=1 ;;
        --wait) value "$@"; wait_s=$2; shift ;;
        --root) value "$@"; root=${2%/}; start=''; shift ;;
        --init) value "$@"; init=$2; shift ;;
        --no-start) start='' ;;
        --leave-replicas) leave=1 ;;
        --drain) drain=1 ;;
        --purge) purge=1 ;;
        --yes) yes=1 ;;
        -h | --help) sed -n '2,/^set /s/^# \{0,1\}//p' "$0"; exit 0 ;;
        *) usage "unknown argument $1" ;;
    esac
    shift
done
case "$wait_s" in *[!0-9]*) usage "--wait takes seconds, not $wait_s" ;; esac
case "$init" in '' | systemd | openrc | busybox) ;; *) usage "--init takes systemd, openrc or busybox" ;; esac
if [ "$config" = - ] && [ "$token" = - ]; then usage "--config and --token-file cannot both read standard input"; fi
if [ -n "$config" ] && [ -n "$url$settings" ]; then usage "give --config, or --url and --set"; fi
if [ -n "$leave" ] && [ -n "$drain" ]; then usage "give --leave-replicas or --drain"; fi

# --- files ---

changed='' work='' try='' unloaded='' new_version='for the next boot'
clean_up() {
    [ -z "$work" ] || rm -rf "$work"
    [ -z "$try" ] || rm -f "$try"
    [ -z "${locked:-}" ] || rmdir "$locked"
}
trap clean_up EXIT
trap 'exit 130' INT
trap 'exit 143' TERM
# A closed connection must not leave a host between two versions.
trap '' HUP

# put FILE PLACE MODE: copies a file to its place under the root, at once or not at all, if it is different there.
put() {
    if cmp -s "$1" "$root$2" && [ "$(stat -c %a "$root$2")" = "$3" ]; then return 0; fi
    mkdir -p "$root${2%/*}"
    # Made with the mode that it will have: a token is never readable by others, not even for a moment.
    (umask 077 && cp "$1" "$root$2.new")
    chmod "$3" "$root$2.new"
    mv -f "$root$2.new" "$root$2"
    changed=1
    say "wrote $2"
}

remove() {
    [ -e "$root$1" ] || [ -L "$root$1" ] || return 0
    rm -rf "$root${1:?}"
    say "removed $1"
}

# link TARGET PLACE: a symbolic link, as `systemctl enable` and `rc-update add` make them.
link() {
    [ "$(readlink "$root$2" 2>/dev/null)" != "$1" ] || return 0
    mkdir -p "$root${2%/*}"
    ln -sf "$1" "$root$2"
    changed=1
    say "enabled ${2##*/}"
}

# --- the service, by the host's init ---

find_init() {
    [ -z "$init" ] || return 0
    if [ -n "$root" ]; then
        if [ -d "$root/etc/systemd" ]; then init=systemd; elif [ -d "$root/etc/runlevels" ]; then init=openrc; else init=busybox; fi
    elif [ -d /run/systemd/system ]; then
        init=systemd
    elif [ -d /run/openrc ]; then
        init=openrc
    elif [ -e /etc/inittab ] && [ "$(readlink -f /proc/1/exe | sed 's:.*/::')" = busybox ]; then
        init=busybox
    else
        die "this host's init is none of systemd, OpenRC and busybox: install $BIN/$NAME by hand and have it supervised"
    fi
}

service_install() {
    case "$init" in
        systemd)
            put "$here/vectorlay-vfio.service" $UNITS/vectorlay-vfio.service 644
            put "$here/$NAME.service" $UNITS/$NAME.service 644
            link $UNITS/vectorlay-vfio.service $UNITS/$NAME.service.wants/vectorlay-vfio.service
            link $UNITS/$NAME.service $UNITS/multi-user.target.wants/$NAME.service
            [ -n "$root" ] || [ ! -d /run/systemd/system ] || systemctl daemon-reload
            ;;
        openrc)
            put "$here/$NAME.openrc" /etc/init.d/$NAME 755
            link /etc/init.d/$NAME /etc/runlevels/default/$NAME
            ;;
        busybox)
            put "$here/vectorlay-supervise" $BIN/vectorlay-supervise 755
            inittab_without >"$work/inittab"
            {
                # Before the agent: init carries out all `wait` lines before the first `respawn`.
                echo "::wait:$BIN/$NAME vfio bind --saved"
                echo "::respawn:$BIN/vectorlay-supervise $NAME $BIN/$NAME"
            } >>"$work/inittab"
            put "$work/inittab" /etc/inittab 644
            ;;
    esac
}

inittab_without() { grep -sv "$BIN/$NAME" "$root/etc/inittab" || true; }

service_remove() {
    case "$init" in
        systemd)
            remove $UNITS/multi-user.target.wants/$NAME.service
            remove $UNITS/$NAME.service.wants
            remove $UNITS/$NAME.service
            remove $UNITS/vectorlay-vfio.service
            if [ -d "$root$UNITS/$NAME.service.d" ]; then say "left your drop-ins in $UNITS/$NAME.service.d"; fi
            [ -n "$root" ] || systemctl daemon-reload
            ;;
        openrc)
            remove /etc/runlevels/default/$NAME
            remove /etc/init.d/$NAME
            ;;
        busybox)
            inittab_without >"$work/inittab"
            put "$work/inittab" /etc/inittab 644
            remove $BIN/vectorlay-supervise
            ;;
    esac
}

service_stop() {
    case "$init" in
        systemd)
            for unit in $NAME.service vectorlay-vfio.service; do
                [ ! -e "$UNITS/$unit" ] || systemctl stop "$unit"
            done
            ;;
        openrc) rc-service $NAME stop ;;
        # Without its line the agent is not started again; init reads the table at SIGHUP.
        busybox) kill -HUP 1 && stop_process ;;
    esac
}

# Starts the agent, or starts it anew with what was installed.
service_restart() {
    case "$init" in
        systemd) systemctl restart $NAME.service ;;
        openrc) rc-service $NAME restart ;;
        busybox) kill -HUP 1 && stop_process ;;
    esac
}

# Ends the agent under busybox init, which then starts the program that is there now.
stop_process() {
    pid=$(cat /run/$NAME.pid 2>/dev/null) || return 0
    kill "$pid" 2>/dev/null || return 0
    until_seconds 60 process_ended
}
process_ended() { ! kill -0 "$pid" 2>/dev/null; }

service_log() {
    case "$init" in
        systemd) journalctl -u $NAME -n 10 --no-pager -o cat 2>/dev/null || true ;;
        openrc) tail -n 10 /var/log/$NAME.log 2>/dev/null || true ;;
        busybox) say "(its messages are on the console)" ;;
    esac
}

# --- the agent's own view ---

# until_seconds SECONDS COMMAND…: runs it every second until it succeeds or the time is up.
until_seconds() {
    left=$1
    shift
    until "$@"; do
        [ "$left" -gt 0 ] || return 1
        left=$((left - 1))
        sleep 1
    done
}

# Reads the running agent's status into $status; fails if it does not answer.
read_status() { status=$($BIN/$NAME status --json 2>/dev/null) || [ -n "$status" ]; }

# field NAME: a field of the status that is text or a number; nothing for null.
field() {
    printf '%s\n' "$status" | sed -n "s/^  \"$1\": \(.*[^,]\),\{0,1\}\$/\1/p" | sed 's/^"\(.*\)"$/\1/; s/^null$//'
}

# How many replicas there are that have not ended.
running() { printf '%s\n' "$status" | grep -c '"status": "\(unknown\|pulling\|starting\|running\|stopping\)"' || true; }

connected() { read_status && [ "$(field link)" = connected ]; }
checked() {
    read_status || return 1
    case "$(field reason)" in *"have not been checked yet"*) return 1 ;; esac
}

# Whether the node is as well as before the upgrade: its link as before or better, its state too.
healthy_now() {
    read_status || return 1
    [ "$link_before" != connected ] || [ "$(field link)" = connected ] || return 1
    case "$(field state)" in
        "$state_before" | online) ;;
        *) [ -z "$state_before" ] ;;
    esac
}

good=0
healthy() {
    if healthy_now; then good=$((good + 1)); else good=0; fi
    [ "$good" -ge $GOOD_ANSWERS ]
}

# Why the node is not as it should be, in a line.
trouble() {
    if read_status; then
        printf 'state %s, link %s: %s %s' "$(field state)" "$(field link)" "$(field link_trouble)" "$(field reason)"
    else
        reason=$(link_check $BIN/$NAME)
        printf 'the agent does not answer%s' "${reason:+: $(explained "$reason")}"
    fi
}

# --- checks ---

check_host() {
    [ -n "$root" ] || [ "$(id -u)" = 0 ] || die "run this as root"
    release=$(uname -r)
    major=${release%%.*}
    minor=${release#*.}
    minor=${minor%%[!0-9]*}
    if [ "$major" -lt $KERNEL_MAJOR ] || { [ "$major" = $KERNEL_MAJOR ] && [ "$minor" -lt $KERNEL_MINOR ]; }; then
        die "the kernel is $release; the agent needs $KERNEL_MAJOR.$KERNEL_MINOR or newer"
    fi
    find_init
    # One at a time: two of these would undo each other's work.
    mkdir -p "$root/run"
    mkdir "$root/run/vectorlay-install" 2>/dev/null ||
        die "another install.sh is at work here; if not, rmdir $root/run/vectorlay-install"
    locked=$root/run/vectorlay-install
    work=$(mktemp -d)
}

# has_signers FILE: whether it names anyone.
has_signers() { [ -f "$1" ] && grep -qv -e '^[[:space:]]*#' -e '^[[:space:]]*$' "$1"; }

# Sees that SHA256SUMS is signed by somebody who may. Whoever could change the archive could change this script and the
# list beside it too: what tells for certain is a list that came another way (--signers, or the one that is kept).
check_signature() {
    if [ -n "$signers" ]; then
        has_signers "$signers" || die "$signers names nobody who may sign"
    elif [ -e "$root$SIGNERS" ]; then
        signers=$root$SIGNERS signed=1
    elif has_signers "$here/allowed_signers"; then
        signers=$here/allowed_signers
    fi
    if [ ! -e "$here/SHA256SUMS.sig" ]; then
        [ -z "$signed" ] || die "a signature is required, and there is none: $here/SHA256SUMS.sig"
        return 0
    fi
    if [ -z "$signers" ] || ! command -v ssh-keygen >/dev/null 2>&1; then
        why="there is no ssh-keygen (Debian's package openssh-client)"
        [ -n "$signers" ] || why="nothing says who may sign: name a list with --signers"
        [ -z "$signed" ] || die "the signature cannot be checked: $why"
        say "the signature is not checked: $why"
        return 0
    fi
    said=$(ssh-keygen -Y verify -f "$signers" -I "$SIGNER" -n "$SIGNS" -s "$here/SHA256SUMS.sig" <"$here/SHA256SUMS" 2>&1) ||
        die "the signature of SHA256SUMS is not good by $signers: $said; nothing was installed"
    say "signed by $SIGNER, by $signers"
}

# check_sum FILE NAME: a file is the one that SHA256SUMS has under this name.
check_sum() {
    sum=$(awk -v file="$2" '$2 == file { print $1 }' "$here/SHA256SUMS")
    [ "$(sha256sum <"$1" | cut -d ' ' -f 1)" = "$sum" ] ||
        die "$1 is damaged or another: its SHA-256 is not the one that SHA256SUMS has for $2; copy the archive again"
}

# Finds the program for this architecture and sees that it is whole and runs.
find_binary() {
    arch=$(uname -m)
    if [ -z "$binary" ]; then
        for candidate in "$here/$NAME" "$here/bin/$arch/$NAME" "$here/../target/static/$arch/$NAME"; do
            [ ! -f "$candidate" ] || { binary=$candidate; break; }
        done
    fi
    [ -n "$binary" ] || die "no program for $arch beside this script; name it with --binary"
    [ -f "$binary" ] || die "there is no file $binary"
    check_signature
    if [ -n "$signed" ] || { [ "$binary" = "$here/bin/$arch/$NAME" ] && [ -e "$here/SHA256SUMS" ]; }; then
        check_sum "$binary" "bin/$arch/$NAME"
        for file in install.sh $NAME.service vectorlay-vfio.service $NAME.openrc vectorlay-supervise; do
            [ ! -e "$here/$file" ] || check_sum "$here/$file" "$file"
        done
    fi
    # An image may be another architecture's.
    [ -z "$root" ] || return 0
    # Not run from where it lies, which may be mounted noexec, but from where it will be.
    mkdir -p $BIN
    try=$BIN/$NAME.try
    cp "$binary" $try
    chmod 755 $try
    new_version=$($try --version 2>&1) || die "$binary does not run on this host ($arch): $new_version"
    new_version=$(version_line "$new_version")
}

# version_line TEXT: what `--version` prints, in short: version (commit).
version_line() {
    printf '%s\n' "$1" | {
        read -r name || true
        read -r word commit || true
        name=${name#"$NAME "}
        [ "$word" != commit ] || name=$(printf '%s (%.7s)' "$name" "$commit")
        printf '%s\n' "$name"
    }
}

# Says what becomes of the program that is there.
say_versions() {
    [ -e "$work/before/$NAME" ] && ! cmp -s "$binary" "$work/before/$NAME" || return 0
    old_version=$("$work/before/$NAME" --version 2>&1) || old_version="a program that does not run"
    also=''
    [ "$action" = upgrade ] || also='this also replaces the program: '
    say "${also}from $(version_line "$old_version") to $new_version"
}

# --- settings ---

# quoted TEXT: as JSON; words that are JSON already (true, false, whole numbers, quoted text) stay.
quoted() {
    case "$1" in
        true | false | '"'*'"') printf '%s' "$1"; return ;;
        '' | *[!0-9]*) ;;
        *) printf '%s' "$1"; return ;;
    esac
    printf '"%s"' "$(printf '%s' "$1" | sed 's/[\\"]/\\&/g')"
}

# pairs: the settings on standard input, a NAME=JSON line each. Fails if they are not one object of plain values.
pairs() {
    awk '
        { text = text $0 "\n" }
        END {
            if (!sub(/^[ \t\r\n]*\{/, "", text) || !sub(/\}[ \t\r\n]*$/, "", text)) exit 1
            while (match(text, /^[ \t\r\n]*"([^"\\]|\\.)*"[ \t\r\n]*:[ \t\r\n]*("([^"\\]|\\.)*"|[-+.a-zA-Z0-9]+)[ \t\r\n]*(,|$)/)) {
                value = substr(text, 1, RLENGTH)
                text = substr(text, RLENGTH + 1)
                match(value, /"([^"\\]|\\.)*"/)
                name = substr(value, RSTART + 1, RLENGTH - 2)
                value = substr(value, RSTART + RLENGTH)
                sub(/^[ \t\r\n]*:[ \t\r\n]*/, "", value)
                sub(/[ \t\r\n]*,?$/, "", value)
                print name "=" value
            }
            exit text ~ /[^ \t\r\n]/
        }'
}

# Makes the settings: those that are there, with --url, --token-file and --set.
make_settings() {
    : >"$work/old"
    if [ -e "$root$CONFIG" ]; then
        pairs <"$root$CONFIG" >"$work/old" ||
            die "$CONFIG cannot be changed here, for it is not one object of plain values: edit it, or give --config FILE; nothing was changed"
    fi
    {
        # The setting token would win over the file.
        if [ -n "$token" ]; then grep -v '^token=' "$work/old" || true; else cat "$work/old"; fi
        if [ -n "$url" ]; then printf 'url=%s\n' "$(quoted "$url")"; fi
        if [ -n "$token" ] || { [ -e "$root$TOKEN" ] && ! grep -q '^token' "$work/old"; }; then printf 'token_file="%s"\n' $TOKEN; fi
        printf '%s' "$settings" | while IFS= read -r pair; do
            printf '%s=%s\n' "${pair%%=*}" "$(quoted "${pair#*=}")"
        done
    } | awk '
        {
            name = $0
            sub(/=.*/, "", name)
            if (!(name in value)) names[++count] = name
            value[name] = substr($0, length(name) + 2)
        }
        END {
            printf "{"
            for (i = 1; i <= count; i++) printf "%s\n    \"%s\": %s", (i == 1 ? "" : ","), names[i], value[names[i]]
            print "\n}"
        }' >"$work/agent.json"
    # As somebody wrote it, if it says the same.
    if [ -s "$work/old" ] && pairs <"$work/agent.json" | cmp -s - "$work/old"; then cp "$root$CONFIG" "$work/agent.json"; fi
}

# copy WHAT FILE TO: a file that was named, or standard input.
copy() {
    if [ "$2" = - ]; then
        cat >"$3"
    else
        [ -f "$2" ] || [ -r "$2" ] || die "there is no file $2 with the $1; nothing was changed"
        cat "$2" >"$3" || die "the $1 in $2 cannot be read; nothing was changed"
    fi
}

# Makes token and settings as they are to be, and sees that the program that is to be installed takes them. Changes nothing.
prepare_settings() {
    if [ -n "$token" ]; then
        (umask 077 && : >"$work/token")
        copy token "$token" "$work/token"
        [ -s "$work/token" ] || die "the token in $token is empty; nothing was changed"
    fi
    if [ -n "$config" ]; then
        copy settings "$config" "$work/agent.json"
    elif [ -n "$url$settings$token" ]; then
        make_settings
    elif [ -e "$root$CONFIG" ]; then
        return 0
    else
        die "there are no settings: give --url wss://…, or --config FILE"
    fi
    if [ -n "$token" ] && ! grep -q '"token' "$work/agent.json"; then
        die "the settings do not name the token: add \"token_file\": \"$TOKEN\""
    fi
    # Settings of an image name files of the image, so they are tried by the image.
    [ -z "$root" ] || return 0
    said=$($try config --config "$work/agent.json" 2>&1 >/dev/null) ||
        die "these settings are refused: $(printf '%s\n' "$said" | sed "s|$work/agent.json|the new settings|g"); nothing was changed"
    set -- --config "$work/agent.json"
    [ -z "$token" ] || set -- "$@" --token-file "$work/token"
    said=$(link_check $try "$@")
    case "$said" in
        "setting "* | *"check the organisation token"*) die "$(explained "$said"); nothing was changed" ;;
    esac
}

# link_check PROGRAM ARGUMENT…: what hinders the connection to the control plane; nothing if nothing does.
link_check() {
    link=$("$@" check --json 2>/dev/null | sed -n '/^ *"link": {/,/}/p')
    case "$link" in
        *'"ok": false'*) printf '%s\n' "$link" | sed -n 's/\\"/"/g; s/^ *"detail": "\(.*\)",\{0,1\}$/\1/p' ;;
    esac
}

# explained TEXT: what link_check said, with what to do about a token.
explained() {
    case "$1" in
        *"check the organisation token"*)
            where=$token
            case "$token" in '') where=$TOKEN ;; -) where='what standard input gives' ;; esac
            printf '%s' "the control plane refuses the organisation token ($1): put a valid one in $where and run this again"
            ;;
        *) printf '%s' "$1" ;;
    esac
}

# Puts token and settings in place, as they were prepared.
put_settings() {
    [ ! -e "$work/token" ] || put "$work/token" $TOKEN 600
    [ -e "$work/agent.json" ] || return 0
    if [ -e "$root$CONFIG" ] && ! cmp -s "$work/agent.json" "$root$CONFIG"; then
        cp -p "$root$CONFIG" "$root$CONFIG.previous"
        say "kept the earlier settings as $CONFIG.previous"
    fi
    put "$work/agent.json" $CONFIG 644
}

# --- what it does ---

install_agent() {
    find_binary
    keep_before
    prepare_settings
    keep_signers
    read_before
    put_settings
    if [ -n "$start" ] && [ -e "$work/before/$NAME" ] && ! cmp -s "$binary" $BIN/$NAME && read_status; then
        replace_program
        return
    fi
    say_versions
    put "$binary" $BIN/$NAME 755
    service_install
    if [ -z "$start" ]; then
        say "installed; it starts at the next boot"
        return
    fi
    load_images
    $BIN/$NAME check || say "(the node will be degraded until this host is ready; see above)"
    if [ -z "$changed" ] && read_status; then
        say "nothing to change"
    else
        service_restart
    fi
    say "waiting until the node is connected"
    until_seconds "${wait_s:-120}" connected || {
        service_log
        why="not connected within ${wait_s:-120} s: $(trouble)"
        # What was connected before is so again; what was not has nothing to go back to.
        [ "$link_before" != connected ] || roll_back "the new settings" "$why"
        die "installed and started, but $why"
    }
    # Connected is said at once; what the checks found, a moment later.
    until_seconds 30 checked || true
    why=$(field reason)
    say "connected: node $(field node_id), state $(field state)${why:+ ($why)}"
    [ -z "$unloaded" ] || die "connected, but not all images are loaded ($unloaded): run this again when the engine works"
}

# From now on, what is installed here must be signed by one of these.
keep_signers() {
    case "$signers" in '' | "$root$SIGNERS" | "$here/allowed_signers") return 0 ;; esac
    put "$signers" $SIGNERS 644
}

# setting NAME: what the settings in force say; nothing where they say nothing.
setting() { $BIN/$NAME config | awk -v name="$1" '$1 == name && $2 != "-" { print $2 }'; }

# Loads the images beside this script. Prints what could not be done.
load_images() {
    [ -d "$here/images" ] || return 0
    cli=$(setting container_cli) namespace=$(setting namespace) address=$(setting containerd_address)
    for file in "$here"/images/*; do
        [ ! -e "$here/SHA256SUMS" ] || check_sum "$file" "images/${file##*/}"
        if said=$($cli ${address:+--address "$address"} ${namespace:+--namespace "$namespace"} load -i "$file" 2>&1); then
            say "loaded images/${file##*/}"
        else
            unloaded="images/${file##*/}: $(printf '%s\n' "$said" | tail -n 1)"
            say "not loaded: $unloaded"
        fi
    done
}

# Keeps what is there now, for roll_back.
keep_before() {
    mkdir -p "$work/before/files"
    [ ! -x "$root$BIN/$NAME" ] || cp -p "$root$BIN/$NAME" "$work/before/"
    for file in $UNITS/$NAME.service $UNITS/vectorlay-vfio.service /etc/init.d/$NAME /etc/inittab $CONFIG $TOKEN; do
        [ -e "$root$file" ] || continue
        mkdir -p "$work/before/files${file%/*}"
        cp -p "$root$file" "$work/before/files$file"
    done
}

upgrade_agent() {
    find_binary
    keep_before
    [ -e "$work/before/$NAME" ] || die "there is no $BIN/$NAME to upgrade; install it first"
    keep_signers
    replace_program
}

# What the agent that is running says of itself, for comparison.
read_before() {
    status='' state_before='' link_before=''
    [ -z "$root" ] && read_status || return 0
    state_before=$(field state)
    link_before=$(field link)
}

# Puts the new program in the old one's place and goes back if the node is not as well as before.
replace_program() {
    read_before
    if [ -n "$status" ]; then
        say "before: state $state_before, link $link_before, $(running) replicas"
    else
        say "no agent is running: the new one has to connect"
        link_before=connected
    fi
    say_versions
    put "$binary" $BIN/$NAME 755
    service_install
    if [ -z "$changed" ] && [ -n "$status" ]; then
        say "nothing to change"
        return
    fi
    # So that a person can go back even if this script is cut short.
    put "$work/before/$NAME" $BIN/$NAME.previous 755
    if service_restart && until_seconds "${wait_s:-120}" healthy; then
        say "healthy: node $(field node_id), state $(field state), link $(field link), $(running) replicas"
        return
    fi
    why="not healthy within ${wait_s:-120} s: $(trouble)"
    say "$why"
    service_log
    what="the new version"
    [ ! -e "$work/agent.json" ] || what="the new version with these settings"
    roll_back "$what" "$why"
}

# roll_back WHAT WHY: puts program, services, settings and token back as they were, and ends.
roll_back() {
    say "putting back what was there before"
    put "$work/before/$NAME" $BIN/$NAME 755
    cp -Rp "$work/before/files/." /
    [ "$init" != systemd ] || systemctl daemon-reload
    [ "$1" = "the new settings" ] || remove $BIN/$NAME.previous
    good=0
    if service_restart && until_seconds "${wait_s:-120}" healthy; then
        earlier='the earlier one is back'
        [ "$1" = "the new version" ] || earlier='what was there before is back'
        die "$1 did not report healthy; $earlier (state $(field state), link $(field link), $(running) replicas). It was $2"
    fi
    die "$1 did not report healthy ($2), and neither does what was there before, which is back: $(trouble)"
}

# Whether the program or a service of it is here.
installed() {
    for file in $BIN/$NAME $UNITS/$NAME.service /etc/init.d/$NAME $BIN/vectorlay-supervise; do
        [ ! -e "$root$file" ] || return 0
    done
    return 1
}

uninstall_agent() {
    status='' kept=''
    for file in /etc/vectorlay $STATE $LOGS; do [ ! -e "$root$file" ] || kept=$kept${kept:+, }$file; done
    if ! installed && { [ -z "$purge" ] || [ -z "$kept" ]; }; then
        say "nothing is installed here${kept:+; $kept stayed, and --purge removes that}"
        return
    fi
    if [ -z "$root" ] && read_status && [ "$(running)" -gt 0 ]; then
        if [ -n "$drain" ]; then
            drain_node
        elif [ -z "$leave" ]; then
            die "$(running) replicas are running: give --drain to wait until they are stopped, or --leave-replicas"
        fi
    fi
    if [ -n "$purge" ] && [ -z "$yes" ]; then
        [ -t 0 ] || die "--purge removes the node's identity for good: give --yes as well"
        printf 'Remove the identity of node %s for good? It will come back as a new node. [y/N] ' "$(field node_id)"
        read -r answer
        case "$answer" in y | Y | yes) ;; *) die "nothing was removed" ;; esac
    fi
    if ! installed; then
        :
    elif [ "$init" = busybox ]; then
        service_remove
        [ -n "$root" ] || service_stop
    else
        [ -n "$root" ] || service_stop
        service_remove
    fi
    remove $BIN/$NAME
    remove $BIN/$NAME.previous
    if [ -n "$purge" ]; then
        remove /etc/vectorlay
        remove $STATE
        remove $LOGS
        # What OpenRC wrote of the agent's own log.
        remove /var/log/$NAME.log
    else
        say "left /etc/vectorlay, $STATE (the node's identity) and $LOGS; --purge removes them"
    fi
    [ -n "$leave" ] || return 0
    say "replicas run on; to see them: nerdctl ps --filter label=vectorlay.replica"
    [ -z "$purge" ] || say "no agent will remove them any more: do that by hand, with nerdctl rm -f"
}

# No new deploys, and a wait until the control plane has stopped what runs here.
drain_node() {
    $BIN/$NAME drain >/dev/null
    say "draining: waiting up to ${wait_s:-600} s until the control plane has stopped $(running) replicas"
    until_seconds "${wait_s:-600}" none_running ||
        die "$(running) replicas still run; the node stays drained (to undo: $NAME resume)"
}
none_running() { read_status && [ "$(running)" = 0 ]; }

check_host
case "$action" in
    install) install_agent ;;
    upgrade)
        [ -z "$root" ] || usage "--upgrade is for a running host; install into the image again instead"
        upgrade_agent
        ;;
    uninstall) uninstall_agent ;;
esac
