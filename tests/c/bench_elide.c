/*
 * What looking for zero runs costs beside sealing, and what it saves. Content of a chunk, as xl's pipe gives it: just copied.
 *
 *   tests/c/run.sh --plain bench_elide
 */
#include "harness.h"

#include <time.h>

#include "../../csrc/aead.h"
#include "../../csrc/elide.h"
#include "../../csrc/fifo.h"
#include "../../csrc/util.h"

enum { TURNS = 400, BEST_OF = 15, PAGE = 4096, ODD = 40 /* bytes: a stream's pages lie at no page's border */ };

static uint8_t *source, *content, *out;
static struct xs_aead *aead;
static const struct xs_aead_ops *ops;

static double now(void)
{
    struct timespec t;

    clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &t);   /* others may use the machine meanwhile */
    return (double)t.tv_sec + (double)t.tv_nsec / 1e9;
}

enum what { COPY = 1, ELIDE = 2, SEAL = 4 };

/* One chunk through the steps asked for. Returns the length of the payload. */
static size_t step(unsigned what)
{
    const uint8_t nonce[XS_IV_LEN] = { 2 }, aad[XS_HEADER_LEN] = { 3 };
    const uint8_t *payload = content;
    uint8_t tag[XS_TAG_LEN];
    size_t len = XS_CHUNK, packed = 0;

    if (what & COPY)
        memcpy(content, source, XS_CHUNK);
    if (what & ELIDE)
        packed = xs_elide_pack(content, len, out);
    if (packed > 0)
        payload = out, len = packed;
    if (what & SEAL)
        CHECK(ops->seal(aead, nonce, aad, sizeof(aad), payload, len, out, tag) == XS_OK);
    return len;
}

/* Microseconds a chunk, the best of several. */
static double measure(unsigned what)
{
    double best = 1e9;

    for (int n = 0; n < BEST_OF; n++) {
        double start = now(), took;

        for (int i = 0; i < TURNS; i++)
            step(what);
        took = (now() - start) * 1e6 / TURNS;
        best = took < best ? took : best;
    }
    return best;
}

/* Random pages, with that many in a hundred zero, in runs of eight. */
static void fill(unsigned percent)
{
    uint64_t seed = percent + 1;

    for (size_t i = 0; i < XS_CHUNK; i += 8)
        xs_store64(source + i, random64(&seed));
    for (size_t i = ODD; i < XS_CHUNK; i += 8 * PAGE)
        if (random_below(&seed, 100) < percent)
            memset(source + i, 0, xs_min(8 * PAGE, XS_CHUNK - i));
}

int main(void)
{
    static const unsigned shares[] = { 0, 5, 10, 30, 50, 90, 100 };
    const uint8_t key[XS_KEY_LEN] = { 1 };
    const char *name;

    source = xs_pages_new(XS_CHUNK), content = xs_pages_new(XS_CHUNK), out = xs_pages_new(XS_CHUNK);
    CHECK(source != NULL && content != NULL && out != NULL);
    for (size_t i = 0; (name = xs_backend_name(i)) != NULL; i++) {
        if ((ops = xs_aead_find(name)) == NULL)
            continue;
        aead = ops->create(XS_AEAD_SEAL, key);
        for (size_t n = 0; n < sizeof(shares) / sizeof(shares[0]); n++) {
            double copy, plain, elided;

            fill(shares[n]);
            copy = measure(COPY), plain = measure(COPY | SEAL), elided = measure(COPY | ELIDE | SEAL);
            printf("%-9s %3u %% zero pages: copied and sealed %6.1f us, with eliding %6.1f us (%+5.1f %%; of the sealing alone %+5.1f %%), payload %5.1f %%\n",
                   name, shares[n], plain, elided, (elided / plain - 1) * 100, (elided - plain) / (plain - copy) * 100,
                   (double)step(COPY | ELIDE) / (double)XS_CHUNK * 100);
        }
        ops->free(aead);
    }
    xs_pages_free(source, XS_CHUNK);
    xs_pages_free(content, XS_CHUNK);
    xs_pages_free(out, XS_CHUNK);
    return 0;
}
