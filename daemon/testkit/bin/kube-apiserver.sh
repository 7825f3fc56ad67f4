#!/bin/sh
# Puts a kube-apiserver and an etcd where the tests find them, and prints nothing when they are there.
#
#   kube-apiserver.sh          makes both; the first time this builds for 4 to 5 minutes on 2 cores
#   kube-apiserver.sh where    prints the paths of kube-apiserver and etcd, one per line; makes nothing
#
# $KUBEBUILDER_ASSETS wins: a directory that holds both, of whatever version, as the ecosystem has it. Without
# it kube-apiserver is built from Debian's own source package, because no package holds one, and etcd comes from
# the package etcd-server. The system's apt sources stay as they are: the source package is fetched with a
# private list directory. All work happens in the cache folder, of which only the binary is kept.
set -eu

# Of the package, which Debian still fixes, the newest revision is taken; this is what it must contain.
package=kubernetes
version=1.20.2
suite=bookworm

cache="${XDG_CACHE_HOME:-$HOME/.cache}/warren"
home="$cache/kube-apiserver-$version"
server="$home/kube-apiserver"
PATH="$PATH:/usr/sbin:/sbin"

say() { echo "kube-apiserver.sh: $*" >&2; }
fail() { say "$@"; exit 1; }

# Installs what is missing of program:package pairs, as root; otherwise names it.
need() {
    missing=''
    for pair in "$@"; do
        command -v "${pair%%:*}" >/dev/null || missing="$missing ${pair##*:}"
    done
    [ -n "$missing" ] || return 0
    command -v apt-get >/dev/null || fail "missing:$missing, and there is no apt-get to install them.
Set KUBEBUILDER_ASSETS to a directory that holds kube-apiserver and etcd."
    [ "$(id -u)" -eq 0 ] || fail "missing; as root: apt-get install$missing
Or set KUBEBUILDER_ASSETS to a directory that holds kube-apiserver and etcd."
    say "installing$missing"
    { apt-get update && DEBIAN_FRONTEND=noninteractive apt-get install --yes --no-install-recommends $missing; } \
        >&2 || fail "apt-get could not install$missing (see above)"
}

# The server of Debian packages that this machine uses, else Debian's own.
mirror() {
    site=$(apt-get indextargets --format '$(CREATED_BY) $(CODENAME) $(COMPONENT) $(REPO_URI)' 2>/dev/null |
        sed -n "s/^Packages $suite main //p" | head -n 1)
    echo "${site:-http://deb.debian.org/debian}"
}

# In the folder $work: fetches the source, verified by apt against Debian's keyring.
fetch() {
    mkdir -p "$work/lists/partial" "$work/cache/archives/partial" "$work/source"
    echo "deb-src [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] $(mirror) $suite main" \
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
        apt-get update --quiet &&
            apt-get source --quiet --download-only "$package"
    ) || fail "could not fetch Debian's source package $package.
Is there a way to a Debian mirror? Else set KUBEBUILDER_ASSETS to a directory with kube-apiserver and etcd."
    package_version=$(sed -n 's/^Version: //p' "$work"/source/*.dsc | head -n 1)
    case "$package_version" in
    *"$version-"*) ;;
    *) fail "Debian's $package is now $package_version; change version=$version in $0 and try it" ;;
    esac
    (cd "$work/source" && dpkg-source --extract ./*.dsc "$work/tree") ||
        fail "dpkg-source could not unpack $package $package_version"
}

# In $work/tree: the server alone, told its version, which it would otherwise ask git.
compile() {
    cat >"$work/version" <<VERSION
KUBE_GIT_COMMIT=debian-$package_version
KUBE_GIT_TREE_STATE=archive
KUBE_GIT_VERSION=v$version
KUBE_GIT_MAJOR=1
KUBE_GIT_MINOR=20
VERSION
    # GOPATH and the like of the person at the keyboard are none of this build's business.
    env --ignore-environment PATH="$PATH" HOME="$work" GOCACHE="$work/go-cache" GO111MODULE=off GOFLAGS= \
        KUBE_GIT_VERSION_FILE="$work/version" \
        make -C "$work/tree" WHAT=cmd/kube-apiserver GO111MODULE=off ||
        fail "building kube-apiserver $version failed (see above)"
}

make_server() {
    mkdir -p "$cache"
    exec 9>"$home.lock"
    flock --nonblock 9 || { say "another build is under way; waiting for it"; flock 9; }
    [ ! -x "$server" ] || return 0

    need dpkg-source:dpkg-dev go:golang-go rsync:rsync jq:jq make:make gcc:gcc
    # What a build that was killed left behind.
    chmod -R u+w "$cache"/kube-apiserver-build.* 2>/dev/null || true
    rm -rf "$cache"/kube-apiserver-build.*
    work=$(mktemp -d "$cache/kube-apiserver-build.XXXXXX")
    trap 'chmod -R u+w "$work"; rm -rf "$work"' EXIT
    trap 'exit 1' INT TERM HUP
    say "building kube-apiserver $version from Debian's source, once; 4 to 5 minutes on 2 cores"
    (fetch && compile) >"$work/log" 2>&1 9>&- || { tail -n 40 "$work/log" >&2; exit 1; }
    mkdir -p "$home"
    # Both on one file system: the binary appears whole or not at all.
    mv "$work/tree/_output/local/go/bin/kube-apiserver" "$server"
    say "built $server"
}

if [ -n "${KUBEBUILDER_ASSETS:-}" ]; then
    server="$KUBEBUILDER_ASSETS/kube-apiserver"
    etcd="$KUBEBUILDER_ASSETS/etcd"
    for program in "$server" "$etcd"; do
        [ -x "$program" ] || fail "KUBEBUILDER_ASSETS is $KUBEBUILDER_ASSETS, but $program is no program.
Put kube-apiserver and etcd there, or unset KUBEBUILDER_ASSETS to have Debian's built."
    done
else
    etcd=$(command -v etcd || true)
fi

case "${1:-make}" in
where)
    [ -x "$server" ] && [ -n "$etcd" ] || fail "there is no kube-apiserver $version or no etcd yet; run: $0"
    printf '%s\n%s\n' "$server" "$etcd"
    ;;
make)
    [ -n "$etcd" ] || need etcd:etcd-server
    [ -x "$server" ] || make_server
    ;;
*) fail "unknown argument '$1'; without one it makes both programs, 'where' prints their paths" ;;
esac
