# What the C++ library needs, said once for the build and for find_package(ezaudio): options and dependencies.
set(EZAUDIO_SENTENCEPIECE OFF CACHE STRING "Link sentencepiece for ezaudio/sentencepiece.hpp: OFF, SYSTEM or FETCH")
set_property(CACHE EZAUDIO_SENTENCEPIECE PROPERTY STRINGS OFF SYSTEM FETCH)
option(EZAUDIO_CUDA "Require that ONNX Runtime has its CUDA provider" OFF)
option(EZAUDIO_TENSORRT "Require that ONNX Runtime has its TensorRT provider" OFF)

# Gives an interface library its headers, options and dependencies.
function(ezaudio_define_library target)
  include("${CMAKE_CURRENT_FUNCTION_LIST_DIR}/ezaudio-config-version.cmake")  # EZAUDIO_INCLUDE_DIR
  list(PREPEND CMAKE_MODULE_PATH "${CMAKE_CURRENT_FUNCTION_LIST_DIR}")
  find_package(ONNXRuntime 1.21 REQUIRED MODULE)
  find_package(Threads REQUIRED)

  target_include_directories(${target} INTERFACE "${EZAUDIO_INCLUDE_DIR}")
  # The flag itself: the target Threads::Threads could not be seen from outside of this folder.
  target_link_libraries(${target} INTERFACE ONNXRuntime::ONNXRuntime ${CMAKE_THREAD_LIBS_INIT})
  target_compile_features(${target} INTERFACE cxx_std_17)
  # Samples equal those of Python byte for byte: a product and a sum must stay two roundings.
  target_compile_options(
    ${target} INTERFACE $<$<COMPILE_LANG_AND_ID:CXX,GNU,Clang,AppleClang>:-ffp-contract=off>)

  foreach(provider IN ITEMS CUDA TENSORRT)
    if(EZAUDIO_${provider})
      ezaudio_check_provider(${provider})
    endif()
  endforeach()
  if(EZAUDIO_SENTENCEPIECE)
    ezaudio_add_sentencepiece(${target})
  endif()
endfunction()

# ONNX Runtime loads a provider from the folder that it lies in itself.
function(ezaudio_check_provider provider)
  string(TOLOWER "libonnxruntime_providers_${provider}.so" name)
  get_target_property(library ONNXRuntime::ONNXRuntime LOCATION)
  get_filename_component(library "${library}" REALPATH)
  get_filename_component(folder "${library}" DIRECTORY)
  if(NOT EXISTS "${folder}/${name}")
    message(
      FATAL_ERROR
        "EZAUDIO_${provider}: ${folder} has no ${name}, so this ONNX Runtime is one without it. Take a release archive "
        "whose name has gpu in it, or the Python package onnxruntime-gpu in the place of onnxruntime.")
  endif()
endfunction()

function(ezaudio_add_sentencepiece target)
  if(EZAUDIO_SENTENCEPIECE STREQUAL "FETCH")
    ezaudio_fetch_sentencepiece()
    set(headers "${sentencepiece_SOURCE_DIR}/src")
    set(library sentencepiece-static)
  elseif(EZAUDIO_SENTENCEPIECE STREQUAL "SYSTEM")
    find_path(EZAUDIO_SENTENCEPIECE_INCLUDE_DIR sentencepiece_processor.h)
    find_library(EZAUDIO_SENTENCEPIECE_LIBRARY sentencepiece)
    mark_as_advanced(EZAUDIO_SENTENCEPIECE_INCLUDE_DIR EZAUDIO_SENTENCEPIECE_LIBRARY)
    if(NOT EZAUDIO_SENTENCEPIECE_INCLUDE_DIR OR NOT EZAUDIO_SENTENCEPIECE_LIBRARY)
      message(
        FATAL_ERROR
          "EZAUDIO_SENTENCEPIECE: sentencepiece_processor.h and libsentencepiece were not found. Install them "
          "(libsentencepiece-dev), or set it to FETCH or OFF.")
    endif()
    set(headers "${EZAUDIO_SENTENCEPIECE_INCLUDE_DIR}")
    set(library "${EZAUDIO_SENTENCEPIECE_LIBRARY}")
  else()
    message(FATAL_ERROR "EZAUDIO_SENTENCEPIECE is '${EZAUDIO_SENTENCEPIECE}': set it to OFF, SYSTEM or FETCH.")
  endif()
  target_include_directories(${target} SYSTEM INTERFACE "${headers}")
  target_link_libraries(${target} INTERFACE "${library}")
  target_compile_definitions(${target} INTERFACE EZAUDIO_SENTENCEPIECE=1)
endfunction()

# Builds sentencepiece 0.2.0 as the static library sentencepiece-static.
function(ezaudio_fetch_sentencepiece)
  include(FetchContent)
  FetchContent_Declare(
    sentencepiece
    GIT_REPOSITORY https://github.com/google/sentencepiece.git
    GIT_TAG 17d7580d6407802f85855d2cc9190634e2c95624
    SOURCE_SUBDIR only-fetched)  # a folder that is not there: EXCLUDE_FROM_ALL below would have no effect otherwise
  FetchContent_MakeAvailable(sentencepiece)
  set(sentencepiece_SOURCE_DIR "${sentencepiece_SOURCE_DIR}" PARENT_SCOPE)
  if(TARGET sentencepiece-static)
    return()
  endif()
  set(CMAKE_POLICY_DEFAULT_CMP0077 NEW)  # it is older than this policy; its options take the variables below
  set(CMAKE_POLICY_VERSION_MINIMUM 3.5)  # and older than what CMake 4 accepts
  set(SPM_ENABLE_SHARED OFF)
  set(SPM_ENABLE_TCMALLOC OFF)
  set(SPM_BUILD_TEST OFF)
  add_subdirectory("${sentencepiece_SOURCE_DIR}" "${sentencepiece_BINARY_DIR}" EXCLUDE_FROM_ALL)
  # Its sources use uint32_t without <cstdint>, which GCC 15 no longer brings along.
  target_compile_options(sentencepiece-static PRIVATE -include cstdint -w)
endfunction()
