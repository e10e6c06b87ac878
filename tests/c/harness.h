/* The tests' harness: CHECK, a list of tests, seeded randomness. A failed CHECK ends the program: there is nothing to go on with. */
#ifndef XS_HARNESS_H
#define XS_HARNESS_H

#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "../../csrc/engine.h"

#define CHECK(condition)                                                                              \
    do {                                                                                              \
        if (!(condition)) {                                                                           \
            fprintf(stderr, "%s:%d: failed: %s\n", __FILE__, __LINE__, #condition);                   \
            abort();                                                                                  \
        }                                                                                             \
    } while (0)

#define RUN(test)                                                                                     \
    do {                                                                                              \
        printf("  %s\n", #test);                                                                      \
        fflush(stdout);                                                                               \
        test();                                                                                       \
    } while (0)

/* SplitMix64 (Steele, Lea, Flood 2014): small, and the same on every machine. */
static inline uint64_t random64(uint64_t *state)
{
    uint64_t z = (*state += 0x9e3779b97f4a7c15ULL);

    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9ULL;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebULL;
    return z ^ (z >> 31);
}

/* A number below limit. */
static inline size_t random_below(uint64_t *state, size_t limit)
{
    return (size_t)(random64(state) % limit);
}

/* The byte at an offset of a test stream: every position is told from its neighbours, and from those 256 and 64 Ki further. */
static inline uint8_t stream_byte(uint64_t offset)
{
    return (uint8_t)(offset ^ (offset >> 8) * 3 ^ (offset >> 16) * 5);
}

/* Bytes from hexadecimal text; returns their count. */
static inline size_t unhex(const char *text, uint8_t *out)
{
    size_t n = 0;
    unsigned value;

    for (; text[0] != '\0'; text += 2, n++) {
        CHECK(sscanf(text, "%2x", &value) == 1);
        out[n] = (uint8_t)value;
    }
    return n;
}

#endif
