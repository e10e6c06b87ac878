#!/bin/sh
# Check the Debian packages as a mirror's keeper would: lintian; two builds, bit for bit, the second
# from the first one's source package; install, upgrade, remove and purge in a clean Debian 12 (the steps
# of piuparts); the tests of packaging/deb/tests in it, with an upgrade in mid stream under a systemd that runs.
#   scripts/deb-check.sh
# As root, on Debian 12. What it makes stays in no place but dist/ and the cache of scripts/deb.sh.
set -eu

cd "$(dirname "$0")/.."
# shellcheck source=scripts/deb-chroot.sh
. scripts/deb-chroot.sh

need lintian mmdebstrap dpkg-dev git iproute2 systemd-container
work=$(mktemp -d "${TMPDIR:-/tmp}/xensecure-deb-check.XXXXXX")
trap 'rm -rf "$work"' EXIT
trap 'exit 130' INT TERM

scripts/deb.sh
version=$(dpkg-parsechangelog -l packaging/deb/changelog -S Version)

say "lintian"
lintian --allow-root --fail-on error,warning dist/xensecure_"$version"_*.changes

source=dist/xensecure_$version.tar.xz
scripts/deb.sh --out "$work/again" --from "$source"
for built in "$work"/again/*.deb "$work"/again/*.tar.xz; do
    cmp "$built" "dist/${built##*/}" || fail "two builds differ: ${built##*/}"
done
say "two builds are the same: $(sha256sum "$work"/again/xensecure_*.deb | cut -d' ' -f1)"
scripts/deb.sh --out "$work/next" --version "$version+next" --from "$source"

# ---- a system that has what the package depends on, and init's helper for units, as every Debian with systemd

depends=$(dpkg-deb -f "$work"/again/xensecure_*.deb Depends | tr ',' '\n' | sed -e 's/([^)]*)//; s/|.*//; s/:any//; s/ //g' -e 's/-api-m[a-z]*$//' |
    sort -u | tr '\n' ',')
archive=$(base_system check "${depends%,}")
# fresh_root FOLDER: such a system, with both packages and the tests in /debs.
fresh_root() {
    mkdir "$1"
    tar -x -f "$archive" -C "$1"
    mkdir "$1/debs"
    cp "$work"/again/xensecure_*.deb "$1/debs/old.deb"
    cp "$work"/next/xensecure_*.deb "$1/debs/new.deb"
    cp -r packaging/deb/tests "$1/debs/"
}
root=$work/root
fresh_root "$root"

# What a system has: every file with its kind, mode, owner, and content or target. Not what dpkg and apt keep for themselves.
cat >"$root/debs/state" <<'SH'
find / -xdev \( -path /proc -o -path /dev -o -path /debs -o -path /tmp -o -path '/var/lib/dpkg/*' -o -path '/var/cache/*' -o -path '/var/log/*' \
    -o -path '/var/lib/apt/*' \) -prune -o -type f -printf '%M %U:%G ' -exec sha256sum {} \; -o -printf '%M %U:%G %p %l\n' | sort -k 3
SH
cat >"$root/debs/check" <<'SH'
set -eu
say() { echo "check: $*"; }
state() { sh /debs/state >/debs/"$1"; }
secrets() { (cd /var/lib/xensecure && sha256sum identity.key identity.crt); }

state before
say "install"
dpkg -i /debs/old.deb
state installed
# The comparison at the end can see something.
if cmp -s /debs/before /debs/installed; then exit 1; fi
# Made at each host's own first start, which this system without a running systemd has not had.
test ! -e /var/lib/xensecure/identity.key
for unit in xensecured.socket xensecure-launcher.socket; do test -L "/etc/systemd/system/sockets.target.wants/$unit"; done
test "$(stat -c '%a %U:%G' /etc/xensecure/xensecure.toml)" = "644 root:root"
test "$(stat -c '%a %U:%G' /var/lib/xensecure)" = "700 root:root"
getent passwd _xensecure | grep -q ':/nonexistent:/usr/sbin/nologin$'
for command in xensecure xensecured xensecure-launcher xensecurectl; do
    $command --version
    $command --help >/dev/null
done

say "smoke test"
/debs/tests/smoke

say "upgrade"
xensecurectl init
echo '# mine' >>/etc/xensecure/xensecure.toml
secrets >/debs/secrets
dpkg -i /debs/new.deb
tail -n 1 /etc/xensecure/xensecure.toml | grep -qx '# mine'
secrets | cmp - /debs/secrets
say "the other way, and back"
dpkg -i /debs/old.deb
dpkg -i /debs/new.deb
secrets | cmp - /debs/secrets

say "remove"
dpkg -r xensecure
secrets | cmp - /debs/secrets
test -e /etc/xensecure/xensecure.toml
test ! -e /usr/lib/python3/dist-packages/xensecure
say "install again, with the state that stayed"
dpkg -i /debs/new.deb
secrets | cmp - /debs/secrets

say "purge"
dpkg -P xensecure
state after
# The user stays (packaging/deb/xensecure.postrm says why): its lines, and the copies that systemd-sysusers keeps, are all that may differ.
users='/etc/(passwd|group|shadow|gshadow)-?$|/etc/\.pwd\.lock|/etc$|/etc $'
if diff /debs/before /debs/after | grep '^[<>]' | grep -Ev "$users"; then
    say "the above was left behind"
    exit 1
fi
for file in passwd group shadow gshadow; do sed -i '/^_xensecure:/d' /etc/$file; done
say "purge once more, from installed, and of a package that was only removed"
dpkg -i /debs/new.deb
xensecurectl init >/dev/null
dpkg -r xensecure
dpkg -P xensecure
test ! -e /var/lib/xensecure
test ! -e /etc/xensecure
SH
say "install, upgrade, remove, purge"
in_root "$root" "sh /debs/check" >"$work/log" 2>&1 || {
    cat "$work/log" >&2
    fail "failed at the last 'check:' above"
}
grep '^check:\|^smoke:' "$work/log" >&2

# ---- the same package under a systemd that runs, in a container without a network

booted=$work/booted
fresh_root "$booted"
rm -rf "$root"
in_root "$booted" "dpkg -i /debs/old.deb" >"$work/log" 2>&1 || { cat "$work/log" >&2; fail "it does not install"; }
cat >"$booted/debs/run" <<'SH'
XENSECURE_TEST_UPGRADE="dpkg -i /debs/new.deb >&2" /debs/tests/units && dpkg -P xensecure && ! systemctl cat xensecured.socket
echo "status $?"
systemctl --no-pager --failed
systemctl --force exit
SH
cat >"$booted/etc/systemd/system/deb-check.service" <<'UNIT'
[Unit]
After=multi-user.target
[Service]
StandardOutput=file:/debs/log
StandardError=file:/debs/log
ExecStart=sh /debs/run
UNIT
mkdir -p "$booted/etc/systemd/system/multi-user.target.wants"
ln -s ../deb-check.service "$booted/etc/systemd/system/multi-user.target.wants/"
say "the units, and an upgrade in mid stream"
# Where this machine has cgroups of version 1, the container gets version 2 all the same: with both nspawn looks for folders that nobody has made.
# shellcheck disable=SC2016 # the shell inside expands them
timeout 120 unshare --mount sh -c '[ "$(stat -f -c %T /sys/fs/cgroup)" = cgroup2fs ] || mount -t cgroup2 cgroup2 /sys/fs/cgroup; exec "$@"' sh \
    systemd-nspawn --quiet --directory="$booted" --machine="xensecure-$$" --register=no --keep-unit --private-network \
    --console=pipe /lib/systemd/systemd </dev/null >"$work/log" 2>&1 || true
rmdir "/run/systemd/nspawn/propagate/xensecure-$$" 2>/dev/null || true
grep -q '^status 0$' "$booted/debs/log" 2>/dev/null || {
    cat "$work/log" "$booted/debs/log" >&2 || true
    fail "the units do not work"
}
grep '^units:\|Overall exposure' "$booted/debs/log" >&2
say "all is well"
