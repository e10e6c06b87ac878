#!/bin/sh
# Install what is missing for one of the Makefile's commands, and nothing twice.
#   scripts/setup.sh demo | test | attack | fuzz | bench | xen | model
# System packages come by apt (as root; otherwise one line says which are missing), Python's into .venv and, for test, .venv-debian; for model there are none.
# PYTHON: the Python of .venv, python3 unless set; it must be 3.11 or newer.
set -eu

cd "$(dirname "$0")/.."
purpose=${1:?"usage: scripts/setup.sh demo | test | attack | fuzz | bench | xen | model"}
cache="${XDG_CACHE_HOME:-$HOME/.cache}/xensecure"

say() { echo "setup: $*" >&2; }
fail() { say "$*"; exit 1; }

# ---- system packages

# binutils: nm and readelf for the stub toolstack. python3-venv: Debian keeps ensurepip there.
packages="binutils gcc iproute2 libc6-dev libssl-dev libzstd-dev python3 python3-venv"
# A Python of one's own brings its headers; Debian's has them in python3-dev.
case $(command -v "${PYTHON:-python3}" || echo /usr/bin/python3) in
/usr/bin/* | /bin/*) packages="$packages python3-dev" ;;
esac
# Only amd64 has libipsec-mb: the engine's faster cipher, compiled in where it is found.
if [ "$(dpkg --print-architecture 2>/dev/null)" = amd64 ]; then packages="$packages libipsec-mb-dev"; fi
# What is done without where it is not to be had.
optional=
case $purpose in
demo) ;;
fuzz) packages="$packages clang libclang-rt-dev llvm" ;; # libFuzzer, and what its coverage is read with
test)
    # Debian's own libraries and build tools, for the run against them; ssh for the tests of 'xensecurectl enroll' and, with openssl, of the Ansible
    # role; systemd-analyze and mandoc for those of the units and manual pages.
    packages="$packages mandoc openssh-client openssh-server openssl systemd xz-utils zstd python3-dev python3-cffi python3-cryptography python3-openssl"
    packages="$packages python3-pyroute2 python3-setuptools python3-wheel rpm zsh"
    # The part of the attack lab that is among the tests.
    optional="dsniff ettercap-text-only nftables socat sslsplit tcpdump thc-ipv6"
    ;;
attack)
    packages="$packages dsniff ettercap-text-only mitmproxy nftables openssh-client openssh-server openssl python3-pyroute2 socat sslsplit"
    packages="$packages tcpdump thc-ipv6 tshark xz-utils zstd"
    ;;
bench)
    packages="$packages openssh-client openssh-server xz-utils zstd"
    optional="socat stunnel4 spiped mbuffer openssl valgrind"
    ;;
model) packages="gcc libc6-dev python3 spin" ;;
xen) packages="$packages qemu-system-x86 qemu-utils mmdebstrap dpkg-dev cpio e2fsprogs busybox-static git kmod openssh-client zstd" ;;
*) fail "unknown purpose '$purpose'; demo, test, attack, fuzz, bench, xen or model" ;;
esac

is_installed() { [ "$(dpkg-query -W -f '${db:Status-Status}' "$1" 2>/dev/null)" = installed ]; }

# The real xl comes from packages that are unpacked into a cache, not installed: for them apt must know its lists.
needs_lists() {
    [ "$purpose" = model ] && return 1
    for folder in "$cache"/xl-????????-*; do [ -d "$folder" ] && return 1; done
    ! apt-cache policy xen-utils-4.17 2>/dev/null | grep -q 'Candidate: [0-9]'
}

# No service starts because a test needs its program: invoke-rc.d(8) asks policy-rc.d, 101 is "not allowed".
install() {
    policy=/usr/sbin/policy-rc.d
    if [ ! -e "$policy" ]; then
        printf '#!/bin/sh\nexit 101\n' >"$policy"
        chmod 755 "$policy"
        trap 'rm -f "$policy"' EXIT
        trap 'exit 130' INT TERM
    fi
    DEBIAN_FRONTEND=noninteractive apt-get install -y -qq -o Dpkg::Use-Pty=0 --no-install-recommends "$@" >&2
    # Nor at the next boot, where it was this script that brought it.
    case " $* " in
    *" openssh-server "*)
        if command -v systemctl >/dev/null; then systemctl disable ssh.service ssh.socket >/dev/null 2>&1 || true; fi ;;
    esac
}

command -v dpkg-query >/dev/null || fail "this is no Debian: install the counterparts of $packages by hand, and Debian 12's xl is not to be had"
missing=
for package in $packages; do is_installed "$package" || missing="$missing $package"; done
if [ -n "$missing" ] && [ "$(id -u)" != 0 ]; then
    fail "missing:$missing; as root: apt-get install -y$missing"
fi
if [ -n "$missing" ] || needs_lists; then
    if [ "$(id -u)" = 0 ]; then
        say "apt-get update"
        apt-get update -qq >&2 || say "apt-get update failed; going on with the package lists that are there"
    else
        say "no package lists: as root, run apt-get update"
    fi
fi
if [ -n "$missing" ]; then
    say "installing$missing"
    # shellcheck disable=SC2086 # a list of words
    (install $missing)
fi
for package in $optional; do
    if ! is_installed "$package" && [ "$(id -u)" = 0 ]; then
        say "installing $package"
        (install "$package") || true
    fi
    is_installed "$package" || say "no $package: what needs it is left out"
done

# The model is checked by any Python, without packages.
[ "$purpose" = model ] && exit

# ---- Python packages

export PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_ROOT_USER_ACTION=ignore
python=${PYTHON:-python3}
"$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || fail "$python is older than Python 3.11; name another one: make PYTHON=python3.11 …"

# stamped VENV NAME FILES…: whether the step NAME was done in VENV with these very files.
digest() { cat "$@" | sha256sum | cut -d' ' -f1; }
is_stamped() {
    stamp=$1/.done-$2
    shift 2
    [ -e "$stamp" ] && [ "$(cat "$stamp")" = "$(digest "$@")" ]
}
put_stamp() {
    stamp=$1/.done-$2
    shift 2
    digest "$@" >"$stamp"
}

# make_venv FOLDER PYTHON OPTIONS…: anew if it is not there, or its Python is gone.
make_venv() {
    "$1/bin/python" -c pass 2>/dev/null && return
    say "making $1"
    rm -rf "$1"
    folder=$1 interpreter=$2
    shift 2
    "$interpreter" -m venv "$@" "$folder"
}

make_venv .venv "$python"
if ! is_stamped .venv build requirements-build.txt; then
    say "installing the build tools into .venv"
    .venv/bin/pip install -qq -r requirements-build.txt
    put_stamp .venv build requirements-build.txt
fi
if ! is_stamped .venv project setup.py pyproject.toml xensecure/__init__.py; then
    say "installing xensecure into .venv, editable"
    # compat: a plain path, as an installed package has, and no import hook that would slow every start.
    .venv/bin/pip install -qq --no-build-isolation --config-settings editable_mode=compat -e .
    put_stamp .venv project setup.py pyproject.toml xensecure/__init__.py
fi
case $purpose in test | attack | fuzz) tested=yes ;; *) tested= ;; esac
if [ "$tested" ] && ! is_stamped .venv dev requirements-dev.txt requirements-build.txt; then
    say "installing the test tools into .venv"
    .venv/bin/pip install -qq -r requirements-dev.txt
    put_stamp .venv dev requirements-dev.txt requirements-build.txt
fi
if [ "$purpose" = test ]; then
    make_venv .venv-debian /usr/bin/python3 --system-site-packages
    if ! is_stamped .venv-debian dev requirements-dev.txt; then
        say "installing pytest, hypothesis and prometheus-client into .venv-debian"
        # Only what Debian 12 does not ship in a version that the tests can use; the libraries under test are Debian's.
        grep -E '^(pytest|hypothesis|prometheus-client)' requirements-dev.txt | .venv-debian/bin/pip install -qq -r /dev/stdin
        put_stamp .venv-debian dev requirements-dev.txt
    fi
fi
