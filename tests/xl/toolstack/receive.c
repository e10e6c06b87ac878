#include "stream.h"

#include <arpa/inet.h>
#include <errno.h>
#include <libxl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "books.h"

struct reader {
    int fd;
    bool remus;
    EVP_MD_CTX *md;              /* NULL if no digest is wanted */
    uint64_t bytes;
    uint64_t fail_at;            /* stream offset, or BOOKS_NONE */
    uint64_t point_at;           /* stream offset of the fault point "restore" */
    uint8_t *body;
    size_t room;
};

void stream_digest(const EVP_MD_CTX *md, char digest[static 65])
{
    EVP_MD_CTX *copy = EVP_MD_CTX_new();
    uint8_t raw[EVP_MAX_MD_SIZE];
    unsigned int i, size = 0;

    EVP_MD_CTX_copy_ex(copy, md);
    EVP_DigestFinal_ex(copy, raw, &size);
    EVP_MD_CTX_free(copy);
    for (i = 0; i < size; i++)
        sprintf(digest + 2 * i, "%02x", raw[i]);
}

/* Act on the fault points at this offset; returns how far the next one is. */
static int64_t fault_distance(struct reader *reader)
{
    uint64_t next;

    if (reader->bytes == reader->point_at) {
        books_point("restore");
        reader->point_at = BOOKS_NONE;
    }
    if (reader->bytes == reader->fail_at) {
        fprintf(stderr, "xc: error: Restore failed: fault set at byte %llu\n",
                (unsigned long long)reader->bytes);
        return -1;
    }
    next = reader->fail_at;
    if (reader->point_at > reader->bytes && reader->point_at < next)
        next = reader->point_at;
    if (next < reader->bytes || next - reader->bytes > INT64_MAX)
        return INT64_MAX;
    return (int64_t)(next - reader->bytes);
}

static int read_exact(struct reader *reader, void *data, size_t size)
{
    uint8_t *here = data;
    int64_t distance;
    ssize_t got;

    while (size > 0) {
        distance = fault_distance(reader);
        if (distance < 0)
            return -1;
        got = read(reader->fd, here, size < (uint64_t)distance ? size : (size_t)distance);
        if (got < 0 && errno == EINTR)
            continue;
        if (got <= 0) {
            fprintf(stderr, "xc: error: Failed to read %zu bytes of data at byte %llu (%d = %s)\n",
                    size, (unsigned long long)reader->bytes, got < 0 ? errno : 0,
                    got < 0 ? strerror(errno) : "Success");
            return -1;
        }
        if (reader->md)
            EVP_DigestUpdate(reader->md, here, (size_t)got);
        reader->bytes += (uint64_t)got;
        here += got;
        size -= (size_t)got;
    }
    return 0;
}

static int read_body(struct reader *reader, const struct record *record)
{
    size_t size = record_size(record) - sizeof(*record);
    uint8_t *grown;

    if (record->length > STREAM_RECORD_MAX) {
        fprintf(stderr, "xc: error: Record of %u bytes is too long\n", record->length);
        return -1;
    }
    if (size > reader->room) {
        grown = realloc(reader->body, size);
        if (!grown)
            return -1;
        reader->body = grown;
        reader->room = size;
    }
    return read_exact(reader, reader->body, size);
}

static int check_pages(const struct reader *reader, const struct record *record)
{
    uint32_t count = 0, i;
    uint64_t pages = 0, pfn;

    if (record->length >= 8)
        memcpy(&count, reader->body, sizeof(count));
    if (count < 1 || count > STREAM_BATCH || 8 + 8ull * count > record->length)
        return -1;
    for (i = 0; i < count; i++) {
        memcpy(&pfn, reader->body + 8 + 8ul * i, sizeof(pfn));
        pages += pfn_has_data(pfn);
    }
    return record->length == 8 + 8ull * count + STREAM_PAGE * pages ? 0 : -1;
}

/* Read libxc records up to END, or up to a checkpoint with Remus. */
static int read_libxc_records(struct reader *reader)
{
    struct record record;

    for (;;) {
        if (read_exact(reader, &record, sizeof(record)) || read_body(reader, &record))
            return -1;
        if (record.type > LIBXC_LAST
            || (record.type == LIBXC_PAGE_DATA && check_pages(reader, &record))
            || (record.type == LIBXC_CHECKPOINT && !reader->remus)) {
            fprintf(stderr, "xc: error: Bad record of type 0x%x, %u bytes\n", record.type,
                    record.length);
            return -1;
        }
        if (record.type == LIBXC_END || record.type == LIBXC_CHECKPOINT)
            return 0;
    }
}

static int read_libxc_image(struct reader *reader)
{
    uint8_t header[STREAM_LIBXC_HEADER];
    static const uint8_t start[] = {255, 255, 255, 255, 255, 255, 255, 255, 'X', 'E', 'N', 'F'};

    if (read_exact(reader, header, sizeof(header)))
        return -1;
    if (memcmp(header, start, sizeof(start))) {
        fprintf(stderr, "xc: error: Invalid marker or ident in the image header\n");
        return -1;
    }
    return read_libxc_records(reader);
}

static void commit(struct reader *reader, struct result *result)
{
    result->bytes = reader->bytes;
    if (reader->md)
        stream_digest(reader->md, result->digest);
}

/* Read libxl records up to END; true if the END was there. */
static bool read_libxl_records(struct reader *reader, struct result *result)
{
    struct record record;

    for (;;) {
        if (read_exact(reader, &record, sizeof(record)) || read_body(reader, &record))
            return false;
        switch (record.type) {
        case LIBXL_END:
            commit(reader, result);
            return true;
        case LIBXL_LIBXC_CONTEXT:
            if (read_libxc_image(reader))
                return false;
            break;
        case LIBXL_EMULATOR_XENSTORE:
        case LIBXL_EMULATOR_CONTEXT:
            break;
        case LIBXL_CHECKPOINT_END:
            commit(reader, result);
            if (!reader->remus || read_libxc_records(reader))
                return false;
            break;
        default:
            fprintf(stderr, "libxl: error: Unrecognised record 0x%08x\n", record.type);
            return false;
        }
    }
}

static int read_header(struct reader *reader)
{
    uint8_t header[STREAM_LIBXL_HEADER];
    uint32_t version, options;

    if (read_exact(reader, header, sizeof(header)))
        return -1;
    memcpy(&version, header + 8, sizeof(version));
    memcpy(&options, header + 12, sizeof(options));
    if (memcmp(header, "LibxlFmt", 8) || ntohl(version) != 2 || options) {
        fprintf(stderr, "libxl: error: Invalid ident, version or options in the stream header\n");
        return -1;
    }
    return 0;
}

void stream_receive(int fd, bool remus, struct result *result)
{
    struct reader reader = {.fd = fd, .remus = remus};
    bool ended;

    reader.fail_at = books_fault_number("restore_fail_at", BOOKS_NONE);
    reader.point_at = books_fault_number("restore_at", 0);
    if (!books_fault_number("digest_off", 0)) {
        reader.md = EVP_MD_CTX_new();
        EVP_DigestInit_ex(reader.md, EVP_sha256(), NULL);
    }
    ended = !read_header(&reader) && read_libxl_records(&reader, result);
    /* A Remus stream never ends by itself: an end after a checkpoint is a failover. */
    result->rc = ended || (remus && result->bytes) ? 0 : ERROR_FAIL;
    EVP_MD_CTX_free(reader.md);
    free(reader.body);
}
