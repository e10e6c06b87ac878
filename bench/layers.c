/*
 * What each layer of the engine costs by itself: CPU seconds a GiB of content, in pieces of a chunk, the best of several turns.
 *
 *   layers BACKEND...     prints "NAME SECONDS" lines; a backend that is not there is left out
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#include "../csrc/engine.h"
#if __has_include("../csrc/elide.h")
#include "../csrc/elide.h"
#define HAS_ELIDE
#endif

enum {
    CHUNK = 512 << 10,          /* bytes of a DATA frame: XS_CHUNK */
    TURN = 128,                 /* chunks a turn: 64 MiB */
    TURNS = 7,
    PIPE_SIZE = 512 << 10,      /* as xensecure asks for */
    PAGE = 4096
};

static uint8_t content[CHUNK], other[CHUNK], frame[XS_HEADER_LEN + CHUNK + XS_TAG_LEN];

static void die(const char *what)
{
    perror(what);
    exit(1);
}

/* CPU time of this process, seconds. */
static double now(void)
{
    struct timespec t;

    (void)clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &t);
    return (double)t.tv_sec + (double)t.tv_nsec / 1e9;
}

/* Random pages, that many in a hundred of them zero, in runs of eight. */
static void fill(size_t percent)
{
    for (size_t at = 0; at < CHUNK; at += 256)
        if (getrandom(content + at, 256, 0) != 256)
            die("getrandom");
    for (size_t run = 0; run < CHUNK / (8 * PAGE); run++)
        if (run * 100 / (CHUNK / (8 * PAGE)) < percent)
            memset(content + run * 8 * PAGE, 0, 8 * PAGE);
}

/* A layer: does two things with a chunk, and adds to spent what each has taken. */
typedef void layer(void *context, double spent[2]);

/* The best turn of a layer, seconds a GiB, of its two parts. */
static void measure(const char *first, const char *second, const char *suffix, layer *step, void *context)
{
    double best[2] = { 1e9, 1e9 };

    for (int turn = 0; turn < TURNS; turn++) {
        double spent[2] = { 0, 0 };

        for (int i = 0; i < TURN; i++)
            step(context, spent);
        for (int part = 0; part < 2; part++)
            best[part] = spent[part] < best[part] ? spent[part] : best[part];
    }
    for (int part = 0; part < 2; part++)
        printf("%s%s %.6f\n", part == 0 ? first : second, suffix, best[part] * (1 << 30) / ((double)CHUNK * TURN));
}

static void cipher(void *context, double spent[2])
{
    struct xs_link **links = context;
    struct xs_header header = { .type = XS_DATA, .length = CHUNK };
    double start = now(), middle;

    if (xs_link_seal(links[0], &header, content, frame) != XS_OK)
        die("seal");
    middle = now();
    if (xs_link_open(links[1], frame, &header, other) != XS_OK)
        die("open");
    spent[0] += middle - start;
    spent[1] += now() - middle;
}

static void cipher_by(const char *backend)
{
    struct xs_link_keys keys = { .send_key = { 1 }, .receive_key = { 1 } };     /* the second link opens what the first has sealed */
    struct xs_link *links[2] = { xs_link_new(backend, &keys, 1ULL << 32), xs_link_new(backend, &keys, 1ULL << 32) };
    char suffix[64];

    (void)snprintf(suffix, sizeof(suffix), " %s", backend);
    if (links[0] != NULL && links[1] != NULL)
        measure("seal", "open", suffix, cipher, links);
    xs_link_free(links[0]);
    xs_link_free(links[1]);
}

/* Through a pipe or a socket pair, as much at a time as it takes. */
static void through(void *context, double spent[2])
{
    const int *fd = context;

    for (size_t sent = 0, got = 0; got < CHUNK;) {
        double start = now(), middle;
        ssize_t n;

        while (sent < CHUNK && (n = write(fd[1], content + sent, CHUNK - sent)) > 0)
            sent += (size_t)n;
        middle = now();
        while (got < sent && (n = read(fd[0], other, CHUNK)) > 0)
            got += (size_t)n;
        spent[0] += middle - start;
        spent[1] += now() - middle;
    }
}

static void descriptors(void)
{
    int fd[2];

    if (pipe2(fd, O_NONBLOCK) != 0 || fcntl(fd[1], F_SETPIPE_SZ, PIPE_SIZE) < 0)
        die("pipe");
    measure("write", "read", " pipe", through, fd);
    close(fd[0]), close(fd[1]);
    if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK, 0, fd) != 0)
        die("socketpair");
    measure("send", "receive", " socketpair", through, fd);
    close(fd[0]), close(fd[1]);
}

#ifdef HAS_ELIDE
static void elide(void *context, double spent[2])
{
    double start = now(), middle;
    size_t len = xs_elide_pack(content, CHUNK, frame);

    (void)context;
    middle = now();
    if (len > 0)
        xs_elide_unpack(frame, len, other);
    spent[0] += middle - start;
    spent[1] += now() - middle;
}
#endif

int main(int argc, char **argv)
{
    fill(0);
    for (int i = 1; i < argc; i++)
        cipher_by(argv[i]);
    descriptors();
#ifdef HAS_ELIDE
    for (size_t percent = 0; percent <= 100; percent += 50) {
        char suffix[64];

        (void)snprintf(suffix, sizeof(suffix), " %zu %% zero pages", percent);
        fill(percent);
        measure("elide", "put back", suffix, elide, NULL);
    }
#endif
    return 0;
}
