# Where the headers lie and which version they have. The build includes this file too: the version stands once.
unset(EZAUDIO_INCLUDE_DIR)
foreach(up ../include ../../../include ../../../../include)  # source folder, Python package; lib/; lib/ARCHITECTURE/
  if(EXISTS "${CMAKE_CURRENT_LIST_DIR}/${up}/ezaudio/detail/version.hpp")
    get_filename_component(EZAUDIO_INCLUDE_DIR "${CMAKE_CURRENT_LIST_DIR}/${up}" ABSOLUTE)
    break()
  endif()
endforeach()
if(NOT EZAUDIO_INCLUDE_DIR)
  message(FATAL_ERROR "No headers of ezaudio lie beside ${CMAKE_CURRENT_LIST_DIR}: install ezaudio again.")
endif()

file(STRINGS "${EZAUDIO_INCLUDE_DIR}/ezaudio/detail/version.hpp" PACKAGE_VERSION REGEX "^#define EZAUDIO_VERSION ")
string(REGEX MATCH "[0-9]+\\.[0-9]+\\.[0-9]+" PACKAGE_VERSION "${PACKAGE_VERSION}")
string(REGEX MATCH "^[0-9]+\\.[0-9]+" EZAUDIO_ABI_VERSION "${PACKAGE_VERSION}")

# Until 1.0, a new minor version may change the interface.
if("${PACKAGE_FIND_VERSION_MAJOR}.${PACKAGE_FIND_VERSION_MINOR}" STREQUAL EZAUDIO_ABI_VERSION AND
   PACKAGE_VERSION VERSION_GREATER_EQUAL "${PACKAGE_FIND_VERSION}")
  set(PACKAGE_VERSION_COMPATIBLE TRUE)
endif()
if("${PACKAGE_FIND_VERSION}" STREQUAL PACKAGE_VERSION)
  set(PACKAGE_VERSION_EXACT TRUE)
endif()
