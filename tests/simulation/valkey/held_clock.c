/* Loaded into a real server (LD_PRELOAD): its wall clock is eight bytes of a file, microseconds since 1970, that a test
 * writes. So two servers see the same instant, and every time, id and expiry can be compared exactly. The monotonic clock,
 * by which the server waits, is the machine's. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

static volatile int64_t *held;

__attribute__((constructor)) static void begin(void) {
    const char *path = getenv("HELD_CLOCK_FILE");
    int file = path ? open(path, O_RDONLY) : -1;
    if (file < 0) return;
    void *page = mmap(0, 8, PROT_READ, MAP_SHARED, file, 0);
    close(file);
    if (page != MAP_FAILED) held = page;
}

int clock_gettime(clockid_t id, struct timespec *at) {
    if (!held || id != CLOCK_REALTIME) return syscall(SYS_clock_gettime, id, at);
    at->tv_sec = *held / 1000000;
    at->tv_nsec = *held % 1000000 * 1000;
    return 0;
}

int gettimeofday(struct timeval *at, void *zone) {
    struct timespec now;
    (void)zone;
    clock_gettime(CLOCK_REALTIME, &now);
    at->tv_sec = now.tv_sec;
    at->tv_usec = now.tv_nsec / 1000;
    return 0;
}

time_t time(time_t *at) {
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    if (at) *at = now.tv_sec;
    return now.tv_sec;
}

/* Valkey adds the processor's cycle counter to the time that it has asked for last, unless it does not know how fast that
 * counts, which it reads here. Then it asks every time. */
FILE *fopen64(const char *path, const char *mode) {
    static FILE *(*real)(const char *, const char *);
    if (!real) real = (FILE * (*)(const char *, const char *)) dlsym(RTLD_NEXT, "fopen64");
    return held && strcmp(path, "/proc/cpuinfo") == 0 ? NULL : real(path, mode);
}
