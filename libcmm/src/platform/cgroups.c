/* The CPU quota of the control groups of this process (cgroups(7), proc(5)), of both versions. */
#define _GNU_SOURCE
#include "platform.h"

#if defined(CMM_PLATFORM_POSIX)
#include <stdio.h>
#include <string.h>

enum { PATH = 4096, LINE = 3 * PATH };

/* Read one number of a file; 0 where there is none: no file, or the word "max". */
static long long read_number(const char *folder, const char *file, long long *second)
{
    char path[2 * PATH + 32];
    long long first = 0;
    (void)snprintf(path, sizeof path, "%s/%s", folder, file);
    FILE *const stream = fopen(path, "re");
    if (!stream)
        return 0;
    const int found = fscanf(stream, second ? "%lld %lld" : "%lld", &first, second);
    (void)fclose(stream);
    return found == (second ? 2 : 1) ? first : 0;
}

/* CPUs that one control group allows, rounded up; 0 for no limit. */
static int32_t group_cpus(const char *folder, int version)
{
    long long period = 0, quota;
    if (version == 2)
        quota = read_number(folder, "cpu.max", &period);
    else {
        quota = read_number(folder, "cpu.cfs_quota_us", NULL);
        period = read_number(folder, "cpu.cfs_period_us", NULL);
    }
    if (quota <= 0 || period <= 0)
        return 0;
    const long long cpus = quota / period + (quota % period != 0);
    return cpus < INT32_MAX ? (int32_t)cpus : INT32_MAX;
}

static int32_t smaller_limit(int32_t a, int32_t b)
{
    return a == 0 || (b != 0 && b < a) ? b : a;
}

/* Spaces and the like are written \040 in mountinfo. */
static void unescape(char *text)
{
    char *to = text;
    for (const char *from = text; *from; to++) {
        unsigned int code;
        if (from[0] == '\\' && sscanf(from + 1, "%3o", &code) == 1) {
            *to = (char)code;
            from += 4;
        } else
            *to = *from++;
    }
    *to = '\0';
}

static int has_word(const char *list, const char *word)
{
    const size_t length = strlen(word);
    for (const char *at = list; (at = strstr(at, word)) != NULL; at += length)
        if ((at == list || at[-1] == ',') && (at[length] == ',' || at[length] == '\0' || at[length] == '\n'))
            return 1;
    return 0;
}

/* The path of this process's group within its hierarchy, as /proc/self/cgroup says: "4:cpu,cpuacct:/path", and "0::/path"
 * for version 2. Returns 0 where it is in none. */
static int group_path(const char *root, int version, char *path)
{
    char file[2 * PATH], line[LINE];
    int found = 0;
    (void)snprintf(file, sizeof file, "%s/proc/self/cgroup", root);
    FILE *const stream = fopen(file, "re");
    while (stream && !found && fgets(line, sizeof line, stream)) {
        char *const controllers = strchr(line, ':'), *const end = controllers ? strchr(controllers + 1, ':') : NULL;
        if (!end)
            continue;
        *end = '\0';
        if (version == 2 ? strcmp(line, "0:") == 0 : has_word(controllers + 1, "cpu")) {
            end[1 + strcspn(end + 1, "\n")] = '\0';
            (void)snprintf(path, PATH, "%s", end + 1);
            found = 1;
        }
    }
    if (stream)
        (void)fclose(stream);
    return found;
}

/* The limit of a group and of all those that it is in, up to where the hierarchy is mounted at `mount`. What is mounted
 * may be a part of the hierarchy, `top`: in a container its own group, while the path counts from the host's root. */
static int32_t hierarchy_cpus(const char *root, const char *mount, const char *top, int version)
{
    char path[PATH], folder[2 * PATH];
    if (!group_path(root, version, path))
        return 0;
    const size_t length = strcmp(top, "/") == 0 ? 0 : strlen(top);
    const int within = strncmp(path, top, length) == 0 && (path[length] == '/' || path[length] == '\0') &&
                       strncmp(path, "/..", 3) != 0;
    const int size = snprintf(folder, sizeof folder, "%s%s", root, mount);
    if (size < 0 || (size_t)size >= sizeof folder)
        return 0;
    (void)snprintf(folder + size, sizeof folder - (size_t)size, "%s", within ? path + length : "");
    for (int32_t cpus = 0;;) {
        cpus = smaller_limit(cpus, group_cpus(folder, version));
        char *const last = strrchr(folder + size, '/');
        if (!last)
            return cpus;
        *last = '\0';
    }
}

int32_t cmm_cgroup_cpus(const char *root)
{
    char file[2 * PATH], line[LINE], top[PATH], mount[PATH], type[32], options[PATH];
    int32_t cpus = 0;
    (void)snprintf(file, sizeof file, "%s/proc/self/mountinfo", root);
    FILE *const stream = fopen(file, "re");
    if (!stream)
        return 0;
    /* 36 35 98:0 /top /mount rw,noatime master:1 - cgroup source rw,cpu */
    while (fgets(line, sizeof line, stream)) {
        const char *const rest = strstr(line, " - ");
        if (!rest || sscanf(rest, " - %31s %*s %4095s", type, options) != 2 ||
            sscanf(line, "%*s %*s %*s %4095s %4095s", top, mount) != 2)
            continue;
        const int version = strcmp(type, "cgroup2") == 0 ? 2 : strcmp(type, "cgroup") == 0 ? 1 : 0;
        if (version == 0 || (version == 1 && !has_word(options, "cpu")))
            continue;
        unescape(top);
        unescape(mount);
        cpus = smaller_limit(cpus, hierarchy_cpus(root, mount, top, version));
    }
    (void)fclose(stream);
    return cpus;
}
#endif
