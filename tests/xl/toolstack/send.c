#define _GNU_SOURCE
#include "stream.h"

#include <errno.h>
#include <fcntl.h>
#include <libxl.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

#include "books.h"

#define RATE_CHUNK 65536         /* bytes: the kernel's own pipe size */

struct sender {
    int fd;
    uint32_t domid;
    const uint8_t *map;
    size_t size;
    size_t final;                /* offset from which the guest has to be suspended */
    uint64_t bytes;              /* written so far */
    uint64_t fail_at, point_at, rate;
    struct timespec start;
    EVP_MD_CTX *md;              /* with Remus only */
};

static int write_all(struct sender *sender, const uint8_t *data, size_t size)
{
    ssize_t done;

    while (size > 0) {
        done = write(sender->fd, data, size);
        if (done < 0 && errno == EINTR)
            continue;
        if (done < 0) {
            fprintf(stderr, "xc: error: Failed to write to the stream (%d = %s)\n", errno,
                    strerror(errno));
            return ERROR_FAIL;
        }
        sender->bytes += (uint64_t)done;
        data += done;
        size -= (size_t)done;
    }
    return 0;
}

/* Step over done bytes; returns how many vectors are used up. */
static int advance(struct iovec *vectors, size_t done)
{
    int used = 0;

    while (done && done >= vectors[used].iov_len)
        done -= vectors[used++].iov_len;
    vectors[used].iov_base = (uint8_t *)vectors[used].iov_base + done;
    vectors[used].iov_len -= done;
    return used;
}

static int writev_all(struct sender *sender, struct iovec *vectors, int count)
{
    ssize_t done;
    int used;

    while (count > 0) {
        /* libxc splits its writev the same way, for 1024 pages take 1028 vectors. */
        done = writev(sender->fd, vectors, count < IOV_MAX ? count : IOV_MAX);
        if (done < 0 && errno == EINTR)
            continue;
        if (done < 0)
            return ERROR_FAIL;
        sender->bytes += (uint64_t)done;
        used = advance(vectors, (size_t)done);
        vectors += used;
        count -= used;
    }
    return 0;
}

/* A PAGE_DATA record goes out like libxc's: header, count, pfns, one vector a page. */
static int write_pages(struct sender *sender, const uint8_t *record, size_t size)
{
    struct iovec vectors[STREAM_BATCH + 3 + 1 /* end mark for advance() */];
    const uint8_t *here = record + 16;
    uint32_t pfns;
    int count = 0;

    memcpy(&pfns, record + 8, sizeof(pfns));
    vectors[count++] = (struct iovec){(void *)record, 8};
    vectors[count++] = (struct iovec){(void *)(record + 8), 8};
    vectors[count++] = (struct iovec){(void *)here, 8ul * pfns};
    for (here += 8ul * pfns; here < record + size; here += STREAM_PAGE)
        vectors[count++] = (struct iovec){(void *)here, STREAM_PAGE};
    vectors[count] = (struct iovec){NULL, SIZE_MAX};
    return writev_all(sender, vectors, count);
}

static double elapsed(const struct sender *sender)
{
    struct timespec now;

    clock_gettime(CLOCK_MONOTONIC, &now);
    return (double)(now.tv_sec - sender->start.tv_sec)
           + (double)(now.tv_nsec - sender->start.tv_nsec) / 1e9;
}

static void keep_rate(const struct sender *sender)
{
    double early = (double)sender->bytes / (double)sender->rate - elapsed(sender);

    if (sender->rate && early > 0)
        usleep((useconds_t)(early * 1e6));
}

/* Write with the fault points in it: in pieces that end where a fault is due. */
static int write_slowly(struct sender *sender, const uint8_t *data, size_t size)
{
    size_t piece;
    int rc = 0;

    while (!rc && size > 0) {
        if (sender->bytes == sender->point_at) {
            books_point("suspend");
            sender->point_at = BOOKS_NONE;
        }
        if (sender->bytes == sender->fail_at)
            return ERROR_FAIL;
        piece = sender->rate && size > RATE_CHUNK ? RATE_CHUNK : size;
        if (sender->point_at - sender->bytes < piece)
            piece = sender->point_at - sender->bytes;
        if (sender->fail_at - sender->bytes < piece)
            piece = sender->fail_at - sender->bytes;
        rc = write_all(sender, data, piece);
        data += piece;
        size -= piece;
        keep_rate(sender);
    }
    return rc;
}

static bool fault_within(const struct sender *sender, size_t size)
{
    return sender->rate || sender->point_at - sender->bytes < size
           || sender->fail_at - sender->bytes < size;
}

static int send_bytes(struct sender *sender, const void *data, size_t size, bool pages)
{
    if (sender->md)
        EVP_DigestUpdate(sender->md, data, size);
    if (fault_within(sender, size))
        return write_slowly(sender, data, size);
    return pages ? write_pages(sender, data, size) : write_all(sender, data, size);
}

static size_t record_at(const struct sender *sender, size_t offset, struct record *record)
{
    if (offset + sizeof(*record) > sender->size)
        return 0;
    memcpy(record, sender->map + offset, sizeof(*record));
    return offset + record_size(record) > sender->size ? 0 : record_size(record);
}

static size_t first_libxc_record(void)
{
    return STREAM_LIBXL_HEADER + sizeof(struct record) + STREAM_LIBXC_HEADER;
}

/*
 * Where the guest has to be suspended: before the last pass over its pages,
 * or, if there is only one, before what follows them.
 */
static size_t final_pass(const struct sender *sender)
{
    size_t offset = first_libxc_record(), size, pass = 0, passes = 0, after = 0;
    uint64_t pfn, last = UINT64_MAX;
    struct record record;

    for (; (size = record_at(sender, offset, &record)); offset += size) {
        if (record.type == LIBXC_END)
            break;
        if (record.type != LIBXC_PAGE_DATA)
            continue;
        memcpy(&pfn, sender->map + offset + 16, sizeof(pfn));
        pfn &= (1ull << 52) - 1;
        if (pfn <= last || passes == 0) {
            pass = offset;
            passes++;
        }
        last = pfn;
        after = offset + size;
    }
    return passes > 1 ? pass : after;
}

static int sender_open(struct sender *sender, int fd, uint32_t domid)
{
    struct domain domain;
    struct stat status;
    int file;

    memset(sender, 0, sizeof(*sender));
    sender->fd = fd;
    sender->domid = domid;
    file = books_load(domid, &domain) ? open(domain.stream, O_RDONLY | O_CLOEXEC) : -1;
    if (file < 0 || fstat(file, &status)) {
        fprintf(stderr, "stub toolstack: domain %u has no stream\n", domid);
        return ERROR_FAIL;
    }
    sender->size = (size_t)status.st_size;
    sender->map = mmap(NULL, sender->size, PROT_READ, MAP_SHARED | MAP_POPULATE, file, 0);
    close(file);
    if (sender->map == MAP_FAILED)
        return ERROR_FAIL;
    sender->final = final_pass(sender);
    sender->fail_at = books_fault_number("suspend_fail_at", BOOKS_NONE);
    sender->point_at = books_fault_number("suspend_at", 0);
    sender->rate = books_fault_number("suspend_rate", 0);
    clock_gettime(CLOCK_MONOTONIC, &sender->start);
    return 0;
}

static int send_record(struct sender *sender, size_t offset)
{
    struct record record;
    size_t size = record_at(sender, offset, &record);

    if (!size)
        return ERROR_FAIL;
    if (offset == sender->final) {
        books_log("suspended", "domid=%u bytes=%llu", sender->domid,
                  (unsigned long long)sender->bytes);
        if (books_set_state(sender->domid, "suspended"))
            return ERROR_FAIL;
    }
    return send_bytes(sender, sender->map + offset, size, record.type == LIBXC_PAGE_DATA);
}

/* Send libxc records from offset on; stops before the END, where *offset then stands. */
static int send_libxc_records(struct sender *sender, size_t *offset)
{
    struct record record;
    size_t size;
    int rc = 0;

    while (!rc && (size = record_at(sender, *offset, &record)) && record.type != LIBXC_END) {
        rc = send_record(sender, *offset);
        *offset += size;
    }
    return rc;
}

int stream_send(int fd, uint32_t domid)
{
    struct sender sender;
    size_t offset = first_libxc_record();
    int rc = sender_open(&sender, fd, domid);

    if (!rc)
        rc = send_bytes(&sender, sender.map, offset, false);
    if (!rc)
        rc = send_libxc_records(&sender, &offset);
    /* What is left: libxc END, libxl records of the device model, libxl END. */
    if (!rc)
        rc = send_bytes(&sender, sender.map + offset, sender.size - offset, false);
    books_log("sent", "domid=%u bytes=%llu rc=%d", domid, (unsigned long long)sender.bytes, rc);
    return rc;
}

static int send_checkpoint(struct sender *sender, unsigned int number)
{
    const struct record marks[] = {{LIBXC_CHECKPOINT, 0}, {LIBXL_CHECKPOINT_END, 0}};
    char digest[65];
    int rc = send_bytes(sender, marks, sizeof(marks), false);

    if (rc)
        return rc;
    stream_digest(sender->md, digest);
    books_log("checkpoint", "domid=%u number=%u bytes=%llu digest=%s", sender->domid, number,
              (unsigned long long)sender->bytes, digest);
    return 0;
}

static size_t find_pages(const struct sender *sender)
{
    size_t offset = first_libxc_record(), size;
    struct record record;

    for (; (size = record_at(sender, offset, &record)); offset += size)
        if (record.type == LIBXC_PAGE_DATA)
            return offset;
    return 0;
}

/* Bursts of one batch of pages, each with its checkpoint, until something ends it. */
static int replicate(struct sender *sender, int interval_ms)
{
    uint64_t limit = books_fault_number("remus_checkpoints", BOOKS_NONE);
    size_t pages = find_pages(sender), offset = sender->final;
    unsigned int number;
    struct domain domain;
    int rc = 0;

    for (number = 1; !rc && number <= limit; number++) {
        rc = send_checkpoint(sender, number);
        books_set_state(sender->domid, "running");
        usleep((useconds_t)interval_ms * 1000);
        if (!books_load(sender->domid, &domain))
            return ERROR_FAIL;
        if (rc || number == limit)
            break;
        rc = send_record(sender, pages);
        offset = sender->final;
        if (!rc)
            rc = send_libxc_records(sender, &offset);
    }
    return ERROR_FAIL;
}

int stream_replicate(int fd, uint32_t domid, int interval_ms)
{
    struct sender sender;
    size_t offset = first_libxc_record();
    int rc = sender_open(&sender, fd, domid);

    if (rc)
        return rc;
    sender.md = EVP_MD_CTX_new();
    EVP_DigestInit_ex(sender.md, EVP_sha256(), NULL);
    rc = send_bytes(&sender, sender.map, offset, false);
    if (!rc)
        rc = send_libxc_records(&sender, &offset);
    if (!rc)
        rc = replicate(&sender, interval_ms);
    books_set_state(domid, "suspended");
    EVP_MD_CTX_free(sender.md);
    return rc;
}
