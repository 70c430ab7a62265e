package org.libcmm;

import java.lang.ref.Reference;
import java.nio.Buffer;
import java.nio.ByteBuffer;
import java.nio.ByteOrder;
import java.nio.DoubleBuffer;
import java.nio.FloatBuffer;
import java.nio.IntBuffer;

/**
 * A fast feedforward layer on the CPU, by libcmm.
 *
 * <p>Arrays are direct buffers in the order of the machine, from 0 to their capacity, whatever their position; rows after
 * rows. Nothing is copied. A batch is as large as x says. Many threads may use one layer at once. What is wrong is a
 * {@link CmmException}, or an IllegalArgumentException for a buffer of another size or kind; then nothing was written.
 *
 * @param <B> FloatBuffer or DoubleBuffer
 */
public final class Layer<B extends Buffer> {
    /** What a layer is, but for its weights. */
    public record Shape(long trees, int depth, long dIn, long dOut, Abi.Activation activation, Abi.Tie tie) {
        /** The number of neurons. */
        public long rows() {
            return trees * ((2L << depth) - 1);
        }
    }

    private final Shape shape;
    private final B wIn, wOut, bias; // which live as long as the layer
    private final ByteBuffer raw = cleared(Abi.cmm_fff.SIZEOF);

    private Layer(int dtype, Shape shape, B wIn, B wOut, B bias) {
        this.shape = shape;
        this.wIn = wIn;
        this.wOut = wOut;
        this.bias = bias;
        raw.putInt(Abi.cmm_fff.dtype, dtype);
        raw.putInt(Abi.cmm_fff.activation, shape.activation.value);
        raw.putInt(Abi.cmm_fff.tie, shape.tie.value);
        raw.putInt(Abi.cmm_fff.depth, shape.depth);
        raw.putLong(Abi.cmm_fff.trees, shape.trees);
        raw.putLong(Abi.cmm_fff.d_in, shape.dIn);
        raw.putLong(Abi.cmm_fff.d_out, shape.dOut);
        // Any address: sizes are checked before the arrays are looked at, and nothing is read.
        ByteBuffer bytes = ByteBuffer.allocateDirect(8);
        long layer = Libcmm.address(raw);
        raw.putLong(Abi.cmm_fff.w_in, layer);
        raw.putLong(Abi.cmm_fff.w_out, layer);
        try {
            CmmException.check(Libcmm.packSize(layer, Libcmm.address(bytes)));
        } finally {
            Reference.reachabilityFence(bytes);
        }
        check("w_in", wIn, shape.rows() * shape.dIn);
        check("w_out", wOut, shape.rows() * shape.dOut);
        raw.putLong(Abi.cmm_fff.w_in, Libcmm.address(wIn));
        raw.putLong(Abi.cmm_fff.w_out, Libcmm.address(wOut));
        if (bias != null) {
            check("bias", bias, shape.rows());
            raw.putLong(Abi.cmm_fff.bias, Libcmm.address(bias));
        }
    }

    /** A layer of w_in[trees][nodes][dIn], w_out[trees][nodes][dOut], bias[trees][nodes] or null; heap order. */
    public static Layer<FloatBuffer> of(Shape shape, FloatBuffer wIn, FloatBuffer wOut, FloatBuffer bias) {
        return new Layer<>(Abi.CMM_F32, shape, wIn, wOut, bias);
    }

    /** The same in double. */
    public static Layer<DoubleBuffer> of(Shape shape, DoubleBuffer wIn, DoubleBuffer wOut, DoubleBuffer bias) {
        return new Layer<>(Abi.CMM_F64, shape, wIn, wOut, bias);
    }

    /** y[batch][dOut] = the layer applied to x[batch][dIn]. */
    public void forward(B x, B y) {
        forward(x, y, null, null, 0);
    }

    /**
     * The same on at most so many threads, 0 for every core. nodes and logits, [batch][trees][depth+1], each or null, receive
     * the path.
     */
    public void forward(B x, B y, IntBuffer nodes, B logits, int threads) {
        long batch = batch(x);
        checkOutput("y", y, batch * shape.dOut);
        call(batch, x, y, nodes, logits, threads);
    }

    /** The path alone. One of nodes and logits may be null. */
    public void path(B x, IntBuffer nodes, B logits, int threads) {
        call(batch(x), x, null, nodes, logits, threads);
    }

    private void call(long batch, B x, B y, IntBuffer nodes, B logits, int threads) {
        long visits = batch * shape.trees * (shape.depth + 1);
        if (nodes != null) {
            checkOutput("nodes", nodes, visits);
        }
        if (logits != null) {
            checkOutput("logits", logits, visits);
        }
        ByteBuffer run = cleared(Abi.cmm_run.SIZEOF);
        run.putInt(Abi.cmm_run.threads, threads);
        long layer = Libcmm.address(raw), how = Libcmm.address(run), from = Libcmm.address(x);
        long toNodes = address(nodes), toLogits = address(logits);
        try {
            CmmException.check(
                    y == null
                            ? Libcmm.path(layer, how, batch, from, toNodes, toLogits)
                            : Libcmm.forward(layer, how, batch, from, Libcmm.address(y), toNodes, toLogits));
        } finally { // till here none of these may be collected
            Reference.reachabilityFence(x);
            Reference.reachabilityFence(y);
            Reference.reachabilityFence(nodes);
            Reference.reachabilityFence(logits);
            Reference.reachabilityFence(run);
            Reference.reachabilityFence(this);
        }
    }

    private static long address(Buffer buffer) {
        return buffer == null ? 0 : Libcmm.address(buffer);
    }

    /** The version of the library that is running. */
    public static String version() {
        return Libcmm.version();
    }

    private static ByteBuffer cleared(int bytes) {
        ByteBuffer memory = ByteBuffer.allocateDirect(bytes).order(ByteOrder.nativeOrder());
        return memory.putInt(0, bytes); // every struct starts with its size
    }

    private long batch(B x) {
        if (x.capacity() % shape.dIn != 0) {
            throw new IllegalArgumentException(
                    "x has " + x.capacity() + " numbers; it should have a multiple of " + shape.dIn);
        }
        checkKind("x", x);
        return x.capacity() / shape.dIn;
    }

    private static void check(String name, Buffer buffer, long should) {
        if (buffer.capacity() != should) {
            throw new IllegalArgumentException(
                    name + " has " + buffer.capacity() + " numbers; it should have " + should);
        }
        checkKind(name, buffer);
    }

    private static void checkOutput(String name, Buffer buffer, long should) {
        check(name, buffer, should);
        if (buffer.isReadOnly()) {
            throw new IllegalArgumentException(name + " is read-only");
        }
    }

    private static void checkKind(String name, Buffer buffer) {
        ByteOrder order = ByteOrder.nativeOrder();
        if (buffer instanceof FloatBuffer floats) {
            order = floats.order();
        } else if (buffer instanceof DoubleBuffer doubles) {
            order = doubles.order();
        } else if (buffer instanceof IntBuffer ints) {
            order = ints.order();
        }
        if (!buffer.isDirect() || order != ByteOrder.nativeOrder()) {
            throw new IllegalArgumentException(name + " is not a direct buffer in the order of the machine");
        }
    }

    /** A direct buffer of so many zeros. */
    public static FloatBuffer zeros(int count) {
        return ByteBuffer.allocateDirect(4 * count).order(ByteOrder.nativeOrder()).asFloatBuffer();
    }

    /** A direct buffer that holds these. */
    public static FloatBuffer floats(float... numbers) {
        return zeros(numbers.length).put(0, numbers);
    }

    /** A direct buffer of so many zeros. */
    public static DoubleBuffer doubles(int count) {
        return ByteBuffer.allocateDirect(8 * count).order(ByteOrder.nativeOrder()).asDoubleBuffer();
    }

    /** A direct buffer of so many zeros. */
    public static IntBuffer ints(int count) {
        return ByteBuffer.allocateDirect(4 * count).order(ByteOrder.nativeOrder()).asIntBuffer();
    }
}
