/*
 * Sealing and opening alone, GB/s of one core, for each backend and several sizes of payload; out of one buffer into another, as the pump does.
 *
 *   tests/c/run.sh --plain bench_aead
 */
#include "harness.h"

#include <time.h>

#include "../../csrc/aead.h"
#include "../../csrc/util.h"

enum { BYTES = 512 << 20 /* a measurement */, FRAMES_MAX = 1 << 20, BEST_OF = 3 };

static double now(void)
{
    struct timespec t;

    clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &t);   /* others may use the machine meanwhile */
    return (double)t.tv_sec + (double)t.tv_nsec / 1e9;
}

/* GB/s of sealing (or opening what has been sealed) payloads of that size. */
static double measure(const struct xs_aead_ops *ops, int opening, size_t size, uint8_t *from, uint8_t *to)
{
    const uint8_t key[XS_KEY_LEN] = { 1 }, nonce[XS_IV_LEN] = { 2 }, aad[XS_HEADER_LEN] = { 3 };
    struct xs_aead *seal = ops->create(XS_AEAD_SEAL, key), *open = ops->create(XS_AEAD_OPEN, key);
    size_t count = xs_min(BYTES / size, FRAMES_MAX);
    uint8_t tag[XS_TAG_LEN];
    double best = 0;

    CHECK(ops->seal(seal, nonce, aad, sizeof(aad), from, size, to, tag) == XS_OK);
    for (int turn = 0; turn < BEST_OF; turn++) {
        double start = now(), rate;

        for (size_t i = 0; i < count; i++)
            CHECK((opening ? ops->open(open, nonce, aad, sizeof(aad), to, size, from, tag)
                           : ops->seal(seal, nonce, aad, sizeof(aad), from, size, to, tag)) == XS_OK);
        rate = (double)(count * size) / 1e9 / (now() - start);
        best = rate > best ? rate : best;
    }
    ops->free(seal);
    ops->free(open);
    return best;
}

int main(void)
{
    static const size_t sizes[] = { 64, 1024, 4096, 65536, 524288, 1048576 };
    uint8_t *from = xs_pages_new(XS_PAYLOAD_MAX), *to = xs_pages_new(XS_PAYLOAD_MAX + XS_HEADER_LEN);
    const char *name;
    uint64_t seed = 1;

    CHECK(from != NULL && to != NULL);
    for (size_t i = 0; i + 8 <= XS_PAYLOAD_MAX; i += 8)
        xs_store64(from + i, random64(&seed));
    for (size_t i = 0; (name = xs_backend_name(i)) != NULL; i++) {
        const struct xs_aead_ops *ops = xs_aead_find(name);

        if (ops == NULL) {
            printf("%s: this CPU cannot run it\n", name);
            continue;
        }
        for (int opening = 0; opening < 2; opening++) {
            printf("%-10s %s", name, opening ? "open" : "seal");
            for (size_t n = 0; n < sizeof(sizes) / sizeof(sizes[0]); n++)
                printf("  %zu: %.2f", sizes[n], measure(ops, opening, sizes[n], from, to + XS_HEADER_LEN));
            printf("  GB/s\n");
        }
    }
    xs_pages_free(from, XS_PAYLOAD_MAX);
    xs_pages_free(to, XS_PAYLOAD_MAX + XS_HEADER_LEN);
    return 0;
}
