/* A program that loads a plugin with libcmm in it (its path is the argument), uses it, unloads it, and again. The
 * threads end before their code goes, and what was to be called at a fork is forgotten with it. On Windows, where no
 * thread can end while its code goes, that stays. musl unloads nothing: there all of it stays, and works.
 *
 *     plugin_host plugin few    fewer rounds and calls, for an emulator */
#define _GNU_SOURCE
#include "check.h"
#include "system.h"

#if defined(_WIN32)
static void round_trip(const char *file, int calls)
{
    void *const plugin = library_open(file);
    int (*use)(int) = NULL;
    void *const symbol = plugin ? library_symbol(plugin, "use") : NULL;
    memcpy(&use, &symbol, sizeof use);
    CHECK(use != NULL, "%s", plugin ? "no function" : "no library");
    if (!use)
        return;
    CHECK(use(calls) == 0, "a call");
    CHECK(library_close(plugin) && library_is_loaded(file), "it should stay");
    Sleep(10); /* its threads go on waiting, in its code */
    CHECK(use(1) == 0, "a call after it was unloaded");
}
#else
#include <dirent.h>
#include <sys/wait.h>
#include <unistd.h>

/* Threads of this process, or 1 where the system does not tell. */
static int threads(void)
{
    int count = 0;
    DIR *const folder = opendir("/proc/self/task");
    if (!folder)
        return 1;
    for (const struct dirent *entry; (entry = readdir(folder)) != NULL;)
        count += entry->d_name[0] != '.';
    (void)closedir(folder);
    return count;
}

static void round_trip(const char *file, int calls)
{
    const int unloads = library_unloads(file), before = threads();
    CHECK(unloads || !SYSTEM_UNLOADS, "a plugin that was not called should go");
    void *const plugin = library_open(file);
    int (*use)(int) = NULL;
    void *const symbol = plugin ? library_symbol(plugin, "use") : NULL;
    memcpy(&use, &symbol, sizeof use);
    CHECK(use != NULL, "%s", plugin ? "no function" : dlerror());
    if (!use)
        return;
    CHECK(use(calls) == 0, "a call");
    const int during = threads(), after = unloads ? before : during;
    CHECK(during == 1 || during > (unloads ? before : 1), "it should have threads to end");
    CHECK(library_close(plugin) && library_is_loaded(file) == !unloads, "it should be %s", unloads ? "gone" : "there");
    CHECK(unloads || use(1) == 0, "a call after it was closed");
    /* A thread that was joined runs none of our code any more, but may be listed a little longer. */
    for (int i = 0; i < 1000 && threads() != after; i++)
        (void)usleep(1000);
    CHECK(threads() == after, "%d threads are left, and it should be %d", threads(), after);
    (void)usleep(1000);

    int status = 1;
    fflush(stdout);
    const pid_t child = fork();
    if (child == 0)
        _exit(0);
    CHECK(child > 0 && waitpid(child, &status, 0) == child && status == 0, "a child after it was closed: %d", status);
}
#endif

int main(int argc, char **argv)
{
    if (argc < 2) {
        printf("usage: %s plugin [few]\n", argv[0]);
        return 2;
    }
    const int few = argc > 2 && strcmp(argv[2], "few") == 0;
    for (int i = 0; i < (few ? 2 : 5); i++)
        round_trip(argv[1], few ? 2 : 20);
    return check_report();
}
