#include "elide.h"

#include <string.h>

#include "util.h"

enum {
    /*
     * Bytes from one look to the next while it is not known whether a frame has zeros. A run of PROBE + 7 bytes cannot hide between two looks,
     * and a zero page is eight times as long. By tests/c/bench_elide.c, random content of 512 KiB from the cache: a search costs about 2 % of
     * the time that sealing takes (at 10 GB/s); with 256, twice that.
     */
    PROBE = 512,

    /*
     * Zeros are elided where they are a sixteenth of a frame, and then looked for in every cache line: what is left is copied anyway. Three
     * recorded guests, ms of CPU a GiB at both ends and what is sent:
     *                               pv-bank        pv-g1          pv-128
     *   a sixteenth, every 512      31  72.2 %     42  61.0 %     37  65.0 %
     *   a sixteenth, every 64       34  71.7 %     45  60.4 %     50  60.3 %
     *   a 32nd, every 64            42  71.2 %     55  60.0 %     57  59.8 %
     *   all runs of 64 and more         70.9 %         59.9 %         59.8 %
     * One per cent of a GiB is 9 ms of 10 Gbit/s.
     */
    WORTH = 16,
    FINE = 64,

    /* Bytes: what memcpy is given at a time. Above 2 KiB glibc takes "rep movsb", which Zen runs at a third of the speed when misaligned. */
    COPY = 1024
};

struct run {
    size_t start, end;          /* offsets in the content */
};

/* The eight bytes at p, in the machine's own order: only 0 means something. */
static inline uint64_t load(const uint8_t *p)
{
    uint64_t v;

    memcpy(&v, p, sizeof(v));
    return v;
}

/* Where the zeros end that begin at an offset. */
static size_t zeros_end(const uint8_t *content, size_t len, size_t at)
{
    while (at + 64 <= len
           && (load(content + at) | load(content + at + 8) | load(content + at + 16) | load(content + at + 24)
               | load(content + at + 32) | load(content + at + 40) | load(content + at + 48) | load(content + at + 56)) == 0)
        at += 64;
    while (at + 8 <= len && load(content + at) == 0)
        at += 8;
    while (at < len && content[at] == 0)
        at++;
    return at;
}

/* Where the zeros begin that end at an offset; not before first. */
static size_t zeros_start(const uint8_t *content, size_t first, size_t at)
{
    while (at >= first + 8 && load(content + at - 8) == 0)
        at -= 8;
    while (at > first && content[at - 1] == 0)
        at--;
    return at;
}

/* The next run worth a piece, from an offset on, by a look every step bytes: 1, or 0 when there is none. It is maximal: no zero stands before it, nor
 * behind it unless it has enough of them. */
static inline int find_run(const uint8_t *content, size_t len, size_t from, size_t step, size_t enough, struct run *run)
{
    for (size_t at = from; at + 8 <= len; at += step) {
        if (load(content + at) != 0)
            continue;
        run->start = zeros_start(content, from, at);
        run->end = zeros_end(content, len - at - 8 > enough ? at + 8 + enough : len, at + 8);
        if (run->end - run->start >= XS_ELIDE_RUN_MIN)
            return 1;
    }
    return 0;
}

/* Are there runs enough? Looks no further than it must. */
static int is_worth_it(const uint8_t *content, size_t len)
{
    const size_t enough = len / WORTH + XS_ELIDE_RUN_MIN;
    struct run run = { 0, 0 };
    size_t zeros = 0;

    do {
        if (!find_run(content, len, run.end, PROBE, enough, &run))
            return 0;
        zeros += run.end - run.start;
    } while (zeros < len / WORTH);
    return 1;
}

/* Write one piece. Returns its length. */
static size_t put_piece(uint8_t *out, size_t zeros, const uint8_t *literals, size_t len)
{
    xs_store32(out, (uint32_t)zeros);
    xs_store32(out + 4, (uint32_t)len);
    out += XS_ELIDE_PIECE;
    for (size_t done = 0; done < len; done += COPY)
        memcpy(out + done, literals + done, xs_min(COPY, len - done));
    return XS_ELIDE_PIECE + len;
}

/*
 * The payload that stands for content, into out, which has room for len - 1 bytes. Returns its length, less than len; 0, with nothing
 * written, when its zeros are not worth it, and the content is to be sent as it is.
 */
size_t xs_elide_pack(const uint8_t *content, size_t len, uint8_t *out)
{
    struct run run, next;
    size_t written = 0;

    if (!is_worth_it(content, len) || !find_run(content, len, 0, FINE, len, &run))
        return 0;
    if (run.start > 0)
        written = put_piece(out, 0, content, run.start);
    /* Room: every run leaves out 64 bytes or more and costs 8, and what stood before the first one has cost 8 more. */
    while (find_run(content, len, run.end, FINE, len, &next)) {
        written += put_piece(out + written, run.end - run.start, content + run.end, next.start - run.end);
        run = next;
    }
    return written + put_piece(out + written, run.end - run.start, content + run.end, len - run.end);
}

/* How long the content is that a payload stands for; 0 when F15 refuses the payload. */
size_t xs_elide_measure(const uint8_t *payload, size_t len)
{
    size_t content = 0, at = 0;

    while (at < len) {
        size_t zeros, literals, first = at + XS_ELIDE_PIECE;

        if (len - at < XS_ELIDE_PIECE)
            return 0;
        zeros = xs_load32(payload + at);
        literals = xs_load32(payload + at + 4);
        if (literals > len - first || zeros > XS_PAYLOAD_MAX - content || literals > XS_PAYLOAD_MAX - content - zeros)
            return 0;
        if (zeros < XS_ELIDE_RUN_MIN && (zeros != 0 || at != 0))
            return 0;
        at = first + literals;
        if (literals == 0 && at != len)
            return 0;
        /* Runs are whole: no zero behind this one, none before the next. */
        if (literals > 0 && ((zeros != 0 && payload[first] == 0) || (at != len && payload[at - 1] == 0)))
            return 0;
        content += zeros + literals;
    }
    return content > len ? content : 0;
}

/* The content of a payload that xs_elide_measure has found good: as many bytes as it said, into out. */
void xs_elide_unpack(const uint8_t *payload, size_t len, uint8_t *out)
{
    size_t at = 0;

    while (at < len) {
        size_t zeros = xs_load32(payload + at), literals = xs_load32(payload + at + 4);

        memset(out, 0, zeros);
        memcpy(out + zeros, payload + at + XS_ELIDE_PIECE, literals);
        out += zeros + literals;
        at += XS_ELIDE_PIECE + literals;
    }
}
