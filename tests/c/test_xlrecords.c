/* The passes over a domain's memory, counted from the headers of libxl's and libxc's records as they pass by. */
#include "harness.h"

#include "../../csrc/xlrecords.h"

enum { PAGE = 4096, XTAB = 15 };        /* XTAB: a frame's type without contents */

struct stream {
    uint8_t bytes[1 << 20];
    size_t len;
    int big;
};

static void put(struct stream *s, uint64_t value, int size, int big)
{
    for (int i = 0; i < size; i++)
        s->bytes[s->len++] = (uint8_t)(value >> 8 * (big ? size - 1 - i : i));
}

static void record(struct stream *s, uint32_t type, uint32_t length)
{
    put(s, type, 4, s->big);
    put(s, length, 4, s->big);
}

/* What stands before the first page: 24 bytes that are none of its business, libxl's header and a record of its own, libxc's headers and a record. */
static void begin(struct stream *s, int big)
{
    memset(s->bytes, 0xee, s->len = 24);
    s->big = big;
    put(s, 0x4c6962786c466d74ULL, 8, 1);
    put(s, 2, 4, 1);
    put(s, (unsigned)big, 4, 1);
    record(s, 0x80000005, 3);   /* optional, and odd: padded to 8 */
    s->len += 8;
    record(s, 1, 0);
    put(s, UINT64_MAX, 8, 1);
    put(s, 0x58454e46, 4, 1);
    put(s, 3, 4, 1);
    put(s, (unsigned)big, 2, 1);
    put(s, 0, 6, 1);
    put(s, 2, 4, big);
    put(s, 12, 2, big);
    put(s, 0, 2, big);
    put(s, 4, 4, big);
    put(s, 17, 4, big);
    record(s, 0x10, 0);
}

/* PAGE_DATA of count frames from first on, step apart; every third one is a frame without contents if holes. Returns its pages' bytes. */
static uint64_t pages(struct stream *s, uint64_t first, uint32_t count, uint64_t step, int holes)
{
    uint32_t full = 0;

    for (uint32_t i = 0; i < count; i++)
        full += !holes || i % 3 != 0;
    record(s, 1, 8 + 8 * count + full * PAGE);
    put(s, count, 4, s->big);
    put(s, 0, 4, s->big);
    for (uint32_t i = 0; i < count; i++)
        put(s, (first + i * step) | (holes && i % 3 == 0 ? (uint64_t)XTAB << 60 : 0), 8, s->big);
    memset(s->bytes + s->len, 0x01, full * PAGE);       /* would be PAGE_DATA, were it looked at */
    s->len += full * PAGE;
    CHECK(s->len <= sizeof(s->bytes));
    return (uint64_t)full * PAGE;
}

/* PAGE_DATA of frames that all are without contents. */
static void empty(struct stream *s, uint64_t first, uint32_t count)
{
    record(s, 1, 8 + 8 * count);
    put(s, count, 4, s->big);
    put(s, 0, 4, s->big);
    for (uint32_t i = 0; i < count; i++)
        put(s, (first + i) | (uint64_t)XTAB << 60, 8, s->big);
    CHECK(s->len <= sizeof(s->bytes));
}

static struct xs_xlrecords counted(const struct stream *s, size_t step)
{
    struct xs_xlrecords r;

    memset(&r, 0, sizeof(r));
    xs_xlrecords_feed(&r, s->bytes, 8);         /* before it has begun, nothing is looked at */
    xs_xlrecords_start(&r, 24);
    for (size_t done = 0; done < s->len; done += step)
        xs_xlrecords_feed(&r, s->bytes + done, step < s->len - done ? step : s->len - done);
    return r;
}

static struct stream s;
static const size_t steps[] = { 1, 3, 16, 4095, 65536, sizeof(s.bytes) };

#define AFTER(number, sent) \
    for (size_t way = 0; way < sizeof(steps) / sizeof(steps[0]); way++) { \
        struct xs_xlrecords r = counted(&s, steps[way]); \
        CHECK(r.pass == (number) && r.pass_bytes == (sent)); \
    }

/* Each pass is told from the one before it, however the stream is cut into pieces, and its bytes are those of pages alone. */
static void passes(void)
{
    for (int big = 0; big < 2; big++) {
        uint64_t sent;

        begin(&s, big);
        AFTER(0, 0);
        sent = pages(&s, 0, 8, 1, 1);
        AFTER(1, sent);
        sent += pages(&s, 8, 8, 1, 0);
        sent += pages(&s, 16, 5, 1, 0);         /* fewer than before: the last of its pass */
        AFTER(1, sent);
        sent = pages(&s, 17, 3, 1, 0);          /* behind it, though at a higher frame */
        AFTER(2, sent);
        sent = pages(&s, 2, 8, 2, 0);           /* a lower frame */
        AFTER(3, sent);
        sent += pages(&s, 18, 8, 1, 0);
        AFTER(3, sent);
        sent = pages(&s, 18, 8, 1, 0);          /* the same frame again, behind a record that was full */
        AFTER(4, sent);
        record(&s, 0x0d, 0);                    /* VERIFY */
        sent = pages(&s, 20, 8, 1, 0);
        AFTER(5, sent);
        record(&s, 0, 0);                       /* END of libxc's, a record of libxl's, END of its */
        record(&s, 3, 9);
        s.len += 16;
        record(&s, 0, 0);
        pages(&s, 0, 8, 1, 0);                  /* nothing that is looked at any more */
        AFTER(5, sent);
        CHECK(counted(&s, 7).state == XS_RECORDS_IDLE);
        CHECK(counted(&s, 7).frame == 20 && counted(&s, 7).frame_max == 20);
    }
}

/* The records of a live migration of a PV guest of 128 MiB by Xen 4.17.5, by their first frames and counts: five passes, as xl said. */
static void recorded(void)
{
    static const struct { uint32_t first, count, pass; } later[] = {
        { 7937, 1024, 2 }, { 18675, 1024, 2 }, { 28288, 1024, 2 }, { 30872, 463, 2 }, { 7942, 597, 3 }, { 7967, 120, 4 }, { 4200, 284, 5 },
    };

    begin(&s, 0);
    for (uint32_t first = 0; first < 32768; first += 1024)
        empty(&s, first, 1024);
    AFTER(1, 0);
    for (size_t n = 0; n < sizeof(later) / sizeof(later[0]); n++) {
        empty(&s, later[n].first, later[n].count);
        CHECK(counted(&s, 4096).pass == later[n].pass);
    }
    CHECK(counted(&s, 4096).frame == 4200 && counted(&s, 4096).frame_max == 31744);
}

/* With Remus libxl's records stand between libxc's, and every checkpoint is a pass. */
static void checkpoints(void)
{
    uint64_t sent = 0;

    begin(&s, 0);
    pages(&s, 0, 4, 1, 0);
    for (uint32_t n = 0; n < 3; n++) {
        record(&s, 0x0e, 0);            /* CHECKPOINT */
        record(&s, 3, 40);
        s.len += 40;
        record(&s, 4, 0);               /* libxl's CHECKPOINT_END */
        sent = pages(&s, 10 + n, 4, 1, 0);
    }
    AFTER(4, sent);
}

/* What is not as the specifications have it ends the counting, and changes nothing of what was counted. */
static void odd_streams(void)
{
    static const size_t at[] = { 24 /* ident */, 35 /* version */, 64 /* marker */, 72 /* id */, 79 /* version */, 92 /* page shift */ };
    uint64_t sent;

    for (size_t n = 0; n < sizeof(at) / sizeof(at[0]); n++) {
        begin(&s, 0);
        s.bytes[at[n]] ^= 0x41;
        pages(&s, 0, 4, 1, 0);
        CHECK(counted(&s, 5).pass == 0 && counted(&s, 5).state == XS_RECORDS_IDLE);
    }
    for (int n = 0; n < 4; n++) {
        static const uint32_t length[] = { 0, 15, 100, UINT32_MAX }, count[] = { 1, 1, 12, 0 };

        begin(&s, 0);
        sent = pages(&s, 0, 4, 1, 0);
        record(&s, 1, length[n]);
        put(&s, count[n], 4, 0);
        put(&s, 0, 4, 0);
        put(&s, 0, 8, 0);
        pages(&s, 0, 4, 1, 0);
        AFTER(1, sent);
        CHECK(counted(&s, 5).state == XS_RECORDS_IDLE);
    }
    begin(&s, 0);
    record(&s, 0x20, UINT32_MAX);       /* as long as a length can say */
    pages(&s, 0, 4, 1, 0);
    CHECK(counted(&s, 5).pass == 0 && counted(&s, 5).skip > UINT32_MAX - sizeof(s.bytes));
}

int main(void)
{
    RUN(passes);
    RUN(recorded);
    RUN(checkpoints);
    RUN(odd_streams);
    return 0;
}
