/*
 * In the place of the engine's pages (ld --wrap): what is small comes from malloc, so that ASan sees every byte beside it; what is large (a pump's buffers)
 * is used again by the next run, for wiping megabytes would take longer than all else.
 */
#include "fuzz.h"

enum { SMALL = 1 << 16, KEPT = 8, HEAD = 1 << 12 };

void *__real_xs_pages_new(size_t len);
void __real_xs_pages_free(void *p, size_t len);
void *__wrap_xs_pages_new(size_t len);
void __wrap_xs_pages_free(void *p, size_t len);

static struct { void *p; size_t len; } kept[KEPT];

void *__wrap_xs_pages_new(size_t len)
{
    if (len <= SMALL)
        return calloc(1, len);
    for (int i = 0; i < KEPT; i++) {
        if (kept[i].p != NULL && kept[i].len == len) {
            void *p = kept[i].p;

            kept[i].p = NULL;
            return p;
        }
    }
    return __real_xs_pages_new(len);
}

void __wrap_xs_pages_free(void *p, size_t len)
{
    if (len <= SMALL) {
        free(p);
        return;
    }
    for (int i = 0; i < KEPT && p != NULL; i++) {
        if (kept[i].p == NULL) {
            memset(p, 0, HEAD);
            kept[i].p = p;
            kept[i].len = len;
            return;
        }
    }
    __real_xs_pages_free(p, len);
}
