#!/bin/sh
# Debian's own /etc/init.d/xendomains, unchanged, on a machine without Xen: in a mount namespace of its own the files of xen-utils-common lie over the system's.
#   unshare --mount tests/xl/xendomains.sh PACKAGES SETTINGS stop
# PACKAGES: the unpacked packages (python -m tests.xl.fetch); SETTINGS: a folder with etc/default/xendomains and an empty proc; both without ':' or ','.
set -eu

packages=$1
settings=$2
shift 2

mount -t overlay overlay -o "ro,lowerdir=$packages/usr/lib:/usr/lib" /usr/lib
mount -t overlay overlay -o "ro,lowerdir=$packages/usr/sbin:/usr/sbin" /usr/sbin
mount -t overlay overlay -o "ro,lowerdir=$settings/etc:$packages/etc:/etc" /etc
# The script looks for /proc/xen/privcmd before it does anything. A file system of the kernel's cannot be added to: all else in it is a link.
mount --rbind /proc "$settings/proc"
mount -t tmpfs tmpfs /proc
for entry in "$settings"/proc/*; do ln -s "$entry" "/proc/${entry##*/}"; done
mkdir /proc/xen
: >/proc/xen/privcmd

exec /etc/init.d/xendomains "$@"
