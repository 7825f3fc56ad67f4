#!/usr/bin/env bash
# Provides a tool that the manifests' tests call, and prints the command that runs it.
#
#   tool.sh kustomize | kubernetes-validate | promtool
#
# What is on PATH is used; what is not is fetched once from PyPI or Debian into a folder of the cache that says which
# version it is.
set -euo pipefail

cache="${XDG_CACHE_HOME:-$HOME/.cache}/warren"
validate_version=1.37.0
kustomize_version=5.6.0

fail() { echo "tool.sh: $*" >&2; exit 1; }

# One at a time, and whole or not at all: tests run side by side.
locked() {
    mkdir -p "$cache"
    exec 9>"$cache/manifest-tools.lock"
    flock 9
}

provide_kustomize() {
    if kubectl kustomize --help >/dev/null 2>&1; then echo kubectl kustomize; return; fi
    if type -P kustomize >/dev/null; then echo kustomize build; return; fi
    local home="$cache/kustomize-$kustomize_version"
    locked
    if [ ! -x "$home/usr/bin/kustomize" ]; then from_debian kustomize "$home"; fi
    echo "$home/usr/bin/kustomize" build
}

# Debian 12 has no kustomize; Debian 13's is one static file. Its package list is kept apart from the system's.
from_debian() {
    local package=$1 home=$2 work
    command -v apt-get >/dev/null || fail "$package: neither on PATH nor to be had without apt-get; install it"
    work=$(mktemp -d)
    mkdir -p "$work/lists/partial" "$work/archives/partial"
    echo "deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] http://deb.debian.org/debian trixie main" \
        >"$work/sources.list"
    (cd "$work" && apt_private update -qq && apt_private download -qq "$package") >&2 \
        || fail "$package could not be fetched from Debian; put it on PATH"
    rm -rf "$home.new"
    dpkg-deb -x "$work/$package"_*.deb "$home.new"
    rm -rf "$work"
    mv "$home.new" "$home"
}

# Runs in its work folder, with lists, archives and sources of its own.
apt_private() {
    apt-get -o Dir::Etc::SourceList="$PWD/sources.list" -o Dir::Etc::SourceParts=/dev/null \
        -o Dir::State::Lists="$PWD/lists" -o Dir::Cache="$PWD/archives" \
        -o Dir::Cache::Archives="$PWD/archives" -o APT::Sandbox::User=root "$@"
}

provide_kubernetes-validate() {
    local home="$cache/kubernetes-validate-$validate_version"
    locked
    if [ ! -x "$home/bin/kubernetes-validate" ]; then
        python3 -c 'import ensurepip' 2>/dev/null || install_venv
        rm -rf "$home"
        python3 -m venv "$home" >&2
        "$home/bin/pip" install --quiet --disable-pip-version-check "kubernetes-validate==$validate_version" >&2 \
            || { rm -rf "$home"; fail 'kubernetes-validate could not be fetched from PyPI'; }
    fi
    echo "$home/bin/kubernetes-validate"
}

install_venv() {
    [ "$(id -u)" -eq 0 ] || fail 'python3 with venv is missing; as root: apt-get install python3-venv'
    { apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install --yes --no-install-recommends python3-venv; } >&2
}

provide_promtool() {
    type -P promtool || fail 'promtool is missing; as root: apt-get install prometheus'
}

case "${1:-}" in
    kustomize | kubernetes-validate | promtool) "provide_$1" ;;
    *) fail 'say which: kustomize, kubernetes-validate or promtool' ;;
esac
