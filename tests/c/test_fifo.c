/* The queue against a flat model, and what it keeps. */
#include "harness.h"

#include "../../csrc/fifo.h"

/* Append n bytes of the test stream. */
static void append(struct xs_fifo *f, size_t n)
{
    while (n > 0) {
        size_t len;
        uint8_t *to = xs_fifo_space(f, &len);

        CHECK(to != NULL);
        len = len < n ? len : n;
        for (size_t i = 0; i < len; i++)
            to[i] = stream_byte(xs_fifo_tail(f) + i);
        xs_fifo_commit(f, len);
        n -= len;
    }
}

/* Random operations leave base, tail and every byte between as a flat stream has them, and never more chunks than promised. */
static void random_operations(void)
{
    static const size_t limits[] = { 1, 1000, XS_CHUNK - 1, XS_CHUNK, XS_CHUNK + 1, 3 * XS_CHUNK + 17 };

    for (size_t l = 0; l < sizeof(limits) / sizeof(limits[0]); l++) {
        uint64_t seed = 1 + l, base = 0, tail = 0, from;
        struct xs_pool *pool = xs_pool_new(xs_fifo_chunks(limits[l]));
        struct xs_fifo *f = xs_fifo_new(pool, limits[l]);

        for (int turn = 0; turn < 600; turn++) {
            size_t room = limits[l] - (size_t)(tail - base), n, len;
            const uint8_t *p;

            CHECK(xs_fifo_room(f) == room);
            switch (random_below(&seed, 6)) {
            case 0:
            case 1:
                n = random_below(&seed, room + 1);
                append(f, n);
                tail += n;
                break;
            case 2:
            case 3:
                from = base + random_below(&seed, (size_t)(tail - base) + 1);
                p = xs_fifo_slice(f, from, &len);
                CHECK((p == NULL) == (from == tail) && len <= XS_CHUNK && from % XS_CHUNK + len <= XS_CHUNK);
                for (size_t i = 0; i < len; i++)
                    CHECK(p[i] == stream_byte(from + i));
                break;
            case 4:
                base += random_below(&seed, (size_t)(tail - base) + 1);
                xs_fifo_release(f, base);
                break;
            case 5:
                if (random_below(&seed, 10) != 0)
                    break;
                n = random_below(&seed, 9 * XS_CHUNK);
                xs_fifo_skip(f, n);
                base = tail += n;
                break;
            }
            CHECK(xs_fifo_base(f) == base && xs_fifo_tail(f) == tail);
            CHECK(xs_pool_mapped(pool) <= xs_fifo_chunks(limits[l]));
        }
        xs_fifo_free(f);
        xs_pool_free(pool);
    }
}

/* A million reads of one byte take as many chunks as one read of a million. */
static void small_reads_pack(void)
{
    const size_t window = 2 * XS_CHUNK;
    struct xs_pool *pool = xs_pool_new(xs_fifo_chunks(window));
    struct xs_fifo *f = xs_fifo_new(pool, window);
    size_t len;

    for (size_t i = 0; i < window; i++)
        append(f, 1);
    CHECK(xs_pool_mapped(pool) == 2);
    CHECK(xs_fifo_space(f, &len) == NULL && len == 0);
    CHECK(xs_fifo_append(f, (const uint8_t *)"x", 1) == XS_ENOMEM);
    xs_fifo_free(f);
    xs_pool_free(pool);
}

/* A queue that is emptied as it fills uses the chunk last given back, and no more. */
static void hot_reuse(void)
{
    struct xs_pool *pool = xs_pool_new(xs_fifo_chunks(64 * XS_CHUNK));
    struct xs_fifo *f = xs_fifo_new(pool, 64 * XS_CHUNK);

    for (int i = 0; i < 200; i++) {
        append(f, XS_CHUNK / 3);
        xs_fifo_release(f, xs_fifo_tail(f));
    }
    CHECK(xs_pool_mapped(pool) <= 2);
    xs_fifo_free(f);
    xs_fifo_free(NULL);
    xs_pool_free(pool);
    xs_pool_free(NULL);
}

int main(void)
{
    RUN(random_operations);
    RUN(small_reads_pack);
    RUN(hot_reuse);
    return 0;
}
