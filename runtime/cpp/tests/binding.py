"""A binding of the C library through ctypes, as any other language would write one."""

from __future__ import annotations

import ctypes
import os
from pathlib import Path
from typing import Any

import numpy as np

OK, INPUT_ERROR, BUNDLE_ERROR, CANCELLED, FAILURE = range(5)
LOW_MEMORY = 2

STEP = ctypes.CFUNCTYPE(ctypes.c_int32, ctypes.c_void_p, ctypes.c_size_t, ctypes.c_size_t)
AUDIO = ctypes.CFUNCTYPE(ctypes.c_int32, ctypes.c_void_p, ctypes.POINTER(ctypes.c_float), ctypes.c_size_t)


class Options(ctypes.Structure):
    """`ezaudio_options`."""

    _fields_ = (
        ("size", ctypes.c_size_t),
        ("duration_s", ctypes.c_double),
        ("guidance_scale", ctypes.c_double),
        ("guidance_rescale", ctypes.c_double),
        ("eta", ctypes.c_double),
        ("num_steps", ctypes.c_int32),
        ("has_seed", ctypes.c_int32),
        ("seed", ctypes.c_uint64),
        ("negative_prompt", ctypes.c_char_p),
        ("solver", ctypes.c_char_p),
        ("noise", ctypes.c_char_p),
        ("control_audio", ctypes.POINTER(ctypes.c_float)),
        ("control_count", ctypes.c_size_t),
        ("control_scale", ctypes.c_double),
        ("edit_audio", ctypes.POINTER(ctypes.c_float)),
        ("edit_count", ctypes.c_size_t),
        ("start_s", ctypes.c_double),
        ("end_s", ctypes.c_double),
        ("context_s", ctypes.c_double),
        ("on_step", STEP),
        ("on_audio", AUDIO),
        ("user", ctypes.c_void_p),
        ("preset", ctypes.c_char_p),
        ("guidance_low", ctypes.c_double),
        ("guidance_high", ctypes.c_double),
        ("reuse", ctypes.POINTER(ctypes.c_int32)),
        ("reuse_count", ctypes.c_size_t),
        ("spacing", ctypes.c_double),
    )


class Refusal(Exception):
    """A status other than OK, with the library's line."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


class CPipeline:
    """What a binding in another language is: a handle, an options struct, and callbacks."""

    def __init__(self, library: ctypes.CDLL, folder: Path, threads: int = 1, flags: int = 0) -> None:
        self._library = library
        self._handle = ctypes.c_void_p(library.ezaudio_create())
        self._check(library.ezaudio_open(self._handle, os.fsencode(folder), threads, b"cpu", flags))

    def close(self) -> None:
        self._library.ezaudio_destroy(self._handle)
        self._handle = ctypes.c_void_p()

    def _check(self, status: int) -> None:
        if status != OK:
            raise Refusal(status, self._library.ezaudio_error(self._handle).decode())

    def generate(self, prompt: str, wav: Path | None = None, bit_depth: int = 16, **given: Any) -> np.ndarray:
        """Samples (T,); `given` are fields of the struct, text and arrays as Python has them."""
        options = Options()
        self._library.ezaudio_options_init(ctypes.byref(options))
        keep = []
        for name, value in given.items():
            if name in ("control_audio", "edit_audio"):
                array = np.ascontiguousarray(value, np.float32)
                keep.append(array)
                setattr(options, name, array.ctypes.data_as(ctypes.POINTER(ctypes.c_float)))
                setattr(options, name.replace("audio", "count"), array.size)
            elif name == "guidance_interval":
                options.guidance_low, options.guidance_high = value
            elif name == "reuse":
                options.reuse, options.reuse_count = (ctypes.c_int32 * len(value))(*value), len(value)
            elif name == "on_step":
                options.on_step = STEP(lambda _user, index, count: int(given["on_step"](index, count)))
            elif name == "on_audio":
                options.on_audio = AUDIO(
                    lambda _user, samples, count: int(
                        given["on_audio"](np.ctypeslib.as_array(samples, (count,)).copy())
                    )
                )
            else:
                setattr(options, name, value.encode() if isinstance(value, str) else value)
                if name == "seed":
                    options.has_seed = 1
        audio, count = ctypes.c_void_p(), ctypes.c_size_t()
        self._check(
            self._library.ezaudio_generate(self._handle, prompt.encode(), ctypes.byref(options), ctypes.byref(audio))
        )
        try:
            samples = self._library.ezaudio_samples(audio, ctypes.byref(count))
            result = np.ctypeslib.as_array(samples, (count.value,)).copy()
            self.warnings = self._library.ezaudio_warnings(audio).decode().splitlines()
            self.seed = self._library.ezaudio_seed(audio)
            if wav is not None:
                self._check(self._library.ezaudio_write_wav(self._handle, audio, os.fsencode(wav), bit_depth))
        finally:
            self._library.ezaudio_free(audio)
        return result


def load_library(path: Path) -> ctypes.CDLL:
    """The shared library with the types of its functions."""
    library = ctypes.CDLL(str(path))
    pointer, text = ctypes.c_void_p, ctypes.c_char_p
    for name, result, arguments in (
        ("version", text, ()),
        ("create", pointer, ()),
        ("destroy", None, (pointer,)),
        ("error", text, (pointer,)),
        ("open", ctypes.c_int, (pointer, text, ctypes.c_int32, text, ctypes.c_int32)),
        ("sample_rate", ctypes.c_int32, (pointer,)),
        ("options_init", None, (pointer,)),
        ("generate", ctypes.c_int, (pointer, text, pointer, pointer)),
        ("samples", ctypes.POINTER(ctypes.c_float), (pointer, pointer)),
        ("seed", ctypes.c_uint64, (pointer,)),
        ("warnings", text, (pointer,)),
        ("write_wav", ctypes.c_int, (pointer, pointer, text, ctypes.c_int32)),
        ("free", None, (pointer,)),
    ):
        function = getattr(library, f"ezaudio_{name}")
        function.restype, function.argtypes = result, arguments
    return library
