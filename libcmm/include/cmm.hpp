/* libcmm in C++20: a layer with its sizes checked, over spans. Errors are exceptions, and nothing is copied.
 *
 *     cmm::fff<float> layer({.trees = 1, .depth = 11, .d_in = 768, .d_out = 768}, w_in, w_out);
 *     layer.forward(x, y);
 *
 * The C interface, cmm.h, is included; its constants are the values of what is chosen here. What this file does not
 * wrap is called as in C, with `layer.c()`, and `cmm::check(...)` around it. */
#ifndef CMM_HPP
#define CMM_HPP

#include <cmm.h>

#include <concepts>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <new>
#include <span>
#include <stdexcept>
#include <string>

namespace cmm {

/* A status of libcmm that is not CMM_OK. */
class error : public std::runtime_error {
public:
    explicit error(cmm_status status)
        : std::runtime_error(std::string(cmm_status_name(status)) + ": " + cmm_status_message(status)), status_(status)
    {
    }
    cmm_status status() const noexcept { return status_; }
    const char *name() const noexcept { return cmm_status_name(status_); }

private:
    cmm_status status_;
};

/* An array of another size than the layer wants. */
class size_error : public std::invalid_argument {
public:
    using std::invalid_argument::invalid_argument;
};

inline void check(cmm_status status)
{
    if (status != CMM_OK)
        throw error(status);
}

inline void check_size(const char *name, std::size_t is, std::size_t should)
{
    if (is != should)
        throw size_error(std::string(name) + " has " + std::to_string(is) + " numbers; it should have " +
                         std::to_string(should));
}

/* The types of tokens. */
template <class T>
concept real = std::same_as<T, float> || std::same_as<T, double>;

/* What a layer is, but for its weights. */
struct shape {
    std::int64_t trees = 1;
    std::int32_t depth = 0;
    std::int64_t d_in = 0;
    std::int64_t d_out = 0;
    std::int32_t activation = CMM_GELU;
    std::int32_t tie = CMM_TIE_LEFT;
};

template <real T>
class packed_fff;

/* A fast feedforward layer on weights that the caller owns, and keeps as long as it. May be used by many threads at
 * once. Arrays are row-major; a batch is as large as x says. */
template <real T>
class fff {
public:
    /* w_in[trees][nodes][d_in], w_out[trees][nodes][d_out], bias[trees][nodes] or none, nodes = 2^(depth+1) - 1. */
    fff(const shape &shape, std::span<const T> w_in, std::span<const T> w_out, std::span<const T> bias = {})
    {
        layer_.size = sizeof layer_;
        layer_.dtype = std::same_as<T, float> ? CMM_F32 : CMM_F64;
        layer_.activation = shape.activation;
        layer_.tie = shape.tie;
        layer_.depth = shape.depth;
        layer_.trees = shape.trees;
        layer_.d_in = shape.d_in;
        layer_.d_out = shape.d_out;
        layer_.w_in = layer_.w_out = &layer_; /* read by nobody: the sizes are checked before the arrays are looked at */
        std::int64_t bytes;
        check(cmm_fff_pack_size(&layer_, &bytes));
        const std::size_t rows = static_cast<std::size_t>(layer_.trees) * ((std::size_t{2} << layer_.depth) - 1);
        check_size("w_in", w_in.size(), rows * width_in());
        check_size("w_out", w_out.size(), rows * width_out());
        if (!bias.empty())
            check_size("bias", bias.size(), rows);
        layer_.w_in = w_in.data();
        layer_.w_out = w_out.data();
        layer_.bias = bias.empty() ? nullptr : bias.data();
    }

    /* y[batch][d_out] = the layer applied to x[batch][d_in]. nodes and logits, [batch][trees][depth+1] or none, receive
     * the path. Of how to run, .size may be left out. */
    void forward(std::span<const T> x, std::span<T> y, std::span<std::int32_t> nodes = {}, std::span<T> logits = {},
                 const cmm_run &how = {}) const
    {
        const std::size_t tokens = batch(x);
        check_size("y", y.size(), tokens * width_out());
        check_path(tokens, nodes.size(), logits.size());
        const cmm_run run = sized(how);
        check(cmm_fff_forward(&layer_, &run, static_cast<std::int64_t>(tokens), x.data(), y.data(), some(nodes),
                              some(logits)));
    }

    /* The path alone: nodes and logits, one of which may be none. */
    void path(std::span<const T> x, std::span<std::int32_t> nodes, std::span<T> logits = {},
              const cmm_run &how = {}) const
    {
        const std::size_t tokens = batch(x);
        check_path(tokens, nodes.size(), logits.size());
        const cmm_run run = sized(how);
        check(cmm_cmm_forward(&layer_, &run, static_cast<std::int64_t>(tokens), x.data(), some(nodes), some(logits)));
    }

    /* A layer that owns its weights, packed for many calls, in the type that the options say. This one's may then go. */
    packed_fff<T> pack(const cmm_pack_options &how = {}) const { return packed_fff<T>(*this, how); }

    const cmm_fff &c() const noexcept { return layer_; }

    /* A packed layer owns its weights: a copy of its base alone would outlive them. */
    fff(const packed_fff<T> &) = delete;
    fff &operator=(const packed_fff<T> &) = delete;

protected:
    fff() = default;
    cmm_fff layer_ = {};

private:
    template <class U>
    static U *some(std::span<U> array)
    {
        return array.empty() ? nullptr : array.data();
    }
    static cmm_run sized(cmm_run how)
    {
        how.size = sizeof how;
        return how;
    }
    std::size_t width_in() const { return static_cast<std::size_t>(layer_.d_in); }
    std::size_t width_out() const { return static_cast<std::size_t>(layer_.d_out); }
    std::size_t batch(std::span<const T> x) const
    {
        if (x.size() % width_in() != 0)
            throw size_error("x has " + std::to_string(x.size()) + " numbers; it should have a multiple of " +
                             std::to_string(width_in()));
        return x.size() / width_in();
    }
    void check_path(std::size_t tokens, std::size_t nodes, std::size_t logits) const
    {
        const std::size_t visits =
            tokens * static_cast<std::size_t>(layer_.trees) * (static_cast<std::size_t>(layer_.depth) + 1);
        if (nodes != 0)
            check_size("nodes", nodes, visits);
        if (logits != 0)
            check_size("logits", logits, visits);
    }
};

/* A layer with its own weights, which are freed with it. It may be moved, and not copied. */
template <real T>
class packed_fff : public fff<T> {
public:
    packed_fff(const fff<T> &layer, cmm_pack_options how)
    {
        how.size = sizeof how;
        std::int64_t bytes;
        check(cmm_fff_pack_size_as(&layer.c(), &how, &bytes));
        memory_.reset(::operator new(static_cast<std::size_t>(bytes), std::align_val_t{CMM_ALIGNMENT}));
        this->layer_.size = sizeof this->layer_;
        check(cmm_fff_pack_as(&layer.c(), &how, memory_.get(), bytes, &this->layer_));
    }

private:
    struct give_back {
        void operator()(void *memory) const { ::operator delete(memory, std::align_val_t{CMM_ALIGNMENT}); }
    };
    std::unique_ptr<void, give_back> memory_;
};

} // namespace cmm

#endif
