#!/bin/sh
# Build and run the engine's C tests: under ASan and UBSan (the default), TSan (for what has threads), valgrind, or plain.
#   tests/c/run.sh [--asan | --tsan | --valgrind | --plain] [test name ...]
# XENSECURE_IPSEC_MB=off leaves libipsec-mb out and XENSECURE_ZSTD=off libzstd, as for csrc/build_engine.py; otherwise they are compiled in where
# they are found.
# XS_STREAM_UP and XS_STREAM_DOWN may name the two directions of a captured xl migrate, for test_xlphase.
set -eu

here=$(cd "$(dirname "$0")" && pwd)
mode=--asan
case "${1-}" in --asan | --tsan | --valgrind | --plain) mode=$1; shift ;; esac

build=$(mktemp -d "${TMPDIR:-/tmp}/xensecure-tests.XXXXXX")
trap 'rm -rf "$build"' EXIT INT TERM

flags="-std=gnu11 -g -Wall -Wextra -Werror -Wshadow -Wconversion"
prefix=
case $mode in
--asan) flags="$flags -O1 -fsanitize=address,undefined -fno-sanitize-recover=all -fno-omit-frame-pointer" ;;
--tsan) flags="$flags -O1 -fsanitize=thread"; export TSAN_OPTIONS="halt_on_error=1 ${TSAN_OPTIONS-}" ;;
--valgrind) flags="$flags -O1"; prefix="valgrind -q --error-exitcode=99 --leak-check=full --child-silent-after-fork=no" ;;
--plain) flags="$flags -O2" ;;
esac

libraries="-lcrypto -lpthread"
if [ "${XENSECURE_IPSEC_MB-}" != off ] && echo '#include <intel-ipsec-mb.h>' | ${CC:-cc} -E - >/dev/null 2>&1; then
    flags="$flags -DXS_WITH_IPSEC_MB"
    libraries="-lIPSec_MB $libraries"
fi

if [ "${XENSECURE_ZSTD-}" != off ] && echo '#include <zstd.h>' | ${CC:-cc} -E - >/dev/null 2>&1; then
    flags="$flags -DXS_WITH_ZSTD"
    libraries="-lzstd $libraries"
fi

for source in "$here"/../../csrc/*.c; do
    ${CC:-cc} $flags -c "$source" -o "$build/$(basename "$source" .c).o"
done
if [ $# -eq 0 ] && [ $mode = --tsan ]; then
    set -- test_pump_lanes
elif [ $# -eq 0 ]; then
    set -- $(cd "$here" && for t in test_*.c; do echo "${t%.c}"; done)
fi
for test in "$@"; do
    # Tests cast freely; the engine does not.
    ${CC:-cc} $flags -Wno-conversion "$here/$test.c" "$build"/*.o $libraries -o "$build/$test"
    echo "$test"
    $prefix "$build/$test"
done
echo "all passed ($mode)"
