/*
 * The books of one stub host: a folder that stands for everything a
 * hypervisor, xenstore and libxl know. Its layout:
 *
 *   domains/ID        KEY=VALUE lines: name, state, config, stream, bytes, digest
 *   configs/ID.json   the domain's configuration as libxl would give it
 *   faults            KEY=VALUE lines: what is to go wrong (see hosts.py)
 *   calls.log         one line a toolstack call
 *   log/              logs of the monitor daemons
 *   held.POINT        made when a process has stopped at a fault point
 *   release.POINT     made by the test to let it go on
 */
#ifndef BOOKS_H
#define BOOKS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define BOOKS_PATH 1024   /* bytes, room for a path inside pytest's tmp_path */
#define BOOKS_NAME 128    /* bytes; xl's own names are far shorter */
#define BOOKS_NONE UINT64_MAX

struct domain {
    uint32_t id;
    char name[BOOKS_NAME];
    char state[16];           /* running, paused or suspended */
    char config[BOOKS_PATH];  /* file with the JSON configuration */
    char stream[BOOKS_PATH];  /* file with the libxl stream to send */
    uint64_t bytes;           /* length of the stream it was restored from */
    char digest[65];          /* SHA-256 of that stream, hexadecimal */
};

/* Path of a file in the books, in a buffer of BOOKS_PATH bytes. */
char *books_path(char *path, const char *format, ...)
    __attribute__((format(printf, 2, 3)));

/* True if the books still exist: a test may have removed them. */
bool books_exist(void);

/* Take a free domain id; the domain's file exists (empty) afterwards. 0 on failure. */
uint32_t books_new_id(void);

/* Read the domain; false if there is none with that id. */
bool books_load(uint32_t id, struct domain *domain);

/* Read the domain of that name; false if there is none. */
bool books_find(const char *name, struct domain *domain);

/* Write the domain's file, whole or not at all. 0 or -1. */
int books_store(const struct domain *domain);

/* Set the state alone. 0, or -1 if the domain is gone. */
int books_set_state(uint32_t id, const char *state);

/* Forget the domain. 0 or -1. */
int books_remove(uint32_t id);

/* Ids of all domains in ascending order, at most max; returns their number. */
size_t books_list(uint32_t *ids, size_t max);

/* Note a toolstack call: "TIME PID CALL key=value ...". */
void books_log(const char *call, const char *format, ...)
    __attribute__((format(printf, 2, 3)));

/* Look up a fault's text; false if it is not set. */
bool books_fault(const char *key, char *value, size_t size);

/* Look up a fault's number, or return none. */
uint64_t books_fault_number(const char *key, uint64_t none);

/*
 * A fault point: sleeps POINT_sleep seconds, and with POINT_hold set makes
 * held.POINT and waits for release.POINT (or for the books to go away).
 */
void books_point(const char *point);

#endif
