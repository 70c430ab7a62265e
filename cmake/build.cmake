# The text of cmm_build(): the compiler and the flags that made the library.
#
# cmm_describe_build(target): adds a source with that one function to the target, so that nothing else is compiled
# anew when the text changes. A path would say where and not what, and two machines would make two libraries: it
# becomes "...".

function(cmm_describe_build target)
    string(REGEX REPLACE "^GNU$" "GCC" compiler "${CMAKE_C_COMPILER_ID}")
    string(APPEND compiler " ${CMAKE_C_COMPILER_VERSION}")
    if(CMAKE_CONFIGURATION_TYPES)
        set(configs ${CMAKE_CONFIGURATION_TYPES})
    else()
        set(configs ${CMAKE_BUILD_TYPE})
    endif()
    foreach(config IN LISTS configs)
        string(TOUPPER "${config}" CONFIG)
        list(JOIN cmm_exact_flags " " flags)
        set(flags "${CMAKE_C_COMPILER_ARG1} ${CMAKE_C_FLAGS} ${CMAKE_C_FLAGS_${CONFIG}} ${flags}")
        if(NOT CMM_THREADS)
            string(APPEND flags " -DCMM_NO_THREADS")
        endif()
        if(CMM_SANITIZE)
            string(APPEND flags " -fsanitize=${CMM_SANITIZE}")
        endif()
        string(REGEX REPLACE "([A-Za-z]:[/\\\\]|/)[^ ]*" "..." flags "${flags}")
        string(REGEX REPLACE "([\"\\\\])" "\\\\\\1" flags "${flags}")
        string(REGEX REPLACE "[ \t]+" " " flags "${flags}")
        string(STRIP "${flags}" flags)
        set(source "${CMAKE_CURRENT_BINARY_DIR}/build/${config}.c")
        configure_file("${CMAKE_CURRENT_FUNCTION_LIST_DIR}/build.c.in" "${source}" @ONLY)
        target_sources(${target} PRIVATE "$<$<CONFIG:${config}>:${source}>")
    endforeach()
endfunction()
