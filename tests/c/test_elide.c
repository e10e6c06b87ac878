/* Zero runs left out and put back (F14, F15): what comes back, what is found, and every form that is refused. */
#include "harness.h"

#include "../../csrc/elide.h"
#include "../../csrc/util.h"

enum { SURE = 519 /* bytes: a run that no search misses */, FINE = 71 /* ... beside others that are worth it */, PAGE = 4096 };

static uint8_t content[XS_PAYLOAD_MAX], back[XS_PAYLOAD_MAX], *payload;

/* Pack content, check all that is promised, and return the payload's length; 0 for content that is sent as it is. */
static size_t check(size_t len)
{
    size_t packed;

    payload = malloc(len > 1 ? len - 1 : 1);    /* ASan watches the room that xs_elide_pack is promised */
    packed = xs_elide_pack(content, len, payload);
    CHECK(packed < len || len == 0);
    if (packed > 0) {
        CHECK(xs_elide_measure(payload, packed) == len);
        memset(back, 0xee, sizeof(back));
        xs_elide_unpack(payload, packed, back);
        CHECK(memcmp(content, back, len) == 0 && (len == sizeof(back) || back[len] == 0xee));
    }
    free(payload);
    return packed;
}

static void fill(size_t len, uint64_t *seed)
{
    for (size_t i = 0; i < len; i++)
        content[i] = (uint8_t)(1 + random_below(seed, 255));
}

/* Nothing but zeros becomes one piece, from 64 bytes on; nothing but other bytes stays as it is. */
static void plain_cases(void)
{
    static const size_t sizes[] = { 0, 1, 7, 8, 63, 64, 65, 72, 255, 256, 257, 4095, 4096, 4097, 65536, XS_PAYLOAD_MAX - 1, XS_PAYLOAD_MAX };
    uint64_t seed = 1;

    for (size_t n = 0; n < sizeof(sizes) / sizeof(sizes[0]); n++) {
        memset(content, 0, sizes[n]);
        CHECK(check(sizes[n]) == (sizes[n] >= XS_ELIDE_RUN_MIN ? XS_ELIDE_PIECE : 0));
        fill(sizes[n], &seed);
        CHECK(check(sizes[n]) == 0);
    }
}

/* A run of 519 bytes is found wherever it lies, and costs 8 bytes, or 16 where something stands before it. */
static void every_alignment(void)
{
    uint64_t seed = 2;

    for (size_t len = SURE; len < SURE + 4; len++)
        for (size_t at = 0; at < 900; at++) {
            fill(1500, &seed);
            memset(content + at, 0, len);
            CHECK(check(1500) == 1500 - len + (at > 0 ? 2 : 1) * XS_ELIDE_PIECE);
        }
}

/* Beside a zero page a run of 71 bytes is found wherever it lies. */
static void short_runs(void)
{
    uint64_t seed = 6;

    for (size_t at = PAGE + 1; at < PAGE + 300; at++) {
        fill(3 * PAGE, &seed);
        memset(content, 0, PAGE);
        memset(content + at, 0, FINE);
        CHECK(check(3 * PAGE) == 2 * PAGE - FINE + 2 * XS_ELIDE_PIECE);
    }
}

/* A page at any of the 4096 places, as libxc writes it, is found whole. */
static void pages(void)
{
    uint64_t seed = 3;

    for (size_t at = 0; at < PAGE; at += 13) {
        fill(4 * PAGE, &seed);
        memset(content + at, 0, PAGE);
        CHECK(check(4 * PAGE) == 3 * PAGE + (at > 0 ? 2 : 1) * XS_ELIDE_PIECE);
    }
}

/* Fewer zeros than a sixteenth are not worth a copy; runs below 64 are never elided. */
static void not_worth_it(void)
{
    uint64_t seed = 4;

    fill(32 * PAGE, &seed);
    memset(content + 100, 0, 2 * PAGE - 1);
    CHECK(check(32 * PAGE) == 0);
    memset(content + 100, 0, 2 * PAGE);
    CHECK(check(32 * PAGE) == 30 * PAGE + 2 * XS_ELIDE_PIECE);
    for (size_t i = 0; i < 32 * PAGE; i++)
        content[i] = i % XS_ELIDE_RUN_MIN == 0;         /* runs of 63 */
    CHECK(check(32 * PAGE) == 0);
}

/* Random runs of all lengths in random places, sparse and dense: what was packed comes back. */
static void random_content(void)
{
    uint64_t seed = 5;

    for (int turn = 0; turn < 4000; turn++) {
        size_t len = random_below(&seed, turn % 50 == 0 ? XS_PAYLOAD_MAX + 1 : 20000);
        size_t spread = 1 + random_below(&seed, 2000), run = 1 + random_below(&seed, 2000);

        fill(len, &seed);
        for (size_t at = random_below(&seed, spread); at < len; at += 1 + random_below(&seed, spread)) {
            size_t n = xs_min(random_below(&seed, run), len - at);

            memset(content + at, 0, n);
            at += n;
        }
        check(len);
    }
}

struct piece { uint32_t zeros, literals; };

/* The measure of pieces whose literals are 1s; change: a place (its own byte value, or none for 0) that is made 0; cut: bytes taken off the end. */
static size_t measure(const struct piece *piece, int n, size_t change, size_t cut)
{
    uint8_t *bytes = malloc(XS_PAYLOAD_MAX);
    size_t len = 0, found;
    uint8_t *exact;

    for (int i = 0; i < n; i++) {
        size_t here = xs_min(piece[i].literals, 1000);

        xs_store32(bytes + len, piece[i].zeros);
        xs_store32(bytes + len + 4, piece[i].literals);
        memset(bytes + len + 8, 1, here);
        len += 8 + here;
    }
    if (change > 0)
        bytes[change] = 0;
    len -= cut;
    exact = malloc(len > 0 ? len : 1);
    memcpy(exact, bytes, len);
    found = xs_elide_measure(exact, len);
    free(exact);
    free(bytes);
    return found;
}

#define MEASURE(change, cut, ...)                                                                     \
    measure((const struct piece[]){ __VA_ARGS__ },                                                    \
            (int)(sizeof((const struct piece[]){ __VA_ARGS__ }) / sizeof(struct piece)), change, cut)

/* F15, one rule at a time: what is just good, and what is not. */
static void forms(void)
{
    CHECK(MEASURE(0, 0, { 64, 0 }) == 64 && MEASURE(0, 0, { 63, 0 }) == 0);
    CHECK(MEASURE(0, 0, { 0, 5 }, { 64, 5 }) == 74 && MEASURE(0, 0, { 1, 5 }, { 64, 5 }) == 0);
    CHECK(MEASURE(0, 0, { 64, 5 }, { 63, 5 }) == 0 && MEASURE(0, 0, { 64, 5 }, { 0, 5 }) == 0);
    CHECK(MEASURE(0, 0, { 64, 1 }, { 64, 0 }) == 129 && MEASURE(0, 0, { 64, 0 }, { 64, 0 }) == 0);
    CHECK(MEASURE(0, 0, { 0, 0 }, { 64, 0 }) == 0 && MEASURE(0, 0, { 0, 0 }) == 0);
    CHECK(MEASURE(0, 0, { 0, 5 }) == 0);                                /* nothing is elided */
    CHECK(MEASURE(0, 8, { 64, 0 }) == 0);                               /* empty */
    for (size_t cut = 1; cut < 26; cut++)                               /* cut anywhere but between pieces */
        CHECK(MEASURE(0, cut, { 64, 5 }, { 64, 5 }) == (cut == 13 ? 69 : 0));
    CHECK(MEASURE(0, 0, { 64, XS_PAYLOAD_MAX }) == 0 && MEASURE(0, 0, { 64, UINT32_MAX }) == 0);
    CHECK(MEASURE(0, 0, { 64, UINT32_MAX }, { 64, 5 }) == 0);
    CHECK(MEASURE(0, 0, { XS_PAYLOAD_MAX, 0 }) == XS_PAYLOAD_MAX && MEASURE(0, 0, { XS_PAYLOAD_MAX + 1, 0 }) == 0);
    CHECK(MEASURE(0, 0, { XS_PAYLOAD_MAX - 5, 5 }) == XS_PAYLOAD_MAX && MEASURE(0, 0, { XS_PAYLOAD_MAX - 4, 5 }) == 0);
    CHECK(MEASURE(0, 0, { XS_PAYLOAD_MAX / 2, 1 }, { XS_PAYLOAD_MAX / 2, 0 }) == 0 && MEASURE(0, 0, { UINT32_MAX, 0 }) == 0);
    CHECK(MEASURE(0, 0, { UINT32_MAX, 1 }, { UINT32_MAX, 1 }) == 0);    /* a sum that wraps */
    /* Places of two pieces { 64, 5 }: literals at 8 to 12 and 21 to 25. A zero at a run's side belongs to the run. */
    for (size_t at = 8; at < 26; at++)
        if (at < 13 || at > 20)
            CHECK(MEASURE(at, 0, { 64, 5 }, { 64, 5 }) == (at == 8 || at == 12 || at == 21 ? 0 : 138));
    CHECK(MEASURE(8, 0, { 0, 5 }, { 64, 5 }) == 74 && MEASURE(12, 0, { 0, 5 }, { 64, 5 }) == 0);
}

/* Good payloads with up to two bytes changed: the measure is 0, or that of something that can be unpacked within bounds. */
static void nonsense(void)
{
    uint64_t seed = 6;
    int good = 0, bad = 0;

    for (int turn = 0; turn < 200000; turn++) {
        const size_t first = random_below(&seed, 10), second = random_below(&seed, 10), len = 16 + first + second;
        uint8_t *bytes = malloc(len);
        size_t found;

        memset(bytes, 1, len);
        xs_store32(bytes, 64 + (uint32_t)random_below(&seed, 5));
        xs_store32(bytes + 4, (uint32_t)first);
        xs_store32(bytes + 8 + first, 64);
        xs_store32(bytes + 12 + first, (uint32_t)second);
        for (size_t n = random_below(&seed, 3); n > 0; n--)
            bytes[random_below(&seed, len)] = (uint8_t)random_below(&seed, 70);
        found = xs_elide_measure(bytes, len);
        CHECK(found == 0 || (found > len && found <= XS_PAYLOAD_MAX));
        if (found > 0) {
            uint8_t *to = malloc(found);

            xs_elide_unpack(bytes, len, to);
            free(to);
        }
        found > 0 ? good++ : bad++;
        free(bytes);
    }
    CHECK(good > 10000 && bad > 10000);
}

int main(void)
{
    RUN(plain_cases);
    RUN(every_alignment);
    RUN(short_runs);
    RUN(pages);
    RUN(not_worth_it);
    RUN(random_content);
    RUN(forms);
    RUN(nonsense);
    return 0;
}
