#!/usr/bin/env bash
# Builds the image with podman, buildah or docker, whichever is there: image.sh NAME:TAG [FLAG…]
set -euo pipefail
cd "$(dirname "$0")/../.."
name=$1
shift

fail() { echo "image.sh: $*" >&2; exit 1; }

# The time of the commit, for everything in the image that bears a time.
epoch=$(git log -1 --format=%ct)
revision=$(git rev-parse HEAD)
git diff --quiet HEAD -- || revision="$revision-modified"
common=(
    --file Containerfile --tag "$name"
    --build-arg "SOURCE_DATE_EPOCH=$epoch"
    --build-arg "REVISION=$revision"
    --build-arg "VERSION=$(sed -n 's/^version = "\(.*\)"/\1/p' Cargo.toml | head -n 1)"
    --build-arg "CREATED=$(date --utc --date="@$epoch" +%Y-%m-%dT%H:%M:%SZ)"
)

if type -P podman >/dev/null; then
    podman build --timestamp "$epoch" "${common[@]}" "$@" .
elif type -P buildah >/dev/null; then
    buildah build --timestamp "$epoch" "${common[@]}" "$@" .
elif docker buildx version >/dev/null 2>&1; then
    SOURCE_DATE_EPOCH=$epoch docker buildx build --provenance=false \
        --output "type=docker,rewrite-timestamp=true" "${common[@]}" "$@" .
else
    fail 'there is no podman, buildah, or docker with buildx; as root: apt-get install buildah'
fi
