/* The tests' guest: writes to memory, counts, and checks what it has written. A line every 100 ms: "T count boot-id ok|BAD cpus".
   It has a thread on each CPU. A quarter of a thread's share of the working set (lab.ws=MIB) is rewritten again and again, a quarter is fixed
   noise, a quarter text, a quarter empty. BAD: memory is not what was written, or a thread has stopped. As PID 1 it mounts what it needs. */
#define _GNU_SOURCE
#include <fcntl.h>
#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/sysinfo.h>
#include <unistd.h>

enum { PAGE_WORDS = 512, CHANGED_PER_TICK = 50, CHECK_EVERY = 10, TICK_US = 100000, STALLED_TICKS = 150 /* 15 s */, CPUS_MAX = 16 };

static const uint64_t text = 0x2074786574206e61ULL;     /* "an text " */

struct worker {
    int cpu;
    size_t pages;
    uint64_t (*page)[PAGE_WORDS];
    uint64_t *written;          /* how often each page was rewritten */
    _Atomic uint64_t ticks;
    atomic_int bad;
};

static uint64_t mix(uint64_t x)
{
    x ^= x >> 33;
    x *= 0xff51afd7ed558ccdULL;
    x ^= x >> 33;
    x *= 0xc4ceb9fe1a85ec53ULL;
    return x ^ (x >> 33);
}

/* What a word of a page is before it is rewritten. */
static uint64_t initial(size_t p, size_t word)
{
    return p % 4 == 3 ? 0 : p % 4 == 2 ? text : mix(p * PAGE_WORDS + word);
}

static int prepare(struct worker *w, int cpu, size_t pages)
{
    w->cpu = cpu;
    w->pages = pages;
    w->page = malloc(pages * sizeof *w->page);
    w->written = calloc(pages, sizeof *w->written);
    if (w->page == NULL || w->written == NULL)
        return -1;
    for (size_t p = 0; p < pages; p++)
        for (size_t word = 0; word < PAGE_WORDS; word++)
            w->page[p][word] = initial(p, word);
    return 0;
}

static void rewrite(struct worker *w, uint64_t tick, size_t count)
{
    for (size_t k = 0; k < count; k++) {
        size_t p = (mix(tick * CHANGED_PER_TICK + k) % w->pages) & ~(size_t)3;

        w->written[p]++;
        for (size_t word = 0; word < 4; word++)
            w->page[p][word * 128] = mix(p + (w->written[p] << 32) + word);
    }
}

static int count_bad(const struct worker *w)
{
    int bad = 0;

    for (size_t p = 0; p < w->pages; p++)
        for (size_t word = 0; word < PAGE_WORDS; word++) {
            uint64_t expected = initial(p, word);

            if (p % 4 == 0 && word % 128 == 0 && w->written[p])
                expected = mix(p + (w->written[p] << 32) + word / 128);
            bad += w->page[p][word] != expected;
        }
    return bad;
}

static void turn(struct worker *w, int cpus)
{
    uint64_t tick = ++w->ticks;

    rewrite(w, tick, CHANGED_PER_TICK / (size_t)cpus);
    if (tick % CHECK_EVERY == 0)
        w->bad = count_bad(w) != 0;
}

static int cpus;

static void *work(void *argument)
{
    struct worker *w = argument;
    cpu_set_t set;

    CPU_ZERO(&set);
    CPU_SET(w->cpu, &set);
    sched_setaffinity(0, sizeof set, &set);
    for (;;) {
        turn(w, cpus);
        usleep(TICK_US);
    }
    return NULL;
}

static void read_text(const char *path, char *into, size_t size)
{
    int file = open(path, O_RDONLY);
    ssize_t count = file < 0 ? -1 : read(file, into, size - 1);

    into[count > 0 ? count : 0] = 0;
    if (file >= 0)
        close(file);
}

int main(void)
{
    static struct worker worker[CPUS_MAX];
    static uint64_t seen[CPUS_MAX], when[CPUS_MAX];
    char line[1024], boot[37];
    const char *option;
    size_t pages;
    pthread_t thread;
    int console;

    if (getpid() == 1) {
        mount("proc", "/proc", "proc", 0, NULL);
        mount("dev", "/dev", "devtmpfs", 0, NULL);
        mount("sys", "/sys", "sysfs", 0, NULL);        /* where the number of CPUs stands */
    }
    console = open("/dev/hvc0", O_WRONLY | O_NOCTTY);
    if (console < 0)
        console = 1;
    read_text("/proc/cmdline", line, sizeof line);
    read_text("/proc/sys/kernel/random/boot_id", boot, sizeof boot);
    option = strstr(line, "lab.ws=");
    cpus = get_nprocs();
    if (cpus > CPUS_MAX)
        cpus = CPUS_MAX;
    pages = (size_t)(option ? atoi(option + 7) : 32) * 256 / (size_t)cpus;
    for (int cpu = 0; cpu < cpus; cpu++) {
        if (prepare(&worker[cpu], cpu, pages) != 0)
            return 1;
        if (cpu > 0 && pthread_create(&thread, NULL, work, &worker[cpu]) != 0)
            return 1;
    }
    for (uint64_t tick = 1;; tick++) {
        int bad = 0, size;

        turn(&worker[0], cpus);
        for (int cpu = 0; cpu < cpus; cpu++) {
            if (worker[cpu].ticks != seen[cpu]) {
                seen[cpu] = worker[cpu].ticks;
                when[cpu] = tick;
            }
            bad |= worker[cpu].bad | (tick - when[cpu] > STALLED_TICKS);
        }
        size = snprintf(line, sizeof line, "T %llu %s %s %d\n", (unsigned long long)tick, boot, bad ? "BAD" : "ok", cpus);
        if (write(console, line, (size_t)size) < 0)
            return 1;
        usleep(TICK_US);
    }
}
