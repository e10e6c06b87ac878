/*
 * One connection's frames: header, nonce, counter, ratchet (docs/protocol.md, F1 to F5). No I/O.
 */
#include "engine.h"

#include <stdlib.h>
#include <string.h>

#include "aead.h"
#include "util.h"

static const char ratchet_label[] = "xensecure/1 ratchet";      /* F4 */

struct direction {
    struct xs_aead *aead;
    uint8_t key[XS_KEY_LEN];
    uint8_t iv[XS_IV_LEN];
    uint64_t counter;           /* frames, F3; at one a nanosecond it wraps after 584 years */
    uint64_t blocks;            /* AES blocks under the present key, F4 */
    int dead;                   /* the first error ends it (F5), and a nonce is never used twice */
};

struct xs_link {
    const struct xs_aead_ops *ops;
    uint64_t ratchet_blocks;
    struct direction out, in;
};

/* Set one direction up. Returns XS_OK or XS_ENOMEM. */
static int direction_init(struct xs_link *link, struct direction *way, enum xs_aead_way aead_way, const uint8_t *key,
                          const uint8_t *iv)
{
    memcpy(way->key, key, XS_KEY_LEN);
    memcpy(way->iv, iv, XS_IV_LEN);
    way->aead = link->ops->create(aead_way, key);
    return way->aead != NULL ? XS_OK : XS_ENOMEM;
}

/*
 * A link with its keys, which the caller then wipes. backend: "libcrypto", "ipsec-mb" or NULL for the best there is.
 * ratchet_blocks: AES blocks a key may process (F4). NULL when memory or the backend is lacking.
 */
struct xs_link *xs_link_new(const char *backend, const struct xs_link_keys *keys, uint64_t ratchet_blocks)
{
    struct xs_link *link = calloc(1, sizeof(*link));

    if (link == NULL)
        return NULL;
    link->ops = xs_aead_find(backend);
    link->ratchet_blocks = ratchet_blocks;
    if (link->ops == NULL
        || direction_init(link, &link->out, XS_AEAD_SEAL, keys->send_key, keys->send_iv) != XS_OK
        || direction_init(link, &link->in, XS_AEAD_OPEN, keys->receive_key, keys->receive_iv) != XS_OK) {
        xs_link_free(link);
        return NULL;
    }
    return link;
}

/* Wipe and free a link; NULL is fine. */
void xs_link_free(struct xs_link *link)
{
    if (link == NULL)
        return;
    if (link->ops != NULL) {
        link->ops->free(link->out.aead);
        link->ops->free(link->in.aead);
    }
    xs_wipe(link, sizeof(*link));
    free(link);
}

/* The name of the backend that the link uses. */
const char *xs_link_backend(const struct xs_link *link)
{
    return link->ops->name;
}

/*
 * Make a direction ready for a frame of that many payload bytes: ratchet its key if the frame would pass the limit (F4), count its blocks,
 * and give its nonce (F3). Returns XS_OK or XS_ECRYPTO.
 */
static int direction_advance(struct xs_link *link, struct direction *way, uint32_t length, uint8_t nonce[static XS_IV_LEN])
{
    uint64_t blocks = (uint64_t)length / 16 + (length % 16 != 0) + 3 /* header, lengths, tag */;
    uint64_t counter = way->counter;
    int rc;

    if (way->blocks + blocks > link->ratchet_blocks) {
        rc = xs_ratchet(way->key, ratchet_label);
        if (rc == XS_OK)
            rc = link->ops->rekey(way->aead, way->key);
        if (rc != XS_OK)
            return XS_ECRYPTO;
        way->blocks = 0;
    }
    way->blocks += blocks;
    way->counter++;

    memcpy(nonce, way->iv, XS_IV_LEN);
    for (size_t i = 0; i < 8; i++)
        nonce[XS_IV_LEN - 1 - i] ^= (uint8_t)(counter >> (8 * i));
    return XS_OK;
}

/* Are these flags allowed there (F1)? */
static int flags_fit(const struct xs_header *header)
{
    switch (header->flags & ~XS_AGAIN) {
    case 0:
        return header->flags == 0 || header->type == XS_DATA;
    case XS_ELIDED:
        return header->type == XS_DATA;
    case XS_COMPRESSED:
        return header->type == XS_DATA && header->channel == 0;
    }
    return 0;
}

/* Read and check the 16 bytes of a header (F2): no tag has been checked yet. Returns XS_OK or XS_EHEADER. */
int xs_header_parse(const uint8_t bytes[XS_HEADER_LEN], struct xs_header *header)
{
    header->type = bytes[0];
    header->channel = bytes[1];
    header->flags = bytes[2];
    header->length = xs_load32(bytes + 4);
    header->offset = xs_load64(bytes + 8);
    if (header->type < XS_OPEN || (header->type > XS_OUTCOME && header->type != XS_ABORT) || header->channel >= XS_CHANNELS
        || !flags_fit(header) || bytes[3] != 0 /* zero */
        || header->length > XS_PAYLOAD_MAX) {
        memset(header, 0, sizeof(*header));
        return XS_EHEADER;
    }
    return XS_OK;
}

/* Write the 16 bytes of a header. */
static void header_write(const struct xs_header *header, uint8_t out[static XS_HEADER_LEN])
{
    out[0] = header->type;
    out[1] = header->channel;
    out[2] = header->flags;
    out[3] = 0;
    xs_store32(out + 4, header->length);
    xs_store64(out + 8, header->offset);
}

/* Seal one frame into out (XS_HEADER_LEN + header->length + XS_TAG_LEN bytes). Returns XS_OK or an error. */
int xs_link_seal(struct xs_link *link, const struct xs_header *header, const uint8_t *payload, uint8_t *out)
{
    struct xs_header checked;
    uint8_t nonce[XS_IV_LEN], bytes[XS_HEADER_LEN];
    uint8_t *body = out + XS_HEADER_LEN;
    int rc;

    /* What the peer would refuse is our own mistake, and uses up no nonce. */
    header_write(header, bytes);
    if (xs_header_parse(bytes, &checked) != XS_OK)
        return XS_EARGUMENT;
    if (link->out.dead)
        return XS_ECRYPTO;
    memcpy(out, bytes, sizeof(bytes));
    rc = direction_advance(link, &link->out, header->length, nonce);
    if (rc == XS_OK)
        rc = link->ops->seal(link->out.aead, nonce, out, XS_HEADER_LEN, payload, header->length, body, body + header->length);
    if (rc != XS_OK) {
        link->out.dead = 1;
        xs_wipe(out, XS_HEADER_LEN + (size_t)header->length + XS_TAG_LEN);
    }
    return rc;
}

/*
 * Open the frame that starts at frame (header, body, tag) into out (header's length bytes; may be the body's own place). On any error out
 * holds nothing of the peer's.
 */
int xs_link_open(struct xs_link *link, const uint8_t *frame, struct xs_header *header, uint8_t *out)
{
    const uint8_t *body = frame + XS_HEADER_LEN;
    uint8_t nonce[XS_IV_LEN];
    uint32_t length;
    int rc;

    memset(header, 0, sizeof(*header));
    if (link->in.dead)
        return XS_ETAG;         /* F5: nothing after the first failure is looked at */
    rc = xs_header_parse(frame, header);
    if (rc != XS_OK) {
        link->in.dead = 1;
        return rc;
    }
    length = header->length;
    rc = direction_advance(link, &link->in, length, nonce);
    if (rc == XS_OK)
        rc = link->ops->open(link->in.aead, nonce, frame, XS_HEADER_LEN, body, length, out, body + length);
    if (rc != XS_OK) {
        /* Backends write text before they know the tag: none of it may be used (F2), so none of it stays. */
        link->in.dead = 1;
        xs_wipe(out, length);
        memset(header, 0, sizeof(*header));
    }
    return rc;
}
