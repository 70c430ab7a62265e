/* Status codes are permanent: number, name and meaning. A new one is added here; none is ever changed. */
#include "check.h"
#include "cmm.h"

#include <stdint.h>
#include <string.h>

/* The second column is the number that callers in other languages were compiled with. */
#define STATUSES(X)                                                                                                  \
    X(CMM_OK, 0)                                                                                                     \
    X(CMM_ERROR_LAYER_NULL, 10)                                                                                      \
    X(CMM_ERROR_LAYER_SIZE, 11)                                                                                      \
    X(CMM_ERROR_DTYPE, 12)                                                                                           \
    X(CMM_ERROR_ACTIVATION, 13)                                                                                      \
    X(CMM_ERROR_TIE, 14)                                                                                             \
    X(CMM_ERROR_TREES, 15)                                                                                           \
    X(CMM_ERROR_DEPTH, 16)                                                                                           \
    X(CMM_ERROR_NEURONS, 17)                                                                                         \
    X(CMM_ERROR_D_IN, 18)                                                                                            \
    X(CMM_ERROR_D_OUT, 19)                                                                                           \
    X(CMM_ERROR_LD_IN, 20)                                                                                           \
    X(CMM_ERROR_LD_OUT, 21)                                                                                          \
    X(CMM_ERROR_LAYER_TOO_LARGE, 22)                                                                                 \
    X(CMM_ERROR_RESERVED, 23)                                                                                        \
    X(CMM_ERROR_WEIGHT_DTYPE, 24)                                                                                    \
    X(CMM_ERROR_SCALE, 25)                                                                                           \
    X(CMM_ERROR_EXACT, 26)                                                                                           \
    X(CMM_ERROR_LD_EXACT, 27)                                                                                        \
    X(CMM_ERROR_RUN_SIZE, 30)                                                                                        \
    X(CMM_ERROR_THREADS, 31)                                                                                         \
    X(CMM_ERROR_LEVEL, 32)                                                                                           \
    X(CMM_ERROR_LEVEL_UNUSABLE, 33)                                                                                  \
    X(CMM_ERROR_ISA, 34)                                                                                             \
    X(CMM_ERROR_ISA_UNUSABLE, 35)                                                                                    \
    X(CMM_ERROR_METHOD, 36)                                                                                          \
    X(CMM_ERROR_BLAS_MISSING, 37)                                                                                    \
    X(CMM_ERROR_BLAS_SIZE, 38)                                                                                       \
    X(CMM_ERROR_BLAS_INCOMPLETE, 39)                                                                                 \
    X(CMM_ERROR_LEVEL_WEIGHT_DTYPE, 40)                                                                              \
    X(CMM_ERROR_PATH_TWICE, 41)                                                                                      \
    X(CMM_ERROR_PATH_DENSE, 42)                                                                                      \
    X(CMM_ERROR_BATCH, 50)                                                                                           \
    X(CMM_ERROR_BATCH_TOO_LARGE, 51)                                                                                 \
    X(CMM_ERROR_W_IN_NULL, 52)                                                                                       \
    X(CMM_ERROR_W_OUT_NULL, 53)                                                                                      \
    X(CMM_ERROR_X_NULL, 54)                                                                                          \
    X(CMM_ERROR_Y_NULL, 55)                                                                                          \
    X(CMM_ERROR_PATH_NULL, 56)                                                                                       \
    X(CMM_ERROR_W_IN_ALIGN, 57)                                                                                      \
    X(CMM_ERROR_BIAS_ALIGN, 58)                                                                                      \
    X(CMM_ERROR_W_OUT_ALIGN, 59)                                                                                     \
    X(CMM_ERROR_X_ALIGN, 60)                                                                                         \
    X(CMM_ERROR_Y_ALIGN, 61)                                                                                         \
    X(CMM_ERROR_NODES_ALIGN, 62)                                                                                     \
    X(CMM_ERROR_LOGITS_ALIGN, 63)                                                                                    \
    X(CMM_ERROR_Y_OVERLAP, 64)                                                                                       \
    X(CMM_ERROR_NODES_OVERLAP, 65)                                                                                   \
    X(CMM_ERROR_LOGITS_OVERLAP, 66)                                                                                  \
    X(CMM_ERROR_SCALE_ALIGN, 67)                                                                                     \
    X(CMM_ERROR_EXACT_ALIGN, 68)                                                                                     \
    X(CMM_ERROR_PATH_ALIGN, 69)                                                                                      \
    X(CMM_ERROR_PATH, 70)                                                                                            \
    X(CMM_ERROR_MEMORY, 80)                                                                                          \
    X(CMM_ERROR_BLAS_NULL, 90)                                                                                       \
    X(CMM_ERROR_BLAS_FILE_NULL, 91)                                                                                  \
    X(CMM_ERROR_BLAS_FILE, 92)                                                                                       \
    X(CMM_ERROR_BLAS_SYMBOLS, 93)                                                                                    \
    X(CMM_ERROR_INDEX, 100)                                                                                          \
    X(CMM_ERROR_INFO_NULL, 101)                                                                                      \
    X(CMM_ERROR_INFO_SIZE, 102)                                                                                      \
    X(CMM_ERROR_MEMORY_NULL, 103)                                                                                    \
    X(CMM_ERROR_MEMORY_ALIGN, 104)                                                                                   \
    X(CMM_ERROR_MEMORY_SIZE, 105)                                                                                    \
    X(CMM_ERROR_PACKED_NULL, 106)                                                                                    \
    X(CMM_ERROR_BYTES_NULL, 107)                                                                                     \
    X(CMM_ERROR_MEMORY_OVERLAP, 108)                                                                                 \
    X(CMM_ERROR_OPTIONS_SIZE, 109)                                                                                   \
    X(CMM_ERROR_ROW_NOT_FINITE, 110)                                                                                 \
    X(CMM_ERROR_SIGMAS, 111)                                                                                         \
    X(CMM_ERROR_CUDA_LAUNCH, 120)                                                                                    \
    X(CMM_ERROR_CUDA_ABSENT, 121)                                                                                    \
    X(CMM_ERROR_CUDA_DEVICE, 122)                                                                                    \
    X(CMM_ERROR_WORKSPACE_NULL, 123)                                                                                 \
    X(CMM_ERROR_WORKSPACE_ALIGN, 124)                                                                                \
    X(CMM_ERROR_WORKSPACE_SIZE, 125)                                                                                 \
    X(CMM_ERROR_WORKSPACE_OVERLAP, 126)                                                                              \
    X(CMM_ERROR_GRADIENTS_NULL, 130)                                                                                 \
    X(CMM_ERROR_GRADIENTS_SIZE, 131)                                                                                 \
    X(CMM_ERROR_ACCUMULATE, 132)                                                                                     \
    X(CMM_ERROR_GRADIENTS_NONE, 133)                                                                                 \
    X(CMM_ERROR_LD_DW_IN, 134)                                                                                       \
    X(CMM_ERROR_LD_DW_OUT, 135)                                                                                      \
    X(CMM_ERROR_NODES_NULL, 136)                                                                                     \
    X(CMM_ERROR_LOGITS_NULL, 137)                                                                                    \
    X(CMM_ERROR_DY_NULL, 138)                                                                                        \
    X(CMM_ERROR_DY_ALIGN, 139)                                                                                       \
    X(CMM_ERROR_DX_ALIGN, 140)                                                                                       \
    X(CMM_ERROR_DW_IN_ALIGN, 141)                                                                                    \
    X(CMM_ERROR_DBIAS_ALIGN, 142)                                                                                    \
    X(CMM_ERROR_DW_OUT_ALIGN, 143)                                                                                   \
    X(CMM_ERROR_DX_OVERLAP, 144)                                                                                     \
    X(CMM_ERROR_DW_IN_OVERLAP, 145)                                                                                  \
    X(CMM_ERROR_DBIAS_OVERLAP, 146)                                                                                  \
    X(CMM_ERROR_DW_OUT_OVERLAP, 147)

static const struct {
    cmm_status status, number;
    const char *name;
} statuses[] = {
#define X(status, number) {status, number, #status},
    STATUSES(X)
#undef X
};

enum { STATUSES_COUNT = sizeof statuses / sizeof *statuses };

static int is_known(cmm_status status)
{
    for (int i = 0; i < STATUSES_COUNT; i++)
        if (statuses[i].number == status)
            return 1;
    return 0;
}

static void check_unknown(cmm_status status)
{
    CHECK(strcmp(cmm_status_name(status), "CMM_ERROR_UNKNOWN") == 0, "%d is %s", status, cmm_status_name(status));
    CHECK(strncmp(cmm_status_message(status), "unknown status", 14) == 0, "%d: %s", status,
          cmm_status_message(status));
}

/* "GCC 12.2.0: -O3 ...": a name, a version, flags, and of no file a path. */
static void check_build(void)
{
    const char *const build = cmm_build();
    CHECK(strspn(build, "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz") >= 3, "%s", build);
    CHECK(strstr(build, ": ") && strpbrk(build, "0123456789") < strstr(build, ": "), "%s", build);
    CHECK(strstr(build, " -ffp-contract=off") && !strchr(build, '/'), "%s", build);
}

int main(void)
{
    for (int i = 0; i < STATUSES_COUNT; i++) {
        const cmm_status status = statuses[i].status;
        CHECK(status == statuses[i].number, "%s is %d, and was %d for ever", statuses[i].name, status,
              statuses[i].number);
        CHECK(strcmp(cmm_status_name(status), statuses[i].name) == 0, "%d is named %s", status,
              cmm_status_name(status));
        CHECK(strlen(cmm_status_message(status)) >= 8, "%s says only \"%s\"", statuses[i].name,
              cmm_status_message(status));
        for (int j = 0; j < i; j++)
            CHECK(strcmp(cmm_status_message(status), cmm_status_message(statuses[j].status)) != 0,
                  "%s and %s say the same", statuses[i].name, statuses[j].name);
    }
    for (cmm_status status = -300; status < 1000; status++)
        if (!is_known(status))
            check_unknown(status);
    check_unknown(INT32_MAX);
    check_unknown(INT32_MIN);

    char version[32];
    (void)snprintf(version, sizeof version, "%d.%d.%d", CMM_VERSION_MAJOR, CMM_VERSION_MINOR, CMM_VERSION_PATCH);
    CHECK(strcmp(cmm_version(), version) == 0, "%s", cmm_version());
    check_build();

    /* The other enumerations of the header are permanent, too. */
    CHECK(CMM_F32 == 0 && CMM_F64 == 1 && CMM_BF16 == 2 && CMM_F16 == 3, "dtypes");
    CHECK(CMM_GELU == 0 && CMM_GELU_TANH == 1 && CMM_RELU == 2 && CMM_SILU == 3 && CMM_IDENTITY == 4, "activations");
    CHECK(CMM_TIE_LEFT == 0 && CMM_TIE_RIGHT == 1, "ties");
    return check_report();
}
