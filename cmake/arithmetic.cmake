# IEEE arithmetic as the sources write it, whatever flags the environment or the command line brings.
#
# Flags for speed at the cost of correctness (-ffast-math and its parts) reach a build from CFLAGS, CMAKE_C_FLAGS or a
# toolchain file. Reordered sums, assumed-away NaNs and flushed subnormals would make another library of this one. So
# cmm_exact_arithmetic(target) takes them back by options that come after them, as far as the compiler knows such
# options; what no later option takes back stops the configuration here, and what comes later still (a wrapper around
# the compiler) stops the compiler in libcmm/src/arithmetic.h.

include(CheckCCompilerFlag)

# -Ofast is -O3 and -ffast-math. A later -fno-fast-math takes the second back for the compiler, but not for the
# linker, which would add start-up code that flushes subnormal numbers in every program that loads the library.
#
# What no later option takes back: options of clang's inner compiler; x87 arithmetic of another precision; that
# start-up code by name.
set(irrevocable "-Xclang[ =]*-(menable-|mreassociate|ffast-math|freciprocal-math|fapprox-func|fno-signed-zeros)[^ ]*"
    "-Xclang[ =]*-(ffinite-|ffp-|fdenormal-)[^ ]*" "-mpc(32|64)" "[^ ]*crtfastmath[^ ]*")
list(JOIN irrevocable "|" irrevocable)
set(variables CMAKE_C_COMPILER_ARG1 CMAKE_C_FLAGS)
foreach(config IN LISTS CMAKE_BUILD_TYPE CMAKE_CONFIGURATION_TYPES)
    string(TOUPPER "${config}" config)
    list(APPEND variables CMAKE_C_FLAGS_${config})
endforeach()
foreach(kind IN ITEMS SHARED MODULE EXE)
    list(APPEND variables CMAKE_${kind}_LINKER_FLAGS)
endforeach()
foreach(variable IN LISTS variables)
    string(REGEX REPLACE "(^| )-Ofast($| )" "\\1-O3\\2" ${variable} "${${variable}}")
    if("${${variable}}" MATCHES "(${irrevocable})")
        message(FATAL_ERROR
            "${variable} holds ${CMAKE_MATCH_1}: libcmm would compute other numbers; build without it")
    endif()
endforeach()

# Asked one by one, and without the flags of the user: a warning about one of those would look like a refusal. A flag
# that the compiler warns of is not taken: clang's -fno-fast-math covers -fno-unsafe-math-optimizations, which there
# turns trapping on; gcc needs both.
function(cmm_find_exact_flags result)
    set(CMAKE_C_FLAGS "")
    set(CMAKE_TRY_COMPILE_TARGET_TYPE STATIC_LIBRARY)
    set(CMAKE_REQUIRED_QUIET TRUE)
    set(found "")
    foreach(flag IN LISTS ARGN)
        string(MAKE_C_IDENTIFIER "CMM_HAS ${flag}" has)
        set(CMAKE_REQUIRED_FLAGS "-Werror ${flag} -fno-trapping-math")
        check_c_compiler_flag("" ${has})
        if(${has})
            list(APPEND found ${flag})
        endif()
    endforeach()
    set(${result} "${found}" PARENT_SCOPE)
endfunction()

cmm_find_exact_flags(cmm_exact_link_flags -fno-fast-math -fno-unsafe-math-optimizations -mno-daz-ftz)
# Also no errno and no trapping, so that loops vectorise: those two change no number.
cmm_find_exact_flags(cmm_exact_flags -fno-fast-math -fno-unsafe-math-optimizations -fno-associative-math
    -fno-reciprocal-math -fno-finite-math-only -fhonor-nans -fhonor-infinities -fsigned-zeros -fno-approx-func
    -fdenormal-fp-math=ieee -ffp-eval-method=source -fexcess-precision=standard -mfpmath=sse
    -fno-single-precision-constant -ffp-contract=off -fno-math-errno -fno-trapping-math)

# The C files of a target are compiled, and it is linked, so that nothing above has an effect.
function(cmm_exact_arithmetic target)
    target_compile_options(${target} PRIVATE "$<$<COMPILE_LANGUAGE:C>:${cmm_exact_flags}>")
    target_link_options(${target} PRIVATE "$<HOST_LINK:${cmm_exact_link_flags}>")
endfunction()
