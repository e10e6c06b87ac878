/* The libxl calls that xl makes about domains during a migration. */
#define _GNU_SOURCE
#include <errno.h>
#include <libxl.h>
#include <libxl_event.h>
#include <libxl_utils.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "books.h"
#include "stream.h"

#define EVENT_POLL_NS (20 * 1000 * 1000)  /* 20 ms: a monitor's death is seen soon enough */

/* One xl process deals with one configuration: its JSON text waits here. */
static char *config_json;
static uint32_t watched;

void libxl_domain_config_init(libxl_domain_config *config)
{
    memset(config, 0, sizeof(*config));
}

void libxl_domain_config_dispose(libxl_domain_config *config)
{
    libxl_domain_config_init(config);
}

static int config_take(libxl_domain_config *config, const char *json)
{
    char name[BOOKS_NAME];
    const char *here = strstr(json, "\"c_info\"");

    here = here ? strstr(here, "\"name\"") : NULL;
    if (!here || sscanf(here + 6, " : \"%127[^\"]\"", name) != 1)
        return ERROR_FAIL;
    free(config_json);
    config_json = strdup(json);
    config->c_info.name = strdup(name);
    /* xl looks at the type once, for affinity masks that are not set here: any will do. */
    config->c_info.type = LIBXL_DOMAIN_TYPE_PVH;
    config->b_info.type = LIBXL_DOMAIN_TYPE_PVH;
    return 0;
}

int libxl_domain_config_from_json(libxl_ctx *ctx, libxl_domain_config *config, const char *json)
{
    (void)ctx;
    return config_take(config, json);
}

char *libxl_domain_config_to_json(libxl_ctx *ctx, libxl_domain_config *config)
{
    (void)ctx;
    (void)config;
    return config_json ? strdup(config_json) : NULL;
}

/* xl's own: it prints with it. A "number" is written as it stands, so the text need not be taken apart. */
__attribute__((weak)) int yajl_gen_number(void *generator, const char *text, size_t length);

int libxl_domain_config_gen_json(void *generator, libxl_domain_config *config)
{
    (void)config;
    return config_json && yajl_gen_number ? yajl_gen_number(generator, config_json, strlen(config_json)) : 0;
}

int libxl_retrieve_domain_configuration(libxl_ctx *ctx, uint32_t domid,
                                        libxl_domain_config *config, const libxl_asyncop_how *how)
{
    struct domain domain;
    void *json = NULL;
    int size, rc = ERROR_FAIL;
    char *text;

    (void)how;
    books_log("libxl_retrieve_domain_configuration", "domid=%u", domid);
    if (!books_load(domid, &domain) || libxl_read_file_contents(ctx, domain.config, &json, &size))
        return ERROR_DOMAIN_NOTFOUND;
    text = strndup(json, (size_t)size);
    if (text)
        rc = config_take(config, text);
    free(text);
    free(json);
    return rc;
}

int libxl_name_to_domid(libxl_ctx *ctx, const char *name, uint32_t *domid)
{
    struct domain domain;

    (void)ctx;
    if (!books_find(name, &domain))
        return ERROR_INVAL;
    *domid = domain.id;
    return 0;
}

int libxl_domain_qualifier_to_domid(libxl_ctx *ctx, const char *name, uint32_t *domid)
{
    char *end;
    unsigned long id = strtoul(name, &end, 10);

    if (*end)
        return libxl_name_to_domid(ctx, name, domid);
    *domid = (uint32_t)id;
    return 0;
}

char *libxl_domid_to_name(libxl_ctx *ctx, uint32_t domid)
{
    struct domain domain;

    (void)ctx;
    return books_load(domid, &domain) ? strdup(domain.name) : NULL;
}

int libxl_domid_valid_guest(uint32_t domid)
{
    return domid > 0 && domid < 0x7ff0u /* DOMID_FIRST_RESERVED */;
}

/* KiB that the domain has, by its configuration; 0 where that does not say. */
static uint64_t memory_kb(const struct domain *domain)
{
    char text[4096];
    const char *here;
    size_t got;
    FILE *file = fopen(domain->config, "re");

    if (!file)
        return 0;
    got = fread(text, 1, sizeof(text) - 1, file);
    fclose(file);
    text[got] = 0;
    here = strstr(text, "\"target_memkb\":");
    return here ? strtoull(here + sizeof("\"target_memkb\":") - 1, NULL, 10) : 0;
}

/* A domain that is being restored gets its memory page by page. */
static bool half_built(const struct domain *domain)
{
    static const char suffix[] = "--incoming";
    size_t length = strlen(domain->name), tail = sizeof(suffix) - 1;

    return length > tail && !strcmp(domain->name + length - tail, suffix) && !domain->bytes;
}

static void fill_info(libxl_dominfo *info, const struct domain *domain)
{
    memset(info, 0, sizeof(*info));
    info->current_memkb = info->max_memkb = memory_kb(domain);
    if (half_built(domain))
        info->current_memkb = 1024 * books_fault_number("populated", 0);
    info->domid = domain->id;
    info->running = !strcmp(domain->state, "running");
    info->paused = !strcmp(domain->state, "paused");
    info->shutdown = !strcmp(domain->state, "suspended");
    info->shutdown_reason = LIBXL_SHUTDOWN_REASON_SUSPEND;
    info->vcpu_online = 1;
}

void libxl_dominfo_init(libxl_dominfo *info)
{
    memset(info, 0, sizeof(*info));
}

void libxl_dominfo_dispose(libxl_dominfo *info)
{
    libxl_dominfo_init(info);
}

int libxl_domain_info(libxl_ctx *ctx, libxl_dominfo *info, uint32_t domid)
{
    struct domain domain;

    (void)ctx;
    if (!books_load(domid, &domain))
        return ERROR_DOMAIN_NOTFOUND;
    if (info)
        fill_info(info, &domain);
    return 0;
}

libxl_dominfo *libxl_list_domain(libxl_ctx *ctx, int *count)
{
    uint32_t ids[256];
    size_t i, number = books_list(ids, sizeof(ids) / sizeof(ids[0]));
    libxl_dominfo *list = calloc(number + 1, sizeof(*list));
    struct domain domain = {0};

    (void)ctx;
    *count = 0;
    /* A half-built domain has no name yet, and is listed all the same. */
    for (i = 0; list && i < number; i++) {
        if (books_load(ids[i], &domain) || domain.state[0])
            fill_info(&list[(*count)++], &domain);
        domain.state[0] = 0;
    }
    return list;
}

void libxl_dominfo_list_free(libxl_dominfo *list, int count)
{
    (void)count;
    free(list);
}

int libxl_domain_rename(libxl_ctx *ctx, uint32_t domid, const char *from, const char *to)
{
    struct domain domain, other;

    (void)ctx;
    books_log("libxl_domain_rename", "domid=%u from=%s to=%s", domid, from, to);
    books_point("rename");
    if (!books_load(domid, &domain) || (from && strcmp(domain.name, from)) || books_find(to, &other))
        return ERROR_FAIL;
    snprintf(domain.name, sizeof(domain.name), "%s", to);
    return books_store(&domain) ? ERROR_FAIL : 0;
}

int libxl_domain_pause(libxl_ctx *ctx, uint32_t domid, const libxl_asyncop_how *how)
{
    (void)ctx;
    (void)how;
    books_log("libxl_domain_pause", "domid=%u", domid);
    return books_set_state(domid, "paused") ? ERROR_FAIL : 0;
}

int libxl_domain_unpause(libxl_ctx *ctx, uint32_t domid, const libxl_asyncop_how *how)
{
    struct domain domain;

    (void)ctx;
    (void)how;
    books_log("libxl_domain_unpause", "domid=%u", domid);
    books_point("unpause");
    if (books_fault_number("unpause_fail", 0))
        return ERROR_FAIL;
    if (!books_load(domid, &domain) || strcmp(domain.state, "paused"))
        return ERROR_FAIL;
    return books_set_state(domid, "running") ? ERROR_FAIL : 0;
}

int libxl_domain_destroy(libxl_ctx *ctx, uint32_t domid, const libxl_asyncop_how *how)
{
    (void)ctx;
    (void)how;
    books_log("libxl_domain_destroy", "domid=%u", domid);
    books_point("destroy");
    return books_remove(domid) ? ERROR_FAIL : 0;
}

int libxl_domain_resume(libxl_ctx *ctx, uint32_t domid, int cancel, const libxl_asyncop_how *how)
{
    struct domain domain;

    (void)ctx;
    (void)cancel;
    (void)how;
    books_log("libxl_domain_resume", "domid=%u", domid);
    books_point("resume");
    if (books_fault_number("resume_fail", 0))
        return ERROR_FAIL;
    if (!books_load(domid, &domain))
        return ERROR_FAIL;
    if (strcmp(domain.state, "suspended")) {
        /* What libxc says when the stream broke before the guest was stopped. */
        fprintf(stderr, "xc: error: Dom %u not suspended: Internal error\n", domid);
        return ERROR_FAIL;
    }
    return books_set_state(domid, "running") ? ERROR_FAIL : 0;
}

struct job {
    int fd;
    uint32_t domid;
    bool remus;
    int interval;
    struct result result;
};

static void send_work(void *argument)
{
    struct job *job = argument;

    job->result.rc = job->remus ? stream_replicate(job->fd, job->domid, job->interval)
                                : stream_send(job->fd, job->domid);
}

static void receive_work(void *argument)
{
    struct job *job = argument;

    stream_receive(job->fd, job->remus, &job->result);
}

int libxl_domain_suspend(libxl_ctx *ctx, uint32_t domid, int fd, int flags,
                         const libxl_asyncop_how *how)
{
    struct job job = {.fd = fd, .domid = domid};
    char text[16];

    (void)ctx;
    (void)how;
    books_log("libxl_domain_suspend", "domid=%u debug=%d live=%d", domid,
              !!(flags & LIBXL_SUSPEND_DEBUG), !!(flags & LIBXL_SUSPEND_LIVE));
    if (books_fault("suspend_fail", text, sizeof(text)))
        return atoi(text);
    helper_run(send_work, &job, &job.result);
    return job.result.rc;
}

int libxl_domain_remus_start(libxl_ctx *ctx, libxl_domain_remus_info *info, uint32_t domid,
                             int send_fd, int recv_fd, const libxl_asyncop_how *how)
{
    struct job job = {.fd = send_fd, .domid = domid, .remus = true, .interval = info->interval};

    (void)ctx;
    (void)recv_fd;
    (void)how;
    books_log("libxl_domain_remus_start", "domid=%u interval=%d", domid, info->interval);
    helper_run(send_work, &job, &job.result);
    return job.result.rc;
}

/* The domain exists, paused, from before the first byte of its stream is read. */
static int make_domain(struct domain *domain, const char *name)
{
    FILE *file;
    int failed;

    if (books_find(name, domain)) {
        fprintf(stderr, "libxl: error: Domain with name \"%s\" already exists\n", name);
        return ERROR_FAIL;
    }
    memset(domain, 0, sizeof(*domain));
    domain->id = books_new_id();
    if (!domain->id)
        return ERROR_FAIL;
    snprintf(domain->name, sizeof(domain->name), "%s", name);
    snprintf(domain->state, sizeof(domain->state), "paused");
    file = fopen(books_path(domain->config, "configs/%u.json", domain->id), "we");
    failed = !file || fputs(config_json ? config_json : "", file) < 0;
    if (file)
        failed |= fclose(file);
    return failed || books_store(domain) ? ERROR_FAIL : 0;
}

static int restore(struct domain *domain, int fd, bool remus)
{
    struct job job = {.fd = fd, .remus = remus};

    helper_run(receive_work, &job, &job.result);
    books_log("received", "domid=%u bytes=%llu rc=%d digest=%s", domain->id,
              (unsigned long long)job.result.bytes, job.result.rc, job.result.digest);
    if (job.result.rc) {
        fprintf(stderr, "libxl: error: Domain %u:cannot (re-)build domain: %d\n", domain->id,
                job.result.rc);
        books_remove(domain->id);
        return job.result.rc;
    }
    domain->bytes = job.result.bytes;
    memcpy(domain->digest, job.result.digest, sizeof(domain->digest));
    return books_store(domain) ? ERROR_FAIL : 0;
}

int libxl_domain_create_restore(libxl_ctx *ctx, libxl_domain_config *config, uint32_t *domid,
                                int restore_fd, int send_back_fd,
                                const libxl_domain_restore_params *params,
                                const libxl_asyncop_how *how,
                                const libxl_asyncprogress_how *console)
{
    bool remus = params->checkpointed_stream != LIBXL_CHECKPOINTED_STREAM_NONE;
    struct domain domain;
    int rc;

    (void)ctx;
    (void)send_back_fd;
    (void)how;
    (void)console;
    books_log("libxl_domain_create_restore", "name=%s checkpointed=%d", config->c_info.name,
              params->checkpointed_stream);
    if (books_fault_number("restore_refuse", 0))
        return ERROR_FAIL;
    rc = make_domain(&domain, config->c_info.name);
    if (!rc)
        rc = restore(&domain, restore_fd, remus);
    if (rc)
        return rc;
    *domid = domain.id;
    books_point("ready");
    return 0;
}

int libxl_evenable_domain_death(libxl_ctx *ctx, uint32_t domid, libxl_ev_user user,
                                libxl_evgen_domain_death **generator)
{
    (void)ctx;
    (void)user;
    books_log("libxl_evenable_domain_death", "domid=%u", domid);
    watched = domid;
    *generator = NULL;
    return 0;
}

/*
 * Blocks until the watched domain is gone or suspended. Only a guest that
 * has run since can have been suspended under this monitor.
 */
int libxl_event_wait(libxl_ctx *ctx, libxl_event **event, uint64_t mask,
                     libxl_event_predicate *predicate, void *user)
{
    struct timespec poll = {.tv_nsec = EVENT_POLL_NS};
    struct domain domain;
    bool there;

    (void)ctx;
    (void)mask;
    (void)predicate;
    (void)user;
    while ((there = books_load(watched, &domain)) && strcmp(domain.state, "suspended"))
        nanosleep(&poll, NULL);
    *event = calloc(1, sizeof(**event));
    if (!*event)
        return ERROR_NOMEM;
    (*event)->domid = watched;
    (*event)->type = there ? LIBXL_EVENT_TYPE_DOMAIN_SHUTDOWN : LIBXL_EVENT_TYPE_DOMAIN_DEATH;
    (*event)->u.domain_shutdown.shutdown_reason = LIBXL_SHUTDOWN_REASON_SUSPEND;
    return 0;
}

void libxl_event_free(libxl_ctx *ctx, libxl_event *event)
{
    (void)ctx;
    free(event);
}
