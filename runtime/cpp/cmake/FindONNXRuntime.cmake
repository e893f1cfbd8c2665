# Finds ONNX Runtime and defines the target ONNXRuntime::ONNXRuntime; a target of that name that exists already is used.
#   ONNXRUNTIME_INCLUDE_DIR   folder of the headers, or the one above it
#   ONNXRUNTIME_LIBRARY       the library file
#   ONNXRUNTIME_FROM_PYTHON   ON: the library inside the Python package, which has no headers
#   ONNXRUNTIME_ROOT          an unpacked release archive: include/ and lib/
# Earlier ones win. What is named is never looked for elsewhere; what is not named comes from the system.
if(TARGET ONNXRuntime::ONNXRuntime)
  set(ONNXRuntime_FOUND TRUE)
  return()
endif()

option(ONNXRUNTIME_FROM_PYTHON "Use the ONNX Runtime library of the Python package" OFF)

# Results are not cached, so that setting one of the variables later on has an effect.
unset(ONNXRuntime_INCLUDE_DIR)
set(_where)
if(ONNXRUNTIME_INCLUDE_DIR)
  set(_where PATHS "${ONNXRUNTIME_INCLUDE_DIR}" NO_DEFAULT_PATH NO_CMAKE_FIND_ROOT_PATH)
elseif(ONNXRUNTIME_ROOT)
  set(_where PATHS "${ONNXRUNTIME_ROOT}/include" NO_DEFAULT_PATH NO_CMAKE_FIND_ROOT_PATH)
endif()
find_path(
  ONNXRuntime_INCLUDE_DIR onnxruntime_cxx_api.h ${_where}
  PATH_SUFFIXES onnxruntime onnxruntime/core/session NO_CACHE)

unset(ONNXRuntime_LIBRARY)
if(ONNXRUNTIME_LIBRARY)
  if(EXISTS "${ONNXRUNTIME_LIBRARY}")
    set(ONNXRuntime_LIBRARY "${ONNXRUNTIME_LIBRARY}")
  endif()
elseif(ONNXRUNTIME_FROM_PYTHON)
  find_package(Python3 REQUIRED COMPONENTS Interpreter)
  execute_process(  # in a folder that no module can come from; the package is located, not imported
    COMMAND "${Python3_EXECUTABLE}" -c
            "import importlib.util; print(*importlib.util.find_spec('onnxruntime').submodule_search_locations)"
    WORKING_DIRECTORY "${CMAKE_CURRENT_LIST_DIR}"
    OUTPUT_VARIABLE _package OUTPUT_STRIP_TRAILING_WHITESPACE ERROR_QUIET)
  if(NOT _package)
    message(
      FATAL_ERROR
        "ONNXRUNTIME_FROM_PYTHON: ${Python3_EXECUTABLE} has no package onnxruntime. Install it there with pip, or name "
        "another interpreter by -DPython3_EXECUTABLE=FILE.")
  endif()
  file(GLOB ONNXRuntime_LIBRARY "${_package}/capi/libonnxruntime.so.*" "${_package}/capi/libonnxruntime.*.dylib")
elseif(ONNXRUNTIME_ROOT)
  find_library(
    ONNXRuntime_LIBRARY onnxruntime PATHS "${ONNXRUNTIME_ROOT}" PATH_SUFFIXES lib lib64
    NO_DEFAULT_PATH NO_CMAKE_FIND_ROOT_PATH NO_CACHE)
else()
  find_library(ONNXRuntime_LIBRARY onnxruntime NO_CACHE)
endif()

# The version of the headers: that of the library is only known from its name, if at all.
unset(ONNXRuntime_VERSION)
if(ONNXRuntime_INCLUDE_DIR)
  file(STRINGS "${ONNXRuntime_INCLUDE_DIR}/onnxruntime_c_api.h" _api REGEX "^#define ORT_API_VERSION ")
  string(REGEX MATCH "[0-9]+" _api "${_api}")
  set(ONNXRuntime_VERSION "1.${_api}")
endif()

include(FindPackageHandleStandardArgs)
find_package_handle_standard_args(
  ONNXRuntime
  REQUIRED_VARS ONNXRuntime_INCLUDE_DIR ONNXRuntime_LIBRARY
  VERSION_VAR ONNXRuntime_VERSION
  REASON_FAILURE_MESSAGE  # no semicolon in it: CMake would take the text apart there
    "
Three ways to say where ONNX Runtime's headers and library are:
  1. a release archive, unpacked:  -DONNXRUNTIME_ROOT=FOLDER
  2. the Python package's library: -DONNXRUNTIME_FROM_PYTHON=ON, or -DONNXRUNTIME_LIBRARY=FILE,
     with headers from elsewhere:  -DONNXRUNTIME_INCLUDE_DIR=FOLDER
  3. a system package with headers and library, such as libonnxruntime-dev
")
if(NOT ONNXRuntime_FOUND)
  return()
endif()

get_filename_component(_library "${ONNXRuntime_LIBRARY}" REALPATH)
get_filename_component(_folder "${_library}" DIRECTORY)
get_filename_component(_name "${_library}" NAME)
if(NOT ONNXRuntime_FIND_QUIETLY)
  message(STATUS "ONNX Runtime library: ${_library}")
endif()

# A library answers programs of its own version and older ones: with newer headers a program would start and then fail.
if(_name MATCHES "1\\.([0-9]+)\\.[0-9]+" AND _api GREATER CMAKE_MATCH_1)
  message(
    FATAL_ERROR
      "The headers in ${ONNXRuntime_INCLUDE_DIR} are of ONNX Runtime ${ONNXRuntime_VERSION}, newer than ${_library}: "
      "take headers of its version or of an older one.")
endif()

# The Python package has libonnxruntime.so.1.N.M alone, while programs look for libonnxruntime.so.1; and providers are
# looked for beside the name that the library was loaded by.
set(_location "${ONNXRuntime_LIBRARY}")
if(_name MATCHES "^libonnxruntime\\.so\\.[0-9]" AND NOT EXISTS "${_folder}/libonnxruntime.so.1")
  set(_links "${CMAKE_BINARY_DIR}/ezaudio-onnxruntime")
  file(REMOVE_RECURSE "${_links}")
  file(MAKE_DIRECTORY "${_links}")
  file(CREATE_LINK "${_library}" "${_links}/libonnxruntime.so.1" SYMBOLIC)
  file(GLOB _providers RELATIVE "${_folder}" "${_folder}/libonnxruntime_providers_*.so")
  foreach(_provider IN LISTS _providers)
    file(CREATE_LINK "${_folder}/${_provider}" "${_links}/${_provider}" SYMBOLIC)
  endforeach()
  set(_location "${_links}/libonnxruntime.so.1")
endif()

# Global, so that a project which adds this one by add_subdirectory can link it.
add_library(ONNXRuntime::ONNXRuntime SHARED IMPORTED GLOBAL)
set_target_properties(
  ONNXRuntime::ONNXRuntime PROPERTIES IMPORTED_LOCATION "${_location}"
                                      INTERFACE_INCLUDE_DIRECTORIES "${ONNXRuntime_INCLUDE_DIR}")
