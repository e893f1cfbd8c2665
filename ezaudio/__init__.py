"""EzAudio: text-to-audio diffusion, from training to an optimised runtime.

Importing this package loads nothing heavy; `ezaudio.runtime` makes sound, `ezaudio.export` makes bundles.
"""

__version__ = "0.1.0"
