/*
 * What the real libxenlight asks of a hypervisor and of xenstored before it can parse a configuration, where there are neither: preloaded, every
 * answer is nothing, and every hypercall succeeds. For "xl create -n" alone, which makes nothing.
 */
#include <stdlib.h>

#define XENVER_pagesize 7

static char something[1 << 16];

void *xc_interface_open(void *logger, void *dombuild_logger, unsigned flags)
{
    (void)logger, (void)dombuild_logger, (void)flags;
    return something;
}

int xc_interface_close(void *handle)
{
    (void)handle;
    return 0;
}

void *xs_open(unsigned long flags)
{
    (void)flags;
    return something;
}

void xs_close(void *handle)
{
    (void)handle;
}

int xc_version(void *handle, int command, void *argument)
{
    (void)handle, (void)argument;
    return command == XENVER_pagesize ? 4096 : 0;
}

void *xencall_alloc_buffer(void *handle, size_t size)
{
    (void)handle;
    return calloc(1, size);
}

void xencall_free_buffer(void *handle, void *buffer)
{
    (void)handle;
    free(buffer);
}

int xencall1(void *handle, unsigned number, unsigned long first)
{
    (void)handle, (void)number, (void)first;
    return 0;
}

int xencall2(void *handle, unsigned number, unsigned long first, unsigned long second)
{
    (void)handle, (void)number, (void)first, (void)second;
    return 0;
}

long xencall2L(void *handle, unsigned number, unsigned long first, unsigned long second)
{
    (void)handle, (void)number, (void)first, (void)second;
    return 0;
}
