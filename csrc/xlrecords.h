/*
 * Counts the passes that xl makes over a domain's memory, from the records' headers as they pass by: what libxl and libxc write behind the domain's
 * configuration (xen.git, docs/specs/libxl-migration-stream.pandoc and libxc-migration-stream.pandoc, version 2 of the one and 3 of the other).
 *
 * Constant work a record, and none a page: a record's body is passed over but for the first 16 bytes of PAGE_DATA.
 *
 * The stream does not say where a pass ends. libxc writes each in the order of its frame numbers, in records of equally many pages but for the last
 * (tools/libs/guest/xg_sr_save.c, send_dirty_pages), so that a new one has begun when a record starts at no higher frame than the one before it, or
 * behind a record with fewer pages than others have had. A pass whose last record was full and which the next one begins above is not told from it.
 *
 * It only looks: what it does not expect makes it stop counting.
 */
#ifndef XS_XLRECORDS_H
#define XS_XLRECORDS_H

#include <stddef.h>
#include <stdint.h>

enum xs_xlrecords_state {
    XS_RECORDS_IDLE = 0,        /* not begun, or all over: nothing is looked at */
    XS_RECORDS_LIBXL_HEADER, XS_RECORDS_LIBXL, XS_RECORDS_IMAGE_HEADER, XS_RECORDS_LIBXC, XS_RECORDS_PAGES
};

enum { XS_RECORDS_FIELD_MAX = 40 };     /* the longest that is looked at: image header and domain header */

struct xs_xlrecords {
    enum xs_xlrecords_state state;
    uint8_t field[XS_RECORDS_FIELD_MAX];
    size_t got;                 /* bytes of the field that have come */
    uint64_t skip;              /* bytes to pass over before it */
    int libxl_big, libxc_big;   /* byte orders */
    unsigned page_shift;
    uint32_t length;            /* of the present PAGE_DATA's body */
    uint32_t most;              /* pages in the longest record so far */
    int begins;                 /* the next PAGE_DATA is the first of a pass */

    uint32_t pass;              /* from 1; 0: no page has come */
    uint64_t pass_bytes;        /* contents of pages in this pass, the present record's all */
    uint64_t frame, frame_max;  /* where the present record starts, and the highest that one has started at */
};

/* Begin, skip bytes from here. *r is all zeros. */
void xs_xlrecords_start(struct xs_xlrecords *r, uint64_t skip);

/* The next len bytes. */
void xs_xlrecords_feed(struct xs_xlrecords *r, const uint8_t *bytes, size_t len);

#endif
