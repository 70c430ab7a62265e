/* The whole test framework: CHECK(condition, "format", ...) counts and prints; main returns check_report(). */
#ifndef CHECK_H
#define CHECK_H

#include <stdatomic.h>
#include <stdio.h>

static atomic_int check_count, check_failures; /* tests with threads check in all of them */

#define CHECK(condition, ...)                                                                                        \
    do {                                                                                                             \
        atomic_fetch_add(&check_count, 1);                                                                           \
        if (!(condition) && atomic_fetch_add(&check_failures, 1) < 20) {                                             \
            printf("%s:%d: not true: %s: ", __FILE__, __LINE__, #condition);                                         \
            printf(__VA_ARGS__);                                                                                     \
            printf("\n");                                                                                            \
        }                                                                                                            \
    } while (0)

static int check_report(void)
{
    printf("%d checks, %d failures\n", atomic_load(&check_count), atomic_load(&check_failures));
    return atomic_load(&check_failures) != 0 || atomic_load(&check_count) == 0;
}

#endif
