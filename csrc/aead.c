#include "aead.h"

#include <string.h>

/* Best first. */
static const struct xs_aead_ops *const backends[] = {
    &xs_aead_libcrypto,
};

/* The backend of that name, or the best there is for NULL. NULL when there is none of that name. */
const struct xs_aead_ops *xs_aead_find(const char *name)
{
    for (size_t i = 0; i < sizeof(backends) / sizeof(backends[0]); i++)
        if (name == NULL || strcmp(name, backends[i]->name) == 0)
            return backends[i];
    return NULL;
}
