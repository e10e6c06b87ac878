/* The libxl calls that xl needs around a migration: files, pipes, set-up. */
#include <errno.h>
#include <fcntl.h>
#include <libxl.h>
#include <libxl_event.h>
#include <libxl_utils.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include "books.h"

/*
 * What xl starts must not inherit the stub's settings: the transport would
 * run with the stub's libraries, the receiving xl with the sender's books.
 * Done here, for xl calls this after the constructors of all stubs have run.
 */
static void forget_settings(void)
{
    unsetenv("XEN_STUB_HOST");
    unsetenv("LD_LIBRARY_PATH");
}

int libxl_ctx_alloc(libxl_ctx **ctx, int version, unsigned flags, xentoollog_logger *logger)
{
    (void)version;
    (void)flags;
    (void)logger;
    forget_settings();
    *ctx = malloc(1);
    return *ctx ? 0 : ERROR_NOMEM;
}

int libxl_ctx_free(libxl_ctx *ctx)
{
    free(ctx);
    return 0;
}

int libxl_pipe(libxl_ctx *ctx, int pipes[2])
{
    (void)ctx;
    return pipe(pipes) ? ERROR_FAIL : 0;
}

int libxl_fd_set_cloexec(libxl_ctx *ctx, int fd, int cloexec)
{
    (void)ctx;
    return fcntl(fd, F_SETFD, cloexec ? FD_CLOEXEC : 0) ? ERROR_FAIL : 0;
}

int libxl_read_exactly(libxl_ctx *ctx, int fd, void *data, ssize_t size, const char *source,
                       const char *what)
{
    char *here = data;
    ssize_t got;

    (void)ctx;
    while (size > 0) {
        got = read(fd, here, (size_t)size);
        if (got < 0 && errno == EINTR)
            continue;
        if (got <= 0) {
            fprintf(stderr, "libxl: error: %s reading %s from %s\n",
                    got ? strerror(errno) : "file/stream truncated", what, source);
            return got ? errno : EPROTO;
        }
        here += got;
        size -= got;
    }
    return 0;
}

int libxl_write_exactly(libxl_ctx *ctx, int fd, const void *data, ssize_t size,
                        const char *source, const char *what)
{
    const char *here = data;
    ssize_t done;

    (void)ctx;
    while (size > 0) {
        done = write(fd, here, (size_t)size);
        if (done < 0 && errno == EINTR)
            continue;
        if (done < 0) {
            int error = errno;

            fprintf(stderr, "libxl: error: failed to write %s to %s: %s\n", what, source,
                    strerror(error));
            return error;
        }
        here += done;
        size -= done;
    }
    return 0;
}

/* xl reads its global configuration this way: the stub host has none, and no /etc/xen. */
static bool is_global_config(const char *name)
{
    return strstr(name, "/xl.conf") != NULL;
}

int libxl_read_file_contents(libxl_ctx *ctx, const char *name, void **data, int *length)
{
    FILE *file = is_global_config(name) ? NULL : fopen(name, "re");
    char *text = NULL;
    size_t size = 0, got;
    char part[4096];
    FILE *memory;

    (void)ctx;
    *data = NULL;
    *length = 0;
    if (is_global_config(name))
        return 0;
    if (!file)
        return errno;
    memory = open_memstream(&text, &size);
    while (memory && (got = fread(part, 1, sizeof(part), file)) > 0)
        fwrite(part, 1, got, memory);
    fclose(file);
    if (!memory || fclose(memory))
        return ENOMEM;
    *data = text;
    *length = (int)size;
    return 0;
}

/* The real one rotates /var/log/xen/NAME.log; the stub's logs lie in the books. */
int libxl_create_logfile(libxl_ctx *ctx, const char *name, char **full_name)
{
    char path[BOOKS_PATH];

    (void)ctx;
    *full_name = strdup(books_path(path, "log/%s.log", name));
    return *full_name ? 0 : ERROR_NOMEM;
}

void libxl_report_child_exitstatus(libxl_ctx *ctx, xentoollog_level level, const char *what,
                                   pid_t pid, int status)
{
    (void)ctx;
    (void)level;
    if (WIFSIGNALED(status))
        fprintf(stderr, "libxl: info: %s [%ld] died due to fatal signal %s\n", what, (long)pid,
                strsignal(WTERMSIG(status)));
    else
        fprintf(stderr, "libxl: info: %s [%ld] exited with error status %d\n", what, (long)pid,
                WEXITSTATUS(status));
}

void libxl_childproc_setmode(libxl_ctx *ctx, const libxl_childproc_hooks *hooks, void *user)
{
    (void)ctx;
    (void)hooks;
    (void)user;
}

void libxl_postfork_child_noexec(libxl_ctx *ctx)
{
    (void)ctx;
}

void libxl_evdisable_domain_death(libxl_ctx *ctx, libxl_evgen_domain_death *generator)
{
    (void)ctx;
    (void)generator;
}

int libxl_userdata_retrieve(libxl_ctx *ctx, uint32_t domid, const char *user, uint8_t **data,
                            int *length)
{
    (void)ctx;
    (void)domid;
    (void)user;
    *data = NULL;
    *length = 0;
    return 0;
}

/* With autoballoon xl asks for both before a restore: there is always enough. */
int libxl_domain_need_memory(libxl_ctx *ctx, libxl_domain_config *config, uint32_t domid,
                             uint64_t *need)
{
    (void)ctx;
    (void)config;
    (void)domid;
    *need = 0;
    return 0;
}

int libxl_get_free_memory(libxl_ctx *ctx, uint64_t *memory)
{
    (void)ctx;
    *memory = 1 << 20;
    return 0;
}

void libxl_bitmap_init(libxl_bitmap *bitmap)
{
    memset(bitmap, 0, sizeof(*bitmap));
}

void libxl_bitmap_dispose(libxl_bitmap *bitmap)
{
    free(bitmap->map);
    libxl_bitmap_init(bitmap);
}

/* xl fills the global masks and then asks whether they are full: yes, no affinity is set. */
int libxl_cpu_bitmap_alloc(libxl_ctx *ctx, libxl_bitmap *bitmap, int cpus)
{
    (void)ctx;
    (void)cpus;
    bitmap->size = 1;
    bitmap->map = calloc(1, bitmap->size);
    return bitmap->map ? 0 : ERROR_NOMEM;
}

int libxl_bitmap_is_full(const libxl_bitmap *bitmap)
{
    (void)bitmap;
    return 1;
}

void libxl_domain_restore_params_init(libxl_domain_restore_params *params)
{
    memset(params, 0, sizeof(*params));
}

void libxl_domain_restore_params_dispose(libxl_domain_restore_params *params)
{
    (void)params;
}

void libxl_defbool_set(libxl_defbool *value, bool set)
{
    value->val = set ? 1 : -1;
}

void libxl_defbool_setdefault(libxl_defbool *value, bool set)
{
    if (libxl_defbool_is_default(*value))
        libxl_defbool_set(value, set);
}

bool libxl_defbool_is_default(libxl_defbool value)
{
    return value.val == 0;
}

bool libxl_defbool_val(libxl_defbool value)
{
    return value.val > 0;
}
