/* Preloaded into hookrun by the crash tests and the fault tests: kills the process at a chosen boundary (a call after which a crash
 * leaves other things on the disk than before it), gives it another clock, or lets a file system hang. Production code stays as it is.
 *
 *   BOUNDARY_LOG=FILE        write the name of each boundary, one a line
 *   BOUNDARY_KILL=N          SIGKILL before the N-th; BOUNDARY_AFTER=1: after it
 *   RENAME_HANGS=TEXT        renaming into a directory with TEXT in its path takes a minute
 *   CLOCK_SHIFT=SECONDS      added to the time of day; the monotonic clock goes on as it is
 *
 * Boundaries are counted per process. Processes that run or compile plugins are left alone: they write nothing of the queue's. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

static atomic_int count;
static int at, after, enabled;
static const char *log_path, *hangs;
static long shift;

static int runs_plugins(void) {
    static char line[65536];
    int fd = open("/proc/self/cmdline", O_RDONLY | O_CLOEXEC);
    ssize_t size = fd < 0 ? 0 : read(fd, line, sizeof line - 1);
    if (fd >= 0) close(fd);
    for (char *word = line; word < line + (size > 0 ? size : 0); word += strlen(word) + 1)
        if (strcmp(word, "runner") == 0 || strncmp(word, "compile", 7) == 0) return 1;
    return 0;
}

__attribute__((constructor)) static void begin(void) {
    const char *text = getenv("CLOCK_SHIFT");
    shift = text ? atol(text) : 0;
    text = getenv("BOUNDARY_KILL");
    at = text ? atoi(text) : 0;
    after = getenv("BOUNDARY_AFTER") != NULL;
    log_path = getenv("BOUNDARY_LOG");
    hangs = getenv("RENAME_HANGS");
    enabled = (at > 0 || log_path) && !runs_plugins();
}

static int enter(const char *name) {
    if (!enabled) return 0;
    int number = ++count;
    if (log_path) {
        char line[64];
        size_t size = strlen(name);
        memcpy(line, name, size);
        line[size++] = '\n';
        int fd = open(log_path, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0644);
        if (fd >= 0) {
            if (write(fd, line, size) < 0) _exit(99);
            close(fd);
        }
    }
    if (number == at && !after) kill(getpid(), SIGKILL);
    return number;
}

static void leave(int number) {
    if (enabled && number == at && after) kill(getpid(), SIGKILL);
}

#define BOUNDARY_AS(function, name, parameters, arguments)               \
    function parameters {                                                \
        static int(*next) parameters;                                    \
        if (!next) next = (int(*) parameters)dlsym(RTLD_NEXT, #name);    \
        int number = enter(#name);                                       \
        int result = next arguments;                                     \
        leave(number);                                                   \
        return result;                                                   \
    }
#define BOUNDARY(name, parameters, arguments) BOUNDARY_AS(int name, name, parameters, arguments)

BOUNDARY(fsync, (int fd), (fd))
BOUNDARY(fdatasync, (int fd), (fd))
BOUNDARY(rename, (const char *from, const char *to), (from, to))
BOUNDARY_AS(static int renameat_boundary, renameat, (int a, const char *from, int b, const char *to), (a, from, b, to))
int renameat(int a, const char *from, int b, const char *to) {
    char link[64], path[4096];
    snprintf(link, sizeof link, "/proc/self/fd/%d", b);
    ssize_t size = readlink(link, path, sizeof path - 1);
    path[size > 0 ? size : 0] = 0;
    if (hangs && strstr(path, hangs)) sleep(60);
    return renameat_boundary(a, from, b, to);
}
BOUNDARY(renameat2, (int a, const char *from, int b, const char *to, unsigned flags), (a, from, b, to, flags))
BOUNDARY(unlink, (const char *path), (path))
BOUNDARY(unlinkat, (int fd, const char *path, int flags), (fd, path, flags))
BOUNDARY(symlink, (const char *target, const char *path), (target, path))

int clock_gettime(clockid_t id, struct timespec *time) {
    static int (*next)(clockid_t, struct timespec *);
    if (!next) next = (int (*)(clockid_t, struct timespec *))dlsym(RTLD_NEXT, "clock_gettime");
    int result = next(id, time);
    if (result == 0 && id == CLOCK_REALTIME) time->tv_sec += shift;
    return result;
}
