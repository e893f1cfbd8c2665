#pragma once

#include <stdexcept>

namespace ezaudio {

/// Base of every error that the user, not this project, can mend: what() is one line that says what to do.
class Error : public std::runtime_error {
public:
    using std::runtime_error::runtime_error;
};

/// An argument is outside what the model accepts.
class InputError : public Error {
public:
    using Error::Error;
};

/// A bundle is missing, damaged, incomplete or of another format.
class BundleError : public Error {
public:
    using Error::Error;
};

/// The callback said stop: the generation produced nothing.
class CancelledError : public Error {
public:
    using Error::Error;
};

}  // namespace ezaudio
