package org.libcmm;

import com.sun.jna.Function;
import com.sun.jna.Native;
import com.sun.jna.NativeLibrary;
import com.sun.jna.Pointer;
import java.nio.Buffer;

/** The functions of libcmm that {@link Layer} calls, by JNA. An address is a number of 64 bits, and NULL is 0. */
final class Libcmm {
    private static final NativeLibrary LIBRARY = NativeLibrary.getInstance("cmm");
    private static final Function PACK_SIZE = LIBRARY.getFunction("cmm_fff_pack_size");
    private static final Function FORWARD = LIBRARY.getFunction("cmm_fff_forward");
    private static final Function PATH = LIBRARY.getFunction("cmm_cmm_forward");

    private Libcmm() {}

    /** Where a direct buffer begins, whatever its position. */
    static long address(Buffer buffer) {
        return Pointer.nativeValue(Native.getDirectBufferPointer(buffer));
    }

    static int packSize(long layer, long bytes) {
        return PACK_SIZE.invokeInt(new Object[] {layer, bytes});
    }

    static int forward(long layer, long run, long batch, long x, long y, long nodes, long logits) {
        return FORWARD.invokeInt(new Object[] {layer, run, batch, x, y, nodes, logits});
    }

    static int path(long layer, long run, long batch, long x, long nodes, long logits) {
        return PATH.invokeInt(new Object[] {layer, run, batch, x, nodes, logits});
    }

    static String statusName(int status) {
        return text("cmm_status_name", status);
    }

    static String statusMessage(int status) {
        return text("cmm_status_message", status);
    }

    static String version() {
        return text("cmm_version");
    }

    private static String text(String function, Object... arguments) {
        return ((Pointer) LIBRARY.getFunction(function).invoke(Pointer.class, arguments)).getString(0);
    }
}
