#!/bin/sh
# The fuzz targets of the engine, under ASan and UBSan.
#   tests/fuzz/run.sh [--replay] [--runs N] [target ...]              the corpus and N inputs made of it, the same in every run (any compiler)
#   tests/fuzz/run.sh --fuzz [--seconds N] [--runs N] [target ...]    libFuzzer (clang), from the corpus on, for so long each; what it finds is kept
#   tests/fuzz/run.sh --coverage [target ...]                         what the corpora that --fuzz has kept reach of csrc/ (clang, llvm-cov)
#   tests/fuzz/run.sh --shrink [target ...]                           make the corpora in tests/fuzz/corpus anew from those
# XENSECURE_FUZZ: where corpora and findings are kept (build/fuzz).
set -eu

here=$(cd "$(dirname "$0")" && pwd)
root=$(cd "$here/../.." && pwd)
kept=${XENSECURE_FUZZ:-$root/build/fuzz}
mode=--replay
seconds=60
runs=
while [ $# -gt 0 ]; do
    case $1 in
    --replay | --fuzz | --coverage | --shrink) mode=$1 ;;
    --seconds) seconds=$2; shift ;;
    --runs) runs=$2; shift ;;
    -*) echo "unknown option $1" >&2; exit 2 ;;
    *) break ;;
    esac
    shift
done
[ $# -gt 0 ] || set -- $(cd "$here" && for t in fuzz_*.c; do t=${t#fuzz_}; echo "${t%.c}"; done)

build=$(mktemp -d "${TMPDIR:-/tmp}/xensecure-fuzz.XXXXXX")
trap 'rm -rf "$build"' EXIT INT TERM

# A short memory of what was freed, and of who asked for it: runs are short, and there are many.
export ASAN_OPTIONS="quarantine_size_mb=4:malloc_context_size=3:${ASAN_OPTIONS-}"

# Chunks of 256 bytes: short inputs then cross their borders.
flags="-std=gnu11 -g -O1 -Wall -Wextra -Werror -DXS_CHUNK=((size_t)256)"
checks="-fsanitize=address,undefined -fno-sanitize-recover=all -fno-omit-frame-pointer"
if [ $mode = --replay ]; then
    cc=${CC:-cc}
    engine=$checks
    linked=$checks
else
    cc=clang
    command -v clang >/dev/null || { echo "clang is not there; scripts/setup.sh fuzz installs it" >&2; exit 1; }
    engine="-fsanitize=fuzzer-no-link $checks"
    linked="-fsanitize=fuzzer $checks"
    if [ $mode = --coverage ]; then engine="$engine -fprofile-instr-generate -fcoverage-mapping"; linked="$linked -fprofile-instr-generate"; fi
fi
libraries="-lcrypto -lpthread"
if [ "${XENSECURE_IPSEC_MB-}" != off ] && echo '#include <intel-ipsec-mb.h>' | $cc -E - >/dev/null 2>&1; then
    flags="$flags -DXS_WITH_IPSEC_MB"
    libraries="-lIPSec_MB $libraries"
fi
if [ "${XENSECURE_ZSTD-}" != off ] && echo '#include <zstd.h>' | $cc -E - >/dev/null 2>&1; then
    flags="$flags -DXS_WITH_ZSTD"
    libraries="-lzstd $libraries"
fi

for source in "$root"/csrc/*.c; do
    $cc $flags $engine -c "$source" -o "$build/$(basename "$source" .c).o"
done
$cc $flags $checks -c "$here/pages.c" -o "$build/pages.o"
[ $mode != --replay ] || $cc $flags $checks -c "$here/replay.c" -o "$build/replay.o"

for target in "$@"; do
    corpus=$here/corpus/$target.txt
    $cc $flags $linked "$here/fuzz_$target.c" "$build"/*.o $libraries -Wl,--wrap=xs_pages_new,--wrap=xs_pages_free -o "$build/fuzz_$target"
    echo "fuzz_$target"
    [ $mode = --replay ] || { mkdir -p "$kept/$target"; python3 "$here/corpus.py" unpack "$corpus" "$kept/$target"; }
    case $mode in
    --replay) "$build/fuzz_$target" "$corpus" "${runs:-20000}" ;;
    --fuzz)
        (cd "$kept" && "$build/fuzz_$target" -max_total_time="$seconds" -runs="${runs:--1}" -max_len=2048 -timeout=10 -rss_limit_mb=2048 -print_final_stats=1 -verbosity=1 \
            -artifact_prefix="$kept/found-$target-" "$target" 2>"$kept/$target.log") || { tail -40 "$kept/$target.log" >&2; exit 1; }
        grep -E 'DONE' "$kept/$target.log" ;;
    --coverage)
        LLVM_PROFILE_FILE="$build/$target.profraw" "$build/fuzz_$target" -runs=0 "$kept/$target" 2>/dev/null ;;
    --shrink)
        mkdir "$build/less-$target"
        "$build/fuzz_$target" -merge=1 "$build/less-$target" "$kept/$target" 2>/dev/null
        python3 "$here/corpus.py" pack "$build/less-$target" "$corpus" ;;
    esac
done
if [ $mode = --coverage ]; then
    llvm-profdata merge -o "$build/all.profdata" "$build"/*.profraw
    objects=
    for target in "$@"; do objects="$objects${objects:+ -object} $build/fuzz_$target"; done
    llvm-cov report $objects -instr-profile "$build/all.profdata" "$root"/csrc/*.c | sed "s,$root/,,"
fi
echo "all passed ($mode)"
