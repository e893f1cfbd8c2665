# find_package(ezaudio CONFIG) from an install prefix, from the source folder and from the Python package.
# Defines ezaudio::ezaudio, the C++ library, and where it was built and installed ezaudio::c, the C library.
include(CMakeFindDependencyMacro)
list(PREPEND CMAKE_MODULE_PATH "${CMAKE_CURRENT_LIST_DIR}")
find_dependency(ONNXRuntime 1.21 MODULE)
list(REMOVE_AT CMAKE_MODULE_PATH 0)

include("${CMAKE_CURRENT_LIST_DIR}/ezaudio-library.cmake")
if(NOT TARGET ezaudio::ezaudio)
  add_library(ezaudio::ezaudio INTERFACE IMPORTED)
  ezaudio_define_library(ezaudio::ezaudio)
  include("${CMAKE_CURRENT_LIST_DIR}/ezaudio-c-targets.cmake" OPTIONAL)
endif()
