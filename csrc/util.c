#define _GNU_SOURCE
#include "util.h"

#include <string.h>
#include <sys/mman.h>

#include <openssl/core_names.h>
#include <openssl/crypto.h>
#include <openssl/err.h>
#include <openssl/kdf.h>
#include <openssl/params.h>

/* Overwrite len bytes at p in a way that the compiler keeps. */
void xs_wipe(void *p, size_t len)
{
    if (p != NULL && len > 0)
        OPENSSL_cleanse(p, len);
}

/*
 * key := HKDF-Expand(key, vec8(label), 32) (RFC 5869, SHA-256), in place. Returns XS_OK or XS_ECRYPTO; the key is unchanged then.
 */
int xs_ratchet(uint8_t key[static XS_KEY_LEN], const char *label)
{
    EVP_KDF *kdf = NULL;
    EVP_KDF_CTX *ctx = NULL;
    OSSL_PARAM params[5];
    uint8_t info[1 + UINT8_MAX];        /* vec8: the length as u8, then the text */
    uint8_t next[XS_KEY_LEN];
    char digest[] = "SHA256";
    int mode = EVP_KDF_HKDF_MODE_EXPAND_ONLY;
    size_t label_len = strlen(label);
    int rc = XS_ECRYPTO;

    if (label_len > UINT8_MAX)
        return XS_EARGUMENT;
    info[0] = (uint8_t)label_len;
    memcpy(info + 1, label, label_len);

    kdf = EVP_KDF_fetch(NULL, "HKDF", NULL);
    if (kdf == NULL || (ctx = EVP_KDF_CTX_new(kdf)) == NULL)
        goto out;
    params[0] = OSSL_PARAM_construct_int(OSSL_KDF_PARAM_MODE, &mode);
    params[1] = OSSL_PARAM_construct_utf8_string(OSSL_KDF_PARAM_DIGEST, digest, 0);
    params[2] = OSSL_PARAM_construct_octet_string(OSSL_KDF_PARAM_KEY, key, XS_KEY_LEN);
    params[3] = OSSL_PARAM_construct_octet_string(OSSL_KDF_PARAM_INFO, info, 1 + label_len);
    params[4] = OSSL_PARAM_construct_end();
    if (EVP_KDF_derive(ctx, next, sizeof(next), params) != 1)
        goto out;
    memcpy(key, next, sizeof(next));
    rc = XS_OK;

out:
    xs_wipe(next, sizeof(next));
    EVP_KDF_CTX_free(ctx);
    EVP_KDF_free(kdf);
    if (rc != XS_OK)
        ERR_clear_error();      /* pyOpenSSL shares the thread's queue */
    return rc;
}

/* Whole pages for len bytes of the domain's, kept out of core dumps; zeroed. NULL when there is no memory. */
void *xs_pages_new(size_t len)
{
    void *p = mmap(NULL, len, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

    if (p == MAP_FAILED)
        return NULL;
    /* A guest's memory has no place in our core file. Where the kernel cannot do it, RLIMIT_CORE still stands. */
    (void)madvise(p, len, MADV_DONTDUMP);
    return p;
}

/* Wipe and give back what xs_pages_new(len) gave; NULL is fine. */
void xs_pages_free(void *p, size_t len)
{
    if (p == NULL)
        return;
    xs_wipe(p, len);
    (void)munmap(p, len);
}
