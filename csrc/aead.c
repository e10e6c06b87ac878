#include "aead.h"

#include <string.h>

static const struct xs_aead_ops *const backends[] = {
#ifdef XS_WITH_IPSEC_MB
    &xs_aead_ipsecmb,
#endif
    &xs_aead_libcrypto,
};

enum { BACKENDS = sizeof(backends) / sizeof(backends[0]) };

/* The name of the i-th backend that is compiled in; NULL behind the last. */
const char *xs_backend_name(size_t i)
{
    return i < BACKENDS ? backends[i]->name : NULL;
}

/* The backend of that name, or the best there is for NULL. NULL when there is none of that name that this CPU can run. */
const struct xs_aead_ops *xs_aead_find(const char *name)
{
    const struct xs_aead_ops *best = NULL;

    for (size_t i = 0; i < BACKENDS; i++) {
        if (name != NULL && strcmp(name, backends[i]->name) != 0)
            continue;
        if (backends[i]->worth() > (best != NULL ? best->worth() : XS_AEAD_UNUSABLE))
            best = backends[i];
    }
    return best;
}

/* The backend that a link with that name would use (NULL: the best there is); NULL when it is not compiled in or this CPU cannot run it. */
const char *xs_backend_find(const char *name)
{
    const struct xs_aead_ops *ops = xs_aead_find(name);

    return ops != NULL ? ops->name : NULL;
}
