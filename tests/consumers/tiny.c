/* A program against the installed libcmm: one tree of three neurons, two tokens, numbers to be checked by hand. */
#include <cmm.h>

#include <stdio.h>
#include <string.h>

int main(void)
{
    const float w_in[] = {1, 0, 0, 1, 1, 1}, w_out[] = {1, 2, 3, 4, 5, 6}, x[] = {1, 2, -1, 3};
    const float good_y[] = {16, 20, 9, 12};
    const int32_t good_nodes[] = {0, 2, 0, 1};
    float y[4], logits[4];
    int32_t nodes[4];
    cmm_fff layer = {.size = sizeof layer, .dtype = CMM_F32, .activation = CMM_RELU, .tie = CMM_TIE_LEFT, .depth = 1,
                     .trees = 1, .d_in = 2, .d_out = 2, .w_in = w_in, .w_out = w_out};
    const cmm_status status = cmm_fff_forward(&layer, NULL, 2, x, y, nodes, logits);
    if (status != CMM_OK) {
        printf("%s: %s\n", cmm_status_name(status), cmm_status_message(status));
        return 1;
    }
    if (memcmp(y, good_y, sizeof y) != 0 || memcmp(nodes, good_nodes, sizeof nodes) != 0) {
        printf("wrong: y = %g %g %g %g\n", (double)y[0], (double)y[1], (double)y[2], (double)y[3]);
        return 1;
    }
    if (cmm_fff_forward(&layer, NULL, -1, x, y, nodes, logits) != CMM_ERROR_BATCH) {
        printf("a wrong call was not refused\n");
        return 1;
    }
    printf("libcmm %s from C: good\n", cmm_version());
    return 0;
}
