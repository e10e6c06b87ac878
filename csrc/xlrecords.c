#include "xlrecords.h"

#include <string.h>

#include "util.h"

enum {
    LIBXL_HEADER_LEN = 8 + 4 + 4,               /* ident, version, options */
    RECORD_HEADER_LEN = 4 + 4,                  /* type, length of the body */
    IMAGE_HEADER_LEN = 8 + 4 + 4 + 2 + 6,       /* marker, id, version, options, reserved */
    DOMAIN_HEADER_LEN = 4 + 2 + 2 + 4 + 4,      /* type, page shift, reserved, Xen's version */
    PAGES_LEN = 4 + 4 + 8,                      /* of PAGE_DATA: count, reserved, the first frame */

    LIBXL_VERSION = 2, IMAGE_VERSION_MIN = 2, IMAGE_VERSION_MAX = 3,
    LIBXL_END = 0, LIBXL_LIBXC_CONTEXT = 1, LIBXL_CHECKPOINT_END = 4,
    LIBXC_END = 0, LIBXC_PAGE_DATA = 1, LIBXC_VERIFY = 13, LIBXC_CHECKPOINT = 14,
    BIG_ENDIAN_FLAG = 1,
    PAGE_SHIFT_MIN = 12, PAGE_SHIFT_MAX = 16    /* 4 KiB on x86; 64 KiB is the largest granule of any architecture that Xen runs on */
};

static const uint64_t libxl_ident = 0x4c6962786c466d74ULL;      /* "LibxlFmt" */
static const uint64_t frame_mask = (1ULL << 52) - 1;            /* above it: the frame's type */

/* How much of the stream a state looks at. */
static size_t field_len(enum xs_xlrecords_state state)
{
    switch (state) {
    case XS_RECORDS_LIBXL_HEADER:
        return LIBXL_HEADER_LEN;
    case XS_RECORDS_IMAGE_HEADER:
        return IMAGE_HEADER_LEN + DOMAIN_HEADER_LEN;
    case XS_RECORDS_LIBXL:
    case XS_RECORDS_LIBXC:
        return RECORD_HEADER_LEN;
    case XS_RECORDS_PAGES:
        return PAGES_LEN;
    case XS_RECORDS_IDLE:
        break;
    }
    return 0;
}

static uint32_t load32(const uint8_t *p, int big)
{
    return big ? xs_load32(p) : __builtin_bswap32(xs_load32(p));
}

static uint64_t load64(const uint8_t *p, int big)
{
    return big ? xs_load64(p) : __builtin_bswap64(xs_load64(p));
}

/* Begin, skip bytes from here. *r is all zeros. */
void xs_xlrecords_start(struct xs_xlrecords *r, uint64_t skip)
{
    r->state = XS_RECORDS_LIBXL_HEADER;
    r->skip = skip;
    r->begins = 1;
}

/* libxl's header has come. */
static void libxl_header(struct xs_xlrecords *r)
{
    int known = xs_load64(r->field) == libxl_ident && xs_load32(r->field + 8) == LIBXL_VERSION;

    r->libxl_big = (xs_load32(r->field + 12) & BIG_ENDIAN_FLAG) != 0;
    r->state = known ? XS_RECORDS_LIBXL : XS_RECORDS_IDLE;
}

/* A record's length, and what fills it up to a multiple of 8. */
static uint64_t padded(uint32_t length)
{
    return ((uint64_t)length + 7) & ~7ULL;
}

/* A record header of libxl's has come. */
static void libxl_record(struct xs_xlrecords *r)
{
    uint32_t type = load32(r->field, r->libxl_big);

    r->skip = padded(load32(r->field + 4, r->libxl_big));
    if (type == LIBXL_END)
        r->state = XS_RECORDS_IDLE;
    else if (type == LIBXL_LIBXC_CONTEXT)
        r->state = XS_RECORDS_IMAGE_HEADER;
    else if (type == LIBXL_CHECKPOINT_END)
        r->state = XS_RECORDS_LIBXC;    /* libxc goes on, without a header */
}

/* The two headers of libxc's image have come. */
static void image_header(struct xs_xlrecords *r)
{
    uint32_t version = xs_load32(r->field + 12);
    const uint8_t *shift = r->field + IMAGE_HEADER_LEN + 4;

    r->libxc_big = (r->field[17] & BIG_ENDIAN_FLAG) != 0;
    r->page_shift = r->libxc_big ? (unsigned)shift[0] << 8 | shift[1] : (unsigned)shift[1] << 8 | shift[0];
    r->state = XS_RECORDS_IDLE;
    if (xs_load64(r->field) == UINT64_MAX && memcmp(r->field + 8, "XENF", 4) == 0 && version >= IMAGE_VERSION_MIN && version <= IMAGE_VERSION_MAX
        && r->page_shift >= PAGE_SHIFT_MIN && r->page_shift <= PAGE_SHIFT_MAX)
        r->state = XS_RECORDS_LIBXC;
}

/* A record header of libxc's has come. */
static void libxc_record(struct xs_xlrecords *r)
{
    uint32_t type = load32(r->field, r->libxc_big);

    r->length = load32(r->field + 4, r->libxc_big);
    if (type == LIBXC_PAGE_DATA) {
        r->state = XS_RECORDS_PAGES;
        return;
    }
    r->skip = padded(r->length);
    if (type == LIBXC_END || type == LIBXC_CHECKPOINT)
        r->state = XS_RECORDS_LIBXL;
    if (type == LIBXC_CHECKPOINT || type == LIBXC_VERIFY)
        r->begins = 1;
}

/* The first bytes of PAGE_DATA have come. */
static void pages(struct xs_xlrecords *r)
{
    uint32_t count = load32(r->field, r->libxc_big);
    uint64_t entries = 8 /* count and reserved */ + 8 * (uint64_t)count, frame = load64(r->field + 8, r->libxc_big) & frame_mask;

    r->state = XS_RECORDS_IDLE;
    if (count == 0 || entries > r->length)
        return;
    if (r->begins || frame <= r->frame) {
        r->pass++;
        r->pass_bytes = 0;
    }
    r->begins = count < r->most;
    if (count > r->most)
        r->most = count;
    r->frame = frame;
    if (frame > r->frame_max)
        r->frame_max = frame;
    r->pass_bytes += (r->length - entries) >> r->page_shift << r->page_shift;
    r->skip = padded(r->length) - PAGES_LEN;
    r->state = XS_RECORDS_LIBXC;
}

/* The next len bytes. */
void xs_xlrecords_feed(struct xs_xlrecords *r, const uint8_t *bytes, size_t len)
{
    while (r->state != XS_RECORDS_IDLE) {
        size_t part = r->skip < len ? (size_t)r->skip : len, whole;

        r->skip -= part;
        bytes += part;
        len -= part;
        if (len == 0)
            return;
        whole = field_len(r->state);
        part = xs_min(len, whole - r->got);
        memcpy(r->field + r->got, bytes, part);
        r->got += part;
        bytes += part;
        len -= part;
        if (r->got < whole)
            return;
        r->got = 0;
        switch (r->state) {
        case XS_RECORDS_LIBXL_HEADER:
            libxl_header(r);
            break;
        case XS_RECORDS_LIBXL:
            libxl_record(r);
            break;
        case XS_RECORDS_IMAGE_HEADER:
            image_header(r);
            break;
        case XS_RECORDS_LIBXC:
            libxc_record(r);
            break;
        case XS_RECORDS_PAGES:
            pages(r);
            break;
        case XS_RECORDS_IDLE:
            break;
        }
    }
}
