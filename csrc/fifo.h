/*
 * A queue of bytes with absolute stream offsets, in chunks of a common pool.
 *
 *        base            tail             base + limit
 *   ------+---------------+--------------------+------
 *   given |     held      | room, where bytes  |
 *   back  |               | may lie out of turn|
 *
 * The sender's queue keeps plaintext until it is acknowledged (F7); the receiver's keeps authenticated bytes until they are written. Chunk i
 * holds the stream's bytes [i, i + 1) * XS_CHUNK: small reads pack into the tail's chunk by themselves, and both ends cut the stream at the
 * same places, so that a frame opens straight into its chunk. What is put behind the tail out of turn (J5) is its user's to remember.
 */
#ifndef XS_FIFO_H
#define XS_FIFO_H

#include <stddef.h>
#include <stdint.h>

#ifndef XS_CHUNK
/*
 * Bytes: a stripe (J5), and so the longest DATA payload that we send. By tests/c/bench_pump.c (2 GiB over loopback, two cores of an AMD EPYC with 1 MiB of L2
 * each, four runs): 128 KiB 0.9 to 1.4 GB/s, 256 KiB 1.2 to 1.4, 512 KiB 1.6 to 1.8, 1 MiB 1.6 to 1.8. The smallest of the best: a chunk
 * and its frame then fit in that cache, and a GO that falls behind one waits 4 ms on a line of 1 Gbit/s.
 */
#define XS_CHUNK ((size_t)512 << 10)
#endif

struct xs_pool;
struct xs_fifo;

/* A pool that gives out at most max chunks. NULL when there is no memory. */
struct xs_pool *xs_pool_new(size_t max);

/* Wipe and free every chunk and the pool, after the queues that use it; NULL is fine. */
void xs_pool_free(struct xs_pool *pool);

/* How many chunks the pool has mapped so far. */
size_t xs_pool_mapped(const struct xs_pool *pool);

/* How many chunks a queue of that limit (bytes) may hold at once. */
size_t xs_fifo_chunks(size_t limit);

/* An empty queue at offset 0 that holds at most limit bytes. NULL when there is no memory. */
struct xs_fifo *xs_fifo_new(struct xs_pool *pool, size_t limit);

/* Give its chunks back to the pool; NULL is fine. */
void xs_fifo_free(struct xs_fifo *fifo);

uint64_t xs_fifo_base(const struct xs_fifo *fifo);
uint64_t xs_fifo_tail(const struct xs_fifo *fifo);

/* How many bytes may still be appended, in as many pieces as it takes. */
size_t xs_fifo_room(const struct xs_fifo *fifo);

/* Contiguous room behind the tail: *len bytes of it. NULL, and *len 0, when the queue is full or memory is lacking. */
uint8_t *xs_fifo_space(struct xs_fifo *fifo, size_t *len);

/* The same at any offset from the tail to base + limit, to put bytes there out of turn. */
uint8_t *xs_fifo_place(struct xs_fifo *fifo, uint64_t offset, size_t *len);

/* len bytes have been put into the space. */
void xs_fifo_commit(struct xs_fifo *fifo, size_t len);

/* Append a copy of len bytes. Returns XS_OK, or XS_ENOMEM when they do not fit. */
int xs_fifo_append(struct xs_fifo *fifo, const uint8_t *bytes, size_t len);

/* The contiguous bytes from an offset between base and tail, *len of them; they never cross a chunk. NULL when there are none. */
const uint8_t *xs_fifo_slice(const struct xs_fifo *fifo, uint64_t offset, size_t *len);

/* Give back what lies before offset (between base and tail). */
void xs_fifo_release(struct xs_fifo *fifo, uint64_t offset);

/* Drop what is held and go on len bytes further: for a channel whose bytes nobody takes. */
void xs_fifo_skip(struct xs_fifo *fifo, size_t len);

#endif
