/* Memory between two pages that no one may touch. Files that include it define _GNU_SOURCE first. */
#ifndef GUARD_H
#define GUARD_H

#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

enum { BUFFERS = 7 };

static struct {
    char *start; /* of the pages that may be touched */
    size_t bytes;
} buffers[BUFFERS];

static char now[256]; /* what is being tried, for the signal handler */

static void on_fault(int signal_number)
{
    (void)signal_number;
    static const char text[] = "memory outside the arrays was touched by ";
    const ssize_t written = write(1, text, sizeof text - 1) + write(1, now, strlen(now)) + write(1, "\n", 1);
    _exit(written > 0 ? 3 : 4);
}

/* Memory for an array in buffer number `which`, at its upper end or its lower. */
static void *guarded(int which, int64_t elements, size_t size, int at_end)
{
    const size_t bytes = (size_t)elements * size;
    if (bytes > buffers[which].bytes) {
        printf("buffer %d is too small\n", which);
        exit(2);
    }
    return buffers[which].start + (at_end ? buffers[which].bytes - bytes : 0);
}

/* BUFFERS of them, of so many bytes; and touching the pages beside them ends the program with what was tried. */
static void make_buffers(size_t bytes)
{
    struct sigaction action;
    memset(&action, 0, sizeof action);
    action.sa_handler = on_fault;
    (void)sigaction(SIGSEGV, &action, NULL);
    (void)sigaction(SIGBUS, &action, NULL);
    const size_t page = (size_t)sysconf(_SC_PAGESIZE);
    bytes = (bytes + page - 1) / page * page;
    for (int i = 0; i < BUFFERS; i++) {
        char *const all = mmap(NULL, bytes + 2 * page, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        if (all == MAP_FAILED || mprotect(all + page, bytes, PROT_READ | PROT_WRITE) != 0) {
            printf("no memory\n");
            exit(2);
        }
        buffers[i].start = all + page;
        buffers[i].bytes = bytes;
    }
}

#endif
