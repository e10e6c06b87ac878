/*
 * The two ends of a migration stream, as libxl and its save helper do them.
 * Formats: xen.git docs/specs/libxl-migration-stream.pandoc and
 * libxc-migration-stream.pandoc.
 */
#ifndef STREAM_H
#define STREAM_H

#include <openssl/evp.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define STREAM_PAGE 4096
#define STREAM_BATCH 1024        /* pages a PAGE_DATA record: MAX_BATCH_SIZE in xg_sr_common.h */
#define STREAM_RECORD_MAX (128u << 20)  /* bytes: REC_LENGTH_MAX in xg_sr_common.h */

enum libxl_record {
    LIBXL_END = 0,
    LIBXL_LIBXC_CONTEXT = 1,
    LIBXL_EMULATOR_XENSTORE = 2,
    LIBXL_EMULATOR_CONTEXT = 3,
    LIBXL_CHECKPOINT_END = 4,
};

enum libxc_record {
    LIBXC_END = 0x00,
    LIBXC_PAGE_DATA = 0x01,
    LIBXC_CHECKPOINT = 0x0e,
    LIBXC_LAST = 0x12,           /* X86_MSR_POLICY, the last that Xen 4.17 knows */
};

/* Header of a libxl record and of a libxc record: the two look alike. */
struct record {
    uint32_t type;
    uint32_t length;             /* bytes of the body without padding */
};

#define STREAM_LIBXL_HEADER 16   /* ident 8 + version 4 + options 4 */
#define STREAM_LIBXC_HEADER (24 /* image header */ + 16 /* domain header */)

/* Bytes that a record takes in the stream; bodies are padded to 8 bytes. */
static inline size_t record_size(const struct record *record)
{
    return sizeof(*record) + (((size_t)record->length + 7) & ~(size_t)7);
}

/* Whether a PAGE_DATA entry has page contents: BROKEN, XALLOC and XTAB have none. */
static inline bool pfn_has_data(uint64_t pfn)
{
    return pfn >> 60 < 0xd;
}

struct result {
    int rc;                      /* 0 or a libxl ERROR_... */
    uint64_t bytes;              /* read and, with Remus, committed */
    char digest[65];             /* SHA-256 of those bytes */
};

/* Hexadecimal SHA-256 of what md has taken so far; md goes on. */
void stream_digest(const EVP_MD_CTX *md, char digest[static 65]);

/* Read one stream from fd, to its END record and not a byte further. */
void stream_receive(int fd, bool remus, struct result *result);

/* Write the domain's stream to fd. Returns 0 or a libxl ERROR_... */
int stream_send(int fd, uint32_t domid);

/* Replicate with Remus until it fails. Returns a libxl ERROR_... */
int stream_replicate(int fd, uint32_t domid, int interval_ms);

/*
 * Run work in a child process, as libxl does with libxl-save-helper: who
 * kills xl alone leaves the helper reading or writing. The child's result
 * comes back through a pipe; result->rc is ERROR_FAIL if it died.
 */
void helper_run(void (*work)(void *), void *argument, struct result *result);

#endif
