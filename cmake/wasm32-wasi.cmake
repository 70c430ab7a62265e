# A toolchain file: libcmm for WebAssembly, by zig, which the Python package ziglang brings, too. Programs run under node.
#
#     cmake -S . -B build -DCMAKE_TOOLCHAIN_FILE=cmake/wasm32-wasi.cmake
#
# There are no threads and no shared libraries. With CMM_RELAXED_SIMD=ON the kernels take the multiply-add of relaxed SIMD
# (libcmm/src/simd/wasm.h), which an engine must know to read the module at all; node 20 knows it by a flag.

set(CMAKE_SYSTEM_NAME Generic)
set(CMAKE_SYSTEM_PROCESSOR wasm32)
set(CMAKE_EXECUTABLE_SUFFIX .wasm)
set(CMM_THREADS OFF CACHE BOOL "OFF: every call runs on its own thread and no library is loaded: neither pthreads nor dlopen")
set(BUILD_SHARED_LIBS OFF CACHE BOOL "WebAssembly has none")
option(CMM_RELAXED_SIMD "WebAssembly: take the multiply-add of relaxed SIMD" OFF)
list(APPEND CMAKE_TRY_COMPILE_PLATFORM_VARIABLES CMM_RELAXED_SIMD CMM_ZIG)

find_program(CMM_ZIG NAMES zig python-zig REQUIRED)
set(CMAKE_C_COMPILER "${CMM_ZIG}" cc)
set(CMAKE_C_COMPILER_TARGET wasm32-wasi)
set(CMAKE_C_FLAGS_INIT "")
if(CMM_RELAXED_SIMD)
    set(CMAKE_C_FLAGS_INIT "-msimd128 -mrelaxed-simd")
endif()
set(CMAKE_AR "${CMM_ZIG}")
set(CMAKE_C_ARCHIVE_CREATE "<CMAKE_AR> ar qc <TARGET> <OBJECTS>")
set(CMAKE_C_ARCHIVE_APPEND "<CMAKE_AR> ar q <TARGET> <OBJECTS>")
set(CMAKE_C_ARCHIVE_FINISH "<CMAKE_AR> ranlib <TARGET>")

# node 20 knows relaxed SIMD by a flag, which later versions refuse. (Set when the engine runs already, it breaks it.)
find_program(CMM_NODE NAMES node)
if(CMM_NODE)
    set(node_flags "")
    if(CMM_RELAXED_SIMD)
        execute_process(COMMAND "${CMM_NODE}" --version OUTPUT_VARIABLE node_version)
        if(node_version MATCHES "^v20[.]")
            set(node_flags --experimental-wasm-relaxed-simd)
        endif()
    endif()
    # Without its other threads: as a program with much memory ends, node 20 may run into what they still hold (22 of 40 runs of
    # test_narrow_rows ended in a segmentation fault after their last line, none of 40 so).
    list(APPEND node_flags --single-threaded)
    set(CMAKE_CROSSCOMPILING_EMULATOR "${CMM_NODE}" ${node_flags} "${CMAKE_CURRENT_LIST_DIR}/wasi.mjs")
endif()
