#!/usr/bin/env bash
# Provides the WireGuard programs that the benchmark measures beside Warren, and prints folders for PATH.
#
# Each is fetched once, into a folder of the cache that says which version it is: gotatun and boringtun from crates.io,
# wireguard-go from Debian. What cannot be had is named, and the benchmark names it again.
set -euo pipefail

cache="${XDG_CACHE_HOME:-$HOME/.cache}/warren"
gotatun=0.10.2
boringtun=0.7.1

say() { echo "programs.sh: $*" >&2; }

# A package of crates.io, with the versions its authors tested it with.
from_crates() {
    local package=$1 version=$2 home="$cache/$1-$2"
    if [ ! -d "$home/bin" ]; then
        # Not this workspace's: an own target folder, and no configuration but the user's.
        (cd / && CARGO_TARGET_DIR="$home.build" \
            "${CARGO:-cargo}" install --locked --version "$version" --root "$home.new" "$package") >&2 \
            || { say "$package $version could not be built; it will be missing"; rm -rf "$home.new" "$home.build"; return; }
        rm -rf "$home.build"
        mv "$home.new" "$home"
    fi
    echo "$home/bin"
}

# Debian 12's wireguard-go is of 2022, before offloads, and proves nothing; unstable's is unpacked, never installed. Its
# package list is kept apart from the system's.
wireguard_go() {
    local found work version
    found=$(printf '%s\n' "$cache"/wireguard-go-*/usr/bin/wireguard-go | sort -V | tail -n 1)
    if [ -x "$found" ]; then dirname "$found"; return; fi
    command -v apt-get >/dev/null || { say 'wireguard-go needs apt-get to be fetched; it will be missing'; return; }
    work=$(mktemp -d)
    mkdir -p "$work/lists/partial" "$work/archives/partial"
    echo "deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] http://deb.debian.org/debian sid main" \
        >"$work/sources.list"
    if ! (cd "$work" && apt_private update -qq && apt_private download -qq wireguard-go) >&2 \
        || ! dpkg-deb -x "$work"/wireguard-go_*.deb "$work/root" \
        || ! version=$("$work/root/usr/bin/wireguard-go" --version | sed -n '1s/.* v//p'); then
        say 'wireguard-go could not be fetched from Debian; it will be missing'
        rm -rf "$work"
        return
    fi
    mkdir -p "$cache"
    mv "$work/root" "$cache/wireguard-go-$version"
    rm -rf "$work"
    echo "$cache/wireguard-go-$version/usr/bin"
}

# Runs in its work folder, with lists, archives and sources of its own.
apt_private() {
    apt-get -o Dir::Etc::SourceList="$PWD/sources.list" -o Dir::Etc::SourceParts=/dev/null \
        -o Dir::State::Lists="$PWD/lists" -o Dir::Cache="$PWD/archives" \
        -o Dir::Cache::Archives="$PWD/archives" -o APT::Sandbox::User=root "$@"
}

{
    wireguard_go
    from_crates gotatun-cli "$gotatun"
    from_crates boringtun-cli "$boringtun"
} | paste -sd :
