#!/bin/sh
# The test script that wireguard-go ships, tests/netns.sh, for any WireGuard program.
#
#   netns.sh              puts the script where the scenario finds it, and prints nothing when it is there
#   netns.sh run PROGRAM  runs it with that program, in mount and network namespaces that the caller made
#
# It comes from Debian's own source package of wireguard-go, of which apt verifies the upstream archive. The system's
# apt sources stay as they are: lists are kept in a private directory. The suite is a released one, so the version stays.
set -eu

package=wireguard-go
version=0.0.20231211
suite=trixie

cache="${XDG_CACHE_HOME:-$HOME/.cache}/warren"
home="$cache/wireguard-go-tests-$version"
script="$home/netns.sh"

say() { echo "netns.sh: $*" >&2; }
fail() { say "$@"; exit 1; }

# In the folder $work: the upstream archive, verified by apt against Debian's keyring.
fetch() {
    mkdir -p "$work/lists/partial" "$work/cache/archives/partial" "$work/source"
    echo "deb-src [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] http://deb.debian.org/debian $suite main" \
        >"$work/sources.list"
    cat >"$work/apt.conf" <<CONF
Dir::Etc::SourceList "$work/sources.list";
Dir::Etc::SourceParts "/dev/null";
Dir::State::Lists "$work/lists";
Dir::Cache "$work/cache";
APT::Sandbox::User "root";
CONF
    (
        export APT_CONFIG="$work/apt.conf"
        cd "$work/source"
        apt-get update --quiet && apt-get source --quiet --only-source --download-only --tar-only "$package"
    ) >"$work/log" 2>&1 || { cat "$work/log" >&2; fail "could not fetch Debian's source package $package"; }
    archive="$work/source/${package}_$version.orig.tar.gz"
    [ -f "$archive" ] || fail "Debian's $package is no longer $version; change version= in $0 and try it"
    tar --extract --file "$archive" --directory "$work" --strip-components 2 "$package-$version/tests/netns.sh"
}

provide() {
    [ ! -e "$script" ] || return 0
    command -v apt-get >/dev/null || fail "there is no apt-get to fetch the source package $package"
    mkdir -p "$home"
    work=$(mktemp -d "$home/fetch.XXXXXX")
    trap 'rm -rf "$work"' EXIT
    fetch
    # Both on one file system: the script appears whole or not at all.
    mv "$work/netns.sh" "$script"
}

# The script sets a limit of the kernel's messages, which may exist in the machine's first network namespace alone; what
# it writes there is then a file that nobody reads.
limit_of_messages() {
    [ -e /proc/sys/net/core/message_cost ] && return
    mount -t tmpfs tmpfs /proc/sys/net/core
    echo 5 >/proc/sys/net/core/message_cost
}

case "${1:-provide}" in
provide) provide ;;
run)
    [ -e "$script" ] || fail "there is no $script yet; run, where there is a way to a Debian mirror: $0"
    [ -r /dev/kmsg ] || fail "cannot read /dev/kmsg, as the script does at its end"
    limit_of_messages
    exec bash "$script" "$2"
    ;;
*) fail "unknown argument '$1'; see the beginning of $0" ;;
esac
