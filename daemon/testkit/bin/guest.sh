#!/bin/sh
# Runs a program under a stock Debian kernel, which has WireGuard, in a machine of its own: emulated by QEMU, or
# accelerated where there is a usable /dev/kvm.
#
#   guest.sh PROGRAM [ARGUMENT…]   runs it there; its output and its exit status are those of guest.sh
#   guest.sh                       makes the kernel alone, and prints nothing when it is there
#
# Cargo runs tests with it: CARGO_TARGET_X86_64_UNKNOWN_LINUX_GNU_RUNNER=…/guest.sh cargo test --test mesh
#
# In the guest are the program and Warren's programs built beside it, the current folder (empty), the programs
# that tests call, from this machine and at the same paths, and the variables WARREN_* and RUST_*. All of it is
# in memory. There is no network but what the program makes.
#
# A guest that crashed, hung or never came to the end is a failure, whatever it had printed: the exit status comes
# on a serial line of its own, and nothing on it is status 125.
#
# $WARREN_GUEST_LIMIT: seconds after which the guest is stopped (1200). $WARREN_GUEST_MEMORY: MiB (1536).
set -eu

suite=bookworm
# Of the package, which Debian still fixes, the newest revision is taken.
version=6.1
package=linux-image-cloud-amd64

# What the tests call. What is missing here is missing there, and the tests say so.
programs='/bin/false /bin/sh /bin/true base64 bridge cat chmod conntrack cp env ethtool grep head ip ip6tables-legacy
ip6tables-legacy-restore ip6tables-legacy-save ip6tables-nft ip6tables-nft-restore iperf3 iptables-legacy
iptables-legacy-restore iptables-legacy-save iptables-nft iptables-nft-restore kmod ls mkdir mount nft nsenter nstat od ping rm sed setpriv sleep
ss stty sysctl tc tcpdump timeout touch umount unshare wg wireguard-go'

cache="${XDG_CACHE_HOME:-$HOME/.cache}/warren"
home="$cache/guest-$version"
PATH="$PATH:/usr/sbin:/sbin"

say() { echo "guest.sh: $*" >&2; }
fail() { say "$@"; exit 125; }

# Installs what is missing of program:package pairs, as root; otherwise names it.
need() {
    missing=''
    for pair in "$@"; do
        command -v "${pair%%:*}" >/dev/null || missing="$missing ${pair##*:}"
    done
    [ -n "$missing" ] || return 0
    [ "$(id -u)" -eq 0 ] && command -v apt-get >/dev/null || fail "missing; as root: apt-get install$missing"
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

# Into $work: the kernel's package, verified by apt against Debian's keyring, with a private list directory.
fetch() {
    mkdir -p "$work/lists/partial" "$work/cache/archives/partial"
    echo "deb [arch=amd64 signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] $(mirror) $suite main" \
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
        cd "$work"
        apt-get update --quiet
        # The package is a name for that of the newest revision.
        image=$(apt-cache depends "$package" | sed -n 's/^ *Depends: \(linux-image-.*\)/\1/p')
        apt-get download --quiet "$image"
    ) || fail "could not fetch Debian's package $package. Is there a way to a Debian mirror?"
}

# The kernel, and an archive of its modules, which it loads by itself as it needs them.
unpack() {
    dpkg-deb --extract "$work"/linux-image-*.deb "$work/tree"
    release=$(ls "$work/tree/lib/modules")
    depmod --basedir "$work/tree" "$release"
    mkdir "$work/made"
    cp "$work/tree/boot/vmlinuz-$release" "$work/made/kernel"
    (
        cd "$work/tree"
        modules="lib/modules/$release"
        find lib "$modules" -maxdepth 0
        find lib/modules -maxdepth 1
        find "$modules" -maxdepth 1 -name 'modules.*'
        for part in net lib crypto arch/x86/crypto drivers/net; do find "$modules/kernel/$part"; done
        for part in kernel kernel/arch kernel/arch/x86 kernel/drivers; do echo "$modules/$part"; done
    ) | LC_ALL=C sort -u | (cd "$work/tree" && cpio --quiet --create --format newc) >"$work/made/modules.cpio"
}

make_kernel() {
    [ ! -e "$home/kernel" ] || return 0
    mkdir -p "$cache"
    exec 9>"$home.lock"
    flock --nonblock 9 || { say "somebody else is fetching it; waiting"; flock 9; }
    [ ! -e "$home/kernel" ] || return 0
    [ "$(uname -m)" = x86_64 ] || fail "this machine is no x86_64; the guest's kernel is"
    # What was killed left behind.
    rm -rf "$cache"/guest-build.*
    work=$(mktemp -d "$cache/guest-build.XXXXXX")
    trap 'rm -rf "$work"' EXIT
    trap 'exit 125' INT TERM HUP
    say "fetching Debian's kernel $version, once"
    (fetch && unpack) >"$work/log" 2>&1 9>&- || { tail -n 20 "$work/log" >&2; exit 125; }
    rm -rf "$home"
    # Both on one file system: it appears whole or not at all.
    mv "$work/made" "$home"
    rm -rf "$work"
    exec 9>&-
}

# The files of programs and the libraries they are linked with.
with_libraries() {
    for file in "$@"; do
        echo "$file"
        # Not of scripts and static programs.
        ldd "$file" 2>/dev/null | sed -n 's/^.*=> \(\/[^ ]*\) .*$/\1/p; s/^\t\(\/[^ ]*\) .*$/\1/p'
    done | sort -u
}

# Into $work/root: all that the guest has but for its modules.
furnish() {
    root="$work/root"
    mkdir -p "$root$PWD" "$root/proc" "$root/sys" "$root/dev" "$root/run" "$root/tmp" "$root/var" "$root/etc"
    ln -s /run "$root/var/run"
    files=$(for name in $programs; do command -v "$name" || true; done)
    beside="${program%/*}"
    ours=''
    for name in warrend warren-tunnel keyctl warren-perf; do
        for folder in "$beside" "${beside%/deps}"; do
            [ ! -x "$folder/$name" ] || ours="$ours $folder/$name"
        done
    done
    # shellcheck disable=SC2046,SC2086 # these are lists
    cp --parents --dereference --update $(with_libraries $files $ours "$program") "$root"
    for file in passwd group protocols services iproute2; do
        [ ! -e "/etc/$file" ] || cp -rL "/etc/$file" "$root/etc"
    done
    # What iptables is made of, besides.
    for folder in /usr/lib/*/xtables; do
        [ ! -d "$folder" ] || cp --parents --recursive "$folder" "$root"
    done
    # What the kernel calls to load a module.
    mkdir -p "$root/sbin"
    ln -sf "$(command -v kmod)" "$root/sbin/modprobe"
    {
        echo '#!/bin/sh'
        # The shell's own quoting, as `export` prints it.
        export -p | grep -E "^export (WARREN|RUST)_[A-Z_]*=" || true
        echo "cd '$PWD'"
        printf "exec"
        for word in "$@"; do printf " '%s'" "$(printf %s "$word" | sed "s/'/'\\\\''/g")"; done
        echo
    } >"$root/command"
    cat >"$root/init" <<'INIT'
#!/bin/sh
# ttyS0: the kernel. ttyS1: what the program says. ttyS2: its exit status, the last thing to happen.
export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin HOME=/root
# A serial line is a terminal, but nobody looks at colours there.
export TERM=dumb NO_COLOR=1 WG_COLOR_MODE=never
mount -t devtmpfs dev /dev
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t tmpfs -o mode=755 run /run
mkdir /root /dev/shm
mount -t tmpfs shm /dev/shm
# As Kubernetes has its nodes do, and what udev would for /dev/net/tun.
modprobe -a br_netfilter tun
for line in ttyS1 ttyS2; do stty -F /dev/$line raw -echo; done
# As much as a service of systemd may have.
ulimit -n 524288
sh /command </dev/null >/dev/ttyS1 2>&1
echo $? >/dev/ttyS2
echo b >/proc/sysrq-trigger
INIT
    chmod +x "$root/init"
    (cd "$root" && find . | LC_ALL=C sort | cpio --quiet --create --format newc) >"$work/root.cpio"
    rm -rf "$root"
    cat "$home/modules.cpio" "$work/root.cpio" >"$work/initrd"
    rm "$work/root.cpio"
}

boot() {
    : >"$work/status"
    # Three serial lines; see init. norandmaps: QEMU translates a program again wherever else it is put, which makes
    # starting one three times as slow.
    timeout --foreground --kill-after 5 "${WARREN_GUEST_LIMIT:-1200}" \
        qemu-system-x86_64 -accel "$accelerator" -cpu max -smp 2 -m "${WARREN_GUEST_MEMORY:-1536}" \
        -nodefaults -no-user-config -display none -no-reboot \
        -serial "file:$work/kernel" -serial stdio -serial "file:$work/status" \
        -kernel "$home/kernel" -initrd "$work/initrd" \
        -append 'console=ttyS0 quiet panic=-1 oops=panic mitigations=off norandmaps' </dev/null &
    machine=$!
    trap 'kill "$machine" 2>/dev/null; exit 125' INT TERM HUP
    wait "$machine" || ended=$?
    status=$(cat "$work/status")
    case "$status" in
    '' | *[!0-9]*)
        say "the guest did not come to the end: QEMU ended with ${ended:-0} (124: after the time it has). Its kernel:"
        tail -n 40 "$work/kernel" >&2
        exit 125
        ;;
    *) exit "$status" ;;
    esac
}

# There are machines with a /dev/kvm that does not work, for want of what it is made of.
if [ -w /dev/kvm ] && grep -qwE 'vmx|svm' /proc/cpuinfo; then
    accelerator=kvm
else
    accelerator=tcg,thread=multi
    # Emulated, it is about ten times slower where it computes.
    export WARREN_TEST_PATIENCE="${WARREN_TEST_PATIENCE:-4}"
fi
need qemu-system-x86_64:qemu-system-x86 cpio:cpio depmod:kmod flock:util-linux
make_kernel
[ "$#" -gt 0 ] || exit 0
program=$(command -v "$1") || fail "there is no program $1"
program=$(realpath -s "$program")
shift
set -- "$program" "$@"
work=$(mktemp -d "${TMPDIR:-/tmp}/warren-guest.XXXXXX")
trap 'rm -rf "$work"' EXIT
trap 'exit 125' INT TERM HUP
furnish "$@"
boot
