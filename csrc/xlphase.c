#include "xlphase.h"

#include <stdlib.h>
#include <string.h>

#include "util.h"
#include "xlrecords.h"

/* Each with the terminating NUL of C but for the banner: its sizeof is what is on the wire. */
static const char banner[] = "xl migration receiver ready, send binary domain data.\n";
static const char ready[] = "domain received, ready to unpause";
static const char go[] = "domain is yours, you are cleared to unpause";
static const char report[] = "my copy unpause results are as follows";

static const char magic[] = "Xen saved domain, xl format\n \0 \r";

enum {
    MAGIC_LEN = 32,             /* savefileheader_magic without C's NUL */
    HEADER_LEN = MAGIC_LEN + 4 * 4,     /* struct save_file_header */
    FLAGS = 1 | 2,              /* XL_MANDATORY_FLAG_JSON, XL_MANDATORY_FLAG_STREAMv2: all that xl has, and has always set since 4.6 */
    BYTE_ORDER_MARK = 0x01020304        /* SAVEFILE_BYTEORDER_VALUE */
};

enum head_state { HEAD_HEADER, HEAD_LENGTH, HEAD_CONFIG, HEAD_OVER };
enum down_state { DOWN_BANNER, DOWN_READY, DOWN_REPORT, DOWN_STATUS, DOWN_OVER };

struct xs_xlphase {
    enum head_state head_state;         /* channel 0 up to the configuration */
    uint8_t small[HEADER_LEN];
    size_t got;                         /* bytes of the present field */
    int little_endian;
    uint32_t optional_len;
    uint8_t *config;
    size_t config_len, config_got;      /* what is announced, what has come */
    size_t go_got;                      /* bytes of GO that have matched */
    int go_over;                        /* GO has come, or something else in its place */
    struct xs_xlrecords records;        /* channel 0 behind the header */

    enum down_state down_state;         /* channel 1 */
    size_t down_got;

    unsigned seen;                      /* a bit a phase */
    enum xs_phase told;
    int status;
};

/* One that has seen nothing yet. NULL when there is no memory. */
struct xs_xlphase *xs_xlphase_new(void)
{
    struct xs_xlphase *x = calloc(1, sizeof(*x));

    if (x != NULL)
        x->status = -1;
    return x;
}

/* Wipe and free; NULL is fine. */
void xs_xlphase_free(struct xs_xlphase *x)
{
    if (x == NULL)
        return;
    if (x->config != NULL)
        xs_wipe(x->config, x->config_len);
    free(x->config);
    xs_wipe(x, sizeof(*x));
    free(x);
}

/* A phase has been reached. One that comes late (GO behind a report) is not told of: phases never go back. */
static void reached(struct xs_xlphase *x, enum xs_phase phase)
{
    if ((x->seen >> (unsigned)phase) == 0)
        x->seen |= 1U << (unsigned)phase;
}

/* A number of the header's, in the byte order it announces (that of the domain). */
static uint32_t load_native(const struct xs_xlphase *x, const uint8_t *p)
{
    uint32_t v = xs_load32(p);

    return x->little_endian ? __builtin_bswap32(v) : v;
}

/* The header has come whole: is it one, and what follows? */
static void head_header(struct xs_xlphase *x)
{
    const uint8_t *field = x->small + MAGIC_LEN;

    x->got = 0;
    x->head_state = HEAD_OVER;
    if (memcmp(x->small, magic, MAGIC_LEN) != 0)
        return;
    if (xs_load32(field) == (uint32_t)BYTE_ORDER_MARK)
        x->little_endian = 0;
    else if (xs_load32(field) == __builtin_bswap32(BYTE_ORDER_MARK))
        x->little_endian = 1;
    else
        return;
    x->optional_len = load_native(x, field + 12);
    if (load_native(x, field + 4) != FLAGS || x->optional_len < 4 /* the configuration's length */)
        return;
    x->head_state = HEAD_LENGTH;
}

/* The configuration's length has come. */
static void head_length(struct xs_xlphase *x)
{
    uint32_t len = load_native(x, x->small);

    x->got = 0;
    x->head_state = HEAD_OVER;
    if (len != x->optional_len - 4 /* itself */)
        return;         /* xl writes nothing else there, and would pass over it */
    if (len > 0 && len <= XS_XL_HEAD_MAX)
        x->config = malloc(len);
    if (x->config == NULL) {
        /* Empty, too long to keep, or no memory: the phase is reached all the same, without a configuration. */
        reached(x, XS_PHASE_HEAD);
        xs_xlrecords_start(&x->records, x->optional_len - 4);
        return;
    }
    x->config_len = len;
    x->head_state = HEAD_CONFIG;
}

/* The configuration has come. */
static void head_config(struct xs_xlphase *x)
{
    x->head_state = HEAD_OVER;
    reached(x, XS_PHASE_HEAD);
    xs_xlrecords_start(&x->records, x->optional_len - 4 - x->config_len);
}

/* Channel 0 up to the configuration. Returns how many bytes that took. */
static size_t feed_head(struct xs_xlphase *x, const uint8_t *bytes, size_t len)
{
    const size_t all = len;

    while (len > 0 && x->head_state != HEAD_OVER) {
        int in_config = x->head_state == HEAD_CONFIG;
        uint8_t *to = in_config ? x->config : x->small;
        size_t *got = in_config ? &x->config_got : &x->got;
        size_t whole = in_config ? x->config_len : x->head_state == HEAD_HEADER ? HEADER_LEN : 4;
        size_t part = xs_min(len, whole - *got);

        memcpy(to + *got, bytes, part);
        *got += part;
        bytes += part;
        len -= part;
        if (*got < whole)
            break;
        switch (x->head_state) {
        case HEAD_HEADER:
            head_header(x);
            break;
        case HEAD_LENGTH:
            head_length(x);
            break;
        case HEAD_CONFIG:
            head_config(x);
            break;
        case HEAD_OVER:
            break;
        }
    }
    return all - len;
}

/* Channel 0 after "ready": the domain has been read to its end by then, so that what comes now is GO or nothing we know. */
static void feed_go(struct xs_xlphase *x, const uint8_t *bytes, size_t len)
{
    size_t part = xs_min(len, sizeof(go) - x->go_got);

    if (memcmp(bytes, go + x->go_got, part) != 0) {
        x->go_over = 1;
        return;
    }
    x->go_got += part;
    if (x->go_got == sizeof(go)) {
        x->go_over = 1;
        reached(x, XS_PHASE_GO);
    }
}

/* Match the next message of channel 1. Returns how many bytes it took; at the end, or at a difference, the state goes on. */
static size_t match(struct xs_xlphase *x, const char *text, size_t whole, const uint8_t *bytes, size_t len,
                    enum down_state next, int phase)
{
    size_t part = xs_min(len, whole - x->down_got);

    if (memcmp(bytes, text + x->down_got, part) != 0) {
        x->down_state = DOWN_OVER;
        return len;
    }
    x->down_got += part;
    if (x->down_got == whole) {
        x->down_got = 0;
        x->down_state = next;
        if (phase >= 0)
            reached(x, (enum xs_phase)phase);
    }
    return part;
}

/* Channel 1. */
static void feed_down(struct xs_xlphase *x, const uint8_t *bytes, size_t len)
{
    while (len > 0) {
        size_t took = 1;

        switch (x->down_state) {
        case DOWN_BANNER:
            took = match(x, banner, sizeof(banner) - 1, bytes, len, DOWN_READY, XS_PHASE_BANNER);
            break;
        case DOWN_READY:
            took = match(x, ready, sizeof(ready), bytes, len, DOWN_REPORT, XS_PHASE_READY);
            break;
        case DOWN_REPORT:
            took = match(x, report, sizeof(report), bytes, len, DOWN_STATUS, -1);
            break;
        case DOWN_STATUS:
            x->status = bytes[0];
            x->down_state = DOWN_OVER;
            reached(x, XS_PHASE_REPORT);
            break;
        case DOWN_OVER:
            return;
        }
        bytes += took;
        len -= took;
    }
}

/* The next len bytes of a channel, in the stream's order. */
void xs_xlphase_feed(struct xs_xlphase *x, unsigned channel, const uint8_t *bytes, size_t len)
{
    size_t took = 0;

    if (len == 0)
        return;
    if (channel == 1) {
        feed_down(x, bytes, len);
    } else if (channel == 0) {
        /* Of the guest's memory, nothing is looked at but the records' headers. */
        if (x->head_state != HEAD_OVER)
            took = feed_head(x, bytes, len);
        xs_xlrecords_feed(&x->records, bytes + took, len - took);
        if ((x->seen & 1U << XS_PHASE_READY) != 0 && !x->go_over && took < len)
            feed_go(x, bytes + took, len - took);
    }
}

/* True while there are phases that xs_xlphase_next has not given out. */
int xs_xlphase_pending(const struct xs_xlphase *x)
{
    return x->seen >> (unsigned)x->told > 1;
}

/* The next phase to tell of, once each and in order; XS_PHASE_START when there is none. */
enum xs_phase xs_xlphase_next(struct xs_xlphase *x)
{
    for (unsigned phase = (unsigned)x->told + 1; x->seen >> phase != 0; phase++) {
        if ((x->seen >> phase & 1U) != 0) {
            x->told = (enum xs_phase)phase;
            return x->told;
        }
    }
    return XS_PHASE_START;
}

/* The phase last told of. */
enum xs_phase xs_xlphase_told(const struct xs_xlphase *x)
{
    return x->told;
}

/* xl's status byte, or -1 before it was seen. */
int xs_xlphase_status(const struct xs_xlphase *x)
{
    return x->status;
}

/* How far the domain's memory has passed. */
void xs_xlphase_memory(const struct xs_xlphase *x, struct xs_memory *out)
{
    out->pass_number = x->records.pass;
    out->pass_bytes = x->records.pass_bytes;
    out->frame = x->records.frame;
    out->frame_max = x->records.frame_max;
}

/* The domain's configuration (JSON, without its trailing NUL); *len 0 when there is none. */
const uint8_t *xs_xlphase_head(const struct xs_xlphase *x, size_t *len)
{
    *len = 0;
    if ((x->seen & 1U << XS_PHASE_HEAD) == 0 || x->config == NULL)
        return NULL;
    *len = x->config_len;
    if (x->config[*len - 1] == '\0')
        (*len)--;       /* xl counts it in; a JSON parser does not want it */
    return x->config;
}

/* The bytes of channel 0 up to the configuration's end; 0 before it has come, or where it is too long to be kept. */
size_t xs_xlphase_head_end(const struct xs_xlphase *x)
{
    return x->head_state == HEAD_OVER && x->config != NULL ? HEADER_LEN + 4 + x->config_len : 0;
}
