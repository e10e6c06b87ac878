/*
 * AES-256-GCM by Intel's libipsec-mb (1.2 and later), its direct interface. Compiled in where the build finds the library.
 *
 * GB/s a core, sealing 512 KiB with AAD (tests/c/bench_aead.c, an AMD EPYC with VAES and AVX512, libipsec-mb 1.3, OpenSSL 3.0): libcrypto 4.6;
 * libipsec-mb by AVX512 and VAES 10.6, by AVX2 4.9, by SSE 5.1. So it is worth choosing for its VAES code, and for no other: OpenSSL's
 * own code is the more widely used, and the rest is the same to within a tenth.
 */
#include "aead.h"

#ifdef XS_WITH_IPSEC_MB

#include <stdlib.h>
#include <string.h>

#include <pthread.h>

#include <intel-ipsec-mb.h>
#include <openssl/crypto.h>

#include "util.h"

enum { ALIGNMENT = 64 /* bytes: gcm_key_data's, which its own header asks for with LINUX defined only */ };

struct xs_aead {
    struct gcm_key_data key;            /* the key schedule and the powers of the hash key */
    struct gcm_context_data context;    /* of one frame */
};

/* The library's table of functions for this CPU. The direct interface keeps nothing in it, so that all links and threads share it. */
static IMB_MGR *manager;
static pthread_once_t manager_once = PTHREAD_ONCE_INIT;

/* The table that fits this CPU; NULL where it has no AES instructions (what the library has in their place is slow, and leaks by time). */
static void manager_make(void)
{
    const uint64_t needed = IMB_FEATURE_AESNI | IMB_FEATURE_PCLMULQDQ;
    IMB_MGR *made = alloc_mb_mgr(0);

    if (made == NULL)
        return;
    init_mb_mgr_auto(made, NULL);
    if (imb_get_errno(made) != 0 || (made->features & needed) != needed || (made->features & IMB_FEATURE_AESNI_EMU) != 0
        || (made->features & (IMB_FEATURE_SELF_TEST | IMB_FEATURE_SELF_TEST_PASS)) == IMB_FEATURE_SELF_TEST) {
        free_mb_mgr(made);
        return;
    }
    manager = made;
}

/* The table; NULL where there is none for this CPU. */
static IMB_MGR *manager_get(void)
{
    return pthread_once(&manager_once, manager_make) == 0 ? manager : NULL;
}

/* How good a choice the backend is on this CPU: the higher the better, 0 if it cannot run here. */
static int ipsecmb_worth(void)
{
    const IMB_MGR *mgr = manager_get();

    if (mgr == NULL)
        return XS_AEAD_UNUSABLE;
    /* The features for which the library takes its VAES code (init_mb_mgr_avx512). */
    return (mgr->features & IMB_CPUFLAGS_AVX512_T2) == IMB_CPUFLAGS_AVX512_T2 ? XS_AEAD_FASTER : XS_AEAD_NO_FASTER;
}

/* Wipe and free; NULL is fine. */
static void ipsecmb_free(struct xs_aead *aead)
{
    xs_wipe(aead, sizeof(*aead));
    free(aead);
}

/* Go on with another key. XS_OK or XS_ECRYPTO. */
static int ipsecmb_rekey(struct xs_aead *aead, const uint8_t key[static XS_KEY_LEN])
{
    IMB_AES256_GCM_PRE(manager, key, &aead->key);
    return XS_OK;
}

/* A state for one direction. NULL when memory or the library fails. */
static struct xs_aead *ipsecmb_create(enum xs_aead_way way, const uint8_t key[static XS_KEY_LEN])
{
    const size_t size = (sizeof(struct xs_aead) + ALIGNMENT - 1) / ALIGNMENT * ALIGNMENT;
    struct xs_aead *aead;

    (void)way;          /* one key schedule for both: GCM never runs AES backwards */
    if (manager_get() == NULL || (aead = aligned_alloc(ALIGNMENT, size)) == NULL)
        return NULL;
    memset(aead, 0, sizeof(*aead));
    (void)ipsecmb_rekey(aead, key);
    return aead;
}

/* Encrypt len bytes from in to out (which may be the same place) and make the tag. XS_OK or XS_ECRYPTO. */
static int ipsecmb_seal(struct xs_aead *aead, const uint8_t nonce[static XS_IV_LEN], const uint8_t *aad, size_t aad_len,
                        const uint8_t *in, size_t len, uint8_t *out, uint8_t tag[static XS_TAG_LEN])
{
    if (len > XS_PAYLOAD_MAX)
        return XS_EARGUMENT;
    IMB_AES256_GCM_INIT(manager, &aead->key, &aead->context, nonce, aad, aad_len);
    if (len > 0)        /* the library takes no NULL, not even for nothing */
        IMB_AES256_GCM_ENC_UPDATE(manager, &aead->key, &aead->context, out, in, len);
    IMB_AES256_GCM_ENC_FINALIZE(manager, &aead->key, &aead->context, tag, XS_TAG_LEN);
    return XS_OK;
}

/* Check the tag and decrypt. XS_OK, XS_ETAG or XS_ECRYPTO; the caller wipes out unless XS_OK. */
static int ipsecmb_open(struct xs_aead *aead, const uint8_t nonce[static XS_IV_LEN], const uint8_t *aad, size_t aad_len,
                        const uint8_t *in, size_t len, uint8_t *out, const uint8_t tag[static XS_TAG_LEN])
{
    uint8_t expected[XS_TAG_LEN];
    int rc;

    if (len > XS_PAYLOAD_MAX)
        return XS_EARGUMENT;
    IMB_AES256_GCM_INIT(manager, &aead->key, &aead->context, nonce, aad, aad_len);
    if (len > 0)
        IMB_AES256_GCM_DEC_UPDATE(manager, &aead->key, &aead->context, out, in, len);
    IMB_AES256_GCM_DEC_FINALIZE(manager, &aead->key, &aead->context, expected, XS_TAG_LEN);
    rc = CRYPTO_memcmp(expected, tag, XS_TAG_LEN) == 0 ? XS_OK : XS_ETAG;
    xs_wipe(expected, sizeof(expected));        /* the right tag of what somebody forged */
    return rc;
}

const struct xs_aead_ops xs_aead_ipsecmb = {
    .name = "ipsec-mb",
    .worth = ipsecmb_worth,
    .create = ipsecmb_create,
    .rekey = ipsecmb_rekey,
    .seal = ipsecmb_seal,
    .open = ipsecmb_open,
    .free = ipsecmb_free,
};

#endif
