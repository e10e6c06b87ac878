/*
 * AES-256-GCM by libcrypto's EVP (OpenSSL 3.0 and later). The context is kept for the life of a key: a frame sets only the nonce, so that
 * the key schedule and the GHASH tables are not made anew for every frame.
 */
#include "aead.h"

#include <stdlib.h>

#include <openssl/err.h>
#include <openssl/evp.h>

struct xs_aead {
    EVP_CIPHER_CTX *ctx;
};

/* How good a choice the backend is on this CPU: the higher the better, 0 if it cannot run here. */
static int libcrypto_worth(void)
{
    return XS_AEAD_LIBCRYPTO;
}

/* Wipe and free; NULL is fine. EVP_CIPHER_CTX_free wipes the key schedule. */
static void libcrypto_free(struct xs_aead *aead)
{
    if (aead == NULL)
        return;
    EVP_CIPHER_CTX_free(aead->ctx);
    free(aead);
}

/* A state for one direction. NULL when memory or the library fails. */
static struct xs_aead *libcrypto_create(enum xs_aead_way way, const uint8_t key[static XS_KEY_LEN])
{
    struct xs_aead *aead = calloc(1, sizeof(*aead));

    if (aead == NULL)
        return NULL;
    aead->ctx = EVP_CIPHER_CTX_new();
    if (aead->ctx == NULL
        || EVP_CipherInit_ex(aead->ctx, EVP_aes_256_gcm(), NULL, key, NULL, way == XS_AEAD_SEAL) != 1) {
        libcrypto_free(aead);
        return NULL;
    }
    return aead;        /* GCM's default nonce length is XS_IV_LEN, 12 bytes */
}

/* A failure: rc, with nothing of ours left in the thread's error queue, where pyOpenSSL would take it for its own. */
static int failed(int rc)
{
    ERR_clear_error();
    return rc;
}

/* Go on with another key. XS_OK or XS_ECRYPTO. */
static int libcrypto_rekey(struct xs_aead *aead, const uint8_t key[static XS_KEY_LEN])
{
    return EVP_CipherInit_ex(aead->ctx, NULL, NULL, key, NULL, -1) == 1 ? XS_OK : failed(XS_ECRYPTO);
}

/* What sealing and opening have in common: nonce, additional data, text. XS_OK or XS_ECRYPTO. */
static int libcrypto_update(struct xs_aead *aead, const uint8_t *nonce, const uint8_t *aad, size_t aad_len,
                            const uint8_t *in, size_t len, uint8_t *out)
{
    int done = 0;

    if (len > XS_PAYLOAD_MAX || aad_len > XS_PAYLOAD_MAX)
        return XS_EARGUMENT;    /* keeps the casts to int below honest */
    if (EVP_CipherInit_ex(aead->ctx, NULL, NULL, NULL, nonce, -1) != 1
        || (aad_len > 0 && EVP_CipherUpdate(aead->ctx, NULL, &done, aad, (int)aad_len) != 1))
        return failed(XS_ECRYPTO);
    if (len > 0 && (EVP_CipherUpdate(aead->ctx, out, &done, in, (int)len) != 1 || done != (int)len))
        return failed(XS_ECRYPTO);
    return XS_OK;
}

/* Encrypt len bytes from in to out (which may be the same place) and make the tag. XS_OK or XS_ECRYPTO. */
static int libcrypto_seal(struct xs_aead *aead, const uint8_t nonce[static XS_IV_LEN], const uint8_t *aad, size_t aad_len,
                          const uint8_t *in, size_t len, uint8_t *out, uint8_t tag[static XS_TAG_LEN])
{
    uint8_t none[XS_TAG_LEN];   /* GCM gives no text at the end; EVP wants a place for it */
    int done = 0;
    int rc = libcrypto_update(aead, nonce, aad, aad_len, in, len, out);

    if (rc != XS_OK)
        return rc;
    if (EVP_CipherFinal_ex(aead->ctx, none, &done) != 1
        || EVP_CIPHER_CTX_ctrl(aead->ctx, EVP_CTRL_AEAD_GET_TAG, XS_TAG_LEN, tag) != 1)
        return failed(XS_ECRYPTO);
    return XS_OK;
}

/* Check the tag and decrypt. XS_OK, XS_ETAG or XS_ECRYPTO; the caller wipes out unless XS_OK. */
static int libcrypto_open(struct xs_aead *aead, const uint8_t nonce[static XS_IV_LEN], const uint8_t *aad, size_t aad_len,
                          const uint8_t *in, size_t len, uint8_t *out, const uint8_t tag[static XS_TAG_LEN])
{
    uint8_t none[XS_TAG_LEN], expected[XS_TAG_LEN];
    int done = 0;
    int rc = libcrypto_update(aead, nonce, aad, aad_len, in, len, out);

    if (rc != XS_OK)
        return rc;
    for (size_t i = 0; i < sizeof(expected); i++)
        expected[i] = tag[i];   /* EVP takes it by a pointer to non-const */
    if (EVP_CIPHER_CTX_ctrl(aead->ctx, EVP_CTRL_AEAD_SET_TAG, XS_TAG_LEN, expected) != 1)
        return failed(XS_ECRYPTO);
    return EVP_CipherFinal_ex(aead->ctx, none, &done) == 1 ? XS_OK : failed(XS_ETAG);
}

const struct xs_aead_ops xs_aead_libcrypto = {
    .name = "libcrypto",
    .worth = libcrypto_worth,
    .create = libcrypto_create,
    .rekey = libcrypto_rekey,
    .seal = libcrypto_seal,
    .open = libcrypto_open,
    .free = libcrypto_free,
};
