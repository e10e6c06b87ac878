/*
 * Throughput of the engine: writer -> pipe -> source pump -> TCP over loopback -> destination pump -> pipe -> reader, four processes.
 * The writer writes as libxc does (one writev of 4 MiB and a header a record: xl-contract, xg_sr_save.c), the reader reads 4 MiB at a time.
 *
 *   bench_pump [MiB] [engine | whole | auto | zstd | bare] [zero pages in a hundred] [backend | best] [lanes] [Mbit/s]
 *     Mbit/s: what each connection may take (SO_MAX_PACING_RATE), as one that a long way holds back
 *     whole: without eliding; auto, zstd: with compression; bare: the same four processes, with read and write in the pumps' place
 *   XS_STREAM_UP may name a captured stream, which is then written over and over in the pages' place.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/random.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "../../csrc/engine.h"

enum { PAGES = 8 * 4096 /* bytes: zero pages stand together */, RECORD = 4 << 20, RECORD_HEADER = 8 + 1024 * 8 /* one record's pfns */, BARE = 256 << 10 };

static double now(void)
{
    struct timespec t;

    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + (double)t.tv_nsec / 1e9;
}

static void die(const char *what)
{
    perror(what);
    _exit(1);
}

static void write_whole(int fd, const uint8_t *p, size_t len)
{
    while (len > 0) {
        ssize_t n = write(fd, p, len);

        if (n < 0)
            die("write");
        p += n;
        len -= (size_t)n;
    }
}

static void write_record(int fd, uint8_t *header, const uint8_t *pages, size_t len)
{
    struct iovec v[2] = { { header, RECORD_HEADER }, { (void *)pages, len } };
    ssize_t n = writev(fd, v, 2);

    if (n < 0)
        die("writev");
    if ((size_t)n < RECORD_HEADER)
        write_whole(fd, header + n, RECORD_HEADER - (size_t)n), n = RECORD_HEADER;
    write_whole(fd, pages + (n - RECORD_HEADER), len - ((size_t)n - RECORD_HEADER));
}

/* A captured stream; NULL if none is named. Read before the clock starts. */
static uint8_t *load_stream(size_t *size)
{
    const char *path = getenv("XS_STREAM_UP");
    int file = path == NULL ? -1 : open(path, O_RDONLY | O_CLOEXEC);
    struct stat status;
    uint8_t *stream;

    if (path == NULL)
        return NULL;
    if (file < 0 || fstat(file, &status) != 0)
        die(path);
    *size = (size_t)status.st_size;
    stream = mmap(NULL, *size, PROT_READ, MAP_SHARED | MAP_POPULATE, file, 0);
    if (stream == MAP_FAILED)
        die("mmap");
    close(file);
    return stream;
}

/* That stream, so many times over that it is at least so long. */
static void replay(int fd, const uint8_t *stream, size_t size, size_t mib)
{
    for (size_t done = 0; done < mib << 20; done += size) {
        size_t at = 0;

        for (; size - at >= RECORD_HEADER + RECORD; at += RECORD_HEADER + RECORD)
            write_record(fd, (uint8_t *)stream + at, stream + at + RECORD_HEADER, RECORD);
        write_whole(fd, stream + at, size - at);
    }
    _exit(0);
}

static void writer(int fd, size_t mib, size_t zero_percent)
{
    static uint8_t header[RECORD_HEADER], page[RECORD];
    size_t left = mib << 20;

    if (getrandom(page, 256, 0) != 256)
        die("getrandom");
    for (size_t i = 256; i < RECORD; i++)
        page[i] = (uint8_t)(page[i - 256] * 5 + page[i - 255] + 1);
    for (size_t i = 0; i < RECORD / PAGES; i++)
        if (i * 37 % 100 < zero_percent)
            memset(page + i * PAGES, 0, PAGES);
    while (left > 0) {
        size_t len = left < RECORD ? left : RECORD;

        write_record(fd, header, page, len);
        left -= len;
    }
    _exit(0);
}

static void pump(int role, const int *socket, int lanes, const int fd[3], const char *mode, const char *backend)
{
    struct xs_pump_options o = { .role = role, .wake_fd = -1, .elide = strcmp(mode, "whole") != 0, .keepalive_ms = 10000, .silence_ms = 60000 };
    struct xs_link_keys keys;
    struct xs_stats stats;
    struct xs_pump *p;
    int rc;

    o.compress = strcmp(mode, "zstd") == 0 ? XS_COMPRESS_ZSTD : strcmp(mode, "auto") == 0 ? XS_COMPRESS_AUTO : XS_COMPRESS_OFF;
    memset(&keys, 7, sizeof(keys));
    memset(role == XS_SOURCE ? keys.send_key : keys.receive_key, 9, 32);
    for (int c = 0; c < 3; c++) {
        o.channel_fd[c] = fd[c];
        o.send_window[c] = o.receive_window[c] = c == 0 ? 64 << 20 : 1 << 20;
    }
    if (role == XS_DESTINATION)
        fcntl(fd[0], F_SETFL, O_NONBLOCK);
    p = xs_pump_new(&o);
    for (int l = 0; l < lanes; l++) {
        fcntl(socket[l], F_SETFL, O_NONBLOCK);
        xs_pump_attach(p, xs_link_new(backend, &keys, 1ULL << 32), socket[l]);
    }
    while ((rc = xs_pump_run(p, -1)) != XS_EV_ENDED) {
        if (rc == XS_EV_INPUT_ENDED)
            close(fd[0]);
        else if (rc == XS_EV_OUTPUTS_ENDED)
            xs_pump_exit(p, 0, 0);
        else if (rc != XS_EV_PHASE)
            break;
    }
    xs_pump_stats(p, &stats);
    if (rc != XS_EV_ENDED)
        fprintf(stderr, "pump %d: %d lost %d errno %d\n", role, rc, stats.lost, stats.system_errno);
    else
        printf("%s: %llu frames sent, %llu received, %.2f GB of them sent\n", role == XS_SOURCE ? "source" : "destination",
               (unsigned long long)stats.frames_sent, (unsigned long long)stats.frames_received, (double)stats.link_sent / 1e9);
    fflush(stdout);
    xs_pump_free(p);
    _exit(rc != XS_EV_ENDED);
}

static void bare(int in, int out)
{
    static uint8_t buffer[BARE];
    ssize_t n;

    fcntl(in, F_SETPIPE_SZ, 1 << 20);
    fcntl(out, F_SETPIPE_SZ, 1 << 20);
    while ((n = read(in, buffer, sizeof(buffer))) > 0)
        write_whole(out, buffer, (size_t)n);
    _exit(0);
}

static void close_all(const int *fd, int n)
{
    while (n-- > 0)
        close(fd[n]);
}

static void tcp_pair(int fd[2], unsigned mbits)
{
    unsigned rate = mbits * (1000000 / 8);
    struct sockaddr_in a = { .sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK) };
    socklen_t len = sizeof(a);
    int listener = socket(AF_INET, SOCK_STREAM, 0);

    if (bind(listener, (struct sockaddr *)&a, sizeof(a)) != 0 || listen(listener, 1) != 0
        || getsockname(listener, (struct sockaddr *)&a, &len) != 0)
        die("listen");
    fd[0] = socket(AF_INET, SOCK_STREAM, 0);
    if (connect(fd[0], (struct sockaddr *)&a, sizeof(a)) != 0)
        die("connect");
    fd[1] = accept(listener, NULL, NULL);
    close(listener);
    if (mbits > 0 && setsockopt(fd[0], SOL_SOCKET, SO_MAX_PACING_RATE, &rate, sizeof(rate)) != 0)
        die("SO_MAX_PACING_RATE");
}

int main(int argc, char **argv)
{
    size_t mib = argc > 1 ? strtoul(argv[1], NULL, 10) : 2048, got = 0;
    const char *mode = argc > 2 ? argv[2] : "engine";
    int is_bare = strcmp(mode, "bare") == 0;
    size_t zero_percent = argc > 3 ? strtoul(argv[3], NULL, 10) : 0;
    const char *backend = argc > 4 && strcmp(argv[4], "best") != 0 ? argv[4] : NULL;
    int lanes = argc > 5 ? atoi(argv[5]) : 1, s[2][XS_LANES_MAX];
    int up[2], down[2], out[2], err[2], null = open("/dev/null", O_RDWR | O_CLOEXEC), failed = 0, status;
    size_t size = 0;
    uint8_t *buffer = malloc(RECORD), *stream = load_stream(&size);
    struct rusage use;
    pid_t writes, source, destination;
    double start, took;
    ssize_t n;

    signal(SIGPIPE, SIG_IGN);
    if (pipe(up) != 0 || pipe(down) != 0 || pipe(out) != 0 || pipe(err) != 0)
        die("pipe");
    for (int l = 0; l < lanes; l++) {
        int both[2];

        tcp_pair(both, argc > 6 ? (unsigned)atoi(argv[6]) : 0);
        s[0][l] = both[0];
        s[1][l] = both[1];
    }
    start = now();
    if ((writes = fork()) == 0) {
        close(up[0]), close(down[0]), close(down[1]), close_all(s[0], lanes), close_all(s[1], lanes), close(out[1]), close(err[1]);
        if (stream != NULL)
            replay(up[1], stream, size, mib);
        writer(up[1], mib, zero_percent);
    }
    if ((source = fork()) == 0) {
        close(up[1]), close(down[0]), close(down[1]), close_all(s[1], lanes), close(out[1]), close(err[1]);
        if (is_bare)
            bare(up[0], s[0][0]);
        pump(XS_SOURCE, s[0], lanes, (int[]){ up[0], null, null }, mode, backend);
    }
    if ((destination = fork()) == 0) {
        close(up[0]), close(up[1]), close(down[0]), close_all(s[0], lanes), close(out[1]), close(err[1]);
        if (is_bare)
            bare(s[1][0], down[1]);
        pump(XS_DESTINATION, s[1], lanes, (int[]){ down[1], out[0], err[0] }, mode, backend);
    }
    close(up[0]), close(up[1]), close(down[1]), close_all(s[0], lanes), close_all(s[1], lanes);
    while ((n = read(down[0], buffer, RECORD)) > 0)
        got += (size_t)n;
    took = now() - start;
    close(out[1]), close(err[1]);
    for (int i = 0; i < 3; i++) {
        const pid_t pid[3] = { writes, source, destination };

        wait4(pid[i], &status, 0, &use);
        failed |= status;
        printf("%s: cpu %.2f s user, %.2f s system\n", (const char *[]){ "writer", "source", "destination" }[i],
               (double)use.ru_utime.tv_sec + (double)use.ru_utime.tv_usec / 1e6,
               (double)use.ru_stime.tv_sec + (double)use.ru_stime.tv_usec / 1e6);
    }
    printf("%s: %.2f GB in %.2f s: %.2f GB/s\n", mode, (double)got / 1e9, took,
           (double)got / 1e9 / took);
    free(buffer);
    return failed != 0;
}
