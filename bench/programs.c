/*
 * Both ends of a measured transport, and the least that a transport can do.
 *
 *   programs write MIB             write random pages as libxc does: one writev of 4 MiB and its header a record (xg_sr_save.c)
 *   programs write FILE TIMES      write a recorded stream so many times over, in pieces as large; both stop themselves (SIGSTOP) when
 *                                  their bytes are in memory, and write once they are continued
 *   programs unix PATH             serve connections to a unix socket: each gets a receiving program on it
 *   programs listen ADDRESS PORT   a bare pump: take TCP connections, and write what comes into a receiving program's pipe
 *   programs connect ADDRESS PORT  its other end: standard input to a TCP connection, and back
 *   programs …                     anything else (the receiving xl's arguments): print xl's banner, read 4 MiB at a time to the end, then say
 *                                  how many bytes came and what CPU time that took
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <fcntl.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/random.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

enum {
    RECORD = 4 << 20,            /* 1024 pages */
    RECORD_HEADER = 16 + 1024 * 8, /* type, length, count, and one page frame number a page */
    POOL = 16 << 20,             /* random bytes to write from */
    BARE = 512 << 10,            /* what a bare pump reads at most: as much as xensecure puts into a frame */
    PIPE_SIZE = 1 << 20,         /* as xensecure asks for */
};

/* tools/xl/xl_migrate.c */
static const char banner[] = "xl migration receiver ready, send binary domain data.\n";

static void die(const char *what)
{
    perror(what);
    exit(1);
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

/* ---- the sending program */

/* Everything is in memory: stop until whoever measures says go on. */
static void wait_for_go(void)
{
    if (raise(SIGSTOP) != 0)
        die("raise");
}

static void write_record(const uint8_t *header, const uint8_t *pages, size_t len)
{
    struct iovec v[2] = { { (void *)header, RECORD_HEADER }, { (void *)pages, len } };
    ssize_t n = writev(1, v, 2);
    size_t done;

    if (n < 0)
        die("writev");
    done = (size_t)n;
    if (done < RECORD_HEADER) {
        write_whole(1, header + done, RECORD_HEADER - done);
        done = RECORD_HEADER;
    }
    write_whole(1, pages + (done - RECORD_HEADER), len + RECORD_HEADER - done);
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
    wait_for_go();
    for (size_t left = mib << 20; left >= RECORD; left -= RECORD) {
        write_record(header, pool + at, RECORD);
        at = (at + RECORD) % POOL;
    }
    return 0;
}

static int write_file(const char *path, size_t times)
{
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    struct stat status;
    const uint8_t *stream;
    size_t len;

    if (fd < 0 || fstat(fd, &status) != 0)
        die(path);
    len = (size_t)status.st_size;
    stream = mmap(NULL, len, PROT_READ, MAP_SHARED | MAP_POPULATE, fd, 0);
    if (stream == MAP_FAILED)
        die("mmap");
    wait_for_go();
    for (; times > 0; times--) {
        size_t at = 0;

        for (; len - at >= RECORD_HEADER + RECORD; at += RECORD_HEADER + RECORD)
            write_record(stream + at, stream + at + RECORD_HEADER, RECORD);
        write_whole(1, stream + at, len - at);
    }
    return 0;
}

/* ---- the receiving program */

static int read_all(void)
{
    uint8_t *buffer = malloc(RECORD);
    unsigned long long got = 0;
    struct rusage use;
    char word[80];
    ssize_t n;
    int len;

    if (buffer == NULL)
        die("malloc");
    write_whole(1, (const uint8_t *)banner, sizeof(banner) - 1);
    while ((n = read(0, buffer, RECORD)) > 0)
        got += (size_t)n;
    if (n < 0)
        die("read");
    getrusage(RUSAGE_SELF, &use);
    len = snprintf(word, sizeof(word), "received %llu bytes in %lld us\n", got,
                   (long long)(use.ru_utime.tv_sec + use.ru_stime.tv_sec) * 1000000 + use.ru_utime.tv_usec + use.ru_stime.tv_usec);
    write_whole(1, (const uint8_t *)word, (size_t)len);
    free(buffer);
    return 0;
}

static int serve_unix(const char *path)
{
    struct sockaddr_un a = { .sun_family = AF_UNIX };
    int listener = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0), fd;

    strncpy(a.sun_path, path, sizeof(a.sun_path) - 1);
    if (bind(listener, (struct sockaddr *)&a, sizeof(a)) != 0 || listen(listener, 8) != 0)
        die(path);
    while ((fd = accept(listener, NULL, NULL)) >= 0) {
        pid_t pid = fork();

        if (pid == 0) {
            dup2(fd, 0), dup2(fd, 1);
            close(fd), close(listener);
            _exit(read_all());
        }
        close(fd);
        waitpid(pid, NULL, 0);
    }
    die("accept");
    return 1;
}

/* ---- the bare pump */

static void copy(int in, int out)
{
    static uint8_t buffer[BARE];
    ssize_t n;

    (void)fcntl(in, F_SETPIPE_SZ, PIPE_SIZE);   /* fails for what is no pipe */
    (void)fcntl(out, F_SETPIPE_SZ, PIPE_SIZE);
    while ((n = read(in, buffer, sizeof(buffer))) > 0)
        write_whole(out, buffer, (size_t)n);
    if (n < 0)
        die("read");
}

static struct sockaddr_in address_of(const char *address, const char *port)
{
    struct sockaddr_in a = { .sin_family = AF_INET, .sin_port = htons((uint16_t)strtoul(port, NULL, 10)) };

    if (inet_pton(AF_INET, address, &a.sin_addr) != 1)
        die(address);
    return a;
}

/* One connection: what comes goes through a pipe, as into xl's standard input; what the receiving program says goes back without one. */
static int bare_session(int fd)
{
    int to[2], status;
    pid_t pid;

    if (pipe(to) != 0 || (pid = fork()) < 0)
        die("pipe");
    if (pid == 0) {
        dup2(to[0], 0), dup2(fd, 1);
        close(to[0]), close(to[1]), close(fd);
        _exit(read_all());
    }
    close(to[0]);
    copy(fd, to[1]);
    close(to[1]);
    waitpid(pid, &status, 0);
    return status != 0;
}

static int bare_listen(const char *address, const char *port)
{
    struct sockaddr_in a = address_of(address, port);
    int on = 1, listener = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0), fd;

    if (setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &on, sizeof(on)) != 0 || bind(listener, (struct sockaddr *)&a, sizeof(a)) != 0
        || listen(listener, 8) != 0)
        die("listen");
    while ((fd = accept(listener, NULL, NULL)) >= 0) {
        pid_t pid = fork();

        if (pid == 0)
            _exit(bare_session(fd));
        close(fd);
        waitpid(pid, NULL, 0);
    }
    die("accept");
    return 1;
}

static int bare_connect(const char *address, const char *port)
{
    struct sockaddr_in a = address_of(address, port);
    int fd = socket(AF_INET, SOCK_STREAM, 0), status;
    pid_t pid;

    if (connect(fd, (struct sockaddr *)&a, sizeof(a)) != 0)
        die("connect");
    pid = fork();
    if (pid == 0) {
        close(0);
        copy(fd, 1);
        _exit(0);
    }
    copy(0, fd);
    shutdown(fd, SHUT_WR);
    waitpid(pid, &status, 0);
    return status != 0;
}

int main(int argc, char **argv)
{
    const char *mode = argc > 1 ? argv[1] : "";

    if (argc == 3 && strcmp(mode, "write") == 0)
        return write_pages(strtoul(argv[2], NULL, 10));
    if (argc == 4 && strcmp(mode, "write") == 0)
        return write_file(argv[2], strtoul(argv[3], NULL, 10));
    if (argc == 3 && strcmp(mode, "unix") == 0)
        return serve_unix(argv[2]);
    if (argc == 4 && strcmp(mode, "listen") == 0)
        return bare_listen(argv[2], argv[3]);
    if (argc == 4 && strcmp(mode, "connect") == 0)
        return bare_connect(argv[2], argv[3]);
    return read_all();
}
