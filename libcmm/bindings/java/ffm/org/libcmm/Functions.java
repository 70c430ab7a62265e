// Made by libcmm/bindings/generate.py of libcmm/abi.txt: what libcmm exports.
package org.libcmm;

import static java.lang.foreign.ValueLayout.JAVA_INT;
import static java.lang.foreign.ValueLayout.JAVA_LONG;

import java.lang.foreign.FunctionDescriptor;
import java.lang.foreign.Linker;
import java.lang.foreign.MemoryLayout;
import java.lang.foreign.SymbolLookup;
import java.lang.invoke.MethodHandle;

/** Every function. A pointer is a number of 64 bits, as Java has it: long, and NULL is 0. */
public final class Functions {
    static {
        System.loadLibrary("cmm");
    }

    public static final MethodHandle cmm_blas_check = find("cmm_blas_check",
            JAVA_INT, JAVA_LONG);
    public static final MethodHandle cmm_blas_linked = find("cmm_blas_linked",
            JAVA_INT, JAVA_LONG);
    public static final MethodHandle cmm_blas_load = find("cmm_blas_load",
            JAVA_INT, JAVA_LONG, JAVA_LONG);
    public static final MethodHandle cmm_build = find("cmm_build",
            JAVA_LONG);
    public static final MethodHandle cmm_cmm_forward = find("cmm_cmm_forward",
            JAVA_INT, JAVA_LONG, JAVA_LONG, JAVA_LONG, JAVA_LONG, JAVA_LONG, JAVA_LONG);
    public static final MethodHandle cmm_ff_forward = find("cmm_ff_forward",
            JAVA_INT, JAVA_LONG, JAVA_LONG, JAVA_LONG, JAVA_LONG, JAVA_LONG);
    public static final MethodHandle cmm_fff_backward = find("cmm_fff_backward",
            JAVA_INT, JAVA_LONG, JAVA_LONG, JAVA_LONG, JAVA_LONG, JAVA_LONG, JAVA_LONG, JAVA_LONG, JAVA_LONG);
    public static final MethodHandle cmm_fff_backward_workspace = find("cmm_fff_backward_workspace",
            JAVA_INT, JAVA_LONG, JAVA_LONG, JAVA_LONG, JAVA_LONG, JAVA_LONG);
    public static final MethodHandle cmm_fff_forward = find("cmm_fff_forward",
            JAVA_INT, JAVA_LONG, JAVA_LONG, JAVA_LONG, JAVA_LONG, JAVA_LONG, JAVA_LONG, JAVA_LONG);
    public static final MethodHandle cmm_fff_pack = find("cmm_fff_pack",
            JAVA_INT, JAVA_LONG, JAVA_LONG, JAVA_LONG, JAVA_LONG);
    public static final MethodHandle cmm_fff_pack_as = find("cmm_fff_pack_as",
            JAVA_INT, JAVA_LONG, JAVA_LONG, JAVA_LONG, JAVA_LONG, JAVA_LONG);
    public static final MethodHandle cmm_fff_pack_size = find("cmm_fff_pack_size",
            JAVA_INT, JAVA_LONG, JAVA_LONG);
    public static final MethodHandle cmm_fff_pack_size_as = find("cmm_fff_pack_size_as",
            JAVA_INT, JAVA_LONG, JAVA_LONG, JAVA_LONG);
    public static final MethodHandle cmm_kernel_count = find("cmm_kernel_count",
            JAVA_INT);
    public static final MethodHandle cmm_kernel_get = find("cmm_kernel_get",
            JAVA_INT, JAVA_INT, JAVA_LONG);
    public static final MethodHandle cmm_level_count = find("cmm_level_count",
            JAVA_INT);
    public static final MethodHandle cmm_level_get = find("cmm_level_get",
            JAVA_INT, JAVA_INT, JAVA_LONG, JAVA_LONG);
    public static final MethodHandle cmm_status_message = find("cmm_status_message",
            JAVA_LONG, JAVA_INT);
    public static final MethodHandle cmm_status_name = find("cmm_status_name",
            JAVA_LONG, JAVA_INT);
    public static final MethodHandle cmm_threads_default = find("cmm_threads_default",
            JAVA_INT);
    public static final MethodHandle cmm_threads_source = find("cmm_threads_source",
            JAVA_LONG);
    public static final MethodHandle cmm_version = find("cmm_version",
            JAVA_LONG);

    private Functions() {}

    private static MethodHandle find(String name, MemoryLayout result, MemoryLayout... arguments) {
        return Linker.nativeLinker()
                .downcallHandle(
                        SymbolLookup.loaderLookup().find(name).orElseThrow(),
                        FunctionDescriptor.of(result, arguments));
    }
}
