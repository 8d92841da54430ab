#!/usr/bin/env bash
# Builds the present commit in two folders, from nothing, and sees that the binaries are the same byte for byte.
#   scripts/build-twice.sh [x86_64|aarch64]    both without an argument
# What is not committed is left out. Takes two cold builds.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
# shellcheck source=scripts/debian.sh
. scripts/debian.sh

need_rust
need git=git
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
trap 'exit 130' INT
trap 'exit 143' TERM
# Of different lengths, one with a space: a path that gets into a binary shows.
folders=("$work/a" "$work/another place/of the same sources")
for folder in "${folders[@]}"; do
    git clone --quiet --no-hardlinks . "$folder"
    env -u CARGO_TARGET_DIR "$folder/scripts/build-static.sh" "$@"
done
first=${folders[0]}/target/static second=${folders[1]}/target/static
diff -r "$first" "$second" || die "two builds of $(git rev-parse --short HEAD) differ"
(cd "$first" && find . -type f -exec sha256sum {} +)
say "two builds of $(git rev-parse --short HEAD) are the same"
