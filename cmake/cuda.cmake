# Finds a CUDA compiler that works, for CMM_CUDA=OFF|ON|AUTO.
#
# As a part of another project nothing is tried or enabled, but by ON: AUTO means whether that project has enabled CUDA.
#
# cmm_find_cuda(result): enables the language CUDA and sets result to TRUE where CMM_CUDA is ON, or is AUTO and a compiler
# can build a shared library. With AUTO nothing about CUDA fails a build: a compiler that does not work is a warning. So
# it is tried in a project of its own first, for enable_language() and check_language() stop at a broken one.

function(cmm_find_cuda result)
    set(${result} FALSE PARENT_SCOPE)
    if(CMM_CUDA STREQUAL "OFF")
        return()
    endif()
    if(NOT CMM_CUDA MATCHES "^(ON|AUTO)$")
        message(FATAL_ERROR "CMM_CUDA is '${CMM_CUDA}'; it should be OFF, ON or AUTO")
    endif()
    if(CMM_CUDA STREQUAL "AUTO" AND NOT PROJECT_IS_TOP_LEVEL)
        get_property(languages GLOBAL PROPERTY ENABLED_LANGUAGES)
        if(NOT "CUDA" IN_LIST languages)
            return()
        endif()
    elseif(CMM_CUDA STREQUAL "AUTO")
        find_program(CMM_NVCC NAMES nvcc PATHS ENV CUDA_PATH ENV CUDA_HOME /usr/local/cuda PATH_SUFFIXES bin) # after PATH
        if(DEFINED ENV{CUDACXX})
            set(nvcc "$ENV{CUDACXX}")
        elseif(CMAKE_CUDA_COMPILER)
            set(nvcc "${CMAKE_CUDA_COMPILER}")
        else()
            set(nvcc "${CMM_NVCC}")
        endif()
        if(NOT nvcc)
            message(STATUS "No CUDA compiler: libcmm_cuda is not built")
            return()
        endif()
        set(trial "${CMAKE_CURRENT_BINARY_DIR}/cuda_trial")
        file(WRITE "${trial}/CMakeLists.txt" [[
cmake_minimum_required(VERSION 3.24)
project(trial LANGUAGES CUDA)
add_library(trial SHARED trial.cu)
]])
        file(WRITE "${trial}/trial.cu" [[
#include <cuda_bf16.h>
#include <cuda_fp16.h>
__global__ void trial(__nv_bfloat16 *y, __half *z) { *y = __float2bfloat16_rn(__half2float(*z)); }
]])
        execute_process(
            COMMAND ${CMAKE_COMMAND} -S "${trial}" -B "${trial}/build" -G "${CMAKE_GENERATOR}"
                "-DCMAKE_CUDA_COMPILER=${nvcc}" "-DCMAKE_CUDA_ARCHITECTURES=80" "-DCMAKE_MAKE_PROGRAM=${CMAKE_MAKE_PROGRAM}"
            RESULT_VARIABLE failed OUTPUT_VARIABLE log ERROR_VARIABLE log)
        if(NOT failed)
            execute_process(COMMAND ${CMAKE_COMMAND} --build "${trial}/build"
                RESULT_VARIABLE failed OUTPUT_VARIABLE log ERROR_VARIABLE log)
        endif()
        if(failed)
            file(WRITE "${trial}/log.txt" "${log}")
            message(WARNING "${nvcc} does not work (see ${trial}/log.txt): libcmm_cuda is not built")
            return()
        endif()
        set(CMAKE_CUDA_COMPILER "${nvcc}" CACHE FILEPATH "CUDA compiler")
    endif()
    set(${result} TRUE PARENT_SCOPE)
endfunction()
