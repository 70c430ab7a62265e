import java.io.IOException;
import java.nio.ByteBuffer;
import java.nio.ByteOrder;
import java.nio.DoubleBuffer;
import java.nio.FloatBuffer;
import java.nio.IntBuffer;
import java.nio.file.Files;
import java.nio.file.Path;
import org.libcmm.Abi;
import org.libcmm.Layer;

/**
 * Runs the layers in the files that are named, and prints what each token takes and gives: nodes, logits and outputs, the
 * numbers as their bits. The format of the files is in tests/support/layer_files.py.
 */
class Forward {
    private static final StringBuilder OUT = new StringBuilder();

    private static FloatBuffer take(ByteBuffer from, long count) {
        FloatBuffer to = Layer.zeros((int) count);
        for (int k = 0; k < count; k++) {
            to.put(k, from.getFloat());
        }
        return to;
    }

    private static DoubleBuffer widen(FloatBuffer from) {
        if (from == null) {
            return null;
        }
        DoubleBuffer to = Layer.doubles(from.capacity());
        for (int k = 0; k < from.capacity(); k++) {
            to.put(k, from.get(k));
        }
        return to;
    }

    private static String bits(FloatBuffer from, int k) {
        return String.format(" %08x", Float.floatToRawIntBits(from.get(k)));
    }

    private static String bits(DoubleBuffer from, int k) {
        return String.format(" %016x", Double.doubleToRawLongBits(from.get(k)));
    }

    private static void nodes(String type, int token, IntBuffer nodes, int visits) {
        OUT.append(type).append(" token ").append(token).append(" nodes");
        for (int k = token * visits; k < (token + 1) * visits; k++) {
            OUT.append(' ').append(nodes.get(k));
        }
    }

    private static void refused(String what, Runnable call) {
        try {
            call.run();
        } catch (RuntimeException error) {
            OUT.append(what).append(": ").append(error.getMessage()).append('\n');
            return;
        }
        throw new AssertionError(what + " was not refused");
    }

    private static void run(String name) throws IOException {
        ByteBuffer file = ByteBuffer.wrap(Files.readAllBytes(Path.of(name))).order(ByteOrder.LITTLE_ENDIAN);
        long[] sizes = new long[8];
        for (int k = 0; k < 8; k++) {
            sizes[k] = file.getLong();
        }
        var activation = Abi.Activation.values()[(int) sizes[5]];
        var tie = Abi.Tie.values()[(int) sizes[6]];
        var shape = new Layer.Shape(sizes[0], (int) sizes[1], sizes[2], sizes[3], activation, tie);
        FloatBuffer wIn = take(file, shape.rows() * shape.dIn()), wOut = take(file, shape.rows() * shape.dOut());
        FloatBuffer bias = sizes[7] == 1 ? take(file, shape.rows()) : null;
        int tokens = (int) sizes[4], visits = (int) shape.trees() * (shape.depth() + 1), dOut = (int) shape.dOut();
        FloatBuffer x = take(file, tokens * shape.dIn()), y = Layer.zeros(tokens * dOut);
        FloatBuffer logits = Layer.zeros(tokens * visits);
        IntBuffer nodes = Layer.ints(tokens * visits), same = Layer.ints(tokens * visits);
        var layer = Layer.of(shape, wIn, wOut, bias);
        layer.forward(x, y, nodes, logits, 0);
        layer.path(x, same, null, 1);
        if (!same.equals(nodes)) {
            throw new AssertionError("the path alone is another");
        }
        for (int token = 0; token < tokens; token++) {
            nodes("float32", token, nodes, visits);
            OUT.append(" logits");
            for (int k = 0; k < visits; k++) {
                OUT.append(bits(logits, token * visits + k));
            }
            OUT.append(" y");
            for (int k = 0; k < dOut; k++) {
                OUT.append(bits(y, token * dOut + k));
            }
            OUT.append('\n');
        }
        DoubleBuffer y2 = Layer.doubles(tokens * dOut), logits2 = Layer.doubles(tokens * visits);
        Layer.of(shape, widen(wIn), widen(wOut), widen(bias)).forward(widen(x), y2, nodes, logits2, 0);
        for (int token = 0; token < tokens; token++) {
            nodes("float64", token, nodes, visits);
            OUT.append(" logits");
            for (int k = 0; k < visits; k++) {
                OUT.append(bits(logits2, token * visits + k));
            }
            OUT.append(" y");
            for (int k = 0; k < dOut; k++) {
                OUT.append(bits(y2, token * dOut + k));
            }
            OUT.append('\n');
        }

        // What is refused, and how that is said.
        var deep = new Layer.Shape(shape.trees(), Abi.CMM_MAX_DEPTH + 1, shape.dIn(), shape.dOut(), activation, tie);
        refused("depth 31", () -> Layer.of(deep, wIn, wOut, null));
        refused("threads -1", () -> layer.forward(x, y, null, null, -1));
        refused("y", () -> layer.forward(x, Layer.zeros(y.capacity() + 1)));
        refused("w_in", () -> Layer.of(shape, wIn.slice(1, wIn.capacity() - 1), wOut, null));
        refused("heap", () -> layer.forward(x, FloatBuffer.allocate(y.capacity())));
    }

    public static void main(String[] args) throws IOException {
        OUT.append("libcmm ").append(Layer.version()).append('\n');
        for (String name : args) {
            run(name);
        }
        System.out.print(OUT);
    }
}
