/* libxlutil: xl's global configuration, made of two settings from the books. */
#include <errno.h>
#include <libxl.h>
#include <libxlutil.h>
#include <stdlib.h>
#include <string.h>

#include "books.h"

struct XLU_Config {
    char lockfile[BOOKS_PATH];
    char autoballoon[16];
};

XLU_Config *xlu_cfg_init(FILE *report, const char *name)
{
    XLU_Config *config = calloc(1, sizeof(*config));

    (void)report;
    (void)name;
    if (config)
        books_path(config->lockfile, "xl.lock");
    return config;
}

int xlu_cfg_readdata(XLU_Config *config, const char *data, int length)
{
    (void)data;
    (void)length;
    /* Off: xl's lock over a whole restore is a fault that a test asks for. */
    if (!books_fault("autoballoon", config->autoballoon, sizeof(config->autoballoon)))
        strcpy(config->autoballoon, "off");
    return 0;
}

void xlu_cfg_destroy(XLU_Config *config)
{
    (void)config;  /* xl keeps pointers into it */
}

int xlu_cfg_get_string(const XLU_Config *config, const char *name, const char **value, int quiet)
{
    (void)quiet;
    if (!strcmp(name, "lockfile"))
        *value = config->lockfile;
    else if (!strcmp(name, "autoballoon"))
        *value = config->autoballoon;
    else
        return ESRCH;
    return 0;
}

int xlu_cfg_replace_string(const XLU_Config *config, const char *name, char **value, int quiet)
{
    (void)config;
    (void)name;
    (void)value;
    (void)quiet;
    return ESRCH;
}

int xlu_cfg_get_long(const XLU_Config *config, const char *name, long *value, int quiet)
{
    (void)config;
    (void)name;
    (void)value;
    (void)quiet;
    return ESRCH;
}

int xlu_cfg_get_bounded_long(const XLU_Config *config, const char *name, long min, long max,
                             long *value, int quiet)
{
    (void)min;
    (void)max;
    return xlu_cfg_get_long(config, name, value, quiet);
}

int xlu_cfg_get_defbool(const XLU_Config *config, const char *name, libxl_defbool *value, int quiet)
{
    (void)config;
    (void)name;
    (void)value;
    (void)quiet;
    return ESRCH;
}
