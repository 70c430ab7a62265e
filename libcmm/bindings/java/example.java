import static org.libcmm.Layer.floats;
import static org.libcmm.Layer.zeros;

import java.nio.FloatBuffer;
import org.libcmm.Abi;
import org.libcmm.Layer;

class Example {
    public static void main(String[] args) {
        // One tree of depth 1: three neurons of width 2. Two tokens.
        FloatBuffer wIn = floats(1, 0, 0, 1, 1, 1), wOut = floats(1, 2, 3, 4, 5, 6);
        FloatBuffer x = floats(1, 2, -1, 3), y = zeros(4);
        var shape = new Layer.Shape(1, 1, 2, 2, Abi.Activation.RELU, Abi.Tie.LEFT);
        Layer.of(shape, wIn, wOut, null).forward(x, y); // a CmmException, or an IllegalArgumentException
        System.out.printf("%.0f %.0f %.0f %.0f%n", y.get(0), y.get(1), y.get(2), y.get(3));
    }
}
