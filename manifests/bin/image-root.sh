#!/bin/sh
# Collects programs, the libraries they are linked to, and little else in a folder that becomes an image's root.
# Runs in the Containerfile, on Debian: image-root.sh FOLDER PROGRAM… LIBRARY…
# A library, for programs that open it themselves, is named by its whole path, and stays there.
set -eu
umask 022
root=$1
shift

# Where warrend and its tunnel write is mounted over; the folders are here to be mounted on.
mkdir -p "$root/usr/bin" "$root/etc/warren/settings" "$root/var/lib/warren" "$root/var/run/wireguard" \
    "$root/var/lib/dpkg/status.d" "$root/usr/share/doc"
chmod 0700 "$root/var/lib/warren"

echo 'root:x:0:0:root:/:/nonexistent
nonroot:x:65532:65532:nonroot:/:/nonexistent' >"$root/etc/passwd"
echo 'root:x:0:
nonroot:x:65532:' >"$root/etc/group"
cp /etc/protocols /etc/services "$root/etc/"
cp -L /etc/os-release "$root/etc/os-release"
packages='netbase base-files'

# What Debian's packages say of themselves stays with their files: licences for people, versions for scanners.
owner() { dpkg-query -S "$1" 2>/dev/null || dpkg-query -S "${1#/usr}" 2>/dev/null || dpkg-query -S "/usr$1"; }

for program; do
    case $program in
    /*.so.*) path=$program folder=$(dirname "$program") ;;
    *) path=$(command -v "$program") folder=/usr/bin ;;
    esac
    mkdir -p "$root$folder"
    cp -L "$path" "$root$folder/"
    ! name=$(owner "$path") || packages="$packages ${name%%:*}"
    # Lines are "libc.so.6 => /lib/x86_64-linux-gnu/libc.so.6 (0x…)" or "/lib64/ld-linux-x86-64.so.2 (0x…)".
    for library in $(ldd "$path" | sed -n 's|^[^/]*\(/[^ ]*\) (0x.*|\1|p'); do
        mkdir -p "$root$(dirname "$library")"
        cp -L "$library" "$root$library"
        name=$(owner "$library" || owner "$(realpath "$library")")
        packages="$packages ${name%%:*}"
    done
done

for package in $(printf '%s\n' $packages | sort -u); do
    mkdir -p "$root/usr/share/doc/$package"
    cp -L "/usr/share/doc/$package/copyright" "$root/usr/share/doc/$package/"
    dpkg-query -s "$package" >"$root/var/lib/dpkg/status.d/$package"
done

find "$root" -exec touch --no-dereference --date="@${SOURCE_DATE_EPOCH:-0}" {} +
