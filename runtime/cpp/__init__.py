"""The C++ library: headers, CMake files, examples. `python -m ezaudio.runtime.cpp --help` tells where they lie."""
