/* AES-256-GCM of every backend: published vectors, every place and size, and one backend against the other. */
#include "harness.h"

#include "../../csrc/aead.h"
#include "../../csrc/util.h"
#include "../vectors/aesgcm.h"

enum { AAD_MAX = 1024, TEXT_MAX = 1024, SLACK = 64 };

static const struct xs_aead_ops *ops;   /* the backend that is being tested */

/* Published vectors: sealed as they say, and opened, or refused; twice with one state, in another place and in the text's own. */
static void vectors(void)
{
    for (size_t n = 0; n < sizeof(aesgcm_vectors) / sizeof(aesgcm_vectors[0]); n++) {
        const struct aesgcm_vector *v = &aesgcm_vectors[n];
        uint8_t key[32], iv[12], tag[16], got[16], aad[AAD_MAX], plain[TEXT_MAX], sealed[TEXT_MAX], out[TEXT_MAX];
        size_t aad_len, len;
        struct xs_aead *seal, *open;

        CHECK(strlen(v->aad) <= 2 * AAD_MAX && strlen(v->sealed) <= 2 * TEXT_MAX);
        unhex(v->key, key), unhex(v->iv, iv), unhex(v->tag, tag), unhex(v->plain, plain);
        aad_len = unhex(v->aad, aad);
        len = unhex(v->sealed, sealed);
        seal = ops->create(XS_AEAD_SEAL, key);
        open = ops->create(XS_AEAD_OPEN, key);
        for (int turn = 0; turn < 2; turn++) {
            uint8_t *to = turn == 0 ? out : memcpy(out, plain, len);

            if (v->valid) {
                CHECK(ops->seal(seal, iv, aad, aad_len, turn == 0 ? plain : out, len, to, got) == XS_OK);
                CHECK(memcmp(to, sealed, len) == 0 && memcmp(got, tag, 16) == 0);
            }
            memcpy(out, sealed, len);
            CHECK(ops->open(open, iv, aad, aad_len, turn == 0 ? sealed : out, len, out, tag) == (v->valid ? XS_OK : XS_ETAG));
            CHECK(!v->valid || memcmp(out, plain, len) == 0);
        }
        ops->free(seal);
        ops->free(open);
    }
}

/* One bit of the key, nonce, additional data, text or tag changed: the tag does not hold. */
static void changes(void)
{
    uint8_t part[5][32], out[32], *key = part[0], *iv = part[1], *aad = part[2], *text = part[3], *tag = part[4];
    static const size_t size[5] = { 32, 12, 16, 20, 16 };
    struct xs_aead *seal;

    memset(part, 0x5c, sizeof(part));
    seal = ops->create(XS_AEAD_SEAL, key);
    CHECK(ops->seal(seal, iv, aad, 16, text, 20, text, tag) == XS_OK);
    for (unsigned p = 0; p < 5; p++)
        for (size_t bit = 0; bit < size[p] * 8; bit++) {
            struct xs_aead *open;

            part[p][bit / 8] ^= (uint8_t)(1U << bit % 8);
            open = ops->create(XS_AEAD_OPEN, key);
            CHECK(ops->open(open, iv, aad, 16, text, 20, out, tag) == XS_ETAG);
            ops->free(open);
            part[p][bit / 8] ^= (uint8_t)(1U << bit % 8);
        }
    ops->free(seal);
    ops->free(NULL);
}

/* The key is the next one from rekey on, and what was sealed under the old one opens no more. */
static void rekeying(void)
{
    const uint8_t first[32] = { 1 }, second[32] = { 2 }, iv[12] = { 3 }, aad[16] = { 4 };
    uint8_t text[100] = { 5 }, a[100], b[100], tag[3][16];
    struct xs_aead *changed = ops->create(XS_AEAD_SEAL, first), *fresh = ops->create(XS_AEAD_SEAL, second);
    struct xs_aead *open = ops->create(XS_AEAD_OPEN, first);

    CHECK(ops->seal(changed, iv, aad, 16, text, sizeof(text), a, tag[0]) == XS_OK);
    CHECK(ops->open(open, iv, aad, 16, a, sizeof(a), b, tag[0]) == XS_OK);
    CHECK(ops->rekey(changed, second) == XS_OK && ops->rekey(open, second) == XS_OK);
    CHECK(ops->open(open, iv, aad, 16, a, sizeof(a), b, tag[0]) == XS_ETAG);
    CHECK(ops->seal(changed, iv, aad, 16, text, sizeof(text), a, tag[1]) == XS_OK);
    CHECK(ops->seal(fresh, iv, aad, 16, text, sizeof(text), b, tag[2]) == XS_OK);
    CHECK(memcmp(a, b, sizeof(a)) == 0 && memcmp(tag[1], tag[2], 16) == 0);
    ops->free(changed);
    ops->free(fresh);
    ops->free(open);
}

/* Nothing is written beside the text and the tag, whatever the size and the alignment of either. */
static void borders(void)
{
    const uint8_t key[32] = { 1 }, iv[12] = { 3 }, aad[16] = { 4 };
    uint8_t in[SLACK + 300 + SLACK], out[sizeof(in)], tag[3][16];
    struct xs_aead *seal = ops->create(XS_AEAD_SEAL, key), *open = ops->create(XS_AEAD_OPEN, key);

    memset(in, 0x11, sizeof(in));
    for (size_t len = 0; len < 300; len += len < 70 ? 1 : 23)
        for (size_t at = SLACK; at < SLACK + 17; at += 5) {
            memset(out, 0xee, sizeof(out));
            memset(tag, 0xee, sizeof(tag));
            CHECK(ops->seal(seal, iv, aad, 16, in + SLACK, len, out + at, tag[1]) == XS_OK);
            for (size_t i = 0; i < sizeof(out); i++)
                CHECK((i >= at && i < at + len) || out[i] == 0xee);
            for (size_t i = 0; i < 16; i++)
                CHECK(tag[0][i] == 0xee && tag[2][i] == 0xee);
            CHECK(ops->open(open, iv, aad, 16, out + at, len, out + at, tag[1]) == XS_OK);
            CHECK(memcmp(out + at, in, len) == 0);
        }
    CHECK(ops->seal(seal, iv, aad, 16, in, XS_PAYLOAD_MAX + 1, out, tag[0]) == XS_EARGUMENT);
    CHECK(ops->open(open, iv, aad, 16, in, XS_PAYLOAD_MAX + 1, out, tag[0]) == XS_EARGUMENT);
    ops->free(seal);
    ops->free(open);
}

/* Every backend seals what libcrypto seals, byte for byte, for sizes around every block and up to the longest payload. */
static void same_as_libcrypto(void)
{
    static const size_t more[] = { 4095, 4096, 4097, 65535, 65536, 524288, XS_PAYLOAD_MAX - 1, XS_PAYLOAD_MAX };
    static uint8_t text[XS_PAYLOAD_MAX], ours[XS_PAYLOAD_MAX], theirs[XS_PAYLOAD_MAX];
    uint64_t seed = 7;
    uint8_t key[32], iv[12], aad[16], tag[2][16];

    for (size_t i = 0; i + 8 <= sizeof(text); i += 8)
        xs_store64(text + i, random64(&seed));
    for (size_t n = 0; n < 1100 + sizeof(more) / sizeof(more[0]); n++) {
        size_t len = n < 1100 ? n : more[n - 1100];
        struct xs_aead *a, *b;

        memcpy(key, text + n, 32), memcpy(iv, text + 40 + n, 12), memcpy(aad, text + 60 + n, 16);
        a = ops->create(XS_AEAD_SEAL, key);
        b = xs_aead_libcrypto.create(XS_AEAD_SEAL, key);
        CHECK(ops->seal(a, iv, aad, 16, text, len, ours, tag[0]) == XS_OK);
        CHECK(xs_aead_libcrypto.seal(b, iv, aad, 16, text, len, theirs, tag[1]) == XS_OK);
        CHECK(memcmp(ours, theirs, len) == 0 && memcmp(tag[0], tag[1], 16) == 0);
        ops->free(a);
        xs_aead_libcrypto.free(b);
    }
}

/* A backend is found by its name if it can run here; the best is one of them; there is no other. */
static void choice(void)
{
    const char *name;
    int best_is_there = 0;

    for (size_t i = 0; (name = xs_backend_name(i)) != NULL; i++) {
        const struct xs_aead_ops *found = xs_aead_find(name);

        CHECK(found == NULL || (found->worth() > XS_AEAD_UNUSABLE && strcmp(found->name, name) == 0));
        CHECK(found == NULL ? xs_backend_find(name) == NULL : strcmp(xs_backend_find(name), name) == 0);
        CHECK(found == NULL || found->worth() <= xs_aead_find(NULL)->worth());
        best_is_there |= found == xs_aead_find(NULL);
    }
    CHECK(best_is_there && strcmp(xs_backend_find(NULL), xs_aead_find(NULL)->name) == 0);
    CHECK(xs_aead_find("libcrypto") == &xs_aead_libcrypto);
    CHECK(xs_aead_find("none") == NULL && xs_aead_find("") == NULL && xs_backend_find("none") == NULL);
}

int main(void)
{
    const char *name;

    for (size_t i = 0; (name = xs_backend_name(i)) != NULL; i++) {
        ops = xs_aead_find(name);
        printf("  %s%s\n", name, ops == NULL ? ": skipped, this CPU cannot run it" : "");
        if (ops == NULL)
            continue;
        RUN(vectors);
        RUN(changes);
        RUN(rekeying);
        RUN(borders);
        RUN(same_as_libcrypto);
    }
    RUN(choice);
    return 0;
}
