# shellcheck shell=bash disable=SC2154
# What virtual machines are made of: Debian's cloud kernel, busybox, programs with their libraries. Sourced after
# debian.sh, by scripts that set CACHE, where packages are kept, and work, a folder that is removed at the end.

# Debian's kernel is unpacked, not installed: this machine keeps its own.
fetch_kernel() {
    local package
    mkdir -p "$CACHE"
    compgen -G "$CACHE/linux-image-*.deb" >/dev/null && return
    can_install || die "no package of Debian's kernel in $CACHE, and none can be fetched here"
    apt_update
    package=$(apt-cache depends linux-image-cloud-amd64 | awk '/Depends: linux-image/ { print $2; exit }')
    [ -n "$package" ] || die "Debian has no linux-image-cloud-amd64 here"
    (cd "$CACHE" && apt_get download "$package") || die "the package $package cannot be fetched"
}

# unpack_kernel: sets vmlinuz and release; its modules are in $work/kernel.
unpack_kernel() {
    dpkg-deb -x "$CACHE"/linux-image-*.deb "$work/kernel"
    vmlinuz=$(echo "$work"/kernel/boot/vmlinuz-*)
    # shellcheck disable=SC2034 # for the scripts that source this one
    release=${vmlinuz##*/vmlinuz-}
}

# busybox_into FOLDER: a static busybox under all of its names.
busybox_into() {
    local path applet
    path=$(command -v busybox || true)
    if [ -z "$path" ] || readelf -lW "$path" | grep -q INTERP; then
        path=$work/busybox/bin/busybox
        [ -e "$path" ] || (cd "$CACHE" && apt_get download busybox-static && dpkg-deb -x busybox-static_*.deb \
            "$work/busybox") || die "Debian's busybox-static cannot be unpacked"
    fi
    cp "$path" "$1/busybox"
    for applet in $("$1/busybox" --list); do
        [ -e "$1/$applet" ] || ln -s busybox "$1/$applet"
    done
}

# program_into FOLDER PROGRAM: with the libraries that it is linked with, each where it is here.
program_into() {
    local file
    install -D "$2" "$1/usr/bin/${2##*/}"
    for file in $(ldd "$2" 2>/dev/null | grep -o '/[^ ]*' || true); do
        [ -e "$1$file" ] || install -D "$file" "$1$file"
    done
}
