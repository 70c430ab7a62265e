// Runs the layers in the files that are named, and prints what each token takes and gives: nodes, logits and outputs, the
// numbers as their bits. The format of the files is in tests/support/layer_files.py.
#include <cmm.hpp>

#include <bit>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <stdexcept>
#include <string>
#include <type_traits>
#include <vector>

static_assert(std::endian::native == std::endian::little);

template <class T>
static std::vector<T> read(std::ifstream &file, std::int64_t count)
{
    std::vector<T> numbers(static_cast<std::size_t>(count));
    if (!file.read(reinterpret_cast<char *>(numbers.data()), static_cast<std::streamsize>(numbers.size() * sizeof(T))))
        throw std::runtime_error("the file is too short");
    return numbers;
}

template <class T>
static void print_bits(const char *what, std::span<const T> numbers)
{
    using bits = std::conditional_t<sizeof(T) == 4, std::uint32_t, std::uint64_t>;
    std::printf("%s", what);
    for (const T number : numbers)
        std::printf(" %0*llx", static_cast<int>(2 * sizeof(T)), static_cast<unsigned long long>(std::bit_cast<bits>(number)));
}

template <class T>
static void run(const char *type, const cmm::shape &shape, const std::vector<T> &w_in, const std::vector<T> &w_out,
                const std::vector<T> &bias, const std::vector<T> &x)
{
    const cmm::fff<T> layer(shape, w_in, w_out, bias);
    const std::size_t tokens = x.size() / static_cast<std::size_t>(shape.d_in);
    const std::size_t visits = static_cast<std::size_t>(shape.trees) * (static_cast<std::size_t>(shape.depth) + 1);
    const std::size_t d_out = static_cast<std::size_t>(shape.d_out);
    std::vector<T> y(tokens * d_out), logits(tokens * visits), same(y.size()), same_logits(logits.size());
    std::vector<std::int32_t> nodes(tokens * visits), same_nodes(nodes.size());
    layer.forward(x, y, nodes, logits);
    const cmm::packed_fff<T> moved = [&] { auto packed = layer.pack(); return packed; }();
    moved.forward(x, same, {}, {}, {.threads = 1});
    layer.path(x, same_nodes, same_logits);
    if (same != y || same_nodes != nodes || same_logits != logits)
        throw std::runtime_error("a packed layer, or the path alone, is another");
    for (std::size_t token = 0; token < tokens; token++) {
        std::printf("%s token %zu nodes", type, token);
        for (std::size_t k = 0; k < visits; k++)
            std::printf(" %d", nodes[token * visits + k]);
        print_bits(" logits", std::span<const T>(logits).subspan(token * visits, visits));
        print_bits(" y", std::span<const T>(y).subspan(token * d_out, d_out));
        std::printf("\n");
    }
}

// What is refused, and how that is said.
template <class Call>
static void refused(const std::string &what, const Call &call)
{
    try {
        call();
    } catch (const std::exception &error) {
        std::printf("%s: %s\n", what.c_str(), error.what());
        return;
    }
    throw std::runtime_error(what + " was not refused");
}

static void run_file(const char *name)
{
    std::ifstream file(name, std::ios::binary);
    const std::vector<std::int64_t> sizes = read<std::int64_t>(file, 8);
    const cmm::shape shape = {.trees = sizes[0], .depth = static_cast<std::int32_t>(sizes[1]), .d_in = sizes[2],
                              .d_out = sizes[3], .activation = static_cast<std::int32_t>(sizes[5]),
                              .tie = static_cast<std::int32_t>(sizes[6])};
    const std::int64_t rows = shape.trees * ((std::int64_t{2} << shape.depth) - 1);
    const auto w_in = read<float>(file, rows * shape.d_in), w_out = read<float>(file, rows * shape.d_out);
    const auto bias = read<float>(file, sizes[7] * rows), x = read<float>(file, sizes[4] * shape.d_in);
    const auto wide = [](const std::vector<float> &from) { return std::vector<double>(from.begin(), from.end()); };
    run<float>("float32", shape, w_in, w_out, bias, x);
    run<double>("float64", shape, wide(w_in), wide(w_out), wide(bias), wide(x));

    const cmm::fff<float> layer(shape, w_in, w_out, bias);
    std::vector<float> y(static_cast<std::size_t>(sizes[4] * shape.d_out)), more(y.size() + 1);
    cmm::shape deep = shape;
    deep.depth = CMM_MAX_DEPTH + 1;
    refused("depth 31", [&] { cmm::fff<float>(deep, w_in, w_out); });
    refused("threads -1", [&] { layer.forward(x, y, {}, {}, {.threads = -1}); });
    refused("y", [&] { layer.forward(x, more); });
    refused("w_in", [&] { cmm::fff<float>(shape, std::span(w_in).first(w_in.size() - 1), w_out); });
}

int main(int argc, char **argv)
{
    try {
        std::printf("libcmm %s\n", cmm_version());
        for (int k = 1; k < argc; k++)
            run_file(argv[k]);
    } catch (const std::exception &error) {
        std::fprintf(stderr, "%s\n", error.what());
        return EXIT_FAILURE;
    }
    return EXIT_SUCCESS;
}
