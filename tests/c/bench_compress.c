/*
 * How fast content compresses and expands again, by frames, and to what share.
 *   tests/c/run.sh --plain bench_compress          made-up content; XS_STREAM_UP=FILE: that stream, by frames of 512 KiB
 *   CC="cc -DXS_ZSTD_LEVEL=-3" tests/c/run.sh --plain bench_compress          another level
 */
#define _GNU_SOURCE
#include "harness.h"

#include <time.h>

#include "../../csrc/compress.h"
#include "../../csrc/elide.h"

enum { FRAME = 512 << 10, MADE_UP = 64 << 20, PAGE = 4096, ROUNDS = 3 };

static double now(void)
{
    struct timespec t;

    (void)clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + (double)t.tv_nsec / 1e9;
}

/* Best of some rounds; one line. */
static void measure(const char *name, const uint8_t *stream, size_t len)
{
    static uint8_t packed[FRAME], back[FRAME];
    struct xs_compress *c = xs_compress_new();
    double best = 1e9, best_back = 1e9;
    size_t sent = 0, elided = 0;

    for (int round = 0; round < ROUNDS; round++) {
        double spent = 0, spent_back = 0;

        sent = elided = 0;
        for (size_t at = 0, n; at < len; at += n) {
            double start = now(), between;
            size_t e;

            n = len - at < FRAME ? len - at : FRAME;
            e = xs_compress_pack(c, stream + at, n, packed);
            between = now();
            if (e > 0)
                CHECK(xs_compress_unpack(c, packed, e, back, n) == XS_OK);
            spent += between - start;
            spent_back += now() - between;
            sent += e > 0 ? e : n;
            e = xs_elide_pack(stream + at, n, back);
            elided += e > 0 ? e : n;
        }
        best = spent < best ? spent : best;
        best_back = spent_back < best_back ? spent_back : best_back;
    }
    printf("  %-24s %8.0f MB/s  %8.0f MB/s back  %5.1f %% of it is sent (elided: %.1f %%)\n", name, (double)len / best / 1e6,
           (double)len / best_back / 1e6, 100.0 * (double)sent / (double)len, 100.0 * (double)elided / (double)len);
    xs_compress_free(c);
}

int main(void)
{
    const char *file = getenv("XS_STREAM_UP");
    uint8_t *stream = malloc(MADE_UP);
    uint64_t seed = 1;
    size_t len;

    CHECK(stream != NULL);
    if (file != NULL) {
        FILE *f = fopen(file, "rb");

        CHECK(f != NULL);
        CHECK(fseek(f, 0, SEEK_END) == 0);
        len = (size_t)ftell(f);
        rewind(f);
        CHECK((stream = realloc(stream, len)) != NULL && fread(stream, 1, len, f) == len);
        (void)fclose(f);
        measure("the stream", stream, len);
    } else {
        for (size_t i = 0; i < MADE_UP; i += 8) {
            uint64_t v = random64(&seed);

            memcpy(stream + i, &v, 8);
        }
        measure("random", stream, MADE_UP);
        for (size_t i = 0; i < MADE_UP; i += 2 * PAGE)
            memset(stream + i, 0, PAGE);
        measure("half zero, half random", stream, MADE_UP);
        memset(stream, 0, MADE_UP);
        measure("zero", stream, MADE_UP);
    }
    free(stream);
    return 0;
}
