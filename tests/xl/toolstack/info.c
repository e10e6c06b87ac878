/* What "xl info" (and, of memory claims, "xl list") asks: a machine of 16 GiB, half of them free, as far as the books say nothing else. */
#include <libxl.h>
#include <libxl_utils.h>
#include <stdlib.h>
#include <string.h>

#include "books.h"

#define PAGES_A_MIB 256  /* of 4 KiB */

void libxl_physinfo_init(libxl_physinfo *info)
{
    memset(info, 0, sizeof(*info));
}

void libxl_physinfo_dispose(libxl_physinfo *info)
{
    libxl_physinfo_init(info);
}

int libxl_get_physinfo(libxl_ctx *ctx, libxl_physinfo *info)
{
    static const libxl_hwcap skylake = { 0xbfebfbff, 0x77faf3ff, 0x2c100800, 0x00000121,
                                         0x0000000f, 0xd39ffffb, 0x00000008, 0x00000100 };
    char first[16];

    (void)ctx;
    libxl_physinfo_init(info);
    info->nr_cpus = 8;
    info->cores_per_socket = 4;
    info->threads_per_core = 2;
    info->nr_nodes = 1;
    info->cpu_khz = 2400000;
    info->total_pages = PAGES_A_MIB * books_fault_number("total_memory", 16384);
    info->free_pages = PAGES_A_MIB * books_fault_number("free_memory", 8192);
    memcpy(info->hw_cap, skylake, sizeof(skylake));
    if (books_fault("hw_caps", first, sizeof(first)))
        info->hw_cap[0] = (uint32_t)strtoul(first, NULL, 16);
    info->cap_pv = true;
    info->cap_hvm = info->cap_hap = !books_fault_number("no_hvm", 0);
    return 0;
}

const libxl_version_info *libxl_get_version_info(libxl_ctx *ctx)
{
    static char extra[] = ".5", capabilities[] = "xen-3.0-x86_64 hvm-3.0-x86_64", nothing[] = "",
                command_line[] = "dom0_mem=2048M,max:2048M";
    static libxl_version_info info = {
        .xen_version_major = 4, .xen_version_extra = extra,
        .compiler = nothing, .compile_by = nothing, .compile_domain = nothing, .compile_date = nothing,
        .capabilities = capabilities, .changeset = nothing, .pagesize = 4096,
        .commandline = command_line, .build_id = nothing,
    };

    (void)ctx;
    info.xen_version_minor = (int)books_fault_number("xen_minor", 17);
    return &info;
}

/* "free_cpus" is left out where this fails. */
int libxl_get_freecpus(libxl_ctx *ctx, libxl_bitmap *bitmap)
{
    (void)ctx;
    (void)bitmap;
    return ERROR_FAIL;
}

int libxl_get_scheduler(libxl_ctx *ctx)
{
    (void)ctx;
    return LIBXL_SCHEDULER_CREDIT2;
}

const char *libxl_scheduler_to_string(libxl_scheduler scheduler)
{
    return scheduler == LIBXL_SCHEDULER_CREDIT2 ? "credit2" : "unknown";
}
