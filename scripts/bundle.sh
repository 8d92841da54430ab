#!/usr/bin/env bash
# Makes the one archive that a rack without internet needs: target/bundle/vectorlay-VERSION.tar.gz, with the binaries of
# both architectures, the scripts and services, what it is made of (sbom.cdx.json, CycloneDX 1.5), and SHA256SUMS of
# all of it. Two runs at the same commit make the same bytes.
#   scripts/bundle.sh [--archive FILE]… [--image FILE]… [--sign KEY [--signers FILE]]
#   --archive FILE   goes into archives/: the official ones of containerd, nerdctl, CNI plugins, Kata. Their own
#                    instructions say where they are to be unpacked; install.sh comes after that
#   --image FILE     goes into images/, which install.sh loads: what `nerdctl save` wrote, plain or compressed by gzip or zstd
#   --sign KEY       signs SHA256SUMS in the archive, for install.sh, and the archive itself, for whoever unpacks it. KEY is
#                    a private SSH key, or a public one whose private half an ssh-agent has (`ssh-keygen -Y sign`)
#   --signers FILE   who may sign (ssh-keygen(1), "ALLOWED SIGNERS"); scripts/allowed_signers unless another is named. It
#                    goes into the archive. A signature that it does not accept is none
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
# shellcheck source=scripts/debian.sh
. scripts/debian.sh

SCRIPTS=(install.sh push.sh initramfs.sh initramfs vectorlay-agent.service vectorlay-vfio.service vectorlay-agent.openrc
    vectorlay-supervise)
# What the binaries are built for: their dependencies are the bill of materials.
TARGETS=(x86_64-unknown-linux-musl aarch64-unknown-linux-musl)

USAGE="usage: scripts/bundle.sh [--archive FILE]… [--image FILE]… [--sign KEY [--signers FILE]]"
# Whose signature counts and for what: the same names as in install.sh and in scripts/allowed_signers.
SIGNER=vectorlay
SIGNS=vectorlay-release

archives=() images=() key='' signers=scripts/allowed_signers
while [ $# -gt 0 ]; do
    [ $# -ge 2 ] || die "$USAGE"
    [ -f "$2" ] || die "there is no file $2"
    case "$1" in
        --archive) archives+=("$2") ;;
        --image) images+=("$2") ;;
        --sign) key=$(realpath "$2") ;;
        --signers) signers=$2 ;;
        *) die "$USAGE" ;;
    esac
    shift 2
done

# sign FILE: makes FILE.sig, and sees that whoever has the list of signers can check it.
sign() {
    rm -f "$1.sig"
    ssh-keygen -q -Y sign -f "$key" -n "$SIGNS" "$1" || die "$1 cannot be signed with $key"
    ssh-keygen -q -Y verify -f "$signers" -I "$SIGNER" -n "$SIGNS" -s "$1.sig" <"$1" >/dev/null ||
        die "$signers does not accept the signature by $key: its public half belongs there (its head says how)"
}

# The crates that are linked into the binaries, or run while they are built: `name version`, a line each.
crates() {
    local target
    for target in "${TARGETS[@]}"; do
        cargo tree --locked --quiet --edges normal,build --target "$target" --prefix none --format '{p}'
    done | awk '{ sub(/^v/, "", $2); print $1, $2 }' | sort -u
}

# A bill of materials: each crate with its licence, source and the checksum of Cargo.lock.
sbom() {
    crates | jq -Rn '[inputs | split(" ") | {name: .[0], version: .[1]}]' >"$work/crates.json"
    awk '$1 == "name" { gsub(/"/, "", $3); name = $3 } $1 == "version" { gsub(/"/, "", $3); version = $3 }
        $1 == "checksum" { gsub(/"/, "", $3); print name, version, $3 }' Cargo.lock |
        jq -Rn '[inputs | split(" ") | {key: "\(.[0]) \(.[1])", value: .[2]}] | from_entries' >"$work/sums.json"
    cargo metadata --locked --quiet --format-version 1 | jq --arg version "$version" --arg time "$time" \
        --arg lock "$(sha256sum Cargo.lock | cut -d ' ' -f 1)" \
        --slurpfile crates "$work/crates.json" --slurpfile sums "$work/sums.json" '
        def purl: "pkg:cargo/\(.name)@\(.version)";
        ($crates[0] | map("\(.name) \(.version)")) as $linked
        | [.packages[] | select("\(.name) \(.version)" | IN($linked[]))] as $packages
        | ($packages | map({key: .id, value: purl}) | from_entries) as $by_id
        | {
            bomFormat: "CycloneDX", specVersion: "1.5", version: 1,
            serialNumber: ("urn:uuid:" + ($lock | "\(.[0:8])-\(.[8:12])-4\(.[13:16])-8\(.[17:20])-\(.[20:32])")),
            metadata: {timestamp: $time, component: {type: "application", name: "vectorlay-agent", version: $version,
                "bom-ref": ($packages[] | select(.source == null) | purl)}},
            components: [$packages | sort_by(.name, .version)[] | select(.source != null) | {
                type: "library", "bom-ref": purl, name, version, purl: purl,
                licenses: [{expression: (.license // "NOASSERTION" | gsub("/"; " OR "))}],
                hashes: [{alg: "SHA-256", content: $sums[0]["\(.name) \(.version)"]}],
                externalReferences: [.repository // empty | {type: "vcs", url: .}]}],
            dependencies: [.resolve.nodes[] | select(.id | in($by_id)) | {ref: $by_id[.id],
                dependsOn: [.deps[].pkg | $by_id[.] // empty] | unique}] | sort_by(.ref)
        }'
}

need jq=jq
[ -z "$key" ] || need ssh-keygen=openssh-client
need_rust
scripts/build-static.sh
version=$(cargo metadata --locked --quiet --no-deps --format-version 1 | jq -r '.packages[0].version')
seconds=$(git log -1 --format=%ct 2>/dev/null || echo 0)
time=$(date -u -d "@$seconds" +%Y-%m-%dT%H:%M:%SZ)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

name=vectorlay-$version
folder=$work/$name
mkdir -p "$folder"
for arch in x86_64 aarch64; do install -D "$TARGET/static/$arch/vectorlay-agent" "$folder/bin/$arch/vectorlay-agent"; done
for file in "${SCRIPTS[@]}"; do cp -r "scripts/$file" "$folder/"; done
cp README.md LICENSE "$folder/"
cp "$signers" "$folder/allowed_signers"
sbom >"$folder/sbom.cdx.json"
for file in "${archives[@]}"; do install -D -m 644 "$file" "$folder/archives/${file##*/}"; done
for file in "${images[@]}"; do install -D -m 644 "$file" "$folder/images/${file##*/}"; done
(cd "$folder" && find . -type f -printf '%P\n' | LC_ALL=C sort | xargs -d '\n' sha256sum) >"$work/SHA256SUMS"
mv "$work/SHA256SUMS" "$folder/"
[ -z "$key" ] || sign "$folder/SHA256SUMS"
# Modes that do not depend on this machine's umask.
chmod -R u=rwX,go=rX "$folder"
mkdir -p "$TARGET/bundle"
tar -C "$work" --sort=name --mtime="@$seconds" --owner=0 --group=0 --numeric-owner --format=gnu -cf - "$name" |
    gzip -n >"$TARGET/bundle/$name.tar.gz.new"
mv "$TARGET/bundle/$name.tar.gz.new" "$TARGET/bundle/$name.tar.gz"
(cd "$TARGET/bundle" && sha256sum "$name.tar.gz" | tee "$name.tar.gz.sha256")
rm -f "$TARGET/bundle/$name.tar.gz.sig"
[ -z "$key" ] || sign "$TARGET/bundle/$name.tar.gz"
