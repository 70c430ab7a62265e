# Installs what was built of libcmm, and the package that find_package(cmm) and pkg-config find.

set(headers cmm.h cmm.hpp cmm_blas.h)
if(has_cuda)
    list(APPEND headers cmm_cuda.h)
endif()
list(TRANSFORM headers PREPEND "${CMAKE_CURRENT_SOURCE_DIR}/include/")

install(TARGETS ${installed} EXPORT cmmTargets
    RUNTIME DESTINATION ${CMAKE_INSTALL_BINDIR} LIBRARY DESTINATION ${CMAKE_INSTALL_LIBDIR} ARCHIVE DESTINATION ${CMAKE_INSTALL_LIBDIR})
install(FILES ${headers} DESTINATION ${CMAKE_INSTALL_INCLUDEDIR})
if(NOT is_wheel) # which has it where Python's tools look
    install(FILES "${PROJECT_SOURCE_DIR}/LICENSE" DESTINATION ${CMAKE_INSTALL_DATADIR}/licenses/cmm)
endif()

set(package_dir ${CMAKE_INSTALL_LIBDIR}/cmake/cmm)
install(EXPORT cmmTargets NAMESPACE cmm:: DESTINATION ${package_dir})
configure_package_config_file("${CMAKE_CURRENT_LIST_DIR}/cmmConfig.cmake.in" cmmConfig.cmake
    INSTALL_DESTINATION ${package_dir})
configure_file("${CMAKE_CURRENT_LIST_DIR}/cmmConfigVersion.cmake.in" cmmConfigVersion.cmake @ONLY)
install(FILES "${CMAKE_CURRENT_BINARY_DIR}/cmmConfig.cmake" "${CMAKE_CURRENT_BINARY_DIR}/cmmConfigVersion.cmake"
    DESTINATION ${package_dir})

# cmm.pc finds the prefix from where it lies itself, so that all may move together. That it cannot where the folder of
# libraries is an absolute one: then the prefix is written down.
set(CMM_PC_DIR ${CMAKE_INSTALL_LIBDIR}/pkgconfig)
if(IS_ABSOLUTE "${CMAKE_INSTALL_LIBDIR}")
    set(CMM_PC_PREFIX "${CMAKE_INSTALL_PREFIX}")
else()
    file(RELATIVE_PATH CMM_PC_PREFIX "/prefix/${CMM_PC_DIR}" "/prefix")
    string(PREPEND CMM_PC_PREFIX "\${pcfiledir}/")
endif()
foreach(folder IN ITEMS INCLUDEDIR LIBDIR)
    set(CMM_PC_${folder} "${CMAKE_INSTALL_${folder}}")
    if(NOT IS_ABSOLUTE "${CMM_PC_${folder}}")
        string(PREPEND CMM_PC_${folder} "\${prefix}/")
    endif()
endforeach()
# What libcmm needs itself is for those who link it statically, who may have no other.
set(CMM_PC_LIBS "")
set(CMM_PC_LIBS_PRIVATE " -lm")
if(CMM_THREADS AND NOT WIN32)
    set(CMM_PC_LIBS_PRIVATE " -ldl -lm -pthread")
endif()
set(CMM_PC_CFLAGS "")
if(NOT has_shared)
    set(CMM_PC_LIBS "${CMM_PC_LIBS_PRIVATE}")
    set(CMM_PC_LIBS_PRIVATE "")
    set(CMM_PC_CFLAGS " -DCMM_STATIC")
endif()
configure_file("${CMAKE_CURRENT_LIST_DIR}/cmm.pc.in" cmm.pc @ONLY)
install(FILES "${CMAKE_CURRENT_BINARY_DIR}/cmm.pc" DESTINATION ${CMM_PC_DIR})
