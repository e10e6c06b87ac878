# What scripts/deb.sh and scripts/deb-check.sh share: clean Debian 12 systems, and commands in them. Sourced, not run.
# shellcheck shell=sh

cache="${XDG_CACHE_HOME:-$HOME/.cache}/xensecure"
SUITE=bookworm
umask 022 # what is made here is read by other users, in chroots
BASE_DAYS=30 # then security updates make a new one worth its half minute

say() { echo "deb: $*" >&2; }
fail() { say "$*"; exit 1; }

# need PACKAGES…: installed, or brought here.
need() {
    [ "$(id -u)" = 0 ] || fail "run this as root: it makes a Debian system to build in"
    missing=
    for package in "$@"; do
        [ "$(dpkg-query -W -f '${db:Status-Status}' "$package" 2>/dev/null)" = installed ] || missing="$missing $package"
    done
    [ -z "$missing" ] && return
    say "installing$missing"
    apt-get update -qq >&2 || say "apt-get update failed; going on with the package lists that are there"
    # shellcheck disable=SC2086 # a list of words
    DEBIAN_FRONTEND=noninteractive apt-get install -y -qq -o Dpkg::Use-Pty=0 --no-install-recommends $missing >&2
}

# dpkg_names FILE FIELD: the package names in a dependency field of a control file, with commas between; versions, alternatives and what is
# for another architecture are left out.
dpkg_names() {
    own_=$(dpkg --print-architecture)
    sed -n "/^$2:/,/^[^ ]/{s/^$2://;/^[^ ]/d;p}" "$1" | tr -d '\n' | sed -e 's/([^)]*)//g' -e 's/<[^>]*>//g' -e 's/|[^,]*//g' -e "s/\[$own_\]//g" -e 's/[^,]*\[[^]]*\]//g' \
        -e 's/ //g' -e 's/,,*/,/g' -e 's/,$//' -e 's/^,//' -e 's/debhelper-compat/debhelper/' -e 's/dh-sequence-installsysusers/debhelper/' -e 's/dh-sequence-python3/dh-python/'
}

# Debian's own package sources of this machine, whatever form they are written in; other vendors' stay out.
debian_sources() {
    # shellcheck disable=SC2016 # apt's variables
    apt-get indextargets --format '$(ORIGIN) deb $(REPO_URI) $(RELEASE) $(COMPONENT)' 'Created-By: Packages' |
        sed -n "s/^Debian \(deb [^ ]* $SUITE.*\)/\1/p" | sort -u
}

# base_system NAME PACKAGES: the path of an archive of Debian 12's essential packages with apt and these (names, with commas between).
base_system() {
    sources=$(debian_sources)
    [ -n "$sources" ] || fail "this machine's apt knows no Debian $SUITE; run apt-get update"
    archive=$cache/$SUITE-$1-$(printf '%s\n' "$2" "$sources" | sha256sum | cut -c1-12).tar
    if [ -z "$(find "$archive" -mtime "-$BASE_DAYS" 2>/dev/null)" ]; then
        say "making a clean Debian $SUITE with $2"
        mkdir -p "$cache"
        rm -f "$cache/$SUITE-$1"-*.tar
        printf '%s\n' "$sources" | mmdebstrap --quiet --mode=root --format=tar --variant=apt --include="$2" "$SUITE" "$archive.part" - >&2 || {
            rm -f "$archive.part"
            fail "mmdebstrap failed"
        }
        mv "$archive.part" "$archive"
    fi
    echo "$archive"
}

# in_root ROOT [--user UID] COMMAND: a shell command in a system, without a network, with mounts and processes that end with it.
in_root() {
    root_=$1 user_=0
    shift
    if [ "$1" = --user ]; then user_=$2 && shift 2; fi
    unshare --mount --pid --net --ipc --uts --fork --kill-child --mount-proc="$root_/proc" -- \
        sh -c '
            hostname debian
            ip link set lo up 2>/dev/null
            mount --bind /dev "$1/dev"
            exec chroot --userspec="$2:$2" "$1" env -i PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin HOME=/tmp \
                LC_ALL=C.UTF-8 TZ=UTC DEBIAN_FRONTEND=noninteractive ${SOURCE_DATE_EPOCH:+SOURCE_DATE_EPOCH="$SOURCE_DATE_EPOCH"} sh -ec "$3"
        ' sh "$root_" "$user_" "$1" </dev/null
}
