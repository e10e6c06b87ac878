/*
 * The one thing the engine asks of a cryptographic library: AES-256-GCM over one frame. A backend is a table of functions; it is
 * chosen once a link. A further backend is a further file and a line in aead.c.
 */
#ifndef XS_AEAD_H
#define XS_AEAD_H

#include <stddef.h>
#include <stdint.h>

#include "engine.h"

struct xs_aead;                 /* a backend's state for one direction */

enum xs_aead_way { XS_AEAD_SEAL, XS_AEAD_OPEN };

struct xs_aead_ops {
    const char *name;

    /* How good a choice the backend is on this CPU: the higher the better, 0 if it cannot run here. */
    int (*worth)(void);

    /* A state for one direction. NULL when memory or the library fails. */
    struct xs_aead *(*create)(enum xs_aead_way way, const uint8_t key[static XS_KEY_LEN]);

    /* Go on with another key. XS_OK or XS_ECRYPTO. */
    int (*rekey)(struct xs_aead *aead, const uint8_t key[static XS_KEY_LEN]);

    /* Encrypt len bytes from in to out (which may be the same place) and make the tag. XS_OK or XS_ECRYPTO. */
    int (*seal)(struct xs_aead *aead, const uint8_t nonce[static XS_IV_LEN], const uint8_t *aad, size_t aad_len,
                const uint8_t *in, size_t len, uint8_t *out, uint8_t tag[static XS_TAG_LEN]);

    /* Check the tag and decrypt. XS_OK, XS_ETAG or XS_ECRYPTO; the caller wipes out unless XS_OK. */
    int (*open)(struct xs_aead *aead, const uint8_t nonce[static XS_IV_LEN], const uint8_t *aad, size_t aad_len,
                const uint8_t *in, size_t len, uint8_t *out, const uint8_t tag[static XS_TAG_LEN]);

    /* Wipe and free; NULL is fine. */
    void (*free)(struct xs_aead *aead);
};

/* What worth() says: libcrypto is the measure. */
enum { XS_AEAD_UNUSABLE = 0, XS_AEAD_NO_FASTER, XS_AEAD_LIBCRYPTO, XS_AEAD_FASTER };

extern const struct xs_aead_ops xs_aead_libcrypto;
#ifdef XS_WITH_IPSEC_MB         /* csrc/build_engine.py */
extern const struct xs_aead_ops xs_aead_ipsecmb;
#endif

/* The backend of that name, or the best there is for NULL. NULL when there is none of that name that this CPU can run. */
const struct xs_aead_ops *xs_aead_find(const char *name);

#endif
