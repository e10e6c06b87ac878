/* PID 1 of the tests' guests: writes to memory, counts, and checks what it has written. A line every 100 ms: "T count boot-id ok|BAD".
   A quarter of its working set (lab.ws=MIB) is rewritten again and again, a quarter is fixed noise, a quarter text, a quarter empty. */
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <unistd.h>

enum { PAGE_WORDS = 512, CHANGED_PER_TICK = 50, CHECK_EVERY = 10 };

static uint64_t mix(uint64_t x)
{
    x ^= x >> 33;
    x *= 0xff51afd7ed558ccdULL;
    x ^= x >> 33;
    x *= 0xc4ceb9fe1a85ec53ULL;
    return x ^ (x >> 33);
}

static void read_text(const char *path, char *text, size_t size)
{
    int file = open(path, O_RDONLY);
    ssize_t count = file < 0 ? -1 : read(file, text, size - 1);
    text[count > 0 ? count : 0] = 0;
    if (file >= 0)
        close(file);
}

int main(void)
{
    char line[1024], boot[37];
    mount("proc", "/proc", "proc", 0, NULL);
    mount("dev", "/dev", "devtmpfs", 0, NULL);
    int console = open("/dev/hvc0", O_WRONLY | O_NOCTTY);
    if (console < 0)
        console = 1;
    read_text("/proc/cmdline", line, sizeof line);
    read_text("/proc/sys/kernel/random/boot_id", boot, sizeof boot);
    const char *option = strstr(line, "lab.ws=");
    size_t pages = (size_t)(option ? atoi(option + 7) : 32) * 256;
    uint64_t (*page)[PAGE_WORDS] = malloc(pages * sizeof *page);
    uint64_t *written = calloc(pages, sizeof *written); /* how often each page was rewritten */
    if (page == NULL || written == NULL)
        return 1;
    for (size_t p = 0; p < pages; p++)
        for (size_t word = 0; word < PAGE_WORDS; word++)
            page[p][word] = p % 4 == 3 ? 0 : p % 4 == 2 ? 0x2074786574206e61ULL : mix(p * PAGE_WORDS + word);
    for (uint64_t tick = 1;; tick++) {
        for (size_t k = 0; k < CHANGED_PER_TICK; k++) {
            size_t p = (mix(tick * CHANGED_PER_TICK + k) % pages) & ~(size_t)3;
            written[p]++;
            for (size_t word = 0; word < 4; word++)
                page[p][word * 128] = mix(p + (written[p] << 32) + word);
        }
        int bad = 0;
        if (tick % CHECK_EVERY == 0)
            for (size_t p = 0; p < pages; p++)
                for (size_t word = 0; word < PAGE_WORDS; word++) {
                    uint64_t expected = p % 4 == 3 ? 0 : p % 4 == 2 ? 0x2074786574206e61ULL : mix(p * PAGE_WORDS + word);
                    if (p % 4 == 0 && word % 128 == 0 && written[p])
                        expected = mix(p + (written[p] << 32) + word / 128);
                    bad += page[p][word] != expected;
                }
        int size = snprintf(line, sizeof line, "T %llu %s %s\n", (unsigned long long)tick, boot, bad ? "BAD" : "ok");
        if (write(console, line, (size_t)size) < 0)
            return 1;
        usleep(100000);
    }
}
