#include "fifo.h"

#include <assert.h>
#include <stdlib.h>
#include <string.h>

#include "util.h"

struct xs_pool {
    size_t max, mapped, spares;
    uint8_t **all;              /* mapped of them */
    uint8_t **spare;            /* a stack: the chunk last given back is the next one out, while it is still in the cache */
};

struct xs_fifo {
    struct xs_pool *pool;
    size_t limit;
    size_t slots;
    uint64_t base, tail;
    uint8_t *chunk[];           /* of stream offset o: chunk[o / XS_CHUNK % slots]; NULL where none is held */
};

/* A pool that gives out at most max chunks. NULL when there is no memory. */
struct xs_pool *xs_pool_new(size_t max)
{
    struct xs_pool *pool = calloc(1, sizeof(*pool));

    if (pool == NULL)
        return NULL;
    pool->max = max;
    pool->all = calloc(max, sizeof(*pool->all));
    pool->spare = calloc(max, sizeof(*pool->spare));
    if (pool->all == NULL || pool->spare == NULL) {
        xs_pool_free(pool);
        return NULL;
    }
    return pool;
}

/*
 * Wipe and free every chunk and the pool, after the queues that use it; NULL is fine.
 *
 * Chunks are wiped here and not when they are given back: until now the process held the guest's memory in other chunks anyway, so that
 * wiping each one on its way would cost one more pass over all of it and keep nothing from whoever can read this process.
 */
void xs_pool_free(struct xs_pool *pool)
{
    if (pool == NULL)
        return;
    for (size_t i = 0; i < pool->mapped; i++)
        xs_pages_free(pool->all[i], XS_CHUNK);
    free(pool->all);
    free(pool->spare);
    free(pool);
}

/* How many chunks the pool has mapped so far. */
size_t xs_pool_mapped(const struct xs_pool *pool)
{
    return pool->mapped;
}

/* Take a chunk. NULL when memory is lacking. */
static uint8_t *pool_get(struct xs_pool *pool)
{
    uint8_t *chunk;

    if (pool->spares > 0)
        return pool->spare[--pool->spares];
    if (pool->mapped == pool->max || (chunk = xs_pages_new(XS_CHUNK)) == NULL)
        return NULL;
    pool->all[pool->mapped++] = chunk;
    return chunk;
}

/* Give a chunk back; NULL is fine. */
static void pool_put(struct xs_pool *pool, uint8_t *chunk)
{
    if (chunk != NULL)
        pool->spare[pool->spares++] = chunk;
}

/* How many chunks a queue of that limit (bytes) may hold at once. */
size_t xs_fifo_chunks(size_t limit)
{
    return limit / XS_CHUNK + 2 /* the first and the last may be partly used */;
}

/* An empty queue at offset 0 that holds at most limit bytes. NULL when there is no memory. */
struct xs_fifo *xs_fifo_new(struct xs_pool *pool, size_t limit)
{
    size_t slots = xs_fifo_chunks(limit);
    struct xs_fifo *fifo = calloc(1, sizeof(*fifo) + slots * sizeof(fifo->chunk[0]));

    if (fifo == NULL)
        return NULL;
    fifo->pool = pool;
    fifo->limit = limit;
    fifo->slots = slots;
    return fifo;
}

/* Give its chunks back to the pool; NULL is fine. */
void xs_fifo_free(struct xs_fifo *fifo)
{
    if (fifo == NULL)
        return;
    for (size_t i = 0; i < fifo->slots; i++)
        pool_put(fifo->pool, fifo->chunk[i]);
    free(fifo);
}

/* The offset of the first byte held. */
uint64_t xs_fifo_base(const struct xs_fifo *fifo)
{
    return fifo->base;
}

/* The offset behind the last byte held. */
uint64_t xs_fifo_tail(const struct xs_fifo *fifo)
{
    return fifo->tail;
}

/* How many bytes may still be appended, in as many pieces as it takes. */
size_t xs_fifo_room(const struct xs_fifo *fifo)
{
    return fifo->limit - (size_t)(fifo->tail - fifo->base);
}

/* The slot of the chunk that holds an offset. */
static size_t slot_of(const struct xs_fifo *fifo, uint64_t offset)
{
    return (size_t)(offset / XS_CHUNK % fifo->slots);
}

/* How many bytes from an offset to its chunk's end. */
static size_t chunk_rest(uint64_t offset)
{
    return XS_CHUNK - (size_t)(offset % XS_CHUNK);
}

/* Contiguous room behind the tail: *len bytes of it. NULL, and *len 0, when the queue is full or memory is lacking. */
uint8_t *xs_fifo_space(struct xs_fifo *fifo, size_t *len)
{
    return xs_fifo_place(fifo, fifo->tail, len);
}

/* The same at any offset from the tail to base + limit, to put bytes there out of turn. */
uint8_t *xs_fifo_place(struct xs_fifo *fifo, uint64_t offset, size_t *len)
{
    uint8_t **chunk = &fifo->chunk[slot_of(fifo, offset)];

    *len = 0;
    if (offset < fifo->tail || offset >= fifo->base + fifo->limit)
        return NULL;
    if (*chunk == NULL && (*chunk = pool_get(fifo->pool)) == NULL)
        return NULL;
    *len = xs_min((size_t)(fifo->base + fifo->limit - offset), chunk_rest(offset));
    return *chunk + offset % XS_CHUNK;
}

/* len bytes have been put into the space. */
void xs_fifo_commit(struct xs_fifo *fifo, size_t len)
{
    assert(len <= xs_fifo_room(fifo) && len <= chunk_rest(fifo->tail));
    fifo->tail += len;
}

/* Append a copy of len bytes. Returns XS_OK, or XS_ENOMEM when they do not fit. */
int xs_fifo_append(struct xs_fifo *fifo, const uint8_t *bytes, size_t len)
{
    while (len > 0) {
        size_t space;
        uint8_t *to = xs_fifo_space(fifo, &space);

        if (to == NULL)
            return XS_ENOMEM;
        space = xs_min(space, len);
        memcpy(to, bytes, space);
        xs_fifo_commit(fifo, space);
        bytes += space;
        len -= space;
    }
    return XS_OK;
}

/* The contiguous bytes from an offset between base and tail, *len of them; they never cross a chunk. NULL when there are none. */
const uint8_t *xs_fifo_slice(const struct xs_fifo *fifo, uint64_t offset, size_t *len)
{
    *len = xs_min((size_t)(fifo->tail - offset), chunk_rest(offset));
    if (*len == 0)
        return NULL;
    return fifo->chunk[slot_of(fifo, offset)] + offset % XS_CHUNK;
}

/* Give back the chunks that lie wholly before offset, and make it the base. */
static void rebase(struct xs_fifo *fifo, uint64_t offset)
{
    uint64_t first = fifo->base / XS_CHUNK, last = offset / XS_CHUNK;

    /* Never more than slots turns: a skip may go further than any chunk is held. */
    for (uint64_t i = first; i < last && i < first + fifo->slots; i++) {
        size_t slot = (size_t)(i % fifo->slots);

        pool_put(fifo->pool, fifo->chunk[slot]);
        fifo->chunk[slot] = NULL;
    }
    fifo->base = offset;
}

/* Give back what lies before offset (between base and tail). */
void xs_fifo_release(struct xs_fifo *fifo, uint64_t offset)
{
    assert(offset >= fifo->base && offset <= fifo->tail);
    rebase(fifo, offset);
}

/* Drop what is held and go on len bytes further: for a channel whose bytes nobody takes. */
void xs_fifo_skip(struct xs_fifo *fifo, size_t len)
{
    rebase(fifo, fifo->tail + len);
    fifo->tail += len;
}
