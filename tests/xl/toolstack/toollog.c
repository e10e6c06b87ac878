/* libxentoollog: a logger that logs nothing; the stubs write to stderr themselves. */
#include <stdlib.h>
#include <xentoollog.h>

struct xentoollog_logger_stdiostream {
    char unused;
};

xentoollog_logger_stdiostream *xtl_createlogger_stdiostream(FILE *file, xentoollog_level level,
                                                            unsigned flags)
{
    (void)file;
    (void)level;
    (void)flags;
    return malloc(sizeof(xentoollog_logger_stdiostream));
}

void xtl_stdiostream_adjust_flags(xentoollog_logger_stdiostream *logger, unsigned set,
                                  unsigned clear)
{
    (void)logger;
    (void)set;
    (void)clear;
}

void xtl_logger_destroy(struct xentoollog_logger *logger)
{
    free(logger);
}
