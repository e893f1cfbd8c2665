"""Errors a caller may want to catch. Each message says what was got, what is expected, and what to do."""

from __future__ import annotations


class EzAudioError(Exception):
    """Base of every error that the user, not this project, can mend. Command-line tools print it and exit with 2."""


class InputError(EzAudioError, ValueError):
    """An argument is outside what the model accepts."""


class BundleError(EzAudioError, RuntimeError):
    """A bundle or checkpoint is missing, damaged, incomplete or of another format."""


class MissingExtraError(EzAudioError, ImportError):
    """An optional part of the package is not installed."""


class CancelledError(EzAudioError):
    """`on_step` returned False: the generation stopped and produced nothing."""


class BackendError(EzAudioError, RuntimeError):
    """A GPU, its driver or one of its libraries refused to work."""
