/*
 * Both ends of a measured transport.
 *
 *   programs write MIB    write random pages as libxc does: one writev of 4 MiB and its header a record (xg_sr_save.c)
 *   programs …            anything else (the receiving xl's arguments): print xl's banner, read 4 MiB at a time to the end, and say on
 *                         standard error how many bytes came
 */
#define _GNU_SOURCE
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>
#include <sys/uio.h>
#include <unistd.h>

enum {
    RECORD = 4 << 20,            /* 1024 pages */
    RECORD_HEADER = 16 + 1024 * 8, /* type, length, count, and one page frame number a page */
    POOL = 16 << 20,             /* random bytes to write from */
};

/* tools/xl/xl_migrate.c */
static const char banner[] = "xl migration receiver ready, send binary domain data.\n";

static void die(const char *what)
{
    perror(what);
    exit(1);
}

static void write_whole(const uint8_t *p, size_t len)
{
    while (len > 0) {
        ssize_t n = write(1, p, len);

        if (n < 0)
            die("write");
        p += n;
        len -= (size_t)n;
    }
}

static void write_record(const uint8_t *header, const uint8_t *pages)
{
    struct iovec v[2] = { { (void *)header, RECORD_HEADER }, { (void *)pages, RECORD } };
    ssize_t n = writev(1, v, 2);
    size_t done;

    if (n < 0)
        die("writev");
    done = (size_t)n;
    if (done < RECORD_HEADER) {
        write_whole(header + done, RECORD_HEADER - done);
        done = RECORD_HEADER;
    }
    write_whole(pages + (done - RECORD_HEADER), RECORD + RECORD_HEADER - done);
}

static int write_pages(size_t mib)
{
    static uint8_t pool[POOL + RECORD], header[RECORD_HEADER];
    size_t at;

    for (at = 0; at < sizeof(pool);) {
        ssize_t n = getrandom(pool + at, sizeof(pool) - at, 0);

        if (n < 0)
            die("getrandom");
        at += (size_t)n;
    }
    at = 0;
    for (size_t left = mib << 20; left >= RECORD; left -= RECORD) {
        write_record(header, pool + at);
        at = (at + RECORD) % POOL;
    }
    return 0;
}

static int read_all(void)
{
    uint8_t *buffer = malloc(RECORD);
    unsigned long long got = 0;
    ssize_t n;

    if (buffer == NULL)
        die("malloc");
    write_whole((const uint8_t *)banner, sizeof(banner) - 1);
    while ((n = read(0, buffer, RECORD)) > 0)
        got += (size_t)n;
    if (n < 0)
        die("read");
    fprintf(stderr, "received %llu bytes\n", got);
    free(buffer);
    return 0;
}

int main(int argc, char **argv)
{
    if (argc == 3 && strcmp(argv[1], "write") == 0)
        return write_pages(strtoul(argv[2], NULL, 10));
    return read_all();
}
