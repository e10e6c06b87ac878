#!/bin/sh
# Try the Ansible role as it comes: from nothing, with the Debian package and with pip, on hosts that run systemd.
#   scripts/fleet-check.sh
# As root, on Debian 12, after 'make deb dist' (make fleet-check does all). The hosts are containers of a clean Debian 12, without a network but each other's.
set -eu

cd "$(dirname "$0")/.."
# shellcheck source=scripts/deb-chroot.sh
. scripts/deb-chroot.sh

need mmdebstrap iproute2 openssh-client openssl systemd-container
package=$(echo dist/xensecure_*.deb)
archive=$(echo dist/xensecure-*.tar.gz)
if [ ! -e "$package" ] || [ ! -e "$archive" ]; then fail "there is no package to try: make deb dist"; fi

work=$(mktemp -d "${TMPDIR:-/tmp}/xensecure-fleet-check.XXXXXX")
trap 'rm -rf "$work"' EXIT
trap 'exit 130' INT TERM
# What the package depends on, what the archive is built with, and a host that ansible can work on.
depends=$(dpkg-deb -f "$package" Depends | tr ',' '\n' | sed -e 's/([^)]*)//; s/|.*//; s/:any//; s/ //g' -e 's/-api-m[a-z]*$//' | sort -u | tr '\n' ',')
built=gcc,libssl-dev,libzstd-dev,python3-dev,python3-venv
system=$(base_system fleet "${depends}dbus,iproute2,openssh-server,openssl,python3-apt,systemd-sysv,$built")
say "unpacking the clean system"
mkdir "$work/root" "$work/wheels"
tar -x -f "$system" -C "$work/root"
.venv/bin/pip wheel -q --wheel-dir "$work/wheels" -r requirements-build.txt "pyOpenSSL>=23" "pyroute2>=0.7"
.venv/bin/python -m tests.fleet.booted --root "$work/root" --package "$package" --archive "$archive" --wheels "$work/wheels"
