# Which flags the compiler and the linker know. A flag that they only warn of is not taken.

include(CheckCCompilerFlag)
include(CheckLinkerFlag)

# cmm_find_flags(result flag ...): those of the flags that the compiler knows. Asked without the flags of the user: a
# warning about one of those would look like a refusal.
function(cmm_find_flags result)
    set(CMAKE_C_FLAGS "")
    set(CMAKE_TRY_COMPILE_TARGET_TYPE STATIC_LIBRARY)
    set(CMAKE_REQUIRED_QUIET TRUE)
    set(found "")
    foreach(flag IN LISTS ARGN)
        string(MAKE_C_IDENTIFIER "CMM_HAS ${flag}" has)
        check_c_compiler_flag("${flag}" ${has})
        if(${has})
            list(APPEND found "${flag}")
        endif()
    endforeach()
    set(${result} "${found}" PARENT_SCOPE)
endfunction()

# cmm_find_linker_flags(result flag ...): those of the flags that the linker knows.
function(cmm_find_linker_flags result)
    set(CMAKE_REQUIRED_QUIET TRUE)
    set(found "")
    foreach(flag IN LISTS ARGN)
        string(MAKE_C_IDENTIFIER "CMM_LINKS ${flag}" has)
        check_linker_flag(C "${flag}" ${has})
        if(${has})
            list(APPEND found "${flag}")
        endif()
    endforeach()
    set(${result} "${found}" PARENT_SCOPE)
endfunction()
