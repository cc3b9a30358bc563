# What `cmake --install` puts where: headers, librmoe.so, the command, and a CMake package with the target rmoe::rmoe.
include(GNUInstallDirs)
include(CMakePackageConfigHelpers)

# The Python package, component `python`: librmoe.so beside the modules, and what lm_eval finds the model class by
# (python/_rmoe_lm_eval.py). torch lies beside the package, or is loaded before it from elsewhere.
set(python_rpath "$ORIGIN/../../torch/lib")
if(RMOE_BUILT)
  add_custom_target(rmoe_lib)
  install(CODE "execute_process(COMMAND \"${CMAKE_COMMAND}\" --install \"${RMOE_BUILT}\" --component python
                                --prefix \"\${CMAKE_INSTALL_PREFIX}\" COMMAND_ERROR_IS_FATAL ANY)"
          COMPONENT python)
  return()
endif()
install(TARGETS rmoe_lib LIBRARY DESTINATION rmoe/lib COMPONENT python EXCLUDE_FROM_ALL)
install(FILES python/_rmoe_lm_eval.py python/rmoe-lm-eval.pth DESTINATION . COMPONENT python EXCLUDE_FROM_ALL)
if(RMOE_PYTHON)
  set_target_properties(rmoe_lib PROPERTIES INSTALL_RPATH "${python_rpath}")
  return()
endif()
# Of a library's properties there is one set: what the other component below has is replaced in the file.
install(CODE "file(RPATH_SET FILE \"\$ENV{DESTDIR}\${CMAKE_INSTALL_PREFIX}/rmoe/lib/librmoe.so\"
                   NEW_RPATH [[${python_rpath}]])"
        COMPONENT python EXCLUDE_FROM_ALL)

if(RMOE_CUDA)
  install(FILES ${CMAKE_BINARY_DIR}/librmoe_cuda.so DESTINATION ${CMAKE_INSTALL_LIBDIR})
  install(FILES ${CMAKE_BINARY_DIR}/librmoe_cuda.so DESTINATION rmoe/lib COMPONENT python EXCLUDE_FROM_ALL)
endif()

# The library finds its torch where it was built on; another one of the same version may be loaded before it.
set_target_properties(rmoe_lib rmoe_command PROPERTIES INSTALL_RPATH "$ORIGIN;${RMOE_TORCH_DIR}/lib")
set_target_properties(rmoe PROPERTIES INSTALL_RPATH "$ORIGIN/../${CMAKE_INSTALL_LIBDIR}")

install(TARGETS rmoe_lib rmoe_command LIBRARY DESTINATION ${CMAKE_INSTALL_LIBDIR})
install(TARGETS rmoe RUNTIME DESTINATION ${CMAKE_INSTALL_BINDIR})
# The command line and the code for one instruction set are nobody's interface.
install(DIRECTORY src/rmoe DESTINATION ${CMAKE_INSTALL_INCLUDEDIR} FILES_MATCHING PATTERN "*.h"
        PATTERN "cli" EXCLUDE PATTERN "per_isa" EXCLUDE PATTERN "python" EXCLUDE)

set(RMOE_PACKAGE_DIR ${CMAKE_INSTALL_LIBDIR}/cmake/rmoe)
configure_package_config_file(cmake/rmoeConfig.cmake.in ${CMAKE_BINARY_DIR}/rmoeConfig.cmake
                              INSTALL_DESTINATION ${RMOE_PACKAGE_DIR} PATH_VARS CMAKE_INSTALL_INCLUDEDIR CMAKE_INSTALL_LIBDIR)
write_basic_package_version_file(${CMAKE_BINARY_DIR}/rmoeConfigVersion.cmake COMPATIBILITY SameMinorVersion)
install(FILES ${CMAKE_BINARY_DIR}/rmoeConfig.cmake ${CMAKE_BINARY_DIR}/rmoeConfigVersion.cmake cmake/torch.cmake
        DESTINATION ${RMOE_PACKAGE_DIR})
