/*
 * In libFuzzer's place: runs a target over a corpus, and then over so many inputs that are made of it, the same in every run.
 *   TARGET CORPUS [RUNS]
 * A corpus is a text file: a line an input, in hexadecimal; "#" begins a comment.
 */
#include "fuzz.h"

enum { LONGEST = 1 << 13, MOST = 1 << 14 };

static uint8_t *inputs[MOST];
static size_t lengths[MOST];
static size_t count;

static void read_corpus(const char *path)
{
    static char line[2 * LONGEST + 4];
    FILE *file = fopen(path, "r");

    CHECK(file != NULL);
    while (fgets(line, sizeof(line), file) != NULL) {
        size_t len = strcspn(line, " #\r\n");

        CHECK(len % 2 == 0 && len / 2 <= LONGEST && count < MOST);
        if (line[0] == '#')
            continue;
        line[len] = '\0';
        inputs[count] = malloc(len / 2 + 1);
        lengths[count] = unhex(line, inputs[count]);
        count++;
    }
    CHECK(fclose(file) == 0 && count > 0);
}

/* Bytes changed, put in, left out; the end of another input. */
static size_t mutate(uint64_t *seed, uint8_t *buffer)
{
    size_t from = random_below(seed, count), len = lengths[from];

    memcpy(buffer, inputs[from], len);
    for (size_t n = 1 + random_below(seed, 4); n > 0; n--) {
        size_t at = len > 0 ? random_below(seed, len) : 0, other = random_below(seed, count);

        switch (random_below(seed, 5)) {
        case 0:
            if (len > 0)
                buffer[at] ^= (uint8_t)(1 << random_below(seed, 8));
            break;
        case 1:
            if (len > 0)
                buffer[at] = (uint8_t)random64(seed);
            break;
        case 2:
            if (len > 0) {
                memmove(buffer + at, buffer + at + 1, len - at - 1);
                len--;
            }
            break;
        case 3:
            if (len < LONGEST) {
                memmove(buffer + at + 1, buffer + at, len - at);
                buffer[at] = (uint8_t)random64(seed);
                len++;
            }
            break;
        case 4:
            if (lengths[other] > 0) {
                size_t start = random_below(seed, lengths[other]), more = xs_min(lengths[other] - start, LONGEST - at);

                memcpy(buffer + at, inputs[other] + start, more);
                len = at + more;
            }
            break;
        }
    }
    return len;
}

int main(int argc, char **argv)
{
    static uint8_t buffer[LONGEST];
    size_t runs = argc > 2 ? (size_t)atol(argv[2]) : 0;
    uint64_t seed = 1;

    CHECK(argc > 1);
    read_corpus(argv[1]);
    for (size_t i = 0; i < count; i++) {
        uint8_t *copy = exactly(inputs[i], lengths[i]);

        (void)LLVMFuzzerTestOneInput(copy, lengths[i]);
        free(copy);
    }
    for (size_t i = 0; i < runs; i++) {
        size_t len = mutate(&seed, buffer);
        uint8_t *copy = exactly(buffer, len);

        (void)LLVMFuzzerTestOneInput(copy, len);
        free(copy);
    }
    printf("  %zu of the corpus, %zu made of it\n", count, runs);
    for (size_t i = 0; i < count; i++)
        free(inputs[i]);
    return 0;
}
