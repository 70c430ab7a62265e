package org.libcmm;

import java.lang.foreign.MemorySegment;
import java.nio.Buffer;

/**
 * The functions of libcmm that {@link Layer} calls, by java.lang.foreign. An address is a number of 64 bits, and NULL is 0.
 */
final class Libcmm {
    private Libcmm() {}

    /** Where a direct buffer begins, whatever its position. */
    static long address(Buffer buffer) {
        return MemorySegment.ofBuffer(buffer.duplicate().clear()).address();
    }

    static int packSize(long layer, long bytes) {
        try {
            return (int) Functions.cmm_fff_pack_size.invokeExact(layer, bytes);
        } catch (Throwable impossible) {
            throw new AssertionError(impossible); // a function of C throws nothing
        }
    }

    static int forward(long layer, long run, long batch, long x, long y, long nodes, long logits) {
        try {
            return (int) Functions.cmm_fff_forward.invokeExact(layer, run, batch, x, y, nodes, logits);
        } catch (Throwable impossible) {
            throw new AssertionError(impossible);
        }
    }

    static int path(long layer, long run, long batch, long x, long nodes, long logits) {
        try {
            return (int) Functions.cmm_cmm_forward.invokeExact(layer, run, batch, x, nodes, logits);
        } catch (Throwable impossible) {
            throw new AssertionError(impossible);
        }
    }

    static String statusName(int status) {
        try {
            return text((long) Functions.cmm_status_name.invokeExact(status));
        } catch (Throwable impossible) {
            throw new AssertionError(impossible);
        }
    }

    static String statusMessage(int status) {
        try {
            return text((long) Functions.cmm_status_message.invokeExact(status));
        } catch (Throwable impossible) {
            throw new AssertionError(impossible);
        }
    }

    static String version() {
        try {
            return text((long) Functions.cmm_version.invokeExact());
        } catch (Throwable impossible) {
            throw new AssertionError(impossible);
        }
    }

    /** A string of C, which ends with 0. */
    private static String text(long address) {
        return MemorySegment.ofAddress(address).reinterpret(Long.MAX_VALUE).getString(0);
    }
}
