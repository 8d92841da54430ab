#!/usr/bin/env bash
# A container engine of its own for the tests and the demo, beside whatever engine the machine has and without
# touching that: nerdctl with a private containerd where nerdctl is on the PATH, else a private dockerd.
#
#   scripts/engine.sh start            starts one with its test images; prints the variables below, for eval
#   scripts/engine.sh env [DIR]        prints them again
#   scripts/engine.sh registry [DIR]   starts two registries beside it; prints their variables
#   scripts/engine.sh image NAME [COMMAND-AS-JSON] [DIR]    makes another image of busybox
#   scripts/engine.sh restart [DIR]    stops the daemon if it runs, starts it the same way, prints its new PID
#   scripts/engine.sh reboot [DIR]     does to it what a reboot of the host does; a registry does not come back
#   scripts/engine.sh stop [DIR]       ends all of it and leaves nothing behind
# DIR is VECTORLAY_TEST_ENGINE_DIR where it is not given. Sourced, it gives engine_start, engine_registry,
# engine_image, engine_restart, engine_reboot and engine_stop, which set and export the variables themselves.
#
#   VECTORLAY_TEST_ENGINE           nerdctl or docker (set it before the start to choose)
#   VECTORLAY_TEST_CONTAINERD       (nerdctl; set it before the start) the containerd to use, with ctr and its shim
#                                   for runc beside it; by default what is on the PATH
#   VECTORLAY_TEST_CLI              a program that takes the CLI's arguments and needs nothing from its environment
#   VECTORLAY_TEST_ENGINE_DIR       all that the engine keeps
#   VECTORLAY_TEST_ENGINE_PID       the daemon at its start; VECTORLAY_TEST_ENGINE_PID_FILE has today's
#   VECTORLAY_TEST_ENGINE_RESTART   a program: what `restart` does
#   VECTORLAY_TEST_ENGINE_IN        a program that runs its arguments where the engine runs: its loopback, its ports
#   VECTORLAY_TEST_NAMESPACE        (nerdctl) the CLI's namespace; others may be used if their names begin with this one
#   VECTORLAY_TEST_IMAGE            an image that is there, stays up and ends at once on SIGTERM
#   VECTORLAY_TEST_REGISTRY         (with `registry`) host:port of a registry, open to all, that has busybox:1
#   VECTORLAY_TEST_REGISTRY_AUTH    the same for …_USER with …_PASSWORD only
#
# How it stays apart: the daemon and all that it starts live in a network and a mount namespace of their own, which a
# process called the holder keeps open, and the containers in a cgroup of their own. So bridges, addresses, iptables
# chains and mounts are nobody else's and vanish with the last process, which is also how `stop` knows what is ours.

if [ "${BASH_SOURCE[0]}" = "$0" ]; then set -euo pipefail; fi
ENGINE_SCRIPT=$(realpath "${BASH_SOURCE[0]}")
# shellcheck source=scripts/debian.sh
. "${ENGINE_SCRIPT%/*}/debian.sh"
PATH=$PATH:/usr/local/sbin:/usr/sbin:/sbin
# That containerd's ctr and shim lie beside it, and are of its release.
[ -z "${VECTORLAY_TEST_CONTAINERD:-}" ] || PATH=$(dirname "$(realpath "$VECTORLAY_TEST_CONTAINERD")"):$PATH

# Everything an engine keeps is in one folder that is made for it; its last part also names the cgroup.
ENGINE_BASE=/var/lib/vectorlay-engine
# How long the daemon may take to answer, to end, and all processes to be gone, in seconds.
ENGINE_ANSWER_S=60
ENGINE_TERM_S=20
ENGINE_GONE_S=30
# One call of the CLI that asks whether the daemon answers, and one that loads an image, in seconds.
ENGINE_ASK_S=5
ENGINE_LOAD_S=60
# Paths that are fixed in an engine's code: hidden behind empty ones in the private namespace. Those of the first
# kind are made where they are missing, those of the second kind matter only where they are there: D-Bus (firewalld),
# AppArmor (profiles are the machine's), configuration.
ENGINE_HIDE=(/run/containerd /etc/docker /var/lib/cni /var/lib/nerdctl /opt/containerd)
ENGINE_HIDE_IF_THERE=(/run/dbus /sys/kernel/security /etc/nerdctl /run/docker /run/nri)
ENGINE_IMAGES=(vectorlay-test/busybox:1 vectorlay-test/busybox:2)
REGISTRY_OPEN=127.0.0.1:5000
REGISTRY_AUTH=127.0.0.1:5001
REGISTRY_USER=tester
REGISTRY_PASSWORD='two words:"quoted" #='

# Starts an engine, waits until it answers, and loads the images.
engine_start() {
    local kind kinds=(docker)
    [ "$(id -u)" = 0 ] || die "missing: root (a container engine of its own needs it)"
    ! have nerdctl || kinds=(nerdctl docker)
    for kind in ${VECTORLAY_TEST_ENGINE:-"${kinds[@]}"}; do
        # In a subshell, which also keeps a failure's exit from being ours: the next kind may do.
        VECTORLAY_TEST_ENGINE_DIR=$(engine_try "$kind") || continue
        engine_export
        return 0
    done
    die "no container engine could be started"
}

# Sets and exports the variables of the engine in VECTORLAY_TEST_ENGINE_DIR.
engine_export() {
    local dir
    dir=$(engine_dir "$@")
    export VECTORLAY_TEST_ENGINE_DIR=$dir
    VECTORLAY_TEST_ENGINE=$(<"$dir/kind")
    VECTORLAY_TEST_ENGINE_PID=$(<"$dir/engine.pid")
    export VECTORLAY_TEST_ENGINE VECTORLAY_TEST_ENGINE_PID
    export VECTORLAY_TEST_CLI=$dir/$VECTORLAY_TEST_ENGINE
    export VECTORLAY_TEST_ENGINE_PID_FILE=$dir/engine.pid
    export VECTORLAY_TEST_ENGINE_RESTART=$dir/restart
    export VECTORLAY_TEST_ENGINE_IN=$dir/in
    export VECTORLAY_TEST_IMAGE=${ENGINE_IMAGES[0]}
    [ "$VECTORLAY_TEST_ENGINE" = docker ] || export VECTORLAY_TEST_NAMESPACE=${dir##*/}
    [ -e "$dir/registry" ] || return 0
    export VECTORLAY_TEST_REGISTRY=$REGISTRY_OPEN VECTORLAY_TEST_REGISTRY_AUTH=$REGISTRY_AUTH
    export VECTORLAY_TEST_REGISTRY_USER=$REGISTRY_USER VECTORLAY_TEST_REGISTRY_PASSWORD=$REGISTRY_PASSWORD
}

# Stops the daemon if it runs, starts it again the same way, prints its PID. Containers live on.
engine_restart() {
    local dir
    dir=$(engine_dir "$@")
    daemon_stop "$dir"
    daemon_start "$dir" || die "the engine did not come back: see $dir/engine.log"
    cat "$dir/engine.pid"
}

# Kills the daemon and all that runs, forgets what lies in /run on a host, and starts the daemon again.
engine_reboot() {
    local dir
    dir=$(engine_dir "$@")
    # First, or it would clean up after the others.
    end_process "$(<"$dir/engine.pid")" KILL
    kill_all "$dir"
    rm -rf "$dir/exec"
    # shellcheck disable=SC2016 # the pattern is the program's
    "$dir/in" sh -c 'rm -rf /run/containerd/*'
    daemon_start "$dir" || die "the engine did not come back: see $dir/engine.log"
}

# Ends all that belongs to the engine and removes all that it kept. Asks nothing of the engine itself, which may be
# frozen or dead: what is ours is known by its namespaces and its cgroup.
engine_stop() {
    local dir
    dir=$(engine_dir "$@")
    kill_all "$dir"
    end_process "$(cat "$dir/holder.pid" 2>/dev/null)" KILL
    find /sys/fs/cgroup -depth -type d -path "*/${dir##*/}*" -exec rmdir {} + 2>/dev/null || true
    remove_folder "$dir"
    unset "${!VECTORLAY_TEST_ENGINE@}" "${!VECTORLAY_TEST_REGISTRY@}" VECTORLAY_TEST_CLI VECTORLAY_TEST_IMAGE \
        VECTORLAY_TEST_NAMESPACE
}

# Kills all processes of the engine in this folder, but for the holder.
kill_all() {
    local dir=$1 pid pids left
    thaw "$dir"
    for ((left = ENGINE_GONE_S * 10; left > 0; left--)); do
        # Again until none is left, for one that is killed may just have started another.
        mapfile -t pids < <(engine_pids "$dir")
        [ "${#pids[@]}" -gt 0 ] || break
        for pid in "${pids[@]}"; do kill -KILL "$pid" 2>/dev/null || true; done
        sleep 0.1
    done
    [ "$left" -gt 0 ] || say "these processes of the engine do not end: ${pids[*]}"
}

# engine_image NAME [COMMAND-AS-JSON]: makes an image of busybox on the spot, from no registry, and loads it.
engine_image() {
    local name=$1 command=${2:-} dir
    dir=$(engine_dir "${3:-}")
    # PID 1 ignores SIGTERM unless it says otherwise.
    [ -n "$command" ] || command='["/bin/sh","-c","trap \"exit 0\" TERM; echo ready; sleep 2147483 & wait"]'
    image_archive "$dir" "$name" "$command" | timeout "$ENGINE_LOAD_S" "$dir/load" >>"$dir/image.log" 2>&1 ||
        die "image $name could not be loaded: $(tail -n 1 "$dir/image.log")"
}

# Starts two registries with the same content on the engine's own loopback: one open to all, one with basic auth.
engine_registry() {
    local dir
    dir=$(engine_dir "$@")
    need docker-registry=docker-registry
    mkdir -p "$dir/registry"
    # The hash is bcrypt, the only one that the registry takes; libxcrypt knows it.
    # shellcheck disable=SC2016 # the dollar signs are perl's
    printf '%s:%s\n' "$REGISTRY_USER" \
        "$(perl -e 'print crypt($ARGV[0], q{$2y$05$vectorlayvectorlayvectu})' "$REGISTRY_PASSWORD")" >"$dir/htpasswd"
    registry_start "$dir" "$REGISTRY_OPEN" ""
    registry_start "$dir" "$REGISTRY_AUTH" "auth: {htpasswd: {realm: test, path: $dir/htpasswd}}"
    timeout "$ENGINE_LOAD_S" "$dir/push" "${ENGINE_IMAGES[0]}" "$REGISTRY_OPEN/busybox:1" >>"$dir/image.log" 2>&1 ||
        die "the registry takes no image: $(tail -n 1 "$dir/image.log")"
    engine_export "$dir"
}

# --- below: how ---

# The engine's folder: as given, else as exported. It must be one that engine_start made.
engine_dir() {
    local dir=${1:-${VECTORLAY_TEST_ENGINE_DIR:-}}
    case "$dir" in
        "$ENGINE_BASE".??????) ;;
        "") die "no engine is running (VECTORLAY_TEST_ENGINE_DIR is not set)" ;;
        *) die "$dir is no engine's folder" ;;
    esac
    [ -e "$dir/kind" ] || die "$dir is no engine's folder, or the engine has been stopped"
    printf '%s' "$dir"
}

# engine_try KIND: starts an engine of that kind; prints its folder, or fails with nothing left of it.
engine_try() {
    local kind=$1 dir
    need unshare=util-linux nsenter=util-linux setsid=util-linux ip=iproute2 perl=perl-base
    "need_$kind"
    dir=$(mktemp -d "$ENGINE_BASE.XXXXXX")
    chmod 711 "$dir"
    printf '%s\n' "$kind" >"$dir/kind"
    trap 'engine_stop "$dir"; exit 130' INT TERM
    if holder_start "$dir" && "write_$kind" "$dir" && write_restart "$dir"; then
        # In a subshell, for an image that cannot be loaded exits.
        if daemon_start "$dir" && (engine_images "$dir"); then
            printf '%s' "$dir"
            return 0
        fi
        say "$kind does not start; the end of its log:"
        tail -n 5 "$dir/engine.log" >&2 || true
    fi
    engine_stop "$dir"
    return 1
}

need_docker() { need dockerd=docker.io docker=docker.io runc=runc; }

need_nerdctl() {
    have nerdctl || die "missing: nerdctl (Debian has no package of it: https://github.com/containerd/nerdctl/releases)"
    need containerd=containerd ctr=containerd containerd-shim-runc-v2=containerd runc=runc iptables=iptables
    [ -n "$(cni_path)" ] || need /usr/lib/cni/bridge=containernetworking-plugins
}

# Where the CNI plugins are: Debian's place, or upstream's.
cni_path() {
    local path
    for path in /usr/lib/cni /opt/cni/bin /usr/libexec/cni /usr/local/libexec/cni; do
        [ ! -x "$path/bridge" ] || { printf '%s' "$path"; return 0; }
    done
}

# Starts the process that keeps the namespaces open, and waits until they are furnished.
holder_start() {
    local dir=$1 path
    for path in "${ENGINE_HIDE[@]}"; do
        [ -d "$path" ] || { mkdir -p "$path"; printf '%s\n' "$path" >>"$dir/made"; }
    done
    cat >"$dir/holder" <<END
#!/bin/sh
# Furnishes the engine's namespaces and then keeps them open.
set -eu
ip link set lo up
for path in ${ENGINE_HIDE[*]} ${ENGINE_HIDE_IF_THERE[*]}; do
    [ ! -d "\$path" ] || mount -t tmpfs -o mode=755 tmpfs "\$path"
done
# Overlays cannot be stacked on every file system.
cd "$dir" && mkdir probe probe/lower probe/upper probe/work probe/merged
if mount -t overlay -o lowerdir=probe/lower,upperdir=probe/upper,workdir=probe/work overlay probe/merged; then
    umount probe/merged
    echo overlayfs >snapshotter
else
    echo native >snapshotter
fi
readlink /proc/self/ns/net /proc/self/ns/mnt >namespaces.new
mv namespaces.new namespaces
exec sleep infinity
END
    chmod 755 "$dir/holder"
    setsid unshare --net --mount --propagation slave "$dir/holder" </dev/null >"$dir/holder.log" 2>&1 &
    echo $! >"$dir/holder.pid"
    disown
    wait_until 10 test -e "$dir/namespaces" || {
        say "no namespaces for the engine: $(tail -n 1 "$dir/holder.log")"
        return 1
    }
    write_program "$dir/in" "exec $(command -v nsenter) --net=/proc/$!/ns/net --mount=/proc/$!/ns/mnt -- \"\$@\""
}

# A private dockerd. Without iptables: in a network of its own there is nobody to keep out, and ports are published by
# Docker's proxy. With live-restore its end leaves the containers alone, as containerd's does.
write_docker() {
    local dir=$1
    cat >"$dir/daemon.json" <<END
{
    "hosts": ["unix://$dir/engine.sock"],
    "data-root": "$dir/data",
    "exec-root": "$dir/exec",
    "pidfile": "$dir/docker.pid",
    "cgroup-parent": "/${dir##*/}",
    "exec-opts": ["native.cgroupdriver=cgroupfs"],
    "iptables": false,
    "ip6tables": false,
    "live-restore": true,
    "log-level": "warn",
    "runtimes": {"io.containerd.kata.v2": {"path": "runc"}}
}
END
    write_program "$dir/daemon" "rm -f '$dir/docker.pid'" "exec $(command -v dockerd) --config-file '$dir/daemon.json'"
    write_program "$dir/load" "exec '$dir/docker' load"
    write_program "$dir/push" "set -e; '$dir/docker' tag \"\$1\" \"\$2\"" "'$dir/docker' push \"\$2\"" \
        "exec '$dir/docker' rmi \"\$2\""
    write_docker_cli "$dir" "$(command -v docker)"
}

# The CLI's own configuration is kept out, unless the caller names one, as the agent does for a registry's password.
write_docker_cli() {
    mkdir -p "$1/config"
    # shellcheck disable=SC2016 # the variable is the program's
    write_program "$1/docker" ': "${DOCKER_CONFIG:='"$1"'/config}"' 'export DOCKER_CONFIG' \
        "exec $2 --host unix://$1/engine.sock \"\$@\""
}

# A private containerd, and a nerdctl that finds it, with its own state and networks. Kata's runtime is runc under
# another name here: containerd finds a shim by its name, on its PATH.
write_nerdctl() {
    local dir=$1 ctr
    mkdir "$dir/bin"
    ln -s "$(command -v containerd-shim-runc-v2)" "$dir/bin/containerd-shim-kata-v2"
    cat >"$dir/containerd.toml" <<END
version = 2
root = "$dir/data"
state = "$dir/exec"
disabled_plugins = ["io.containerd.grpc.v1.cri", "io.containerd.cri.v1.images", "io.containerd.cri.v1.runtime",
    "io.containerd.nri.v1.nri"]
[grpc]
address = "$dir/engine.sock"
[debug]
level = "warn"
[plugins."io.containerd.internal.v1.opt"]
path = "$dir/opt"
END
    write_program "$dir/daemon" "exec $(command -v containerd) --config '$dir/containerd.toml'"
    # The namespace in containerd is the parent of the containers' cgroups.
    write_program "$dir/nerdctl" "exec '$dir/in' $(command -v nerdctl) --address '$dir/engine.sock' \\
    --namespace '${dir##*/}' --data-root '$dir/nerdctl.data' --snapshotter $(<"$dir/snapshotter") \\
    --cni-path '$(cni_path)' --cni-netconfpath '$dir/cni' --cgroup-manager cgroupfs \"\$@\""
    # Not nerdctl's own load, tag and push: those of 2.3 need a containerd newer than Debian's.
    ctr="exec '$dir/in' $(command -v ctr) --address '$dir/engine.sock' --namespace '${dir##*/}' images"
    write_program "$dir/load" "$ctr import --snapshotter $(<"$dir/snapshotter") -"
    write_program "$dir/push" "$ctr push --plain-http \"\$2\" \"docker.io/\$1\""
}

write_restart() {
    write_program "$1/restart" "PATH='$PATH' exec bash '$ENGINE_SCRIPT' restart '$1'"
}

# write_program PATH LINE…: a small shell program, which ends by becoming another one.
write_program() {
    local path=$1
    shift
    printf '%s\n' '#!/bin/sh' "$@" >"$path"
    chmod 755 "$path"
}

# Starts the daemon, with nothing of our environment, and waits until it answers.
daemon_start() {
    local dir=$1
    forget_containerd "$dir"
    setsid "$dir/in" env -i "PATH=$dir/bin:$PATH" HOME=/root "$dir/daemon" </dev/null >>"$dir/engine.log" 2>&1 &
    echo $! >"$dir/engine.pid"
    disown
    wait_until "$ENGINE_ANSWER_S" daemon_answers_or_ended "$dir" && daemon_answers "$dir"
}

# dockerd's containerd dies with it, and its PID file stays. dockerd takes one that is just dying, or a zombie, for
# alive, waits for it and gives up: so let it end, and remove the file.
forget_containerd() {
    local file=$1/exec/containerd/containerd.pid
    [ -e "$file" ] || return 0
    wait_until "$ENGINE_TERM_S" ended "$(<"$file")" && rm -f "$file"
}

daemon_answers_or_ended() { daemon_answers "$1" || ! alive "$(<"$1/engine.pid")"; }

# Whether the daemon answers. A docker client may be too new for the daemon: then the next one on the PATH is taken.
daemon_answers() {
    local dir=$1 cli said
    [ -S "$dir/engine.sock" ] || return 1
    if [ -e "$dir/nerdctl" ]; then
        timeout "$ENGINE_ASK_S" "$dir/nerdctl" info >>"$dir/ask.log" 2>&1
        return
    fi
    said=$(timeout "$ENGINE_ASK_S" "$dir/docker" info 2>&1) && return
    printf '%s\n' "$said" >>"$dir/ask.log"
    # Only then: a daemon that is just starting answers no client yet.
    case "$said" in *"too new"*) ;; *) return 1 ;; esac
    for cli in $(type -ap docker); do
        timeout "$ENGINE_ASK_S" "$cli" --host "unix://$dir/engine.sock" ps >>"$dir/ask.log" 2>&1 || continue
        write_docker_cli "$dir" "$cli"
        return 0
    done
    return 1
}

daemon_stop() {
    local pid
    pid=$(<"$1/engine.pid")
    ! alive "$pid" || kill -CONT "$pid" || true
    end_process "$pid" TERM
}

engine_images() {
    local name
    for name in "${ENGINE_IMAGES[@]}"; do engine_image "$name" "" "$1"; done
}

registry_start() {
    local dir=$1 address=$2 auth=$3 file=$1/registry-${2#*:}
    printf '%s\n' "version: 0.1" "storage: {filesystem: {rootdirectory: $dir/registry}}" \
        "http: {addr: '$address'}" "$auth" >"$file.yml"
    setsid "$dir/in" env -i "PATH=$PATH" docker-registry serve "$file.yml" </dev/null >"$file.log" 2>&1 &
    disown
    wait_until 20 grep -qs "listening on" "$file.log" || die "the registry does not start: $(tail -n 1 "$file.log")"
}

# The archive that `docker load` and `nerdctl load` both read: a layer, its configuration, and a list of the two.
image_archive() {
    local dir=$1 name=$2 command=$3 work arch=amd64
    [ "$(uname -m)" != aarch64 ] || arch=arm64
    [ -e "$dir/layer.tar" ] || image_layer "$dir"
    work=$(mktemp -d "$dir/image.XXXXXX")
    ln "$dir/layer.tar" "$work/layer.tar"
    cat >"$work/config.json" <<END
{"architecture": "$arch", "os": "linux", "created": "2000-01-01T00:00:00Z",
 "config": {"Cmd": $command, "Env": ["PATH=/bin", "FROM_IMAGE=$name"]},
 "rootfs": {"type": "layers", "diff_ids": ["sha256:$(sha256sum "$work/layer.tar" | cut -d ' ' -f 1)"]}}
END
    printf '[{"Config": "config.json", "RepoTags": ["%s"], "Layers": ["layer.tar"]}]\n' "$name" >"$work/manifest.json"
    tar -c -C "$work" manifest.json config.json layer.tar
    rm -r "$work"
}

# One layer: busybox under all of its names, and the folders that a container's mounts go to.
image_layer() {
    local root=$1/root busybox applet
    busybox=$(busybox_static "$1")
    mkdir -p "$root"/{bin,dev,etc,proc,sys,tmp}
    cp "$busybox" "$root/bin/busybox"
    chmod 755 "$root/bin/busybox"
    for applet in $("$busybox" --list); do
        [ "$applet" = busybox ] || ln -s busybox "$root/bin/$applet"
    done
    echo 'root:x:0:0:root:/:/bin/sh' >"$root/etc/passwd"
    tar -c --numeric-owner --owner=0 --group=0 --sort=name --mtime=@0 -C "$root" -f "$1/layer.tar.new" .
    mv "$1/layer.tar.new" "$1/layer.tar"
}

# A static busybox: the machine's, or Debian's unpacked beside it (installing it would remove a dynamic one).
busybox_static() {
    local path=/bin/busybox
    need readelf=binutils
    if [ ! -x "$path" ] || readelf -lW "$path" | grep -q INTERP; then
        can_install || die "missing: a static busybox at $path (Debian's package: busybox-static)"
        say "unpacking Debian's busybox-static"
        mkdir -p "$1/busybox"
        apt_update
        (cd "$1/busybox" && apt_get download busybox-static && dpkg-deb -x busybox-static_*.deb .) ||
            die "Debian's busybox-static could not be unpacked"
        path=$1/busybox/bin/busybox
    fi
    printf '%s' "$path"
}

# The processes that are ours, but for the holder: those in our namespaces, and those in our containers.
engine_pids() {
    local dir=$1 net mnt holder pid
    holder=$(cat "$dir/holder.pid" 2>/dev/null || true)
    {
        if [ -e "$dir/namespaces" ]; then
            { read -r net; read -r mnt; } <"$dir/namespaces"
            while read -r pid; do
                [ "$(readlink "/proc/$pid/ns/mnt" 2>/dev/null)" != "$mnt" ] || printf '%s\n' "$pid"
            done < <(find /proc -mindepth 3 -maxdepth 3 -path '/proc/[0-9]*/ns/net' -lname "net:\\${net#net:}" \
                2>/dev/null | cut -d / -f 3)
        fi
        grep -lF "/${dir##*/}" /proc/[0-9]*/cgroup 2>/dev/null | cut -d / -f 3
    } | sort -u | while read -r pid; do
        [ "$pid" = "$holder" ] || ! alive "$pid" || printf '%s\n' "$pid"
    done
}

# A paused container's processes take no signal before they are thawed (cgroup v1).
thaw() {
    local file
    find /sys/fs/cgroup -type f -name freezer.state -path "*/${1##*/}/*" 2>/dev/null | while read -r file; do
        echo THAWED >"$file" || true
    done
}

# Whether the process is there and no zombie, which may wait long for a PID 1 that does not care.
alive() { grep -qs '^State:[[:space:]][^ZX]' "/proc/$1/status"; }

# end_process PID SIGNAL: bounded; what SIGTERM does not end, SIGKILL does.
end_process() {
    [ -n "$1" ] && alive "$1" || return 0
    kill "-$2" "$1" 2>/dev/null || true
    wait_until "$ENGINE_TERM_S" ended "$1" || kill -KILL "$1" 2>/dev/null || true
    wait_until "$ENGINE_TERM_S" ended "$1" || say "process $1 does not end"
}

ended() { ! alive "$1"; }

# wait_until SECONDS COMMAND…: runs it ten times a second until it succeeds or the time is up.
wait_until() {
    local until=$((SECONDS + $1))
    shift
    until "$@"; do
        [ "$SECONDS" -lt "$until" ] || return 1
        sleep 0.1
    done
}

# Removes the engine's folder and the empty ones that were made to be hidden. The mounts inside went with their
# namespace, which the kernel takes down a moment after its last process.
remove_folder() {
    local dir=$1 made=() path other
    [ ! -e "$dir/made" ] || mapfile -t made <"$dir/made"
    wait_until "$ENGINE_TERM_S" rm -rf --one-file-system "$dir" 2>/dev/null || say "could not remove $dir"
    # Another engine like this one may have hidden the same folders and would lose them: the last one removes them.
    other=$(compgen -G "$ENGINE_BASE.??????" | head -n 1) || true
    for path in "${made[@]}"; do
        if [ -n "$other" ]; then printf '%s\n' "$path" >>"$other/made"; else rmdir "$path" 2>/dev/null || true; fi
    done
}

# The variables as lines for eval.
engine_print() {
    local name
    for name in "${!VECTORLAY_TEST_@}"; do printf 'export %s=%q\n' "$name" "${!name}"; done
}

engine_main() {
    local verb=${1:-}
    [ $# -eq 0 ] || shift
    case "$verb" in
        start)
            unset VECTORLAY_TEST_ENGINE_DIR
            trap '[ -z "${VECTORLAY_TEST_ENGINE_DIR:-}" ] || engine_stop' EXIT
            trap 'exit 130' INT
            trap 'exit 143' TERM
            engine_start
            engine_print
            trap - EXIT
            ;;
        env) engine_export "$@" && engine_print ;;
        registry) engine_registry "$@" && engine_print ;;
        image) [ $# -ge 1 ] || die "usage: scripts/engine.sh image NAME [COMMAND-AS-JSON] [DIR]"; engine_image "$@" ;;
        restart) engine_restart "$@" ;;
        reboot) engine_reboot "$@" ;;
        stop) engine_stop "$@" ;;
        *) die "usage: scripts/engine.sh start | env | registry | image NAME [COMMAND-AS-JSON] | restart | reboot | stop" ;;
    esac
}

if [ "${BASH_SOURCE[0]}" = "$0" ]; then engine_main "$@"; fi
