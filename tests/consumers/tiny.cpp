// The same program as tiny.c, in C++11.
#include <cmm.h>

#include <cstdint>
#include <cstdio>
#include <vector>

int main()
{
    const std::vector<double> w_in = {1, 0, 0, 1, 1, 1}, w_out = {1, 2, 3, 4, 5, 6}, x = {1, 2, -1, 3};
    const std::vector<double> good_y = {16, 20, 9, 12};
    const std::vector<std::int32_t> good_nodes = {0, 2, 0, 1};
    std::vector<double> y(4), logits(4);
    std::vector<std::int32_t> nodes(4);
    cmm_fff layer = cmm_fff();
    layer.size = sizeof layer;
    layer.dtype = CMM_F64;
    layer.activation = CMM_RELU;
    layer.depth = 1;
    layer.trees = 1;
    layer.d_in = layer.d_out = 2;
    layer.w_in = w_in.data();
    layer.w_out = w_out.data();
    const cmm_status status = cmm_fff_forward(&layer, nullptr, 2, x.data(), y.data(), nodes.data(), logits.data());
    if (status != CMM_OK) {
        std::printf("%s: %s\n", cmm_status_name(status), cmm_status_message(status));
        return 1;
    }
    if (y != good_y || nodes != good_nodes) {
        std::printf("wrong: y = %g %g %g %g\n", y[0], y[1], y[2], y[3]);
        return 1;
    }
    if (cmm_fff_forward(&layer, nullptr, -1, x.data(), y.data(), nullptr, nullptr) != CMM_ERROR_BATCH) {
        std::printf("a wrong call was not refused\n");
        return 1;
    }
    std::printf("libcmm %s from C++: good\n", cmm_version());
    return 0;
}
