# shellcheck shell=bash
# What the other scripts need from the machine: installed from Debian where that can be done, named in one line
# where it cannot. Sourced, from the top of the sources; it installs packages and changes nothing else.

# How long apt may wait for another apt, and how long one whole call of it may take, in seconds.
APT_LOCK_S=120
APT_CALL_S=600
# Where cargo puts what it builds.
# shellcheck disable=SC2034 # for the scripts that source this one
TARGET=$(realpath -m "${CARGO_TARGET_DIR:-target}")
# The scripts that are started from here add to the same list of what was installed.
: "${VECTORLAY_INSTALLED:=}"

say() { printf '%s\n' "$*" >&2; }
die() {
    printf '%s: %s\n' "${0##*/}" "$*" >&2
    exit 1
}

# cannot WHY: ends a trial that this machine cannot do, with a status that tells it from one that failed.
cannot() {
    say "$*"
    exit 77
}

# built FILE COMMAND: ends the script where FILE is not there because COMMAND has not built it yet.
built() { [ -x "$1" ] || die "no executable $1: run $2"; }

# bounded SECONDS WHAT COMMAND…: ends with a line that says so when it takes longer.
bounded() {
    local status=0
    timeout "$1" "${@:3}" || status=$?
    [ "$status" != 124 ] || die "$2 took longer than $1 s and was stopped (is this machine very busy?)"
    return "$status"
}

# Succeeds where packages can be installed: as root on Debian (or a system made from it).
can_install() { [ "$(id -u)" = 0 ] && [ -e /etc/debian_version ] && command -v apt-get >/dev/null; }

# have WHAT: a command on the PATH, or an absolute path that exists.
have() {
    case "$1" in
        /*) [ -e "$1" ] ;;
        *) command -v "$1" >/dev/null 2>&1 ;;
    esac
}

# need WHAT=PACKAGE…: installs the packages of those WHATs that the machine lacks.
need() {
    local pair packages=() missing=()
    for pair in "$@"; do
        have "${pair%%=*}" && continue
        missing+=("${pair%%=*}")
        packages+=("${pair#*=}")
    done
    [ "${#missing[@]}" -gt 0 ] || return 0
    can_install || die "missing: ${missing[*]} (Debian's packages: ${packages[*]}): install them, or run this as root on Debian"
    install_packages "${packages[@]}"
    for pair in "$@"; do
        have "${pair%%=*}" || die "missing: ${pair%%=*}, although the package ${pair#*=} is installed"
    done
}

# Installs packages without starting the services in them, now or at the next boot: what the scripts start, they start
# themselves, apart from the machine's own. A policy-rc.d is Debian's way to say so for now; one that is there already
# stays as it is. For the next boot Debian has none, so the links that enable a service are taken away again.
install_packages() {
    local before links
    say "installing from Debian: $*"
    before=$(packages_here)
    links=$(boot_links)
    (
        policy=/usr/sbin/policy-rc.d
        if [ ! -e "$policy" ]; then
            trap 'rm -f "$policy"' EXIT
            printf '#!/bin/sh\nexit 101\n' >"$policy"
            chmod 755 "$policy"
        fi
        apt_update
        apt_get install -y --no-install-recommends "$@"
    ) || die "apt-get could not install: $*"
    APT_UPDATED=1
    { boot_links | grep -vxF -e "$links" || true; } | while read -r link; do rm -f "$link"; done
    [ -z "$VECTORLAY_INSTALLED" ] || packages_here | grep -vxF -e "$before" >>"$VECTORLAY_INSTALLED" || true
}

packages_here() { dpkg-query -W -f '${db:Status-Abbrev}${Package}\n' | sed -n 's/^ii //p'; }

# What starts services at boot, under systemd and under System V's init.
boot_links() {
    find /etc/systemd/system -mindepth 2 -type l -path '*.wants/*' 2>/dev/null || true
    find /etc/rc[0-6S].d -type l -name 'S*' 2>/dev/null || true
}

# note_installed: from here on what is installed is listed, also by scripts that this one starts; tell_installed says it.
note_installed() {
    VECTORLAY_INSTALLED=$(mktemp)
    export VECTORLAY_INSTALLED
}
tell_installed() {
    [ -n "$VECTORLAY_INSTALLED" ] || return 0
    if [ -s "$VECTORLAY_INSTALLED" ]; then
        say "installed from Debian, none of it started or enabled; to remove it: apt-get purge$(sort -u "$VECTORLAY_INSTALLED" | sed 's/^/ /' | tr -d '\n')"
    fi
    rm -f "$VECTORLAY_INSTALLED"
    VECTORLAY_INSTALLED=
}

# apt-get without questions, and without a word unless it fails.
apt_get() {
    local output status=0
    output=$(DEBIAN_FRONTEND=noninteractive timeout "$APT_CALL_S" \
        apt-get -qq -o "DPkg::Lock::Timeout=$APT_LOCK_S" -o Dpkg::Use-Pty=0 "$@" </dev/null 2>&1) || status=$?
    [ "$status" = 0 ] || printf '%s\n' "$output" | tail -n 20 >&2
    return "$status"
}

# The lists of packages are fetched once in a run: a fresh machine has none, an old one has stale ones.
apt_update() {
    [ -n "${APT_UPDATED:-}" ] || apt_get update || say "apt-get update failed: going on with the lists that are here"
}

# Puts cargo on the PATH where rustup is installed but the shell was not told, and finds a C compiler for linking.
need_rust() {
    have cargo || PATH="${CARGO_HOME:-$HOME/.cargo}/bin:$PATH"
    have cargo || die "missing: a Rust toolchain (https://rustup.rs)"
    need cc=gcc /usr/include/stdlib.h=libc6-dev
}
