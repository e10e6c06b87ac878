#include "stripes.h"

#include <assert.h>
#include <stdlib.h>

#include "util.h"

enum { NOBODY = -1 };

struct stripe {
    int lane;                   /* who sends it, or NOBODY */
    size_t sent;                /* bytes from its start, given out to that lane */
    size_t before;              /* bytes from its start, given out to lanes that were lost */
};

struct xs_stripes {
    uint64_t base, tail;        /* acknowledged; there to be sent */
    uint64_t high;
    size_t slots;
    struct stripe stripe[];     /* of stream offset o: stripe[o / XS_CHUNK % slots] */
};

/* For a queue of that limit, bytes. NULL when there is no memory. */
struct xs_stripes *xs_stripes_new(size_t limit)
{
    size_t slots = xs_fifo_chunks(limit);
    struct xs_stripes *st = calloc(1, sizeof(*st) + slots * sizeof(st->stripe[0]));

    if (st == NULL)
        return NULL;
    st->slots = slots;
    for (size_t i = 0; i < slots; i++)
        st->stripe[i].lane = NOBODY;
    return st;
}

/* Free; NULL is fine. */
void xs_stripes_free(struct xs_stripes *stripes)
{
    free(stripes);
}

/* The entry of a stripe. */
static struct stripe *entry(struct xs_stripes *st, uint64_t number)
{
    return &st->stripe[number % st->slots];
}

/* What of a stripe is still to be given out: from *from, the return value's number of bytes. */
static size_t waiting(const struct xs_stripes *st, uint64_t number, uint64_t *from)
{
    uint64_t start = number * XS_CHUNK, end = start + XS_CHUNK;

    *from = start + st->stripe[number % st->slots].sent;
    if (*from < st->base)
        *from = st->base;
    if (end > st->tail)
        end = st->tail;
    return *from < end ? (size_t)(end - *from) : 0;
}

/* The bytes up to tail are there to be sent. */
void xs_stripes_extend(struct xs_stripes *stripes, uint64_t tail)
{
    assert(tail >= stripes->tail);
    stripes->tail = tail;
}

/* The bytes before offset are acknowledged. */
void xs_stripes_release(struct xs_stripes *stripes, uint64_t offset)
{
    assert(offset >= stripes->base && offset <= stripes->tail);
    for (uint64_t i = stripes->base / XS_CHUNK; i < offset / XS_CHUNK; i++)
        *entry(stripes, i) = (struct stripe){ .lane = NOBODY };
    stripes->base = offset;
}

/* How far everything has been given out: what an ACK may not pass (F7). */
uint64_t xs_stripes_high(const struct xs_stripes *stripes)
{
    return stripes->high;
}

/* How many bytes wait to be given out, for the first time or again. */
size_t xs_stripes_unsent(const struct xs_stripes *stripes)
{
    size_t sum = 0;
    uint64_t from;

    for (uint64_t i = stripes->base / XS_CHUNK; i * XS_CHUNK < stripes->tail; i++)
        sum += waiting(stripes, i, &from);
    return sum;
}

/* The lowest stripe that the lane may send something of; its own, or one that nobody has. Returns 1, or 0 when there is none. */
static int find(const struct xs_stripes *st, unsigned lane, uint64_t *number, int own_only)
{
    uint64_t from;

    for (uint64_t i = st->base / XS_CHUNK; i * XS_CHUNK < st->tail; i++) {
        int owner = st->stripe[i % st->slots].lane;

        if ((owner == (int)lane || (owner == NOBODY && !own_only)) && waiting(st, i, &from) > 0) {
            *number = i;
            return 1;
        }
    }
    return 0;
}

/* Whether the lane would be given something now, and what. */
enum xs_offer xs_stripes_offer(const struct xs_stripes *stripes, unsigned lane)
{
    uint64_t number;

    if (find(stripes, lane, &number, 1))
        return XS_OFFER_OWN;
    return find(stripes, lane, &number, 0) ? XS_OFFER_ANY : XS_OFFER_NONE;
}

/* Move high on over what has been given out behind it. */
static void raise_high(struct xs_stripes *st)
{
    for (;;) {
        const struct stripe *e = entry(st, st->high / XS_CHUNK);
        uint64_t start = st->high / XS_CHUNK * XS_CHUNK;
        uint64_t out = start + (e->sent > e->before ? e->sent : e->before);

        if (out <= st->high)
            return;
        st->high = out;
        if (out % XS_CHUNK != 0)
            return;
    }
}

/* Give the lane its next piece: 1, or 0 when there is none for it. It counts as sent. */
int xs_stripes_give(struct xs_stripes *stripes, unsigned lane, struct xs_piece *piece)
{
    struct stripe *e;
    uint64_t number, start;

    if (!find(stripes, lane, &number, 0))
        return 0;
    e = entry(stripes, number);
    start = number * XS_CHUNK;
    piece->len = waiting(stripes, number, &piece->offset);
    piece->again = piece->offset < start + e->before;
    if (piece->again)           /* a frame is wholly one or the other: J6 */
        piece->len = xs_min(piece->len, (size_t)(start + e->before - piece->offset));
    e->lane = (int)lane;
    e->sent = (size_t)(piece->offset + piece->len - start);
    raise_high(stripes);
    return 1;
}

/* The lane is lost, or has stalled: what it was given and is not acknowledged is for the others. */
void xs_stripes_orphan(struct xs_stripes *stripes, unsigned lane)
{
    for (uint64_t i = stripes->base / XS_CHUNK; i * XS_CHUNK < stripes->tail; i++) {
        struct stripe *e = entry(stripes, i);

        if (e->lane != (int)lane)
            continue;
        e->lane = NOBODY;
        e->before = e->sent > e->before ? e->sent : e->before;
        e->sent = 0;
    }
}
