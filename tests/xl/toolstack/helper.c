#define _GNU_SOURCE
#include "stream.h"

#include <errno.h>
#include <fcntl.h>
#include <libxl.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

static void report_death(pid_t pid, int status)
{
    if (WIFSIGNALED(status))
        fprintf(stderr, "libxl: error: save/restore helper [%ld] died due to fatal signal %s\n",
                (long)pid, strsignal(WTERMSIG(status)));
    else
        fprintf(stderr, "libxl: error: save/restore helper [%ld] exited with status %d\n",
                (long)pid, WEXITSTATUS(status));
}

static void child(void (*work)(void *), void *argument, struct result *result, int fd)
{
    /* As the real helper: a dead transport kills it, xl then reports -3. */
    signal(SIGPIPE, SIG_DFL);
    prctl(PR_SET_NAME, "libxl-save-help");
    work(argument);
    _exit(write(fd, result, sizeof(*result)) == (ssize_t)sizeof(*result) ? 0 : 1);
}

void helper_run(void (*work)(void *), void *argument, struct result *result)
{
    int ends[2], status = 0;
    ssize_t got;
    pid_t pid;

    result->rc = ERROR_FAIL;
    if (pipe2(ends, O_CLOEXEC))
        return;
    pid = fork();
    if (pid == 0) {
        close(ends[0]);
        child(work, argument, result, ends[1]);
    }
    close(ends[1]);
    do
        got = read(ends[0], result, sizeof(*result));
    while (got < 0 && errno == EINTR);
    close(ends[0]);
    while (pid > 0 && waitpid(pid, &status, 0) < 0 && errno == EINTR)
        ;
    if (got != (ssize_t)sizeof(*result)) {
        report_death(pid, status);
        result->rc = ERROR_FAIL;
    }
}
