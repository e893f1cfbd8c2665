"""EzAudio: text-to-audio diffusion, from training to an optimised runtime.

Importing this package loads nothing heavy; `ezaudio.runtime` makes sound, `ezaudio.export` makes bundles.
"""

import os

# ONNX Runtime's own builds report their use to their maker unless this is set before they are loaded: an identifier of
# the machine would lie in the user's cache, and where it cannot a warning would stand on stderr, whatever was asked.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

__version__ = "0.1.0"
