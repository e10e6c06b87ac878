#!/bin/sh
# Build the Debian packages into dist/, in a clean Debian 12 that has only the build dependencies, without a network.
#   scripts/deb.sh [--out FOLDER] [--version VERSION] [--from ARCHIVE]
# --version: another version than the changelog's, for tests of an upgrade. --from: a source package's .tar.xz instead of this tree.
# As root, on Debian 12. The clean system is made by mmdebstrap from this machine's own package sources, once, and kept as an archive
# under ${XDG_CACHE_HOME:-~/.cache}/xensecure/, until packaging/deb/control changes or it is 30 days old.
set -eu

cd "$(dirname "$0")/.."
# shellcheck source=scripts/deb-chroot.sh
. scripts/deb-chroot.sh

out=dist
version=
from=
while [ $# -gt 0 ]; do
    case $1 in
    --out) out=$2 ;;
    --version) version=$2 ;;
    --from) from=$(realpath "$2") ;;
    *) fail "usage: scripts/deb.sh [--out FOLDER] [--version VERSION] [--from ARCHIVE]" ;;
    esac
    shift 2
done

need mmdebstrap dpkg-dev git
native=$(dpkg-parsechangelog -l packaging/deb/changelog -S Version)
grep -qx "__version__ = \"$native\"" xensecure/__init__.py || fail "packaging/deb/changelog says $native, xensecure/__init__.py another version"
version=${version:-$native}

work=$(mktemp -d "${TMPDIR:-/tmp}/xensecure-deb.XXXXXX")
trap 'rm -rf "$work"' EXIT
trap 'exit 130' INT TERM
root=$work/root

# What every build may take for granted, and the Build-Depends.
archive=$(base_system build "build-essential,$(dpkg_names packaging/deb/control Build-Depends)")
say "unpacking the clean system"
mkdir "$root"
tar -x -f "$archive" -C "$root"

# ---- the tree: a source package's, or tracked and new files with packaging/deb as debian/; all of the changelog's date

tree=$root/build/xensecure-$version
mkdir -p "$tree"
if [ -n "$from" ]; then
    tar -x -f "$from" --no-same-owner --strip-components=1 -C "$tree"
else
    git ls-files --cached --others --exclude-standard | while read -r file; do [ ! -e "$file" ] || echo "$file"; done >"$work/files"
    tar -c -T "$work/files" | tar -x --no-same-owner -C "$tree"
    mv "$tree/packaging/deb" "$tree/debian"
fi
if [ "$version" != "$native" ]; then
    log=packaging/deb/changelog
    {
        printf 'xensecure (%s) unstable; urgency=medium\n\n  * Built for a test.\n\n' "$version"
        printf ' -- %s  %s\n\n' "$(dpkg-parsechangelog -l $log -S Maintainer)" "$(dpkg-parsechangelog -l $log -S Date)"
        cat $log
    } >"$tree/debian/changelog"
fi
SOURCE_DATE_EPOCH=$(dpkg-parsechangelog -l "$tree/debian/changelog" -S Timestamp)
export SOURCE_DATE_EPOCH
chmod -R u=rwX,go=rX "$tree"
find "$tree" -exec touch -h -d "@$SOURCE_DATE_EPOCH" {} +

# ---- the build, as a user without rights

say "building xensecure $version"
chown -R 1000:1000 "$root/build"
if ! in_root "$root" --user 1000 "cd /build/xensecure-$version && dpkg-buildpackage -us -uc" >"$work/log" 2>&1; then
    cat "$work/log" >&2
    fail "the build failed"
fi
mkdir -p "$out"
rm -f "$out"/xensecure_* "$out"/xensecure-dbgsym_*
cp "$root"/build/xensecure*_* "$work/log" "$out"/
mv "$out/log" "$out/xensecure_$version.build"
for file in "$out"/xensecure_*.deb; do say "$file"; done
