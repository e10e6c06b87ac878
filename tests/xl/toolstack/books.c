#include "books.h"

#include <ctype.h>
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#define POLL_NS (5 * 1000 * 1000)  /* 5 ms: short against a test's 2 s */
#define LINE (BOOKS_PATH + 64)

static char *host;

static __attribute__((constructor)) void take_host(void)
{
    const char *path = getenv("XEN_STUB_HOST");

    if (!path) {
        fprintf(stderr, "stub toolstack: XEN_STUB_HOST is not set\n");
        _exit(127);
    }
    host = strdup(path);
}

char *books_path(char *path, const char *format, ...)
{
    va_list args;
    int used = snprintf(path, BOOKS_PATH, "%s/", host);

    va_start(args, format);
    vsnprintf(path + used, BOOKS_PATH - (size_t)used, format, args);
    va_end(args);
    return path;
}

bool books_exist(void)
{
    return access(host, F_OK) == 0;
}

uint32_t books_new_id(void)
{
    char path[BOOKS_PATH];
    uint32_t id;
    int fd;

    for (id = 1; id < 32752 /* DOMID_FIRST_RESERVED */; id++) {
        fd = open(books_path(path, "domains/%u", id),
                  O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0644);
        if (fd >= 0) {
            close(fd);
            return id;
        }
        if (errno != EEXIST)
            break;
    }
    return 0;
}

static void copy(char *to, size_t size, const char *from)
{
    snprintf(to, size, "%s", from);
}

static void set_field(struct domain *domain, const char *key, const char *value)
{
    if (!strcmp(key, "name"))
        copy(domain->name, sizeof(domain->name), value);
    else if (!strcmp(key, "state"))
        copy(domain->state, sizeof(domain->state), value);
    else if (!strcmp(key, "config"))
        copy(domain->config, sizeof(domain->config), value);
    else if (!strcmp(key, "stream"))
        copy(domain->stream, sizeof(domain->stream), value);
    else if (!strcmp(key, "bytes"))
        domain->bytes = strtoull(value, NULL, 10);
    else if (!strcmp(key, "digest"))
        copy(domain->digest, sizeof(domain->digest), value);
}

/* Split "KEY=VALUE\n" in place; NULL if it is no such line. */
static char *split(char *line)
{
    char *value = strchr(line, '=');

    if (!value)
        return NULL;
    line[strcspn(line, "\n")] = 0;
    *value = 0;
    return value + 1;
}

bool books_load(uint32_t id, struct domain *domain)
{
    char path[BOOKS_PATH], line[LINE], *value;
    FILE *file = fopen(books_path(path, "domains/%u", id), "re");

    if (!file)
        return false;
    memset(domain, 0, sizeof(*domain));
    domain->id = id;
    while (fgets(line, sizeof(line), file)) {
        value = split(line);
        if (value)
            set_field(domain, line, value);
    }
    fclose(file);
    return domain->name[0] != 0;
}

static int compare_ids(const void *left, const void *right)
{
    uint32_t a = *(const uint32_t *)left, b = *(const uint32_t *)right;

    return (a > b) - (a < b);
}

size_t books_list(uint32_t *ids, size_t max)
{
    char path[BOOKS_PATH];
    struct dirent *entry;
    size_t count = 0;
    DIR *folder = opendir(books_path(path, "domains"));

    if (!folder)
        return 0;
    while (count < max && (entry = readdir(folder)))
        if (isdigit((unsigned char)entry->d_name[0]))
            ids[count++] = (uint32_t)atoi(entry->d_name);
    closedir(folder);
    qsort(ids, count, sizeof(*ids), compare_ids);
    return count;
}

bool books_find(const char *name, struct domain *domain)
{
    uint32_t ids[256];
    size_t i, count = books_list(ids, sizeof(ids) / sizeof(ids[0]));

    for (i = 0; i < count; i++)
        if (books_load(ids[i], domain) && !strcmp(domain->name, name))
            return true;
    return false;
}

int books_store(const struct domain *domain)
{
    char path[BOOKS_PATH], temporary[BOOKS_PATH];
    FILE *file;

    books_path(temporary, "domain-%u-%ld.tmp", domain->id, (long)getpid());
    file = fopen(temporary, "we");
    if (!file)
        return -1;
    fprintf(file, "name=%s\nstate=%s\nconfig=%s\nstream=%s\nbytes=%llu\ndigest=%s\n",
            domain->name, domain->state, domain->config, domain->stream,
            (unsigned long long)domain->bytes, domain->digest);
    if (fclose(file))
        return -1;
    return rename(temporary, books_path(path, "domains/%u", domain->id));
}

int books_set_state(uint32_t id, const char *state)
{
    struct domain domain;

    if (!books_load(id, &domain))
        return -1;
    copy(domain.state, sizeof(domain.state), state);
    return books_store(&domain);
}

int books_remove(uint32_t id)
{
    char path[BOOKS_PATH];

    return unlink(books_path(path, "domains/%u", id));
}

void books_log(const char *call, const char *format, ...)
{
    char path[BOOKS_PATH], line[2 * LINE];
    struct timespec now;
    va_list args;
    int fd, used;

    clock_gettime(CLOCK_REALTIME, &now);
    used = snprintf(line, sizeof(line), "%lld.%06ld %ld %s ", (long long)now.tv_sec,
                    now.tv_nsec / 1000, (long)getpid(), call);
    va_start(args, format);
    used += vsnprintf(line + used, sizeof(line) - (size_t)used - 1, format, args);
    va_end(args);
    if ((size_t)used > sizeof(line) - 2)
        used = sizeof(line) - 2;
    line[used++] = '\n';
    fd = open(books_path(path, "calls.log"), O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0644);
    if (fd < 0)
        return;
    /* One write to an O_APPEND file: lines of several processes never mix. */
    if (write(fd, line, (size_t)used) != used)
        fprintf(stderr, "stub toolstack: cannot write %s\n", path);
    close(fd);
}

bool books_fault(const char *key, char *text, size_t size)
{
    char path[BOOKS_PATH], line[LINE], *value;
    bool found = false;
    FILE *file = fopen(books_path(path, "faults"), "re");

    if (!file)
        return false;
    while (!found && fgets(line, sizeof(line), file)) {
        value = split(line);
        if (value && !strcmp(line, key)) {
            copy(text, size, value);
            found = true;
        }
    }
    fclose(file);
    return found;
}

uint64_t books_fault_number(const char *key, uint64_t none)
{
    char text[32];

    return books_fault(key, text, sizeof(text)) ? strtoull(text, NULL, 10) : none;
}

static void nap(double seconds)
{
    struct timespec time = {.tv_sec = (time_t)seconds};

    time.tv_nsec = (long)((seconds - (double)time.tv_sec) * 1e9);
    while (nanosleep(&time, &time) && errno == EINTR)
        ;
}

static void hold(const char *point)
{
    char held[BOOKS_PATH], release[BOOKS_PATH];
    struct timespec poll = {.tv_nsec = POLL_NS};
    int fd;

    books_log("hold", "point=%s", point);
    books_path(release, "release.%s", point);
    fd = open(books_path(held, "held.%s", point), O_WRONLY | O_CREAT | O_CLOEXEC, 0644);
    if (fd >= 0)
        close(fd);
    while (access(release, F_OK) && books_exist())
        nanosleep(&poll, NULL);
    unlink(held);
}

void books_point(const char *point)
{
    char key[64], text[32];

    snprintf(key, sizeof(key), "%s_sleep", point);
    if (books_fault(key, text, sizeof(text)))
        nap(strtod(text, NULL));
    snprintf(key, sizeof(key), "%s_hold", point);
    if (books_fault(key, text, sizeof(text)))
        hold(point);
}
