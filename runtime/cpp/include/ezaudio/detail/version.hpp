// The version of this library. It stands only here: CMake reads it from this line, and a test compares it with Python's.
#pragma once

#define EZAUDIO_VERSION "0.1.0"
