/* xl's own protocol, seen passing by. The messages are those captured from xl 4.17 (xl_migrate.c). */
#include "harness.h"

#include "../../csrc/xlphase.h"

#define BANNER "xl migration receiver ready, send binary domain data.\n"
#define READY "domain received, ready to unpause\0"
#define REPORT "my copy unpause results are as follows\0"
#define GO "domain is yours, you are cleared to unpause\0"
#define JSON "{\n    \"c_info\": {\n        \"type\": \"pv\",\n        \"name\": \"g128\"\n    }\n}\n"

static const char down[] = BANNER READY REPORT "\0";    /* without C's own NUL */
enum { DOWN_LEN = sizeof(down) - 1 };

/* A source's head: header, configuration with its NUL, the start of the domain. Returns its length. */
static size_t make_head(uint8_t *out, int big_endian, const char *json, uint32_t flags, uint32_t config_len, uint32_t optional_len)
{
    const uint32_t word[5] = { 0x01020304, flags, 0, optional_len, config_len };
    size_t n = 32, len = strlen(json) + 1;

    memcpy(out, "Xen saved domain, xl format\n \0 \r", 32);
    for (int w = 0; w < 5; w++)
        for (int b = 0; b < 4; b++)
            out[n++] = (uint8_t)(word[w] >> 8 * (big_endian ? 3 - b : b));
    memcpy(out + n, json, len);
    memcpy(out + n + len, "LibxlFmt", 8);
    return n + len + 8;
}

static void feed(struct xs_xlphase *x, unsigned channel, const void *bytes, size_t len, size_t step)
{
    for (size_t done = 0; done < len; done += step)
        xs_xlphase_feed(x, channel, (const uint8_t *)bytes + done, step < len - done ? step : len - done);
}

/* The 128 bytes of a good migration give banner, ready and report at every chunking, and the status only with its byte. */
static void down_stream(void)
{
    CHECK(DOWN_LEN == 128);
    for (size_t step = 1; step <= DOWN_LEN; step++) {
        struct xs_xlphase *x = xs_xlphase_new();

        feed(x, 1, down, DOWN_LEN - 1, step);
        CHECK(xs_xlphase_next(x) == XS_PHASE_BANNER && xs_xlphase_next(x) == XS_PHASE_READY);
        CHECK(xs_xlphase_next(x) == XS_PHASE_START && xs_xlphase_told(x) == XS_PHASE_READY);
        CHECK(xs_xlphase_status(x) == -1 && !xs_xlphase_pending(x));
        feed(x, 1, down + DOWN_LEN - 1, 1, 1);
        CHECK(xs_xlphase_pending(x) && xs_xlphase_next(x) == XS_PHASE_REPORT && !xs_xlphase_pending(x));
        CHECK(xs_xlphase_status(x) == 0);
        feed(x, 1, GO, 44, step);       /* "sender may resume" and anything else: no more to learn */
        CHECK(!xs_xlphase_pending(x));
        xs_xlphase_free(x);
    }
}

/* A whole migration at every chunking: each phase once and in order, and the configuration without its NUL, in both byte orders. */
static void whole(void)
{
    uint8_t head[256];
    size_t len;

    for (size_t step = 1; step < 140; step++) {
        struct xs_xlphase *x = xs_xlphase_new();
        size_t n = make_head(head, step % 2 == 0, JSON, 3, sizeof(JSON), sizeof(JSON) + 4);

        feed(x, 1, BANNER, 54, step);
        CHECK(xs_xlphase_next(x) == XS_PHASE_BANNER);
        feed(x, 0, GO, 0, step);
        feed(x, 0, head, n, step);
        CHECK(xs_xlphase_next(x) == XS_PHASE_HEAD);
        CHECK(memcmp(xs_xlphase_head(x, &len), JSON, sizeof(JSON) - 1) == 0 && len == sizeof(JSON) - 1);
        CHECK(xs_xlphase_head_end(x) == 48 + 4 + sizeof(JSON));
        feed(x, 0, GO, 44, step);       /* in the guest's memory: not yet ready */
        CHECK(!xs_xlphase_pending(x));
        feed(x, 1, READY, 34, step);
        CHECK(xs_xlphase_next(x) == XS_PHASE_READY);
        feed(x, 0, GO, 43, step);
        CHECK(!xs_xlphase_pending(x));
        feed(x, 0, "", 1, 1);           /* its NUL */
        CHECK(xs_xlphase_next(x) == XS_PHASE_GO);
        feed(x, 0, GO, 44, step);
        feed(x, 1, REPORT "\xff", 40, step);
        CHECK(xs_xlphase_next(x) == XS_PHASE_REPORT && xs_xlphase_status(x) == 255);
        CHECK(xs_xlphase_next(x) == XS_PHASE_START);
        xs_xlphase_free(x);
    }
}

/* A report without GO (xl's input ended) comes; a GO behind the report does not. */
static void report_without_go(void)
{
    struct xs_xlphase *x = xs_xlphase_new();

    feed(x, 0, "not a header of xl's, forty-eight bytes or more of it", 50, 50);
    feed(x, 1, down, DOWN_LEN, DOWN_LEN);
    feed(x, 0, GO, 44, 44);
    CHECK(xs_xlphase_next(x) == XS_PHASE_BANNER && xs_xlphase_next(x) == XS_PHASE_READY);
    CHECK(xs_xlphase_next(x) == XS_PHASE_REPORT && xs_xlphase_next(x) == XS_PHASE_START);
    xs_xlphase_free(x);
}

/* A head that lies about its lengths, or is none, gives no configuration; one too long to keep gives the phase. */
static void odd_heads(void)
{
    const struct {
        uint32_t flags, config_len, optional_len;
        int phase;
    } odd[] = {
        { 2, sizeof(JSON), sizeof(JSON) + 4, 0 },                       /* not JSON */
        { 1, sizeof(JSON), sizeof(JSON) + 4, 0 }, { 7, sizeof(JSON), sizeof(JSON) + 4, 0 },     /* flags that xl does not set */
        { 3, sizeof(JSON), sizeof(JSON) + 5, 0 },                       /* something behind the configuration */
        { 3, sizeof(JSON), 3, 0 }, { 3, sizeof(JSON), 0, 0 },           /* no room for the length itself */
        { 3, sizeof(JSON) + 1, sizeof(JSON) + 4, 0 },                   /* longer than what holds it */
        { 3, UINT32_MAX, sizeof(JSON) + 4, 0 }, { 3, UINT32_MAX, UINT32_MAX, 0 },
        { 3, 0, 4, 1 }, { 3, XS_XL_HEAD_MAX + 1, XS_XL_HEAD_MAX + 5, 1 }, { 3, UINT32_MAX - 4, UINT32_MAX, 1 },
    };
    uint8_t head[256];
    size_t len;

    for (size_t n = 0; n < sizeof(odd) / sizeof(odd[0]); n++)
        for (size_t step = 1; step < 64; step += 9) {
            struct xs_xlphase *x = xs_xlphase_new();

            feed(x, 0, head, make_head(head, 0, JSON, odd[n].flags, odd[n].config_len, odd[n].optional_len), step);
            CHECK(xs_xlphase_pending(x) == odd[n].phase);
            CHECK(xs_xlphase_next(x) == (odd[n].phase ? XS_PHASE_HEAD : XS_PHASE_START));
            CHECK(xs_xlphase_head(x, &len) == NULL && len == 0 && xs_xlphase_head_end(x) == 0);
            xs_xlphase_free(x);
        }
    for (size_t bit = 0; bit < 36 * 8; bit++) {         /* magic and byte order */
        struct xs_xlphase *x = xs_xlphase_new();
        size_t n = make_head(head, 0, JSON, 3, sizeof(JSON), sizeof(JSON) + 4);

        head[bit / 8] ^= (uint8_t)(1U << bit % 8);
        feed(x, 0, head, n, n);
        CHECK(!xs_xlphase_pending(x));
        xs_xlphase_free(x);
    }
}

/* Any byte of xl's messages changed: the phases before it, and none after. */
static void strange_messages(void)
{
    for (size_t at = 0; at < DOWN_LEN - 1; at++) {
        struct xs_xlphase *x = xs_xlphase_new();
        uint8_t bytes[DOWN_LEN];

        memcpy(bytes, down, DOWN_LEN);
        bytes[at] ^= 0x20;
        feed(x, 1, bytes, DOWN_LEN, 7);
        CHECK(xs_xlphase_next(x) == (at < 54 ? XS_PHASE_START : XS_PHASE_BANNER));
        CHECK(xs_xlphase_next(x) == (at < 54 + 34 ? XS_PHASE_START : XS_PHASE_READY));
        CHECK(xs_xlphase_next(x) == XS_PHASE_START && xs_xlphase_status(x) == -1);
        xs_xlphase_free(x);
    }
}

/* The captures of a real migration, where they are: XS_STREAM_UP and XS_STREAM_DOWN name the files. */
static void captured(void)
{
    const char *up_name = getenv("XS_STREAM_UP"), *down_name = getenv("XS_STREAM_DOWN");
    static uint8_t block[1 << 16];
    struct xs_xlphase *x = xs_xlphase_new();
    FILE *up = up_name != NULL ? fopen(up_name, "rb") : NULL, *dn = down_name != NULL ? fopen(down_name, "rb") : NULL;
    uint8_t end[44];
    size_t n, len;

    if (up != NULL && dn != NULL) {
        CHECK(fseek(up, -44, SEEK_END) == 0 && fread(end, 1, 44, up) == 44 && fseek(up, 0, SEEK_SET) == 0);
        CHECK(fread(block, 1, sizeof(block), dn) == 128);
        feed(x, 1, block, 54, 54);
        CHECK(xs_xlphase_next(x) == XS_PHASE_BANNER);
        n = fread(block, 1, sizeof(block), up);
        feed(x, 0, block, n, 1000);
        CHECK(xs_xlphase_next(x) == XS_PHASE_HEAD);
        CHECK(memcmp(xs_xlphase_head(x, &len), "{\n    \"c_info\"", 14) == 0 && len == 872);
        CHECK(fseek(dn, 54, SEEK_SET) == 0 && fread(block, 1, 74, dn) == 74);
        feed(x, 1, block, 34, 5);
        feed(x, 0, end, 44, 5);
        feed(x, 1, block + 34, 40, 5);
        CHECK(xs_xlphase_next(x) == XS_PHASE_READY && xs_xlphase_next(x) == XS_PHASE_GO);
        CHECK(xs_xlphase_next(x) == XS_PHASE_REPORT && xs_xlphase_status(x) == 0);
    } else {
        printf("    (no captures named)\n");
    }
    if (up != NULL)
        fclose(up);
    if (dn != NULL)
        fclose(dn);
    xs_xlphase_free(x);
}

int main(void)
{
    RUN(down_stream);
    RUN(whole);
    RUN(report_without_go);
    RUN(odd_heads);
    RUN(strange_messages);
    RUN(captured);
    return 0;
}
