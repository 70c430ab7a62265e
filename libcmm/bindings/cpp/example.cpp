#include <cmm.hpp>

#include <array>
#include <cstdio>

int main()
{
    // One tree of depth 1: three neurons of width 2. Two tokens.
    const std::array<float, 6> w_in = {1, 0, 0, 1, 1, 1}, w_out = {1, 2, 3, 4, 5, 6};
    const std::array<float, 4> x = {1, 2, -1, 3};
    std::array<float, 4> y;
    const cmm::fff<float> layer({.depth = 1, .d_in = 2, .d_out = 2, .activation = CMM_RELU}, w_in, w_out);
    layer.forward(x, y); // throws cmm::error, or cmm::size_error for an array of another size
    std::printf("%g %g %g %g\n", y[0], y[1], y[2], y[3]);
}
