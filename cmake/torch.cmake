# The imported target `torch`, made from the folder of a torch package (site-packages/torch, or an unpacked libtorch).
#
# find_package(Torch) does the same for a CPU build, but a CUDA build of torch (what pip gives where nobody asked for a
# CPU build) then refuses to configure on a machine without the CUDA toolkit, which nothing here needs.
# Sets RMOE_TORCH_VERSION, TORCH_INCLUDE_DIRS and TORCH_LIBRARIES (libtorch_cpu and libc10: CPU operators only).
set(RMOE_TORCH_DIR "" CACHE PATH "torch package to build on; empty: the one in .venv")
if(NOT RMOE_TORCH_DIR AND SKBUILD)
  # pip: the torch of the environment that it installs into. pip's own build environment has none, and hides that one
  # by way of PYTHONPATH; so Python is asked without it first (-E), then with it.
  find_package(Python REQUIRED COMPONENTS Interpreter)
  foreach(option -E -s)
    if(NOT RMOE_TORCH_DIR)
      execute_process(
        COMMAND ${Python_EXECUTABLE} ${option} -c "import sys, importlib.util; sys.path[:] = filter(None, sys.path); \
spec = importlib.util.find_spec('torch'); \
print(spec.submodule_search_locations[0] if spec and spec.origin else '', end='')"
        OUTPUT_VARIABLE RMOE_TORCH_DIR)
    endif()
  endforeach()
  if(NOT RMOE_TORCH_DIR)
    message(FATAL_ERROR "no torch in ${Python_EXECUTABLE}'s environment: `pip install torch` first (2.11 or newer), or "
                        "give --config-settings cmake.define.RMOE_TORCH_DIR=/path/to/site-packages/torch")
  endif()
endif()
if(NOT RMOE_TORCH_DIR)
  file(GLOB found LIST_DIRECTORIES true ${CMAKE_SOURCE_DIR}/.venv/lib/python3*/site-packages/torch)
  if(NOT found)
    message(FATAL_ERROR "no torch: run `make setup`, or configure with -DRMOE_TORCH_DIR=/path/to/site-packages/torch")
  endif()
  list(GET found 0 RMOE_TORCH_DIR)
endif()

foreach(part include/ATen/ATen.h include/c10/core/Device.h lib/libtorch_cpu.so lib/libc10.so)
  if(NOT EXISTS "${RMOE_TORCH_DIR}/${part}")
    message(FATAL_ERROR "RMOE_TORCH_DIR=${RMOE_TORCH_DIR} is no torch package: it has no ${part}")
  endif()
endforeach()

if(EXISTS "${RMOE_TORCH_DIR}/version.py")
  file(STRINGS "${RMOE_TORCH_DIR}/version.py" RMOE_TORCH_VERSION REGEX "^__version__ = '")
elseif(EXISTS "${RMOE_TORCH_DIR}/build-version")
  file(STRINGS "${RMOE_TORCH_DIR}/build-version" RMOE_TORCH_VERSION LIMIT_COUNT 1)
endif()
string(REGEX MATCH "[0-9]+\\.[0-9]+\\.[0-9]+" RMOE_TORCH_VERSION "${RMOE_TORCH_VERSION}")
if(RMOE_TORCH_VERSION VERSION_LESS 2.11)
  message(FATAL_ERROR "RMOE_TORCH_DIR=${RMOE_TORCH_DIR} is torch ${RMOE_TORCH_VERSION}; 2.11 or newer is needed")
endif()
message(STATUS "torch ${RMOE_TORCH_VERSION}: ${RMOE_TORCH_DIR}")

set(TORCH_INCLUDE_DIRS "${RMOE_TORCH_DIR}/include" "${RMOE_TORCH_DIR}/include/torch/csrc/api/include")
set(TORCH_LIBRARIES torch)
add_library(rmoe_c10 SHARED IMPORTED)
set_target_properties(rmoe_c10 PROPERTIES IMPORTED_LOCATION "${RMOE_TORCH_DIR}/lib/libc10.so")
add_library(torch SHARED IMPORTED)
set_target_properties(torch PROPERTIES
  IMPORTED_LOCATION "${RMOE_TORCH_DIR}/lib/libtorch_cpu.so"
  INTERFACE_INCLUDE_DIRECTORIES "${TORCH_INCLUDE_DIRS}"
  INTERFACE_LINK_LIBRARIES rmoe_c10)
