/*
 * xl's own protocol as it passes by. Input: pieces: a byte for the channel and a word of xl's or none, then its bytes behind their length. The same
 * bytes are fed whole to one, and one by one to another: both must see the same.
 */
#include "fuzz.h"

#include "../../csrc/xlphase.h"

static const char magic[] = "Xen saved domain, xl format\n \0 \r";
/* C's NUL counts where xl sends it. */
static const struct { const char *text; size_t len; } word[] = {
    { "", 0 },
    { "xl migration receiver ready, send binary domain data.\n", 54 },
    { "domain received, ready to unpause", 34 },
    { "my copy unpause results are as follows", 39 },
    { "domain is yours, you are cleared to unpause", 44 },
    { magic, 32 },
    { "\x01\x02\x03\x04\0\0\0\x01\0\0\0\0\0\0\0\x08\0\0\0\x04{}\n", 24 },          /* the rest of a header, and a configuration */
    { "\x04\x03\x02\x01\x01\0\0\0\0\0\0\0\x09\0\0\0\x05\0\0\0{\"a\"}", 25 },
    { "LibxlFmt\0\0\0\x02\0\0\0\0\x01\0\0\0\0\0\0\0"
      "\xff\xff\xff\xff\xff\xff\xff\xffXENF\0\0\0\x03\0\0\0\0\0\0\0\0\x02\0\0\0\x0c\0\0\0\x04\0\0\0\x11\0\0\0", 64 },
    { "\x01\0\0\0\x10\0\0\0\x01\0\0\0\0\0\0\0\x05\0\0\0\0\0\0\xf0", 24 },         /* PAGE_DATA of one frame without contents */
};

static void feed(struct xs_xlphase *x[static 2], unsigned channel, const uint8_t *bytes, size_t len)
{
    uint8_t *copy = exactly(bytes, len);

    xs_xlphase_feed(x[0], channel, copy, len);
    for (size_t i = 0; i < len; i++)
        xs_xlphase_feed(x[1], channel, copy + i, 1);
    free(copy);
}

/* True if both have seen the same so far. */
static void compare(struct xs_xlphase *x[static 2])
{
    size_t len[2];
    const uint8_t *head[2];
    enum xs_phase phase[2], before = xs_xlphase_told(x[0]);
    struct xs_memory memory[2] = { { 0 }, { 0 } };

    CHECK(xs_xlphase_pending(x[0]) == xs_xlphase_pending(x[1]) && xs_xlphase_status(x[0]) == xs_xlphase_status(x[1]));
    do {
        phase[0] = xs_xlphase_next(x[0]), phase[1] = xs_xlphase_next(x[1]);
        CHECK(phase[0] == phase[1]);
        CHECK(phase[0] == XS_PHASE_START || phase[0] > before);
        before = xs_xlphase_told(x[0]);
    } while (phase[0] != XS_PHASE_START);
    CHECK(!xs_xlphase_pending(x[0]) && before == xs_xlphase_told(x[1]));
    for (int i = 0; i < 2; i++)
        head[i] = xs_xlphase_head(x[i], &len[i]);
    xs_xlphase_memory(x[0], &memory[0]), xs_xlphase_memory(x[1], &memory[1]);
    CHECK(memcmp(&memory[0], &memory[1], sizeof(memory[0])) == 0);
    CHECK(len[0] == len[1] && len[0] <= XS_XL_HEAD_MAX && (len[0] == 0 || memcmp(head[0], head[1], len[0]) == 0));
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct input in = { data, size };
    struct xs_xlphase *x[2] = { xs_xlphase_new(), xs_xlphase_new() };

    CHECK(x[0] != NULL && x[1] != NULL);
    while (in.left > 0) {
        uint8_t how = take8(&in);
        unsigned channel = how % 3, which = how & 0x20 ? 8 + (how >> 2) % 2 : (how >> 2) % 8;
        size_t len = how & 0x80 ? take8(&in) : 0;
        const uint8_t *bytes = take_bytes(&in, &len);

        feed(x, channel, (const uint8_t *)word[which].text, word[which].len);
        feed(x, channel, bytes, len);
        if (how & 0x40)
            compare(x);
    }
    compare(x);
    xs_xlphase_free(x[0]);
    xs_xlphase_free(x[1]);
    return 0;
}
